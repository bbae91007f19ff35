"""A ledger whose file is damaged, locked or full: one typed error that names it, and what was kept stays."""

from __future__ import annotations

import random
import re
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from duet import Completion, Item, JointProfiler, Ledger, LedgerError, Outcome, User
from duet._ledger_file import open_file
from duet.testing import ScriptedEndpoint, completion_text

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

ROWS = 40
PAGE = 4096
LONG = "the same words again " * 60  # a row does not fit into what is left of a page

# The fixtures are names and folders alone, so nothing is shared between the examples.
on_each_backend = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


async def filled(path: Path) -> dict[str, Completion]:
    """A ledger of many pages, closed; what is in it."""
    rows = {f"d{number}": Completion(f"{number} {LONG}") for number in range(ROWS)}
    async with Ledger(path) as ledger:
        for digest, completion in rows.items():
            await keep(ledger, digest, completion)
    return rows


async def keep(ledger: Ledger, digest: str, completion: Completion = Completion(LONG)) -> None:
    """Put one row."""
    await ledger.put(digest, completion, model="m", messages=[{"role": "user", "content": digest}], users=["ann"])


async def profile_all(profiler: JointProfiler, count: int) -> list[Outcome]:
    """The outcomes of a bulk run."""
    pairs = [(User("u"), Item(f"i{number}", title=f"T{number}")) for number in range(count)]
    async with profiler.profile_many(pairs, concurrency=4) as outcomes:
        return [outcome async for outcome in outcomes]


def names(path: Path) -> str:
    """A pattern for the start of an error that names a file."""
    return "^ledger " + re.escape(repr(str(path))) + ": "


# Damaged


def _beginning(data: bytearray) -> None:
    data[:16] = b"not this format."


def _half(data: bytearray) -> None:
    del data[len(data) // 2 :]


def _torso(data: bytearray) -> None:
    del data[50:]


def _torn(data: bytearray) -> None:
    del data[-PAGE // 2 :]


def _schema(data: bytearray) -> None:
    place = data.index(b"CREATE TABLE generations")
    data[place : place + 6] = b"\xff" * 6


def _middle(data: bytearray) -> None:
    for page in range(2, len(data) // PAGE, 2):
        data[page * PAGE : (page + 1) * PAGE] = random.Random(page).randbytes(PAGE)


DAMAGES: dict[str, Callable[[bytearray], None]] = {
    "beginning": _beginning,
    "half": _half,
    "torso": _torso,
    "torn": _torn,
    "schema": _schema,
    "middle": _middle,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_damaged_file_is_named_and_left_alone(tmp_path: Path, damage: Callable[[bytearray], None]) -> None:
    """Each row is what it was, or its error names the file; reading changes no byte."""
    path = tmp_path / "ledger.sqlite"
    rows = await filled(path)
    data = bytearray(path.read_bytes())
    damage(data)
    path.write_bytes(data)
    said: list[str] = []
    async with Ledger(path) as ledger:
        for digest, completion in rows.items():
            try:
                assert await ledger.get(digest) == completion
            except LedgerError as exc:
                said.append(str(exc))
    assert said
    assert all(re.match(names(path), sentence) for sentence in said)
    assert path.read_bytes() == bytes(data)


@given(places=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=20))
@on_each_backend
async def test_flipped_bytes_raise_nothing_else(places: list[tuple[int, int]]) -> None:
    """Whatever bytes are changed, reading and writing end well or in a LedgerError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.sqlite"
        rows = await filled(path)
        data = bytearray(path.read_bytes())
        for place, change in places:
            data[place % len(data)] ^= change
        path.write_bytes(data)
        async with Ledger(path) as ledger:
            for digest in rows:
                with suppress(LedgerError):
                    await ledger.get(digest)
                    await keep(ledger, "new")


async def test_mended_file_serves_again(tmp_path: Path) -> None:
    """A file that was saved elsewhere and put back holds all rows."""
    path = tmp_path / "ledger.sqlite"
    rows = await filled(path)
    saved = path.read_bytes()
    path.write_bytes(b"not this format." + saved[16:])
    with pytest.raises(LedgerError, match="no ledger, or its beginning is damaged"):
        await keep(Ledger(path), "new")
    path.write_bytes(saved)
    async with Ledger(path) as ledger:
        assert {digest: await ledger.get(digest) for digest in rows} == rows


async def test_database_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    """A database that is no ledger gets no tables, not even another journal."""
    path = tmp_path / "theirs.sqlite"
    theirs = sqlite3.connect(path)
    theirs.execute("CREATE TABLE names (name TEXT)")
    theirs.close()
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="no ledger"):
        await keep(Ledger(path), "d")
    assert path.read_bytes() == before


# Locked


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a lock for a moment only."""
    monkeypatch.setattr("duet._ledger_file._BUSY_SECONDS", 0.05)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the one lock for writing, as another process would."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.close()


@pytest.mark.usefixtures("impatient")
async def test_locked_file_is_named(tmp_path: Path) -> None:
    """A file that another process keeps locked cannot be written, which the error says; it can be read meanwhile."""
    path = tmp_path / "ledger.sqlite"
    rows = await filled(path)
    with locked(path):
        async with Ledger(path) as ledger:
            assert await ledger.get("d1") == rows["d1"]
            with pytest.raises(LedgerError, match=names(path) + "database is locked: another process"):
                await keep(ledger, "new")


@pytest.mark.usefixtures("impatient")
async def test_row_that_met_a_lock_is_written_afterwards(tmp_path: Path) -> None:
    """What could not be written is in the file after the next use, once and before anything else."""
    path = tmp_path / "ledger.sqlite"
    async with Ledger(path) as ledger:
        await keep(ledger, "first")
        with locked(path):
            for _ in range(2):
                with pytest.raises(LedgerError):
                    await keep(ledger, "second")
        assert await ledger.get("second") == Completion(LONG)
        assert await ledger.count() == 3


@pytest.mark.usefixtures("impatient")
async def test_row_that_met_a_lock_is_written_on_closing(tmp_path: Path) -> None:
    """Closing writes what could not be written before."""
    path = tmp_path / "ledger.sqlite"
    async with Ledger(path) as ledger:
        await keep(ledger, "first")
        with locked(path), pytest.raises(LedgerError):
            await keep(ledger, "second")
    async with Ledger(path) as ledger:
        assert await ledger.get("second") == Completion(LONG)


@pytest.mark.usefixtures("impatient")
async def test_row_that_met_a_lock_is_forgotten_too(tmp_path: Path) -> None:
    """A user who is forgotten is not brought back by what was still waiting to be written."""
    path = tmp_path / "ledger.sqlite"
    async with Ledger(path) as ledger:
        await keep(ledger, "first")
        with locked(path), pytest.raises(LedgerError):
            await keep(ledger, "second")
        assert await ledger.forget("ann") == 2
        assert await ledger.count() == 0


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> float:
    """Wait for a lock for so long, in seconds: much longer than anything else takes."""
    monkeypatch.setattr("duet._ledger_file._BUSY_SECONDS", 0.5)
    return 0.5


@pytest.mark.serial
async def test_all_who_meet_a_lock_wait_once(tmp_path: Path, patient: float) -> None:
    """Calls that meet a lock together wait for it together, and who is cancelled while they wait is gone with them."""
    path = tmp_path / "ledger.sqlite"
    async with Ledger(path) as ledger:
        await keep(ledger, "first")
        with locked(path):
            started = anyio.current_time()
            async with anyio.create_task_group() as tasks:
                for number in range(8):
                    tasks.start_soon(met_a_lock, ledger, number)
                await anyio.sleep(patient / 5)
                tasks.cancel_scope.cancel()
            took = anyio.current_time() - started
        assert await ledger.count() == 9
    assert patient * 0.9 < took < 2 * patient


async def met_a_lock(ledger: Ledger, number: int) -> None:
    """Put a row into a file that is locked, for a while at least."""
    with suppress(LedgerError):
        await keep(ledger, f"second {number}")


async def test_who_comes_after_a_lock_waits_anew(tmp_path: Path, patient: float) -> None:
    """A call made after another gave up waits for a lock of its own that is soon let go."""
    path = tmp_path / "ledger.sqlite"
    async with Ledger(path) as ledger:
        await keep(ledger, "first")
        async with anyio.create_task_group() as tasks:
            with locked(path):
                await met_a_lock(ledger, 1)
                tasks.start_soon(keep, ledger, "third")
                await anyio.sleep(patient / 5)
        assert await ledger.count() == 3


@pytest.mark.usefixtures("impatient")
async def test_reading_goes_on_while_rows_wait(tmp_path: Path) -> None:
    """With rows that wait for a lock, what the file holds is found, and nothing else is asked of an endpoint."""
    path = tmp_path / "ledger.sqlite"
    endpoint = ScriptedEndpoint(completion_text())
    async with Ledger(path) as ledger:
        profiler = JointProfiler(endpoint, ledger=ledger)
        had = await profile_all(profiler, 1)
        with locked(path):
            with pytest.raises(LedgerError):
                await keep(ledger, "waits")
            both = await profile_all(profiler, 2)
            with pytest.raises(LedgerError, match="locked"):
                await ledger.get("waits")
    assert {type(outcome.error) for outcome in both} == {type(None), LedgerError}
    assert [outcome.profile for outcome in both if outcome.profile] == [had[0].profile]
    assert len(endpoint.calls) == 1


async def test_waiting_calls_leave_the_threads_to_others(tmp_path: Path, patient: float) -> None:
    """However many calls wait for a lock, none of the application's limit of threads is theirs."""
    path = tmp_path / "ledger.sqlite"
    async with Ledger(path) as ledger, anyio.create_task_group() as tasks:
        await keep(ledger, "first")
        with locked(path):
            for number in range(50):
                tasks.start_soon(met_a_lock, ledger, number)
            await anyio.sleep(patient / 5)
            assert anyio.to_thread.current_default_thread_limiter().borrowed_tokens == 0


async def test_row_that_just_met_a_lock_is_forgotten_too(tmp_path: Path, patient: float) -> None:
    """A row is known to wait before anybody else may use the file, so to forget its user in that moment deletes it."""
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    await keep(ledger, "first")
    async with anyio.create_task_group() as tasks:
        with locked(path):
            tasks.start_soon(met_a_lock, ledger, 1)
            await anyio.sleep(patient / 5)
            time.sleep(2 * patient)  # noqa: ASYNC251 - the loop is not to hear of it yet
        forgetting = threading.Thread(target=anyio.run, args=(ledger.forget, "ann"))
        forgetting.start()
        forgetting.join()
    assert await ledger.count() == 0
    await ledger.aclose()


@pytest.mark.usefixtures("impatient")
async def test_row_that_cannot_be_kept_and_met_a_lock_is_in_nobodys_way(tmp_path: Path) -> None:
    """A row that no file could hold is tried once more after a lock, and then given up."""
    path = tmp_path / "ledger.sqlite"
    async with Ledger(path) as ledger:
        await keep(ledger, "first")
        with locked(path), pytest.raises(LedgerError, match="locked"):
            await keep(ledger, "half of a pair: \ud800")
        with pytest.raises(LedgerError, match="surrogates"):
            await ledger.count()
        assert await ledger.count() == 1


async def test_row_that_cannot_be_kept_is_in_nobodys_way(tmp_path: Path) -> None:
    """A row that no file could hold fails alone: the next one is kept."""
    async with Ledger(tmp_path / "ledger.sqlite") as ledger:
        with pytest.raises(LedgerError):
            await keep(ledger, "half of a pair: \ud800")
        await keep(ledger, "second")
        assert await ledger.count() == 1


# Full


class Disk:
    """Opens ledgers of so many pages at most."""

    def __init__(self, pages: int) -> None:
        self._pages = pages
        self._opened: list[sqlite3.Connection] = []

    def open(self, path: str) -> sqlite3.Connection:
        self._opened.append(open_file(path))
        self.grow(self._pages)
        return self._opened[-1]

    def grow(self, pages: int) -> None:
        self._opened[-1].execute(f"PRAGMA max_page_count = {pages}")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """A small disk for ledgers."""
    small = Disk(pages=20)
    monkeypatch.setattr("duet._ledger.open_file", small.open)
    return small


async def test_full_disk_is_named_and_loses_nothing(tmp_path: Path, disk: Disk) -> None:
    """A disk that is full is what the error says, and every row from before it is there."""
    path = tmp_path / "ledger.sqlite"
    async with Ledger(path) as ledger:
        full = pytest.raises(LedgerError, match=names(path) + "database or disk is full: the disk is full; ")
        with full:
            for number in range(ROWS):
                await keep(ledger, f"d{number}")
        kept = number
    other = sqlite3.connect(path)
    assert other.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert other.execute("SELECT digest FROM generations ORDER BY id").fetchall() == [(f"d{n}",) for n in range(kept)]
    other.close()
    assert kept


async def test_bulk_run_on_a_full_disk_pays_for_nothing_twice(tmp_path: Path, disk: Disk) -> None:
    """With a full disk no more than was under way is asked for; with room again the rest is, and nothing twice."""
    endpoint = ScriptedEndpoint(completion_text())
    async with Ledger(tmp_path / "ledger.sqlite") as ledger:
        profiler = JointProfiler(endpoint, ledger=ledger)
        first = await profile_all(profiler, ROWS)
        had = sum(outcome.profile is not None for outcome in first)
        asked = len(endpoint.calls)
        assert {type(outcome.error) for outcome in first} == {type(None), LedgerError}
        assert asked <= had + 4
        disk.grow(10_000)
        assert all(outcome.profile is not None for outcome in await profile_all(profiler, ROWS))
    assert asked < len(endpoint.calls) == ROWS


LIMITED = """
import resource, sys
import anyio
from duet import Completion, Ledger, LedgerError
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

async def main(path):
    ledger = Ledger(path)
    for number in range(1000):
        try:
            await ledger.put(f"d{number}", Completion("x" * 900), model="m", messages=[], users=[])
        except LedgerError as exc:
            print(number, exc)
            return

anyio.run(main, sys.argv[1])
"""


def test_limit_on_the_size_of_files_loses_nothing(tmp_path: Path) -> None:
    """Where the system refuses to let the file grow, that is one sentence, and what was kept is there."""
    path = tmp_path / "ledger.sqlite"
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=True)  # noqa: S603 - our own interpreter
    number, _, sentence = done.stdout.partition(" ")
    assert re.match(names(path), sentence)
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM generations").fetchone() == (int(number),)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    assert int(number) > 10
