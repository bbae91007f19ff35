"""Frozen records of what comes out: completions, profiles, ratings, rewards, outcomes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from duet._records import Item, User, check_rating, count, to_float


@attrs.frozen
class Usage:
    """Tokens of one generation, as the endpoint counted them.

    Args:
        prompt_tokens: Tokens of the prompt.
        completion_tokens: Tokens generated.
        cached_tokens: Of the prompt's tokens, those served from the prefix cache.
        estimated: True where the endpoint gave no usage and the numbers are ours (four characters a token in the
            prompt, one token a chunk in a stream).
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = attrs.field(default=0, kw_only=True)
    estimated: bool = attrs.field(default=False, kw_only=True)

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@attrs.frozen
class TokenLogprob:
    """One generated token and what could have stood in its place.

    Args:
        token: Its text, as the endpoint writes it: a leading space is kept.
        logprob: Natural logarithm of its probability.
        top_logprobs: The likeliest tokens in its place as (token, logprob), in the endpoint's order; empty where none
            were asked for.
    """

    token: str
    logprob: float
    top_logprobs: tuple[tuple[str, float], ...] = ()


@attrs.frozen
class Completion:
    """One finished generation.

    Args:
        text: The answer, without what the endpoint itself split off as reasoning.
        finish_reason: "stop", "length", "content_filter", or None where the endpoint gave none.
        model: Model name as the endpoint reports it.
        usage: Tokens spent.
        logprobs: One entry a token where they were asked for.
        reasoning: What the endpoint split off (``reasoning_content``).
        from_ledger: True where it was not asked for now: its usage was paid before.
    """

    text: str = attrs.field(repr=False)
    finish_reason: str | None = attrs.field(default="stop", kw_only=True)
    model: str = attrs.field(default="", kw_only=True)
    usage: Usage | None = attrs.field(default=None, kw_only=True)
    logprobs: tuple[TokenLogprob, ...] = attrs.field(default=(), kw_only=True, repr=count)
    reasoning: str = attrs.field(default="", kw_only=True, repr=False)
    from_ledger: bool = attrs.field(default=False, kw_only=True, eq=False)


@attrs.frozen
class Cues:
    """The short cues of both sides (DUET, stage 1).

    Args:
        user: What matters most in the history; None where this side was not asked for.
        item: What matters most in the evidence; None where this side was not asked for.
    """

    user: str | None = None
    item: str | None = None


@attrs.frozen(kw_only=True)
class Profile:
    """One side of a joint profile.

    Args:
        text: The profile itself: the section tagged ``<profile>``.
        cue: Short cues it grew from; None where the schema has no such section.
        constructed_prompt: What the model asked itself to write; None where the schema has no such section.
    """

    text: str
    cue: str | None = None
    constructed_prompt: str | None = None


@attrs.frozen(kw_only=True)
class JointProfile:
    """What one generation made of a user and an item.

    Args:
        user: None where the schema leaves this side out.
        item: None where the schema leaves this side out.
        completion: The whole text as it came: `RewardEnv.score` takes it.
        model: Model name as the endpoint reports it.
        usage: Tokens spent.
        from_ledger: True where the completion was not asked for now: its usage was paid before.
    """

    user: Profile | None = None
    item: Profile | None = None
    completion: str = attrs.field(default="", repr=False)
    model: str = ""
    usage: Usage | None = None
    from_ledger: bool = attrs.field(default=False, eq=False)


@attrs.frozen
class Rating:
    """A predicted rating.

    Args:
        value: In rating points.
        text: The recommender's own words, where it has any.
        probabilities: (rating, probability) pairs, ascending, where it gives a distribution.
        usage: Tokens spent.
        mass: Probability of all labels together before `probabilities` were normalised, 0 to 1: how much the
            recommender wanted to answer with a rating at all. None where it was not read from log-probabilities.
    """

    value: float = attrs.field(converter=to_float, validator=check_rating)
    text: str = attrs.field(default="", kw_only=True)
    probabilities: tuple[tuple[float, float], ...] = attrs.field(default=(), kw_only=True)
    usage: Usage | None = attrs.field(default=None, kw_only=True)
    mass: float | None = attrs.field(default=None, kw_only=True)

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in attrs.fields(Rating)}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        for name, value in ({"mass": None} | dict(state)).items():  # 0.1 pickled ratings without it
            object.__setattr__(self, name, value)


@attrs.frozen
class Reward:
    """What one completion earned.

    Args:
        value: The weighted sum of the terms; the format penalty for a completion that is no profile; None where nothing
            can be said of the policy (then leave the sample out: it is not a zero).
        rating: What the recommender predicted, where a term asked one.
        terms: Name to value, before weighting; do not change.
        error: What went wrong, if anything did.
    """

    value: float | None
    rating: Rating | None = attrs.field(default=None, kw_only=True)
    terms: Mapping[str, float] = attrs.field(factory=dict, kw_only=True, hash=False)
    error: Exception | None = attrs.field(default=None, kw_only=True, eq=False)


@attrs.frozen(kw_only=True)
class Outcome:
    """What became of one pair of a bulk run: a profile or an error, never neither.

    Args:
        index: Place of the pair in the input, from 0.
        user: The pair's user; None where the input was no pair.
        item: The pair's item; None where the input was no pair.
        profile: The profile, or None.
        error: Why there is none, or None.
    """

    index: int
    user: User | None = None
    item: Item | None = None
    profile: JointProfile | None = None
    error: Exception | None = attrs.field(default=None, eq=False)


@attrs.frozen(kw_only=True)
class Candidate:
    """What became of one item that was ranked for a user.

    Args:
        index: Place of the item in the input, from 0.
        item: The item.
        profile: The joint profile made for it, or None.
        rating: What the recommender predicts, or None.
        error: Why there is none, or None.
    """

    index: int
    item: Item
    profile: JointProfile | None = None
    rating: Rating | None = None
    error: Exception | None = attrs.field(default=None, eq=False)
