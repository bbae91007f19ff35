"""The benchmark of speed: its server speaks as an engine does, and without a compiler nothing is judged."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from duet import HTTPEndpoint, JointProfiler, LLMRecommender, Sampling
from duet.testing import sample_examples

FOLDER = Path(__file__).parents[1] / "benchmarks" / "speed"
EXAMPLE = sample_examples()[0]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A mock server, compiled without a warning."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler, and epoll")
    binary = tmp_path_factory.mktemp("mock") / "server"
    strict = ["-O1", "-std=gnu11", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *strict, "-o", str(binary), str(FOLDER / "mock_server.c")], check=True)  # noqa: S603 - ours
    with subprocess.Popen([str(binary)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stdin is not None
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.stdin.close()
        assert process.wait(5) == 0


@pytest.mark.anyio
@pytest.mark.parametrize("options", ["", "/wait20", "/chunks30/pace2"])
async def test_the_mock_server_writes_profiles(address: str, options: str) -> None:
    """What it streams, and what it answers whole, is the same joint profile."""
    async with HTTPEndpoint(f"{address}{options}/v1", "mock", retries=0) as endpoint:
        profiler = JointProfiler(endpoint)
        async with profiler.stream(EXAMPLE.user, EXAMPLE.item) as events:
            streamed = await events.get_final_profile()
        whole = await profiler.profile(EXAMPLE.user, EXAMPLE.item)
    assert (streamed.user, streamed.item) == (whole.user, whole.item)


@pytest.mark.anyio
async def test_the_mock_server_answers_reward_calls(address: str) -> None:
    """Its one token comes with alternatives, from which a rating between them is read."""
    async with HTTPEndpoint(f"{address}/v1", "mock", retries=0) as endpoint:
        rating = await LLMRecommender(endpoint).predict(EXAMPLE.user, EXAMPLE.item, None)
    assert 4 < rating.value < 5


@pytest.mark.anyio
async def test_the_mock_server_accounts_for_a_prefix_cache(address: str, anyio_backend: str) -> None:
    """A prompt that was seen is served from the cache in blocks of 64 characters, one that begins otherwise is not."""
    cached = []
    async with HTTPEndpoint(f"{address}/cache1000/v1", "mock", retries=0) as endpoint:
        for letter in "aab":
            completion = await endpoint.generate(
                [{"role": "user", "content": letter + anyio_backend * 200}], Sampling()
            )
            assert completion.usage is not None
            cached.append(completion.usage.cached_tokens * 4)
    assert (cached[0], cached[1] % 64, cached[1] >= 700, cached[2]) == (0, 0, True, 0)


def test_without_a_compiler_nothing_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table says so, and the command succeeds."""
    monkeypatch.setenv("CC", "no-such-compiler")
    done = subprocess.run([sys.executable, str(FOLDER)], capture_output=True, text=True, check=True)  # noqa: S603 - ours
    assert "nothing judged" in done.stdout
