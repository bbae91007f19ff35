"""EASE, a linear item-to-item model in closed form (Steck, "Embarrassingly Shallow Autoencoders", 2019).

It needs no text and no language model: the floor that ranking by profiles is read against, and the source of hard
negatives. Fit it on the rows to learn from alone; whatever it has seen of a target, the negatives would give away.
"""

from __future__ import annotations

import itertools

import attrs
import numpy as np
import numpy.typing as npt

from duet import ConfigurationError

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]


@attrs.frozen(kw_only=True, eq=False)
class EASE:
    """The fitted model. Users and items are whole numbers from 0, as in the table it was fitted on.

    Args:
        weights: (kept, kept) with a diagonal of zero: how much the column's item follows from the row's.
        kept: Item codes the model knows, ascending.
        catalogue: Number of item codes.
        l2: λ, the weight of the ridge penalty.
        starts: Where each user's items begin in `histories`, and one end: (users + 1,).
        histories: Positions in `kept`, user by user.
        interactions: Distinct pairs of user and item it was given, those of items left out included.
    """

    weights: Floats
    kept: Codes
    catalogue: int
    l2: float
    starts: Codes
    histories: Codes
    interactions: int

    @classmethod
    def fit(
        cls,
        users: npt.ArrayLike,
        items: npt.ArrayLike,
        *,
        catalogue: int | None = None,
        l2: float = 250.0,
        max_items: int = 10_000,
    ) -> EASE:
        """Learn from who interacted with what; the rating plays no part, and a repeated pair counts once.

        With G = XᵀX + λI and P = G⁻¹, the weights are −P / diag(P), column by column, and 0 on the diagonal. The peak
        is about four matrices of items² float64 (3.2 GB at 10 000 items), the time grows with items³.

        Args:
            users: User codes, one a row.
            items: Item codes, row by row.
            catalogue: Number of item codes; the largest that occurs plus one where not given.
            l2: λ; 250 is the usual default, and small data may want less.
            max_items: Where more items have interactions, only the most-interacted are kept (of equally many, the
                lower code), and `record` says so.

        Raises:
            ConfigurationError: A code is negative or beyond the catalogue, the lengths differ, or a setting is out of
                range.
        """
        owners, things = _codes(users, "users"), _codes(items, "items")
        if owners.size != things.size:
            raise ConfigurationError(f"{owners.size} users for {things.size} items: they must pair row by row")
        if not (l2 > 0 and max_items > 0):
            raise ConfigurationError(f"l2 and max_items must be positive, got {l2} and {max_items}")
        size = int(things.max(initial=-1)) + 1 if catalogue is None else catalogue
        if things.max(initial=-1) >= size:
            raise ConfigurationError(f"item {things.max()} lies beyond a catalogue of {size}")
        pairs = np.unique(owners * max(size, 1) + things)
        owners, things = np.divmod(pairs, max(size, 1))
        kept = _most_interacted(things, size, max_items)
        known = np.isin(things, kept)
        starts = np.searchsorted(owners[known], np.arange(owners.max(initial=-1) + 2))
        histories = np.searchsorted(kept, things[known])
        return cls(
            weights=_weights(_gram(starts, histories, kept.size), l2),
            kept=kept,
            catalogue=size,
            l2=l2,
            starts=starts,
            histories=histories,
            interactions=pairs.size,
        )

    def history(self, user: int) -> Codes:
        """The items of a user that the model learned from, ascending; none for a user it has not seen."""
        return self.kept[self._positions(user)]

    def scores(self, user: int) -> Floats:
        """A score for every item code, higher is likelier; nan for items left out.

        All 0 for a user without a history: the model has nothing to say, and every order is as good.
        """
        scores = np.full(self.catalogue, np.nan)
        scores[self.kept] = self.weights[self._positions(user)].sum(axis=0)
        return scores

    def record(self) -> dict[str, int | float | bool]:
        """What was fitted on what, to be written beside the negatives: settings and counts only."""
        return {
            "l2": self.l2,
            "users": self.starts.size - 1,
            "items": self.catalogue,
            "items_kept": self.kept.size,
            "interactions": self.interactions,
            "interactions_kept": self.histories.size,
            "restricted": self.histories.size < self.interactions,
        }

    def _positions(self, user: int) -> Codes:
        if not 0 <= user < self.starts.size - 1:
            return self.histories[:0]
        return self.histories[self.starts[user] : self.starts[user + 1]]


def _most_interacted(items: Codes, catalogue: int, limit: int) -> Codes:
    """The codes of at most `limit` items that occur, those in most pairs, ascending."""
    counts = np.bincount(items, minlength=catalogue)
    order = np.argsort(-counts, kind="stable")[:limit]
    return np.sort(order[counts[order] > 0])


def _gram(starts: Codes, histories: Codes, size: int) -> Floats:
    """XᵀX for binary X: how many users have both items. (items, items)."""
    gram = np.zeros((size, size))
    for start, end in itertools.pairwise(starts):
        # A user's items are distinct, so each of its pairs is one cell, and no cell is written twice.
        own = histories[start:end]
        gram[own[:, None], own] += 1
    return gram


def _weights(gram: Floats, l2: float) -> Floats:
    """The closed form; `gram` is changed."""
    gram.flat[:: len(gram) + 1] += l2
    # Positive definite by λ > 0, so the general inverse is safe; through Cholesky factors it measured no faster.
    weights = np.linalg.inv(gram)
    weights /= -np.diagonal(weights).copy()
    np.fill_diagonal(weights, 0.0)
    return np.asarray(weights, dtype=np.float64)


def _codes(values: npt.ArrayLike, name: str) -> Codes:
    column = np.asarray(values)
    if column.size and not np.issubdtype(column.dtype, np.integer):
        raise ConfigurationError(f"{name} must be whole numbers from 0, got {column.dtype}")
    if column.ndim != 1 or column.min(initial=0) < 0:
        raise ConfigurationError(f"{name} must be one column of whole numbers from 0")
    return column.astype(np.int64)
