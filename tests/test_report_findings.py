"""What a report says of a run in words, and the held-out intervals that it goes by."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest
from runs import Plan, write_run

from duet.testing import completion_text
from duet_train.reporting.findings import findings
from duet_train.reporting.held_out import held_out_points
from duet_train.reporting.reading import read_run
from duet_train.reporting.run import Answer, Finding, Measurement, Run
from duet_train.reporting.texts import rating_figures, scale_of, text_figures

# Held-out rows


def measured(step: int, rewards: list[float | None], **more: Any) -> Measurement:
    """A measurement with these rewards."""
    known = [reward for reward in rewards if reward is not None]
    return Measurement(
        step=step, rewards=tuple(rewards), reward=math.fsum(known) / len(known), rows=len(rewards), **more
    )


def test_gain_is_paired_row_by_row() -> None:
    """Rows that differ much but all gain the same have an interval of no width; failed rows are left out."""
    start = measured(0, [0.0, 0.5, 1.0, None])
    end = measured(9, [0.25, 0.75, 1.25, 0.0])
    _, last = held_out_points([start, end])
    assert last.gain is not None
    assert (last.gain.low, last.gain.high, last.gain.units) == (0.25, 0.25, 3)


def test_held_out_intervals_draw_whole_users() -> None:
    """Four rows of two users rest on two units wherever the samples say whose each row is, and else on four."""
    start, end = measured(0, [0.0, 0.5, 1.0, 0.2]), measured(9, [0.3, 0.7, 1.0, 0.0], shuffled_rewards=(0.1,) * 4)
    samples = [Answer(step=step, user=user) for step in (0, 9) for user in ("ann", "ann", "bob", "bob")]
    for known, units in ((samples, 2), (samples[:-1], 4), ((), 4)):
        last = held_out_points([start, end], known)[-1]
        assert [one.units for one in (last.reward, last.gain, last.personal) if one] == [units] * 3


def test_other_rows_have_no_gain() -> None:
    """Measurements of unlike numbers of rows are not compared row by row."""
    assert held_out_points([measured(0, [0.0, 1.0]), measured(1, [0.0, 1.0, 1.0])])[1].gain is None


def test_control_is_compared_over_the_rows_that_it_has() -> None:
    """The shuffled reward leaves out what is no profile, so the right user's does as well."""
    one = measured(0, [0.8, 0.6, -1.0], parse_rate=2 / 3, shuffled_reward=0.5)
    samples = [Answer(step=0, reward=0.8), Answer(step=0, reward=0.6), Answer(step=0, reward=-1.0, is_malformed=True)]
    assert held_out_points([one], samples)[0].gap == pytest.approx(0.2)
    assert held_out_points([one])[0].gap is None
    by_row = attrs.evolve(one, shuffled_rewards=(0.5, 0.5, None))
    assert held_out_points([by_row])[0].gap == pytest.approx(0.2)


# What is said


def found_in(run: Run) -> list[Finding]:
    """The diagnoses of a run."""
    scale = scale_of(run)
    return findings(
        run, held_out_points(run.held_out, run.samples), text_figures(run, scale), rating_figures(run, scale)
    )


def said(run: Run) -> str:
    """The diagnoses of a run as one text, its spaces plain."""
    return " ".join(one.words for one in found_in(run)).replace("\u202f", " ")


def levels(run: Run) -> dict[str, str]:
    """The levels of the diagnoses by topic."""
    return {one.topic: one.level for one in found_in(run)}


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that learns."""
    return read_run(write_run(tmp_path_factory.mktemp("learned")))


@pytest.fixture(scope="module")
def collapsed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that ends with one text for all."""
    return read_run(write_run(tmp_path_factory.mktemp("collapsed"), Plan(collapses=True, seed=3)))


def test_run_that_learns_is_told_so(learned: Run) -> None:
    """A run that learns has good news and no trouble."""
    found = levels(learned)
    assert (found["Held-out reward"], found["Personal"], found["Flat groups"]) == ("good", "good", "good")
    assert "bad" not in found.values()
    assert "Once, at step 61; 6 steps done again, the last time counts." in said(learned)


def test_collapse_is_told_in_every_way(collapsed: Run) -> None:
    """A policy that writes one text for all has flat groups, like profiles, one prediction, and nothing personal."""
    found = levels(collapsed)
    assert (found["Flat groups"], found["Collapse"]) == ("bad", "bad")
    assert (found["Impersonality"], found["Predicted ratings"], found["Less variety"]) == ("warn", "warn", "warn")
    assert "98 % of completions are profiles" in said(collapsed)


def test_troubles_come_first(collapsed: Run) -> None:
    """The worst is said first."""
    order = [one.level for one in found_in(collapsed)]
    assert order == sorted(order, key=["bad", "warn", "good", "plain"].index)


def test_flat_groups_are_said_with_both_ends() -> None:
    """The share of groups without a gradient is said for the last and the first steps."""
    run = Run(name="r", history={step: {"duet/flat_groups": 0.2 if step < 50 else 0.62} for step in range(100)})
    assert said(run) == "62 % of groups gave no gradient in the last 20 logged steps (20 % in the first)."
    assert levels(run) == {"Flat groups": "warn"}


def test_concentrated_predictions_are_named() -> None:
    """Predictions that all lie at one rating are told beside its share of the true ones."""
    rows = [Answer(step=1, rating=4.9, gold=gold) for gold in (5.0, 4.0, 3.0, 5.0)]
    assert found_in(Run(name="r", answers=rows)) == []  # four predictions are too few to tell
    assert (
        said(Run(name="r", answers=rows * 5))
        == "They concentrate on 5: 100 % of predictions, 50 % of the true ratings."
    )


def test_gain_that_another_user_has_too_is_not_personal() -> None:
    """Where the control gains nearly as much, most of the gain is said to be impersonal."""
    held_out = [
        measured(0, [0.5, 0.5], parse_rate=1.0, shuffled_reward=0.49),
        measured(9, [0.7, 0.7], parse_rate=1.0, shuffled_reward=0.68),
    ]
    run = Run(name="r", held_out=held_out)
    assert levels(run)["Impersonality"] == "warn"
    assert "Of the gain of +0.200 most is there with another user too." in said(run)


def test_control_at_the_start_alone_is_a_note() -> None:
    """One measurement without rows says what the right user is worth, and judges nothing."""
    run = Run(name="r", held_out=[measured(0, [0.5], parse_rate=1.0, shuffled_reward=0.75)])
    assert levels(run) == {"Control": "plain"}
    assert said(run) == "The right user’s profile is worth −0.250 of held-out reward against another user’s at step 0."


def test_form_that_only_sampling_keeps_is_told() -> None:
    """Held-out rows that parse much less often than training's are told."""
    run = Run(name="r", history={1: {"duet/parse_rate": 1.0}}, held_out=[measured(0, [-1.0, 0.5], parse_rate=0.2)])
    assert "20 % of the held-out completions are profiles, 100 % of those in training." in said(run)


def test_completions_that_loop_are_told() -> None:
    """Texts that say few words over and over are told, and long varied ones are not."""
    loop, varied = "best; " * 60, " ".join(map(str, range(60)))
    samples = [Answer(step=4, example=str(number), text=text) for number, text in enumerate([loop, varied])]
    assert said(Run(name="r", samples=samples)) == (
        "50 % of the held-out completions at step 4 say few words over and over."
    )


@pytest.mark.parametrize(("end", "level"), [([0.9, 0.8], "good"), ([0.1, 0.2], "bad"), ([0.9, 0.1], "warn")])
def test_held_out_reward_is_judged_by_its_interval(end: list[float | None], level: str) -> None:
    """Better, worse, or no clear difference: the paired interval decides."""
    run = Run(name="r", held_out=[measured(0, [0.5, 0.5]), measured(9, end)])
    assert levels(run)["Held-out reward"] == level


@pytest.mark.parametrize(
    ("key", "value", "topic", "level"),
    [
        ("duet/parse_rate", 0.3, "Parse rate", "bad"),
        ("duet/parse_rate", 0.8, "Parse rate", "warn"),
        ("completions/clipped_ratio", 0.3, "Cut completions", "warn"),
        ("duet/failed_share", 0.2, "Failed rewards", "warn"),
        ("duet/server/logp_difference", 0.3, "Server disagrees", "bad"),
        ("kl", 3.0, "Distance", "warn"),
    ],
)
def test_threshold_raises_its_hand(key: str, value: float, topic: str, level: str) -> None:
    """A value beyond its threshold is a diagnosis; a healthy one is none, or a good one."""
    assert levels(Run(name="r", history={1: {key: value}}))[topic] == level
    healthy = 1.0 if key == "duet/parse_rate" else 0.0
    assert levels(Run(name="r", history={1: {key: healthy}})).get(topic, "good") == "good"


def test_leakage_is_told() -> None:
    """Profiles that come to state ratings are told, with where they began."""
    texts = ["Likes maps."] * 10 + ["Gives 4 stars."] * 10
    written = [completion_text(user_profile=text) for text in texts]
    rows = [Answer(step=step, example=str(step), text=text) for step, text in enumerate(written)]
    run = Run(name="r", answers=rows)
    assert "100 % of completions state a rating in a profile, 0 % at the start" in said(run)


def test_numbers_that_are_none_are_told() -> None:
    """A loss that was NaN is trouble, with how often."""
    run = Run(name="r", not_finite={"loss": 2, "kl": 1})
    assert said(run) == "“loss” was not finite at 2 steps."
    assert levels(run) == {"Not a number": "bad"}


def test_aborted_run_is_told_first() -> None:
    """A run that was stopped says so before all else."""
    run = Run(name="r", card={"status": "aborted"}, history={3: {"duet/parse_rate": 1.0}})
    assert found_in(run)[0].topic == "Aborted"


def test_nothing_is_said_of_nothing() -> None:
    """An empty run has no diagnosis."""
    assert found_in(Run(name="r")) == []
