"""How sure a number is: bootstrap intervals and paired tests, by row or by user. Deterministic for a seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import attrs
import numpy as np
import numpy.typing as npt

from duet import ConfigurationError

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

_BLOCK = 4_000_000  # numbers drawn at a time: 32 MB


@attrs.frozen(kw_only=True)
class Interval:
    """An estimate and where it would lie on other samples of rows or users like these.

    Args:
        estimate: On the sample itself; nan for no rows.
        low: Lower end; nan for fewer than two units, which say nothing about spread.
        high: Upper end, likewise.
        units: Rows, or users where rows were drawn by user.
    """

    estimate: float
    low: float
    high: float
    units: int


@attrs.frozen(kw_only=True)
class PairedTest:
    """Two methods on the same rows.

    Args:
        difference: First less second; its interval is by paired bootstrap.
        p_value: Two-sided, by random exchange of the two methods within each unit; never below
            1 / (resamples + 1); nan for no rows.
    """

    difference: Interval
    p_value: float


def mean_interval(
    values: npt.ArrayLike,
    *,
    users: npt.ArrayLike | None = None,
    transform: Callable[[Floats], Floats] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a mean over rows.

    Absolute errors give MAE, hits give accuracy, one row's NDCG gives NDCG; squared errors with ``transform=np.sqrt``
    give RMSE. Values that are all equal give an interval of no width, which no resampling can see beyond.

    Args:
        values: One a row.
        users: Whose row it is. With it whole users are drawn, since the rows of one user are not independent; the mean
            stays one over rows.
        transform: Applied to the mean, and to each resampled mean.
        resamples: How many samples are drawn.
        level: Share of resampled means between the ends.
        seed: The same seed and units draw the same samples, so methods on the same rows can be compared.

    Raises:
        ConfigurationError: A value is not finite, the lengths differ, or a setting is out of range.
    """
    sums, counts = _units(values, users)
    shape = transform or _unchanged
    means = shape(_resampled_means(sums[:, None], counts, resamples, seed)[:, 0])
    return _interval(shape(_overall(sums[:, None], counts))[0], means, counts.size, level)


def statistic_interval(
    statistic: Callable[[Rows], float],
    rows: int,
    *,
    users: npt.ArrayLike | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of anything computed from a choice of rows, such as F1, Spearman or a difference.

    Calls `statistic` once a resample: prefer `mean_interval` for means. A resample where it is nan is left out.

    Args:
        statistic: Takes indices of rows, with repetitions; gives a number.
        rows: How many rows there are.
        users: Whose row it is; with it whole users are drawn.
        resamples: How many samples are drawn.
        level: Share of resampled values between the ends.
        seed: The same seed draws the same samples.

    Raises:
        ConfigurationError: The lengths differ, or a setting is out of range.
    """
    owners = _owners(users, rows)
    units = rows if owners is None else int(owners.max(initial=-1)) + 1
    draws = _drawn_rows(owners, units, _checked(resamples), seed)
    values = np.array([statistic(drawn) for drawn in draws], dtype=np.float64)
    estimate = statistic(np.arange(rows)) if rows else math.nan
    return _interval(estimate, values[~np.isnan(values)], units, level)


def paired_test(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    *,
    users: npt.ArrayLike | None = None,
    transform: Callable[[Floats], Floats] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> PairedTest:
    """Whether two methods differ on the same rows: the difference of their means, its interval, and a p-value.

    The interval draws rows (or users) with both methods' values at once. The p-value asks how often a difference as
    large comes about where it is left to chance, unit by unit, which value is whose (a sign-flip test for plain means).

    Args:
        first: One value a row, such as absolute errors.
        second: The other method's, row by row.
        users: Whose row it is; with it whole users are drawn and exchanged.
        transform: Applied to each method's mean before they are subtracted; ``np.sqrt`` on squared errors gives RMSE.
        resamples: How many samples, and how many exchanges.
        level: Share of resampled differences between the ends.
        seed: The same seed draws the same.

    Raises:
        ConfigurationError: A value is not finite, the lengths differ, or a setting is out of range.
    """
    a, counts = _units(first, users)
    b, others = _units(second, users)
    if not np.array_equal(counts, others):
        raise ConfigurationError("the two methods have not the same number of rows: compare them on the same rows")
    sums = np.column_stack([a, b])
    shape = transform or _unchanged
    observed = _difference(shape(_overall(sums, counts)))
    drawn = _difference(shape(_resampled_means(sums, counts, resamples, seed)))
    chance = _difference(shape(_exchanged_means(sums, counts, resamples, seed)))
    return PairedTest(
        difference=_interval(float(observed), drawn, counts.size, level), p_value=_p_value(float(observed), chance)
    )


def _unchanged(values: Floats) -> Floats:
    return values


def _difference(means: Floats) -> Floats:
    return np.asarray(means[..., 0] - means[..., 1], dtype=np.float64)


def _p_value(observed: float, chance: Floats) -> float:
    """The observed exchange is one of those possible, so it counts: a p-value is never 0."""
    if math.isnan(observed):
        return math.nan
    as_large = np.count_nonzero(np.abs(chance) >= abs(observed) * (1 - 1e-9) - 1e-12)
    return (1 + as_large) / (1 + chance.size)


def _interval(estimate: float, samples: Floats, units: int, level: float) -> Interval:
    if not 0 < level < 1:
        raise ConfigurationError(f"level must lie between 0 and 1, got {level}")
    low, high = math.nan, math.nan
    if units > 1 and samples.size:
        low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return Interval(estimate=float(estimate), low=low, high=high, units=units)


# Drawing


def _resampled_means(sums: Floats, counts: Rows, resamples: int, seed: int) -> Floats:
    """Mean over rows in each resample of the units: (resamples, columns)."""
    generator = np.random.default_rng(seed)
    means = [np.empty((0, sums.shape[1]))]
    for size in _blocks(_checked(resamples), counts.size):
        drawn = generator.integers(counts.size, size=(size, counts.size))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)[:, None])
    return np.concatenate(means)


def _exchanged_means(sums: Floats, counts: Rows, resamples: int, seed: int) -> Floats:
    """Mean of both columns with the two exchanged in a random half of the units: (resamples, 2)."""
    # A stream of its own: sharing the bootstrap's would tie the p-value to the interval's luck.
    generator = np.random.default_rng([seed, 1])
    gaps = sums[:, 1] - sums[:, 0]
    means = [np.empty((0, 2))]
    for size in _blocks(_checked(resamples), counts.size):
        moved = generator.integers(2, size=(size, counts.size), dtype=np.int8) @ gaps
        means.append(np.column_stack([sums[:, 0].sum() + moved, sums[:, 1].sum() - moved]) / counts.sum())
    return np.concatenate(means)


def _drawn_rows(owners: Rows | None, units: int, resamples: int, seed: int) -> Iterator[Rows]:
    """The rows of each resample of the units."""
    generator = np.random.default_rng(seed)
    members = None if owners is None else _members(owners)
    for _ in range(resamples if units else 0):
        drawn = generator.integers(units, size=units)
        yield drawn if members is None else np.concatenate([members[unit] for unit in drawn])


def _blocks(resamples: int, units: int) -> Iterator[int]:
    """Sizes that add up to the resamples; none where there is nothing to draw from."""
    if not units:
        return
    size = max(1, _BLOCK // units)
    for start in range(0, resamples, size):
        yield min(size, resamples - start)


# Units


def _units(values: npt.ArrayLike, users: npt.ArrayLike | None) -> tuple[Floats, Rows]:
    """Sum and number of rows of each unit."""
    column = np.asarray(values, dtype=np.float64)
    if column.ndim != 1 or not np.isfinite(column).all():
        raise ConfigurationError("values must be one finite number a row: leave failed rows out, and report how many")
    owners = _owners(users, column.size)
    if owners is None:
        return column, np.ones(column.size, dtype=np.int64)
    return np.bincount(owners, column).astype(np.float64), np.bincount(owners).astype(np.int64)


def _overall(sums: Floats, counts: Rows) -> Floats:
    """Mean over all rows: (columns,)."""
    return sums.sum(axis=0) / counts.sum() if counts.size else np.full(sums.shape[1], math.nan)


def _owners(users: npt.ArrayLike | None, rows: int) -> Rows | None:
    """The users as numbers from 0."""
    if users is None:
        return None
    _, owners = np.unique(np.asarray(users), return_inverse=True)
    if owners.shape != (rows,):
        raise ConfigurationError(f"{owners.size} users for {rows} rows: one user a row is needed")
    return owners.astype(np.int64)


def _members(owners: Rows) -> list[Rows]:
    """The rows of each unit."""
    order = np.argsort(owners, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(owners[order])) + 1)


def _checked(resamples: int) -> int:
    if resamples < 1:
        raise ConfigurationError(f"resamples must be at least 1, got {resamples}")
    return resamples
