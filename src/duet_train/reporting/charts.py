"""Which charts a report has. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import fmean

from duet_train.reporting.axes import key
from duet_train.reporting.bars import Stack, stacked_bars
from duet_train.reporting.figures import Section, figure, series_chart, step_range
from duet_train.reporting.held_out import Point as HeldOut
from duet_train.reporting.lines import Line, Span
from duet_train.reporting.markup import Markup
from duet_train.reporting.numbers import Point, cut, seconds, short, smooth
from duet_train.reporting.run import Run

PHASES = ("rollout", "reward", "update")
OTHERS = 24
"""Most charts of values that no other chart shows."""

OTHER_POINTS = 100

_SHOWN = frozenset(
    {
        *("reward", "reward_std", "duet/flat_groups", "frac_reward_zero_std", "duet/group_spread", "duet/parse_rate"),
        *("duet/failed_share", "completions/clipped_ratio", "completions/mean_length", "completions/min_length"),
        *("completions/max_length", "kl", "entropy", "duet/server/logp_difference", "duet/contrastive_loss"),
    }
)
_TELLS_NOTHING = frozenset({"epoch", "num_tokens", "num_input_tokens_seen", "total_flos"})


def learning(run: Run) -> Section:
    """Reward, its terms, and what shapes them.

    Args:
        run: Any.
    """
    return Section(
        anchor="learning",
        title="Learning",
        intro="Light points are single steps, lines their running means.",
        figures=[
            *_reward(run),
            *_terms(run),
            *series_chart(
                run,
                "Flat groups: all rewards equal, no gradient",
                [Line(name="flat groups", points=run.series("duet/flat_groups", "frac_reward_zero_std"), colour=1)],
                shares=True,
            ),
            *series_chart(
                run,
                "Form of the completions",
                [
                    Line(name="profiles (parse rate)", points=run.series("duet/parse_rate"), colour=2),
                    Line(name="cut at the limit", points=run.series("completions/clipped_ratio"), colour=1),
                    Line(name="rewards that failed", points=_unless_zero(run.series("duet/failed_share")), colour=3),
                ],
                shares=True,
            ),
            *_lengths(run),
            *series_chart(
                run,
                "KL from the reference, nat per token",
                [Line(name="KL", points=run.series("kl"), colour=0)],
                floor=0.0,
            ),
            *series_chart(
                run,
                "Trainer against server, mean |Δ log-probability|, nat",
                [
                    Line(
                        name="difference",
                        points=run.series("duet/server/logp_difference"),
                        colour=1,
                    )
                ],
                floor=0.0,
            ),
            *_losses(run),
            *series_chart(
                run,
                "Contrastive loss of the embedder",
                [Line(name="loss", points=run.series("duet/contrastive_loss"), colour=4)],
            ),
        ],
        missing="An exploration has no steps." if run.is_exploration else "No step of this run has been logged.",
    )


def _reward(run: Run) -> list[Markup]:
    points = run.series("reward")
    spread = run.series("duet/group_spread", "reward_std")
    note = "Band: one mean standard deviation within a group to each side." if spread else ""
    return series_chart(run, "Reward", [Line(name="reward", points=points, band=_band(points, spread))], note=note)


def _band(points: Sequence[Point], spread: Sequence[Point]) -> list[Span]:
    at = dict(spread)
    both = [(x, y) for x, y in points if x in at]
    widths = smooth([(x, at[x]) for x, _ in both])
    return [(x, y - width, y + width) for (x, y), (_, width) in zip(smooth(both), widths, strict=True)]


def _terms(run: Run) -> list[Markup]:
    """A chart a term, since their scales differ; none for the only one, which is the reward."""
    keys = [key for key in run.keys if key.startswith("duet/terms/")]
    if len(keys) < 2:
        return []
    lines = [(name.rpartition("/")[2], run.series(name)) for name in keys[:8]]
    return [
        chart
        for name, points in lines
        for chart in series_chart(run, f"Term “{name}”", [Line(name=name, points=points, colour=5)])
    ]


def _lengths(run: Run) -> list[Markup]:
    shortest, longest = dict(run.series("completions/min_length")), dict(run.series("completions/max_length"))
    points = run.series("completions/mean_length")
    both = [x for x, _ in points if x in shortest and x in longest]
    lower, upper = smooth([(x, shortest[x]) for x in both]), smooth([(x, longest[x]) for x in both])
    band = [(x, low, high) for (x, low), (_, high) in zip(lower, upper, strict=True)]
    note = "Band: shortest to longest of a step." if band else ""
    line = Line(name="mean", points=points, colour=4, band=band)
    return series_chart(run, "Length of a completion, tokens", [line], floor=0.0, note=note)


def _losses(run: Run) -> list[Markup]:
    """Losses, where there is no reward that says more."""
    if run.series("reward"):
        return []
    losses = [
        Line(name="training", points=run.series("loss")),
        Line(name="evaluation", points=run.series("eval_loss"), colour=1, style="joined"),
    ]
    accuracy = [
        Line(name="training", points=run.series("rewards/accuracies", "mean_token_accuracy"), colour=2),
        Line(
            name="evaluation",
            points=run.series("eval_rewards/accuracies", "eval_mean_token_accuracy"),
            colour=1,
            style="joined",
        ),
    ]
    title = "Pairs ranked right" if run.series("rewards/accuracies") else "Tokens predicted right"
    return [*series_chart(run, "Loss", losses), *series_chart(run, title, accuracy, shares=True)]


def _unless_zero(points: list[Point]) -> list[Point]:
    return points if any(y for _, y in points) else []


def held_out(run: Run, points: Sequence[HeldOut]) -> Section:
    """What was measured on rows that are not trained on.

    Args:
        run: Any.
        points: Its measurements.
    """
    rewards = _measured(points, lambda one: one.of.reward)
    whiskers = [(float(one.of.step), one.reward.low, one.reward.high) for one in points if one.reward is not None]
    line = Line(name="reward", points=rewards, style="joined", whiskers=whiskers)
    start = rewards[0][1] if rewards else None
    error = _measured(points, lambda one: one.of.mae)
    parsed = _measured(points, lambda one: one.of.parse_rate)
    return Section(
        anchor="held-out",
        title="Held-out rows",
        intro="Measured on the same rows each time, none of which is trained on. Whiskers are 95 % bootstrap intervals "
        f"over {'users' if all(one.by_user for one in points) else 'rows'}.",
        figures=[
            *series_chart(run, "Held-out reward", [line], note="Dashed line: the start.", level=start),
            *_gain(run, points),
            *_control(run, points),
            *series_chart(run, "Error of predicted ratings (MAE), points", [_joined("MAE", error, 3)]),
            *series_chart(run, "Held-out parse rate", [_joined("profiles", parsed, 2)], shares=True),
        ],
        missing="This run has no held-out measurements (held_out.jsonl).",
    )


def _control(run: Run, points: Sequence[HeldOut]) -> list[Markup]:
    own = _measured(points, lambda one: one.own if one.gap is not None else None)
    swapped = _measured(points, lambda one: one.of.shuffled_reward)
    if not swapped:
        return []
    lines = [
        _joined("the row’s own user", own, 0),
        Line(name="another row’s user", points=swapped, colour=1, style="hollow"),
    ]
    note = "Over the rows that have a profile. The distance is what the right user’s profile is worth."
    return series_chart(run, "Control: users shuffled, held-out reward", lines, note=note)


def _gain(run: Run, points: Sequence[HeldOut]) -> list[Markup]:
    gains = [(float(one.of.step), one.gain) for one in points if one.gain is not None]
    line = Line(
        name="gain",
        points=[(step, gain.estimate) for step, gain in gains],
        colour=0,
        style="joined",
        whiskers=[(step, gain.low, gain.high) for step, gain in gains],
    )
    note = "Each row against itself at the start."
    return series_chart(run, "Held-out reward against the start", [line], note=note, level=0.0)


def _measured(points: Sequence[HeldOut], value: Callable[[HeldOut], float | None]) -> list[Point]:
    found = [(float(one.of.step), value(one)) for one in points]
    return [(step, value) for step, value in found if value is not None]


def _joined(name: str, points: Sequence[Point], colour: int) -> Line:
    return Line(name=name, points=points, colour=colour, style="joined")


def time(run: Run) -> Section:
    """Where the time goes.

    Args:
        run: Any.
    """
    by_step = _phases(run)
    return Section(
        anchor="time",
        title="Time",
        intro="",
        figures=_time_chart(run, by_step)
        if by_step
        else series_chart(run, "Time of a step, s", [Line(name="step", points=run.series("step_time"))], floor=0.0),
        missing="This run has logged no times.",
    )


def _phases(run: Run) -> list[tuple[float, list[float]]]:
    """Seconds of each phase, by step."""
    keys = [f"duet/seconds/{phase}" for phase in PHASES]
    found = [
        (float(step), [values.get(key, 0.0) for key in keys])
        for step, values in run.history.items()
        if any(key in values for key in keys)
    ]
    return [(step, [max(0.0, value) for value in parts]) for step, parts in found]


def _time_chart(run: Run, by_step: Sequence[tuple[float, Sequence[float]]]) -> list[Markup]:
    used = [place for place in range(len(PHASES)) if any(parts[place] for _, parts in by_step)]
    stacks = [
        Stack(
            start=part[0][0],
            end=part[-1][0],
            parts=[fmean(column) for column in zip(*(parts for _, parts in part), strict=True)],
        )
        for part in cut(by_step, 48)
    ]
    every = min((after - before for (before, _), (after, _) in pairwise(by_step)), default=1.0)
    title = "Time of a step by phase, s"
    svg = stacked_bars(
        stacks, PHASES, steps=step_range(run), title=title, words=seconds, every=every, resumes=run.resumes
    )
    return [figure(title, svg, keys=[(PHASES[place], key(f"f{place}", "bar")) for place in used])]


def others(run: Run) -> Section:
    """What else the run logged, small; open where there is little else.

    Args:
        run: Any.
    """
    series = {name: run.series(name) for name in run.keys if not _is_shown(run, name)}
    moving = {name: points for name, points in series.items() if len({y for _, y in points}) > 1}
    still = ", ".join(f"{name} {short(series[name][0][1])}" for name in series if name not in moving)
    return Section(
        anchor="others",
        title="Other logged values",
        intro=f"As the trainer names them. The same at every step: {still}." if still else "As the trainer names them.",
        figures=[
            chart
            for name, points in list(moving.items())[:OTHERS]
            for chart in series_chart(run, name, [Line(name=name, points=points, colour=5)], raw_points=OTHER_POINTS)
        ],
        missing="None.",
        is_open=not run.series("reward", "loss"),
    )


def _is_shown(run: Run, name: str) -> bool:
    if name == "loss":
        return not run.series("reward")
    return name in _SHOWN | _TELLS_NOTHING or name.startswith(("duet/terms/", "duet/seconds/"))
