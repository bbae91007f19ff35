"""Completions in, rewards out: the same in serving, evaluation and training. An env scores; it does not generate."""

from __future__ import annotations

import math
from collections.abc import Sequence

from duet._errors import CompletionError, ConfigurationError, DuetError, RatingError
from duet._log import DEBUG, hears, log
from duet._parser import parse_profile
from duet._records import Example
from duet._results import Completion, JointProfile, Reward
from duet._schema import ProfileSchema
from duet._terms import RewardTerm, TermScore


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
        self._terms = _checked(terms)
        self._schema = schema
        self._format_penalty = format_penalty
        self._strict_paper = strict_paper

    @property
    def terms(self) -> tuple[RewardTerm, ...]:
        """What is summed, in the order given."""
        return self._terms

    @property
    def in_batch(self) -> bool:
        """Whether a reward depends on the rest of its batch, as a term's `in_batch` says: then it holds there alone."""
        return any(getattr(term, "in_batch", False) for term in self._terms)

    async def score(self, completion: str, example: Example) -> Reward:
        """The reward of one completion: a batch of one.

        Args:
            completion: The policy's whole text.
            example: The pair it was written for, and its true rating.

        Raises:
            ConfigurationError: The completion is no text.
        """
        (reward,) = await self.score_many([completion], [example])
        return reward

    async def score_many(self, completions: Sequence[str], examples: Sequence[Example]) -> list[Reward]:
        """The rewards of a batch, in its order. Terms see the well-formed completions only.

        Args:
            completions: The policy's whole texts.
            examples: The pair each was written for, and its true rating.

        Raises:
            ConfigurationError: The two are not of one length, or a completion is no text.
        """
        if len(completions) != len(examples):
            raise ConfigurationError(f"{len(completions)} completions for {len(examples)} examples")
        for completion in completions:
            if not isinstance(completion, str):
                raise ConfigurationError(
                    f"completions must be str, got {type(completion).__name__}: a profile's is .completion"
                )
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
        made = [self._reward(next(scores)) if reward is None else reward for reward in rewards]
        if hears(DEBUG):
            _say_scored(made)
        return made

    async def _score_terms(
        self, profiles: Sequence[JointProfile], examples: Sequence[Example]
    ) -> list[dict[str, TermScore]]:
        """For each profile its scores by the name of the term."""
        scores: list[dict[str, TermScore]] = [{} for _ in profiles]
        for term in self._terms if profiles else ():
            for row, score in zip(scores, await _score(term, profiles, examples), strict=True):
                row[term.name] = score
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


def _say_scored(rewards: Sequence[Reward]) -> None:
    for index, reward in enumerate(rewards):
        error = None if reward.error is None else type(reward.error).__name__
        log().debug("reward.scored", index=index, value=reward.value, terms=dict(reward.terms), error=error)


def _checked(terms: Sequence[RewardTerm]) -> tuple[RewardTerm, ...]:
    if not isinstance(terms, Sequence) or not all(hasattr(term, "name") for term in terms):
        raise ConfigurationError("terms must be a sequence of reward terms, as in [RatingReward(recommender)]")
    names = [term.name for term in terms]
    if not names or len(set(names)) < len(names):
        raise ConfigurationError(f"a RewardEnv needs terms of different names, got {names!r}")
    return tuple(terms)


async def _score(term: RewardTerm, profiles: Sequence[JointProfile], examples: Sequence[Example]) -> list[TermScore]:
    """The scores of one term; what it raises, and what is no number, is an error of every or that one profile."""
    try:
        given = list(await term.score(profiles, examples))
    except Exception as exc:
        return [TermScore(None, error=exc)] * len(profiles)
    if len(given) != len(profiles):
        error = DuetError(f"the term {term.name!r} gave {len(given)} scores for {len(profiles)} profiles")
        return [TermScore(None, error=error)] * len(profiles)
    return [_finite(term, score) for score in given]


def _finite(term: RewardTerm, score: TermScore | float | None) -> TermScore:
    found = score if isinstance(score, TermScore) else TermScore(score)
    if found.value is None or math.isfinite(found.value):
        return found
    return TermScore(None, rating=found.rating, error=DuetError(f"the term {term.name!r} gave {found.value!r}"))
