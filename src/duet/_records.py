"""Frozen records of what goes into a profile: interactions, users, items, examples.

Ids must be usable as keys: empty ids, NUL and lone surrogates are refused. Free text is normalised instead, since logs
of real users hold anything: NUL and lone surrogates become U+FFFD, so that every text can be encoded, stored and sent.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import attrs

from duet._errors import RecordError

_UNSENDABLE = re.compile("[\x00\ud800-\udfff]")


def _clean(value: object) -> str:
    return _UNSENDABLE.sub("\ufffd", "" if value is None else str(value))


def _clean_or_none(value: object) -> str | None:
    return None if value is None else _clean(value)


def count(values: tuple[object, ...]) -> str:
    return f"<{len(values)}>"


def _check_id(record: object, field: attrs.Attribute[str], value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise RecordError(
            f"{type(record).__name__}.{field.name} must be a non-empty str, got {value!r}", field=field.name
        )
    if _UNSENDABLE.search(value):
        raise RecordError(
            f"{type(record).__name__}.{field.name} holds NUL or a lone surrogate: {value!r}", field=field.name
        )


def check_rating(record: object, field: attrs.Attribute[float], value: float) -> None:
    if not math.isfinite(value):
        raise RecordError(f"{type(record).__name__}.{field.name} must be finite, got {value!r}", field=field.name)


def _check_time(record: object, field: attrs.Attribute[datetime | None], value: object) -> None:
    if value is not None and not isinstance(value, datetime):
        raise RecordError(
            f"{type(record).__name__}.{field.name} must be a datetime or None, got {value!r}", field=field.name
        )


def to_float(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise RecordError(f"rating must be a number, got {value!r:.80}", field="rating") from None


@attrs.frozen
class RatingScale:
    """The closed interval on which ratings live.

    Args:
        minimum: Lowest rating, in rating points.
        maximum: Highest rating, in rating points.
    """

    minimum: float = attrs.field(default=1.0, converter=to_float)
    maximum: float = attrs.field(default=5.0, converter=to_float)

    def __attrs_post_init__(self) -> None:
        if not (math.isfinite(self.minimum) and math.isfinite(self.maximum) and self.minimum < self.maximum):
            raise RecordError(
                f"a scale needs minimum < maximum, got {self.minimum:g} and {self.maximum:g}", field="minimum"
            )

    def __contains__(self, rating: float) -> bool:
        return self.minimum <= rating <= self.maximum

    def __str__(self) -> str:
        return f"{self.minimum:g} to {self.maximum:g}"

    @property
    def range(self) -> float:
        """Maximum minus minimum: M in the reward 1 − |r − r̂| / M (DUET, section "Reward")."""
        return self.maximum - self.minimum

    @property
    def points(self) -> tuple[int, ...]:
        """The whole numbers on the scale, ascending."""
        return tuple(range(math.ceil(self.minimum), math.floor(self.maximum) + 1))

    def clip(self, rating: float) -> float:
        """The nearest rating on the scale.

        Args:
            rating: In rating points, from anywhere; NaN stays NaN.
        """
        return min(max(rating, self.minimum), self.maximum)

    def require(self, rating: float, field: str) -> None:
        """Refuse a rating that is off the scale.

        Args:
            rating: In rating points.
            field: What to call it in the error, as in "history[3].rating".

        Raises:
            RecordError: It is not on the scale; names `field`.
        """
        if rating not in self:
            raise RecordError(f"{field} is {rating:g}, off the scale of {self}", field=field)


@attrs.frozen
class Interaction:
    """One rating that one user gave one item.

    Args:
        user: Id of the user.
        item: Id of the item.
        rating: In rating points; finite. The scale is checked where it is known (`Example`).
        title: The item's title, as the user's history shows it.
        review: The user's own words; any length, prompts cut it.
        at: When. Times within one history are all naive, all aware, or all None.

    Raises:
        RecordError: A field does not hold.
    """

    user: str = attrs.field(kw_only=True, validator=_check_id)
    item: str = attrs.field(kw_only=True, validator=_check_id)
    rating: float = attrs.field(kw_only=True, converter=to_float, validator=check_rating)
    title: str = attrs.field(kw_only=True, default="", converter=_clean)
    review: str = attrs.field(kw_only=True, default="", converter=_clean, repr=False)
    at: datetime | None = attrs.field(kw_only=True, default=None, validator=_check_time)


def _has_zone(at: datetime) -> bool:
    return at.utcoffset() is not None


def _check_one_clock(times: Iterable[tuple[str, datetime | None]]) -> None:
    """Naive and aware times cannot be ordered, so one mixture is refused as a whole."""
    zoned: bool | None = None
    for field, at in times:
        if at is None:
            continue
        if zoned is not None and _has_zone(at) != zoned:
            raise RecordError(f"{field} mixes naive and aware times: {at!r}", field=field)
        zoned = _has_zone(at)


def _sorted_history(rows: Iterable[Interaction], field: str) -> tuple[Interaction, ...]:
    """Oldest first, undated rows before dated ones in the order given, exact duplicates once."""
    given = tuple(rows)
    for index, row in enumerate(given):
        if not isinstance(row, Interaction):
            raise RecordError(
                f"{field}[{index}] must be an Interaction, got {type(row).__name__}", field=f"{field}[{index}]"
            )
    unique = tuple(dict.fromkeys(given))
    _check_one_clock((f"{field}[{index}].at", row.at) for index, row in enumerate(unique))
    undated = tuple(row for row in unique if row.at is None)
    dated = [row for row in unique if row.at is not None]
    return undated + tuple(sorted(dated, key=lambda row: row.at or datetime.min))


def _history(rows: Iterable[Interaction]) -> tuple[Interaction, ...]:
    return _sorted_history(rows, "history")


def _evidence(rows: Iterable[Interaction]) -> tuple[Interaction, ...]:
    return _sorted_history(rows, "evidence")


def _before(rows: Sequence[Interaction], at: datetime) -> tuple[Interaction, ...]:
    _check_one_clock([("at", at), *((f"[{index}].at", row.at) for index, row in enumerate(rows))])
    return tuple(row for row in rows if row.at is not None and row.at < at)


@attrs.frozen
class User:
    """A user and what they did: `history` is kept oldest first, exact duplicates once.

    Args:
        id: Id of the user; never shown to a model.
        history: Interactions of this user with any items, in any order; rows without a time come first.
        name: Shown to the model where it is known.

    Raises:
        RecordError: The id is empty, a row belongs to another user, or naive and aware times are mixed.
    """

    id: str = attrs.field(validator=_check_id)
    history: tuple[Interaction, ...] = attrs.field(default=(), converter=_history, repr=count)
    name: str | None = attrs.field(default=None, kw_only=True, converter=_clean_or_none)

    def __attrs_post_init__(self) -> None:
        for index, row in enumerate(self.history):
            if row.user != self.id:
                raise RecordError(
                    f"history[{index}].user is {row.user!r}, not {self.id!r}", field=f"history[{index}].user"
                )

    def before(self, at: datetime) -> User:
        """The same user with what lies strictly before `at`; rows without a time cannot be shown to, and go.

        Args:
            at: Naive where the rows' times are, else aware.

        Raises:
            RecordError: One is naive and the other aware.
        """
        return attrs.evolve(self, history=_before(self.history, at))


def _pairs(attributes: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((_clean(key), _clean(value)) for key, value in dict(attributes).items()))


@attrs.frozen
class Item:
    """An item and what others said of it: `evidence` is kept oldest first, exact duplicates once.

    Args:
        id: Id of the item.
        evidence: Interactions of any users with this item.
        title: Its title, where known.
        attributes: What else is known, as a mapping; kept as sorted pairs, so that the record can be hashed. Averages
            and review counts of public data sets hold the target's own rating: leave them out.

    Raises:
        RecordError: The id is empty, a row belongs to another item, or naive and aware times are mixed.
    """

    id: str = attrs.field(validator=_check_id)
    evidence: tuple[Interaction, ...] = attrs.field(default=(), converter=_evidence, repr=count)
    title: str | None = attrs.field(default=None, kw_only=True, converter=_clean_or_none)
    attributes: tuple[tuple[str, str], ...] = attrs.field(default=(), kw_only=True, converter=_pairs)

    def __attrs_post_init__(self) -> None:
        for index, row in enumerate(self.evidence):
            if row.item != self.id:
                raise RecordError(
                    f"evidence[{index}].item is {row.item!r}, not {self.id!r}", field=f"evidence[{index}].item"
                )

    def before(self, at: datetime) -> Item:
        """The same item with what lies strictly before `at`; rows without a time cannot be shown to, and go.

        Args:
            at: Naive where the rows' times are, else aware.

        Raises:
            RecordError: One is naive and the other aware.
        """
        return attrs.evolve(self, evidence=_before(self.evidence, at))


def _items(items: Iterable[Item]) -> tuple[Item, ...]:
    return tuple(items)


@attrs.frozen
class Example:
    """A pair whose rating is known: what training and evaluation run on.

    Whatever does not lie strictly before the target is left out of history and evidence here, once and for all: with a
    time, every row that is not older; without one, every row of the same user with the same item.

    Args:
        user: With any history.
        item: With any evidence.
        rating: The true rating, in rating points.
        at: When it was given.
        candidates: Other items to rank beside it.
        scale: The scale of all its ratings.

    Raises:
        RecordError: A rating is off the scale, or naive and aware times are mixed.
    """

    user: User
    item: Item
    rating: float = attrs.field(converter=to_float, validator=check_rating)
    at: datetime | None = attrs.field(default=None, kw_only=True, validator=_check_time)
    candidates: tuple[Item, ...] = attrs.field(default=(), kw_only=True, converter=_items)
    scale: RatingScale = attrs.field(default=RatingScale(), kw_only=True)

    def __attrs_post_init__(self) -> None:
        _check_one_clock([("at", self.at), *((f"{name}.at", row.at) for name, row in self._rows())])
        # A frozen attrs class offers no other way to narrow its own fields once all of them are known.
        object.__setattr__(self, "user", self._cut_user(self.user))
        object.__setattr__(self, "item", self._cut_item(self.item))
        object.__setattr__(self, "candidates", tuple(map(self._cut_item, self.candidates)))
        self.scale.require(self.rating, "rating")
        for name, row in self._rows():
            self.scale.require(row.rating, f"{name}.rating")

    def _rows(self) -> Iterator[tuple[str, Interaction]]:
        groups = [("user.history", self.user.history), ("item.evidence", self.item.evidence)]
        groups += [(f"candidates[{index}].evidence", item.evidence) for index, item in enumerate(self.candidates)]
        for name, rows in groups:
            for index, row in enumerate(rows):
                yield f"{name}[{index}]", row

    def _cut_user(self, user: User) -> User:
        if self.at is not None:
            return user.before(self.at)
        return attrs.evolve(user, history=self._without_pair(user.history))

    def _cut_item(self, item: Item) -> Item:
        if self.at is not None:
            return item.before(self.at)
        return attrs.evolve(item, evidence=self._without_pair(item.evidence))

    def _without_pair(self, rows: Iterable[Interaction]) -> tuple[Interaction, ...]:
        return tuple(row for row in rows if (row.user, row.item) != (self.user.id, self.item.id))
