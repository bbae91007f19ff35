"""GoodReads as collected for the UCSD Book Graph: JSON lines.

Sources: Wan and McAuley, RecSys 2018; Wan et al., ACL 2019; the field list of the data set's page.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import duckdb

from duet import RatingScale
from duet_train.data.attributes import ItemRecord, json_object, picked
from duet_train.data.raw_tables import Fields, store_interactions, store_items
from duet_train.data.sources import JSONLines

# "Fri Aug 05 13:55:02 -0700 2016"
_WRITTEN = "epoch(try_strptime({time}, '%a %b %d %H:%M:%S %z %Y'))"
_REVIEW = Fields(
    user="user_id",
    item="book_id",
    rating="rating",
    # A book is often added unread and rated years later: only at the last update is the rating known to be there.
    time="coalesce(nullif(date_updated, ''), date_added)",
    seconds=_WRITTEN,
    text="review_text",
)
# Shelves that say what became of a copy, or how it was liked, and not what the book is about.
_NO_SUBJECT = re.compile(
    r"read|own|favou?rite|wish|buy|librar|kindle|e-?books?$|audio|star|dnf|abandon|default|^my-|shelf|club"
)
_SHELVES = 10


def read_goodreads(db: duckdb.DuckDBPyConnection, interactions: Path, items: Path | None) -> RatingScale:
    """Read reviews or interactions, and books. A rating of 0 means none: such rows are left out and counted.

    Args:
        db: An open connection.
        interactions: ``user_id, book_id, rating, date_updated, date_added, review_text``.
        items: Books.

    Returns:
        1 to 5.

    Raises:
        ConfigurationError: A file is missing or unreadable.
        RecordError: A row does not hold; names file, line and field.
    """
    source = JSONLines(interactions, ("user_id", "book_id", "rating", "date_updated", "date_added", "review_text"))
    scale = store_interactions(db, source, _REVIEW, scale=RatingScale(1, 5), unrated="rating = 0")
    if items is not None:
        store_items(db, JSONLines(items), _book)
    return scale


def _book(record: str) -> ItemRecord:
    """Authors are ids in this file, so they are left out; categories are the most used shelves that name a subject."""
    fields = json_object(record)
    described = picked(
        fields, ("description", "edition_information", "format", "language_code", "num_pages", "publisher")
    )
    described["year"] = fields.get("publication_year")
    described["categories"] = _shelves(fields.get("popular_shelves"))
    return ItemRecord(fields.get("book_id"), fields.get("title"), described)


def _shelves(shelves: Any) -> list[str]:
    if not isinstance(shelves, list):
        return []
    names = [str(shelf["name"]) for shelf in shelves if isinstance(shelf, dict) and "name" in shelf]
    return [name for name in names if not _NO_SUBJECT.search(name)][:_SHELVES]
