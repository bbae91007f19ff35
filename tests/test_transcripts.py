"""What real engines sent, replayed byte for byte and cut in every way (see transcripts/README.md)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import attrs
import pytest
from wires import MESSAGES, ask, meeting, serving

from duet import (
    Completion,
    EndpointError,
    EndpointRejected,
    EndpointUnavailable,
    HTTPEmbedder,
    Sampling,
)
from duet.testing import Answer, Request, Transcript

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_leaks")]

HERE = Path(__file__).parent / "transcripts"
CUTS = (1, 7, 4096)
FILMS = "1. Star Wars: The Last Jedi (2015)\n2. The Last Picture Preview ("
HELLO = "Hello there! I'm here to help with any kind of math or science project. What can I help you with?"
CUE = '<cue>\n\nThe film "The Matrix" is a classic example of a dystopian,</cue>'


@attrs.frozen
class Said:
    """What a recording holds, read by eye; `usage` is prompt, completion and cached tokens."""

    text: str
    finish_reason: str
    usage: tuple[int, int, int] | None
    logprobs: tuple[tuple[str, float], ...] = ()
    alternatives: int = 0


LIGHTHOUSE = (
    ("A", -1.3651610612869263),
    (" film", -1.904798984527588),
    (" about", -0.30124273896217346),
    (" a", -0.007171716075390577),
    (" lighthouse", -0.05695556104183197),
)
FIRST_DIGITS = (
    ("1", -1.4448455572128296),
    (".", -0.61848384141922),
    (" ", -2.2890422344207764),
    ("1", -0.3043781816959381),
    ("\n", -1.10581374168396),
)
UNICODE = (
    ("n", -10.346456527709961),
    ("é", -9.683459281921387),
    (" ", -4.540976524353027),
    ("🎬", -5.60293436050415),
    ("日", -1.430293083190918),
    ("本", -4.064944267272949),
    ("ド", -2.381070375442505),
)

PLAIN = {
    "llamacpp/chat_plain": Said(FILMS, "length", (26, 24, 25)),
    "llamacpp/chat_stop_string": Said("", "stop", (26, 2, 25)),
    "llamacpp/chat_n2": Said("One of the films", "length", (26, 4, 25)),
    "llamacpp/chat_logprobs": Said("fresh", "length", (58, 1, 24), (("fresh", -11.398945808410645),), 10),
    "vllm/chat_plain": Said(FILMS, "length", (26, 24, 0)),
    "vllm/chat_n2": Said("Some of the most", "length", (26, 8, 0)),
    "vllm/chat_logprobs": Said("1", "length", (58, 1, 0), (("1", -1.4448455572128296),), 10),
}
STREAMED = {
    "llamacpp/chat_stream": Said(FILMS, "length", (26, 24, 0)),
    "llamacpp/chat_stream_length": Said("1. Star Wars", "length", None),
    "llamacpp/chat_stream_stop": Said(HELLO, "stop", (33, 25, 24)),
    "llamacpp/chat_stream_n2": Said("One of the films", "length", (26, 4, 25)),
    "llamacpp/chat_stream_logprobs": Said("A film about a lighthouse", "length", None, LIGHTHOUSE, 2),
    "llamacpp/chat_stream_unicode": Said("né 🎬日本ド", "stop", None, UNICODE, 1),
    "llamacpp/chat_grammar": Said(CUE, "stop", (37, 25, 24)),
    "vllm/chat_stream": Said(FILMS, "length", (26, 24, 0)),
    "vllm/chat_stream_length": Said("1. Star Wars", "length", None),
    "vllm/chat_stream_stop": Said(HELLO, "stop", (33, 25, 0)),
    "vllm/chat_stream_n2": Said("Some of the most", "length", (26, 8, 0)),
    "vllm/chat_stream_logprobs": Said("1. 1\n", "length", None, FIRST_DIGITS, 2),
    "vllm/chat_stream_continuous_usage": Said("1. Star", "length", (26, 3, 0)),
    "vllm/chat_grammar": Said(CUE, "stop", (37, 25, 0)),
}
REFUSED = {
    "llamacpp/bad_grammar": (400, "failed to parse grammar"),
    "llamacpp/bad_grammar_stream": (400, "failed to parse grammar"),
    "llamacpp/bad_temperature": (400, "temperature"),
    "llamacpp/missing_messages": (400, "'messages' is required"),
    "llamacpp/prompt_too_long": (400, "exceeds the available context size"),
    "llamacpp/unknown_path": (404, "File Not Found"),
    "llamacpp/wrong_key": (401, "Invalid API Key"),
    "vllm/bad_grammar": (400, "Invalid grammar specification"),
    "vllm/bad_temperature": (400, "unable to parse string as a number"),
    "vllm/embeddings_unsupported": (404, "Not Found"),
    "vllm/prompt_too_long": (400, "maximum context length is 2048 tokens"),
    "vllm/too_many_top_logprobs": (400, "greater than max allowed: 20"),
    "vllm/unknown_path": (404, "Not Found"),
    "vllm/wrong_model": (404, "The model `nope` does not exist"),
}
OTHERS = {
    "llamacpp/embeddings_mean",
    "llamacpp/embeddings_refused",
    "llamacpp/models",
    "vllm/bad_grammar_stream",
    "vllm/models",
}
NAMES = PLAIN.keys() | STREAMED.keys() | REFUSED.keys() | OTHERS


@pytest.fixture(params=CUTS, ids=lambda cut: f"cut{cut}")
def cut(request: pytest.FixtureRequest) -> int:
    """Bytes a write."""
    return int(request.param)


def cuts_of(names: Iterable[str]) -> list[tuple[str, int]]:
    """Each recording with each cut; single bytes for the short ones alone, since each costs a write."""
    sizes = {name: (HERE / f"{name}.http").stat().st_size for name in names}
    return [(name, cut) for name, size in sizes.items() for cut in CUTS if cut > 1 or size < 4000]


def recording(name: str, cut: int | None = None) -> Transcript:
    """A recorded answer, to be sent in writes of `cut` bytes."""
    return Transcript.load(HERE / f"{name}.http", engine=name.split("/", 1)[0], cut=cut)


async def replay(name: str, how: str, cut: int | None) -> Completion:
    """The completion that a recorded answer is read as."""
    async with meeting("http", recording(name, cut), retries=0) as (_, endpoint):
        return await ask(endpoint, how, Sampling(logprobs=True))


def check(completion: Completion, said: Said) -> None:
    """Compare a completion with what the recording holds."""
    assert (completion.text, completion.finish_reason) == (said.text, said.finish_reason)
    assert tuple((entry.token, entry.logprob) for entry in completion.logprobs) == said.logprobs
    assert {len(entry.top_logprobs) for entry in completion.logprobs} <= {said.alternatives}
    usage = completion.usage
    assert usage is not None
    assert usage.estimated == (said.usage is None)
    if said.usage is not None:
        assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == said.usage


@pytest.mark.parametrize(("name", "cut"), cuts_of(PLAIN))
async def test_a_recorded_answer_is_read(name: str, cut: int) -> None:
    """A plain answer gives its text, finish_reason, usage and log-probabilities, however it is cut."""
    check(await replay(name, "generate", cut), PLAIN[name])


@pytest.mark.parametrize(("name", "cut"), cuts_of(STREAMED))
async def test_a_recorded_stream_is_read(name: str, cut: int) -> None:
    """A stream gives its text, finish_reason, usage and log-probabilities, however it is cut."""
    check(await replay(name, "stream", cut), STREAMED[name])


@pytest.mark.parametrize("name", PLAIN)
async def test_a_recorded_answer_is_read_where_a_stream_was_asked_for(name: str) -> None:
    """A plain answer to a request for a stream gives the same completion."""
    check(await replay(name, "stream", None), PLAIN[name])


@pytest.mark.parametrize(("how", "cut"), [("generate", 1), ("generate", 7), ("stream", 4096)])
@pytest.mark.parametrize("name", REFUSED)
async def test_a_recorded_refusal_is_a_rejection(name: str, how: str, cut: int) -> None:
    """A refusal has its status, and the message that the engine gave."""
    status, words = REFUSED[name]
    with pytest.raises(EndpointRejected, match=words.replace(".", r"\.")) as caught:
        await replay(name, how, cut)
    assert caught.value.status_code == status


async def test_a_refusal_that_vllm_sends_as_an_event_is_a_rejection(cut: int) -> None:
    """vLLM refuses a grammar in a stream under status 200; the code of the event counts."""
    with pytest.raises(EndpointRejected, match="Invalid grammar specification") as caught:
        await replay("vllm/bad_grammar_stream", "stream", cut)
    assert caught.value.status_code == 400


@pytest.mark.parametrize("name", ["llamacpp/models", "llamacpp/embeddings_mean"])
async def test_an_answer_to_another_question_is_no_completion(name: str) -> None:
    """A list of models or of vectors is never taken for a completion."""
    with pytest.raises(EndpointUnavailable):
        await replay(name, "generate", None)


@pytest.mark.parametrize("name", [name for name in STREAMED if "stream" in name])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
async def test_a_recorded_stream_that_is_cut_short_is_an_error(name: str, share: float) -> None:
    """A recording that breaks off before its last word is never passed off as a result."""
    whole = recording(name)
    end = whole.data.rindex(b'"finish_reason":"')
    answer = attrs.evolve(whole, data=whole.data[: max(whole.data.index(b"\r\n\r\n") + 4, int(end * share))])
    async with meeting("http", answer, retries=0) as (_, endpoint):
        with pytest.raises(EndpointError):
            await ask(endpoint, "stream")


@pytest.mark.parametrize(("name", "field"), [("llamacpp/models", "grammar"), ("vllm/models", "structured_outputs")])
async def test_the_engine_is_known_by_its_list_of_models(name: str, field: str, cut: int) -> None:
    """What an engine says of its models is enough to know how it takes a grammar."""

    def answer(request: Request) -> Answer | Transcript:
        return recording(name, cut) if request.method == "GET" else Answer("yes")

    async with meeting("http", answer) as (server, endpoint):
        await endpoint.generate(MESSAGES, Sampling(grammar='root ::= "yes"'))
    assert field in server.requests[-1].json


async def test_recorded_vectors_are_read() -> None:
    """llama.cpp's embeddings come as two vectors of 576 numbers."""
    async with serving(recording("llamacpp/embeddings_mean", 4096)) as server:
        async with HTTPEmbedder(server.base_url, "base") as embedder:
            vectors = await embedder.embed(["whale", "sea"])
    assert [len(vector) for vector in vectors] == [576, 576]
    assert vectors[0][0] == -0.027140067890286446


@pytest.mark.parametrize(
    ("name", "status"), [("llamacpp/embeddings_refused", 501), ("vllm/embeddings_unsupported", 404)]
)
async def test_a_server_without_embeddings_is_an_error(name: str, status: int) -> None:
    """An engine that was started for text alone says so, and is not asked again."""
    async with serving(recording(name)) as server:
        async with HTTPEmbedder(server.base_url, "base", retries=2) as embedder:
            with pytest.raises(EndpointRejected) as caught:
                await embedder.embed(["whale"])
    assert (caught.value.status_code, len(server.requests)) == (status, 1)


def test_every_recording_is_replayed() -> None:
    """No recording lies about unused, and none is missing."""
    assert {f"{path.parent.name}/{path.stem}" for path in HERE.glob("*/*.http")} == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_recording_says_what_was_asked(name: str) -> None:
    """Beside each recording lies the request that produced it."""
    assert (HERE / f"{name}.request.json").is_file()


@pytest.mark.parametrize("name", sorted(NAMES))
def test_no_recording_holds_a_path(name: str) -> None:
    """A recording tells nothing about the machine that it was made on."""
    data = recording(name).data
    assert not [word for word in (b"/tmp", b"/root", b"/home", b"site-packages") if word in data]
