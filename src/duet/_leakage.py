"""Whether a profile states a rating, so that the recommender copies a number instead of reading a text."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import attrs

from duet._records import Example, RatingScale
from duet._results import JointProfile
from duet._terms import profile_texts

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_LOOKALIKES = str.maketrans("ıİſ", "iis")  # re.I takes them for i and s, str.lower does not
_N = rf"(?P<n>(?<![\d.,$€£])\d{{1,3}}(?:[.,]\d{{1,2}})?|\b(?:{'|'.join(_WORDS)}))"
_CLAUSE_END = (
    r"(?=\s*(?:[,;:!?)}\]<\"'”’›]|\.(?!\d)|$|\bstars?\b|\b(?:out\s+)?of\s+\d"
    r"|\b(?:or|and|to|at|on\s+average|overall)\b))"
)
_STATED = (
    rf"{_N}\s*(?:/|out\s+of)\s*(?P<of>\d+)(?![\d/])",
    rf"{_N}[\s-]stars?\b(?![\s-]*(?:crossed|of|hotel|restaurant))",
    rf"\b(?:rat(?:e|es|ed|ing|ings)|predict(?:s|ed|ion|ions)?|answers?|answered|assistant)\b[^.;!?\d]{{0,30}}?{_N}s?\b{_CLAUSE_END}",
    rf"\b(?:gives?|gave|given|giving|deserves?|earns?|scores?|scoring|solid|mostly|averag(?:e|es|ing))\s(?:\w+\s){{0,2}}?{_N}s?\b{_CLAUSE_END}",
    rf"(?P<n>(?<![\d.,$€£])\d[.,]\d{{1,2}})\b{_CLAUSE_END}",
    r"(?<![\d.,])\b(?P<n>\d{1,3})(?:[\s,]+(?P=n)\b){2}",
)
_NUMBER = re.compile(r"(?<![A-Za-z\d.,])(?P<n>\d{1,3}(?:[.,]\d{1,2})?)(?![A-Za-z]|[.,]?\d)")
_STARS = re.compile("[★⭐]")


@attrs.frozen
class LeakageReward:
    """A profile that states a rating costs −1: the recommender would copy the number instead of reading the profile.

    The policy never sees the label, but it soon learns that naming the usual rating pays; such a profile says nothing
    of the user. What counts is a number on the example's scale beside the scale's maximum ("4/5"), beside "star", after
    a word of rating or of answering, three times over, or as a decimal at the end of a clause. A pattern cannot read:
    it will miss some, and take an innocent number for a rating now and then.

    Args:
        any_number: Every number in digits that lies on the scale counts, whatever the words around it: in any language,
            and "for 2 to 4 players" too.
        weight: Factor in the sum.
    """

    any_number: bool = attrs.field(default=False, kw_only=True)
    weight: float = attrs.field(default=1.0, kw_only=True)
    name: str = attrs.field(default="leakage", init=False)

    async def score(self, profiles: Sequence[JointProfile], examples: Sequence[Example]) -> list[float]:
        """−1 or 0 for each profile.

        Args:
            profiles: Cues and constructed prompts cannot leak.
            examples: The scale of each says which numbers can be ratings.

        Raises:
            ValueError: The two are not of one length.
        """
        return [
            -1.0 if any(self._states_rating(text, example.scale) for text in profile_texts(profile)) else 0.0
            for profile, example in zip(profiles, examples, strict=True)
        ]

    def _states_rating(self, text: str, scale: RatingScale) -> bool:
        patterns = [*_stated(), _NUMBER] if self.any_number else _stated()
        matches = (match for pattern in patterns for match in pattern.finditer(text))
        return _STARS.search(text) is not None or any(_is_rating(match, scale) for match in matches)


@functools.cache
def _stated() -> list[re.Pattern[str]]:
    # Compiling them takes longer than importing all the rest of the rewards, so it waits for the first use.
    return [re.compile(pattern, re.I | re.M) for pattern in _STATED]


def _is_rating(match: re.Match[str], scale: RatingScale) -> bool:
    number, of = match["n"].translate(_LOOKALIKES).lower(), match.groupdict().get("of")
    value = _WORDS.index(number) if number in _WORDS else float(number.replace(",", "."))
    return value in scale and (of is None or float(of) == scale.maximum)
