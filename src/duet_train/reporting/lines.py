"""Series over steps, as inline SVG: smoothed lines with their raw points, bands, whiskers. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import attrs

from duet_train.reporting.axes import LEFT, RIGHT, WIDTH, Frame, Words, axes, svg
from duet_train.reporting.markup import Markup, tag
from duet_train.reporting.numbers import RAW_POINTS, Point, bucket_extremes, nice_range, short, smooth

Span = tuple[float, float, float]
"""A step, and the lower and upper end of a range there."""


@attrs.frozen(kw_only=True)
class Line:
    """One series of a chart.

    Args:
        name: For the legend and for what hovering shows.
        points: By step.
        colour: Which of the page's six.
        style: "smooth" draws light points with a smoothed line, "joined" the points with a line through them,
            "hollow" likewise, dashed and with hollow points.
        band: A range around the line.
        whiskers: A range at each point.
    """

    name: str
    points: Sequence[Point]
    colour: int = 0
    style: str = "smooth"
    band: Sequence[Span] = ()
    whiskers: Sequence[Span] = ()


def line_chart(
    lines: Sequence[Line],
    *,
    steps: Point,
    title: str,
    words: Words = short,
    shares: bool = False,
    floor: float | None = None,
    resumes: Sequence[int] = (),
    raw_points: int = RAW_POINTS,
    level: float | None = None,
) -> Markup:
    """Series over steps.

    Args:
        lines: At least one, each with a point or more.
        steps: First and last step of the run: all its charts have the same axis.
        title: For those who cannot see it.
        words: How to write a value.
        shares: The axis is 0 to 100 %.
        floor: The axis begins here where nothing lies below.
        resumes: Steps at which the run was resumed.
        raw_points: Most raw points of a line.
        level: A value to draw a thin line at.
    """
    drawn = [_Drawn.of(line, raw_points) for line in lines]
    values = [value for one in drawn for value in one.values()] + ([] if level is None else [level])
    frame = Frame(
        x=steps if steps[0] < steps[1] else (steps[0] - 1, steps[1] + 1),
        y=(0.0, 1.0) if shares else nice_range(min(values), max(values), floor=floor),
        words=words,
        shares=shares,
        resumes=resumes,
    )
    parts = [*axes(frame), *_level(frame, level), *(part for one in drawn for part in one.parts(frame))]
    return svg(
        f"{title}: {'; '.join(_told(line, words) for line in lines)}", parts, look="several" if len(lines) > 1 else ""
    )


def _told(line: Line, words: Words) -> str:
    first, last = line.points[0], line.points[-1]
    return f"{line.name} from {words(first[1])} at step {first[0]:g} to {words(last[1])} at step {last[0]:g}"


def _without_outliers(points: Sequence[Point]) -> list[Point]:
    """The points, the few that would press all others flat drawn in."""
    ordered = sorted(y for _, y in points)
    few = len(ordered) // 50
    inner = ordered[few:-few] if few else ordered
    reach = 3 * (inner[-1] - inner[0])
    if not few or reach <= 0:
        return list(points)
    return [(x, min(max(y, inner[0] - reach), inner[-1] + reach)) for x, y in points]


@attrs.frozen
class _Drawn:
    """A line with what of it is drawn."""

    line: Line
    dots: Sequence[Point]
    path: Sequence[Point]

    @classmethod
    def of(cls, line: Line, raw_points: int) -> _Drawn:
        is_smooth = line.style == "smooth" and len(line.points) > 8
        dots = bucket_extremes(line.points, raw_points)
        return cls(line, dots, smooth(_without_outliers(line.points)) if is_smooth else dots)

    def values(self) -> list[float]:
        ranges = [value for _, *span in (*self.line.band, *self.line.whiskers) for value in span]
        return [y for _, y in (*_without_outliers(self.dots), *self.path)] + ranges

    def parts(self, frame: Frame) -> Iterator[Markup]:
        colour = self.line.colour
        if self.line.band:
            yield tag("path", class_=f"band f{colour}", d=_area(frame, self.line.band))
        for x, low, high in self.line.whiskers:
            path = f"M{frame.across(x):.1f} {frame.up(low):.1f}V{frame.up(high):.1f}"
            yield tag("path", class_=f"whisker s{colour}", d=path)
        yield tag("path", class_=f"line s{colour} {self.line.style}", d=_path(frame, self.path))
        many = self.path is not self.dots
        kind = "raw" if many else "hollow" if self.line.style == "hollow" else "dots"
        yield tag(
            "g",
            *(self._dot(frame, point, 1.6 if many else 3.0) for point in self.dots),
            class_=f"{kind} f{colour} s{colour}",
        )

    def _dot(self, frame: Frame, point: Point, radius: float) -> Markup:
        told = tag("title", f"step {point[0]:g}: {self.line.name} {frame.words(point[1])}")
        return tag("circle", told, cx=frame.across(point[0]), cy=frame.up(point[1]), r=radius)


def _path(frame: Frame, points: Iterable[Point]) -> str:
    return "M" + "L".join(f"{frame.across(x):.1f} {frame.up(y):.1f}" for x, y in points)


def _area(frame: Frame, spans: Sequence[Span]) -> str:
    upper = [(x, high) for x, _, high in spans]
    lower = [(x, low) for x, low, _ in reversed(spans)]
    return _path(frame, [*upper, *lower]) + "Z"


def _level(frame: Frame, value: float | None) -> list[Markup]:
    if value is None:
        return []
    at = frame.up(value)
    return [tag("line", class_="level", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at)]
