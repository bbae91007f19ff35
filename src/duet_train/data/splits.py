"""Which rows train, validate and test.

Each function adds ``split`` to the log: 0 train, 1 validation, 2 test, 3 dropped.
"""

from __future__ import annotations

import math

import duckdb

from duet_train.data.log import count
from duet_train.data.settings import Settings

NAMES = ("train", "validation", "test", "dropped")

# Rows of one moment stay together, in the earlier split, so that all of train lies strictly before all of validation.
_GLOBAL_TIME = """
CREATE TABLE parted AS
SELECT *, CASE WHEN clock <= (SELECT clock FROM log WHERE row = $train - 1) THEN 0
               WHEN clock <= (SELECT clock FROM log WHERE row = $validation - 1) THEN 1 ELSE 2 END::TINYINT AS split
FROM log ORDER BY row
"""

_LEAVE_LAST_ONE_OUT = """
CREATE TABLE parted AS
SELECT * EXCLUDE (back, size), CASE WHEN back = 1 AND size >= 2 THEN 2 WHEN back = 2 AND size >= 3 THEN 1
                                    ELSE 0 END::TINYINT AS split
FROM (SELECT *, row_number() OVER (PARTITION BY u ORDER BY row DESC) AS back, count(*) OVER (PARTITION BY u) AS size
      FROM log)
ORDER BY row
"""

# A digest orders users the same way on every machine and in every release, which a random function would not.
_BY_USER = """
CREATE TABLE parted AS
SELECT log.*, CASE WHEN place <= $train THEN 0 WHEN place <= $validation THEN 1 ELSE 2 END::TINYINT AS split
FROM log JOIN (SELECT u, row_number() OVER (ORDER BY md5($seed || ':' || user_id), user_id) AS place
               FROM users SEMI JOIN log USING (u)) USING (u)
ORDER BY row
"""

_DROP_UNSEEN_ITEMS = """
UPDATE log SET split = 3 WHERE split IN (1, 2) AND i NOT IN (SELECT i FROM log WHERE split = 0)
"""
_DROP_UNSEEN_USERS = """
UPDATE log SET split = 3 WHERE split IN (1, 2) AND u NOT IN (SELECT u FROM log WHERE split = 0)
"""


def assign(db: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    """Add ``split`` to ``log``.

    - "global-time": by time, at the two cuts of ``ratios``; then validation and test rows of users or items that train
      has not seen are dropped (DUET).
    - "leave-last-one-out": a user's last row is test and the one before it validation; users with two rows have no
      validation row, users with one have train alone. Nothing is dropped: an item may be new.
    - "by-user": all rows of a user go to one split, users in the order of a seeded digest; then validation and test
      rows of items that train has not seen are dropped (LangPTune).
    """
    match settings.split:
        case "global-time":
            _part(db, _GLOBAL_TIME, _cuts(settings, count(db, "log")))
            db.execute(_DROP_UNSEEN_USERS)
            db.execute(_DROP_UNSEEN_ITEMS)
        case "leave-last-one-out":
            _part(db, _LEAVE_LAST_ONE_OUT, {})
        case "by-user":
            ((users,),) = db.table("log").aggregate("count(DISTINCT u)").fetchall()
            _part(db, _BY_USER, {**_cuts(settings, users), "seed": str(settings.seed)})
            db.execute(_DROP_UNSEEN_ITEMS)


def _part(db: duckdb.DuckDBPyConnection, statement: str, parameters: dict[str, object]) -> None:
    db.execute(statement, parameters)
    db.execute("DROP TABLE log; ALTER TABLE parted RENAME TO log")


def _cuts(settings: Settings, total: int) -> dict[str, object]:
    """How many of `total` lie before each cut; train has at least one."""
    # The small addition keeps 0.1 + 0.8 from cutting one short of what the ratios mean.
    train, validation = (math.floor(total * share + 1e-9) for share in settings.cuts)
    return {"train": max(train, 1), "validation": max(validation, 1)}
