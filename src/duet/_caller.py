"""Deadlines, retries and errors around a wire: an exchange either gives bytes or raises one typed error."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn, ParamSpec, Self, TypeVar

import anyio

from duet._errors import ConfigurationError, EndpointError, EndpointRejected, EndpointUnavailable
from duet._log import log
from duet._settings import Deadlines
from duet._sse import ErrorObject, ProtocolViolation, load, read_error
from duet._wire import Answer, Wire, WireFailure, redacted

T = TypeVar("T")
P = ParamSpec("P")

MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
DRAIN_SECONDS = 0.25
MAX_PAUSE = 300.0  # a server that asks for a longer wait is refused at once
_RETRIED_STATUSES = frozenset({408, 409, 425, 429})


class Caller:
    """Makes calls over one wire.

    Args:
        wire: Sends the requests.
        deadlines: How long to wait.
        retries: How often a call is repeated.
    """

    def __init__(self, wire: Wire, *, deadlines: Deadlines, retries: int) -> None:
        if retries < 0:
            raise ConfigurationError(f"retries must not be negative, got {retries}")
        self.wire = wire
        self.deadlines = deadlines
        self._retries = retries
        self._answered = False

    def ends(self) -> float:
        """When a call that begins now must be over, on the event loop's clock."""
        return anyio.current_time() + (self.deadlines.total or math.inf)

    async def retrying(self, ends: float, attempt: Callable[[], Awaitable[T]]) -> T:
        """Run `attempt` until it succeeds, is refused for good, or retries or time are used up."""
        tries, may_be_stale, closings = 0, self._answered, self.wire.closings
        while True:
            try:
                return await attempt()
            except EndpointUnavailable as exc:
                cause = exc.__cause__
                if self.wire.closings > closings:
                    raise
                if isinstance(cause, WireFailure) and cause.stale and may_be_stale:
                    may_be_stale = False  # the server had just closed a kept-alive connection: that costs no try
                    continue
                pause = _backoff(tries) if exc.retry_after is None else exc.retry_after
                overdue = pause > MAX_PAUSE or anyio.current_time() + pause >= ends
                if tries >= self._retries or isinstance(cause, TimeoutError) or overdue:
                    raise
                log().warning(
                    "call.retried", endpoint=self.wire.address, status_code=exc.status_code, pause=round(pause, 3)
                )
            tries += 1
            await anyio.sleep(pause)

    async def open(self, path: str, body: Mapping[str, Any] | None, ends: float) -> Exchange:
        """Send one request; the answer's status is 200 or this raises."""
        started = anyio.current_time()
        try:
            answer = await _within(ends, self.wire.send(path, body, self.deadlines.connect))
        except TimeoutError as exc:
            raise self.unavailable(f"no answer within {anyio.current_time() - started:.3g} s") from exc
        except WireFailure as exc:
            error = self.unavailable(str(exc), cause=exc)
        else:
            return await self._accepted(Exchange(self, answer, ends))
        raise error  # here, where the failure is not its context

    async def _accepted(self, exchange: Exchange) -> Exchange:
        self._answered = True
        if exchange.status == 200 and not exchange.is_html:
            return exchange
        try:
            raise await exchange.refusal()
        finally:
            await exchange.aclose()

    async def ask(self, path: str, body: Mapping[str, Any] | None, ends: float, read: Callable[[bytes], T]) -> T:
        """One request, and what the pure `read` makes of the whole body of its answer."""
        exchange = await self.open(path, body, ends)
        try:
            return exchange.understood(read, await exchange.read())
        finally:
            await exchange.aclose()

    def unavailable(
        self, what: str, status_code: int | None = None, cause: Exception | None = None
    ) -> EndpointUnavailable:
        """The error that says so, naming the endpoint."""
        address = self.wire.address
        error = EndpointUnavailable(f"{address}: {self.redacted(what)}", endpoint=address, status_code=status_code)
        error.__cause__ = cause and self._harmless(cause)
        return error

    def _harmless(self, exc: Exception) -> Exception | None:
        """An exception in whose attributes, and in those behind it, no secret is; the bare failure where one is."""
        chain = _chain(exc)
        if self.redacted(chain) == chain:
            return exc
        return WireFailure(self.redacted(str(exc)), stale=exc.stale) if isinstance(exc, WireFailure) else None

    def redacted(self, text: str) -> str:
        """The text without what was sent as a secret, should a server repeat it."""
        return redacted(text, self.wire.secrets)


class Exchange:
    """One answer being read."""

    def __init__(self, caller: Caller, answer: Answer, ends: float) -> None:
        self._caller = caller
        self._answer = answer
        self._ends = ends
        self._content_type = answer.headers.get("content-type", "").lower()

    @property
    def address(self) -> str:
        """Of the endpoint, as it may stand in a message."""
        return self._caller.wire.address

    @property
    def status(self) -> int:
        """Of the answer."""
        return self._answer.status

    @property
    def is_json(self) -> bool:
        """True for a body that is one JSON value."""
        return self._content_type.startswith("application/json")

    @property
    def is_html(self) -> bool:
        """True for a web page, which no API sends."""
        return self._content_type.startswith("text/html")

    async def aclose(self) -> None:
        """Close the body, and the connection with it where the body was not read to its end."""
        await self._answer.aclose()

    def extend(self, ends: float) -> None:
        """Set when the body must be over."""
        self._ends = ends

    async def read_chunk(self, seconds: float | None = None, *, broken_ok: bool = False) -> bytes | None:
        """The next bytes of the body; None at its end.

        Args:
            seconds: Longest wait.
            broken_ok: Take a broken connection or a deadline as the end: all that matters has arrived.
        """
        started = anyio.current_time()
        if started >= self._ends and not broken_ok:  # who reads slowly, or is flooded, may never wait
            raise self._unavailable("a deadline was over in mid-answer") from TimeoutError()
        try:
            arrived = self._answer.arrived()
            if arrived != b"":
                return arrived
            return await _within(min(started + (seconds or math.inf), self._ends), self._answer.read())
        except TimeoutError as exc:
            what = f"no data for {anyio.current_time() - started:.3g} s, then a deadline was over"
            error = self._unavailable(what, exc)
        except WireFailure as exc:
            error = self._unavailable(f"the connection broke in mid-answer ({exc})", exc)
        if broken_ok:
            return None
        raise error

    async def read(self, limit: int = MAX_BODY_BYTES) -> bytes:
        """The whole body.

        Raises:
            EndpointUnavailable: It does not end in time, breaks off, or is larger than `limit` bytes.
        """
        chunks, size = [], 0
        while (chunk := await self.read_chunk()) is not None:
            chunks.append(chunk)
            size += len(chunk)
            if size > limit:
                raise self._unavailable(f"an answer of more than {limit} bytes")
        return b"".join(chunks)

    async def drain(self) -> None:
        """Read what little may be left, so that the connection can be kept."""
        self._ends = min(self._ends, anyio.current_time() + DRAIN_SECONDS)
        try:
            while await self.read_chunk() is not None:
                pass
        except EndpointError:
            pass

    def understood(self, read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a pure reader, its complaints turned into errors that name the endpoint."""
        try:
            return read(*args, **kwargs)
        except ProtocolViolation as exc:
            quoted = f": {self._caller.redacted(exc.body)[:200]}" if exc.body else ""
            error: EndpointError = self._unavailable(f"{exc.what}{quoted}", exc)
        except ErrorObject as exc:
            error = self._typed(exc.code or 500, str(exc))
        raise error

    async def refusal(self) -> EndpointError:
        """The error that a status other than 200, or a web page, stands for."""
        status = self._answer.status
        if 300 <= status < 400:
            host = self._answer.headers.get("location", "").split("?")[0]
            return self._typed(status, f"redirects to {host!r}: set base_url to where it should go")
        try:
            body = await self.read(MAX_ERROR_BYTES)
        except EndpointUnavailable:
            body = b""
        if self.is_html or body.lstrip()[:1] == b"<":
            hint = "answered with a web page: does base_url end in the API's path (often /v1)?"
            return self._typed(status, hint, self._retry_after())
        message = _message_of(body)
        if status == 404 and "model" not in message.lower():
            message += " (does base_url end in the API's path, often /v1?)"
        return self._typed(status, message, self._retry_after())

    def _retry_after(self) -> float | None:
        return parse_retry_after(self._answer.headers, time.time())

    def _typed(self, status: int, message: str, retry_after: float | None = None) -> EndpointError:
        passing = status in _RETRIED_STATUSES or (status >= 500 and status != 501)
        kind = EndpointUnavailable if passing else EndpointRejected
        text = f"{self.address}: status {status}: {self._caller.redacted(message)[:500]}"
        return kind(text, endpoint=self.address, status_code=status, retry_after=retry_after)

    def _unavailable(self, what: str, cause: Exception | None = None) -> EndpointUnavailable:
        return self._caller.unavailable(what, self._answer.status, cause)


class Served:
    """A model behind a wire: its name, and a block that closes the connections at its end."""

    def __init__(self, wire: Wire, model: str, *, deadlines: Deadlines, retries: int) -> None:
        if not model:
            raise ConfigurationError("model must name what the endpoint serves")
        self._wire = wire
        self._caller = Caller(wire, deadlines=deadlines, retries=retries)
        self._model = model

    @property
    def model(self) -> str:
        """Model or adapter name."""
        return self._model

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._wire.address!r}, model={self._model!r})"

    def __reduce__(self) -> NoReturn:
        name = type(self).__name__
        raise TypeError(f"{name} may hold a key, so it is neither pickled nor copied: make it where it is used")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close idle connections. A caller's own client stays open."""
        await self._wire.aclose()


def parse_retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait, from Retry-After (seconds or a date) or retry-after-ms; None where neither can be read.

    Args:
        headers: Of the answer, keys in lower case or case-insensitive.
        now: Unix time in seconds.
    """
    import email.utils  # takes 10 ms, and few servers send a date

    try:
        if milliseconds := headers.get("retry-after-ms"):
            return max(0.0, float(milliseconds) / 1000)
        value = headers.get("retry-after", "")
        if value.strip().replace(".", "", 1).isdigit():
            return float(value)
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except (TypeError, ValueError, OverflowError):
        return None


async def _within(deadline: float, work: Awaitable[T]) -> T:
    """Await `work`; TimeoutError at `deadline`. A bare scope costs half of what `anyio.fail_after` does."""
    with anyio.CancelScope(deadline=deadline):
        return await work
    raise TimeoutError


def _chain(exc: BaseException | None) -> str:
    """What an exception and those behind it say and hold."""
    texts = []
    while exc is not None:
        texts += [str(exc), repr(exc), repr(vars(exc))]
        exc = exc.__cause__ or exc.__context__
    return "\n".join(texts)


def _backoff(tries: int) -> float:
    return random.uniform(0.5, 1.0) * min(8.0, 0.5 * 2.0**tries)


def _message_of(body: bytes) -> str:
    try:
        error = read_error(load(body))
    except ProtocolViolation:
        error = None
    return str(error) if error is not None else body.decode("utf-8", "replace") or "no body"
