"""The tables that every reader fills, and what must hold of their rows.

- ``raw_interactions(source_row BIGINT, user_id, item_id, rating DOUBLE, timestamp DOUBLE, review_title, review_text)``:
  ``source_row`` is the place of the record in its file, from 0; ``timestamp`` is Unix seconds, UTC, or NULL. Texts are
  as in the file, NULL where empty.
- ``raw_items(item_id, title, attributes)``: one row an item; attributes are a JSON object of texts with sorted keys.
- ``raw_counts(name, rows BIGINT)``: what a reader left out, and why.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import duckdb
from duckdb.func import FunctionNullHandling

from duet import ConfigurationError, RatingScale, RecordError
from duet_train.data.attributes import ItemFields, item_function
from duet_train.data.sources import Source

SECONDS = "try_cast({time} AS DOUBLE)"
MILLISECONDS = "try_cast({time} AS DOUBLE) / 1000"
DATE = "epoch(try_cast({time} AS TIMESTAMP))"
"""A date, or a date with a time of day, in UTC: ``2014-07-07`` or ``2014-07-07 12:30:00``."""

_DEFAULT_SCALE = RatingScale(1, 5)
# What a date can hold: the years 1 to 9999.
_EARLIEST, _LATEST = -62135596800, 253402300799
_PYTHON_ITEM = "duet_train_item"


@attrs.frozen(kw_only=True)
class Fields:
    """Where the fields of an interaction come from: SQL expressions of type VARCHAR over a source's columns.

    Args:
        user: User id.
        item: Item id.
        rating: Rating.
        time: When it was given.
        seconds: How a time becomes Unix seconds; ``{time}`` stands for the time.
        title: Title of the review.
        text: The review.
    """

    user: str
    item: str
    rating: str
    time: str = "NULL"
    seconds: str = SECONDS
    title: str = "NULL"
    text: str = "NULL"

    def columns(self) -> str:
        """The select list that makes a row; NaN marks a rating or a time that is there but does not hold."""
        seconds = self.seconds.format(time=f"({self.time})")
        return f"""
            row_number() OVER () - 1 AS source_row,
            {self.user} AS user_id,
            {self.item} AS item_id,
            {_number(self.rating, f"try_cast({self.rating} AS DOUBLE)")} AS rating,
            {_number(self.time, seconds)} AS timestamp,
            nullif({self.title}, '')::VARCHAR AS review_title,
            nullif({self.text}, '')::VARCHAR AS review_text
        """

    def source_of(self, field: str) -> str:
        """The expression of a column of ``raw_interactions``."""
        return {"user_id": self.user, "item_id": self.item, "rating": self.rating, "timestamp": self.time}[field]


def _number(text: str, number: str) -> str:
    return f"CASE WHEN trim({text}) <> '' THEN coalesce({number}, 'nan'::DOUBLE) END"


def store_interactions(
    db: duckdb.DuckDBPyConnection,
    source: Source,
    fields: Fields,
    *,
    scale: RatingScale | None = None,
    unrated: str | None = None,
) -> RatingScale:
    """Fill ``raw_interactions``, and make ``raw_items`` empty.

    Args:
        db: An open connection; tables of these names are replaced.
        source: The records.
        fields: Where each field is found.
        scale: What the format defines. None: 1 to 5 where every rating lies on it, else from the smallest to the
            largest rating that occurs.
        unrated: SQL condition, over the columns of ``raw_interactions``, for records that rate nothing. They are left
            out and counted.

    Raises:
        ConfigurationError: The source cannot be read, or holds no rating.
        RecordError: A row does not hold; names file, line and field.
    """
    _drop(db, "raw_interactions", "raw_items", "raw_counts")
    with _file_order(db), _readable(source):
        rows = source.relation(db).project(fields.columns())
        rows.create("raw_interactions")
    db.execute("CREATE TABLE raw_items (item_id VARCHAR, title VARCHAR, attributes VARCHAR)")
    db.execute("CREATE TABLE raw_counts (name VARCHAR, rows BIGINT)")
    if unrated is not None:
        _leave_out(db, "without a rating", "raw_interactions", unrated)
    _check(db, source, fields, scale)
    return scale or _scale_of_data(db, source)


def store_items(db: duckdb.DuckDBPyConnection, source: Source, item: ItemFields) -> None:
    """Fill ``raw_items``; of several records of one item the last counts.

    Args:
        db: The connection on which `store_interactions` was called.
        source: The records: a relation whose column ``record`` holds each record as text.
        item: What a record says of its item.

    Raises:
        ConfigurationError: The source cannot be read.
        RecordError: A record is unreadable or has no id; names file and line.
    """
    _drop(db, "raw_items")
    db.create_function(
        _PYTHON_ITEM,
        item_function(item),
        ["VARCHAR"],
        "STRUCT(item_id VARCHAR, title VARCHAR, attributes VARCHAR)",
        null_handling=FunctionNullHandling.SPECIAL,
    )
    try:
        with _file_order(db), _readable(source):
            made = source.relation(db).project(f"{_PYTHON_ITEM}(record::VARCHAR) AS item")
            made.project("item.item_id, item.title, item.attributes").create("raw_items")
    finally:
        db.remove_function(_PYTHON_ITEM)
    _check_items(db, source)
    _leave_out(
        db,
        "repeated items",
        "raw_items",
        "rowid NOT IN (SELECT max(rowid) FROM raw_items GROUP BY item_id)",
    )


def _drop(db: duckdb.DuckDBPyConnection, *tables: str) -> None:
    for table in tables:
        db.execute(f"DROP TABLE IF EXISTS {table}")


@contextmanager
def _file_order(db: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Rows keep the order of the file, whatever the caller has set."""
    (kept,) = db.execute("SELECT current_setting('preserve_insertion_order')").fetchone() or (True,)
    db.execute("SET preserve_insertion_order = true")
    try:
        yield
    finally:
        db.execute(f"SET preserve_insertion_order = {'true' if kept else 'false'}")


@contextmanager
def _readable(source: Source) -> Iterator[None]:
    """What DuckDB cannot read is the file's fault; full memory and a stop from outside are not, and pass through."""
    try:
        yield
    except (duckdb.OutOfMemoryException, duckdb.InterruptException):
        raise
    except duckdb.Error as exc:
        # The advice that follows is about settings of DuckDB which nobody can set here.
        reason = " ".join(re.split(r"\n\s*Possible|\nTry setting", str(exc))[0].split())
        raise ConfigurationError(f"cannot read {source.fault(reason[:400])}") from exc


def _leave_out(db: duckdb.DuckDBPyConnection, name: str, table: str, condition: str) -> None:
    (count,) = db.execute(f"DELETE FROM {table} WHERE {condition}").fetchone() or (0,)  # noqa: S608 (own words only)
    if count:
        db.execute("INSERT INTO raw_counts VALUES (?, ?)", [name, count])


def _check(db: duckdb.DuckDBPyConnection, source: Source, fields: Fields, scale: RatingScale | None) -> None:
    bad = db.table("raw_interactions").project(f"source_row, {_wrong_field(scale)} AS field")
    found = bad.filter("field IS NOT NULL").order("source_row").limit(1).fetchall()
    if not found:
        return
    row, field = found[0]
    values = source.relation(db).project(f"row_number() OVER () - 1 AS source_row, {fields.source_of(field)} AS value")
    ((value,),) = values.filter(f"source_row = {row}").project("value").fetchall()
    raise RecordError(f"{source.where(row)}: {_explained(field, value, scale)}", field=field)


def _wrong_field(scale: RatingScale | None) -> str:
    off = "rating IS NULL OR isnan(rating) OR isinf(rating)"
    if scale is not None:
        off += f" OR NOT rating BETWEEN {scale.minimum!r} AND {scale.maximum!r}"
    times = f"isnan(timestamp) OR NOT timestamp BETWEEN {_EARLIEST} AND {_LATEST}"
    return (
        f"CASE WHEN {_no_id('user_id')} THEN 'user_id' WHEN {_no_id('item_id')} THEN 'item_id' "
        f"WHEN {off} THEN 'rating' WHEN {times} THEN 'timestamp' END"
    )


def _no_id(column: str) -> str:
    return rf"({column} IS NULL OR NOT regexp_matches({column}, '\S') OR contains({column}, chr(0)))"


def _explained(field: str, value: object, scale: RatingScale | None) -> str:
    if field == "rating":
        span = "" if scale is None else f" from {scale.minimum:g} to {scale.maximum:g}"
        return f"rating must be a number{span}, got {value!r}"
    if field == "timestamp":
        return f"timestamp is no time between the years 1 and 9999 in the unit of this format, got {value!r}"
    return f"{field} must be a text that is not blank and holds no NUL, got {value!r}"


def _scale_of_data(db: duckdb.DuckDBPyConnection, source: Source) -> RatingScale:
    ((low, high),) = db.table("raw_interactions").aggregate("min(rating), max(rating)").fetchall()
    if low is None:
        raise ConfigurationError(f"{source.path}: holds no rating")
    if low in _DEFAULT_SCALE and high in _DEFAULT_SCALE:
        return _DEFAULT_SCALE
    if low == high:
        raise ConfigurationError(
            f"{source.path}: every rating is {low:g}, which tells no scale; "
            "give one in a dataset.json beside it (rating_min and rating_max)"
        )
    return RatingScale(low, high)


def _check_items(db: duckdb.DuckDBPyConnection, source: Source) -> None:
    bad = db.table("raw_items").project("rowid AS record, item_id").filter(_no_id("item_id"))
    for record, _ in bad.order("record").limit(1).fetchall():
        raise RecordError(f"{source.where(record)}: no item id, or no readable record", field="item_id")
