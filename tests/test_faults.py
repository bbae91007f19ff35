"""What goes wrong on the way to an endpoint, and what its caller sees of it, beyond what the matrix of faults asks."""

from __future__ import annotations

import contextlib
import email.utils
import functools
import gzip
import json
import pickle
import socket
import time
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import anyio
import openai
import pytest
from wires import (
    KEY,
    MESSAGES,
    TEST_SECONDS,
    AnyEndpoint,
    ask,
    deltas_and_ends,
    endpoint_at,
    meeting,
    new_client,
    serving,
)

from duet import (
    AsyncOpenAIEndpoint,
    Deadlines,
    EndpointError,
    EndpointRejected,
    EndpointUnavailable,
    GenerationEnd,
    HTTPEndpoint,
    IncompleteStream,
    Sampling,
    TextDelta,
)
from duet._caller import parse_retry_after
from duet.testing import Answer, FakeServer, Fault, Transcript

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_leaks"), pytest.mark.faults]

AT_ONCE = {"retry-after": "0"}
WORDS = Answer(chunks=["one ", "two ", "three ", "four ", "five ", "six"], pace=0.01)
FAULTS: dict[Fault, type[EndpointError]] = {
    "reset": EndpointUnavailable,
    "close": EndpointUnavailable,
    "reset_midstream": EndpointUnavailable,
    "cut_midstream": EndpointUnavailable,
    "bad_json": EndpointUnavailable,
    "error_event": EndpointUnavailable,
    "end_early": IncompleteStream,
}


@pytest.fixture
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry at once where the server does not say when."""
    monkeypatch.setattr("duet._caller._backoff", lambda tries: 0.0)


without_pauses = pytest.mark.usefixtures("_without_pauses")


def error_body(message: str, **fields: Any) -> str:
    """An error object in OpenAI's shape."""
    return json.dumps({"error": {"message": message, "type": "some_error", "param": None, **fields}})


def event(value: Any) -> str:
    """One event of a stream."""
    return f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n"


async def failure(endpoint: AnyEndpoint, how: str) -> EndpointError:
    """The error that one completion ends in."""
    with pytest.raises(EndpointError) as caught:
        await ask(endpoint, how)
    return caught.value


# Refusals


@pytest.mark.parametrize("status", [400, 503])
async def test_a_refusal_names_the_endpoint(wire: str, how: str, status: int) -> None:
    """Message and attribute say which endpoint refused."""
    async with meeting(wire, Answer(status=status), retries=0) as (server, endpoint):
        error = await failure(endpoint, how)
    assert error.endpoint == server.base_url
    assert server.base_url in str(error)


@pytest.mark.parametrize(
    "body",
    [
        error_body("the whale is too long", code=400),
        error_body("the whale is too long", code="too_long"),
        '{"error": "the whale is too long"}',
        '{"object": "error", "message": "the whale is too long", "type": "BadRequestError", "code": 400}',
        '{"detail": "the whale is too long"}',
        '{"detail": [{"loc": ["body"], "msg": "the whale is too long"}]}',
        "the whale is too long",
    ],
)
async def test_a_refusal_repeats_what_the_server_said(wire: str, how: str, body: str) -> None:
    """The server's own message is in the error's, whatever shape it came in."""
    async with meeting(wire, Answer(status=400, body=body)) as (_, endpoint):
        assert "the whale is too long" in str(await failure(endpoint, how))


async def test_a_404_hints_at_the_address(wire: str, how: str) -> None:
    """A path that the server does not know may be an address without its "/v1"; the message asks."""
    async with meeting(wire, Answer(status=404, body=error_body("File Not Found"))) as (_, endpoint):
        assert "File Not Found (does base_url end in" in str(await failure(endpoint, how))


@pytest.mark.parametrize("status", [400, 401, 503])
async def test_a_key_that_the_server_echoes_is_blacked_out(wire: str, how: str, status: int) -> None:
    """The api key is never in a message, even where the server repeats it."""
    answer = Answer(status=status, body=error_body(f"Incorrect API key provided: {KEY}."))
    async with meeting(wire, answer, retries=0) as (_, endpoint):
        error = await failure(endpoint, how)
    assert KEY not in str(error) + repr(error)
    assert "***" in str(error)


@pytest.mark.parametrize("body", [KEY, f"<html>{KEY}</html>", f'{{"choices": [{{"key": "{KEY}"}}]}}', ""])
async def test_a_key_in_a_strange_body_is_blacked_out(wire: str, how: str, body: str) -> None:
    """The api key is not in the message of an answer that nobody understands."""
    async with meeting(wire, Answer(body=body, content_type="application/json"), retries=0) as (_, endpoint):
        error = await failure(endpoint, how)
    assert KEY not in str(error) + repr(error)


async def test_a_key_in_a_header_of_the_callers_own_is_blacked_out(wire: str, how: str) -> None:
    """A header whose name speaks of a key is a secret too."""
    secret = "other-made-up-987654321"
    answer = Answer(status=401, body=error_body(f"bad key {secret}"))
    async with meeting(wire, answer, headers={"x-api-key": secret}) as (_, endpoint):
        error = await failure(endpoint, how)
    assert secret not in str(error) + repr(error)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(status=400, body=error_body("x" * 490 + KEY)),
        Answer(status=400, body=error_body("x" * 495 + KEY)),
        Answer(body="x" * 192 + KEY, content_type="application/json"),
    ],
    ids=["message, first half", "message, first letters", "body"],
)
async def test_a_key_at_the_edge_of_what_is_quoted_is_blacked_out(wire: str, answer: Answer) -> None:
    """Blacking out comes before shortening, or the first half of a key stays."""
    async with meeting(wire, answer, retries=0) as (_, endpoint):
        assert KEY[:5] not in str(await failure(endpoint, "generate"))


@pytest.mark.parametrize(("key", "hidden"), [("x", False), ("EMPTY", False), ("sesame7", False), ("sesame-8", True)])
async def test_blacking_out_begins_at_eight_characters(how: str, key: str, hidden: bool) -> None:
    """A shorter key is the placeholder of a server without auth, and blacking it out would spoil the message."""
    async with serving(Answer(status=400, body=error_body(f"max {key} exceeded"))) as server:
        async with HTTPEndpoint(server.base_url, "fake", api_key=key) as endpoint:
            assert f"max {'***' if hidden else key} exceeded" in str(await failure(endpoint, how))


async def _provided() -> str:
    return KEY


@pytest.mark.parametrize("api_key", [KEY, _provided], ids=["text", "a function"])
async def test_a_clients_key_is_blacked_out_wherever_it_comes_from(api_key: Any) -> None:
    """A client whose key is an async function has a secret too."""
    async with serving(Answer(status=401, body=error_body(f"bad key {KEY}"))) as server:
        async with new_client(server.base_url, api_key=api_key) as client:
            error = await failure(AsyncOpenAIEndpoint(client, "fake"), "generate")
    assert "bad key ***" in str(error)


async def test_an_azure_token_is_blacked_out() -> None:
    """An Azure client with an Entra token has a secret too."""
    async with serving(Answer(status=401, body=error_body(f"bad token {KEY}"))) as server:
        async with openai.AsyncAzureOpenAI(
            azure_endpoint=server.base_url.removesuffix("/v1"),
            api_version="2026-01-01",
            azure_ad_token=KEY,
            http_client=openai.DefaultAsyncHttpxClient(verify=False),
        ) as client:
            error = await failure(AsyncOpenAIEndpoint(client, "whales-4"), "generate")
    assert "bad token ***" in str(error)


async def test_a_password_in_a_clients_address_is_not_shown(how: str) -> None:
    """The address of a caller's client may hold user and password; the error does not."""
    async with serving(Answer(status=400)) as server:
        async with new_client(server.base_url.replace("//", "//user:sesame@")) as client:
            error = await failure(AsyncOpenAIEndpoint(client, "fake"), how)
    assert (error.endpoint, "sesame" in str(error)) == (server.base_url, False)


@pytest.mark.parametrize("status", [400, 503])
async def test_an_empty_refusal_is_an_error_too(wire: str, how: str, status: int) -> None:
    """An error without a body still says its status."""
    async with meeting(wire, Answer(status=status, body=""), retries=0) as (_, endpoint):
        assert str(status) in str(await failure(endpoint, how))


async def test_a_long_refusal_is_shortened(wire: str, how: str) -> None:
    """A message never holds more than a screen of what the server said."""
    async with meeting(wire, Answer(status=400, body=error_body("whale " * 20_000))) as (_, endpoint):
        assert len(str(await failure(endpoint, how))) < 1000


# Failures and retries


async def test_without_retry_after_a_failure_is_retried_too(wire: str) -> None:
    """A server need not say when to come back."""
    async with meeting(wire, [Answer(status=503), Answer("A whale.")], retries=1) as (server, endpoint):
        assert (await ask(endpoint, "stream")).text == "A whale."
    assert len(server.requests) == 2


async def test_a_retried_request_is_the_same_request(wire: str, how: str) -> None:
    """The second try sends what the first one sent."""
    async with meeting(wire, [Answer(status=503, headers=AT_ONCE), Answer("A")]) as (server, endpoint):
        await ask(endpoint, how, Sampling(seed=1, extra_body={"top_k": 0}))
    assert server.requests[0].json == server.requests[1].json


@pytest.mark.parametrize(
    "headers",
    [{"retry-after": "0"}, {"retry-after": "0.001"}, {"retry-after-ms": "1"}, {"retry-after": "yesterday's date"}],
    ids=["seconds", "fraction", "milliseconds", "date"],
)
async def test_a_server_that_says_when_is_believed(wire: str, how: str, headers: dict[str, str]) -> None:
    """Eight retries that would take half a minute by their own pauses fit into five seconds."""
    if "date" in headers.get("retry-after", ""):
        headers = {"retry-after": email.utils.formatdate(time.time() - 86_400, usegmt=True)}
    answer = Answer(status=429, headers=headers)
    async with meeting(wire, answer, retries=8, deadlines=Deadlines(total=5)) as (server, endpoint):
        await failure(endpoint, how)
    assert len(server.requests) == 9


@pytest.mark.parametrize("kind", ["seconds", "date", "milliseconds"])
async def test_a_retry_after_beyond_the_deadline_gives_up_at_once(wire: str, how: str, kind: str) -> None:
    """A pause that would outlast the total deadline is not begun."""
    headers = {
        "seconds": {"retry-after": "3600"},
        "date": {"retry-after": email.utils.formatdate(time.time() + 3600, usegmt=True)},
        "milliseconds": {"retry-after-ms": "3600000"},
    }[kind]
    answer = Answer(status=429, headers=headers)
    async with meeting(wire, answer, retries=5, deadlines=Deadlines(total=60)) as (server, endpoint):
        with anyio.fail_after(5):
            error = await failure(endpoint, how)
    assert len(server.requests) == 1
    assert error.retry_after == pytest.approx(3600, abs=30)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "12"}, 12.0),
        ({"retry-after": " 12 "}, 12.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "Thu, 01 Jan 1970 00:02:00 GMT"}, 20.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:00 GMT"}, 0.0),
        ({"retry-after": "Thu, 01 Jan 1970 01:02:00 +0100"}, 20.0),
        ({"retry-after": "Thu, 99 Jan 1970 00:02:00 GMT"}, None),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "-250"}, 0.0),
        ({"retry-after-ms": "soon"}, None),
        ({"retry-after-ms": "250", "retry-after": "12"}, 0.25),
    ],
)
def test_retry_after_is_read(headers: Mapping[str, str], seconds: float | None) -> None:
    """Retry-After is seconds or a date, retry-after-ms wins, and nonsense is None."""
    assert parse_retry_after(headers, now=100.0) == seconds


async def test_an_absurd_retry_after_is_refused_without_a_deadline_too(wire: str, how: str) -> None:
    """A server that asks for an hour is not waited for, whatever the deadlines."""
    answer = Answer(status=429, headers={"retry-after": "3600"})
    async with meeting(wire, answer, deadlines=Deadlines(total=None)) as (server, endpoint):
        with anyio.fail_after(5):
            await failure(endpoint, how)
    assert len(server.requests) == 1


@pytest.mark.serial
async def test_the_retries_end_at_the_total_deadline(wire: str, how: str) -> None:
    """A thousand retries do not outlast the total deadline."""
    answer = Answer(status=503, headers={"retry-after": "0.02"})
    async with meeting(wire, answer, retries=1000, deadlines=Deadlines(total=0.1)) as (_, endpoint):
        with anyio.fail_after(0.1 + 1):
            assert type(await failure(endpoint, how)) is EndpointUnavailable


async def test_a_closed_port_is_unavailable_at_once(wire: str, how: str) -> None:
    """Where nobody listens the error comes at once, names the endpoint and asks whether the server runs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    base_url = f"http://127.0.0.1:{port}/v1"
    async with endpoint_at(wire, base_url, retries=0) as endpoint:
        with anyio.fail_after(5):
            error = await failure(endpoint, how)
    assert type(error) is EndpointUnavailable
    assert (error.endpoint, error.status_code) == (base_url, None)
    assert "is the server running?" in str(error)


async def test_a_host_that_does_not_exist_is_unavailable(wire: str, how: str) -> None:
    """A name that nobody knows is the endpoint's fault."""
    async with endpoint_at(wire, "http://no-such-host.invalid/v1", retries=0) as endpoint:
        with anyio.fail_after(TEST_SECONDS):
            assert type(await failure(endpoint, how)) is EndpointUnavailable


# Redirects and web pages


async def test_a_redirect_is_a_rejection_that_says_where_to(wire: str) -> None:
    """A redirect is not an answer; the message names the address it leads to."""
    answer = Answer(status=302, headers={"location": "http://127.0.0.1:9/elsewhere?key=sesame"}, body="")
    async with meeting(wire, answer) as (_, endpoint):
        error = await failure(endpoint, "generate")
    assert type(error) is EndpointRejected
    assert error.status_code == 302
    assert "http://127.0.0.1:9/elsewhere" in str(error)
    assert "sesame" not in str(error)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(wire: str, how: str, status: int) -> None:
    """Another host sees no request, and so no prompt and no key."""
    async with serving() as other:
        answer = Answer(status=status, headers={"location": f"{other.base_url}/chat/completions"}, body="")
        async with meeting(wire, answer, retries=0) as (server, endpoint):
            await failure(endpoint, how)
        assert other.requests == []
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "kind"), [(200, EndpointRejected), (404, EndpointRejected), (502, EndpointUnavailable)]
)
async def test_a_web_page_is_never_an_answer(wire: str, how: str, status: int, kind: type[EndpointError]) -> None:
    """A page of a proxy is an error whatever its status, and the message says what to look at."""
    answer = Answer(status=status, body="<!DOCTYPE html><h1>Welcome</h1>", content_type="text/html; charset=utf-8")
    async with meeting(wire, answer, retries=0) as (_, endpoint):
        error = await failure(endpoint, how)
    assert type(error) is kind
    assert error.status_code == status
    assert "base_url" in str(error)


async def test_a_web_page_is_not_quoted(wire: str, how: str) -> None:
    """Markup does not reach the message."""
    answer = Answer(status=502, body="<html><h1>Bad Gateway</h1></html>", content_type="text/html")
    async with meeting(wire, answer, retries=0) as (_, endpoint):
        assert "<h1>" not in str(await failure(endpoint, how))


# Encodings that nobody asked for


def encoded(encoding: str, body: bytes) -> Answer:
    """An answer that says it is encoded in this way."""
    return Answer(body=body, headers={"content-encoding": encoding}, content_type="application/json")


@functools.cache
def bomb(encoding: str) -> bytes:
    """40 MiB of nothing in 40 kB."""
    nothing = bytes(40 * 1024 * 1024)
    return gzip.compress(nothing) if encoding == "gzip" else zlib.compress(nothing)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_an_answer_that_is_not_encoded_as_it_says_is_unavailable(wire: str, how: str, encoding: str) -> None:
    """A broken encoding is the endpoint's fault."""
    async with meeting(wire, encoded(encoding, b"not compressed"), retries=0) as (_, endpoint):
        error = await failure(endpoint, how)
    assert (type(error), f"broken {encoding}" in str(error)) == (EndpointUnavailable, True)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_an_answer_that_grows_without_end_is_unavailable(wire: str, how: str, encoding: str) -> None:
    """A few bytes that inflate beyond 16 MiB are given up on before they fill the memory."""
    async with meeting(wire, encoded(encoding, bomb(encoding)), retries=0) as (_, endpoint):
        error = await failure(endpoint, how)
    assert (type(error), "grows without end" in str(error)) == (EndpointUnavailable, True)


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip"])
async def test_an_encoding_that_is_unknown_is_unavailable(wire: str, how: str, encoding: str) -> None:
    """An answer in an encoding that was not asked for and is not understood is the endpoint's fault."""
    async with meeting(wire, encoded(encoding, b"whatever"), retries=0) as (_, endpoint):
        error = await failure(endpoint, how)
    assert (type(error), repr(encoding) in str(error)) == (EndpointUnavailable, True)


# Bodies under status 200 that are no completion


@pytest.mark.parametrize(
    ("fields", "kind", "status"),
    [
        ({"code": 400}, EndpointRejected, 400),
        ({"code": 404}, EndpointRejected, 404),
        ({"code": 429}, EndpointUnavailable, 429),
        ({"code": 500}, EndpointUnavailable, 500),
        ({"status": 400}, EndpointRejected, 400),
        ({"code": "overloaded"}, EndpointUnavailable, 500),
        ({}, EndpointUnavailable, 500),
    ],
)
async def test_an_error_object_under_status_200_has_its_code(
    wire: str, how: str, fields: dict[str, Any], kind: type[EndpointError], status: int
) -> None:
    """An error object in the place of an answer is read like a refusal with its code."""
    body = error_body("the whale is too long", **fields)
    async with meeting(wire, Answer(body=body, content_type="application/json"), retries=0) as (_, endpoint):
        error = await failure(endpoint, how)
    assert type(error) is kind
    assert error.status_code == status
    assert "the whale is too long" in str(error)


@pytest.mark.parametrize(
    ("code", "kind"), [(400, EndpointRejected), (404, EndpointRejected), (500, EndpointUnavailable)]
)
@pytest.mark.parametrize("lead", ["", "A whale"], ids=["first", "after text"])
async def test_an_error_event_has_its_code(wire: str, lead: str, code: int, kind: type[EndpointError]) -> None:
    """An error object in a stream, at its beginning or after text, is read like a refusal with its code."""
    chunk = {"choices": [{"index": 0, "delta": {"content": lead}, "finish_reason": None}]}
    body = event(chunk) + event(error_body("engine died", code=code)) + event("[DONE]")
    async with meeting(wire, Answer(body=body, content_type="text/event-stream"), retries=0) as (_, endpoint):
        error = await failure(endpoint, "stream")
    assert type(error) is kind
    assert error.status_code == code
    assert "engine died" in str(error)


@without_pauses
async def test_a_failing_event_before_any_text_is_retried(wire: str) -> None:
    """An engine that dies before the first text is asked again."""
    answers = [
        Answer(body=event(error_body("engine died", code=503)), content_type="text/event-stream"),
        Answer("A whale."),
    ]
    async with meeting(wire, answers, retries=1) as (_, endpoint):
        assert (await ask(endpoint, "stream")).text == "A whale."


async def test_a_stream_that_says_it_is_json_is_unavailable(wire: str) -> None:
    """Events under the content type of one JSON value are not a JSON value."""
    async with meeting(wire, Answer("A", content_type="application/json"), retries=0) as (_, endpoint):
        assert type(await failure(endpoint, "stream")) is EndpointUnavailable


async def test_a_stream_in_answer_to_a_plain_request_is_unavailable(wire: str) -> None:
    """Events are not the one JSON value that was asked for."""
    answer = Answer(body=event({"choices": []}), content_type="text/event-stream")
    async with meeting(wire, answer, retries=0) as (_, endpoint):
        assert type(await failure(endpoint, "generate")) is EndpointUnavailable


# Connections that break


@without_pauses
async def test_a_plain_answer_that_broke_is_asked_for_again(wire: str) -> None:
    """A break and then an answer is the answer."""
    async with meeting(wire, [Answer(fault="reset_midstream"), Answer("A whale.")], retries=1) as (server, endpoint):
        assert (await ask(endpoint, "generate")).text == "A whale."
    assert len(server.requests) == 2


@without_pauses
async def test_a_stream_that_broke_before_its_first_text_is_asked_for_again(wire: str) -> None:
    """A break before any text and then a stream is the stream."""
    async with meeting(wire, [Answer(fault="reset"), Answer("A whale.")], retries=1) as (server, endpoint):
        assert (await ask(endpoint, "stream")).text == "A whale."
    assert len(server.requests) == 2


async def test_a_kept_connection_that_is_closed_costs_no_try(wire: str, how: str) -> None:
    """A server that drops a kept connection without a word is asked once more for free, and not twice."""
    async with meeting(wire, [Answer("A"), Answer(fault="close")], retries=0) as (server, endpoint):
        await ask(endpoint, how)
        await failure(endpoint, how)
    assert len(server.requests) == 1 + 2


async def test_a_first_connection_that_is_closed_costs_a_try(wire: str, how: str) -> None:
    """Before the first answer no connection can have been kept, so a server that closes it has failed."""
    async with meeting(wire, Answer(fault="close"), retries=0) as (server, endpoint):
        await failure(endpoint, how)
    assert len(server.requests) == 1


@pytest.mark.parametrize("fault", ["cut_midstream", "reset_midstream"])
async def test_an_answer_that_breaks_in_its_middle_costs_a_try(wire: str, fault: Fault) -> None:
    """Only a connection closed before any byte is free."""
    async with meeting(wire, Answer(fault=fault), retries=0) as (server, endpoint):
        await failure(endpoint, "generate")
    assert len(server.requests) == 1


@pytest.mark.parametrize("fault", ["cut_midstream", "reset_midstream"])
async def test_a_later_answer_that_breaks_in_its_middle_costs_a_try(wire: str, fault: Fault) -> None:
    """A connection that was kept is not stale once its next answer has begun."""
    async with meeting(wire, [Answer("A"), Answer(fault=fault)], retries=0) as (server, endpoint):
        await ask(endpoint, "generate")
        await failure(endpoint, "generate")
    assert len(server.requests) == 2


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in ("reset", "close")])
async def test_nothing_is_retried_after_the_first_delta(wire: str, fault: Fault) -> None:
    """Once text was delivered a break is an error, however many retries there are."""
    answer = Answer(chunks=WORDS.chunks, pace=WORDS.pace, fault=fault)
    async with meeting(wire, answer, retries=5) as (server, endpoint):
        async with endpoint.stream(MESSAGES, Sampling()) as events:
            assert isinstance(await anext(events), TextDelta)
            with pytest.raises(EndpointError):
                _ = [_ async for _ in events]
    assert len(server.requests) == 1


async def test_what_arrived_before_a_break_was_delivered(wire: str) -> None:
    """The deltas before a break reach the caller."""
    answer = Answer(chunks=WORDS.chunks, pace=WORDS.pace, fault="cut_midstream")
    texts: list[str] = []

    async def collect(events: AsyncIterator[TextDelta | GenerationEnd]) -> None:
        async for step in events:
            assert isinstance(step, TextDelta)
            texts.append(step.text)

    async with meeting(wire, answer) as (_, endpoint):
        async with endpoint.stream(MESSAGES, Sampling()) as events:
            with pytest.raises(EndpointUnavailable):
                await collect(events)
    assert "".join(texts) == "one two three "


@pytest.mark.parametrize(("finish_reason", "done"), [("stop", True), ("stop", False), (None, True)])
async def test_a_break_after_the_last_word_is_no_error(wire: str, finish_reason: str | None, done: bool) -> None:
    """Once finish_reason or [DONE] has arrived, a connection that breaks takes nothing away."""
    chunk = {"choices": [{"index": 0, "delta": {"content": "A whale."}, "finish_reason": finish_reason}]}
    body = event(chunk) + (event("[DONE]") if done else "")
    head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    answer = Transcript(f"{head}{len(body):x}\r\n{body}\r\n".encode(), recorded=False)
    async with meeting(wire, answer, retries=0) as (server, endpoint):
        assert (await ask(endpoint, "stream")).text == "A whale."
    assert len(server.requests) == 1


@pytest.mark.serial
async def test_a_body_left_open_after_done_holds_nobody_up(wire: str) -> None:
    """A server that never closes what it has ended is left within moments."""
    said = event({"choices": [{"index": 0, "delta": {"content": "A whale."}}]}) + event("[DONE]")
    answer = Answer(body=said + " " * len(said), content_type="text/event-stream", fault="hang_midstream")
    async with meeting(wire, answer) as (server, endpoint):
        with anyio.fail_after(1.5):
            assert (await ask(endpoint, "stream")).text == "A whale."
        await server.wait_disconnects(1)


@pytest.mark.serial
async def test_pings_after_done_hold_nobody_up(wire: str) -> None:
    """A body that goes on and on after [DONE] is left within moments."""
    said = event({"choices": [{"index": 0, "delta": {"content": "A whale."}, "finish_reason": "stop"}]})
    head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    data = f"{head}{said}{event('[DONE]')}".encode()
    ping = b": " + b"." * (len(data) - 4) + b"\n\n"
    answer = Transcript(data + 40 * ping, recorded=False, cut=len(data), pace=0.1)
    async with meeting(wire, answer, retries=0) as (_, endpoint):
        with anyio.fail_after(1.5):
            assert (await ask(endpoint, "stream")).text == "A whale."


async def test_an_open_end_can_be_accepted(wire: str) -> None:
    """For a server that never says it is done, the end of the body is the end of the stream."""
    async with meeting(wire, Answer("A whale.", fault="end_early"), accept_open_end=True) as (_, endpoint):
        texts, ends = await deltas_and_ends(endpoint)
    assert ("".join(texts), ends[0].text, ends[0].finish_reason) == ("A whale.", "A whale.", None)


@pytest.mark.parametrize("fault", ["cut_midstream", "reset_midstream"])
async def test_a_cut_is_an_error_even_with_an_open_end(wire: str, fault: Fault) -> None:
    """accept_open_end accepts an end, not a break that HTTP itself shows."""
    answer = Answer(chunks=WORDS.chunks, fault=fault)
    async with meeting(wire, answer, accept_open_end=True, retries=0) as (_, endpoint):
        assert type(await failure(endpoint, "stream")) is EndpointUnavailable


async def test_an_incomplete_stream_says_what_to_do(wire: str) -> None:
    """The message names the setting for servers that never say they are done."""
    async with meeting(wire, Answer("A", fault="end_early")) as (_, endpoint):
        assert "accept_open_end=True" in str(await failure(endpoint, "stream"))


# Deadlines


@pytest.mark.serial
async def test_a_refusal_whose_words_hang_is_told_within_the_first_deadline() -> None:
    """The status has arrived: nobody waits for the total deadline to hear the words."""
    deadlines = Deadlines(first_token=0.15, total=30)
    async with meeting("http", Answer(status=400, fault="hang_midstream"), deadlines=deadlines) as (_, endpoint):
        with anyio.fail_after(0.15 + 1):
            assert type(await failure(endpoint, "stream")) is EndpointRejected


@pytest.mark.serial
async def test_first_token_counts_from_the_request(wire: str) -> None:
    """A head after 0.12 s and a text after 0.24 s is too late for 0.2 s."""
    head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    text = event({"choices": [{"index": 0, "delta": {"content": "A"}, "finish_reason": "stop"}]})
    answer = Transcript((head + text).encode(), recorded=False, cut=len(head) - 2, pace=0.12)
    async with meeting(wire, answer, deadlines=Deadlines(first_token=0.2), retries=0) as (_, endpoint):
        with anyio.fail_after(0.2 + 1):
            assert type(await failure(endpoint, "stream")) is EndpointUnavailable


@pytest.mark.serial
async def test_a_slow_stream_within_its_deadlines_is_no_error(wire: str) -> None:
    """The idle deadline counts from one read to the next, not from the first."""
    answer = Answer(chunks=["one ", "two ", "three ", "four"], pace=0.05)
    async with meeting(wire, answer, deadlines=Deadlines(idle=0.25, first_token=0.25)) as (_, endpoint):
        assert (await ask(endpoint, "stream")).text == "one two three four"


async def test_no_deadlines_is_no_error(wire: str, how: str) -> None:
    """Every deadline can be switched off."""
    deadlines = Deadlines(connect=None, first_token=None, idle=None, total=None)
    async with meeting(wire, [Answer(status=503, headers=AT_ONCE), Answer("A")], deadlines=deadlines) as (_, endpoint):
        assert (await ask(endpoint, how)).text == "A"


async def test_the_callers_own_deadline_is_not_taken_for_ours(wire: str, how: str) -> None:
    """A cancel scope of the caller's that runs out is the caller's TimeoutError."""
    async with meeting(wire, Answer(fault="hang")) as (_, endpoint):
        with pytest.raises(TimeoutError):
            with anyio.fail_after(0.05):
                await ask(endpoint, how)


# Errors travel


@pytest.mark.parametrize(
    ("how", "answer"),
    [
        *[("stream", Answer("one two three four", fault=fault)) for fault in FAULTS],
        ("stream", Answer(fault="hang")),
        ("stream", Answer(fault="hang_midstream")),
        ("generate", Answer(fault="hang")),
        ("generate", Answer(fault="close")),
        ("generate", Answer(status=401, body=error_body(KEY))),
        ("generate", Answer(status=429, headers={"retry-after": "3600"}, body=error_body(KEY))),
        ("generate", Answer(status=302, headers={"location": f"/{KEY}"}, body="")),
        ("generate", Answer(body=KEY)),
        ("stream", Answer(body=event(KEY), content_type="text/event-stream")),
        ("stream", Answer(body=event({"choices": [KEY]}), content_type="text/event-stream")),
        ("stream", Answer(body=event(error_body(KEY, code=400)), content_type="text/event-stream")),
    ],
)
async def test_every_error_pickles_and_hides_the_key(wire: str, how: str, answer: Answer) -> None:
    """An error comes out of a pickle as it went in, and holds the api key nowhere."""
    deadlines = Deadlines(first_token=0.15, idle=0.15, total=5 if how == "stream" else 0.15)
    async with meeting(wire, answer, retries=0, deadlines=deadlines) as (_, endpoint):
        error = await failure(endpoint, how)
    pickled = pickle.dumps(error)
    copy = pickle.loads(pickled)  # noqa: S301 - made two lines up
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
    assert KEY.encode() not in pickled


# Leaving early


async def _read(endpoint: AnyEndpoint, arrived: Callable[[], None] = lambda: None) -> None:
    """Read a stream and say so at each event."""
    async with endpoint.stream(MESSAGES, Sampling()) as events:
        async for _ in events:
            arrived()


ENDLESS = Answer(chunks=["whale "] * 200, fault="hang_midstream")


async def test_breaking_out_of_a_stream_disconnects(wire: str) -> None:
    """Leaving the loop and the block closes the connection, so that the server stops generating."""
    async with meeting(wire, ENDLESS) as (server, endpoint):
        async with endpoint.stream(MESSAGES, Sampling()) as events:
            async for _ in events:
                break
        await server.wait_disconnects(1)


async def test_leaving_without_reading_disconnects(wire: str) -> None:
    """A block that reads nothing closes the connection too."""
    async with meeting(wire, ENDLESS) as (server, endpoint):
        async with endpoint.stream(MESSAGES, Sampling()):
            pass
        await server.wait_disconnects(1)


async def test_an_error_in_the_block_disconnects_and_passes_through(wire: str) -> None:
    """An exception of the caller's own comes out as it is."""

    def fail() -> None:
        raise ZeroDivisionError

    async with meeting(wire, ENDLESS) as (server, endpoint):
        with pytest.raises(ZeroDivisionError):
            await _read(endpoint, fail)
        await server.wait_disconnects(1)


async def test_leaving_early_does_not_spoil_the_next_call(wire: str, how: str) -> None:
    """After a stream that was left the endpoint answers as ever."""
    async with meeting(wire, [ENDLESS, Answer("A whale.")]) as (server, endpoint):
        async with endpoint.stream(MESSAGES, Sampling()) as events:
            await anext(events)
        assert (await ask(endpoint, how)).text == "A whale."
        await server.wait_disconnects(1)


async def test_cancelling_in_mid_stream_disconnects(wire: str) -> None:
    """A task that is cancelled while it reads closes the connection."""
    async with meeting(wire, ENDLESS) as (server, endpoint):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_read, endpoint, tasks.cancel_scope.cancel)
        await server.wait_disconnects(1)


@contextlib.asynccontextmanager
async def once_in_flight(server: FakeServer, count: int = 1) -> AsyncIterator[anyio.abc.TaskGroup]:
    """A task group that is cancelled as soon as the server answers `count` requests at once."""
    async with anyio.create_task_group() as tasks:
        yield tasks
        while server.in_flight < count:  # noqa: ASYNC110 - the server offers no event for it
            await anyio.sleep(0.002)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("engine", ["vllm", "llama.cpp"])
@pytest.mark.parametrize("answer", [Answer(first_after=30), Answer(fault="hang"), Answer(fault="hang_midstream")])
async def test_cancelling_a_completion_disconnects(wire: str, how: str, answer: Answer, engine: str) -> None:
    """A task that is cancelled while it waits for an answer closes the connection."""
    async with meeting(wire, answer, engine=engine) as (server, endpoint):
        async with once_in_flight(server) as tasks:
            tasks.start_soon(ask, endpoint, how)
        await server.wait_disconnects(1)


async def test_cancelling_in_the_pause_before_a_retry_is_prompt(wire: str, how: str) -> None:
    """Nobody waits for a Retry-After whose task was cancelled."""
    async with meeting(wire, Answer(status=503, headers={"retry-after": "60"})) as (server, endpoint):
        with anyio.move_on_after(0.15) as scope:
            await ask(endpoint, how)
    assert scope.cancelled_caught
    assert len(server.requests) == 1


async def test_fifty_streams_cancelled_at_once_all_disconnect(wire: str) -> None:
    """Cancelling many streams leaves not one of them running on the server."""
    async with meeting(wire, ENDLESS) as (server, endpoint):
        async with once_in_flight(server, 50) as tasks:
            for _ in range(50):
                tasks.start_soon(_read, endpoint)
        await server.wait_disconnects(50)


async def test_closing_the_endpoint_closes_idle_connections() -> None:
    """After aclose the server has no connection left, and nothing was cut off."""
    async with meeting("http", Answer("A")) as (server, endpoint):
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(functools.partial(ask, endpoint, "stream"))
        assert server.open_connections >= 1
    assert (server.open_connections, server.disconnects) == (0, 0)


async def test_a_finished_stream_is_no_disconnect(wire: str) -> None:
    """Reading to the end cuts nothing off."""
    async with meeting(wire, WORDS) as (server, endpoint):
        await ask(endpoint, "stream")
    assert server.disconnects == 0


async def test_leaving_right_after_the_end_is_no_disconnect(wire: str) -> None:
    """A caller that leaves on the GenerationEnd keeps the connection."""
    async with meeting(wire, Answer("A")) as (server, endpoint):
        for _ in range(2):
            async with endpoint.stream(MESSAGES, Sampling()) as events:
                assert isinstance(await anext(events), TextDelta)
                await anext(events)
        assert (server.connections, server.disconnects) == (1, 0)


def test_a_key_is_not_in_an_endpoint_that_fails_to_be_made() -> None:
    """A refused setting does not show the key."""
    with pytest.raises(ValueError, match="engine") as caught:
        HTTPEndpoint("http://127.0.0.1:9/v1", "m", api_key=KEY, engine="nope")  # type: ignore[arg-type]
    assert KEY not in str(caught.value)


async def test_an_encoding_that_is_unknown_leaves_no_connection_open(wire: str) -> None:
    """An answer that is refused for its encoding is closed like any other: ten calls do not hold ten connections."""
    answer = Answer(body=b"x" * 300, headers={"content-encoding": "br"}, content_type="application/json")
    async with FakeServer(answer) as server, endpoint_at(wire, server.base_url, retries=0) as endpoint:
        for _ in range(10):
            with pytest.raises(EndpointUnavailable):
                await ask(endpoint, "generate")
        await anyio.sleep(0.1)
        assert server.open_connections <= 1
