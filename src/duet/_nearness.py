"""Texts in embedding space, for the terms that measure in it."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from operator import mul

import anyio.to_thread

from duet._embedder import Embedder
from duet._errors import DuetError, RatingError
from duet._recommender import unit
from duet._records import Item

Directions = Mapping[str, "array[float] | None"]  # a list of the same floats takes four times the memory

_AT_ONCE = 512


def item_text(item: Item) -> str:
    """What an item is embedded as: title and attributes, nothing that anybody rated or said."""
    return ". ".join([item.title or item.id, *(value for _, value in item.attributes)])


class Space:
    """Texts as directions. Cosines are computed once, in plain Python: 20 ns a number."""

    def __init__(self, directions: Directions) -> None:
        self._directions = directions
        self._known: dict[tuple[str, str], float] = {}

    def __contains__(self, text: str) -> bool:
        return self._directions[text] is not None

    def require(self, text: str, what: str) -> None:
        """Refuse a text without a direction.

        Raises:
            RatingError: The embedder gave it none; names `what`.
        """
        if text not in self:
            raise RatingError(f"the embedder gave {what} no direction: the zero vector, or one that is not finite")

    def cosine(self, text: str, other: str) -> float:
        """Of the angle between two texts that both have a direction."""
        key = (text, other)
        if key not in self._known:
            a, b = self._directions[text], self._directions[other]
            assert a is not None
            assert b is not None
            self._known[key] = float(sum(map(mul, a, b)))
        return self._known[key]


class Vectors:
    """Texts to a space; the vectors of items are kept where that was asked for.

    Args:
        embedder: Each distinct text of a call is embedded once.
        frozen: Keep the vectors of items until the embedder's number `updates`, where it has one, changes.
        most: Most vectors to keep.
    """

    def __init__(self, embedder: Embedder, *, frozen: bool, most: int) -> None:
        self._embedder = embedder
        self._frozen = frozen
        self._most = most
        self._kept: dict[str, array[float] | None] = {}
        self._updates: object = None

    async def space(self, texts: Iterable[str], items: Iterable[str]) -> Space:
        """The texts of a call in one space.

        Args:
            texts: Needed in this call.
            items: Needed in this call, and kept if anything is.

        Raises:
            EndpointError: The embedder failed.
            DuetError: It gave other than one vector a text, all of one length.
        """
        kept, items = self._current(), list(items)
        known = {text: kept[text] for text in items if text in kept}
        missing = [text for text in dict.fromkeys([*items, *texts]) if text not in known]
        for start in range(0, len(missing), _AT_ONCE):
            known |= await self._embed(missing[start : start + _AT_ONCE])
        if len(lengths := {len(vector) for vector in known.values() if vector is not None}) > 1:
            raise DuetError(f"the embedder gave vectors of different lengths: {sorted(lengths)}")
        if self._frozen:
            self._keep(kept, {text: known[text] for text in items})
        return Space(known)

    def _current(self) -> dict[str, array[float] | None]:
        """What was kept and still holds."""
        updates = getattr(self._embedder, "updates", None)
        if updates != self._updates:
            self._kept, self._updates = {}, updates
        return self._kept

    def _keep(self, kept: dict[str, array[float] | None], found: Directions) -> None:
        kept.update(found)
        for text in list(kept)[: max(0, len(kept) - self._most)]:
            del kept[text]

    async def _embed(self, texts: list[str]) -> dict[str, array[float] | None]:
        vectors = await self._embedder.embed(texts)
        if len(vectors) != len(texts):
            raise DuetError(f"the embedder gave {len(vectors)} vectors for {len(texts)} texts")
        return dict(zip(texts, await anyio.to_thread.run_sync(_directions, vectors), strict=True))


def _directions(vectors: Iterable[Sequence[float]]) -> list[array[float] | None]:
    return [_direction(array("d", vector)) for vector in vectors]


def _direction(vector: array[float]) -> array[float] | None:
    try:
        return array("d", unit(vector))
    except RatingError:
        return None
