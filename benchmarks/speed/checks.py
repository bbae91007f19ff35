"""What is not a comparison of clients: memory, bounds and the prefix cache here, waiting and imports in `beside.py`.

Each check runs in a process of its own: ``python checks.py NAME [--quick]`` prints its figures as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import server as mock
from beside import cancellation, deadline, first_result, imports, training_step
from jobs import Pair, new_item, new_user, outcomes_of, profile_all

import duet

Figures = dict[str, float]


def memory(server: mock.Server, quick: bool) -> Figures:
    """Megabytes by which a bulk run grows after its first thousand outcomes, window 256."""
    pairs = 20_000 if quick else 100_000

    async def growth(pause: float) -> float:
        first = most = 0.0
        made = ((new_user(number, 2), new_item(number, 2)) for number in range(pairs))
        async with outcomes_of(server.url("chunks30"), made, 256) as outcomes:
            count = 0
            async for outcome in outcomes:
                assert outcome.profile is not None, outcome.error
                count += 1
                if count % 250 == 0:
                    await asyncio.sleep(pause)
                    first = first if count > 1000 else _resident()
                    most = max(most, _resident())
        return most - first

    return {"quick consumer": asyncio.run(growth(0)), "slow consumer": asyncio.run(growth(0.05))}


def _resident() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def in_flight(server: mock.Server, quick: bool) -> Figures:
    """Pairs drawn and not handed over, and requests at the server, while each outcome is slept on 100 times as long."""
    concurrency, drawn, handed, most = 64, 0, 0, 0

    def made(count: int) -> Iterator[Pair]:
        nonlocal drawn, most
        for number in range(count):
            drawn += 1
            most = max(most, drawn - handed)
            yield new_user(number, 2), new_item(number, 2)

    async def take(count: int, pause: float) -> float:
        nonlocal drawn, handed
        drawn = handed = 0
        begun = time.monotonic()
        async with outcomes_of(server.url("chunks30", "wait5"), made(count), concurrency) as outcomes:
            async for _ in outcomes:
                handed += 1
                if pause:
                    await asyncio.sleep(pause)
        return (time.monotonic() - begun) / count

    each = asyncio.run(take(2000, 0))
    most = 0
    server.zero()
    asyncio.run(take(150 if quick else 300, 100 * each))
    sent_on = asyncio.run(_sent_to_a_sleeper(server))
    busy = server.counters()["most_busy"]
    return {"concurrency": concurrency, "drawn": most, "requests": busy, "bytes sent on": sent_on}


async def _sent_to_a_sleeper(server: mock.Server) -> float:
    """Bytes of a stream of 40 MB that the server can still send to a consumer who has slept a second."""
    async with (
        duet.HTTPEndpoint(server.url("chunks200000"), "mock") as endpoint,
        duet.JointProfiler(endpoint).stream(new_user(0), new_item(0)) as events,
    ):
        await anext(events)
        await asyncio.sleep(1)
        before = server.counters()["bytes_out"]
        await asyncio.sleep(1)
        return float(server.counters()["bytes_out"] - before)


def prefix_cache(server: mock.Server, quick: bool) -> Figures:
    """Characters served from the cache as a share of those in the best order, the lowest over all concurrencies.

    The cache has room for the prompts of 32 users, in blocks of 64 characters.
    """
    users, items = (100 if quick else 200), [new_item(number) for number in range(60)]
    by_user = [
        (user, item) for user in map(new_user, range(users)) for item in random.Random(user.id).sample(items, 20)
    ]
    shuffled = random.Random(0).sample(by_user, len(by_user))
    prompt = sum(len(message["content"]) for message in duet.JointPrompt().render(*by_user[0]))
    url = server.url("chunks30", f"cache{32 * prompt // 64}")

    def share(pairs: Iterable[Pair], concurrency: int) -> float:
        server.zero()
        asyncio.run(profile_all(url, pairs, concurrency))
        counters = server.counters()
        return float(counters["cached_chars"] / counters["prompt_chars"])

    best = share(iter(by_user), 1)
    levels = (16, 64, 256, 1024)
    return {
        "best order": best,
        "iterator user by user": min(share(iter(by_user), level) for level in levels) / best,
        "shuffled list": min(share(shuffled, level) for level in levels) / best,
        "shuffled iterator": share(iter(shuffled), 64) / best,
    }


CHECKS: dict[str, Callable[[mock.Server, bool], Figures]] = {
    check.__name__: check
    for check in (memory, in_flight, prefix_cache, first_result, cancellation, deadline, imports, training_step)
}


def run(name: str, quick: bool) -> Figures:
    """The figures of one check, from a process of its own."""
    command = [sys.executable, __file__, name, *(["--quick"] if quick else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603 - our own
    found: Figures = json.loads(done.stdout)
    return found


def main(arguments: Sequence[str]) -> None:
    """Run one check here."""
    with mock.running() as server:
        print(json.dumps(CHECKS[arguments[0]](server, "--quick" in arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])
