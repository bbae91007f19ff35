"""The card of a run: what it was made from, with which settings and versions, and what came of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from duet_train.data.prepared import Prepared
from duet_train.modes import AUTO
from duet_train.settings import Settings

PACKAGES = ("duet-profiles", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "safetensors", "numpy")
SUPPORTED = {"trl": ((1, 16), (2, 0)), "transformers": ((5, 2), (6, 0)), "peft": ((0, 19), (1, 0))}
"""From and below which versions this loop is known to work; beyond them the check before the first step warns."""


def versions() -> dict[str, str]:
    """What is installed, with the interpreter."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def unsupported() -> list[str]:
    """A sentence for each package outside the versions that this loop is known to work with."""
    sentences = []
    for package, (lowest, below) in SUPPORTED.items():
        found = tuple(int(part) for part in version(package).split(".")[:2] if part.isdigit())
        if not lowest <= found < below:
            span = f"{'.'.join(map(str, lowest))} or newer, below {'.'.join(map(str, below))}"
            sentences.append(f"{package} {version(package)} is installed; this loop is known to work with {span}")
    return sentences


class Card:
    """``card.json`` of a run directory, rewritten whole whenever something is added.

    Args:
        folder: The run directory.
        values: What it holds.
        writes: Whether this process is the one that writes it, where there are several.
    """

    def __init__(self, folder: Path, values: dict[str, Any], *, writes: bool = True) -> None:
        self.path: Path = folder / "card.json"
        self.values: dict[str, Any] = values
        self._writes = writes

    def update(self, **values: Any) -> None:
        """Add to the card and write it.

        Args:
            **values: By key.
        """
        self.values |= values
        if not self._writes:
            return
        scratch = self.path.with_suffix(".json.new")
        scratch.write_text(json.dumps(plain(self.values), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        os.replace(scratch, self.path)


def start_card(
    folder: Path,
    verb: str,
    data: Prepared,
    rows: int,
    settings: Settings,
    training_args: Any = None,
    model_args: Any = None,
    *,
    seed: int | None = None,
) -> Card:
    """The card of a run that starts or goes on.

    Args:
        folder: The run directory.
        verb: Of the command.
        data: What prepare wrote.
        rows: Of training.
        settings: This project's own keys.
        training_args: TRL's, every default in force included; None where no model is trained.
        model_args: TRL's ModelConfig; None likewise.
        seed: Where there are no training arguments that hold it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    card = Card(folder, read_card(folder), writes=training_args is None or training_args.process_index == 0)
    card.values.setdefault("started", now)
    card.update(
        verb=verb,
        status="running",
        attempt=card.values.get("attempt", -1) + 1,
        seed=seed if training_args is None else training_args.seed,
        data={
            "directory_name": data.directory.resolve().name,
            "manifest_sha256": manifest_digest(data),
            "files": data.manifest.get("outputs", []),
            "rows": rows,
            "scale": [data.scale.minimum, data.scale.maximum],
        },
        versions=versions(),
        settings=dataclasses.asdict(settings),
        training_args={} if training_args is None else training_args.to_dict(),
        model={}
        if model_args is None
        else {one.name: getattr(model_args, one.name) for one in dataclasses.fields(model_args)},
        recommender=settings.recommender,
    )
    return card


def manifest_digest(data: Prepared) -> str:
    """SHA-256, in hex, of the manifest, which holds the digest of every file.

    Args:
        data: What prepare wrote.
    """
    return hashlib.sha256((data.directory / "manifest.json").read_bytes()).hexdigest()


def read_card(folder: Path) -> dict[str, Any]:
    """What the card of a run directory holds; nothing where there is none that can be read.

    Args:
        folder: The run directory.
    """
    try:
        values: dict[str, Any] = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values


def plain(value: Any) -> Any:
    """The same as JSON can hold it: what is no finite number is null, and what is no value of JSON its text."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def write_adapter_card(folder: Path, card: Card) -> None:
    """The model card beside the weights of an adapter.

    Args:
        folder: With the weights.
        card: Of the run.
    """
    values = card.values
    base = values["model"]["model_name_or_path"]
    lines = [
        "---",
        f"base_model: {json.dumps(base)}",
        "library_name: peft" if values["model"]["use_peft"] else "library_name: transformers",
        "tags: [recommendation, user-profiles]",
        "---",
        "",
        f"# A profiler trained by `python -m duet_train {values['verb']}`",
        "",
        f"- Base model: {base}",
        f"- Data: {values['data']['directory_name']}, manifest sha256 {values['data']['manifest_sha256'][:16]}…, "
        f"{values['data']['rows']} rows",
        f"- Recommender: {_recommender(values)}; rewards: {values['settings']['rewards']}",
        f"- Seed {values['seed']}; trl {values['versions']['trl']}, transformers {values['versions']['transformers']}, "
        f"peft {values['versions']['peft']}, torch {values['versions']['torch']}",
        "",
    ]
    for when, found in values.get("held_out", {}).items():
        reward, rate, rows = (found.get(key) for key in ("reward", "parse_rate", "rows"))
        lines.append(f"Held-out reward at the {when}: {_figure(reward)}, parse rate {_figure(rate)}, {rows} rows.")
    lines += ["", "All settings are in `card.json` of the run. Written profiles are a model's guesses about people."]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _recommender(values: Mapping[str, Any]) -> str:
    """Its address and how it is asked; a fitted head, and one that no reward asks, have no mode."""
    mode = values["settings"].get("recommender_mode", AUTO)
    return (values["recommender"] or "none") + ("" if mode == AUTO else f", mode {mode}")


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
