"""Endpoints: chat messages in, completions out, over any OpenAI-compatible server.

One retry layer, one set of deadlines and one reading of errors serve every endpoint; how the bytes travel is the
wire's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Protocol, Self, get_args

import anyio

from duet._caller import Exchange, Served
from duet._errors import ConfigurationError, IncompleteStream
from duet._events import GenerationEnd, TextDelta
from duet._prompts import Message
from duet._results import Completion
from duet._settings import Deadlines, EndpointSettings, Engine, Sampling
from duet._sse import ChatDecoder, load, read_completion
from duet._wire import Wire

if TYPE_CHECKING:
    import ssl

    import openai

_GRAMMAR_FIELDS: dict[str, Callable[[str], dict[str, Any]]] = {
    "llama.cpp": lambda grammar: {"grammar": grammar},
    "vllm": lambda grammar: {"structured_outputs": {"grammar": grammar}},
}
_OWNERS: dict[str, Engine] = {"llamacpp": "llama.cpp", "vllm": "vllm", "openai": "openai", "system": "openai"}


class Endpoint(Protocol):
    """What generates text. Any object of this shape will do."""

    @property
    def model(self) -> str:
        """What decides the weights: the model's or the adapter's name."""

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """One completion, whole.

        Args:
            messages: The prompt.
            sampling: How to sample; what is None is the endpoint's own choice.

        Raises:
            EndpointError: The infrastructure's fault.
        """

    def stream(
        self, messages: Sequence[Message], sampling: Sampling
    ) -> AbstractAsyncContextManager[AsyncIterator[TextDelta | GenerationEnd]]:
        """One completion as it comes, a `GenerationEnd` last. Leaving the block early stops the generation.

        Args:
            messages: The prompt.
            sampling: How to sample; what is None is the endpoint's own choice.

        Raises:
            EndpointError: On entering the block or while iterating: the infrastructure's fault.
        """


class _ChatEndpoint(Served):
    """Chat completions over a wire."""

    def __init__(
        self,
        wire: Wire,
        model: str,
        *,
        engine: Engine | None,
        deadlines: Deadlines,
        retries: int,
        accept_open_end: bool,
    ) -> None:
        super().__init__(wire, model, deadlines=deadlines, retries=retries)
        if engine is not None and engine not in get_args(Engine):
            raise ConfigurationError(f"engine must be one of {', '.join(get_args(Engine))}; got {engine!r}")
        self._engine: Engine | None = engine
        self._accept_open_end = accept_open_end

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """One completion, whole.

        Args:
            messages: The prompt.
            sampling: How to sample.

        Raises:
            EndpointError: See the error tree; retried where that can help, within `Deadlines.total`.
            ConfigurationError: A grammar is asked of an engine that has none.
        """
        ends = self._caller.ends()
        body = await self._body(messages, sampling, ends)
        attempt: Callable[[], Awaitable[Completion]]
        if self._engine == "llama.cpp":  # it runs a plain request to its end, even when nobody waits any more
            attempt = functools.partial(self._collect, body, ends)
        else:
            read = functools.partial(read_completion, prompt_chars=_chars(body))
            attempt = functools.partial(self._caller.ask, "chat/completions", body, ends, read)
        return await self._caller.retrying(ends, attempt)

    def stream(
        self, messages: Sequence[Message], sampling: Sampling
    ) -> AbstractAsyncContextManager[AsyncIterator[TextDelta | GenerationEnd]]:
        """One completion as it comes, a `GenerationEnd` last. Leaving the block early closes the connection.

        Entering the block waits for the first text; retries end there.

        Args:
            messages: The prompt.
            sampling: How to sample.

        Raises:
            EndpointError: On entering or in mid-stream, see the error tree.
            ConfigurationError: A grammar is asked of an engine that has none.
        """
        return _Streaming(functools.partial(self._start, messages, sampling))

    async def _start(self, messages: Sequence[Message], sampling: Sampling) -> _TextStream:
        ends = self._caller.ends()
        body = await self._body(messages, sampling, ends)
        return await self._caller.retrying(ends, functools.partial(self._open, body, ends))

    async def _open(self, body: Mapping[str, Any], ends: float) -> _TextStream:
        """A stream whose first text has arrived."""
        streamed = {"stream_options": {"include_usage": True}, **body, "stream": True}
        first_token = anyio.current_time() + (self._caller.deadlines.first_token or math.inf)
        exchange = await self._caller.open("chat/completions", streamed, min(first_token, ends))
        try:
            stream = _TextStream(exchange, _chars(body), self._caller.deadlines.idle, self._accept_open_end)
            await stream.prime()
        except BaseException:
            await exchange.aclose()
            raise
        exchange.extend(ends)
        return stream

    async def _collect(self, body: Mapping[str, Any], ends: float) -> Completion:
        stream = await self._open(body, ends)
        try:
            async for step in stream:
                if isinstance(step, GenerationEnd):
                    return step.completion
        finally:
            await stream.aclose()
        raise AssertionError("a stream ends with GenerationEnd or an error")

    async def _body(self, messages: Sequence[Message], sampling: Sampling, ends: float) -> dict[str, Any]:
        body = {"model": self._model, "messages": list(messages)} | sampling.request_fields()
        if sampling.grammar is not None:
            body |= await self._grammar(sampling.grammar, ends)
        return body

    async def _grammar(self, grammar: str, ends: float) -> dict[str, Any]:
        # llama.cpp and vLLM each ignore the other's field in silence, so the engine has to be known.
        if self._engine is None:
            self._engine = await self._caller.retrying(ends, functools.partial(self._probe, ends))
        engine = str(self._engine)
        fields = _GRAMMAR_FIELDS.get(engine)
        if fields is None:
            raise ConfigurationError(
                f"{self._wire.address}: engine {engine!r} cannot decode under a grammar: leave it out, or use "
                "llama.cpp or vLLM"
            )
        return fields(grammar)

    async def _probe(self, ends: float) -> Engine:
        models = (await self._caller.ask("models", None, ends, load)).get("data")
        first = models[0] if isinstance(models, list) and models else {}
        owner = first.get("owned_by") if isinstance(first, Mapping) else None
        engine = _OWNERS.get(owner) if isinstance(owner, str) else None
        if engine is None:
            said = self._caller.redacted(repr(owner))
            raise ConfigurationError(
                f"{self._wire.address}: cannot tell which engine serves this (owned_by {said}): pass "
                "engine='llama.cpp' or engine='vllm', since each ignores the other's grammar field in silence"
            )
        return engine


class HTTPEndpoint(_ChatEndpoint):
    """An OpenAI-compatible server, spoken to directly.

    On asyncio the requests travel over aiohttp, on trio over httpx's own transport. May be shared by any number of
    tasks. Close it with ``async with`` or `aclose`.

    Args:
        base_url: Up to and including the version, as in "http://127.0.0.1:8000/v1".
        model: Model or adapter name.
        api_key: Sent as a bearer token. Neither it nor a header whose name speaks of a key, token or authorization is
            ever shown, even where the server repeats it.
        engine: "llama.cpp", "vllm" or "openai"; None asks the server when a grammar first needs it.
        headers: Sent with every request.
        deadlines: How long to wait.
        retries: How often a failed call is repeated before its first text arrived: connection failures, 408, 409, 425,
            429 and 5xx, after Retry-After or a growing, jittered pause.
        accept_open_end: Take a stream that ends without finish_reason and ``[DONE]`` as complete. For servers that
            never send either; a cut connection then looks like an answer.
        verify: An `ssl.SSLContext`, or False to trust any certificate.

    Raises:
        ConfigurationError: A setting that cannot work.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        engine: Engine | None = None,
        headers: Mapping[str, str] | None = None,
        deadlines: Deadlines = Deadlines(),
        retries: int = 2,
        accept_open_end: bool = False,
        verify: ssl.SSLContext | bool = True,
    ) -> None:
        from duet._wire_http import HTTPWire  # asyncio takes 20 ms to import

        super().__init__(
            HTTPWire(base_url, api_key=api_key, headers=headers or {}, verify=verify),
            model,
            engine=engine,
            deadlines=deadlines,
            retries=retries,
            accept_open_end=accept_open_end,
        )

    @classmethod
    def from_env(cls, **settings: Any) -> Self:
        """The endpoint that DUET_BASE_URL, DUET_MODEL and DUET_API_KEY name (see `EndpointSettings.from_env`).

        Args:
            settings: Keyword arguments of the class.

        Raises:
            ConfigurationError: No model is named.
        """
        found = EndpointSettings.from_env()
        return cls(found.base_url, found.model, api_key=found.api_key, **settings)


class AsyncOpenAIEndpoint(_ChatEndpoint):
    """A caller's own `openai.AsyncOpenAI`, `AsyncAzureOpenAI` or subclass: its address, auth and HTTP client are kept.

    Its answers are read raw, without building the SDK's typed objects, and its own retries are switched off for these
    calls, since this endpoint retries.

    Args:
        client: The client, 2.25 or newer; it stays open when this endpoint is closed.
        model: Model, adapter or deployment name.
        engine: As for `HTTPEndpoint`.
        deadlines: As for `HTTPEndpoint`; `connect` is the client's own.
        retries: As for `HTTPEndpoint`.
        accept_open_end: As for `HTTPEndpoint`.

    Raises:
        MissingExtraError: The package openai is not installed; it is the extra `openai`.
    """

    def __init__(
        self,
        client: openai.AsyncOpenAI,
        model: str,
        *,
        engine: Engine | None = None,
        deadlines: Deadlines = Deadlines(),
        retries: int = 2,
        accept_open_end: bool = False,
    ) -> None:
        from duet._wire_openai import OpenAIWire

        super().__init__(
            OpenAIWire(client),
            model,
            engine=engine,
            deadlines=deadlines,
            retries=retries,
            accept_open_end=accept_open_end,
        )


class _Streaming(AbstractAsyncContextManager[AsyncIterator[TextDelta | GenerationEnd]]):
    """A block around one stream. Cancelling a thousand takes a fifth longer where each is an `asynccontextmanager`."""

    def __init__(self, start: Callable[[], Awaitable[_TextStream]]) -> None:
        self._start = start

    async def __aenter__(self) -> _TextStream:
        self._stream = await self._start()
        return self._stream

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stream.aclose()


class _TextStream:
    """The deltas of one streamed completion."""

    def __init__(self, exchange: Exchange, prompt_chars: int, idle: float | None, accept_open_end: bool) -> None:
        self._exchange = exchange
        self._idle = idle
        self._decoder = ChatDecoder(prompt_chars)
        self._accept_open_end = accept_open_end
        self._primed = ""
        self._whole: Completion | None = None
        self._body_over = False
        self._ended = False

    async def prime(self) -> None:
        """Wait for the first text, or for the end of a body without any."""
        if self._exchange.is_json:  # a server that cannot stream answers whole
            self._whole = self._exchange.understood(read_completion, await self._exchange.read(), 0)
            self._primed, self._body_over = self._whole.text, True
            return
        while not self._primed and not self._body_over and not self._decoder.done:
            self._primed = await self._read(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TextDelta | GenerationEnd:
        text, self._primed = self._primed, ""
        while not text:
            if self._body_over or self._decoder.done:
                return self._end()
            text = await self._read(self._idle)
        return TextDelta(text)

    async def aclose(self) -> None:
        try:
            if self._decoder.done and not self._body_over:
                await self._exchange.drain()
        finally:
            await self._exchange.aclose()

    async def _read(self, seconds: float | None) -> str:
        data = await self._exchange.read_chunk(seconds, broken_ok=self._decoder.complete)
        if data is None:
            self._body_over = True
            return self._exchange.understood(self._decoder.close)
        return self._exchange.understood(self._decoder.feed, data)

    def _end(self) -> GenerationEnd:
        if self._ended:
            raise StopAsyncIteration
        self._ended = True
        if self._whole is not None:
            return GenerationEnd(self._whole)
        if not (self._decoder.complete or self._accept_open_end):
            address = self._exchange.address
            raise IncompleteStream(
                f"{address}: the stream ended without finish_reason or [DONE]; if this server never sends them, pass "
                "accept_open_end=True",
                endpoint=address,
                status_code=200,
            )
        return GenerationEnd(self._decoder.result())


def _chars(body: Mapping[str, Any]) -> int:
    return sum(len(message["content"]) for message in body["messages"])
