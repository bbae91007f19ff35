"""A term in text: which of several items came next, as a frozen language model tells from the profile of the user."""

from __future__ import annotations

import random
import string
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, TypeVar

from duet._endpoint import Endpoint
from duet._errors import ConfigurationError, EndpointRejected
from duet._ledger import Ledger, read_through, subjects
from duet._parser import parse_choice
from duet._prompts import choice_prompt, quote
from duet._recommender import check_mass, expected_rating, few_tokens, one_scored_token
from duet._records import Example, Item
from duet._results import Completion, JointProfile
from duet._settings import Sampling
from duet._terms import NOTHING, TermScore, each_scored, had_by, user_text

T = TypeVar("T")


class NextItemReward:
    """Whether a frozen language model finds the item that the user chose, among others, by the profile (BLUE).

    It reads the user's profile and lettered titles, as next-item choice in `evaluate` does, and names a letter. Which
    items stand beside the right one, and where it stands, is drawn from the seed and the ids of user and item: for all
    profiles of a pair alike, and saying nothing.

    BLUE profiles users alone. A profile that was written with the item in sight need only name it to be found.

    Args:
        endpoint: What generates.
        mode: "letter" reads the answer: 1 for the right letter, 0 for another. "expected" reads the log-probabilities
            of its first token: the probability of the right letter among all letters shown.
        choices: Most items to choose from, the right one among them; 2 to 26. The example's candidates come first.
        items: More are drawn from these where the candidates are too few: a catalogue. None that the user had is.
        seen: Ids of the items that each user had, by the id of the user, beside those of the history: where an example
            holds the latest rows alone, and for what the user had later, which `evaluate` leaves out too.
        seed: Of the draw and the order.
        sampling: How to sample; greedy by default. Log-probabilities and, unless set, the token limit are the mode's.
        ledger: Where finished generations are kept and looked up.
        weight: Factor in the sum.
        concurrency: Most generations under way.
        minimum_mass: For "expected": the least probability of all letters shown together, as for `LLMRecommender`.

    Raises:
        ConfigurationError: `mode`, `choices`, `concurrency` or `minimum_mass` cannot work.
    """

    name: str = "next_item"

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        mode: Literal["letter", "expected"] = "letter",
        choices: int = 10,
        items: Sequence[Item] = (),
        seen: Mapping[str, Collection[str]] = NOTHING,
        seed: int = 0,
        sampling: Sampling = Sampling(temperature=0.0, seed=42),
        ledger: Ledger | None = None,
        weight: float = 1.0,
        concurrency: int = 64,
        minimum_mass: float = 0.5,
    ) -> None:
        check_mass(minimum_mass)
        if mode not in ("letter", "expected"):
            raise ConfigurationError(f"mode must be 'letter' or 'expected', got {mode!r}")
        if not 2 <= choices <= len(string.ascii_uppercase):
            raise ConfigurationError(f"choices must be 2 to {len(string.ascii_uppercase)}, got {choices}")
        if concurrency < 1:
            raise ConfigurationError(f"concurrency must be at least 1, got {concurrency}")
        self.weight: float = weight
        self._endpoint = endpoint
        self._mode = mode
        self._choices = choices
        self._titles = {item.id: _title(item) for item in items}
        self._seen = seen
        self._seed = seed
        self._sampling = one_scored_token(sampling) if mode == "expected" else few_tokens(sampling)
        self._ledger = ledger
        self._concurrency = concurrency
        self._minimum_mass = minimum_mass

    async def score(self, profiles: Sequence[JointProfile], examples: Sequence[Example]) -> list[TermScore]:
        """From 0 to 1 for each profile; an error of the endpoint, or an answer without a letter, is no value.

        Args:
            profiles: The text of the user's side is shown.
            examples: The titles of item and candidates are shown; the ids in the history are looked at.

        Raises:
            ValueError: The two are not of one length.
        """
        return await each_scored(self._score_one, profiles, examples, self._concurrency)

    async def _score_one(self, profile: JointProfile, example: Example) -> TermScore:
        titles, right = self._question(example)
        messages = choice_prompt(user_text(profile), titles)
        users = subjects(self._ledger, example.user, example.item)
        completion = await read_through(self._ledger, self._endpoint, messages, self._sampling, None, users)
        if self._mode == "expected":
            return TermScore(self._probability(completion, right, len(titles)))
        return TermScore(float(parse_choice(completion.text, len(titles)) == right))

    def _probability(self, completion: Completion, right: int, options: int) -> float:
        if not completion.logprobs:
            raise EndpointRejected("the endpoint gave no log-probabilities: use mode='letter'", status_code=200)
        labels = {string.ascii_uppercase[at]: int(at == right) for at in range(options)}
        return expected_rating(completion, labels, self._minimum_mass).value

    def _question(self, example: Example) -> tuple[list[str], int]:
        """The titles in the order shown, and the place of the right one."""
        chance = random.Random(f"{self._seed}\n{example.user.id}\n{example.item.id}")
        right = _title(example.item)
        own = {item.id: _title(item) for item in example.candidates if item.id != example.item.id}
        wrong = _drawn(_unlike(right, own), self._choices - 1, chance)
        if (missing := self._choices - 1 - len(wrong)) and self._titles:
            had = had_by(example, self._seen) | {example.item.id, *own}
            others = {item: title for item, title in self._titles.items() if item not in had}
            wrong += _drawn(_unlike(right, others), missing, chance)
        if not wrong:
            raise ConfigurationError("the example has no candidates to choose from: pass items=, as a catalogue")
        places = _drawn(range(len(wrong) + 1), len(wrong) + 1, chance)
        return [[right, *wrong][place] for place in places], places.index(0)


def _title(item: Item) -> str:
    return quote(item.title or "", 200) or quote(item.id, 200)


def _unlike(right: str, titles: dict[str, str]) -> list[str]:
    """The titles that can be told from the right one."""
    return [title for title in titles.values() if title != right]


def _drawn(values: Sequence[T], count: int, chance: random.Random) -> list[T]:
    """Some of the values in an order of chance. Of `random`, only `random()` is the same in every version of Python."""
    pool = list(values)
    for place in range(min(count, len(pool))):
        other = place + int(chance.random() * (len(pool) - place))
        pool[place], pool[other] = pool[other], pool[place]
    return pool[:count]
