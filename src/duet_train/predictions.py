"""Every prediction of an evaluation in one Parquet file, and the way back to a frame."""

from __future__ import annotations

import glob
import importlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs
import duckdb

from duet import ConfigurationError, MissingExtraError
from duet_train.data.output import write
from duet_train.data.prepared import PreparedExample
from duet_train.judging import Floats, Judgement, Made

PREDICTIONS, TRANSFER = "predictions.parquet", "predictions-transfer.parquet"
Backend = Literal["duckdb", "pandas", "polars", "pyarrow"]
OWN, OTHER_USER, OTHER_ITEM = "own", "other_user", "other_item"

_TABLE = """
CREATE TABLE predictions (
    "row" BIGINT, "user" VARCHAR, item VARCHAR, rating DOUBLE,
    method VARCHAR, control VARCHAR, prediction DOUBLE, error VARCHAR, tokens BIGINT)
"""
_ADD = """
INSERT INTO predictions
SELECT unnest($row::BIGINT[]), unnest($user::VARCHAR[]), unnest($item::VARCHAR[]), unnest($rating::DOUBLE[]),
       $method, $control, unnest($prediction::DOUBLE[]), unnest($error::VARCHAR[]), unnest($tokens::BIGINT[])
"""


def read_predictions(directory: Path | str, backend: Backend = "duckdb", *, transfer: bool = False) -> Any:
    """The predictions of a finished evaluation, one line for each row, method and control.

    - ``row``, int64: place in ``interactions.parquet`` of the prepared data.
    - ``user`` and ``item``, strings: ids.
    - ``rating``, float64: the true rating, in rating points.
    - ``method``, string: as ``--methods`` has it; ``mean``, ``median`` and ``bias`` read no text.
    - ``control``, string: ``own`` is the row with its own texts. With ``other_user`` all that the recommender sees of
      the user is another user's, and with ``other_item`` the item's text is another item's.
    - ``prediction``, float64: in rating points; null where there is none.
    - ``error``, string: name of the error, the profile's first; null where nothing went wrong.
    - ``tokens``, int64: prompt and completion tokens of the row's profile; null where none were counted, and in the two
      controls, which make no profile.

    Lines stand by method as the tables list them, then by control, then by row as ``rows.json`` lists them.

    Args:
        directory: What `evaluate` was given as ``--out``.
        backend: Whose frame: a ``DuckDBPyRelation``, which reads from the file when it is asked, or a ``DataFrame`` of
            pandas or polars, or a ``pyarrow.Table``.
        transfer: What the second recommender of ``--transfer-to`` predicted, instead of the first.

    Raises:
        ConfigurationError: There is no such file, or no such backend.
        MissingExtraError: The backend is not installed.
    """
    path = Path(directory) / (TRANSFER if transfer else PREDICTIONS)
    if backend not in ("duckdb", "pandas", "polars", "pyarrow"):
        raise ConfigurationError(f"backend must be duckdb, pandas, polars or pyarrow, got {backend!r}")
    if not path.is_file():
        raise ConfigurationError(f"{path}: no such file; run the same evaluate command again to write it")
    relation = duckdb.connect().read_parquet(glob.escape(str(path)))
    try:
        library = importlib.import_module(backend)
    except ImportError as exc:
        raise MissingExtraError(f"{backend} is not installed; install it with: pip install {backend}") from exc
    if backend == "pandas":
        return relation.df()
    if backend == "polars":  # DuckDB's own way to polars needs pyarrow as well
        return library.read_parquet(path.read_bytes())
    return relation if backend == "duckdb" else relation.to_arrow_table()


def write_predictions(
    path: Path, rows: Sequence[PreparedExample], baselines: Mapping[str, Floats], judged: Mapping[str, Judgement]
) -> None:
    """Write what `read_predictions` reads; the same predictions give the same bytes.

    Args:
        path: Of the file; one that is there is replaced as a whole.
        rows: What was predicted.
        baselines: Predictions that need no model, by name.
        judged: What became of each method, by name.
    """
    known = {
        "row": [row.row for row in rows],
        "user": [row.example.user.id for row in rows],
        "item": [row.example.item.id for row in rows],
        "rating": [row.example.rating for row in rows],
    }
    unfinished = path.with_name(f"{path.name}.tmp")
    with duckdb.connect() as db:
        db.execute(_TABLE)
        for column in _columns(baselines, judged):
            db.execute(_ADD, known | attrs.asdict(column))
        write(db, "FROM predictions", unfinished)
    os.replace(unfinished, path)


@attrs.frozen(kw_only=True)
class _Column:
    """The predictions of one method under one control, an entry a row."""

    method: str
    control: str
    prediction: list[float | None]
    error: list[str | None]
    tokens: list[int | None]


def _columns(baselines: Mapping[str, Floats], judged: Mapping[str, Judgement]) -> Iterator[_Column]:
    for name, predicted in baselines.items():
        yield _column(name, OWN, predicted)
    for name, one in judged.items():
        tokens = [_tokens(made) for made in one.made]
        yield _column(name, OWN, one.predicted, one.errors, tokens)
        yield _column(name, OTHER_USER, one.shuffled_users, one.shuffled_user_errors)
        yield _column(name, OTHER_ITEM, one.shuffled_items, one.shuffled_item_errors)


def _column(
    method: str, control: str, predicted: Floats, errors: Sequence[str] = (), tokens: Sequence[int | None] = ()
) -> _Column:
    return _Column(
        method=method,
        control=control,
        prediction=[None if math.isnan(value) else value for value in predicted.tolist()],
        error=[error or None for error in errors] if errors else [None] * predicted.size,
        tokens=list(tokens) if tokens else [None] * predicted.size,
    )


def _tokens(made: Made) -> int | None:
    usage = None if made.profile is None else made.profile.usage
    return None if usage is None else usage.prompt_tokens + usage.completion_tokens
