"""Rewards after a kill: what a recommender said is in the ledger, so only the rest is asked for."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from evaluations import prepared

from duet import LedgerError
from duet.testing import Answer, FakeServer, completion_text
from duet_train.dataset import training_rows
from duet_train.recommenders import open_envs
from duet_train.rewards import TRLReward
from duet_train.settings import Settings

pytestmark = pytest.mark.anyio

BATCH, CONCURRENCY = 24, 4
RATING = "<rating>4.00</rating>"

CHILD = """
import sys
from contextlib import asynccontextmanager
import anyio
from duet import Example, HTTPEndpoint, Item, Ledger, LLMRecommender, ProfileSchema, RatingReward, RewardEnv, User
from duet.testing import completion_text
from duet_train.dataset import Row
from duet_train.rewards import TRLReward

async def main(url, path, batch, concurrency):
    @asynccontextmanager
    async def envs():
        async with HTTPEndpoint(url, "judge") as endpoint, Ledger(path) as ledger:
            recommender = LLMRecommender(endpoint, mode="decimal", ledger=ledger)
            yield lambda schema: RewardEnv([RatingReward(recommender, concurrency=int(concurrency))], schema=schema)

    examples = [Example(User(f"u{number}"), Item(f"i{number}"), 4.0) for number in range(int(batch))]
    schema = ProfileSchema()
    rows = {n: Row(id=n, example=example, messages=(), schema=schema) for n, example in enumerate(examples)}
    reward = TRLReward(envs, rows)
    completions = [completion_text(user_profile=f"user {number}") for number in rows]
    print(await reward.reward([None] * len(rows), completions, example=list(rows)))
    await reward.aclose()

anyio.run(main, *sys.argv[1:])
"""


def start(server: FakeServer, path: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", CHILD, server.base_url, str(path), str(BATCH), str(CONCURRENCY)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own interpreter


@pytest.mark.faults
@pytest.mark.serial
def test_batch_that_was_killed_asks_only_for_the_rest(tmp_path: Path) -> None:
    """After a kill in the middle of a batch of rewards, no answer that was kept is asked for again."""
    path = tmp_path / "ledger.sqlite"
    with FakeServer(Answer(RATING, fault="drip", pace=0.0001)).run_in_thread() as server:
        killed = start(server, path)
        while len(server.requests) < BATCH // 2:
            time.sleep(0.002)
        killed.send_signal(signal.SIGKILL)
        assert killed.communicate()[0] == ""
        asked = len(server.requests)
        connection = sqlite3.connect(path)
        (kept,) = connection.execute("SELECT count(*) FROM generations").fetchone()
        connection.close()
        assert asked - CONCURRENCY <= kept < BATCH
        again, _ = start(server, path).communicate()
        assert again.strip() == str([1.0] * BATCH)
        assert len(server.requests) == asked + BATCH - kept


def settings_for(server: FakeServer, data: Path, ledger: Path) -> Settings:
    judge = f"{server.base_url},judge"
    return Settings(data=str(data), rows=3, recommender=judge, recommender_mode="decimal", ledger=str(ledger))


async def scored(settings: Settings, data: Path) -> list[float | None]:
    """The rewards of three rows, of an env that is opened for them."""
    from duet_train.data.prepared import Prepared

    opened = Prepared.open(data)
    rows = {row.id: row for row in training_rows(opened, settings, seed=0)}
    reward = TRLReward(lambda: open_envs(settings, opened), rows)
    try:
        return await reward.reward([], [completion_text()] * len(rows), example=list(rows))
    finally:
        await reward.aclose()


async def test_setting_names_the_ledger_of_a_run(tmp_path: Path) -> None:
    """With `ledger` in its settings a run asks nothing that an earlier run was told."""
    data = prepared(tmp_path / "data").directory
    with FakeServer(Answer(RATING)).run_in_thread() as server:
        settings = settings_for(server, data, tmp_path / "rewards.sqlite")
        first = await scored(settings, data)
        asked = len(server.requests)
        assert await scored(settings, data) == first
    assert (len(server.requests), asked, len(first)) == (asked, 3, 3)


async def test_unusable_ledger_ends_the_run_at_once(tmp_path: Path) -> None:
    """A file that cannot be a ledger is refused where the env is opened, before anything is asked."""
    data = prepared(tmp_path / "data").directory
    with FakeServer(Answer(RATING)).run_in_thread() as server:
        with pytest.raises(LedgerError):
            await scored(settings_for(server, data, tmp_path), data)
    assert server.requests == []
