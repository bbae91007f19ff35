"""How popular an item is in the training rows: head, middle or tail. Pure."""

from __future__ import annotations

import attrs
import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]

SHARE = 0.2
"""Of the training interactions, for the head and for the tail."""


@attrs.frozen(kw_only=True)
class Popularity:
    """How many training interactions the item of each row has, and where tail and head begin.

    With the items in the order of their training interactions, the head are the most popular ones that have a fifth of
    all training interactions together, the tail the least popular ones that have a fifth, and the middle is the rest.
    Items with equally many interactions stay together: their place is that of the middle of their interactions. An item
    without training interactions is tail.

    Args:
        counts: Training interactions of each row's item.
        tail: Most interactions of an item of the tail.
        middle: Most interactions of an item of the middle; the head has more.
    """

    counts: Counts = attrs.field(eq=attrs.cmp_using(eq=np.array_equal))
    tail: int
    middle: int

    @classmethod
    def of(cls, items: npt.ArrayLike, shown: npt.ArrayLike) -> Popularity:
        """Count.

        Args:
            items: Item code of each training row.
            shown: Item code of each row that is evaluated.
        """
        trained, wanted = np.asarray(items, dtype=np.int64), np.asarray(shown, dtype=np.int64)
        every = np.bincount(trained, minlength=int(wanted.max(initial=-1)) + 1)
        sizes, owners = np.unique(every[every > 0], return_counts=True)
        mass = sizes * owners
        place = (np.cumsum(mass) - mass / 2) / max(1, mass.sum())  # 0 for the least popular, 1 for the most
        return cls(
            counts=every[wanted].astype(np.int64),
            tail=int(sizes[place < SHARE].max(initial=0)),
            middle=int(sizes[place <= 1 - SHARE].max(initial=0)),
        )

    def name(self, above: float, up_to: float) -> str:
        """What a group between two of the bounds is called: tail, middle or head.

        Args:
            above: Its items have more interactions, -inf for the first group.
            up_to: Its items have no more, inf for the last group.
        """
        if up_to <= self.tail:
            return "tail"
        return "head" if above >= self.middle else "middle"
