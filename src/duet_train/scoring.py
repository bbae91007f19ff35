"""Predictions to figures: errors with intervals, groups, and whether a method is personal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from duet import RatingScale
from duet_train.intervals import Interval, PairedTest, mean_interval, paired_test, statistic_interval
from duet_train.metrics import (
    SentimentThresholds,
    macro_f1,
    round_half_up,
    sentiments,
    spearman,
    weighted_f1,
    within_user_rank_correlation,
)
from duet_train.popularity import Popularity

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


@attrs.frozen(kw_only=True)
class Gold:
    """What is known of the rows, one entry a row.

    Args:
        ratings: True ratings, in rating points.
        users: Ids.
        scale: Of the ratings.
        history_lengths: Earlier rows of the user that the histories' setting allows, before the window cuts them.
        variances: Of the user's earlier ratings, nan for fewer than two.
        median: Of the training ratings: what a constant would answer.
        popularity: Of the rows' items in training; None where nobody counted, and then there are no such groups.
    """

    ratings: Floats
    users: Sequence[str]
    scale: RatingScale
    history_lengths: npt.NDArray[np.int64]
    variances: Floats
    median: float
    popularity: Popularity | None = None


def rating_figures(gold: Gold, predicted: Floats) -> dict[str, Any]:
    """Every figure of rating prediction; rows without a prediction count in the parse rate alone.

    Intervals resample users whole, since the rows of one user are not independent.

    Args:
        gold: What is known of the rows.
        predicted: Rating points, nan where there is none.
    """
    valid = ~np.isnan(predicted)
    truth, given, users = gold.ratings[valid], predicted[valid], np.asarray(gold.users)[valid]
    errors = np.abs(truth - given)
    labels, guesses = round_half_up(truth, gold.scale), round_half_up(given, gold.scale)
    figures: dict[str, Interval | float] = {
        "parse_rate": float(valid.mean()) if valid.size else math.nan,
        "mae": mean_interval(errors, users=users),
        "rmse": mean_interval(errors**2, users=users, transform=np.sqrt),
        "spearman": statistic_interval(lambda rows: spearman(truth[rows], given[rows]), truth.size, users=users),
    }
    return (
        {name: plain(figure) for name, figure in figures.items()}
        | _class_figures(labels, guesses, users)
        | {"sentiment": _sentiment(gold.scale, truth, given, users)}
    )


def _class_figures(labels: Labels, guesses: Labels, users: npt.NDArray[np.str_]) -> dict[str, Any]:
    return {
        "accuracy": plain(mean_interval((labels == guesses).astype(np.float64), users=users)),
        "macro_f1": plain(_f1_interval(macro_f1, labels, guesses, users)),
        "weighted_f1": plain(_f1_interval(weighted_f1, labels, guesses, users)),
    }


def _f1_interval(
    f1: Callable[[Labels, Labels], float], labels: Labels, guesses: Labels, users: npt.NDArray[np.str_]
) -> Interval:
    return statistic_interval(lambda rows: f1(labels[rows], guesses[rows]), labels.size, users=users)


def _sentiment(scale: RatingScale, truth: Floats, given: Floats, users: npt.NDArray[np.str_]) -> dict[str, Any]:
    """Like, neutral, dislike (LettinGo), with the thresholds."""
    labels, guesses = sentiments(truth, scale), sentiments(given, scale)
    limits = SentimentThresholds.of(scale)
    bounds = {"like_from": limits.like, "dislike_to": limits.dislike}
    return bounds | _class_figures(labels, guesses, users)


def personal_figures(gold: Gold, predicted: Floats, shuffled_users: Floats, shuffled_items: Floats) -> dict[str, Any]:
    """Whether the figures come from this user and this item, or from the usual rating alone.

    Args:
        gold: What is known of the rows.
        predicted: With the true pairing.
        shuffled_users: With another row's user.
        shuffled_items: With another row's item profile.

    Returns:
        What `order_figures` has, and ``users`` and ``items``: MAE of the shuffled pairing less that of the true one;
        ``personal``: true where the interval of ``users`` lies above zero.
    """
    by_user = gain(gold, shuffled_users, predicted)
    return order_figures(gold, predicted) | {
        "users": plain(by_user),
        "items": plain(gain(gold, shuffled_items, predicted)),
        "personal": bool(by_user.difference.low > 0),
    }


def order_figures(gold: Gold, predicted: Floats) -> dict[str, Any]:
    """What can be asked of a prediction that has no profile to shuffle, too.

    Args:
        gold: What is known of the rows.
        predicted: Rating points, nan where there is none.

    Returns:
        ``gain_over_median``: MAE of the constant median less the method's. ``within_user``: mean rank correlation
        within each user, and over how many users. ``tau``: the same mean with its interval.
    """
    constant = np.full_like(predicted, gold.median)
    within = within_user_rank_correlation(
        *(np.asarray(column)[~np.isnan(predicted)] for column in (gold.users, gold.ratings, predicted))
    )
    return {
        "gain_over_median": plain(gain(gold, constant, predicted)),
        "within_user": {"mean": within.mean, "users": within.users},
        "tau": plain(mean_interval(within.values)),
    }


def gain(gold: Gold, worse: Floats, better: Floats) -> PairedTest:
    """The absolute error of `worse` less that of `better`, on the rows that both predict; users are resampled whole."""
    both = ~(np.isnan(worse) | np.isnan(better))
    errors = (np.abs(gold.ratings - predicted)[both] for predicted in (worse, better))
    return paired_test(*errors, users=np.asarray(gold.users)[both])


def filled(gold: Gold, predicted: Floats) -> Floats:
    """The predictions, and the training median where there is none, as a system that falls back on it would answer."""
    return np.where(np.isnan(predicted), gold.median, predicted)


def filled_figures(gold: Gold, predicted: Floats) -> dict[str, Any]:
    """MAE, RMSE and accuracy over all rows, failures answered by the training median.

    Figures over the rows that have a prediction flatter a method that fails on the hard ones; these do not.

    Args:
        gold: What is known of the rows.
        predicted: Rating points, nan where there is none.
    """
    given, users = filled(gold, predicted), np.asarray(gold.users)
    errors = np.abs(gold.ratings - given)
    hits = round_half_up(gold.ratings, gold.scale) == round_half_up(given, gold.scale)
    return {
        "mae": plain(mean_interval(errors, users=users)),
        "rmse": plain(mean_interval(errors**2, users=users, transform=np.sqrt)),
        "accuracy": plain(mean_interval(hits.astype(np.float64), users=users)),
    }


def group_figures(gold: Gold, predicted: Floats) -> dict[str, Any]:
    """MAE by history length, by three groups of rating variance (DUET: stable to diverse), and by item popularity.

    The variance of fewer than two ratings says nothing: such rows are in no group of variance.

    Args:
        gold: What is known of the rows.
        predicted: Rating points, nan where there is none; such rows are in no group.

    Returns:
        By grouping, a list of groups: their bounds (above one and up to the other), rows and MAE; those of popularity
        have a name as well.
    """
    groups = {
        "history_length": _by_bounds(gold, predicted, gold.history_lengths.astype(np.float64), (5, 10, 30, 50)),
        "variance": _by_bounds(gold, predicted, gold.variances, _terciles(gold.variances)),
    }
    return groups if gold.popularity is None else groups | {"popularity": _by_popularity(gold, predicted)}


def _by_popularity(gold: Gold, predicted: Floats) -> list[dict[str, Any]]:
    found = gold.popularity
    assert found is not None
    bounds = sorted({found.tail, found.middle})
    groups = _by_bounds(gold, predicted, found.counts.astype(np.float64), bounds)
    return [group | {"name": found.name(group["above"], group["up_to"])} for group in groups]


def _terciles(values: Floats) -> tuple[float, ...]:
    known = values[~np.isnan(values)]
    return tuple(np.unique(np.quantile(known, (1 / 3, 2 / 3))).tolist()) if known.size else ()


def _by_bounds(gold: Gold, predicted: Floats, values: Floats, bounds: Sequence[float]) -> list[dict[str, Any]]:
    users, groups = np.asarray(gold.users), []
    for low, high in zip((-math.inf, *bounds), (*bounds, math.inf), strict=True):
        inside = (values > low) & (values <= high) & ~np.isnan(predicted)
        if inside.any():
            mae = mean_interval(np.abs(gold.ratings - predicted)[inside], users=users[inside])
            groups.append({"above": low, "up_to": high, "rows": int(inside.sum()), "mae": plain(mae)})
    return groups


def best_baseline(gold: Gold, baselines: Mapping[str, Floats]) -> str:
    """The baseline of the lowest MAE, among those that predict anything."""
    errors = {name: np.abs(gold.ratings - predicted) for name, predicted in baselines.items()}
    known = {name: error[~np.isnan(error)] for name, error in errors.items()}
    return min(known, key=lambda name: float(known[name].mean()) if known[name].size else math.inf)


def plain(figure: Interval | PairedTest | float) -> Any:
    """A figure as JSON holds it."""
    if isinstance(figure, float):
        return figure
    return attrs.asdict(figure)
