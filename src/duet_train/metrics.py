"""How well ratings are predicted. Pure: arrays in, floats out, nan where there is nothing to measure.

A failed prediction has no place in these arrays: leave its row out, and report the share that is left (the parse rate).
An array that holds nan is refused, since a class metric would count it as a wrong answer in silence.
"""

from __future__ import annotations

import math

import attrs
import numpy as np
import numpy.typing as npt

from duet import ConfigurationError, RatingScale

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


# Errors


def mae(gold: npt.ArrayLike, predicted: npt.ArrayLike) -> float:
    """Mean absolute error, in rating points; nan for no rows.

    Raises:
        ConfigurationError: The lengths differ, or a value is not finite.
    """
    wanted, given = _columns(gold, predicted)
    return _mean(np.abs(wanted - given))


def rmse(gold: npt.ArrayLike, predicted: npt.ArrayLike) -> float:
    """Root of the mean squared error, in rating points; nan for no rows.

    Raises:
        ConfigurationError: The lengths differ, or a value is not finite.
    """
    wanted, given = _columns(gold, predicted)
    return math.sqrt(_mean((wanted - given) ** 2))


# Classes


def round_half_up(ratings: npt.ArrayLike, scale: RatingScale = RatingScale()) -> Labels:
    """The nearest whole rating on the scale: 3.5 becomes 4, not 4 or 2 by parity as in Python's `round`.

    On a scale of 0.5 to 5, the whole ratings are 1 to 5.

    Raises:
        ConfigurationError: A rating is not finite, or the scale holds no whole number.
    """
    values = _finite(ratings, "ratings")
    if not scale.points:
        raise ConfigurationError(f"no whole number lies on the scale of {scale}: its ratings have no classes")
    below = np.floor(values)
    # floor(x + 0.5) would lift the largest number below one half to 1.
    rounded = below + (values - below >= 0.5)
    return np.asarray(np.clip(rounded, scale.points[0], scale.points[-1]), dtype=np.int64)


@attrs.frozen(kw_only=True)
class SentimentThresholds:
    """Where a rating counts as liked and as disliked. LettinGo, whose task this is, never published its own.

    Args:
        like: Lowest rating that is liked.
        dislike: Highest rating that is disliked, below `like`.
    """

    like: float = 4.0
    dislike: float = 2.0

    def __attrs_post_init__(self) -> None:
        if not self.dislike < self.like:
            raise ConfigurationError(f"dislike must lie below like, got {self.dislike:g} and {self.like:g}")

    @classmethod
    def of(cls, scale: RatingScale) -> SentimentThresholds:
        """The upper and the lower quarter of a scale: 4 and 2 on 1 to 5, 7.75 and 3.25 on 1 to 10."""
        quarter = scale.range / 4
        return cls(like=scale.maximum - quarter, dislike=scale.minimum + quarter)


def sentiments(
    ratings: npt.ArrayLike, scale: RatingScale = RatingScale(), thresholds: SentimentThresholds | None = None
) -> Labels:
    """Like (1), neutral (0) or dislike (−1) for each rating (LettinGo's three classes).

    Ratings are rounded half up first, gold and predicted alike, so that a prediction of the right class is also one of
    the right sentiment.

    Args:
        ratings: In rating points.
        scale: The ratings' own.
        thresholds: None takes the quarters of the scale.

    Raises:
        ConfigurationError: A rating is not finite, or the scale holds no whole number.
    """
    limits = thresholds or SentimentThresholds.of(scale)
    rounded = round_half_up(ratings, scale)
    return (rounded >= limits.like).astype(np.int64) - (rounded <= limits.dislike)


def accuracy(gold: npt.ArrayLike, predicted: npt.ArrayLike) -> float:
    """Share of labels that are right; nan for no rows.

    Args:
        gold: Whole numbers, from `round_half_up` or `sentiments`.
        predicted: The same, row by row.

    Raises:
        ConfigurationError: The lengths differ, or the labels are not whole numbers: an unrounded 3.87 is never right.
    """
    wanted, given = _label_columns(gold, predicted)
    return _mean(wanted == given)


def macro_f1(gold: npt.ArrayLike, predicted: npt.ArrayLike) -> float:
    """Unweighted mean of F1 over the classes that occur in `gold` (as DUET's code has it); nan for no rows.

    A class that is predicted and never occurs lowers the others' recall and has no F1 of its own here.

    Raises:
        ConfigurationError: As for `accuracy`.
    """
    f1, _ = _f1_by_class(*_label_columns(gold, predicted))
    return _mean(f1)


def weighted_f1(gold: npt.ArrayLike, predicted: npt.ArrayLike) -> float:
    """Mean of F1 over classes, each weighted by its share of `gold`; nan for no rows.

    Raises:
        ConfigurationError: As for `accuracy`.
    """
    f1, support = _f1_by_class(*_label_columns(gold, predicted))
    return float(np.average(f1, weights=support)) if f1.size else math.nan


def _f1_by_class(gold: Labels, predicted: Labels) -> tuple[Floats, Labels]:
    """F1 and number of gold rows for each class in `gold`, ascending."""
    classes, support = np.unique(gold, return_counts=True)
    hits = np.array([np.count_nonzero(gold[predicted == each] == each) for each in classes], dtype=np.float64)
    claimed = np.array([np.count_nonzero(predicted == each) for each in classes], dtype=np.float64)
    # 2PR / (P + R) = 2TP / (claimed + support), which needs no care for a class that is never predicted.
    return 2 * hits / (claimed + support), support


# Order


def spearman(gold: npt.ArrayLike, predicted: npt.ArrayLike) -> float:
    """Rank correlation over all rows, ties ranked by their average; nan for fewer than two rows or a constant column.

    Raises:
        ConfigurationError: The lengths differ, or a value is not finite.
    """
    wanted, given = (_average_ranks(column) for column in _columns(gold, predicted))
    if not (np.ptp(wanted) if wanted.size else 0) or not np.ptp(given):
        return math.nan
    a, b = wanted - wanted.mean(), given - given.mean()
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def kendall_tau_b(gold: npt.ArrayLike, predicted: npt.ArrayLike) -> float:
    """Pairs in the right order less pairs in the wrong one, over the untied; nan where a column is constant or short.

    Takes time and memory with the square of the rows: for the few rows of one user, not for a whole set.

    Raises:
        ConfigurationError: The lengths differ, or a value is not finite.
    """
    wanted, given = (_pair_signs(column) for column in _columns(gold, predicted))
    untied = math.sqrt(np.count_nonzero(wanted) * np.count_nonzero(given))
    return float(np.sum(wanted * given, dtype=np.int64) / untied) if untied else math.nan


@attrs.frozen(kw_only=True)
class WithinUserCorrelation:
    """How well each user's own rows are put in order.

    Args:
        mean: Over users, each counting once; nan for none.
        users: How many users have an order to find.
        values: One correlation a user, −1 to 1, ascending by user; the units of a bootstrap.
    """

    mean: float
    users: int
    values: Floats = attrs.field(eq=attrs.cmp_using(eq=np.array_equal))


def within_user_rank_correlation(
    users: npt.ArrayLike, gold: npt.ArrayLike, predicted: npt.ArrayLike
) -> WithinUserCorrelation:
    """Kendall's tau-b within each user that has two distinct gold ratings, then the mean over users.

    No constant and no usual rating of a user can raise it, so it shows what is personal. Tau-b rather than Spearman,
    because a user has few rows and many equal ratings: it counts pairs, and is the chance of the right order less that
    of the wrong one whatever their number, where ranks of three rows are mostly averages of ties.
    A user whose predictions are all equal counts as 0: no order was given, which is an answer, and not a missing one.

    Args:
        users: Whose row it is; numbers or strings.
        gold: In rating points.
        predicted: In any unit that ascends with the rating.

    Raises:
        ConfigurationError: The lengths differ, or a value is not finite.
    """
    wanted, given = _columns(gold, predicted)
    _, owners = np.unique(np.asarray(users), return_inverse=True)
    if owners.shape != wanted.shape:
        raise ConfigurationError(f"{owners.size} users for {wanted.size} ratings: one user a row is needed")
    order = np.argsort(owners, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(owners[order])) + 1)
    taus = [kendall_tau_b(wanted[rows], given[rows]) for rows in groups if np.unique(wanted[rows]).size > 1]
    values = np.nan_to_num(np.array(taus, dtype=np.float64), nan=0.0)
    return WithinUserCorrelation(mean=_mean(values), users=values.size, values=values)


def _average_ranks(values: Floats) -> Floats:
    """Ranks from 1, ascending; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return np.asarray(ranks[places], dtype=np.float64)


def _pair_signs(values: Floats) -> npt.NDArray[np.int8]:
    """1, 0 or −1 for every ordered pair of rows: (rows, rows)."""
    column = values[:, None]
    return (column > values).astype(np.int8) - (column < values).astype(np.int8)


# Columns


def _finite(values: npt.ArrayLike, name: str) -> Floats:
    column = np.asarray(values, dtype=np.float64)
    if column.ndim != 1:
        raise ConfigurationError(f"{name} must be one column, got shape {column.shape}")
    wrong = np.flatnonzero(~np.isfinite(column))
    if wrong.size:
        raise ConfigurationError(
            f"{name} is {column[wrong[0]]:g} in row {wrong[0]}: leave failed rows out, and report how many"
        )
    return column


def _columns(gold: npt.ArrayLike, predicted: npt.ArrayLike) -> tuple[Floats, Floats]:
    wanted, given = _finite(gold, "gold"), _finite(predicted, "predicted")
    if wanted.size != given.size:
        raise ConfigurationError(f"{wanted.size} gold values for {given.size} predicted: they must pair row by row")
    return wanted, given


def _label_columns(gold: npt.ArrayLike, predicted: npt.ArrayLike) -> tuple[Labels, Labels]:
    wanted, given = _columns(gold, predicted)
    for name, column in (("gold", wanted), ("predicted", given)):
        if np.any(column != np.floor(column)):
            raise ConfigurationError(f"{name} holds labels that are not whole: pass ratings through round_half_up")
    return wanted.astype(np.int64), given.astype(np.int64)


def _mean(values: npt.NDArray[np.float64] | npt.NDArray[np.bool_]) -> float:
    return float(values.mean()) if values.size else math.nan
