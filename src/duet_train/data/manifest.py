"""The manifest: what went in, what was asked, what came out, and the digest of every file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import attrs
import duckdb

from duet import ConfigurationError, RatingScale
from duet_train.data.output import EXAMPLES, INTERACTIONS, ITEMS
from duet_train.data.settings import Settings

MANIFEST = "manifest.json"
VERSION = 1

_WHOLE = """
SELECT count(*) AS rows, count(DISTINCT user_id) AS users, count(DISTINCT item_id) AS items,
       count(timestamp) AS with_time, count(review) AS with_text
FROM read_parquet($interactions)
"""
_SPLITS = """
SELECT split, count(*) AS rows, count(DISTINCT user_id) AS users, count(DISTINCT item_id) AS items
FROM read_parquet($interactions) GROUP BY split
"""
_EXAMPLES = "SELECT split, count(*) FROM read_parquet($examples) GROUP BY split"
_TITLES = "SELECT count(title) FROM read_parquet($items)"


def file_facts(path: Path) -> dict[str, Any]:
    """Name, bytes and SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}


def output_counts(db: duckdb.DuckDBPyConnection, directory: Path) -> dict[str, Any]:
    """What the written files hold, as a whole and by split.

    ``without_history`` counts targets with fewer than ``min_history`` rows before them: they are in no example.
    """
    paths = {name: str(directory / file) for name, file in _FILES.items()}
    interactions = {"interactions": paths["interactions"]}
    whole = _records(db, _WHOLE, interactions)[0]
    ((whole["items_with_title"],),) = db.execute(_TITLES, {"items": paths["items"]}).fetchall()
    examples = dict(db.execute(_EXAMPLES, {"examples": paths["examples"]}).fetchall())
    found = {record.pop("split"): record for record in _records(db, _SPLITS, interactions)}
    none = {"rows": 0, "users": 0, "items": 0}
    splits = {name: {**none, **found.get(name, {})} for name in ("train", "validation", "test", "dropped")}
    for name in ("train", "validation", "test"):
        splits[name]["examples"] = examples.get(name, 0)
        splits[name]["without_history"] = splits[name]["rows"] - splits[name]["examples"]
    return {**whole, "splits": splits}


_FILES = {"interactions": INTERACTIONS, "items": ITEMS, "examples": EXAMPLES}


def _records(db: duckdb.DuckDBPyConnection, query: str, parameters: dict[str, str]) -> list[dict[str, Any]]:
    cursor = db.execute(query, parameters)
    names = [column[0] for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def write_manifest(
    directory: Path,
    *,
    settings: Settings,
    scale: RatingScale,
    counts: Mapping[str, Any],
    format_name: str,
    inputs: Mapping[str, Path],
) -> dict[str, Any]:
    """Write ``manifest.json`` beside the files it describes.

    It holds no date, no path and nothing of the machine, so that the same input and settings give the same bytes. The
    version of DuckDB is in it because it writes the files.

    Args:
        directory: Holds the three files.
        settings: As asked.
        scale: Of all ratings.
        counts: What was read, left out and kept.
        format_name: How the input was read.
        inputs: Role to file.

    Returns:
        The manifest.
    """
    manifest = {
        "manifest": VERSION,
        "duet": metadata.version("duet-profiles"),
        "duckdb": duckdb.__version__,
        "format": format_name,
        "settings": attrs.asdict(settings),
        "scale": attrs.asdict(scale),
        "counts": dict(counts),
        "inputs": {role: file_facts(path) for role, path in inputs.items()},
        "outputs": [file_facts(directory / name) for name in _FILES.values()],
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    (directory / MANIFEST).write_text(f"{text}\n", encoding="utf-8")
    return manifest


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a directory.

    Raises:
        ConfigurationError: There is none, or it is of another kind.
    """
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"{directory}: no {MANIFEST}; make one with: python -m duet_train prepare") from None
    except (OSError, ValueError) as exc:
        raise ConfigurationError(f"cannot read {path}: {exc}") from exc
    if not isinstance(manifest, dict) or manifest.get("manifest") != VERSION:
        raise ConfigurationError(f"{path}: not a manifest of version {VERSION}; prepare the data again")
    return manifest


def verify(directory: Path, outputs: Iterable[Mapping[str, Any]]) -> None:
    """Compare files with what the manifest says of them.

    Raises:
        ConfigurationError: One is missing or differs; names it.
    """
    for said in outputs:
        path = directory / said["name"]
        if not path.is_file() or file_facts(path) != said:
            raise ConfigurationError(f"{path}: missing, or not the file that {MANIFEST} describes; prepare it again")
