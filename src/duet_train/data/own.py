"""The project's own format: ``interactions.jsonl[.gz]``, ``items.jsonl[.gz]`` and ``dataset.json`` in one folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import duckdb

from duet import ConfigurationError, RatingScale
from duet_train.data.attributes import ItemRecord, json_object
from duet_train.data.raw_tables import Fields, store_interactions, store_items
from duet_train.data.sources import JSONLines

_COLUMNS = ("user_id", "item_id", "rating", "timestamp", "review_title", "review_text")
_FIELDS = Fields(
    user="user_id",
    item="item_id",
    rating="rating",
    time='"timestamp"',
    title="review_title",
    text="review_text",
)


def read_own(db: duckdb.DuckDBPyConnection, interactions: Path, items: Path | None) -> RatingScale:
    """Read the project's JSON lines.

    Args:
        db: An open connection.
        interactions: Lines with ``user_id``, ``item_id``, ``rating`` and, where known, ``timestamp`` (Unix seconds,
            UTC), ``review_title``, ``review_text``.
        items: Lines with ``item_id`` and, where known, ``title``; everything else becomes an attribute, and so does
            each entry of an object named ``attributes``.

    Returns:
        ``rating_min`` and ``rating_max`` of a ``dataset.json`` beside the interactions. Where there is none, 1 to 5 if
        every rating lies on it, else from the smallest to the largest rating that occurs.

    Raises:
        ConfigurationError: A file is missing or unreadable.
        RecordError: A row does not hold; names file, line and field.
    """
    source = JSONLines(interactions, _COLUMNS)
    scale = store_interactions(db, source, _FIELDS, scale=_declared_scale(interactions.parent / "dataset.json"))
    if items is not None:
        store_items(db, JSONLines(items), _item)
    return scale


def _item(record: str) -> ItemRecord:
    fields = json_object(record)
    nested = fields.pop("attributes", None)
    return ItemRecord(
        fields.pop("item_id", None),
        fields.pop("title", None),
        {**fields, **(nested if isinstance(nested, Mapping) else {})},
    )


def _declared_scale(path: Path) -> RatingScale | None:
    if not path.exists():
        return None
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return RatingScale(facts.get("rating_min", 1), facts.get("rating_max", 5))
    except (OSError, ValueError, AttributeError) as exc:
        raise ConfigurationError(f"cannot read {path}: {exc}") from exc
