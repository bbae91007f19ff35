"""Candidates to rank: one observed item among items the user never had, hard ones by EASE or random ones.

Every draw depends on the seed, the user and the positive alone, so it is the same in whatever order rows are handled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import attrs
import numpy as np
import numpy.typing as npt

from duet import ConfigurationError
from duet_train.ease import EASE

Codes = npt.NDArray[np.int64]
Kind = Literal["ease", "random"]


@attrs.frozen(kw_only=True)
class CandidateSet:
    """One positive among its negatives, shuffled: where it stands says nothing.

    Args:
        items: Item codes in the order to rank them in.
        position: Index of the positive in `items`.
        user: User code.
        kind: Where the negatives come from.
        seed: What the draw and the shuffle came from.
        pool: How many top items were sampled from; None where the very top was taken, and for random negatives.
        informed: False where EASE knew nothing of the user, so that its "hardest" items are any of those it knows.
    """

    items: tuple[int, ...]
    position: int
    user: int
    kind: Kind
    seed: int
    pool: int | None = None
    informed: bool = True

    @property
    def positive(self) -> int:
        """Item code of the positive."""
        return self.items[self.position]

    @property
    def negatives(self) -> tuple[int, ...]:
        """Item codes of the others, in order."""
        return self.items[: self.position] + self.items[self.position + 1 :]

    def record(self, user_ids: Sequence[str], item_ids: Sequence[str]) -> dict[str, object]:
        """The same with ids for codes, for JSON.

        Args:
            user_ids: The id of each user code.
            item_ids: The id of each item code.
        """
        fields = attrs.asdict(self)
        return fields | {"user": user_ids[self.user], "items": [item_ids[item] for item in self.items]}


def hard_negatives(
    model: EASE,
    user: int,
    positive: int,
    exclude: Iterable[int],
    n: int = 9,
    *,
    pool: int | None = None,
    seed: int = 0,
) -> CandidateSet:
    """The unseen items that EASE scores highest for the user: plausible, and not what was chosen.

    Equal scores are put in an order by the seed, never by item code.

    Args:
        model: Fitted on the training rows alone. Items it left out are no candidates.
        user: User code.
        positive: Item code of the observed item, whether the model knows it or not.
        exclude: Item codes the user has anywhere in the data, test included: a later choice is no negative.
        n: How many negatives.
        pool: None takes the top `n`; a number samples `n` of that many from the top, which is less of one kind.
        seed: Not negative.

    Raises:
        ConfigurationError: `pool` is below `n`, or fewer than `n` items are left.
    """
    if pool is not None and pool < n:
        raise ConfigurationError(f"pool is {pool}, too few to draw {n} negatives from")
    generator = _generator(seed, user, positive)
    left = _left(model.kept, positive, exclude, n)
    scores = model.scores(user)[left]
    order = np.lexsort((generator.random(left.size), -scores))
    top = left[order[: n if pool is None else pool]]
    drawn = top if pool is None else generator.choice(top, n, replace=False)
    items, position = _shuffled(drawn, positive, generator)
    return CandidateSet(
        items=items,
        position=position,
        user=user,
        kind="ease",
        seed=seed,
        pool=pool,
        informed=model.history(user).size > 0,
    )


def random_negatives(
    catalogue: int, user: int, positive: int, exclude: Iterable[int], n: int = 9, *, seed: int = 0
) -> CandidateSet:
    """Unseen items drawn evenly from the whole catalogue.

    Args:
        catalogue: Number of item codes.
        user: User code.
        positive: Item code of the observed item.
        exclude: Item codes the user has anywhere in the data.
        n: How many negatives.
        seed: Not negative.

    Raises:
        ConfigurationError: Fewer than `n` items are left.
    """
    generator = _generator(seed, user, positive)
    left = _left(np.arange(catalogue), positive, exclude, n)
    items, position = _shuffled(generator.choice(left, n, replace=False), positive, generator)
    return CandidateSet(items=items, position=position, user=user, kind="random", seed=seed)


def _generator(seed: int, user: int, positive: int) -> np.random.Generator:
    if min(seed, user, positive) < 0:
        raise ConfigurationError(f"seed, user and positive must not be negative, got {seed}, {user} and {positive}")
    return np.random.default_rng([seed, user, positive])


def _left(items: Codes, positive: int, exclude: Iterable[int], n: int) -> Codes:
    """The items that may be negatives, ascending."""
    barred = np.fromiter((positive, *exclude), dtype=np.int64)
    left = items[~np.isin(items, barred)]
    if n < 1 or left.size < n:
        raise ConfigurationError(f"{n} negatives are wanted, and {left.size} items are left to draw from")
    return left


def _shuffled(negatives: Codes, positive: int, generator: np.random.Generator) -> tuple[tuple[int, ...], int]:
    """The candidates in random order, and where the positive is."""
    items = generator.permutation(np.append(negatives, positive)).tolist()
    return tuple(items), items.index(positive)
