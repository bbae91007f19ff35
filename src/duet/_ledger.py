"""Every finished generation, kept in SQLite, so that work is resumed, cached and audited."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike, fspath
from typing import Any, Self, TypeVar

import anyio
import anyio.to_thread
import attrs

from duet._endpoint import Endpoint
from duet._errors import LedgerError
from duet._prompts import Message
from duet._records import Item, User
from duet._results import Completion, TokenLogprob, Usage
from duet._schema import ProfileSchema
from duet._settings import Sampling

T = TypeVar("T")

_BUSY_SECONDS = 10.0
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


class Ledger:
    """An append-only file of finished generations.

    A profiler or recommender that is given one asks the endpoint only for what is not in it. Malformed completions are
    kept too: a completion is never re-rolled in silence. Rows survive the death of the process as soon as the result
    was handed over. May be shared by any number of tasks; SQLite runs in a worker thread.

    Args:
        path: The file; it is made where it does not exist, its folder is not.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self._path = fspath(path)
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def __repr__(self) -> str:
        return f"Ledger({self._path!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the file; a later use opens it again."""
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._close)

    async def generate(
        self,
        endpoint: Endpoint,
        messages: Sequence[Message],
        sampling: Sampling,
        *,
        schema: ProfileSchema | None = None,
        users: Iterable[str] = (),
    ) -> Completion:
        """The generation from the ledger, or from the endpoint and then kept.

        Args:
            endpoint: What generates.
            messages: The prompt.
            sampling: How to sample.
            schema: The shape that is asked for, where there is one.
            users: Ids of all whose interactions the prompt shows, for `forget`.

        Raises:
            EndpointError: The infrastructure's fault; nothing is kept.
            LedgerError: The file cannot be read or written.
        """
        digest = digest_of(messages, endpoint.model, sampling, schema)
        kept = await self.get(digest)
        if kept is not None:
            return kept
        completion = await endpoint.generate(messages, sampling)
        await self.put(digest, completion, model=endpoint.model, messages=messages, users=users)
        return completion

    async def get(self, digest: str) -> Completion | None:
        """The latest generation under `digest`, or None.

        Args:
            digest: What it was put under; profilers and recommenders use a SHA-256, in hex, of all that determines it.

        Raises:
            LedgerError: The file cannot be read.
        """
        query = "SELECT completion FROM generations WHERE digest = ? ORDER BY id DESC LIMIT 1"
        row = await self._run(lambda connection: connection.execute(query, (digest,)).fetchone())
        return None if row is None else self._restored(digest, row[0])

    async def versions(self, digest: str) -> list[Completion]:
        """Every generation under `digest`, the oldest first.

        Args:
            digest: As for `get`.

        Raises:
            LedgerError: The file cannot be read.
        """
        query = "SELECT completion FROM generations WHERE digest = ? ORDER BY id"
        rows = await self._run(lambda connection: connection.execute(query, (digest,)).fetchall())
        return [self._restored(digest, row[0]) for row in rows]

    async def put(
        self,
        digest: str,
        completion: Completion,
        *,
        model: str,
        messages: Sequence[Message],
        users: Iterable[str] = (),
    ) -> None:
        """Append a generation. A cancelled caller waits for the row to be written.

        Args:
            digest: What to find it under; earlier rows under the same one stay in the file.
            completion: Kept whole, log-probabilities and reasoning included.
            model: The name that was asked for; the one that answered is in `completion`.
            messages: The prompt, kept for audits.
            users: Ids of all whose interactions the prompt shows, for `forget`.

        Raises:
            LedgerError: The file cannot be written.
        """
        row = (digest, time.time(), model, _dump(list(messages)), _dump(_fields(completion)))
        shown = sorted(set(users))
        with anyio.CancelScope(shield=True):
            await self._run(lambda connection: _append(connection, row, shown))

    async def forget(self, user: str) -> int:
        """Delete every generation whose prompt showed interactions of a user, and nothing else; how many they were.

        What they stood on in the file is overwritten: the log is emptied and the file written anew. Copies of the file,
        and what models have learnt, are beyond its reach.

        Args:
            user: Id of the user.

        Raises:
            LedgerError: The file cannot be written. Where another process has it open, the rows are gone but may still
                be in the log: call it again when that one is done.
        """
        deleted = 0
        with anyio.CancelScope(shield=True):
            deleted = await self._run(lambda connection: _forget(connection, user))
        return deleted  # noqa: RET504 - to a type checker a scope may swallow what happens in it

    async def count(self) -> int:
        """How many generations are kept."""
        (rows,) = await self._run(lambda connection: connection.execute("SELECT count(*) FROM generations").fetchone())
        return int(rows)

    def _restored(self, digest: str, text: str) -> Completion:
        try:
            return _restore(json.loads(text))
        except (ValueError, KeyError, TypeError) as exc:
            raise LedgerError(f"ledger {self._path!r}: the row of {digest} cannot be read: {exc!r}") from exc

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await anyio.to_thread.run_sync(self._locked, work)

    def _locked(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            with self._lock:
                if self._connection is None:
                    self._connection = _open(self._path)
                return work(self._connection)
        except (sqlite3.Error, ValueError) as exc:
            raise LedgerError(f"ledger {self._path!r}: {exc}") from exc

    def _close(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()


def digest_of(messages: Sequence[Message], model: str, sampling: Sampling, schema: ProfileSchema | None) -> str:
    """SHA-256, in hex, of everything that determines a generation: prompt, model or adapter, sampling, schema."""
    key = {
        "messages": list(messages),
        "model": model,
        "sampling": {name: _number(value) for name, value in attrs.asdict(sampling).items()},
        "schema": None if schema is None else attrs.asdict(schema),
    }
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()


def _number(value: object) -> object:
    """0 and 0.0 are one temperature."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


async def read_through(
    ledger: Ledger | None,
    endpoint: Endpoint,
    messages: Sequence[Message],
    sampling: Sampling,
    schema: ProfileSchema | None = None,
    users: Iterable[str] = (),
) -> Completion:
    """`Ledger.generate`, or the endpoint alone where there is no ledger."""
    if ledger is None:
        return await endpoint.generate(messages, sampling)
    return await ledger.generate(endpoint, messages, sampling, schema=schema, users=users)


def subjects(ledger: Ledger | None, user: User, item: Item, evidence_limit: int | None = None) -> set[str]:
    """Ids of all whose interactions a pair's prompt may show; none where no ledger wants to know."""
    if ledger is None or evidence_limit == 0:
        return set() if ledger is None else {user.id}
    return {user.id, *(row.user for row in item.evidence[-(evidence_limit or 0) :])}


def _open(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=_BUSY_SECONDS)
    try:
        _in_wal_mode(connection)
        for setting in ("PRAGMA synchronous = NORMAL", "PRAGMA secure_delete = ON"):
            connection.execute(setting)
        with _transaction(connection):
            for table in _TABLES:
                connection.execute(table)
    except BaseException:
        connection.close()
        raise
    return connection


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


def _append(connection: sqlite3.Connection, row: tuple[Any, ...], users: Sequence[str]) -> None:
    insert = "INSERT INTO generations (digest, created, model, messages, completion) VALUES (?, ?, ?, ?, ?)"
    with _transaction(connection):
        number = connection.execute(insert, row).lastrowid
        connection.executemany("INSERT INTO subjects VALUES (?, ?)", [(user, number) for user in users])


def _forget(connection: sqlite3.Connection, user: str) -> int:
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
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _dump(value: Any) -> str:
    # Escaped, since SQLite holds UTF-8 and a server may send half of a surrogate pair.
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))


def _fields(completion: Completion) -> dict[str, Any]:
    return attrs.asdict(completion, filter=lambda field, value: field.name != "from_ledger")


def _restore(fields: dict[str, Any]) -> Completion:
    usage = fields.pop("usage")
    logprobs = fields.pop("logprobs")
    return Completion(
        fields.pop("text"),
        usage=None if usage is None else Usage(**usage),
        logprobs=tuple(
            TokenLogprob(
                entry["token"], entry["logprob"], tuple((token, value) for token, value in entry["top_logprobs"])
            )
            for entry in logprobs
        ),
        from_ledger=True,
        **fields,
    )
