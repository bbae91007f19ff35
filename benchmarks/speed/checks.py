"""What is not a comparison of clients: memory, bounds, the prefix cache, stopping, imports, a training step.

Each check runs in a process of its own: ``python checks.py NAME [--quick]`` prints its figures as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import server as mock
from jobs import new_item, new_user

import duet
from duet.testing import completion_text, sample_examples

Pair = tuple[duet.User, duet.Item]
Figures = dict[str, float]


@asynccontextmanager
async def _outcomes(url: str, pairs: Iterable[Pair], concurrency: int) -> AsyncIterator[AsyncIterator[duet.Outcome]]:
    async with (
        duet.HTTPEndpoint(url, "mock") as endpoint,
        duet.JointProfiler(endpoint).profile_many(pairs, concurrency=concurrency) as outcomes,
    ):
        yield outcomes


def memory(server: mock.Server, quick: bool) -> Figures:
    """Megabytes by which a bulk run grows after its first thousand outcomes, window 256."""
    pairs = 20_000 if quick else 100_000

    async def growth(pause: float) -> float:
        first = most = 0.0
        made = ((new_user(number, 2), new_item(number, 2)) for number in range(pairs))
        async with _outcomes(server.url("chunks30"), made, 256) as outcomes:
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
        async with _outcomes(server.url("chunks30", "wait5"), made(count), concurrency) as outcomes:
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
        asyncio.run(_profile(url, pairs, concurrency))
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


async def _profile(url: str, pairs: Iterable[Pair], concurrency: int) -> None:
    async with _outcomes(url, pairs, concurrency) as outcomes:
        async for outcome in outcomes:
            assert outcome.profile is not None, outcome.error


def first_result(server: mock.Server, quick: bool) -> Figures:
    """Milliseconds to the first outcome of a shuffled list of 10 000 pairs, from a server that answers in 50.

    The least of several, as for `cancellation`.
    """
    items = [new_item(number, 2) for number in range(50)]
    pairs = [(user, item) for user in (new_user(number, 2) for number in range(200)) for item in items]
    random.Random(0).shuffle(pairs)

    async def first() -> float:
        await _profile(server.url("chunks30"), pairs[:64], 64)  # imports and the like are not what is asked
        begun = time.monotonic()
        async with _outcomes(server.url("chunks30", "wait50"), pairs, 256) as outcomes:
            await anext(outcomes)
            return (time.monotonic() - begun) * 1e3

    return {"first outcome": min(asyncio.run(first()) for _ in range(5))}


def cancellation(server: mock.Server, quick: bool) -> Figures:
    """Milliseconds from cancelling 1024 streams until the server has seen the last socket close.

    The least of several: whatever else the machine does only adds to it.
    """
    found = [asyncio.run(_cancel_streams(server, 1024)) for _ in range(7)]
    return {"wall": min(wall for wall, _ in found), "cpu": statistics.median(cpu for _, cpu in found)}


async def _cancel_streams(server: mock.Server, count: int) -> tuple[float, float]:
    reading = 0
    user, item = new_user(0, 2), new_item(0, 2)
    server.zero()

    async def read(profiler: duet.JointProfiler) -> None:
        nonlocal reading
        async with profiler.stream(user, item) as events:
            reading += 1
            async for _ in events:
                pass

    async with AsyncExitStack() as stack:
        endpoint = await stack.enter_async_context(duet.HTTPEndpoint(server.url("chunks1000", "pace1500"), "mock"))
        profiler = duet.JointProfiler(endpoint)
        tasks = [asyncio.create_task(read(profiler)) for _ in range(count)]
        await _until(lambda: reading == count)
        await asyncio.sleep(0.2)  # all of them wait for data now
        begun, cpu = time.monotonic_ns(), time.process_time()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)
        cpu = time.process_time() - cpu
        await _until(lambda: server.counters()["open"] == 0)
    return (server.counters()["last_close_ns"] - begun) / 1e6, cpu * 1e3


async def _until(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + 30
    while not holds():
        if time.monotonic() > ends:
            raise TimeoutError
        await asyncio.sleep(0.02)


def deadline(server: mock.Server, quick: bool) -> Figures:
    """By what share of itself a total deadline is passed, whole and streamed, with a server that hangs or drips."""
    total = 2.0

    async def late(url: str, ask: Callable[[duet.JointProfiler], Awaitable[object]]) -> float:
        limits = duet.Deadlines(total=total, first_token=None, idle=None)
        async with duet.HTTPEndpoint(url, "mock", deadlines=limits, retries=2) as endpoint:
            begun = time.monotonic()
            try:
                await ask(duet.JointProfiler(endpoint))
            except duet.EndpointUnavailable:
                return (time.monotonic() - begun) / total - 1
            raise AssertionError("the server should not have answered")

    async def whole(profiler: duet.JointProfiler) -> None:
        await profiler.profile(new_user(0, 2), new_item(0, 2))

    async def streamed(profiler: duet.JointProfiler) -> None:
        async with profiler.stream(new_user(0, 2), new_item(0, 2)) as events:
            await events.get_final_profile()

    async def all_cases() -> list[float]:
        urls = [server.url("hang"), server.url("drip", "pace20")]
        return await asyncio.gather(*(late(url, ask) for url in urls for ask in (whole, streamed)))

    rounds = [asyncio.run(all_cases()) for _ in range(3)]
    cases = ("hanging", "hanging, streamed", "dripping", "dripping, streamed")
    return {case: statistics.median(row[place] for row in rounds) for place, case in enumerate(cases)}


def imports(server: mock.Server, quick: bool) -> Figures:
    """CPU milliseconds of `import duet` beyond those of a bare interpreter, and how many heavy packages it loads."""
    heavy = "import duet, sys; raise SystemExit(sum(name in sys.modules for name in ('openai', 'aiohttp', 'httpx')))"
    bare, ours = [], []
    with tempfile.TemporaryDirectory() as folder:
        compiled = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        compiled["PYTHONPYCACHEPREFIX"] = folder  # as installed: compiled once, by the first run
        loaded = subprocess.run([sys.executable, "-c", heavy], check=False, env=compiled).returncode  # noqa: S603 - our own
        for _ in range(7 if quick else 15):
            bare.append(_cpu_of("pass", compiled))
            ours.append(_cpu_of("import duet", compiled))
    return {"cpu": (statistics.median(ours) - statistics.median(bare)) * 1e3, "heavy": loaded}


def _cpu_of(code: str, environment: dict[str, str]) -> float:
    process = os.posix_spawn(sys.executable, [sys.executable, "-c", code], environment)
    _, _, used = os.wait4(process, 0)
    return used.ru_utime + used.ru_stime


def training_step(server: mock.Server, quick: bool) -> Figures:
    """The rewards of 512 completions from a recommender that answers in 50 ms: 64 at once, and one after the other."""
    examples = [sample_examples()[number % 3] for number in range(512)]
    completions = [completion_text()] * len(examples)

    async def step(count: int, concurrency: int) -> float:
        async with duet.HTTPEndpoint(server.url("wait50"), "mock") as endpoint:
            recommender = duet.LLMRecommender(endpoint)
            env = duet.RewardEnv([duet.RatingReward(recommender, concurrency=concurrency)])
            begun = time.monotonic()
            rewards = await env.score_many(completions[:count], examples[:count])
            assert all(reward.value is not None for reward in rewards)
            return (time.monotonic() - begun) / count * len(examples)

    serial = statistics.median(asyncio.run(step(16 if quick else 48, 1)) for _ in range(3))
    many = statistics.median(asyncio.run(step(len(examples), 64)) for _ in range(3))
    return {"serial": serial, "at once": many, "times": serial / many}


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
