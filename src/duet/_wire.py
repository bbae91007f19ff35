"""Requests out, bytes in: the only module that touches a socket. It knows HTTP, not chat completions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import anyio
import attrs
import httpx

from duet._errors import ConfigurationError

if TYPE_CHECKING:
    import openai

KEEPALIVE_SECONDS = 4.0  # uvicorn, and so vLLM, drops an idle connection after 5


class WireFailure(Exception):
    """The exchange broke below HTTP.

    Attributes:
        stale: The server closed the connection without a word, as it may do to one that was kept alive.
    """

    def __init__(self, message: str, *, stale: bool = False) -> None:
        super().__init__(message)
        self.stale = stale


@attrs.frozen
class Answer:
    """The head of an HTTP answer, its body to come, and how to close it."""

    status: int
    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes]
    close: Callable[[], Awaitable[None]] = attrs.field(repr=False)

    async def aclose(self) -> None:
        """Close the body. Where it was not read to its end the connection goes too, and a server stops generating."""
        with anyio.CancelScope(shield=True):
            await self.close()


class Wire(Protocol):
    """Sends one request and hands over the answer, whatever its status."""

    @property
    def address(self) -> str:
        """The base address as it may stand in a message."""

    async def send(self, path: str, body: Mapping[str, Any] | None, connect: float | None) -> Answer:
        """POST `body` as JSON, or GET where it is None; raise WireFailure where no answer comes."""

    async def aclose(self) -> None:
        """Close idle connections."""


def public_address(base_url: str) -> str:
    """The base address, checked.

    Raises:
        ConfigurationError: It is no http address, or carries user, password, query or fragment.
    """
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError("base_url must look like 'http://127.0.0.1:8000/v1'")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigurationError("base_url must hold no user, password, query or fragment: use api_key or headers")
    return base_url.rstrip("/")


def encode(body: Mapping[str, Any]) -> bytes:
    """JSON in UTF-8; a lone surrogate, which UTF-8 cannot hold, becomes "?"."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


class HTTPWire:
    """httpx over aiohttp's transport on asyncio, over its own on trio.

    A transport belongs to the event loop that first used it; on another loop a new one is opened. Requests go straight
    to the transport: `httpx.AsyncClient` adds cookies, redirects and auth flows that nothing here wants, at a cost per
    call.
    """

    def __init__(self, base_url: str, *, api_key: str | None, headers: Mapping[str, str], verify: Any) -> None:
        self.address = public_address(base_url)
        self._headers = {"accept-encoding": "identity", "user-agent": "duet", **headers}
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._verify = verify
        self._transport: httpx.AsyncBaseTransport | None = None
        self._loop: object = None

    async def send(self, path: str, body: Mapping[str, Any] | None, connect: float | None) -> Answer:
        request = httpx.Request(
            "GET" if body is None else "POST",
            f"{self.address}/{path}",
            headers=self._headers if body is None else self._headers | {"content-type": "application/json"},
            content=None if body is None else encode(body),
            extensions={"timeout": {"connect": connect}},
        )
        transport = self._current_transport()
        try:
            response = await transport.handle_async_request(request)
        except (httpx.HTTPError, OSError) as exc:
            raise _failure(exc) from exc
        # aiter_bytes undoes an encoding that was not asked for; the bare stream skips its bookkeeping.
        body_stream = response.aiter_bytes() if "content-encoding" in response.headers else response.stream
        return Answer(response.status_code, response.headers, _guarded(body_stream), response.aclose)

    async def aclose(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None and self._loop is _running_loop():
            await transport.aclose()

    def _current_transport(self) -> httpx.AsyncBaseTransport:
        loop = _running_loop()
        if self._transport is None or self._loop is not loop:
            self._loop = loop
            # A context that loads the system's certificates costs 20 ms; plain http has no use for one.
            verify = self._verify if self.address.startswith("https:") else False
            on_asyncio = isinstance(loop, asyncio.AbstractEventLoop)
            self._transport = _aiohttp_transport(verify) if on_asyncio else _httpcore_transport(verify)
        return self._transport


class OpenAIWire:
    """A caller's own `AsyncOpenAI` (Azure and custom auth included), its answers read raw.

    The client is told not to retry: the endpoint above has the one retry layer.
    """

    def __init__(self, client: openai.AsyncOpenAI) -> None:
        self._client = client.with_options(max_retries=0)
        self.address = str(client.base_url).split("?")[0].rstrip("/")

    async def send(self, path: str, body: Mapping[str, Any] | None, connect: float | None) -> Answer:
        import openai

        try:
            manager = self._request(path, body)
            response = await manager.__aenter__()
        except openai.APIStatusError as exc:
            return _whole_answer(exc.response.status_code, exc.response.headers, exc.response.content)
        except openai.APIConnectionError as exc:
            raise _failure(exc.__cause__ or exc) from exc

        async def close() -> None:
            await manager.__aexit__(None, None, None)

        return Answer(response.status_code, response.headers, _guarded(response.iter_bytes()), close)

    async def aclose(self) -> None:
        """Nothing: the client is the caller's."""

    def _request(self, path: str, body: Mapping[str, Any] | None) -> Any:
        if body is None:
            return self._client.models.with_streaming_response.list()
        own = {"model": body["model"], "extra_body": body}
        if path == "embeddings":
            return self._client.embeddings.with_streaming_response.create(input=body["input"], **own)
        return self._client.chat.completions.with_streaming_response.create(
            messages=body["messages"], stream=body.get("stream", False), **own
        )


def _running_loop() -> object:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        import trio

        return trio.lowlevel.current_trio_token()


def _aiohttp_transport(verify: Any) -> httpx.AsyncBaseTransport:
    import aiohttp
    import httpx_aiohttp

    def session() -> aiohttp.ClientSession:
        # limit=0: how many requests are in flight is the caller's `concurrency`, not a pool's silent 100.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_SECONDS, ssl=transport.ssl_context)
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

    transport = httpx_aiohttp.AiohttpTransport(verify=verify, client=session)
    return transport


def _httpcore_transport(verify: Any) -> httpx.AsyncBaseTransport:
    limits = httpx.Limits(max_connections=None, keepalive_expiry=KEEPALIVE_SECONDS)
    return httpx.AsyncHTTPTransport(verify=verify, limits=limits)


async def _guarded(chunks: Any) -> AsyncIterator[bytes]:
    try:
        async for chunk in chunks:
            yield chunk
    except (httpx.HTTPError, OSError) as exc:
        raise _failure(exc) from exc
    except Exception as exc:
        # openai ≥ 3 reads through httpx2, whose errors share only their name with httpx's.
        if type(exc).__module__.partition(".")[0] in ("httpx2", "httpcore2", "aiohttp"):
            raise _failure(exc) from exc
        raise


def _failure(exc: BaseException) -> WireFailure:
    # httpx-aiohttp reports a closed connection as ConnectTimeout; what really happened is the cause.
    cause = exc.__cause__ if type(exc.__cause__).__module__.startswith("aiohttp") else exc
    name = type(cause).__name__
    stale = name in ("ServerDisconnectedError", "RemoteProtocolError", "ClientOSError")
    return WireFailure(f"{name}: {cause}" if str(cause) else name, stale=stale)


def _whole_answer(status: int, headers: Mapping[str, str], body: bytes) -> Answer:
    async def chunks() -> AsyncIterator[bytes]:
        yield body

    async def close() -> None:
        pass

    return Answer(status, headers, chunks(), close)
