"""goodbooks-10k: ``ratings.csv`` and ``books.csv``. It has no times: order is the order of the file."""

from __future__ import annotations

from pathlib import Path

import duckdb

from duet import RatingScale
from duet_train.data.attributes import ItemRecord, json_object
from duet_train.data.raw_tables import Fields, store_interactions, store_items
from duet_train.data.sources import Delimited, NamedRecords


def read_goodbooks(db: duckdb.DuckDBPyConnection, interactions: Path, items: Path | None) -> RatingScale:
    """Read ratings and books.

    Args:
        db: An open connection.
        interactions: ``ratings.csv``: ``user_id,book_id,rating``.
        items: ``books.csv``.

    Returns:
        1 to 5.

    Raises:
        ConfigurationError: A file is missing or unreadable.
        RecordError: A row does not hold; names file, line and field.
    """
    source = Delimited(interactions).require("user_id", "book_id", "rating")
    fields = Fields(user=source.column("user_id"), item=source.column("book_id"), rating=source.column("rating"))
    scale = store_interactions(db, source, fields, scale=RatingScale(1, 5))
    if items is not None:
        store_items(db, NamedRecords(Delimited(items).require("book_id", "title")), _book)
    return scale


def _book(record: str) -> ItemRecord:
    fields = json_object(record)
    return ItemRecord(
        fields["book_id"],
        fields["title"] or fields.get("original_title"),
        {
            "author": fields.get("authors"),
            "language_code": fields.get("language_code"),
            "year": (fields.get("original_publication_year") or "").removesuffix(".0"),
        },
    )
