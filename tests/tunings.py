"""Rows with short prompts, and tiny policies to train on them; for the tests of `sft` and `dpo`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from duet import Message, ProfileSchema, RatingScale
from duet.testing import completion_text
from duet_train.dataset import Row
from duet_train.groups import Group, Sample, append_group

PROFILE = ProfileSchema(sides=("user",), sections=("profile",))

SHAPE = {"sides": "user", "sections": "profile", "history_limit": "2", "review_chars": "0"}
"""Options that keep the texts of a test short."""

WARNINGS = "ignore:.*gradient_checkpointing.*:FutureWarning"


def shortened(row: Row) -> Row:
    """The same row with a prompt of a few bytes, since each is a token of a tiny model."""
    asked: Message = {"role": "user", "content": f"pair {row.id}"}
    return attrs.evolve(row, messages=(asked,))


def scored(reward: float | None, text: str, *, rating: float | None = None, model: str = "a") -> Sample:
    """A sample whose user's profile is this text; one without a rating is no profile."""
    formed = rating is not None
    return Sample(
        model=model,
        temperature=1.0,
        seed=0,
        completion=completion_text(PROFILE, user_profile=text) if formed else text,
        reward=reward,
        rating=rating,
        error=None if formed else "MalformedCompletion: lacks user.profile",
    )


def group_of(example: int, gold: float, samples: Sequence[Sample]) -> Group:
    """A group of these samples."""
    return Group(example=example, user="u", item="i", gold=gold, scale=RatingScale(), samples=tuple(samples))


def written(path: Path, groups: Sequence[Group]) -> Path:
    """The file of these groups."""
    for group in groups:
        append_group(path, group)
    return path


def words(verb: str, data: Path, run: Path, model: Path, more: Mapping[str, Any]) -> list[str]:
    """A command line."""
    options = {"data": data, "output_dir": run, "model_name_or_path": model, "disable_tqdm": True} | SHAPE | dict(more)
    return [verb, *(part for name, value in options.items() for part in (f"--{name}", str(value)))]


def history(run: Path) -> list[dict[str, Any]]:
    """The lines of a run."""
    return [json.loads(line) for line in (run / "history.jsonl").read_text(encoding="utf-8").splitlines()]


def effective(run: Path, key: str) -> dict[int, float]:
    """The last line of each step counts."""
    return {line["step"]: line[key] for line in history(run)}
