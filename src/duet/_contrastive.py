"""The contrastive term: profile and item must find each other among those of the batch."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import anyio.to_thread
import attrs

from duet._embedder import Embedder
from duet._errors import ConfigurationError, DuetError
from duet._nearness import Space, Vectors, item_text
from duet._records import Example, Item
from duet._results import JointProfile
from duet._terms import NOTHING, TermScore, had_by, user_text

_KEPT = 20_000


class ContrastiveReward:
    """How surely profile and item find each other among those of the batch: bidirectional InfoNCE (BLUE).

    The mean of two log-probabilities: log softmax of cos(profile, item) / τ at the right item, over items; and the same
    at the right profile, over profiles. Each is 0 at best, and −log n where n are equally near.

    No negative is what may be right. Of the items, those that the user had, or is to find elsewhere in the batch, are
    left out; of the profiles, all of the same user, such as the rest of a group, and those of users who had the item.
    Each item counts once, and each user: several profiles of one user share the weight of one, so that the size of a
    group says nothing. A direction without negatives is left out; where both are, there is an error and no value.

    BLUE profiles users alone. A profile that was written with the item in sight need only name it to be found. Set the
    env's `format_penalty` below what a poor profile earns here, which may be less than −1.

    Args:
        embedder: What turns texts into vectors. It may change between calls, as one that learns does.
        temperature: τ. LangPTune's 0.1 by default; BLUE's is not known.
        negatives: Items that stand beside those of the batch and the example's candidates.
        seen: Ids of the items that each user had, by the id of the user, beside those of the history: where an example
            holds the latest rows alone, and for what the user had later, which `evaluate` leaves out too.
        item_profiles: An item of the batch is embedded as the profile that was written of it, not as title and
            attributes. Whoever writes both sides can make them alike.
        relative: Measure each direction against chance: 1 + log-probability / log n, which is 1 for certainty and 0
            where n are equally near.
        frozen: The embedder does not change: keep the vectors of up to 20,000 items. Where it has a number `updates`,
            they are forgotten when it changes.
        weight: Factor in the sum.

    Raises:
        ConfigurationError: The temperature cannot work.
    """

    name: str = "contrastive"
    in_batch: bool = True

    def __init__(
        self,
        embedder: Embedder,
        *,
        temperature: float = 0.1,
        negatives: Sequence[Item] = (),
        seen: Mapping[str, Collection[str]] = NOTHING,
        item_profiles: bool = False,
        relative: bool = False,
        frozen: bool = False,
        weight: float = 1.0,
    ) -> None:
        if not 0 < temperature < math.inf:
            raise ConfigurationError(f"temperature must be above 0 and finite, got {temperature:g}")
        self.weight: float = weight
        self._vectors = Vectors(embedder, frozen=frozen, most=_KEPT)
        self._temperature = temperature
        self._negatives = {item.id: item_text(item) for item in negatives}
        self._seen = seen
        self._item_profiles = item_profiles
        self._relative = relative

    async def score(self, profiles: Sequence[JointProfile], examples: Sequence[Example]) -> list[TermScore]:
        """At most 0 for each profile, or at most 1 if `relative`; no value for one that has no negatives.

        Args:
            profiles: The text of the user's side is embedded, and that of the item's with `item_profiles`.
            examples: Title and attributes of item and candidates are embedded; the ids in the history are looked at.

        Raises:
            EndpointError: The embedder failed.
            DuetError: It gave other than one vector a text, all of one length.
            ValueError: The two are not of one length.
        """
        rows = [self._row(profile, example) for profile, example in zip(profiles, examples, strict=True)]
        batch = _Batch(rows, [had_by(example, self._seen) for example in examples], self._negatives)
        space = await self._vectors.space(batch.written, batch.records)
        # Plain arithmetic in another thread: the event loop goes on meanwhile, and may cancel between two rows.
        return [await anyio.to_thread.run_sync(self._score_one, row, batch, space) for row in rows]

    def _row(self, profile: JointProfile, example: Example) -> _Row:
        sides = [profile.user, profile.item] if self._item_profiles else [profile.user]
        return _Row(
            user=example.user.id,
            item=example.item.id,
            profile=None if None in sides else user_text(profile),
            text=profile.item.text if self._item_profiles and profile.item else item_text(example.item),
            is_profile=self._item_profiles,
            candidates={item.id: item_text(item) for item in example.candidates},
        )

    def _score_one(self, row: _Row, batch: _Batch, space: Space) -> TermScore:
        try:
            return TermScore(self._value(row, batch, space))
        except DuetError as exc:
            return TermScore(None, error=exc)

    def _value(self, row: _Row, batch: _Batch, space: Space) -> float:
        if row.profile is None:
            sides = "'user' and 'item'" if self._item_profiles else "'user'"
            raise ConfigurationError(f"this term reads profiles: the schema needs {sides} among its sides")
        space.require(row.profile, "the profile")
        space.require(row.text, "the item")
        items = [[self._logit(space, row.profile, text) for text in texts] for texts in batch.other_items(row, space)]
        users = [[self._logit(space, text, row.text) for text in texts] for texts in batch.other_users(row, space)]
        if not items and not users:
            raise ConfigurationError("no negatives: any item and user of the batch may be right; give negatives=")
        own = self._logit(space, row.profile, row.text)
        found = [_log_softmax(own, others, relative=self._relative) for others in (items, users) if others]
        return math.fsum(found) / len(found)

    def _logit(self, space: Space, profile: str, item: str) -> float:
        return space.cosine(profile, item) / self._temperature


@attrs.frozen(kw_only=True)
class _Row:
    """A profile of the batch, the item it should find, and those of its example that it should not."""

    user: str
    item: str
    profile: str | None
    text: str  # of the item
    is_profile: bool  # the item's text was written, so it will hardly come again
    candidates: Mapping[str, str]


class _Batch:
    """Who wrote what in a batch, and who had what."""

    def __init__(self, rows: Sequence[_Row], had: Iterable[set[str]], negatives: Mapping[str, str]) -> None:
        self._had: dict[str, set[str]] = {}
        self._users: dict[str, dict[str, None]] = {}
        self._items: dict[str, dict[str, None]] = {}
        self.written: list[str] = []
        self.records: list[str] = list(negatives.values())
        for row, items in zip(rows, had, strict=True):
            self._had.setdefault(row.user, set()).update(items, [row.item])
            if row.profile is not None:
                self._users.setdefault(row.user, {})[row.profile] = None
                self._items.setdefault(row.item, {})[row.text] = None
                self._need(row, row.profile)
        for item, text in negatives.items():
            self._items.setdefault(item, {text: None})

    def _need(self, row: _Row, profile: str) -> None:
        self.written.append(profile)
        (self.written if row.is_profile else self.records).append(row.text)
        self.records += row.candidates.values()

    def other_items(self, row: _Row, space: Space) -> list[list[str]]:
        """The texts of each item that is a negative of this row."""
        pool = {item: {text: None} for item, text in row.candidates.items()} | self._items
        return _known((texts for item, texts in pool.items() if item not in self._had[row.user]), space)

    def other_users(self, row: _Row, space: Space) -> list[list[str]]:
        """The profiles of each user who is a negative of this row; its own user has the item like any that had it."""
        return _known((texts for user, texts in self._users.items() if row.item not in self._had[user]), space)


def _known(groups: Iterable[Iterable[str]], space: Space) -> list[list[str]]:
    """Texts without a direction left out, and groups of nothing else."""
    found = [[text for text in group if text in space] for group in groups]
    return [group for group in found if group]


def _log_softmax(own: float, others: Sequence[Sequence[float]], *, relative: bool) -> float:
    """The log of e^own over its sum with the mean of e^other of each group; or that against chance."""
    top = max(own, *map(max, others))
    shares = [math.fsum(math.exp(one - top) for one in group) / len(group) for group in others]
    found = own - top - math.log(math.fsum([math.exp(own - top), *shares]))
    return 1 + found / math.log(1 + len(others)) if relative else found
