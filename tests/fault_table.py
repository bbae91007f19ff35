"""The faults of the matrix: what goes wrong, and the one outcome that it may have."""

from __future__ import annotations

import email.utils
import functools
import gzip
import json
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import attrs

from duet import (
    Deadlines,
    DuetError,
    EndpointRejected,
    EndpointUnavailable,
    Engine,
    IncompleteStream,
    MalformedCompletion,
    TruncatedCompletion,
)
from duet.testing import Answer, AnswerLike, Transcript, completion_text

TEXT = completion_text(user_profile="Loves long games; cafés, naïve bluffs, 🦔 and 棋.")
REFUSED = (201, 400, 401, 403, 404, 413, 418, 422, 501)
FAILED = (408, 409, 425, 429, 500, 502, 503, 504, 529)
AT_ONCE = {"retry-after": "0"}
GOOD = Answer(TEXT)
SHORT = Deadlines(total=0.1)
PATIENT = Deadlines(total=5)
EVENTS = "text/event-stream"


@attrs.frozen
class Trouble:
    """One fault.

    Args:
        name: As the test shows it.
        answers: What the server says, made anew for each test; None where there is no server.
        outcome: The class of the error; None for a profile of `text`.
        engine: "llama.cpp" has a profile that is awaited streamed underneath too, so that faults of streams reach it.
        deadlines: Of the endpoint.
        most: Seconds that it may take; the total deadline by default.
        waits: Whether it lasts until a deadline.
        retries: Of the endpoint.
        tries: Requests a pair.
        extra: Requests beside those.
        text: What a success says.
        warm: Whether a profile is made before, over a connection that is kept.
        server: "refused" has nobody listen, "deaf" somebody who accepts no connection.
        status: Of the error.
        wires: Over which it has this outcome.
    """

    name: str
    answers: Callable[[], AnswerLike | Sequence[AnswerLike]] | None
    outcome: type[DuetError] | None = EndpointUnavailable
    engine: Engine = attrs.field(default="vllm", kw_only=True)
    deadlines: Deadlines = attrs.field(default=PATIENT, kw_only=True)
    most: float | None = attrs.field(default=None, kw_only=True)
    waits: bool = attrs.field(default=False, kw_only=True)
    retries: int = attrs.field(default=0, kw_only=True)
    tries: int = attrs.field(default=1, kw_only=True)
    extra: int = attrs.field(default=0, kw_only=True)
    text: str = attrs.field(default=TEXT, kw_only=True, repr=False)
    warm: bool = attrs.field(default=False, kw_only=True)
    server: Literal["fake", "refused", "deaf"] = attrs.field(default="fake", kw_only=True)
    status: int | None = attrs.field(default=None, kw_only=True)
    wires: tuple[str, ...] = attrs.field(default=("http", "openai"), kw_only=True)


def said(name: str, answer: AnswerLike, outcome: type[DuetError] | None, **more: Any) -> Trouble:
    """A fault of one answer, whatever the request."""
    return Trouble(name, lambda: answer, outcome, **more)


def streamed(name: str, answer: AnswerLike, outcome: type[DuetError] | None = None, **more: Any) -> Trouble:
    """A fault of a stream."""
    return said(name, answer, outcome, engine="llama.cpp", **more)


def passing(name: str, first: Callable[[], AnswerLike], **more: Any) -> Trouble:
    """A fault that the first request meets and a retry of it does not."""
    return Trouble(name, lambda: [first(), GOOD], None, **({"retries": 1, "extra": 1} | more))


def delta(content: str | None = None, finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
    """One chunk of a stream."""
    said = {} if content is None else {"content": content}
    return {"id": "c", "choices": [{"index": 0, "delta": said, "finish_reason": finish_reason}]} | more


def payloads(text: str = TEXT) -> list[str]:
    """The data of the events of a plain stream, [DONE] left out."""
    pieces = [text[at : at + 40] for at in range(0, len(text), 40)]
    return [json.dumps(chunk, ensure_ascii=False) for chunk in [*map(delta, pieces), delta(finish_reason="stop")]]


def events(*data: str, end: str = "\n", lead: str = "data: ", extra: str = "") -> str:
    """An event stream of these data."""
    return "".join(f"{extra}{lead}{entry}{end}{end}" for entry in data)


def stream(body: str | bytes, **more: Any) -> Answer:
    """An answer that is this event stream."""
    return Answer(body=body, content_type=EVENTS, **more)


def raw(head: str, body: bytes = b"", **more: Any) -> Transcript:
    """An answer in these very bytes."""
    return Transcript(f"HTTP/1.1 {head}\r\n\r\n".encode("latin-1") + body, recorded=False, **more)


def as_json(body: str | bytes, **more: Any) -> Answer:
    """An answer of status 200 that says it is JSON."""
    return Answer(body=body, content_type="application/json", **more)


def completion(text: str | None = TEXT, finish_reason: str | None = "stop", **more: Any) -> str:
    """The body of a plain answer."""
    message = {"role": "assistant", "content": text}
    return json.dumps({"id": "c", "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]} | more)


def error(code: Any = None) -> str:
    """An error object."""
    return json.dumps({"error": {"message": "engine died", "type": "some_error", "code": code}})


def date(seconds: float) -> dict[str, str]:
    """Retry-After as a date so far from now."""
    return {"retry-after": email.utils.formatdate(time.time() + seconds, usegmt=True)}


@functools.cache
def bomb(encoding: str) -> Answer:
    """40 MiB of nothing in 40 kB."""
    nothing = bytes(40 * 1024 * 1024)
    packed = gzip.compress(nothing) if encoding == "gzip" else zlib.compress(nothing)
    return as_json(packed, headers={"content-encoding": encoding})


@functools.cache
def large() -> str:
    """A completion of 10 MB."""
    return completion_text(user_profile="whale " * 1_700_000)


def wrong_shapes() -> Iterator[Trouble]:
    """JSON that is no completion."""
    for name, body in {
        "nothing": "",
        "half a completion": completion()[:80],
        "an open bracket": "{",
        "null": "null",
        "a list": "[]",
        "a string": '"A whale."',
        "an empty object": "{}",
        "no choices": '{"choices": []}',
        "choices null": '{"choices": null}',
        "choices an object": '{"choices": {}}',
        "an empty choice": '{"choices": [{}]}',
        "message null": '{"choices": [{"message": null}]}',
        "a choice is a string": '{"choices": ["A whale."]}',
        "content is a number": '{"choices": [{"message": {"content": 3}}]}',
        "nobody's": '{"hello": "world"}',
        "another API's": '{"object": "list", "data": []}',
        "plain text": "A whale.",
        "bytes": "\x00\x01",
    }.items():
        yield said(f"JSON: {name}", as_json(body), EndpointUnavailable)
    for name, payload in {
        "an open bracket": "{",
        "half": '{"choices": [{"del',
        "a list": "[]",
        "a number": "3",
        "nobody's": '{"hello": "world"}',
        "a choice is a number": '{"choices": [3]}',
        "choices an object": '{"choices": {"0": 1}}',
        "delta is a string": '{"choices": [{"delta": "text"}]}',
        "content is a number": '{"choices": [{"delta": {"content": 3}}]}',
    }.items():
        yield streamed(f"event: {name}", stream(events(payload, "[DONE]")), EndpointUnavailable)


def connections() -> Iterator[Trouble]:
    """What goes wrong below HTTP, and with its framing."""
    yield Trouble("refused", None, server="refused")
    connect = Deadlines(connect=0.1, total=5)  # a caller's client has its own
    yield Trouble("never accepted", None, server="deaf", deadlines=connect, most=0.1, wires=("http",))
    yield said("reset before headers", Answer(fault="reset"), EndpointUnavailable)
    yield said("closed before headers", Answer(fault="close"), EndpointUnavailable)
    for answer in (Answer(TEXT, fault="reset_midstream"), Answer(TEXT, fault="cut_midstream")):
        yield said(f"{answer.fault}, plain", answer, EndpointUnavailable)
        yield streamed(f"{answer.fault}, streamed", answer, EndpointUnavailable)
    yield passing("reset, then well", lambda: Answer(fault="reset", headers=AT_ONCE))
    yield Trouble("stale: closed", lambda: [GOOD, Answer(fault="close"), GOOD], None, extra=2, warm=True)
    yield Trouble("stale: reset", lambda: [GOOD, Answer(fault="reset"), GOOD], None, extra=2, warm=True)
    kept = "200 OK\r\ncontent-type: application/json\r\ncontent-length: "
    body = completion().encode()
    yield said("Content-Length too long", raw(f"{kept}{len(body) + 9}", body), EndpointUnavailable)
    yield said("Content-Length too short", raw(f"{kept}{len(body) - 9}", body), EndpointUnavailable)
    yield said("no Content-Length", raw("200 OK\r\ncontent-type: application/json", body), None)
    yield said("100 Continue first", raw(f"100 Continue\r\n\r\nHTTP/1.1 {kept}{len(body)}", body), None)
    chunked = f"200 OK\r\ncontent-type: {EVENTS}\r\ntransfer-encoding: chunked"
    yield streamed("nonsense for a chunk's size", raw(chunked, b"zz\r\n"), EndpointUnavailable)
    yield said("a status without a word", raw("200\r\ncontent-type: application/json", body), None)
    yield said("a head that breaks off", Transcript(b"HTTP/1.1 200\r\n", recorded=False), EndpointUnavailable)
    yield said("a header without a colon", raw("200 OK\r\nx"), EndpointUnavailable)
    yield said("a head of 200 kB", raw(f"200 OK\r\nx: {'y' * 200_000}"), EndpointUnavailable)
    yield said("not HTTP", Transcript(b"SSH-2.0-OpenSSH\r\n", recorded=False), EndpointUnavailable)


def waits() -> Iterator[Trouble]:
    """What takes too long, or nearly: nothing of it is asked again."""
    late = functools.partial(said, outcome=EndpointUnavailable, deadlines=SHORT, retries=2, waits=True)
    late_stream = functools.partial(streamed, outcome=EndpointUnavailable, retries=2, waits=True)
    yield late("hang before headers", Answer(fault="hang"))
    yield late_stream("hang after headers", Answer(first_after=30), deadlines=SHORT)
    yield late("hang in mid-answer", Answer(fault="hang_midstream"))
    yield late("slow drip", Answer(fault="drip", pace=0.02))
    yield late("slow failure", Answer(status=503, first_after=30))
    first = Deadlines(first_token=0.1, total=5)
    yield late_stream("no first token", Answer(first_after=30), deadlines=first, most=0.1)
    yield late_stream("no first byte", Answer(fault="hang"), deadlines=first, most=0.1)
    pings = stream(": ping\n\n" * 200, fault="drip", pace=0.005)
    yield late_stream("pings and no token", pings, deadlines=first, most=0.1)
    idle = Deadlines(idle=0.1, total=5)
    yield late_stream("idle stream", Answer(TEXT, fault="hang_midstream"), deadlines=idle, most=0.1)
    slow = Answer(TEXT, chunks=[TEXT[:50], TEXT[50:90], TEXT[90:]], pace=0.01)
    yield streamed("slow stream within its deadlines", slow, deadlines=Deadlines(idle=1, total=5))
    words = Answer(status=400, fault="hang_midstream")
    longer = Deadlines(total=0.4)
    yield said("a refusal whose words hang", words, EndpointRejected, deadlines=longer, wires=("http",))
    # openai reads those words before it says anything.
    yield late("the same, openai", words, wires=("openai",))


def statuses() -> Iterator[Trouble]:
    """Each status, and Retry-After in every shape."""
    for status in REFUSED:
        yield said(str(status), Answer(status=status), EndpointRejected, retries=2, status=status)
    for status in FAILED:
        answer = Answer(status=status, headers=AT_ONCE)
        yield said(str(status), answer, EndpointUnavailable, retries=2, tries=3, status=status)
        yield passing(f"{status}, then well", functools.partial(attrs.evolve, answer))
    yield passing("Retry-After: a fraction", lambda: Answer(status=429, headers={"retry-after": "0.01"}))
    yield passing("Retry-After: milliseconds", lambda: Answer(status=429, headers={"retry-after-ms": "10"}))
    yield passing("Retry-After: a date gone by", lambda: Answer(status=429, headers=date(-60)))
    yield passing("Retry-After: garbage", lambda: Answer(status=429, headers={"retry-after": "soon"}))
    hour = Answer(status=429, headers={"retry-after": "3600"})
    yield said("Retry-After: an hour", hour, EndpointUnavailable, retries=3)
    yield Trouble("Retry-After: a date to come", lambda: Answer(status=503, headers=date(3600)), retries=3)
    for status in (301, 302, 303, 307, 308):
        answer = Answer(status=status, headers={"location": "http://127.0.0.1:9/v1"}, body="")
        yield said(f"{status} to another host", answer, EndpointRejected, retries=2, status=status)
    yield said("204", Answer(status=204, body=""), EndpointRejected, status=204)


def bodies() -> Iterator[Trouble]:
    """Bodies that are no completion, or one in an odd wrapping."""
    page = "<!DOCTYPE html><h1>Welcome</h1>"
    yield said("HTML with 200", Answer(body=page, content_type="text/html"), EndpointRejected, retries=2)
    yield said("HTML with 502", Answer(status=502, body=page, content_type="text/html"), EndpointUnavailable)
    yield said("HTML that says it is JSON", as_json(page), EndpointUnavailable)
    yield said("10 MB answer", as_json(completion(large())), None, text=large())
    for encoding in ("gzip", "deflate"):
        yield said(f"{encoding} bomb", bomb(encoding), EndpointUnavailable)
        broken = as_json(b"not compressed", headers={"content-encoding": encoding})
        yield said(f"broken {encoding}", broken, EndpointUnavailable)
    gzipped = {"content-encoding": "gzip"}
    yield said("unasked gzip", as_json(gzip.compress(completion().encode()), headers=gzipped), None)
    packed = gzip.compress(events(*payloads(), "[DONE]").encode())
    yield streamed("unasked gzip of a stream", stream(packed, headers=gzipped))
    yield said("brotli", as_json(b"whatever", headers={"content-encoding": "br"}), EndpointUnavailable)
    yield said("error object with 200", as_json(error()), EndpointUnavailable)
    yield said("error object with 200, code 400", as_json(error(400)), EndpointRejected)
    yield streamed("error event at once", stream(events(error(), "[DONE]")), EndpointUnavailable)
    yield streamed("error event after text", Answer(TEXT, fault="error_event"), EndpointUnavailable)
    late = stream(events(payloads()[0], error(400), "[DONE]"))
    yield streamed("error event after text, code 400", late, EndpointRejected)
    yield streamed("broken event after text", Answer(TEXT, fault="bad_json"), EndpointUnavailable)


def quirks() -> Iterator[Trouble]:
    """Everything that the grammar of event streams and the API let a server do."""
    data = payloads()
    good = events(*data, "[DONE]")
    yield streamed("CRLF", stream(events(*data, "[DONE]", end="\r\n")))
    yield streamed("bare CR", stream(events(*data, "[DONE]", end="\r")))
    yield streamed("comments", stream(events(*data, "[DONE]", extra=": ping\n\n")))
    yield streamed("no space after data:", stream(events(*data, "[DONE]", lead="data:")))
    split = [entry.replace('"choices"', '\ndata: "choices"', 1) for entry in data]
    yield streamed("data in several lines", stream(events(*split, "[DONE]")))
    yield streamed("event, id and retry", stream(events(*data, "[DONE]", extra="event: message\nid: 7\nretry: 10\n")))
    yield streamed("byte-order mark", stream("\ufeff" + good))
    yield streamed("no last blank line", stream(good.rstrip("\n")))
    head = f"200 OK\r\ncontent-type: {EVENTS}\r\nconnection: close"
    yield streamed("split UTF-8", raw(head, good.encode(), cut=3))
    yield streamed("missing [DONE]", stream(events(*data)))
    yield streamed("repeated [DONE]", stream(good + events("[DONE]", "[DONE]")))
    yield streamed("[DONE] without finish_reason", stream(events(*data[:-1], "[DONE]")))
    yield streamed("neither finish_reason nor [DONE]", stream(events(*data[:-1])), IncompleteStream)
    yield streamed("an empty stream", stream(""), IncompleteStream)
    yield streamed("text after [DONE]", stream(good + events(data[0], "nonsense")))
    after = events(*data[:-2], json.dumps(delta(finish_reason="stop")), data[-2], "[DONE]")
    yield streamed("text after finish_reason", stream(after))
    usage = json.dumps({"id": "c", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}})
    yield streamed("usage twice", stream(events(*data, usage, usage, "[DONE]")))
    yield streamed("empty choices", stream(events('{"id": "c", "choices": []}', *data, "[DONE]")))
    null = '{"id": "c", "choices": [{"index": 0, "delta": null}]}'
    yield streamed("delta null", stream(events(null, *data, "[DONE]")))
    other = '{"id": "c", "choices": [{"index": 1, "delta": {"content": "another choice"}}]}'
    yield streamed("a second choice", stream(events(data[0], other, *data[1:], "[DONE]")))
    yield streamed("error null", stream(events(*(entry[:-1] + ', "error": null}' for entry in data), "[DONE]")))
    yield said("a server that cannot stream", as_json(completion()), None)
    yield said("finish_reason null", as_json(completion(finish_reason=None)), None)


def endings() -> Iterator[Trouble]:
    """Completions that are whole and no profile."""
    half = TEXT[: len(TEXT) // 2]
    for way, made in (("plain", said), ("streamed", streamed)):
        yield made(f"truncated, {way}", Answer(half, finish_reason="length"), TruncatedCompletion)
        filtered = Answer(half, finish_reason="content_filter")
        yield made(f"content filter, {way}", filtered, MalformedCompletion)
        yield made(f"reasoning only, {way}", Answer("", reasoning="Hmm."), MalformedCompletion)
    yield said("content null", as_json(completion(None)), MalformedCompletion)
    yield said("thinking without end", Answer(f"<think>{TEXT}"), TruncatedCompletion)
    yield said("prose", Answer("I would rather not."), MalformedCompletion)


TABLE = [
    trouble for family in (connections, waits, statuses, wrong_shapes, bodies, quirks, endings) for trouble in family()
]
