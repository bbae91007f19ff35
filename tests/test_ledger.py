"""The ledger: what is in it is not asked again, and what came is never lost."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from duet import (
    Completion,
    Item,
    JointProfile,
    JointProfiler,
    JointPrompt,
    Ledger,
    LedgerError,
    MalformedCompletion,
    Message,
    Outcome,
    ProfileSchema,
    Sampling,
    SectionDelta,
    SectionDone,
    TokenLogprob,
    TruncatedCompletion,
    Usage,
    User,
)
from duet._ledger import digest_of
from duet.testing import ScriptedEndpoint, completion_text

pytestmark = pytest.mark.anyio

USER = User("ann")
ITEM = Item("atlas", title="Atlas")
TEXT = completion_text()
MESSAGES: tuple[Message, ...] = ({"role": "user", "content": "Say something."},)

# The fixtures are the backend's name alone, so nothing is shared between the examples.
on_each_backend = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a ledger may be."""
    return tmp_path / "ledger.db"


@pytest.fixture
def read_only_path() -> Iterator[Path]:
    """A ledger that may be read and not written, in a folder of the same kind."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "ledger.db"
        anyio.run(Ledger(path).count)
        path.chmod(0o444)
        folder.chmod(0o555)
        as_root = os.geteuid() == 0
        if as_root:
            os.seteuid(65534)  # root may write anywhere
        try:
            yield path
        finally:
            if as_root:
                os.seteuid(0)
            folder.chmod(0o755)


def pairs_of(count: int) -> list[tuple[User, Item]]:
    """Pairs whose prompts differ."""
    return [(User("u"), Item(f"i{number}", title=f"T{number}")) for number in range(count)]


async def put(ledger: Ledger, digest: str = "d", completion: Completion = Completion(TEXT)) -> None:
    """Keep something."""
    await ledger.put(digest, completion, model="m", messages=MESSAGES, users=[])


async def profile_all(profiler: JointProfiler, count: int) -> list[Outcome]:
    """The outcomes of a bulk run."""
    async with profiler.profile_many(pairs_of(count), concurrency=4) as outcomes:
        return [outcome async for outcome in outcomes]


# Read-through


async def test_second_profile_makes_no_request(path: Path) -> None:
    """What is in the ledger is not asked again."""
    endpoint = ScriptedEndpoint(TEXT)
    async with Ledger(path) as ledger:
        profiler = JointProfiler(endpoint, ledger=ledger)
        assert await profiler.profile(USER, ITEM) == await profiler.profile(USER, ITEM)
    assert len(endpoint.calls) == 1


async def test_another_ledger_on_the_file_makes_no_request(path: Path) -> None:
    """What one run kept, another run finds."""
    async with Ledger(path) as ledger:
        first = await JointProfiler(ScriptedEndpoint(TEXT), ledger=ledger).profile(USER, ITEM)
    endpoint = ScriptedEndpoint("never asked")
    async with Ledger(path) as ledger:
        assert await JointProfiler(endpoint, ledger=ledger).profile(USER, ITEM) == first
    assert endpoint.calls == []


async def test_streamed_profile_is_found_by_profile(path: Path) -> None:
    """A generation kept by a stream serves a plain call."""
    endpoint = ScriptedEndpoint(TEXT)
    async with Ledger(path) as ledger:
        profiler = JointProfiler(endpoint, ledger=ledger)
        async with profiler.stream(USER, ITEM) as events:
            streamed = await events.get_final_profile()
        assert await profiler.profile(USER, ITEM) == streamed
    assert len(endpoint.calls) == 1


async def test_second_stream_makes_no_request(path: Path) -> None:
    """A stream of what is in the ledger makes no request and gives the same sections."""
    endpoint = ScriptedEndpoint(TEXT)
    runs = []
    async with Ledger(path) as ledger:
        for _ in range(2):
            async with JointProfiler(endpoint, ledger=ledger).stream(USER, ITEM) as events:
                runs.append([event async for event in events if not isinstance(event, SectionDelta)])
    assert (len(endpoint.calls), runs[0]) == (1, runs[1])


async def test_replayed_stream_may_be_left_early(path: Path) -> None:
    """Leaving a replayed stream leaves nothing behind."""
    async with Ledger(path) as ledger:
        profiler = JointProfiler(ScriptedEndpoint(TEXT), ledger=ledger)
        await profiler.profile(USER, ITEM)
        async with profiler.stream(USER, ITEM) as events:
            assert isinstance(await anext(events), SectionDelta)


async def test_replayed_completion_says_so(path: Path) -> None:
    """Of a completion that was not asked for now, the usage was paid before: it is marked."""
    async with Ledger(path) as ledger:
        found = [await ledger.generate(ScriptedEndpoint(TEXT), MESSAGES, Sampling(), users=[]) for _ in range(2)]
    assert [(one.from_ledger, one.usage) for one in found] == [(False, found[0].usage), (True, found[0].usage)]


async def _profile(profiler: JointProfiler) -> JointProfile:
    return await profiler.profile(USER, ITEM)


async def _streamed(profiler: JointProfiler) -> JointProfile:
    async with profiler.stream(USER, ITEM) as events:
        return await events.get_final_profile()


@pytest.mark.parametrize("ask", [_profile, _streamed])
async def test_replayed_profile_says_so(path: Path, ask: Callable[[JointProfiler], Awaitable[JointProfile]]) -> None:
    """A profile that came from the ledger is marked, however it was asked for."""
    async with Ledger(path) as ledger:
        profiler = JointProfiler(ScriptedEndpoint(TEXT), ledger=ledger)
        assert [(await ask(profiler)).from_ledger for _ in range(2)] == [False, True]


ASKED_AGAIN: dict[str, dict[str, Any]] = {
    "schema": {"prompt": JointPrompt(schema=ProfileSchema().without("cue"))},
    "max_chars": {"prompt": JointPrompt(schema=ProfileSchema(max_chars=300))},
    "temperature": {"sampling": Sampling(max_tokens=896, temperature=0.5)},
    "seed": {"sampling": Sampling(max_tokens=896, seed=1)},
    "extra_body": {"sampling": Sampling(max_tokens=896, extra_body={"top_k": 1})},
    "grammar": {"constrained": True},
}


@pytest.mark.parametrize("change", ASKED_AGAIN)
async def test_changed_setting_asks_again(path: Path, change: str) -> None:
    """Another sampling, schema or grammar is another generation."""
    endpoint = ScriptedEndpoint(TEXT)
    async with Ledger(path) as ledger:
        await JointProfiler(endpoint, ledger=ledger).profile(USER, ITEM)
        await JointProfiler(endpoint, ledger=ledger, **ASKED_AGAIN[change]).profile(USER, ITEM)
    assert len(endpoint.calls) == 2


async def test_another_model_asks_again(path: Path) -> None:
    """Another model or adapter is another generation."""
    other = ScriptedEndpoint(TEXT, model="adapter")
    async with Ledger(path) as ledger:
        await JointProfiler(ScriptedEndpoint(TEXT), ledger=ledger).profile(USER, ITEM)
        await JointProfiler(other, ledger=ledger).profile(USER, ITEM)
    assert len(other.calls) == 1


@pytest.mark.parametrize("pair", [(User("ann", name="Ann"), ITEM), (USER, Item("atlas", title="Globe"))])
async def test_other_messages_ask_again(path: Path, pair: tuple[User, Item]) -> None:
    """A pair whose prompt differs is another generation."""
    endpoint = ScriptedEndpoint(TEXT)
    async with Ledger(path) as ledger:
        profiler = JointProfiler(endpoint, ledger=ledger)
        await profiler.profile(USER, ITEM)
        await profiler.profile(*pair)
    assert len(endpoint.calls) == 2


KEY: dict[str, Any] = {"messages": MESSAGES, "model": "m", "sampling": Sampling(), "schema": ProfileSchema()}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("messages", ()),
        ("messages", (*MESSAGES, *MESSAGES)),
        ("messages", ({"role": "system", "content": "Say something."},)),
        ("model", "n"),
        ("sampling", Sampling(temperature=0.0)),
        ("sampling", Sampling(presence_penalty=1.0)),
        ("sampling", Sampling(grammar="root ::= [a]")),
        ("schema", None),
        ("schema", ProfileSchema(sides="user")),
        ("schema", ProfileSchema(max_chars=9)),
    ],
    ids=repr,
)
def test_each_part_of_the_key_counts(name: str, value: object) -> None:
    """Messages, model, sampling and schema each change the digest."""
    assert digest_of(**(KEY | {name: value})) != digest_of(**KEY)


@pytest.mark.parametrize("name", ["temperature", "top_p", "presence_penalty", "frequency_penalty"])
def test_equal_samplings_have_equal_digests(name: str) -> None:
    """1 and 1.0 are equal, so they are one generation."""
    whole: dict[str, Any] = {name: 1}
    decimal: dict[str, Any] = {name: 1.0}
    assert digest_of(MESSAGES, "m", Sampling(**whole), None) == digest_of(MESSAGES, "m", Sampling(**decimal), None)


@given(st.integers(), st.integers())
@example(2**60, 2**60 + 1)
@example(0, 10**400)
def test_each_seed_is_a_generation(first: int, second: int) -> None:
    """Two seeds share a digest only if they are one, however large they are."""
    one, other = (digest_of(MESSAGES, "m", Sampling(seed=seed), None) for seed in (first, second))
    assert (one == other) == (first == second)


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.booleans()))
def test_order_of_extra_fields_does_not_count(extra: Mapping[str, object]) -> None:
    """The digest is the same whatever the order of the engine's own fields."""
    turned = dict(reversed(list(extra.items())))
    first, second = (Sampling(extra_body=fields) for fields in (extra, turned))
    assert digest_of(MESSAGES, "m", first, None) == digest_of(MESSAGES, "m", second, None)


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_has_a_digest(text: str) -> None:
    """Lone surrogates and NUL in a message can be looked up too."""
    assert re.fullmatch("[0-9a-f]{64}", digest_of([{"role": "user", "content": text}], "m", Sampling(), None))


# What came is kept as it came


@pytest.mark.parametrize(
    ("completion", "kind"),
    [
        (Completion("nonsense"), MalformedCompletion),
        (Completion(TEXT[:-80], finish_reason="length"), TruncatedCompletion),
    ],
    ids=["malformed", "truncated"],
)
async def test_malformed_completion_is_kept(path: Path, completion: Completion, kind: type[Exception]) -> None:
    """A completion that is no profile raises again without a request: it is never re-rolled in silence."""
    endpoint = ScriptedEndpoint(completion)
    async with Ledger(path) as ledger:
        profiler = JointProfiler(endpoint, ledger=ledger)
        for _ in range(2):
            with pytest.raises(kind):
                await profiler.profile(USER, ITEM)
    assert len(endpoint.calls) == 1


async def test_malformed_stream_is_kept(path: Path) -> None:
    """A streamed completion that is no profile is kept before it is refused."""
    async with Ledger(path) as ledger:
        async with JointProfiler(ScriptedEndpoint("nonsense"), ledger=ledger).stream(USER, ITEM) as events:
            with pytest.raises(MalformedCompletion):
                await events.get_final_profile()
        assert await ledger.count() == 1


async def test_endpoints_error_is_not_kept(path: Path) -> None:
    """A failure of the infrastructure leaves nothing behind, so it is asked again."""
    async with Ledger(path) as ledger:
        with pytest.raises(OSError, match="down"):
            await JointProfiler(ScriptedEndpoint(OSError("down")), ledger=ledger).profile(USER, ITEM)
        assert await ledger.count() == 0


# Two halves of a surrogate pair side by side are one character, in JSON as in every encoding.
texts = st.text(st.characters(exclude_categories=())).filter(
    lambda text: not re.search("[\ud800-\udbff][\udc00-\udfff]", text)
)
counts = st.integers(0, 2**53)
logprobs = st.floats(max_value=0, allow_nan=False)
completions = st.builds(
    Completion,
    texts,
    finish_reason=st.none() | texts,
    model=texts,
    usage=st.none() | st.builds(Usage, counts, counts, cached_tokens=counts, estimated=st.booleans()),
    logprobs=st.lists(
        st.builds(TokenLogprob, texts, logprobs, st.lists(st.tuples(texts, logprobs), max_size=3).map(tuple)),
        max_size=3,
    ).map(tuple),
    reasoning=texts,
)


@given(completion=completions)
@on_each_backend
async def test_completion_comes_back_as_it_went_in(completion: Completion) -> None:
    """Text, finish_reason, model, usage, log-probabilities and reasoning survive the file exactly."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.db")
        await put(ledger, completion=completion)
        await ledger.aclose()
        kept = await ledger.get("d")
        await ledger.aclose()
    assert kept == completion


async def test_latest_generation_counts(path: Path) -> None:
    """Of two generations under one digest the later is found, and neither is lost."""
    async with Ledger(path) as ledger:
        await put(ledger, completion=Completion("first"))
        await put(ledger, completion=Completion("second"))
        kept = await ledger.get("d")
        assert (kept and kept.text, await ledger.count()) == ("second", 2)


async def test_unknown_digest_is_none(path: Path) -> None:
    """What was never kept is not found."""
    async with Ledger(path) as ledger:
        await put(ledger)
        assert await ledger.get("e") is None


async def test_rows_survive_the_death_of_the_process(path: Path) -> None:
    """A generation is in the file as soon as it was handed over, even if the process dies at once."""
    script = """
import anyio, os, sys
from duet import Item, JointProfiler, Ledger, User
from duet.testing import ScriptedEndpoint, completion_text
async def main():
    await JointProfiler(ScriptedEndpoint(completion_text()), ledger=Ledger(sys.argv[1])).profile(User("a"), Item("b"))
    os._exit(9)
anyio.run(main)
"""
    done = await anyio.run_process([sys.executable, "-c", script, str(path)], check=False)
    async with Ledger(path) as ledger:
        assert (done.returncode, await ledger.count()) == (9, 1)


# Resuming


async def test_bulk_run_resumes(path: Path) -> None:
    """A run over all pairs asks only for those that an earlier run did not finish."""
    endpoint = ScriptedEndpoint(TEXT)
    async with Ledger(path) as ledger:
        profiler = JointProfiler(endpoint, ledger=ledger)
        await profile_all(profiler, 5)
        outcomes = await profile_all(profiler, 12)
    assert (len(endpoint.calls), sum(outcome.profile is not None for outcome in outcomes)) == (12, 12)


async def test_failed_pairs_are_asked_again(path: Path) -> None:
    """A pair whose endpoint failed is asked again by the next run, and no other."""
    endpoint = ScriptedEndpoint([TEXT, OSError("down"), TEXT, TEXT])
    async with Ledger(path) as ledger:
        profiler = JointProfiler(endpoint, ledger=ledger)
        await profile_all(profiler, 3)
        outcomes = await profile_all(profiler, 3)
    assert (len(endpoint.calls), [outcome.error for outcome in outcomes]) == (4, [None, None, None])


async def test_stream_left_early_keeps_nothing(path: Path) -> None:
    """A generation that was not read to its end is not kept."""
    endpoint = ScriptedEndpoint(TEXT)
    async with Ledger(path) as ledger:
        async with JointProfiler(endpoint, ledger=ledger).stream(USER, ITEM) as events:
            async for event in events:
                if isinstance(event, SectionDone):
                    break
        assert await ledger.count() == 0


async def test_stream_after_one_that_was_left_asks_again(path: Path) -> None:
    """What was left early is asked again, and then kept."""
    endpoint = ScriptedEndpoint(TEXT)
    async with Ledger(path) as ledger:
        profiler = JointProfiler(endpoint, ledger=ledger)
        async with profiler.stream(USER, ITEM) as events:
            await anext(events)
        for _ in range(2):
            await _streamed(profiler)
    assert len(endpoint.calls) == 2


# Sharing


async def test_many_tasks_share_one_ledger(path: Path) -> None:
    """Tasks that write and read at once lose nothing."""
    async with Ledger(path) as ledger:

        async def work(number: int) -> None:
            await put(ledger, f"d{number}", Completion(f"text {number}"))
            kept = await ledger.get(f"d{number}")
            assert kept == Completion(f"text {number}")

        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(work, number)
        assert await ledger.count() == 50


async def test_two_ledgers_on_one_file(path: Path) -> None:
    """What one ledger writes, another on the same file reads at once."""
    async with Ledger(path) as ours, Ledger(path) as theirs:
        assert await theirs.count() == 0
        await put(ours)
        assert await theirs.get("d") == Completion(TEXT)


async def test_several_ledgers_write_to_one_new_file(path: Path) -> None:
    """Ledgers that open and fill one new file at the same time lose nothing."""
    ledgers = [Ledger(path) for _ in range(6)]

    async def fill(ledger: Ledger, name: int) -> None:
        for number in range(5):
            await put(ledger, f"{name}.{number}")

    async with anyio.create_task_group() as tasks:
        for name, ledger in enumerate(ledgers):
            tasks.start_soon(fill, ledger, name)
    assert await ledgers[0].count() == 30
    for ledger in ledgers:
        await ledger.aclose()


@pytest.mark.parametrize("first", ["asyncio", "trio"])
@pytest.mark.parametrize("second", ["asyncio", "trio"])
def test_one_ledger_in_two_event_loops(path: Path, first: str, second: str) -> None:
    """A ledger that one event loop left open serves the next, of either kind."""
    ledger = Ledger(path)
    anyio.run(put, ledger, backend=first)
    assert anyio.run(ledger.get, "d", backend=second) == Completion(TEXT)
    anyio.run(ledger.aclose, backend=second)


async def test_closed_ledger_opens_again(path: Path) -> None:
    """A ledger that was closed, even twice, is opened by its next use."""
    ledger = Ledger(path)
    await put(ledger)
    await ledger.aclose()
    await ledger.aclose()
    assert await ledger.count() == 1
    await ledger.aclose()


async def test_closed_ledger_leaves_one_file(path: Path) -> None:
    """After closing, all that was kept is in the one file."""
    async with Ledger(path) as ledger:
        await put(ledger)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


async def test_file_is_made_by_the_first_use(path: Path) -> None:
    """Making a ledger touches no file."""
    async with Ledger(path):
        pass
    assert not await anyio.Path(path).exists()


@pytest.mark.parametrize("kind", [str, Path])
async def test_path_as_text_or_path(path: Path, kind: type[str] | type[Path]) -> None:
    """A path may be a str or a PathLike, and shows in the repr."""
    ledger = Ledger(kind(path))
    assert repr(ledger) == f"Ledger({str(path)!r})"


async def test_cancelled_put_still_writes(path: Path) -> None:
    """A generation that was paid for is kept, even where the caller is cancelled meanwhile."""
    async with Ledger(path) as ledger:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await put(ledger)
        assert await ledger.count() == 1


async def test_cancelled_profile_is_kept_once_it_came(path: Path) -> None:
    """A caller cancelled on the arrival of the completion finds it in the ledger afterwards."""

    class Cancelling(ScriptedEndpoint):
        async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
            completion = await super().generate(messages, sampling)
            scope.cancel()
            return completion

    async with Ledger(path) as ledger:
        with anyio.CancelScope() as scope:
            await JointProfiler(Cancelling(TEXT), ledger=ledger).profile(USER, ITEM)
        assert await ledger.count() == 1


# What cannot be used


def _text_file(folder: Path) -> Path:
    path = folder / "notes.txt"
    path.write_text("This is no database. " * 100)
    return path


def _other_database(folder: Path) -> Path:
    path = folder / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE generations (name TEXT)")
    connection.close()
    return path


UNUSABLE = {
    "not a database": _text_file,
    "another database": _other_database,
    "directory missing": lambda folder: folder / "missing" / "ledger.db",
    "a directory": lambda folder: folder,
    "NUL in its name": lambda folder: folder / "a\0b",
    "a lone surrogate in its name": lambda folder: folder / "\ud800",
}
each_unusable = pytest.mark.parametrize("make", UNUSABLE.values(), ids=UNUSABLE)


@each_unusable
@pytest.mark.parametrize("use", [put, lambda ledger: ledger.get("d")], ids=["put", "get"])
async def test_unusable_file_is_named(tmp_path: Path, make: Any, use: Any) -> None:
    """A file that cannot be a ledger raises LedgerError with its path."""
    path = make(tmp_path)
    with pytest.raises(LedgerError, match=re.escape(repr(str(path)))):
        await use(Ledger(path))


@each_unusable
async def test_unusable_file_costs_no_request(tmp_path: Path, make: Any) -> None:
    """Where the ledger cannot be read, the endpoint is not asked for what could not be kept."""
    endpoint = ScriptedEndpoint(TEXT)
    with pytest.raises(LedgerError):
        await JointProfiler(endpoint, ledger=Ledger(make(tmp_path))).profile(USER, ITEM)
    assert endpoint.calls == []


async def test_unusable_file_is_left_alone(tmp_path: Path) -> None:
    """A file that is no ledger is not written to."""
    path = _text_file(tmp_path)
    before = path.read_bytes()
    with pytest.raises(LedgerError):
        await put(Ledger(path))
    assert path.read_bytes() == before


async def test_unusable_file_is_closed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where opening fails half-way the connection is closed, of which Python 3.13 would warn."""
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def remember(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        opened.append(connect(*args, **kwargs))
        return opened[-1]

    monkeypatch.setattr("sqlite3.connect", remember)
    with pytest.raises(LedgerError):
        await Ledger(_text_file(tmp_path)).count()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened[0].execute("SELECT 1")


UNREADABLE = ["{oops", '{"text": "x"}', "[]", '{"text": "x", "usage": {"odd": 1}, "logprobs": []}']


@pytest.mark.parametrize("row", UNREADABLE)
async def test_row_that_cannot_be_read_is_named(path: Path, row: str) -> None:
    """A row that holds no completion is the ledger's fault: LedgerError with path and digest."""
    async with Ledger(path) as ledger:
        await put(ledger)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE generations SET completion = ?", (row,))
    async with Ledger(path) as ledger:
        with pytest.raises(LedgerError, match=f"{re.escape(repr(str(path)))}: the row of d "):
            await ledger.get("d")


async def test_read_only_file_is_named(read_only_path: Path) -> None:
    """A file that may not be written raises LedgerError with its path."""
    with pytest.raises(LedgerError, match=re.escape(repr(str(read_only_path)))):
        await put(Ledger(read_only_path))


async def test_pairs_fail_with_the_ledger(tmp_path: Path) -> None:
    """In a bulk run an unusable ledger is the error of each pair, not a crash."""
    profiler = JointProfiler(ScriptedEndpoint(TEXT), ledger=Ledger(tmp_path))
    assert {type(outcome.error) for outcome in await profile_all(profiler, 3)} == {LedgerError}


def test_completion_has_no_field_that_the_ledger_forgets() -> None:
    """The fields that the round trip covers are all there are."""
    assert {field.name for field in attrs.fields(Completion) if field.eq} == {
        "text",
        "finish_reason",
        "model",
        "usage",
        "logprobs",
        "reasoning",
    }
