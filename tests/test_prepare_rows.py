"""Which rows `prepare` keeps: the last of duplicates, the k-core, and the three splits."""

from __future__ import annotations

import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from prepare_oracle import Built, Rated, built, clocks, core, deduplicated, dropped, logs, settings, split_names

from duet import ConfigurationError, RatingScale, RecordError
from duet_train.data import log as logs_module
from duet_train.data.settings import Settings

patient = hypothesis_settings(deadline=None, max_examples=25)
ALL = Settings(core=0)


def made(log: list[Rated], asked: Settings = ALL) -> Built:
    """A log prepared in a directory that goes."""
    with tempfile.TemporaryDirectory() as directory:
        return built(Path(directory), log, asked)


def rated(result: Built) -> list[Rated]:
    """The rows of a result."""
    return [kept.rated for kept in result.rows]


def names(result: Built) -> list[str]:
    """The splits of a result's rows."""
    return [kept.split for kept in result.rows]


@patient
@given(logs())
def test_rows_are_in_order_of_time_and_file(log: list[Rated]) -> None:
    """Rows go by time, untimed ones first, equal times in the order of the file; of duplicates the last stays."""
    assert rated(made(log)) == deduplicated(log)


@patient
@given(logs())
def test_duplicates_are_counted(log: list[Rated]) -> None:
    """The manifest counts what was read, and how many rows were of a user and item that came again."""
    counts = made(log).manifest["counts"]
    pairs = {(one.user, one.item) for one in log}
    assert (counts["read"], counts["duplicates"], counts["rows"]) == (len(log), len(log) - len(pairs), len(pairs))


def test_last_duplicate_is_last_in_time() -> None:
    """Of two ratings of one item the later one stays, wherever in the file it stands."""
    assert rated(made([Rated("a", "x", 1, 9.0), Rated("a", "x", 5, 2.0)])) == [Rated("a", "x", 1, 9.0)]


@patient
@given(logs(min_size=10), st.integers(0, 4))
def test_core_is_the_naive_one(log: list[Rated], k: int) -> None:
    """The k-core is what is left when weak rows go one at a time."""
    expected = core(deduplicated(log), k)
    if not expected:
        with pytest.raises(ConfigurationError, match=f"nothing is left of the {k}-core"):
            made(log, Settings(core=k))
    else:
        assert rated(made(log, Settings(core=k))) == expected


def test_core_needs_more_than_one_round() -> None:
    """A chain that falls link by link falls to its end."""
    square = [Rated(user, item, time=1.0) for user in "ab" for item in "xy"]
    chain = [Rated("c", "x", time=1.0), Rated("c", "v", time=1.0), Rated("d", "v", time=1.0)]
    result = made([*square, *chain], Settings(core=2))
    assert (len(result.rows), result.manifest["counts"]["core_rounds"]) == (4, 4)


@patient
@given(logs(), settings().filter(lambda one: one.split != "by-user"))
def test_splits_are_the_defined_ones(log: list[Rated], asked: Settings) -> None:
    """Global-time and leave-last-one-out give each row the split of the plain definition."""
    rows = deduplicated(log)
    assert names(made(log, asked)) == dropped(rows, split_names(rows, asked), asked)


@patient
@given(logs(), st.sampled_from([(8, 1, 1), (1, 1, 1), (6, 0, 4)]))
def test_global_time_parts_time(log: list[Rated], ratios: tuple[int, int, int]) -> None:
    """All of train lies strictly before all of validation, and that before all of test."""
    result = made(log, Settings(core=0, ratios=ratios))
    times = dict(zip(range(len(result.rows)), clocks(rated(result)), strict=True))
    moments = {name: [times[kept.row] for kept in result.rows if kept.split == name] for name in names(result)}
    present = [moments[name] for name in ("train", "validation", "test") if name in moments]
    assert all(max(one) < min(other) for one, other in pairwise(present))


@patient
@given(logs(), settings())
def test_dropped_rows_are_those_train_has_not_seen(log: list[Rated], asked: Settings) -> None:
    """Held-out rows keep to items of train; by global time to its users too; leaving one out drops none."""
    result = made(log, asked)
    train = [kept.rated for kept in result.rows if kept.split == "train"]
    held_out = [kept.rated for kept in result.rows if kept.split in ("validation", "test")]
    if asked.split == "leave-last-one-out":
        assert "dropped" not in names(result)
    else:
        assert {one.item for one in held_out} <= {one.item for one in train}
    if asked.split == "global-time":
        assert {one.user for one in held_out} <= {one.user for one in train}


def test_global_time_is_eight_to_one_to_one() -> None:
    """A hundred moments of ten users and one item part as 80, 10 and 10."""
    log = [Rated(f"u{n % 10}", f"i{n // 10 % 2}-{n % 10}-{n // 20}", time=float(n)) for n in range(100)]
    same_item = [attrs.evolve(one, item=f"i{place % 5}") for place, one in enumerate(log)]
    unique = [attrs.evolve(one, user=f"u{place % 20}", item=f"i{place // 20}") for place, one in enumerate(same_item)]
    counts = Counter(split_names(unique, ALL))
    assert counts == {"train": 80, "validation": 10, "test": 10}
    assert Counter(names(made(unique, Settings(core=0)))) == {"train": 80, "dropped": 20}


def test_leave_last_one_out_by_size() -> None:
    """One row trains; of two the last tests; of three the last tests and the one before validates."""
    log = [
        Rated(user, item, time=float(n))
        for user, items in (("a", "x"), ("b", "xy"), ("c", "xyz"))
        for n, item in enumerate(items)
    ]
    found = made(log, Settings(core=0, split="leave-last-one-out"))
    by_user = {user: [kept.split for kept in found.rows if kept.rated.user == user] for user in "abc"}
    assert by_user == {"a": ["train"], "b": ["train", "test"], "c": ["train", "validation", "test"]}


@patient
@given(logs(), st.integers(0, 5))
def test_by_user_keeps_users_whole(log: list[Rated], seed: int) -> None:
    """All rows of a user are in one split, apart from those that are dropped."""
    result = made(log, Settings(core=0, split="by-user", ratios=(1, 1, 1), seed=seed))
    splits = {(kept.rated.user, kept.split) for kept in result.rows if kept.split != "dropped"}
    assert max(Counter(user for user, _ in splits).values(), default=1) == 1


def test_by_user_ratios_count_users() -> None:
    """Ten users part as 8, 1 and 1, however many rows each has."""
    log = [Rated(f"u{n}", f"i{k}", time=float(k)) for n in range(10) for k in range(n + 1)]
    result = made([*log, *(Rated(f"u{n}", "every", time=0.0) for n in range(10))], Settings(core=0, split="by-user"))
    users = {(kept.rated.user, kept.split) for kept in result.rows if kept.split != "dropped"}
    assert Counter(split for _, split in users) == {"train": 8, "validation": 1, "test": 1}


def test_by_user_depends_on_the_seed() -> None:
    """Other seeds hold out other users."""
    log = [Rated(f"u{n}", "every", time=float(n)) for n in range(20)]
    splits = {tuple(names(made(log, Settings(core=0, split="by-user", seed=seed)))) for seed in range(5)}
    assert len(splits) == 5


def test_no_rows_is_refused() -> None:
    """An empty log is said to be empty."""
    with pytest.raises(ConfigurationError, match="hold no row"):
        made([])


def test_rating_off_the_scale_is_refused() -> None:
    """With a scale given, the first row off it is named."""
    import duckdb
    from prepare_oracle import fill

    with duckdb.connect() as db:
        fill(db, [Rated("a", "x", 5), Rated("a", "y", 7)])
        with pytest.raises(RecordError, match="row 1: rating is 7, off the scale of 1 to 5"):
            logs_module.check_scale(db, RatingScale(1, 5))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"core": -1}, "core must not be negative"),
        ({"history": -1}, "history must not be negative"),
        ({"split": "random"}, "split must be one of global-time"),
        ({"histories": "all"}, "histories must be one of prequential"),
        ({"ratios": (0, 1, 1)}, "ratios must be three shares"),
        ({"ratios": (8, 2)}, "ratios must be three shares"),
        ({"split": "by-user", "histories": "train-only"}, "leaves them without a history"),
    ],
)
def test_setting_that_does_not_hold_is_refused(wrong: dict[str, object], message: str) -> None:
    """A setting that cannot work is refused in one sentence that names it."""
    with pytest.raises(ConfigurationError, match=message):
        Settings(**wrong)  # type: ignore[arg-type]
