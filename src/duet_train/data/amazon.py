"""Amazon reviews as published in 2014, 2018 and 2023, with their metadata.

Sources: McAuley et al., SIGIR 2015 (2014); Ni et al., EMNLP 2019 (2018); Hou et al., arXiv 2403.03952 (2023).
Files whose name ends in ``.csv`` or ``.csv.gz`` are read as CSV, all others as JSON lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import duckdb

from duet import RatingScale
from duet_train.data.attributes import ItemRecord, json_object, literal_object, picked
from duet_train.data.raw_tables import MILLISECONDS, Fields, store_interactions, store_items
from duet_train.data.sources import Delimited, JSONLines, Lines, Source, is_csv

_SCALE = RatingScale(1, 5)
_REVIEW = Fields(
    user='"reviewerID"',
    item='"asin"',
    rating='"overall"',
    time='"unixReviewTime"',
    title='"summary"',
    text='"reviewText"',
)
_REVIEW_2023 = Fields(
    user='"user_id"',
    # Variants of a product have an asin each; their metadata is one record under the parent's.
    item='"parent_asin"',
    rating='"rating"',
    time='"timestamp"',
    seconds=MILLISECONDS,
    title='"title"',
    text='"text"',
)


def read_amazon_2014(db: duckdb.DuckDBPyConnection, interactions: Path, items: Path | None) -> RatingScale:
    """Read the 2014 edition.

    Args:
        db: An open connection.
        interactions: Reviews: JSON lines; CSV with the same names in a header; or ratings alone as CSV without a
            header, in the order user, item, rating, time.
        items: Metadata: one Python literal a line (JSON lines are read as well).

    Returns:
        1 to 5.

    Raises:
        ConfigurationError: A file is missing or unreadable.
        RecordError: A row does not hold; names file, line and field.
    """
    return _read(db, interactions, items, ratings=("reviewerID", "asin", "overall", "unixReviewTime"))


def read_amazon_2018(db: duckdb.DuckDBPyConnection, interactions: Path, items: Path | None) -> RatingScale:
    """Read the 2018 edition. Exact duplicates of rows are kept here; `prepare` counts and removes them.

    Args:
        db: An open connection.
        interactions: Reviews: JSON lines; or ratings alone as CSV without a header, in the order item, user, rating,
            time.
        items: Metadata: JSON lines.

    Returns:
        1 to 5.

    Raises:
        ConfigurationError: A file is missing or unreadable.
        RecordError: A row does not hold; names file, line and field.
    """
    return _read(db, interactions, items, ratings=("asin", "reviewerID", "overall", "unixReviewTime"))


def read_amazon_2023(db: duckdb.DuckDBPyConnection, interactions: Path, items: Path | None) -> RatingScale:
    """Read the 2023 edition: times in milliseconds, items by ``parent_asin``.

    Args:
        db: An open connection.
        interactions: Reviews: JSON lines; or ratings alone as CSV with a header.
        items: Metadata: JSON lines.

    Returns:
        1 to 5.

    Raises:
        ConfigurationError: A file is missing or unreadable.
        RecordError: A row does not hold; names file, line and field.
    """
    source, fields = _opened(interactions, _REVIEW_2023, ("user_id", "parent_asin", "rating", "timestamp"))
    scale = store_interactions(db, source, fields, scale=_SCALE)
    if items is not None:
        store_items(db, JSONLines(items), _item_2023)
    return scale


def _read(db: duckdb.DuckDBPyConnection, reviews: Path, items: Path | None, ratings: tuple[str, ...]) -> RatingScale:
    source, fields = _opened(reviews, _REVIEW, ratings)
    scale = store_interactions(db, source, fields, scale=_SCALE)
    if items is not None:
        store_items(db, Lines(items), _item)
    return scale


def _opened(path: Path, fields: Fields, ratings: tuple[str, ...]) -> tuple[Source, Fields]:
    """The reviews, and the fields over its columns; a CSV without a header has the columns of `ratings`."""
    names = {key: text.strip('"') for key, text in attrs.asdict(fields).items() if text.startswith('"')}
    if not is_csv(path):
        return JSONLines(path, tuple(names.values())), fields
    source = Delimited(path)
    if not set(ratings) & set(source.columns):
        source = Delimited(path, ratings)
    source.require(*ratings)
    return source, attrs.evolve(fields, **{key: source.column(name) for key, name in names.items()})


def _item(record: str) -> ItemRecord:
    fields = _parsed(record)
    title = fields.get("title")
    # Some records of 2018 hold a script of the page where the title should be.
    broken = isinstance(title, str) and "getTime" in title
    return ItemRecord(fields.get("asin"), None if broken else title, _attributes(fields))


def _parsed(record: str) -> dict[str, Any]:
    try:
        return json_object(record)
    except ValueError:
        return literal_object(record)


def _item_2023(record: str) -> ItemRecord:
    fields = json_object(record)
    attributes = _attributes(fields)
    author = fields.get("author")
    if isinstance(author, Mapping):
        attributes["author"] = author.get("name")
    return ItemRecord(fields.get("parent_asin"), fields.get("title"), attributes)


def _attributes(fields: Mapping[str, Any]) -> dict[str, object]:
    """What describes a product. Not what was bought with it or viewed after it: ids, and of later years."""
    kept = picked(fields, ("author", "brand", "description", "details", "price", "store", "subtitle"))
    kept["categories"] = _flat(fields.get("categories") or fields.get("category"))
    kept["features"] = fields.get("features") or fields.get("feature")
    kept["main_category"] = fields.get("main_category") or _without_markup(fields.get("main_cat"))
    return kept


def _flat(categories: object) -> object:
    """Paths through the tree of categories as one list, each category once."""
    if not isinstance(categories, list):
        return categories
    paths: Iterable[object] = (path if isinstance(path, list) else [path] for path in categories)
    return list(dict.fromkeys(str(name).strip() for path in paths for name in path if name))  # type: ignore[attr-defined]


def _without_markup(value: object) -> object:
    return None if isinstance(value, str) and value.lstrip().startswith("<") else value
