"""Completions in, rewards out: the same in serving, evaluation and training. An env scores; it does not generate."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Protocol

import attrs

from duet._concurrency import map_unordered
from duet._errors import CompletionError, ConfigurationError, RatingError
from duet._parser import parse_profile
from duet._recommender import Recommender, as_rating
from duet._records import Completion, Example, JointProfile, Rating, Reward
from duet._schema import ProfileSchema


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
    """One summand of a reward. Any object of this shape will do."""

    @property
    def name(self) -> str:
        """Its key in `Reward.terms`."""

    @property
    def weight(self) -> float:
        """Its factor in the sum."""

    async def score(
        self, profiles: Sequence[JointProfile], examples: Sequence[Example]
    ) -> Sequence[TermScore | float | None]:
        """One score a profile, in order. The batch comes whole, since a contrastive term needs the others in it."""


class RatingReward:
    """How close a frozen recommender comes with the profile: 1 − |r − r̂| / range, from 0 to 1 (DUET, "Reward").

    Args:
        recommender: Reads the profiles and predicts. A prediction beyond the scale counts as its end.
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
        """One score a profile; an error of the recommender is a score without a value."""
        scores = [TermScore(None)] * len(profiles)
        pairs = list(zip(profiles, examples, strict=True))
        async with map_unordered(self._score_one, pairs, self._concurrency) as results:
            async for index, score in results:
                scores[index] = score
        return scores

    async def _score_one(self, index: int, pair: tuple[JointProfile, Example]) -> tuple[int, TermScore]:
        profile, example = pair
        try:
            rating = as_rating(await self._recommender.predict(example.user, example.item, profile))
        except Exception as exc:
            return index, TermScore(None, error=exc)
        distance = abs(example.rating - example.scale.clip(rating.value))
        return index, TermScore(1 - distance / example.scale.range, rating=rating)


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
        """From −1 to 0 for each profile."""
        return [-min(max(sum(map(len, _texts(profile))) / self.max_chars - 1, 0.0), 1.0) for profile in profiles]


_STATED_RATING = re.compile(
    r"""\d(?:[.,]\d+)?\s*(?:/|out\s+of)\s*\d+        # 4/5, 4.5 out of 5
      | \b(?:\d(?:[.,]\d+)?|one|two|three|four|five)[\s-]stars?\b
      | [★⭐]
      | \b(?:rat(?:e|es|ed|ing|ings)|scores?|predict(?:s|ed|ion)?|give(?:s|n)?|average)\b\D{0,24}?\b\d(?:[.,]\d+)?\b""",
    re.I | re.X,
)


@attrs.frozen
class LeakageReward:
    """A profile that states a rating costs −1: the recommender would copy the number instead of reading the profile.

    The policy never sees the label, but it soon learns that naming the usual rating pays; such a profile says nothing
    of the user.

    Args:
        weight: Factor in the sum.
    """

    weight: float = attrs.field(default=1.0, kw_only=True)
    name: str = attrs.field(default="leakage", init=False)

    async def score(self, profiles: Sequence[JointProfile], examples: Sequence[Example]) -> list[float]:
        """−1 or 0 for each profile."""
        return [-1.0 if any(map(_STATED_RATING.search, _texts(profile))) else 0.0 for profile in profiles]


class RewardEnv:
    """Scores completions: parse, then each term, then the weighted sum.

    The paper's reward is ``RewardEnv([RatingReward(recommender)])``: 1 − |r − r̂| / range, and −1 for a completion that
    is no profile. What is not the policy's fault gives no reward at all, never 0.

    Args:
        terms: What is summed; names must differ.
        schema: The shape that completions must have.
        format_penalty: The reward of a completion that is no profile.
        strict_paper: Give the penalty for an unreadable answer of the recommender too, as the paper's code does.

    Raises:
        ConfigurationError: No terms, or two of one name.
    """

    def __init__(
        self,
        terms: Sequence[RewardTerm],
        *,
        schema: ProfileSchema = ProfileSchema(),
        format_penalty: float = -1.0,
        strict_paper: bool = False,
    ) -> None:
        names = [term.name for term in terms]
        if not names or len(set(names)) < len(names):
            raise ConfigurationError(f"a RewardEnv needs terms of different names, got {names!r}")
        self._terms = tuple(terms)
        self._schema = schema
        self._format_penalty = format_penalty
        self._strict_paper = strict_paper

    async def score(self, completion: str, example: Example) -> Reward:
        """The reward of one completion: a batch of one.

        Args:
            completion: The policy's whole text.
            example: The pair it was written for, and its true rating.
        """
        (reward,) = await self.score_many([completion], [example])
        return reward

    async def score_many(self, completions: Sequence[str], examples: Sequence[Example]) -> list[Reward]:
        """The rewards of a batch, in its order. Terms see the well-formed completions only.

        Args:
            completions: The policy's whole texts.
            examples: The pair each was written for, and its true rating.

        Raises:
            ConfigurationError: The two are not of one length.
        """
        if len(completions) != len(examples):
            raise ConfigurationError(f"{len(completions)} completions for {len(examples)} examples")
        rewards: list[Reward | None] = []
        profiles, kept = [], []
        for completion, example in zip(completions, examples, strict=True):
            try:
                profiles.append(parse_profile(Completion(completion), self._schema))
                kept.append(example)
                rewards.append(None)
            except CompletionError as exc:
                rewards.append(Reward(self._format_penalty, error=exc))
        scores = iter(await self._score_terms(profiles, kept))
        return [self._reward(next(scores)) if reward is None else reward for reward in rewards]

    async def _score_terms(
        self, profiles: Sequence[JointProfile], examples: Sequence[Example]
    ) -> list[dict[str, TermScore]]:
        """For each profile its scores by the name of the term."""
        scores: list[dict[str, TermScore]] = [{} for _ in profiles]
        for term in self._terms if profiles else ():
            for row, score in zip(scores, await term.score(profiles, examples), strict=True):
                row[term.name] = score if isinstance(score, TermScore) else TermScore(score)
        return scores

    def _reward(self, scores: dict[str, TermScore]) -> Reward:
        error = next((score.error for score in scores.values() if score.error is not None), None)
        rating = next((score.rating for score in scores.values() if score.rating is not None), None)
        values = {name: score.value for name, score in scores.items() if score.value is not None}
        if len(values) == len(scores):
            value = math.fsum(term.weight * values[term.name] for term in self._terms)
            return Reward(value, rating=rating, terms=values)
        penalty = self._format_penalty if self._strict_paper and isinstance(error, RatingError) else None
        return Reward(penalty, rating=rating, terms=values, error=error)


def _texts(profile: JointProfile) -> list[str]:
    return [side.text for side in (profile.user, profile.item) if side is not None]
