"""Profiles made and judged, with the true pairing and with broken ones."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import anyio.lowlevel
import numpy as np
import pytest
from evaluations import Letters, Reader, log, prepared, text_of
from hypothesis import given
from hypothesis import strategies as st

from duet import Item, JointProfile, Profile, Rating, RatingError, Usage, User
from duet_train.baselines import HistoryOnly
from duet_train.data.prepared import Prepared, PreparedExample
from duet_train.judging import Judgement, derangement, in_order, judge, raw_user, rejudge
from duet_train.scoring import Gold, personal_figures

pytestmark = pytest.mark.anyio

keys = st.lists(st.sampled_from("abcdefg"), max_size=30)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Six test rows, one a user."""
    return prepared(tmp_path_factory.mktemp("judging") / "out")


@pytest.fixture(scope="module")
def rows(data: Prepared) -> list[PreparedExample]:
    """All test rows."""
    return data.examples("test")


async def judged(rows: list[PreparedExample], profiler: Letters, reader: Reader, seed: int = 1) -> Judgement:
    """What becomes of the rows."""
    return await judge(rows, profiler, reader, concurrency=3, seed=seed)


# Derangements


@given(keys, st.integers(0, 99))
def test_derangement_is_a_permutation(keys: list[str], seed: int) -> None:
    """Every row is the partner of exactly one row, whatever the keys."""
    assert sorted(derangement(keys, seed)) == list(range(len(keys)))


@given(keys, st.integers(0, 99))
def test_no_row_meets_its_own_key(keys: list[str], seed: int) -> None:
    """Where no key has more than half of the rows, every partner has another key."""
    if max(Counter(keys).values(), default=0) * 2 <= len(keys):
        assert all(keys[row] != keys[partner] for row, partner in enumerate(derangement(keys, seed)))


@given(keys, st.integers(0, 99))
def test_as_many_meet_their_own_key_as_must(keys: list[str], seed: int) -> None:
    """A key of more than half of the rows meets itself only where the others run out."""
    most = max(Counter(keys).values(), default=0)
    met = sum(keys[row] == keys[partner] for row, partner in enumerate(derangement(keys, seed)))
    assert met == max(0, 2 * most - len(keys))


@given(keys, st.integers(0, 99))
def test_derangement_is_the_same_for_a_seed(keys: list[str], seed: int) -> None:
    """The seed decides."""
    assert derangement(keys, seed) == derangement(keys, seed)


def test_other_seeds_give_other_derangements() -> None:
    """Partners are not always the same rows."""
    assert len({tuple(derangement(list("abcdefgh"), seed)) for seed in range(20)}) > 10


# Work in order


@pytest.mark.parametrize("concurrency", [1, 4, 50])
async def test_results_come_in_the_order_of_the_values(concurrency: int) -> None:
    """Whatever finishes first, results stand where their values stood, and each counts one step."""
    steps = []

    async def later_first(value: int) -> int:
        for _ in range(20 - value):
            await anyio.lowlevel.checkpoint()
        return value * value

    found = await in_order(later_first, range(20), concurrency, lambda: steps.append(1))
    assert found == [value * value for value in range(20)]
    assert len(steps) == 20


async def test_concurrency_is_a_bound(rows: list[PreparedExample]) -> None:
    """No more than so many predictions are under way at once, and that many are."""
    reader = Reader()
    await judge(rows, Letters(), reader, concurrency=3, seed=0)
    assert reader.most_under_way == 3


async def test_no_rows_are_no_work() -> None:
    """Nothing to judge is judged to nothing."""
    found = await judge([], Letters(), Reader(), concurrency=3, seed=0)
    assert (len(found.made), found.predicted.size) == (0, 0)


# Judging


async def test_row_is_one_profile_and_three_predictions(rows: list[PreparedExample]) -> None:
    """Each row is profiled once and predicted three times, and counts four steps."""
    profiler, reader, steps = Letters(), Reader(), [0]
    await judge(rows, profiler, reader, concurrency=2, seed=0, step=lambda: steps.append(1))
    assert (len(profiler.calls), len(reader.seen), sum(steps)) == (6, 18, 24)


async def test_predictions_stand_in_the_order_of_the_rows(rows: list[PreparedExample]) -> None:
    """The prediction of a row stands at its place."""
    reader = Reader(lambda user, item, profile: 1 + int(text_of(profile)[-1]) % 5)
    found = await judged(rows, Letters(), reader)
    assert found.predicted.tolist() == [1 + int(row.example.user.id[-1]) % 5 for row in rows]


async def test_method_sees_the_rows_for_the_profile(rows: list[PreparedExample]) -> None:
    """A method is given the user of the profile, and the item with its evidence."""
    profiler = Letters()
    await judged(rows, profiler, Reader())
    assert set(profiler.calls) == {(row.profile_user, row.example.item) for row in rows}


async def test_reason_of_each_kind_of_failure_is_kept(rows: list[PreparedExample]) -> None:
    """Of the errors of this package the first of a kind is quoted on one line, of any other only the name is known."""

    def answer(user: User, item: Item, profile: JointProfile) -> float:
        if user.id == "u1":
            raise KeyError("somebody's secret")
        raise RatingError(f"no\nrating for {user.id}")

    found = await judge(rows, Letters(), Reader(answer), concurrency=1, seed=0)
    users = [row.recent_user.id for row in rows]
    assert Counter(found.errors) == {"RatingError": 5, "KeyError": 1}
    assert found.reasons == {"RatingError": f"no rating for {next(user for user in users if user != 'u1')}"}


async def test_failed_profile_fails_all_three_predictions_of_its_row(rows: list[PreparedExample]) -> None:
    """A row without a profile has no prediction, and the error's name."""
    lost = rows[2].example.user.id
    found = await judged(rows, Letters(failing=frozenset({lost})), Reader())
    assert np.isnan([found.predicted[2], found.shuffled_users[2], found.shuffled_items[2]]).all()
    assert found.errors == ["", "", "LookupError", "", "", ""]


async def test_failed_profile_fails_whom_it_was_shuffled_to(rows: list[PreparedExample]) -> None:
    """With broken pairings two rows lack a text: the one it belongs to, and the one that was to get it."""
    found = await judged(rows, Letters(failing=frozenset({rows[2].example.user.id})), Reader())
    for broken in (found.shuffled_users, found.shuffled_items):
        assert math.isnan(broken[2])
        assert np.isnan(broken).sum() == 2


@pytest.mark.parametrize(
    ("answer", "name"),
    [(ZeroDivisionError("no"), "ZeroDivisionError"), (math.nan, "RecordError"), (math.inf, "RecordError")],
)
async def test_failed_recommender_is_no_rating(
    rows: list[PreparedExample], answer: float | Exception, name: str
) -> None:
    """A recommender that raises, or returns no finite number, leaves nan and the error's name."""

    def say(*shown: object) -> float:
        if isinstance(answer, Exception):
            raise answer
        return answer

    found = await judged(rows, Letters(), Reader(say))
    assert np.isnan([found.predicted, found.shuffled_users, found.shuffled_items]).all()
    assert list(found.errors) == [name] * 6


async def test_profile_error_is_named_before_the_recommender(rows: list[PreparedExample]) -> None:
    """Where both fail, the profile's error is the one to know of."""

    def broken(*shown: object) -> float:
        raise ZeroDivisionError

    found = await judged(rows, Letters(failing=frozenset({"u0"})), Reader(broken))
    assert Counter(found.errors) == {"LookupError": 1, "ZeroDivisionError": 5}


async def test_predictions_are_clipped_to_the_scale(rows: list[PreparedExample]) -> None:
    """A recommender that leaves the scale is taken at its end."""
    assert set((await judged(rows, Letters(), Reader(lambda *shown: 9.0))).predicted) == {5.0}


async def test_rating_record_and_number_are_alike(rows: list[PreparedExample]) -> None:
    """A recommender may return a `Rating` or a number."""

    class Record:
        async def predict(self, *shown: object) -> Rating:
            await anyio.lowlevel.checkpoint()
            return Rating(2.5)

    found = await judge(rows, Letters(), Record(), concurrency=1, seed=0)
    assert set(found.predicted) == {2.5}


async def test_usage_is_that_of_all_profiles(rows: list[PreparedExample]) -> None:
    """Tokens of all profiles are added up; a failed one brings none."""
    found = await judged(rows, Letters(failing=frozenset({"u0"})), Reader())
    assert found.usage == Usage(50, 20, cached_tokens=25)


async def test_other_recommender_judges_the_same_profiles(rows: list[PreparedExample]) -> None:
    """A second recommender is given the very profiles and pairings of the first, and none is made anew."""
    profiler, first, second = Letters(), Reader(), Reader(lambda *shown: 1.0)
    before = await judged(rows, profiler, first)
    after = await rejudge(rows, before, second, concurrency=1, seed=1)
    assert len(profiler.calls) == 6
    assert after.made is before.made
    assert set(second.seen) == set(first.seen)
    assert set(after.predicted) == {1.0}


# Broken pairings


async def test_other_user_brings_nothing_of_the_own_one(rows: list[PreparedExample]) -> None:
    """With shuffled users the raw rows and the user's text are the partner's, and item and title are the row's."""
    for row, (user, item, profile) in zip(rows, await shuffled(rows, 1), strict=True):
        own = row.example.user.id
        assert user.id != own
        assert text_of(profile) == f"user {user.id}"
        assert all(one.user == user.id for one in user.history)
        assert item == row.example.item
        assert profile.item == Profile(text=f"item {item.id}")


async def test_other_item_brings_its_text_alone(rows: list[PreparedExample]) -> None:
    """With shuffled items only the item's text is another's: user, raw rows and title are the row's own."""
    for row, (user, item, profile) in zip(rows, await shuffled(rows, 2), strict=True):
        assert (user, item) == (row.recent_user, row.example.item)
        assert text_of(profile) == f"user {user.id}"
        assert profile.item is not None
        assert profile.item.text not in ("", f"item {item.id}")


async def shuffled(rows: list[PreparedExample], which: int) -> list[tuple[User, Item, JointProfile]]:
    """What the recommender saw: 0 of the true pairing, 1 with other users, 2 with other items; row by row."""
    reader = Reader()
    await judge(rows, Letters(), reader, concurrency=1, seed=1)
    return reader.seen[6 * which : 6 * which + 6]


async def test_raw_history_is_shuffled_too(rows: list[PreparedExample]) -> None:
    """A method without profiles shows a shuffled row the partner's raw history."""
    reader = Reader()
    await judge(rows, HistoryOnly(), reader, concurrency=1, seed=1)
    true, other = reader.seen[:6], reader.seen[6:12]
    assert [user for user, _, _ in true] == [row.example.user for row in rows]
    assert all(user.id != row.example.user.id and user.history for row, (user, _, _) in zip(rows, other, strict=True))


async def test_personal_world_is_found_personal(tmp_path: Path) -> None:
    """Where the letter in the user's profile decides the rating, the true pairing beats the shuffled one."""
    data = prepared(tmp_path / "out", log(lambda user, turn: 1 + user % 5))
    rows = [row for _ in range(3) for row in data.examples("test")]
    reader = Reader(lambda user, item, profile: 1 + int(text_of(profile)[-1]) % 5)
    figures = await personal(rows, reader)
    assert figures["personal"] is True
    assert figures["users"]["difference"]["low"] > 0
    assert figures["items"]["difference"]["estimate"] == 0


async def test_usual_rating_is_found_impersonal(tmp_path: Path) -> None:
    """Where every profile leads to the same rating, both gains are exactly 0 and nothing is personal."""
    figures = await personal(prepared(tmp_path / "out").examples("test"), Reader(lambda *shown: 4.0))
    for name in ("users", "items"):
        difference = figures[name]["difference"]
        assert (difference["estimate"], difference["low"], difference["high"]) == (0, 0, 0)
    assert figures["personal"] is False


async def test_world_of_items_is_not_personal(tmp_path: Path) -> None:
    """A method that reads the item's profile alone gains over other items, and is not personal."""
    rows = prepared(tmp_path / "out", log(lambda user, turn: 1 + user % 5)).examples("test")
    ratings = {f"item {row.example.item.id}": row.example.rating for row in rows}
    reader = Reader(lambda user, item, profile: ratings[profile.item.text] if profile.item else 0.0)
    figures = await personal(rows, reader)
    assert figures["items"]["difference"]["estimate"] > 0
    assert figures["personal"] is False


async def personal(rows: list[PreparedExample], reader: Reader) -> dict[str, Any]:
    """The figures of the letters before a recommender."""
    one = await judged(rows, Letters(), reader)
    gold = Gold(
        ratings=np.array([row.example.rating for row in rows]),
        users=[row.example.user.id for row in rows],
        scale=rows[0].example.scale,
        history_lengths=np.ones(len(rows), dtype=np.int64),
        variances=np.zeros(len(rows)),
        median=3.0,
    )
    return personal_figures(gold, one.predicted, one.shuffled_users, one.shuffled_items)


# Raw rows beside a profile

BARE, WRITTEN = JointProfile(), JointProfile(user=Profile(text="words"))


def test_history_alone_is_shown_whole(rows: list[PreparedExample]) -> None:
    """Where nothing was set apart, a method without profiles shows the history, and others show none."""
    assert raw_user(rows[0], BARE) == rows[0].example.user
    assert raw_user(rows[0], WRITTEN).history == ()


def test_recent_rows_are_shown_beside_any_profile(tmp_path: Path) -> None:
    """What was set apart is what the recommender reads, with a profile and without, and no profile reads it."""
    for row in prepared(tmp_path / "out", history=3, recent=2).examples("test"):
        times = [[one.at for one in user.history] for user in (row.profile_user, row.recent_user)]
        assert [len(each) for each in times] == [3, 2]
        assert raw_user(row, BARE) == raw_user(row, WRITTEN) == row.recent_user
        assert not set(times[0]) & set(times[1])


async def test_profile_of_a_window_never_sees_the_recent_rows(tmp_path: Path) -> None:
    """With rows set apart the method is given only those before them, the recommender only them."""
    profiler, reader = Letters(), Reader()
    rows = prepared(tmp_path / "out", history=3, recent=2).examples("test")
    await judge(rows, profiler, reader, concurrency=1, seed=0)
    for row, (written, _), (raw, _, _) in zip(rows, profiler.calls, reader.seen[:6], strict=True):
        assert [*written.history, *raw.history] == list(row.example.user.history)
        assert len(raw.history) == 2
