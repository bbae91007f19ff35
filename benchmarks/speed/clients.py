"""The clients that are measured. Each is imported when it is chosen, so those that are not installed are left out."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlsplit

from jobs import SCORED, Jobs

CONNECTIONS = 4096  # nobody waits for a connection: pools are not what is measured
MODEL = "mock"


class Client:
    """One way to ask: `stream` returns the characters that were delivered, `reward` an answer that holds a rating.

    Args:
        url: Base address of the server.
        jobs: What is asked.
    """

    streams_json = False

    def __init__(self, url: str, jobs: Jobs) -> None:
        self.url = url
        self.jobs = jobs
        self.stack = AsyncExitStack()

    async def open(self) -> None:
        """Make the client; what is to be closed goes on the stack."""

    async def stream(self, number: int) -> int:
        """One profile, streamed."""
        raise NotImplementedError

    async def reward(self, number: int) -> Any:
        """One token with its log-probabilities."""
        raise NotImplementedError

    async def close(self) -> None:
        """Close all connections."""
        await self.stack.aclose()


class Delivered:
    """Takes texts as they come, and counts their characters."""

    def __init__(self) -> None:
        self.size = 0

    def __call__(self, text: str) -> None:
        self.size += len(text)


# ---- ours: the public interface, prompts and parsing included


class Ours(Client):
    async def open(self) -> None:
        import duet

        endpoint = await self.stack.enter_async_context(duet.HTTPEndpoint(self.url, MODEL, engine="vllm"))
        self.profiler = duet.JointProfiler(endpoint)
        self.recommender = duet.LLMRecommender(
            endpoint, sampling=duet.Sampling(temperature=0.0, top_logprobs=10, seed=42)
        )
        self.delta, self.done = duet.SectionDelta, duet.GenerationDone

    async def stream(self, number: int) -> int:
        take = Delivered()
        async with self.profiler.stream(*self.jobs.pairs[number]) as events:
            async for event in events:
                if isinstance(event, self.delta):
                    take(event.delta)
        return take.size

    async def reward(self, number: int) -> Any:
        return await self.recommender.predict(*self.jobs.pairs[number], self.jobs.profiles[number])


# ---- the floor: what no client in Python can do without


class Connection(asyncio.Protocol):
    """A socket and a parser in C. What a body brings goes to `take` with each read."""

    def __init__(self) -> None:
        import httptools

        self._new_parser = httptools.HttpResponseParser
        self._pieces: list[bytes] = []
        self._ended = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def ask(self, request: bytes, take: Callable[[bytes], object]) -> asyncio.Future[None]:
        self._parser, self._take, self._ended = self._new_parser(self), take, False
        self._over = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._over

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)
        body, self._pieces = b"".join(self._pieces), []
        self._take(body)
        if self._ended and not self._over.done():
            self._over.set_result(None)

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        self._ended = True

    def connection_lost(self, exc: Exception | None) -> None:
        if hasattr(self, "_over") and not self._over.done():
            self._over.set_exception(exc or ConnectionResetError())


class Floor(Client):
    async def open(self) -> None:
        import httptools  # noqa: F401 - refuse at once where it is missing
        import orjson

        self.load, self.dump = orjson.loads, orjson.dumps
        address = urlsplit(self.url)
        self.place: Any = (address.hostname, address.port)
        self.head = (
            f"POST {address.path}/chat/completions HTTP/1.1\r\nhost: {address.netloc}\r\naccept: */*\r\n"
            "content-type: application/json\r\ncontent-length: "
        ).encode()
        self.free: list[Connection] = []
        self.stack.callback(lambda: [connection.transport.abort() for connection in self.free])

    async def stream(self, number: int) -> int:
        deliver, load, rest = Delivered(), self.load, b""

        def take(data: bytes) -> None:
            nonlocal rest
            *events, rest = (rest + data).split(b"\n\n")
            for event in events:
                if event == b"data: [DONE]":
                    break
                choices = load(event[6:])["choices"]
                if choices and (text := choices[0]["delta"].get("content")):
                    deliver(text)

        await self.ask({"stream": True, "messages": self.jobs.joint(number)}, take)
        return deliver.size

    async def reward(self, number: int) -> Any:
        pieces: list[bytes] = []
        await self.ask(SCORED | {"messages": self.jobs.rating(number)}, pieces.append)
        return self.load(b"".join(pieces))["choices"][0]["message"]["content"]

    async def ask(self, fields: dict[str, Any], take: Callable[[bytes], object]) -> None:
        connection = self.free.pop() if self.free else await self.connect()
        body = self.dump({"model": MODEL} | fields)
        await connection.ask(b"%b%d\r\n\r\n%b" % (self.head, len(body), body), take)
        self.free.append(connection)

    async def connect(self) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(Connection, *self.place)
        return connection


# ---- HTTP libraries, with the least decoder that works


async def decoded(reads: AsyncIterator[bytes], load: Callable[[bytes], Any]) -> int:
    deliver, rest = Delivered(), b""
    async for data in reads:
        *events, rest = (rest + data).split(b"\n\n")
        for event in events:
            if event != b"data: [DONE]":
                choices = load(event[6:])["choices"]
                if choices and (text := choices[0]["delta"].get("content")):
                    deliver(text)
    return deliver.size


class Aiohttp(Client):
    async def open(self) -> None:
        import aiohttp
        import jiter

        self.load = jiter.from_json
        connector = aiohttp.TCPConnector(limit=CONNECTIONS)
        self.session = await self.stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        self.path = f"{self.url}/chat/completions"

    async def stream(self, number: int) -> int:
        body = {"model": MODEL, "stream": True, "messages": self.jobs.joint(number)}
        async with self.session.post(self.path, json=body) as answer:
            answer.raise_for_status()
            return await decoded(answer.content.iter_any(), self.load)

    async def reward(self, number: int) -> Any:
        body = {"model": MODEL, "messages": self.jobs.rating(number)} | SCORED
        async with self.session.post(self.path, json=body) as answer:
            answer.raise_for_status()
            return self.load(await answer.read())["choices"][0]["message"]["content"]


class Httpx(Client):
    async def open(self) -> None:
        import httpx
        import jiter

        self.load = jiter.from_json
        limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
        client = httpx.AsyncClient(limits=limits, timeout=600, verify=False, trust_env=False)  # noqa: S501 - loopback, no TLS
        self.client = await self.stack.enter_async_context(client)
        self.path = f"{self.url}/chat/completions"

    async def stream(self, number: int) -> int:
        body = {"model": MODEL, "stream": True, "messages": self.jobs.joint(number)}
        async with self.client.stream("POST", self.path, json=body) as answer:
            answer.raise_for_status()
            return await decoded(answer.aiter_bytes(), self.load)

    async def reward(self, number: int) -> Any:
        body = {"model": MODEL, "messages": self.jobs.rating(number)} | SCORED
        answer = await self.client.post(self.path, json=body)
        answer.raise_for_status()
        return self.load(answer.content)["choices"][0]["message"]["content"]


# ---- what applications use


class AsyncOpenAI(Client):
    """As it comes, but for a pool that makes no request wait."""

    async def open(self) -> None:
        import openai

        http_client = openai.DefaultAsyncHttpxClient(limits=_limits(openai), timeout=600)
        client = openai.AsyncOpenAI(base_url=self.url, api_key="none", max_retries=0, http_client=http_client)
        self.client = await self.stack.enter_async_context(client)

    async def stream(self, number: int) -> int:
        deliver = Delivered()
        messages: Any = self.jobs.joint(number)
        async for chunk in await self.client.chat.completions.create(model=MODEL, messages=messages, stream=True):
            if chunk.choices and (text := chunk.choices[0].delta.content):
                deliver(text)
        return deliver.size

    async def reward(self, number: int) -> Any:
        messages: Any = self.jobs.rating(number)
        answer = await self.client.chat.completions.create(model=MODEL, messages=messages, **SCORED)
        return answer.choices[0].message.content


def _limits(openai: Any) -> Any:
    kind = type(openai.DEFAULT_CONNECTION_LIMITS)  # openai 3 is built on another HTTP library than 2
    return kind(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)


class Instructor(Client):
    """A structured answer with one field, streamed as it grows."""

    streams_json = True

    async def open(self) -> None:
        import instructor
        import openai
        from pydantic import BaseModel

        class Text(BaseModel):
            text: str

        self.shape = Text
        plain = await self.stack.enter_async_context(openai.AsyncOpenAI(base_url=self.url, api_key="none"))
        self.client = instructor.from_openai(plain, mode=instructor.Mode.JSON)

    async def stream(self, number: int) -> int:
        messages: Any = self.jobs.joint(number)
        size = 0
        async for grown in self.client.chat.completions.create_partial(
            model=MODEL, messages=messages, response_model=self.shape, max_retries=0
        ):
            size = len(grown.text or "")
        return size


class PydanticAI(Client):
    async def open(self) -> None:
        import openai
        from pydantic_ai import Agent
        from pydantic_ai.models.openai import OpenAIChatModel
        from pydantic_ai.providers.openai import OpenAIProvider

        plain = await self.stack.enter_async_context(openai.AsyncOpenAI(base_url=self.url, api_key="none"))
        model = OpenAIChatModel(MODEL, provider=OpenAIProvider(openai_client=plain))
        self.agent = Agent(model, output_type=str)

    async def stream(self, number: int) -> int:
        deliver = Delivered()
        system, question = (message["content"] for message in self.jobs.joint(number))
        async with self.agent.run_stream(question, instructions=system) as result:
            async for text in result.stream_text(delta=True, debounce_by=None):
                deliver(text)
        return deliver.size

    async def reward(self, number: int) -> Any:
        system, question = (message["content"] for message in self.jobs.rating(number))
        settings: Any = {"max_tokens": 1, "extra_body": {"logprobs": True, "top_logprobs": 10}}
        return (await self.agent.run(question, instructions=system, model_settings=settings)).output


class LiteLLM(Client):
    async def open(self) -> None:
        os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # nothing is fetched
        import litellm

        litellm.telemetry = False
        litellm.suppress_debug_info = True
        self.ask = litellm.acompletion
        self.common: dict[str, Any] = {"model": f"openai/{MODEL}", "api_base": self.url, "api_key": "none"}

    async def stream(self, number: int) -> int:
        deliver = Delivered()
        async for chunk in await self.ask(messages=self.jobs.joint(number), stream=True, **self.common):
            if chunk.choices and (text := chunk.choices[0].delta.content):
                deliver(text)
        return deliver.size

    async def reward(self, number: int) -> Any:
        answer = await self.ask(messages=self.jobs.rating(number), **SCORED, **self.common)
        return answer.choices[0].message.content


class LangChain(Client):
    async def open(self) -> None:
        from langchain_openai import ChatOpenAI

        common: dict[str, Any] = {"model": MODEL, "base_url": self.url, "api_key": "none", "max_retries": 0}
        self.model = ChatOpenAI(**common)
        self.scorer = ChatOpenAI(**common, max_tokens=1, logprobs=True, top_logprobs=10, temperature=0.0, seed=42)

    async def stream(self, number: int) -> int:
        deliver = Delivered()
        messages: Any = self.jobs.joint(number)
        async for chunk in self.model.astream(messages):
            deliver(str(chunk.content))
        return deliver.size

    async def reward(self, number: int) -> Any:
        messages: Any = self.jobs.rating(number)
        return (await self.scorer.ainvoke(messages)).content


CLIENTS: dict[str, type[Client]] = {
    "floor": Floor,
    "ours": Ours,
    "aiohttp": Aiohttp,
    "httpx": Httpx,
    "AsyncOpenAI": AsyncOpenAI,
    "instructor": Instructor,
    "pydantic-ai": PydanticAI,
    "litellm": LiteLLM,
    "langchain-openai": LangChain,
}
