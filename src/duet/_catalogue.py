"""The catalogue term: how high the right item stands among all items."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import anyio.to_thread

from duet._embedder import Embedder
from duet._errors import ConfigurationError, DuetError
from duet._nearness import Space, Vectors, item_text
from duet._records import Example, Item
from duet._results import JointProfile
from duet._terms import NOTHING, TermScore, had_by, user_text

_SAME = 1e-12  # cosines of vectors that differ in length alone differ in their last bits


class CatalogueReward:
    """How high the item stands in the whole catalogue, ranked by nearness to the user's profile (LangPTune, "RLSO").

    NDCG with one right item: 1 / log₂(rank + 1), from 0 to 1, in expectation over the orders of items that are equally
    near. The items that the user had are not ranked. A profile written with the item in sight need only name it.

    The ranking is plain arithmetic, in a thread: 10,000 items of 384 numbers take about 0.1 s a profile.

    Args:
        embedder: What turns texts into vectors. It may change between calls, as one that learns does.
        items: The catalogue; the item of each example must be in it. An item is embedded as title and attributes.
        k: Beyond this rank there is no gain; None is the whole catalogue, as in LangPTune.
        metric: "mrr" takes 1 / rank instead.
        seen: Ids of the items that each user had, by the id of the user, beside those of the history: where an example
            holds the latest rows alone, and for what the user had later, which `evaluate` leaves out too.
        frozen: The embedder does not change: keep the vectors of the items, or they are made anew in each call. Where
            it has a number `updates`, they are forgotten when it changes.
        weight: Factor in the sum.

    Raises:
        ConfigurationError: `k` or `metric` cannot work, or there are fewer than two items.
    """

    name: str = "catalogue"

    def __init__(
        self,
        embedder: Embedder,
        items: Sequence[Item],
        *,
        k: int | None = None,
        metric: Literal["ndcg", "mrr"] = "ndcg",
        seen: Mapping[str, Collection[str]] = NOTHING,
        frozen: bool = False,
        weight: float = 1.0,
    ) -> None:
        self._texts = {item.id: item_text(item) for item in items}
        if len(self._texts) < 2:
            raise ConfigurationError(f"a catalogue needs two items or more, got {len(self._texts)}")
        if k is not None and k < 1:
            raise ConfigurationError(f"k must be at least 1, got {k}")
        if metric not in ("ndcg", "mrr"):
            raise ConfigurationError(f"metric must be 'ndcg' or 'mrr', got {metric!r}")
        self.weight: float = weight
        self._vectors = Vectors(embedder, frozen=frozen, most=len(self._texts))
        self._k = k or len(self._texts)
        self._metric = metric
        self._seen = seen

    async def score(self, profiles: Sequence[JointProfile], examples: Sequence[Example]) -> list[TermScore]:
        """From 0 to 1 for each profile; no value where the item is not in the catalogue.

        Args:
            profiles: The text of the user's side is embedded.
            examples: The item of each, and the ids in the user's history.

        Raises:
            EndpointError: The embedder failed.
            DuetError: It gave other than one vector a text, all of one length.
            ValueError: The two are not of one length.
        """
        pairs = list(zip(profiles, examples, strict=True))
        texts = [profile.user.text for profile in profiles if profile.user is not None]
        space = await self._vectors.space(texts, self._texts.values() if texts else ())
        # Plain arithmetic in another thread: the event loop goes on meanwhile, and may cancel between two rows.
        return [await anyio.to_thread.run_sync(self._score_one, *pair, space) for pair in pairs]

    def _score_one(self, profile: JointProfile, example: Example, space: Space) -> TermScore:
        try:
            better, tied = self._place(user_text(profile), example, space)
        except DuetError as exc:
            return TermScore(None, error=exc)
        return TermScore(self._gain(better, tied))

    def _place(self, text: str, example: Example, space: Space) -> tuple[int, int]:
        """How many items are nearer than the right one, and how many are as near, itself among them."""
        if example.item.id not in self._texts:
            raise ConfigurationError(f"the item {example.item.id!r} is not in the catalogue")
        right = self._texts[example.item.id]
        space.require(text, "the profile")
        space.require(right, "the item")
        left_out = had_by(example, self._seen) | {example.item.id}
        others = [other for item, other in self._texts.items() if item not in left_out and other in space]
        own = space.cosine(text, right)
        leads = [space.cosine(text, other) - own for other in others]
        return sum(lead > _SAME for lead in leads), 1 + sum(abs(lead) <= _SAME for lead in leads)

    def _gain(self, better: int, tied: int) -> float:
        """The mean gain of the places that the right item may have."""
        places = range(better + 1, min(better + tied, self._k) + 1)
        return math.fsum(1 / (math.log2(place + 1) if self._metric == "ndcg" else place) for place in places) / tied
