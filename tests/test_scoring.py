"""Predictions to figures: errors, groups, gains, and what counts as personal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duet import RatingScale
from duet_train.metrics import macro_f1, mae, rmse, round_half_up, weighted_f1
from duet_train.scoring import (
    Gold,
    best_baseline,
    filled_figures,
    gain,
    group_figures,
    order_figures,
    personal_figures,
    rating_figures,
)

quick = settings(deadline=None, max_examples=40)
ratings = st.integers(1, 5).map(float)
predictions = st.one_of(st.just(math.nan), st.floats(1, 5))
pairs = st.lists(st.tuples(ratings, predictions), min_size=1, max_size=30)


def known(
    ratings: Sequence[float],
    *,
    users: Sequence[str] | None = None,
    lengths: Sequence[int] | None = None,
    variances: Sequence[float] | None = None,
    median: float = 4.0,
    scale: RatingScale = RatingScale(),
) -> Gold:
    """Rows of one user each with one earlier row, unless told otherwise."""
    size = len(ratings)
    return Gold(
        ratings=np.array(ratings, dtype=np.float64),
        users=users or [f"u{place}" for place in range(size)],
        scale=scale,
        history_lengths=np.array(lengths or [1] * size, dtype=np.int64),
        variances=np.array(variances if variances is not None else [0.0] * size, dtype=np.float64),
        median=median,
    )


def column(*values: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """One number a row."""
    return np.array(values, dtype=np.float64)


# Rating


def test_errors_are_those_of_the_metrics() -> None:
    """Every figure is the metric of that name on the rows that were predicted."""
    gold, given = [5.0, 4.0, 1.0, 3.0], [4.5, 4.0, 2.0, 3.4]
    figures = rating_figures(known([*gold, 1.0]), column(*given, math.nan))
    labels, guesses = round_half_up(gold), round_half_up(given)
    assert figures["mae"]["estimate"] == pytest.approx(mae(gold, given))
    assert figures["rmse"]["estimate"] == pytest.approx(rmse(gold, given))
    assert figures["accuracy"]["estimate"] == pytest.approx(0.75)
    assert figures["macro_f1"]["estimate"] == pytest.approx(macro_f1(labels, guesses))
    assert figures["weighted_f1"]["estimate"] == pytest.approx(weighted_f1(labels, guesses))
    assert figures["spearman"]["estimate"] == pytest.approx(1.0)


@settings(deadline=None, max_examples=3)  # each draws thousands of samples, twice
@given(pairs)
def test_failed_rows_change_the_parse_rate_alone(rows: list[tuple[float, float]]) -> None:
    """A row without a prediction is as one that is not there, but for the parse rate: it is never a rating of 0."""
    valid = [(rating, guess) for rating, guess in rows if not math.isnan(guess)]
    with_failures, without = (
        rating_figures(known([rating for rating, _ in some]), column(*(guess for _, guess in some)))
        for some in (rows, valid)
    )
    assert with_failures.pop("parse_rate") == pytest.approx(len(valid) / len(rows))
    without.pop("parse_rate")
    np.testing.assert_equal(with_failures, without)


def test_no_rows_are_no_figures() -> None:
    """Nothing predicted is nan everywhere, not an error."""
    figures = rating_figures(known([3.0, 4.0]), column(math.nan, math.nan))
    assert figures["parse_rate"] == 0
    assert all(math.isnan(figures[name]["estimate"]) for name in ("mae", "rmse", "accuracy", "macro_f1", "spearman"))


def test_every_figure_has_an_interval() -> None:
    """Ends lie around the estimate, and the rows that it rests on are told."""
    figures = rating_figures(known([1.0, 2.0, 3.0, 4.0, 5.0, 5.0]), column(2, 2, 2, 4, 4, math.nan))
    for name in ("mae", "rmse", "accuracy", "macro_f1", "weighted_f1", "spearman"):
        assert figures[name]["low"] <= figures[name]["estimate"] <= figures[name]["high"]
        assert figures[name]["units"] == 5


def test_sentiments_state_their_thresholds() -> None:
    """Like, neutral and dislike are judged after rounding, at thresholds that stand beside the figures."""
    sentiment = rating_figures(known([5.0, 3.0, 1.0, 2.0]), column(3.5, 3.4, 2.4, 2.5))["sentiment"]
    assert (sentiment["like_from"], sentiment["dislike_to"]) == (4.0, 2.0)
    assert sentiment["accuracy"]["estimate"] == pytest.approx(0.75)
    assert set(sentiment) >= {"macro_f1", "weighted_f1"}


def test_thresholds_follow_the_scale() -> None:
    """On a scale of 1 to 10 other ratings are liked."""
    gold = known([8.0, 3.0], scale=RatingScale(1, 10))
    sentiment = rating_figures(gold, column(8.0, 3.0))["sentiment"]
    assert (sentiment["like_from"], sentiment["dislike_to"]) == (7.75, 3.25)


# Failures answered by the median


def test_failed_rows_are_answered_by_the_median() -> None:
    """Beside a row that is right, one that failed errs as the training median does."""
    figures = filled_figures(known([5.0, 1.0], median=4.0), column(5, math.nan))
    assert figures["mae"]["estimate"] == pytest.approx(1.5)
    assert figures["rmse"]["estimate"] == pytest.approx(math.sqrt(4.5))
    assert figures["accuracy"]["estimate"] == 0.5
    assert {one["units"] for one in figures.values()} == {2}


def test_without_failures_both_figures_are_the_same() -> None:
    """Where every row is predicted there is nothing to answer for, and the intervals agree to the last digit."""
    gold, given = known([5.0, 3.0, 1.0, 2.0], users=["a", "a", "b", "c"]), column(4, 3, 2.4, 1)
    complete = rating_figures(gold, given)
    assert filled_figures(gold, given) == {name: complete[name] for name in ("mae", "rmse", "accuracy")}


def test_failing_on_hard_rows_is_no_gain() -> None:
    """A method that fails wherever it would err keeps an error of 0 over its own rows, and not over all."""
    gold = known([4.0, 1.0], median=4.0)
    hidden = column(4, math.nan)
    assert rating_figures(gold, hidden)["mae"]["estimate"] == 0
    assert filled_figures(gold, hidden)["mae"]["estimate"] == 1.5


# Gains


def test_gain_is_positive_where_the_second_errs_less() -> None:
    """The gain is the error of the first less that of the second, on the rows that both predict."""
    test = gain(known([3, 3, 3, 3]), column(5, 5, 5, math.nan), column(3, 4, math.nan, 3))
    assert test.difference.estimate == pytest.approx(1.5)
    assert test.difference.units == 2


def test_users_are_resampled_whole() -> None:
    """The rows of one user are drawn together, so two users make two units whatever their rows."""
    gold = known([3, 3, 3, 3], users=["ann", "ann", "ann", "bob"])
    assert gain(gold, column(5, 5, 5, 5), column(3, 4, 3, 3)).difference.units == 2
    assert rating_figures(gold, column(3, 4, 3, 3))["mae"]["units"] == 2


@quick
@given(pairs)
def test_gain_over_itself_is_nothing(rows: list[tuple[float, float]]) -> None:
    """No method gains over itself, and the interval says so."""
    guess = column(*(guess for _, guess in rows))
    difference = gain(known([rating for rating, _ in rows]), guess, guess).difference
    assert difference.units == np.count_nonzero(~np.isnan(guess))
    assert difference.units < 2 or (difference.estimate, difference.low, difference.high) == (0, 0, 0)


def test_gain_over_the_median_is_that_over_always_answering_it() -> None:
    """The constant median is what the gain is measured against."""
    figures = order_figures(known([5.0, 3.0], median=4.0), column(5.0, 3.5))
    assert figures["gain_over_median"]["difference"]["estimate"] == pytest.approx(1.0 - 0.25)


def test_order_within_users_is_measured() -> None:
    """Rank correlation is that within each user; predictions in the right order have 1."""
    gold = known([5.0, 3.0, 2.0, 1.0], users=["a", "a", "b", "b"])
    assert order_figures(gold, column(4, 2, 5, 4))["within_user"] == {"mean": 1.0, "users": 2}


def test_order_within_users_has_an_interval_over_users() -> None:
    """One value a user: three users of two rows are three units, and the estimate is the mean of their taus."""
    gold = known([5.0, 3.0, 2.0, 1.0, 4.0, 2.0], users=["a", "a", "b", "b", "c", "c"])
    tau = order_figures(gold, column(4, 2, 4, 5, 5, 1))["tau"]
    assert (tau["estimate"], tau["units"]) == (pytest.approx(1 / 3), 3)
    assert tau["low"] < tau["estimate"] < tau["high"]


def test_gain_by_luck_is_not_personal() -> None:
    """A gain whose interval reaches below zero is not called personal, however large the estimate."""
    truth, predicted = column(5, 1), column(5, 2)
    figures = personal_figures(known([5.0, 1.0]), predicted, column(1, 1), truth)
    assert figures["users"]["difference"]["estimate"] > 0
    assert figures["personal"] is False


def test_one_row_is_not_personal() -> None:
    """One row has no interval, and nothing can be said of it."""
    assert personal_figures(known([5.0]), column(5), column(1), column(1))["personal"] is False


def test_best_baseline_errs_least() -> None:
    """The best baseline is that of the lowest error over the rows it predicts."""
    baselines = {"mean": column(3, 3, 3), "bias": column(math.nan, 4.5, 5), "median": column(5, 3, 3)}
    assert best_baseline(known([5.0, 5.0, 5.0]), baselines) == "bias"


def test_baseline_without_predictions_is_not_the_best() -> None:
    """A baseline that predicts nothing is not the best, and no warning is given."""
    baselines = {"bias": column(math.nan), "mean": column(1)}
    assert best_baseline(known([5.0]), baselines) == "mean"


# Groups


@quick
@given(st.lists(st.tuples(ratings, predictions, st.integers(1, 80), st.floats(0, 4)), min_size=1, max_size=40))
def test_groups_cover_each_predicted_row_once(rows: list[tuple[float, float, int, float]]) -> None:
    """In either grouping each row with a prediction is in one group, and the groups' errors make up the whole's."""
    gold = known([row[0] for row in rows], lengths=[row[2] for row in rows], variances=[row[3] for row in rows])
    predicted = column(*(row[1] for row in rows))
    valid = ~np.isnan(predicted)
    total = float(np.abs(gold.ratings - predicted)[valid].sum())
    for groups in group_figures(gold, predicted).values():
        assert sum(group["rows"] for group in groups) == valid.sum()
        assert sum(group["rows"] * group["mae"]["estimate"] for group in groups) == pytest.approx(total)


def test_groups_resample_users_whole() -> None:
    """A group of three rows of two users rests on two units in every grouping."""
    gold = known([3.0, 3.0, 3.0], users=["ann", "ann", "bob"], lengths=[1, 2, 3], variances=[1.0, 1.0, 1.0])
    for groups in group_figures(gold, column(3, 4, 5)).values():
        assert [(group["rows"], group["mae"]["units"]) for group in groups] == [(3, 2)]


def test_lengths_are_grouped_at_fixed_bounds() -> None:
    """A history of five rows is in the first group, one of six in the next."""
    gold = known([5.0] * 5, lengths=[1, 5, 6, 30, 31])
    groups = group_figures(gold, column(5, 5, 5, 5, 5))["history_length"]
    assert [(group["above"], group["up_to"], group["rows"]) for group in groups] == [
        (-math.inf, 5, 2),
        (5, 10, 1),
        (10, 30, 1),
        (30, 50, 1),
    ]


def test_variances_are_grouped_at_terciles() -> None:
    """Three groups of variance, as many rows in each, from stable to diverse."""
    variances = [0.9, 0.1, 0.5, 0.2, 0.6, 1.0, 0.0, 0.4, 0.8]
    given = column(*(3 + variance for variance in variances))
    groups = group_figures(known([3.0] * 9, variances=variances), given)["variance"]
    assert [group["rows"] for group in groups] == [3, 3, 3]
    assert [group["mae"]["estimate"] for group in groups] == pytest.approx([0.1, 0.5, 0.9])


def test_bounds_are_those_of_all_rows() -> None:
    """Two methods have the same groups, whatever each failed at."""
    gold = known([3.0] * 6, variances=[0, 1, 2, 3, 4, 5])
    whole, part = (group_figures(gold, given)["variance"] for given in (column(*[3] * 6), column(*[3] * 5, math.nan)))
    assert [(group["above"], group["up_to"]) for group in part] == [(group["above"], group["up_to"]) for group in whole]


def test_unknown_variance_is_in_no_group() -> None:
    """A user with one earlier rating is neither stable nor diverse."""
    groups = group_figures(known([3.0, 3.0], variances=[math.nan, 0.5]), column(3, 3))["variance"]
    assert sum(group["rows"] for group in groups) == 1


def test_no_variance_is_no_group() -> None:
    """Where no user has two earlier ratings there are no groups of variance."""
    assert group_figures(known([3.0], variances=[math.nan]), column(3))["variance"] == []
