"""The wire of `HTTPEndpoint`: httpx over aiohttp's transport on asyncio, over its own on trio."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx

from duet._wire import Answer, Chunks, encode, failure_of, is_wire_failure, public_address, secrets_of

KEEPALIVE_SECONDS = 4.0  # uvicorn, and so vLLM, drops an idle connection after 5


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
        self.secrets = secrets_of(self._headers)
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
        except Exception as exc:
            if not is_wire_failure(exc):
                raise
            raise failure_of(exc) from exc
        body_stream = response.stream
        if "content-encoding" in response.headers or not isinstance(body_stream, httpx.AsyncByteStream):
            return Answer(response.status_code, response.headers, Chunks(response.aiter_bytes()), response.aclose)
        # The bare stream skips the bookkeeping of aiter_bytes, which only an encoding that was not asked for needs.
        return Answer(response.status_code, response.headers, Chunks(body_stream), response.aclose)

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
