"""The wire of `HTTPEndpoint`: a transport for each event loop, aiohttp's on asyncio, that of httpx on trio."""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Protocol

from duet._wire import Answer, check_headers, encode, public_address, secrets_of


class Transport(Protocol):
    """Requests out, answers in, on one event loop."""

    async def send(self, url: str, headers: Mapping[str, str], content: bytes | None, connect: float | None) -> Answer:
        """POST `content`, or GET where it is None; raise WireFailure where no answer comes."""

    async def aclose(self) -> None:
        """Close all connections."""


class HTTPWire:
    """HTTP, spoken directly.

    Each event loop has a transport of its own, closed with the loop at the latest.
    """

    def __init__(self, base_url: str, *, api_key: str | None, headers: Mapping[str, str], verify: Any) -> None:
        self.address = public_address(base_url)
        own = {"accept-encoding": "identity", "user-agent": "duet"}
        if api_key:
            own["authorization"] = f"Bearer {api_key}"
        check_headers(own)
        check_headers(headers)
        self._headers = own | {name.lower(): value for name, value in headers.items()}
        self._headers_of_json = self._headers | {"content-type": "application/json"}
        self.secrets = secrets_of(own) + secrets_of(self._headers)
        self.closings = 0
        self._verify = verify
        self._opened: dict[object, _Opened] = {}

    async def send(self, path: str, body: Mapping[str, Any] | None, connect: float | None) -> Answer:
        opened = self._opened.get(_running_loop()) or await self._open()
        url = f"{self.address}/{path}"
        if body is None:
            return await opened.transport.send(url, self._headers, None, connect)
        return await opened.transport.send(url, self._headers_of_json, encode(body), connect)

    async def aclose(self) -> None:
        opened = self._opened.get(_running_loop())
        if opened is not None:
            self.closings += 1
            await opened.closer.aclose()

    async def _open(self) -> _Opened:
        loop = _running_loop()
        transport = _new_transport(self.address, self._verify, loop)
        opened = self._opened[loop] = _Opened(transport, functools.partial(self._opened.pop, loop, None))
        await anext(opened.closer)
        return opened


class _Opened:
    """A transport, and a generator that closes it: an event loop closes its generators when it ends."""

    def __init__(self, transport: Transport, forget: Callable[[], object]) -> None:
        self.transport = transport
        self.closer = _closing(transport, forget)


async def _closing(transport: Transport, forget: Callable[[], object]) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        forget()  # a transport holds its loop, so the loop would not be let go otherwise
        await transport.aclose()


def _running_loop() -> object:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        import trio

        return trio.lowlevel.current_trio_token()


def _new_transport(address: str, verify: ssl.SSLContext | bool, loop: object) -> Transport:
    ssl_context = _ssl_context(verify) if address.startswith("https:") else None
    if isinstance(loop, asyncio.AbstractEventLoop):
        from duet._wire_aiohttp import AiohttpTransport

        return AiohttpTransport(ssl_context)
    from duet._wire_httpx import HttpxTransport

    return HttpxTransport(ssl_context)


def _ssl_context(verify: ssl.SSLContext | bool) -> ssl.SSLContext:
    if isinstance(verify, ssl.SSLContext):
        return verify
    import httpx

    return httpx.create_ssl_context(verify=verify)
