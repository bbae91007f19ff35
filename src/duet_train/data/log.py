"""From a reader's tables to the log: one row for each user and item, in the order of time, as small numbers.

Texts stay behind in ``raw_interactions``; what is sorted, counted and cut here has a few bytes a row.

- ``ordered(place, source_row, u, i, clock)``: every row read, ``place`` 0.. in order of (time, file order);
- ``kept(place, u, i)``: one row for each user and item; `kcore` narrows it;
- ``log(row, source_row, u, i, clock)``: what is kept, ``row`` 0.. in the same order.

``clock`` says what lies strictly before what. It is the time; where no row of the data has one, it is the place in the
file; a row without a time among rows with one has the clock minus infinity, before which there is nothing.
"""

from __future__ import annotations

import duckdb

from duet import ConfigurationError, RatingScale, RecordError

_OFF_SCALE = (
    "SELECT source_row, rating FROM raw_interactions WHERE NOT rating BETWEEN ? AND ? ORDER BY source_row LIMIT 1"
)

# Microseconds are what a datetime holds: two times that it cannot tell apart are one.
_ORDER = """
CREATE TABLE users AS SELECT row_number() OVER () - 1 AS u, user_id FROM
    (SELECT DISTINCT user_id FROM raw_interactions ORDER BY user_id);
CREATE TABLE items AS SELECT row_number() OVER () - 1 AS i, item_id FROM
    (SELECT DISTINCT item_id FROM raw_interactions ORDER BY item_id);
SET VARIABLE timed = (SELECT count(timestamp) > 0 FROM raw_interactions);
CREATE TABLE ordered AS
SELECT row_number() OVER () - 1 AS place, * FROM (
    SELECT source_row, u::INTEGER AS u, i::INTEGER AS i,
           CASE WHEN getvariable('timed') THEN coalesce(round(timestamp, 6), '-infinity'::DOUBLE)
                ELSE source_row::DOUBLE END AS clock
    FROM raw_interactions JOIN users USING (user_id) JOIN items USING (item_id)
    ORDER BY clock, source_row)
"""

_KEEP_LAST = "CREATE TABLE kept AS SELECT max(place) AS place, u, i FROM ordered GROUP BY u, i"

_NUMBER = """
CREATE TABLE log AS
SELECT row_number() OVER () - 1 AS row, * FROM (
    SELECT source_row, u, i, clock FROM ordered SEMI JOIN kept USING (place) ORDER BY place);
DROP TABLE ordered;
DROP TABLE kept
"""


def count(db: duckdb.DuckDBPyConnection, table: str) -> int:
    """Rows of a table."""
    ((rows,),) = db.table(table).aggregate("count(*)").fetchall()
    return int(rows)


def check_scale(db: duckdb.DuckDBPyConnection, scale: RatingScale) -> None:
    """Refuse a log with a rating off the scale.

    Raises:
        RecordError: Names the first such row, counted from 0.
    """
    found = db.execute(_OFF_SCALE, [scale.minimum, scale.maximum]).fetchone()
    if found is not None:
        raise RecordError(f"row {found[0]}: rating is {found[1]:g}, off the scale of {scale}", field="rating")


def order(db: duckdb.DuckDBPyConnection) -> int:
    """Make ``users``, ``items`` and ``ordered`` from ``raw_interactions``; the number of rows.

    Raises:
        ConfigurationError: There are none.
    """
    db.execute(_ORDER)
    rows = count(db, "ordered")
    if not rows:
        raise ConfigurationError("the interactions hold no row")
    return rows


def keep_last(db: duckdb.DuckDBPyConnection) -> int:
    """Make ``kept``: of several rows of one user and item the last; the number of rows left out."""
    db.execute(_KEEP_LAST)
    return count(db, "ordered") - count(db, "kept")


def number(db: duckdb.DuckDBPyConnection) -> int:
    """Make ``log`` from what is kept; the number of rows."""
    db.execute(_NUMBER)
    return count(db, "log")
