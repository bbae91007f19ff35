"""The three files of a prepared log, in Parquet; the same tables give the same bytes, whatever the threads."""

from __future__ import annotations

from pathlib import Path

import duckdb

from duet_train.data.settings import Settings

INTERACTIONS, ITEMS, EXAMPLES = "interactions.parquet", "items.parquet", "examples.parquet"

_INTERACTIONS = """
SELECT row, user_id, item_id, rating, round(timestamp, 6) AS timestamp,
       nullif(concat_ws('. ', cleaned(review_title), cleaned(review_text)), '') AS review,
       ['train', 'validation', 'test', 'dropped'][split + 1] AS split
FROM log JOIN raw_interactions USING (source_row)
ORDER BY row
"""

_ITEMS = """
SELECT items.item_id, cleaned(title) AS title, cleaned_attributes(coalesce(attributes, '{}')) AS attributes
FROM items SEMI JOIN log USING (i) LEFT JOIN raw_items ON raw_items.item_id = items.item_id
ORDER BY items.item_id
"""

_EXAMPLES = """
SELECT row_number() OVER () - 1 AS example, ['train', 'validation', 'test'][split + 1] AS split,
       row, history, evidence, history_length
FROM (SELECT split, row, history.rows AS history, evidence.rows AS evidence, history.earlier AS history_length
      FROM log JOIN history USING (row) JOIN evidence USING (row)
      WHERE history.earlier >= $min_history
      ORDER BY split, row)
"""


# A writer holds a whole group, so groups are small enough for long reviews.
_GROUP_ROWS = 32_768


def write(db: duckdb.DuckDBPyConnection, query: str, path: Path, parameters: dict[str, object] | None = None) -> None:
    """Write the rows of a query, in its order."""
    rows = db.sql(query, params=parameters or {})
    rows.write_parquet(str(path), compression="zstd", row_group_size=_GROUP_ROWS)


def write_interactions(db: duckdb.DuckDBPyConnection, directory: Path) -> None:
    """``interactions.parquet``: every row of the log with its text and its split, in the order of the log."""
    write(db, _INTERACTIONS, directory / INTERACTIONS)


def write_items(db: duckdb.DuckDBPyConnection, directory: Path) -> None:
    """``items.parquet``: every item of the log, known or not, in the order of their ids."""
    write(db, _ITEMS, directory / ITEMS)


def write_examples(db: duckdb.DuckDBPyConnection, directory: Path, settings: Settings) -> None:
    """``examples.parquet``: every target with enough history, by split and then in the order of the log."""
    write(db, _EXAMPLES, directory / EXAMPLES, {"min_history": settings.min_history})
