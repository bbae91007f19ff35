"""What a report reads of a run directory, and which of it is shown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from runs import Plan, card, write_json, write_lines

from duet_train.reporting import reading
from duet_train.reporting.reading import read_run
from duet_train.reporting.run import Answer, Run
from duet_train.reporting.samples import chosen


def run_of(folder: Path, **files: Sequence[Mapping[str, Any]]) -> Run:
    """A run with these lines in these files."""
    write_json(folder / "card.json", card(Plan()))
    for name, lines in files.items():
        write_lines(folder / f"{name}.jsonl", lines)
    return read_run(folder)


def test_last_attempt_at_a_step_counts(tmp_path: Path) -> None:
    """Of a step that was done again the last lines count, in every file, and the resume is known."""
    lines = [{"step": 1, "attempt": 0}, {"step": 2, "attempt": 0}, {"step": 2, "attempt": 1}, {"step": 3, "attempt": 1}]
    rewards = [{**line, "reward": float(number), "rows": 1} for number, line in enumerate(lines)]
    run = run_of(tmp_path, history=rewards, completions=rewards * 2, held_out=rewards, samples=rewards)
    assert [values["reward"] for values in run.history.values()] == [0, 2, 3]
    assert [one.reward for one in run.answers] == [0, 0, 2, 2, 3, 3]
    assert [one.reward for one in run.held_out] == [0, 2, 3]
    assert [one.reward for one in run.samples] == [0, 2, 3]
    assert (run.resumes, run.replayed) == ((2,), 1)


def test_second_line_of_one_attempt_adds_to_the_first(tmp_path: Path) -> None:
    """What an evaluation logs at a step does not wipe out what training logged there."""
    run = run_of(tmp_path, history=[{"step": 5, "loss": 1.0, "kl": 0.1}, {"step": 5, "eval_loss": 2.0, "kl": 0.2}])
    assert run.history == {5: {"loss": 1.0, "kl": 0.2, "eval_loss": 2.0}}


def test_half_written_last_line_is_passed_over(tmp_path: Path) -> None:
    """A run that is just writing has a torn last line, which is no fault; a torn line before it is counted."""
    good = json.dumps({"step": 1, "reward": 1.0})
    (tmp_path / "history.jsonl").write_text(f'{good}\n{{"step": 2, "rew\n[1]\n\n{{"step": 3, "rewa', encoding="utf-8")
    run = read_run(tmp_path)
    assert list(run.history) == [1]
    assert run.spoilt == {"history.jsonl": 2}


def test_spoilt_card_is_none(tmp_path: Path) -> None:
    """A card that is just being written leaves a run without a card."""
    (tmp_path / "card.json").write_text('{"verb": "gr', encoding="utf-8")
    assert read_run(tmp_path).card == {}


def test_nan_and_null_are_no_values(tmp_path: Path) -> None:
    """A value that is NaN, infinite or null leaves a gap, and NaN is remembered."""
    lines = '{"step": 1, "loss": NaN, "kl": null}\n{"step": 2, "loss": Infinity, "kl": 0.5}\n'
    (tmp_path / "history.jsonl").write_text(lines, encoding="utf-8")
    run = read_run(tmp_path)
    assert run.history == {1: {}, 2: {"kl": 0.5}}
    assert run.not_finite == {"loss": 2}


@pytest.mark.parametrize("step", [None, -1, 1.5, "1", True])
def test_line_without_a_step_is_passed_over(step: object, tmp_path: Path) -> None:
    """A step is a whole number that is not negative."""
    assert run_of(tmp_path, history=[{"step": step, "reward": 1.0}]).history == {}


def test_history_is_filled_from_completions(tmp_path: Path) -> None:
    """What only the completions tell is read from them; what the history has is left alone."""
    lines = [
        {"step": 1, "group": 0, "reward": 1.0, "terms": {"rating": 1.0}, "tokens": 10},
        {"step": 1, "group": 0, "reward": 0.0, "terms": {"rating": 0.0}, "tokens": 20},
        {"step": 1, "group": 1, "reward": -1.0, "terms": {}, "error": "TruncatedCompletion: cut"},
        {"step": 1, "group": 1, "reward": -1.0, "terms": {}, "malformed": True},
    ]
    run = run_of(tmp_path, history=[{"step": 1, "reward": 9.0}], completions=lines)
    assert run.history[1] == {
        "reward": 9.0,
        "duet/terms/rating": 0.5,
        "duet/parse_rate": 0.5,
        "completions/mean_length": 15,
        "duet/group_spread": 0.25,
        "duet/flat_groups": 0.5,
    }


def test_texts_of_many_completions_are_thinned_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a limit every 2nd, 4th, 8th … text is kept, over the whole run."""
    monkeypatch.setattr(reading, "TEXTS_KEPT", 10)
    run = run_of(tmp_path, completions=[{"step": step, "completion": str(step)} for step in range(100)])
    assert [one.step for one in run.answers if one.text is not None] == list(range(0, 100, 16))
    assert len(run.answers) == 100


# Examples that are shown


def test_examples_are_the_first_of_the_file_at_steps_spread_over_the_run() -> None:
    """Six examples in the order of the file, at eight steps at most, the first and the last among them."""
    rows = [Answer(step=step, example=str(name), text="x") for step in range(0, 300, 10) for name in range(9)]
    found = chosen(Run(name="r", samples=rows))
    assert [one[0].example for one in found.examples] == ["0", "1", "2", "3", "4", "5"]
    steps = [step for step, _ in found.states]
    assert (len(steps), steps[0], steps[-1], found.of) == (8, 0, 290, 9)
