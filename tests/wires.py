"""Opens an endpoint of either kind on a fake server, and sees to it that no connection is left over."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import openai

from duet import AsyncOpenAIEndpoint, Completion, GenerationEnd, HTTPEndpoint, Message, Sampling, TextDelta
from duet.testing import Answer, FakeServer

KEY = "sk-made-up-0123456789"
MESSAGES: tuple[Message, ...] = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name a whale."},
)
TEST_SECONDS = 20

AnyEndpoint = HTTPEndpoint | AsyncOpenAIEndpoint


def new_client(base_url: str, **settings: Any) -> openai.AsyncOpenAI:
    """A caller's client, which would retry. `verify=False` spares each test the 50 ms that certificates take."""
    http_client = openai.DefaultAsyncHttpxClient(verify=False)
    given: dict[str, Any] = {"api_key": KEY, "max_retries": 5} | settings
    return openai.AsyncOpenAI(base_url=base_url, http_client=http_client, **given)


@asynccontextmanager
async def endpoint_at(
    wire: str, base_url: str, *, model: str = "fake", headers: Mapping[str, str] | None = None, **settings: Any
) -> AsyncIterator[AnyEndpoint]:
    """An endpoint over the wire "http" or "openai"."""
    if wire == "http":
        async with HTTPEndpoint(base_url, model, api_key=KEY, headers=headers, **settings) as endpoint:
            yield endpoint
    else:
        async with new_client(base_url, default_headers=headers) as client:
            async with AsyncOpenAIEndpoint(client, model, **settings) as over_client:
                yield over_client


@asynccontextmanager
async def serving(answers: Any = Answer(), **settings: Any) -> AsyncIterator[FakeServer]:
    """A server for one test, bounded in time; at the end no connection to it may be open."""
    with anyio.fail_after(TEST_SECONDS):
        async with FakeServer(answers, **settings) as server:
            yield server
            await all_closed(server)


@asynccontextmanager
async def meeting(
    wire: str, answers: Any = Answer(), *, owned_by: str = "vllm", **settings: Any
) -> AsyncIterator[tuple[FakeServer, AnyEndpoint]]:
    """A server and an endpoint on it."""
    async with serving(answers, owned_by=owned_by) as server:
        async with endpoint_at(wire, server.base_url, **settings) as endpoint:
            yield server, endpoint


async def all_closed(server: FakeServer) -> None:
    """Wait until the server sees no open connection; fail after two seconds."""
    with anyio.move_on_after(2):
        while server.open_connections:  # noqa: ASYNC110 - the server offers no event for it
            await anyio.sleep(0.002)
    assert server.open_connections == 0


async def deltas_and_ends(endpoint: AnyEndpoint, sampling: Sampling = Sampling()) -> tuple[list[str], list[Completion]]:
    """The texts of a stream's deltas, and the completions of its ends."""
    texts: list[str] = []
    ends: list[Completion] = []
    async with endpoint.stream(MESSAGES, sampling) as events:
        async for event in events:
            match event:
                case TextDelta(text):
                    assert not ends, "a delta after the end"
                    texts.append(text)
                case GenerationEnd(completion):
                    ends.append(completion)
    return texts, ends


async def ask(endpoint: AnyEndpoint, how: str, sampling: Sampling = Sampling()) -> Completion:
    """One completion, by "generate" or by "stream"."""
    if how == "generate":
        return await endpoint.generate(MESSAGES, sampling)
    _, ends = await deltas_and_ends(endpoint, sampling)
    return ends[-1]
