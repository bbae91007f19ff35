"""Whatever goes wrong on the way to an endpoint: a profile, or one typed error in time, and nothing left over."""

from __future__ import annotations

import contextlib
import pickle
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import pytest
from cores import waited_for_a_core
from fault_table import TABLE, Trouble
from leaks import nothing_left
from wires import endpoint_at

from duet import Deadlines, EndpointUnavailable, Item, JointProfile, JointProfiler, User
from duet.testing import FakeServer

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_leaks"), pytest.mark.faults]

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


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """The first call of a process imports a transport, which takes longer than the deadlines here."""

    async def call(wire: str) -> None:
        async with FakeServer() as server, endpoint_at(wire, server.base_url) as endpoint:
            await JointProfiler(endpoint).profile(*PAIRS[0])

    for backend in ("asyncio", "trio"):
        for wire in ("http", "openai"):
            anyio.run(call, wire, backend=backend)


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
        asked, allowed = len(server.requests), trouble.tries * len(results) + trouble.extra
        # On a busy machine a deadline may be over before the request has arrived.
        assert asked == allowed or (asked < allowed and trouble.waits)


def pour(listener: socket.socket) -> None:
    """Answer one connection with comments, as fast as it takes them, until it is closed."""
    with contextlib.suppress(OSError), listener.accept()[0] as client:
        client.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        while True:
            client.sendall(b": ping\n\n" * 8000)


@pytest.mark.serial
@pytest.mark.counted("faults")
@pytest.mark.parametrize("way", ["single", "stream", "single, openai", "stream, openai"])
async def test_a_flood_does_not_outlast_the_deadline(way: str) -> None:
    """A server that never stops, and sends faster than anybody reads, is given up on in time, and not asked again."""
    wire, make = WAYS[way]
    settings: dict[str, Any] = {"engine": "llama.cpp", "deadlines": Deadlines(first_token=0.3, total=5), "retries": 2}
    async with nothing_left():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = threading.Thread(target=pour, args=(listener,))
            server.start()
            base_url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
            async with endpoint_at(wire, base_url, **settings) as endpoint:
                started, waited = time.perf_counter(), waited_for_a_core()
                (result,) = await make(JointProfiler(endpoint))
                seconds = time.perf_counter() - started - (waited_for_a_core() - waited)
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # ends the wait for a connection, should none have come
            server.join(5)
    assert type(result) is EndpointUnavailable
    assert seconds <= 0.3 + GRACE


def test_the_table_has_no_name_twice() -> None:
    """Every fault of the matrix has a name of its own, and there are at least forty."""
    names = [trouble.name for trouble in TABLE]
    assert len(names) == len(set(names)) >= 40
