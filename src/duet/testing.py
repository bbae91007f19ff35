"""Test doubles for code that uses duet: a server, an endpoint, a recommender and sample records.

`FakeServer` speaks real HTTP over loopback, so timeouts, retries, cuts and proxies are tested as they happen.
`ScriptedEndpoint` needs no network at all. Both run on asyncio and on trio.

Example::

    async with FakeServer("<rating>4</rating>") as server, HTTPEndpoint(server.base_url, "fake") as endpoint:
        completion = await endpoint.generate(messages, Sampling())
    assert server.requests[0].json["messages"][-1]["role"] == "user"
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.resources
import json
import re
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, Self, get_args

import anyio
import anyio.abc
import anyio.from_thread
import anyio.lowlevel
import attrs

from duet._dataset import Dataset, load
from duet._errors import ConfigurationError
from duet._events import GenerationEnd, TextDelta
from duet._prompts import Message
from duet._records import Completion, Example, Interaction, Item, JointProfile, Rating, TokenLogprob, Usage, User
from duet._schema import ProfileSchema, block
from duet._settings import Sampling
from duet._wire import encode

__all__ = [
    "USAGE",
    "Answer",
    "ConstantRecommender",
    "FakeServer",
    "Fault",
    "Request",
    "ScriptedEndpoint",
    "Transcript",
    "completion_text",
    "sample_examples",
    "sample_interactions",
    "sample_items",
    "sample_users",
]

Fault = Literal[
    "reset",
    "close",
    "hang",
    "reset_midstream",
    "cut_midstream",
    "end_early",
    "hang_midstream",
    "drip",
    "bad_json",
    "error_event",
]

USAGE: Mapping[str, Any] = {
    "prompt_tokens": 120,
    "completion_tokens": 40,
    "total_tokens": 160,
    "prompt_tokens_details": {"cached_tokens": 100},
}
"""What every `Answer` reports as used, unless told otherwise."""

_DRIP_SECONDS = 0.01
_WAIT_SECONDS = 5.0
_MAX_HEAD_BYTES = 64 * 1024
_CREATED = 1_700_000_000
_DIMENSION = 8
_PATHS = re.compile(r"/(?:v1|openai/deployments/[^/]+)/(models|chat/completions|embeddings)")
_NO_ANSWER: frozenset[str | None] = frozenset({"reset", "close", "hang"})
_BREAKS: Mapping[str | None, str] = {"cut_midstream": "close", "reset_midstream": "reset", "hang_midstream": "hang"}

_SECTION_TEXTS = {
    "user_cue": "long strategy games; nothing left to luck; harsh on randomness",
    "user_constructed_prompt": "Say what wins this user over, what loses them, and how strict they rate.",
    "user_profile": "Rates strictly. Loves long economic games where every loss can be explained; dislikes dice.",
    "item_cue": "open information; three hours; no dice",
    "item_constructed_prompt": "Say what this item demands of its players and how they take it.",
    "item_profile": "A long economic game without chance. Strategists praise it; casual players find it dry.",
}


def completion_text(schema: ProfileSchema = ProfileSchema(), **sections: str) -> str:
    """A well-formed completion, as a model that follows the prompt would write it.

    Args:
        schema: Its shape.
        **sections: Texts of single sections by side and name, as in ``user_cue="likes dice"``.

    Raises:
        ConfigurationError: The schema has no such section.
    """
    names = {f"{side}_{section}" for side, section in schema.slots}
    if unknown := sorted(sections.keys() - names):
        raise ConfigurationError(f"the schema has no section {unknown[0]!r}: use some of {', '.join(sorted(names))}")
    texts = {name: text[: schema.max_chars] for name, text in _SECTION_TEXTS.items()} | sections
    lines = []
    for side in schema.sides:
        inner = [f"<{name}>{texts[f'{side}_{name}']}</{name}>" for name in schema.sections]
        lines += [f"<{block(side)}>", *inner, f"</{block(side)}>"]
    return "\n".join(lines)


@attrs.frozen
class Request:
    """One request as it arrived.

    Args:
        method: As in "POST".
        path: With the query, if there is one.
        headers: Names in lower case.
        body: As it came.
    """

    method: str
    path: str
    headers: Mapping[str, str] = attrs.field(hash=False, repr=False)
    body: bytes = attrs.field(default=b"", repr=False)

    @property
    def json(self) -> Any:
        """The body, parsed.

        Raises:
            ValueError: It is not JSON.
        """
        return json.loads(self.body)


def _check_seconds(record: object, field: attrs.Attribute[float], value: float) -> None:
    if value < 0:
        raise ConfigurationError(f"{type(record).__name__}.{field.name} must not be negative, got {value!r}")


def _check_fault(record: object, field: attrs.Attribute[Fault | None], value: object) -> None:
    if value is not None and value not in get_args(Fault):
        raise ConfigurationError(f"fault must be one of {', '.join(get_args(Fault))}; got {value!r}")


@attrs.frozen
class Answer:
    """How the server answers one request.

    The same answer serves a streamed and a plain request: which of the two is sent is for the request to say.

    Faults, for what a server should never do and does:

    - ``"reset"``: the connection is reset before any byte of the answer.
    - ``"close"``: it is closed before any byte.
    - ``"hang"``: it stays open and nothing is ever sent.
    - ``"reset_midstream"``, ``"cut_midstream"``, ``"hang_midstream"``: the same half-way through the body.
    - ``"end_early"``: the body ends as HTTP wants it, with neither ``finish_reason`` nor ``[DONE]``.
    - ``"drip"``: the body comes byte by byte, one each `pace` seconds, or each 10 ms.
    - ``"bad_json"``: an event half-way (a plain answer from its middle on) is not JSON.
    - ``"error_event"``: half-way through comes an error object, as vLLM sends it, and then ``[DONE]``; a plain answer
      is one.

    Args:
        text: What the model says; a well-formed profile of both sides by default.
        chunks: How the text is cut in a stream, instead of `text`. By default one piece a token where there are
            log-probabilities for this very text, else pieces of four characters.
        finish_reason: As in "stop" or "length"; None sends none.
        done: Whether a stream ends with ``[DONE]``.
        usage: OpenAI's usage object; in a stream it is sent where the request asks for it. None sends none.
        reasoning: Sent as ``reasoning_content``.
        logprobs: One entry a token; sent where the request asks for log-probabilities.
        status: Of the answer. One other than 200 gives an error object in OpenAI's shape, unless `body` is set.
        headers: More headers, or others in the place of usual ones.
        body: Sent as it is, instead of anything computed; a request for a stream gets it chunked.
        content_type: Instead of the usual one.
        first_after: Seconds before the first byte of the body. A stream's head is sent at once, that of a plain answer
            after this time.
        pace: Seconds between two events of a stream.
        fault: What goes wrong.

    Raises:
        ConfigurationError: The fault is unknown, or a time is negative.
    """

    text: str = attrs.field(factory=completion_text, repr=False)
    chunks: Sequence[str] | None = attrs.field(default=None, kw_only=True, repr=False, hash=False)
    finish_reason: str | None = attrs.field(default="stop", kw_only=True)
    done: bool = attrs.field(default=True, kw_only=True)
    usage: Mapping[str, Any] | None = attrs.field(default=USAGE, kw_only=True, repr=False, hash=False)
    reasoning: str = attrs.field(default="", kw_only=True, repr=False)
    logprobs: Sequence[TokenLogprob] = attrs.field(default=(), kw_only=True, repr=False, hash=False)
    status: int = attrs.field(default=200, kw_only=True)
    headers: Mapping[str, str] = attrs.field(factory=dict, kw_only=True, hash=False)
    body: bytes | str | None = attrs.field(default=None, kw_only=True, repr=False)
    content_type: str | None = attrs.field(default=None, kw_only=True)
    first_after: float = attrs.field(default=0.0, kw_only=True, validator=_check_seconds)
    pace: float = attrs.field(default=0.0, kw_only=True, validator=_check_seconds)
    fault: Fault | None = attrs.field(default=None, kw_only=True, validator=_check_fault)

    @property
    def pieces(self) -> list[str]:
        """The text as a stream brings it."""
        if self.chunks is not None:
            return list(self.chunks)
        tokens = [entry.token for entry in self.logprobs]
        if tokens and "".join(tokens) == self.text:
            return tokens
        return [self.text[at : at + 4] for at in range(0, len(self.text), 4)]


@attrs.frozen
class Transcript:
    """The bytes of one HTTP answer, head and body, replayed as they are.

    The connection is closed afterwards where the answer says ``Connection: close``, where its body ends with the
    connection, or where it breaks off; else it is kept.

    Args:
        data: From the status line to the last byte.
        engine: What sent them, as in "llama.cpp 2026.10".
        recorded: False marks bytes that were made up.
        cut: Bytes a write; None writes them all at once.
        pace: Seconds between two writes.

    Raises:
        ConfigurationError: `cut` or `pace` cannot work.
    """

    data: bytes = attrs.field(repr=False)
    engine: str = ""
    recorded: bool = attrs.field(default=True, kw_only=True)
    cut: int | None = attrs.field(default=None, kw_only=True)
    pace: float = attrs.field(default=0.0, kw_only=True, validator=_check_seconds)

    def __attrs_post_init__(self) -> None:
        if self.cut is not None and self.cut < 1:
            raise ConfigurationError(f"cut must be at least 1, got {self.cut}")

    @classmethod
    def load(
        cls, path: str | Path, *, engine: str | None = None, recorded: bool = True, cut: int | None = None
    ) -> Transcript:
        """Read the bytes of an answer from a file.

        Args:
            path: Holds the bytes and nothing else.
            engine: What sent them; the file's name without its suffix by default.
            recorded: False marks bytes that were made up.
            cut: Bytes a write.

        Raises:
            OSError: The file cannot be read.
        """
        path = Path(path)
        return cls(path.read_bytes(), path.stem if engine is None else engine, recorded=recorded, cut=cut)

    @property
    def keeps_alive(self) -> bool:
        """Whether another answer may follow on the same connection."""
        head, _, body = self.data.partition(b"\r\n\r\n")
        headers = _headers(head.decode("latin-1").split("\r\n")[1:])
        if headers.get("connection", "").lower() == "close":
            return False
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return body.endswith(b"0\r\n\r\n")
        return headers.get("content-length") == str(len(body))


Answers = Answer | Transcript | str
"""What stands for one answer; a str is an `Answer` with this text."""


class FakeServer:
    """An OpenAI-compatible server on a free port of 127.0.0.1, for as long as the block lasts.

    It answers POST ``/v1/chat/completions`` (streamed or not) and ``/v1/embeddings`` by its `answers`, GET
    ``/v1/models`` by itself, and anything else with 404. Embeddings are made from the texts: the same text gives the
    same vector, of dimension 8.

    A client counts as gone as soon as it closes its connection, or its half of it. An exception of the block leaves it
    as it is. One raised by a callable `answers` is answered with status 500, and raised at the end of a block that
    raises nothing itself.

    Args:
        answers: One answer for all requests; several, used in turn, the last one for all that follow; or a callable,
            asked for each request to any path.
        model: Listed by ``/v1/models``, and named in answers to requests that name none.
        owned_by: Who made the model: by this clients tell one engine from another.
        api_key: A bearer token without which every request is answered 401; None asks for none.

    Raises:
        ConfigurationError: There is not one answer.
    """

    def __init__(
        self,
        answers: Answers | Iterable[Answers] | Callable[[Request], Answers] = Answer(),
        *,
        model: str = "fake",
        owned_by: str = "vllm",
        api_key: str | None = None,
    ) -> None:
        self.requests: list[Request] = []
        """Every request that arrived whole, in order."""
        self.in_flight = 0
        """Requests that are being answered now."""
        self.peak_in_flight = 0
        """The most of them there ever were at once."""
        self.disconnects = 0
        """Answers that the client cut off before their end."""
        self.connections = 0
        """Connections opened so far."""
        self.open_connections = 0
        """Connections open now."""
        self._takes_all = callable(answers)
        self._answer = answers if callable(answers) else _in_turn(answers)
        self._model = model
        self._owned_by = owned_by
        self._api_key = api_key
        self._failure: Exception | None = None
        self._port = 0

    @property
    def base_url(self) -> str:
        """The address up to and including the version."""
        if not self._port:
            raise ConfigurationError("the server has no address yet: enter `async with server:` first")
        return f"http://127.0.0.1:{self._port}/v1"

    async def __aenter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._listener.setblocking(False)
        self._port = self._listener.getsockname()[1]
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._accept)
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: Any) -> None:
        self._tasks.cancel_scope.cancel()
        cancelled = isinstance(exc, anyio.get_cancelled_exc_class())
        try:
            # A task group wraps what passes through it in an ExceptionGroup; only a cancellation has to.
            await self._tasks.__aexit__(*((exc_type, exc, trace) if cancelled else (None, None, None)))
        finally:
            self._listener.close()
        if exc is None and self._failure is not None:
            raise self._failure

    @contextmanager
    def run_in_thread(self) -> Iterator[Self]:
        """Serve from a thread of its own, for synchronous code and for other processes.

        The counters may be read from any thread, and `wait_disconnects` awaited in any event loop.
        """
        with anyio.from_thread.start_blocking_portal() as portal, portal.wrap_async_context_manager(self):
            yield self

    async def wait_disconnects(self, count: int = 1) -> None:
        """Wait until clients have cut off `count` answers.

        Raises:
            TimeoutError: They have not after five seconds.
        """
        with anyio.fail_after(_WAIT_SECONDS):
            # Polling works from every thread and event loop, which no event of either library does.
            while self.disconnects < count:
                await anyio.sleep(0.002)

    async def _accept(self) -> None:
        while True:
            await anyio.wait_readable(self._listener)
            try:
                accepted, _ = self._listener.accept()
            except OSError:  # the client has gone again, or there are too many open files
                await anyio.sleep(0.001)
                continue
            self._tasks.start_soon(self._serve, accepted)

    async def _serve(self, accepted: socket.socket) -> None:
        self.connections += 1
        self.open_connections += 1
        connection = _Connection(accepted)
        try:
            while await self._exchange(connection):
                pass
        finally:
            self.open_connections -= 1
            connection.close()

    async def _exchange(self, connection: _Connection) -> bool:
        """Answer one request; True where another may follow on the same connection."""
        try:
            request = await connection.read_request()
        except _BadRequest as exc:
            refusal = _error_answer(exc.status, str(exc))
            return await self._perform(connection, _plan_plain(refusal, _body_of(refusal), keep=False))
        if request is None:
            return False
        self.requests.append(request)
        return await self._perform(connection, self._plan(request))

    async def _perform(self, connection: _Connection, plan: _Plan) -> bool:
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        try:
            if await connection.perform(plan):
                return plan.end == "keep"
            self.disconnects += 1
            return False
        finally:
            self.in_flight -= 1

    def _plan(self, request: Request) -> _Plan:
        keep = request.headers.get("connection", "").lower() != "close"
        try:
            answer = self._choose(request)
            if isinstance(answer, Transcript):
                return _plan_transcript(answer)
            return _plan_answer(answer, request, self._context(), keep)
        except Exception as exc:
            self._failure = self._failure or exc
            refusal = _error_answer(500, f"the answers of the fake server raised {exc!r}")
            return _plan_plain(refusal, _body_of(refusal), keep=keep)

    def _context(self) -> _Context:
        return _Context(model=self._model, owned_by=self._owned_by, number=len(self.requests))

    def _choose(self, request: Request) -> Answer | Transcript:
        if self._api_key is not None and request.headers.get("authorization") != f"Bearer {self._api_key}":
            return _error_answer(401, "Incorrect API key provided.", code="invalid_api_key")
        if self._takes_all or _kind(request) in ("chat/completions", "embeddings"):
            chosen = self._answer(request)
            return Answer(chosen) if isinstance(chosen, str) else chosen
        return Answer()


def _in_turn(answers: Answers | Iterable[Answers]) -> Callable[[Request], Answers]:
    """The answers one by one, the last one for ever."""
    several = iter([answers] if isinstance(answers, Answer | Transcript | str) else answers)
    try:
        last = next(several)
    except StopIteration:
        raise ConfigurationError("answers must hold at least one answer") from None
    fresh = True

    def answer(request: Request) -> Answers:
        nonlocal last, fresh
        if fresh:
            fresh = False
        else:
            last = next(several, last)
        return last

    return answer


def _kind(request: Request) -> str | None:
    """Which answer the path asks for; None where there is none to give."""
    match = _PATHS.fullmatch(request.path.partition("?")[0])
    if match is None or (request.method == "GET") != (match[1] == "models"):
        return None
    return match[1]


class _BadRequest(Exception):
    """What arrived is no request that this server understands."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class _Connection:
    """One accepted socket.

    A bare socket, since an anyio stream always sends a FIN before it closes, so that no reset could be had from it, and
    buffers what is written, so that a client's leaving would show late.
    """

    def __init__(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = accepted
        self._buffer = bytearray()

    async def read_request(self) -> Request | None:
        """The next request; None where the client has closed the connection."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > _MAX_HEAD_BYTES:
                raise _BadRequest(f"a head of more than {_MAX_HEAD_BYTES} bytes", 431)
            if not await self._receive():
                return None
        method, path, headers = _parse_head(bytes(self._buffer[:end]))
        size = _content_length(headers)
        while len(self._buffer) < end + 4 + size:
            if not await self._receive():
                return None
        body = bytes(self._buffer[end + 4 : end + 4 + size])
        del self._buffer[: end + 4 + size]
        return Request(method, path, headers, body)

    async def perform(self, plan: _Plan) -> bool:
        """Send an answer; False where the client left before its end."""
        finished = False
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch, tasks.cancel_scope)
            finished = await self._send_all(plan)
            tasks.cancel_scope.cancel()
        return finished

    def close(self) -> None:
        """Let the socket go."""
        self._socket.close()

    async def _watch(self, answering: anyio.CancelScope) -> None:
        while await self._receive():
            pass
        answering.cancel()

    async def _receive(self) -> bool:
        """Wait for bytes and keep them; False where no more will come."""
        while True:
            await anyio.wait_readable(self._socket)
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                continue
            except OSError:
                return False
            self._buffer += data
            return bool(data)

    async def _send_all(self, plan: _Plan) -> bool:
        try:
            for delay, data in plan.writes:
                await anyio.sleep(delay)
                await self._send(data)
        except OSError:
            return False
        if plan.end == "hang":
            await anyio.sleep_forever()
        if plan.end == "reset":
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return True

    async def _send(self, data: bytes) -> None:
        # No checkpoint after the last byte: a client that leaves on having read it has cut nothing off.
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except BlockingIOError:
                await anyio.wait_writable(self._socket)


def _parse_head(head: bytes) -> tuple[str, str, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise _BadRequest(f"not an HTTP/1.1 request: {first[:100]!r}")
    headers = _headers(lines)
    if words[2] == "HTTP/1.0":
        headers.setdefault("connection", "close")
    return words[0], words[1], headers


def _headers(lines: Iterable[str]) -> dict[str, str]:
    pairs = (line.partition(":") for line in lines)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _content_length(headers: Mapping[str, str]) -> int:
    if "transfer-encoding" in headers:
        raise _BadRequest("a body needs a Content-Length here", 411)
    size = headers.get("content-length", "0")
    if not (size.isascii() and size.isdigit()):
        raise _BadRequest(f"not a Content-Length: {size[:100]!r}")
    return int(size)


@attrs.frozen
class _Plan:
    """An answer ready to send: how long to wait before each write, and what becomes of the connection."""

    writes: Sequence[tuple[float, bytes]]
    end: str = "keep"


@attrs.frozen(kw_only=True)
class _Context:
    """What an answer takes from its server."""

    model: str
    owned_by: str
    number: int


def _plan_transcript(transcript: Transcript) -> _Plan:
    step = transcript.cut or max(1, len(transcript.data))
    pieces = [transcript.data[at : at + step] for at in range(0, len(transcript.data), step)]
    return _Plan(_paced(pieces, 0.0, transcript.pace), "keep" if transcript.keeps_alive else "close")


def _plan_answer(answer: Answer, request: Request, context: _Context, keep: bool) -> _Plan:
    if answer.fault is not None and answer.fault in _NO_ANSWER:
        return _Plan([(answer.first_after, b"")], answer.fault)
    if answer.body is not None or answer.status != 200:
        return _plan_given(answer, _body_of(answer), streamed=answer.status == 200 and _asks(request, "stream"), keep=keep)
    kind = _kind(request)
    if kind is None:
        unknown = _error_answer(404, f"Unknown request: {request.method} {request.path}", code="unknown_url")
        return _plan_plain(unknown, _body_of(unknown), keep=keep)
    fields = _fields(request)
    if fields is None:
        return _plan_plain(_NOT_JSON, _body_of(_NOT_JSON), keep=keep)
    if kind == "chat/completions":
        return _plan_chat(answer, fields, context, keep)
    value = _models(context) if kind == "models" else _embeddings(fields, context)
    return _plan_plain(answer, encode(value), keep=keep)
