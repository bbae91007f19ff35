"""What takes time, beside something else that does the same in the same run: raw aiohttp, another import, or less.

The two take turns, so whatever else the machine does falls on both, and a slow machine is slow for both. What is judged
are the ratios; the milliseconds stand beside them, to be read.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import aiohttp
import server as mock
from jobs import SCORED, Pair, new_item, new_user, outcomes_of, profile_all

import duet
from duet.testing import completion_text, sample_examples

Figures = dict[str, float]
Read = Callable[[Callable[[], None]], Awaitable[None]]
STREAMS = 1024
PACKAGES = ("openai", "httpx")


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))


def first_result(server: mock.Server, quick: bool) -> Figures:
    """Milliseconds to the first outcome of a shuffled list of 10 000 pairs, and of its first 256: one window.

    The server answers in 50. The least of several: whatever else the machine does only adds to it.
    """
    items = [new_item(number, 2) for number in range(50)]
    pairs = [(user, item) for user in (new_user(number, 2) for number in range(200)) for item in items]
    random.Random(0).shuffle(pairs)

    async def first(asked: list[Pair]) -> float:
        await profile_all(server.url("chunks30"), asked[:64], 64)  # imports and the like are not what is asked
        begun = time.monotonic()
        async with outcomes_of(server.url("chunks30", "wait50"), asked, 256) as outcomes:
            await anext(outcomes)
            return (time.monotonic() - begun) * 1e3

    turns = [(asyncio.run(first(pairs)), asyncio.run(first(pairs[:256]))) for _ in range(7)]
    many, few = (min(column) for column in zip(*turns, strict=True))
    return {"first outcome": many, "of 256": few, "times": many / few}


def cancellation(server: mock.Server, quick: bool) -> Figures:
    """CPU milliseconds of cancelling 1024 streams, and wall time until the server has seen the last socket close."""
    ways = {"": _our_reader, "aiohttp, ": _raw_reader}
    turns = [{name: asyncio.run(_cancel_streams(server, way)) for name, way in ways.items()} for _ in range(7)]
    found = {
        f"{name}{what}": statistics.median(turn[name][place] for turn in turns)
        for name in ways
        for place, what in enumerate(("cpu", "wall"))
    }
    return found | {"times": statistics.median(turn[""][0] / turn["aiohttp, "][0] for turn in turns)}


async def _cancel_streams(
    server: mock.Server, way: Callable[[str], AbstractAsyncContextManager[Read]]
) -> tuple[float, float]:
    reading = 0

    def note() -> None:
        nonlocal reading
        reading += 1

    server.zero()
    async with way(server.url("chunks1000", "pace1500")) as read:
        tasks = [asyncio.ensure_future(read(note)) for _ in range(STREAMS)]
        await _until(lambda: reading == STREAMS)
        await asyncio.sleep(0.2)  # all of them wait for data now
        gc.collect()  # so that the collector is equally far from its next run
        begun, cpu = time.monotonic_ns(), time.process_time()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)
        cpu = time.process_time() - cpu
        await _until(lambda: server.counters()["open"] == 0)
    return cpu * 1e3, (server.counters()["last_close_ns"] - begun) / 1e6


@asynccontextmanager
async def _our_reader(url: str) -> AsyncIterator[Read]:
    user, item = new_user(0, 2), new_item(0, 2)
    async with duet.HTTPEndpoint(url, "mock") as endpoint:
        profiler = duet.JointProfiler(endpoint)

        async def read(note: Callable[[], None]) -> None:
            async with profiler.stream(user, item) as events:
                note()
                async for _ in events:
                    pass

        yield read


@asynccontextmanager
async def _raw_reader(url: str) -> AsyncIterator[Read]:
    messages = duet.JointPrompt().render(new_user(0, 2), new_item(0, 2))
    body = {"model": "mock", "stream": True, "messages": messages}
    async with _session() as session:

        async def read(note: Callable[[], None]) -> None:
            async with session.post(f"{url}/chat/completions", json=body) as answer:
                note()
                async for _ in answer.content.iter_any():
                    pass

        yield read


async def _until(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + 120
    while not holds():
        if time.monotonic() > ends:
            raise TimeoutError
        await asyncio.sleep(0.02)


def deadline(server: mock.Server, quick: bool) -> Figures:
    """How long a total deadline takes to end a call, × `asyncio.timeout` around aiohttp in the same event loop.

    Whole and streamed, with a server that hangs or drips.
    """
    total = 2.0

    async def ours(url: str, ask: Callable[[duet.JointProfiler], Awaitable[object]]) -> float:
        limits = duet.Deadlines(total=total, first_token=None, idle=None)
        async with duet.HTTPEndpoint(url, "mock", deadlines=limits, retries=2) as endpoint:
            begun = time.monotonic()
            try:
                await ask(duet.JointProfiler(endpoint))
            except duet.EndpointUnavailable:
                return time.monotonic() - begun
            raise AssertionError("the server should not have answered")

    async def whole(profiler: duet.JointProfiler) -> None:
        await profiler.profile(new_user(0, 2), new_item(0, 2))

    async def streamed(profiler: duet.JointProfiler) -> None:
        async with profiler.stream(new_user(0, 2), new_item(0, 2)) as events:
            await events.get_final_profile()

    async def raw(url: str) -> float:
        begun = time.monotonic()
        try:
            async with (
                asyncio.timeout(total),
                _session() as session,
                session.post(f"{url}/chat/completions", json={"messages": []}) as answer,
            ):
                await answer.read()
        except TimeoutError:
            return time.monotonic() - begun
        raise AssertionError("the server should not have answered")

    async def all_cases() -> list[float]:
        urls = [server.url("hang"), server.url("drip", "pace20")]
        cases = [ours(url, ask) for url in urls for ask in (whole, streamed)]
        *taken, other = await asyncio.gather(*cases, raw(urls[0]))
        return [seconds / other for seconds in taken]

    rounds = [asyncio.run(all_cases()) for _ in range(3)]
    cases = ("hanging", "hanging, streamed", "dripping", "dripping, streamed")
    return {case: statistics.median(row[place] for row in rounds) for place, case in enumerate(cases)}


def imports(server: mock.Server, quick: bool) -> Figures:
    """CPU milliseconds of imports beyond those of a bare interpreter, and how many heavy packages `duet` loads."""
    heavy = "import duet, sys; print(sum(name in sys.modules for name in ('openai', 'aiohttp', 'httpx')))"
    codes = {"": "pass", "duet": "import duet"} | {name: f"import {name}" for name in PACKAGES}
    with tempfile.TemporaryDirectory() as folder:
        compiled = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        compiled["PYTHONPYCACHEPREFIX"] = folder  # as installed: compiled once, by the first run
        for code in codes.values():
            _cpu_of(code, compiled)
        turns = [{name: _cpu_of(code, compiled) for name, code in codes.items()} for _ in range(7 if quick else 15)]
        answer = subprocess.run([sys.executable, "-c", heavy], check=True, env=compiled, stdout=subprocess.PIPE)  # noqa: S603 - our own
    middle = {name: statistics.median(turn[name] for turn in turns) * 1e3 for name in codes}
    costs = {name: middle[name] - middle[""] for name in ("duet", *PACKAGES)}
    return costs | {f"of {name}": costs["duet"] / costs[name] for name in PACKAGES} | {"heavy": int(answer.stdout)}


def _cpu_of(code: str, environment: Mapping[str, str]) -> float:
    process = os.posix_spawn(sys.executable, [sys.executable, "-c", code], environment)
    _, status, used = os.wait4(process, 0)
    assert status == 0, f"{code!r} failed: is the dependency group `bench` installed?"
    return used.ru_utime + used.ru_stime


def training_step(server: mock.Server, quick: bool) -> Figures:
    """Seconds for the rewards of 512 completions from a recommender that answers in 50 ms: 64 at once, and in turn."""
    examples = [sample_examples()[number % 3] for number in range(512)]
    completions = [completion_text()] * len(examples)
    url = server.url("wait50")

    async def ours(count: int, concurrency: int) -> float:
        async with duet.HTTPEndpoint(url, "mock") as endpoint:
            recommender = duet.LLMRecommender(endpoint)
            env = duet.RewardEnv([duet.RatingReward(recommender, concurrency=concurrency)])
            begun = time.monotonic()
            rewards = await env.score_many(completions[:count], examples[:count])
            assert all(reward.value is not None for reward in rewards)
            return (time.monotonic() - begun) / count * len(examples)

    turns = [(asyncio.run(ours(len(examples), 64)), asyncio.run(_raw_rewards(url, examples, 64))) for _ in range(3)]
    serial = statistics.median(asyncio.run(ours(16 if quick else 48, 1)) for _ in range(3))
    many, other = (statistics.median(column) for column in zip(*turns, strict=True))
    times = statistics.median(mine / theirs for mine, theirs in turns)
    return {"serial": serial, "at once": many, "aiohttp": other, "of serial": serial / many, "times": times}


async def _raw_rewards(url: str, examples: Sequence[duet.Example], concurrency: int) -> float:
    prompt, jobs = duet.RatingPrompt(), iter(examples)
    async with _session() as session:

        async def work() -> None:
            for example in jobs:
                body = {"model": "mock", "messages": prompt.render(example.user, example.item, None)} | SCORED
                async with session.post(f"{url}/chat/completions", json=body) as answer:
                    await answer.json()

        begun = time.monotonic()
        await asyncio.gather(*(work() for _ in range(concurrency)))
        return time.monotonic() - begun
