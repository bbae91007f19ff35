"""EASE: equal to solving the constrained ridge column by column, honest about what it leaves out."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duet import ConfigurationError
from duet_train.ease import EASE

Floats = npt.NDArray[np.float64]
ROWS = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 6)), min_size=1, max_size=40)


def log(seed: int, users: int = 60, items: int = 12, rows: int = 400) -> tuple[Any, Any]:
    """A random log in which every pair can occur more than once."""
    generator = np.random.default_rng(seed)
    popularity = 1 / np.arange(1, items + 1)
    return generator.integers(0, users, rows), generator.choice(items, rows, p=popularity / popularity.sum())


def binary(users: Any, items: Any) -> Floats:
    matrix = np.zeros((max(users) + 1, max(items) + 1))
    matrix[users, items] = 1
    return matrix


def ridge_by_column(matrix: Floats, l2: float) -> Floats:
    """Each item predicted from all others by a ridge regression that cannot use the item itself."""
    items = matrix.shape[1]
    weights = np.zeros((items, items))
    for item in range(items):
        others = np.arange(items) != item
        known = matrix[:, others]
        left = known.T @ known + l2 * np.eye(items - 1)
        weights[others, item] = np.linalg.solve(left, known.T @ matrix[:, item])
    return weights


@pytest.mark.parametrize("l2", [0.5, 10.0, 250.0])
@pytest.mark.parametrize("seed", range(4))
def test_closed_form_is_the_constrained_ridge(seed: int, l2: float) -> None:
    """The weights are those of one direct solve a column."""
    users, items = log(seed)
    model = EASE.fit(users, items, l2=l2)
    expected = ridge_by_column(binary(users, items), l2)
    kept = np.ix_(model.kept, model.kept)
    assert model.weights == pytest.approx(expected[kept], abs=1e-10)


@settings(deadline=None)
@given(ROWS)
def test_tiny_logs_are_solved(rows: list[tuple[int, int]]) -> None:
    """Any log has weights, with a diagonal of zero, equal to the direct solve."""
    users, items = map(list, zip(*rows, strict=True))
    model = EASE.fit(users, items, l2=1.0)
    expected = ridge_by_column(binary(users, items), 1.0)
    assert model.weights == pytest.approx(expected[np.ix_(model.kept, model.kept)], abs=1e-10)
    assert not model.weights.diagonal().any()


def test_two_thousand_items_meet_the_optimum() -> None:
    """At 2,000 items the gradient of the ridge vanishes everywhere but on the constrained diagonal."""
    users, items = log(0, users=3000, items=2000, rows=60_000)
    model = EASE.fit(users, items)
    matrix = binary(users, items)[:, model.kept].astype(np.float32)
    gram = (matrix.T @ matrix).astype(np.float64)
    gradient = gram - gram @ model.weights - model.l2 * model.weights
    np.fill_diagonal(gradient, 0.0)
    assert np.abs(gradient).max() < 1e-9


def test_scores_are_sums_over_the_history() -> None:
    """A user's scores are its row of X times the weights."""
    users, items = log(1)
    model = EASE.fit(users, items, l2=5.0)
    expected = binary(users, items) @ ridge_by_column(binary(users, items), 5.0)
    assert np.array([model.scores(user) for user in range(60)])[:, model.kept] == pytest.approx(expected[:, model.kept])


@settings(deadline=None)
@given(ROWS, st.randoms(use_true_random=False))
def test_order_and_repetition_do_not_matter(rows: list[tuple[int, int]], random: Any) -> None:
    """X is binary: shuffled and repeated rows give the same model."""
    more = [*rows, *random.choices(rows, k=5)]
    random.shuffle(more)
    one, other = (EASE.fit(*map(list, zip(*each, strict=True))) for each in (rows, more))
    assert np.array_equal(one.weights, other.weights)
    assert one.record() == other.record()


def test_history_is_what_it_learned_from() -> None:
    """A user's history is its items, each once, ascending."""
    model = EASE.fit([0, 2, 0, 0], [3, 1, 1, 3])
    assert [model.history(user).tolist() for user in range(4)] == [[1, 3], [], [1], []]


def test_unknown_user_has_no_preference() -> None:
    """A user without a history scores 0 everywhere."""
    assert EASE.fit([0, 0], [0, 1]).scores(7).tolist() == [0.0, 0.0]


def test_large_catalogue_keeps_the_most_interacted() -> None:
    """With room for two items, the two in most pairs are kept, and the rest have no score."""
    model = EASE.fit([0, 1, 2, 0, 1, 2, 0], [4, 4, 4, 2, 2, 1, 0], max_items=2, catalogue=6)
    assert model.kept.tolist() == [2, 4]
    assert np.isnan(model.scores(0)).tolist() == [True, True, False, True, False, True]


def test_restricted_model_is_the_model_of_what_is_left() -> None:
    """Leaving items out is the same as never having had them."""
    users, items = log(2)
    restricted = EASE.fit(users, items, max_items=5)
    left = np.isin(items, restricted.kept)
    assert np.array_equal(restricted.weights, EASE.fit(users[left], items[left]).weights)


def test_record_says_what_was_left_out() -> None:
    """The record can be written to JSON and shows the restriction."""
    record = json.loads(json.dumps(EASE.fit([0, 1, 1], [0, 0, 1], max_items=1, l2=9.0).record()))
    assert record == {
        "l2": 9.0,
        "users": 2,
        "items": 2,
        "items_kept": 1,
        "interactions": 3,
        "interactions_kept": 2,
        "restricted": True,
    }


def test_full_model_is_not_restricted() -> None:
    """An item that nobody has is missing from the model and is no restriction."""
    assert EASE.fit([0, 1], [0, 2]).record()["restricted"] is False


def test_empty_log_is_an_empty_model() -> None:
    """No rows give a model that knows nothing."""
    model = EASE.fit([], [], catalogue=2)
    assert np.isnan(model.scores(0)).all()
    assert model.record()["items_kept"] == 0


@pytest.mark.parametrize(
    ("users", "items", "options", "message"),
    [
        ([0], [0, 1], {}, "pair row by row"),
        ([-1], [0], {}, "whole numbers"),
        ([0.5], [0], {}, "whole numbers"),
        ([0], [3], {"catalogue": 3}, "beyond a catalogue of 3"),
        ([0], [0], {"l2": 0}, "must be positive"),
        ([0], [0], {"max_items": 0}, "must be positive"),
    ],
)
def test_unusable_input_is_refused(users: Any, items: Any, options: dict[str, Any], message: str) -> None:
    """What cannot be fitted is named."""
    with pytest.raises(ConfigurationError, match=message):
        EASE.fit(users, items, **options)
