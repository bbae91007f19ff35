"""Head, middle and tail of the items by their training interactions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from evaluations import log, prepared
from hypothesis import given
from hypothesis import strategies as st

from duet_train.figures import gold_of
from duet_train.popularity import Popularity

COUNTS = st.lists(st.integers(0, 60), min_size=1, max_size=40)


def of(counts: Sequence[int]) -> Popularity:
    """Items with so many training interactions each, and one evaluated row an item."""
    return Popularity.of(np.repeat(np.arange(len(counts)), counts), np.arange(len(counts)))


def groups(counts: Sequence[int]) -> list[str]:
    """The name of each item's group."""
    found = of(counts)
    bounds = [-np.inf, *sorted({found.tail, found.middle}), np.inf]
    places = [int(np.searchsorted(bounds, count, side="left")) for count in found.counts]
    return [found.name(bounds[place - 1], bounds[place]) for place in places]


def test_head_and_tail_have_a_fifth_of_the_interactions_each() -> None:
    """Of 100 interactions one item has 20, twenty items have one each, and six items share the rest."""
    named = groups([20, *[10] * 6, *[1] * 20])
    assert named == ["head", *["middle"] * 6, *["tail"] * 20]


def test_item_unseen_in_training_is_tail() -> None:
    """Nothing is less popular than what nobody had, also where no other item is rare."""
    assert groups([7, 7, 0]) == ["middle", "middle", "tail"]


def test_dominant_item_is_head_alone() -> None:
    """One item with a third of the interactions is the head, though it is more than a fifth."""
    assert groups([35, 13, 13, 13, 13, 13]) == ["head", *["middle"] * 5]


@given(COUNTS)
def test_a_more_popular_item_is_never_in_a_lower_group(counts: list[int]) -> None:
    """Groups ascend with the interactions, and items with equally many are in one group."""
    order = {"tail": 0, "middle": 1, "head": 2}
    ranks = [order[name] for name in groups(counts)]
    pairs = sorted(zip(counts, ranks, strict=True))
    assert [rank for _, rank in pairs] == sorted(ranks)
    assert len(set(pairs)) == len(set(counts))


@given(COUNTS)
def test_ends_reach_to_the_class_whose_middle_lies_in_the_fifth(counts: list[int]) -> None:
    """Half of the most popular items of the tail, with all below, have less than a fifth; of the head alike."""
    found, total = of(counts), sum(counts)
    for size in {count for count in counts if count}:
        below = sum(count for count in counts if count < size)
        place = (below + size * counts.count(size) / 2) / total
        assert (size <= found.tail) == (place < 0.2)
        assert (size > found.middle) == (place > 0.8)


def test_rows_count_training_interactions_alone(tmp_path: Path) -> None:
    """The interactions of an item are those of the training split: later rows are not known to a method."""
    data = prepared(tmp_path / "out")
    rows = data.examples("test")
    train = data.matrix("train")
    ids = [train.item_ids[code] for code in train.items]
    popularity = gold_of(data, rows).popularity
    assert popularity is not None
    assert popularity.counts.tolist() == [ids.count(row.example.item.id) for row in rows]
    assert len(ids) < len(log())


@pytest.mark.parametrize("counts", [[0], [0, 0, 0]])
def test_no_training_rows_are_all_tail(counts: list[int]) -> None:
    """Without training rows every item is unseen, and nothing is divided by zero."""
    assert groups(counts) == ["tail"] * len(counts)
