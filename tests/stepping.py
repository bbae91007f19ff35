"""Does something at the n-th point where a task waits, whichever task of the event loop that is."""

from __future__ import annotations

import asyncio
import contextlib
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from typing import Any, TypeVar

import anyio
import trio

T = TypeVar("T")


class Steps:
    """Counts how often a task has come to wait, and calls once at the n-th time."""

    def __init__(self) -> None:
        self._left = 0
        self._call: Callable[[], None] | None = None

    def call_at(self, number: int, call: Callable[[], None]) -> None:
        """Count anew."""
        self._left, self._call = number, call

    def came(self) -> bool:
        """Whether it came to that; from now on nothing is called."""
        came, self._call = self._call is None, None
        return came

    def step(self) -> None:
        """A task waits."""
        if self._call is not None:
            self._left -= 1
            if self._left <= 0:
                call, self._call = self._call, None
                call()


@contextlib.contextmanager
def counted_steps() -> Iterator[Steps]:
    """Count the steps of all tasks that are started in the block."""
    steps = Steps()
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        instrument = _Instrument(steps)
        trio.lowlevel.add_instrument(instrument)
        yield steps
        trio.lowlevel.remove_instrument(instrument)
        return

    def factory(loop: asyncio.AbstractEventLoop, task: Coroutine[Any, Any, Any], **more: Any) -> asyncio.Task[Any]:
        return asyncio.Task(_stepped(task, steps), loop=loop, **more)

    before = loop.get_task_factory()
    loop.set_task_factory(factory)  # type: ignore[arg-type]  # it takes what a loop gives
    yield steps
    loop.set_task_factory(before)


async def cancelled(steps: Steps, number: int, call: Callable[[], Awaitable[T]]) -> T | None:
    """What a call returns though it is cancelled where it waits for the n-th time; None where it did not."""
    found: T | None = None

    async def run() -> None:
        nonlocal found
        with anyio.CancelScope() as scope:
            steps.call_at(number, scope.cancel)
            found = await call()
        assert scope.cancelled_caught == (found is None)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
    return found


class _Instrument(trio.abc.Instrument):
    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._steps.step()


async def _stepped(task: Coroutine[Any, Any, Any], steps: Steps) -> Any:
    return await _driven(task, steps)


@types.coroutine
def _driven(task: Coroutine[Any, Any, Any], steps: Steps) -> Generator[Any, Any, Any]:
    """Run a coroutine as `await` would, and count each time that it waits."""
    resume: Callable[[Any], Any] = task.send
    given: Any = None
    while True:
        try:
            waits_for = resume(given)
        except StopIteration as exc:
            return exc.value
        steps.step()
        try:
            resume, given = task.send, (yield waits_for)
        except BaseException as exc:
            resume, given = task.throw, exc
