"""The bounded, back-pressured map behind everything plural."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

import anyio
from anyio.lowlevel import checkpoint_if_cancelled

from duet._errors import ConfigurationError

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

T = TypeVar("T")
R = TypeVar("R")


@asynccontextmanager
async def map_unordered(
    function: Callable[[int, T], Awaitable[R]], source: Iterable[T] | AsyncIterable[T], concurrency: int
) -> AsyncIterator[AsyncIterator[R]]:
    """Apply `function` to (index, value) of everything in `source`; results come as they finish.

    At most `concurrency` values are taken from the source and not yet handed over as results, so a slow consumer holds
    back the source. Leaving the block cancels what is under way and closes an async generator that was the source. An
    error of the source is raised to the consumer after the results of all that came before it; `function` should raise
    none of its own.
    """
    if concurrency < 1:
        raise ConfigurationError(f"concurrency must be at least 1, got {concurrency}")
    numbered = _Numbered(source)
    send, receive = anyio.create_memory_object_stream[R](0)
    idle = concurrency - 1

    async def work(channel: MemoryObjectSendStream[R]) -> None:
        nonlocal idle
        async with channel:
            async for index, value in numbered:
                if idle:  # whoever finds work brings the next worker, so few values need few tasks
                    idle -= 1
                    group.start_soon(work, channel.clone())
                await channel.send(await function(index, value))

    raised: BaseException | None = None
    # The stream is closed when no worker is left, since one that is cancelled must not find it broken instead.
    async with receive, anyio.create_task_group() as group:
        group.start_soon(work, send)
        try:
            yield _Results(receive, numbered)
        except (Exception, KeyboardInterrupt, SystemExit) as exc:
            raised = exc  # the caller's own exception leaves the block as it is, not inside a group
        group.cancel_scope.cancel()
    await numbered.aclose()
    if raised is not None:
        raise raised


class _Numbered(Generic[T]):
    """Any iterable as an async iterator of (index, value) that many tasks may draw from."""

    def __init__(self, source: Iterable[T] | AsyncIterable[T]) -> None:
        self._source = _as_async(source)
        self._lock = anyio.Lock()
        self._index = -1
        self.failure: Exception | None = None

    async def aclose(self) -> None:
        """Close an async generator that was not drawn to its end; any other source stays as it is."""
        if inspect.isasyncgen(self._source):
            with anyio.CancelScope(shield=True):
                await self._source.aclose()

    def __aiter__(self) -> AsyncIterator[tuple[int, T]]:
        return self

    async def __anext__(self) -> tuple[int, T]:
        async with self._lock:
            if self.failure is not None:
                raise StopAsyncIteration
            try:
                value = await anext(self._source)
            except StopAsyncIteration:
                raise
            except Exception as exc:
                self.failure = exc
                raise StopAsyncIteration from None
            self._index += 1
            return self._index, value


def _as_async(source: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    return source.__aiter__() if isinstance(source, AsyncIterable) else _Sync(source)


class _Sync(Generic[T]):
    def __init__(self, source: Iterable[T]) -> None:
        self._values = iter(source)

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        for value in self._values:
            return value
        raise StopAsyncIteration


class _Results(Generic[R]):
    def __init__(self, receive: MemoryObjectReceiveStream[R], source: _Numbered[T]) -> None:
        self._receive = receive
        self._source = source

    def __aiter__(self) -> AsyncIterator[R]:
        return self

    async def __anext__(self) -> R:
        try:
            return await self._receive.receive()
        except anyio.EndOfStream:
            # Workers that are cancelled end the stream too, and may do so before the cancellation reaches its reader.
            await checkpoint_if_cancelled()
            if self._source.failure is not None:
                raise self._source.failure from None
            raise StopAsyncIteration from None
