"""What each target may be shown: the latest rows of its user, and of its item, that lie strictly before it.

The rows up to each moment of a user are a window over that user's rows in order; a target finds the last moment before
its own. Rows of the target's own moment, the target included, are therefore never shown, however many share it. Work is
parted by user and by item, so memory is bounded by the part, and one user with a million rows costs no more than a
million users with one.
"""

from __future__ import annotations

from typing import Literal

import attrs
import duckdb

from duet_train.data.log import count
from duet_train.data.settings import Settings

# Below an estimated number of targets the database would compare each of them with all moments, and the estimate for a
# part is far too low.
_NO_LOOPS = "SET asof_loop_join_threshold = 0"

# With ten rows a window, a part of this many rows takes less than 2 GB.
_ROWS_A_PART = 6_000_000
_ROWS_A_WINDOW = 10


@attrs.frozen
class Pass:
    """Targets of some splits, and the splits whose rows they may be shown; as in `splits`."""

    targets: tuple[int, ...]
    shown: tuple[int, ...]


_CREATE = "CREATE TABLE {table} (row BIGINT, rows BIGINT[], earlier BIGINT)"

_WINDOWS = """
INSERT INTO {table}
WITH shown AS (
    SELECT {key} AS key, row, clock FROM log
    WHERE {key} % $parts = $part AND split IN {shown} AND clock > '-infinity'::DOUBLE),
moments AS (
    SELECT key, clock, list(row) OVER latest AS rows, row_number() OVER (PARTITION BY key ORDER BY row) AS earlier
    FROM shown
    WINDOW latest AS (PARTITION BY key ORDER BY row ROWS BETWEEN {size} - 1 PRECEDING AND CURRENT ROW)
    QUALIFY lead(clock) OVER (PARTITION BY key ORDER BY row) IS DISTINCT FROM clock)
SELECT target.row, coalesce(moments.rows, []), coalesce(moments.earlier, 0)
FROM (SELECT row, {key} AS key, clock FROM log WHERE {key} % $parts = $part AND split IN {targets}) AS target
ASOF LEFT JOIN moments ON target.key = moments.key AND target.clock > moments.clock
"""


def passes(settings: Settings) -> tuple[Pass, ...]:
    """Who may be shown what.

    A row is never shown to a target of an earlier split, so that nothing held out is in a training prompt. Where the
    splits follow one another in time, "strictly before" says as much by itself, and one pass does.
    """
    if settings.histories == "train-only":
        return (Pass((0, 1, 2), (0,)),)
    if settings.split == "global-time":
        return (Pass((0, 1, 2), (0, 1, 2)),)
    return Pass((0,), (0,)), Pass((1,), (0, 1)), Pass((2,), (0, 1, 2))


def find(db: duckdb.DuckDBPyConnection, side: Literal["history", "evidence"], settings: Settings) -> None:
    """Make the table ``history`` or ``evidence``: for each target its ``rows``, oldest first, and how many there were.

    Args:
        db: Holds ``log`` with splits.
        side: Which; "history" goes by user and is at most ``history + recent`` rows long, "evidence" by item.
        settings: The sizes, and who may be shown what.
    """
    key, size = ("u", settings.window) if side == "history" else ("i", settings.evidence)
    db.execute(_NO_LOOPS)
    db.execute(_CREATE.format(table=side))
    parts = _parts(count(db, "log"), size)
    for one in passes(settings):
        statement = _WINDOWS.format(
            table=side, key=key, size=max(size, 1), shown=_in(one.shown), targets=_in(one.targets)
        )
        for part in range(parts):
            db.execute(statement, {"parts": parts, "part": part})
    if size == 0:
        db.table(side).update({"rows": duckdb.SQLExpression("[]")})


def _parts(rows: int, size: int) -> int:
    return -(-rows * max(size, _ROWS_A_WINDOW) // (_ROWS_A_PART * _ROWS_A_WINDOW)) or 1


def _in(splits: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, splits))})"
