"""Whatever goes wrong on the way to an endpoint: a profile, or one typed error in time, and nothing left over."""

from __future__ import annotations

import contextlib
import pickle
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from cores import waited_for_a_core
from fault_table import TABLE, Trouble
from leaks import nothing_left
from wires import endpoint_at

from duet import Item, JointProfile, JointProfiler, User
from duet.testing import FakeServer

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_leaks")]

GRACE = 0.25
PAIRS = [(User(f"u{number}"), Item(f"i{number}")) for number in range(3)]

Result = JointProfile | BaseException


async def by_profile(profiler: JointProfiler) -> list[Result]:
    """One pair, awaited."""
    try:
        return [await profiler.profile(*PAIRS[0])]
    except Exception as exc:
        return [exc]


async def by_stream(profiler: JointProfiler) -> list[Result]:
    """One pair, as it is written."""
    try:
        async with profiler.stream(*PAIRS[0]) as events:
            return [await events.get_final_profile()]
    except Exception as exc:
        return [exc]


async def in_bulk(profiler: JointProfiler) -> list[Result]:
    """Several pairs at once."""
    async with profiler.profile_many(PAIRS, concurrency=3) as outcomes:
        found = [outcome.profile or outcome.error async for outcome in outcomes]
    assert len(found) == len(PAIRS)
    return [result for result in found if result is not None]


# Over which wire, and how. The client of "openai" would retry by itself if it were let.
WAYS: dict[str, tuple[str, Callable[[JointProfiler], Awaitable[list[Result]]]]] = {
    "single": ("http", by_profile),
    "stream": ("http", by_stream),
    "bulk": ("http", in_bulk),
    "single, openai": ("openai", by_profile),
    "stream, openai": ("openai", by_stream),
}


CASES = [
    pytest.param(trouble, way, id=f"{trouble.name}-{way}")
    for trouble in TABLE
    for way, (wire, _) in WAYS.items()
    if wire in trouble.wires
]


@contextlib.asynccontextmanager
async def served(trouble: Trouble) -> AsyncIterator[tuple[str, FakeServer | None]]:
    """The address of a server with this trouble, and the server if there is one."""
    if trouble.answers is not None:
        async with FakeServer(trouble.answers()) as server:
            yield server.base_url, server
        return
    with socket.socket() as listener, contextlib.ExitStack() as waiting:
        listener.bind(("127.0.0.1", 0))
        if trouble.server == "deaf":
            listener.listen(0)
            for _ in range(4):  # fill the backlog
                client = waiting.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1", None


def check(result: Result, trouble: Trouble) -> None:
    """It is the one outcome that this trouble may have."""
    if trouble.outcome is None:
        assert isinstance(result, JointProfile), repr(result)
        assert result.completion == trouble.text
    else:
        assert type(result) is trouble.outcome, repr(result)
        assert getattr(result, "status_code", None) == trouble.status or trouble.status is None
        copy = pickle.loads(pickle.dumps(result))  # noqa: S301 - made on the spot
        assert (type(copy), str(copy)) == (type(result), str(result))


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a server does not say when, a retry comes at once."""
    monkeypatch.setattr("duet._caller._backoff", lambda tries: 0.01)


@pytest.mark.counted("faults")
@pytest.mark.parametrize(("trouble", "way"), CASES)
async def test_a_fault_has_one_outcome_in_time_and_leaves_nothing(trouble: Trouble, way: str) -> None:
    """A profile or one typed error within the total deadline and 250 ms, as many requests as told, nothing left."""
    if trouble.server == "deaf" and sys.platform != "linux":
        pytest.skip("other systems refuse what their backlog cannot hold")
    wire, make = WAYS[way]
    settings: dict[str, Any] = {"engine": trouble.engine, "deadlines": trouble.deadlines, "retries": trouble.retries}
    async with nothing_left(), served(trouble) as (base_url, server):
        async with endpoint_at(wire, base_url, **settings) as endpoint:
            profiler = JointProfiler(endpoint)
            if trouble.warm:
                await profiler.profile(*PAIRS[0])
            started, waited = time.perf_counter(), waited_for_a_core()
            results = await make(profiler)
            seconds = time.perf_counter() - started - (waited_for_a_core() - waited)
    for result in results:
        check(result, trouble)
    assert seconds <= (trouble.most or trouble.deadlines.total or 0) + GRACE
    if server is not None:
        assert len(server.requests) == trouble.tries * len(results) + trouble.extra


def test_the_table_has_no_name_twice() -> None:
    """Every fault of the matrix has a name of its own, and there are at least forty."""
    names = [trouble.name for trouble in TABLE]
    assert len(names) == len(set(names)) >= 40
