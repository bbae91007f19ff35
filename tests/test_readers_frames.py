"""Frames of pandas, polars and pyarrow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from readers import Tables, connection, tables

from duet import ConfigurationError, RatingScale, RecordError
from duet_train.data.frames import read_frame

COLUMNS = {"user_id": "who", "item_id": "what", "rating": "stars"}
DATA: dict[str, list[Any]] = {"who": ["u2", "u1"], "what": [10, 11], "stars": [4.5, 1.0]}

Make = Callable[[Mapping[str, list[Any]]], Any]
each_library = pytest.mark.parametrize(
    "make", [pd.DataFrame, pl.DataFrame, pl.LazyFrame, pa.table], ids=["pandas", "polars", "polars-lazy", "pyarrow"]
)


def framed(interactions: Any, items: Any = None, columns: Mapping[str, str] = COLUMNS) -> Tables:
    """Frames, read."""
    with connection() as db:
        return tables(db, read_frame(db, interactions, items, columns=columns))


@each_library
def test_rows(make: Make) -> None:
    """Rows keep their order under the frame's own names, and numbers as ids become texts."""
    found = framed(make(DATA))
    assert found.pairs == [("u2", "10", 4.5), ("u1", "11", 1.0)]
    assert (found.times, found.texts) == ([None, None], [(None, None)] * 2)


@each_library
def test_columns_under_the_names_used_here(make: Make) -> None:
    """A column that has the name used here need not be mapped."""
    found = framed(make({"user_id": ["u"], "item_id": ["i"], "rating": [3], "review_text": ["Good"]}), columns={})
    assert (found.pairs, found.texts) == ([("u", "i", 3.0)], [(None, "Good")])


@each_library
@pytest.mark.parametrize(
    "times",
    [[1577836800, 1577836801], [1577836800.0, 1577836801.0], [datetime(2020, 1, 1), datetime(2020, 1, 1, 0, 0, 1)]],
    ids=["whole seconds", "seconds", "datetimes"],
)
def test_times(make: Make, times: list[Any]) -> None:
    """Times are seconds as numbers, or datetimes."""
    assert framed(make({**DATA, "timestamp": times})).times == [1577836800.0, 1577836801.0]


@each_library
def test_times_with_a_zone(make: Make) -> None:
    """Datetimes with a zone are the instants that they name."""
    times = [datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 2, tzinfo=UTC)]
    assert framed(make({**DATA, "timestamp": times})).times == [1577836800.0, 1577923200.0]


@pytest.mark.parametrize("make", [pl.DataFrame, pa.table], ids=["polars", "pyarrow"])
def test_days(make: Make) -> None:
    """A date is its first second."""
    assert framed(make({**DATA, "timestamp": [date(2020, 1, 1), None]})).times == [1577836800.0, None]


@each_library
@pytest.mark.parametrize("missing", [None, float("nan")], ids=["none", "nan"])
def test_missing_times(make: Make, missing: float | None) -> None:
    """None and not-a-number both say that a time is missing."""
    assert framed(make({**DATA, "timestamp": [1577836800.0, missing]})).times == [1577836800.0, None]


@each_library
def test_missing_texts(make: Make) -> None:
    """A missing text is none."""
    assert framed(make({**DATA, "review_title": [None, "Fine"]})).texts == [(None, None), ("Fine", None)]


@each_library
def test_items(make: Make) -> None:
    """Columns of the items are attributes; names may differ in case alone; averages are left out."""
    items = make(
        {
            "what": [10, 11],
            "name": ["Ten", None],
            "Tags": [["a", "b"], ["c"]],
            "tags": ["x", None],
            "price": [1.5, float("nan")],
            "average_rating": [4.0, 3.0],
        }
    )
    assert framed(make(DATA), items, {**COLUMNS, "title": "name"}).items == {
        "10": ("Ten", {"Tags": "a, b", "price": "1.5", "tags": "x"}),
        "11": (None, {"Tags": "c"}),
    }


@each_library
def test_column_that_is_missing_is_named(make: Make) -> None:
    """A mapped column that is not there is an error that lists those that are."""
    with pytest.raises(ConfigurationError, match=r"interactions: the frame has no column 'when', only \['who'"):
        framed(make(DATA), columns={**COLUMNS, "timestamp": "when"})


def test_items_without_an_id_are_refused() -> None:
    """The items need the column that names them."""
    with pytest.raises(ConfigurationError, match="items: the frame has no column 'what'"):
        framed(pd.DataFrame(DATA), pd.DataFrame({"name": ["Ten"]}))


def test_unknown_name_is_refused() -> None:
    """A misspelled name in the mapping is an error."""
    with pytest.raises(ConfigurationError, match="unknown name 'user'"):
        framed(pd.DataFrame(DATA), columns={**COLUMNS, "user": "who"})


def test_what_is_no_frame_is_refused() -> None:
    """A list of dicts is no frame."""
    with pytest.raises(ConfigurationError, match="interactions: not a frame"):
        framed([{"who": "u"}])


@each_library
def test_bad_row_is_named(make: Make) -> None:
    """A row that does not hold is named by its number from 0."""
    with pytest.raises(RecordError, match="the interactions frame, row 1: rating must be a number"):
        framed(make({**DATA, "stars": [1.0, None]}))


def test_scale() -> None:
    """The scale is 1 to 5 if that holds every rating, else what occurs."""
    assert framed(pd.DataFrame(DATA)).scale == RatingScale(1, 5)
    assert framed(pd.DataFrame({**DATA, "stars": [0.5, 10]})).scale == RatingScale(0.5, 10)


def test_frames_are_let_go() -> None:
    """After reading, the connection holds no frame any more."""
    with connection() as db:
        read_frame(db, pd.DataFrame(DATA), pd.DataFrame({"what": [10]}), columns=COLUMNS)
        names = {name for (name,) in db.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()}
    assert names == set()
