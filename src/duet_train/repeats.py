"""Several runs as one method: the mean over its runs, how sure it is by user, and how far the runs lie apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from duet_train.intervals import statistic_interval
from duet_train.judging import Floats, Judgement
from duet_train.metrics import accuracy, macro_f1, mae, rmse, round_half_up, spearman, weighted_f1
from duet_train.scoring import Gold

Rows = npt.NDArray[np.int64]
Figure = Callable[[Rows], float]
"""A figure of one run over a choice of rows."""


def repeat_figures(gold: Gold, runs: Mapping[str, Judgement], *, resamples: int = 2000) -> dict[str, Any]:
    """The figures of a method of several runs, which differ in their seed alone.

    Training from another seed gives another policy. The interval by user says how the mean over these runs would lie
    for other users, and the spread how another run would lie for these users: neither says the other.

    Args:
        gold: What is known of the rows.
        runs: What became of each run, by its own name; two or more.
        resamples: How many samples of users are drawn.

    Returns:
        ``runs``: their names. For each figure of ratings, and ``gain_over_other_users``: ``estimate``, the mean of the
        runs' figures, each over the rows that the run predicts; ``low`` and ``high``, 95 % by bootstrap of whole users
        with all their runs; ``spread``, the standard deviation over runs (n − 1); ``by_run``, in the order of the runs.
    """
    return {"runs": list(runs)} | {
        name: _over_runs([of_run(gold, one) for one in runs.values()], gold.users, resamples)
        for name, of_run in _FIGURES.items()
    }


def _over_runs(figures: Sequence[Figure], users: Sequence[str], resamples: int) -> dict[str, Any]:
    def mean(rows: Rows) -> float:
        return sum(figure(rows) for figure in figures) / len(figures)

    by_run = [figure(np.arange(len(users))) for figure in figures]
    found = attrs.asdict(statistic_interval(mean, len(users), users=np.asarray(users), resamples=resamples))
    return found | {"spread": float(np.std(by_run, ddof=1)), "by_run": by_run}


# Figures


def _parse_rate(gold: Gold, one: Judgement) -> Figure:
    valid = ~np.isnan(one.predicted)
    return lambda rows: _mean(valid[rows])


def _of_points(metric: Callable[[Floats, Floats], float]) -> Callable[[Gold, Judgement], Figure]:
    def of_run(gold: Gold, one: Judgement) -> Figure:
        return _on_known(metric, gold.ratings, one.predicted, ~np.isnan(one.predicted))

    return of_run


def _of_classes(metric: Callable[[Rows, Rows], float]) -> Callable[[Gold, Judgement], Figure]:
    def of_run(gold: Gold, one: Judgement) -> Figure:
        valid = ~np.isnan(one.predicted)
        labels = round_half_up(gold.ratings, gold.scale)
        guesses = round_half_up(np.where(valid, one.predicted, gold.median), gold.scale)
        return _on_known(metric, labels, guesses, valid)

    return of_run


def _on_known(metric: Callable[[Any, Any], float], truth: Any, given: Any, valid: npt.NDArray[np.bool_]) -> Figure:
    def figure(rows: Rows) -> float:
        known = rows[valid[rows]]
        return metric(truth[known], given[known])

    return figure


def _gain_over_other_users(gold: Gold, one: Judgement) -> Figure:
    gains = np.abs(gold.ratings - one.shuffled_users) - np.abs(gold.ratings - one.predicted)
    known = ~np.isnan(gains)
    return lambda rows: _mean(gains[rows[known[rows]]])


def _mean(values: npt.NDArray[Any]) -> float:
    return float(values.mean()) if values.size else math.nan


_FIGURES: dict[str, Callable[[Gold, Judgement], Figure]] = {
    "parse_rate": _parse_rate,
    "mae": _of_points(mae),
    "rmse": _of_points(rmse),
    "accuracy": _of_classes(accuracy),
    "macro_f1": _of_classes(macro_f1),
    "weighted_f1": _of_classes(weighted_f1),
    "spearman": _of_points(spearman),
    "gain_over_other_users": _gain_over_other_users,
}
