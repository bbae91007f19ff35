"""What a stream yields: text from an endpoint, sections from a profiler. Events are matched by class."""

from __future__ import annotations

import attrs

from duet._results import Completion, JointProfile


@attrs.frozen
class TextDelta:
    """Text of a completion as it arrives: all that one read from the socket brought, so one token or many.

    Args:
        text: What is new, as it is: tags and white space included.
    """

    text: str


@attrs.frozen
class GenerationEnd:
    """The last thing an endpoint's stream yields: the whole completion, with finish_reason, usage and model.

    Args:
        completion: Its text is that of all deltas, joined.
    """

    completion: Completion


@attrs.frozen
class SectionDelta:
    """A piece of a section's text. The pieces of one section, joined, are the text of its `SectionDone`.

    Pieces are told before it is known whether the section counts: one that is abandoned by its side's closing tag, or
    dropped by a late ``</think>``, is followed by no `SectionDone`, and its name may be written anew. What counts is
    the profile of `GenerationDone` alone.

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
    """A section is closed. A late ``</think>`` still drops it; what counts is the profile of `GenerationDone`.

    Args:
        side: "user" or "item".
        section: "cue", "constructed_prompt" or "profile".
        text: All of it, without surrounding white space; never blank.
    """

    side: str
    section: str
    text: str


@attrs.frozen
class GenerationDone:
    """The last event of a stream: the finished profile.

    Args:
        profile: What `JointProfiler.profile` would have returned.
        finish_reason: As the endpoint gave it; "length" is no error where every section was closed before.
    """

    profile: JointProfile
    finish_reason: str | None = None


ProfileEvent = SectionDelta | SectionDone | GenerationDone
