"""Bulk runs killed at random: no acknowledged result is lost or made twice, and few requests are sent again.

`DUET_KILLS=200` kills as often; a few times by default.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from duet.testing import Answer, FakeServer, completion_text

pytestmark = [pytest.mark.faults, pytest.mark.serial]

KILLS = int(os.environ.get("DUET_KILLS", "4"))
PAIRS = 12 * KILLS + 20
CONCURRENCY = 8

CHILD = """
import sys
import anyio
from duet import HTTPEndpoint, Item, JointProfiler, Ledger, User

async def main(url, path, pairs, concurrency):
    made = [(User(f"u{number}"), Item(f"i{number}", title=f"item {number}")) for number in range(int(pairs))]
    async with HTTPEndpoint(url, "fake") as endpoint, Ledger(path) as ledger:
        profiler = JointProfiler(endpoint, ledger=ledger)
        async with profiler.profile_many(made, concurrency=int(concurrency)) as outcomes:
            async for outcome in outcomes:
                assert outcome.profile is not None, outcome.error
                print(outcome.index, outcome.profile.from_ledger, flush=True)

anyio.run(main, *sys.argv[1:])
"""


def start(server: FakeServer, path: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", CHILD, server.base_url, str(path), str(PAIRS), str(CONCURRENCY)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own interpreter


def acknowledged(child: subprocess.Popen[str], *, stop_after: int | None) -> set[int]:
    """What the child said it has; it is killed after so many new results, in the middle of whatever it does then."""
    assert child.stdout is not None
    seen, new = set(), 0
    for line in child.stdout:
        index, _, kept = line.partition(" ")
        seen.add(int(index))
        new += kept.strip() == "False"
        if stop_after is not None and new >= stop_after:
            time.sleep(random.uniform(0, 0.01))
            child.send_signal(signal.SIGKILL)
            break
    # What had been said before the kill counts as said.
    seen |= {
        int(line.partition(" ")[0]) for line in child.stdout.read().splitlines() if line.endswith(("True", "False"))
    }
    child.wait()
    child.stdout.close()
    return seen


def digests(path: Path) -> list[tuple[str]]:
    """Of all rows of a ledger."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT digest FROM generations").fetchall()


@pytest.mark.timeout(60 + 15 * KILLS)
def test_killed_runs_lose_nothing(tmp_path: Path, tally: Callable[..., None]) -> None:
    """However often it is killed: a pair is kept once, what was acknowledged stays, and little is sent again."""
    path = tmp_path / "ledger.sqlite"
    had: set[int] = set()
    survived = 0
    try:
        with FakeServer(Answer(completion_text())).run_in_thread() as server:
            for _ in range(KILLS):
                had |= acknowledged(start(server, path), stop_after=random.randint(1, 20))
                rows = digests(path)
                assert len(rows) == len(set(rows)) >= len(had)
                survived += 1
            last = start(server, path)
            assert acknowledged(last, stop_after=None) == set(range(PAIRS))
            assert last.returncode == 0
            assert len(server.requests) <= PAIRS + KILLS * CONCURRENCY
        rows = digests(path)
        assert len(rows) == len(set(rows)) == PAIRS
    except AssertionError:
        survived = min(survived, KILLS - 1)
        raise
    finally:
        tally("kills", KILLS, survived)
