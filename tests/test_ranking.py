"""Ranking: each candidate with its profile and prediction, as many out as went in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio import wait_all_tasks_blocked

from duet import (
    Candidate,
    ConfigurationError,
    EndpointUnavailable,
    HTTPEndpoint,
    Item,
    JointProfile,
    JointProfiler,
    LLMRecommender,
    MalformedCompletion,
    Message,
    Rating,
    RatingError,
    Recommender,
    Sampling,
    User,
    rank,
)
from duet.testing import Answer, ConstantRecommender, FakeServer, ScriptedEndpoint, completion_text

pytestmark = pytest.mark.anyio

USER = User("ann")
TEXT = completion_text()


def items_of(count: int) -> list[Item]:
    """Items told apart by id and title."""
    return [Item(f"i{number}", title=f"T{number}") for number in range(count)]


def titled(messages: Sequence[Message], sampling: Sampling) -> str:
    """A profile that repeats the title of the item that was asked for."""
    title = next(line for line in messages[1]["content"].splitlines() if line.startswith("title: "))
    return completion_text(item_profile=title)


class Judge:
    """A recommender made of a function of the item."""

    def __init__(self, judge: Callable[[Item], Any]) -> None:
        self._judge = judge

    async def predict(self, user: User, item: Item, profile: JointProfile | None) -> Rating | float:
        await anyio.lowlevel.checkpoint()
        predicted: Rating | float = self._judge(item)
        return predicted


async def ranked(
    candidates: Any, *, answer: Any = TEXT, recommender: Recommender | None = None, concurrency: int = 4
) -> list[Candidate]:
    """Every candidate in the order of the input."""
    profiler = JointProfiler(ScriptedEndpoint(answer))
    judge = recommender or ConstantRecommender(3.0)
    async with rank(USER, candidates, profiler=profiler, recommender=judge, concurrency=concurrency) as found:
        return sorted([candidate async for candidate in found], key=lambda candidate: candidate.index)


async def _async_source(items: Sequence[Item]) -> AsyncIterator[Item]:
    for item in items:
        yield item


@pytest.mark.parametrize("source", [list, iter, _async_source], ids=["list", "iterator", "async generator"])
@pytest.mark.parametrize("count", [0, 1, 17])
async def test_as_many_candidates_as_items(source: Callable[[list[Item]], Any], count: int) -> None:
    """Every item, from any kind of iterable, becomes one candidate with its index."""
    items = items_of(count)
    found = await ranked(source(items))
    assert [(candidate.index, candidate.item) for candidate in found] == list(enumerate(items))


async def test_same_item_twice_is_two_candidates() -> None:
    """Candidates are counted by place, not by id."""
    assert [candidate.index for candidate in await ranked([Item("i"), Item("i")])] == [0, 1]


async def test_candidate_has_the_profile_of_its_own_item() -> None:
    """Profile and rating belong to the item they stand beside."""
    recommender = Judge(lambda item: float(item.id[1:]))
    found = await ranked(items_of(5), answer=titled, recommender=recommender)
    seen = [
        (one.profile.item.text, one.rating.value) for one in found if one.profile and one.profile.item and one.rating
    ]
    assert seen == [(f"title: T{number}", number) for number in range(5)]


async def test_candidates_come_as_they_finish() -> None:
    """A candidate that is slow does not hold back those after it."""
    slow = anyio.Event()

    class Waiting:
        async def predict(self, user: User, item: Item, profile: JointProfile | None) -> float:
            if item.id == "i0":
                await slow.wait()
            return 3.0

    order = []
    profiler = JointProfiler(ScriptedEndpoint(TEXT))
    async with rank(USER, items_of(4), profiler=profiler, recommender=Waiting(), concurrency=2) as found:
        async for candidate in found:
            order.append(candidate.index)
            if len(order) == 3:
                slow.set()
    assert order == [1, 2, 3, 0]


@pytest.mark.parametrize("predicted", [4, 4.0, Rating(4.0)])
async def test_prediction_may_be_a_plain_number(predicted: Rating | float) -> None:
    """A recommender of the caller's own may return a number; the candidate has a Rating."""
    (candidate,) = await ranked(items_of(1), recommender=Judge(lambda item: predicted))
    assert candidate.rating == Rating(4.0)


@pytest.mark.parametrize("predicted", [None, "high", float("nan")])
async def test_prediction_that_is_no_number_is_an_error(predicted: Any) -> None:
    """What is no finite number is the candidate's error, never a rating."""
    (candidate,) = await ranked(items_of(1), recommender=Judge(lambda item: predicted))
    assert (type(candidate.error), candidate.rating) == (RatingError, None)


@pytest.mark.parametrize(
    ("failure", "kind"), [(EndpointUnavailable("down"), EndpointUnavailable), ("nonsense", MalformedCompletion)]
)
async def test_failing_profile_is_the_candidates_error(failure: Exception | str, kind: type[Exception]) -> None:
    """A candidate whose profile fails has an error and no rating, while the others have theirs."""
    found = await ranked(items_of(3), answer=[TEXT, failure, TEXT], concurrency=1)
    assert [type(candidate.error) for candidate in found] == [type(None), kind, type(None)]
    assert [candidate.rating is None for candidate in found] == [False, True, False]


async def test_failing_prediction_keeps_the_profile() -> None:
    """A candidate whose prediction fails keeps its profile beside the error."""

    def judge(item: Item) -> float:
        raise RatingError("no idea")

    (candidate,) = await ranked(items_of(1), recommender=Judge(judge))
    assert (candidate.profile is not None, candidate.rating, type(candidate.error)) == (True, None, RatingError)


async def test_failing_profile_costs_no_prediction() -> None:
    """Where there is no profile, the recommender is not asked."""
    recommender = ConstantRecommender(3.0)
    await ranked(items_of(3), answer="nonsense", recommender=recommender)
    assert recommender.calls == 0


async def test_leaving_early_cancels_what_is_under_way() -> None:
    """Whoever leaves early cuts off every request under way."""
    async with FakeServer(Answer(fault="hang")) as server, HTTPEndpoint(server.base_url, "fake") as endpoint:
        profiler, recommender = JointProfiler(endpoint), LLMRecommender(endpoint)
        async with rank(USER, items_of(9), profiler=profiler, recommender=recommender, concurrency=3):
            with anyio.fail_after(10):
                while server.in_flight < 3:  # noqa: ASYNC110 - what is waited for happens behind a socket
                    await anyio.sleep(0.002)
        await server.wait_disconnects(3)
    assert (server.disconnects, server.peak_in_flight) == (3, 3)


async def test_slow_consumer_holds_back_the_source() -> None:
    """While the consumer rests, the source has been asked for what was taken and `concurrency` more."""
    drawn = 0

    def source() -> Iterator[Item]:
        nonlocal drawn
        for item in items_of(100):
            drawn += 1
            yield item

    profiler, recommender = JointProfiler(ScriptedEndpoint(TEXT)), ConstantRecommender(3.0)
    async with rank(USER, source(), profiler=profiler, recommender=recommender, concurrency=5) as found:
        await anext(found)
        await wait_all_tasks_blocked()
        assert drawn == 6


async def test_concurrency_below_one_is_refused() -> None:
    """Ranking needs a concurrency of one at least."""
    with pytest.raises(ConfigurationError, match="concurrency"):
        await ranked(items_of(1), concurrency=0)
