"""What a target is shown: strictly what came before it, of the splits it may see, the latest rows of it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from prepare_oracle import ORDER, Built, Rated, built, clocks, examples, logs, settings

from duet import JointPrompt
from duet_train.data import windows
from duet_train.data.prepared import Prepared
from duet_train.data.settings import Settings

patient = hypothesis_settings(deadline=None, max_examples=25)


def made(log: list[Rated], asked: Settings) -> Built:
    """A log prepared in a directory that goes."""
    with tempfile.TemporaryDirectory() as directory:
        return built(Path(directory), log, asked)


def agrees(log: list[Rated], asked: Settings) -> bool:
    """Whether the examples are those of the plain definition."""
    result = made(log, asked)
    rows, names = [kept.rated for kept in result.rows], [kept.split for kept in result.rows]
    return result.examples == examples(rows, names, asked)


@hypothesis_settings(deadline=None, max_examples=50)
@given(logs(), settings())
def test_examples_are_the_defined_ones(log: list[Rated], asked: Settings) -> None:
    """History, evidence, their lengths and the order of examples are those of the plain definition."""
    assert agrees(log, asked)


@patient
@given(logs(), settings(), st.integers(1, 7))
def test_parts_change_nothing(log: list[Rated], asked: Settings, size: int) -> None:
    """Work cut into parts of a few rows finds the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "_ROWS_A_PART", size)
        assert agrees(log, asked)


@patient
@given(logs(), settings())
def test_everything_shown_is_strictly_before(log: list[Rated], asked: Settings) -> None:
    """No row of the target's time or later is shown, and so never the target; nor one without a time to one with."""
    result = made(log, asked)
    times = clocks([kept.rated for kept in result.rows])
    for one in result.examples:
        assert all(times[row] < times[one.row] for row in (*one.history, *one.evidence))
        if result.rows[one.row].rated.time is not None:
            assert all(result.rows[row].rated.time is not None for row in (*one.history, *one.evidence))


@patient
@given(logs(), settings())
def test_nothing_held_out_is_shown_to_an_earlier_split(log: list[Rated], asked: Settings) -> None:
    """Train targets are shown train alone, validation targets nothing of the test, and nobody what was dropped."""
    result = made(log, asked)
    last = {name: ORDER[: place + 1] for place, name in enumerate(ORDER)}
    for one in result.examples:
        allowed = ORDER[:1] if asked.histories == "train-only" else last[one.split]
        assert {result.rows[row].split for row in (*one.history, *one.evidence)} <= set(allowed)


@patient
@given(logs(), settings(), st.data())
def test_target_rating_changes_nothing_shown(log: list[Rated], asked: Settings, data: st.DataObject) -> None:
    """With another rating and another review of the target, its example and its prompt stay the same."""
    with tempfile.TemporaryDirectory() as directory:
        before = built(Path(directory) / "before", log, asked)
        if not before.examples:
            return
        target = before.rows[data.draw(st.sampled_from(before.examples)).row].rated
        places = [place for place, one in enumerate(log) if (one.user, one.item) == (target.user, target.item)]
        changed = list(log)
        for place in places:
            changed[place] = attrs.evolve(log[place], rating=6 - log[place].rating, text="I said something else.")
        after = built(Path(directory) / "after", changed, asked)
        assert before.examples == after.examples
        assert prompts(before.directory, target) == prompts(after.directory, target)


def prompts(directory: Path, target: Rated) -> list[object]:
    """The profile prompt of a target."""
    data = Prepared.open(directory)
    found = [one for split in ORDER for one in data.examples(split)]  # type: ignore[arg-type]
    return [
        JointPrompt().render(one.example.user, one.example.item)
        for one in found
        if (one.example.user.id, one.example.item.id) == (target.user, target.item)
    ]


def test_equal_times_are_not_shown_to_each_other() -> None:
    """Rows of one moment stand in no history of one another, and together in that of the next moment."""
    log = [Rated("a", item, time=time) for item, time in (("w", 1.0), ("x", 2.0), ("y", 2.0), ("z", 3.0))]
    result = made(log, Settings(core=0, ratios=(1, 0, 0), min_history=0))
    assert [one.history for one in result.examples] == [(), (0,), (0,), (0, 1, 2)]


def test_window_holds_the_latest_rows() -> None:
    """Of six earlier rows a window of three plus one recent holds the last four, oldest first."""
    log = [Rated("a", f"i{n}", time=float(n)) for n in range(7)]
    result = made(log, Settings(core=0, ratios=(1, 0, 0), history=3, recent=1))
    assert (result.examples[-1].history, result.examples[-1].history_length) == ((2, 3, 4, 5), 6)


def test_prequential_shows_what_train_only_does_not() -> None:
    """A test target sees the user's validation row under prequential histories alone."""
    log = [Rated("a", item, time=float(n)) for n, item in enumerate("wxyz")]
    asked = Settings(core=0, split="leave-last-one-out")
    seen = [
        made(log, attrs.evolve(asked, histories=name)).examples[-1].history for name in ("prequential", "train-only")
    ]
    assert seen == [(0, 1, 2), (0, 1)]


def test_heavy_user_is_no_heavier() -> None:
    """A user with twenty thousand rows gets windows like anyone else."""
    log = [Rated("a", f"i{n}", time=float(n // 3)) for n in range(20_000)]
    result = made(log, Settings(core=0, ratios=(1, 0, 0)))
    assert result.examples[-1].history == tuple(range(19_988, 19_998))
