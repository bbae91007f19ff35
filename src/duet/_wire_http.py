"""The wire of `HTTPEndpoint`: a transport of our own on asyncio, that of httpx on trio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from duet._wire import (
    KEEPALIVE_SECONDS,
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


class HTTPWire:
    """A transport of our own on asyncio, that of httpx on trio.

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
        return await opened.transport.send(path, None if body is None else encode(body), connect)

    async def aclose(self) -> None:
        opened = self._opened.pop(_running_loop(), None)
        if opened is not None:
            await opened.closer.aclose()

    async def _open(self, loop: object) -> _Opened:
        # A context that loads certificates costs 20 ms; plain http has no use for one.
        context = _ssl_context(self._verify) if self.address.startswith("https:") else None
        opened = self._opened[loop] = _Opened(_new_transport(loop, self.address, self._headers, context))
        await anext(opened.closer)
        return opened


class _Transport(Protocol):
    """What makes connections, keeps them and closes them."""

    async def send(self, path: str, content: bytes | None, connect: float | None) -> Answer:
        """POST the content as JSON, or GET where it is None; raise WireFailure where no answer comes."""

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


def _new_transport(loop: object, address: str, headers: Mapping[str, str], ssl_context: Any) -> _Transport:
    if not isinstance(loop, asyncio.AbstractEventLoop):
        return _HttpxTransport(address, headers, ssl_context)
    from duet._wire_asyncio import AsyncioTransport  # its parser is of no use on trio

    return AsyncioTransport(address, headers, ssl_context)


class _HttpxTransport:
    def __init__(self, address: str, headers: Mapping[str, str], ssl_context: Any) -> None:
        import httpx  # 40 ms

        limits = httpx.Limits(max_connections=None, keepalive_expiry=KEEPALIVE_SECONDS)
        self._transport = httpx.AsyncHTTPTransport(verify=ssl_context or False, limits=limits)
        self._request = httpx.Request
        self._address = address
        self._headers = headers

    async def send(self, path: str, content: bytes | None, connect: float | None) -> Answer:
        response = await self._answered(self._new_request(path, content, connect))
        chunks = Chunks(response.stream, response.headers.get("content-encoding", ""))
        return Answer(response.status_code, response.headers, chunks, closing(chunks, response.aclose))

    async def aclose(self) -> None:
        await self._transport.aclose()

    def _new_request(self, path: str, content: bytes | None, connect: float | None) -> Any:
        return self._request(
            "GET" if content is None else "POST",
            f"{self._address}/{path}",
            headers={**self._headers} if content is None else {**self._headers, "content-type": "application/json"},
            content=content,
            extensions={"timeout": {"connect": connect}},
        )

    async def _answered(self, request: Any) -> Any:
        try:
            return await self._transport.handle_async_request(request)
        except Exception as exc:
            if not is_wire_failure(exc):
                raise
            raise failure_of(exc) from exc
