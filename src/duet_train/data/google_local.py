"""Google Local reviews, 2021 edition: JSON lines.

Sources: Li et al., ACL 2022; Yan et al., SIGIR 2023; the field list of the data set's page.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import duckdb

from duet import RatingScale
from duet_train.data.attributes import ItemRecord, json_object, picked
from duet_train.data.raw_tables import MILLISECONDS, Fields, store_interactions, store_items
from duet_train.data.sources import JSONLines

_REVIEW = Fields(user="user_id", item="gmap_id", rating="rating", time='"time"', seconds=MILLISECONDS, text='"text"')


def read_google_local(db: duckdb.DuckDBPyConnection, interactions: Path, items: Path | None) -> RatingScale:
    """Read reviews and places. Reviews without a rating are left out and counted.

    Args:
        db: An open connection.
        interactions: Reviews: ``user_id, gmap_id, rating, time`` (milliseconds), ``text``.
        items: Places: ``gmap_id, name, category, description, price, MISC``.

    Returns:
        1 to 5.

    Raises:
        ConfigurationError: A file is missing or unreadable.
        RecordError: A row does not hold; names file, line and field.
    """
    source = JSONLines(interactions, ("user_id", "gmap_id", "rating", "time", "text"))
    scale = store_interactions(db, source, _REVIEW, scale=RatingScale(1, 5), unrated="rating IS NULL")
    if items is not None:
        store_items(db, JSONLines(items), _place)
    return scale


def _place(record: str) -> ItemRecord:
    fields = json_object(record)
    described = picked(fields, ("address", "description", "price"))
    described["categories"] = fields.get("category")
    services = fields.get("MISC")
    if isinstance(services, Mapping):
        described.update(services)
    return ItemRecord(fields.get("gmap_id"), fields.get("name"), described)
