"""What the profiles of a run show: variety, likeness, stated ratings; and the ratings predicted. Pure."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import anyio
import attrs

from duet import (
    Example,
    Item,
    JointProfile,
    LeakageReward,
    Profile,
    ProfileSchema,
    RatingScale,
    SectionDone,
    SectionParser,
    User,
)
from duet_train.reporting.numbers import Point, cut, number
from duet_train.reporting.run import Answer, Run
from duet_train.reporting.shared import content_stems

BINS = 24
"""Most stretches of steps that texts are compared in."""
PER_BIN = 32
"""Most examples of a stretch."""
FEWEST_WORDS = 120
"""A stretch with fewer words has no distinct-n."""
_RATING_WORDS = re.compile(r"\b(?:rat(?:e|es|ed|ing|ings)|stars?|scor(?:e|es|ed)|out of \d+)\b", re.I)

Sections = Mapping[tuple[str, str], str]
Vectors = Callable[[Sequence[str]], Sequence[Mapping[Any, float]]]
"""Texts to directions of unit length."""


@attrs.frozen(kw_only=True)
class TextFigures:
    """Series over steps, from one completion of each example in a stretch.

    Args:
        distinct: Share of n-grams that are different ones, by n.
        likeness: Mean cosine of the profiles of different examples, by side.
        states_rating: Share of completions with a profile that states a rating.
        rating_words: Share of completions with a profile that speaks of ratings at all.
        words: How many words each stretch gave to `distinct`.
    """

    distinct: Mapping[int, Sequence[Point]] = attrs.field(factory=dict)
    likeness: Mapping[str, Sequence[Point]] = attrs.field(factory=dict)
    states_rating: Sequence[Point] = ()
    rating_words: Sequence[Point] = ()
    words: int = 0


@attrs.frozen(kw_only=True)
class RatingFigures:
    """Predicted ratings beside the true ones.

    Args:
        points: Classes of ratings, ascending.
        true: The true ratings of the same completions as `late`.
        early: Predicted in the first fifth of the steps; empty where the run is too short.
        late: Predicted in the last fifth.
    """

    points: Sequence[float]
    true: Sequence[float]
    early: Sequence[float]
    late: Sequence[float]


def sections_of(completion: str) -> Sections:
    """The sections that a completion holds by (side, section), whatever it lacks.

    Args:
        completion: A whole text.
    """
    parser = SectionParser(ProfileSchema())
    events = parser.feed(completion.rpartition("</think>")[2])
    return {(one.side, one.section): one.text for one in events if isinstance(one, SectionDone)}


def profiles_of(completion: str) -> dict[str, str]:
    """The profile texts that a completion holds, by side.

    Args:
        completion: A whole text.
    """
    return {side: text for (side, section), text in sections_of(completion).items() if section == "profile"}


def scale_of(run: Run) -> RatingScale:
    """The scale that the card names, or the narrowest usual one that holds all ratings of the run.

    Args:
        run: Any.
    """
    for where in (("data", "scale"), ("scale",), ("settings", "scale")):
        given = run.setting(*where)
        ends = [given.get("minimum"), given.get("maximum")] if isinstance(given, dict) else given
        if isinstance(ends, list) and len(ends) == 2:
            low, high = map(number, ends)
            if low is not None and high is not None and low < high:
                return RatingScale(low, high)
    answers = [*run.answers, *run.samples]
    known = [value for one in answers for value in (one.gold, one.rating) if value is not None]
    low, high = min(known, default=1.0), max(known, default=5.0)
    return (
        RatingScale()
        if low >= 1 and high <= 5
        else RatingScale(math.floor(low), max(math.floor(low) + 1, math.ceil(high)))
    )


def text_figures(run: Run, scale: RatingScale, vectors: Vectors | None = None) -> TextFigures:
    """What the texts of training show; those of the held-out examples where training kept none.

    Args:
        run: Any.
        scale: Of its ratings.
        vectors: Of an embedder; without one texts are alike as far as they share words.
    """
    source = run.answers if any(one.text for one in run.answers) else run.samples
    stretches = _stretches(source)
    if not stretches:
        return TextFigures()
    profiles = [(step, [profiles_of(text) for text in texts]) for step, texts in stretches]
    profiles = [(step, [one for one in found if one]) for step, found in profiles]
    profiles = [(step, found) for step, found in profiles if found]
    budget = min((count for _, found in profiles if (count := _words(found)) >= FEWEST_WORDS), default=0)
    every = [text for _, found in profiles for one in found for text in one.values()]
    directions = dict(zip(every, (vectors or tf_idf)(every), strict=True))
    return TextFigures(
        distinct={n: _distinct_series(profiles, n, budget) for n in (1, 2, 3)} if budget else {},
        likeness={side: _likeness_series(profiles, side, directions) for side in ("user", "item")},
        states_rating=list(zip((step for step, _ in profiles), _stated(profiles, scale), strict=True)),
        rating_words=[(step, fmean(map(_speaks_of_ratings, found))) for step, found in profiles],
        words=budget,
    )


def rating_figures(run: Run, scale: RatingScale) -> RatingFigures | None:
    """Predicted and true ratings at both ends of the run; None where nothing was predicted.

    Args:
        run: Any.
        scale: Of its ratings.
    """
    source = run.answers if any(one.rating is not None for one in run.answers) else run.samples
    rated = [one for one in source if one.rating is not None]
    steps = sorted({one.step for one in rated})
    if not steps:
        return None
    few = max(1, len(steps) // 5)
    first, last = set(steps[:few]), set(steps[-few:])
    late = [one for one in rated if one.step in last]
    return RatingFigures(
        points=_classes(scale),
        true=[one.gold for one in late if one.gold is not None],
        early=[one.rating for one in rated if one.step in first and one.rating is not None] if len(steps) > 1 else [],
        late=[one.rating for one in late if one.rating is not None],
    )


def _classes(scale: RatingScale) -> list[float]:
    if 2 <= len(scale.points) <= 11:
        return [float(point) for point in scale.points]
    return [scale.minimum + scale.range * tenth / 10 for tenth in range(11)]


# Which texts are compared


def _stretches(answers: Sequence[Answer]) -> list[tuple[float, list[str]]]:
    """Stretches of steps with one text of each example: its step is the mean of theirs."""
    steps = sorted({one.step for one in answers if one.text})
    by_step: dict[int, list[Answer]] = {step: [] for step in steps}
    for one in answers:
        if one.text:
            by_step[one.step].append(one)
    return [
        (fmean(part), [one.text or "" for one in _one_an_example(one for step in part for one in by_step[step])])
        for part in cut(steps, BINS)
    ]


def _one_an_example(answers: Iterable[Answer]) -> list[Answer]:
    """The first well-formed completion of each example, or of each group where examples have no names."""
    first: dict[object, Answer] = {}
    for one in answers:
        if not one.is_malformed:
            first.setdefault(one.example or (one.step, one.group), one)
    return list(first.values())[:PER_BIN]


Stretch = tuple[float, list[dict[str, str]]]


def _words(profiles: Sequence[Mapping[str, str]]) -> int:
    return sum(len(text.split()) for one in profiles for text in one.values())


# Figures


def distinct(texts: Iterable[str], n: int, budget: int) -> float | None:
    """Share of the n-grams that are different ones, n-grams within a text only.

    The share falls with the amount of text, so only so many words are looked at, however long the texts are.

    Args:
        texts: Each of a different example.
        n: Words in a row.
        budget: Words looked at, over all texts.
    """
    grams: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = text.casefold().split()[:budget]
        budget -= len(words)
        grams.update(zip(*(words[start:] for start in range(n)), strict=False))
    return len(grams) / grams.total() if grams else None


def _distinct_series(profiles: Sequence[Stretch], n: int, budget: int) -> list[Point]:
    found = [(step, distinct(_texts(some), n, budget)) for step, some in profiles if _words(some) >= budget]
    return [(step, value) for step, value in found if value is not None]


def _texts(profiles: Iterable[Mapping[str, str]]) -> list[str]:
    return [text for one in profiles for text in one.values()]


def likeness(directions: Sequence[Mapping[Any, float]]) -> float | None:
    """Mean cosine over all pairs of different texts; None for fewer than two.

    Args:
        directions: Of unit length: the pairs' sum is then that of the summed vector's square, less the texts' own.
    """
    count = len(directions)
    total: Counter[Any] = Counter()
    for one in directions:
        total.update(one)
    own = sum(weight * weight for one in directions for weight in one.values())
    squared = sum(weight * weight for weight in total.values())
    return (squared - own) / (count * (count - 1)) if count > 1 else None


def _likeness_series(
    profiles: Sequence[Stretch], side: str, directions: Mapping[str, Mapping[Any, float]]
) -> list[Point]:
    found = [(step, likeness([directions[one[side]] for one in some if side in one])) for step, some in profiles]
    return [(step, value) for step, value in found if value is not None]


def tf_idf(texts: Sequence[str]) -> list[dict[str, float]]:
    """Directions of texts by their words: frequent in the text, rare among the others, without endings.

    Args:
        texts: All that are compared.
    """
    counts = [Counter(content_stems(text)) for text in texts]
    known = Counter(stem for count in counts for stem in count)
    rarity = {stem: 1 + math.log((1 + len(texts)) / (1 + texts_with)) for stem, texts_with in known.items()}
    return [_unit({stem: (1 + math.log(times)) * rarity[stem] for stem, times in count.items()}) for count in counts]


def unit_vectors(rows: Iterable[Iterable[float]]) -> list[dict[int, float]]:
    """Embeddings as directions.

    Args:
        rows: One a text, of any length.
    """
    return [_unit(dict(enumerate(row))) for row in rows]


def _unit(vector: Mapping[Any, float]) -> dict[Any, float]:
    length = math.sqrt(sum(weight * weight for weight in vector.values()))
    return {key: weight / length for key, weight in vector.items()} if length else {}


def _stated(profiles: Sequence[Stretch], scale: RatingScale) -> list[float]:
    """For each stretch the share of completions that the term "leakage" would fine."""
    example = Example(User("user"), Item("item"), scale.minimum, scale=scale)
    flat = [_joint(one) for _, some in profiles for one in some]
    scores = iter(anyio.run(LeakageReward().score, flat, [example] * len(flat)))
    return [fmean(next(scores) < 0 for _ in some) for _, some in profiles]


def _joint(profiles: Mapping[str, str]) -> JointProfile:
    sides = {side: Profile(text=text) for side, text in profiles.items()}
    return JointProfile(user=sides.get("user"), item=sides.get("item"))


def _speaks_of_ratings(profiles: Mapping[str, str]) -> bool:
    return any(_RATING_WORDS.search(text) for text in profiles.values())
