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
import itertools
import json
import re
import socket
import struct
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
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
    "AnswerLike",
    "ConstantRecommender",
    "FakeServer",
    "Fault",
    "Request",
    "ScriptedAnswer",
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
_SILENT = ("reset", "close", "hang")
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


AnswerLike = Answer | Transcript | str
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
        answers: AnswerLike | Iterable[AnswerLike] | Callable[[Request], AnswerLike] = Answer(),
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
            while self.disconnects < count:  # noqa: ASYNC110 - as above
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
        try:
            with accepted, suppress(OSError):
                connection = _Connection(accepted)
                while await self._exchange(connection):
                    pass
        finally:
            self.open_connections -= 1

    async def _exchange(self, connection: _Connection) -> bool:
        """Answer one request; True where another may follow on the same connection."""
        try:
            request = await connection.read_request()
        except _BadRequest as exc:
            return await self._perform(connection, _planned(_refusal(exc.status, str(exc)), keep=False))
        if request is None:
            return False
        self.requests.append(request)
        return await self._perform(connection, self._plan(request))

    async def _perform(self, connection: _Connection, plan: _Plan) -> bool:
        finished = False
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connection.watch, tasks.cancel_scope)
            try:
                finished = await connection.send(plan)
            finally:
                # Before any other task runs: on reading the last byte a client may ask again.
                self.in_flight -= 1
                tasks.cancel_scope.cancel()
        self.disconnects += not finished
        return finished and plan.end == "keep"

    def _plan(self, request: Request) -> _Plan:
        keep = request.headers.get("connection", "").lower() != "close"
        try:
            answer = self._choose(request)
            if isinstance(answer, Transcript):
                return _replay(answer)
            return _planned(answer, self._content(answer, request), keep=keep)
        except Exception as exc:
            self._failure = self._failure or exc
            return _planned(_refusal(500, f"the fake server has no answer: {exc!r}"), keep=keep)

    def _choose(self, request: Request) -> Answer | Transcript:
        if self._api_key is not None and request.headers.get("authorization") != f"Bearer {self._api_key}":
            return _refusal(401, "Incorrect API key provided.", code="invalid_api_key")
        chosen: AnswerLike = Answer()
        if self._takes_all or _kind(request) in ("chat/completions", "embeddings"):
            chosen = self._answer(request)
        answer = Answer(chosen) if isinstance(chosen, str) else chosen
        if isinstance(answer, Transcript) or answer.body is not None or answer.status != 200 or answer.fault in _SILENT:
            return answer
        return _impossible(request) or answer

    def _content(self, answer: Answer, request: Request) -> _Content:
        kind, fields = _kind(request), _fields(request) or {}
        streamed = bool(fields.get("stream"))
        if answer.body is not None or answer.status != 200:
            return _given(answer, streamed=streamed and answer.status == 200)
        model = fields.get("model") or self._model
        if kind == "models":
            listed = {"id": self._model, "object": "model", "owned_by": self._owned_by}
            return _whole({"object": "list", "data": [listed]}, answer.fault)
        if kind == "embeddings":
            return _whole(_embeddings(fields, model), answer.fault)
        chat = _Chat(answer, fields, model, len(self.requests))
        return chat.stream() if streamed else _whole(chat.plain(), answer.fault)


def _in_turn(answers: AnswerLike | Iterable[AnswerLike]) -> Callable[[Request], AnswerLike]:
    """The answers one by one, the last one for ever."""
    several = iter([answers] if isinstance(answers, Answer | Transcript | str) else answers)
    first = next(several, None)
    if first is None:
        raise ConfigurationError("answers must hold at least one answer")
    last, rest = first, itertools.chain([first], several)

    def answer(request: Request) -> AnswerLike:
        nonlocal last
        last = next(rest, last)
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

    async def watch(self, answering: anyio.CancelScope) -> None:
        """Cancel `answering` once the client has closed the connection."""
        while await self._receive():
            pass
        answering.cancel()

    async def send(self, plan: _Plan) -> bool:
        """Send an answer; False where the client was gone before its end."""
        try:
            for delay, data in plan.writes:
                await anyio.sleep(delay)
                await self._write(data)
            if plan.end == "hang":
                await anyio.sleep_forever()
            if plan.end == "reset":
                # Closing with no time to linger sends a reset; the two fields are shorter on Windows.
                linger = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        except OSError:
            return False
        return True

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

    async def _write(self, data: bytes) -> None:
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


@attrs.frozen
class _Content:
    """The body of an answer in the pieces in which it is sent.

    Args:
        frames: One at least.
        middle: How many of them come before the half; None for a body that is one piece.
        streamed: Whether they are events of a stream.
    """

    frames: list[bytes]
    middle: int | None = None
    streamed: bool = False

    @property
    def first_half(self) -> list[bytes]:
        """What is sent of a body that breaks off."""
        if self.middle is not None:
            return self.frames[: self.middle]
        return [self.frames[0][: len(self.frames[0]) // 2]]


def _replay(transcript: Transcript) -> _Plan:
    step = transcript.cut or max(1, len(transcript.data))
    pieces = [transcript.data[at : at + step] for at in range(0, len(transcript.data), step)]
    writes = [(transcript.pace if at else 0.0, piece) for at, piece in enumerate(pieces)]
    return _Plan(writes, "keep" if transcript.keeps_alive else "close")


def _planned(answer: Answer, content: _Content | None = None, *, keep: bool) -> _Plan:
    if answer.fault in _SILENT:
        return _Plan([(answer.first_after, b"")], answer.fault)
    content = content or _given(answer)
    breaks = _BREAKS.get(answer.fault)
    frames = content.frames if breaks is None else content.first_half
    pace = answer.pace
    if answer.fault == "drip":
        frames = [bytes((byte,)) for frame in frames for byte in frame] or [b""]
        pace = pace or _DRIP_SECONDS
    headers = _answer_headers(answer, content, keep)
    end = breaks or ("close" if headers.get("connection", "").lower() == "close" else "keep")
    writes = [(pace, frame) for frame in (_chunked(frames, ends=breaks is None) if content.streamed else frames)]
    return _Plan(_with_head(_head(answer.status, headers), writes, answer.first_after, content.streamed), end)


def _chunked(frames: Sequence[bytes], *, ends: bool) -> list[bytes]:
    chunks = [b"%x\r\n%b\r\n" % (len(frame), frame) for frame in frames if frame]
    # The end goes out with the last event: a client may leave on reading that, and has then cut nothing off.
    return [*chunks[:-1], b"".join(chunks[-1:]) + b"0\r\n\r\n"] if ends else chunks


def _with_head(
    head: bytes, writes: list[tuple[float, bytes]], first_after: float, at_once: bool
) -> list[tuple[float, bytes]]:
    """The head, and `first_after` in the place of the pace before the first write."""
    if not at_once:
        return [(first_after, head + writes[0][1]), *writes[1:]]
    return [(0.0, head), *((first_after, data) for _, data in writes[:1]), *writes[1:]]


def _answer_headers(answer: Answer, content: _Content, keep: bool) -> dict[str, str]:
    usual = "text/event-stream; charset=utf-8" if content.streamed else "application/json"
    headers = {"content-type": answer.content_type or usual}
    if content.streamed:
        headers["transfer-encoding"] = "chunked"
    else:
        headers["content-length"] = str(sum(map(len, content.frames)))
    if not keep:
        headers["connection"] = "close"
    return headers | {name.lower(): value for name, value in answer.headers.items()}


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} {_phrase(status)}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _given(answer: Answer, *, streamed: bool = False) -> _Content:
    """A body that the answer brings along, or the error object of its status."""
    if answer.body is None:
        return _Content([_error_object(answer.status, f"the fake server was told to answer {answer.status}")])
    return _Content([answer.body.encode() if isinstance(answer.body, str) else answer.body], streamed=streamed)


def _whole(value: dict[str, Any], fault: Fault | None) -> _Content:
    """A body that is one JSON value, or one that a fault has spoilt."""
    body = _STREAM_ERROR if fault == "error_event" else encode(value)
    return _Content([body[: len(body) // 2] if fault == "bad_json" else body])


def _refusal(status: int, message: str, *, code: str | None = None) -> Answer:
    return Answer("", status=status, body=_error_object(status, message, code))


def _impossible(request: Request) -> Answer | None:
    """The refusal of a request for which nothing can be computed."""
    if _kind(request) is None:
        return _refusal(404, f"Unknown request URL: {request.method} {request.path}.", code="unknown_url")
    if request.method == "POST" and _fields(request) is None:
        return _refusal(400, "The body of the request is no JSON object.")
    return None


def _error_object(status: int, message: str, code: str | None = None) -> bytes:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return encode({"error": {"message": message, "type": kind, "param": None, "code": code or status}})


def _fields(request: Request) -> dict[str, Any] | None:
    try:
        fields = request.json
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None


def _embeddings(fields: Mapping[str, Any], model: str) -> dict[str, Any]:
    given = fields.get("input", [])
    texts = given if isinstance(given, list) else [given]
    packed = fields.get("encoding_format") == "base64"
    rows = [
        {"object": "embedding", "index": index, "embedding": _vector(str(text), packed=packed)}
        for index, text in enumerate(texts)
    ]
    tokens = sum(len(str(text)) for text in texts) // 4
    return {"object": "list", "data": rows, "model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def _vector(text: str, *, packed: bool) -> list[float] | str:
    digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
    values = [value / 32768 - 1 for value in struct.unpack(f"<{_DIMENSION}H", digest[: 2 * _DIMENSION])]
    return base64.b64encode(struct.pack(f"<{_DIMENSION}f", *values)).decode() if packed else values


class _Chat:
    """One chat completion in vLLM's shape."""

    def __init__(self, answer: Answer, fields: Mapping[str, Any], model: str, number: int) -> None:
        self._answer = answer
        self._fields = fields
        self._common = {"id": f"chatcmpl-{number}", "created": _CREATED, "model": model}
        self._logprobs = answer.logprobs if fields.get("logprobs") else ()

    def plain(self) -> dict[str, Any]:
        """All of it as one value."""
        answer, early = self._answer, self._answer.fault == "end_early"
        text = answer.text if answer.chunks is None else "".join(answer.chunks)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        choice = {
            "index": 0,
            "message": message,
            "logprobs": _logprobs_object(self._logprobs),
            "finish_reason": None if early else answer.finish_reason,
        }
        value = self._common | {"object": "chat.completion", "choices": [choice]}
        return value if answer.usage is None else value | {"usage": dict(answer.usage)}

    def stream(self) -> _Content:
        """The events of a stream."""
        lead, content, tail = self._lead(), self._text(), self._tail()
        middle = len(lead) + (len(content) + 1) // 2
        events = lead + content
        if self._answer.fault == "error_event":
            events, tail = events[:middle], [b"data: " + _STREAM_ERROR + b"\n\n", _DONE]
        elif self._answer.fault == "bad_json":
            events.insert(middle, b'data: {"id": "chatcmpl\n\n')
        elif self._answer.fault == "end_early":
            tail = []
        return _Content(events + tail, middle, streamed=True)

    def _lead(self) -> list[bytes]:
        lead = [self._delta({"role": "assistant", "content": ""})]
        if self._answer.reasoning:
            lead.append(self._delta({"reasoning_content": self._answer.reasoning}))
        return lead

    def _text(self) -> list[bytes]:
        pieces = self._answer.pieces
        last = len(pieces) - 1
        # Text need not be cut at tokens, so the last piece brings what entries are left.
        return [
            self._delta({"content": piece}, self._logprobs[at : None if at == last else at + 1])
            for at, piece in enumerate(pieces)
        ]

    def _tail(self) -> list[bytes]:
        tail = []
        if self._answer.finish_reason is not None:
            tail.append(self._delta({"content": ""}, finish_reason=self._answer.finish_reason))
        options = self._fields.get("stream_options") or {}
        if self._answer.usage is not None and options.get("include_usage"):
            tail.append(self._event([], usage=dict(self._answer.usage)))
        return [*tail, _DONE] if self._answer.done else tail

    def _delta(
        self, delta: Mapping[str, str], logprobs: Sequence[TokenLogprob] = (), *, finish_reason: str | None = None
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": _logprobs_object(logprobs), "finish_reason": finish_reason}
        return self._event([choice])

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        value = self._common | {"object": "chat.completion.chunk", "choices": choices} | more
        return b"data: " + encode(value) + b"\n\n"


_DONE = b"data: [DONE]\n\n"
_STREAM_ERROR = encode(
    {"error": {"message": "EngineCore died", "type": "InternalServerError", "param": None, "code": 500}}
)


def _logprobs_object(logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    if not logprobs:
        return None
    return {"content": [_token(entry.token, entry.logprob) | {"top_logprobs": _tops(entry)} for entry in logprobs]}


def _tops(entry: TokenLogprob) -> list[dict[str, Any]]:
    return [_token(token, logprob) for token, logprob in entry.top_logprobs]


def _token(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode("utf-8", "replace"))}


ScriptedAnswer = str | Completion | Exception
"""What a scripted model says: a text, a whole completion, or an error to raise."""


class ScriptedEndpoint:
    """An `Endpoint` without any network.

    Args:
        answers: One text or completion, repeated for ever; several, used in turn; or a callable, asked each time.
            Exceptions among them are raised.
        model: Its name.
        chunk_chars: Characters in each delta of a stream.

    Raises:
        ConfigurationError: `chunk_chars` cannot work.
    """

    def __init__(
        self,
        answers: ScriptedAnswer | Iterable[ScriptedAnswer] | Callable[[Sequence[Message], Sampling], ScriptedAnswer],
        *,
        model: str = "scripted",
        chunk_chars: int = 7,
    ) -> None:
        if chunk_chars < 1:
            raise ConfigurationError(f"chunk_chars must be at least 1, got {chunk_chars}")
        self.calls: list[tuple[Sequence[Message], Sampling]] = []
        """What was asked, in order."""
        self._answer = answers if callable(answers) else _script(answers)
        self._model = model
        self._chunk_chars = chunk_chars

    @property
    def model(self) -> str:
        """The name given."""
        return self._model

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """The next answer.

        Args:
            messages: Kept in `calls`.
            sampling: Kept in `calls`.

        Raises:
            AssertionError: There were fewer answers than calls.
            Exception: One that was among the answers.
        """
        await anyio.lowlevel.checkpoint()
        self.calls.append((messages, sampling))
        answer = self._answer(messages, sampling)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Completion):
            return answer
        prompt_chars = sum(len(message["content"]) for message in messages)
        usage = Usage(prompt_chars // 4, (len(answer) + 3) // 4, estimated=True)
        return Completion(answer, model=self._model, usage=usage)

    @asynccontextmanager
    async def stream(
        self, messages: Sequence[Message], sampling: Sampling
    ) -> AsyncIterator[AsyncIterator[TextDelta | GenerationEnd]]:
        """The next answer in deltas of `chunk_chars` characters, a `GenerationEnd` last.

        Args:
            messages: Kept in `calls`.
            sampling: Kept in `calls`.

        Raises:
            AssertionError: There were fewer answers than calls.
            Exception: One that was among the answers.
        """
        completion = await self.generate(messages, sampling)
        async with aclosing(self._events(completion)) as events:
            yield events

    async def _events(self, completion: Completion) -> AsyncGenerator[TextDelta | GenerationEnd, None]:
        for at in range(0, len(completion.text), self._chunk_chars):
            await anyio.lowlevel.checkpoint()
            yield TextDelta(completion.text[at : at + self._chunk_chars])
        yield GenerationEnd(completion)


def _script(answers: ScriptedAnswer | Iterable[ScriptedAnswer]) -> Callable[..., ScriptedAnswer]:
    if isinstance(answers, str | Completion | Exception):
        return lambda messages, sampling: answers
    rest = enumerate(answers)
    used = 0

    def answer(messages: Sequence[Message], sampling: Sampling) -> ScriptedAnswer:
        nonlocal used
        for at, value in rest:
            used = at + 1
            return value
        raise AssertionError(f"the scripted endpoint was asked again after its {used} answers: script one more")

    return answer


class ConstantRecommender:
    """A `Recommender` that predicts the same for every pair.

    Args:
        value: In rating points.
    """

    def __init__(self, value: float) -> None:
        self.calls = 0
        """How often it was asked."""
        self._rating = Rating(value)

    async def predict(self, user: User, item: Item, profile: JointProfile | None) -> Rating:
        """The one rating.

        Args:
            user: Not looked at.
            item: Not looked at.
            profile: Not looked at.
        """
        await anyio.lowlevel.checkpoint()
        self.calls += 1
        return self._rating


def sample_users() -> tuple[User, ...]:
    """The sample data's users, each with the whole history."""
    data = _sample()
    return tuple(map(data.user, data.user_ids))


def sample_items() -> tuple[Item, ...]:
    """The sample data's items, each with attributes and the whole evidence."""
    data = _sample()
    return tuple(map(data.item, data.items))


def sample_interactions() -> tuple[Interaction, ...]:
    """The sample data's ratings with their reviews, in the file's order."""
    return _sample().rows


def sample_examples() -> tuple[Example, ...]:
    """One example a user: the last rating to predict, and what came before it to go by."""
    return tuple(_sample().examples())


@functools.cache
def _sample() -> Dataset:
    with importlib.resources.as_file(importlib.resources.files("duet") / "sample") as directory:
        return load(directory)
