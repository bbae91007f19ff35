"""Forgetting a user: every generation whose prompt showed them goes, every other stays, and the file holds no trace."""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path

import attrs
import pytest
from evaluations import prepared, tools
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from duet import (
    Completion,
    CompletionError,
    ConfigurationError,
    CueExtractor,
    CuePrompt,
    Cues,
    EndpointRejected,
    Example,
    Interaction,
    Item,
    JointProfiler,
    JointPrompt,
    LeakageReward,
    Ledger,
    LedgerError,
    LLMRecommender,
    NextItemReward,
    RatingReward,
    RewardEnv,
    Sampling,
    User,
)
from duet.testing import ScriptedEndpoint, completion_text
from duet_train.baselines import IndependentProfiler
from duet_train.choice import choose
from duet_train.dataset import training_rows
from duet_train.group_maker import GroupMaker
from duet_train.methods import METHODS, build
from duet_train.settings import Settings as TrainingSettings

pytestmark = pytest.mark.anyio

SECRET = "Zyzzyva-9931"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def put(ledger: Ledger, digest: str, users: list[str], text: str = "text") -> Awaitable[None]:
    return ledger.put(digest, Completion(text), model="m", messages=[{"role": "user", "content": text}], users=users)


def pair(user: str, *others: str) -> tuple[User, Item]:
    rows = [Interaction(user=other, item="i", rating=4.0, review=f"{SECRET} by {other}") for other in others]
    mine = Interaction(user=user, item="x", rating=3.0, review=f"{SECRET} by {user}")
    return User(user, [mine]), Item("i", rows, title="An item")


def raw(path: Path) -> bytes:
    """Every byte of the ledger's files."""
    return b"".join(file.read_bytes() for file in sorted(path.parent.glob(path.name + "*")))


async def test_own_generations_go(path: Path) -> None:
    """What was made for a user is not found any more, and its number is told."""
    async with Ledger(path) as ledger:
        await put(ledger, "a", ["ann"])
        await put(ledger, "b", ["bob"])
        assert await ledger.forget("ann") == 1
        assert await ledger.get("a") is None
        assert await ledger.get("b") is not None


async def test_prompts_that_showed_the_user_go(path: Path) -> None:
    """A profile for another user goes too, if its prompt showed a review of the one who is forgotten."""
    async with Ledger(path) as ledger:
        profiler = JointProfiler(ScriptedEndpoint([completion_text()] * 30), ledger=ledger)
        for user, others in (("ann", ("bob",)), ("cid", ("bob",)), ("cid", ("dan",))):
            await profiler.profile(*pair(user, *others))
        assert await ledger.forget("bob") == 2
        assert await ledger.count() == 1


async def test_rows_beyond_the_prompt_do_not_count(path: Path) -> None:
    """Only rows that entered the prompt make a generation somebody's."""
    async with Ledger(path) as ledger:
        prompt = JointPrompt(evidence_limit=1)
        profiler = JointProfiler(ScriptedEndpoint([completion_text()] * 30), prompt=prompt, ledger=ledger)
        await profiler.profile(*pair("ann", "bob", "cid"))
        assert await ledger.forget("bob") == 0
        assert await ledger.forget("cid") == 1


async def test_given_cues_are_everybodys(path: Path) -> None:
    """Cues that are given may be made from any of the evidence, so whoever wrote it is in a prompt that shows them."""
    async with Ledger(path) as ledger:
        profiler = JointProfiler(
            ScriptedEndpoint(completion_text()), prompt=JointPrompt(evidence_limit=1), ledger=ledger
        )
        cues = Cues("likes maps", f"{SECRET} by bob")
        await profiler.profile(*pair("ann", "bob", "cid"), cues=cues)
        assert await ledger.forget("bob") == 1
        assert f"{SECRET} by bob".encode() not in raw(path)


async def test_without_evidence_only_the_user_counts(path: Path) -> None:
    """A prompt that shows no evidence is nobody's but the user's."""
    async with Ledger(path) as ledger:
        prompt = JointPrompt(evidence_limit=0)
        profiler = JointProfiler(ScriptedEndpoint([completion_text()] * 30), prompt=prompt, ledger=ledger)
        await profiler.profile(*pair("ann", "bob"))
        assert await ledger.forget("bob") == 0
        assert await ledger.forget("ann") == 1


async def test_cues_and_ratings_are_somebodys_too(path: Path) -> None:
    """Cues and predictions for a user go with the profiles, and so do those that evidence of the user went into."""
    async with Ledger(path) as ledger:
        cues = completion_text(CuePrompt().schema)
        await CueExtractor(ScriptedEndpoint([cues]), ledger=ledger).extract(*pair("ann", "bob"))
        recommender = LLMRecommender(ScriptedEndpoint(["<rating>4.00</rating>"]), mode="decimal", ledger=ledger)
        await recommender.predict(*pair("ann", "bob"), None)
        assert await ledger.forget("bob") == 2


async def test_streamed_profiles_are_somebodys_too(path: Path) -> None:
    """A profile that was streamed goes as one that was awaited."""
    async with Ledger(path) as ledger:
        profiler = JointProfiler(ScriptedEndpoint([completion_text()] * 30), ledger=ledger)
        async with profiler.stream(*pair("ann", "bob")) as events:
            await events.get_final_profile()
        assert await ledger.forget("bob") == 1


async def test_average_of_all_is_everybodys(path: Path) -> None:
    """Where the prompt states the average of all evidence, all who rated are in it."""
    async with Ledger(path) as ledger:
        prompt = JointPrompt(evidence_limit=1, averages="all")
        await JointProfiler(ScriptedEndpoint(completion_text()), prompt=prompt, ledger=ledger).profile(
            *pair("ann", "bob", "cid")
        )
        assert await ledger.forget("bob") == 1


async def test_one_side_is_nobody_elses(path: Path) -> None:
    """A prompt of the user alone is not the reviewers', and one of the item alone not the user's."""
    async with Ledger(path) as ledger:
        await IndependentProfiler(ScriptedEndpoint([completion_text()] * 2), ledger=ledger).profile(*pair("ann", "bob"))
        assert await ledger.forget("ann") == 1
        assert await ledger.forget("bob") == 1


async def test_rewards_are_somebodys_too(path: Path) -> None:
    """What a reward was made from goes with either of those whose interactions are in the profile."""
    user, item = pair("ann", "bob")
    completion = completion_text(user_profile=f"{SECRET} by ann")
    async with Ledger(path) as ledger:
        rating = RatingReward(LLMRecommender(ScriptedEndpoint("<rating>4</rating>"), mode="decimal", ledger=ledger))
        choice = NextItemReward(ScriptedEndpoint("A"), items=[item, Item("j", title="Other")], ledger=ledger)
        reward = await RewardEnv([rating, choice]).score(completion, Example(user, item, 4.0))
        assert reward.error is None
        assert await ledger.forget("bob") == 2
        assert f"{SECRET} by ann".encode() not in raw(path)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("10h", "template")])
@pytest.mark.parametrize("gone", ["ann", "bob"])
async def test_every_method_of_an_evaluation_forgets(path: Path, name: str, gone: str) -> None:
    """Whichever method wrote, with whatever success, nothing that the user wrote is left."""
    endpoint = ScriptedEndpoint(lambda messages, sampling: "1: dice, maps\n2: trains, birds")
    async with Ledger(path) as ledger:
        profiler = build(name, attrs.evolve(tools(path.parent, endpoint), ledger=ledger))
        with suppress(CompletionError):
            await profiler.profile(*pair("ann", "bob"))
        assert await ledger.count() >= 1
        await ledger.forget(gone)
        assert f"{SECRET} by {gone}".encode() not in raw(path)
        assert gone.encode() not in raw(path)


async def test_chosen_items_are_somebodys_too(path: Path) -> None:
    """A choice by the profile of a user goes with the user."""
    async with Ledger(path) as ledger:
        with suppress(EndpointRejected):
            sampling = Sampling(max_tokens=1)
            await choose(ScriptedEndpoint("A"), "words", ["x", "y"], sampling=sampling, ledger=ledger, users=["ann"])
        assert await ledger.forget("ann") == 1


async def test_explored_groups_are_somebodys_too(path: Path) -> None:
    """The samples of a group go with the user that they were written for."""
    settings = TrainingSettings(rows=1)
    (row,) = training_rows(prepared(path.parent / "data"), settings, seed=0)
    async with Ledger(path) as ledger:
        maker = GroupMaker(
            {"one": ScriptedEndpoint([completion_text()] * 3)},
            lambda schema: RewardEnv([LeakageReward()], schema=schema),
            ledger,
            arms=[("one", 1.0)] * 3,
            sampling=Sampling(),
            seed=0,
            constrained=False,
            concurrency=2,
        )
        await maker.group(row)
        assert await ledger.forget(row.example.user.id) == 3


async def test_no_trace_is_left_in_the_files(path: Path) -> None:
    """No byte of the file or of its log holds what the forgotten user wrote, while the ledger is still open."""
    async with Ledger(path) as ledger:
        profiler = JointProfiler(ScriptedEndpoint([completion_text()] * 30), ledger=ledger)
        for number in range(30):
            await profiler.profile(*pair("ann" if number % 2 else f"user {number}", f"other {number}"))
        assert f"{SECRET} by ann".encode() in raw(path)
        await ledger.forget("ann")
        assert f"{SECRET} by ann".encode() not in raw(path)
        assert b"ann" not in raw(path)
        assert f"{SECRET} by user 2".encode() in raw(path)


async def test_one_id_is_not_several(path: Path) -> None:
    """A plain string would be recorded letter by letter, so it is refused: before anything is paid, and on keeping."""
    endpoint = ScriptedEndpoint("text")
    async with Ledger(path) as ledger:
        with pytest.raises(ConfigurationError, match=r"users must be several ids, as in \[user.id\]"):
            await ledger.generate(endpoint, [{"role": "user", "content": "x"}], Sampling(), users="ann")
        with pytest.raises(ConfigurationError, match="users must be several ids"):
            await ledger.put("a", Completion("text"), model="m", messages=[], users="ann")
        assert await ledger.count() == 0
    assert endpoint.calls == []


async def test_unknown_user_costs_nothing(path: Path) -> None:
    """To forget somebody who was never there deletes nothing."""
    async with Ledger(path) as ledger:
        await put(ledger, "a", ["ann"])
        assert await ledger.forget("nobody") == 0
        assert await ledger.count() == 1


async def test_wildcards_are_plain_letters(path: Path) -> None:
    """An id that looks like a pattern forgets itself alone."""
    async with Ledger(path) as ledger:
        for digest, user in (("a", "%"), ("b", "_"), ("c", "x'; DROP TABLE generations; --"), ("d", "ann")):
            await put(ledger, digest, [user])
        assert await ledger.forget("%") == 1
        assert await ledger.forget("x'; DROP TABLE generations; --") == 1
        assert await ledger.count() == 2


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.sets(st.sampled_from("abcd"), max_size=3), max_size=8), gone=st.sampled_from("abcd"))
async def test_all_of_those_and_nothing_else(
    rows: list[set[str]], gone: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whoever stands in which prompts: exactly the generations with the user go."""
    async with Ledger(tmp_path_factory.mktemp("ledger") / "ledger.sqlite") as ledger:
        for number, users in enumerate(rows):
            await put(ledger, str(number), sorted(users))
        assert await ledger.forget(gone) == sum(gone in users for users in rows)
        left = [number for number in range(len(rows)) if await ledger.get(str(number)) is not None]
        assert left == [number for number, users in enumerate(rows) if gone not in users]


async def test_another_reader_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another process reads the file, its log cannot be emptied: that is an error, and a second call mends it."""
    import sqlite3

    monkeypatch.setattr("duet._ledger_file._BUSY_SECONDS", 0.05)
    async with Ledger(path) as ledger:
        await put(ledger, "a", ["ann"])
        other = sqlite3.connect(path)
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM generations").fetchone()
        with pytest.raises(LedgerError):
            await ledger.forget("ann")
        other.close()
        await ledger.forget("ann")
        assert await ledger.count() == 0


async def test_versions_are_kept(path: Path) -> None:
    """A generation that was made anew does not take the place of the one before."""
    async with Ledger(path) as ledger:
        for text in ("first", "second"):
            await put(ledger, "a", [], text)
        assert [one.text for one in await ledger.versions("a")] == ["first", "second"]
