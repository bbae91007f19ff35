"""Arithmetic on series of numbers, and numbers as words. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import TypeVar

import attrs

T = TypeVar("T")
Point = tuple[float, float]
"""A step, and a value there."""

RAW_POINTS = 240
"""Most points of a series that a chart shows."""
WINDOW = 20
"""Logged steps that "first" and "last" mean."""
_LARGEST, _LEAST = 1e15, 1e-30


def number(value: object) -> float | None:
    """A finite number of a size that can be drawn, or None; what is all but 0 is 0.

    Args:
        value: Anything that JSON can hold; true and false are no numbers.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if not -_LARGEST <= value <= _LARGEST:
        return None
    return float(value) if abs(value) >= _LEAST else 0.0


# Series


def bucket_means(points: Sequence[Point], limit: int) -> list[Point]:
    """As many points at most, each the mean of its neighbours.

    Args:
        points: By step.
        limit: Most points.
    """
    return [(fmean(x for x, _ in part), fmean(y for _, y in part)) for part in cut(points, limit)]


def bucket_extremes(points: Sequence[Point], limit: int) -> list[Point]:
    """About as many points at most, the least and the greatest of each stretch, so that no outlier is lost.

    Args:
        points: By step.
        limit: Most points.
    """
    if len(points) <= limit:
        return list(points)
    parts = cut(points, limit // 2)
    ends = ({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])} for part in parts)
    return [point for pair in ends for point in sorted(pair)]


def cut(values: Sequence[T], limit: int) -> Iterator[Sequence[T]]:
    """The values in order, in as many parts of nearly one size at most.

    Args:
        values: Any.
        limit: Most parts.
    """
    parts = min(limit, len(values))
    for part in range(parts):
        yield values[part * len(values) // parts : (part + 1) * len(values) // parts]


def smooth(points: Sequence[Point]) -> list[Point]:
    """A running line: at each point a straight line through its neighbours, the nearest counting most.

    Unlike a running mean it neither lags behind nor bends at the ends.

    Args:
        points: By step.
    """
    thin = bucket_means(points, 2 * RAW_POINTS)
    reach = max(3, len(thin) // 12)
    if len(thin) < 5:
        return thin
    return [(x, _line_at(x, thin[max(0, at - reach) : at + reach + 1])) for at, (x, _) in enumerate(thin)]


def _line_at(x: float, near: Sequence[Point]) -> float:
    """The value at `x` of the weighted least-squares line."""
    widest = max(abs(other - x) for other, _ in near) * 1.001 or 1.0
    weighted = [(other - x, y, (1 - (abs(other - x) / widest) ** 3) ** 3) for other, y in near]
    total = sum(weight for _, _, weight in weighted)
    middle = sum(dx * weight for dx, _, weight in weighted) / total
    mean = sum(y * weight for _, y, weight in weighted) / total
    spread = sum(weight * (dx - middle) ** 2 for dx, _, weight in weighted)
    slope = sum(weight * (dx - middle) * (y - mean) for dx, y, weight in weighted) / spread if spread else 0.0
    return mean - slope * middle


@attrs.frozen
class Ends:
    """Means over the first and the last logged steps.

    Args:
        first: None where the series is too short for a beginning apart from its end.
        last: Of the last `steps`.
        steps: How many each covers.
    """

    first: float | None
    last: float
    steps: int


def ends(points: Sequence[Point]) -> Ends | None:
    """Beginning and end of a series; None for an empty one.

    Args:
        points: By step.
    """
    if not points:
        return None
    steps = max(1, min(WINDOW, len(points) // 2))
    values = [y for _, y in points]
    return Ends(fmean(values[:steps]) if len(values) > 1 else None, fmean(values[-steps:]), steps)


def shares(values: Sequence[float], points: Sequence[float]) -> list[float]:
    """The share of the values that lie nearest to each point.

    Args:
        values: Any; none gives zeros.
        points: Ascending.
    """
    counts = [0] * len(points)
    for value in values:
        counts[min(range(len(points)), key=lambda place: abs(points[place] - value))] += 1
    return [count / max(1, len(values)) for count in counts]


# Axes


def ticks(low: float, high: float, count: int = 5, *, whole: bool = False) -> list[float]:
    """Round numbers from `low` to `high`, about as many as asked for.

    Args:
        low: Where the axis begins.
        high: Where it ends; not below.
        count: How many at most, give or take one.
        whole: Whole numbers only.
    """
    span = high - low
    if span <= 0:
        return [low]
    rough = span / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    factors = (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)
    step = next(power * factor for factor in factors if power * factor >= rough * 0.999)
    step = max(1.0, step) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def nice_range(low: float, high: float, *, floor: float | None = None) -> tuple[float, float]:
    """An axis that holds both ends with some air.

    Args:
        low: Least value.
        high: Greatest value.
        floor: The axis begins here where nothing lies below.
    """
    size = max(abs(low), abs(high))
    # Values that differ in their last digits alone are equal to the eye.
    air = (high - low) * 0.06 if high - low > 1e-9 * size else size * 0.1 or 1.0
    bottom = floor if floor is not None and low >= floor else low - air
    return bottom, high + air


# Words


def short(value: float) -> str:
    """A number with about three digits that count.

    Args:
        value: Finite.
    """
    size = abs(value)
    if not size:
        return "0"
    if size < 0.001 or size >= 1e6:
        return _sign(f"{value:.2g}".replace("e-0", "e-").replace("e+0", "e"))
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return _sign(f"{value:,.{digits}f}".replace(",", "\u202f"))


def signed(value: float) -> str:
    """A difference, its sign always shown.

    Args:
        value: Finite.
    """
    if abs(value) < 1:
        return f"{value:+.3f}".replace("-", "−")
    return short(value) if value < 0 else f"+{short(value)}"


def percent(share: float) -> str:
    """A share as per cent.

    Args:
        share: 0 to 1, usually.
    """
    value = share * 100
    digits = 0 if value in (0, 100) or 1 <= abs(value) < 99 or abs(value) > 100 else 1
    return _sign(f"{value:.{digits}f}\u202f%")


def seconds(value: float) -> str:
    """A length of time.

    Args:
        value: In seconds.
    """
    if value < 120:
        return f"{short(value)}\u202fs"
    return f"{value / 60:.0f}\u202fmin" if value < 7200 else f"{value / 3600:.1f}\u202fh"


def several(count: int, noun: str) -> str:
    """A count with its noun, in the plural where it must be.

    Args:
        count: How many.
        noun: In the singular, of those that take an s.
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def tick_words(places: Sequence[float], unit: Callable[[float], str] | None = None) -> list[str]:
    """The ticks of an axis, all to one number of digits.

    Args:
        places: Ascending.
        unit: How to write one, where plain numbers will not do.
    """
    if unit is not None:
        return [unit(place) for place in places]
    step = min((after - before for before, after in itertools.pairwise(places)), default=0.0)
    largest = max((abs(place) for place in places), default=0.0)
    if largest and (largest < 0.001 or largest >= 1e5):
        return [_sign(f"{place:.3g}".replace("e-0", "e-").replace("e+0", "e")) for place in places]
    digits = next((digits for digits in range(6) if abs(round(step, digits) - step) < step * 1e-6), 6) if step else 2
    return [_sign(f"{place + 0.0:.{digits}f}") for place in places]


def _sign(text: str) -> str:
    return f"−{text[1:]}" if text[0] == "-" else text
