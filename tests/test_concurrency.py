"""The bounded map behind everything plural: what it hands over, what it draws, and how it ends."""

from __future__ import annotations

import functools
import itertools
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from stepping import cancelled, counted_steps

from duet import ConfigurationError
from duet._concurrency import map_unordered

pytestmark = pytest.mark.anyio

Source = Iterable[int] | AsyncIterable[int]


class AsyncRange:
    """An async iterable that takes a moment for each value."""

    def __init__(self, stop: int) -> None:
        self._values = iter(range(stop))

    def __aiter__(self) -> AsyncIterator[int]:
        return self

    async def __anext__(self) -> int:
        await checkpoint()
        for value in self._values:
            return value
        raise StopAsyncIteration


class Drawn:
    """A source that counts what was drawn from it, and has no end unless it is given one."""

    def __init__(self, stop: int = 10**9, failure: BaseException | None = None) -> None:
        self.count = 0
        self._stop = stop
        self._failure = failure

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        if self.count >= self._stop:
            raise self._failure or StopIteration
        self.count += 1
        return self.count - 1


class Gauge:
    """A function that counts how many of its calls are under way."""

    def __init__(self, moments: int = 3) -> None:
        self.now = self.most = self.cancelled = 0
        self._moments = moments

    async def __call__(self, index: int, value: int) -> int:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await pause(self._moments)
        except BaseException:
            self.cancelled += 1
            raise
        finally:
            self.now -= 1
        return value


async def pair(index: int, value: Any) -> tuple[int, Any]:
    return index, value


async def staggered(index: int, value: int) -> int:
    await pause(value % 5)
    return value


async def never(index: int, value: int) -> int:
    await anyio.sleep_forever()
    return value


async def pause(moments: int) -> None:
    for _ in range(moments):
        await checkpoint()


async def settle() -> None:
    """Let everything run that can."""
    await anyio.wait_all_tasks_blocked()


async def settle_started(gauge: Gauge) -> None:
    """Wait until four calls are under way."""
    while gauge.now < 4:
        await checkpoint()


async def raise_in_block(gauge: Gauge, error: BaseException) -> None:
    """Raise `error` in a block that has four calls under way."""
    async with map_unordered(gauge, range(9), 4):
        await settle_started(gauge)
        raise error


async def collect(function: Callable[[int, Any], Awaitable[Any]], source: Any, concurrency: int) -> list[Any]:
    async with map_unordered(function, source, concurrency) as results:
        return [result async for result in results]


# Results


SOURCES: list[Callable[[], Source]] = [
    lambda: range(20),
    lambda: list(range(20)),
    lambda: iter(range(20)),
    lambda: (value for value in range(20)),
    lambda: AsyncRange(20),
]


@pytest.mark.parametrize("make", SOURCES, ids=["range", "list", "iterator", "generator", "async"])
@pytest.mark.parametrize("concurrency", [1, 3, 20, 1000])
async def test_every_value_gives_one_result(make: Callable[[], Source], concurrency: int) -> None:
    """Any source gives one result for each of its values, whatever the concurrency."""
    assert sorted(await collect(staggered, make(), concurrency)) == list(range(20))


@pytest.mark.parametrize("source", [(), [], iter(()), AsyncRange(0)], ids=lambda source: type(source).__name__)
async def test_empty_source_gives_no_results(source: Source) -> None:
    """A source without values gives no results, and the iteration ends."""
    assert await collect(staggered, source, 4) == []


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_index_is_the_place_in_the_source(concurrency: int) -> None:
    """The function is given each value with its place in the source, from 0."""
    assert sorted(await collect(pair, "abcdefgh", concurrency)) == list(enumerate("abcdefgh"))


async def test_results_come_as_they_finish() -> None:
    """A quick value's result does not wait for a slow one's."""
    assert await collect(staggered, [4, 0], 2) == [0, 4]


async def test_concurrency_of_one_keeps_the_order() -> None:
    """With one value under way at a time, results come in the order of the source."""
    assert await collect(staggered, range(12), 1) == list(range(12))


@given(st.lists(st.integers(0, 9), max_size=15), st.integers(1, 20), st.sampled_from(["asyncio", "trio"]))
@settings(deadline=None, max_examples=40)
def test_results_are_those_of_the_values(values: list[int], concurrency: int, backend: str) -> None:
    """The results are the function's, one a value, for any values, any concurrency and either backend."""
    assert sorted(anyio.run(collect, staggered, values, concurrency, backend=backend)) == sorted(values)


async def test_iteration_that_ended_stays_ended() -> None:
    """Iterating again after the end gives nothing."""
    async with map_unordered(staggered, range(3), 2) as results:
        first = [result async for result in results]
        assert (len(first), [result async for result in results]) == (3, [])


# Bounds


@pytest.mark.parametrize("concurrency", [1, 2, 7])
async def test_no_more_calls_are_under_way_than_allowed(concurrency: int) -> None:
    """Never more than `concurrency` calls are under way."""
    gauge = Gauge(30)
    await collect(gauge, range(40), concurrency)
    assert gauge.most == concurrency


@pytest.mark.parametrize("concurrency", [1, 2, 7])
async def test_slow_consumer_holds_back_the_source(concurrency: int) -> None:
    """Never more than `concurrency` values are drawn and not yet handed over."""
    drawn, ahead = Drawn(), []
    async with map_unordered(staggered, drawn, concurrency) as results:
        for handed_over in range(6):
            await settle()
            ahead.append(drawn.count - handed_over)
            await anext(results)
    assert max(ahead) == concurrency


async def test_async_source_is_drawn_by_one_task_at_a_time() -> None:
    """An async generator, which cannot be drawn from twice at once, will do as a source."""

    async def generator() -> AsyncIterator[int]:
        for value in range(20):
            await pause(2)
            yield value

    assert sorted(await collect(staggered, generator(), 5)) == list(range(20))


async def test_nothing_is_drawn_before_the_block() -> None:
    """Making the map draws nothing."""
    drawn = Drawn()
    map_unordered(staggered, drawn, 4)
    await settle()
    assert drawn.count == 0


async def test_few_values_start_few_tasks() -> None:
    """With huge concurrency the number of tasks is that of the values."""
    async with map_unordered(never, range(3), 10**9):
        await settle()
        waiting = [task for task in anyio.get_running_tasks() if "map_unordered" in (task.name or "")]
    assert len(waiting) <= 4


@pytest.mark.parametrize("concurrency", [0, -1])
async def test_concurrency_below_one_is_refused(concurrency: int) -> None:
    """A concurrency that lets nothing happen is refused on entering the block."""
    with pytest.raises(ConfigurationError, match=f"got {concurrency}"):
        async with map_unordered(staggered, [1], concurrency):
            pass


# Errors


@pytest.mark.parametrize("concurrency", [1, 3, 100])
async def test_error_of_the_source_comes_after_the_results_before_it(concurrency: int) -> None:
    """An error of the source is raised to the consumer, after the results of all values before it."""
    async with map_unordered(staggered, Drawn(7, OSError("disk")), concurrency) as results:
        found = [await anext(results) for _ in range(7)]
        with pytest.raises(OSError, match="disk"):
            await anext(results)
    assert sorted(found) == list(range(7))


async def test_error_of_an_async_source_is_raised() -> None:
    """An error of an async source is raised as it is."""

    class Broken(AsyncRange):
        async def __anext__(self) -> int:
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        await collect(staggered, Broken(1), 4)


async def test_error_of_the_source_leaves_the_block_as_it_is() -> None:
    """An error of the source that is not caught in the block leaves it unwrapped."""
    error = OSError("disk")
    with pytest.raises(OSError, match="disk") as caught:
        await collect(staggered, Drawn(3, error), 4)
    assert caught.value is error


@pytest.mark.parametrize("error", [ValueError("mine"), KeyError("mine"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
async def test_exception_of_the_block_leaves_as_it_is(error: BaseException) -> None:
    """The block's own exception leaves it unwrapped, while values are under way."""
    gauge = Gauge(10**6)
    with pytest.raises(type(error)) as caught:
        await raise_in_block(gauge, error)
    assert caught.value is error


async def test_exception_of_the_block_cancels_what_is_under_way() -> None:
    """No call is left under way when the block raises."""
    gauge = Gauge(10**6)
    with pytest.raises(ValueError, match="mine"):
        await raise_in_block(gauge, ValueError("mine"))
    assert (gauge.now, gauge.cancelled) == (0, 4)


# Leaving


async def test_leaving_early_cancels_what_is_under_way() -> None:
    """Leaving the block cancels every call that is under way."""
    gauge = Gauge(10**6)
    async with map_unordered(gauge, range(9), 4):
        await settle_started(gauge)
    assert (gauge.now, gauge.cancelled) == (0, 4)


async def test_leaving_early_stops_drawing() -> None:
    """Leaving the block after the first result leaves the rest of an endless source alone."""
    drawn = Drawn()
    async with map_unordered(staggered, drawn, 4) as results:
        await anext(results)
    assert drawn.count <= 1 + 4


async def test_leaving_early_closes_a_generator() -> None:
    """An async generator handed over as the source is closed when the block is left, not whenever it is collected."""
    closed: list[bool] = []

    async def generator() -> AsyncIterator[int]:
        try:
            for value in range(99):
                yield value
        finally:
            closed.append(True)

    async with map_unordered(staggered, generator(), 4) as results:
        await anext(results)
    assert closed == [True]


async def test_leaving_early_leaves_any_other_source_open() -> None:
    """What is no generator stays as it is, and can be drawn from afterwards."""
    source = AsyncRange(99)
    async with map_unordered(staggered, source, 1) as results:
        await anext(results)
    assert await anext(source) in (1, 2)


async def test_leaving_without_iterating_is_fine() -> None:
    """A block that reads nothing ends without an error."""
    async with map_unordered(staggered, range(9), 4):
        pass


async def test_break_out_of_the_loop_is_fine() -> None:
    """Breaking out of the loop ends the block without an error."""
    async with map_unordered(staggered, Drawn(), 4) as results:
        async for result in results:
            if result == 6:
                break


async def test_cancellation_from_outside_ends_the_block() -> None:
    """Cancelling the scope around the block cancels the calls under way and leaves the block."""
    gauge = Gauge(10**6)
    with anyio.CancelScope() as scope:
        async with map_unordered(gauge, range(9), 4) as results:
            await settle_started(gauge)
            scope.cancel()
            await anext(results)
    assert (scope.cancelled_caught, gauge.now, gauge.cancelled) == (True, 0, 4)


async def test_cancellation_reaches_a_waiting_source() -> None:
    """Cancelling the scope around the block ends the wait for a source that never answers."""

    class Silent(AsyncRange):
        async def __anext__(self) -> int:
            await anyio.sleep_forever()
            raise AssertionError

    with anyio.CancelScope() as scope:
        async with map_unordered(staggered, Silent(1), 4):
            await settle()
            scope.cancel()
            await checkpoint()
    assert scope.cancelled_caught


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_cancelled_map_never_looks_complete(backend: str) -> None:
    """Wherever a map is cancelled, its reader is cancelled too, and does not see the end of the results instead."""

    async def trial(number: int) -> tuple[list[int] | None, bool]:
        with counted_steps() as steps:
            found = await cancelled(steps, number, functools.partial(collect, staggered, range(4), 3))
            return found, steps.came()

    for number in itertools.count(1):
        found, came = anyio.run(trial, number, backend=backend)
        assert found is None or sorted(found) == list(range(4))
        if not came:
            break
    assert number > 20


async def test_maps_may_be_nested() -> None:
    """A map may be driven inside the block of another one."""
    async with map_unordered(staggered, range(3), 2) as outer:
        sums = [sum(await collect(staggered, range(number + 1), 2)) async for number in outer]
    assert sorted(sums) == [0, 1, 3]


async def test_results_of_one_map_may_feed_another() -> None:
    """The results of one map are a source for another."""
    async with map_unordered(staggered, range(9), 3) as first:
        assert sorted(await collect(staggered, first, 3)) == list(range(9))
