"""Every finished generation, kept in SQLite, so that work is resumed, cached and audited."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from os import PathLike, fspath
from typing import Any, Self, TypeVar
from weakref import WeakKeyDictionary

import anyio
import anyio.to_thread
import attrs
from anyio.lowlevel import RunVar

from duet._endpoint import Endpoint
from duet._errors import ConfigurationError, LedgerError
from duet._ledger_file import append, be_patient, forget, is_locked, is_of_the_file, meaning, open_file
from duet._log import DEBUG, INFO, hears, log
from duet._prompts import Message
from duet._records import Item, User
from duet._results import Completion, TokenLogprob, Usage
from duet._schema import ProfileSchema
from duet._settings import Sampling

T = TypeVar("T")
Row = tuple[tuple[Any, ...], Sequence[str]]

_THREADS = 4  # one works; with none behind it each call would also wait for a turn of the event loop
# Whose turn it is, by ledger, for each run of an event loop: who waits takes none of the application's threads.
_TURNS: RunVar[WeakKeyDictionary[Ledger, anyio.CapacityLimiter]] = RunVar("duet.ledger")


class Ledger:
    """An append-only file of finished generations.

    A profiler or recommender that is given one asks the endpoint only for what is not in it. Malformed completions are
    kept too: a completion is never re-rolled in silence. Rows survive the death of the process as soon as the result
    was handed over. May be shared by any number of tasks; SQLite runs in a worker thread.

    A generation that is finished and cannot be written, on a full disk for example, raises and is kept in memory. Until
    it is written, what the file holds is still found, and every other use raises before anything is asked of an
    endpoint, so nothing is paid for in vain.

    Args:
        path: The file, on a disk of this machine; it is made where it does not exist, its folder is not.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self._path = fspath(path)
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._unwritten: list[Row] = []
        self._gave_up = 0.0

    def __repr__(self) -> str:
        return f"Ledger({self._path!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the file; a later use opens it again."""
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._close, limiter=self._turn())

    async def generate(
        self,
        endpoint: Endpoint,
        messages: Sequence[Message],
        sampling: Sampling,
        *,
        schema: ProfileSchema | None = None,
        users: Iterable[str],
    ) -> Completion:
        """The generation from the ledger, or from the endpoint and then kept.

        Args:
            endpoint: What generates.
            messages: The prompt.
            sampling: How to sample.
            schema: The shape that is asked for, where there is one.
            users: Ids of all whose interactions the prompt shows or was made from, for `forget`.

        Raises:
            ConfigurationError: `users` is one string.
            EndpointError: The infrastructure's fault; nothing is kept.
            LedgerError: The file cannot be read or written.
        """
        _several(users)
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
        row = await self._run(partial(self._find, digest))
        return None if row is None else self._restored(digest, row[0])

    async def versions(self, digest: str) -> list[Completion]:
        """Every generation under `digest`, the oldest first.

        Args:
            digest: As for `get`.

        Raises:
            LedgerError: The file cannot be read.
        """
        query = "SELECT completion FROM generations WHERE digest = ? ORDER BY id"
        rows = await self._run(lambda connection: self._whole(connection).execute(query, (digest,)).fetchall())
        return [self._restored(digest, row[0]) for row in rows]

    async def put(
        self,
        digest: str,
        completion: Completion,
        *,
        model: str,
        messages: Sequence[Message],
        users: Iterable[str],
    ) -> None:
        """Append a generation. A cancelled caller waits for the row to be written.

        Args:
            digest: What to find it under; earlier rows under the same one stay in the file.
            completion: Kept whole, log-probabilities and reasoning included.
            model: The name that was asked for; the one that answered is in `completion`.
            messages: The prompt, kept for audits.
            users: Ids of all whose interactions the prompt shows or was made from, for `forget`.

        Raises:
            ConfigurationError: `users` is one string.
            LedgerError: The file cannot be written. The next use that needs more than the file holds tries again first.
        """
        row = (digest, time.time(), model, _dump(list(messages)), _dump(_fields(completion)))
        shown = sorted(set(_several(users)))
        with anyio.CancelScope(shield=True):
            await self._run(self._whole, (row, shown))

    async def forget(self, user: str) -> int:
        """Delete every generation whose prompt showed interactions of a user, and nothing else; how many they were.

        What they stood on in the file is overwritten: the log is emptied and the file written anew. Copies of the file,
        and what models have learnt, are beyond its reach. Calls under way for the user still land afterwards: end them
        first, or call it again.

        Args:
            user: Id of the user.

        Raises:
            LedgerError: The file cannot be written. Where another process has it open, the rows are gone but may still
                be in the log: call it again when that one is done.
        """
        deleted = 0
        with anyio.CancelScope(shield=True):
            deleted = await self._run(lambda connection: forget(self._whole(connection), user))
        if hears(INFO):
            log().info("user.forgotten", path=self._path, generations=deleted)
        return deleted

    async def count(self) -> int:
        """How many generations are kept."""
        query = "SELECT count(*) FROM generations"
        (rows,) = await self._run(lambda connection: self._whole(connection).execute(query).fetchone())
        return int(rows)

    def _restored(self, digest: str, text: str) -> Completion:
        try:
            return _restore(json.loads(text))
        except (ValueError, KeyError, TypeError) as exc:
            raise LedgerError(f"ledger {self._path!r}: the row of {digest} cannot be read: {exc!r}") from exc

    async def _run(self, work: Callable[[sqlite3.Connection], T], *rows: Row) -> T:
        locked = partial(self._locked, work, rows, time.monotonic())
        return await anyio.to_thread.run_sync(locked, limiter=self._turn())

    def _turn(self) -> anyio.CapacityLimiter:
        turns = _TURNS.get(None)
        if turns is None:
            turns = WeakKeyDictionary()
            _TURNS.set(turns)
        if self not in turns:
            turns[self] = anyio.CapacityLimiter(_THREADS)
        return turns[self]

    def _locked(self, work: Callable[[sqlite3.Connection], T], rows: Sequence[Row], called: float) -> T:
        with self._lock:
            self._unwritten += rows
            # Who was in the queue while another waited for a lock in vain has waited too.
            wait = called >= self._gave_up
            try:
                connection = self._opened()
                be_patient(connection, wait)
                return work(connection)
            except (sqlite3.Error, ValueError) as exc:
                if wait and is_locked(exc):
                    self._gave_up = time.monotonic()
                if rows and self._unwritten:
                    log().warning("write.failed", path=self._path, waiting=len(self._unwritten))
                raise LedgerError(f"ledger {self._path!r}: {meaning(exc)}") from exc

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = open_file(self._path)
            if hears(DEBUG):
                log().debug("ledger.opened", path=self._path)
        return self._connection

    def _find(self, digest: str, connection: sqlite3.Connection) -> tuple[str] | None:
        query = "SELECT completion FROM generations WHERE digest = ? ORDER BY id DESC LIMIT 1"
        found: tuple[str] | None = connection.execute(query, (digest,)).fetchone()
        if self._unwritten and (found is None or any(row[0] == digest for row, _ in self._unwritten)):
            found = self._whole(connection).execute(query, (digest,)).fetchone()
        return found

    def _whole(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        """The same, with all that waits written."""
        while self._unwritten:
            try:
                append(connection, *self._unwritten[0])
            except Exception as exc:
                if not is_of_the_file(exc):  # no file could hold the row, so it is in nobody's way
                    del self._unwritten[0]
                raise
            del self._unwritten[0]
        return connection

    def _close(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                try:
                    with suppress(sqlite3.Error, ValueError):  # whoever put it was told
                        self._whole(connection)
                finally:
                    connection.close()


def digest_of(messages: Sequence[Message], model: str, sampling: Sampling, schema: ProfileSchema | None) -> str:
    """SHA-256, in hex, of everything that determines a generation: prompt, model or adapter, sampling, schema."""
    import hashlib  # loads OpenSSL, and only ledgers need it

    key = {
        "messages": list(messages),
        "model": model,
        "sampling": {name: _number(value) for name, value in attrs.asdict(sampling).items()},
        "schema": None if schema is None else attrs.asdict(schema),
    }
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()


def _number(value: object) -> object:
    """0 and 0.0 are one temperature; integers beyond what a float holds exactly stay apart."""
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > 2**53:
        return value
    return float(value)


def read_through(
    ledger: Ledger | None,
    endpoint: Endpoint,
    messages: Sequence[Message],
    sampling: Sampling,
    schema: ProfileSchema | None,
    users: Iterable[str],
) -> Awaitable[Completion]:
    """`Ledger.generate`, or the endpoint alone where there is no ledger."""
    if ledger is None:
        return endpoint.generate(messages, sampling)
    return ledger.generate(endpoint, messages, sampling, schema=schema, users=users)


def subjects(ledger: Ledger | None, user: User, item: Item) -> frozenset[str]:
    """Ids of all whose interactions a pair's profiles may be made from; none where no ledger wants to know."""
    return frozenset() if ledger is None else frozenset({user.id, *(row.user for row in item.evidence)})


def _several(users: Iterable[str]) -> Iterable[str]:
    if isinstance(users, str):  # its letters would be recorded, and nobody forgotten
        raise ConfigurationError("users must be several ids, as in [user.id]")
    return users


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
