"""The k-core: rows of users and items that all have at least k rows among themselves."""

from __future__ import annotations

import duckdb

from duet import ConfigurationError
from duet_train.data.log import count

_ROUND = """
CREATE TABLE narrowed AS
SELECT place, u, i FROM kept
SEMI JOIN (SELECT u FROM kept GROUP BY u HAVING count(*) >= $core) USING (u)
SEMI JOIN (SELECT i FROM kept GROUP BY i HAVING count(*) >= $core) USING (i)
"""
_REPLACE = "DROP TABLE kept; ALTER TABLE narrowed RENAME TO kept"


def keep_core(db: duckdb.DuckDBPyConnection, core: int) -> int:
    """Narrow ``kept`` to its k-core; the number of rounds until nothing more fell.

    Removing a rare item makes users rare and the other way round, so rounds repeat to the fixed point, which is the
    same in whatever order rows go.

    Args:
        db: Holds ``kept(place, u, i)``.
        core: k; 0 and 1 keep all.

    Raises:
        ConfigurationError: Nothing is left.
    """
    rounds, before, after = 0, -1, count(db, "kept")
    while core > 1 and after != before:
        db.execute(_ROUND, {"core": core})
        db.execute(_REPLACE)
        before, after = after, count(db, "kept")
        rounds += 1
    if not after:
        raise ConfigurationError(f"nothing is left of the {core}-core: ask for a smaller --core, or 0")
    return rounds
