"""Prepared data as examples, items and arrays."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from prepare_oracle import ORDER, Rated, built, fill, logs, settings

from duet import ConfigurationError, RatingScale
from duet_train.data.prepared import ItemRequest, Prepared
from duet_train.data.settings import Settings
from duet_train.prepare import prepare

patient = hypothesis_settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])

LOG = [
    Rated(user, item, 1 + (place + len(user)) % 5, float(10 * place), None, f"{user} of {item}")
    for place, item in enumerate(f"i{n:02}" for n in range(30))
    for user in ("ann", "bob", "cid", "dan")
]


def read(db: duckdb.DuckDBPyConnection) -> RatingScale:
    """Four users who rate thirty items, one moment an item."""
    fill(db, LOG)
    db.execute("""INSERT INTO raw_items VALUES ('i29', 'The last', '{"kind": "record"}')""")
    return RatingScale()


@pytest.fixture(scope="module")
def data() -> Iterator[Prepared]:
    """The log with LettinGo's windows, split by leaving the last out."""
    with tempfile.TemporaryDirectory() as directory:
        asked = Settings(core=0, split="leave-last-one-out", history=5, recent=3, evidence=2)
        prepare(read, Path(directory) / "out", asked, progress=False)
        yield Prepared.open(Path(directory) / "out")


@pytest.fixture(scope="module")
def timely() -> Iterator[Prepared]:
    """The log split by time, items rated at four moments."""
    log = [Rated(f"u{n % 7}", f"i{n % 5}", 1 + n % 5, float(n)) for n in range(35)]
    with tempfile.TemporaryDirectory() as directory:
        prepare(lambda db: fill(db, log), Path(directory) / "out", Settings(core=0, evidence=3), progress=False)
        yield Prepared.open(Path(directory) / "out")


def test_example_holds_the_target(data: Prepared) -> None:
    """An example is the target's pair, rating, time and scale, with the item's title and attributes."""
    example = data.examples("test")[0].example
    assert (example.user.id, example.item.id, example.item.title) == ("ann", "i29", "The last")
    assert example.item.attributes == (("kind", "record"),)
    assert (example.rating, example.at, example.scale) == (3, datetime.fromtimestamp(290, UTC), RatingScale())


def test_history_has_texts_and_titles(data: Prepared) -> None:
    """Rows of a history carry their review; a title is empty where the item has none."""
    last = data.examples("test")[0].example.user.history[-1]
    assert (last.item, last.review, last.title) == ("i28", "ann of i28", "")


def test_windows_never_overlap(data: Prepared) -> None:
    """The recommender's rows are the latest, the profile's are those before them, and together they are the history."""
    for one in data.examples("test"):
        items = [row.item for row in one.profile_user.history], [row.item for row in one.recent_user.history]
        assert items == (["i21", "i22", "i23", "i24", "i25"], ["i26", "i27", "i28"])
        assert one.profile_user.history + one.recent_user.history == one.example.user.history
        assert one.history_length == 29


def test_short_history_goes_to_the_recommender(data: Prepared) -> None:
    """A user with fewer rows than `recent` has no row left for a profile."""
    short = next(one for one in data.examples("train") if one.history_length == 2)
    assert (len(short.profile_user.history), len(short.recent_user.history)) == (0, 2)


def test_examples_are_ordered_by_id(data: Prepared) -> None:
    """Examples come by id, all of them or a sample."""
    for sample in (None, 20):
        ids = [one.id for one in data.examples("train", sample=sample)]
        assert ids == sorted(ids)


def test_sample_is_the_same_and_nested(data: Prepared) -> None:
    """The same seed takes the same examples, a larger sample more of the same, another seed others."""
    ids = [
        {one.id for one in data.examples("train", sample=size, seed=seed)}
        for size, seed in ((10, 1), (10, 1), (20, 1), (10, 2))
    ]
    assert ids[0] == ids[1]
    assert ids[0] < ids[2]
    assert ids[0] != ids[3]


def test_sample_larger_than_the_split_is_all(data: Prepared) -> None:
    """Asking for more than there is gives what there is; asking for none gives none."""
    assert len(data.examples("test", sample=1000)) == len(data.examples("test")) == 4
    assert data.examples("test", sample=0) == []


@pytest.mark.parametrize(
    ("arguments", "message"), [({"split": "dropped"}, "split must be"), ({"sample": -1}, "negative")]
)
def test_wrong_question_is_refused(data: Prepared, arguments: dict[str, object], message: str) -> None:
    """There are three splits of examples, and samples are not negative."""
    with pytest.raises(ConfigurationError, match=message):
        data.examples(**arguments)  # type: ignore[arg-type]


@patient
@given(logs(), settings())
def test_records_are_what_the_files_say(log: list[Rated], asked: Settings) -> None:
    """The records hold exactly the rows of the example's lists: nothing is lost or added on the way."""
    with tempfile.TemporaryDirectory() as directory:
        result = built(Path(directory), log, asked)
        data = Prepared.open(Path(directory))
        found = {one.id: one for split in ORDER for one in data.examples(split)}  # type: ignore[arg-type]
    assert len(found) == len(result.examples)
    for number, shown in enumerate(result.examples):
        one = found[number]
        rated = [result.rows[row].rated for row in shown.history]
        assert [(row.item, row.rating) for row in one.example.user.history] == [(row.item, row.rating) for row in rated]
        others = [result.rows[row].rated for row in shown.evidence]
        assert [(row.user, row.rating) for row in one.example.item.evidence] == [
            (row.user, row.rating) for row in others
        ]
        assert (one.row, one.history_length) == (shown.row, shown.history_length)


# Items for candidates


def test_item_is_as_the_example_shows_it(timely: Prepared) -> None:
    """Asked for at the target's time, an item has the evidence that the example has."""
    for split in ORDER:
        for one in timely.examples(split):  # type: ignore[arg-type]
            pair = one.example
            assert timely.items([ItemRequest(pair.item.id, pair.at, pair.user.id, split)]) == [pair.item]  # type: ignore[arg-type]


def test_item_leaves_a_user_out(timely: Prepared) -> None:
    """Rows of the excluded user are not evidence."""
    late = datetime.fromtimestamp(1000, UTC)
    users = [[row.user for row in timely.item("i0", before=late, exclude_user=out).evidence] for out in (None, "u2")]
    assert users == [["u6", "u4", "u2"], ["u1", "u6", "u4"]]


def test_unknown_item_has_no_evidence(timely: Prepared) -> None:
    """An item that the data does not hold comes back bare."""
    item = timely.item("nowhere", before=datetime.fromtimestamp(1000, UTC))
    assert (item.id, item.title, item.evidence) == ("nowhere", None, ())


def test_item_without_a_moment_shows_train_alone(data: Prepared) -> None:
    """Without a time nothing held out is shown."""
    assert data.item("i29", before=None).evidence == ()
    assert len(data.item("i05", before=None).evidence) == 2


def test_many_items_at_once(data: Prepared) -> None:
    """Requests are answered in their order, repeated ones too; none is no question."""
    late = datetime.fromtimestamp(1000, UTC)
    asked = [ItemRequest("i03", late), ItemRequest("i01", late), ItemRequest("i03", late)]
    assert [item.id for item in data.items(asked)] == ["i03", "i01", "i03"]
    assert data.items([]) == []


# Arrays


def test_matrix_holds_the_split(data: Prepared) -> None:
    """Codes, ratings, times and rows of a split, in the order of the log."""
    table = data.matrix("test")
    assert table.user_ids == ["ann", "bob", "cid", "dan"]
    assert table.item_ids == [f"i{n:02}" for n in range(30)]
    assert table.users.tolist() == [0, 1, 2, 3]
    assert (table.users.dtype, table.ratings.dtype) == (np.dtype(np.int32), np.dtype(np.float64))
    assert table.items.tolist() == [29] * 4
    assert table.timestamps.tolist() == [290.0] * 4
    assert table.rows.tolist() == [116, 117, 118, 119]


def test_codes_are_the_same_in_every_split(data: Prepared) -> None:
    """A code means the same user and item in train as in test."""
    tables = [data.matrix(split) for split in ORDER]  # type: ignore[arg-type]
    assert len({tuple(table.user_ids + table.item_ids) for table in tables}) == 1
    assert sum(len(table.ratings) for table in tables) == len(LOG)


def test_no_time_is_nan(tmp_path: Path) -> None:
    """Rows without a time have NaN, and examples without a time have none."""
    prepare(
        lambda db: fill(db, [Rated("a", "x"), Rated("a", "y")]),
        tmp_path / "out",
        Settings(core=0, ratios=(1, 0, 0)),
        progress=False,
    )
    data = Prepared.open(tmp_path / "out")
    assert all(map(math.isnan, data.matrix("train").timestamps))
    assert [one.example.at for one in data.examples("train")] == [None]


def test_empty_split_is_empty(tmp_path: Path) -> None:
    """A split without rows has arrays of no length."""
    prepare(lambda db: fill(db, [Rated("a", "x")]), tmp_path / "out", Settings(core=0), progress=False)
    table = Prepared.open(tmp_path / "out").matrix("test")
    assert (len(table.users), table.user_ids) == (0, ["a"])


# The directory


def test_untouched_files_are_verified(data: Prepared) -> None:
    """Files as they were written hold against the manifest."""
    data.verify()


def test_changed_file_is_named(tmp_path: Path) -> None:
    """One byte more and the file is named."""
    prepare(read, tmp_path / "out", Settings(core=0), progress=False)
    with (tmp_path / "out" / "items.parquet").open("ab") as file:
        file.write(b"!")
    with pytest.raises(ConfigurationError, match=r"items\.parquet: missing, or not the file"):
        Prepared.open(tmp_path / "out").verify()


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A file that is gone is named when it is needed."""
    prepare(read, tmp_path / "out", Settings(core=0), progress=False)
    (tmp_path / "out" / "examples.parquet").unlink()
    with pytest.raises(ConfigurationError, match=r"examples\.parquet: no such file"):
        Prepared.open(tmp_path / "out").examples()


def test_other_directory_is_refused(tmp_path: Path) -> None:
    """A directory without a manifest is said to need `prepare`."""
    with pytest.raises(ConfigurationError, match=r"no manifest\.json; make one with: python -m duet_train prepare"):
        Prepared.open(tmp_path)


@pytest.mark.parametrize("text", ["{}", "[]", '{"manifest": 99}', "{"])
def test_other_manifest_is_refused(tmp_path: Path, text: str) -> None:
    """A manifest that is none, or of another version, is refused."""
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ConfigurationError, match=r"manifest\.json"):
        Prepared.open(tmp_path)
