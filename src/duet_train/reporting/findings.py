"""What a run shows, in plain words: one sentence or two each, the troubles first. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from duet_train.reporting.charts import PHASES
from duet_train.reporting.held_out import Point as HeldOut
from duet_train.reporting.held_out import held_out_findings
from duet_train.reporting.numbers import Ends, Point, ends, percent, seconds, several, shares, short
from duet_train.reporting.run import LEVELS, Finding, Run
from duet_train.reporting.texts import RatingFigures, TextFigures

if TYPE_CHECKING:
    pass

FLAT, FLAT_BAD = 0.5, 0.8
PARSED, PARSED_BAD = 0.9, 0.5
CUT = 0.1
FAILED = 0.05
FAR_KL = 0.5
SERVER_GAP = 0.1
CONCENTRATED, FEWEST = 0.2, 20
LESS_DISTINCT = 0.25
ALIKE, MORE_ALIKE = 0.6, 0.15
STATED = 0.05
WORSE = 0.02


def findings(run: Run, points: Sequence[HeldOut], texts: TextFigures, ratings: RatingFigures | None) -> list[Finding]:
    """All diagnoses, the troubles first.

    Args:
        run: What happened.
        points: Its held-out measurements.
        texts: What its texts show.
        ratings: What its predictions show.
    """
    if run.is_exploration:
        return list(_concentration(ratings))
    found = [
        *_progress(run),
        *held_out_findings(run, points),
        *_reward(run),
        *_flat(run),
        *_form(run),
        *_faults(run),
        *_distance(run),
        *_concentration(ratings),
        *_likeness(texts),
        *_variety(texts),
        *_leakage(texts),
        *_time(run),
    ]
    return sorted(found, key=lambda one: LEVELS.index(one.level))


# Training


def _progress(run: Run) -> Iterator[Finding]:
    last, planned = run.last_step, run.setting("training_args", "max_steps")
    of = f" of {planned:g}" if isinstance(planned, (int, float)) and planned > 0 else ""
    where = f"The last step on record is {last}{of}." if last is not None else "No step is on record yet."
    status = run.setting("status")
    if status == "aborted":
        yield Finding("bad", "Aborted", f"The run was stopped before its end. {where}", "about")
    elif status == "running":
        yield Finding("plain", "Not finished", f"The run goes on, or was killed. {where}", "about")
    if run.resumes:
        places = ", ".join(str(step) for step in run.resumes[:8]) + (" …" if len(run.resumes) > 8 else "")
        again = f"; {several(run.replayed, 'step')} done again, the last time counts" if run.replayed else ""
        times = "Once" if len(run.resumes) == 1 else f"{len(run.resumes)} times"
        words = f"{times}, at step {places}{again}."
        yield Finding("plain", "Resumed", words, "learning")
    for key in ("loss", "grad_norm"):
        if run.not_finite.get(key):
            words = f"“{key}” was not finite at {several(run.not_finite[key], 'step')}."
            yield Finding("bad", "Not a number", words, "about")


def _reward(run: Run) -> Iterator[Finding]:
    found = ends(run.series("reward"))
    if found is None:
        yield from _loss(run)
    elif found.first is not None:
        yield Finding("plain", "Training reward", f"{short(found.last)} {_lately(found, short)}.", "learning")


def _loss(run: Run) -> Iterator[Finding]:
    found = ends(run.series("loss"))
    if found is not None:
        yield Finding("plain", "Loss", f"{short(found.last)} {_lately(found, short)}.", "learning")
    evaluated = run.series("eval_loss")
    best = min(evaluated, key=lambda point: point[1], default=None)
    if best is not None and evaluated[-1][1] > best[1] * (1 + WORSE):
        words = f"It was best at step {best[0]:g} ({short(best[1])}) and has risen to {short(evaluated[-1][1])}."
        yield Finding("warn", "Evaluation loss", words, "learning")


def _lately(found: Ends, words: Callable[[float], str]) -> str:
    steps = "logged step" if found.steps == 1 else f"{found.steps} logged steps"
    return f"in the last {steps}" + ("" if found.first is None else f" ({words(found.first)} in the first)")


def _flat(run: Run) -> Iterator[Finding]:
    found = ends(run.series("duet/flat_groups", "frac_reward_zero_std"))
    if found is None:
        return
    level = "bad" if found.last >= FLAT_BAD else "warn" if found.last >= FLAT else "good"
    words = f"{percent(found.last)} of groups gave no gradient {_lately(found, percent)}."
    yield Finding(level, "Flat groups", words, "learning")


def _form(run: Run) -> Iterator[Finding]:
    found = ends(run.series("duet/parse_rate"))
    if found is not None:
        level = "bad" if found.last < PARSED_BAD else "warn" if found.last < PARSED else "good"
        words = f"{percent(found.last)} of completions are profiles {_lately(found, percent)}."
        words += " A warm start with sft teaches the form." if level == "bad" else ""
        yield Finding(level, "Parse rate", words, "learning")
    cut = ends(run.series("completions/clipped_ratio"))
    if cut is not None and cut.last > CUT:
        words = f"{percent(cut.last)} of completions ran into the token limit {_lately(cut, percent)}."
        yield Finding("warn", "Cut completions", words, "learning")


def _faults(run: Run) -> Iterator[Finding]:
    failed = ends(run.series("duet/failed_share"))
    if failed is not None and failed.last > FAILED:
        words = (
            f"{percent(failed.last)} of rewards could not be given {_lately(failed, percent)}: the recommender fails."
        )
        yield Finding("warn", "Failed rewards", words, "learning")
    server = ends(run.series("duet/server/logp_difference"))
    if server is not None and server.last > SERVER_GAP:
        words = f"Trainer and server differ by {short(server.last)} nat a token: the server may hold a stale adapter."
        yield Finding("bad", "Server disagrees", words, "learning")


def _distance(run: Run) -> Iterator[Finding]:
    found = ends(run.series("kl"))
    if found is not None and found.last > FAR_KL:
        words = (
            f"KL is {short(found.last)} nat per token {_lately(found, short)}: the policy is far from where it began."
        )
        yield Finding("warn", "Distance", words, "learning")


def _time(run: Run) -> Iterator[Finding]:
    means = {phase: ends(run.series(f"duet/seconds/{phase}")) for phase in PHASES}
    known = {phase: found.last for phase, found in means.items() if found is not None}
    total = sum(known.values())
    if total > 0:
        parts = ", ".join(f"{phase} {percent(value / total)}" for phase, value in known.items())
        yield Finding("plain", "Time of a step", f"{seconds(total)}: {parts}.", "time")


# Texts


def _concentration(ratings: RatingFigures | None) -> Iterator[Finding]:
    if ratings is None or len(ratings.late) < FEWEST or not ratings.true:
        return
    predicted, true = shares(ratings.late, ratings.points), shares(ratings.true, ratings.points)
    most = max(range(len(predicted)), key=predicted.__getitem__)
    point = f"{ratings.points[most]:g}"
    words = f"{percent(predicted[most])} of predictions, {percent(true[most])} of the true ratings"
    if predicted[most] - true[most] > CONCENTRATED:
        yield Finding("warn", "Predicted ratings", f"They concentrate on {point}: {words}.", "texts")
    else:
        yield Finding(
            "good", "Predicted ratings", f"They spread much as the true ones do; most often {point} ({words}).", "texts"
        )


def _likeness(texts: TextFigures) -> Iterator[Finding]:
    for side, points in texts.likeness.items():
        found = _first_and_last(points)
        if found is None:
            continue
        first, last = found
        if last > ALIKE or last - first > MORE_ALIKE:
            level = "bad" if last > ALIKE and last - first > MORE_ALIKE else "warn"
            cosine = f"mean cosine {short(last)}, {short(first)} at the start"
            words = f"The {side} profiles of different examples are alike: {cosine}."
            yield Finding(level, "Collapse", words, "texts")


def _variety(texts: TextFigures) -> Iterator[Finding]:
    found = _first_and_last(texts.distinct.get(2, ()))
    if found is not None and found[1] < (1 - LESS_DISTINCT) * found[0]:
        pairs = f"{percent(found[1])} of word pairs are different ones, {percent(found[0])} at the start"
        words = f"{pairs}: the texts repeat one another."
        yield Finding("warn", "Less variety", words, "texts")


def _leakage(texts: TextFigures) -> Iterator[Finding]:
    found = _first_and_last(texts.states_rating)
    if found is not None and found[1] > STATED:
        stated = f"{percent(found[1])} of completions state a rating in a profile, {percent(found[0])} at the start"
        words = f"{stated}: the recommender can copy it."
        yield Finding("warn", "Leakage", words, "texts")


def _first_and_last(points: Sequence[Point]) -> tuple[float, float] | None:
    """Of stretches: the means of the first and of the last fifth."""
    few = max(1, len(points) // 5)
    values = [value for _, value in points]
    return (fmean(values[:few]), fmean(values[-few:])) if len(values) > 1 else None
