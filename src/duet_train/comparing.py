"""Every method against every other on the rows that both predict, corrected for how many pairs are looked at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import attrs
import numpy as np
import numpy.typing as npt

from duet_train.intervals import Interval, mean_interval
from duet_train.scoring import Gold

Floats = npt.NDArray[np.float64]
Pair = tuple[str, str]

LEAST_EXCHANGES = 10_000
EXCHANGES_A_PAIR = 1_000  # so that the least p-value is still below 0.001 after the correction
_BLOCK = 4_000_000  # signs drawn at a time: 32 MB


@attrs.frozen(kw_only=True)
class Comparison:
    """One method over another.

    Args:
        first: The one that is asked about.
        second: The one that it is held against.
        rows: How many rows both predict, with every run of theirs.
        difference: MAE of the second less that of the first, in rating points, so above zero the first is better. The
            95 % interval resamples whole users, and is not corrected for the number of pairs.
        p_value: Two-sided, by exchange of the two methods within whole users; nan for no rows.
        p_holm: The same after Holm's correction over all pairs that were compared.
        spread: Standard deviation over runs of the difference that one run of each gives; nan where neither has
            several.
    """

    first: str
    second: str
    rows: int
    difference: Interval
    p_value: float
    p_holm: float
    spread: float


def every_pair(methods: Sequence[str]) -> list[Pair]:
    """All pairs, the later method over the earlier.

    Args:
        methods: Names, in the order of the tables.
    """
    return [(later, earlier) for earlier, later in combinations(methods, 2)]


def compare(
    gold: Gold, predicted: Mapping[str, npt.ArrayLike], pairs: Sequence[Pair], *, seed: int = 0
) -> list[Comparison]:
    """Paired tests of mean absolute errors.

    Where users have several rows these are not independent, so a user is the unit of the interval and of the test.
    Under the hypothesis that it does not matter which of two methods wrote for a user, the sign of that user's summed
    difference is a coin's: the p-value is the share of random choices of all signs that give a difference at least as
    large as the one observed, which is counted among them (Fisher's randomization test; Smucker, Allan and Carterette,
    CIKM 2007, recommend it for comparing systems on the same queries). At least 10,000 choices are drawn, and 1,000 for
    each pair. The p-values are corrected by `holm`: the chance to call any of the pairs different that is not stays at
    the level of one test.

    Args:
        gold: What is known of the rows.
        predicted: Rating points by method, nan where there is none: shape (rows,), or (runs, rows) for a method of
            several runs, whose error on a row is the mean over runs.
        pairs: Which to compare, the first over the second; all of them are one family for the correction.
        seed: Of the intervals and the exchanges.

    Returns:
        In the order of the pairs.
    """
    errors = {name: _absolute_errors(gold, predicted[name]) for name in {name for pair in pairs for name in pair}}
    by_method = {name: runs.mean(axis=0) for name, runs in errors.items()}
    users, owners = np.unique(np.asarray(gold.users), return_inverse=True)
    gaps = np.array([by_method[second] - by_method[first] for first, second in pairs]).reshape(len(pairs), owners.size)
    sums = np.array([np.bincount(owners, np.nan_to_num(gap), users.size) for gap in gaps])
    rows = np.count_nonzero(~np.isnan(gaps), axis=1)
    p_values = np.where(rows > 0, _exchanged(sums.reshape(len(pairs), users.size), seed), math.nan)
    return [
        Comparison(
            first=first,
            second=second,
            rows=int(rows[place]),
            difference=mean_interval(gap[~np.isnan(gap)], users=owners[~np.isnan(gap)], seed=seed),
            p_value=float(p_values[place]),
            p_holm=corrected,
            spread=_spread(errors[first], errors[second]),
        )
        for place, ((first, second), gap, corrected) in enumerate(zip(pairs, gaps, holm(p_values), strict=True))
    ]


def holm(p_values: npt.ArrayLike) -> list[float]:
    """P-values of several tests, adjusted so that one bound holds for the chance of any false alarm among them.

    Step-down: the k-th smallest of m is multiplied by m − k + 1, and is never below an earlier one nor above 1. It
    holds however the tests depend on each other (Holm, Scandinavian Journal of Statistics 6, 1979).

    Args:
        p_values: Shape (tests,); nan for a test that could not be made, which is none of the m and stays nan.

    Returns:
        In the order of the tests.
    """
    given = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(given.size, math.nan)
    order = np.argsort(given, kind="stable")[: np.count_nonzero(~np.isnan(given))]
    steps = given[order] * np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in adjusted]


def _absolute_errors(gold: Gold, predicted: npt.ArrayLike) -> Floats:
    """Shape (runs, rows)."""
    return np.abs(np.atleast_2d(np.asarray(predicted, dtype=np.float64)) - gold.ratings)


def _exchanged(sums: Floats, seed: int) -> Floats:
    """The p-value of each pair: (pairs,), from the sums of differences of each user: (pairs, users)."""
    exchanges = max(LEAST_EXCHANGES, EXCHANGES_A_PAIR * len(sums))
    # A stream of its own: sharing the bootstrap's would tie the p-value to the interval's luck.
    generator = np.random.default_rng([seed, 2])
    # Sums that differ in rounding alone are as large as each other.
    observed = np.abs(sums.sum(axis=1)) * (1 - 1e-9) - 1e-9
    as_large = np.ones(len(sums))
    size = max(1, _BLOCK // max(1, sums.shape[1]))
    for start in range(0, exchanges, size):
        shape = (min(size, exchanges - start), sums.shape[1])
        signs = generator.integers(2, size=shape, dtype=np.int8) * 2.0 - 1.0
        as_large += np.count_nonzero(np.abs(signs @ sums.T) >= observed, axis=0)
    return np.asarray(as_large / (1 + exchanges), dtype=np.float64)


def _spread(first: Floats, second: Floats) -> float:
    """Variances of independent runs add up; a method of one run has none to add."""
    common = ~np.isnan(first.mean(axis=0) - second.mean(axis=0))
    means = [errors[:, common].mean(axis=1) for errors in (first, second) if len(errors) > 1]
    if not means or not common.any():
        return math.nan
    return math.sqrt(sum(float(each.var(ddof=1)) for each in means))
