"""The test doubles: what a server, an endpoint, a recommender and sample records promise to the tests that use them."""

import base64
import http.client
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest

from duet import (
    Completion,
    ConfigurationError,
    Deadlines,
    Endpoint,
    EndpointRejected,
    EndpointUnavailable,
    GenerationEnd,
    HTTPEmbedder,
    HTTPEndpoint,
    IncompleteStream,
    Item,
    JointProfiler,
    Message,
    ProfileSchema,
    Rating,
    Recommender,
    Sampling,
    TextDelta,
    TokenLogprob,
    User,
    parse_profile,
)
from duet.testing import (
    USAGE,
    Answer,
    ConstantRecommender,
    FakeServer,
    Fault,
    Request,
    ScriptedEndpoint,
    Transcript,
    _server,
    completion_text,
    sample_examples,
    sample_interactions,
    sample_items,
    sample_users,
)

MESSAGES: tuple[Message, ...] = ({"role": "user", "content": "Who am I?"},)
SAMPLING = Sampling()
STREAM = {"stream": True, "stream_options": {"include_usage": True}}

in_both_loops = pytest.mark.anyio


def endpoint(server: FakeServer, **more: Any) -> HTTPEndpoint:
    return HTTPEndpoint(server.base_url, "m", retries=more.pop("retries", 0), **more)


async def ask(server: FakeServer, **more: Any) -> Completion:
    async with endpoint(server, **more) as client:
        return await client.generate(MESSAGES, SAMPLING)


async def ask_streamed(server: FakeServer, **more: Any) -> list[TextDelta | GenerationEnd]:
    async with endpoint(server, **more) as client, client.stream(MESSAGES, SAMPLING) as events:
        return [event async for event in events]


def http_request(
    body: object = None, *, method: str = "POST", path: str = "/v1/chat/completions", head: str = "connection: close"
) -> bytes:
    payload = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
    lines = [f"{method} {path} HTTP/1.1", "host: fake", f"content-length: {len(payload)}", *filter(None, [head])]
    return "\r\n".join([*lines, "", ""]).encode() + payload


@asynccontextmanager
async def connect(server: FakeServer) -> AsyncIterator[anyio.abc.SocketStream]:
    host, port = server.base_url.removeprefix("http://").removesuffix("/v1").split(":")
    async with await anyio.connect_tcp(host, int(port)) as stream:
        yield stream


async def read_into(received: list[bytes], stream: anyio.abc.SocketStream) -> None:
    while True:
        received.append(await stream.receive())


async def read_to_end(stream: anyio.abc.SocketStream) -> bytes:
    return b"".join([data async for data in stream])


async def read_until(stream: anyio.abc.SocketStream, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        data += await stream.receive()
    return data


async def exchange(server: FakeServer, request: bytes) -> tuple[bytes, bytes]:
    """Head and body of the answer to one request that asks for the connection to be closed."""
    async with connect(server) as stream:
        await stream.send(request)
        head, _, body = (await read_to_end(stream)).partition(b"\r\n\r\n")
    return head, body


def unchunked(body: bytes) -> list[bytes]:
    chunks = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        chunks.append(rest[: int(size, 16)])
        body = rest[int(size, 16) + 2 :]
    assert chunks.pop() == b""
    return chunks


async def stream_events(server: FakeServer, **fields: Any) -> list[Any]:
    """The events of a stream, parsed; the end mark as its text."""
    _, body = await exchange(server, http_request(STREAM | fields))
    payloads = [chunk.removeprefix(b"data: ").removesuffix(b"\n\n") for chunk in unchunked(body)]
    return ["[DONE]" if payload == b"[DONE]" else json.loads(payload) for payload in payloads]


def contents(events: list[Any]) -> list[str]:
    deltas = [choice["delta"] for event in events if event != "[DONE]" for choice in event["choices"]]
    return [delta["content"] for delta in deltas if delta.get("content")]


async def plain(server: FakeServer, **fields: Any) -> Any:
    _, body = await exchange(server, http_request(fields))
    return json.loads(body)


@in_both_loops
class TestPlainAnswers:
    async def test_says_the_text(self) -> None:
        """A request that asks for no stream gets the text in one completion."""
        async with FakeServer("hello, žluťoučký 🐎") as server:
            assert (await ask(server)).text == "hello, žluťoučký 🐎"

    async def test_is_a_profile_by_default(self) -> None:
        """Without any argument the server answers with a profile of both sides."""
        async with FakeServer() as server:
            profile = parse_profile(await ask(server), ProfileSchema())
        assert profile.user is not None
        assert profile.item is not None

    async def test_joins_given_chunks(self) -> None:
        """Where an answer has chunks, a plain request gets them joined."""
        async with FakeServer(Answer(chunks=["one", " two"])) as server:
            assert (await ask(server)).text == "one two"

    async def test_reports_usage(self) -> None:
        """The usage object arrives as the answer has it."""
        async with FakeServer() as server:
            usage = (await ask(server)).usage
        assert usage is not None
        assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.estimated) == (
            120,
            40,
            100,
            False,
        )

    async def test_can_hide_usage(self) -> None:
        """An answer whose usage is None has no such field."""
        async with FakeServer(Answer(usage=None)) as server:
            assert "usage" not in await plain(server)

    async def test_names_the_model_that_was_asked_for(self) -> None:
        """The answer echoes the request's model."""
        async with FakeServer() as server:
            assert (await ask(server)).model == "m"

    async def test_carries_finish_reason(self) -> None:
        """The finish reason is the answer's."""
        async with FakeServer(Answer("cut", finish_reason="length")) as server:
            assert (await ask(server)).finish_reason == "length"

    async def test_carries_reasoning(self) -> None:
        """Reasoning is split off from the text."""
        async with FakeServer(Answer("4", reasoning="hm")) as server:
            assert (await ask(server)).reasoning == "hm"

    async def test_carries_logprobs_that_were_asked_for(self) -> None:
        """Log-probabilities arrive whole where the request asks for them."""
        entry = TokenLogprob("4", -0.25, (("4", -0.25), ("5", -1.5)))
        async with FakeServer(Answer("4", logprobs=[entry])) as server, endpoint(server) as client:
            completion = await client.generate(MESSAGES, Sampling(logprobs=True, top_logprobs=2))
        assert completion.logprobs == (entry,)

    async def test_keeps_logprobs_that_nobody_asked_for(self) -> None:
        """Without the request's word no log-probabilities are sent, as with a real server."""
        async with FakeServer(Answer("4", logprobs=[TokenLogprob("4", -0.25)])) as server:
            assert (await ask(server)).logprobs == ()

    async def test_has_a_body_of_the_callers_own(self) -> None:
        """A given body is sent as it is, under the content type that is asked for."""
        async with FakeServer(Answer(body="<html>", content_type="text/html")) as server:
            head, body = await exchange(server, http_request())
        assert body == b"<html>"
        assert b"content-type: text/html" in head

    async def test_has_headers_of_the_callers_own(self) -> None:
        """Given headers are sent, in the place of the usual ones where they have the same name."""
        async with FakeServer(Answer(headers={"Content-Type": "text/plain", "X-Own": "1"})) as server:
            head, _ = await exchange(server, http_request())
        assert b"content-type: text/plain" in head
        assert b"application/json" not in head
        assert b"x-own: 1" in head

    async def test_waits_before_the_head(self) -> None:
        """`first_after` holds back even the head of a plain answer."""
        async with FakeServer(Answer(first_after=30)) as server, connect(server) as stream:
            await stream.send(http_request())
            with anyio.move_on_after(0.1) as waiting:
                await stream.receive()
        assert waiting.cancelled_caught


@in_both_loops
class TestStreams:
    async def test_say_the_text_in_pieces(self) -> None:
        """The deltas of a stream, joined, are the text."""
        async with FakeServer("one two three") as server:
            *deltas, end = await ask_streamed(server)
        assert "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)) == "one two three"
        assert isinstance(end, GenerationEnd)

    async def test_are_ordered_as_vllm_orders_them(self) -> None:
        """A stream has the role, the text, the finish reason, the usage and the end mark, in this order."""
        async with FakeServer("one two") as server:
            role, *text, finish, usage, done = await stream_events(server)
        assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert contents(text) == ["one ", "two"]
        assert finish["choices"][0]["finish_reason"] == "stop"
        assert (usage["choices"], usage["usage"]) == ([], USAGE)
        assert done == "[DONE]"

    async def test_keep_usage_that_nobody_asked_for(self) -> None:
        """Without `include_usage` no chunk has a usage."""
        async with FakeServer("one") as server:
            events = await stream_events(server, stream_options={})
        assert not any("usage" in event for event in events[:-1])

    async def test_are_cut_as_told(self) -> None:
        """Given chunks are the pieces, and stand for the text."""
        async with FakeServer(Answer(chunks=["<", "a>", "x"])) as server:
            assert contents(await stream_events(server)) == ["<", "a>", "x"]

    async def test_are_cut_at_tokens(self) -> None:
        """Where there are log-probabilities for the text, each piece is a token and brings its own."""
        tokens = [TokenLogprob("one", -0.5), TokenLogprob(" two", -0.25)]
        async with FakeServer(Answer("one two", logprobs=tokens)) as server:
            events = await stream_events(server, logprobs=True)
        assert contents(events) == ["one", " two"]
        assert [event["choices"][0]["logprobs"]["content"][0]["logprob"] for event in events[1:3]] == [-0.5, -0.25]

    async def test_send_reasoning_before_the_text(self) -> None:
        """Reasoning comes in an event of its own, first."""
        async with FakeServer(Answer("4", reasoning="hm")) as server:
            events = await stream_events(server)
        assert events[1]["choices"][0]["delta"] == {"reasoning_content": "hm"}

    async def test_can_end_without_the_end_mark(self) -> None:
        """With `done=False` the finish reason and the usage are the last events."""
        async with FakeServer(Answer("one", done=False)) as server:
            assert "usage" in (await stream_events(server))[-1]

    async def test_can_end_without_a_finish_reason(self) -> None:
        """With `finish_reason=None` no event has one."""
        async with FakeServer(Answer("one", finish_reason=None, usage=None)) as server:
            events = await stream_events(server)
        assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None, None]

    async def test_send_their_head_at_once(self) -> None:
        """`first_after` holds back the first event of a stream and not its head."""
        async with FakeServer(Answer(first_after=30)) as server, connect(server) as stream:
            await stream.send(http_request(STREAM))
            with anyio.fail_after(5):
                assert (await read_until(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
            with anyio.move_on_after(0.05) as waiting:
                await stream.receive()
        assert waiting.cancelled_caught

    async def test_keep_their_pace(self) -> None:
        """`pace` lies between each event and the next."""
        async with FakeServer(Answer(chunks=["a", "b"], pace=0.02)) as server:
            started = time.monotonic()
            events = await stream_events(server)
        assert time.monotonic() - started >= 0.02 * (len(events) - 1)

    async def test_may_have_a_body_of_the_callers_own(self) -> None:
        """A given body answers a request for a stream as one chunk of an event stream."""
        async with FakeServer(Answer(body=b": comment\n\n")) as server:
            head, body = await exchange(server, http_request(STREAM))
        assert b"content-type: text/event-stream" in head
        assert unchunked(body) == [b": comment\n\n"]

    async def test_may_have_no_body(self) -> None:
        """An empty body is one that ends at once."""
        async with FakeServer(Answer(body=b"")) as server:
            _, body = await exchange(server, http_request(STREAM))
        assert body == b"0\r\n\r\n"


@in_both_loops
class TestChoiceOfAnswers:
    async def test_repeats_one(self) -> None:
        """A single answer serves every request."""
        async with FakeServer("one") as server:
            assert [(await ask(server)).text for _ in range(3)] == ["one"] * 3

    async def test_takes_several_in_turn(self) -> None:
        """Several answers are used in turn, and the last one repeats."""
        async with FakeServer(["one", Answer("two")]) as server:
            assert [(await ask(server)).text for _ in range(3)] == ["one", "two", "two"]

    async def test_draws_from_an_iterator_as_it_goes(self) -> None:
        """Answers may come from an iterator without an end."""
        async with FakeServer(f"{number}" for number in iter(int, 1)) as server:
            assert (await ask(server)).text == "0"

    async def test_asks_a_callable(self) -> None:
        """A callable sees the request and chooses."""

        def echo(request: Request) -> str:
            return f"you said {request.json['messages'][0]['content']}"

        async with FakeServer(echo) as server:
            assert (await ask(server)).text == "you said Who am I?"

    async def test_asks_a_callable_for_any_path(self) -> None:
        """A callable may serve paths that the server does not know."""
        async with FakeServer(lambda request: Answer(body=request.path)) as server:
            _, body = await exchange(server, http_request(path="/v1/load_lora_adapter"))
        assert body == b"/v1/load_lora_adapter"

    async def test_retries_meet_the_next_answer(self) -> None:
        """A client that retries a failure gets the answer after it."""
        busy = Answer(status=503, headers={"retry-after": "0"})
        async with FakeServer([busy, "fine"]) as server:
            assert (await ask(server, retries=1)).text == "fine"
            assert len(server.requests) == 2

    async def test_lists_models_without_using_an_answer(self) -> None:
        """The model list is the server's own and leaves the answers alone."""
        async with FakeServer(["one", "two"], model="tiny", owned_by="llamacpp") as server:
            _, body = await exchange(server, http_request(method="GET", path="/v1/models"))
            assert (await ask(server)).text == "one"
        listed = {"id": "tiny", "object": "model", "owned_by": "llamacpp"}
        assert json.loads(body) == {"object": "list", "data": [listed]}

    async def test_raises_what_a_callable_raised(self) -> None:
        """An exception of the callable is answered with status 500 and raised at the end of the block."""

        def broken(request: Request) -> str:
            raise ZeroDivisionError("in the test's own code")

        with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the end of the block is what raises
            async with FakeServer(broken) as server:
                with pytest.raises(EndpointUnavailable, match="ZeroDivisionError"):
                    await ask(server)

    async def test_an_exception_of_the_block_comes_first(self) -> None:
        """An exception of the block is not replaced by one of the callable."""

        def broken(request: Request) -> str:
            raise ZeroDivisionError

        with pytest.raises(EndpointUnavailable):
            async with FakeServer(broken) as server:
                await ask(server)


@in_both_loops
class TestEmbeddings:
    async def test_depend_on_the_text_alone(self) -> None:
        """The same text has the same vector of dimension 8, and another text another."""
        async with FakeServer() as server, HTTPEmbedder(server.base_url, "m") as embedder:
            first, other, again = await embedder.embed(["a", "b", "a"])
        assert first == again != other
        assert len(first) == 8

    async def test_are_packed_where_asked(self) -> None:
        """`encoding_format` "base64" gives the same numbers as packed floats."""
        async with FakeServer() as server:
            plain_body = http_request({"input": "a"}, path="/v1/embeddings")
            packed_body = http_request({"input": "a", "encoding_format": "base64"}, path="/v1/embeddings")
            plain_rows, packed_rows = [
                json.loads((await exchange(server, body))[1])["data"] for body in (plain_body, packed_body)
            ]
        unpacked = struct.unpack("<8f", base64.b64decode(packed_rows[0]["embedding"]))
        assert list(unpacked) == pytest.approx(plain_rows[0]["embedding"])


@in_both_loops
class TestRefusals:
    async def test_unknown_path(self) -> None:
        """A path that no OpenAI-compatible server has is answered 404."""
        async with FakeServer() as server:
            head, body = await exchange(server, http_request(path="/chat/completions"))
        assert head.startswith(b"HTTP/1.1 404 Not Found")
        assert json.loads(body)["error"]["code"] == "unknown_url"

    async def test_wrong_key(self) -> None:
        """A bearer token other than the server's is answered 401."""
        async with FakeServer(api_key="right") as server:
            with pytest.raises(EndpointRejected, match="Incorrect API key"):
                await ask(server, api_key="wrong")

    async def test_right_key(self) -> None:
        """The server's bearer token is let in."""
        async with FakeServer("in", api_key="right") as server:
            assert (await ask(server, api_key="right")).text == "in"

    async def test_body_that_is_no_json(self) -> None:
        """A request whose body is no JSON object is answered 400."""
        async with FakeServer() as server:
            head, _ = await exchange(server, http_request(b"[1"))
        assert head.startswith(b"HTTP/1.1 400 ")

    async def test_status_of_the_answer(self) -> None:
        """A status other than 200 comes with an error object that says so."""
        async with FakeServer(Answer(status=422)) as server:
            with pytest.raises(EndpointRejected, match="told to answer 422") as caught:
                await ask_streamed(server)
        assert caught.value.status_code == 422

    async def test_status_without_a_name(self) -> None:
        """A status that HTTP has no phrase for can be sent too."""
        async with FakeServer(Answer(status=529)) as server:
            head, _ = await exchange(server, http_request())
        assert head.startswith(b"HTTP/1.1 529 ")

    @pytest.mark.parametrize(
        ("sent", "status"),
        [
            (b"nonsense\r\n\r\n", b"400"),
            (b"POST / HTTP/1.1\r\ncontent-length: many\r\n\r\n", b"400"),
            (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n", b"411"),
            (b"GET / HTTP/1.1\r\nx: " + b"x" * 70_000, b"431"),
        ],
    )
    async def test_no_proper_request(self, sent: bytes, status: bytes) -> None:
        """What is no HTTP request that the server can read is refused and counts as none."""
        async with FakeServer() as server, connect(server) as stream:
            await stream.send(sent)
            assert (await stream.receive()).startswith(b"HTTP/1.1 " + status)
            assert server.requests == []


@in_both_loops
class TestConnections:
    async def test_requests_are_kept(self) -> None:
        """Every request is kept with its method, path, lower-case headers and body."""
        async with FakeServer() as server:
            await exchange(
                server, http_request({"a": 1}, path="/v1/chat/completions?x=1", head="X-A: b\r\nConnection: close")
            )
        (request,) = server.requests
        assert (request.method, request.path, request.json) == ("POST", "/v1/chat/completions?x=1", {"a": 1})
        assert request.headers["x-a"] == "b"

    async def test_serve_several_requests(self) -> None:
        """A connection is kept for the next request."""
        async with FakeServer() as server, endpoint(server) as client:
            for _ in range(3):
                await client.generate(MESSAGES, SAMPLING)
            assert (server.connections, server.open_connections) == (1, 1)

    async def test_serve_requests_that_were_sent_ahead(self) -> None:
        """Requests that arrive while another is answered are answered in order."""
        async with FakeServer(["one", "two"]) as server, connect(server) as stream:
            await stream.send(http_request(head="") + http_request())
            answers = await read_to_end(stream)
        assert 0 < answers.index(b'"one"') < answers.index(b'"two"')

    async def test_take_large_requests_in_pieces(self) -> None:
        """A body of a megabyte arrives whole."""
        async with FakeServer() as server:
            await exchange(server, http_request({"a": "x" * 1_000_000}))
            assert len(server.requests[0].json["a"]) == 1_000_000

    async def test_carry_large_answers(self) -> None:
        """An answer larger than any socket buffer arrives whole."""
        async with FakeServer("x" * 10_000_000) as server:
            assert len((await ask(server)).text) == 10_000_000

    async def test_are_closed_where_the_client_says_so(self) -> None:
        """`Connection: close` is honoured, and the connection counted as closed."""
        async with FakeServer() as server:
            head, _ = await exchange(server, http_request())
            assert b"connection: close" in head
            await until(lambda: server.open_connections == 0)

    async def test_are_closed_where_the_answer_says_so(self) -> None:
        """An answer with `Connection: close` among its headers is the last on its connection."""
        async with FakeServer(Answer(headers={"connection": "close"})) as server, connect(server) as stream:
            await stream.send(http_request(head=""))
            assert (await read_to_end(stream)).startswith(b"HTTP/1.1 200")

    async def test_are_closed_for_old_clients(self) -> None:
        """HTTP/1.0 closes the connection after the answer."""
        async with FakeServer() as server:
            request = http_request(head="").replace(b"HTTP/1.1", b"HTTP/1.0")
            assert (await exchange(server, request))[0].startswith(b"HTTP/1.1 200")

    async def test_that_end_before_a_whole_request_are_forgotten(self) -> None:
        """A client that leaves in the middle of a request has made none."""
        async with FakeServer() as server:
            async with connect(server) as stream:
                await stream.send(http_request()[:-1])
            await until(lambda: server.connections == 1 and server.open_connections == 0)
            assert (server.requests, server.disconnects) == ([], 0)

    async def test_in_flight_is_counted(self) -> None:
        """`in_flight` counts the requests that wait for their answer, `peak_in_flight` the most there were."""
        async with FakeServer(Answer(first_after=0.1)) as server:
            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(ask, server)
                await until(lambda: server.in_flight == 5)
            assert (server.in_flight, server.peak_in_flight) == (0, 5)

    async def test_sequential_requests_never_overlap(self) -> None:
        """A client that asks one thing after the other has one request in flight at most."""
        async with FakeServer("x") as server, endpoint(server) as client:
            for _ in range(50):
                await client.generate(MESSAGES, SAMPLING)
            assert server.peak_in_flight == 1


async def until(condition: Any) -> None:
    with anyio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - counters have no event to wait for
            await anyio.sleep(0.001)


@in_both_loops
class TestDisconnects:
    @pytest.mark.parametrize(
        "answer",
        [Answer(first_after=30), Answer(pace=30), Answer(fault="hang"), Answer(fault="hang_midstream")],
        ids=["before the first event", "between events", "hanging", "hanging half-way"],
    )
    @pytest.mark.serial
    async def test_are_noticed_at_once(self, answer: Answer) -> None:
        """A client that leaves is noticed promptly, also while the server has nothing to send."""
        async with FakeServer(answer) as server:
            async with connect(server) as stream:
                await stream.send(http_request(STREAM))
                await until(lambda: server.in_flight)
            started = time.monotonic()
            await server.wait_disconnects(1)
            assert time.monotonic() - started < 1
            assert (server.disconnects, server.in_flight) == (1, 0)

    async def test_are_noticed_in_the_middle_of_a_large_answer(self) -> None:
        """A client that stops reading and leaves has cut the answer off."""
        async with FakeServer(Answer(body="x" * 20_000_000)) as server:
            async with connect(server) as stream:
                await stream.send(http_request())
                await stream.receive(10)
            await server.wait_disconnects()

    async def test_of_a_reset_are_noticed(self) -> None:
        """A client whose connection is reset has left as well."""
        async with FakeServer(Answer(fault="hang")) as server:
            with socket.create_connection(("127.0.0.1", int(server.base_url.split(":")[2][:-3]))) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.sendall(http_request())
                await until(lambda: server.in_flight)
            await server.wait_disconnects()

    async def test_of_a_whole_answer_are_none(self) -> None:
        """A client that leaves on reading the end mark has cut nothing off."""
        async with FakeServer() as server:
            for _ in range(20):
                async with connect(server) as stream:
                    await stream.send(http_request(STREAM, head=""))
                    data = b""
                    while b"[DONE]" not in data:
                        data += await stream.receive()
            await until(lambda: server.open_connections == 0)
            assert server.disconnects == 0

    @pytest.mark.parametrize("fault", ["reset", "close", "reset_midstream", "cut_midstream"])
    async def test_by_the_server_are_none(self, fault: Fault) -> None:
        """What the server breaks off itself is no disconnect."""
        async with FakeServer(Answer(fault=fault)) as server:
            with pytest.raises(EndpointUnavailable):
                await ask_streamed(server)
            await until(lambda: server.open_connections == 0)
            assert server.disconnects == 0

    async def test_of_an_endpoint_that_gives_up(self) -> None:
        """An endpoint whose deadline is over closes the connection, and the server sees it."""
        async with FakeServer(Answer(fault="hang")) as server:
            with pytest.raises(EndpointUnavailable):
                await ask(server, deadlines=Deadlines(total=0.05))
            await server.wait_disconnects()

    async def test_that_never_come_are_not_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Waiting for a disconnect ends with a TimeoutError."""
        monkeypatch.setattr(_server, "_WAIT_SECONDS", 0.02)
        async with FakeServer() as server:
            with pytest.raises(TimeoutError):
                await server.wait_disconnects()


@in_both_loops
class TestFaults:
    async def test_reset(self) -> None:
        """ "reset" is a connection reset, not an end of file."""
        async with FakeServer(Answer(fault="reset")) as server, connect(server) as stream:
            await stream.send(http_request())
            with pytest.raises(anyio.BrokenResourceError):
                await stream.receive()

    async def test_close(self) -> None:
        """ "close" is an end of file before any byte."""
        async with FakeServer(Answer(fault="close")) as server, connect(server) as stream:
            await stream.send(http_request())
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()

    async def test_hang(self) -> None:
        """ "hang" sends nothing and keeps the connection open."""
        async with FakeServer(Answer(fault="hang")) as server, connect(server) as stream:
            await stream.send(http_request())
            with anyio.move_on_after(0.1) as waiting:
                await stream.receive()
        assert waiting.cancelled_caught

    async def test_reset_midstream(self) -> None:
        """ "reset_midstream" sends half of the events and resets the connection."""
        async with FakeServer(Answer(chunks=list("abcd"), fault="reset_midstream")) as server:
            async with connect(server) as stream:
                await stream.send(http_request(STREAM))
                received: list[bytes] = []
                with pytest.raises(anyio.BrokenResourceError):
                    await read_into(received, stream)
        data = b"".join(received)
        assert data.endswith(b"\n\n\r\n")
        assert (b'"b"' in data, b'"c"' in data) == (True, False)

    async def test_cut_midstream(self) -> None:
        """ "cut_midstream" sends half of the events and closes without an end of the body."""
        async with FakeServer(Answer(chunks=list("abcd"), fault="cut_midstream")) as server:
            _, body = await exchange(server, http_request(STREAM))
        assert body.endswith(b"\n\n\r\n")
        assert (b'"b"' in body, b'"c"' in body) == (True, False)

    async def test_cut_midstream_of_a_plain_answer(self) -> None:
        """ "cut_midstream" sends half of the bytes that a plain answer's head promises."""
        async with FakeServer(Answer("x", fault="cut_midstream")) as server:
            head, body = await exchange(server, http_request())
        assert len(body) == int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]) // 2

    async def test_hang_midstream(self) -> None:
        """ "hang_midstream" sends half of the events and nothing after them."""
        async with FakeServer(Answer(chunks=list("abcd"), fault="hang_midstream")) as server, connect(server) as stream:
            await stream.send(http_request(STREAM))
            received: list[bytes] = []
            with anyio.move_on_after(0.1) as waiting:
                await read_into(received, stream)
        assert waiting.cancelled_caught
        data = b"".join(received)
        assert (b'"b"' in data, b'"c"' in data) == (True, False)

    async def test_end_early(self) -> None:
        """ "end_early" ends the body properly with neither finish reason nor end mark."""
        async with FakeServer(Answer("one", fault="end_early")) as server:
            events = await stream_events(server)
        assert [event["choices"][0]["finish_reason"] for event in events] == [None, None]

    async def test_end_early_of_a_plain_answer(self) -> None:
        """ "end_early" leaves a plain answer without a finish reason."""
        async with FakeServer(Answer("one", fault="end_early")) as server:
            assert (await plain(server))["choices"][0]["finish_reason"] is None

    @pytest.mark.parametrize("fields", [{}, STREAM], ids=["plain", "streamed"])
    async def test_drip(self, fields: dict[str, Any]) -> None:
        """ "drip" sends byte by byte the same body as without it."""
        answer = Answer(body=b"data: x\n\n", fault="drip", pace=0.001)
        async with FakeServer(answer) as server:
            started = time.monotonic()
            _, body = await exchange(server, http_request(fields))
        assert (b"".join(unchunked(body)) if fields else body) == b"data: x\n\n"
        assert time.monotonic() - started >= 0.008

    async def test_drip_of_nothing(self) -> None:
        """ "drip" of an empty body is its head."""
        async with FakeServer(Answer(body=b"", fault="drip")) as server:
            assert (await exchange(server, http_request()))[1] == b""

    async def test_bad_json(self) -> None:
        """ "bad_json" puts an event among the others that no parser takes."""
        async with FakeServer(Answer(chunks=list("abcd"), fault="bad_json")) as server:
            with pytest.raises(json.JSONDecodeError):
                await stream_events(server)

    async def test_bad_json_of_a_plain_answer(self) -> None:
        """ "bad_json" breaks off a plain answer's JSON in a body of the right length."""
        async with FakeServer(Answer(fault="bad_json")) as server:
            with pytest.raises(EndpointUnavailable, match="malformed JSON"):
                await ask(server)

    async def test_error_event(self) -> None:
        """ "error_event" ends a stream half-way with an error object in vLLM's shape."""
        async with FakeServer(Answer(chunks=list("abcd"), fault="error_event")) as server:
            *_, last, error, done = await stream_events(server)
        assert contents([last]) == ["b"]
        assert error["error"].keys() == {"message", "type", "param", "code"}
        assert done == "[DONE]"

    async def test_error_event_of_a_plain_answer(self) -> None:
        """ "error_event" makes a plain answer an error object under status 200."""
        async with FakeServer(Answer(fault="error_event")) as server:
            with pytest.raises(EndpointUnavailable, match="EngineCore died"):
                await ask(server)

    @pytest.mark.parametrize(
        ("fault", "error"),
        [
            ("reset", EndpointUnavailable),
            ("close", EndpointUnavailable),
            ("hang", EndpointUnavailable),
            ("reset_midstream", EndpointUnavailable),
            ("cut_midstream", EndpointUnavailable),
            ("hang_midstream", EndpointUnavailable),
            ("end_early", IncompleteStream),
            ("drip", EndpointUnavailable),
            ("bad_json", EndpointUnavailable),
            ("error_event", EndpointUnavailable),
        ],
    )
    async def test_an_endpoint_blames_the_infrastructure(self, fault: Fault, error: type[Exception]) -> None:
        """Each fault surfaces in an endpoint's stream as an error of the endpoint."""
        async with FakeServer(Answer(fault=fault)) as server:
            with pytest.raises(error):
                await ask_streamed(server, deadlines=Deadlines(total=0.2))

    async def test_faults_hold_for_unknown_paths(self) -> None:
        """A callable's fault is played out whatever the path."""
        async with FakeServer(lambda request: Answer(fault="close")) as server:
            assert await exchange(server, http_request(path="/health")) == (b"", b"")


@in_both_loops
class TestBlock:
    async def test_leaves_an_exception_as_it_is(self) -> None:
        """An exception of the block is no exception group."""
        with pytest.raises(KeyError, match="own"):
            async with FakeServer():
                raise KeyError("own")

    async def test_passes_on_a_cancellation(self) -> None:
        """A scope around the block can end it."""
        with anyio.move_on_after(0.02) as scope:
            async with FakeServer(Answer(fault="hang")) as server:
                await ask(server)
        assert scope.cancelled_caught

    async def test_cuts_off_what_is_under_way(self) -> None:
        """Leaving the block ends answers and idle connections alike."""
        async with anyio.create_task_group() as tasks:
            async with FakeServer(Answer(fault="hang")) as server:

                async def wait() -> None:
                    with pytest.raises(EndpointUnavailable):
                        await ask(server)

                tasks.start_soon(wait)
                await until(lambda: server.in_flight)
        assert (server.in_flight, server.open_connections, server.disconnects) == (0, 0, 0)

    async def test_frees_the_port(self) -> None:
        """After the block nothing listens any more."""
        async with FakeServer() as server:
            pass
        with pytest.raises(EndpointUnavailable):
            await ask(server)

    async def test_gives_two_servers_two_ports(self) -> None:
        """Several servers can run at once."""
        async with FakeServer("a") as first, FakeServer("b") as second:
            assert (await ask(first)).text + (await ask(second)).text == "ab"


class TestConstruction:
    def test_answers_must_not_be_empty(self) -> None:
        """A server without an answer is refused when it is made."""
        with pytest.raises(ConfigurationError):
            FakeServer([])

    def test_address_needs_a_running_server(self) -> None:
        """Before the block there is no address."""
        with pytest.raises(ConfigurationError, match="async with"):
            _ = FakeServer().base_url

    def test_fault_must_be_known(self) -> None:
        """A misspelt fault is refused with the names there are."""
        with pytest.raises(ConfigurationError, match="cut_midstream"):
            Answer(fault="explode")  # type: ignore[arg-type]

    def test_times_must_not_be_negative(self) -> None:
        """A negative pace is refused."""
        with pytest.raises(ConfigurationError, match="pace"):
            Answer(pace=-1)

    def test_answers_can_be_hashed(self) -> None:
        """Answers and requests can be members of a set."""
        answer, request = Answer("a", headers={"x": "y"}), Request("GET", "/", {"x": "y"})
        assert {answer, request} >= {answer}


RECORDED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 66\r\n\r\n"
    b'{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}] }'
)


@in_both_loops
class TestTranscripts:
    @pytest.mark.parametrize("cut", [None, 1, 7])
    async def test_are_replayed_byte_by_byte(self, cut: int | None) -> None:
        """A transcript arrives verbatim, however its writes are cut."""
        async with FakeServer(Transcript(RECORDED + b"!", cut=cut)) as server, connect(server) as stream:
            await stream.send(http_request())
            assert await read_to_end(stream) == RECORDED + b"!"

    async def test_answer_an_endpoint(self) -> None:
        """A transcript stands wherever an answer does."""
        async with FakeServer([Transcript(RECORDED), "two"]) as server:
            assert [(await ask(server)).text, (await ask(server)).text] == ["hi", "two"]

    async def test_keep_the_connection_where_they_can(self) -> None:
        """After a transcript with a length the connection serves on."""
        async with FakeServer(Transcript(RECORDED)) as server, endpoint(server) as client:
            for _ in range(2):
                await client.generate(MESSAGES, SAMPLING)
            assert server.connections == 1


@pytest.mark.parametrize(
    ("data", "keeps"),
    [
        (RECORDED, True),
        (RECORDED[:-1], False),
        (RECORDED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), False),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", False),
        (b"", False),
    ],
    ids=["length", "cut", "close", "end of file", "chunked", "chunked and cut", "nothing"],
)
def test_transcript_says_whether_the_connection_is_kept(data: bytes, keeps: bool) -> None:
    """A connection is kept after a transcript that ends its body itself."""
    assert Transcript(data).keeps_alive is keeps


def test_transcript_is_loaded_from_a_file(tmp_path: Path) -> None:
    """A file's bytes become a transcript that is named after it."""
    (tmp_path / "vllm-0.33.http").write_bytes(RECORDED)
    assert Transcript.load(tmp_path / "vllm-0.33.http", cut=3) == Transcript(RECORDED, "vllm-0.33", cut=3)


def test_transcript_needs_a_cut_of_some_size() -> None:
    """Writes of no bytes are refused."""
    with pytest.raises(ConfigurationError, match="cut"):
        Transcript(b"", cut=0)


class TestThread:
    def test_serves_synchronous_code(self) -> None:
        """A server in a thread answers a client that knows no event loop."""
        with FakeServer("sync").run_in_thread() as server:
            client = http.client.HTTPConnection(server.base_url.removeprefix("http://").removesuffix("/v1"), timeout=5)
            client.request("POST", "/v1/chat/completions", b"{}")
            answer = json.loads(client.getresponse().read())
            client.close()
            assert len(server.requests) == 1
        assert answer["choices"][0]["message"]["content"] == "sync"

    def test_leaves_an_exception_as_it_is(self) -> None:
        """An exception of the synchronous block is no exception group either."""
        with pytest.raises(KeyError, match="own"):
            with FakeServer().run_in_thread():
                raise KeyError("own")

    @in_both_loops
    async def test_disconnects_can_be_awaited_elsewhere(self) -> None:
        """An event loop other than the server's can wait for disconnects."""
        with FakeServer(Answer(fault="hang")).run_in_thread() as server:
            with pytest.raises(EndpointUnavailable):
                await ask(server, deadlines=Deadlines(total=0.05))
            await server.wait_disconnects()


@in_both_loops
class TestScriptedEndpoint:
    async def test_repeats_a_text(self) -> None:
        """A single text answers every call."""
        scripted = ScriptedEndpoint("hi")
        assert [(await scripted.generate(MESSAGES, SAMPLING)).text for _ in range(3)] == ["hi"] * 3

    async def test_hands_over_a_completion_as_it_is(self) -> None:
        """A completion is returned untouched."""
        completion = Completion("hi", finish_reason="length")
        assert await ScriptedEndpoint(completion).generate(MESSAGES, SAMPLING) is completion

    async def test_raises_exceptions(self) -> None:
        """An exception among the answers is raised, and the next call gets the next answer."""
        scripted = ScriptedEndpoint([EndpointUnavailable("down"), "up"])
        with pytest.raises(EndpointUnavailable, match="down"):
            await scripted.generate(MESSAGES, SAMPLING)
        assert (await scripted.generate(MESSAGES, SAMPLING)).text == "up"

    async def test_complains_when_the_script_is_over(self) -> None:
        """A call more than there are answers is a failed assertion that says how many there were."""
        scripted = ScriptedEndpoint(["one", "two"])
        for _ in range(2):
            await scripted.generate(MESSAGES, SAMPLING)
        for _ in range(2):
            with pytest.raises(AssertionError, match="its 2 answers"):
                await scripted.generate(MESSAGES, SAMPLING)

    async def test_asks_a_callable(self) -> None:
        """A callable sees messages and sampling and chooses."""

        def echo(messages: Sequence[Message], sampling: Sampling) -> str:
            return f"{messages[0]['content']} {sampling.seed}"

        assert (await ScriptedEndpoint(echo).generate(MESSAGES, Sampling(seed=3))).text == "Who am I? 3"

    async def test_keeps_its_calls(self) -> None:
        """What was asked can be read afterwards."""
        scripted = ScriptedEndpoint("hi")
        await scripted.generate(MESSAGES, SAMPLING)
        async with scripted.stream(MESSAGES, SAMPLING):
            pass
        assert scripted.calls == [(MESSAGES, SAMPLING)] * 2

    async def test_streams_in_pieces(self) -> None:
        """A stream brings pieces of `chunk_chars` characters and the completion last."""
        scripted = ScriptedEndpoint("abcde", chunk_chars=2)
        async with scripted.stream(MESSAGES, SAMPLING) as events:
            *pieces, end = [event async for event in events]
        assert pieces == [TextDelta("ab"), TextDelta("cd"), TextDelta("e")]
        assert end == GenerationEnd(await scripted.generate(MESSAGES, SAMPLING))

    async def test_stream_raises_exceptions_on_entering(self) -> None:
        """An exception among the answers keeps a stream from opening."""
        with pytest.raises(EndpointUnavailable):
            async with ScriptedEndpoint(EndpointUnavailable("down")).stream(MESSAGES, SAMPLING):
                pytest.fail("the block was entered")

    async def test_stream_can_be_left_early(self) -> None:
        """Leaving a stream before its end leaves nothing open."""
        async with ScriptedEndpoint("abcde", chunk_chars=1).stream(MESSAGES, SAMPLING) as events:
            assert await anext(events) == TextDelta("a")

    async def test_is_an_endpoint(self) -> None:
        """It has the shape that profilers ask for, and its default text makes a profile."""
        scripted: Endpoint = ScriptedEndpoint(completion_text(), model="tiny")
        profile = await JointProfiler(scripted).profile(User("u"), Item("i"))
        assert profile.model == scripted.model == "tiny"

    async def test_lets_others_run(self) -> None:
        """Every call is a checkpoint, so a cancelled scope ends it."""
        scripted = ScriptedEndpoint("hi")
        with anyio.CancelScope() as scope:
            scope.cancel()
            await scripted.generate(MESSAGES, SAMPLING)
        assert scripted.calls == []


def test_scripted_endpoint_needs_pieces_of_some_size() -> None:
    """Pieces of no characters are refused."""
    with pytest.raises(ConfigurationError, match="chunk_chars"):
        ScriptedEndpoint("hi", chunk_chars=0)


@in_both_loops
async def test_constant_recommender_predicts_one_value_and_counts() -> None:
    """Every pair gets the same rating, and the calls are counted."""
    constant = ConstantRecommender(3.5)
    recommender: Recommender = constant
    ratings = [await recommender.predict(User("u"), Item(name), None) for name in "ab"]
    assert ratings == [Rating(3.5)] * 2
    assert constant.calls == 2


class TestCompletionText:
    @pytest.mark.parametrize("sides", [("user", "item"), ("user",), ("item",)])
    @pytest.mark.parametrize(
        "sections", [("cue", "constructed_prompt", "profile"), ("constructed_prompt", "profile"), ("profile",)]
    )
    def test_fits_every_schema(self, sides: tuple[str, ...], sections: tuple[str, ...]) -> None:
        """The text parses under the schema that it was made for."""
        schema = ProfileSchema(sides, sections)
        profile = parse_profile(Completion(completion_text(schema)), schema)
        assert (profile.user is not None, profile.item is not None) == ("user" in sides, "item" in sides)

    def test_takes_sections(self) -> None:
        """A section can be given by side and name."""
        profile = parse_profile(Completion(completion_text(item_profile="A fish.")), ProfileSchema())
        assert profile.item is not None
        assert profile.item.text == "A fish."

    def test_refuses_unknown_sections(self) -> None:
        """A section that the schema lacks is refused with the names there are."""
        with pytest.raises(ConfigurationError, match="item_profile"):
            completion_text(ProfileSchema(("item",)), user_cue="x")

    def test_keeps_to_the_length(self) -> None:
        """No section of its own is longer than the schema allows."""
        schema = ProfileSchema(max_chars=10)
        profile = parse_profile(Completion(completion_text(schema)), schema)
        assert profile.user is not None
        assert len(profile.user.text) <= 10


class TestSample:
    def test_interactions_are_dated_and_titled(self) -> None:
        """Every sample rating has a time in UTC, a title and a review."""
        rows = sample_interactions()
        assert all(row.at and row.at.utcoffset() is not None and row.title and row.review for row in rows)

    def test_users_have_all_the_ratings(self) -> None:
        """The users' histories, together, are the interactions."""
        histories = [row for user in sample_users() for row in user.history]
        assert set(histories) == set(sample_interactions())

    def test_items_have_all_the_ratings_and_attributes(self) -> None:
        """The items' evidence, together, is the interactions, and each item is described."""
        items = sample_items()
        assert {row for item in items for row in item.evidence} == set(sample_interactions())
        assert all({"categories", "description", "year", "players"} <= dict(item.attributes).keys() for item in items)

    def test_examples_hold_out_each_users_last_rating(self) -> None:
        """There is one example a user: the last rating, with nothing of its time or later to go by."""
        examples = {example.user.id: example for example in sample_examples()}
        assert examples.keys() == {user.id for user in sample_users()}
        for user in sample_users():
            example = examples[user.id]
            assert (example.item.id, example.rating) == (user.history[-1].item, user.history[-1].rating)
            assert example.user.history == user.history[:-1]
