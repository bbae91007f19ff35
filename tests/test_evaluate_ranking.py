"""Candidates, what methods score them, and what that is worth."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path

import attrs
import numpy as np
import pytest
from evaluations import ITEMS, Letters, Reader, log, prepared
from prepare_oracle import Rated

from duet import ConfigurationError, Interaction, Item
from duet_train.baselines import HistoryOnly
from duet_train.data.prepared import ItemRequest, Prepared, PreparedExample
from duet_train.negatives import CandidateSet
from duet_train.ranking import Catalogue, method_scores, ranking_figures

pytestmark = pytest.mark.anyio

KINDS = pytest.mark.parametrize("kind", ["random", "ease"])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Six test rows, one a user."""
    return prepared(tmp_path_factory.mktemp("ranking") / "out", histories="prequential")


@pytest.fixture(scope="module")
def catalogue(data: Prepared) -> Catalogue:
    """All items and who has which."""
    return Catalogue.of(data)


@pytest.fixture(scope="module")
def rows(data: Prepared) -> list[PreparedExample]:
    """All test rows."""
    return data.examples("test")


def drawn(position: int = 0, size: int = 10) -> CandidateSet:
    """A set whose candidates do not matter."""
    return CandidateSet(items=tuple(range(size)), position=position, user=0, kind="random", seed=0)


# Candidates


@KINDS
def test_one_positive_among_ten(catalogue: Catalogue, rows: list[PreparedExample], kind: str) -> None:
    """Ten distinct candidates, one of which is the observed item."""
    for row in rows:
        one = catalogue.candidates(row, kind, 0)
        assert len(set(one.items)) == 10
        assert catalogue.item_ids[one.positive] == row.example.item.id


@KINDS
def test_positive_has_no_place_of_its_own(catalogue: Catalogue, rows: list[PreparedExample], kind: str) -> None:
    """Over rows and seeds the positive stands anywhere."""
    places = Counter(catalogue.candidates(row, kind, seed).position for row in rows for seed in range(50))
    assert set(places) == set(range(10))
    assert max(places.values()) < 60  # of 300, 30 are expected


@KINDS
def test_negatives_are_unseen_in_the_whole_data(catalogue: Catalogue, rows: list[PreparedExample], kind: str) -> None:
    """No negative is anything the user had, earlier or later."""
    for row in rows:
        had = {one.item for one in log() if one.user == row.example.user.id}
        for seed in range(10):
            one = catalogue.candidates(row, kind, seed)
            assert not had & {catalogue.item_ids[code] for code in one.negatives}


def test_dropped_rows_are_seen_rows(tmp_path: Path) -> None:
    """What the split dropped was still had: it is no negative."""
    late = Rated("u0", "i99", 5, 10_000.0)  # an item that train has not
    data = prepared(tmp_path / "out", [*log(), late], split="global-time", histories="prequential")
    catalogue = Catalogue.of(data)
    assert data.matrix("dropped").rows.size
    assert catalogue.item_codes["i99"] in catalogue.seen[catalogue.user_codes["u0"]]


def test_dropped_item_can_be_a_negative_of_others(tmp_path: Path) -> None:
    """An item is in the catalogue whoever had it."""
    data = prepared(tmp_path / "out", [*log(), Rated("u0", "i99", 5, 10_000.0)])
    assert "i99" in Catalogue.of(data).item_codes


@KINDS
def test_candidates_are_the_same_for_a_seed(catalogue: Catalogue, rows: list[PreparedExample], kind: str) -> None:
    """The seed decides, and another seed decides otherwise."""
    first, again, other = (catalogue.candidates(rows[0], kind, seed) for seed in (3, 3, 4))
    assert first == again
    assert first.items != other.items


def test_unknown_kind_is_refused(catalogue: Catalogue, rows: list[PreparedExample]) -> None:
    """There are two kinds of negatives, and no third is taken for one of them."""
    with pytest.raises(ConfigurationError, match="'hard'"):
        catalogue.candidates(rows[0], "hard", 0)


def test_too_small_a_catalogue_is_refused(tmp_path: Path) -> None:
    """Where fewer than nine items are unseen there are no ten candidates."""
    few = [attrs.evolve(one, item=f"i{turn}") for turn, one in enumerate(log()[::6])]
    data = prepared(tmp_path / "out", few)
    with pytest.raises(ConfigurationError, match="9 negatives are wanted"):
        Catalogue.of(data).candidates(data.examples("test")[0], "random", 0)


def test_record_has_ids_and_what_ease_saw(catalogue: Catalogue, rows: list[PreparedExample]) -> None:
    """What is written to disk names users and items by their ids, with the place of the positive."""
    one = catalogue.candidates(rows[0], "ease", 0)
    record = catalogue.record([one])
    assert record["sets"][0]["items"][one.position] == rows[0].example.item.id
    assert record["sets"][0]["user"] == rows[0].example.user.id
    assert record["ease"]["interactions"] == 36  # six of each user's eight


# EASE


def test_ease_learns_from_train_alone(tmp_path: Path, catalogue: Catalogue) -> None:
    """The targets change no score: where they are other items, EASE scores as before."""
    moved = [attrs.evolve(one, item="i99") if one.time and one.time >= 700 else one for one in log()]
    other = Catalogue.of(prepared(tmp_path / "out", moved))
    code = catalogue.user_codes["u0"]
    ours, theirs = (dict(scored(one, code)) for one in (catalogue, other))
    assert all(ours[name] == pytest.approx(theirs[name]) for name in ours.keys() & theirs.keys())


def scored(catalogue: Catalogue, user: int) -> list[tuple[str, float]]:
    """Items that EASE knows, and their scores."""
    scores = catalogue.model.scores(user)
    return [(catalogue.item_ids[code], float(scores[code])) for code in catalogue.model.kept]


def test_ease_scores_stand_in_the_order_of_the_candidates(catalogue: Catalogue, rows: list[PreparedExample]) -> None:
    """Each candidate has its own score; one that train has not has none."""
    one = catalogue.candidates(rows[0], "random", 0)
    scores = catalogue.model.scores(one.user)
    np.testing.assert_equal(catalogue.ease_scores(one), [scores[code] for code in one.items])


# Scores of a method


async def scores_of(
    data: Prepared,
    catalogue: Catalogue,
    rows: Sequence[PreparedExample],
    reader: Reader,
    profiler: Letters | None = None,
) -> list[list[float]]:
    """What the letters, or another method, score random candidates."""
    return await method_scores(
        data,
        rows,
        [catalogue.candidates(row, "random", 0) for row in rows],
        catalogue.item_ids,
        profiler or Letters(),
        reader,
        concurrency=4,
        step=lambda: None,
    )


async def test_scores_stand_at_their_candidates(
    data: Prepared, catalogue: Catalogue, rows: list[PreparedExample]
) -> None:
    """Each score is what was predicted for that candidate of that row."""
    reader = Reader(lambda user, item, profile: catalogue.item_codes[item.id] / ITEMS)
    found = await scores_of(data, catalogue, rows, reader)
    assert found == [[code / ITEMS for code in catalogue.candidates(row, "random", 0).items] for row in rows]


async def test_candidates_show_what_lies_strictly_before(
    data: Prepared, catalogue: Catalogue, rows: list[PreparedExample]
) -> None:
    """Evidence of a candidate is older than the target, and nothing of it is the user's own."""
    reader, checked = Reader(), 0
    await scores_of(data, catalogue, rows, reader)
    times = {row.example.user.id: row.example.at for row in rows}
    for user, item, _ in reader.seen:
        at = times[user.id]
        assert at is not None
        for one in item.evidence:
            checked += 1
            assert one.at is not None
            assert one.at < at
            assert one.user != user.id
    assert checked > 50


@pytest.mark.parametrize(("user", "seconds"), [("other", 0.0), ("own", -1000.0)])
async def test_leaking_candidate_ends_the_ranking(
    data: Prepared, catalogue: Catalogue, rows: list[PreparedExample], user: str, seconds: float
) -> None:
    """Evidence of the target's own moment, or of the user's own, is refused before any model is asked."""
    target = rows[0].example
    assert target.at is not None
    at = target.at + timedelta(seconds=seconds)

    @attrs.frozen
    class Leaky(Prepared):
        def items(self, requests: Iterable[ItemRequest]) -> list[Item]:
            one = target.user.id if user == "own" else user
            return [
                Item(each.item_id, (Interaction(user=one, item=each.item_id, rating=3.0, at=at),)) for each in requests
            ]

    reader = Reader()
    with pytest.raises(ConfigurationError, match=f"row {rows[0].row}: candidate"):
        await scores_of(Leaky(data.directory, data.manifest), catalogue, rows[:1], reader)
    assert not reader.seen


async def test_positive_shows_what_the_example_shows(
    data: Prepared, catalogue: Catalogue, rows: list[PreparedExample]
) -> None:
    """The positive is the very item that the rating was predicted for, so a ledger serves its profile again."""
    profiler = Letters()
    await scores_of(data, catalogue, rows, Reader(), profiler)
    assert {row.example.item for row in rows} <= {item for _, item in profiler.calls}


async def test_candidates_of_train_show_train_alone(tmp_path: Path) -> None:
    """For rows of train no candidate shows evidence of a later split, even where that is older."""
    early = [attrs.evolve(one, time=(one.time or 0) / 100) if one.user == "u0" else one for one in log()]
    data = prepared(tmp_path / "out", early, histories="prequential")
    catalogue, rows, reader = Catalogue.of(data), data.examples("train"), Reader()
    sets = [catalogue.candidates(row, "random", 0) for row in rows]
    await method_scores(
        data, rows, sets, catalogue.item_ids, Letters(), reader, split="train", concurrency=4, step=lambda: None
    )
    train = {(one.user, one.item) for one in log() if one.time is not None and one.time < 600}
    shown = {(one.user, one.item) for _, item, _ in reader.seen for one in item.evidence}
    assert shown
    assert shown <= train


async def test_failed_candidate_has_no_score(data: Prepared, catalogue: Catalogue, rows: list[PreparedExample]) -> None:
    """A profile or a prediction that fails leaves nan, and the other candidates their scores."""

    def picky(user: object, item: object, profile: object) -> float:
        if getattr(item, "id", "") == rows[1].example.item.id:
            raise ZeroDivisionError
        return 2.0

    found = await scores_of(
        data, catalogue, rows[:2], Reader(picky), Letters(failing=frozenset({rows[0].example.user.id}))
    )
    assert np.isnan(found[0]).all()
    assert np.isnan(found[1]).sum() == 1


async def test_raw_history_ranks_by_the_history(
    data: Prepared, catalogue: Catalogue, rows: list[PreparedExample]
) -> None:
    """A method without profiles shows each candidate beside the whole raw history."""
    reader = Reader()
    sets = [catalogue.candidates(rows[0], "random", 0)]
    await method_scores(
        data, rows[:1], sets, catalogue.item_ids, HistoryOnly(), reader, concurrency=1, step=lambda: None
    )
    assert {user for user, _, _ in reader.seen} == {rows[0].example.user}


# Figures


@pytest.mark.parametrize("position", range(10))
def test_equal_scores_are_the_random_floor(position: int) -> None:
    """All-equal scores give .100, .295 and .454 wherever the positive stands."""
    figures = ranking_figures([[3.0] * 10], [drawn(position)])
    found = [round(figures[f"ndcg@{k}"]["estimate"], 3) for k in (1, 5, 10)]
    assert found == [0.1, 0.295, 0.454]


def test_failed_row_is_the_random_floor_and_counted() -> None:
    """Where everything failed nothing is known, and how many failed is told."""
    figures = ranking_figures([[math.nan] * 10, [3.0] * 10], [drawn(), drawn()])
    assert figures["ndcg@10"]["estimate"] == pytest.approx(0.454, abs=5e-4)
    assert (figures["failed"], figures["candidates"], figures["rows"]) == (10, 20, 2)


def test_ranking_resamples_users_whole() -> None:
    """Three ranked rows of two users are two units, in every metric."""
    sets = [attrs.evolve(drawn(), user=user) for user in (4, 4, 7)]
    figures = ranking_figures([[5.0, *[1.0] * 9], [5.0, *[1.0] * 9], [1.0, *[5.0] * 9]], sets)
    intervals = [one for one in figures.values() if isinstance(one, dict)]
    assert len(intervals) == 7
    assert {one["units"] for one in intervals} == {2}


def test_positive_first_is_perfect_and_last_is_not() -> None:
    """The first place is worth 1 everywhere; the last is worth nothing at 1 and 5."""
    best = ranking_figures([[5.0, *[1.0] * 9]], [drawn()])
    worst = ranking_figures([[1.0, *[5.0] * 9]], [drawn()])
    assert [best[name]["estimate"] for name in ("ndcg@1", "ndcg@10", "hit@1", "mrr")] == [1, 1, 1, 1]
    assert [worst[name]["estimate"] for name in ("ndcg@1", "ndcg@5", "hit@5")] == [0, 0, 0]
    assert worst["mrr"]["estimate"] == pytest.approx(0.1)
