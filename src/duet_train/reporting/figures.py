"""A chart with its title, legend and note; a section of such charts. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import attrs

from duet_train.reporting.axes import key
from duet_train.reporting.lines import Line, line_chart
from duet_train.reporting.markup import Markup, tag
from duet_train.reporting.numbers import RAW_POINTS, Point, percent, short
from duet_train.reporting.run import Run


@attrs.frozen(kw_only=True)
class Section:
    """A part of the page.

    Args:
        anchor: Its id.
        title: Its heading.
        intro: What it is about.
        figures: Its charts; none are replaced by `missing`.
        missing: What to say where there is nothing to show.
        is_open: False hides the figures until asked for.
    """

    anchor: str
    title: str
    intro: str
    figures: Sequence[Markup]
    missing: str
    is_open: bool = True


def figure(title: str, chart: Markup, *, keys: Iterable[tuple[str, Markup]] = (), note: str = "") -> Markup:
    """A chart with its title, its legend and what must be known to read it.

    Args:
        title: What it shows, with the unit.
        chart: The drawing.
        keys: Names with their samples.
        note: A sentence below.
    """
    legend = [tag("li", sample, name) for name, sample in keys]
    return tag(
        "figure",
        tag("figcaption", tag("strong", title), tag("output", class_="at")),
        tag("ul", *legend, class_="legend") if legend else None,
        chart,
        tag("p", note, class_="note") if note else None,
    )


def series_chart(
    run: Run,
    title: str,
    lines: Sequence[Line],
    *,
    words: Callable[[float], str] = short,
    shares: bool = False,
    floor: float | None = None,
    note: str = "",
    level: float | None = None,
    raw_points: int = RAW_POINTS,
) -> list[Markup]:
    """A chart of those lines that have points; none where none has.

    Args:
        run: For the common axis and the resumes.
        title: What it shows, with the unit.
        lines: What to draw.
        words: How to write a value.
        shares: The axis is 0 to 100 %.
        floor: The axis begins here where nothing lies below.
        note: A sentence below.
        level: A value to draw a thin line at.
        raw_points: Most raw points of a line.
    """
    drawn = [line for line in lines if line.points]
    if not drawn or run.is_exploration:  # which has no steps
        return []
    svg = line_chart(
        drawn,
        steps=step_range(run),
        title=title,
        words=percent if shares else words,
        shares=shares,
        floor=floor,
        resumes=run.resumes,
        raw_points=raw_points,
        level=level,
    )
    keys = [(line.name, key(f"s{line.colour}", line.style)) for line in drawn] if len(drawn) > 1 else []
    return [figure(title, svg, keys=keys, note=note)]


def step_range(run: Run) -> Point:
    """First and last step of everything in a run.

    Args:
        run: Any.
    """
    steps = [*run.history, *(one.step for one in run.held_out), *(one.step for one in run.answers[:1])]
    return float(min(steps, default=0)), float(max(steps, default=1))
