"""The fake server itself: it listens on loopback, chooses an answer for each request and counts what happens."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

import anyio
import anyio.from_thread

from duet._errors import ConfigurationError
from duet.testing._answers import Answer, AnswerLike, Transcript
from duet.testing._bodies import body_of, kind_of
from duet.testing._connection import Connection
from duet.testing._http import Refusal, Request, closes
from duet.testing._plans import Plan, refused, rendered, replayed, silence

_WAIT_SECONDS = 5.0


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
        self.in_flight: int = 0
        """Requests that are being answered now."""
        self.peak_in_flight: int = 0
        """The most of them there ever were at once."""
        self.disconnects: int = 0
        """Answers that the client cut off before their end."""
        self.connections: int = 0
        """Connections opened so far."""
        self.open_connections: int = 0
        """Connections open now."""
        self._takes_all = callable(answers)
        self._answer = answers if callable(answers) else _in_turn(answers)
        self._model = {"id": model, "object": "model", "owned_by": owned_by}
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
                connection = Connection(accepted)
                while await self._exchange(connection):
                    pass
        finally:
            self.open_connections -= 1

    async def _exchange(self, connection: Connection) -> bool:
        """Answer one request; True where another may follow on the same connection."""
        try:
            request = await connection.read_request()
        except Refusal as refusal:
            return await self._perform(connection, refused(refusal, keep=False))
        if request is None:
            return False
        self.requests.append(request)
        return await self._perform(connection, self._plan(request))

    async def _perform(self, connection: Connection, plan: Plan) -> bool:
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

    def _plan(self, request: Request) -> Plan:
        keep = not closes(request.headers)
        try:
            return self._answered(self._choose(request), request, keep)
        except Refusal as refusal:
            return refused(refusal, keep=keep)
        except Exception as exc:
            self._failure = self._failure or exc
            return refused(Refusal(500, f"the fake server has no answer: {exc!r}"), keep=keep)

    def _answered(self, answer: Answer | Transcript, request: Request, keep: bool) -> Plan:
        if isinstance(answer, Transcript):
            return replayed(answer)
        # Silence comes before the body, since it needs none: not every request has one.
        if plan := silence(answer):
            return plan
        return rendered(answer, body_of(answer, request, self._model, len(self.requests)), keep=keep)

    def _choose(self, request: Request) -> Answer | Transcript:
        if self._api_key is not None and request.headers.get("authorization") != f"Bearer {self._api_key}":
            raise Refusal(401, "Incorrect API key provided.", "invalid_api_key")
        chosen: AnswerLike = Answer()
        if self._takes_all or kind_of(request) in ("chat/completions", "embeddings"):
            chosen = self._answer(request)
        return Answer(chosen) if isinstance(chosen, str) else chosen


def _in_turn(answers: AnswerLike | Iterable[AnswerLike]) -> Callable[[Request], AnswerLike]:
    """The answers one by one, the last one for ever."""
    rest = iter([answers] if isinstance(answers, Answer | Transcript | str) else answers)
    first = next(rest, None)
    if first is None:
        raise ConfigurationError("answers must hold at least one answer")
    last, rest = first, itertools.chain([first], rest)

    def answer(request: Request) -> AnswerLike:
        nonlocal last
        last = next(rest, last)
        return last

    return answer
