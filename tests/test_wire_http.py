"""HTTP/1.1 as servers may send it, byte for byte: what is an answer, and what becomes of the connection."""

from __future__ import annotations

import asyncio
import gc
import ssl
import subprocess
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest
from anyio.streams.tls import TLSListener
from wires import MESSAGES, TEST_SECONDS, ask

from duet import ConfigurationError, Deadlines, EndpointUnavailable, HTTPEndpoint, Sampling
from duet.testing import Answer, FakeServer

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_leaks")]

BODY = b'{"choices": [{"index": 0, "message": {"content": "A whale."}, "finish_reason": "stop"}]}'
PLAIN = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)
UNBOUNDED = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + BODY
CHUNKED = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    b"5;note=x\r\n%b\r\n%x\r\n%b\r\n0\r\nx-trailer: 1\r\n\r\n" % (BODY[:5], len(BODY) - 5, BODY[5:])
)
EVENT = b'data: {"choices": [{"index": 0, "delta": {"content": "whale "}}]}\n\n'
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
DONE = STREAM + b"%x\r\n%bdata: [DONE]\n\n\r\n" % (len(EVENT) + 14, EVENT)


class Script:
    """A server that answers the n-th request with the n-th bytes, cut into `step`; the last is said again and again.

    Args:
        answers: What is sent.
        step: Bytes in a write; 0 sends all at once.
        closes: Whether the connection is closed after each answer.
    """

    def __init__(self, *answers: bytes, step: int = 0, closes: bool = False) -> None:
        self.requests: list[bytes] = []
        self.connections = self.open = 0
        self._answers = answers
        self._step = step
        self._closes = closes

    async def __call__(self, stream: anyio.abc.ByteStream) -> None:
        self.connections += 1
        self.open += 1
        try:
            async with stream:
                while await self._exchange(stream) and not self._closes:
                    pass
        except (anyio.BrokenResourceError, anyio.EndOfStream):
            pass
        finally:
            self.open -= 1

    async def _exchange(self, stream: anyio.abc.ByteStream) -> bool:
        request = b""
        while not _whole(request):
            request += await stream.receive()
        self.requests.append(request)
        answer = self._answers[min(len(self.requests), len(self._answers)) - 1]
        for at in range(0, len(answer), self._step or len(answer) or 1):
            await stream.send(answer[at : at + (self._step or len(answer))])
        return bool(answer)


def _whole(request: bytes) -> bool:
    head, blank, body = request.partition(b"\r\n\r\n")
    lengths = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return bool(blank) and len(body) >= sum(lengths)


@asynccontextmanager
async def scripted(script: Script, context: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """The script as a server; its base address. At the end every connection must have been closed."""
    with anyio.fail_after(TEST_SECONDS):
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            anyio.create_task_group() as group,
        ):
            secure = TLSListener(listener, context, standard_compatible=False) if context else listener
            group.start_soon(secure.serve, script)
            port = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 - this is not Django
            yield f"{'https' if context else 'http'}://127.0.0.1:{port}/v1"
            await until(lambda: script.open == 0)
            group.cancel_scope.cancel()


async def until(holds: Callable[[], bool]) -> None:
    """Wait for something that has no event, two seconds at most."""
    with anyio.fail_after(2):
        while not holds():  # noqa: ASYNC110 - as above
            await anyio.sleep(0.005)


@asynccontextmanager
async def talking(script: Script, **settings: Any) -> AsyncIterator[HTTPEndpoint]:
    """An endpoint on a scripted server, without retries."""
    async with scripted(script) as base_url, HTTPEndpoint(base_url, "fake", retries=0, **settings) as endpoint:
        yield endpoint


@pytest.fixture
def over_aiohttp(anyio_backend: str) -> None:
    """For laws that the transport of httpx, which serves on trio, does not keep."""
    if anyio_backend == "trio":
        pytest.skip("httpx does otherwise")


# What is an answer


@pytest.mark.parametrize("step", [0, 1, 7])
@pytest.mark.parametrize("answer", [PLAIN, CHUNKED], ids=["length", "chunks"])
async def test_an_answer_is_read_however_it_is_cut(answer: bytes, step: int) -> None:
    """Where the socket cuts head and body makes no difference, and the connection is used again."""
    script = Script(answer, step=step)
    async with talking(script) as endpoint:
        for _ in range(2):
            assert (await ask(endpoint, "generate")).text == "A whale."
    assert script.connections == 1


async def test_a_body_may_end_with_the_connection() -> None:
    """Without length and chunks the end of the connection is that of the body; the next call connects anew."""
    script = Script(UNBOUNDED, closes=True)
    async with talking(script) as endpoint:
        for _ in range(2):
            assert (await ask(endpoint, "generate")).text == "A whale."
    assert script.connections == 2


@pytest.mark.parametrize(
    "interim",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\ncontent-type: text/html\r\ncontent-encoding: br\r\n\r\n",
    ],
    ids=["100", "103"],
)
async def test_an_interim_answer_is_passed_over(interim: bytes) -> None:
    """An answer below 200 is none, and its headers are not those of the real one."""
    script = Script(interim * 2 + PLAIN)
    async with talking(script) as endpoint:
        for _ in range(2):
            assert (await ask(endpoint, "generate")).text == "A whale."
    assert script.connections == 1


@pytest.mark.parametrize("answer", [PLAIN[:-9], CHUNKED[:-40], PLAIN[:40]], ids=["length", "chunks", "head"])
async def test_an_answer_cut_short_is_unavailable(answer: bytes) -> None:
    """A connection that ends before the answer does is an error."""
    async with talking(Script(answer, closes=True)) as endpoint:
        with pytest.raises(EndpointUnavailable):
            await ask(endpoint, "generate")


@pytest.mark.usefixtures("over_aiohttp")  # there the deadline ends it
@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnot a size\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n",
    ],
    ids=["ssh", "status", "chunks", "length"],
)
async def test_what_is_no_http_is_unavailable(answer: bytes) -> None:
    """Bytes that are no answer are an error at once, and the connection is closed."""
    async with talking(Script(answer), deadlines=Deadlines(total=10)) as endpoint:
        with pytest.raises(EndpointUnavailable), anyio.fail_after(2):
            await ask(endpoint, "generate")


async def test_a_head_without_end_is_given_up() -> None:
    """A server that never ends its head is not listened to for ever."""
    endless = b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-%d: %s\r\n" % (number, b"y" * 1000) for number in range(500))
    async with talking(Script(endless, step=4096), deadlines=Deadlines(total=10)) as endpoint:
        with pytest.raises(EndpointUnavailable), anyio.fail_after(2):
            await ask(endpoint, "generate")


# What becomes of the connection


@pytest.mark.usefixtures("over_aiohttp")
async def test_more_than_an_answer_spoils_the_connection() -> None:
    """Bytes beyond the answer are nobody's answer: the next call connects anew."""
    script = Script(PLAIN + PLAIN.replace(b"whale", b"shark"))
    async with talking(script) as endpoint:
        for _ in range(2):
            assert (await ask(endpoint, "generate")).text == "A whale."
    assert script.connections == 2


async def test_a_server_that_says_close_is_believed() -> None:
    """After "connection: close" the next call connects anew."""
    script = Script(PLAIN.replace(b"\r\n", b"\r\nconnection: close\r\n", 1))
    async with talking(script) as endpoint:
        for _ in range(2):
            assert (await ask(endpoint, "generate")).text == "A whale."
    assert script.connections == 2


@pytest.mark.usefixtures("over_aiohttp")  # there the next call closes it
async def test_an_idle_connection_is_closed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is not kept longer than servers keep it: it is closed without another call."""
    monkeypatch.setattr("duet._wire_aiohttp.KEEPALIVE_SECONDS", 0.05)
    script = Script(PLAIN)
    async with talking(script) as endpoint:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(ask, endpoint, "generate")
        await until(lambda: script.open == 0)
        assert script.connections == 3


async def test_a_call_cut_off_closes_its_connection(how: str) -> None:
    """A cancelled call leaves no connection to be used again with the rest of its answer on it."""
    script = Script(PLAIN[:-9], PLAIN)
    async with talking(script) as endpoint:
        async with anyio.create_task_group() as group:
            group.start_soon(ask, endpoint, how)
            await until(lambda: len(script.requests) == 1)
            await anyio.sleep(0.05)
            group.cancel_scope.cancel()
        await until(lambda: script.open == 0)
        assert (await ask(endpoint, "generate")).text == "A whale."
    assert script.connections == 2


@pytest.mark.parametrize("sent", [0, 30, -9], ids=["nothing", "half a head", "half a body"])
async def test_closing_the_endpoint_ends_calls_under_way(sent: int) -> None:
    """A call that waits when its endpoint is closed is an error."""
    async with scripted(Script(PLAIN[:sent] or b" ")) as base_url:
        endpoint = HTTPEndpoint(base_url, "fake", retries=0)

        async def wait() -> None:
            with pytest.raises(EndpointUnavailable):
                await ask(endpoint, "generate")

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.sleep(0.05)
            await endpoint.aclose()


async def test_a_closed_endpoint_asks_for_nothing_again() -> None:
    """What closing breaks is not tried again, neither for free nor as one of the retries."""
    script = Script(PLAIN, PLAIN[:30])
    async with scripted(script) as base_url:
        endpoint = HTTPEndpoint(base_url, "fake", retries=3)
        await ask(endpoint, "generate")

        async def wait() -> None:
            with pytest.raises(EndpointUnavailable):
                await ask(endpoint, "generate")

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await until(lambda: len(script.requests) == 2)
            await endpoint.aclose()
        assert len(script.requests) == 2


async def test_a_call_cancelled_behind_done_closes_its_connection() -> None:
    """A server that says [DONE] and keeps the body open holds no connection of a caller who has left."""
    script = Script(DONE)
    async with talking(script) as endpoint:
        with anyio.move_on_after(0.1):
            await ask(endpoint, "stream")
        await until(lambda: script.open == 0)


async def test_a_slow_reader_meets_the_total_deadline() -> None:
    """A stream that always has more to read ends with the total deadline, however slowly it is read."""

    async def dally(endpoint: HTTPEndpoint) -> None:
        async with endpoint.stream(MESSAGES, Sampling()) as events:
            async for _ in events:
                await anyio.sleep(0.05)

    deadlines = Deadlines(total=0.3)
    async with (
        FakeServer(Answer(chunks=["whale "] * 1000, pace=0.002)) as server,
        HTTPEndpoint(server.base_url, "fake", retries=0, deadlines=deadlines) as endpoint,
    ):
        with pytest.raises(EndpointUnavailable, match="deadline"):
            await dally(endpoint)


def test_an_event_loop_is_let_go(anyio_backend: str) -> None:
    """An endpoint that is used in one event loop after the other keeps none of those that have ended."""
    if anyio_backend == "trio":
        pytest.skip("runs event loops of its own, of asyncio")
    with FakeServer(Answer(body=BODY.decode())).run_in_thread() as server:
        endpoint = HTTPEndpoint(server.base_url, "fake", retries=0)

        async def use() -> weakref.ref[object]:
            await ask(endpoint, "generate")
            return weakref.ref(asyncio.get_running_loop())

        loops = [asyncio.run(use()) for _ in range(3)]
        gc.collect()
        assert [loop() for loop in loops] == [None, None, None]


async def test_what_nobody_reads_waits_at_the_server() -> None:
    """A stream that is not read on is not received on: the server cannot send 64 MB to a consumer that sleeps."""
    chunks = ["whale " * 10_000] * 1_100
    async with FakeServer(Answer(chunks=chunks)) as server, HTTPEndpoint(server.base_url, "fake") as endpoint:
        async with endpoint.stream(MESSAGES, Sampling()) as events:
            await anext(events)
            await anyio.sleep(0.3)
            assert server.in_flight == 1


# What is sent


async def test_the_request_is_what_servers_expect() -> None:
    """Method, path, host with its port and the length of the body stand in the head, each once."""
    script = Script(PLAIN)
    async with talking(script, headers={"X-Tenant": "whales", "User-Agent": "mine"}) as endpoint:
        await ask(endpoint, "generate")
        host = repr(endpoint).split("/")[2]
    first, *lines = script.requests[0].partition(b"\r\n\r\n")[0].decode().split("\r\n")
    headers = dict(line.lower().split(": ") for line in lines)
    assert first == "POST /v1/chat/completions HTTP/1.1"
    assert len(headers) == len(lines)
    assert (headers["host"], headers["user-agent"], headers["x-tenant"]) == (host, "mine", "whales")


async def test_a_path_outside_ascii_is_escaped() -> None:
    """A path that no request line can hold is sent percent-encoded."""
    async with scripted(script := Script(PLAIN)) as base_url:
        async with HTTPEndpoint(base_url.replace("/v1", "/größe 1/v1"), "fake") as endpoint:
            await ask(endpoint, "generate")
    assert script.requests[0].startswith(b"POST /gr%C3%B6%C3%9Fe%201/v1/chat/completions HTTP/1.1\r\n")


@pytest.mark.parametrize("value", [3, None, b"3"])
def test_a_header_that_is_no_text_is_refused(value: Any) -> None:
    """A number, or what the environment does not hold, is a mistake that is named."""
    with pytest.raises(ConfigurationError, match="'x-retry' must be a str"):
        HTTPEndpoint("http://127.0.0.1:9/v1", "fake", headers={"x-retry": value})


@pytest.mark.parametrize("name", ["x\r\ny", "x y", "", "größe", "content-length", "Transfer-Encoding"])
def test_a_header_that_would_break_the_request_is_refused(name: str) -> None:
    """A name that is none, or that says where the body ends, is refused at construction."""
    with pytest.raises(ConfigurationError, match="headers"):
        HTTPEndpoint("http://127.0.0.1:9/v1", "fake", headers={name: "1"})


# TLS


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1, signed by itself, with its key."""
    path = tmp_path / "both.pem"
    new = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=whale -addext subjectAltName=IP:127.0.0.1"
    command = [*new.split(), "-keyout", str(path), "-out", str(tmp_path / "certificate.pem")]
    try:
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - the words stand above
    except OSError:
        pytest.skip("needs the openssl command")
    path.write_text(path.read_text() + (tmp_path / "certificate.pem").read_text())
    return path


def context_of(certificate: Path) -> ssl.SSLContext:
    """What a server shows."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


@pytest.mark.parametrize("trusting", [True, False], ids=["trusted", "any"])
async def test_a_certificate_that_is_trusted_is_enough(certificate: Path, how: str, trusting: bool) -> None:
    """Over TLS an answer is read, and the connection kept, where the certificate is known or any will do."""
    script = Script(PLAIN, step=16)
    verify: Any = ssl.create_default_context(cafile=certificate) if trusting else False
    async with scripted(script, context_of(certificate)) as base_url:
        async with HTTPEndpoint(base_url, "fake", retries=0, verify=verify) as endpoint:
            for _ in range(2):
                assert (await ask(endpoint, how)).text == "A whale."
    assert script.connections == 1


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the test's server, cut off in its handshake
async def test_an_unknown_certificate_is_refused(certificate: Path) -> None:
    """A certificate that nobody vouches for is no connection, and nothing is sent."""
    script = Script(PLAIN)
    async with scripted(script, context_of(certificate)) as base_url:
        async with HTTPEndpoint(base_url, "fake", retries=0) as endpoint:
            with pytest.raises(EndpointUnavailable, match="cannot connect"):
                await ask(endpoint, "generate")
    assert script.requests == []
