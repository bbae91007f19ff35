"""Many streams with faults among them: every outcome is the one it must be, memory and descriptors stay as they were.

`DUET_SOAK=50000` streams as many; a thousand by default.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from leaks import descriptors, nothing_left
from soak_server import TEXT, trouble

from duet import Deadlines, HTTPEndpoint, Item, JointProfile, JointProfiler, Outcome, User

STREAMS = int(os.environ.get("DUET_SOAK", "1000"))
CONCURRENCY = 32
BATCHES = 10
MOST_GROWTH = 16 * 2**20
DEADLINES = Deadlines(first_token=10, idle=0.5, total=20)


@contextmanager
def served() -> Iterator[str]:
    """The address of the server."""
    words = [sys.executable, str(Path(__file__).with_name("soak_server.py"))]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:  # noqa: S603 - ours
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.communicate()


def pair(number: int) -> tuple[User, Item]:
    return User(f"u{number}"), Item(f"i{number}", title=f"pair {number}")


def as_it_must(number: int, profile: JointProfile | None, error: Exception | None) -> bool:
    """Whether the outcome of a pair is the one of its trouble."""
    _, expected = trouble(number)
    if expected is None:
        return profile is not None and profile.completion == TEXT
    return type(error) is expected


async def in_bulk(profiler: JointProfiler, numbers: range) -> int:
    """Through `profile_many`: how many outcomes were as they must be."""

    def number_of(outcome: Outcome) -> int:
        return numbers[outcome.index]

    async with profiler.profile_many(map(pair, numbers), concurrency=CONCURRENCY) as outcomes:
        right = [as_it_must(number_of(outcome), outcome.profile, outcome.error) async for outcome in outcomes]
    assert len(right) == len(numbers)
    return sum(right)


async def streamed(profiler: JointProfiler, numbers: range) -> int:
    """Through `stream`: how many outcomes were as they must be."""
    rest, right = iter(numbers), []

    async def work() -> None:
        right.extend([await one(number) for number in rest])

    async def one(number: int) -> bool:
        try:
            async with profiler.stream(*pair(number)) as events:
                return as_it_must(number, await events.get_final_profile(), None)
        except Exception as exc:
            return as_it_must(number, None, exc)

    async with anyio.create_task_group() as tasks:
        for _ in range(CONCURRENCY):
            tasks.start_soon(work)
    assert len(right) == len(numbers)
    return sum(right)


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.faults
@pytest.mark.serial
@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell of memory and descriptors in other ways")
@pytest.mark.timeout(60 + STREAMS // 10)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_many_streams_change_nothing(tally: Callable[..., None]) -> None:
    """After the first tenth, neither memory nor descriptors grow, and the outcomes are those that were planned."""
    size = STREAMS // BATCHES
    right, memory, opened = 0, [], []
    with served() as address:
        async with (
            nothing_left(),
            HTTPEndpoint(address, "fake", engine="llama.cpp", deadlines=DEADLINES, retries=1) as endpoint,
        ):
            profiler = JointProfiler(endpoint)
            for batch in range(BATCHES):
                way = streamed if batch % 2 else in_bulk
                right += await way(profiler, range(batch * size, (batch + 1) * size))
                memory.append(resident())
                opened.append(len(descriptors()))
    megabytes = [round(value / 2**20, 1) for value in memory]
    note = f"{megabytes[0]} MB and {opened[0]} descriptors after a tenth, {megabytes[-1]} and {opened[-1]} at the end"
    tally("soak", size * BATCHES, right, note)
    assert right == size * BATCHES
    assert memory[-1] - memory[0] < MOST_GROWTH, megabytes
    assert max(opened) <= opened[0] + CONCURRENCY, opened
