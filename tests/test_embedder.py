"""Embeddings over real sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import openai
import pytest
from wires import KEY, new_client, serving

from duet import (
    AsyncOpenAIEmbedder,
    ConfigurationError,
    Deadlines,
    EndpointError,
    EndpointRejected,
    EndpointUnavailable,
    HTTPEmbedder,
)
from duet.testing import Answer, FakeServer

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_leaks")]

AnyEmbedder = HTTPEmbedder | AsyncOpenAIEmbedder
AT_ONCE = {"retry-after": "0"}


@asynccontextmanager
async def meeting(
    wire: str, answers: Any = Answer(), *, headers: Mapping[str, str] | None = None, **settings: Any
) -> AsyncIterator[tuple[FakeServer, AnyEmbedder]]:
    """A server and an embedder on it."""
    async with serving(answers) as server:
        if wire == "http":
            async with HTTPEmbedder(server.base_url, "minilm", api_key=KEY, headers=headers, **settings) as embedder:
                yield server, embedder
        else:
            async with new_client(server.base_url, default_headers=headers) as client:
                async with AsyncOpenAIEmbedder(client, "minilm", **settings) as over_client:
                    yield server, over_client


def rows(vectors: dict[int, Sequence[Any]]) -> Answer:
    """An answer of these vectors, by index, in this order."""
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in vectors.items()]
    return Answer(body=json.dumps({"object": "list", "data": data, "model": "m"}))


async def failure(embedder: AnyEmbedder, texts: Sequence[str] = ("a", "b")) -> EndpointError:
    """The error that a call ends in."""
    with pytest.raises(EndpointError) as caught:
        await embedder.embed(texts)
    return caught.value


async def test_there_is_a_vector_for_each_text(wire: str) -> None:
    """Three texts give three vectors of one length."""
    async with meeting(wire) as (_, embedder):
        vectors = await embedder.embed(["a", "b", "c"])
    assert [len(vector) for vector in vectors] == [8, 8, 8]


async def test_vectors_are_in_the_order_of_their_index(wire: str) -> None:
    """A server that answers in another order is put right by the index of each row."""
    async with meeting(wire, rows({2: [2.0], 0: [0.0], 1: [1.0]})) as (_, embedder):
        assert await embedder.embed(["a", "b", "c"]) == [[0.0], [1.0], [2.0]]


async def test_numbers_come_as_floats(wire: str) -> None:
    """A server that writes 1 for 1.0 gives floats all the same."""
    async with meeting(wire, rows({0: [1, 0]})) as (_, embedder):
        assert [type(value) for value in (await embedder.embed(["a"]))[0]] == [float, float]


async def test_a_request_holds_model_and_texts(wire: str) -> None:
    """The server sees the model's name and the texts as they are, and is asked for plain numbers."""
    async with meeting(wire) as (server, embedder):
        await embedder.embed(["größer", "🐋"])
    assert server.requests[0].path == "/v1/embeddings"
    fields = server.requests[0].json
    assert fields.pop("encoding_format", "float") == "float"  # left out, the server takes it for float
    assert fields == {"model": "minilm", "input": ["größer", "🐋"]}


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (3, [3]), (4, [3, 1]), (7, [3, 3, 1])])
async def test_texts_travel_in_batches(wire: str, count: int, sizes: list[int]) -> None:
    """No request holds more than batch_size texts."""
    async with meeting(wire, batch_size=3) as (server, embedder):
        await embedder.embed([str(number) for number in range(count)])
    assert [len(request.json["input"]) for request in server.requests] == sizes


async def test_batches_give_what_one_request_gives(wire: str) -> None:
    """The order of the vectors does not depend on the batches."""
    texts = [str(number) for number in range(7)]
    async with meeting(wire, batch_size=3) as (_, embedder):
        in_batches = await embedder.embed(texts)
    async with meeting(wire) as (_, embedder):
        assert await embedder.embed(texts) == in_batches


async def test_no_texts_make_no_request(wire: str) -> None:
    """Nothing to embed is nothing to ask."""
    async with meeting(wire) as (server, embedder):
        assert await embedder.embed([]) == []
    assert server.requests == []


async def test_batches_share_a_connection(wire: str) -> None:
    """Batch after batch travels over one connection."""
    async with meeting(wire, batch_size=1) as (server, embedder):
        await embedder.embed(["a", "b", "c"])
        assert server.connections == 1


async def test_key_and_headers_are_sent(wire: str) -> None:
    """The api key travels as a bearer token, and so do headers of the caller's."""
    async with meeting(wire, headers={"x-tenant": "whales"}) as (server, embedder):
        await embedder.embed(["a"])
    headers = server.requests[0].headers
    assert (headers["authorization"], headers["x-tenant"]) == (f"Bearer {KEY}", "whales")


@pytest.mark.parametrize(
    "answer",
    [
        rows({}),
        rows({0: [1.0]}),
        rows({0: [1.0], 1: [1.0], 2: [1.0]}),
        rows({0: [1.0], 2: [1.0]}),
        rows({0: [1.0], 1: [1.0, 2.0]}),
        rows({0: [1.0], 1: ["one"]}),
        Answer(body='{"data": [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}]}'),
        Answer(body='{"data": [{"index": 0}, {"index": 1}]}'),
        Answer(body='{"data": null}'),
        Answer(body='{"data": {"0": [1.0]}}'),
        Answer(body="{}"),
        Answer(body="{"),
        Answer(body=""),
        Answer(fault="bad_json"),
        Answer(fault="cut_midstream"),
        Answer(fault="reset_midstream"),
        Answer(fault="reset"),
        Answer(fault="close"),
        Answer(fault="error_event"),
    ],
)
async def test_vectors_that_do_not_fit_are_unavailable(wire: str, answer: Answer) -> None:
    """An answer that is not one vector of one length for each text is the endpoint's fault."""
    async with meeting(wire, answer, retries=0) as (_, embedder):
        assert type(await failure(embedder)) is EndpointUnavailable


@pytest.mark.parametrize("status", [400, 401, 404, 413])
async def test_a_4xx_is_a_rejection(wire: str, status: int) -> None:
    """What the server refuses for good is EndpointRejected, after one request."""
    async with meeting(wire, Answer(status=status), retries=3) as (server, embedder):
        error = await failure(embedder)
    assert type(error) is EndpointRejected
    assert (error.status_code, error.endpoint, len(server.requests)) == (status, server.base_url, 1)


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_passing_failure_is_retried_as_often_as_was_said(wire: str, status: int) -> None:
    """A failure that may pass is EndpointUnavailable after exactly retries + 1 requests."""
    async with meeting(wire, Answer(status=status, headers=AT_ONCE), retries=2) as (server, embedder):
        error = await failure(embedder)
    assert type(error) is EndpointUnavailable
    assert (error.status_code, len(server.requests)) == (status, 3)


async def test_only_the_batch_that_failed_is_repeated(wire: str) -> None:
    """A batch that was answered is not asked for again."""
    answers = [Answer(), Answer(status=503, headers=AT_ONCE), Answer()]
    async with meeting(wire, answers, batch_size=1, retries=1) as (server, embedder):
        assert len(await embedder.embed(["a", "b"])) == 2
    assert [request.json["input"] for request in server.requests] == [["a"], ["b"], ["b"]]


async def test_an_error_object_under_status_200_is_an_error(wire: str) -> None:
    """An error object in the place of vectors is read like a refusal with its code."""
    body = json.dumps({"error": {"message": "no such model", "code": 404}})
    async with meeting(wire, Answer(body=body), retries=0) as (_, embedder):
        error = await failure(embedder)
    assert type(error) is EndpointRejected
    assert error.status_code == 404


async def test_a_key_that_the_server_echoes_is_blacked_out(wire: str) -> None:
    """The api key is never in a message."""
    async with meeting(wire, Answer(status=401, body=f"bad key {KEY}")) as (_, embedder):
        error = await failure(embedder)
    assert KEY not in str(error)
    assert "***" in str(error)


@pytest.mark.faults
@pytest.mark.serial
@pytest.mark.parametrize("answer", [Answer(fault="hang"), Answer(fault="hang_midstream")])
async def test_a_deadline_ends_the_call(wire: str, answer: Answer) -> None:
    """A server that takes too long is given up on, and sees the connection closed."""
    async with meeting(wire, answer, deadlines=Deadlines(total=0.15)) as (server, embedder):
        with anyio.fail_after(0.15 + 1):
            assert type(await failure(embedder)) is EndpointUnavailable
        await server.wait_disconnects(1)


async def test_cancelling_disconnects(wire: str) -> None:
    """A task that is cancelled while it waits for vectors closes the connection."""
    async with meeting(wire, Answer(first_after=30)) as (server, embedder):
        with anyio.move_on_after(0.1):
            await embedder.embed(["a"])
        await server.wait_disconnects(1)


def test_a_batch_size_that_cannot_work_is_refused() -> None:
    """There is at least one text in a request."""
    with pytest.raises(ConfigurationError, match="batch_size"):
        HTTPEmbedder("http://127.0.0.1:9/v1", "m", batch_size=0)


def test_an_empty_model_is_refused() -> None:
    """A model must be named."""
    with pytest.raises(ConfigurationError, match="model"):
        HTTPEmbedder("http://127.0.0.1:9/v1", "")


async def test_the_callers_client_stays_open() -> None:
    """Closing the embedder leaves the client as it is."""
    async with serving() as server, new_client(server.base_url) as client:
        async with AsyncOpenAIEmbedder(client, "minilm") as embedder:
            await embedder.embed(["a"])
        assert not client.is_closed()


async def test_azure_is_asked_by_deployment() -> None:
    """An Azure client keeps its path and its api-key header."""
    async with serving() as server:
        async with openai.AsyncAzureOpenAI(
            azure_endpoint=server.base_url.removesuffix("/v1"),
            api_version="2026-01-01",
            api_key=KEY,
            http_client=openai.DefaultAsyncHttpxClient(verify=False),
        ) as client:
            assert len(await AsyncOpenAIEmbedder(client, "minilm-2").embed(["a"])) == 1
    request = server.requests[0]
    assert request.path == "/openai/deployments/minilm-2/embeddings?api-version=2026-01-01"
    assert request.headers["api-key"] == KEY


def test_a_repr_holds_address_and_model_and_no_key() -> None:
    """The repr is safe in a log."""
    embedder = HTTPEmbedder("http://127.0.0.1:9/v1", "minilm", api_key=KEY)
    assert repr(embedder) == "HTTPEmbedder('http://127.0.0.1:9/v1', model='minilm')"


def test_the_model_is_the_one_given() -> None:
    """An embedder knows its model without a request."""
    assert HTTPEmbedder("http://127.0.0.1:9/v1", "minilm").model == "minilm"
