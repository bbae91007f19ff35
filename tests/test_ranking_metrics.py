"""Metrics of rankings: ties in expectation, failures as chance, equal to counting every order."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duet import ConfigurationError
from duet_train.ranking_metrics import catalogue_metrics, hit_rate_at_k, mrr, ndcg_at_k, rank_probabilities

# Few distinct scores, so that ties are the rule.
SCORE = st.sampled_from([1.0, 2.0, 3.0])
KNOWN_OR_FAILED = st.one_of(SCORE, st.just(math.nan))


@pytest.fixture(scope="module")
def sklearn_metrics() -> Any:
    """The oracle, which averages over ties too, and refuses a single candidate."""
    return pytest.importorskip("sklearn.metrics", reason="scikit-learn is the oracle")


@st.composite
def candidate_rows(
    draw: st.DrawFn, score: st.SearchStrategy[float] = SCORE, *, least: int = 1, most: int = 6
) -> tuple[list[float], int]:
    scores = draw(st.lists(score, min_size=least, max_size=most))
    return scores, draw(st.integers(0, len(scores) - 1))


@st.composite
def catalogues(draw: st.DrawFn) -> tuple[list[float], list[int]]:
    scores = draw(st.lists(SCORE, min_size=1, max_size=6))
    return scores, draw(st.lists(st.integers(0, len(scores) - 1), min_size=1, unique=True))


def orders(scores: list[float]) -> list[tuple[int, ...]]:
    """Every order of the candidates that puts none of the known below a worse one."""
    known = [index for index, score in enumerate(scores) if not math.isnan(score)]

    def fits(order: tuple[int, ...]) -> bool:
        places = {index: place for place, index in enumerate(order)}
        return all(places[a] < places[b] for a in known for b in known if scores[a] > scores[b])

    return [order for order in permutations(range(len(scores))) if fits(order)]


# One positive


@settings(deadline=None, max_examples=60)
@given(candidate_rows(KNOWN_OR_FAILED))
def test_probabilities_count_every_order(row: tuple[list[float], int]) -> None:
    """The chance of a rank is its share of all orders that the known scores allow."""
    scores, positive = row
    ranks = [order.index(positive) for order in orders(scores)]
    expected = np.bincount(ranks, minlength=len(scores)) / len(ranks)
    assert rank_probabilities(scores, positive) == pytest.approx(expected)


@pytest.mark.parametrize("scores", [[3.0] * 10, [math.nan] * 10, [math.nan] * 9 + [1.0], [1.0] * 4 + [math.nan] * 6])
@pytest.mark.parametrize(("k", "floor"), [(1, 0.1), (5, 0.2948), (10, 0.4544)])
def test_knowing_nothing_is_the_random_floor(scores: list[float], k: int, floor: float) -> None:
    """Ten equal scores, and ten failures, give NDCG@1/5/10 of .1000/.2948/.4544 wherever the positive stands."""
    assert ndcg_at_k(scores, 0, k) == pytest.approx(floor, abs=5e-5)
    assert ndcg_at_k(scores, 9, k) == pytest.approx(floor, abs=5e-5)


@settings(deadline=None)
@given(candidate_rows(least=2, most=12), st.integers(1, 12))
def test_ndcg_equals_scikit_learn(sklearn_metrics: Any, row: tuple[list[float], int], k: int) -> None:
    """NDCG with ties is scikit-learn's tie-averaged one."""
    scores, positive = row
    gains = [[float(index == positive) for index in range(len(scores))]]
    assert ndcg_at_k(scores, positive, k) == pytest.approx(sklearn_metrics.ndcg_score(gains, [scores], k=k))


@settings(deadline=None)
@given(candidate_rows(KNOWN_OR_FAILED, most=10), st.integers(0, 2**31), st.integers(1, 10))
def test_input_order_never_matters(row: tuple[list[float], int], seed: int, k: int) -> None:
    """Shuffled candidates give the same result."""
    scores, positive = row
    shuffle = np.random.default_rng(seed).permutation(len(scores))
    moved = int(np.flatnonzero(shuffle == positive)[0])
    shuffled = np.array(scores)[shuffle]
    for metric in (ndcg_at_k, hit_rate_at_k, mrr):
        assert metric(shuffled, moved, k) == pytest.approx(metric(scores, positive, k))


def test_best_of_all_is_first() -> None:
    """A positive above all others scores 1 everywhere."""
    assert [metric([1, 2, 9], 2, 1) for metric in (ndcg_at_k, hit_rate_at_k, mrr)] == [1.0, 1.0, 1.0]


def test_third_of_three() -> None:
    """A positive on rank 3 has NDCG 1/2 and reciprocal rank 1/3, and is no hit at 2."""
    scores = [3, 2, 1]
    found = [ndcg_at_k(scores, 2, 3), mrr(scores, 2), mrr(scores, 2, 2), hit_rate_at_k(scores, 2, 2)]
    assert found == pytest.approx([0.5, 1 / 3, 0, 0])


def test_failed_negative_does_not_make_way() -> None:
    """A failed negative is ahead of a lone positive in half of all orders."""
    assert hit_rate_at_k([1.0, math.nan], 0, 1) == pytest.approx(0.5)


def test_failed_positive_is_anywhere() -> None:
    """A failed positive among ten is first in a tenth of all orders, whatever the others score."""
    assert hit_rate_at_k([*range(9), math.nan], 9, 1) == pytest.approx(0.1)


@settings(deadline=None)
@given(candidate_rows(KNOWN_OR_FAILED, most=10), st.integers(0, 9), st.integers(1, 10))
def test_losing_a_beaten_negative_never_helps(row: tuple[list[float], int], index: int, k: int) -> None:
    """Where the positive is known, failing on a negative that scored below it cannot raise NDCG."""
    scores, positive = row
    beaten = [place for place, score in enumerate(scores) if score < scores[positive]]
    if beaten:
        failed = list(scores)
        failed[beaten[index % len(beaten)]] = math.nan
        assert ndcg_at_k(failed, positive, k) <= ndcg_at_k(scores, positive, k) + 1e-12


@pytest.mark.parametrize("positive", [-1, 2])
def test_positive_must_be_a_candidate(positive: int) -> None:
    """An index outside the candidates is refused, also one that would count from the end."""
    with pytest.raises(ConfigurationError, match="no index"):
        ndcg_at_k([1, 2], positive, 1)


@pytest.mark.parametrize("metric", [ndcg_at_k, hit_rate_at_k, mrr])
def test_cutoff_must_be_positive(metric: Any) -> None:
    """No metric is cut at 0."""
    with pytest.raises(ConfigurationError, match="k must be"):
        metric([1, 2], 0, 0)


# A whole catalogue


@settings(deadline=None, max_examples=60)
@given(catalogues(), st.integers(1, 7))
def test_catalogue_counts_every_order(row: tuple[list[float], list[int]], k: int) -> None:
    """Each metric is its mean over all orders that the scores allow."""
    scores, positives = row
    found = catalogue_metrics(scores, positives, [k])[k]
    expected = np.mean([in_order(order, positives, k) for order in orders(scores)], axis=0)
    assert [found.recall, found.precision, found.mrr, found.ndcg] == pytest.approx(expected)


def in_order(order: tuple[int, ...], positives: list[int], k: int) -> list[float]:
    """Recall, precision, MRR and NDCG of one order, by their definitions."""
    ranks = sorted(order.index(positive) + 1 for positive in positives)
    found = [rank for rank in ranks if rank <= k]
    best = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(ranks)) + 1))
    gain = sum(1 / math.log2(rank + 1) for rank in found)
    return [len(found) / len(ranks), len(found) / k, 1 / found[0] if found else 0.0, gain / best]


@settings(deadline=None)
@given(candidate_rows(most=12), st.integers(1, 12))
def test_one_positive_of_a_catalogue_is_one_among_candidates(row: tuple[list[float], int], k: int) -> None:
    """With one positive the catalogue's metrics are those of a row of candidates."""
    scores, positive = row
    found = catalogue_metrics(scores, [positive], [k])[k]
    expected = [ndcg_at_k(scores, positive, k), hit_rate_at_k(scores, positive, k), mrr(scores, positive, k)]
    assert [found.ndcg, found.recall, found.mrr] == pytest.approx(expected)


def test_excluded_items_take_no_place() -> None:
    """A better item of the user's history does not push the positive down."""
    found = catalogue_metrics([9, 2, 1], [1], [1], exclude=np.array([True, False, False]))
    assert found[1].ndcg == 1.0


def test_no_positives_is_nan() -> None:
    """A user with nothing to find has no metric."""
    found = catalogue_metrics([1, 2], [], [5])[5]
    assert all(math.isnan(value) for value in (found.recall, found.precision, found.mrr, found.ndcg))


@pytest.mark.parametrize(
    ("scores", "positives", "exclude", "message"),
    [
        ([1, 2], [0], [True, False], "could never be found"),
        ([1, 2], [0, 0], None, "repeated"),
        ([1, 2], [2], None, "indices from 0 to 1"),
        ([1, 2], [-1], None, "indices from 0 to 1"),
        ([1, math.nan], [0], None, "nan for a score"),
        ([1, 2], [0], [False], "shape"),
    ],
)
def test_what_cannot_be_ranked_is_refused(scores: Any, positives: Any, exclude: Any, message: str) -> None:
    """A catalogue row that would be counted wrongly raises."""
    mask = None if exclude is None else np.array(exclude)
    with pytest.raises(ConfigurationError, match=message):
        catalogue_metrics(scores, positives, exclude=mask)


def test_excluded_item_needs_no_score() -> None:
    """Items outside the ranking may have nan."""
    found = catalogue_metrics([math.nan, 2], [1], [1], exclude=np.array([True, False]))
    assert found[1].recall == 1.0
