"""How high the right items are ranked, ties resolved in expectation. Pure: arrays in, floats out.

The order in which candidates come must never matter: where scores tie, every order of the tied ones is as likely, and
a metric is its mean over them. All-equal scores of 10 candidates give NDCG@1/5/10 of .1000/.2948/.4544, not 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import attrs
import numpy as np
import numpy.typing as npt

from duet import ConfigurationError

Floats = npt.NDArray[np.float64]


# One positive among candidates


def rank_probabilities(scores: npt.ArrayLike, positive: int) -> Floats:
    """How likely the positive is to have each rank, 1 first.

    A candidate that failed has nan for a score. Nothing is known of it, so every place among the others is as likely:
    it gets what knowing nothing gets. All failed is the random floor; a failed negative does not hand its place to the
    positive, as a lowest score would; and a failed positive is not last for certain. A row with failures still counts,
    since with ten candidates a small rate of failure touches most rows; report that rate beside the metric.

    Args:
        scores: One a candidate, higher is better; nan where it failed.
        positive: Index of the one right candidate.

    Returns:
        As many probabilities as candidates.

    Raises:
        ConfigurationError: `positive` is not the index of a candidate.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or not 0 <= positive < values.size:
        raise ConfigurationError(f"positive is {positive}, which is no index into scores of shape {values.shape}")
    if math.isnan(values[positive]):
        return np.full(values.size, 1 / values.size)
    better = np.count_nonzero(values > values[positive])
    tied = np.count_nonzero(values == values[positive])
    chances = np.zeros(np.count_nonzero(~np.isnan(values)))
    chances[better : better + tied] = 1 / tied
    while chances.size < values.size:
        chances = _with_one_more(chances)
    return chances


def _with_one_more(chances: Floats) -> Floats:
    """The chances of each rank after one more candidate took any place, each as likely."""
    gaps = chances.size + 1
    passed = np.arange(1, gaps) / gaps  # of rank r, r of the gaps are before it
    stays, moves = np.append(chances * (1 - passed), 0.0), np.append(0.0, chances * passed)
    return np.asarray(stays + moves, dtype=np.float64)


def hit_rate_at_k(scores: npt.ArrayLike, positive: int, k: int) -> float:
    """Chance that the positive is among the first `k`; the mean over rows is the hit rate.

    Raises:
        ConfigurationError: `positive` is not the index of a candidate, or `k` is below 1.
    """
    return float(rank_probabilities(scores, positive)[: _cutoff(k)].sum())


def ndcg_at_k(scores: npt.ArrayLike, positive: int, k: int) -> float:
    """Expected 1 / log2(rank + 1) where the rank is at most `k`, else 0: NDCG with one positive.

    Raises:
        ConfigurationError: `positive` is not the index of a candidate, or `k` is below 1.
    """
    chances = rank_probabilities(scores, positive)[: _cutoff(k)]
    return float(chances @ _discounts(chances.size))


def mrr(scores: npt.ArrayLike, positive: int, k: int | None = None) -> float:
    """Expected 1 / rank, 0 beyond `k` where one is given; the mean over rows is the mean reciprocal rank.

    Raises:
        ConfigurationError: `positive` is not the index of a candidate, or `k` is below 1.
    """
    chances = rank_probabilities(scores, positive)[: None if k is None else _cutoff(k)]
    return float(chances @ (1 / np.arange(1, chances.size + 1)))


# A whole catalogue


@attrs.frozen(kw_only=True)
class CatalogueMetrics:
    """What the first k of a catalogue hold, for one user.

    Args:
        recall: Share of the positives among the first k.
        precision: Share of the first k that are positives; k counts whole where the catalogue is shorter.
        mrr: 1 / rank of the first positive, 0 beyond k.
        ndcg: Discounted gain over that of the best order.
    """

    recall: float
    precision: float
    mrr: float
    ndcg: float


def catalogue_metrics(
    scores: npt.ArrayLike,
    positives: Sequence[int] | npt.NDArray[np.integer],
    ks: Sequence[int] = (5, 10, 20),
    *,
    exclude: npt.NDArray[np.bool_] | None = None,
) -> dict[int, CatalogueMetrics]:
    """Recall, precision, MRR and NDCG at each k over all items, as LangPTune and BLUE measure.

    Args:
        scores: One an item, higher is better. An item without a score belongs into `exclude`.
        positives: Indices of the right items, each once. All metrics are nan where there are none.
        ks: Cut-offs.
        exclude: True for items that are not ranked, such as the user's history.

    Raises:
        ConfigurationError: A ranked score is nan; a positive is excluded, repeated or out of range; a k is below 1.
    """
    values = np.asarray(scores, dtype=np.float64)
    right = np.asarray(positives, dtype=np.int64)
    ranked = np.ones(values.size, dtype=np.bool_) if exclude is None else ~np.asarray(exclude, dtype=np.bool_)
    _check_catalogue(values, right, ranked)
    groups = list(_tie_groups(values[ranked], values[right]))
    return {k: _metrics_at(_cutoff(k), groups, right.size) for k in ks}


@attrs.frozen
class _TieGroup:
    """Items of one score: `better` items before them, `size` of them, `right` of these positive."""

    better: int
    size: int
    right: int


def _tie_groups(ranked: Floats, right: Floats) -> Iterator[_TieGroup]:
    """The groups with a positive in them, best first."""
    for score, count in zip(*(column[::-1] for column in np.unique(right, return_counts=True)), strict=True):
        yield _TieGroup(int(np.sum(ranked > score)), int(np.sum(ranked == score)), int(count))


def _metrics_at(k: int, groups: list[_TieGroup], positives: int) -> CatalogueMetrics:
    if not positives:
        return CatalogueMetrics(recall=math.nan, precision=math.nan, mrr=math.nan, ndcg=math.nan)
    discounts = _discounts(k)
    hits = gain = 0.0
    for group in groups:
        # Each place of a group holds a positive with the same chance, so both sums are linear in it.
        places = slice(group.better, group.better + group.size)
        hits += discounts[places].size * group.right / group.size
        gain += float(discounts[places].sum()) * group.right / group.size
    best = float(discounts[:positives].sum())
    return CatalogueMetrics(
        recall=hits / positives, precision=hits / k, mrr=_first_rank(k, groups[0]), ndcg=gain / best
    )


def _first_rank(k: int, group: _TieGroup) -> float:
    """Expected reciprocal rank of the first positive, 0 beyond `k`."""
    chance, expected = group.right / group.size, 0.0
    last = min(k - group.better, group.size - group.right + 1)
    for place in range(1, last + 1):
        expected += chance / (group.better + place)
        if place < group.size:  # no positive at this place, and one at the next
            chance *= (group.size - place - group.right + 1) / (group.size - place)
    return expected


def _check_catalogue(values: Floats, right: npt.NDArray[np.int64], ranked: npt.NDArray[np.bool_]) -> None:
    if ranked.shape != values.shape:
        raise ConfigurationError(f"exclude has shape {ranked.shape}, scores have {values.shape}")
    if right.size and not (right.min() >= 0 and right.max() < values.size):
        raise ConfigurationError(f"positives must be indices from 0 to {values.size - 1}, got {right.tolist()}")
    if np.unique(right).size != right.size:
        raise ConfigurationError(f"a positive is repeated in {right.tolist()}")
    if not ranked[right].all():
        raise ConfigurationError(f"positive {right[~ranked[right]][0]} is excluded, so it could never be found")
    if np.isnan(values[ranked]).any():
        raise ConfigurationError("a ranked item has nan for a score: exclude it, or leave the row out and count it")


def _cutoff(k: int) -> int:
    if k < 1:
        raise ConfigurationError(f"k must be at least 1, got {k}")
    return k


def _discounts(count: int) -> Floats:
    return 1 / np.log2(np.arange(2, count + 2))
