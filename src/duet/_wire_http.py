"""The wire of `HTTPEndpoint`: httpx over aiohttp's transport on asyncio, over its own on trio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import httpx

from duet._wire import Answer, Chunks, check_headers, encode, failure_of, is_wire_failure, public_address, secrets_of

KEEPALIVE_SECONDS = 4.0  # uvicorn, and so vLLM, drops an idle connection after 5


class HTTPWire:
    """httpx over aiohttp's transport on asyncio, over its own on trio.

    Each event loop has a transport of its own, closed with the loop at the latest. Requests go straight to the
    transport: `httpx.AsyncClient` adds cookies, redirects and auth flows that nothing here wants, at a cost per call.
    """

    def __init__(self, base_url: str, *, api_key: str | None, headers: Mapping[str, str], verify: Any) -> None:
        self.address = public_address(base_url)
        self._headers = {"accept-encoding": "identity", "user-agent": "duet", **headers}
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"
        check_headers(self._headers)
        self.secrets = secrets_of(self._headers)
        self._verify = verify
        self._opened: WeakKeyDictionary[object, _Opened] = WeakKeyDictionary()

    async def send(self, path: str, body: Mapping[str, Any] | None, connect: float | None) -> Answer:
        request = httpx.Request(
            "GET" if body is None else "POST",
            f"{self.address}/{path}",
            headers=self._headers if body is None else self._headers | {"content-type": "application/json"},
            content=None if body is None else encode(body),
            extensions={"timeout": {"connect": connect}},
        )
        transport = await self._current_transport()
        try:
            response = await transport.handle_async_request(request)
        except Exception as exc:
            if not is_wire_failure(exc):
                raise
            raise failure_of(exc) from exc
        assert isinstance(response.stream, httpx.AsyncByteStream)
        chunks = Chunks(response.stream, response.headers.get("content-encoding", ""))
        return Answer(response.status_code, response.headers, chunks, response.aclose)

    async def aclose(self) -> None:
        opened = self._opened.pop(_running_loop(), None)
        if opened is not None:
            await opened.closer.aclose()

    async def _current_transport(self) -> httpx.AsyncBaseTransport:
        loop = _running_loop()
        opened = self._opened.get(loop)
        if opened is None:
            # A context that loads the system's certificates costs 20 ms; plain http has no use for one.
            verify = self._verify if self.address.startswith("https:") else False
            on_asyncio = isinstance(loop, asyncio.AbstractEventLoop)
            opened = _Opened(_aiohttp_transport(verify) if on_asyncio else _httpcore_transport(verify))
            self._opened[loop] = opened
            await anext(opened.closer)
        return opened.transport


class _Opened:
    """A transport, and a generator that closes it: an event loop closes its generators when it ends."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self.transport = transport
        self.closer = _closing(transport)


async def _closing(transport: httpx.AsyncBaseTransport) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        await transport.aclose()


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
