"""The frame of a chart, as inline SVG: axes, ticks, resumes, and the samples of a legend. Pure.

Lengths are in units of the view box, which a page shows at about one pixel each. Colours are classes of the style
sheet, so that one chart serves both colour schemes; dashes and hollow points tell lines apart without any colour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import attrs

from duet_train.reporting.markup import Markup, join, tag
from duet_train.reporting.numbers import Point, percent, short, tick_words, ticks

WIDTH, HEIGHT = 400.0, 214.0
LEFT, RIGHT, TOP, BOTTOM = 48.0, 12.0, 12.0, 38.0

Words = Callable[[float], str]


@attrs.frozen(kw_only=True)
class Frame:
    """The axes of a chart.

    Args:
        x: Ends of the horizontal axis, in steps.
        y: Ends of the vertical axis.
        words: How to write a value.
        shares: The values are shares, and so are the ticks; those of a whole axis stand at the quarters.
        resumes: Steps at which the run was resumed.
    """

    x: Point
    y: Point
    words: Words = short
    shares: bool = False
    resumes: Sequence[int] = ()

    def across(self, x: float) -> float:
        """Where a step lies."""
        low, high = self.x
        return LEFT + (WIDTH - LEFT - RIGHT) * _within((x - low) / (high - low))

    def up(self, y: float) -> float:
        """Where a value lies; what is beyond the axis lies at its end."""
        low, high = self.y
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * _within((y - low) / (high - low))


def _within(share: float) -> float:
    return min(max(share, 0.0), 1.0)


def axes(frame: Frame) -> Iterator[Markup]:
    """Both axes, with the resumes.

    Args:
        frame: Where everything lies.
    """
    yield from y_axis(frame)
    places = [place for place in ticks(*frame.x, 6, whole=True) if frame.x[0] <= place <= frame.x[1]]
    for place, word in zip(places, tick_words(places), strict=True):
        yield x_label(frame.across(place), word)
    yield x_name("step")
    for step in frame.resumes:
        x = frame.across(step)
        told = tag("title", f"step {step}: resumed")
        yield tag("line", told, class_="resume", x1=x, x2=x, y1=TOP - 6, y2=HEIGHT - BOTTOM)


def y_axis(frame: Frame) -> Iterator[Markup]:
    """The vertical axis with its grid, and the line at the bottom.

    Args:
        frame: Where everything lies.
    """
    places = [0.0, 0.25, 0.5, 0.75, 1.0] if frame.shares and frame.y == (0.0, 1.0) else ticks(*frame.y, 5)
    for place, word in zip(places, tick_words(places, percent if frame.shares else None), strict=True):
        y = frame.up(place)
        yield tag("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y)
        yield tag("text", word, class_="tick-y", x=LEFT - 6, y=y + 4)
    yield tag("line", class_="axis", x1=LEFT, x2=WIDTH - RIGHT, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM)


def x_label(x: float, word: str) -> Markup:
    """A word below the horizontal axis.

    Args:
        x: Where its middle lies.
        word: What stands there.
    """
    return tag("text", word, class_="tick-x", x=x, y=HEIGHT - BOTTOM + 15)


def x_name(word: str) -> Markup:
    """The name of the horizontal axis.

    Args:
        word: What stands there.
    """
    return tag("text", word, class_="axis-name", x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 4)


def svg(told: str, parts: Iterable[Markup], *, look: str = "") -> Markup:
    """A whole chart.

    Args:
        told: What it shows, for those who cannot see it.
        parts: The drawing.
        look: Another class of the style sheet.
    """
    return tag(
        "svg",
        join(parts),
        class_=f"chart {look}".strip(),
        viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
        role="img",
        aria_label=told,
    )


def key(look: str, style: str = "smooth") -> Markup:
    """The sample of a line or a bar for a legend.

    Args:
        look: Classes of the style sheet.
        style: As for `Line`; "bar" for a bar.
    """
    shape = (
        tag("rect", class_=f"bar {look}", x=2, y=1, width=18, height=10)
        if style == "bar"
        else join([tag("line", class_=f"line {look} {style}", x1=0, x2=22, y1=6, y2=6)])
    )
    return tag("svg", shape, class_="key", viewBox="0 0 22 12", aria_hidden="true")
