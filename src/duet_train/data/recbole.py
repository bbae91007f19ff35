"""RecBole's atomic files: tab-separated, with a header of ``name:type``.

Source: Zhao et al., CIKM 2021, and RecBole's description of atomic files.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

from duet import ConfigurationError, RatingScale
from duet_train.data.attributes import ItemRecord, json_object
from duet_train.data.raw_tables import Fields, store_interactions, store_items
from duet_train.data.sources import Delimited, NamedRecords

_TYPES = frozenset({"token", "token_seq", "float", "float_seq"})
_USER = ("user_id",)
# The names of RecBole's own conversions, the plain ones first.
_ITEM = ("item_id", "business_id", "book_id", "movie_id", "artist_id", "track_id", "venue_id")
_RATING = ("rating", "stars")
_TIME = ("timestamp", "date", "time")
_TITLE = ("title", "item_title", "movie_title", "book_title", "track_title", "name", "item_name", "business_name")
_REVIEW_TITLE = ("review_title", "summary")
_REVIEW_TEXT = ("review_text", "review", "text")

# Fields stand between tabs as they are. Where one was written in quotes, with those within doubled, they are taken off.
_UNQUOTED = (
    """CASE WHEN regexp_full_match({field}, '"([^"]|"")*"') """
    """THEN replace(substring({field}, 2, length({field}) - 2), '""', '"') ELSE {field} END"""
)


def read_recbole(db: duckdb.DuckDBPyConnection, interactions: Path, items: Path | None) -> RatingScale:
    """Read ``.inter`` and ``.item``.

    Args:
        db: An open connection.
        interactions: Columns ``user_id``, ``item_id`` (or the id of RecBole's own conversions, as ``business_id``),
            ``rating`` and, where known, ``timestamp`` (Unix seconds), ``review_title``, ``review_text``.
        items: An id as in the interactions and, where known, a title; every other column is an attribute.

    Returns:
        1 to 5 where every rating lies on it, else from the smallest to the largest rating that occurs.

    Raises:
        ConfigurationError: A file is missing or unreadable, or its header is not RecBole's.
        RecordError: A row does not hold; names file, line and field.
    """
    source = _opened(interactions)
    fields = Fields(
        user=_required(source, _USER),
        item=_required(source, _ITEM),
        rating=_required(source, _RATING),
        time=_column(source, _TIME),
        title=_column(source, _REVIEW_TITLE),
        text=_column(source, _REVIEW_TEXT),
    )
    scale = store_interactions(db, source, fields)
    if items is not None:
        records = _opened(items)
        _required(records, _ITEM)
        store_items(db, NamedRecords(records, _UNQUOTED), _item)
    return scale


def write_recbole(db: duckdb.DuckDBPyConnection, directory: Path, name: str) -> None:
    """Write ``raw_interactions`` and ``raw_items`` as ``<name>.inter`` and ``<name>.item``, which `read_recbole` reads.

    Columns that no row fills are left out, and so is the item file where there are no items. An attribute becomes a
    column; of attributes whose names differ in case alone the first value counts. Tabs and line ends become spaces.

    Args:
        db: An open connection that a reader has filled.
        directory: Made where it is missing. RecBole looks for ``<data_path>/<name>/<name>.inter``.
        name: Of the data set.

    Raises:
        ConfigurationError: A file cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        rows = db.table("raw_interactions").order("source_row")
        _write(rows, _interaction_columns(db), directory / f"{name}.inter")
        items = db.table("raw_items").order("item_id")
        if items.limit(1).fetchall():
            _write(items, _item_columns(db), directory / f"{name}.item")
    except (OSError, duckdb.IOException) as exc:
        raise ConfigurationError(f"cannot write {name} to {directory}: {exc}") from exc


def _opened(path: Path) -> Delimited:
    source = Delimited(path, delimiter="\t", quote="", escape="")
    for column in source.columns:
        if column.rpartition(":")[2] not in _TYPES:
            raise ConfigurationError(
                f"{path}:1: column {column!r} has no type; RecBole's headers have, as user_id:token"
            )
    return source


def _plain(column: str) -> str:
    return column.rpartition(":")[0]


def _column(source: Delimited, names: tuple[str, ...]) -> str:
    typed = {_plain(column): column for column in source.columns}
    found = [typed[name] for name in names if name in typed]
    return _UNQUOTED.format(field=source.column(found[0])) if found else "NULL"


def _required(source: Delimited, names: tuple[str, ...]) -> str:
    column = _column(source, names)
    if column == "NULL":
        raise ConfigurationError(f"{source.path}:1: none of the columns {', '.join(names)}")
    return column


def _item(record: str) -> ItemRecord:
    fields = {_plain(name): value for name, value in json_object(record).items()}
    id_name = next(name for name in _ITEM if name in fields)
    title_name = next((name for name in _TITLE if name in fields), None)
    attributes = {name: value for name, value in fields.items() if name not in (id_name, title_name)}
    return ItemRecord(fields[id_name], fields[title_name] if title_name else None, attributes)


def _interaction_columns(db: duckdb.DuckDBPyConnection) -> list[tuple[str, str]]:
    columns = [
        ("user_id:token", _one_line("user_id")),
        ("item_id:token", _one_line("item_id")),
        ("rating:float", "rating"),
        ("timestamp:float", '"timestamp"'),
        ("review_title:token_seq", _one_line("review_title")),
        ("review_text:token_seq", _one_line("review_text")),
    ]
    counts = (
        db.table("raw_interactions").aggregate("count(timestamp), count(review_title), count(review_text)").fetchall()
    )
    filled = (1, 1, 1, *counts[0])
    return [column for column, count in zip(columns, filled, strict=True) if count]


def _item_columns(db: duckdb.DuckDBPyConnection) -> list[tuple[str, str]]:
    found = db.table("raw_items").project("unnest(json_keys(attributes)) AS name").distinct().order("name").fetchall()
    spellings: dict[str, list[str]] = {}
    for (name,) in found:
        spellings.setdefault(_column_name(name).lower(), []).append(name)
    columns = [("item_id:token", _one_line("item_id")), ("title:token_seq", _one_line("title"))]
    for names in (names for column, names in spellings.items() if column not in ("item_id", "title")):
        values = ", ".join(f"json_extract_string(attributes, {_pointer(name)})" for name in names)
        columns.append((f"{_column_name(names[0])}:token_seq", _one_line(f"coalesce({values})")))
    return columns


def _one_line(column: str) -> str:
    return rf"regexp_replace({column}, '[\t\r\n]+', ' ', 'g')"


def _pointer(name: str) -> str:
    """The JSON pointer of a key, as an SQL text."""
    return "'/" + name.replace("~", "~0").replace("/", "~1").replace("'", "''") + "'"


def _column_name(attribute: str) -> str:
    """RecBole splits a header at its colon."""
    return " ".join(attribute.replace(":", " ").split())


def _write(rows: duckdb.DuckDBPyRelation, columns: list[tuple[str, str]], path: Path) -> None:
    listed = ", ".join(f'{value} AS "{name.replace(chr(34), chr(34) * 2)}"' for name, value in columns)
    rows.project(listed).write_csv(str(path), sep="\t", header=True, quotechar='"', escapechar='"')
