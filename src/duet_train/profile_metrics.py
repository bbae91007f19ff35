"""What the texts of profiles show: whether the two sides meet, and whether a profile keeps to its history. Pure."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable

import attrs
import numpy as np
import numpy.typing as npt

from duet import ConfigurationError

Floats = npt.NDArray[np.float64]

_WORD = re.compile(r"[^\W_]+")

# Function words, and the pieces that an apostrophe leaves ("doesn't" is "doesn" and "t").
_ENGLISH = """
a an the this that these those some any each every either neither both all such same other another
i me my mine myself we us our ours ourselves you your yours yourself yourselves
he him his himself she her hers herself it its itself they them their theirs themselves one
who whom whose which what when where why how there here then than
am is are was were be been being do does did doing done have has had having
can could may might must shall should will would ought
and or but nor so yet if because since although though while whereas unless until as whether
of in on at by for from to with without within into onto upon over under above below between among
about against across along around after before during through toward towards up down out off
not no only own too very just also more most less least much many few again further once
s t d m o ll re ve don doesn didn isn aren wasn weren hasn haven hadn won wouldn couldn shouldn mustn ain
"""
STOP_WORDS = frozenset(_ENGLISH.split())


@attrs.frozen(kw_only=True)
class Alignment:
    """Cosine of user and item profiles that belong together, and of those that do not.

    Args:
        matched: Mean cosine of the pairs; nan for none.
        mismatched: Mean cosine of each user's profile with every other pair's item profile; nan for fewer than two.
        gap: `matched` less `mismatched`: what is common to all texts of a domain falls out.
        gaps: The same pair by pair, for a bootstrap.
    """

    matched: float
    mismatched: float
    gap: float
    gaps: Floats = attrs.field(eq=attrs.cmp_using(eq=np.array_equal))


def alignment(users: npt.ArrayLike, items: npt.ArrayLike) -> Alignment:
    """Semantic alignment of profile pairs (DUET), with the control that a bare cosine lacks.

    The control is all other pairs and not one shuffle of them: it has no seed, and the least variance.
    An item in several rows makes some of its mismatched pairs match after all, so the gap is then too small, never too
    large.

    Args:
        users: Embeddings of the user profiles, (pairs, dimensions); of any length, they are normalised here.
        items: Embeddings of the item profiles, row by row.

    Raises:
        ConfigurationError: The shapes differ, or a row has no direction (all zero, or not finite).
    """
    left, right = _directions(users, "users"), _directions(items, "items")
    if left.shape != right.shape:
        raise ConfigurationError(f"users have shape {left.shape}, items {right.shape}: they must pair row by row")
    pairs = len(left)
    own = np.einsum("ij,ij->i", left, right)
    others = (left @ right.sum(axis=0) - own) / (pairs - 1) if pairs > 1 else np.full(pairs, math.nan)
    matched, mismatched = (float(column.mean()) if pairs else math.nan for column in (own, others))
    return Alignment(matched=matched, mismatched=mismatched, gap=matched - mismatched, gaps=own - others)


def words(text: str) -> list[str]:
    """The words of a text in order: runs of letters and digits, accents composed, case folded."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return _WORD.findall(folded)


def coverage(profile: str, history: Iterable[str], *, stop_words: frozenset[str] = STOP_WORDS) -> float:
    """Share of a profile's content words that occur in the history of its side (DUET, "coverage").

    Every occurrence in the profile counts, so the measure is a precision: a short profile is not at a disadvantage.
    It falls where the profile paraphrases as well as where it invents.

    Args:
        profile: One side's profile.
        history: The texts that the profile was made from: titles and reviews of that side.
        stop_words: Words that do not count, case-folded; none with ``frozenset()``.

    Returns:
        0 to 1; nan where the profile holds no word that counts.
    """
    counted = [word for word in words(profile) if word not in stop_words]
    known = {word for text in history for word in words(text)}
    return sum(word in known for word in counted) / len(counted) if counted else math.nan


def _directions(rows: npt.ArrayLike, name: str) -> Floats:
    """Rows of unit length."""
    matrix = np.asarray(rows, dtype=np.float64)
    if matrix.ndim != 2:
        raise ConfigurationError(f"{name} must be (pairs, dimensions), got shape {matrix.shape}")
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    wrong = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if wrong.size:
        raise ConfigurationError(f"row {wrong[0]} of {name} has no direction: leave it out, and report how many")
    return np.asarray(matrix / lengths, dtype=np.float64)
