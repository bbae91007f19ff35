"""The events: what there is, that all of it is documented, what is in it, and what silence costs."""

from __future__ import annotations

import ast
import logging
import re
import subprocess
import sys
import timeit
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from wires import serving

from duet import (
    Budget,
    BudgetExceeded,
    Completion,
    EndpointUnavailable,
    Example,
    HTTPEndpoint,
    Interaction,
    Item,
    JointProfiler,
    Ledger,
    LedgerError,
    LimitedEndpoint,
    LLMRecommender,
    RatingReward,
    RewardEnv,
    Sampling,
    User,
    rank,
)
from duet._log import DEBUG, INFO, hears
from duet.testing import Answer, ConstantRecommender, ScriptedEndpoint, completion_text

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[1]
IRREGULAR = {"made"}

PRIVATE = "Zyzzyva-4417"
USER = User(f"user-{PRIVATE}", [Interaction(user=f"user-{PRIVATE}", item="x", rating=3.0, review=PRIVATE)])
ITEM = Item(f"item-{PRIVATE}", title=f"Title {PRIVATE}")
TEXT = completion_text(user_profile=f"likes {PRIVATE}")
RATING = "<rating>4.00</rating>"


def calls() -> Iterator[tuple[str, str, set[str]]]:
    """Name, level and fields of each event in the source; fields that are put in by a function are left out."""
    for path in sorted((ROOT / "src" / "duet").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and (match := re.fullmatch(r"log\(\)\.(\w+)", ast.unparse(node.func))):
                fields = {word.arg for word in node.keywords if word.arg is not None}
                yield ast.literal_eval(node.args[0]), match[1], fields


def documented() -> dict[str, tuple[str, set[str]]]:
    """Level and fields of each event in the table of the docs."""
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+\.\w+)` \| (\w+) \| ([^|]+) \|", page, re.M)
    return {name: (level, set(re.findall(r"`(\w+)`", fields))) for name, level, fields in rows}


def test_every_event_is_in_the_table() -> None:
    """The table has each event of the source at its level, and no other."""
    assert {name: level for name, level, _ in calls()} == {name: level for name, (level, _) in documented().items()}


def test_fields_of_events_are_in_the_table() -> None:
    """No field that the source gives an event is missing in the table."""
    table = documented()
    assert {name: fields - table[name][1] for name, _, fields in calls() if fields - table[name][1]} == {}


@pytest.mark.parametrize("name", sorted({name for name, _, _ in calls()}))
def test_events_are_called_noun_and_what_happened(name: str) -> None:
    """An event is named by a noun and what was done to it."""
    noun, _, verb = name.partition(".")
    assert noun.isalpha()
    assert verb.endswith("ed") or verb in IRREGULAR or verb == "forgotten"


# Each of them, once


async def _pairs(endpoint: Any, folder: Path) -> None:
    async with Ledger(folder / "a.sqlite") as ledger:
        profiler = JointProfiler(endpoint, ledger=ledger)
        async with profiler.profile_many([(USER, ITEM)] * 2, concurrency=1) as outcomes:
            assert len([outcome async for outcome in outcomes]) == 2


async def profiled(folder: Path) -> None:
    await _pairs(ScriptedEndpoint(Completion(TEXT, model="policy-v1")), folder)


async def failed(folder: Path) -> None:
    await _pairs(ScriptedEndpoint(EndpointUnavailable("down")), folder)


async def retried(folder: Path) -> None:
    answers = [Answer(status=503, headers={"retry-after": "0"}), Answer(TEXT)]
    async with serving(answers) as server, HTTPEndpoint(server.base_url, "fake") as endpoint:
        await JointProfiler(endpoint).profile(USER, ITEM)


async def _ranked(recommender: Any) -> None:
    profiler = JointProfiler(ScriptedEndpoint(TEXT))
    async with rank(USER, [ITEM], profiler=profiler, recommender=recommender) as candidates:
        assert len([candidate async for candidate in candidates]) == 1


async def rated(folder: Path) -> None:
    await _ranked(ConstantRecommender(4.0))


async def unrated(folder: Path) -> None:
    await _ranked(LLMRecommender(ScriptedEndpoint(PRIVATE), mode="decimal"))


async def _scored(answer: str) -> None:
    env = RewardEnv([RatingReward(LLMRecommender(ScriptedEndpoint(answer), mode="decimal"))])
    await env.score_many([TEXT, PRIVATE], [Example(USER, ITEM, 4.0)] * 2)


async def scored(folder: Path) -> None:
    await _scored(RATING)


async def unscored(folder: Path) -> None:
    await _scored(PRIVATE)


async def exceeded(folder: Path) -> None:
    endpoint = LimitedEndpoint(ScriptedEndpoint(TEXT), budget=Budget(requests=0))
    with pytest.raises(BudgetExceeded):
        await endpoint.generate([{"role": "user", "content": PRIVATE}], Sampling())


async def unwritten(folder: Path) -> None:
    with pytest.raises(LedgerError):
        await Ledger(folder).put("d", Completion(PRIVATE), model="m", messages=[], users=[PRIVATE])


async def forgotten(folder: Path) -> None:
    async with Ledger(folder / "b.sqlite") as ledger:
        await ledger.put("d", Completion(PRIVATE), model="m", messages=[], users=[PRIVATE])
        await ledger.forget(PRIVATE)


HAPPENINGS: dict[str, Callable[[Path], Awaitable[None]]] = {
    "pair.profiled": profiled,
    "pair.failed": failed,
    "call.retried": retried,
    "candidate.rated": rated,
    "candidate.failed": unrated,
    "prediction.made": scored,
    "prediction.failed": unscored,
    "reward.scored": scored,
    "budget.exceeded": exceeded,
    "ledger.opened": forgotten,
    "write.failed": unwritten,
    "user.forgotten": forgotten,
}


def test_every_event_happens_here() -> None:
    """The tests below cover the table."""
    assert HAPPENINGS.keys() == documented().keys()


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What an event brought along."""
    usual = vars(logging.makeLogRecord({})).keys() | {"message", "asctime"}
    return {key: value for key, value in vars(record).items() if key not in usual}


@pytest.mark.parametrize("name", HAPPENINGS)
async def test_event_is_written_with_its_fields(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An event comes at its level with the fields of the table, and says nothing of users, items or texts."""
    caplog.set_level(logging.DEBUG, "duet")
    await HAPPENINGS[name](tmp_path)
    records = [record for record in caplog.records if record.name == "duet"]
    found = [record for record in records if record.getMessage() == name]
    level, fields = documented()[name]
    assert found
    assert {record.levelname.lower() for record in found} == {level}
    assert {frozenset(fields_of(record)) for record in found} == {frozenset(fields)}
    assert PRIVATE not in "".join(repr(vars(record)) for record in records)


async def test_pair_says_what_it_took(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The event of a pair has its place, model and tokens, and whether they were paid for now."""
    caplog.set_level(logging.INFO, "duet")
    await profiled(tmp_path)
    first, second = (fields_of(record) for record in caplog.records if record.name == "duet")
    assert (first["index"], first["model"], first["from_ledger"]) == (0, "policy-v1", False)
    assert (second["index"], second["from_ledger"]) == (1, True)
    assert first["seconds"] >= 0


# Silence


SILENT = """
import sys
import anyio
from pathlib import Path
from duet import Example, Item, JointProfiler, RatingReward, RewardEnv, User, rank
from duet.testing import ConstantRecommender, ScriptedEndpoint, completion_text

async def main():
    pair, profiler = (User("u"), Item("i")), JointProfiler(ScriptedEndpoint(completion_text()))
    async with profiler.profile_many([pair]) as outcomes:
        assert [outcome.error async for outcome in outcomes] == [None]
    await RewardEnv([RatingReward(ConstantRecommender(4.0))]).score(completion_text(), Example(*pair, 4.0))

anyio.run(main)
print("structlog" in sys.modules)
"""


def test_nothing_is_imported_for_nobody() -> None:
    """Where all goes well and nobody listens, structlog is not even imported."""
    done = subprocess.run([sys.executable, "-c", SILENT], capture_output=True, text=True, check=True)  # noqa: S603 - our own interpreter
    assert done.stdout.strip() == "False"


def test_silence_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Asking whether anybody listens takes less than two microseconds, at every level that is off."""
    caplog.set_level(logging.WARNING, "duet")
    for level in (DEBUG, INFO):
        assert not hears(level)
        best = min(timeit.repeat(lambda level=level: hears(level), number=1000, repeat=20))  # type: ignore[misc]
        assert best / 1000 < 2e-6
