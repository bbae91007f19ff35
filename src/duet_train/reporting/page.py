"""The page of a run: what was found in words, then the charts, the profiles, and the card."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any

from duet import RatingScale
from duet_train.reporting.charts import held_out, learning, others, time
from duet_train.reporting.diagnostics import arms, diagnostics
from duet_train.reporting.figures import Section
from duet_train.reporting.findings import findings
from duet_train.reporting.held_out import Point, held_out_points
from duet_train.reporting.markup import Markup, join, tag, visible
from duet_train.reporting.numbers import ends, percent, seconds, several, short, signed
from duet_train.reporting.run import Finding, Run
from duet_train.reporting.samples import samples_section
from duet_train.reporting.texts import Vectors, rating_figures, scale_of, text_figures

_WORDS = {"bad": "Problem", "warn": "Watch", "good": "Good", "plain": "Note"}
_LONGEST = 300  # characters of a setting
_MOST = 250  # settings of a table


def page(run: Run, vectors: Vectors | None = None) -> str:
    """A whole HTML document that needs nothing but itself.

    Args:
        run: What to show.
        vectors: Of an embedder, for the likeness of profiles; None compares their words.
    """
    scale = scale_of(run)
    points = held_out_points(run.held_out, run.samples)
    texts, ratings = text_figures(run, scale, vectors), rating_figures(run, scale)
    rest = others(run)
    body = join(
        [
            _header(run),
            _tiles(run, points),
            _findings(findings(run, points, texts, ratings)),
            *([_arms(run)] if run.is_exploration else [_section(held_out(run, points)), _section(learning(run))]),
            _samples(run, scale),
            _section(diagnostics(run, texts, ratings)),
            None if run.is_exploration else _section(time(run)),
            _section(rest) if rest.figures else None,
            _about(run),
        ]
    )
    return _document(f"{_verb(run)}: {run.name}", body)


def _document(title: str, body: Markup) -> str:
    style, script = (_own(name) for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; base-uri 'none'; "
        "form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("style", Markup(style)),
    )
    content = tag("body", tag("main", body), tag("script", Markup(script)))
    return f"<!doctype html>\n{tag('html', head, content, lang='en')}\n"


def _own(name: str) -> str:
    return (files("duet_train.reporting") / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


# The top


def _header(run: Run) -> Markup:
    status = str(run.setting("status") or "unknown")
    facts = [
        ("model", _model(run)),
        ("recommender", run.setting("recommender")),
        ("data", run.setting("data", "directory_name")),
        ("started", run.setting("started")),
        ("finished", run.setting("finished")),
    ]
    line = [tag("li", tag("span", name), " ", _cut(str(value))) for name, value in facts if value]
    look = {"finished": "good", "running": "plain", "aborted": "bad"}.get(status, "plain")
    return tag(
        "header",
        tag("p", f"duet {_verb(run)}", tag("span", _cut(status), class_=f"badge {look}"), class_="kind"),
        tag("h1", run.name, dir="auto"),
        tag("ul", *line, class_="facts") if line else None,
    )


def _verb(run: Run) -> str:
    return _cut(str(run.setting("verb") or "run"))


def _model(run: Run) -> Any:
    model = run.setting("model")
    if isinstance(model, dict):
        return next(
            (model[key] for key in ("name", "name_or_path", "model_name_or_path", "base") if key in model), None
        )
    return model


def _tiles(run: Run, points: Sequence[Point]) -> Markup | None:
    tiles = [
        tag("li", tag("span", name), tag("b", value), tag("small", more)) for name, value, more in _figures(run, points)
    ]
    return tag("ul", *tiles, class_="tiles") if tiles else None


def _figures(run: Run, points: Sequence[Point]) -> Iterator[tuple[str, str, str]]:
    if points:
        last = points[-1]
        gained = (
            "" if len(points) < 2 else f"{signed((last.of.reward or 0) - (points[0].of.reward or 0))} since the start"
        )
        yield "Held-out reward", short(last.of.reward or 0), gained or f"at step {last.of.step}"
    for name, keys, words in (
        ("Reward" if run.is_exploration else "Training reward", ("reward",), short),
        ("Loss", () if run.series("reward") else ("loss",), short),
        ("Parse rate", ("duet/parse_rate",), percent),
        ("Flat groups", ("duet/flat_groups", "frac_reward_zero_std"), percent),
    ):
        found = ends(run.series(*keys))
        if found is not None:
            first = "" if found.first is None else f", {words(found.first)} in the first"
            more = f"{'last step' if found.steps == 1 else f'last {found.steps} steps'}{first}"
            yield name, words(found.last), "" if run.is_exploration else more
    if run.last_step is not None and not run.is_exploration:
        spent = sum(
            value for values in run.history.values() for key, value in values.items() if key.startswith("duet/seconds/")
        )
        yield "Steps", str(run.last_step), f"{seconds(spent)} in all" if spent else ""


def _findings(found: Sequence[Finding]) -> Markup | None:
    if not found:
        return None
    lines = [
        tag(
            "li",
            tag("span", _WORDS[one.level], class_=f"badge {one.level}"),
            tag("a", one.topic, href=f"#{one.anchor}"),
            tag("span", one.words, class_="words"),
        )
        for one in found
    ]
    return tag("section", tag("h2", "In plain words"), tag("ul", *lines, class_="findings"), id="findings")


# The rest


def _section(section: Section) -> Markup:
    grid = tag("div", *section.figures, class_="grid")
    if not section.figures:
        content: Markup | None = tag("p", section.missing, class_="missing")
    elif section.is_open:
        content = grid
    else:
        content = tag("details", tag("summary", several(len(section.figures), "chart")), grid, class_="more")
    intro = tag("p", section.intro) if section.intro and section.figures else None
    return tag("section", tag("h2", section.title), intro, content, id=section.anchor)


def _arms(run: Run) -> Markup:
    return tag("section", tag("h2", "Models and temperatures"), tag("div", arms(run), class_="wide"), id="arms")


def _samples(run: Run, scale: RatingScale) -> Markup:
    title = "The same examples by each model" if run.is_exploration else "The same examples over the steps"
    return tag("section", tag("h2", title), samples_section(run, scale), id="samples")


def _about(run: Run) -> Markup:
    tables = [
        tag("details", tag("summary", name), _table(rows), class_="more")
        for name, rows in (
            (
                "Data and model",
                _flat({key: run.setting(key) for key in ("data", "model", "recommender", "seed", "held_out")}),
            ),
            ("Settings", _flat(run.setting("settings"))),
            ("Training arguments", _flat(run.setting("training_args"))),
            ("Versions", _flat(run.setting("versions"))),
        )
        if rows
    ]
    notes = [
        f"{several(count, 'line')} of {name} could not be read." for name, count in sorted(run.spoilt.items()) if count
    ]
    empty = None if tables else tag("p", "This run has no card (card.json).", class_="missing")
    return tag("section", tag("h2", "About the run"), *[tag("p", note) for note in notes], *tables, empty, id="about")


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested settings as lines, their keys joined with dots."""
    if isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        value = {str(place): inner for place, inner in enumerate(value)}
    if isinstance(value, dict):
        lines = [line for key, inner in value.items() for line in _flat(inner, f"{name}.{key}".removeprefix("."))]
        return lines[:_MOST]
    if value is None or value == "":
        return []
    return [(_cut(name), _cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))]


def _table(rows: Sequence[tuple[str, str]]) -> Markup:
    lines = [tag("tr", tag("th", name, scope="row"), tag("td", value, dir="auto")) for name, value in rows]
    return tag("table", tag("tbody", *lines))


def _cut(text: str) -> str:
    line = visible(text)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"
