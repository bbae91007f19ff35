"""Constants and biases: by hand, against refitting, and against the published reference errors."""

from __future__ import annotations

import gzip
import json
import math
import os
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duet import ConfigurationError, RatingScale
from duet_train.bias import BiasModel, last_rows, mean_rating, median_rating, predict_strictly_before
from duet_train.metrics import mae, rmse

WIDE = RatingScale(-100, 100)
RATINGS = st.lists(st.integers(1, 5), min_size=1, max_size=20)


@attrs.frozen
class Log:
    """Rows in parallel columns."""

    users: Any
    items: Any
    ratings: Any
    timestamps: Any

    @classmethod
    def of(cls, rows: list[tuple[Any, Any, Any, Any]]) -> Log:
        return cls(*map(list, zip(*rows, strict=True))) if rows else cls([], [], [], [])


# Few users, items and times, so that ties and strangers are the rule; some rows have no time.
ROW = st.tuples(
    st.integers(0, 3), st.integers(0, 4), st.integers(1, 5), st.one_of(st.integers(0, 6), st.just(math.nan))
)
LOGS = st.lists(ROW, max_size=25)


# Constants


@settings(deadline=None)
@given(RATINGS, st.floats(0, 6))
def test_mean_has_the_least_squared_error(ratings: list[int], other: float) -> None:
    """No constant has a lower RMSE than the mean."""
    constant = [mean_rating(ratings)] * len(ratings)
    assert rmse(ratings, constant) <= rmse(ratings, [other] * len(ratings)) + 1e-9


@settings(deadline=None)
@given(RATINGS, st.floats(0, 6))
def test_median_has_the_least_absolute_error(ratings: list[int], other: float) -> None:
    """No constant has a lower MAE than the median."""
    constant = [median_rating(ratings)] * len(ratings)
    assert mae(ratings, constant) <= mae(ratings, [other] * len(ratings)) + 1e-9


def test_no_ratings_have_no_constant() -> None:
    """Without ratings both are nan."""
    assert math.isnan(mean_rating([]))
    assert math.isnan(median_rating([]))


# The model


def test_biases_by_hand() -> None:
    """Items first and users from what is left, each shrunken by rows at the mean."""
    model = BiasModel.fit(["a", "a", "b"], ["x", "y", "x"], [5, 3, 4])
    # mean 4; x: (1 + 0) / (2 + 5), y: −1 / (1 + 5); a: (1 − 1/7 + (−1 + 1/6)) / (2 + 3), b: −1/7 / (1 + 3)
    assert model.item_biases == pytest.approx([1 / 7, -1 / 6])
    assert model.user_biases == pytest.approx([(6 / 7 - 5 / 6) / 5, -1 / 28])
    assert model.predict(["b"], ["y"]) == pytest.approx([4 - 1 / 6 - 1 / 28])


def test_strangers_have_no_bias() -> None:
    """An unknown user, item or both leave the rest of the sum, wherever their ids would sort."""
    model = BiasModel.fit([2, 2, 4], [2, 4, 2], [5, 3, 4])
    unknown = model.predict([1, 3, 9], [1, 3, 9])
    assert unknown == pytest.approx([4, 4, 4])
    assert model.predict([1], [2]) == pytest.approx([4 + model.item_biases[0]])
    assert model.predict([2], [9]) == pytest.approx([4 + model.user_biases[0]])


def test_predictions_stay_on_the_scale() -> None:
    """A generous user and a loved item do not go beyond the best rating."""
    users, items = np.repeat(np.arange(5), 5), np.tile(np.arange(5), 5)
    ratings = np.where((users == 0) | (items == 0), 5, 1)
    free = BiasModel.fit(users, items, ratings, item_shrinkage=0, user_shrinkage=0, scale=WIDE)
    held = BiasModel.fit(users, items, ratings, item_shrinkage=0, user_shrinkage=0)
    assert free.predict([0], [0])[0] > 5
    assert held.predict([0], [0]) == pytest.approx([5])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 5)), min_size=1, max_size=20))
def test_great_shrinkage_is_the_mean(rows: list[tuple[int, int, int]]) -> None:
    """Shrunken without end, every prediction is the mean."""
    users, items, ratings = zip(*rows, strict=True)
    model = BiasModel.fit(users, items, ratings, item_shrinkage=1e9, user_shrinkage=1e9)
    assert model.predict(users, items) == pytest.approx(np.full(len(rows), np.mean(ratings)), abs=1e-6)


def test_item_shrinkage_of_zero_is_the_items_mean() -> None:
    """Without shrinkage, and users ignored, an item is predicted as its mean."""
    model = BiasModel.fit([1, 2, 3], ["x", "x", "y"], [5, 2, 1], item_shrinkage=0, user_shrinkage=1e12)
    assert model.predict([9, 9], ["x", "y"]) == pytest.approx([3.5, 1])


@pytest.mark.parametrize(
    ("columns", "shrinkage"),
    [(([], [], []), 5), (([1], [1, 2], [3]), 5), (([1], [1], [math.nan]), 5), (([1], [1], [3]), -1)],
)
def test_unusable_ratings_are_refused(columns: Any, shrinkage: float) -> None:
    """No rows, columns of two lengths, a nan and a negative shrinkage are errors."""
    with pytest.raises(ConfigurationError):
        BiasModel.fit(*columns, item_shrinkage=shrinkage)


# Strictly before


def refitted(rows: Log, users: Any, items: Any, time: float) -> float:
    """What a model fitted on the earlier rows alone predicts."""
    earlier = np.flatnonzero(np.array(rows.timestamps, dtype=float) < time)
    if not earlier.size:
        return math.nan
    columns = (np.array(column)[earlier] for column in (rows.users, rows.items, rows.ratings))
    return float(BiasModel.fit(*columns).predict([users], [items])[0])


@settings(deadline=None, max_examples=200)
@given(LOGS, LOGS)
def test_one_pass_equals_refitting(rows: list[Any], targets: list[Any]) -> None:
    """Each prediction is that of a model fitted anew on the rows before its time."""
    log, asked = Log.of(rows), Log.of(targets)
    expected = [refitted(log, user, item, time) for user, item, _, time in targets]
    assert predict_strictly_before(log, asked) == pytest.approx(np.array(expected), abs=1e-9, nan_ok=True)


@settings(deadline=None)
@given(LOGS, st.data())
def test_no_target_sees_itself_or_later(rows: list[Any], data: st.DataObject) -> None:
    """Changing ratings at a target's time and later leaves its prediction as it was."""
    log = Log.of(rows)
    before = predict_strictly_before(log, log)
    moment = data.draw(st.integers(0, 6))
    changed = attrs.evolve(log, ratings=[rating if time < moment else 6 - rating for _, _, rating, time in rows])
    until = np.array([time <= moment for _, _, _, time in rows], dtype=bool)
    assert predict_strictly_before(changed, log)[until] == pytest.approx(before[until], abs=1e-9, nan_ok=True)


def test_strictly_before_takes_strings() -> None:
    """Ids may be strings, and the two tables need not list the same ones."""
    rows = Log(["a", "a", "b"], ["x", "y", "x"], [5, 3, 4], [1, 2, 3])
    targets = Log(["b", "c"], ["y", "z"], [0, 0], [9, 9])
    expected = BiasModel.fit(rows.users, rows.items, rows.ratings).predict(targets.users, targets.items)
    assert predict_strictly_before(rows, targets) == pytest.approx(expected)


def test_first_row_has_nothing_before_it() -> None:
    """Where no row is earlier there is no prediction, rather than a made-up one."""
    rows = Log([1, 1], [1, 2], [5, 3], [10.0, 10.0])
    assert np.isnan(predict_strictly_before(rows, rows)).all()


# The last row of each user


def test_last_is_by_time_then_by_file_order() -> None:
    """Of a user's rows the latest is last, and of equal times the later in the file."""
    users = ["a", "b", "a", "b", "a", "b"]
    assert last_rows(users, [3, 1, 9, 1, 2, 1], at_least=3).tolist() == [2, 5]


def test_users_with_few_rows_are_left_out() -> None:
    """A user below the least number of rows has no test row."""
    assert last_rows(["a", "a", "b"], [1, 2, 3], at_least=2).tolist() == [1]


def test_without_times_the_last_in_the_file_is_last() -> None:
    """Where no row has a time, file order decides; a row with a time is later than one without."""
    assert last_rows(["a", "a", "b", "b"], [math.nan, math.nan, 5, math.nan], at_least=2).tolist() == [1, 2]


# Reference errors on public data

FOLDER = os.environ.get("DUET_TEST_DATA", "")
REFERENCE = {
    "amazon_digital_music": (296, 0.497, 0.694),
    "yelp_phoenix_2013": (240, 0.802, 1.027),
    "yelp_2021_sample": (147, 0.791, 1.026),
    "amazon_musical_instruments": (1286, 0.666, 0.961),
    "movielens_1m": (5436, 0.768, 0.970),
}


def public_log(name: str) -> Log:
    """A public data set, or a skipped test."""
    path = Path(FOLDER) / name / "interactions.jsonl.gz"
    if not FOLDER or not path.exists():
        pytest.skip("set DUET_TEST_DATA to a folder of data sets")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return Log(*([row[key] for row in rows] for key in ("user_id", "item_id", "rating", "timestamp")))


@pytest.mark.parametrize("name", REFERENCE)
def test_reference_errors_are_reproduced(name: str) -> None:
    """Fitted on all other rows, the errors on each user's last row are the published ones to three decimals."""
    log = public_log(name)
    users, items, ratings = (np.array(column) for column in (log.users, log.items, log.ratings))
    last = last_rows(users, log.timestamps)
    others = np.setdiff1d(np.arange(users.size), last)
    predicted = BiasModel.fit(users[others], items[others], ratings[others]).predict(users[last], items[last])
    found = (last.size, round(mae(ratings[last], predicted), 3), round(rmse(ratings[last], predicted), 3))
    assert found == REFERENCE[name]


def test_public_log_is_predicted_in_one_pass() -> None:
    """On real rows, a sample of the predictions strictly before are those of refitting."""
    log = public_log("amazon_digital_music")
    predicted = predict_strictly_before(log, log)
    for row in range(0, len(log.users), 200):
        expected = refitted(log, log.users[row], log.items[row], log.timestamps[row])
        assert predicted[row] == pytest.approx(expected, nan_ok=True)
