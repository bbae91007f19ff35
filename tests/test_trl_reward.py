"""TRLReward: a RewardEnv as TRL calls it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet import (
    DuetError,
    EndpointUnavailable,
    Example,
    Item,
    JointProfile,
    JointPrompt,
    LengthReward,
    ProfileSchema,
    Rating,
    RatingError,
    RatingReward,
    RewardEnv,
    RewardTerm,
    TermScore,
    User,
)
from duet.testing import completion_text
from duet_train.dataset import Row
from duet_train.rewards import FORM, TRLReward

pytestmark = pytest.mark.anyio

SCHEMA = ProfileSchema()
GOOD = completion_text(user_profile="likes jazz", item_profile="a jazz record")
OTHER = completion_text(user_profile="likes rock", item_profile="a jazz record")


def row(number: int, rating: float = 4.0, schema: ProfileSchema = SCHEMA) -> Row:
    example = Example(User(f"u{number}"), Item(f"i{number}", title="A record"), rating)
    messages = JointPrompt(schema=schema).render(example.user, example.item)
    return Row(id=number, example=example, messages=messages, schema=schema)


class Reader:
    """A recommender that predicts 4 for jazz and 2 else, and can be down for its first calls."""

    def __init__(self, failures: int = 0) -> None:
        self.calls = 0
        self.failures = failures

    async def predict(self, user: User, item: Item, profile: JointProfile | None) -> Rating:
        self.calls += 1
        if self.calls <= self.failures:
            raise EndpointUnavailable("down")
        assert profile is not None
        assert profile.user is not None
        return Rating(4.0 if "jazz" in profile.user.text else 2.0)


Make = Callable[..., tuple[TRLReward, list[str]]]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Makes a reward, which is closed in the end, and a list of what happens to its env."""
    made: list[TRLReward] = []

    def one(
        reader: Reader, rows: Sequence[Row], terms: Sequence[RewardTerm] = (), **options: Any
    ) -> tuple[TRLReward, list[str]]:
        happened: list[str] = []

        @asynccontextmanager
        async def envs() -> AsyncIterator[Callable[[ProfileSchema], RewardEnv]]:
            happened.append("opened")
            yield lambda schema: RewardEnv([RatingReward(reader), *terms], schema=schema)
            happened.append("closed")

        made.append(TRLReward(envs, {one.id: one for one in rows}, pause=0.0, **options))
        return made[-1], happened

    yield one
    for reward in made:
        await reward.aclose()


def said(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


async def test_rewards_come_in_order(make: Make) -> None:
    """Each completion has the reward of its own example."""
    reward, _ = make(Reader(), [row(1), row(2, rating=2.0)])
    assert await reward.reward([], said(GOOD, GOOD, OTHER), example=[1, 2, 2]) == [1.0, 0.5, 1.0]


async def test_plain_texts_are_taken_too(make: Make) -> None:
    """A completion may be a text instead of chat messages."""
    reward, _ = make(Reader(), [row(1)])
    assert await reward.reward([], [GOOD], example=[1]) == [1.0]


async def test_malformed_costs_the_penalty(make: Make) -> None:
    """A completion that is no profile has the reward −1, and the recommender is not asked."""
    reader = Reader()
    reward, _ = make(reader, [row(1)])
    assert await reward.reward([], said("no profile"), example=[1]) == [-1.0]
    assert reader.calls == 0


async def test_equal_completions_are_scored_once(make: Make) -> None:
    """A group that writes the same text again and again costs one prediction, in this step and in the next."""
    reader = Reader()
    reward, _ = make(reader, [row(1)])
    for _ in range(2):
        assert await reward.reward([], said(GOOD, GOOD, GOOD), example=[1, 1, 1]) == [1.0] * 3
    assert reader.calls == 1


async def test_nothing_is_remembered_where_it_may_change(make: Make) -> None:
    """Where an embedder learns, a reward is made anew in the next step, and still once for equal completions of one."""
    reader = Reader()
    reward, _ = make(reader, [row(1)], cached=False)
    for _ in range(2):
        await reward.reward([], said(GOOD, GOOD), example=[1, 1])
    assert reader.calls == 2


async def test_same_text_for_another_example_is_another_reward(make: Make) -> None:
    """The cache knows the example."""
    reader = Reader()
    reward, _ = make(reader, [row(1), row(2, rating=2.0)])
    await reward.reward([], said(GOOD), example=[1])
    assert await reward.reward([], said(GOOD), example=[2]) == [0.5]


@attrs.frozen
class BatchSize:
    """A term that says how many stand in the batch."""

    name: str = "size"
    weight: float = 1.0
    in_batch: bool = True

    async def score(self, profiles: Sequence[JointProfile], examples: Sequence[Example]) -> list[float]:
        return [float(len(profiles))] * len(profiles)


async def test_terms_of_a_batch_see_all_of_it(make: Make) -> None:
    """Where a term looks at the batch, equal completions are all in it, and nothing is remembered."""
    reward, _ = make(Reader(), [row(1)], [BatchSize()])
    assert await reward.reward([], said(GOOD, GOOD), example=[1, 1]) == [3.0, 3.0]
    assert await reward.reward([], said(GOOD), example=[1]) == [2.0]


async def test_batch_is_asked_again_whole(make: Make) -> None:
    """Where a term looks at the batch, one that failed is asked for again with all others of it."""
    reward, _ = make(Reader(failures=1), [row(1), row(2)], [BatchSize()], attempts=2)
    assert await reward.reward([], said(GOOD, GOOD), example=[1, 2]) == [3.0, 3.0]


async def test_fault_is_none_and_never_zero(make: Make) -> None:
    """A recommender that is down gives no reward for its completion, and the others keep theirs."""
    reward, _ = make(Reader(failures=1), [row(1), row(2)], attempts=1)
    values = await reward.reward([], said(GOOD, GOOD), example=[1, 2])
    assert sorted(values, key=str) == [1.0, None]


async def test_fault_is_tried_again(make: Make) -> None:
    """A reward that failed is asked for again, and the one that came is not."""
    reader = Reader(failures=1)
    reward, _ = make(reader, [row(1), row(2)], attempts=2)
    assert await reward.reward([], said(GOOD, GOOD), example=[1, 2]) == [1.0, 1.0]
    assert reader.calls == 3


async def test_attempts_are_bounded(make: Make) -> None:
    """A recommender that stays down is asked so often and no more."""
    reader = Reader(failures=100)
    reward, _ = make(reader, [row(1)], attempts=3, max_failed_share=1.0)
    assert await reward.reward([], said(GOOD), example=[1]) == [None]
    assert reader.calls == 3


async def test_run_stops_above_the_share(make: Make) -> None:
    """When more of a step's rewards fail than allowed, the run ends with the first fault's words."""
    reward, _ = make(Reader(failures=100), [row(1)], attempts=1, max_failed_share=0.5)
    with pytest.raises(DuetError, match="1 of 1 rewards of this step have no value"):
        await reward.reward([], said(GOOD), example=[1])


async def test_env_is_opened_by_the_first_call(make: Make) -> None:
    """Nothing is opened before TRL asks, since a client belongs to the loop that asks."""
    reward, happened = make(Reader(), [row(1)])
    assert happened == []
    for _ in range(2):
        await reward.reward([], said(GOOD), example=[1])
    assert happened == ["opened"]


async def test_env_is_closed(make: Make) -> None:
    """Closing the reward closes what the env stands on."""
    reward, happened = make(Reader(), [row(1)])
    await reward.reward([], said(GOOD), example=[1])
    await reward.aclose()
    assert happened == ["opened", "closed"]


async def test_what_was_scored_is_kept_for_the_record(make: Make) -> None:
    """Each completion can be written down with its example, its reward and its tokens."""
    reward, _ = make(Reader(), [row(1)])
    await reward.reward([], said(GOOD), example=[1], completion_ids=[[5, 6, 7]])
    (scored,) = reward.scored
    assert (scored.row.id, scored.completion, scored.reward.value, scored.tokens) == (1, GOOD, 1.0, 3)


async def test_rows_of_two_shapes_stand_in_one_batch(make: Make) -> None:
    """Sides that are written independently are each read by their own schema."""
    user_only = ProfileSchema(sides=("user",))
    text = completion_text(user_only, user_profile="likes jazz")
    reward, _ = make(Reader(), [row(1), row(2, schema=user_only)])
    assert await reward.reward([], said(text, GOOD, text), example=[2, 1, 1]) == [1.0, 1.0, -1.0]


async def test_terms_one_by_one(make: Make) -> None:
    """As functions of their own, terms have their own values, and the completions are scored once for all."""
    reader = Reader()
    reward, _ = make(reader, [row(1)], [LengthReward(max_chars=1)])
    rating, length, form = reward.functions(["rating", "length"])
    completions = said(GOOD, "no profile")
    columns: dict[str, Any] = {"prompts": [], "completions": completions, "example": [1, 1]}
    assert await rating(**columns) == [1.0, None]
    assert await length(**columns) == [-1.0, None]
    assert await form(**columns) == [0.0, -1.0]
    assert reader.calls == 1
    assert [one.__name__ for one in (rating, length, form)] == ["rating", "length", FORM]


@attrs.frozen
class Planned:
    """A term that does what the user's profile says of it: "1" is a value, "nothing" none, else it fails."""

    name: str
    weight: float = 1.0

    async def score(self, profiles: Sequence[JointProfile], examples: Sequence[Example]) -> list[TermScore]:
        return [self._planned(profile.user.text if profile.user else "") for profile in profiles]

    def _planned(self, text: str) -> TermScore:
        plan = dict(part.split("=") for part in text.split())[self.name]
        if plan in ("1", "nothing"):
            return TermScore(1.0 if plan == "1" else None)
        return TermScore(None, error=RatingError("unreadable") if plan == "unreadable" else EndpointUnavailable("down"))


PLANS = st.sampled_from(("1", "nothing", "unreadable", "down"))
COMPLETIONS = st.one_of(
    st.just("no profile"),
    st.builds("first={} second={}".format, PLANS, PLANS).map(
        lambda plan: completion_text(user_profile=plan, item_profile="a record")
    ),
)


@given(st.lists(COMPLETIONS, min_size=1, max_size=8), st.booleans())
async def test_reward_without_a_value_has_none_in_any_column(texts: list[str], strict_paper: bool) -> None:
    """Whichever of its terms failed, a reward of None is None in every column; a penalty is −1 in the form alone."""

    @asynccontextmanager
    async def envs() -> AsyncIterator[Callable[[ProfileSchema], RewardEnv]]:
        terms = [Planned("first"), Planned("second")]
        yield lambda schema: RewardEnv(terms, schema=schema, strict_paper=strict_paper)

    reward = TRLReward(envs, {1: row(1)}, attempts=1, max_failed_share=1.0)
    completions, example = said(*texts), [1] * len(texts)
    values = await reward.reward([], completions, example=example)
    columns = [await one([], completions, example=example) for one in reward.functions(["first", "second"])]
    await reward.aclose()
    expected = {None: (None, None, None), -1.0: (None, None, -1.0), 2.0: (1.0, 1.0, 0.0)}
    assert list(zip(*columns, strict=True)) == [expected[value] for value in values]
