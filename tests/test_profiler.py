"""The profiler: one pair, one pair as it is written, any number of pairs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest
from anyio import wait_all_tasks_blocked

from duet import (
    Completion,
    CompletionError,
    ConfigurationError,
    Cues,
    DuetError,
    Endpoint,
    EndpointRejected,
    EndpointUnavailable,
    GenerationDone,
    GenerationEnd,
    HTTPEndpoint,
    IncompleteStream,
    Interaction,
    Item,
    JointProfiler,
    JointPrompt,
    MalformedCompletion,
    Message,
    Outcome,
    ProfileEvent,
    ProfileSchema,
    RecordError,
    Sampling,
    SectionDelta,
    SectionDone,
    TextDelta,
    TruncatedCompletion,
    User,
)
from duet.testing import USAGE, Answer, FakeServer, ScriptedEndpoint, completion_text

pytestmark = pytest.mark.anyio

SEEN = Interaction(
    user="ann", item="globe", rating=4, title="Globe", review="Round.", at=datetime(2024, 1, 1, tzinfo=UTC)
)
USER = User("ann", [SEEN])
ITEM = Item("atlas", title="Atlas")
TEXT = completion_text()
SCHEMAS = {
    "joint": ProfileSchema(),
    "user only": ProfileSchema(sides="user"),
    "item only": ProfileSchema(sides="item"),
    "without cue": ProfileSchema().without("cue"),
    "without constructed prompt": ProfileSchema().without("constructed_prompt"),
    "profile alone": ProfileSchema(sections="profile"),
}

Pair = tuple[User, Item]
Source = Callable[[Sequence[Pair]], Any]

each_schema = pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)


def pairs_of(count: int) -> list[Pair]:
    """Pairs told apart by their ids."""
    return [(User(f"u{number}"), Item(f"i{number}")) for number in range(count)]


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something holds; TimeoutError if it never does."""
    with anyio.fail_after(10):
        while not condition():  # noqa: ASYNC110 - what is waited for happens behind a socket
            await anyio.sleep(0.002)


async def read(stream: AbstractAsyncContextManager[AsyncIterator[ProfileEvent]]) -> list[ProfileEvent]:
    """Every event of a stream."""
    async with stream as events:
        return [event async for event in events]


async def read_until_error(profiler: JointProfiler) -> tuple[list[ProfileEvent], Exception | None]:
    """The events of a stream and the error that ended it."""
    seen: list[ProfileEvent] = []
    try:
        async with profiler.stream(USER, ITEM) as events:
            async for event in events:
                seen.append(event)  # noqa: PERF401 - the events before an error are what is looked at
    except Exception as exc:
        return seen, exc
    return seen, None


async def outcomes_of(profiler: JointProfiler, pairs: Any, *, concurrency: int = 4) -> list[Outcome]:
    """Every outcome of a bulk run, in the order of the input."""
    async with profiler.profile_many(pairs, concurrency=concurrency) as outcomes:
        found = [outcome async for outcome in outcomes]
    return sorted(found, key=lambda outcome: outcome.index)


async def raise_inside(profiler: JointProfiler, error: BaseException) -> None:
    """Raise in the block of a bulk run after its first outcome."""
    async with profiler.profile_many(pairs_of(20), concurrency=4) as outcomes:
        async for _ in outcomes:
            raise error


class Unending:
    """An endpoint whose stream ends without a GenerationEnd."""

    model = "unending"

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        raise NotImplementedError

    @asynccontextmanager
    async def stream(
        self, messages: Sequence[Message], sampling: Sampling
    ) -> AsyncIterator[AsyncIterator[TextDelta | GenerationEnd]]:
        yield _Texts([TextDelta(TEXT)])


class _Texts:
    def __init__(self, deltas: Iterable[TextDelta]) -> None:
        self._deltas = iter(deltas)

    def __aiter__(self) -> AsyncIterator[TextDelta | GenerationEnd]:
        return self

    async def __anext__(self) -> TextDelta | GenerationEnd:
        await anyio.lowlevel.checkpoint()
        for delta in self._deltas:
            return delta
        raise StopAsyncIteration


# One profile


@each_schema
async def test_profile_holds_the_sections_of_the_completion(schema: ProfileSchema) -> None:
    """Every section of the schema is in the profile, and no other."""
    endpoint = ScriptedEndpoint(
        completion_text(schema, **{f"{side}_{name}": f"{side} {name}" for side, name in schema.slots})
    )
    profile = await JointProfiler(endpoint, prompt=JointPrompt(schema=schema)).profile(USER, ITEM)
    sides = {"user": profile.user, "item": profile.item}
    found = {
        (side, name): text
        for side, part in sides.items()
        if part is not None
        for name, text in {"cue": part.cue, "constructed_prompt": part.constructed_prompt, "profile": part.text}.items()
        if text is not None
    }
    assert found == {(side, name): f"{side} {name}" for side, name in schema.slots}


async def test_profile_carries_completion_model_and_usage() -> None:
    """The profile keeps the whole text, the reported model and the tokens spent."""
    async with FakeServer(TEXT) as server, HTTPEndpoint(server.base_url, "fake") as endpoint:
        profile = await JointProfiler(endpoint).profile(USER, ITEM)
    assert profile.usage is not None
    assert (profile.completion, profile.model, profile.usage.prompt_tokens, profile.usage.completion_tokens) == (
        TEXT,
        "fake",
        USAGE["prompt_tokens"],
        USAGE["completion_tokens"],
    )


@each_schema
async def test_what_is_sent_is_what_the_prompt_renders(schema: ProfileSchema) -> None:
    """The messages on the wire are those of JointPrompt.render."""
    prompt = JointPrompt(schema=schema)
    async with FakeServer(completion_text(schema)) as server, HTTPEndpoint(server.base_url, "fake") as endpoint:
        await JointProfiler(endpoint, prompt=prompt).profile(USER, ITEM)
    assert server.requests[0].json["messages"] == list(prompt.render(USER, ITEM))


async def test_stream_sends_what_profile_sends() -> None:
    """A stream asks for the same messages under the same sampling."""
    endpoint = ScriptedEndpoint(TEXT)
    profiler = JointProfiler(endpoint, sampling=Sampling(temperature=0.3), constrained=True)
    await profiler.profile(USER, ITEM)
    await read(profiler.stream(USER, ITEM))
    assert endpoint.calls[0] == endpoint.calls[1]


async def test_sampling_is_passed_on() -> None:
    """The profiler's sampling is the one the endpoint gets."""
    endpoint = ScriptedEndpoint(TEXT)
    sampling = Sampling(temperature=0.3, seed=7, max_tokens=50)
    await JointProfiler(endpoint, sampling=sampling).profile(USER, ITEM)
    assert endpoint.calls[0][1] == sampling


async def test_default_token_limit_is_the_papers() -> None:
    """Unless told otherwise a completion may have 896 tokens."""
    endpoint = ScriptedEndpoint(TEXT)
    await JointProfiler(endpoint).profile(USER, ITEM)
    assert endpoint.calls[0][1].max_tokens == 896


@pytest.mark.parametrize("constrained", [False, True])
async def test_grammar_is_sent_only_when_constrained(constrained: bool) -> None:
    """The schema's grammar goes along exactly when decoding is to be constrained."""
    endpoint = ScriptedEndpoint(TEXT)
    await JointProfiler(endpoint, constrained=constrained).profile(USER, ITEM)
    assert endpoint.calls[0][1].grammar == (ProfileSchema().grammar() if constrained else None)


async def test_grammar_reaches_the_server() -> None:
    """Under constrained decoding the request carries the grammar in the engine's own field."""
    async with FakeServer(TEXT) as server, HTTPEndpoint(server.base_url, "fake", engine="llama.cpp") as endpoint:
        await JointProfiler(endpoint, constrained=True).profile(USER, ITEM)
    assert server.requests[0].json["grammar"] == ProfileSchema().grammar()


@pytest.mark.parametrize("constrained", [False, True])
async def test_given_cues_are_not_asked_for(constrained: bool) -> None:
    """With cues given, prompt and grammar are those of the schema without cues."""
    endpoint = ScriptedEndpoint(completion_text(ProfileSchema().without("cue")))
    cues = Cues("maps", "rivers")
    await JointProfiler(endpoint, constrained=constrained).profile(USER, ITEM, cues=cues)
    messages, sampling = endpoint.calls[0]
    assert messages == JointPrompt().render(USER, ITEM, cues=cues)
    assert sampling.grammar == (ProfileSchema().without("cue").grammar() if constrained else None)


async def test_given_cues_are_in_the_profile() -> None:
    """Cues that were given stand in the profile as its cues."""
    endpoint = ScriptedEndpoint(completion_text(ProfileSchema().without("cue")))
    profile = await JointProfiler(endpoint).profile(USER, ITEM, cues=Cues("maps", "rivers"))
    assert (profile.user and profile.user.cue, profile.item and profile.item.cue) == ("maps", "rivers")


async def test_given_cues_are_in_the_streamed_profile() -> None:
    """A stream with given cues ends in the same profile as profile gives."""
    endpoint = ScriptedEndpoint(completion_text(ProfileSchema().without("cue")))
    profiler, cues = JointProfiler(endpoint), Cues("maps", "rivers")
    async with profiler.stream(USER, ITEM, cues=cues) as events:
        streamed = await events.get_final_profile()
    assert streamed == await profiler.profile(USER, ITEM, cues=cues)


async def test_a_cue_for_one_side_alone_is_refused() -> None:
    """Given cues must cover every side, since none is written again."""
    endpoint = ScriptedEndpoint(completion_text(ProfileSchema().without("cue")))
    with pytest.raises(ConfigurationError, match="item"):
        await JointProfiler(endpoint).profile(USER, ITEM, cues=Cues(user="maps"))


async def test_reasoning_is_no_part_of_the_profile() -> None:
    """What stands in <think> is passed over, even where it looks like a profile."""
    draft = completion_text(user_profile="A draft.")
    profile = await JointProfiler(ScriptedEndpoint(f"<think>{draft}</think>{TEXT}")).profile(USER, ITEM)
    assert profile.user == (await JointProfiler(ScriptedEndpoint(TEXT)).profile(USER, ITEM)).user


ERRORS = [
    EndpointUnavailable("down", endpoint="http://x"),
    EndpointRejected("no such model", status_code=404),
    IncompleteStream("torso"),
    ValueError("an endpoint of the caller's own"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_endpoints_error_passes_through_profile(error: Exception) -> None:
    """What the endpoint raises leaves profile as the very same object."""
    with pytest.raises(type(error)) as caught:
        await JointProfiler(ScriptedEndpoint(error)).profile(USER, ITEM)
    assert caught.value is error


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_endpoints_error_passes_through_stream(error: Exception) -> None:
    """What the endpoint raises leaves a stream as the very same object."""
    assert await read_until_error(JointProfiler(ScriptedEndpoint(error))) == ([], error)


@pytest.mark.parametrize(
    ("status", "kind"), [(404, EndpointRejected), (400, EndpointRejected), (503, EndpointUnavailable)]
)
async def test_servers_refusal_is_typed(status: int, kind: type[Exception]) -> None:
    """A status of the server arrives as the error that says whose fault it was."""
    async with (
        FakeServer(Answer(status=status)) as server,
        HTTPEndpoint(server.base_url, "fake", retries=0) as endpoint,
    ):
        with pytest.raises(kind):
            await JointProfiler(endpoint).profile(USER, ITEM)


@pytest.mark.parametrize(
    ("completion", "kind"),
    [
        (Completion("I would rather not."), MalformedCompletion),
        (Completion(TEXT[:-80]), MalformedCompletion),
        (Completion(TEXT[:-80], finish_reason="length"), TruncatedCompletion),
        (Completion("<think>Hm"), TruncatedCompletion),
        (Completion(""), MalformedCompletion),
    ],
    ids=["refusal", "cut", "token limit", "unclosed think", "empty"],
)
async def test_completion_that_is_no_profile_is_refused(completion: Completion, kind: type[CompletionError]) -> None:
    """A completion without all its sections raises the error that says why, with the text."""
    with pytest.raises(kind) as caught:
        await JointProfiler(ScriptedEndpoint(completion)).profile(USER, ITEM)
    assert caught.value.completion == completion.text


async def test_profile_is_whole_in_spite_of_the_token_limit() -> None:
    """A completion with all its sections counts, even where the token limit ended it."""
    profile = await JointProfiler(ScriptedEndpoint(Completion(TEXT, finish_reason="length"))).profile(USER, ITEM)
    assert profile.completion == TEXT


SWAPPED: dict[str, Callable[[JointProfiler, Any, Any], object]] = {
    "profile": lambda profiler, user, item: anyio.run(profiler.profile, user, item),
    "stream": lambda profiler, user, item: profiler.stream(user, item),
}


@pytest.mark.parametrize("call", SWAPPED.values(), ids=SWAPPED)
@pytest.mark.parametrize(("user", "item"), [(ITEM, USER), ("ann", "atlas"), (USER, None)])
def test_what_is_no_pair_is_refused(call: Callable[..., object], user: object, item: object) -> None:
    """User and item in the wrong order, or anything else, is a RecordError that names what was given."""
    endpoint = ScriptedEndpoint(TEXT)
    names = f"got {type(user).__name__} and {type(item).__name__}"
    with pytest.raises(RecordError, match=names):
        call(JointProfiler(endpoint), user, item)


async def test_malformed_completion_is_not_asked_again() -> None:
    """A completion that is no profile is never re-rolled in silence."""
    endpoint = ScriptedEndpoint(["nonsense", TEXT])
    with pytest.raises(MalformedCompletion):
        await JointProfiler(endpoint).profile(USER, ITEM)
    assert len(endpoint.calls) == 1


async def test_schema_without_profile_is_refused() -> None:
    """A profiler whose schema has no section 'profile' cannot be made."""
    with pytest.raises(ConfigurationError, match="profile"):
        JointProfiler(ScriptedEndpoint(TEXT), prompt=JointPrompt(schema=ProfileSchema(sections=("cue",))))


async def test_one_profiler_serves_many_tasks() -> None:
    """Calls of many tasks through one profiler each get their own answer."""
    answers = (completion_text(user_profile=f"Profile {number}.") for number in range(20))
    profiler = JointProfiler(ScriptedEndpoint(answers))
    found: list[str] = []

    async def ask() -> None:
        profile = await profiler.profile(USER, ITEM)
        assert profile.user is not None
        found.append(profile.user.text)

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(ask)
    assert sorted(found) == sorted(f"Profile {number}." for number in range(20))


# One profile as it is written


@each_schema
async def test_sections_are_done_in_the_schemas_order(schema: ProfileSchema) -> None:
    """One SectionDone a section comes, in the order of the schema."""
    profiler = JointProfiler(ScriptedEndpoint(completion_text(schema)), prompt=JointPrompt(schema=schema))
    events = await read(profiler.stream(USER, ITEM))
    assert [(event.side, event.section) for event in events if isinstance(event, SectionDone)] == list(schema.slots)


@pytest.mark.parametrize("chunk_chars", [1, 3, 7, 10_000])
async def test_deltas_of_a_section_join_to_its_text(chunk_chars: int) -> None:
    """However the text is cut, the deltas before a SectionDone join to its text."""
    joined: list[str] = []
    texts: list[str] = []
    piece = ""
    for event in await read(JointProfiler(ScriptedEndpoint(TEXT, chunk_chars=chunk_chars)).stream(USER, ITEM)):
        match event:
            case SectionDelta(delta=delta):
                piece += delta
            case SectionDone(text=text):
                joined.append(piece)
                texts.append(text)
                piece = ""
    assert joined == texts


async def test_a_section_is_one_run_of_events() -> None:
    """Deltas of a section come between those of the sections before and after it, its SectionDone at their end."""
    events = await read(JointProfiler(ScriptedEndpoint(TEXT, chunk_chars=2)).stream(USER, ITEM))
    runs: list[tuple[str, str]] = []
    for event in events:
        if isinstance(event, SectionDelta | SectionDone) and (event.side, event.section) not in runs[-1:]:
            runs.append((event.side, event.section))
    assert runs == list(ProfileSchema().slots)


@each_schema
async def test_generation_done_is_last_and_holds_the_profile(schema: ProfileSchema) -> None:
    """The last event, and no other, is a GenerationDone with the profile that profile gives."""
    profiler = JointProfiler(ScriptedEndpoint(completion_text(schema)), prompt=JointPrompt(schema=schema))
    events = await read(profiler.stream(USER, ITEM))
    found = [(at, event.profile) for at, event in enumerate(events) if isinstance(event, GenerationDone)]
    assert found == [(len(events) - 1, await profiler.profile(USER, ITEM))]


async def test_streamed_profile_equals_the_plain_one_over_http() -> None:
    """Over a socket a stream ends in the same profile, usage included, as a plain call gives."""
    async with FakeServer(TEXT) as server, HTTPEndpoint(server.base_url, "fake") as endpoint:
        profiler = JointProfiler(endpoint)
        async with profiler.stream(USER, ITEM) as events:
            streamed = await events.get_final_profile()
        assert streamed == await profiler.profile(USER, ITEM)


async def test_finish_reason_is_in_generation_done() -> None:
    """GenerationDone tells why the generation ended."""
    profiler = JointProfiler(ScriptedEndpoint(Completion(TEXT, finish_reason="length")))
    last = (await read(profiler.stream(USER, ITEM)))[-1]
    assert isinstance(last, GenerationDone)
    assert last.finish_reason == "length"


async def test_final_profile_after_some_events() -> None:
    """get_final_profile reads on from wherever the iteration stands."""
    profiler = JointProfiler(ScriptedEndpoint(TEXT))
    async with profiler.stream(USER, ITEM) as events:
        await anext(events)
        assert await events.get_final_profile() == await profiler.profile(USER, ITEM)


async def test_final_profile_after_the_end() -> None:
    """get_final_profile gives the profile once more after the last event."""
    profiler = JointProfiler(ScriptedEndpoint(TEXT))
    async with profiler.stream(USER, ITEM) as events:
        first = await events.get_final_profile()
        assert await events.get_final_profile() is first


async def test_stream_stays_at_its_end() -> None:
    """After GenerationDone a stream has nothing more, however often it is asked."""
    async with JointProfiler(ScriptedEndpoint(TEXT)).stream(USER, ITEM) as events:
        await events.get_final_profile()
        assert [await anext(events, None) for _ in range(3)] == [None, None, None]


async def test_stream_asks_nothing_before_it_is_entered() -> None:
    """Making a stream sends no request."""
    endpoint = ScriptedEndpoint(TEXT)
    JointProfiler(endpoint).stream(USER, ITEM)
    assert endpoint.calls == []


async def test_leaving_a_stream_early_closes_the_socket() -> None:
    """Whoever leaves a stream early stops the generation on the server."""
    async with FakeServer(Answer(TEXT, pace=0.02)) as server, HTTPEndpoint(server.base_url, "fake") as endpoint:
        async with JointProfiler(endpoint).stream(USER, ITEM) as events:
            await anext(events)
        await server.wait_disconnects(1)
    assert server.disconnects == 1


async def test_cancelling_a_stream_closes_the_socket() -> None:
    """Cancelling the task that reads a stream stops the generation on the server."""
    async with FakeServer(Answer(fault="hang_midstream")) as server, HTTPEndpoint(server.base_url, "fake") as endpoint:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read_until_error, JointProfiler(endpoint))
            await until(lambda: server.in_flight == 1)
            tasks.cancel_scope.cancel()
        await server.wait_disconnects(1)
    assert server.disconnects == 1


async def test_error_in_the_block_of_a_stream_is_the_callers() -> None:
    """An exception of the caller's leaves the block of a stream as it is."""
    error = ValueError("mine")
    profiler = JointProfiler(ScriptedEndpoint(TEXT))
    with pytest.raises(ValueError, match="mine") as caught:  # noqa: PT012 - the block is what is tested
        async with profiler.stream(USER, ITEM) as events:
            await anext(events)
            raise error
    assert caught.value is error


@pytest.mark.parametrize("chunk_chars", [5, 10_000])
@pytest.mark.parametrize(("finish_reason", "kind"), [("stop", MalformedCompletion), ("length", TruncatedCompletion)])
async def test_stream_of_a_torso_gives_its_sections_then_raises(
    finish_reason: str, kind: type[CompletionError], chunk_chars: int
) -> None:
    """The sections that came are handed over before the error at the end of the stream."""
    torso = TEXT[: TEXT.index("<item_profile>")]
    completion = Completion(torso, finish_reason=finish_reason)
    events, error = await read_until_error(JointProfiler(ScriptedEndpoint(completion, chunk_chars=chunk_chars)))
    done = [(event.side, event.section) for event in events if isinstance(event, SectionDone)]
    assert (done, type(error)) == ([("user", name) for name in ("cue", "constructed_prompt", "profile")], kind)


async def test_stream_without_generation_end_is_incomplete() -> None:
    """An endpoint whose stream ends without GenerationEnd gives no profile, whatever its text."""
    _, error = await read_until_error(JointProfiler(Unending()))
    assert isinstance(error, IncompleteStream)


FAILING = {
    "malformed": ScriptedEndpoint("Hello"),
    "truncated": ScriptedEndpoint(Completion(TEXT[:-80], finish_reason="length")),
    "unending": Unending(),
}
each_failing = pytest.mark.parametrize("endpoint", FAILING.values(), ids=FAILING)


@each_failing
async def test_failed_stream_raises_the_same_error_again(endpoint: Endpoint) -> None:
    """A stream that has failed raises the very same error at every further step."""
    raised: list[Exception] = []
    async with JointProfiler(endpoint).stream(USER, ITEM) as events:
        for _ in range(3):
            try:
                _ = [event async for event in events]
            except DuetError as exc:
                raised.append(exc)
    assert raised == [raised[0]] * 3


@each_failing
async def test_failed_stream_has_no_final_profile(endpoint: Endpoint) -> None:
    """After a failure get_final_profile raises the error that ended the stream."""
    async with JointProfiler(endpoint).stream(USER, ITEM) as events:
        with pytest.raises(DuetError) as first:
            _ = [event async for event in events]
        with pytest.raises(DuetError) as second:
            await events.get_final_profile()
    assert second.value is first.value


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer(TEXT, fault="end_early"), IncompleteStream),
        (Answer(TEXT, fault="cut_midstream"), EndpointUnavailable),
        (Answer(TEXT, fault="reset_midstream"), EndpointUnavailable),
        (Answer(TEXT, fault="error_event"), EndpointUnavailable),
        (Answer(TEXT[:-80]), MalformedCompletion),
        (Answer(TEXT[:-80], finish_reason="length"), TruncatedCompletion),
    ],
    ids=["end early", "cut", "reset", "error event", "malformed", "truncated"],
)
async def test_stream_that_breaks_is_never_a_profile(answer: Answer, kind: type[Exception]) -> None:
    """A stream that breaks off ends in the error that says why, and in no GenerationDone."""
    async with FakeServer(answer) as server, HTTPEndpoint(server.base_url, "fake", retries=0) as endpoint:
        events, error = await read_until_error(JointProfiler(endpoint))
    assert (type(error), [event for event in events if isinstance(event, GenerationDone)]) == (kind, [])


# Any number


async def _async_source(pairs: Sequence[Pair]) -> AsyncIterator[Pair]:
    for pair in pairs:
        await anyio.lowlevel.checkpoint()
        yield pair


SOURCES: dict[str, Source] = {
    "list": list,
    "tuple": tuple,
    "iterator": iter,
    "generator": lambda pairs: (pair for pair in pairs),
    "async generator": _async_source,
}
each_source = pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)


@each_source
@pytest.mark.parametrize("count", [0, 1, 3, 25])
async def test_as_many_outcomes_as_pairs(source: Source, count: int) -> None:
    """Every pair, from any kind of iterable, becomes one outcome with its index, user and item."""
    pairs = pairs_of(count)
    outcomes = await outcomes_of(JointProfiler(ScriptedEndpoint(TEXT)), source(pairs))
    assert [(outcome.index, outcome.user, outcome.item) for outcome in outcomes] == [
        (index, *pair) for index, pair in enumerate(pairs)
    ]


async def test_outcome_holds_the_pairs_own_profile() -> None:
    """Each outcome has the profile that was made for its own pair."""

    def answer(messages: Sequence[Message], sampling: Sampling) -> str:
        title = next(line for line in messages[1]["content"].splitlines() if line.startswith("title: "))
        return completion_text(item_profile=title)

    pairs = [(User("u"), Item(f"i{number}", title=f"T{number}")) for number in range(30)]
    outcomes = await outcomes_of(JointProfiler(ScriptedEndpoint(answer)), pairs, concurrency=7)
    texts = [outcome.profile.item.text for outcome in outcomes if outcome.profile and outcome.profile.item]
    assert texts == [f"title: T{number}" for number in range(30)]


BAD_PAIRS: dict[str, object] = {
    "not a tuple": [USER, ITEM],
    "none": None,
    "a string": "ui",
    "one element": (USER,),
    "three elements": (USER, ITEM, ITEM),
    "ids": ("ann", "atlas"),
    "swapped": (ITEM, USER),
}


@pytest.mark.parametrize("bad", BAD_PAIRS.values(), ids=BAD_PAIRS)
async def test_bad_pair_is_an_outcome_with_a_record_error(bad: object) -> None:
    """What is no (User, Item) tuple becomes an outcome whose error names its place, and the rest goes on."""
    pairs = pairs_of(2)
    outcomes = await outcomes_of(JointProfiler(ScriptedEndpoint(TEXT)), [pairs[0], bad, pairs[1]])
    assert [outcome.profile is not None for outcome in outcomes] == [True, False, True]
    error = outcomes[1].error
    assert isinstance(error, RecordError)
    assert error.field == "pairs[1]"


async def test_bad_pair_has_neither_user_nor_item() -> None:
    """The outcome of what is no pair names neither a user nor an item."""
    (outcome,) = await outcomes_of(JointProfiler(ScriptedEndpoint(TEXT)), [(USER, "atlas")])
    assert (outcome.user, outcome.item) == (None, None)


@pytest.mark.parametrize(
    "failure",
    [EndpointUnavailable("down"), EndpointRejected("too long", status_code=400), "nonsense", ValueError("odd")],
    ids=["unavailable", "rejected", "malformed", "foreign"],
)
async def test_failing_pair_is_an_outcome_with_its_error(failure: Exception | str) -> None:
    """A pair that fails is an outcome with the error while the others succeed."""
    endpoint = ScriptedEndpoint([TEXT, failure, TEXT])
    outcomes = await outcomes_of(JointProfiler(endpoint), pairs_of(3), concurrency=1)
    kind = MalformedCompletion if isinstance(failure, str) else type(failure)
    assert [type(outcome.error) for outcome in outcomes] == [type(None), kind, type(None)]


async def test_outcome_is_a_profile_or_an_error() -> None:
    """Every outcome has exactly one of profile and error."""
    endpoint = ScriptedEndpoint([TEXT, "nonsense"] * 10)
    outcomes = await outcomes_of(JointProfiler(endpoint), pairs_of(20))
    assert all((outcome.profile is None) != (outcome.error is None) for outcome in outcomes)


@pytest.mark.parametrize("concurrency", [1, 3, 8])
async def test_concurrency_is_reached_exactly(concurrency: int) -> None:
    """As many requests as allowed, and no more, are at the server at once."""
    async with FakeServer(Answer(fault="hang")) as server, HTTPEndpoint(server.base_url, "fake") as endpoint:
        async with JointProfiler(endpoint).profile_many(pairs_of(30), concurrency=concurrency):
            await until(lambda: server.in_flight == concurrency)
            await anyio.sleep(0.02)
    assert server.peak_in_flight == concurrency


async def test_concurrency_is_never_exceeded() -> None:
    """Over a whole run the server never sees more requests at once than allowed."""
    async with FakeServer(Answer(TEXT, first_after=0.002)) as server, HTTPEndpoint(server.base_url, "fake") as endpoint:
        await outcomes_of(JointProfiler(endpoint), pairs_of(60), concurrency=5)
    assert server.peak_in_flight <= 5


def mixed_up() -> list[Pair]:
    """Three users in turn, each with three items."""
    return [(User(f"u{number % 3}", name=f"user {number % 3}"), Item(f"i{number}")) for number in range(9)]


def users_asked(endpoint: ScriptedEndpoint) -> list[str]:
    """The users' names in the prompts, in the order in which they were sent."""
    return [messages[1]["content"].split("\n")[1].removeprefix("name: user ") for messages, _ in endpoint.calls]


@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize("concurrency", [1, 4, 32])
async def test_pairs_of_a_list_are_sent_user_by_user(kind: Source, concurrency: int) -> None:
    """The prompts of one user follow each other, and each outcome has the place of its pair in the list."""
    endpoint, pairs = ScriptedEndpoint(TEXT), mixed_up()
    outcomes = await outcomes_of(JointProfiler(endpoint), kind(pairs), concurrency=concurrency)
    assert users_asked(endpoint) == [*"000111222"]
    assert [(outcome.user, outcome.item) for outcome in outcomes] == pairs


async def test_pairs_of_an_iterator_are_sent_as_they_are_drawn() -> None:
    """Looking ahead would draw more than is needed, so an iterator keeps its order."""
    endpoint = ScriptedEndpoint(TEXT)
    await outcomes_of(JointProfiler(endpoint), iter(mixed_up()))
    assert users_asked(endpoint) == [*"012012012"]


async def test_what_is_no_pair_keeps_its_place_in_a_list() -> None:
    """Values that are no pairs are outcomes with an error, at their own places."""
    pairs: list[Any] = [None, *pairs_of(1), (), ("ann", ITEM), *pairs_of(1)]
    outcomes = await outcomes_of(JointProfiler(ScriptedEndpoint(TEXT)), pairs)
    assert [type(outcome.error) for outcome in outcomes] == [
        RecordError,
        type(None),
        RecordError,
        RecordError,
        type(None),
    ]


@pytest.mark.parametrize("concurrency", [0, -1])
async def test_concurrency_below_one_is_refused(concurrency: int) -> None:
    """A bulk run needs a concurrency of one at least."""
    with pytest.raises(ConfigurationError, match="concurrency"):
        await outcomes_of(JointProfiler(ScriptedEndpoint(TEXT)), pairs_of(1), concurrency=concurrency)


@pytest.mark.parametrize("taken", [0, 1, 5])
async def test_slow_consumer_holds_back_the_source(taken: int) -> None:
    """While the consumer rests, the source has been asked for what was taken and `concurrency` more."""
    drawn = 0

    def source() -> Iterator[Pair]:
        nonlocal drawn
        for pair in pairs_of(1000):
            drawn += 1
            yield pair

    async with JointProfiler(ScriptedEndpoint(TEXT)).profile_many(source(), concurrency=4) as outcomes:
        for _ in range(taken):
            await anext(outcomes)
        await wait_all_tasks_blocked()
        assert drawn == taken + 4


async def test_source_is_drawn_from_as_outcomes_are_taken() -> None:
    """Over 5 000 pairs, never more than `concurrency` are drawn and not yet handed over."""
    drawn = handed = most = 0

    def source() -> Iterator[Pair]:
        nonlocal drawn, most
        for pair in pairs_of(5000):
            drawn += 1
            most = max(most, drawn - handed)
            yield pair

    async with JointProfiler(ScriptedEndpoint(TEXT)).profile_many(source(), concurrency=16) as outcomes:
        async for _ in outcomes:
            handed += 1
            await anyio.lowlevel.checkpoint()  # a consumer with work of its own, so that finished pairs pile up
    assert handed == 5000
    assert most <= 16


async def test_leaving_early_stops_drawing() -> None:
    """After the block is left nothing more is drawn from the source."""
    drawn = 0

    def source() -> Iterator[Pair]:
        nonlocal drawn
        for pair in pairs_of(1000):
            drawn += 1
            yield pair

    async with JointProfiler(ScriptedEndpoint(TEXT)).profile_many(source(), concurrency=4) as outcomes:
        await anext(outcomes)
    left = drawn
    await wait_all_tasks_blocked()
    assert drawn == left


async def test_leaving_early_cancels_what_is_under_way() -> None:
    """Whoever leaves a bulk run early cuts off every request under way."""
    async with FakeServer(Answer(fault="hang")) as server, HTTPEndpoint(server.base_url, "fake") as endpoint:
        async with JointProfiler(endpoint).profile_many(pairs_of(20), concurrency=4):
            await until(lambda: server.in_flight == 4)
        await server.wait_disconnects(4)
    assert server.disconnects == 4


async def test_cancelling_a_bulk_run_cancels_what_is_under_way() -> None:
    """Cancelling the consumer's task cuts off every request under way."""
    async with FakeServer(Answer(fault="hang")) as server, HTTPEndpoint(server.base_url, "fake") as endpoint:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(outcomes_of, JointProfiler(endpoint), pairs_of(20))
            await until(lambda: server.in_flight == 4)
            tasks.cancel_scope.cancel()
        await server.wait_disconnects(4)
    assert server.disconnects == 4


@pytest.mark.parametrize(
    "error",
    [ValueError("mine"), KeyboardInterrupt(), SystemExit(3), attrs.exceptions.FrozenInstanceError()],
    ids=repr,
)
async def test_callers_exception_leaves_the_block_unwrapped(error: BaseException) -> None:
    """An exception of the caller's leaves the block of a bulk run as the very same object."""
    with pytest.raises(type(error)) as caught:
        await raise_inside(JointProfiler(ScriptedEndpoint(TEXT)), error)
    assert caught.value is error


async def test_sources_error_comes_after_the_outcomes_before_it() -> None:
    """An error of the source is raised once everything drawn before it was handed over."""

    def source() -> Iterator[Pair]:
        yield from pairs_of(6)
        raise OSError("the disk is gone")

    found: list[int] = []

    async def run() -> None:
        async with JointProfiler(ScriptedEndpoint(TEXT)).profile_many(source(), concurrency=3) as outcomes:
            async for outcome in outcomes:
                found.append(outcome.index)  # noqa: PERF401 - what came before the error is what is looked at

    with pytest.raises(OSError, match="the disk is gone"):
        await run()
    assert sorted(found) == list(range(6))


async def test_nested_bulk_runs_do_not_disturb_each_other() -> None:
    """Two bulk runs side by side each give all their outcomes."""
    profiler = JointProfiler(ScriptedEndpoint(TEXT))
    found: list[tuple[int, int]] = []
    async with profiler.profile_many(pairs_of(7), concurrency=2) as ours:
        async with profiler.profile_many(pairs_of(7), concurrency=3) as theirs:
            async for outcome in ours:
                other = await anext(theirs)
                found.append((outcome.index, other.index))
    assert (sorted(a for a, _ in found), sorted(b for _, b in found)) == (list(range(7)), list(range(7)))
