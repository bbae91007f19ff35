"""What is known of the rows, the baselines that need no model, the check for leaks, and all figures together."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from evaluations import judgement, log, made_by_hand, prepared
from prepare_oracle import Rated

from duet import ConfigurationError, Interaction
from duet_train.data.prepared import Prepared, PreparedExample
from duet_train.evaluate import _finite
from duet_train.figures import assemble, check_leaks, gold_of, model_free
from duet_train.judging import Made

TIMED = [
    Rated("a", "x", 5, 10.0),
    Rated("a", "y", 3, 20.0),
    Rated("b", "x", 4, 30.0),
    Rated("b", "z", 2, 40.0),
    Rated("a", "z", 1, 50.0),
    Rated("b", "y", 5, 60.0),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Six test rows, one a user."""
    return prepared(tmp_path_factory.mktemp("figures") / "out")


def test_gold_is_what_the_rows_say(data: Prepared) -> None:
    """Ratings, users and lengths are those of the rows; the median is that of the training rows."""
    rows = data.examples("test")
    gold = gold_of(data, rows)
    assert gold.ratings.tolist() == [row.example.rating for row in rows]
    assert list(gold.users) == [row.example.user.id for row in rows]
    assert gold.history_lengths.tolist() == [row.history_length for row in rows]
    assert gold.median == np.median(data.matrix("train").ratings)


def test_variance_is_that_of_the_earlier_ratings(tmp_path: Path) -> None:
    """Variance is that of the history, and unknown for fewer than two ratings."""
    data = prepared(tmp_path / "out", [*TIMED, Rated("c", "x", 1, 1.0), Rated("c", "y", 1, 2.0)])
    gold = gold_of(data, data.examples("test"))
    found = dict(zip(gold.users, gold.variances.tolist(), strict=True))
    assert math.isnan(found["c"])
    # Of three rows the middle one is for validation, which a history of training rows alone leaves out.
    assert math.isnan(found["a"])


# Baselines


def test_constants_are_those_of_train(tmp_path: Path) -> None:
    """Mean and median of the training ratings stand for every row."""
    data = prepared(tmp_path / "out", TIMED)  # train: 5 and 4
    rows = data.examples("test")
    baselines = model_free(data, rows, gold_of(data, rows))
    assert baselines["mean"].tolist() == [4.5, 4.5]
    assert baselines["median"].tolist() == [4.5, 4.5]


def test_bias_is_what_a_hand_computes(tmp_path: Path) -> None:
    """The bias model's prediction is that of the earlier rows, with shrinkage 5 for items and 3 for users."""
    data = prepared(tmp_path / "out", TIMED)
    rows = data.examples("test")
    baselines = model_free(data, rows, gold_of(data, rows))
    # Before a's last row: x 5 and 4, y 3, z 2, mean 3.5.
    mean = 3.5
    x, y, z = 2 / 7, -0.5 / 6, -1.5 / 6
    a = ((5 - mean - x) + (3 - mean - y)) / 5
    assert baselines["bias"][0] == pytest.approx(mean + z + a)


def test_later_rows_change_no_bias(tmp_path: Path) -> None:
    """What is rated at or after a target's time plays no part in its prediction."""
    later = [*TIMED, Rated("c", "z", 5, 50.0), Rated("c", "x", 4, 55.0), Rated("c", "y", 1, 70.0)]
    first = bias_of("a", prepared(tmp_path / "first", TIMED))
    assert bias_of("a", prepared(tmp_path / "second", later)) == first
    assert bias_of("b", prepared(tmp_path / "third", later)) != bias_of("b", prepared(tmp_path / "fourth", TIMED))


def test_label_of_a_target_is_not_in_its_bias(tmp_path: Path) -> None:
    """Another rating of the target leaves its own prediction as it was."""
    other = [attrs.evolve(one, rating=5) if (one.user, one.item) == ("a", "z") else one for one in TIMED]
    assert bias_of("a", prepared(tmp_path / "one", TIMED)) == bias_of("a", prepared(tmp_path / "two", other))


def test_untimed_bias_goes_by_the_order_of_the_file(tmp_path: Path) -> None:
    """Without times, what stands earlier in the file is earlier."""
    untimed = [attrs.evolve(one, time=None) for one in TIMED]
    assert bias_of("a", prepared(tmp_path / "one", TIMED)) == bias_of("a", prepared(tmp_path / "two", untimed))


def test_first_row_of_all_has_no_bias(tmp_path: Path) -> None:
    """Where nothing is earlier there is no prediction."""
    data = prepared(tmp_path / "out", TIMED, min_history=0)
    rows = data.examples("train")
    assert math.isnan(model_free(data, rows, gold_of(data, rows))["bias"][0])


def bias_of(user: str, data: Prepared) -> float:
    """The prediction for a user's last row."""
    rows = data.examples("test")
    predicted = model_free(data, rows, gold_of(data, rows))["bias"]
    return next(float(value) for row, value in zip(rows, predicted, strict=True) if row.example.user.id == user)


# Leaks


def test_prepared_rows_do_not_leak(data: Prepared) -> None:
    """What `prepare` writes passes the check, in every split."""
    for split in ("train", "validation", "test"):
        check_leaks(data.examples(split))


def test_untimed_rows_do_not_leak(tmp_path: Path) -> None:
    """Nor does a log without times."""
    check_leaks(prepared(tmp_path / "out", [attrs.evolve(one, time=None) for one in log()]).examples("test"))


def planted(row: PreparedExample, where: str, **changed: Any) -> PreparedExample:
    """The row with one more interaction among what it may show."""
    pair = row.example
    own = Interaction(
        user="other" if where == "evidence" else pair.user.id,
        item=pair.item.id if where == "evidence" else "other",
        rating=3.0,
        at=pair.at,
    )
    one = attrs.evolve(own, **changed)
    if where == "evidence":
        # `Example` would leave it out, so it is put back by force, as a faulty reader might.
        item = attrs.evolve(pair.item, evidence=(*pair.item.evidence, one))
        object.__setattr__(pair, "item", item)
        return row
    user = getattr(row, where)
    return attrs.evolve(row, **{where: attrs.evolve(user, history=(*user.history, one))})


@pytest.mark.parametrize("where", ["profile_user", "recent_user", "evidence"])
def test_row_of_the_same_moment_is_a_leak(data: Prepared, where: str) -> None:
    """Anything that is not strictly older than the target is refused by the row's number, wherever it stands."""
    row = data.examples("test")[0]
    with pytest.raises(ConfigurationError, match=f"row {row.row}: "):
        check_leaks([planted(row, where)])


def test_row_without_a_time_is_a_leak(data: Prepared) -> None:
    """What has no time is not known to be older."""
    row = data.examples("test")[0]
    loose = Interaction(user=row.example.user.id, item="other", rating=3.0)
    leaking = attrs.evolve(row, profile_user=attrs.evolve(row.profile_user, history=(loose,)))
    with pytest.raises(ConfigurationError):
        check_leaks([leaking])


def test_target_itself_is_a_leak(tmp_path: Path) -> None:
    """The target among what is shown is refused even where no row has a time."""
    row = prepared(tmp_path / "out", [attrs.evolve(one, time=None) for one in log()]).examples("test")[0]
    with pytest.raises(ConfigurationError):
        check_leaks([planted(row, "evidence", user=row.example.user.id)])


def test_row_shown_twice_is_refused(tmp_path: Path) -> None:
    """The rows for the profile and those for the recommender never overlap."""
    row = prepared(tmp_path / "out", history=2, recent=2).examples("test")[0]
    with pytest.raises(ConfigurationError, match="twice"):
        check_leaks([attrs.evolve(row, profile_user=row.example.user)])


# All together


def test_methods_stand_after_the_baselines(data: Prepared) -> None:
    """Models of numbers come first, then the methods in their order, all with the same figures."""
    rows = data.examples("test")
    gold = gold_of(data, rows)
    one = judgement(made_by_hand(rows))
    found = assemble(gold, {"median": gold.ratings}, {"second": one, "first": one})
    assert list(found["methods"]) == ["median", "second", "first"]
    assert all({"rating", "groups", "personal"} <= set(figures) for figures in found["methods"].values())


def test_against_is_the_best_baseline_less_the_method(data: Prepared) -> None:
    """A method that is right everywhere gains all of the best baseline's error."""
    rows = data.examples("test")
    gold = gold_of(data, rows)
    baselines = {"far": gold.ratings + 2, "near": gold.ratings + 1}
    found = assemble(gold, baselines, {"right": judgement(made_by_hand(rows), gold.ratings.tolist())})
    assert found["best_baseline"] == "near"
    assert found["methods"]["right"]["against"]["difference"]["estimate"] == pytest.approx(1.0)


def test_against_is_told_over_all_rows_too(data: Prepared) -> None:
    """A method that fails everywhere is the median over all rows, and beside its own rows nothing."""
    rows = data.examples("test")
    gold = gold_of(data, rows)
    near = gold.ratings + 1
    lost = judgement([Made(None, TimeoutError())] * 6, [math.nan] * 6)
    found = assemble(gold, {"near": near}, {"lost": lost})["methods"]["lost"]
    assert math.isnan(found["against"]["difference"]["estimate"])
    expected = 1 - np.abs(gold.ratings - gold.median).mean()
    assert found["against_filled"]["difference"]["estimate"] == pytest.approx(expected)


def test_failures_are_counted_and_json_has_no_nan(data: Prepared) -> None:
    """What went wrong is counted by the error's name, and what has no finite value is null in JSON."""
    rows = data.examples("test")
    gold = gold_of(data, rows)
    lost = judgement([Made(None, TimeoutError())] * 6, [math.nan] * 6)
    text = json.dumps(_finite(assemble(gold, {"median": gold.ratings}, {"lost": lost})), allow_nan=False)
    found = json.loads(text)["methods"]["lost"]
    assert found["failures"] == {"TimeoutError": 6}
    assert (found["rating"]["parse_rate"], found["rating"]["mae"]["estimate"]) == (0, None)


def test_no_tokens_have_no_share(data: Prepared) -> None:
    """A method that asks no model has no share of cached tokens, and no error."""
    rows = data.examples("test")
    gold = gold_of(data, rows)
    cost = assemble(gold, {"median": gold.ratings}, {"free": judgement(made_by_hand(rows))})["methods"]["free"]["cost"]
    assert (cost["prompt_tokens"], cost["completion_tokens"], cost["seconds"]) == (0, 0, 1.5)
    assert math.isnan(cost["cached_share"])
