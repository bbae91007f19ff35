"""Numbers on a page: series, axes, charts."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet_train.reporting.axes import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Frame
from duet_train.reporting.bars import Bars, Stack, grouped_bars, stacked_bars
from duet_train.reporting.charts import learning, others, time
from duet_train.reporting.lines import Line, line_chart
from duet_train.reporting.numbers import (
    bucket_extremes,
    bucket_means,
    cut,
    ends,
    nice_range,
    number,
    percent,
    seconds,
    shares,
    short,
    signed,
    smooth,
    tick_words,
    ticks,
)
from duet_train.reporting.run import Run

VALUES = st.floats(-1e6, 1e6).map(lambda value: number(value) or 0.0)
SERIES = st.lists(VALUES, min_size=1, max_size=80).map(lambda values: [(float(x), y) for x, y in enumerate(values)])


def circles(chart: str) -> list[tuple[float, float]]:
    """Where the points of a chart lie."""
    return [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.-]+)" cy="([\d.-]+)"', chart)]


# Numbers


def test_what_is_all_but_nothing_is_nothing() -> None:
    """Numbers too small for any axis are 0."""
    assert number(1e-200) == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300, 10**400, True, "3", None, [1]])
def test_what_cannot_be_drawn_is_no_number(value: object) -> None:
    """Neither NaN nor infinity, nor what is too large for an axis, nor another type is a number."""
    assert number(value) is None


@given(SERIES, st.integers(2, 40))
def test_extremes_survive_thinning(points: list[tuple[float, float]], limit: int) -> None:
    """A thinned series keeps its least and its greatest value, in order, and no more points than asked for."""
    kept = bucket_extremes(points, limit)
    assert len(kept) <= limit
    assert {min(y for _, y in points), max(y for _, y in points)} <= {y for _, y in kept}
    assert kept == sorted(kept)


@given(SERIES, st.integers(1, 40))
def test_means_of_stretches_keep_the_mean_of_equal_parts(points: list[tuple[float, float]], limit: int) -> None:
    """Stretches hold every point once, and a stretch of one point is that point."""
    assert [point for part in cut(points, limit) for point in part] == points
    if len(points) <= limit:
        assert bucket_means(points, limit) == points


@given(st.floats(-100, 100), st.floats(-5, 5), st.integers(5, 300))
def test_smoothing_leaves_a_straight_line_alone(start: float, slope: float, count: int) -> None:
    """A straight line stays what it is, at its ends too."""
    for x, y in smooth([(float(x), start + slope * x) for x in range(count)]):
        assert y == pytest.approx(start + slope * x, abs=1e-6)


def test_smoothing_takes_the_noise_and_leaves_the_level() -> None:
    """A series that jumps between two values is smoothed to near their middle."""
    smoothed = smooth([(float(x), float(x % 2)) for x in range(200)])
    assert all(0.4 < y < 0.6 for _, y in smoothed)


def test_ends_are_the_first_and_last_twenty_steps() -> None:
    """The ends of a long series are twenty steps each, of a short one its halves, and of one step that step."""
    long = ends([(float(x), float(x >= 80)) for x in range(100)])
    assert long is not None
    assert (long.first, long.last, long.steps) == (0.0, 1.0, 20)
    short = ends([(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)])
    assert short is not None
    assert (short.first, short.last, short.steps) == (1.0, 3.0, 1)
    single = ends([(0.0, 1.0)])
    assert single is not None
    assert (single.first, single.last) == (None, 1.0)
    assert ends([]) is None


def test_shares_count_the_nearest_class() -> None:
    """Each value counts for the class nearest to it, those beyond the scale for its end."""
    assert shares([0.2, 1.4, 4.6, 9.0], [1, 2, 3, 4, 5]) == [0.5, 0, 0, 0, 0.5]
    assert shares([], [1, 2]) == [0, 0]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (short(0.71234), "0.712"),
        (short(-1.5), "−1.50"),
        (short(41.26), "41.3"),
        (short(1234.4), "1 234"),
        (short(0.00002), "2e-5"),
        (signed(0.0361), "+0.036"),
        (signed(-0.5), "−0.500"),
        (signed(2.0), "+2.00"),
        (percent(0.624), "62 %"),
        (percent(0.004), "0.4 %"),
        (percent(0.995), "99.5 %"),
        (percent(1.0), "100 %"),
        (seconds(41.2), "41.2 s"),
        (seconds(600), "10 min"),
        (seconds(9000), "2.5 h"),
    ],
)
def test_numbers_read_well(written: str, expected: str) -> None:
    """Numbers have the digits that count, a real minus, and units that do not break away."""
    assert written.replace("\u202f", " ") == expected
    assert " " not in written


# Axes


@given(st.floats(-1e4, 1e4), st.floats(0.01, 1e6), st.integers(3, 8), st.booleans())
def test_ticks_are_round_and_lie_on_the_axis(low: float, span: float, count: int, whole: bool) -> None:
    """Ticks are evenly spaced multiples of 1, 2, 2.5 or 5 at a power of ten, from end to end, and few."""
    high = low + span
    found = ticks(low, high, count, whole=whole)
    slack = 1e-6 * max(abs(low), abs(high), 1)
    assert all(low - slack <= place <= high + slack for place in found)
    assert len(found) <= count + 2
    if len(found) > 1:
        step = found[1] - found[0]
        assert round(step / 10 ** math.floor(math.log10(step) + 1e-9), 3) in (1, 2, 2.5, 5, 10)
        assert [later - before for before, later in pairwise(found)] == pytest.approx([step] * (len(found) - 1))
        assert found[0] - low < step + slack
        assert high - found[-1] < step + slack


@given(VALUES, VALUES.map(abs))
def test_axis_holds_its_values(low: float, span: float) -> None:
    """An axis holds both ends, is never of no length, and begins at its floor where nothing lies below."""
    bottom, top = nice_range(low, low + span, floor=0.0)
    assert bottom <= low <= low + span <= top
    assert bottom < top
    assert bottom == 0.0 if low >= 0 else bottom < low


def test_ticks_have_one_number_of_digits() -> None:
    """The ticks of an axis are written alike."""
    assert tick_words([0.0, 0.25, 0.5]) == ["0.00", "0.25", "0.50"]
    assert tick_words([-10.0, 0.0, 10.0]) == ["−10", "0", "10"]
    assert tick_words([0.0, 2e-6, 4e-6]) == ["0", "2e-6", "4e-6"]


# Charts


@given(SERIES, st.booleans())
def test_every_point_lies_within_the_frame(points: list[tuple[float, float]], joined: bool) -> None:
    """Whatever the values, the points of a chart lie between its axes."""
    line = Line(name="x", points=points, style="joined" if joined else "smooth")
    chart = line_chart([line], steps=(0.0, float(len(points) - 1)), title="X")
    found = circles(chart)
    assert len(found) == len(points)
    assert all(LEFT - 0.1 <= x <= WIDTH - RIGHT + 0.1 for x, _ in found)
    assert all(TOP - 0.1 <= y <= HEIGHT - BOTTOM + 0.1 for _, y in found)


def test_higher_is_up_and_later_is_right() -> None:
    """Values grow upwards and steps to the right."""
    chart = line_chart([Line(name="x", points=[(1.0, 0.0), (2.0, 5.0)])], steps=(1.0, 2.0), title="X")
    (left, low), (right, high) = circles(chart)
    assert left < right
    assert high < low


def test_one_outlier_does_not_press_a_chart_flat() -> None:
    """A single value far away lies at the edge, with its true value in words, and the others keep their room."""
    points = [(float(x), 0.01 + x / 10_000) for x in range(100)]
    points[50] = (50.0, 1000.0)
    chart = line_chart([Line(name="KL", points=points)], steps=(0.0, 99.0), title="KL", floor=0.0)
    heights = sorted(y for _, y in circles(chart))
    assert heights[0] == pytest.approx(TOP, abs=0.1)
    assert heights[-1] - heights[1] > 20
    assert "KL 1" in chart


def test_drawing_tells_its_content_to_those_who_cannot_see_it() -> None:
    """A chart has a role and a label that says where each series begins and ends."""
    chart = line_chart([Line(name="reward", points=[(1.0, 0.25), (9.0, 0.5)])], steps=(1.0, 9.0), title="Reward")
    assert 'role="img" aria-label="Reward: reward from 0.250 at step 1 to 0.500 at step 9"' in chart


def test_shares_have_the_whole_axis() -> None:
    """A chart of shares goes from 0 to 100 %, whatever the values."""
    chart = line_chart([Line(name="x", points=[(1.0, 0.4)])], steps=(1.0, 1.0), title="X", shares=True)
    assert re.findall(r"(\d+)\u202f%</text>", chart) == ["0", "25", "50", "75", "100"]


def test_frame_puts_the_ends_at_its_edges() -> None:
    """The ends of both axes are the edges of the frame."""
    frame = Frame(x=(10.0, 20.0), y=(0.0, 1.0))
    assert (frame.across(10.0), frame.across(20.0)) == (LEFT, WIDTH - RIGHT)
    assert (frame.up(0.0), frame.up(1.0)) == (HEIGHT - BOTTOM, TOP)


def test_stacked_bars_stand_on_each_other() -> None:
    """The parts of a bar fill it without gap or overlap, the first at the bottom."""
    stack = Stack(start=1.0, end=1.0, parts=[2.0, 1.0, 3.0])
    chart = stacked_bars([stack], ["a", "b", "c"], steps=(1.0, 1.0), title="T", words=short)
    bars = [
        (float(y), float(height)) for y, height in re.findall(r'y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', chart)
    ]
    assert bars[0][0] + bars[0][1] == pytest.approx(HEIGHT - BOTTOM, abs=0.1)
    assert bars[1][0] + bars[1][1] == pytest.approx(bars[0][0], abs=0.2)
    assert bars[2][1] == pytest.approx(3 * bars[1][1], abs=0.3)


def test_grouped_bars_tell_every_share() -> None:
    """Each class has a bar of each series, with its share in words."""
    chart = grouped_bars(
        [Bars(name="true", values=[0.25, 0.75], look="true"), Bars(name="predicted", values=[0.0, 1.0], look="late")],
        ["1", "2"],
        axis="rating",
        title="Ratings",
    )
    assert re.findall(r"<title>([^<]*)</title>", chart.replace("\u202f", " ")) == [
        *("1: true 25 %", "1: predicted 0 %", "2: true 75 %", "2: predicted 100 %")
    ]


# Which charts


def run_of(**columns: list[float]) -> Run:
    """A run with these values at steps 1, 2, …"""
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return Run(name="r", history=dict(enumerate(rows, 1)))


def test_what_is_shown_already_is_not_shown_again() -> None:
    """The other values are those that no chart shows; what never changes is said in a sentence."""
    shown = {"reward": [0.0, 1.0], "duet/terms/a": [0.0, 1.0], "duet/seconds/update": [1.0, 2.0]}
    section = others(run_of(**shown, grad_norm=[1.0, 2.0], lr=[3.0, 3.0]))
    assert len(section.figures) == 1
    assert "<strong>grad_norm</strong>" in section.figures[0]
    assert section.intro.endswith("The same at every step: lr 3.00.")
    assert not section.is_open


def test_only_term_is_the_reward_and_has_no_chart() -> None:
    """Terms have charts where there are several."""
    one = run_of(**{"reward": [0.0, 1.0], "duet/terms/rating": [0.0, 1.0]})
    two = run_of(**{"reward": [0.0, 1.0], "duet/terms/rating": [0.0, 1.0], "duet/terms/length": [0.0, -1.0]})
    assert not any("Term" in figure for figure in learning(one).figures)
    assert sum("Term" in figure for figure in learning(two).figures) == 2


def test_band_is_as_wide_as_the_spread() -> None:
    """The band around the reward lies one spread above and below its line."""
    run = run_of(**{"reward": [0.5] * 30, "duet/group_spread": [0.25] * 30})
    chart = learning(run).figures[0]
    found = re.search(r'class="band f0" d="M([^"]*)Z"', chart)
    assert found is not None
    heights = {point.split(" ")[1] for point in found[1].split("L")}
    assert len(heights) == 2
    assert "one mean standard deviation within a group" in chart


def test_phases_that_never_ran_are_not_in_the_legend() -> None:
    """A run that only updates has no key for rollout and reward."""
    chart = time(run_of(**{"duet/seconds/update": [1.0, 2.0]})).figures[0]
    assert re.findall(r"</svg>(\w+)</li>", chart) == ["update"]


def test_steps_logged_every_tenth_fill_their_axis() -> None:
    """Bars of steps that are ten apart are ten steps wide; the first bar is the legend's."""
    history = {step: {"duet/seconds/update": 1.0} for step in (10, 20, 30)}
    chart = time(Run(name="r", history=history)).figures[0]
    widths = [float(width) for width in re.findall(r'class="bar f2"[^>]*width="([\d.]+)"', chart)]
    assert sum(widths[1:]) == pytest.approx(WIDTH - LEFT - RIGHT, abs=5)
