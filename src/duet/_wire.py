"""Requests out, bytes in. What travels between an endpoint and a socket; it knows HTTP, not chat completions."""

from __future__ import annotations

import functools
import json
import re
import zlib
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, NoReturn, Protocol
from urllib.parse import quote, urlsplit

import anyio

from duet._errors import ConfigurationError

KEEPALIVE_SECONDS = 4.0  # uvicorn, and so vLLM, drops an idle connection after 5
MAX_INFLATED_BYTES = 16 * 1024 * 1024

_NAME = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.A)
_FRAMING = frozenset({"content-length", "transfer-encoding"})
_SECRET = re.compile("key|token|auth|secret|cookie|pass|credential|session|signature", re.I)
# By name, so that none of these has to be imported here. openai ≥ 3 reads through httpx2.
_HTTP_LIBRARIES = frozenset({"aiohttp", "httpcore", "httpcore2", "httpx", "httpx2"})

_STALE = frozenset({"ServerDisconnectedError", "ClientOSError", "ReadError", "WriteError"})
_NO_CONNECTION = frozenset({"ClientConnectorError", "ClientConnectorDNSError", "ConnectError"})
_NOT_TRUSTED = frozenset({"ClientConnectorCertificateError", "ClientConnectorSSLError"})
_NO_CONNECTION_YET = frozenset({"ConnectionTimeoutError", "ConnectTimeout"})


class WireFailure(Exception):
    """The exchange broke below HTTP.

    Attributes:
        stale: The server closed the connection without a word, as it may do to one that was kept alive.
    """

    def __init__(self, message: str, *, stale: bool = False) -> None:
        super().__init__(message)
        self.stale = stale


class Answer(Protocol):
    """An HTTP answer: its head, and its body to come."""

    @property
    def status(self) -> int:
        """Of HTTP."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Names are matched in any case."""

    def arrived(self) -> bytes | None:
        """What has arrived of the body; empty where it has to be waited for, None at the end."""

    async def read(self) -> bytes | None:
        """The next bytes of the body; None at the end. WireFailure where it breaks."""

    async def aclose(self) -> None:
        """Give up the rest. Where the body was not read to its end the connection goes too, and a server stops
        generating."""


class Wire(Protocol):
    """Sends one request and hands over the answer, whatever its status."""

    @property
    def address(self) -> str:
        """The base address as it may stand in a message."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """What is sent and must never show."""

    @property
    def closings(self) -> int:
        """How often it was closed: what broke thereby is not tried again."""

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


def check_headers(headers: Mapping[str, str]) -> None:
    """Raise ConfigurationError, without the value, where a header holds what none can."""
    for name, value in headers.items():
        if not (isinstance(name, str) and _NAME.fullmatch(name)) or name.lower() in _FRAMING:
            raise ConfigurationError(f"headers: {name!r} is no header that can be set here")
        if not isinstance(value, str):
            raise ConfigurationError(f"headers: {name!r} must be a str, got {type(value).__name__}")
        if not (value.isascii() and value.isprintable()):
            what = "api_key" if name == "authorization" else f"the header {name!r}"
            raise ConfigurationError(
                f"{what} holds characters that no HTTP header can: a line break at its end, perhaps?"
            )


def encode(body: Mapping[str, Any]) -> bytes:
    """JSON in UTF-8; a lone surrogate, which UTF-8 cannot hold, becomes "?"."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def secrets_of(headers: Mapping[str, str]) -> tuple[str, ...]:
    """The values of headers whose names speak of a secret, and without "Bearer" and the like.

    Values of fewer than eight characters are no secrets, but the placeholders that local servers are given.
    """
    named = [value.strip() for name, value in headers.items() if _SECRET.search(name) and value.strip()]
    return tuple(value for whole in named for value in (whole, whole.split()[-1]) if len(value) >= 8)


def redacted(text: str, secrets: Iterable[str]) -> str:
    """The text with "***" for each secret, as it is or as it stands in JSON, in an address or in a repr."""
    for secret in secrets:
        quoted = json.dumps(secret)[1:-1]
        for form in (secret, quoted, quoted.replace("/", "\\/"), quote(secret, safe=""), quote(secret)):
            text = text.replace(form, "***")
    return text


class IteratedAnswer:
    """An answer whose body a library yields undecoded.

    Args:
        status: Of HTTP.
        headers: Of HTTP.
        body: Yields it.
        close: Closes it.
    """

    def __init__(
        self, status: int, headers: Mapping[str, str], body: AsyncIterable[bytes], close: Callable[[], Awaitable[None]]
    ) -> None:
        self.status = status
        self.headers = headers
        self._body = body.__aiter__()
        self._close = close
        self._decode = decoder(headers.get("content-encoding", ""))
        self._over = False

    def arrived(self) -> bytes:
        """Nobody knows."""
        return b""

    async def read(self) -> bytes | None:
        """The next bytes; what breaks below HTTP becomes a WireFailure."""
        try:
            data = await self._body.__anext__()
        except StopAsyncIteration:
            self._over = True
            return None
        except Exception as exc:
            reraise(exc, begun=True)
        return self._decode(data)

    async def aclose(self) -> None:
        """Give up the rest, shielded.

        Libraries read through generators within generators, and closing the outermost leaves the others to the garbage
        collector, of which trio complains. A cancelled read ends them all.
        """
        self._decode = _unchanged  # what was refused once would end the loop below before the body has ended
        with anyio.CancelScope(shield=True):
            with anyio.CancelScope() as scope, suppress(WireFailure):
                scope.cancel()
                while not self._over:
                    await self.read()
            await self._close()


def decoder(encoding: str) -> Callable[[bytes], bytes]:
    """What undoes an encoding that was not asked for, or refuses it; a chunk never grows beyond a limit."""
    if encoding in ("", "identity"):
        return _unchanged
    if encoding not in ("gzip", "deflate"):
        return functools.partial(_refuse, encoding)
    inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | (16 if encoding == "gzip" else 0))

    def decode(chunk: bytes) -> bytes:
        try:
            text = inflate.decompress(chunk, MAX_INFLATED_BYTES)
        except zlib.error as exc:
            raise WireFailure(f"broken {encoding}: {exc}") from exc
        if inflate.unconsumed_tail:
            raise WireFailure(f"{encoding} that grows without end")
        return text

    return decode


def _unchanged(data: bytes) -> bytes:
    return data


def _refuse(encoding: str, chunk: bytes) -> bytes:
    raise WireFailure(f"an answer encoded as {encoding!r}, which was not asked for")


def reraise(exc: Exception, *, begun: bool = False) -> NoReturn:
    """Raise what a library raised as a WireFailure; what the wire did not cause stays as it is.

    Args:
        exc: Being handled.
        begun: The head of the answer had arrived, so the connection was not stale.
    """
    if not is_wire_failure(exc):
        raise exc
    failure = failure_of(exc)
    raise WireFailure(str(failure), stale=failure.stale and not begun) from exc


def is_wire_failure(exc: Exception) -> bool:
    """True for what the operating system or an HTTP library raises."""
    return isinstance(exc, OSError) or type(exc).__module__.partition(".")[0] in _HTTP_LIBRARIES


def failure_of(exc: BaseException) -> WireFailure:
    """The WireFailure that stands for an exception of a library."""
    # httpx-aiohttp reports a closed connection as ConnectTimeout; what really happened is the cause.
    cause = exc.__cause__ if type(exc.__cause__).__module__.startswith("aiohttp") else exc
    name = type(cause).__name__
    if name in _NO_CONNECTION:
        return WireFailure(f"cannot connect, is the server running? ({getattr(cause, 'os_error', cause)})")
    if name in _NOT_TRUSTED:
        return WireFailure(f"cannot connect: {cause}")
    if name in _NO_CONNECTION_YET:
        return WireFailure("cannot connect: the deadline for connecting is over")
    silent = "without sending a response" in str(cause)
    stale = name in _STALE or (name == "RemoteProtocolError" and silent)
    return WireFailure(f"{name}: {cause}" if str(cause) else name, stale=stale)
