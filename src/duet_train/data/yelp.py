"""The Yelp Open Dataset and its older editions.

Files whose name ends in ``.csv`` or ``.csv.gz`` are read as CSV with a header, all others as JSON lines.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

import duckdb

from duet import RatingScale
from duet_train.data.attributes import ItemRecord, json_object, picked
from duet_train.data.raw_tables import DATE, Fields, store_interactions, store_items
from duet_train.data.sources import Delimited, JSONLines, NamedRecords, Source, is_csv

_SCALE = RatingScale(1, 5)
_REVIEW = ("user_id", "business_id", "item_id", "stars", "date", "text")


def read_yelp(db: duckdb.DuckDBPyConnection, interactions: Path, items: Path | None) -> RatingScale:
    """Read reviews and businesses of any edition.

    Dates carry no time zone and are read as UTC; older editions give the day alone. Counts of votes, nested or not, are
    passed over.

    Args:
        db: An open connection.
        interactions: Reviews; a business may be named ``item_id`` instead of ``business_id``.
        items: Businesses. Attributes may be values, texts that hold Python literals, or null; categories a list, a text
            with commas or semicolons, or null.

    Returns:
        1 to 5.

    Raises:
        ConfigurationError: A file is missing or unreadable.
        RecordError: A row does not hold; names file, line and field.
    """
    source, fields = _reviews(interactions)
    scale = store_interactions(db, source, fields, scale=_SCALE)
    if items is not None:
        store_items(db, NamedRecords(Delimited(items)) if is_csv(items) else JSONLines(items), _business)
    return scale


def _reviews(path: Path) -> tuple[Source, Fields]:
    if not is_csv(path):
        return JSONLines(path, _REVIEW), Fields(
            user="user_id",
            item="coalesce(business_id, item_id)",
            rating="stars",
            time='"date"',
            seconds=DATE,
            text='"text"',
        )
    source = Delimited(path).require("user_id", "stars")
    return source, Fields(
        user=source.column("user_id"),
        item=source.column("business_id", "item_id"),
        rating=source.column("stars"),
        time=source.column("date"),
        seconds=DATE,
        text=source.column("text"),
    )


def _business(record: str) -> ItemRecord:
    # Columns of some CSV editions have a prefix.
    fields = {name.removeprefix("business_"): value for name, value in json_object(record).items()}
    attributes = fields.get("attributes")
    described = picked(fields, ("city", "state"))
    for name in ("categories", "neighborhoods"):
        described[name] = _listed(fields.get(name))
    if isinstance(attributes, Mapping):
        described.update({name: _value(value) for name, value in attributes.items()})
    return ItemRecord(fields.get("id") or fields.get("item_id"), fields.get("name"), described)


def _listed(value: object) -> object:
    return [part.strip() for part in value.split(";")] if isinstance(value, str) else value


def _value(value: object) -> object:
    """What an attribute says: many texts hold Python literals (``"u'free'"``, ``"{'lot': True}"``, ``"None"``)."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value
