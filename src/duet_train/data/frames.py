"""Frames of any library that narwhals knows: pandas, polars, pyarrow and others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
import duckdb
import narwhals as nw

from duet import ConfigurationError, RatingScale
from duet_train.data.attributes import ItemRecord, json_object
from duet_train.data.raw_tables import Fields, store_interactions, store_items

_REQUIRED = ("user_id", "item_id", "rating")
_OPTIONAL = ("timestamp", "review_title", "review_text")
_ITEM = ("item_id", "title")


def read_frame(
    db: duckdb.DuckDBPyConnection, interactions: Any, items: Any | None = None, *, columns: Mapping[str, str]
) -> RatingScale:
    """Read frames that are in memory already; they are not copied as a whole.

    Args:
        db: An open connection.
        interactions: One row a rating. Times are Unix seconds, dates or datetimes (UTC where they have no zone).
        items: One row an item. Every column that is neither the id nor the title becomes an attribute.
        columns: The names used here (``user_id, item_id, rating, timestamp, review_title, review_text, title``) to the
            frames' own. A name that is left out is looked for as it is; all but the first three may be missing.

    Returns:
        1 to 5 where every rating lies on it, else from the smallest to the largest rating that occurs.

    Raises:
        ConfigurationError: No frame, or a column is missing, or `columns` has an unknown name.
        RecordError: A row does not hold; names row and field.
    """
    unknown = sorted(set(columns) - {*_REQUIRED, *_OPTIONAL, *_ITEM})
    if unknown:
        raise ConfigurationError(f"columns: unknown name {unknown[0]!r}; known are {[*_REQUIRED, *_OPTIONAL, 'title']}")
    rows = _picked(_eager(interactions, "interactions"), columns, "interactions")
    with _registered(db, rows, "interactions") as source:
        scale = store_interactions(db, source, _fields(rows))
    if items is not None:
        _store_items(db, _eager(items, "items"), columns)
    return scale


@attrs.frozen
class _Registered:
    """A frame that the connection sees under a name."""

    view: str
    path: str
    record: str | None = None

    def relation(self, db: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyRelation:
        rows = db.view(self.view)
        return rows if self.record is None else rows.project(f"{self.record} AS record")

    def where(self, record: int) -> str:
        return f"{self.path}, row {record}"

    def fault(self, reason: str) -> str:
        return f"{self.path}: {reason}"


@contextmanager
def _registered(
    db: duckdb.DuckDBPyConnection, frame: Any, kind: str, record: str | None = None
) -> Iterator[_Registered]:
    view = f"duet_train_{kind}_frame"
    db.register(view, frame.to_native())
    try:
        yield _Registered(view, f"the {kind} frame", record)
    finally:
        db.unregister(view)


def _eager(frame: Any, kind: str) -> Any:
    try:
        wrapped = nw.from_native(frame)
    except TypeError as exc:
        raise ConfigurationError(f"{kind}: not a frame: {exc}") from None
    return wrapped.collect() if isinstance(wrapped, nw.LazyFrame) else wrapped


def _picked(frame: Any, columns: Mapping[str, str], kind: str) -> Any:
    """The columns that are needed, under the names used here."""
    found = {}
    for name in (*_REQUIRED, *_OPTIONAL):
        own = columns.get(name, name)
        if own in frame.columns:
            found[name] = own
        elif name in _REQUIRED or name in columns:
            raise ConfigurationError(f"{kind}: the frame has no column {own!r}, only {list(frame.columns)}")
    return frame.select([nw.col(own).alias(name) for name, own in found.items()])


def _fields(frame: Any) -> Fields:
    texts = {name: f'"{name}"::VARCHAR' if name in frame.columns else "NULL" for name in (*_REQUIRED, *_OPTIONAL)}
    return Fields(
        user=texts["user_id"],
        item=texts["item_id"],
        rating=texts["rating"],
        time=_time(frame),
        title=texts["review_title"],
        text=texts["review_text"],
    )


def _time(frame: Any) -> str:
    if "timestamp" not in frame.columns:
        return "NULL"
    dtype = frame.schema["timestamp"]
    # What is no number in a column of numbers is how some libraries write that a time is missing.
    seconds = "epoch(timestamp)" if isinstance(dtype, nw.Datetime | nw.Date) else '"timestamp"'
    return f"nullif({seconds}::VARCHAR, 'nan')"


def _store_items(db: duckdb.DuckDBPyConnection, frame: Any, columns: Mapping[str, str]) -> None:
    names = {columns.get(name, name): name for name in _ITEM}
    own_id = columns.get("item_id", "item_id")
    if own_id not in frame.columns:
        raise ConfigurationError(f"items: the frame has no column {own_id!r}, only {list(frame.columns)}")
    listed = [names.get(name, name) for name in frame.columns]
    places = [f"c{place}" for place in range(len(listed))]
    renamed = frame.select([nw.col(own).alias(place) for own, place in zip(frame.columns, places, strict=True)])
    pairs = ", ".join(
        f"'{name.replace(chr(39), chr(39) * 2)}', {place}" for name, place in zip(listed, places, strict=True)
    )
    with _registered(db, renamed, "items", f"json_object({pairs})") as source:
        store_items(db, source, _item)


def _item(record: str) -> ItemRecord:
    fields = json_object(record)
    return ItemRecord(fields.pop("item_id"), fields.pop("title", None), fields)
