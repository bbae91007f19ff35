"""Bootstrap intervals and paired tests: deterministic, as wide as theory says, fair by user."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duet import ConfigurationError
from duet_train.intervals import Interval, PairedTest, mean_interval, paired_test, statistic_interval

Floats = npt.NDArray[np.float64]
VALUES = st.lists(st.integers(-8, 8).map(float), min_size=2, max_size=30)


def sample(seed: int, rows: int = 100) -> Floats:
    return np.random.default_rng(seed).exponential(size=rows)


def ends(interval: Interval) -> list[float]:
    return [interval.low, interval.high]


@pytest.fixture(scope="module")
def scipy_stats() -> Any:
    """The oracle."""
    return pytest.importorskip("scipy.stats", reason="scipy is the oracle")


# Intervals of means


@settings(deadline=None)
@given(VALUES, st.integers(0, 2**31))
def test_same_seed_same_interval(values: list[float], seed: int) -> None:
    """An interval is a function of the values and the seed."""
    assert mean_interval(values, seed=seed, resamples=50) == mean_interval(values, seed=seed, resamples=50)


def test_other_seed_other_draws() -> None:
    """Another seed draws other samples."""
    assert mean_interval(sample(0), seed=1) != mean_interval(sample(0), seed=2)


@settings(deadline=None)
@given(VALUES)
def test_interval_lies_within_the_values(values: list[float]) -> None:
    """No resampled mean leaves the range of the values."""
    found = mean_interval(values, resamples=50)
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    assert found.estimate == pytest.approx(np.mean(values))


def test_width_is_what_theory_says() -> None:
    """For 400 rows the interval is 1.96 standard errors either way."""
    values = sample(1, 400)
    error = values.std() / math.sqrt(values.size)
    assert ends(mean_interval(values)) == pytest.approx(
        values.mean() + np.array([-1.96, 1.96]) * error, abs=0.2 * error
    )


def test_interval_equals_scipy(scipy_stats: Any) -> None:
    """Scipy's percentile bootstrap has the same ends, up to the luck of the draw."""
    values = sample(2)
    options = {"method": "percentile", "n_resamples": 5000, "rng": np.random.default_rng(0)}
    oracle = scipy_stats.bootstrap((values,), np.mean, **options).confidence_interval
    assert ends(mean_interval(values, resamples=5000)) == pytest.approx(list(oracle), abs=0.02)


def test_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Over 300 samples of 40 rows a 95 % interval holds the true mean in 90 to 98 %."""
    intervals = [mean_interval(np.random.default_rng(seed).normal(size=40), resamples=500) for seed in range(300)]
    share = np.mean([interval.low <= 0 <= interval.high for interval in intervals])
    assert 0.90 <= share <= 0.98


def test_level_sets_the_width() -> None:
    """A 50 % interval lies within the 95 % one."""
    wide, narrow = mean_interval(sample(3)), mean_interval(sample(3), level=0.5)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_root_of_squares_is_rmse() -> None:
    """With a transform the interval is that of the transformed mean."""
    squares = sample(4)
    plain, rooted = mean_interval(squares), mean_interval(squares, transform=np.sqrt)
    assert ends(rooted) == pytest.approx(np.sqrt(ends(plain)), rel=1e-3)
    assert rooted.estimate == pytest.approx(math.sqrt(plain.estimate))


# By user


@settings(deadline=None)
@given(VALUES, st.integers(1, 4))
def test_copied_rows_of_a_user_add_nothing(values: list[float], copies: int) -> None:
    """Drawn by user, rows that repeat within each user leave the interval as it was."""
    users = np.arange(len(values))
    once = mean_interval(values, resamples=50)
    copied = mean_interval(np.repeat(values, copies), users=np.repeat(users, copies), resamples=50)
    assert [*ends(copied), copied.estimate] == pytest.approx([*ends(once), once.estimate])
    assert copied.units == once.units


def test_estimate_by_user_is_one_over_rows() -> None:
    """Drawing users changes the interval and not what is estimated."""
    found = mean_interval([1, 1, 1, 5], users=["a", "a", "a", "b"])
    assert (found.estimate, found.units) == (2.0, 2)


def test_rows_of_a_user_hang_together() -> None:
    """Where users differ and their rows do not, the interval by user is the wider one."""
    users = np.repeat(np.arange(20), 10)
    values = sample(5, 20)[users]
    by_row, by_user = mean_interval(values), mean_interval(values, users=users)
    assert by_user.high - by_user.low > 2 * (by_row.high - by_row.low)


def test_interval_by_user_holds_the_truth_where_users_differ() -> None:
    """40 users of 10 rows with 42 % of the variance between users: by user 90 to 97 % hold, by row below 70 %."""
    users = np.repeat(np.arange(40), 10)
    held = np.zeros(2)
    for seed in range(300):
        generator = np.random.default_rng(seed)
        values = math.sqrt(0.42) * generator.normal(size=40)[users] + math.sqrt(0.58) * generator.normal(size=400)
        found = [mean_interval(values, users=units, resamples=500) for units in (None, users)]
        held += [interval.low <= 0 <= interval.high for interval in found]
    by_row, by_user = held / 300
    assert by_row < 0.70
    assert 0.90 <= by_user <= 0.97


# Intervals of anything


@pytest.mark.parametrize("users", [None, np.arange(100) // 4])
def test_any_statistic_has_the_interval_of_its_mean(users: Any) -> None:
    """The mean as a statistic of rows has the interval of the mean, up to the luck of the draw."""
    values = sample(6)
    found = statistic_interval(lambda rows: float(values[rows].mean()), 100, users=users)
    expected = mean_interval(values, users=users, seed=1)
    assert ends(found) == pytest.approx(ends(expected), abs=0.03)
    assert [found.estimate, found.units] == pytest.approx([expected.estimate, expected.units])


def test_whole_users_are_drawn() -> None:
    """Every resample holds all rows of a user or none, as often as the user was drawn."""
    seen: list[npt.NDArray[np.int64]] = []

    def size(rows: npt.NDArray[np.int64]) -> float:
        seen.append(rows)
        return float(rows.size)

    statistic_interval(size, 6, users=list("aabbab"), resamples=20)
    assert len(seen) == 21
    for rows in seen:
        counts = np.bincount(rows, minlength=6)
        assert counts[0] == counts[1] == counts[4]
        assert counts[2] == counts[3] == counts[5]


def test_undefined_resamples_are_left_out() -> None:
    """A resample where the statistic is nan does not make the ends nan."""
    found = statistic_interval(lambda rows: math.nan if rows[0] == 0 else 1.0, 4)
    assert ends(found) == [1.0, 1.0]


# Two methods


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=2, max_size=20))
def test_exchanging_methods_turns_the_sign(rows: list[tuple[int, int]]) -> None:
    """The second against the first is the first against the second with its sign turned."""
    first, second = zip(*rows, strict=True)
    one, other = paired_test(first, second, resamples=200), paired_test(second, first, resamples=200)
    assert other.p_value == one.p_value
    assert ends(other.difference) == pytest.approx([-one.difference.high, -one.difference.low])


def test_method_does_not_differ_from_itself() -> None:
    """The same values twice have no difference, no width and a p-value of 1."""
    found = paired_test(sample(7), sample(7))
    assert found == PairedTest(difference=Interval(estimate=0.0, low=0.0, high=0.0, units=100), p_value=1.0)


def test_clear_difference_has_the_least_p_value() -> None:
    """A shift of every row is found; the p-value is never 0."""
    found = paired_test(sample(8) + 1, sample(8), resamples=999)
    assert found.p_value == pytest.approx(0.001)
    assert ends(found.difference) == pytest.approx([1, 1])


@pytest.mark.parametrize("seed", range(5))
def test_p_value_equals_every_sign_flip(scipy_stats: Any, seed: int) -> None:
    """With ten rows the p-value is that of all 1,024 exchanges, up to the luck of the draw."""
    gaps = np.random.default_rng(seed).normal(0.4, 1, 10)
    oracle = scipy_stats.permutation_test((gaps,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert paired_test(gaps, np.zeros(10), resamples=20_000).p_value == pytest.approx(oracle.pvalue, abs=0.02)


def test_chance_is_called_a_difference_as_often_as_allowed() -> None:
    """Where there is no difference, at most 8 % of 300 tests have a p-value of 5 % or less."""
    noise = np.random.default_rng(9).normal(size=(300, 2, 30))
    assert np.mean([paired_test(*pair, resamples=300).p_value <= 0.05 for pair in noise]) <= 0.08


def test_pairing_finds_what_unpaired_intervals_hide() -> None:
    """A small steady gain shows though the methods' own intervals overlap."""
    hard = sample(10) * 3
    gain = hard - 0.05 - 0.01 * sample(11)
    assert mean_interval(gain).high > mean_interval(hard).low
    assert paired_test(gain, hard).difference.high < 0


def test_copied_rows_are_no_evidence_by_user() -> None:
    """Repeating every user's row a hundred times leaves the test by user as it was."""
    first, second, users = sample(12, 12), sample(13, 12), np.arange(12)
    once = paired_test(first, second)
    copied = paired_test(*(np.repeat(column, 100) for column in (first, second)), users=np.repeat(users, 100))
    assert copied.p_value == once.p_value
    assert ends(copied.difference) == pytest.approx(ends(once.difference))


def test_root_is_taken_before_the_difference() -> None:
    """With a transform the difference is of RMSEs, not the root of a difference."""
    found = paired_test([4.0, 4.0, 4.0], [1.0, 1.0, 1.0], transform=np.sqrt)
    assert found.difference.estimate == pytest.approx(1.0)


# What is refused, and what is empty


@pytest.mark.parametrize("values", [[], [3.0]])
def test_one_row_has_no_spread(values: list[float]) -> None:
    """Fewer than two rows have no interval, rather than one of no width."""
    assert all(math.isnan(end) for end in ends(mean_interval(values)))


def test_one_user_has_no_spread() -> None:
    """A single user with many rows has no interval by user."""
    assert math.isnan(mean_interval([1, 2, 3], users=["a", "a", "a"]).low)


def test_nothing_to_compare_is_nan() -> None:
    """No rows have no difference and no p-value."""
    found = paired_test([], [])
    assert math.isnan(found.p_value)
    assert math.isnan(found.difference.estimate)


def test_no_rows_have_no_statistic() -> None:
    """A statistic is not asked about nothing."""
    assert math.isnan(statistic_interval(lambda rows: 1 / len(rows), 0).estimate)


def test_failed_row_is_refused() -> None:
    """A nan is not averaged away."""
    with pytest.raises(ConfigurationError, match="leave failed rows out"):
        mean_interval([1.0, math.nan])


def test_methods_must_share_their_rows() -> None:
    """Two methods with different numbers of rows are refused."""
    with pytest.raises(ConfigurationError, match="same rows"):
        paired_test([1, 2], [1])


def test_every_row_needs_a_user() -> None:
    """Users of another number than rows are refused."""
    with pytest.raises(ConfigurationError, match="one user a row"):
        mean_interval([1, 2], users=["a"])


@pytest.mark.parametrize("setting", [{"level": 0}, {"level": 1}, {"resamples": 0}])
def test_settings_out_of_range_are_refused(setting: dict[str, Any]) -> None:
    """A level of 0 or 1, or no resamples, is refused."""
    with pytest.raises(ConfigurationError):
        mean_interval([1, 2], **setting)
