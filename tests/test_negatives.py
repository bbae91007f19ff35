"""Negatives: never an item of the user's, deterministic for a seed, the positive's place telling nothing."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duet import ConfigurationError
from duet_train.ease import EASE
from duet_train.negatives import CandidateSet, hard_negatives, random_negatives

ITEMS = 30
USERS = 20


def fitted() -> EASE:
    generator = np.random.default_rng(0)
    return EASE.fit(generator.integers(0, USERS, 200), generator.integers(0, ITEMS, 200), l2=5.0, catalogue=ITEMS)


MODEL = fitted()


def draw(kind: str, user: int, positive: int, exclude: list[int], **options: Any) -> CandidateSet:
    if kind == "random":
        return random_negatives(ITEMS, user, positive, exclude, **options)
    return hard_negatives(MODEL, user, positive, exclude, pool=15 if kind == "pool" else None, **options)


each_kind = pytest.mark.parametrize("kind", ["random", "top", "pool"])
users_of = st.integers(0, USERS + 2)
items_of = st.integers(0, ITEMS - 1)
excluded = st.lists(items_of, max_size=8)


# Any kind


@each_kind
@settings(deadline=None)
@given(user=users_of, positive=items_of, exclude=excluded, n=st.integers(1, 9), seed=st.integers(0, 99))
def test_negatives_are_unseen(kind: str, user: int, positive: int, exclude: list[int], n: int, seed: int) -> None:
    """There are n distinct negatives, none of them the positive or an item of the user's."""
    found = draw(kind, user, positive, exclude, n=n, seed=seed)
    assert len(set(found.items)) == len(found.items) == n + 1
    assert not set(found.negatives) & {positive, *exclude}
    assert found.positive == positive


@each_kind
@settings(deadline=None)
@given(user=users_of, positive=items_of, exclude=excluded, seed=st.integers(0, 99))
def test_same_seed_same_candidates(kind: str, user: int, positive: int, exclude: list[int], seed: int) -> None:
    """A draw depends on its arguments alone: not on other draws, nor on the order of what is excluded."""
    once = draw(kind, user, positive, exclude, seed=seed)
    draw(kind, user + 1, positive, exclude, seed=seed)
    assert draw(kind, user, positive, exclude[::-1], seed=seed) == once


@each_kind
def test_seed_changes_the_order(kind: str) -> None:
    """Other seeds put the positive in other places."""
    assert {draw(kind, 1, 2, [], seed=seed).position for seed in range(200)} == set(range(10))


@each_kind
def test_place_of_the_positive_is_even(kind: str) -> None:
    """Over 2,000 rows each of ten places holds the positive in 7 to 13 %."""
    places = [draw(kind, row % USERS, row % ITEMS, [], seed=row).position for row in range(2000)]
    shares = np.bincount(places, minlength=10) / len(places)
    assert np.all((shares > 0.07) & (shares < 0.13))


@each_kind
def test_too_few_items_are_refused(kind: str) -> None:
    """Where fewer than n items are left, no shorter list is passed off."""
    with pytest.raises(ConfigurationError, match="9 negatives are wanted, and 8 items are left"):
        draw(kind, 0, 0, list(range(1, ITEMS - 8)))


@each_kind
@pytest.mark.parametrize("wrong", [{"user": -1}, {"positive": -1}, {"seed": -1}])
def test_negative_codes_are_refused(kind: str, wrong: dict[str, int]) -> None:
    """A code below 0 is a mistake, not an item from the end."""
    with pytest.raises(ConfigurationError, match="must not be negative"):
        draw(kind, **{"user": 0, "positive": 0, "exclude": [], **wrong})  # type: ignore[arg-type]  # mypy cannot split the mapping


@each_kind
def test_record_is_json_with_ids(kind: str) -> None:
    """What is written to disk has ids for codes, and says how it was drawn."""
    found = draw(kind, 3, 4, [], seed=7)
    user_ids, item_ids = [f"u{code}" for code in range(USERS)], [f"i{code}" for code in range(ITEMS)]
    record = json.loads(json.dumps(found.record(user_ids, item_ids)))
    assert record == {
        "user": "u3",
        "items": [f"i{item}" for item in found.items],
        "position": found.position,
        "kind": "random" if kind == "random" else "ease",
        "seed": 7,
        "pool": 15 if kind == "pool" else None,
        "informed": True,
    }


# By EASE


@pytest.mark.parametrize("user", range(USERS))
def test_hard_negatives_are_the_highest_scored(user: int) -> None:
    """Nothing that is left out scores higher than what is taken."""
    exclude = MODEL.history(user).tolist()
    found = hard_negatives(MODEL, user, 0, exclude, n=5)
    scores = MODEL.scores(user)
    rest = [item for item in range(ITEMS) if item not in {0, *exclude, *found.negatives}]
    assert scores[list(found.negatives)].min() >= scores[rest].max()


def test_pool_is_the_top() -> None:
    """Sampled negatives are all among the top of the pool, and not always the same."""
    top = set(hard_negatives(MODEL, 3, 0, [], n=15).negatives)
    draws = [set(hard_negatives(MODEL, 3, 0, [], n=5, pool=15, seed=seed).negatives) for seed in range(60)]
    assert set.union(*draws) == top


def test_pool_must_hold_the_negatives() -> None:
    """Nine of the top five cannot be drawn."""
    with pytest.raises(ConfigurationError, match="pool is 5"):
        hard_negatives(MODEL, 0, 0, [], n=9, pool=5)


def test_equal_scores_are_not_taken_by_code() -> None:
    """For a user EASE knows nothing of, every item is drawn under some seed, and the set says so."""
    draws = [hard_negatives(MODEL, USERS + 1, 0, [], seed=seed) for seed in range(60)]
    assert {item for found in draws for item in found.negatives} == set(range(1, ITEMS))
    assert not any(found.informed for found in draws)


def test_items_left_out_of_the_model_are_no_hard_negatives() -> None:
    """A restricted model draws from what it knows; the positive may be any item."""
    model = EASE.fit([0, 1, 1, 0, 2], [0, 0, 1, 2, 3], max_items=2)
    assert set(hard_negatives(model, 0, 3, [], n=2).negatives) == set(model.kept.tolist())


# At random


def test_random_negatives_are_even() -> None:
    """Over 3,000 draws of one from nine, each of them comes in 9 to 13.3 %."""
    drawn = [random_negatives(10, row, 0, [], n=1, seed=1).negatives[0] for row in range(3000)]
    shares = np.bincount(drawn, minlength=10)[1:] / len(drawn)
    assert np.all((shares > 0.09) & (shares < 0.133))
