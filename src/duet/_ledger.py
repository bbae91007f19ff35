"""Every finished generation, kept in SQLite, so that work is resumed, cached and audited."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from os import PathLike, fspath
from typing import Any, Self, TypeVar

import anyio
import anyio.to_thread
import attrs

from duet._endpoint import Endpoint
from duet._errors import LedgerError
from duet._ledger_file import append, forget, is_of_the_file, meaning, open_file
from duet._log import DEBUG, INFO, hears, log
from duet._prompts import Message
from duet._records import Item, User
from duet._results import Completion, TokenLogprob, Usage
from duet._schema import ProfileSchema
from duet._settings import Sampling

T = TypeVar("T")


class Ledger:
    """An append-only file of finished generations.

    A profiler or recommender that is given one asks the endpoint only for what is not in it. Malformed completions are
    kept too: a completion is never re-rolled in silence. Rows survive the death of the process as soon as the result
    was handed over. May be shared by any number of tasks; SQLite runs in a worker thread.

    A generation that is finished and cannot be written, on a full disk for example, raises and is kept in memory. Until
    it is written every further use raises before anything is asked of an endpoint, so nothing is paid for in vain.

    Args:
        path: The file, on a disk of this machine; it is made where it does not exist, its folder is not.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self._path = fspath(path)
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._unwritten: list[tuple[tuple[Any, ...], Sequence[str]]] = []

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
            LedgerError: The file cannot be written. The next use tries again before anything else.
        """
        row = (digest, time.time(), model, _dump(list(messages)), _dump(_fields(completion)))
        shown = sorted(set(users))
        with anyio.CancelScope(shield=True):
            try:
                await self._run(lambda connection: append(connection, row, shown))
            except LedgerError as exc:
                if is_of_the_file(exc.__cause__):
                    self._unwritten.append((row, shown))
                    log().warning("write.failed", path=self._path, waiting=len(self._unwritten))
                raise

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
            deleted = await self._run(lambda connection: forget(connection, user))
        if hears(INFO):
            log().info("user.forgotten", path=self._path, generations=deleted)
        return deleted

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
                    self._connection = open_file(self._path)
                    if hears(DEBUG):
                        log().debug("ledger.opened", path=self._path)
                self._catch_up(self._connection)
                return work(self._connection)
        except (sqlite3.Error, ValueError) as exc:
            raise LedgerError(f"ledger {self._path!r}: {meaning(exc)}") from exc

    def _catch_up(self, connection: sqlite3.Connection) -> None:
        """Write what could not be written before."""
        while self._unwritten:
            append(connection, *self._unwritten[0])
            del self._unwritten[0]

    def _close(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                try:
                    with suppress(sqlite3.Error):  # whoever put it was told
                        self._catch_up(connection)
                finally:
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
