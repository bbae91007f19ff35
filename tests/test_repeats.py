"""Several runs as one method: their mean by user, and how far they lie apart."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from evaluations import judgement

from duet import RatingScale
from duet_train.intervals import mean_interval
from duet_train.judging import Judgement
from duet_train.repeats import repeat_figures
from duet_train.scoring import Gold, personal_figures, rating_figures

ROWS = 60
NAMES = ("mae", "rmse", "accuracy", "macro_f1", "weighted_f1", "spearman")


@pytest.fixture(scope="module")
def gold() -> Gold:
    """Sixty rows of twenty users."""
    ratings = np.random.default_rng(0).integers(1, 6, ROWS).astype(np.float64)
    return Gold(
        ratings=ratings,
        users=[f"u{row // 3}" for row in range(ROWS)],
        scale=RatingScale(),
        history_lengths=np.ones(ROWS, dtype=np.int64),
        variances=np.zeros(ROWS),
        median=3.0,
    )


def run(gold: Gold, seed: int, failed: int = 0) -> Judgement:
    """A run that is off by noise of its own, by more with other users; its first rows failed."""
    generator = np.random.default_rng(seed)
    own, other = (np.clip(gold.ratings + generator.normal(0, width, ROWS), 1, 5) for width in (0.5 + seed / 10, 2))
    own[:failed] = math.nan
    one = judgement([], own.tolist())
    object.__setattr__(one, "shuffled_users", other)
    return one


@pytest.fixture(scope="module")
def runs(gold: Gold) -> dict[str, Judgement]:
    """Three runs; the second and the third failed on some rows."""
    return {f"s{seed}": run(gold, seed, failed=4 * seed) for seed in range(3)}


@pytest.fixture(scope="module")
def found(gold: Gold, runs: dict[str, Judgement]) -> dict[str, Any]:
    """What is said of the three."""
    return repeat_figures(gold, runs, resamples=50)


def test_figures_are_the_mean_of_the_runs(gold: Gold, runs: dict[str, Judgement], found: dict[str, Any]) -> None:
    """Every figure is the mean of what the tables say of each run, which stand beside it, failed rows left out."""
    alone = [rating_figures(gold, one.predicted) for one in runs.values()]
    assert found["runs"] == ["s0", "s1", "s2"]
    for name in NAMES:
        by_run = [figures[name]["estimate"] for figures in alone]
        assert found[name]["by_run"] == pytest.approx(by_run), name
        assert found[name]["estimate"] == pytest.approx(np.mean(by_run)), name
    assert found["parse_rate"]["by_run"] == pytest.approx([figures["parse_rate"] for figures in alone])


def test_spread_is_the_deviation_of_the_runs(found: dict[str, Any]) -> None:
    """The spread is the standard deviation over runs, with n − 1."""
    first, second, third = found["mae"]["by_run"]
    mean = (first + second + third) / 3
    squares = (first - mean) ** 2 + (second - mean) ** 2 + (third - mean) ** 2
    assert found["mae"]["spread"] == pytest.approx(math.sqrt(squares / 2))
    assert found["mae"]["spread"] > 0


def test_interval_is_that_of_the_mean_error_by_user(gold: Gold) -> None:
    """Where no row failed the interval of MAE is that of each row's mean error, users drawn whole."""
    whole = {f"s{seed}": run(gold, seed) for seed in range(2)}
    errors = np.mean([np.abs(one.predicted - gold.ratings) for one in whole.values()], axis=0)
    expected = mean_interval(errors, users=np.asarray(gold.users))
    mae = repeat_figures(gold, whole)["mae"]
    assert [mae["low"], mae["high"]] == pytest.approx([expected.low, expected.high], abs=0.02)
    assert mae["units"] == 20


def test_copies_of_a_run_are_that_run(gold: Gold) -> None:
    """Runs that agree everywhere have no spread, and the figures of any of them."""
    one = run(gold, 0)
    found, alone = repeat_figures(gold, {"a": one, "b": one}, resamples=50), rating_figures(gold, one.predicted)
    for name in NAMES:
        assert found[name]["spread"] == 0, name
        assert found[name]["estimate"] == pytest.approx(alone[name]["estimate"]), name


def test_gain_over_other_users_is_that_of_the_runs(
    gold: Gold, runs: dict[str, Judgement], found: dict[str, Any]
) -> None:
    """Whether texts are personal is asked of the runs together."""
    alone = [
        personal_figures(gold, one.predicted, one.shuffled_users, one.shuffled_items)["users"]["difference"]["estimate"]
        for one in runs.values()
    ]
    assert found["gain_over_other_users"]["by_run"] == pytest.approx(alone)


def test_run_that_failed_everywhere_leaves_nothing_to_say(gold: Gold) -> None:
    """With a run that has no prediction there is no mean over runs, and its share of 0 shows why."""
    found = repeat_figures(gold, {"s0": run(gold, 0), "lost": run(gold, 1, failed=ROWS)}, resamples=50)
    assert found["parse_rate"]["by_run"] == [1.0, 0.0]
    assert all(math.isnan(found[name][part]) for name in NAMES for part in ("estimate", "low", "spread"))
