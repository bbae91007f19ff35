"""Every method against every other: fair by user, honest about how many pairs are looked at."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duet import RatingScale
from duet_train.comparing import Comparison, compare, every_pair, holm
from duet_train.scoring import Gold

Floats = npt.NDArray[np.float64]
P_VALUES = st.lists(st.floats(0.001, 1.0), min_size=1, max_size=7)


def gold(ratings: npt.ArrayLike, users: Sequence[str] | None = None) -> Gold:
    """Rows of which nothing but ratings and users matters here; a user a row unless told otherwise."""
    column = np.asarray(ratings, dtype=np.float64)
    return Gold(
        ratings=column,
        users=users or [f"u{row}" for row in range(column.size)],
        scale=RatingScale(),
        history_lengths=np.ones(column.size, dtype=np.int64),
        variances=np.zeros(column.size),
        median=3.0,
    )


def one(known: Gold, first: npt.ArrayLike, second: npt.ArrayLike) -> Comparison:
    """The first over the second, and no other pair."""
    return compare(known, {"first": first, "second": second}, [("first", "second")])[0]


def with_errors(known: Gold, errors: npt.ArrayLike) -> Floats:
    """Predictions that are off by so much."""
    return known.ratings + np.asarray(errors, dtype=np.float64)


# One pair


def test_better_method_has_a_gain() -> None:
    """The gain is the MAE of the second less that of the first."""
    known = gold([3.0, 3.0, 3.0, 3.0])
    found = one(known, with_errors(known, [0.5, -0.5, 0.5, 0.5]), with_errors(known, [1, 2, -1, -2]))
    assert found.difference.estimate == pytest.approx(1.0)
    assert (found.first, found.second, found.rows) == ("first", "second", 4)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4), st.sampled_from("abcd")), min_size=1, max_size=20))
def test_exchanging_the_methods_turns_the_sign(rows: list[tuple[int, int, str]]) -> None:
    """B over A is A over B with its sign turned, as likely by chance."""
    first, second, users = zip(*rows, strict=True)
    known = gold(np.full(len(rows), 3.0), users)
    there, back = (
        one(known, with_errors(known, x), with_errors(known, y)) for x, y in ((first, second), (second, first))
    )
    assert back.p_value == there.p_value
    assert back.difference.estimate == -there.difference.estimate
    ends = [-there.difference.high, -there.difference.low]
    assert [back.difference.low, back.difference.high] == pytest.approx(ends, nan_ok=True)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(-4, 4), min_size=2, max_size=20))
def test_method_is_no_better_than_its_copy(errors: list[int]) -> None:
    """The same predictions twice differ by nothing, with no width, and by chance for certain."""
    known = gold(np.full(len(errors), 3.0))
    same = with_errors(known, errors)
    found = one(known, same, same.copy())
    assert (found.difference.estimate, found.difference.low, found.difference.high) == (0, 0, 0)
    assert (found.p_value, found.p_holm) == (1.0, 1.0)


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(12)))
def test_order_of_the_rows_is_nothing(order: list[int]) -> None:
    """Rows in another order are the same rows."""
    generator = np.random.default_rng(0)
    known = gold(np.full(12, 3.0), list("aabbbcdddeff"))
    first, second = generator.normal(size=(2, 12))
    turned = gold(known.ratings, [known.users[row] for row in order])
    before = one(known, with_errors(known, first), with_errors(known, second))
    after = one(turned, with_errors(turned, first[order]), with_errors(turned, second[order]))
    assert after.p_value == before.p_value
    assert after.difference.estimate == pytest.approx(before.difference.estimate)
    assert after.difference.low == pytest.approx(before.difference.low)


@pytest.mark.parametrize("seed", range(4))
def test_p_value_is_that_of_every_exchange_of_users(seed: int) -> None:
    """With nine users of several rows it is that of all 512 exchanges of whole users, up to the luck of the draw."""
    generator = np.random.default_rng(seed)
    users = generator.integers(0, 9, 40)
    known = gold(np.full(40, 3.0), [f"u{user}" for user in users])
    first, second = np.abs(generator.normal(size=(2, 40))) + np.array([[0.0], [0.3]])
    sums = np.bincount(users, second - first, 9)
    every = np.array(list(itertools.product([-1, 1], repeat=9))) @ sums
    expected = np.mean(np.abs(every) >= abs(sums.sum()) - 1e-9)
    assert one(known, with_errors(known, first), with_errors(known, second)).p_value == pytest.approx(
        expected, abs=0.015
    )


def test_rows_of_a_user_are_no_evidence_of_their_own() -> None:
    """Repeating every user's row a hundred times leaves gain, interval and p-value as they were."""
    first, second = np.random.default_rng(1).normal(size=(2, 12))
    users = [f"u{row:02}" for row in range(12)]
    once, often = gold(np.full(12, 3.0), users), gold(np.full(1200, 3.0), list(np.repeat(users, 100)))
    found = one(once, with_errors(once, first), with_errors(once, second))
    copied = one(often, *(with_errors(often, np.repeat(errors, 100)) for errors in (first, second)))
    assert copied.p_value == found.p_value
    assert copied.difference.low == pytest.approx(found.difference.low)
    assert (copied.rows, copied.difference.units) == (1200, 12)


def test_rows_that_one_of_them_lacks_are_left_out() -> None:
    """Only rows that both predict are compared."""
    known = gold([3.0, 3.0, 3.0, 3.0])
    found = one(known, with_errors(known, [0, 0, math.nan, 0]), with_errors(known, [1, math.nan, 4, 1]))
    assert (found.rows, found.difference.units) == (2, 2)
    assert found.difference.estimate == pytest.approx(1.0)


# Many pairs


def test_all_pairs_are_later_over_earlier() -> None:
    """Every two methods are compared once, and the one that the tables list later stands first."""
    assert every_pair(["a", "b", "c"]) == [("b", "a"), ("c", "a"), ("c", "b")]


def test_pairs_stand_in_their_order() -> None:
    """What is asked for is what is given, in that order, and nothing else."""
    known = gold([3.0, 4.0])
    predicted = {name: np.array([3.0, 3.0]) for name in "abc"}
    pairs = [("c", "a"), ("a", "b")]
    assert [(found.first, found.second) for found in compare(known, predicted, pairs)] == pairs


def test_pair_without_common_rows_is_not_counted() -> None:
    """Two methods that never predict the same row have no gain, and make no other p-value larger."""
    known = gold(np.full(40, 3.0))
    half = np.where(np.arange(40) < 20, 3.0, math.nan)
    predicted = {"low": half, "high": half[::-1], "good": np.full(40, 3.1)}
    lost, kept = compare(known, predicted, [("low", "high"), ("good", "low")])
    assert (lost.rows, kept.rows) == (0, 20)
    assert all(math.isnan(value) for value in (lost.difference.estimate, lost.p_value, lost.p_holm))
    assert kept.p_holm == kept.p_value


def test_correction_leaves_clear_gains_clear() -> None:
    """Among 66 pairs that all differ clearly, all have a corrected p-value of 0.001 or less."""
    known = gold(np.full(60, 3.0))
    noise = np.abs(np.random.default_rng(2).normal(0, 0.01, (12, 60)))
    predicted = {f"m{place}": with_errors(known, noise[place] + 0.1 * place) for place in range(12)}
    found = compare(known, predicted, every_pair(list(predicted)))
    assert len(found) == 66
    assert max(pair.p_holm for pair in found) <= 0.001


def clustered(seed: int, methods: int) -> tuple[Gold, Mapping[str, Floats]]:
    """Methods of equal worth: each is good for some users and bad for others, six rows a user."""
    generator = np.random.default_rng(seed)
    known = gold(np.full(180, 3.0), [f"u{row // 6}" for row in range(180)])
    luck = np.repeat(generator.exponential(size=(methods, 30)), 6, axis=1)
    return known, {
        f"m{place}": with_errors(known, luck[place] + generator.exponential(size=180)) for place in range(methods)
    }


def test_chance_is_called_a_gain_as_often_as_allowed() -> None:
    """Of 300 pairs of equal methods 2 to 8 % have a p-value of 5 % or less, though rows of a user hang together."""
    found = [compare(*clustered(seed, 2), [("m0", "m1")])[0].p_value for seed in range(300)]
    assert 0.02 <= np.mean(np.array(found) <= 0.05) <= 0.08


def test_chance_among_many_pairs_is_called_a_gain_no_more_often() -> None:
    """Of 200 evaluations of five equal methods at most 8 % call any of the ten pairs different."""
    alarms = [
        min(pair.p_holm for pair in compare(*clustered(seed, 5), every_pair([f"m{place}" for place in range(5)])))
        <= 0.05
        for seed in range(200)
    ]
    assert np.mean(alarms) <= 0.08


# Several runs


def test_error_of_several_runs_is_their_mean() -> None:
    """A method of several runs has on each row the mean of its runs' errors, and no row that a run lacks."""
    known = gold([3.0, 3.0, 3.0])
    runs = [with_errors(known, [1, 2, 0]), with_errors(known, [-3, 0, math.nan])]
    found = one(known, known.ratings, runs)
    assert found.rows == 2
    assert found.difference.estimate == pytest.approx(1.5)


def test_spread_is_that_of_the_runs_gains() -> None:
    """Runs with an MAE of 1 and of 2 have gains that lie 1 apart: a standard deviation of √½."""
    known = gold([3.0, 3.0])
    runs = [with_errors(known, [1, 1]), with_errors(known, [2, 2])]
    assert one(known, known.ratings, runs).spread == pytest.approx(math.sqrt(0.5))
    assert one(known, runs, known.ratings).spread == pytest.approx(math.sqrt(0.5))


def test_spreads_of_both_methods_add_up() -> None:
    """Where both have several runs their variances are added."""
    known = gold([3.0, 3.0])
    runs = [with_errors(known, [1, 1]), with_errors(known, [2, 2])]
    assert one(known, runs, runs).spread == pytest.approx(1.0)


def test_single_runs_have_no_spread() -> None:
    """One run says nothing of another."""
    known = gold([3.0, 3.0])
    assert math.isnan(one(known, known.ratings, [known.ratings]).spread)


# Holm's correction


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([0.01, 0.02, 0.03, 0.04, 0.05], [0.05, 0.08, 0.09, 0.09, 0.09]),
        ([0.04, 0.01, 0.03], [0.06, 0.03, 0.06]),
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.03], [0.03]),
        ([], []),
    ],
)
def test_corrected_values_are_those_of_a_hand(given: list[float], expected: list[float]) -> None:
    """The smallest is multiplied by all, the next by one less, and none falls below one before it or exceeds 1."""
    assert holm(given) == pytest.approx(expected)


@given(P_VALUES)
def test_correction_is_the_closed_test_of_bonferroni(p_values: list[float]) -> None:
    """A test's corrected p-value is the largest Bonferroni p-value of the families that it is in."""
    places = range(len(p_values))
    families = [family for size in places for family in itertools.combinations(places, size + 1)]
    for place, corrected in enumerate(holm(p_values)):
        bonferroni = [
            min(1.0, len(family) * min(p_values[other] for other in family)) for family in families if place in family
        ]
        assert corrected == pytest.approx(max(bonferroni))


@given(st.lists(st.one_of(st.floats(0.001, 1.0), st.just(math.nan)), max_size=7))
def test_test_that_was_not_made_is_none(p_values: list[float]) -> None:
    """A p-value that is nan stays so, and the others are corrected as if it were not there."""
    known = [value for value in p_values if not math.isnan(value)]
    found = holm(p_values)
    assert [math.isnan(value) for value in found] == [math.isnan(value) for value in p_values]
    assert [value for value in found if not math.isnan(value)] == holm(known)
