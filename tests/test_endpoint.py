"""Endpoints over real sockets: what is sent, what comes back, and what becomes of the connection."""

from __future__ import annotations

import gc
import gzip
import traceback
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import openai
import pytest
from wires import (
    KEY,
    MESSAGES,
    TEST_SECONDS,
    AnyEndpoint,
    all_closed,
    ask,
    deltas_and_ends,
    meeting,
    new_client,
    serving,
)

from duet import (
    AsyncOpenAIEndpoint,
    ConfigurationError,
    Deadlines,
    EndpointUnavailable,
    HTTPEmbedder,
    HTTPEndpoint,
    Sampling,
    TextDelta,
    TokenLogprob,
)
from duet.testing import USAGE, Answer, FakeServer, Request

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_leaks")]

BLUE = Answer("A blue whale.", chunks=["A ", "blue ", "whale", "."])
LOGPROBS = (
    TokenLogprob("4", -0.25, (("4", -0.25), ("5", -1.5))),
    TokenLogprob(".", -0.5, ((".", -0.5), ("!", -2.0))),
)
GRAMMAR = 'root ::= "yes" | "no"'
VLLM = Answer(body='{"object": "list", "data": [{"id": "fake", "owned_by": "vllm"}]}')


# What comes back


async def test_the_text_is_what_the_server_said(wire: str, how: str) -> None:
    """The completion's text is the answer's."""
    async with meeting(wire, BLUE) as (_, endpoint):
        assert (await ask(endpoint, how)).text == "A blue whale."


async def test_deltas_joined_are_the_text(wire: str) -> None:
    """A stream's deltas, joined, are the text of its end."""
    async with meeting(wire, Answer(pace=0.001, chunks=[*"A blue whale."])) as (_, endpoint):
        texts, ends = await deltas_and_ends(endpoint)
    assert "".join(texts) == ends[0].text == "A blue whale."


async def test_deltas_are_never_empty(wire: str) -> None:
    """Events without text (role, usage, reasoning) give no delta."""
    async with meeting(wire, Answer(pace=0.001, chunks=["A", "", "B"], reasoning="Hm.")) as (_, endpoint):
        texts, _ = await deltas_and_ends(endpoint)
    assert texts
    assert all(texts)


async def test_a_delta_is_delivered_before_the_stream_ends(wire: str) -> None:
    """The first delta is there while the server still holds the rest back."""
    answer = Answer(chunks=["A", "B"], fault="hang_midstream")
    async with meeting(wire, answer) as (_, endpoint):
        async with endpoint.stream(MESSAGES, Sampling()) as events:
            assert await anext(events) == TextDelta("A")


async def test_the_end_comes_once(wire: str) -> None:
    """A stream has exactly one GenerationEnd, and it is the last event."""
    async with meeting(wire, BLUE) as (_, endpoint):
        _, ends = await deltas_and_ends(endpoint)
    assert len(ends) == 1


async def test_an_empty_answer_is_an_end_without_deltas(wire: str) -> None:
    """A stream without text has its end and nothing else."""
    async with meeting(wire, Answer("")) as (_, endpoint):
        texts, ends = await deltas_and_ends(endpoint)
    assert (texts, [end.text for end in ends]) == ([], [""])


async def test_text_of_many_bytes_a_character_survives(wire: str, how: str) -> None:
    """Text outside ASCII comes back as it was."""
    text = "größer 鯨 🐋\u2028\r\n\t\x00"
    async with meeting(wire, Answer(text, chunks=[*text])) as (_, endpoint):
        assert (await ask(endpoint, how)).text == text


async def test_a_body_in_single_bytes_is_read(wire: str) -> None:
    """Where the socket cuts the body makes no difference."""
    async with meeting(wire, Answer("größer", fault="drip", pace=1e-9)) as (_, endpoint):
        assert (await ask(endpoint, "stream")).text == "größer"


async def test_a_long_answer_comes_whole(wire: str, how: str) -> None:
    """An answer larger than every buffer on its way is complete."""
    text = "whale " * 50_000
    async with meeting(wire, Answer(text, chunks=[text[:150_000], text[150_000:]])) as (_, endpoint):
        assert (await ask(endpoint, how)).text == text


async def test_usage_is_the_servers(wire: str, how: str) -> None:
    """The usage is what the server counted."""
    async with meeting(wire, BLUE) as (_, endpoint):
        usage = (await ask(endpoint, how)).usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.estimated) == (
        USAGE["prompt_tokens"],
        USAGE["completion_tokens"],
        USAGE["prompt_tokens_details"]["cached_tokens"],
        False,
    )


async def test_usage_that_is_absent_is_estimated(wire: str, how: str) -> None:
    """Where the server counts nothing the usage is marked as an estimate."""
    async with meeting(wire, Answer("A blue whale.", usage=None)) as (_, endpoint):
        usage = (await ask(endpoint, how)).usage
    assert usage is not None
    assert usage.estimated
    assert usage.prompt_tokens > 0
    assert usage.completion_tokens > 0


@pytest.mark.parametrize("finish_reason", ["stop", "length", "content_filter"])
async def test_finish_reason_is_the_servers(wire: str, how: str, finish_reason: str) -> None:
    """The finish_reason is passed on."""
    async with meeting(wire, Answer("A", finish_reason=finish_reason)) as (_, endpoint):
        assert (await ask(endpoint, how)).finish_reason == finish_reason


async def test_done_alone_completes_a_stream(wire: str) -> None:
    """A stream with [DONE] and no finish_reason is complete."""
    async with meeting(wire, Answer("A", finish_reason=None)) as (_, endpoint):
        assert (await ask(endpoint, "stream")).finish_reason is None


async def test_finish_reason_alone_completes_a_stream(wire: str) -> None:
    """A stream with a finish_reason and no [DONE] is complete."""
    async with meeting(wire, Answer("A", done=False)) as (_, endpoint):
        assert (await ask(endpoint, "stream")).finish_reason == "stop"


async def test_logprobs_come_back(wire: str, how: str) -> None:
    """Log-probabilities arrive with their alternatives, one entry a token."""
    async with meeting(wire, Answer("4.", logprobs=LOGPROBS)) as (_, endpoint):
        completion = await ask(endpoint, how, Sampling(logprobs=True, top_logprobs=2))
    assert completion.logprobs == LOGPROBS


async def test_logprobs_not_asked_for_are_absent(wire: str, how: str) -> None:
    """Without being asked the completion holds no log-probabilities."""
    async with meeting(wire, Answer("4.", logprobs=LOGPROBS)) as (_, endpoint):
        assert (await ask(endpoint, how)).logprobs == ()


async def test_reasoning_is_kept_apart(wire: str, how: str) -> None:
    """What the server splits off as reasoning is no part of the text."""
    async with meeting(wire, Answer("A whale.", reasoning="It swims.")) as (_, endpoint):
        completion = await ask(endpoint, how)
    assert (completion.text, completion.reasoning) == ("A whale.", "It swims.")


async def test_the_model_is_the_one_the_server_names(wire: str, how: str) -> None:
    """The completion names the model that the server reports."""
    async with meeting(wire, Answer("A"), model="adapter-v7") as (_, endpoint):
        assert (await ask(endpoint, how)).model == "adapter-v7"


@pytest.mark.parametrize("content_type", ["text/plain", "application/octet-stream"])
async def test_an_odd_content_type_is_read_all_the_same(wire: str, how: str, content_type: str) -> None:
    """What the body holds decides, not an odd content type."""
    async with meeting(wire, Answer("A whale.", content_type=content_type), retries=0) as (_, endpoint):
        assert (await ask(endpoint, how)).text == "A whale."


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_compressed_answer_is_read(wire: str, how: str, encoding: str) -> None:
    """A proxy that compresses unasked is understood."""
    body = b'{"choices": [{"index": 0, "message": {"content": "A whale."}, "finish_reason": "stop"}]}'
    packed = gzip.compress(body) if encoding == "gzip" else zlib.compress(body)
    answer = Answer(body=packed, headers={"content-encoding": encoding}, content_type="application/json")
    async with meeting(wire, answer, retries=0) as (_, endpoint):
        assert (await ask(endpoint, how)).text == "A whale."


async def test_a_server_that_cannot_stream_still_gives_a_delta_and_an_end(wire: str) -> None:
    """One JSON body in answer to stream=true becomes one delta and the end."""
    body = (
        '{"object": "chat.completion", "model": "m", "choices": '
        '[{"index": 0, "message": {"content": "A whale."}, "finish_reason": "stop"}]}'
    )
    async with meeting(wire, Answer(body=body, content_type="application/json")) as (_, endpoint):
        texts, ends = await deltas_and_ends(endpoint)
    assert texts == ["A whale."]
    assert [(end.text, end.finish_reason, end.model) for end in ends] == [("A whale.", "stop", "m")]


# What is sent


async def test_the_messages_are_sent_as_they_are(wire: str, how: str) -> None:
    """The server sees the messages in order, and nothing added."""
    async with meeting(wire) as (server, endpoint):
        await ask(endpoint, how)
    assert server.requests[0].json["messages"] == list(MESSAGES)


async def test_a_plain_request_holds_model_and_messages_only(wire: str) -> None:
    """What nobody set is not sent."""
    async with meeting(wire) as (server, endpoint):
        await endpoint.generate(MESSAGES, Sampling())
    request = server.requests[0]
    fields = {name: value for name, value in request.json.items() if (name, value) != ("stream", False)}
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert fields == {"model": "fake", "messages": list(MESSAGES)}


async def test_a_stream_asks_for_usage(wire: str) -> None:
    """A streamed request sets stream and asks for the usage at its end."""
    async with meeting(wire) as (server, endpoint):
        await ask(endpoint, "stream")
    assert server.requests[0].json["stream"] is True
    assert server.requests[0].json["stream_options"] == {"include_usage": True}


async def test_sampling_is_sent_under_the_names_of_openai(wire: str, how: str) -> None:
    """Every field that is set arrives under its own name."""
    fields: dict[str, Any] = {
        "temperature": 0,
        "top_p": 0.9,
        "max_tokens": 7,
        "seed": 3,
        "stop": ("</end>", "\n\n"),
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "logprobs": True,
        "top_logprobs": 4,
    }
    async with meeting(wire) as (server, endpoint):
        await ask(endpoint, how, Sampling(**fields))
    sent = server.requests[0].json
    assert {name: sent[name] for name in fields} == fields | {"stop": ["</end>", "\n\n"]}


async def test_extra_body_is_merged_last(wire: str, how: str) -> None:
    """Fields of the engine's own arrive, and win over the usual ones."""
    sampling = Sampling(temperature=1.0, extra_body={"top_k": 0, "temperature": 0.5, "nested": {"a": [1]}})
    async with meeting(wire) as (server, endpoint):
        await ask(endpoint, how, sampling)
    sent = server.requests[0].json
    assert (sent["top_k"], sent["temperature"], sent["nested"]) == (0, 0.5, {"a": [1]})


async def test_extra_body_can_change_stream_options(wire: str) -> None:
    """A server that knows no stream_options can be spared them."""
    sampling = Sampling(extra_body={"stream_options": {"include_usage": False}})
    async with meeting(wire) as (server, endpoint):
        await ask(endpoint, "stream", sampling)
    assert server.requests[0].json["stream_options"] == {"include_usage": False}


async def test_a_lone_surrogate_in_a_prompt_is_no_crash(wire: str) -> None:
    """Text that UTF-8 cannot hold is sent with a replacement character."""
    async with meeting(wire) as (server, endpoint):
        await endpoint.generate([{"role": "user", "content": "a\ud800b"}], Sampling())
    assert server.requests[0].json["messages"][0]["content"] == "a?b"


async def test_the_key_is_sent_as_a_bearer_token(wire: str, how: str) -> None:
    """The api key travels in the Authorization header."""
    async with meeting(wire) as (server, endpoint):
        await ask(endpoint, how)
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("api_key", [None, ""])
async def test_without_a_key_no_authorization_is_sent(api_key: str | None) -> None:
    """No key, no Authorization header."""
    async with serving() as server, HTTPEndpoint(server.base_url, "fake", api_key=api_key) as endpoint:
        await endpoint.generate(MESSAGES, Sampling())
    assert "authorization" not in server.requests[0].headers


async def test_custom_headers_are_sent(wire: str, how: str) -> None:
    """Headers of the caller's arrive with every request."""
    async with meeting(wire, headers={"x-tenant": "whales"}) as (server, endpoint):
        await ask(endpoint, how)
    assert server.requests[0].headers["x-tenant"] == "whales"


async def test_a_custom_header_may_carry_the_key() -> None:
    """An Authorization header of the caller's own is left alone where there is no api_key."""
    headers = {"authorization": "Basic d2hhbGU="}
    async with serving() as server, HTTPEndpoint(server.base_url, "fake", headers=headers) as endpoint:
        await endpoint.generate(MESSAGES, Sampling())
    assert server.requests[0].headers["authorization"] == "Basic d2hhbGU="


async def test_a_trailing_slash_of_the_address_does_not_matter() -> None:
    """An address that ends in a slash leads to the same path."""
    async with serving() as server, HTTPEndpoint(server.base_url + "/", "fake") as endpoint:
        await endpoint.generate(MESSAGES, Sampling())
    assert server.requests[0].path == "/v1/chat/completions"


# A caller's own client


@pytest.mark.filterwarnings("ignore:unclosed")  # the client's own connections, which nobody can close any more
def test_a_client_of_a_loop_that_has_ended_is_unavailable(how: str) -> None:
    """On asyncio a caller's client whose event loop has ended is an error that says so, and no bare RuntimeError."""
    with FakeServer(BLUE).run_in_thread() as server:
        endpoint = AsyncOpenAIEndpoint(new_client(server.base_url), "fake", retries=0)
        anyio.run(ask, endpoint, how)
        with pytest.raises(EndpointUnavailable, match="event loop that has ended"):
            anyio.run(ask, endpoint, how)
        del endpoint
        gc.collect()


async def test_azure_is_asked_by_deployment_with_its_own_header(how: str) -> None:
    """An Azure client keeps its path, its api-version and its api-key header."""
    async with serving(BLUE) as server:
        async with openai.AsyncAzureOpenAI(
            azure_endpoint=server.base_url.removesuffix("/v1"),
            api_version="2026-01-01",
            api_key=KEY,
            http_client=openai.DefaultAsyncHttpxClient(verify=False),
        ) as client:
            await ask(AsyncOpenAIEndpoint(client, "whales-4"), how)
    request = server.requests[0]
    assert request.path == "/openai/deployments/whales-4/chat/completions?api-version=2026-01-01"
    assert request.headers["api-key"] == KEY


async def test_the_callers_client_stays_open() -> None:
    """Closing the endpoint leaves the client as it is."""
    async with serving(BLUE) as server, new_client(server.base_url) as client:
        async with AsyncOpenAIEndpoint(client, "fake") as endpoint:
            await endpoint.generate(MESSAGES, Sampling())
        assert not client.is_closed()
        assert (await client.models.list()).data[0].id == "fake"


async def test_the_clients_own_retries_are_off(how: str) -> None:
    """A client that would retry five times sends one request, since the endpoint was told not to retry."""
    async with serving(Answer(status=500)) as server, new_client(server.base_url, max_retries=5) as client:
        with pytest.raises(EndpointUnavailable):
            await ask(AsyncOpenAIEndpoint(client, "fake", retries=0), how)
    assert len(server.requests) == 1


async def test_the_callers_own_setting_of_retries_is_kept() -> None:
    """The client that was handed in still retries by itself what its owner asks of it."""
    async with serving() as server, new_client(server.base_url, max_retries=5) as client:
        await AsyncOpenAIEndpoint(client, "fake").generate(MESSAGES, Sampling())
    assert client.max_retries == 5


async def test_a_client_with_its_default_http_client_works(how: str) -> None:
    """A client made of nothing but an address and a key will do."""
    async with serving(BLUE) as server, openai.AsyncOpenAI(base_url=server.base_url, api_key=KEY) as client:
        assert (await ask(AsyncOpenAIEndpoint(client, "fake"), how)).text == "A blue whale."


# Engines and grammars


@pytest.mark.parametrize(
    ("engine", "fields"),
    [("llama.cpp", {"grammar": GRAMMAR}), ("vllm", {"structured_outputs": {"grammar": GRAMMAR}})],
)
async def test_a_grammar_is_sent_in_the_engines_field(wire: str, how: str, engine: str, fields: dict[str, Any]) -> None:
    """llama.cpp and vLLM each get the grammar in the field that they read, and not in the other's."""
    async with meeting(wire, engine=engine) as (server, endpoint):
        await ask(endpoint, how, Sampling(grammar=GRAMMAR))
    sent = server.requests[0].json
    assert {name: sent[name] for name in ("grammar", "structured_outputs") if name in sent} == fields


async def test_a_known_engine_is_not_probed(wire: str) -> None:
    """With an engine named nothing but the completion is asked for."""
    async with meeting(wire, engine="vllm") as (server, endpoint):
        await ask(endpoint, "generate", Sampling(grammar=GRAMMAR))
    assert [request.path for request in server.requests] == ["/v1/chat/completions"]


async def test_llama_cpp_is_asked_for_a_stream_underneath(wire: str) -> None:
    """llama.cpp stops early only in a stream, so a plain completion is collected from one."""
    async with meeting(wire, BLUE, engine="llama.cpp") as (server, endpoint):
        completion = await endpoint.generate(MESSAGES, Sampling())
    assert (completion.text, server.requests[0].json["stream"]) == ("A blue whale.", True)


async def test_openai_refuses_a_grammar_before_any_request(wire: str, how: str) -> None:
    """An engine that cannot decode under a grammar is never asked to."""
    async with meeting(wire, engine="openai") as (server, endpoint):
        with pytest.raises(ConfigurationError, match="grammar"):
            await ask(endpoint, how, Sampling(grammar=GRAMMAR))
    assert server.requests == []


@pytest.mark.parametrize(("owned_by", "field"), [("llamacpp", "grammar"), ("vllm", "structured_outputs")])
async def test_an_unknown_engine_is_probed_once(wire: str, how: str, owned_by: str, field: str) -> None:
    """The first grammar asks /v1/models who serves this, the second does not."""
    async with meeting(wire, owned_by=owned_by) as (server, endpoint):
        await ask(endpoint, how, Sampling(grammar=GRAMMAR))
        await ask(endpoint, how, Sampling(grammar=GRAMMAR))
    assert [request.method for request in server.requests] == ["GET", "POST", "POST"]
    assert server.requests[0].path == "/v1/models"
    assert all(field in request.json for request in server.requests[1:])


async def test_a_probe_is_retried_like_any_call(wire: str) -> None:
    """A passing failure of /v1/models does not cost the generation."""
    probes: list[Request] = []

    def answer(request: Request) -> Answer:
        if request.method == "POST":
            return Answer("yes")
        probes.append(request)
        return Answer(status=503, headers={"retry-after": "0"}) if len(probes) == 1 else VLLM

    async with meeting(wire, answer) as (_, endpoint):
        assert (await ask(endpoint, "generate", Sampling(grammar=GRAMMAR))).text == "yes"


async def test_without_a_grammar_nothing_is_probed(wire: str, how: str) -> None:
    """The engine matters only where there is a grammar."""
    async with meeting(wire) as (server, endpoint):
        await ask(endpoint, how)
    assert [request.method for request in server.requests] == ["POST"]


@pytest.mark.parametrize("owned_by", ["acme", ""])
async def test_an_unknown_owner_is_refused(wire: str, how: str, owned_by: str) -> None:
    """A server that nobody knows is not sent a grammar; the message says to pass engine=."""
    async with meeting(wire, owned_by=owned_by) as (server, endpoint):
        with pytest.raises(ConfigurationError, match="engine="):
            await ask(endpoint, how, Sampling(grammar=GRAMMAR))
    assert [request.path for request in server.requests] == ["/v1/models"]


async def test_a_server_of_openais_own_models_is_refused_a_grammar(wire: str) -> None:
    """A probe that finds OpenAI refuses the grammar."""
    async with meeting(wire, owned_by="openai") as (_, endpoint):
        with pytest.raises(ConfigurationError, match="cannot decode under a grammar"):
            await ask(endpoint, "generate", Sampling(grammar=GRAMMAR))


# Construction


@asynccontextmanager
async def new_endpoint(wire: str, model: str = "fake", **settings: Any) -> AsyncIterator[AnyEndpoint]:
    """An endpoint on an address where nothing is asked."""
    if wire == "http":
        yield HTTPEndpoint("http://127.0.0.1:9/v1", model, api_key=KEY, **settings)
    else:
        async with new_client("http://127.0.0.1:9/v1") as client:
            yield AsyncOpenAIEndpoint(client, model, **settings)


@pytest.mark.parametrize(
    ("settings", "word"),
    [({"engine": "llamacpp"}, "engine"), ({"model": ""}, "model"), ({"retries": -1}, "retries")],
)
async def test_a_setting_that_cannot_work_is_refused_at_once(wire: str, settings: dict[str, Any], word: str) -> None:
    """A wrong setting is refused at construction, by name."""
    with pytest.raises(ConfigurationError, match=word):
        async with new_endpoint(wire, **settings):
            pass


@pytest.mark.parametrize(
    "base_url",
    [
        "127.0.0.1:8000/v1",
        "ftp://127.0.0.1/v1",
        "http:///v1",
        "http://user:pass@127.0.0.1/v1",
        "http://127.0.0.1/v1?key=secret",
        "http://127.0.0.1/v1#top",
    ],
)
def test_an_address_that_cannot_work_is_refused(base_url: str) -> None:
    """The address must be http, and carry no secret."""
    with pytest.raises(ConfigurationError, match="base_url"):
        HTTPEndpoint(base_url, "fake")


@pytest.mark.parametrize("base_url", ["http://user:sesame@127.0.0.1/v1", "http://127.0.0.1/v1?key=sesame"])
def test_a_refused_address_is_not_repeated(base_url: str) -> None:
    """The refusal does not repeat the secret that an address carries."""
    with pytest.raises(ConfigurationError) as caught:
        HTTPEndpoint(base_url, "fake")
    assert "sesame" not in str(caught.value)


UNSENDABLE = ["sk-sesame\n", "sk-sesame\r\nx: y", "sk-sesame-é", "sk-“sesame”", "sk-\x00sesame"]


@pytest.mark.parametrize("make", [HTTPEndpoint, HTTPEmbedder])
@pytest.mark.parametrize("key", UNSENDABLE, ids=ascii)
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(
    make: type[HTTPEndpoint] | type[HTTPEmbedder], key: str
) -> None:
    """A key with a line end or beyond ASCII is refused at construction, and no line of the traceback holds it."""
    with pytest.raises(ConfigurationError, match="api_key") as caught:
        make("http://127.0.0.1:9/v1", "fake", api_key=key)
    assert "sesame" not in "".join(traceback.format_exception(caught.value))


def test_a_header_that_cannot_be_sent_is_refused_by_its_name() -> None:
    """A header of the caller's with a line end in it is refused, by its name and without its value."""
    with pytest.raises(ConfigurationError, match="'x-tenant'") as caught:
        HTTPEndpoint("http://127.0.0.1:9/v1", "fake", headers={"x-tenant": "orca\r\n"})
    assert "orca" not in str(caught.value)


async def test_a_password_in_a_clients_address_is_not_in_the_repr() -> None:
    """The address of a caller's client may hold user and password; the repr does not."""
    async with new_client("http://user:sesame@127.0.0.1:9/v1") as client:
        assert repr(AsyncOpenAIEndpoint(client, "fake")) == "AsyncOpenAIEndpoint('http://127.0.0.1:9/v1', model='fake')"


async def test_a_repr_holds_address_and_model_and_no_key(wire: str) -> None:
    """The repr is safe in a log."""
    async with new_endpoint(wire) as endpoint:
        assert "http://127.0.0.1:9/v1" in repr(endpoint)
        assert "'fake'" in repr(endpoint)
        assert KEY not in repr(endpoint)


async def test_the_endpoints_model_is_the_one_given(wire: str) -> None:
    """An endpoint knows its model without a request."""
    async with new_endpoint(wire, "adapter-v7") as endpoint:
        assert endpoint.model == "adapter-v7"


def test_from_env_reads_address_model_and_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names address and model."""
    monkeypatch.setenv("DUET_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("DUET_MODEL", "whale")
    monkeypatch.setenv("DUET_API_KEY", KEY)
    assert repr(HTTPEndpoint.from_env(retries=0)) == "HTTPEndpoint('http://127.0.0.1:9/v1', model='whale')"


# Connections


async def test_two_completions_in_a_row_share_a_connection(wire: str, how: str) -> None:
    """A connection is kept for the next call."""
    async with meeting(wire, BLUE) as (server, endpoint):
        await ask(endpoint, how)
        await ask(endpoint, how)
        assert server.connections == 1


async def test_a_stream_without_done_keeps_its_connection_too(wire: str) -> None:
    """A body that was read to its end leaves the connection usable."""
    async with meeting(wire, Answer("A", done=False)) as (server, endpoint):
        await ask(endpoint, "stream")
        await ask(endpoint, "stream")
        assert server.connections == 1


@pytest.mark.parametrize("status", [400, 503])
async def test_a_refusal_keeps_its_connection(wire: str, status: int) -> None:
    """An error answer is read to its end, so that the connection is kept."""
    async with meeting(wire, Answer(status=status), retries=0) as (server, endpoint):
        for _ in range(2):
            with pytest.raises(Exception, match=str(status)):
                await endpoint.generate(MESSAGES, Sampling())
        assert server.connections == 1


async def test_a_hundred_and_twenty_calls_are_in_flight_at_once(wire: str) -> None:
    """How many calls travel at once is the caller's choice, and no pool's."""
    async with meeting(wire, Answer("A", first_after=0.5)) as (server, endpoint):
        async with anyio.create_task_group() as tasks:
            for _ in range(120):
                tasks.start_soon(ask, endpoint, "generate")
    assert server.peak_in_flight == 120


async def test_a_connection_that_the_server_closed_costs_no_try() -> None:
    """A server that drops kept-alive connections after each answer is served without retries."""
    answer = Answer("A", headers={"connection": "close"})
    async with meeting("http", answer, retries=0) as (server, endpoint):
        for _ in range(3):
            await endpoint.generate(MESSAGES, Sampling())
    assert len(server.requests) == 3


async def test_an_endpoint_can_be_used_again_after_aclose(wire: str, how: str) -> None:
    """Closing gives the connections back; the next call opens new ones."""
    async with meeting(wire, BLUE) as (_, endpoint):
        await ask(endpoint, how)
        await endpoint.aclose()
        assert (await ask(endpoint, how)).text == "A blue whale."


async def test_closing_twice_is_no_error(wire: str) -> None:
    """aclose may be called again, and before any call."""
    async with meeting(wire) as (_, endpoint):
        await endpoint.aclose()
        await endpoint.aclose()


def test_one_endpoint_serves_two_loops_when_closed_between(anyio_backend: str, how: str) -> None:
    """An endpoint closed on one event loop works on the next."""

    async def once(endpoint: HTTPEndpoint) -> str:
        with anyio.fail_after(TEST_SECONDS):
            async with endpoint:
                return (await ask(endpoint, how)).text

    with FakeServer(BLUE).run_in_thread() as server:
        endpoint = HTTPEndpoint(server.base_url, "fake", deadlines=Deadlines(total=TEST_SECONDS))
        texts = [anyio.run(once, endpoint, backend=anyio_backend) for _ in range(2)]
        anyio.run(all_closed, server, backend=anyio_backend)
    assert texts == ["A blue whale.", "A blue whale."]


def test_an_endpoint_that_nobody_closed_leaves_nothing_open(anyio_backend: str, how: str) -> None:
    """Each event loop has a transport of its own that is closed with it: two loops, no aclose, no ResourceWarning."""
    with FakeServer(BLUE).run_in_thread() as server:
        endpoint = HTTPEndpoint(server.base_url, "fake", deadlines=Deadlines(total=TEST_SECONDS))
        texts = [anyio.run(ask, endpoint, how, backend=anyio_backend).text for _ in range(2)]
        gc.collect()
        anyio.run(all_closed, server, backend=anyio_backend)
    assert texts == ["A blue whale.", "A blue whale."]


def test_one_endpoint_serves_asyncio_after_trio(how: str) -> None:
    """An endpoint belongs to no event loop and to no library."""

    async def once(endpoint: HTTPEndpoint) -> str:
        with anyio.fail_after(TEST_SECONDS):
            async with endpoint:
                return (await ask(endpoint, how)).text

    with FakeServer(BLUE).run_in_thread() as server:
        endpoint = HTTPEndpoint(server.base_url, "fake")
        texts = [anyio.run(once, endpoint, backend=backend) for backend in ("trio", "asyncio", "trio")]
    assert texts == ["A blue whale."] * 3
