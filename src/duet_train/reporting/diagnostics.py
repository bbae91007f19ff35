"""Collapse, leakage and impersonality in charts, and the models of an exploration in a table. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from duet_train.reporting.axes import key
from duet_train.reporting.bars import Bars, grouped_bars
from duet_train.reporting.figures import Section, figure, series_chart
from duet_train.reporting.lines import Line
from duet_train.reporting.markup import Markup, tag
from duet_train.reporting.numbers import percent, shares, short
from duet_train.reporting.run import Answer, Run
from duet_train.reporting.texts import RatingFigures, TextFigures


def diagnostics(run: Run, texts: TextFigures, ratings: RatingFigures | None) -> Section:
    """Collapse, leakage and impersonality.

    Args:
        run: Any.
        texts: What its texts show.
        ratings: What its predictions show.
    """
    distinct = [
        Line(name=f"distinct-{n}", points=points, colour=colour, style="joined")
        for (n, points), colour in zip(texts.distinct.items(), (0, 4, 2), strict=False)
    ]
    alike = [
        Line(name=f"{side} profiles", points=points, colour=colour, style="joined")
        for (side, points), colour in zip(texts.likeness.items(), (0, 1), strict=False)
    ]
    labels = [
        Line(name="state a rating", points=texts.states_rating, colour=1, style="joined"),
        Line(name="speak of ratings", points=texts.rating_words, colour=4, style="joined"),
    ]
    return Section(
        anchor="texts",
        title="Collapse, leakage, impersonality",
        intro="From one completion of each example in a stretch of steps."
        if texts.states_rating
        else "This run has kept no profiles whose texts could be compared.",
        figures=[
            *_histogram(ratings),
            *series_chart(
                run,
                "Likeness of different examples’ profiles, mean cosine",
                alike,
                floor=0.0,
                note="1 means one text for all.",
            ),
            *series_chart(
                run,
                "Different n-grams",
                distinct,
                shares=True,
                note=f"Among the first {texts.words} words of each stretch.",
            ),
            *series_chart(run, "Rating words in the profiles", labels, shares=True),
            *series_chart(
                run,
                "Entropy of the policy, nat per token",
                [Line(name="entropy", points=run.series("entropy"), colour=5)],
                floor=0.0,
            ),
        ],
        missing="This run has kept no completions (completions.jsonl, samples.jsonl).",
    )


def _histogram(ratings: RatingFigures | None) -> list[Markup]:
    if ratings is None:
        return []
    found = [
        ("true", ratings.true, "true"),
        ("predicted, first steps", ratings.early, "early"),
        ("predicted, last steps", ratings.late, "late"),
    ]
    bars = [Bars(name=name, values=shares(values, ratings.points), look=look) for name, values, look in found if values]
    svg = grouped_bars(bars, [f"{point:g}" for point in ratings.points], axis="rating", title="Ratings")
    keys = [(bar.name, key(bar.look, "bar")) for bar in bars]
    return [
        figure(
            "Predicted ratings beside the true ones",
            svg,
            keys=keys,
            note="First and last fifth of the steps; the true ratings are those of the last.",
        )
    ]


def arms(run: Run) -> Markup:
    """What each model of an exploration earned at each temperature.

    Args:
        run: An exploration.
    """
    found: dict[str, list[Answer]] = {}
    for one in run.answers:
        found.setdefault(one.arm, []).append(one)
    names = ("model", "completions", "profiles", "reward", "error (MAE)")
    head = tag("tr", *(tag("th", name, scope="col") for name in names))
    rows = [tag("tr", tag("th", name[:200], scope="row"), *map(_cell, _arm(some))) for name, some in found.items()]
    return tag("table", tag("thead", head), tag("tbody", *rows), class_="arms")


def _cell(word: str) -> Markup:
    return tag("td", word)


def _arm(some: Sequence[Answer]) -> list[str]:
    rewards = [one.reward for one in some if one.reward is not None]
    errors = [abs(one.rating - one.gold) for one in some if one.rating is not None and one.gold is not None]
    return [
        str(len(some)),
        percent(1 - fmean(one.is_malformed for one in some)),
        short(fmean(rewards)) if rewards else "–",
        short(fmean(errors)) if errors else "–",
    ]
