"""Scored groups: several completions of one prompt with their rewards, a JSON line a group."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from duet import ConfigurationError, RatingScale

FILE = "groups.jsonl"
"""What `explore` calls the file in its folder."""


@attrs.frozen(kw_only=True)
class Sample:
    """One completion and what it earned.

    Args:
        model: Which model wrote it, by the name that the endpoint knows.
        temperature: It was sampled at.
        seed: It was sampled with.
        completion: The whole text.
        finish_reason: As the endpoint gave it.
        reward: None where nothing can be said of it.
        terms: The reward's terms by name, before weighting; empty for one that is no profile.
        rating: What the recommender predicted, in rating points.
        error: Why there is no reward, or that the completion is no profile.
        prompt_tokens: As the endpoint counted them.
        completion_tokens: As the endpoint counted them.
    """

    model: str
    temperature: float
    seed: int
    completion: str = attrs.field(repr=False)
    finish_reason: str | None = None
    reward: float | None = None
    terms: Mapping[str, float] = attrs.field(factory=dict, hash=False)
    rating: float | None = None
    error: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    @property
    def arm(self) -> tuple[str, float]:
        """Model and temperature."""
        return self.model, self.temperature

    @property
    def well_formed(self) -> bool:
        """True for a profile that has a reward."""
        return self.reward is not None and self.error is None


@attrs.frozen(kw_only=True)
class Group:
    """The samples of one prompt.

    Args:
        example: Id of the row of training.
        user: Id of the user.
        item: Id of the item.
        gold: The true rating, in rating points.
        scale: Of gold and predictions.
        samples: In the order in which they were asked for.
    """

    example: int
    user: str
    item: str
    gold: float
    scale: RatingScale
    samples: tuple[Sample, ...]


def append_group(path: Path, group: Group) -> None:
    """Add one line at the end of a file, on disk before this returns.

    The line is written in one call, so that of a process that is killed nothing is left but whole lines, or one torn
    line at the end, which `mend` cuts off.

    Args:
        path: Made where it does not exist.
        group: To be added.
    """
    fields = attrs.asdict(group) | {"scale": [group.scale.minimum, group.scale.maximum]}
    line = json.dumps(fields, ensure_ascii=False, allow_nan=False) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        data = line.encode()
        if os.write(descriptor, data) < len(data):
            raise OSError(f"{path}: the disk took part of a line only")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def mend(path: Path) -> None:
    """Cut off a torn line at the end of a file, which a killed process may have left.

    Args:
        path: Nothing is done where it does not exist.
    """
    if not path.exists():
        return
    whole = path.read_bytes()
    kept = whole.rfind(b"\n") + 1
    if kept < len(whole):
        with path.open("r+b") as file:
            file.truncate(kept)


def group_file(path: Path) -> Path:
    """The file itself, where the folder of a run is named.

    Args:
        path: A file, or what `explore` made.

    Raises:
        ConfigurationError: There is none.
    """
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise ConfigurationError(f"{file}: no such file; explore writes one")
    return file


def read_groups(path: Path) -> list[Group]:
    """All groups of a file; a torn last line counts for nothing.

    Args:
        path: The file.

    Raises:
        ConfigurationError: A line holds no group; names the line and the key.
    """
    return [_group(fields, f"{path}:{number}") for number, fields in json_lines(path)]


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file with their line numbers; a last line without an end that is no JSON is passed over.

    Args:
        path: The file.

    Raises:
        ConfigurationError: It cannot be read, or a line is no JSON object.
    """
    try:
        # Not splitlines: JSON may hold U+2028, which that takes for the end of a line.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigurationError(f"{path}: cannot be read ({type(exc).__name__})") from exc
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line) if line.strip() else None
        except ValueError as exc:
            if number == len(lines):
                return
            raise ConfigurationError(f"{path}:{number}: not JSON: {exc}") from None
        if value is not None and not isinstance(value, dict):
            raise ConfigurationError(f"{path}:{number}: not a JSON object")
        if value is not None:
            yield number, value


def required(fields: Mapping[str, Any], name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """A key of a line.

    Args:
        fields: The line.
        name: The key.
        kind: What its value must be.
        where: File and line.

    Raises:
        ConfigurationError: It is missing, or of another kind.
    """
    if name not in fields:
        raise ConfigurationError(
            f"{where}: the key {name!r} is missing; there are {', '.join(sorted(fields)) or 'none'}"
        )
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, kind):
        raise ConfigurationError(f"{where}: {name!r} holds {value!r:.60}, which is of the wrong kind")
    return value


def _group(fields: Mapping[str, Any], where: str) -> Group:
    low, high = required(fields, "scale", list, where)
    samples = required(fields, "samples", list, where)
    return Group(
        example=required(fields, "example", int, where),
        user=required(fields, "user", str, where),
        item=required(fields, "item", str, where),
        gold=required(fields, "gold", (int, float), where),
        scale=RatingScale(low, high),
        samples=tuple(_sample(one, where) for one in samples),
    )


_OPTIONAL = ("finish_reason", "reward", "rating", "error", "prompt_tokens", "completion_tokens")


def _sample(fields: Any, where: str) -> Sample:
    if not isinstance(fields, Mapping):
        raise ConfigurationError(f"{where}: 'samples' must hold objects, got {fields!r:.60}")
    return Sample(
        model=required(fields, "model", str, where),
        temperature=float(required(fields, "temperature", (int, float), where)),
        seed=required(fields, "seed", int, where),
        completion=required(fields, "completion", str, where),
        terms=fields.get("terms") or {},
        **{name: fields.get(name) for name in _OPTIONAL},
    )
