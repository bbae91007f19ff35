"""What supervised fine-tuning is trained on: the best of each group, given completions, or a teacher's."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from duet import Completion, CompletionError, ConfigurationError, ProfileSchema, User, parse_profile
from duet_train.data.prepared import Prepared
from duet_train.dataset import Row
from duet_train.groups import Group, json_lines, required
from duet_train.settings import Settings
from duet_train.teachers import teacher


def read_completions(path: Path) -> list[tuple[int, str]]:
    """Given completions: JSON lines with "example", the id of a row, and "completion", its whole text.

    Args:
        path: The file; other keys are passed over, and an example may have several lines.

    Raises:
        ConfigurationError: It cannot be read, holds none, or a line lacks a key.
    """
    found = [
        (required(fields, "example", int, f"{path}:{line}"), required(fields, "completion", str, f"{path}:{line}"))
        for line, fields in json_lines(path)
    ]
    if not found:
        raise ConfigurationError(f"{path}: holds no completion")
    return found


def best_of(groups: Sequence[Group], *, seed: int, min_reward: float | None = None) -> list[tuple[int, str]]:
    """The well-formed completion of the highest reward of each group; chance decides between equals.

    Args:
        groups: As `explore` wrote them; one without a well-formed completion has no best.
        seed: Of the choice between equals. Taking the first would favour whichever model is named first.
        min_reward: Groups whose best earned less are left out.

    Raises:
        ConfigurationError: No group has one.
    """
    chosen = []
    for group in groups:
        known = [sample for sample in group.samples if sample.well_formed]
        best = max((sample.reward for sample in known if sample.reward is not None), default=None)
        if best is not None and (min_reward is None or best >= min_reward):
            equals = sorted({sample.completion for sample in known if sample.reward == best})
            chosen.append((group.example, random.Random(f"{seed}:{group.example}").choice(equals)))
    if not chosen:
        formed = sum(any(sample.well_formed for sample in group.samples) for group in groups)
        raise ConfigurationError(
            f"no completion to train on: of {len(groups)} groups {formed} have a well-formed completion"
            + ("" if min_reward is None else f", and none has one of a reward of {min_reward:g} or more")
        )
    return chosen


def taught(name: str, data: Prepared, rows: Sequence[Row], settings: Settings, *, seed: int) -> list[tuple[int, str]]:
    """A teacher's completion for each row.

    Args:
        name: Of the teacher.
        data: Where the rows come from.
        rows: With the shapes of their completions.
        settings: Limits of the prompt, which hold for the teacher too.
        seed: Of the sample of rows.

    Raises:
        ConfigurationError: There is no such teacher.
    """
    shown = _shown_users(data, settings, seed)
    teachers = {
        schema: teacher(
            name,
            schema=schema,
            history_limit=settings.history_limit,
            evidence_limit=settings.evidence_limit,
            scale=data.scale,
        )
        for schema in {row.schema for row in rows}
    }
    return [(row.id, teachers[row.schema].completion(shown[row.id], row.example.item)) for row in rows]


def _shown_users(data: Prepared, settings: Settings, seed: int) -> dict[int, User]:
    """By the id of a row, the user as the prompt shows them: without the recent rows that a recommender reads raw."""
    sides = len(settings.schema.sides) if settings.independent else 1
    examples = data.examples(settings.split, sample=settings.rows, seed=seed)  # type: ignore[arg-type]
    return {one.id * sides + side: one.profile_user for one in examples for side in range(sides)}


def matched(given: Sequence[tuple[int, str]], rows: Sequence[Row], source: str) -> list[tuple[Row, str]]:
    """Each completion with its row.

    Args:
        given: Ids of rows, and completions.
        rows: Of the data that the run names.
        source: What to call the origin of the completions.

    Raises:
        ConfigurationError: A completion belongs to no row.
    """
    by_id: Mapping[int, Row] = {row.id: row for row in rows}
    unknown = [example for example, _ in given if example not in by_id]
    if unknown:
        raise ConfigurationError(
            f"{source}: {len(unknown)} of {len(given)} completions belong to no row, such as example {unknown[0]}; "
            "name the data, split, rows, seed and independent that they were made with"
        )
    return [(by_id[example], text) for example, text in given]


def well_formed(pairs: Sequence[tuple[Row, str]], source: str) -> list[tuple[Row, str]]:
    """The pairs whose completion parses under its row's schema: to train on others would teach another form.

    Args:
        pairs: Rows and completions.
        source: What to call their origin.

    Raises:
        ConfigurationError: None does.
    """
    kept = [(row, text) for row, text in pairs if parses(text, row.schema)]
    if not kept:
        sections = ", ".join(f"{side}.{name}" for side, name in pairs[0][0].schema.slots)
        raise ConfigurationError(f"{source}: none of {len(pairs)} completions has the sections {sections}")
    return kept


def parses(text: str, schema: ProfileSchema) -> bool:
    """Whether a completion is a profile.

    Args:
        text: The whole completion.
        schema: The shape that it must have.
    """
    try:
        parse_profile(Completion(text), schema)
    except CompletionError:
        return False
    return True
