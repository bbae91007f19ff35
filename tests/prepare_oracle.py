"""What `prepare` promises, written as plainly as Python allows; the tests compare the two."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import duckdb
from hypothesis import strategies as st

from duet import RatingScale
from duet_train.data.pipeline import build
from duet_train.data.settings import HISTORIES, SPLITS, Settings


@attrs.frozen
class Rated:
    """One line of a log."""

    user: str
    item: str
    rating: float = 3.0
    time: float | None = None
    title: str | None = None
    text: str | None = None


@attrs.frozen
class Kept:
    """One row of the result."""

    row: int
    rated: Rated
    split: str


@attrs.frozen
class Shown:
    """One example: its target's row and the rows shown for it."""

    split: str
    row: int
    history: tuple[int, ...]
    evidence: tuple[int, ...]
    history_length: int


ORDER = ("train", "validation", "test")


def deduplicated(log: Sequence[Rated]) -> list[Rated]:
    """In order of time, untimed rows first, then of the file; the last row of each user and item."""
    ordered = sorted(log, key=lambda one: -math.inf if one.time is None else one.time)
    last = {(one.user, one.item): place for place, one in enumerate(ordered)}
    return [one for place, one in enumerate(ordered) if last[one.user, one.item] == place]


def core(log: Sequence[Rated], k: int) -> list[Rated]:
    """Rows out one at a time, until each user and each item left has k."""
    left = list(log)
    while True:
        users, items = Counter(one.user for one in left), Counter(one.item for one in left)
        weak = next((one for one in left if users[one.user] < k or items[one.item] < k), None)
        if weak is None:
            return left
        left.remove(weak)


def clocks(log: Sequence[Rated]) -> list[float]:
    """What comes strictly before what: times, or the order of the file where there is none."""
    if all(one.time is None for one in log):
        return [float(place) for place in range(len(log))]
    return [-math.inf if one.time is None else one.time for one in log]


def split_names(log: Sequence[Rated], settings: Settings) -> list[str]:
    """The split of each row, before any is dropped; for the two splits that need no digest."""
    if settings.split == "leave-last-one-out":
        return [_place_from_end(log, place) for place in range(len(log))]
    times = clocks(log)
    total = sum(settings.ratios)
    train = max(math.floor(len(log) * settings.ratios[0] / total + 1e-9), 1)
    both = max(math.floor(len(log) * (settings.ratios[0] + settings.ratios[1]) / total + 1e-9), 1)
    return [
        "train" if time <= times[train - 1] else "validation" if time <= times[both - 1] else "test" for time in times
    ]


def _place_from_end(log: Sequence[Rated], place: int) -> str:
    mine = [other for other, one in enumerate(log) if one.user == log[place].user]
    if place == mine[-1] and len(mine) >= 2:
        return "test"
    return "validation" if len(mine) >= 3 and place == mine[-2] else "train"


def dropped(log: Sequence[Rated], names: Sequence[str], settings: Settings) -> list[str]:
    """The same with what train has not seen dropped."""
    if settings.split == "leave-last-one-out":
        return list(names)
    train = [one for one, name in zip(log, names, strict=True) if name == "train"]
    users, items = {one.user for one in train}, {one.item for one in train}
    if settings.split == "by-user":
        users = {one.user for one in log}
    return [
        name if name == "train" or (one.user in users and one.item in items) else "dropped"
        for one, name in zip(log, names, strict=True)
    ]


def examples(log: Sequence[Rated], names: Sequence[str], settings: Settings) -> list[Shown]:
    """What each target may be shown, by looking at every other row."""
    times = clocks(log)

    def earlier(target: int, key: str) -> list[int]:
        allowed = ORDER[:1] if settings.histories == "train-only" else ORDER[: ORDER.index(names[target]) + 1]
        return [
            place
            for place, one in enumerate(log)
            if getattr(one, key) == getattr(log[target], key)
            and names[place] in allowed
            and -math.inf < times[place] < times[target]
        ]

    found = []
    for target in sorted(
        (place for place in range(len(log)) if names[place] in ORDER), key=lambda p: ORDER.index(names[p])
    ):
        history, evidence = earlier(target, "user"), earlier(target, "item")
        if len(history) >= settings.min_history:
            found.append(
                Shown(
                    names[target],
                    target,
                    tuple(_last(history, settings.history + settings.recent)),
                    tuple(_last(evidence, settings.evidence)),
                    len(history),
                )
            )
    return found


def _last(places: list[int], size: int) -> list[int]:
    return places[len(places) - min(size, len(places)) :]


# The real thing


@attrs.frozen
class Built:
    """What the files hold."""

    rows: list[Kept]
    examples: list[Shown]
    manifest: dict[str, Any]
    directory: Path


def fill(db: duckdb.DuckDBPyConnection, log: Sequence[Rated]) -> RatingScale:
    """A reader: the log as the tables that readers make."""
    db.execute(
        "CREATE TABLE raw_interactions (source_row BIGINT, user_id VARCHAR, item_id VARCHAR, rating DOUBLE, "
        "timestamp DOUBLE, review_title VARCHAR, review_text VARCHAR)"
    )
    db.execute("CREATE TABLE raw_items (item_id VARCHAR, title VARCHAR, attributes VARCHAR)")
    fields = [field.name for field in attrs.fields(Rated)]
    columns = {name: [getattr(one, name) for one in log] for name in fields}
    db.execute(
        "INSERT INTO raw_interactions SELECT unnest(range(len($user))), unnest($user::VARCHAR[]), "
        "unnest($item::VARCHAR[]), unnest($rating::DOUBLE[]), unnest($time::DOUBLE[]), unnest($title::VARCHAR[]), "
        "unnest($text::VARCHAR[])",
        columns,
    )
    return RatingScale()


def built(directory: Path, log: Sequence[Rated], settings: Settings) -> Built:
    """Prepare a log and read the files back."""
    directory.mkdir(exist_ok=True)
    with duckdb.connect(config={"threads": 1}) as db:
        manifest = build(db, lambda con: fill(con, log), directory, settings)
        columns = "row, user_id, item_id, rating, timestamp, review, split"
        kept = db.read_parquet(str(directory / "interactions.parquet")).project(columns).fetchall()
        shown = db.read_parquet(str(directory / "examples.parquet"))
        found = shown.project("example, split, row, history, evidence, history_length").fetchall()
    assert [row[0] for row in kept] == list(range(len(kept)))
    assert [row[0] for row in found] == list(range(len(found)))
    return Built(
        [
            Kept(row, Rated(user, item, rating, time, None, text), name)
            for row, user, item, rating, time, text, name in kept
        ],
        [Shown(split, row, tuple(h), tuple(e), length) for _, split, row, h, e, length in found],
        manifest,
        directory,
    )


# Random logs: few users, items and moments, so that everything collides

_times = st.one_of(st.just(None), st.integers(0, 6).map(float))


@st.composite
def logs(draw: st.DrawFn, *, min_size: int = 1, max_size: int = 40) -> list[Rated]:
    """A log whose rows are all timed, all untimed, or mixed."""
    times = draw(st.sampled_from([st.integers(0, 6).map(float), st.just(None), _times]))
    row = st.builds(
        Rated,
        user=st.sampled_from("abcde"),
        item=st.sampled_from("uvwxyz"),
        rating=st.integers(1, 5).map(float),
        time=times,
    )
    return draw(st.lists(row, min_size=min_size, max_size=max_size))


@st.composite
def settings(draw: st.DrawFn) -> Settings:
    """Settings without a core, so that random logs leave something."""
    split = draw(st.sampled_from(SPLITS))
    return Settings(
        core=0,
        split=split,
        histories="prequential" if split == "by-user" else draw(st.sampled_from(HISTORIES)),
        ratios=draw(st.sampled_from([(8, 1, 1), (1, 1, 1), (6, 0, 4), (1, 0, 0)])),
        history=draw(st.integers(0, 4)),
        recent=draw(st.integers(0, 2)),
        evidence=draw(st.integers(0, 4)),
        min_history=draw(st.integers(0, 2)),
        seed=draw(st.integers(0, 3)),
    )
