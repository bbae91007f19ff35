"""All figures of an evaluation: what is known of its rows, the predictions that need no model, and every method's."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from duet import ConfigurationError
from duet_train.bias import mean_rating, median_rating, predict_strictly_before
from duet_train.data.prepared import Prepared, PreparedExample, RatingTable
from duet_train.judging import Floats, Judgement
from duet_train.popularity import Popularity
from duet_train.ranking import SPLITS
from duet_train.scoring import (
    Gold,
    best_baseline,
    filled,
    filled_figures,
    gain,
    group_figures,
    order_figures,
    personal_figures,
    plain,
    rating_figures,
)


@attrs.frozen
class Columns:
    """Rows as parallel columns, as the bias model reads them."""

    users: npt.ArrayLike
    items: npt.ArrayLike
    timestamps: npt.ArrayLike
    ratings: npt.ArrayLike = ()


def check_leaks(rows: Sequence[PreparedExample]) -> None:
    """Whether anything that a prompt may show is the target itself, not strictly older than it, or shown twice.

    Args:
        rows: What is evaluated.

    Raises:
        ConfigurationError: The prepared data leak.
    """
    for row in rows:
        example = row.example
        shown = (*row.profile_user.history, *row.recent_user.history, *example.item.evidence)
        pair = (example.user.id, example.item.id)
        late = [one for one in shown if example.at is not None and (one.at is None or one.at >= example.at)]
        own = [one for one in shown if (one.user, one.item) == pair]
        if late or own or set(row.profile_user.history) & set(row.recent_user.history):
            raise ConfigurationError(
                f"row {row.row}: what its prompt may show is not all older than the target, or twice"
            )


def gold_of(data: Prepared, rows: Sequence[PreparedExample]) -> Gold:
    """What is known of the rows.

    Args:
        data: Prepared.
        rows: What is evaluated.
    """
    train = data.matrix("train")
    codes = {item_id: code for code, item_id in enumerate(train.item_ids)}
    return Gold(
        ratings=np.array([row.example.rating for row in rows]),
        users=[row.example.user.id for row in rows],
        scale=data.scale,
        history_lengths=np.array([row.history_length for row in rows], dtype=np.int64),
        variances=np.array([_variance(row) for row in rows], dtype=np.float64),
        median=median_rating(train.ratings),
        popularity=Popularity.of(train.items, [codes[row.example.item.id] for row in rows]),
    )


def _variance(row: PreparedExample) -> float:
    ratings = [one.rating for one in row.example.user.history]
    return float(np.var(ratings)) if len(ratings) > 1 else math.nan


def model_free(data: Prepared, rows: Sequence[PreparedExample], gold: Gold) -> dict[str, Floats]:
    """Predictions that need no model: constants of the training ratings, and biases from strictly earlier rows.

    Args:
        data: Prepared.
        rows: What is predicted.
        gold: What is known of the rows.
    """
    parts = [data.matrix(split) for split in SPLITS if split != "dropped"]
    timed = any(not np.isnan(part.timestamps).all() for part in parts)
    known = Columns(
        np.concatenate([part.users for part in parts]),
        np.concatenate([part.items for part in parts]),
        np.concatenate([part.timestamps if timed else part.rows for part in parts]),
        np.concatenate([part.ratings for part in parts]),
    )
    return {
        "mean": np.full(len(rows), mean_rating(parts[0].ratings)),
        "median": np.full(len(rows), gold.median),
        "bias": predict_strictly_before(known, _targets(rows, parts[0], timed), scale=data.scale),
    }


def _targets(rows: Sequence[PreparedExample], table: RatingTable, timed: bool) -> Columns:
    users = {user_id: code for code, user_id in enumerate(table.user_ids)}
    items = {item_id: code for code, item_id in enumerate(table.item_ids)}
    return Columns(
        [users[row.example.user.id] for row in rows],
        [items[row.example.item.id] for row in rows],
        [_seconds(row) if timed else float(row.row) for row in rows],
    )


def _seconds(row: PreparedExample) -> float:
    return math.nan if row.example.at is None else row.example.at.timestamp()


def assemble(gold: Gold, baselines: Mapping[str, Floats], judged: Mapping[str, Judgement]) -> dict[str, Any]:
    """The figures of every method, those that need no model first.

    Args:
        gold: What is known of the rows.
        baselines: Predictions that need no model, by name.
        judged: What became of each method, by name.
    """
    best = best_baseline(gold, baselines)
    methods: dict[str, Any] = {
        name: _basic(gold, predicted) | {"personal": order_figures(gold, predicted)}
        for name, predicted in baselines.items()
    }
    for name, one in judged.items():
        methods[name] = _basic(gold, one.predicted) | {
            "personal": personal_figures(gold, one.predicted, one.shuffled_users, one.shuffled_items),
            "against": plain(gain(gold, baselines[best], one.predicted)),
            "against_filled": plain(gain(gold, filled(gold, baselines[best]), filled(gold, one.predicted))),
            "failures": dict(Counter(error for error in one.errors if error)),
            "reasons": dict(one.reasons),
            "cost": _cost(one),
        }
    return {"best_baseline": best, "methods": methods}


def _basic(gold: Gold, predicted: Floats) -> dict[str, Any]:
    return {
        "rating": rating_figures(gold, predicted),
        "filled": filled_figures(gold, predicted),
        "groups": group_figures(gold, predicted),
    }


def _cost(one: Judgement) -> dict[str, Any]:
    usage = one.usage
    return {
        "calls": one.calls,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_share": usage.cached_tokens / usage.prompt_tokens if usage.prompt_tokens else math.nan,
        "estimated": usage.estimated,
        "seconds": one.seconds,
    }
