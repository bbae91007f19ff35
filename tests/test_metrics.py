"""Metrics of ratings: equal to independent libraries, blind to nothing in silence."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duet import ConfigurationError, RatingScale
from duet_train.metrics import (
    SentimentThresholds,
    accuracy,
    kendall_tau_b,
    macro_f1,
    mae,
    rmse,
    round_half_up,
    sentiments,
    spearman,
    weighted_f1,
    within_user_rank_correlation,
)

WHOLE = st.integers(1, 5)
ANY = st.floats(-2, 8)
label_rows = st.lists(st.tuples(WHOLE, WHOLE), min_size=1, max_size=40)
rating_rows = st.lists(st.tuples(WHOLE, ANY), min_size=1, max_size=40)


@pytest.fixture(scope="module")
def sklearn_metrics() -> Any:
    """The oracle of errors and classes."""
    return pytest.importorskip("sklearn.metrics", reason="scikit-learn is the oracle")


@pytest.fixture(scope="module")
def scipy_stats() -> Any:
    """The oracle of rank correlation."""
    return pytest.importorskip("scipy.stats", reason="scipy is the oracle")


def columns(rows: list[Any]) -> tuple[Any, Any]:
    gold, predicted = zip(*rows, strict=True)
    return gold, predicted


def random_columns(seed: int, rows: int = 200) -> tuple[Any, Any]:
    """Skewed gold ratings, predictions with ties and off the scale."""
    generator = np.random.default_rng(seed)
    gold = generator.choice([1, 2, 3, 4, 5], rows, p=[0.05, 0.05, 0.1, 0.3, 0.5])
    return gold, np.round(gold + generator.normal(0, 1.2, rows), 1)


# Errors


@settings(deadline=None)
@given(rating_rows)
def test_errors_equal_scikit_learn(sklearn_metrics: Any, rows: list[tuple[int, float]]) -> None:
    """MAE and RMSE are scikit-learn's."""
    gold, predicted = columns(rows)
    assert mae(gold, predicted) == pytest.approx(sklearn_metrics.mean_absolute_error(gold, predicted))
    assert rmse(gold, predicted) == pytest.approx(sklearn_metrics.root_mean_squared_error(gold, predicted))


@settings(deadline=None)
@given(rating_rows)
def test_rmse_is_no_less_than_mae(rows: list[tuple[int, float]]) -> None:
    """The root of the mean square is at least the mean."""
    gold, predicted = columns(rows)
    assert rmse(gold, predicted) >= mae(gold, predicted) - 1e-9


# Rounding


@pytest.mark.parametrize(
    ("rating", "expected"),
    [(1.5, 2), (2.5, 3), (3.5, 4), (4.49, 4), (0.2, 1), (9.0, 5), (-3.0, 1), (3, 3)],
)
def test_halves_go_up_and_the_scale_holds(rating: float, expected: int) -> None:
    """A half goes to the higher rating, and what is off the scale to its end."""
    assert round_half_up([rating]).tolist() == [expected]


def test_largest_number_below_a_half_goes_down() -> None:
    """Rounding does not add a half and lose the last bit."""
    assert round_half_up([0.49999999999999994], RatingScale(0, 5)).tolist() == [0]


def test_half_star_scale_has_whole_classes() -> None:
    """On half stars the classes are the whole numbers of the scale."""
    assert round_half_up([0.5, 1.5, 5.0], RatingScale(0.5, 5)).tolist() == [1, 2, 5]


def test_scale_without_whole_numbers_is_refused() -> None:
    """There are no classes between 0.2 and 0.8."""
    with pytest.raises(ConfigurationError, match="no whole number"):
        round_half_up([0.5], RatingScale(0.2, 0.8))


@settings(deadline=None)
@given(st.lists(ANY, max_size=20))
def test_rounding_moves_by_half_a_point_at_most(ratings: list[float]) -> None:
    """A class is the nearest whole number to the clipped rating."""
    clipped = np.clip(ratings, 1, 5)
    assert np.all(np.abs(round_half_up(ratings) - clipped) <= 0.5)


# Classes


@settings(deadline=None)
@given(label_rows)
def test_accuracy_equals_scikit_learn(sklearn_metrics: Any, rows: list[tuple[int, int]]) -> None:
    """Accuracy is scikit-learn's."""
    assert accuracy(*columns(rows)) == pytest.approx(sklearn_metrics.accuracy_score(*columns(rows)))


@settings(deadline=None)
@given(label_rows)
def test_macro_f1_equals_scikit_learn_on_gold_classes(sklearn_metrics: Any, rows: list[tuple[int, int]]) -> None:
    """Macro F1 is scikit-learn's over the classes that occur in gold."""
    gold, predicted = columns(rows)
    expected = sklearn_metrics.f1_score(gold, predicted, labels=sorted(set(gold)), average="macro", zero_division=0)
    assert macro_f1(gold, predicted) == pytest.approx(expected)


@settings(deadline=None)
@given(label_rows)
def test_weighted_f1_equals_scikit_learn(sklearn_metrics: Any, rows: list[tuple[int, int]]) -> None:
    """Weighted F1 is scikit-learn's."""
    expected = sklearn_metrics.f1_score(*columns(rows), average="weighted", zero_division=0)
    assert weighted_f1(*columns(rows)) == pytest.approx(expected)


def test_class_that_never_occurs_has_no_f1() -> None:
    """A wrong class that gold does not hold costs recall, and is not averaged in as a zero."""
    assert macro_f1([4, 4], [4, 5]) == pytest.approx(2 / 3)


def test_unrounded_ratings_are_no_labels() -> None:
    """Accuracy on 3.87 would be 0 for ever, so it is refused."""
    with pytest.raises(ConfigurationError, match="round_half_up"):
        accuracy([4], [3.87])


# Like, neutral, dislike


def test_sentiments_of_five_stars() -> None:
    """On 1 to 5: up to 2 disliked, from 4 liked, 3 neutral."""
    assert sentiments([1, 2, 3, 4, 5]).tolist() == [-1, -1, 0, 1, 1]


def test_sentiments_scale_with_the_ratings() -> None:
    """On 1 to 10 the thresholds are the same quarters: up to 3 disliked, from 8 liked."""
    assert sentiments(np.arange(1, 11), RatingScale(1, 10)).tolist() == [-1, -1, -1, 0, 0, 0, 0, 1, 1, 1]


def test_thresholds_can_be_set() -> None:
    """Stated thresholds take the place of the quarters."""
    assert sentiments([3, 4, 5], thresholds=SentimentThresholds(like=5, dislike=3)).tolist() == [-1, 0, 1]


def test_thresholds_must_leave_room() -> None:
    """A rating cannot be liked and disliked."""
    with pytest.raises(ConfigurationError, match="below like"):
        SentimentThresholds(like=3, dislike=3)


@settings(deadline=None)
@given(rating_rows)
def test_right_class_has_right_sentiment(rows: list[tuple[int, float]]) -> None:
    """Three classes are never harder than five."""
    gold, predicted = columns(rows)
    exact = accuracy(round_half_up(gold), round_half_up(predicted))
    assert accuracy(sentiments(gold), sentiments(predicted)) >= exact


# Order


@pytest.mark.parametrize("seed", range(20))
def test_spearman_equals_scipy(seed: int, scipy_stats: Any) -> None:
    """Rank correlation with ties is scipy's."""
    gold, predicted = random_columns(seed)
    assert spearman(gold, predicted) == pytest.approx(scipy_stats.spearmanr(gold, predicted).statistic)


@pytest.mark.parametrize("seed", range(20))
def test_kendall_equals_scipy(seed: int, scipy_stats: Any) -> None:
    """Tau-b with ties is scipy's."""
    gold, predicted = random_columns(seed, rows=15)
    expected = scipy_stats.kendalltau(gold, predicted, variant="b").statistic
    assert kendall_tau_b(gold, predicted) == pytest.approx(expected)


@pytest.mark.parametrize("measure", [spearman, kendall_tau_b])
@pytest.mark.parametrize("rows", [[], [(3, 4)], [(3, 4), (3, 5)], [(3, 4), (2, 4)]])
def test_no_order_is_nan(measure: Any, rows: list[tuple[int, int]]) -> None:
    """Fewer than two rows, or a constant column, have no correlation."""
    assert math.isnan(measure([gold for gold, _ in rows], [predicted for _, predicted in rows]))


@settings(deadline=None)
@given(rating_rows)
def test_order_is_all_that_counts(rows: list[tuple[int, float]]) -> None:
    """A rank correlation does not change when predictions are shifted and stretched by a power of two."""
    gold, predicted = columns(rows)
    assert kendall_tau_b(gold, np.array(predicted) * 4) == pytest.approx(kendall_tau_b(gold, predicted), nan_ok=True)
    assert spearman(gold, np.array(predicted) * 4) == pytest.approx(spearman(gold, predicted), nan_ok=True)


# Within each user


def test_within_user_is_the_mean_over_users() -> None:
    """Each user counts once, however many rows it has."""
    found = within_user_rank_correlation(["a", "b", "a", "b", "a"], [1, 5, 2, 4, 3], [1, 1, 2, 2, 3])
    assert (found.mean, found.users, found.values.tolist()) == (0.0, 2, [1.0, -1.0])


def test_users_without_an_order_are_left_out() -> None:
    """A user with one row, or with equal gold ratings, has nothing to be put in order."""
    found = within_user_rank_correlation([1, 2, 2, 3, 3], [5, 4, 4, 1, 2], [1, 2, 3, 1, 2])
    assert (found.mean, found.users) == (1.0, 1)


def test_equal_predictions_count_as_no_order() -> None:
    """A user whose predictions are all equal counts as 0, and does not drop out."""
    found = within_user_rank_correlation([1, 1, 2, 2], [1, 2, 1, 2], [3, 3, 1, 2])
    assert (found.mean, found.users) == (0.5, 2)


def test_no_users_is_nan() -> None:
    """Without a user that has an order the mean is nan."""
    found = within_user_rank_correlation([], [], [])
    assert math.isnan(found.mean)
    assert found.users == 0


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), WHOLE, ANY), max_size=30), st.integers(0, 2**31))
def test_user_means_cannot_raise_it(rows: list[tuple[int, int, float]], seed: int) -> None:
    """Moving all predictions of a user by the same amount leaves its order, and the result, as it was."""
    users, gold, predicted = (np.array([row[place] for row in rows]) for place in range(3))
    moved = np.round(predicted, 2) + np.random.default_rng(seed).integers(-64, 64, 4)[users.astype(int)]
    before = within_user_rank_correlation(users, gold, np.round(predicted, 2))
    after = within_user_rank_correlation(users, gold, np.round(moved, 2))
    assert after.mean == pytest.approx(before.mean, nan_ok=True)


def test_within_user_equals_scipy(scipy_stats: Any) -> None:
    """The mean is that of scipy's tau-b user by user."""
    gold, predicted = random_columns(7)
    users = np.random.default_rng(7).integers(0, 12, gold.size)
    taus = [scipy_stats.kendalltau(gold[users == user], predicted[users == user]).statistic for user in range(12)]
    assert within_user_rank_correlation(users, gold, predicted).mean == pytest.approx(np.mean(taus))


# What is refused, and what is empty


@pytest.mark.parametrize("measure", [mae, rmse, accuracy, macro_f1, weighted_f1])
def test_nothing_to_measure_is_nan(measure: Any) -> None:
    """No rows give nan, not 0 and not an error."""
    assert math.isnan(measure([], []))


@pytest.mark.parametrize("measure", [mae, rmse, accuracy, macro_f1, weighted_f1, spearman, kendall_tau_b])
def test_failed_row_is_refused(measure: Any) -> None:
    """A nan among predictions is named, and never counted as wrong."""
    with pytest.raises(ConfigurationError, match="predicted is nan in row 1"):
        measure([4, 5], [4, math.nan])


@pytest.mark.parametrize("measure", [mae, rmse, accuracy, macro_f1, weighted_f1, spearman, kendall_tau_b])
def test_columns_must_pair(measure: Any) -> None:
    """Columns of two lengths are refused."""
    with pytest.raises(ConfigurationError, match="row by row"):
        measure([4, 5], [4])
