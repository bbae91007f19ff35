"""Every file format by the name that the command line knows it by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import duckdb

from duet import RatingScale
from duet_train.data.own import read_own


class Reader(Protocol):
    """Reads files of one format into ``raw_interactions`` and ``raw_items``, and gives the scale of the ratings."""

    def __call__(self, db: duckdb.DuckDBPyConnection, interactions: Path, items: Path | None) -> RatingScale: ...


FORMATS: Mapping[str, Reader] = {
    "jsonl": read_own,
}
