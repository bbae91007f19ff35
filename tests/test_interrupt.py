"""Ctrl-C during bulk work: over within a second or so, nothing torn, and the next run asks only for what is missing."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest
from commands import started
from cores import waited_for_a_core
from evaluations import prepared

from duet.testing import Answer, FakeServer, Request, completion_text

pytestmark = [pytest.mark.faults, pytest.mark.serial]

SECONDS = 2.0
PAIRS, CONCURRENCY = 24, 8
TEXT = completion_text()


def answer(request: Request) -> Answer:
    """A rating for the recommender, else a profile."""
    return Answer("4") if "You predict" in request.json["messages"][0]["content"] else Answer(TEXT)


@attrs.define
class Patience:
    """Answers so many requests and lets all others wait, until it is told to answer those too."""

    left: int

    def __call__(self, request: Request) -> Answer:
        self.left -= 1
        return answer(request) if self.left >= 0 else Answer(fault="hang")


def interrupted(words: list[str], when: Callable[[], bool]) -> None:
    """Interrupt a command as soon as something holds: it ends soon, with 130 and one word."""
    with started(words) as child:
        until = time.monotonic() + 40
        while not when():
            assert child.poll() is None, child.communicate()
            assert time.monotonic() < until
            time.sleep(0.005)
        child.send_signal(signal.SIGINT)
        late = 0.0
        at, waited = time.monotonic(), waited_for_a_core(child.pid)
        while child.poll() is None:
            late = waited_for_a_core(child.pid) - waited
            time.sleep(0.005)
        assert time.monotonic() - at - late < SECONDS
        _, errors = child.communicate()
    assert (child.returncode, errors.splitlines()[-1]) == (130, "interrupted")
    assert "Traceback" not in errors


def kept(path: Path) -> list[str]:
    """What was asked, for each row of a ledger: all of them whole."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = connection.execute("SELECT messages, completion FROM generations").fetchall()
    assert all(json.loads(completion)["finish_reason"] == "stop" for _, completion in rows)
    return [messages for messages, _ in rows]


def messages_of(request: Request) -> str:
    """What is asked, as a ledger writes it."""
    return json.dumps(request.json["messages"], separators=(",", ":"))


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, all of them whole."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def finish(words: list[str], server: FakeServer, ledger: Path) -> None:
    """Run a command to its end: it asks for nothing that is kept."""
    before, first = set(kept(ledger)), len(server.requests)
    done = subprocess.run(words, capture_output=True, text=True, timeout=50, check=False)  # noqa: S603 - our own
    assert done.returncode == 0, done.stderr
    asked = [messages_of(request) for request in server.requests[first:]]
    assert asked
    assert before.isdisjoint(asked)


def profile_words(server: FakeServer, folder: Path) -> list[str]:
    """The command line of `profile` for pairs of its own."""
    made = [{"user_id": f"u{number}", "item_id": f"i{number}"} for number in range(PAIRS)]
    rows = [pair | {"rating": 3.0, "title": f"item {pair['item_id']}"} for pair in made]
    for name, values in (("pairs.jsonl", made), ("interactions.jsonl", rows)):
        (folder / name).write_text("".join(f"{json.dumps(value)}\n" for value in values))
    (folder / "items.jsonl").write_text(
        "".join(f"{json.dumps({'item_id': row['item_id'], 'title': row['title']})}\n" for row in rows)
    )
    command = [sys.executable, "-m", "duet", "profile", "--base-url", server.base_url, "--model", "fake"]
    files = [
        "--data",
        folder,
        "--pairs",
        folder / "pairs.jsonl",
        "--out",
        folder / "out",
        "--ledger",
        folder / "ledger",
    ]
    return [*command, *map(str, files), "--concurrency", str(CONCURRENCY)]


@pytest.mark.counted("interrupts")
@pytest.mark.parametrize("answered", [0, 5])
def test_interrupt_while_waiting(tmp_path: Path, answered: int) -> None:
    """What was answered is kept, what was in flight is not done, and the next run does that and no more."""
    patience = Patience(answered)
    with FakeServer(patience).run_in_thread() as server:
        words = profile_words(server, tmp_path)
        interrupted(words, lambda: server.in_flight == CONCURRENCY and len(lines(tmp_path / "out")) == answered)
        assert len(kept(tmp_path / "ledger")) == len(lines(tmp_path / "out")) == answered
        patience.left = 10**6
        finish(words, server, tmp_path / "ledger")
    assert sorted(line["index"] for line in lines(tmp_path / "out") if line["profile"]) == list(range(PAIRS))
    assert len(kept(tmp_path / "ledger")) == PAIRS


@pytest.mark.counted("interrupts")
def test_interrupt_while_busy(tmp_path: Path) -> None:
    """Interrupted among answers that are coming in: whatever was written is whole, and in the ledger."""

    def slow(request: Request) -> Answer:
        return Answer(TEXT, first_after=random.uniform(0.05, 0.1))

    with FakeServer(slow).run_in_thread() as server:
        words = profile_words(server, tmp_path)
        interrupted(words, lambda: len(lines(tmp_path / "out")) > 3)
        assert 3 < len(lines(tmp_path / "out")) <= len(kept(tmp_path / "ledger")) < PAIRS
        finish(words, server, tmp_path / "ledger")
    assert len(kept(tmp_path / "ledger")) == PAIRS


@pytest.mark.counted("interrupts")
@pytest.mark.timeout(120)
def test_interrupt_of_an_evaluation(tmp_path: Path) -> None:
    """`evaluate` keeps what was answered too, and goes on from there."""
    prepared(tmp_path / "data")
    patience = Patience(4)
    with FakeServer(patience).run_in_thread() as server:
        command = [sys.executable, "-m", "duet_train", "evaluate", "--base-url", server.base_url, "--model", "fake"]
        files = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
        words = [*command, *files, "--methods", "duet", "--mode", "integer", "--concurrency", "2"]
        ledger = tmp_path / "out" / "ledger.sqlite"
        interrupted(words, lambda: server.in_flight == 2)
        assert len(kept(ledger)) == 4
        assert not (tmp_path / "out" / "results.json").exists()
        patience.left = 10**6
        finish(words, server, ledger)
    assert (tmp_path / "out" / "results.json").exists()
