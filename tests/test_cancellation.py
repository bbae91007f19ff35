"""Cancelled wherever it waits: the cancellation passes through, nothing is left over, and the next call is served."""

from __future__ import annotations

import functools
import itertools
import json
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import attrs
import pytest
from leaks import nothing_left
from stepping import cancelled, counted_steps
from wires import MESSAGES

from duet import (
    Example,
    HTTPEndpoint,
    Item,
    JointProfiler,
    Ledger,
    LLMRecommender,
    Message,
    Outcome,
    RatingReward,
    RewardEnv,
    Sampling,
    User,
)
from duet.testing import Answer, FakeServer, Request, completion_text

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_leaks")]

TEXT = completion_text()
RATING = "4"
MANY = 3


@attrs.frozen
class Desk:
    """What a call works with; `name` is new for each, so that nothing is in the ledger before."""

    endpoint: HTTPEndpoint
    ledger: Ledger
    name: str

    @property
    def pairs(self) -> list[tuple[User, Item]]:
        return [(User(f"{self.name}-{number}"), Item("i", title=f"{self.name} {number}")) for number in range(MANY)]

    @property
    def recommender(self) -> LLMRecommender:
        return LLMRecommender(self.endpoint, mode="integer", recent=1, ledger=self.ledger)


async def profile(desk: Desk) -> list[str]:
    """`JointProfiler.profile`."""
    return [(await JointProfiler(desk.endpoint, ledger=desk.ledger).profile(*desk.pairs[0])).completion]


async def stream(desk: Desk) -> list[str]:
    """`JointProfiler.stream`."""
    async with JointProfiler(desk.endpoint, ledger=desk.ledger).stream(*desk.pairs[0]) as events:
        return [(await events.get_final_profile()).completion]


def text_of(outcome: Outcome) -> str:
    """The completion, or what is in its place."""
    return outcome.profile.completion if outcome.profile else repr(outcome.error)


async def profile_many(desk: Desk) -> list[str]:
    """`JointProfiler.profile_many`."""
    profiler = JointProfiler(desk.endpoint, ledger=desk.ledger)
    async with profiler.profile_many(desk.pairs, concurrency=2) as outcomes:
        return [text_of(outcome) async for outcome in outcomes]


async def generate(desk: Desk) -> list[str]:
    """`Ledger.generate`."""
    messages: list[Message] = [*MESSAGES, {"role": "user", "content": desk.name}]
    return [(await desk.ledger.generate(desk.endpoint, messages, Sampling(), users=["u"])).text]


async def predict(desk: Desk) -> list[str]:
    """`LLMRecommender.predict`."""
    return [f"{(await desk.recommender.predict(*desk.pairs[0], None)).value:g}"]


async def score_many(desk: Desk) -> list[str]:
    """`RewardEnv.score_many`."""
    env = RewardEnv([RatingReward(desk.recommender, concurrency=2)])
    examples = [Example(user, item, 4.0) for user, item in desk.pairs]
    texts = [completion_text(user_profile=f"{desk.name} {number}") for number in range(MANY)]
    rewards = await env.score_many(texts, examples)
    return [f"{reward.rating.value:g}" if reward.rating else repr(reward.error) for reward in rewards]


CALLS: dict[Callable[[Desk], Awaitable[list[str]]], list[str]] = {
    profile: [TEXT],
    stream: [TEXT],
    profile_many: [TEXT] * MANY,
    generate: [TEXT],
    predict: [RATING],
    score_many: [RATING] * MANY,
}


def answer(request: Request) -> Answer:
    """A rating for the recommender, which alone is greedy, else a profile."""
    return Answer(RATING if request.json.get("temperature") == 0 else TEXT)


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    """In a thread of its own, so that every task of the event loop is one of the caller's."""
    with FakeServer(answer).run_in_thread() as server:
        yield server


def texts_kept(path: Path) -> list[str]:
    """The completions in a ledger's file, each of them with a user beside it."""
    query = "SELECT completion FROM generations JOIN subjects ON generation = id GROUP BY id"
    with sqlite3.connect(path) as connection:
        rows = connection.execute(query).fetchall()
        assert connection.execute("SELECT count(*) FROM generations").fetchone() == (len(rows),)
    connection.close()
    return [json.loads(row)["text"] for (row,) in rows]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
async def test_cancelled_at_every_point(
    call: Callable[[Desk], Awaitable[list[str]]],
    server: FakeServer,
    tmp_path: Path,
    tally: Callable[[str, int, int], None],
) -> None:
    """Wherever it waits, a call can be cancelled: nothing is left, rows are whole, and a second call is served."""
    tried = survived = 0
    path = tmp_path / "ledger.sqlite"
    try:
        async with Ledger(path) as ledger:
            await ledger.count()
            with counted_steps() as steps:
                for number in itertools.count(1):
                    name = f"{call.__name__} {number}"
                    async with nothing_left(), HTTPEndpoint(server.base_url, "fake") as endpoint:
                        desk = Desk(endpoint, ledger, name)
                        found = await cancelled(steps, number, functools.partial(call, desk))
                        reached = steps.came()
                        tried += reached
                        assert found in (None, CALLS[call])
                        assert sorted(await call(desk)) == CALLS[call]
                    assert texts_kept(path) == CALLS[call] * number
                    survived += reached
                    if not reached:
                        break
    finally:
        tally("cancellations", tried, survived)
    assert tried > 5
