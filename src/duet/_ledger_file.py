"""The ledger's file: its tables, what is done in one transaction, and what its errors mean."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

_BUSY_SECONDS = 10.0
# By SQLite's primary result code.
_MEANINGS = {
    sqlite3.SQLITE_BUSY: "another process has kept it locked for too long; try again when that one is done",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; nothing was written to it: move it away, and save what can be read",
    sqlite3.SQLITE_FULL: "the disk is full; what was written before is intact",
    sqlite3.SQLITE_NOTADB: "the file is no ledger, or its beginning is damaged; nothing was written to it",
    sqlite3.SQLITE_READONLY: "the file, or the folder it is in, may not be written",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened: is its folder there, and may it be read and written?",
    sqlite3.SQLITE_IOERR: "the disk failed, or a limit on the size of files is reached",
}
_NAMES = {"generations", "generations_by_digest", "subjects", "subjects_by_generation"}
_TABLES = (
    """
    CREATE TABLE IF NOT EXISTS generations (
        id INTEGER PRIMARY KEY,
        digest TEXT NOT NULL,
        created REAL NOT NULL,
        model TEXT NOT NULL,
        messages TEXT NOT NULL,
        completion TEXT NOT NULL
    ) STRICT
    """,
    "CREATE INDEX IF NOT EXISTS generations_by_digest ON generations (digest, id)",
    """
    CREATE TABLE IF NOT EXISTS subjects (
        user TEXT NOT NULL,
        generation INTEGER NOT NULL,
        PRIMARY KEY (user, generation)
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE INDEX IF NOT EXISTS subjects_by_generation ON subjects (generation)",
)


def open_file(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=_BUSY_SECONDS)
    try:
        found = _contents(connection)
        _in_wal_mode(connection)
        for setting in ("PRAGMA synchronous = NORMAL", "PRAGMA secure_delete = ON"):
            connection.execute(setting)
        if not found >= _NAMES:
            with _transaction(connection):
                for table in _TABLES:
                    connection.execute(table)
    except BaseException:
        connection.close()
        raise
    return connection


def be_patient(connection: sqlite3.Connection, wait: bool) -> None:
    """Wait for the locks of others, or fail at once."""
    connection.execute(f"PRAGMA busy_timeout = {round(1000 * _BUSY_SECONDS) if wait else 0}")


def _contents(connection: sqlite3.Connection) -> set[str]:
    """Names of tables and indices; none in a new file. What is something else is not touched."""
    found = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
    if found and "generations" not in found:
        raise sqlite3.DatabaseError("a database, but no ledger; nothing was written to it")
    return found


def _in_wal_mode(connection: sqlite3.Connection) -> None:
    """Change the mode; SQLite does not wait for others with this, so where several open a new file, try again."""
    patient_until = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as exc:
            if "locked" not in str(exc) or time.monotonic() > patient_until:
                raise
            time.sleep(0.01)


def append(connection: sqlite3.Connection, row: tuple[Any, ...], users: Sequence[str]) -> None:
    insert = "INSERT INTO generations (digest, created, model, messages, completion) VALUES (?, ?, ?, ?, ?)"
    with _transaction(connection):
        number = connection.execute(insert, row).lastrowid
        connection.executemany("INSERT INTO subjects VALUES (?, ?)", [(user, number) for user in users])


def forget(connection: sqlite3.Connection, user: str) -> int:
    with _transaction(connection):
        shown = "SELECT generation FROM subjects WHERE user = ?"
        deleted = connection.execute(f"DELETE FROM generations WHERE id IN ({shown})", (user,)).rowcount  # noqa: S608
        connection.execute(f"DELETE FROM subjects WHERE generation IN ({shown})", (user,))  # noqa: S608
    connection.execute("VACUUM")
    (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise sqlite3.OperationalError("another process has the file open, so its log could not be emptied")
    return int(deleted)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # some errors have SQLite roll back by itself
            connection.execute("ROLLBACK")
        raise


def meaning(exc: Exception) -> str:
    """What SQLite says, and what to make of it."""
    meaning = _MEANINGS.get(_code(exc))
    return str(exc) if meaning is None else f"{exc}: {meaning}"


def is_of_the_file(exc: Exception) -> bool:
    """Whether the file was in the way, which may pass, and not the row."""
    return type(exc) in (sqlite3.OperationalError, sqlite3.DatabaseError)


def is_locked(exc: Exception) -> bool:
    """Whether another process was in the way."""
    return _code(exc) == sqlite3.SQLITE_BUSY


def _code(exc: Exception) -> int:
    """SQLite's primary result code, 0 where there is none."""
    return int(getattr(exc, "sqlite_errorcode", 0)) & 0xFF
