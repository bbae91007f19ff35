"""Profiles filled in from the data without any model: the floor that every written profile has to clear. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import ClassVar

import attrs

from duet import ConfigurationError, Interaction, Item, JointProfile, Profile, RatingScale, Usage, User, quote
from duet_train.baseline_prompts import description
from duet_train.profile_metrics import STOP_WORDS, words

NO_HISTORY = "Nothing is known of this user yet."
NO_ITEM = "Nothing is known of this item."


def describe_item(item: Item, max_chars: int | None = None) -> str:
    """Title and attributes, without a model: the item's side of methods that have none of their own.

    Args:
        item: Its evidence is not looked at.
        max_chars: Most characters; what is longer ends in "…".
    """
    known = ". ".join(filter(None, (quote(item.title or "", 200), description(item))))
    return quote(known or NO_ITEM, max_chars)


def fit(sentences: Iterable[str], max_chars: int | None) -> str:
    """The sentences in their order, less those that no longer fit; the first one is cut where it alone is too long.

    Args:
        sentences: The most important first; at least one.
        max_chars: Most characters of the text.
    """
    first, *others = sentences
    text = quote(first, max_chars)
    for sentence in others:
        longer = f"{text} {sentence}"
        if max_chars is None or len(longer) <= max_chars:
            text = longer
    return text


@attrs.frozen(kw_only=True)
class TemplateProfiler:
    """A fixed template: counts, averages, extremes, frequent words and short quotations.

    The same input gives the same text, at no cost in tokens.

    Args:
        max_chars: Most characters of each side; sentences that no longer fit are left out.
        scale: Ratings in its upper quarter count as high, those in its lower quarter as low.
        history_limit: Most rows of the user's history, the most recent ones.
        evidence_limit: Most rows of the item's evidence, the most recent ones.

    Raises:
        ConfigurationError: A number cannot work.
    """

    name: ClassVar[str] = "template"

    max_chars: int | None = None
    scale: RatingScale = RatingScale()
    history_limit: int = 10
    evidence_limit: int = 10

    def __attrs_post_init__(self) -> None:
        if self.max_chars is not None and self.max_chars < 1:
            raise ConfigurationError(f"max_chars must be at least 1, got {self.max_chars}")
        if self.history_limit < 0 or self.evidence_limit < 0:
            raise ConfigurationError("history_limit and evidence_limit must not be negative")

    async def profile(self, user: User, item: Item) -> JointProfile:
        """The filled template of both sides.

        Args:
            user: With the history to go by.
            item: With the evidence to go by.
        """
        user_text = fit(self._user(user), self.max_chars)
        item_text = fit(self._item(item), self.max_chars)
        return JointProfile(user=Profile(text=user_text), item=Profile(text=item_text), usage=Usage())

    def _user(self, user: User) -> list[str]:
        rows = _latest(user.history, self.history_limit)
        if not rows:
            return [NO_HISTORY]
        high, low = self._high(rows), self._low(rows)
        count = f"{len(rows)} rating{'s' if len(rows) > 1 else ''}"
        sentences = [
            f"Gave {count}, {_mean(rows):.1f} on average, {_percent(high, rows)} high and {_percent(low, rows)} low."
        ]
        if best := self._titles(high):
            sentences.append(f"Rated high: {best}.")
        if worst := self._titles(low):
            sentences.append(f"Rated low: {worst}.")
        if often := _frequent(high):
            sentences.append(f"Frequent words on what was rated high: {often}.")
        return sentences

    def _item(self, item: Item) -> list[str]:
        rows = _latest(item.evidence, self.evidence_limit)
        title, about = quote(item.title or "", 60), quote(description(item), 160)
        sentences = [f"{text}." for text in (title, about) if text]
        if rows:
            sentences.insert(1 if title else 0, f"Rated {_mean(rows):.1f} on average by {len(rows)} of its users.")
        chars = 60 if self._is_short else 80
        for what, chosen in (("Praise", self._high(rows)), ("Criticism", self._low(rows))):
            if review := next(filter(None, (quote(row.review, chars) for row in reversed(chosen))), ""):
                sentences.append(f"{what}: “{review}”")
        return sentences or [NO_ITEM]

    def _titles(self, rows: Sequence[Interaction]) -> str:
        """A few titles, the most telling first."""
        count, chars = (2, 30) if self._is_short else (3, 40)
        titles = dict.fromkeys(title for row in reversed(rows) if (title := quote(row.title, chars)))
        return ", ".join(f"“{title}”" for title in list(titles)[:count])

    @property
    def _is_short(self) -> bool:
        """True where long titles and quotations would crowd out everything else."""
        return self.max_chars is not None and self.max_chars < 300

    def _high(self, rows: Sequence[Interaction]) -> list[Interaction]:
        """Rows in the upper quarter of the scale, the best last; of equals the most recent last."""
        limit = self.scale.maximum - self.scale.range / 4
        return sorted((row for row in rows if row.rating >= limit), key=lambda row: row.rating)

    def _low(self, rows: Sequence[Interaction]) -> list[Interaction]:
        """Rows in the lower quarter of the scale, the worst last; of equals the most recent last."""
        limit = self.scale.minimum + self.scale.range / 4
        return sorted((row for row in rows if row.rating <= limit), key=lambda row: -row.rating)


def _latest(rows: Sequence[Interaction], limit: int) -> Sequence[Interaction]:
    return rows[-limit:] if limit else ()


def _mean(rows: Sequence[Interaction]) -> float:
    return sum(row.rating for row in rows) / len(rows)


def _percent(part: Sequence[Interaction], rows: Sequence[Interaction]) -> str:
    return f"{100 * len(part) / len(rows):.0f} %"


def _frequent(rows: Sequence[Interaction]) -> str:
    """Up to six content words that occur in several rows, the most frequent first, of equals the first in the alphabet.

    A row counts once for a word, so that one long review does not decide.
    """
    counts = Counter(word for row in rows for word in sorted(set(words(f"{row.title} {row.review}")) - STOP_WORDS))
    often = [word for word, count in counts.items() if count > 1 and len(word) > 2 and not word.isdigit()]
    return ", ".join(quote(word) for word in sorted(often, key=lambda word: (-counts[word], word))[:6])
