"""What a stream yields: text from an endpoint, sections from a profiler. Events are matched by class."""

from __future__ import annotations

import attrs

from duet._records import Completion, JointProfile


@attrs.frozen
class TextDelta:
    """Text of a completion as it arrives: all that one read from the socket brought, so one token or many."""

    text: str


@attrs.frozen
class GenerationEnd:
    """The last thing an endpoint's stream yields: the whole completion, with finish_reason, usage and model."""

    completion: Completion


@attrs.frozen
class SectionDelta:
    """A piece of a section's text. The pieces of one section, joined, are the text of its `SectionDone`.

    Args:
        side: "user" or "item".
        section: "cue", "constructed_prompt" or "profile".
        delta: The new piece; never empty.
    """

    side: str
    section: str
    delta: str


@attrs.frozen
class SectionDone:
    """A section is closed; `text` is all of it, without surrounding white space."""

    side: str
    section: str
    text: str


@attrs.frozen
class GenerationDone:
    """The last event of a stream: the finished profile."""

    profile: JointProfile
    finish_reason: str | None = None


ProfileEvent = SectionDelta | SectionDone | GenerationDone
