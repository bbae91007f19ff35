"""The clients side by side: they take turns, so whatever else the machine does falls on all of them."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clients import CLIENTS
from server import Server

CHUNKS = 256
PACED_CHUNKS = 64
WARM = 16  # calls before those that are measured
SECONDS = 10  # no call is begun later
OFTEN = ("floor", "ours", "aiohttp")  # in every round; AsyncOpenAI in three; the others, which have no goal, in one


@dataclass(frozen=True)
class Load:
    """What every client does.

    Args:
        name: In the results.
        what: "stream" or "reward".
        concurrency: Calls at once.
        calls: In one turn of a fast client.
        options: For the mock server.
        chunks: In each answer.
        kept: Whether every call finds a connection open. If not, most are opened on the way, as in the burst of rewards
            of a training step: between two steps a server closes what is idle.
    """

    name: str
    what: str
    concurrency: int
    calls: int
    options: tuple[str, ...] = ()
    chunks: int = 1
    kept: bool = False


LOADS = (
    Load("stream 256", "stream", 256, 512, (f"chunks{CHUNKS}",), CHUNKS),
    Load("paced 256", "stream", 256, 256, (f"chunks{PACED_CHUNKS}", "pace40"), PACED_CHUNKS),
    Load("reward 64", "reward", 64, 1024),
    Load("reward 256", "reward", 256, 1024),
    Load("reward 1024", "reward", 1024, 3072),
    Load("reward 64, kept", "reward", 64, 1024, kept=True),
    Load("reward 256, kept", "reward", 256, 1024, kept=True),
    Load("reward 1024, kept", "reward", 1024, 3072, kept=True),
)


@dataclass
class Costs:
    """CPU microseconds a call, by load and client, one value a round; and why there is none.

    Args:
        values: None where a round failed.
        missing: By client, what is not installed.
        failures: By load and client, what went wrong.
    """

    values: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def add(self, load: Load, client: str, result: dict[str, Any]) -> None:
        """Note the figures of one turn."""
        cost = result["cpu"] / result["calls"] * 1e6 if "cpu" in result else None
        self.values.setdefault(load.name, {}).setdefault(client, []).append(cost)
        if "missing" in result:
            self.missing[client] = result["missing"]
        if "failed" in result:
            self.failures[f"{load.name}: {client}"] = result["failed"]

    def median(self, load: str, client: str) -> float | None:
        """The cost in the middle."""
        found = [cost for cost in self.values[load].get(client, []) if cost is not None]
        return statistics.median(found) if found else None

    def ratio(self, client: str, load: str, to_client: str, to_load: str) -> float | None:
        """What a call costs in relation to another: the middle of the ratios of each round."""
        rounds = zip(self.values[load].get(client, []), self.values[to_load].get(to_client, []), strict=False)
        found = [mine / other for mine, other in rounds if mine is not None and other is not None]
        return statistics.median(found) if found else None


def compare(server: Server, rounds: int) -> Costs:
    """Round by round every load, and every client in turn."""
    costs = Costs()
    with ExitStack() as stack:
        workers = {name: stack.enter_context(_worker(name)) for name in CLIENTS}
        for turn in range(rounds):
            for load in LOADS:
                for name, process in workers.items():
                    if name not in costs.missing and turn < _turns(name, rounds, load):
                        costs.add(load, name, _ask(process, _task(server, load, name)))
            print(".", end="", file=sys.stderr, flush=True)
    return costs


def _turns(name: str, rounds: int, load: Load) -> int:
    if name in OFTEN:
        return rounds
    return 0 if load.kept else 3 if name == "AsyncOpenAI" else 1


def _task(server: Server, load: Load, name: str) -> dict[str, Any]:
    json_option = ("json",) if CLIENTS[name].streams_json else ()
    # A burst's share of new connections must be the same for all that are set against each other.
    whole = name in OFTEN or (name == "AsyncOpenAI" and load.what == "reward")
    calls = load.calls if whole else max(load.concurrency, load.calls // 4)
    return {
        "what": load.what,
        "url": server.url(*load.options, *json_option),
        "concurrency": load.concurrency,
        "calls": calls,
        "warm": load.concurrency if load.kept else WARM,
        "seconds": SECONDS,
    }


@contextmanager
def _worker(name: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(Path(__file__).with_name("worker.py")), name]
    pipe, quiet = subprocess.PIPE, subprocess.DEVNULL  # what goes wrong is told in the results
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=quiet, text=True) as process:  # noqa: S603 - our own
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()  # the worker ends with its input


def _ask(process: subprocess.Popen[str], task: dict[str, Any]) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    print(json.dumps(task), file=process.stdin, flush=True)
    line = process.stdout.readline()
    found: dict[str, Any] = json.loads(line) if line else {"failed": "the process ended"}
    return found
