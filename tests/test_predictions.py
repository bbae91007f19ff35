"""Every prediction of an evaluation on disk, and as a frame again."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import anyio
import narwhals as nw
import numpy as np
import pytest
from evaluations import Letters, Reader, judgement, made_by_hand, prepared

from duet import ConfigurationError, MissingExtraError
from duet_train.data.prepared import PreparedExample
from duet_train.judging import Judgement, judge
from duet_train.predictions import PREDICTIONS, TRANSFER, Backend, read_predictions, write_predictions

COLUMNS = ["row", "user", "item", "rating", "method", "control", "prediction", "error", "tokens"]
BACKENDS: list[Backend] = ["duckdb", "pandas", "polars", "pyarrow"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[PreparedExample]:
    """Six test rows, one a user."""
    return prepared(tmp_path_factory.mktemp("predictions") / "data").examples("test")


def answer(user: Any, item: Any, profile: Any) -> float:
    """A rating by user, which one of them breaks."""
    if user.id == "u5":
        raise OverflowError
    return 1.0 + int(user.id[1]) / 2


@pytest.fixture(scope="module")
def one(rows: list[PreparedExample]) -> Judgement:
    """A method of which u0's profile and u5's rating fail."""

    async def judged() -> Judgement:
        return await judge(rows, Letters(failing=frozenset({"u0"})), Reader(answer), concurrency=2, seed=1)

    return anyio.run(judged)


@pytest.fixture(scope="module")
def directory(rows: list[PreparedExample], one: Judgement, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation's directory, with a name that a pattern would be taken for."""
    out = tmp_path_factory.mktemp("predictions") / "out [1] * of ü?"
    out.mkdir()
    write_predictions(out / PREDICTIONS, rows, {"median": np.full(6, 3.5)}, {"letters": one})
    return out


def lines(directory: Path, **wanted: str) -> list[dict[str, Any]]:
    """The lines of a method or control, as they stand in the file."""
    every: list[dict[str, Any]] = read_predictions(directory, "pyarrow").to_pylist()
    return [line for line in every if all(line[name] == value for name, value in wanted.items())]


# The file


def test_line_holds_what_is_known_of_its_row(directory: Path, rows: list[PreparedExample]) -> None:
    """Row, ids and the true rating stand in every line, so that the file is enough to compute from."""
    found = [(line["row"], line["user"], line["item"], line["rating"]) for line in lines(directory, method="median")]
    assert found == [(row.row, row.example.user.id, row.example.item.id, row.example.rating) for row in rows]


def test_every_method_and_control_has_every_row(directory: Path) -> None:
    """Methods come in their order, models without words have their own row alone, all others both controls."""
    found = [(line["method"], line["control"]) for line in lines(directory)]
    expected = [("median", "own"), ("letters", "own"), ("letters", "other_user"), ("letters", "other_item")]
    assert found == [pair for pair in expected for _ in range(6)]


@pytest.mark.parametrize(
    ("control", "attribute"),
    [("own", "predicted"), ("other_user", "shuffled_users"), ("other_item", "shuffled_items")],
)
def test_predictions_are_those_of_the_judgement(directory: Path, one: Judgement, control: str, attribute: str) -> None:
    """Each control has its own predictions, and null where there is none."""
    found = [line["prediction"] for line in lines(directory, method="letters", control=control)]
    expected = [None if math.isnan(value) else value for value in getattr(one, attribute).tolist()]
    assert found == expected
    assert None in found
    assert len(set(found)) > 2


def test_errors_are_named_and_others_are_null(directory: Path) -> None:
    """What failed is named by its error, and a line has either a prediction or an error."""
    own = [line["error"] for line in lines(directory, method="letters", control="own")]
    assert own == ["LookupError", None, None, None, None, "OverflowError"]
    assert all((line["prediction"] is None) == (line["error"] is not None) for line in lines(directory))


def test_controls_name_what_failed_for_them(directory: Path, one: Judgement) -> None:
    """With a partner whose profile failed, and with one for whom the recommender fails, that is the line's error."""
    for control in ("other_user", "other_item"):
        found = [line["error"] for line in lines(directory, method="letters", control=control)]
        assert found[0] == "LookupError"
        assert found.count("LookupError") == 2, control
        assert "OverflowError" in found, control
    assert list(one.errors) == ["LookupError", "", "", "", "", "OverflowError"]


def test_tokens_are_those_of_the_profile(directory: Path) -> None:
    """Prompt and completion together, null where there is no profile, and in the controls, which make none."""
    assert [line["tokens"] for line in lines(directory, method="letters", control="own")] == [None, *[14] * 5]
    others = [line for line in lines(directory) if (line["method"], line["control"]) != ("letters", "own")]
    assert {line["tokens"] for line in others} == {None}


def test_tokens_that_nobody_counted_are_null(rows: list[PreparedExample], tmp_path: Path) -> None:
    """A method that asks no model has no tokens, rather than none of them."""
    write_predictions(tmp_path / PREDICTIONS, rows, {}, {"free": judgement(made_by_hand(rows))})
    assert {line["tokens"] for line in lines(tmp_path)} == {None}


def test_same_predictions_give_the_same_bytes(
    directory: Path, rows: list[PreparedExample], one: Judgement, tmp_path: Path
) -> None:
    """A file is a function of what it holds, and nothing else is left beside it."""
    path = tmp_path / PREDICTIONS
    path.write_bytes(b"an older one")
    write_predictions(path, rows, {"median": np.full(6, 3.5)}, {"letters": one})
    assert path.read_bytes() == (directory / PREDICTIONS).read_bytes()
    assert list(tmp_path.iterdir()) == [path]


# The frame


@pytest.mark.parametrize("backend", BACKENDS)
def test_frame_is_of_the_library_that_is_asked_for(directory: Path, backend: Backend) -> None:
    """Each library gets a frame of its own, of the same columns and as many lines."""
    frame = read_predictions(directory, backend)
    assert type(frame).__module__.split(".")[0] in (backend, f"_{backend}")
    assert list(frame.column_names if backend == "pyarrow" else frame.columns) == COLUMNS
    assert len(frame) == 24


@pytest.mark.parametrize("backend", BACKENDS)
def test_frames_have_the_types_that_are_promised(directory: Path, backend: Backend) -> None:
    """Numbers are numbers and texts are texts, in whichever library, though a column has nulls."""
    schema = nw.from_native(read_predictions(directory, backend)).collect_schema()
    whole = {name for name, kind in schema.items() if kind == nw.Int64}
    points = {name for name, kind in schema.items() if kind == nw.Float64}
    texts = {name for name, kind in schema.items() if kind == nw.String}
    assert (whole, points) == ({"row", "tokens"}, {"rating", "prediction"})
    assert texts == {"user", "item", "method", "control", "error"}


def test_frame_can_be_asked_in_sql(directory: Path) -> None:
    """By default nothing is read before it is asked, as DuckDB's relations are."""
    found = read_predictions(str(directory)).filter("control = 'own'").aggregate("method, count(prediction) AS n")
    assert sorted(found.fetchall()) == [("letters", 4), ("median", 6)]


def test_second_recommender_has_a_file_of_its_own(rows: list[PreparedExample], tmp_path: Path) -> None:
    """What the second recommender predicted never stands among what the first did."""
    for name, value in ((PREDICTIONS, 2.0), (TRANSFER, 4.0)):
        write_predictions(tmp_path / name, rows, {"mean": np.full(6, value)}, {})
    assert set(read_predictions(tmp_path, "polars")["prediction"]) == {2.0}
    assert set(read_predictions(tmp_path, "polars", transfer=True)["prediction"]) == {4.0}


# What is refused


def test_directory_without_predictions_says_what_to_do(tmp_path: Path) -> None:
    """An evaluation of before, or none, is told to run the command again."""
    with pytest.raises(ConfigurationError, match=r"predictions\.parquet: no such file; run the same evaluate command"):
        read_predictions(tmp_path)


def test_unknown_backend_is_refused(directory: Path) -> None:
    """The backends are named."""
    with pytest.raises(ConfigurationError, match="duckdb, pandas, polars or pyarrow, got 'spark'"):
        read_predictions(directory, "spark")  # type: ignore[arg-type]


def test_library_that_is_missing_is_named(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library the message says what to install."""

    def missing(name: str) -> object:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingExtraError, match="pip install polars"):
        read_predictions(directory, "polars")
