"""Stacked bars over steps and grouped bars by class, as inline SVG. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs

from duet_train.reporting.axes import LEFT, RIGHT, WIDTH, Frame, Words, axes, svg, x_label, x_name, y_axis
from duet_train.reporting.markup import Markup, tag
from duet_train.reporting.numbers import Point, percent


@attrs.frozen(kw_only=True)
class Stack:
    """One bar of parts on top of each other.

    Args:
        start: First step that it stands for.
        end: Last step.
        parts: Values from the bottom up.
    """

    start: float
    end: float
    parts: Sequence[float]


def stacked_bars(
    stacks: Sequence[Stack],
    names: Sequence[str],
    *,
    steps: Point,
    title: str,
    words: Words,
    every: float = 1.0,
    resumes: Sequence[int] = (),
) -> Markup:
    """Sums over steps, with what each is made of.

    Args:
        stacks: By step, at least one.
        names: Of the parts.
        steps: First and last step of the run.
        title: For those who cannot see it.
        words: How to write a value.
        every: Steps from one logged step to the next.
        resumes: Steps at which the run was resumed.
    """
    half = every / 2
    frame = Frame(
        x=(min(steps[0], stacks[0].start) - half, max(steps[1], stacks[-1].end) + half),
        y=(0.0, max(sum(stack.parts) for stack in stacks) * 1.06 or 1.0),
        words=words,
        resumes=resumes,
    )
    bars = [part for stack in stacks for part in _stack(frame, stack, names, half)]
    last = stacks[-1].parts
    told = ", ".join(f"{name} {words(value)}" for name, value in zip(names, last, strict=True))
    return svg(f"{title}: at the end {told}", [*axes(frame), *bars])


def _stack(frame: Frame, stack: Stack, names: Sequence[str], half: float) -> Iterator[Markup]:
    left, right = frame.across(stack.start - half), frame.across(stack.end + half)
    gap = 0.6 if right - left > 3 else 0.0
    where = f"step {stack.start:g}" if stack.start == stack.end else f"steps {stack.start:g} to {stack.end:g}"
    below = 0.0
    for place, (name, value) in enumerate(zip(names, stack.parts, strict=True)):
        top, bottom = frame.up(below + value), frame.up(below)
        told = tag("title", f"{where}: {name} {frame.words(value)}")
        yield tag("rect", told, class_=f"bar f{place}", x=left, y=top, width=right - left - gap, height=bottom - top)
        below += value


@attrs.frozen(kw_only=True)
class Bars:
    """One series of grouped bars.

    Args:
        name: For the legend and for what hovering shows.
        values: One a class.
        look: Class of the style sheet.
    """

    name: str
    values: Sequence[float]
    look: str


def grouped_bars(series: Sequence[Bars], labels: Sequence[str], *, axis: str, title: str) -> Markup:
    """Bars side by side for each class.

    Args:
        series: At least one; values are shares.
        labels: Of the classes.
        axis: What the classes are.
        title: For those who cannot see it.
    """
    highest = max(max(one.values) for one in series)
    frame = Frame(x=(0.0, float(len(labels))), y=(0.0, highest * 1.08 or 1.0), words=percent, shares=True)
    width = 0.8 / len(series)
    bars = [
        tag(
            "rect",
            tag("title", f"{label}: {one.name} {percent(one.values[place])}"),
            class_=f"bar {one.look}",
            x=frame.across(place + 0.1 + width * index) + 0.5,
            y=frame.up(one.values[place]),
            width=(WIDTH - LEFT - RIGHT) / len(labels) * width - 1.0,
            height=frame.up(0.0) - frame.up(one.values[place]),
        )
        for place, label in enumerate(labels)
        for index, one in enumerate(series)
    ]
    below = [x_label(frame.across(place + 0.5), label) for place, label in enumerate(labels)]
    told = "; ".join(f"{one.name} {', '.join(map(percent, one.values))}" for one in series)
    return svg(f"{title}: {told}", [*y_axis(frame), *bars, *below, x_name(axis)])
