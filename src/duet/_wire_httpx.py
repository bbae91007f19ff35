"""The transport on trio: that of httpx."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

import httpx

from duet._wire import KEEPALIVE_SECONDS, IteratedAnswer, reraise

if TYPE_CHECKING:
    import ssl


class HttpxTransport:
    """httpx without its client: cookies, redirects and auth flows are of no use here.

    Args:
        ssl_context: Verifies the server.
    """

    def __init__(self, ssl_context: ssl.SSLContext | None) -> None:
        limits = httpx.Limits(max_connections=None, keepalive_expiry=KEEPALIVE_SECONDS)
        # A context that loads certificates costs 20 ms; without one, plain http is spoken, which has no use for them.
        verify = False if ssl_context is None else ssl_context
        self._transport = httpx.AsyncHTTPTransport(verify=verify, limits=limits)

    async def send(
        self, url: str, headers: Mapping[str, str], content: bytes | None, connect: float | None
    ) -> IteratedAnswer:
        """POST `content`, or GET where it is None."""
        method = "GET" if content is None else "POST"
        extensions = {"timeout": {"connect": connect}}
        request = httpx.Request(method, url, headers=headers, content=content, extensions=extensions)
        request.stream = _OnePiece(content or b"")
        try:
            response = await self._transport.handle_async_request(request)
        except Exception as exc:
            reraise(exc)
        assert isinstance(response.stream, httpx.AsyncByteStream)
        return IteratedAnswer(response.status_code, response.headers, response.stream, response.aclose)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()


class _OnePiece(httpx.AsyncByteStream):
    """A body to be sent.

    That of httpx is an async generator, which a cancelled send leaves to the garbage collector, and trio complains.
    """

    def __init__(self, content: bytes) -> None:
        self._pieces = iter((content,))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        for piece in self._pieces:
            return piece
        raise StopAsyncIteration
