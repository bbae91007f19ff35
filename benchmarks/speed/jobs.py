"""What is asked: pairs and profiles, and the same prompts as plain messages for the other clients."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any

from duet import (
    HTTPEndpoint,
    Interaction,
    Item,
    JointProfile,
    JointProfiler,
    JointPrompt,
    Outcome,
    Profile,
    RatingPrompt,
    User,
)

Pair = tuple[User, Item]

WORDS = ["long", "strict", "plain", "cheap", "heavy", "quiet", "dull", "fair", "rich", "bold", "games", "rules"]
SCORED: dict[str, Any] = {"max_tokens": 1, "logprobs": True, "top_logprobs": 10, "temperature": 0.0, "seed": 42}
VARIETY = 100


class Jobs:
    """A hundred pairs with their profiles. Every client writes its prompt anew for each call, as applications do."""

    def __init__(self) -> None:
        self.pairs = [(new_user(number), new_item(number)) for number in range(VARIETY)]
        self.profiles = [_new_profile(number) for number in range(VARIETY)]
        self._joint, self._rating = JointPrompt(), RatingPrompt()

    def joint(self, number: int) -> Any:
        """The messages of a profile, some 6 400 characters."""
        return self._joint.render(*self.pairs[number])

    def rating(self, number: int) -> Any:
        """The messages of a reward call: 300 characters beside its instructions."""
        return self._rating.render(*self.pairs[number], self.profiles[number])

    def numbers(self) -> Iterator[int]:
        """Endless, each job in turn."""
        while True:
            yield from range(VARIETY)


def new_user(number: int, rows: int = 10) -> User:
    """A user with as many reviewed ratings."""
    chance = random.Random(number)
    return User(f"u{number}", [_row(f"u{number}", f"i{place}", chance) for place in range(rows)])


def new_item(number: int, rows: int = 10) -> Item:
    """An item that as many have reviewed."""
    chance = random.Random(-1 - number)
    return Item(
        f"x{number}", [_row(f"v{place}", f"x{number}", chance) for place in range(rows)], title=_text(30, chance)
    )


@asynccontextmanager
async def outcomes_of(url: str, pairs: Iterable[Pair], concurrency: int) -> AsyncIterator[AsyncIterator[Outcome]]:
    """What `profile_many` makes of the pairs."""
    async with (
        HTTPEndpoint(url, "mock") as endpoint,
        JointProfiler(endpoint).profile_many(pairs, concurrency=concurrency) as outcomes,
    ):
        yield outcomes


async def profile_all(url: str, pairs: Iterable[Pair], concurrency: int) -> None:
    """Profile every pair; none may fail."""
    async with outcomes_of(url, pairs, concurrency) as outcomes:
        async for outcome in outcomes:
            assert outcome.profile is not None, outcome.error


def _row(user: str, item: str, chance: random.Random) -> Interaction:
    rating = float(chance.randint(1, 5))
    return Interaction(user=user, item=item, rating=rating, title=_text(30, chance), review=_text(200, chance))


def _new_profile(number: int) -> JointProfile:
    chance = random.Random(number)
    return JointProfile(user=Profile(text=_text(130, chance)), item=Profile(text=_text(130, chance)))


def _text(size: int, chance: random.Random) -> str:
    return " ".join(chance.choices(WORDS, k=size // 3 + 1))[:size]
