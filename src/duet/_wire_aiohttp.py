"""The transport on asyncio: aiohttp."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING
from weakref import WeakSet

import aiohttp

from duet._wire import KEEPALIVE_SECONDS, decoder, reraise

if TYPE_CHECKING:
    import ssl

_WARNED_OF_BYTES = 2**20  # aiohttp warns of a larger body that is not a file


class AiohttpTransport:
    """aiohttp without what a program and its model server have no use for: cookies, redirects, pools that make wait.

    Args:
        ssl_context: Verifies the server.
    """

    def __init__(self, ssl_context: ssl.SSLContext | None) -> None:
        # limit=0: how many requests are in flight is the caller's `concurrency`, not a pool's silent 100.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_SECONDS, ssl=ssl_context or True)
        self._session = aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
        )
        self._answers: WeakSet[aiohttp.ClientResponse] = WeakSet()

    async def send(
        self, url: str, headers: Mapping[str, str], content: bytes | None, connect: float | None
    ) -> AiohttpAnswer:
        """POST `content`, or GET where it is None."""
        try:
            response = await self._session.request(
                "GET" if content is None else "POST",
                url,
                headers=headers,
                data=content if content is None or len(content) <= _WARNED_OF_BYTES else io.BytesIO(content),
                timeout=_timeout(connect),
                allow_redirects=False,
            )
        except Exception as exc:
            reraise(exc)
        self._answers.add(response)
        return AiohttpAnswer(response)

    async def aclose(self) -> None:
        """Close all connections."""
        for response in tuple(self._answers):
            response.close()  # who waits for the rest of one is told so; the session would leave it waiting
        await self._session.close()


@functools.cache
def _timeout(connect: float | None) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, connect=connect)


class AiohttpAnswer:
    """An answer of aiohttp.

    Args:
        response: Its head has arrived.
    """

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self._response = response
        self._body = response.content
        self._decode = decoder(self.headers.get("content-encoding", ""))

    def arrived(self) -> bytes | None:
        """What aiohttp has read."""
        try:
            data = self._body.read_nowait()
        except Exception as exc:
            reraise(exc, begun=True)
        if not data:
            return None if self._body.at_eof() else b""
        return self._decode(data)

    async def read(self) -> bytes | None:
        """The next bytes; what breaks below HTTP becomes a WireFailure."""
        try:
            data = await self._body.readany()
        except Exception as exc:
            reraise(exc, begun=True)
        return self._decode(data) if data else None

    async def aclose(self) -> None:
        """Close the connection, unless the answer has been read to its end."""
        if not self._body.at_eof():
            self._response.close()
