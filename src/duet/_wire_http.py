"""The wire of `HTTPEndpoint`: aiohttp on asyncio, the transport of httpx on trio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from duet._wire import (
    Answer,
    Chunks,
    check_headers,
    closing,
    encode,
    failure_of,
    is_wire_failure,
    public_address,
    secrets_of,
)

KEEPALIVE_SECONDS = 4.0  # uvicorn, and so vLLM, drops an idle connection after 5


class HTTPWire:
    """aiohttp on asyncio, the transport of httpx on trio.

    Each event loop has a transport of its own, closed with the loop at the latest. Nothing above a transport is used:
    cookies, redirects, proxies and auth flows cost time in each call and are not wanted here.
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
        opened = self._opened.get(loop := _running_loop()) or await self._open(loop)
        content = None if body is None else encode(body)
        headers = self._headers if body is None else self._headers | {"content-type": "application/json"}
        try:
            return await opened.transport.send(f"{self.address}/{path}", content, headers, connect)
        except Exception as exc:
            if not is_wire_failure(exc):
                raise
            raise failure_of(exc) from exc

    async def aclose(self) -> None:
        opened = self._opened.pop(_running_loop(), None)
        if opened is not None:
            await opened.closer.aclose()

    async def _open(self, loop: object) -> _Opened:
        # A context that loads certificates costs 20 ms; plain http has no use for one.
        context = _ssl_context(self._verify) if self.address.startswith("https:") else False
        kind = _AiohttpTransport if isinstance(loop, asyncio.AbstractEventLoop) else _HttpxTransport
        opened = self._opened[loop] = _Opened(kind(context))
        await anext(opened.closer)
        return opened


class _Transport(Protocol):
    """What makes connections, keeps them and closes them."""

    async def send(self, url: str, content: bytes | None, headers: Mapping[str, str], connect: float | None) -> Answer:
        """POST the content, or GET where it is None."""

    async def aclose(self) -> None:
        """Close every connection."""


class _Opened:
    """A transport, and a generator that closes it: an event loop closes its generators when it ends."""

    def __init__(self, transport: _Transport) -> None:
        self.transport = transport
        self.closer = _closing(transport)


async def _closing(transport: _Transport) -> AsyncGenerator[None]:
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


def _ssl_context(verify: Any) -> Any:
    import httpx

    return httpx.create_ssl_context(verify=verify)


class _AiohttpTransport:
    def __init__(self, ssl_context: Any) -> None:
        import aiohttp  # 100 ms

        # limit=0: how many requests are in flight is the caller's `concurrency`, not a pool's silent 100.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_SECONDS, ssl=ssl_context)
        jar = aiohttp.DummyCookieJar()
        self._session = aiohttp.ClientSession(connector=connector, cookie_jar=jar, auto_decompress=False)
        self._timeout = aiohttp.ClientTimeout

    async def send(self, url: str, content: bytes | None, headers: Mapping[str, str], connect: float | None) -> Answer:
        response = await self._session.request(
            "GET" if content is None else "POST",
            url,
            data=content,
            headers=headers,
            allow_redirects=False,
            timeout=self._timeout(sock_connect=connect),
        )

        body = response.content

        def arrived() -> bytes | None:
            data = body.read_nowait()
            return None if not data and body.at_eof() else data

        async def close() -> None:
            response.close()  # a body that was read to its end has given its connection back already

        chunks = Chunks(body.iter_any(), response.headers.get("content-encoding", ""), arrived)
        return Answer(response.status, response.headers, chunks, close)

    async def aclose(self) -> None:
        await self._session.close()


class _HttpxTransport:
    def __init__(self, ssl_context: Any) -> None:
        import httpx  # 40 ms

        limits = httpx.Limits(max_connections=None, keepalive_expiry=KEEPALIVE_SECONDS)
        self._transport = httpx.AsyncHTTPTransport(verify=ssl_context, limits=limits)
        self._request = httpx.Request

    async def send(self, url: str, content: bytes | None, headers: Mapping[str, str], connect: float | None) -> Answer:
        method = "GET" if content is None else "POST"
        timeout = {"timeout": {"connect": connect}}
        request = self._request(method, url, headers=headers, content=content, extensions=timeout)
        response = await self._transport.handle_async_request(request)
        stream: Any = response.stream
        chunks = Chunks(stream, response.headers.get("content-encoding", ""))
        return Answer(response.status_code, response.headers, chunks, closing(chunks, response.aclose))

    async def aclose(self) -> None:
        await self._transport.aclose()
