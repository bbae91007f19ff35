"""What the tests of readers share: reading into a fresh connection, and the real samples where there are some."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import duckdb
import pytest

from duet import RatingScale
from duet_train.data.formats import FORMATS

FOLDER = Path(os.environ.get("DUET_TEST_DATA", ""))
SAMPLES = FOLDER / "raw_samples"

real_samples = pytest.mark.skipif(
    not os.environ.get("DUET_TEST_DATA") or not SAMPLES.is_dir(),
    reason="set DUET_TEST_DATA to a folder of data sets that holds raw_samples",
)


@attrs.frozen
class Tables:
    """What a reader made."""

    scale: RatingScale
    rows: list[tuple[int, str, str, float, float | None, str | None, str | None]]
    items: dict[str, tuple[str | None, dict[str, str]]]
    counts: dict[str, int]

    @property
    def pairs(self) -> list[tuple[str, str, float]]:
        """User, item and rating of every row, in order."""
        return [row[1:4] for row in self.rows]

    @property
    def times(self) -> list[float | None]:
        """Of every row, in order."""
        return [row[4] for row in self.rows]

    @property
    def texts(self) -> list[tuple[str | None, str | None]]:
        """Title and text of the review of every row, in order."""
        return [row[5:] for row in self.rows]

    def attributes(self, item_id: str) -> dict[str, str]:
        """Of an item."""
        return self.items[item_id][1]


@contextmanager
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in memory."""
    with duckdb.connect() as db:
        yield db


def tables(db: duckdb.DuckDBPyConnection, scale: RatingScale) -> Tables:
    """The tables as they are in a connection."""
    rows = db.table("raw_interactions").order("source_row").fetchall()
    items = db.table("raw_items").order("item_id").fetchall()
    return Tables(
        scale,
        rows,
        {item_id: (title, json.loads(attributes)) for item_id, title, attributes in items},
        dict(db.table("raw_counts").fetchall()),
    )


def read(name: str, interactions: Path, items: Path | None = None) -> Tables:
    """Files of a format."""
    with connection() as db:
        return tables(db, FORMATS[name](db, interactions, items))


def written(directory: Path, name: str, content: str | bytes, encoding: str = "utf-8") -> Path:
    """A file with this content."""
    path = directory / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def json_lines(*records: dict[str, Any]) -> str:
    """Records, one a line."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def sample(name: str) -> Path:
    """A real sample, or a skipped test where the folder has none of the name."""
    path = SAMPLES / name
    if not path.exists():
        pytest.skip(f"{SAMPLES} holds no {name}")
    return path


def sample_objects(name: str) -> list[dict[str, Any]]:
    """The objects of a JSON-lines sample, read without any reader."""
    return [json.loads(line) for line in sample(name).read_text(encoding="utf-8").splitlines() if line.strip()]
