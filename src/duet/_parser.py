"""Text to sections, as it comes; and the one parser of ratings.

Pure: `feed` knows no network and no clock. Serving, training and evaluation all read completions through here.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Mapping

from duet._errors import MalformedCompletion, RatingError, TruncatedCompletion
from duet._events import SectionDelta, SectionDone
from duet._markup import markup_in
from duet._records import RatingScale
from duet._results import Completion, Cues, JointProfile, Profile
from duet._schema import ProfileSchema, Slot, block, is_blank

SectionEvent = SectionDelta | SectionDone

_THINK = re.compile(r"<think>.*?(?:</think>|\Z)|\A.*</think>", re.I | re.S | re.A)


class SectionParser:
    """Finds the sections of a schema in a completion that arrives in pieces.

    Any way to cut the text gives the same sections. Tags are matched without regard to case. A section counts inside
    its side's block only, the first of its name wins, and one of white space and punctuation alone is missing. Text
    outside the tags is passed over, and so is ``<think>…</think>``; a ``</think>`` whose opening tag was part of the
    prompt drops all that stood before it.

    Events are told as the text comes. A section that is abandoned by its side's closing tag, or dropped by a late
    ``</think>``, has told deltas by then that no `SectionDone` follows, so only what `close` returns, and with it the
    profile of `GenerationDone`, counts.

    Args:
        schema: The sides and sections to look for; all others are passed over.

    Example:
        >>> parser = SectionParser(ProfileSchema(sides="user", sections="profile"))
        >>> parser.feed("<user_profile><profile>Likes ")
        [SectionDelta(side='user', section='profile', delta='Likes')]
        >>> parser.feed("maps.</profile></user_profile>")[-1]
        SectionDone(side='user', section='profile', text='Likes maps.')
        >>> parser.close()
        {('user', 'profile'): 'Likes maps.'}
    """

    def __init__(self, schema: ProfileSchema) -> None:
        self._schema = schema
        self._states = _states(schema)
        self._pieces: list[str] = []
        self._held = ""
        self._done: dict[Slot, str] = {}
        self._side, self._section = "", ""
        self._text: list[str] = []
        self._blank = ""
        self._tags = self._states["", ""]

    @property
    def completion(self) -> str:
        """All the text fed so far."""
        return "".join(self._pieces)

    def feed(self, text: str) -> list[SectionEvent]:
        """Take the next piece of the completion; return what it brought.

        Args:
            text: Of any length, cut anywhere; what may be part of a tag is held back until the next piece.
        """
        self._pieces.append(text)
        if self._text and not self._held and text and "<" not in text and not text[-1].isspace():
            self._text.append(text)
            return [SectionDelta(self._side, self._section, text)]
        events: list[SectionEvent] = []
        self._held = self._scan(self._held + text, events)
        return events

    def close(self, finish_reason: str | None = None) -> Mapping[Slot, str]:
        """End the completion.

        Args:
            finish_reason: What the endpoint gave; "length" tells a cut completion from a malformed one.

        Returns:
            The text of each section by (side, section), in the schema's order.

        Raises:
            TruncatedCompletion: Sections are missing and the token limit, or an unclosed ``<think>``, is why.
            MalformedCompletion: Sections are missing, or not plain where the schema asks for plain text.
        """
        missing = tuple(f"{side}.{name}" for side, name in self._schema.slots if (side, name) not in self._done)
        if not missing:
            self._check_plain()
            return {slot: self._done[slot] for slot in self._schema.slots}
        if finish_reason == "length" or self._tags is _THINKING:
            why = "inside <think>" if self._tags is _THINKING else f"before {missing[0]} was closed"
            advice = (
                "raise max_tokens"
                if self._done or self._side
                else "raise max_tokens, or hold it to the form: constrained=True"
            )
            raise TruncatedCompletion(f"the completion was cut {why}: {advice}", completion=self.completion)
        end = f" (finish_reason {finish_reason!r})" if finish_reason not in (None, "stop") else ""
        raise MalformedCompletion(
            f"the completion lacks {', '.join(missing)}{end}", completion=self.completion, missing=missing
        )

    def _check_plain(self) -> None:
        for (side, name), text in self._done.items() if self._schema.plain_text else ():
            if kind := markup_in(text):
                raise MalformedCompletion(
                    f"{side}.{name} holds {kind}, and the schema asks for plain text", completion=self.completion
                )

    def _scan(self, text: str, events: list[SectionEvent]) -> str:
        """Consume `text`; return its end where that may be part of a tag, or white space at a section's edge."""
        at = 0
        while match := self._tags.pattern.search(text, at):
            if self._section:
                self._add(text[at : match.start()].rstrip(), events)
            self._follow(match[0].lower(), events)
            at = match.end()
        cut = self._tags.held_from(text, at)
        if not self._section:
            return text[cut:]
        body = text[at:cut].rstrip()
        self._add(body, events)
        return text[at + len(body) :]

    def _add(self, text: str, events: list[SectionEvent]) -> None:
        if not self._text:  # nothing is told of a section until it has content
            self._blank += text
            if is_blank(self._blank):
                return
            text = self._blank.lstrip()
        if text:
            self._text.append(text)
            events.append(SectionDelta(self._side, self._section, text))

    def _follow(self, tag: str, events: list[SectionEvent]) -> None:
        name = tag.strip("</>")
        if tag == "</think>":
            if self._tags is not _THINKING:
                self._done.clear()
            self._leave_side()
        elif tag == "<think>":
            self._tags = _THINKING
        elif tag.startswith("</") and name == self._section:
            self._end_section(events)
        elif tag.startswith("</"):
            self._leave_side()
        elif not self._side:
            self._enter_side(name.removesuffix("_profile"))
        elif (self._side, name) not in self._done:
            self._section, self._tags = name, self._states[self._side, name]

    def _enter_side(self, side: str) -> None:
        self._side, self._section, self._text, self._blank = side, "", [], ""
        self._tags = self._states[side, ""]

    def _leave_side(self) -> None:
        self._side, self._section, self._text, self._blank = "", "", [], ""
        self._tags = self._states["", ""]

    def _end_section(self, events: list[SectionEvent]) -> None:
        if self._text:
            text = "".join(self._text)
            self._done[self._side, self._section] = text
            events.append(SectionDone(self._side, self._section, text))
        self._enter_side(self._side)


class _Tags:
    """The tags that mean something in one state of the parser."""

    def __init__(self, *tags: str) -> None:
        self.pattern = re.compile("|".join(map(re.escape, tags)), re.I | re.A)
        self._tags = tags

    def held_from(self, text: str, at: int) -> int:
        """Where the last piece of `text` begins that could grow into a tag; its length if there is none."""
        cut = text.rfind("<", at)
        if cut >= 0:
            tail = text[cut:].lower()
            if any(tag.startswith(tail) for tag in self._tags):
                return cut
        return len(text)


_THINKING = _Tags("</think>")


@functools.lru_cache(maxsize=64)
def _states(schema: ProfileSchema) -> dict[Slot, _Tags]:
    """The tags to look for, by the (side, section) that is open; "" for none."""
    states = {("", ""): _Tags("<think>", "</think>", *(f"<{block(side)}>" for side in schema.sides))}
    for side in schema.sides:
        states[side, ""] = _Tags("</think>", f"</{block(side)}>", *(f"<{name}>" for name in schema.sections))
        for name in schema.sections:
            states[side, name] = _Tags("</think>", f"</{block(side)}>", f"</{name}>")
    return states


def parse_profile(completion: Completion, schema: ProfileSchema, cues: Cues | None = None) -> JointProfile:
    """The joint profile that a whole completion holds.

    Args:
        completion: One finished generation.
        schema: Its shape.
        cues: Cues that were given in the prompt, where the schema leaves them out.

    Raises:
        CompletionError: As `SectionParser.close`.
    """
    parser = SectionParser(schema)
    parser.feed(completion.text)
    return joint_profile(parser.close(completion.finish_reason), completion, cues)


def joint_profile(sections: Mapping[Slot, str], completion: Completion, cues: Cues | None = None) -> JointProfile:
    """Put the sections of a completion into records."""
    given = cues or Cues()

    def side(name: str, cue: str | None) -> Profile | None:
        if (name, "profile") not in sections:
            return None
        return Profile(
            text=sections[name, "profile"],
            cue=sections.get((name, "cue"), cue),
            constructed_prompt=sections.get((name, "constructed_prompt")),
        )

    return JointProfile(
        user=side("user", given.user),
        item=side("item", given.item),
        completion=completion.text,
        model=completion.model,
        usage=completion.usage,
        from_ledger=completion.from_ledger,
    )


_TAGGED = re.compile(r"<rating>([^<]*)</rating>", re.I | re.A)
_OUT_OF = re.compile(r"(?<=\d)\s*\(?(?:/|out\s+of|of)\s*(\d+(?:\.\d+)?)\)?(?![\d.]*\d)", re.I)
_SCALE = re.compile(r"\bscale\s+(?:of|from)\s+\d+\s*(?:to|[-–])\s*\d+", re.I)
_NUMBER = re.compile(r"(?<![\w.,])[-−]?\d+(?:[.,]\d{1,2}(?!\d))?(?![\w]|[.,]\d)")


def parse_rating(text: str, scale: RatingScale = RatingScale()) -> float:
    """The one rating that a text states.

    ``<rating>…</rating>`` is preferred where it stands; reasoning in ``<think>`` and the scale's own denominator ("4
    out of 5", "4/5") do not count. Two different numbers are no rating: guessing which was meant would be noise in a
    reward.

    Args:
        text: The recommender's answer.
        scale: Where the rating must lie.

    Returns:
        Rating points.

    Raises:
        RatingError: No number, several, or one off the scale.
    """
    answer = _THINK.sub("", text)
    plain = _without_scale(" ".join(_TAGGED.findall(answer)) or answer, scale)
    found = {float(number.replace(",", ".").replace("−", "-")) for number in _NUMBER.findall(plain)}
    if len(found) != 1:
        what = "no rating" if not found else f"{len(found)} different numbers"
        raise RatingError(f"the recommender's answer holds {what}: {text[:200]!r}", text=text)
    (rating,) = found
    if rating not in scale:
        raise RatingError(f"the recommender answered {rating:g}, off the scale of {scale}", text=text)
    return rating


def _without_scale(text: str, scale: RatingScale) -> str:
    """The text without "out of 5" and "on a scale of 1 to 5"; another denominator is another scale, and stays."""
    return _OUT_OF.sub(lambda match: "" if float(match[1]) == scale.maximum else match[0], _SCALE.sub("", text))


_ALONE = re.compile(r"[\W_]*([A-Za-z])[\W_]*")
_LEADING = re.compile(r"[\W_]*([A-Z])[*_]*[.):\]]")  # "B. Some title"
_NAMED = re.compile(r"\b(?i:answer|letter|option|item)(?:\s+is)?[\s:*(\"']*([A-Z])(?=[\s*)\"']*(?:[.,;:]|$))")


def parse_choice(text: str, options: int) -> int:
    """The place, from 0, of the one option that a text names by its letter.

    Raises:
        RatingError: No letter, several, or one beyond the options.
    """
    answer = _THINK.sub("", text).strip()
    whole = _ALONE.fullmatch(answer) or _LEADING.match(answer)
    found = {letter.upper() for letter in ([whole[1]] if whole else _NAMED.findall(answer))}
    places = [string.ascii_uppercase.find(letter) for letter in found]
    if len(places) != 1 or not 0 <= places[0] < options:
        raise RatingError(f"the answer names none of {options} options: {text[:200]!r}", text=text)
    return places[0]
