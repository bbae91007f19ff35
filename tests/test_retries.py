"""When a call is repeated, and what a repetition costs: what the tests of faults leave open."""

from __future__ import annotations

import itertools
import json
from typing import Any

import anyio
import pytest
from wires import KEY, MESSAGES, AnyEndpoint, ask, endpoint_at, meeting, new_client, serving

from duet import AsyncOpenAIEndpoint, Deadlines, EndpointError, EndpointRejected, EndpointUnavailable, Sampling
from duet.testing import Answer, Request

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_leaks"), pytest.mark.faults]

AT_ONCE = {"retry-after": "0"}
SECRET = "other-made-up-987654321"
CLOSED = Answer(fault="close")


def event(value: Any) -> str:
    """One event of a stream."""
    return f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n"


def events(*values: Any) -> Answer:
    """A stream of these events."""
    return Answer(body="".join(map(event, values)), content_type="text/event-stream")


async def failure(endpoint: AnyEndpoint, how: str) -> EndpointError:
    """The error that one completion ends in."""
    with pytest.raises(EndpointError) as caught:
        await ask(endpoint, how)
    return caught.value


# Connections that were kept


async def test_a_refusal_is_an_answer_that_keeps_a_connection(wire: str, how: str) -> None:
    """After a refusal a connection that the server has dropped costs no try, as after any other answer."""
    async with meeting(wire, [Answer(status=400), CLOSED, Answer("A whale.")], retries=0) as (_, endpoint):
        await failure(endpoint, how)
        assert (await ask(endpoint, how)).text == "A whale."


async def test_the_free_try_leaves_the_retries_as_they_were(wire: str, how: str) -> None:
    """A dropped connection and then a failure still has every retry that was asked for."""
    answers = [Answer("A"), CLOSED, Answer(status=503, headers=AT_ONCE), Answer("A whale.")]
    async with meeting(wire, answers, retries=1) as (server, endpoint):
        await ask(endpoint, how)
        assert (await ask(endpoint, how)).text == "A whale."
    assert len(server.requests) == 4


async def test_every_call_has_a_free_try(wire: str, how: str) -> None:
    """What one call found dropped is no reason to let the next one fail."""
    answers = [Answer("A"), CLOSED, Answer("B"), CLOSED, Answer("C")]
    async with meeting(wire, answers, retries=0) as (_, endpoint):
        assert [(await ask(endpoint, how)).text for _ in range(3)] == ["A", "B", "C"]


async def test_an_answer_to_another_endpoint_is_none_of_ours(wire: str, how: str) -> None:
    """An endpoint without an answer of its own has no connection that could have been dropped."""
    async with meeting(wire, [Answer("A"), CLOSED], retries=0) as (server, endpoint):
        await ask(endpoint, how)
        async with endpoint_at(wire, server.base_url, retries=0) as other:
            await failure(other, how)
    assert len(server.requests) == 2


async def test_no_answer_is_no_connection_that_was_kept(wire: str, how: str) -> None:
    """An endpoint whose first call failed without an answer has its second call cost a try too."""
    async with meeting(wire, CLOSED, retries=0) as (server, endpoint):
        await failure(endpoint, how)
        await failure(endpoint, how)
    assert len(server.requests) == 2


# Pauses


@pytest.mark.parametrize("headers", [{"retry-after": "301"}, {"retry-after-ms": "300001"}], ids=["seconds", "ms"])
async def test_a_pause_of_more_than_five_minutes_is_not_begun(wire: str, how: str, headers: dict[str, str]) -> None:
    """A server that asks for more than 300 seconds is given up on at once, with all the time in the world."""
    async with meeting(wire, Answer(status=429, headers=headers), retries=5, deadlines=Deadlines(total=None)) as (
        server,
        endpoint,
    ):
        with anyio.fail_after(5):
            error = await failure(endpoint, how)
    assert len(server.requests) == 1
    assert error.retry_after == pytest.approx(300, abs=1)


async def test_a_pause_of_five_minutes_is_waited_for(wire: str, how: str) -> None:
    """A server that asks for 300 seconds is believed where the deadline allows it."""
    answer = Answer(status=429, headers={"retry-after": "300"})
    async with meeting(wire, answer, retries=1, deadlines=Deadlines(total=None)) as (server, endpoint):
        with anyio.move_on_after(0.2) as scope:
            await failure(endpoint, how)
    assert (scope.cancelled_caught, len(server.requests)) == (True, 1)


# Errors beside choices


BESIDE = [
    {"error": {"message": "engine died", "code": 503}, "choices": []},
    {
        "error": {"message": "engine died", "code": 503},
        "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}],
    },
]


@pytest.mark.parametrize("chunk", BESIDE, ids=["no choices", "a choice"])
async def test_an_error_beside_choices_is_retried_before_any_text(wire: str, chunk: dict[str, Any]) -> None:
    """An error object beside choices, before any text, is asked for again like one alone."""
    async with meeting(wire, [events(chunk, "[DONE]"), Answer("A whale.")], retries=1) as (server, endpoint):
        assert (await ask(endpoint, "stream")).text == "A whale."
    assert len(server.requests) == 2


@pytest.mark.parametrize("chunk", BESIDE, ids=["no choices", "a choice"])
async def test_an_error_beside_choices_ends_a_stream(wire: str, chunk: dict[str, Any]) -> None:
    """An error object beside choices, after text, is the stream's error and never its end."""
    lead = {"choices": [{"index": 0, "delta": {"content": "A whale"}}]}
    async with meeting(wire, events(lead, chunk, "[DONE]"), retries=0) as (_, endpoint):
        error = await failure(endpoint, "stream")
    assert (type(error), error.status_code) == (EndpointUnavailable, 503)


@pytest.mark.parametrize("later", [{"error": {"message": "late", "code": 500}}, "nonsense"], ids=["error", "nonsense"])
async def test_nothing_after_done_is_an_error(wire: str, later: Any) -> None:
    """A stream that has said [DONE] is over, whatever the server sends after it."""
    said = {"choices": [{"index": 0, "delta": {"content": "A whale."}, "finish_reason": "stop"}]}
    async with meeting(wire, events(said, "[DONE]", later), retries=0) as (_, endpoint):
        assert (await ask(endpoint, "stream")).text == "A whale."


# Secrets


@pytest.mark.parametrize("name", ["x-api-key", "Authorization", "X-Auth-Token", "cookie", "client-secret"])
async def test_a_secret_of_the_callers_own_is_blacked_out(how: str, name: str) -> None:
    """A header whose name speaks of a secret shows nowhere, even where the server repeats its value."""
    answer = Answer(status=401, body=json.dumps({"error": {"message": f"bad value {SECRET}"}}))
    async with serving(answer) as server:
        async with endpoint_at("http", server.base_url, headers={name: SECRET}) as endpoint:
            error = await failure(endpoint, how)
    assert SECRET not in str(error) + repr(vars(error))


async def test_a_secret_in_mid_stream_is_blacked_out() -> None:
    """A secret that a stream repeats after its first text is blacked out too."""
    lead = {"choices": [{"index": 0, "delta": {"content": "A"}}]}
    answer = events(lead, {"error": {"message": f"bad key {SECRET} and {KEY}", "code": 401}})
    async with meeting("http", answer, headers={"x-api-key": SECRET}) as (_, endpoint):
        error = await failure(endpoint, "stream")
    assert (SECRET in str(error), KEY in str(error), "***" in str(error)) == (False, False, True)


async def test_a_key_that_changes_is_blacked_out_in_every_stream() -> None:
    """Where a client gets a new key for each request, a stream under way that repeats an older one shows neither."""
    keys = (f"sk-made-up-rotating-{number}" for number in itertools.count())

    async def next_key() -> str:
        return next(keys)

    def repeats_the_key(request: Request) -> Answer:
        lead = {"choices": [{"index": 0, "delta": {"content": "A"}}]}
        error = {"error": {"message": f"expired: {request.headers['authorization']}", "code": 401}}
        body = event(lead) + event(error)
        return Answer(body=body, content_type="text/event-stream", fault="drip", pace=0.002)

    async with serving(repeats_the_key) as server, new_client(server.base_url, api_key=next_key) as client:
        endpoint = AsyncOpenAIEndpoint(client, "fake", retries=0)
        async with endpoint.stream(MESSAGES, Sampling()) as first:
            async with endpoint.stream(MESSAGES, Sampling()):
                pass
            with pytest.raises(EndpointRejected, match="expired") as caught:
                _ = [step async for step in first]
    assert "rotating" not in str(caught.value)


async def test_other_headers_of_the_callers_may_show() -> None:
    """What no header's name calls a secret is repeated as the server says it."""
    answer = Answer(status=400, body=json.dumps({"error": {"message": "no such tenant: whales"}}))
    async with meeting("http", answer, headers={"x-tenant": "whales"}) as (_, endpoint):
        assert "whales" in str(await failure(endpoint, "generate"))


async def test_a_secret_is_sent_as_it_is(how: str) -> None:
    """Blacking out touches messages, not what is sent."""
    async with meeting("http", Answer("A"), headers={"x-api-key": SECRET}) as (server, endpoint):
        await ask(endpoint, how)
    assert server.requests[0].headers["x-api-key"] == SECRET
