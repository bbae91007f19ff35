"""Prepared examples as rows of training: a prompt, the shape of its completion, and what that is scored on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from duet import ConfigurationError, Example, Item, JointPrompt, Message, ProfileSchema, RatingScale
from duet_train.baselines import OneSidePrompt
from duet_train.data.prepared import ItemRequest, Prepared, PreparedExample
from duet_train.settings import Settings


@attrs.frozen(kw_only=True)
class Row:
    """One prompt of training.

    Args:
        id: The same in every run on the same data with the same sides.
        example: What a completion is scored on; the user has the recent raw rows alone, which a recommender may read.
        messages: The prompt.
        schema: The shape that a completion must have.
        subjects: Ids of all whose interactions the prompt shows.
    """

    id: int
    example: Example
    messages: tuple[Message, ...] = attrs.field(repr=False)
    schema: ProfileSchema
    subjects: frozenset[str] = attrs.field(default=frozenset(), repr=False)


def training_rows(data: Prepared, settings: Settings, *, seed: int) -> list[Row]:
    """The rows of the split, in the order of their ids.

    Args:
        data: What prepare wrote.
        settings: Split, number of rows, and the prompt.
        seed: Of the sample.

    Raises:
        ConfigurationError: There are none.
    """
    return _rows(data, settings, settings.split, settings.rows, seed)


def held_out_rows(data: Prepared, settings: Settings, *, seed: int) -> list[Row]:
    """The validation rows that are measured on the way; of the test split where there are none.

    Args:
        data: What prepare wrote.
        settings: How many, and the prompt.
        seed: Of the sample.
    """
    if not settings.held_out:
        return []
    splits = [split for split in ("validation", "test") if split != settings.split]
    for split in splits:
        if rows := _rows(data, settings, split, settings.held_out, seed, needed=False):
            return rows
    return []


def _rows(
    data: Prepared, settings: Settings, split: str, sample: int | None, seed: int, *, needed: bool = True
) -> list[Row]:
    examples = data.examples(split, sample=sample, seed=seed)  # type: ignore[arg-type]
    if needed and not examples:
        raise ConfigurationError(f"{data.directory}: the split {split!r} has no examples")
    prompts = prompts_of(settings, data.scale)
    return [_row(one, place, prompt, len(prompts)) for one in examples for place, prompt in enumerate(prompts)]


def _row(one: PreparedExample, place: int, prompt: JointPrompt, places: int) -> Row:
    return Row(
        id=one.id * places + place,
        example=attrs.evolve(one.example, user=one.recent_user),
        messages=prompt.render(one.profile_user, one.example.item),
        schema=prompt.schema,
        subjects=prompt.subjects(one.profile_user, one.example.item),
    )


def prompts_of(settings: Settings, scale: RatingScale) -> list[JointPrompt]:
    """The prompt of an example, or of each of its sides where they are written independently.

    Args:
        settings: Sides, sections and limits.
        scale: That the prompt names.
    """
    options: dict[str, Any] = {
        "history_limit": settings.history_limit,
        "evidence_limit": settings.evidence_limit,
        "review_chars": settings.review_chars,
        "scale": scale,
    }
    schema = settings.schema
    if not settings.independent:
        return [JointPrompt(schema=schema, **options)]
    return [OneSidePrompt(schema=attrs.evolve(schema, sides=(side,)), **options) for side in schema.sides]


def columns(rows: Sequence[Row]) -> Any:
    """The rows as TRL reads them: the prompt's messages, and the id by which a reward finds the rest.

    Args:
        rows: Any number.

    Returns:
        A `datasets.Dataset` with the columns "prompt" and "example".
    """
    from datasets import Dataset

    return Dataset.from_dict({"prompt": [list(row.messages) for row in rows], "example": [row.id for row in rows]})


def within(rows: Sequence[Row], lengths: Sequence[int], limit: int) -> list[Row]:
    """The rows whose prompt has at most `limit` tokens.

    Args:
        rows: Any number.
        lengths: Tokens of each prompt.
        limit: Of tokens.

    Raises:
        ConfigurationError: None is left.
    """
    kept = [row for row, length in zip(rows, lengths, strict=True) if length <= limit]
    if not kept:
        raise ConfigurationError(
            f"every prompt has more than max_prompt_length = {limit} tokens (the shortest {min(lengths)}): "
            "raise it, or show fewer rows (history_limit, evidence_limit) or shorter reviews (review_chars)"
        )
    return kept


def seen_items(data: Prepared) -> dict[str, set[str]]:
    """By user, the items that they rated in the training split: none of them is a wrong answer for that user.

    Args:
        data: What prepare wrote.
    """
    table = data.matrix("train")
    found: dict[str, set[str]] = {}
    for user, item in zip(table.users.tolist(), table.items.tolist(), strict=True):
        found.setdefault(table.user_ids[user], set()).add(table.item_ids[item])
    return found


def catalogue(data: Prepared) -> list[Item]:
    """Every item of the data, with title and attributes.

    Args:
        data: What prepare wrote.
    """
    return data.items(ItemRequest(item_id, split="train") for item_id in data.matrix("train").item_ids)
