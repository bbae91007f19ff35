"""All figures of an evaluation: what is known of its rows, the predictions that need no model, and every method's."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from duet import ConfigurationError
from duet_train.bias import mean_rating, median_rating, predict_strictly_before
from duet_train.data.prepared import Prepared, PreparedExample
from duet_train.judging import Floats, Judgement
from duet_train.ranking import SPLITS
from duet_train.scoring import Gold, best_baseline, gain, group_figures, personal_figures, plain, rating_figures


@attrs.frozen
class Columns:
    """Rows as parallel columns, as the bias model reads them."""

    users: Sequence[str]
    items: Sequence[str]
    timestamps: Sequence[float]
    ratings: Sequence[float] = ()


def check_leaks(rows: Sequence[PreparedExample]) -> None:
    """Whether anything that a prompt may show is not strictly older than its target, or shown twice.

    Args:
        rows: What is evaluated.

    Raises:
        ConfigurationError: The prepared data leak.
    """
    for row in rows:
        example = row.example
        shown = (*row.profile_user.history, *row.recent_user.history, *example.item.evidence)
        late = [one for one in shown if example.at is not None and (one.at is None or one.at >= example.at)]
        if late or set(row.profile_user.history) & set(row.recent_user.history):
            raise ConfigurationError(
                f"row {row.row}: what its prompt may show is not all older than the target, or twice"
            )


def gold_of(data: Prepared, rows: Sequence[PreparedExample]) -> Gold:
    """What is known of the rows.

    Args:
        data: Prepared.
        rows: What is evaluated.
    """
    return Gold(
        ratings=np.array([row.example.rating for row in rows]),
        users=[row.example.user.id for row in rows],
        scale=data.scale,
        history_lengths=np.array([row.history_length for row in rows], dtype=np.int64),
        variances=np.array([_variance(row) for row in rows], dtype=np.float64),
        median=median_rating(data.matrix("train").ratings),
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
    train = data.matrix("train")
    timed = all(row.example.at is not None for row in rows)
    parts = [data.matrix(split) for split in SPLITS if split != "dropped"]
    known = Columns(
        [part.user_ids[code] for part in parts for code in part.users],
        [part.item_ids[code] for part in parts for code in part.items],
        [float(time) for part in parts for time in (part.timestamps if timed else part.rows)],
        [float(rating) for part in parts for rating in part.ratings],
    )
    targets = Columns(
        [row.example.user.id for row in rows],
        [row.example.item.id for row in rows],
        [row.example.at.timestamp() if timed and row.example.at is not None else float(row.row) for row in rows],
    )
    return {
        "mean": np.full(len(rows), mean_rating(train.ratings)),
        "median": np.full(len(rows), gold.median),
        "bias": predict_strictly_before(known, targets, scale=data.scale),
    }


def assemble(gold: Gold, baselines: Mapping[str, Floats], judged: Mapping[str, Judgement]) -> dict[str, Any]:
    """The figures of every method, those that need no model first.

    Args:
        gold: What is known of the rows.
        baselines: Predictions that need no model, by name.
        judged: What became of each method, by name.
    """
    best = best_baseline(gold, baselines)
    methods: dict[str, Any] = {name: _basic(gold, predicted) for name, predicted in baselines.items()}
    for name, one in judged.items():
        methods[name] = _basic(gold, one.predicted) | {
            "personal": personal_figures(gold, one.predicted, one.shuffled_users, one.shuffled_items),
            "against": plain(gain(gold.ratings, baselines[best], one.predicted)),
            "failures": dict(Counter(error for error in one.errors if error)),
            "cost": _cost(one),
        }
    return {"best_baseline": best, "methods": methods}


def _basic(gold: Gold, predicted: Floats) -> dict[str, Any]:
    return {"rating": rating_figures(gold, predicted), "groups": group_figures(gold, predicted)}


def _cost(one: Judgement) -> dict[str, Any]:
    usage = one.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_share": usage.cached_tokens / usage.prompt_tokens if usage.prompt_tokens else math.nan,
        "estimated": usage.estimated,
        "seconds": one.seconds,
    }
