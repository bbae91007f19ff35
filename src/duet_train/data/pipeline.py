"""From raw files to a prepared directory: the steps in their order, out of core."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from duet import ConfigurationError, RatingScale
from duet_train.data import cleaning, kcore, log, output, splits, windows
from duet_train.data.manifest import MANIFEST, output_counts, write_manifest
from duet_train.data.settings import Settings

Read = Callable[[duckdb.DuckDBPyConnection], RatingScale]
"""Fills ``raw_interactions`` and ``raw_items`` of a connection, and gives the scale."""

STEPS = (
    "reading",
    "sorting by time",
    "dropping duplicates",
    "finding the core",
    "splitting",
    "finding histories",
    "finding evidence",
    "writing interactions",
    "writing items",
    "writing examples",
    "hashing",
)
"""What `build` tells, in this order, at the start of each step."""

_MEMORY_A_THREAD = 512 << 20
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def memory_bytes(text: str) -> int:
    """Bytes of "4GB", "512 MiB" and the like.

    Raises:
        ConfigurationError: It is no such size, or less than 256 MB.
    """
    number = text.strip().rstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz").strip()
    unit = text.strip()[len(number) :].strip().upper()
    try:
        size = int(float(number) * _UNITS[unit])
    except (KeyError, ValueError, OverflowError):
        raise ConfigurationError(f"memory must be a size such as 4GB, got {text!r}") from None
    if size < 256 * 10**6:
        raise ConfigurationError(f"memory must be at least 256MB, got {text!r}")
    return size


@contextmanager
def workplace(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A fresh directory beside `out` for everything unfinished; its folder ``result`` becomes `out` at the end.

    Whatever happens, nothing else stays behind.

    Raises:
        ConfigurationError: `out` is there and not empty, and `overwrite` is not set or it is no prepared directory.
    """
    _refuse_unless_free(out, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        (place / "result").mkdir()
        yield place
        if out.exists():
            os.rename(out, place / "old")
        os.rename(place / "result", out)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _refuse_unless_free(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigurationError(f"{out}: there is a file of this name")
    if not out.exists() or not any(out.iterdir()):
        return
    if not overwrite:
        raise ConfigurationError(f"{out}: is not empty; choose another directory, or say --overwrite")
    if not (out / MANIFEST).is_file():
        raise ConfigurationError(f"{out}: holds no {MANIFEST}, so it is not overwritten")


def connect(place: Path, *, memory: str = "4GB", threads: int | None = None) -> duckdb.DuckDBPyConnection:
    """A database on disk in `place`, which spills there too.

    Args:
        place: See `workplace`.
        memory: Most memory that DuckDB uses for data.
        threads: None: as many as there are cores, but no more than one for each 512 MB.

    Raises:
        ConfigurationError: `memory` or `threads` is nothing to work with.
    """
    size = memory_bytes(memory)
    if threads is not None and threads < 1:
        raise ConfigurationError(f"threads must be at least 1, got {threads}")
    count = threads or max(1, min(os.cpu_count() or 1, size // _MEMORY_A_THREAD))
    settings: dict[str, Any] = {
        "memory_limit": f"{size}B",
        "threads": count,
        "temp_directory": str(place / "spill"),
        "preserve_insertion_order": True,
    }
    db = duckdb.connect(str(place / "work.duckdb"), config=settings)
    # So that it knows how far a statement is, without printing that itself.
    db.execute("SET enable_progress_bar = true; SET enable_progress_bar_print = false")
    return db


def build(
    db: duckdb.DuckDBPyConnection,
    read: Read,
    result: Path,
    settings: Settings,
    *,
    scale: RatingScale | None = None,
    format_name: str = "",
    inputs: Mapping[str, Path] | None = None,
    begin: Callable[[str], None] = lambda step: None,
) -> dict[str, Any]:
    """Everything from raw files to the files of a prepared directory.

    Args:
        db: See `connect`; empty.
        read: See `Read`.
        result: An empty directory.
        settings: What to do.
        scale: Instead of the reader's.
        format_name: For the manifest.
        inputs: For the manifest: role to file.
        begin: Called with the name of each step of `STEPS` as it starts.

    Returns:
        The manifest.

    Raises:
        ConfigurationError: The input cannot be read, or nothing is left of it.
        RecordError: A row does not hold.
    """
    begin("reading")
    scale = read(db) if scale is None else _read_as(db, read, scale)
    cleaning.install(db)
    begin("sorting by time")
    counts: dict[str, Any] = {"read": log.order(db), "left_out": _left_out(db)}
    begin("dropping duplicates")
    counts["duplicates"] = log.keep_last(db)
    begin("finding the core")
    counts["core_rounds"] = kcore.keep_core(db, settings.core)
    log.number(db)
    begin("splitting")
    splits.assign(db, settings)
    begin("finding histories")
    windows.find(db, "history", settings)
    begin("finding evidence")
    windows.find(db, "evidence", settings)
    begin("writing interactions")
    output.write_interactions(db, result)
    begin("writing items")
    output.write_items(db, result)
    begin("writing examples")
    output.write_examples(db, result, settings)
    begin("hashing")
    counts |= output_counts(db, result)
    return write_manifest(
        result, settings=settings, scale=scale, counts=counts, format_name=format_name, inputs=inputs or {}
    )


def _read_as(db: duckdb.DuckDBPyConnection, read: Read, scale: RatingScale) -> RatingScale:
    read(db)
    log.check_scale(db, scale)
    return scale


def _left_out(db: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """What the reader itself left out, and why, where it tells."""
    if not db.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'raw_counts'").fetchall():
        return {}
    return dict(db.execute("SELECT name, rows FROM raw_counts ORDER BY name").fetchall())
