"""Ratings predicted without reading a word: constants, and how far an item and a user lie from the mean.

What a profile must beat. An item's bias is the sum of its ratings' distances from the global mean over (count +
shrinkage); a user's bias is the same for what is left after the item's: one pass, items first.
"""

from __future__ import annotations

import math
from typing import Protocol

import attrs
import numpy as np
import numpy.typing as npt

from duet import ConfigurationError, RatingScale

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]


class TimedPairs(Protocol):
    """Who, what and when, in parallel columns; ids of any one kind, times in seconds or any number that ascends."""

    @property
    def users(self) -> npt.ArrayLike: ...

    @property
    def items(self) -> npt.ArrayLike: ...

    @property
    def timestamps(self) -> npt.ArrayLike: ...


class TimedRatings(TimedPairs, Protocol):
    """The same with ratings."""

    @property
    def ratings(self) -> npt.ArrayLike: ...


def mean_rating(ratings: npt.ArrayLike) -> float:
    """The constant with the least squared error; nan for no ratings."""
    values = np.asarray(ratings, dtype=np.float64)
    return float(values.mean()) if values.size else math.nan


def median_rating(ratings: npt.ArrayLike) -> float:
    """The constant with the least absolute error, the middle of two where both are; nan for no ratings."""
    values = np.asarray(ratings, dtype=np.float64)
    return float(np.median(values)) if values.size else math.nan


@attrs.frozen(kw_only=True, eq=False)
class BiasModel:
    """Global mean, item biases and user biases; the mean alone for ids it has not seen.

    Args:
        mean: Of all ratings it was fitted on.
        item_ids: Ascending.
        item_biases: In rating points, one an item.
        user_ids: Ascending.
        user_biases: In rating points, one a user.
        scale: Predictions are clipped to it.
    """

    mean: float
    item_ids: npt.NDArray[np.generic]
    item_biases: Floats
    user_ids: npt.NDArray[np.generic]
    user_biases: Floats
    scale: RatingScale

    @classmethod
    def fit(
        cls,
        users: npt.ArrayLike,
        items: npt.ArrayLike,
        ratings: npt.ArrayLike,
        *,
        item_shrinkage: float = 5.0,
        user_shrinkage: float = 3.0,
        scale: RatingScale = RatingScale(),
    ) -> BiasModel:
        """Learn from ratings in parallel columns.

        Args:
            users: Ids, numbers or strings.
            items: Ids, row by row.
            ratings: In rating points.
            item_shrinkage: Ratings at the mean that every item is taken to have besides its own.
            user_shrinkage: The same for users.
            scale: The ratings' own.

        Raises:
            ConfigurationError: There are no rows, the lengths differ, a rating is not finite or a shrinkage is
                negative.
        """
        _check_shrinkage(item_shrinkage, user_shrinkage)
        values = np.asarray(ratings, dtype=np.float64)
        user_ids, owners = np.unique(np.asarray(users), return_inverse=True)
        item_ids, things = np.unique(np.asarray(items), return_inverse=True)
        if not (values.size and values.shape == owners.shape == things.shape and np.isfinite(values).all()):
            raise ConfigurationError(
                "users, items and ratings must be columns of one length, with finite ratings and a row"
            )
        mean = float(values.mean())
        item_biases = _shrunken(things, values - mean, item_shrinkage)
        user_biases = _shrunken(owners, values - mean - item_biases[things], user_shrinkage)
        return cls(
            mean=mean,
            item_ids=item_ids,
            item_biases=item_biases,
            user_ids=user_ids,
            user_biases=user_biases,
            scale=scale,
        )

    def predict(self, users: npt.ArrayLike, items: npt.ArrayLike) -> Floats:
        """Ratings on the scale, one a pair."""
        user_part = _looked_up(self.user_ids, self.user_biases, users)
        item_part = _looked_up(self.item_ids, self.item_biases, items)
        return _clipped(self.mean + item_part + user_part, self.scale)


def last_rows(users: npt.ArrayLike, timestamps: npt.ArrayLike, *, at_least: int = 5) -> Codes:
    """The last row of each user with at least so many, ascending.

    Fitting on all the others and predicting these is an orientation and not a protocol: rows of other users that are
    later than the target take part.

    Args:
        users: Ids, one a row, in file order.
        timestamps: Seconds; of equal times, and where there is none (nan, before all others), the later row is last.
        at_least: Fewest rows of a user.
    """
    _, owners, counts = np.unique(np.asarray(users), return_inverse=True, return_counts=True)
    order = np.argsort(_times(timestamps), kind="stable")
    last = np.zeros(counts.size, dtype=np.int64)
    last[owners[order]] = order  # of the rows that one user assigns, the last stays
    return np.sort(last[counts >= at_least])


def predict_strictly_before(
    rows: TimedRatings,
    targets: TimedPairs,
    *,
    item_shrinkage: float = 5.0,
    user_shrinkage: float = 3.0,
    scale: RatingScale = RatingScale(),
) -> Floats:
    """Predict each target from the rows of an earlier time alone, as a model fitted anew for it would.

    One pass over time: sums of items grow as time goes on, and a target costs as much as its user has earlier rows.

    Args:
        rows: What may be learned from; may hold the targets themselves, since no row is earlier than itself. Rows
            without a time (nan) are never earlier than anything. Where no row has a time, pass row numbers for times.
        targets: What to predict, with ids of the same kind as the rows'.
        item_shrinkage: As for `BiasModel.fit`.
        user_shrinkage: As for `BiasModel.fit`.
        scale: Predictions are clipped to it.

    Returns:
        One rating a target, in the targets' order; nan where no row is earlier.

    Raises:
        ConfigurationError: A shrinkage is negative, or a rating is not finite.
    """
    _check_shrinkage(item_shrinkage, user_shrinkage)
    past = _Past.of(rows, targets)
    times = np.asarray(targets.timestamps, dtype=np.float64)
    predictions = np.full(times.size, math.nan)
    for target in np.argsort(times, kind="stable")[: np.count_nonzero(~np.isnan(times))]:
        past.advance(float(times[target]))
        if past.now:
            predictions[target] = past.prediction(target, item_shrinkage, user_shrinkage)
    return _clipped(predictions, scale)


@attrs.define(kw_only=True, eq=False)
class _Past:
    """Timed rows in order, with sums over those that are earlier than a moment that only moves on.

    Args:
        times: Seconds, ascending.
        items: Item codes, row by row.
        ratings: Row by row.
        totals: Sum of the ratings before each row, and of all: (rows + 1,).
        by_user: Rows, user by user, ascending within each.
        user_starts: Where each user code begins in `by_user`, and one end.
        target_users: User code of each target.
        target_items: Item code of each target.
        item_sums: Sum of the earlier ratings of each item code.
        item_counts: Number of them.
        now: How many rows are earlier.
    """

    times: Floats
    items: Codes
    ratings: Floats
    totals: Floats
    by_user: Codes
    user_starts: Codes
    target_users: Codes
    target_items: Codes
    item_sums: Floats
    item_counts: Codes
    now: int = 0

    @classmethod
    def of(cls, rows: TimedRatings, targets: TimedPairs) -> _Past:
        """Nothing is earlier yet."""
        user_count, users, target_users = _joint_codes(rows.users, targets.users)
        item_count, items, target_items = _joint_codes(rows.items, targets.items)
        times, ratings = (np.asarray(column, dtype=np.float64) for column in (rows.timestamps, rows.ratings))
        if not (users.shape == items.shape == times.shape == ratings.shape and np.isfinite(ratings).all()):
            raise ConfigurationError("rows must be columns of one length, ratings finite")
        order = np.argsort(times, kind="stable")[: np.count_nonzero(~np.isnan(times))]
        by_user = np.argsort(users[order], kind="stable")
        return cls(
            times=times[order],
            items=items[order],
            ratings=ratings[order],
            totals=np.append(0.0, np.cumsum(ratings[order])),
            by_user=by_user,
            user_starts=np.searchsorted(users[order][by_user], np.arange(user_count + 1)),
            target_users=target_users,
            target_items=target_items,
            item_sums=np.zeros(item_count),
            item_counts=np.zeros(item_count, dtype=np.int64),
        )

    def advance(self, time: float) -> None:
        """Take in the rows before a time."""
        fresh = slice(self.now, int(np.searchsorted(self.times, time)))
        np.add.at(self.item_sums, self.items[fresh], self.ratings[fresh])
        np.add.at(self.item_counts, self.items[fresh], 1)
        self.now = fresh.stop

    def prediction(self, target: int, item_shrinkage: float, user_shrinkage: float) -> float:
        """What a model fitted on the earlier rows says of a target; there must be some."""
        mean = self.totals[self.now] / self.now
        user = self.target_users[target]
        own = self.by_user[self.user_starts[user] : self.user_starts[user + 1]]
        own = own[: np.searchsorted(own, self.now)]
        left = self.ratings[own] - mean - self._item_biases(self.items[own], mean, item_shrinkage)
        user_bias = left.sum() / (own.size + user_shrinkage) if own.size else 0.0
        item_bias = self._item_biases(self.target_items[target : target + 1], mean, item_shrinkage)[0]
        return float(mean + item_bias + user_bias)

    def _item_biases(self, items: Codes, mean: float, shrinkage: float) -> Floats:
        """Of items by code, 0 for one without an earlier row."""
        counts = self.item_counts[items]
        distances = self.item_sums[items] - counts * mean
        biases = np.zeros(counts.size)
        np.divide(distances, counts + shrinkage, out=biases, where=counts > 0)
        return biases


def _shrunken(codes: Codes, distances: Floats, shrinkage: float) -> Floats:
    """Mean distance of each code, towards 0 as by `shrinkage` rows more at 0."""
    return np.asarray(np.bincount(codes, distances) / (np.bincount(codes) + shrinkage), dtype=np.float64)


def _looked_up(ids: npt.NDArray[np.generic], biases: Floats, wanted: npt.ArrayLike) -> Floats:
    """The bias of each id, 0 where it is unknown."""
    asked = np.asarray(wanted)
    places = np.minimum(np.searchsorted(ids, asked), ids.size - 1)
    return np.where(ids[places] == asked, biases[places], 0.0)


def _joint_codes(first: npt.ArrayLike, second: npt.ArrayLike) -> tuple[int, Codes, Codes]:
    """How many ids two columns have, and both columns as numbers from 0."""
    left, right = np.asarray(first), np.asarray(second)
    # An empty column is float64 whatever it would hold, and would turn strings into what they are not.
    filled = [column for column in (left, right) if column.size]
    ids, codes = np.unique(np.concatenate(filled), return_inverse=True) if filled else (left, np.zeros(0, np.int64))
    return ids.size, codes[: left.size], codes[left.size :]


def _times(timestamps: npt.ArrayLike) -> Floats:
    """Seconds, with rows that have no time before all others."""
    times = np.asarray(timestamps, dtype=np.float64)
    return np.where(np.isnan(times), -np.inf, times)


def _clipped(ratings: Floats, scale: RatingScale) -> Floats:
    return np.asarray(np.clip(ratings, scale.minimum, scale.maximum), dtype=np.float64)


def _check_shrinkage(*shrinkages: float) -> None:
    if not all(shrinkage >= 0 for shrinkage in shrinkages):
        raise ConfigurationError(f"a shrinkage must not be negative, got {shrinkages}")
