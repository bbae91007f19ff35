"""Load what `prepare` wrote: examples as the library's records, and rows as arrays.

Nothing is kept in memory: each call reads what it needs from the Parquet files.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import attrs
import duckdb
import numpy as np
from numpy.typing import NDArray

from duet import ConfigurationError, Example, Interaction, Item, RatingScale, User
from duet_train.data.manifest import read_manifest, verify
from duet_train.data.output import EXAMPLES, INTERACTIONS, ITEMS

SplitName = Literal["train", "validation", "test"]


@attrs.frozen(kw_only=True)
class PreparedExample:
    """One target and what may be shown for it.

    Args:
        id: Of the example, the same in every run on the same data.
        row: Of the target in ``interactions.parquet``.
        example: The pair with its history (the recent rows included) and its evidence.
        profile_user: The user with the rows that a profile is made from.
        recent_user: The user with the ``recent`` rows after those, which the recommender reads raw (LettinGo).
        history_length: Rows of the user before the target that might have been shown, had the window no end.
    """

    id: int
    row: int
    example: Example
    profile_user: User
    recent_user: User
    history_length: int


@attrs.frozen(kw_only=True, eq=False)
class RatingTable:
    """Rows as parallel arrays, for models of numbers.

    Args:
        user_ids: Every user of the data, sorted; the same in every split.
        item_ids: Every item of the data, sorted; the same in every split.
        users: Places in `user_ids`; shape (rows,), as all that follow; in the order of the log.
        items: Places in `item_ids`.
        ratings: In rating points.
        timestamps: Unix seconds, NaN where there is none.
        rows: Places in ``interactions.parquet``.
    """

    user_ids: list[str]
    item_ids: list[str]
    users: NDArray[np.int32]
    items: NDArray[np.int32]
    ratings: NDArray[np.float64]
    timestamps: NDArray[np.float64]
    rows: NDArray[np.int64]


@attrs.frozen
class ItemRequest:
    """An item as it was at a moment.

    Args:
        item_id: Id of the item.
        before: Evidence lies strictly before it. None, where the data has no times: evidence is from train.
        exclude_user: A user whose rows are left out.
        split: Of the target it is shown for: evidence is from no later split.
    """

    item_id: str
    before: datetime | None = None
    exclude_user: str | None = None
    split: SplitName = "test"


@attrs.frozen
class Prepared:
    """A directory that `prepare` made.

    Args:
        directory: Where it is.
        manifest: What it holds.
    """

    directory: Path
    manifest: Mapping[str, Any] = attrs.field(repr=False, hash=False)

    @classmethod
    def open(cls, directory: Path | str) -> Prepared:
        """Open a directory.

        Raises:
            ConfigurationError: It holds no manifest, or one of another version.
        """
        return cls(Path(directory), read_manifest(Path(directory)))

    def verify(self) -> None:
        """Compare every file with its digest in the manifest.

        Raises:
            ConfigurationError: One is missing or differs; names it.
        """
        verify(self.directory, self.manifest["outputs"])

    @property
    def scale(self) -> RatingScale:
        """The scale of all ratings."""
        return RatingScale(**self.manifest["scale"])

    @property
    def settings(self) -> Mapping[str, Any]:
        """What `prepare` was asked, by the names of its options."""
        settings: Mapping[str, Any] = self.manifest["settings"]
        return settings

    def examples(self, split: SplitName = "test", *, sample: int | None = None, seed: int = 0) -> list[PreparedExample]:
        """Examples of a split, by id.

        Args:
            split: Which.
            sample: Take this many, chosen by a digest of seed and id: the same everywhere, and a smaller sample lies
                within a larger one of the same seed. None takes all, and all of them are held in memory.
            seed: Of the sample.

        Raises:
            ConfigurationError: There is no such split, or the sample is negative.
        """
        if split not in ("train", "validation", "test"):
            raise ConfigurationError(f"split must be train, validation or test, got {split!r}")
        if sample is not None and sample < 0:
            raise ConfigurationError(f"sample must not be negative, got {sample}")
        with self._tables() as db:
            db.execute(_CHOOSE, {"split": split, "sample": sample, "seed": str(seed)})
            rows = {row["row"]: row for row in _records(db, _ROWS)}
            items = {row["item_id"]: _item(row) for row in _records(db, _TARGET_ITEMS)}
            chosen = _records(db, "SELECT * FROM chosen ORDER BY example")
        build = _Builder(rows, items, self.scale, int(self.settings["recent"]))
        return [build.example(row) for row in chosen]

    def item(self, item_id: str, *, before: datetime | None, exclude_user: str | None = None) -> Item:
        """One item as it was at a moment; see `items`."""
        return self.items([ItemRequest(item_id, before, exclude_user)])[0]

    def items(self, requests: Iterable[ItemRequest]) -> list[Item]:
        """Items with the latest evidence strictly before a moment, as many rows and of such splits as examples show.

        Args:
            requests: Any number; one call reads the files once. An unknown item comes back without evidence.
        """
        asked = list(requests)
        with self._tables() as db:
            _store_requests(db, asked)
            parameters = {"size": self.settings["evidence"], "train_only": self.settings["histories"] == "train-only"}
            rows = _records(db, _EVIDENCE, parameters)
            known = {row["item_id"]: _item(row) for row in _records(db, _REQUESTED_ITEMS)}
        evidence: dict[int, list[Interaction]] = {}
        for row in rows:
            evidence.setdefault(row["request"], []).append(_interaction(row))
        return [
            attrs.evolve(known.get(one.item_id) or Item(one.item_id), evidence=evidence.get(place, ()))
            for place, one in enumerate(asked)
        ]

    def matrix(self, split: SplitName | Literal["dropped"] = "train") -> RatingTable:
        """The rows of a split as arrays."""
        with self._tables() as db:
            db.execute(_CODES)
            user_ids = [user_id for (user_id,) in db.execute("SELECT user_id FROM users ORDER BY u").fetchall()]
            item_ids = [item_id for (item_id,) in db.execute("SELECT item_id FROM items_seen ORDER BY i").fetchall()]
            columns = db.execute(_MATRIX, {"split": split}).fetchnumpy()
        return RatingTable(
            user_ids=user_ids,
            item_ids=item_ids,
            users=np.ma.getdata(columns["u"]).astype(np.int32),
            items=np.ma.getdata(columns["i"]).astype(np.int32),
            ratings=np.ma.getdata(columns["rating"]).astype(np.float64),
            timestamps=np.ma.getdata(columns["timestamp"]).astype(np.float64),
            rows=np.ma.getdata(columns["row"]).astype(np.int64),
        )

    def _tables(self) -> duckdb.DuckDBPyConnection:
        db = duckdb.connect()
        for name, file in (("interactions", INTERACTIONS), ("items", ITEMS), ("examples", EXAMPLES)):
            path = self.directory / file
            if not path.is_file():
                db.close()
                raise ConfigurationError(f"{path}: no such file; prepare the data again")
            db.read_parquet(glob.escape(str(path))).create_view(name)
        return db


_CHOOSE = """
CREATE TABLE chosen AS
SELECT * FROM examples WHERE split = $split
ORDER BY md5(concat($seed, ':', example)), example LIMIT coalesce($sample, 9223372036854775807)
"""
_ROWS = """
SELECT row, user_id, interactions.item_id, rating, timestamp, review, title
FROM interactions
SEMI JOIN (SELECT unnest(list_concat([row], history, evidence)) AS row FROM chosen) USING (row)
LEFT JOIN items USING (item_id)
"""
_TARGET_ITEMS = """
SELECT item_id, title, attributes FROM items
SEMI JOIN (SELECT item_id FROM interactions SEMI JOIN chosen USING (row)) USING (item_id)
"""
_REQUESTED_ITEMS = "SELECT item_id, title, attributes FROM items SEMI JOIN requests USING (item_id)"
_EVIDENCE = """
SELECT request, row, user_id, item_id, rating, timestamp, review, title FROM (
    SELECT request, max(row, greatest($size, 1)) AS latest FROM requests JOIN interactions USING (item_id)
    WHERE $size > 0 AND list_contains(
        CASE WHEN $train_only OR before IS NULL OR requests.split = 'train' THEN ['train']
             WHEN requests.split = 'validation' THEN ['train', 'validation']
             ELSE ['train', 'validation', 'test'] END,
        interactions.split)
      AND (before IS NULL OR timestamp < before)
      AND user_id IS DISTINCT FROM exclude_user
    GROUP BY request) AS found, unnest(latest) AS one(row)
JOIN interactions USING (row) LEFT JOIN items USING (item_id)
ORDER BY request, row
"""
_STORE = """
CREATE TABLE requests AS
SELECT unnest(range(len($item_id))) AS request, unnest($item_id::VARCHAR[]) AS item_id,
       unnest($before::DOUBLE[]) AS before, unnest($exclude_user::VARCHAR[]) AS exclude_user,
       unnest($split::VARCHAR[]) AS split
"""
_CODES = """
CREATE TABLE users AS SELECT row_number() OVER () - 1 AS u, user_id FROM
    (SELECT DISTINCT user_id FROM interactions ORDER BY user_id);
CREATE TABLE items_seen AS SELECT row_number() OVER () - 1 AS i, item_id FROM
    (SELECT item_id FROM items ORDER BY item_id);
"""
_MATRIX = """
SELECT u::INTEGER AS u, i::INTEGER AS i, rating, coalesce(timestamp, 'nan'::DOUBLE) AS timestamp, row
FROM interactions JOIN users USING (user_id) JOIN items_seen USING (item_id)
WHERE split = $split ORDER BY row
"""


@attrs.frozen
class _Builder:
    """Makes examples of the rows they need."""

    rows: Mapping[int, Mapping[str, Any]]
    items: Mapping[str, Item]
    scale: RatingScale
    recent: int

    def example(self, chosen: Mapping[str, Any]) -> PreparedExample:
        target = self.rows[chosen["row"]]
        user = User(target["user_id"], self._interactions(chosen["history"]))
        item = attrs.evolve(self.items[target["item_id"]], evidence=self._interactions(chosen["evidence"]))
        example = Example(user, item, target["rating"], at=_instant(target["timestamp"]), scale=self.scale)
        history = example.user.history
        cut = max(len(history) - self.recent, 0)
        return PreparedExample(
            id=chosen["example"],
            row=chosen["row"],
            example=example,
            profile_user=attrs.evolve(user, history=history[:cut]),
            recent_user=attrs.evolve(user, history=history[cut:]),
            history_length=chosen["history_length"],
        )

    def _interactions(self, rows: Sequence[int]) -> list[Interaction]:
        return [_interaction(self.rows[row]) for row in rows]


def _interaction(row: Mapping[str, Any]) -> Interaction:
    return Interaction(
        user=row["user_id"],
        item=row["item_id"],
        rating=row["rating"],
        title=row["title"] or "",
        review=row["review"] or "",
        at=_instant(row["timestamp"]),
    )


def _item(row: Mapping[str, Any]) -> Item:
    return Item(row["item_id"], title=row["title"], attributes=json.loads(row["attributes"]))


def _instant(timestamp: float | None) -> datetime | None:
    return None if timestamp is None else datetime.fromtimestamp(timestamp, UTC)


def _store_requests(db: duckdb.DuckDBPyConnection, requests: Sequence[ItemRequest]) -> None:
    columns = {
        "item_id": [one.item_id for one in requests],
        "before": [None if one.before is None else one.before.timestamp() for one in requests],
        "exclude_user": [one.exclude_user for one in requests],
        "split": [one.split for one in requests],
    }
    db.execute(_STORE, columns)


def _records(
    db: duckdb.DuckDBPyConnection, query: str, parameters: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    cursor = db.execute(query, parameters or {})
    names = [column[0] for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
