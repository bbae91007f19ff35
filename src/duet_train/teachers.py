"""Completions without a model, in the form that a policy shall learn: what a warm start is trained on. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import attrs

from duet import ConfigurationError, Interaction, Item, ProfileSchema, RatingScale, User
from duet.testing import completion_text
from duet_train.baseline_template import TemplateProfiler

TEACHERS = ("template",)
"""What ``--teacher`` takes."""

_CONSTRUCTED_PROMPTS = {
    "user": "Say how high this user rates, what they rated high and low, and which words recur.",
    "item": "Say what the item is, how it is rated, and what its reviewers praise and criticise.",
}


@attrs.frozen(kw_only=True)
class TemplateTeacher:
    """The template profiler's texts in DUET's tagged form, so that they parse and can be trained on.

    The profiles are those of `TemplateProfiler`, word for word. The cue is the count, the average and the ends
    of the ratings of the same rows; the constructed prompt says what the template fills in, and is always the same.

    Args:
        schema: The sections to write; its `max_chars` holds for each.
        history_limit: Most rows of the user's history, the most recent ones.
        evidence_limit: Most rows of the item's evidence, the most recent ones.
        scale: The ratings' own.

    Raises:
        ConfigurationError: A number cannot work.
    """

    schema: ProfileSchema = ProfileSchema()
    history_limit: int = 10
    evidence_limit: int = 10
    scale: RatingScale = RatingScale()

    def completion(self, user: User, item: Item) -> str:
        """The completion for one pair: the same input gives the same text.

        Args:
            user: With the history that the prompt shows.
            item: With the evidence that the prompt shows.
        """
        limit = self.schema.max_chars
        profiler = TemplateProfiler(
            max_chars=limit,
            scale=self.scale,
            history_limit=self.history_limit,
            evidence_limit=self.evidence_limit,
        )
        made = anyio.run(profiler.profile, user, item)
        assert made.user is not None
        assert made.item is not None
        texts = {
            "user_cue": _cue(_latest(user.history, self.history_limit)),
            "user_constructed_prompt": _CONSTRUCTED_PROMPTS["user"],
            "user_profile": made.user.text,
            "item_cue": _cue(_latest(item.evidence, self.evidence_limit)),
            "item_constructed_prompt": _CONSTRUCTED_PROMPTS["item"],
            "item_profile": made.item.text,
        }
        asked = (f"{side}_{section}" for side, section in self.schema.slots)
        return completion_text(self.schema, **{name: texts[name][:limit].rstrip() for name in asked})


def teacher(name: str, **settings: Any) -> TemplateTeacher:
    """The teacher of a name.

    Args:
        name: One of `TEACHERS`.
        **settings: Its arguments.

    Raises:
        ConfigurationError: There is no such teacher.
    """
    if name not in TEACHERS:
        raise ConfigurationError(f"no teacher {name!r}: there is {', '.join(TEACHERS)}")
    return TemplateTeacher(**settings)


def _cue(rows: Sequence[Interaction]) -> str:
    """How many ratings, how high, and how far apart.

    Nothing of open length: small models that have learnt to list words go on listing them.
    """
    if not rows:
        return "no ratings yet"
    ratings = [row.rating for row in rows]
    count = f"{len(rows)} rating{'s' if len(rows) > 1 else ''}"
    return f"{count}, average {sum(ratings) / len(ratings):.1f}, lowest {min(ratings):g}, highest {max(ratings):g}"


def _latest(rows: Sequence[Interaction], limit: int) -> Sequence[Interaction]:
    return rows[-limit:] if limit else ()
