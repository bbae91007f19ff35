"""HTTP/1.1 on asyncio: the event loop's own sockets, llhttp as the parser, and little between the two.

A connection is kept for the next request once an answer was read to its end, and closed in every other case.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import quote, urlsplit

import httptools

from duet._wire import KEEPALIVE_SECONDS, Answer, Chunks, WireFailure

if TYPE_CHECKING:
    import ssl

MAX_HEAD_BYTES = 64 * 1024
MAX_UNREAD_BYTES = 256 * 1024  # beyond that, what the server sends waits in the socket
_EYEBALLS_SECONDS = 0.25  # RFC 8305: an address that does not answer is not waited for


class AsyncioTransport:
    """Connections to one address, as many as are asked for at once.

    Args:
        address: Base address of all requests.
        headers: Sent with each of them.
        ssl_context: For https; None for http.
    """

    def __init__(self, address: str, headers: Mapping[str, str], ssl_context: ssl.SSLContext | None) -> None:
        parts = urlsplit(address)
        self._place: Any = (parts.hostname, parts.port or (80 if ssl_context is None else 443))
        self._root = quote(parts.path, safe="/%:@!$&'()*+,;=~")
        host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in ({"host": host} | dict(headers)).items())
        self._ssl_context = ssl_context
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._sweep: asyncio.TimerHandle | None = None

    async def send(self, path: str, content: bytes | None, connect: float | None) -> Answer:
        """POST the content as JSON, or GET where it is None; the answer's head has arrived."""
        connection = self._kept() or await self._connected(connect)
        reply = connection.ask(self._request(path, content))
        try:
            await reply.head()
        except BaseException:
            connection.abort()
            raise
        chunks = Chunks(reply, reply.headers.get("content-encoding", ""), reply.arrived)
        return Answer(reply.status, reply.headers, chunks, reply.aclose)

    async def aclose(self) -> None:
        """Close every connection."""
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in self._open:
            connection.abort()
        await asyncio.sleep(0)  # the event loop closes a socket on its next round

    def keep(self, connection: _Connection) -> None:
        """Take a connection back, to be used again."""
        connection.idle_since = asyncio.get_running_loop().time()
        self._idle.append(connection)
        if self._sweep is None:
            self._sweep_after(KEEPALIVE_SECONDS)

    def forget(self, connection: _Connection) -> None:
        """A connection is closed."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def _kept(self) -> _Connection | None:
        if self._idle:
            connection = self._idle.pop()
            if connection.idle_since + KEEPALIVE_SECONDS > asyncio.get_running_loop().time():
                return connection
            connection.abort()
        return None

    def _sweep_after(self, seconds: float) -> None:
        self._sweep = asyncio.get_running_loop().call_later(seconds, self._close_old)

    def _close_old(self) -> None:
        self._sweep = None
        oldest = asyncio.get_running_loop().time() - KEEPALIVE_SECONDS
        for connection in self._idle:
            if connection.idle_since <= oldest:
                connection.abort()
        self._idle = [connection for connection in self._idle if connection.idle_since > oldest]
        if self._idle:
            self._sweep_after(self._idle[0].idle_since - oldest)

    async def _connected(self, seconds: float | None) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(seconds):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self),
                    *self._place,
                    ssl=self._ssl_context,
                    happy_eyeballs_delay=_EYEBALLS_SECONDS,
                )
        except TimeoutError as exc:
            raise WireFailure("cannot connect: the deadline for connecting is over") from exc
        except OSError as exc:
            raise WireFailure(f"cannot connect, is the server running? ({exc})") from exc
        self._open.add(connection)
        return connection

    def _request(self, path: str, content: bytes | None) -> bytes:
        if content is None:
            return f"GET {self._root}/{path} HTTP/1.1\r\n{self._headers}\r\n".encode()
        length = f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        return f"POST {self._root}/{path} HTTP/1.1\r\n{self._headers}{length}".encode() + content


class _Reply:
    """One answer, as far as it has arrived."""

    def __init__(self, connection: _Connection) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.begun = self.headed = self.over = False
        self.failure: WireFailure | None = None
        self._connection = connection
        self._pieces: list[bytes] = []
        self._unread = 0
        self._news: asyncio.Future[None] | None = None

    async def head(self) -> None:
        """Wait for status and headers."""
        while not self.headed:
            await self._more()

    def arrived(self) -> bytes | None:
        """What was received and not read, which may be nothing; None at the end."""
        if not self._pieces:
            return None if self.over else b""
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces, self._unread = [], 0
        if not self.over:
            self._connection.resume()
        return data

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while (data := self.arrived()) == b"":
            await self._more()
        if data is None:
            raise StopAsyncIteration
        return data

    async def aclose(self) -> None:
        """Close the connection, unless the answer was received to its end."""
        if not self.over:
            self._connection.abort()

    def add(self, piece: bytes) -> bool:
        """Take a piece of the body; whether that is more than should wait unread."""
        self._pieces.append(piece)
        self._unread += len(piece)
        return self._unread > MAX_UNREAD_BYTES

    def tell(self) -> None:
        """Wake who waits."""
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def _more(self) -> None:
        if self.failure is not None:
            raise self.failure
        self._news = asyncio.get_running_loop().create_future()
        await self._news


class _Connection(asyncio.Protocol):
    """One socket; one request on it at a time."""

    idle_since = 0.0

    def __init__(self, owner: AsyncioTransport) -> None:
        self._owner = owner
        self._parser = httptools.HttpResponseParser(self)
        self._reply: _Reply | None = None
        self._head_bytes = 0
        self._paused = self._spoilt = self._interim = False

    def ask(self, request: bytes) -> _Reply:
        """Send a request; its answer is parsed as it arrives."""
        self._reply, self._head_bytes = _Reply(self), 0
        self._transport.write(request)
        return self._reply

    def abort(self) -> None:
        """Close at once; the event loop tells of it by `connection_lost`."""
        self._transport.abort()

    def resume(self) -> None:
        """Read on, if reading was held back."""
        if self._paused:
            self._paused = False
            self._transport.resume_reading()

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        reply = self._reply
        if reply is None:
            self.abort()  # nobody asked
            return
        reply.begun = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            self._fail(f"an answer that is no HTTP ({exc})")
        if not reply.headed:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._fail(f"an answer with a head of more than {MAX_HEAD_BYTES} bytes")
        if reply.over:
            self._finish()
        reply.tell()

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.forget(self)
        reply, self._reply = self._reply, None
        if reply is None:
            return
        if exc is None and reply.headed and not {"content-length", "transfer-encoding"} & reply.headers.keys():
            reply.over = True  # the only end that such a body has
        elif reply.failure is None:
            what = str(exc) if exc else "the server closed the connection"
            reply.failure = WireFailure(what, stale=not reply.begun)
        reply.tell()

    # What the parser calls

    def on_message_begin(self) -> None:
        self._spoilt = self._reply is None or self._reply.over  # more than was asked for

    def on_header(self, name: bytes, value: bytes) -> None:
        reply = self._reply
        if reply is not None and not reply.headed:
            key, text = name.decode("latin-1").lower(), value.decode("latin-1")
            reply.headers[key] = f"{reply.headers[key]}, {text}" if key in reply.headers else text

    def on_headers_complete(self) -> None:
        reply, status = self._reply, self._parser.get_status_code()
        self._interim = 100 <= status < 200
        if reply is not None and not self._interim and not reply.over:
            reply.status, reply.headed = status, True

    def on_body(self, body: bytes) -> None:
        if self._reply is not None and not self._reply.over and self._reply.add(body) and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._reply is not None and self._interim:
            self._reply.headers.clear()
        elif self._reply is not None:
            self._reply.over = True
            self._spoilt |= not self._parser.should_keep_alive()

    def _finish(self) -> None:
        """The answer is here; the connection is kept if both sides may go on with it."""
        self._reply = None
        if self._spoilt or self._transport.is_closing():
            self.abort()
        else:
            self.resume()
            self._owner.keep(self)

    def _fail(self, what: str) -> None:
        if self._reply is not None and not self._reply.over:
            self._reply.failure = WireFailure(what)
        self._spoilt = True
        self.abort()
