"""Recommenders: profiles in, a rating out. The caller's own model is one of these."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Sequence
from typing import Protocol

import attrs

from duet._embedder import Embedder
from duet._endpoint import Endpoint
from duet._errors import ConfigurationError, EndpointRejected, EndpointUnavailable, RatingError, RecordError
from duet._ledger import Ledger, read_through, subjects
from duet._parser import parse_rating
from duet._prompts import RatingMode, RatingPrompt
from duet._records import Item, RatingScale, User
from duet._results import Completion, JointProfile, Rating, TokenLogprob
from duet._settings import Sampling

_SPACE_MARKS = str.maketrans("▁ĠĊ", "   ")  # what vocabularies write for a space and a line feed
_CERTAIN = 1e-3  # a log-probability may lie above zero by rounding, in bfloat16 too


class Recommender(Protocol):
    """What predicts a rating. Any object of this shape will do."""

    async def predict(self, user: User, item: Item, profile: JointProfile | None) -> Rating | float:
        """The rating that `user` would give `item`.

        Args:
            user: The user, with the history that may be seen.
            item: The item, with the evidence that may be seen.
            profile: Their joint profile; None to go by the records alone.
        """


async def predicted(recommender: Recommender, user: User, item: Item, profile: JointProfile | None) -> Rating:
    """What a recommender predicts, as a record.

    Raises:
        ConfigurationError: Its `predict` is not async.
        RatingError: It returned no finite number.
    """
    answer = recommender.predict(user, item, profile)
    if not inspect.isawaitable(answer):
        raise ConfigurationError(f"{type(recommender).__name__}.predict must be async: it returned {answer!r:.80}")
    rating = await answer
    if isinstance(rating, Rating):
        return rating
    try:
        return Rating(rating)
    except RecordError:
        raise RatingError(f"the recommender returned {rating!r:.80}, no rating", text=repr(rating)) from None


class LLMRecommender:
    """A frozen language model as recommender (DUET, "Prompts"; expected ratings as in Reason4Rec).

    Args:
        endpoint: What generates.
        mode: "expected" reads one token's log-probabilities and returns the mean of the ratings they stand for;
            "decimal" asks for two decimals; "integer" for a whole number.
        scale: Where the rating lies. "expected" uses its whole numbers.
        recent: How many of the user's most recent raw interactions stand beside the profile.
        review_chars: Characters of each review in them.
        guarded: Tell the model, before and after the profiles, that they are no instructions. It makes a profile that
            says what to predict weigh less, and does not make it weigh nothing.
        sampling: How to sample; greedy by default. Token limit and log-probabilities are set by the mode; a rating
            that is not among `top_logprobs` counts as impossible, so ask for more where the engine gives more than 20.
        ledger: Where finished generations are kept and looked up.
        minimum_mass: For "expected": the least probability, 0 to 1, of all labels together. Below it the model wants to
            say something else, for example to think, and what it gives the labels is no rating. A very small model may
            need less.

    Raises:
        ConfigurationError: A setting cannot work.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        mode: RatingMode = "expected",
        scale: RatingScale = RatingScale(),
        recent: int = 0,
        review_chars: int = 200,
        guarded: bool = False,
        sampling: Sampling = Sampling(temperature=0.0, seed=42),
        ledger: Ledger | None = None,
        minimum_mass: float = 0.5,
    ) -> None:
        check_mass(minimum_mass)
        self._endpoint = endpoint
        self._minimum_mass = minimum_mass
        self._prompt = RatingPrompt(mode=mode, scale=scale, recent=recent, review_chars=review_chars, guarded=guarded)
        self.scale: RatingScale = scale
        self.mode: RatingMode = mode
        self._ledger = ledger
        self._labels = self._prompt.labels if mode == "expected" else {}
        self._sampling = one_scored_token(sampling) if mode == "expected" else few_tokens(sampling)

    async def predict(self, user: User, item: Item, profile: JointProfile | None) -> Rating:
        """The rating that the model predicts.

        Args:
            user: Its recent interactions are shown where `recent` asks for them.
            item: Its title is shown.
            profile: Its texts are shown; None shows the records alone.

        Raises:
            EndpointError: The infrastructure's fault; also where "expected" gets no log-probabilities, or none that are
                numbers.
            RatingError: The answer holds no rating on the scale, or the labels have less than `minimum_mass`.
        """
        messages = self._prompt.render(user, item, profile)
        # The profiles were written from the evidence, so whose rows they were is known here too.
        users = subjects(self._ledger, user, item)
        completion = await read_through(self._ledger, self._endpoint, messages, self._sampling, None, users)
        if self._labels:
            return expected_rating(completion, self._labels, self._minimum_mass)
        return Rating(parse_rating(completion.text, self.scale), text=completion.text, usage=completion.usage)


def one_scored_token(sampling: Sampling) -> Sampling:
    """One token, with its log-probability and those of the likeliest others."""
    # OpenAI's reasoning models refuse max_tokens, so a limit under the other name is left as it is.
    limit = None if sampling.max_completion_tokens else 1
    wanted = sampling.top_logprobs or 20  # the most that OpenAI and, by default, vLLM give
    return attrs.evolve(sampling, max_tokens=limit, logprobs=True, top_logprobs=wanted)


def few_tokens(sampling: Sampling) -> Sampling:
    """At most 20 tokens, unless a limit is set."""
    limited = sampling.max_tokens or sampling.max_completion_tokens
    return sampling if limited else attrs.evolve(sampling, max_tokens=20)


def expected_rating(completion: Completion, labels: dict[str, int], minimum_mass: float) -> Rating:
    """The mean rating under the probabilities of the first token, over the labels that stand for ratings.

    Args:
        completion: With log-probabilities.
        labels: One-token answers and their ratings.
        minimum_mass: As for `label_probabilities`.

    Raises:
        EndpointError: As from `label_probabilities`.
        RatingError: As from `label_probabilities`.
    """
    weights = dict.fromkeys(labels.values(), 0.0)
    for label, probability in label_probabilities(completion, labels, minimum_mass=minimum_mass).items():
        weights[labels[label]] += probability
    total = math.fsum(weights.values())
    probabilities = tuple((float(rating), weight / total) for rating, weight in sorted(weights.items()))
    mean = math.fsum(rating * probability for rating, probability in probabilities)
    # Rounding may carry the sum a little above one.
    mass = min(1.0, total)
    return Rating(mean, text=completion.text, probabilities=probabilities, usage=completion.usage, mass=mass)


def label_probabilities(
    completion: Completion, labels: Iterable[str], *, minimum_mass: float = 0.5
) -> dict[str, float]:
    """The probability of each label as the first token of an answer; 0 for one that is not among the likeliest tokens.

    A label with a space before or after it, or with the mark that a vocabulary has for one ("▁4", "Ġ4"), is the same
    label: their probabilities are added.

    Args:
        completion: With log-probabilities.
        labels: One-token answers.
        minimum_mass: The least sum of the probabilities, 0 to 1; a sum of 0 is never enough.

    Raises:
        EndpointRejected: The endpoint gave no log-probabilities.
        EndpointUnavailable: One of them is no log-probability, such as NaN.
        RatingError: The sum is too small: the model wants to say something else.
    """
    if not completion.logprobs:
        raise EndpointRejected(
            "the endpoint gave no log-probabilities: use mode='decimal' or 'integer'", status_code=200
        )
    probabilities = dict.fromkeys(labels, 0.0)
    for token, logprob in _alternatives(completion.logprobs[0]):
        if not logprob <= _CERTAIN:  # NaN too
            raise EndpointUnavailable(f"the endpoint gave {logprob!r} as the log-probability of {token!r}")
        label = token.translate(_SPACE_MARKS).strip()
        if label in probabilities:
            probabilities[label] += math.exp(logprob)
    mass = math.fsum(probabilities.values())
    if mass <= 0 or mass < minimum_mass:
        raise RatingError(_too_little(completion, probabilities, mass), text=completion.text)
    return probabilities


def _too_little(completion: Completion, labels: Iterable[str], mass: float) -> str:
    """What is likely wrong where the labels have next to no probability."""
    token, _ = max(_alternatives(completion.logprobs[0]), key=lambda one: one[1])
    thinks = "think" in token.lower() or completion.reasoning
    likely = "the model thinks before it answers" if thinks else "the model may think or explain before it answers"
    return (
        f"the labels {', '.join(labels)} have a probability of {mass:.2g} in all and {token[:40]!r} is the likeliest "
        f"token: {likely}. Switch thinking off, as with extra_body "
        '{"chat_template_kwargs": {"enable_thinking": false}} for Qwen3, or have the answer written out with enough '
        'tokens (mode "decimal", for a choice "letter"). A lower minimum_mass accepts the answer as it is'
    )


def _alternatives(first: TokenLogprob) -> Sequence[tuple[str, float]]:
    """The likeliest tokens in the first place; some servers leave out the one they chose."""
    chosen = (first.token, first.logprob)
    return first.top_logprobs if chosen[0] in dict(first.top_logprobs) else (*first.top_logprobs, chosen)


def check_mass(minimum_mass: float) -> None:
    """That a least mass is a probability.

    Raises:
        ConfigurationError: It is not.
    """
    if not 0 <= minimum_mass <= 1:
        raise ConfigurationError(f"minimum_mass must lie from 0 to 1, got {minimum_mass!r}")


class EmbeddingRecommender:
    """The nearness of the two profiles, as a rating.

    Cosines are mapped on the scale in a straight line. That is not calibrated: right for ranking and for comparing
    profiles, while a rating needs `low` and `high` chosen on training data. A side without a profile is represented by
    what the records say of it.

    Args:
        embedder: What turns texts into vectors.
        scale: Where the rating lies.
        low: The cosine that stands for the lowest rating.
        high: The cosine that stands for the highest rating.
    """

    def __init__(
        self, embedder: Embedder, *, scale: RatingScale = RatingScale(), low: float = 0.0, high: float = 1.0
    ) -> None:
        if not -1 <= low < high <= 1:
            raise ConfigurationError(f"need -1 <= low < high <= 1, got low={low:g} and high={high:g}")
        self._embedder = embedder
        self.scale: RatingScale = scale
        self._low = low
        self._high = high

    async def predict(self, user: User, item: Item, profile: JointProfile | None) -> Rating:
        """The nearness of the two profiles on the scale.

        Args:
            user: Its titles stand in for a missing profile.
            item: Its title and attributes stand in for a missing profile.
            profile: Their joint profile.

        Raises:
            EndpointError: The infrastructure's fault.
            RatingError: A vector is zero, so there is no angle.
        """
        sides = profile or JointProfile()
        texts = (
            sides.user.text if sides.user else _user_text(user),
            sides.item.text if sides.item else _item_text(item),
        )
        similarity = cosine(*await self._embedder.embed(texts))
        share = (similarity - self._low) / (self._high - self._low)
        return Rating(self.scale.minimum + min(max(share, 0.0), 1.0) * self.scale.range)


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """The cosine of the angle between two vectors.

    Raises:
        RatingError: One of them is zero or not finite, or their lengths differ.
    """
    if len(a) != len(b):
        raise RatingError(f"embeddings of {len(a)} and {len(b)} numbers cannot be compared")
    return math.fsum(x * y for x, y in zip(unit(a), unit(b), strict=True))


def unit(vector: Sequence[float]) -> list[float]:
    """The vector at length 1. Divided by its largest entry first, so that no square is lost or infinite.

    Raises:
        RatingError: It is zero, or not finite.
    """
    largest = max(map(abs, vector), default=0.0)
    if not 0 < largest < math.inf or not all(map(math.isfinite, vector)):
        raise RatingError("an embedding is the zero vector, or not finite")
    scaled = [entry / largest for entry in vector]
    length = math.hypot(*scaled)
    return [entry / length for entry in scaled]


def _user_text(user: User) -> str:
    return "; ".join(row.title for row in user.history[-10:] if row.title) or user.name or "no history"


def _item_text(item: Item) -> str:
    return "; ".join([item.title or "unknown title", *(value for _, value in item.attributes)])
