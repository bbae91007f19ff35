"""Book-Crossing (2004): ``BX-Book-Ratings.csv`` and ``BX-Books.csv``. It has no times: order is the order of the file.

Source: Ziegler et al., WWW 2005. Fields are quoted and separated by ``;``, a quote within is ``\\"``, lines end in CR
LF or LF, letters are latin-1.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

from duet import RatingScale
from duet_train.data.attributes import ItemRecord, json_object
from duet_train.data.raw_tables import Fields, store_interactions, store_items
from duet_train.data.sources import Delimited, NamedRecords


def read_book_crossing(db: duckdb.DuckDBPyConnection, interactions: Path, items: Path | None) -> RatingScale:
    """Read explicit ratings and books. A rating of 0 says that a book was read, no more: left out and counted.

    Args:
        db: An open connection.
        interactions: ``BX-Book-Ratings.csv``.
        items: ``BX-Books.csv``.

    Returns:
        1 to 10.

    Raises:
        ConfigurationError: A file is missing or unreadable.
        RecordError: A row does not hold; names file, line and field.
    """
    source = _opened(interactions).require("User-ID", "ISBN", "Book-Rating")
    fields = Fields(user=source.column("User-ID"), item=source.column("ISBN"), rating=source.column("Book-Rating"))
    scale = store_interactions(db, source, fields, scale=RatingScale(1, 10), unrated="rating = 0")
    if items is not None:
        store_items(db, NamedRecords(_opened(items).require("ISBN", "Book-Title")), _book)
    return scale


def _opened(path: Path) -> Delimited:
    return Delimited(path, delimiter=";", escape="\\", encoding="latin-1")


def _book(record: str) -> ItemRecord:
    fields = json_object(record)
    year = fields.get("Year-Of-Publication")
    return ItemRecord(
        fields["ISBN"],
        fields["Book-Title"],
        {
            "author": fields.get("Book-Author"),
            "publisher": fields.get("Publisher"),
            "year": None if year == "0" else year,
        },
    )
