"""The terms of a reward that need no other profile: what a recommender makes of one, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import attrs

from duet._concurrency import map_unordered
from duet._errors import ConfigurationError
from duet._log import DEBUG, hears, log
from duet._recommender import Recommender, predicted
from duet._records import Example, RatingScale
from duet._results import JointProfile, Rating


@attrs.frozen
class TermScore:
    """What one term says of one profile.

    Args:
        value: None where nothing can be said.
        rating: What a recommender predicted on the way.
        error: Why there is no value.
    """

    value: float | None
    rating: Rating | None = attrs.field(default=None, kw_only=True)
    error: Exception | None = attrs.field(default=None, kw_only=True, eq=False)


class RewardTerm(Protocol):
    """One summand of a reward. Any object of this shape will do.

    A term whose score of one profile depends on the rest of the batch says so by an attribute `in_batch` that is true,
    as that of `ContrastiveReward` is. Such a score holds for its batch alone: nobody may keep it for another one.
    """

    @property
    def name(self) -> str:
        """Its key in `Reward.terms`."""

    @property
    def weight(self) -> float:
        """Its factor in the sum."""

    async def score(
        self, profiles: Sequence[JointProfile], examples: Sequence[Example]
    ) -> Sequence[TermScore | float | None]:
        """One score a profile, in order. The batch comes whole, since a contrastive term needs the others in it.

        Args:
            profiles: Those of the well-formed completions of a batch.
            examples: The pair each was written for, and its true rating; as many, in the same order.
        """


async def each_scored(
    function: Callable[[JointProfile, Example], Awaitable[TermScore]],
    profiles: Sequence[JointProfile],
    examples: Sequence[Example],
    concurrency: int,
) -> list[TermScore]:
    """The score of each profile by itself, in order; what `function` raises is the error of that one alone."""

    async def score_one(index: int, pair: tuple[JointProfile, Example]) -> tuple[int, TermScore]:
        try:
            score = await function(*pair)
        except Exception as exc:
            log().warning("prediction.failed", index=index, error=type(exc).__name__)
            return index, TermScore(None, error=exc)
        if hears(DEBUG):
            rating = None if score.rating is None else score.rating.value
            log().debug("prediction.made", index=index, score=score.value, rating=rating)
        return index, score

    scores = [TermScore(None)] * len(profiles)
    pairs = list(zip(profiles, examples, strict=True))
    async with map_unordered(score_one, pairs, concurrency) as results:
        async for index, score in results:
            scores[index] = score
    return scores


def user_text(profile: JointProfile) -> str:
    """The profile of the user, for a term that reads nothing else.

    Raises:
        ConfigurationError: The schema has no such side.
    """
    if profile.user is None:
        raise ConfigurationError("this term reads the profile of the user, and the schema has no side 'user'")
    return profile.user.text


NOTHING: Mapping[str, Collection[str]] = MappingProxyType({})


def had_by(example: Example, seen: Mapping[str, Collection[str]]) -> set[str]:
    """Ids of the items that the user had: those of the history, and those that are known to be seen."""
    return {row.item for row in example.user.history}.union(seen.get(example.user.id, ()))


class RatingReward:
    """How close a frozen recommender comes with the profile: 1 − |r − r̂| / range, from 0 to 1 (DUET, "Reward").

    Args:
        recommender: Reads the profiles and predicts. A prediction beyond the scale counts as its end; one that has a
            `scale` of its own must have the example's.
        weight: Factor in the sum.
        concurrency: Most predictions under way.
    """

    name: str = "rating"

    def __init__(self, recommender: Recommender, *, weight: float = 1.0, concurrency: int = 64) -> None:
        if concurrency < 1:
            raise ConfigurationError(f"concurrency must be at least 1, got {concurrency}")
        self.weight: float = weight
        self._recommender = recommender
        self._concurrency = concurrency

    async def score(self, profiles: Sequence[JointProfile], examples: Sequence[Example]) -> list[TermScore]:
        """One score a profile; an error of the recommender is a score without a value.

        Args:
            profiles: What the recommender reads.
            examples: User, item, true rating and scale of each.

        Raises:
            ValueError: The two are not of one length.
        """
        return await each_scored(self._score_one, profiles, examples, self._concurrency)

    async def _score_one(self, profile: JointProfile, example: Example) -> TermScore:
        self._check_scale(example)
        rating = await predicted(self._recommender, example.user, example.item, profile)
        distance = abs(example.rating - example.scale.clip(rating.value))
        return TermScore(1 - distance / example.scale.range, rating=rating)

    def _check_scale(self, example: Example) -> None:
        scale = getattr(self._recommender, "scale", example.scale)
        if scale != example.scale:
            raise ConfigurationError(
                f"the recommender predicts on {scale}, the example is on {example.scale}: pass scale="
            )


class SentimentReward:
    """Whether a frozen recommender is right about like, neutral or dislike: 1 or 0 (LettinGo, "Evaluate").

    Ratings are rounded half up to a whole one of the scale, true and predicted alike. One in the scale's upper quarter
    is liked and one in its lower quarter disliked: from 4 and up to 2 on 1 to 5. The paper does not state its limits.

    Args:
        recommender: As for `RatingReward`.
        weight: Factor in the sum.
        concurrency: Most predictions under way.
    """

    name: str = "sentiment"

    def __init__(self, recommender: Recommender, *, weight: float = 1.0, concurrency: int = 64) -> None:
        self.weight: float = weight
        self._predictions = RatingReward(recommender, concurrency=concurrency)

    async def score(self, profiles: Sequence[JointProfile], examples: Sequence[Example]) -> list[TermScore]:
        """Either 0 or 1 for each profile; an error of the recommender is a score without a value.

        Args:
            profiles: What the recommender reads.
            examples: User, item, true rating and scale of each.

        Raises:
            ValueError: The two are not of one length.
        """
        scores = await self._predictions.score(profiles, examples)
        return [self._judged(score, example) for score, example in zip(scores, examples, strict=True)]

    def _judged(self, score: TermScore, example: Example) -> TermScore:
        if score.rating is None:
            return score
        try:
            hit = sentiment(score.rating.value, example.scale) == sentiment(example.rating, example.scale)
        except ConfigurationError as exc:
            return TermScore(None, rating=score.rating, error=exc)
        return TermScore(float(hit), rating=score.rating)


def sentiment(rating: float, scale: RatingScale) -> int:
    """1 for a rating that is liked, −1 for one that is disliked, 0 for one between.

    Raises:
        ConfigurationError: No whole number lies on the scale.
    """
    if not scale.points:
        raise ConfigurationError(f"no whole number lies on the scale of {scale}: its ratings have no classes")
    below = math.floor(rating)
    # floor(x + 0.5) would lift the largest number below one half to 1.
    whole = min(max(below + (rating - below >= 0.5), scale.points[0]), scale.points[-1])
    quarter = scale.range / 4
    return int(whole >= scale.maximum - quarter) - int(whole <= scale.minimum + quarter)


@attrs.frozen
class LengthReward:
    """Profiles beyond a length cost: 0 up to `max_chars`, falling in a straight line to −1 at twice that.

    Args:
        max_chars: Characters of both profile texts together.
        weight: Factor in the sum.
    """

    max_chars: int
    weight: float = attrs.field(default=1.0, kw_only=True)
    name: str = attrs.field(default="length", init=False)

    def __attrs_post_init__(self) -> None:
        if self.max_chars < 1:
            raise ConfigurationError(f"max_chars must be at least 1, got {self.max_chars}")

    async def score(self, profiles: Sequence[JointProfile], examples: Sequence[Example]) -> list[float]:
        """From −1 to 0 for each profile.

        Args:
            profiles: Cues and constructed prompts have no length here.
            examples: Not looked at.
        """
        return [max(-1.0, min(0.0, 1 - sum(map(len, profile_texts(profile))) / self.max_chars)) for profile in profiles]


def profile_texts(profile: JointProfile) -> list[str]:
    """What a recommender reads of a profile."""
    return [side.text for side in (profile.user, profile.item) if side is not None]
