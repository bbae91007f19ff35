"""Ten candidates a row: which ones, what a method scores them, and what that is worth, ties in expectation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import attrs

from duet import ConfigurationError, Item, Recommender
from duet_train.baselines import Profiler
from duet_train.data.prepared import ItemRequest, Prepared, PreparedExample, RatingTable, SplitName
from duet_train.ease import EASE
from duet_train.intervals import mean_interval
from duet_train.judging import in_order, rated, raw_user
from duet_train.negatives import CandidateSet, hard_negatives, random_negatives
from duet_train.ranking_metrics import hit_rate_at_k, mrr, ndcg_at_k

CUTOFFS = (1, 5, 10)
SPLITS: tuple[SplitName | Literal["dropped"], ...] = ("train", "validation", "test", "dropped")


@attrs.frozen(kw_only=True, slots=False)
class Catalogue:
    """Who has which item in the whole data, as codes, and EASE fitted on the training rows.

    Args:
        train: The training rows.
        user_codes: Code of each user id.
        item_codes: Code of each item id.
        seen: Item codes of each user code, over all splits, dropped rows included.
        l2: λ of EASE.
    """

    train: RatingTable
    user_codes: Mapping[str, int]
    item_codes: Mapping[str, int]
    seen: Mapping[int, frozenset[int]]
    l2: float

    @property
    def item_ids(self) -> Sequence[str]:
        """Id of each item code."""
        return self.train.item_ids

    @cached_property
    def model(self) -> EASE:
        """EASE, fitted when it is first asked for: a large catalogue takes a while."""
        return EASE.fit(self.train.users, self.train.items, catalogue=len(self.item_ids), l2=self.l2)

    @classmethod
    def of(cls, data: Prepared, *, l2: float = 250.0) -> Catalogue:
        """Read the prepared data.

        Args:
            data: Prepared.
            l2: λ of EASE.
        """
        train = data.matrix("train")
        seen: dict[int, set[int]] = {}
        for split in SPLITS:
            part = data.matrix(split)
            for user, item in zip(part.users.tolist(), part.items.tolist(), strict=True):
                seen.setdefault(user, set()).add(item)
        return cls(
            train=train,
            user_codes={user_id: code for code, user_id in enumerate(train.user_ids)},
            item_codes={item_id: code for code, item_id in enumerate(train.item_ids)},
            seen={user: frozenset(items) for user, items in seen.items()},
            l2=l2,
        )

    def candidates(self, row: PreparedExample, kind: str, seed: int) -> CandidateSet:
        """One positive and nine unseen items.

        Args:
            row: The observed pair.
            kind: "random" or "ease".
            seed: Of the draw and the shuffle.

        Raises:
            ConfigurationError: There is no such kind, or fewer than nine items are left.
        """
        if kind not in ("random", "ease"):
            raise ConfigurationError(f"no negatives {kind!r}: there are random, ease")
        user, positive = self.user_codes[row.example.user.id], self.item_codes[row.example.item.id]
        exclude = self.seen[user]
        if kind == "ease":
            return hard_negatives(self.model, user, positive, exclude, seed=seed)
        return random_negatives(len(self.item_ids), user, positive, exclude, seed=seed)

    def had(self, row: PreparedExample) -> frozenset[int]:
        """Codes of all items of the row's user, earlier and later, its own among them."""
        return self.seen[self.user_codes[row.example.user.id]]

    def record(self, sets: Sequence[CandidateSet]) -> dict[str, Any]:
        """Candidates by their ids, and what EASE was fitted on, for JSON."""
        return {
            "ease": self.model.record(),
            "sets": [one.record(self.train.user_ids, self.item_ids) for one in sets],
        }

    def ease_scores(self, candidates: CandidateSet) -> list[float]:
        """What EASE itself scores them: the floor that needs no text."""
        scores = self.model.scores(candidates.user)
        return [float(scores[item]) for item in candidates.items]


async def method_scores(
    data: Prepared,
    rows: Sequence[PreparedExample],
    sets: Sequence[CandidateSet],
    item_ids: Sequence[str],
    profiler: Profiler,
    recommender: Recommender,
    *,
    split: SplitName = "test",
    concurrency: int,
    step: Callable[[], object],
) -> list[list[float]]:
    """What a method predicts for every candidate of every row; nan where it failed.

    Args:
        data: Where the candidates' evidence is, cut at the row's time.
        rows: The observed pairs.
        sets: The candidates of each row.
        item_ids: Id of each item code.
        profiler: The method.
        recommender: Frozen, and the same for every method.
        split: Of the rows: no candidate shows evidence of a later one.
        concurrency: Most candidates under way.
        step: Called after each candidate.

    Raises:
        ConfigurationError: A candidate's evidence leaks.
    """
    shown = [row for row, one in zip(rows, sets, strict=True) for _ in one.items]
    items = data.items(
        ItemRequest(item_ids[code], row.example.at, row.example.user.id, split)
        for row, one in zip(rows, sets, strict=True)
        for code in one.items
    )

    for row, item in zip(shown, items, strict=True):
        _check_candidate(row, item)

    async def score(pair: tuple[PreparedExample, Item]) -> float:
        return await _predicted(*pair, profiler, recommender)

    scores = iter(await in_order(score, list(zip(shown, items, strict=True)), concurrency, step))
    return [[next(scores) for _ in one.items] for one in sets]


def _check_candidate(row: PreparedExample, item: Item) -> None:
    at, user = row.example.at, row.example.user.id
    late = [one for one in item.evidence if at is not None and (one.at is None or one.at >= at)]
    if late or any(one.user == user for one in item.evidence):
        raise ConfigurationError(
            f"row {row.row}: candidate {item.id!r} shows what is not older than the target, or the user's own"
        )


async def _predicted(row: PreparedExample, item: Item, profiler: Profiler, recommender: Recommender) -> float:
    try:
        profile = await profiler.profile(row.profile_user, item)
        return await rated(recommender, raw_user(row, profile), item, profile)
    except Exception:
        return math.nan


def ranking_figures(scores: Sequence[Sequence[float]], sets: Sequence[CandidateSet]) -> dict[str, Any]:
    """NDCG and hit rate at 1, 5 and 10, and MRR, with intervals; and how many candidates failed.

    Intervals resample users whole, since the rows of one user are not independent.

    Args:
        scores: One a candidate, row by row; nan where it failed.
        sets: The candidates of each row.
    """
    users, pairs = [one.user for one in sets], list(zip(scores, sets, strict=True))
    figures: dict[str, Any] = {}
    for k in CUTOFFS:
        figures[f"ndcg@{k}"] = _mean([ndcg_at_k(row, one.position, k) for row, one in pairs], users)
        figures[f"hit@{k}"] = _mean([hit_rate_at_k(row, one.position, k) for row, one in pairs], users)
    figures["mrr"] = _mean([mrr(row, one.position) for row, one in pairs], users)
    failed = [math.isnan(score) for row in scores for score in row]
    return figures | {"rows": len(sets), "failed": sum(failed), "candidates": len(failed)}


def _mean(values: Sequence[float], users: Sequence[int]) -> dict[str, Any]:
    return attrs.asdict(mean_interval(values, users=users))
