"""An embedder whose vectors are written down, and pairs to place in its space; for the tests of the terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import anyio.lowlevel

from duet import Example, Interaction, Item, JointProfile, Profile, TermScore, User

Floats = Sequence[float]


class Space:
    """An embedder that looks its vectors up, and keeps what it was asked."""

    def __init__(self, vectors: Mapping[str, Floats] | Callable[[str], Floats]) -> None:
        self.find = vectors if callable(vectors) else vectors.__getitem__
        self.calls: list[list[str]] = []

    async def embed(self, texts: Sequence[str]) -> list[Floats]:
        await anyio.lowlevel.checkpoint()
        self.calls.append(list(texts))
        return [self.find(text) for text in texts]

    @property
    def asked(self) -> list[str]:
        """All texts, in the order in which they came."""
        return [text for call in self.calls for text in call]


def written(user: str | None, item: str | None = None) -> JointProfile:
    """A joint profile with these texts."""
    sides = [None if text is None else Profile(text=text) for text in (user, item)]
    return JointProfile(user=sides[0], item=sides[1])


def pair(
    user: str, item: str, *, had: Sequence[str] = (), candidates: Sequence[str] = (), rating: float = 4
) -> Example:
    """A user with a history of these items, and an item that is called what its id is."""
    history = [Interaction(user=user, item=seen, rating=3) for seen in had if seen != item]
    return Example(
        User(user, history), Item(item, title=item), rating, candidates=[Item(one, title=one) for one in candidates]
    )


def values(scores: Sequence[TermScore]) -> list[float | None]:
    """The scores alone."""
    return [score.value for score in scores]
