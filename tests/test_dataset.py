"""Ratings on disk: what is read, what is refused with file and line, and what an example may see."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet import ConfigurationError, Interaction, Item, RatingScale, RecordError
from duet._dataset import Dataset, instant, load, read_lines
from duet.testing import sample_examples, sample_interactions, sample_items, sample_users

Fields = Mapping[str, Any]

START = datetime(2024, 1, 1, tzinfo=UTC)
ATLAS: Fields = {"item_id": "atlas", "title": "Atlas"}
LINE: Fields = {"user_id": "ann", "item_id": "atlas", "rating": 4, "timestamp": START.timestamp()}


def lines_of(rows: Sequence[Fields | str]) -> str:
    """JSON lines; a str stands as it is."""
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)


def write_plain(path: Path, text: str) -> None:
    """A file that is not compressed."""
    path.write_text(text, encoding="utf-8")


def write_gzip(path: Path, text: str) -> None:
    """The same, gzipped, with the ending that says so."""
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(text.encode()))


def folder_of(
    folder: Path,
    rows: Sequence[Fields | str] = (LINE,),
    items: Sequence[Fields | str] = (ATLAS,),
    *,
    write: Callable[[Path, str], None] = write_plain,
    facts: str | None = None,
) -> Path:
    """A folder with a data set."""
    write(folder / "interactions.jsonl", lines_of(rows))
    write(folder / "items.jsonl", lines_of(items))
    if facts is not None:
        (folder / "dataset.json").write_text(facts)
    return folder


def item_from(folder: Path, **fields: Any) -> Item:
    """The one item of a data set with these fields."""
    return load(folder_of(folder, items=[{"item_id": "atlas", **fields}])).item("atlas")


def row(user: str, item: str, day: int | None, rating: float = 3) -> Interaction:
    """A rating on a day, or without a time."""
    return Interaction(user=user, item=item, rating=rating, at=None if day is None else START + timedelta(days=day))


ROWS = (
    row("ann", "a", 3),
    row("ann", "b", 1),
    row("ann", "c", 2),
    row("bob", "a", 2),
    row("bob", "b", 2),
    row("cid", "a", 9),
)
DATA = Dataset(ROWS, {name: Item(name, title=name.upper()) for name in "abc"})


# Reading


def test_packaged_sample_is_read() -> None:
    """The sample data holds 142 ratings of 30 items by 12 users."""
    with as_file(files("duet") / "sample") as folder:
        data = load(folder)
    assert (len(data.rows), len(data.items), len(data.user_ids)) == (142, 30, 12)


def test_sample_gives_an_example_for_each_user() -> None:
    """Every user of the sample has a rating to predict and a history to go by."""
    assert [example.user.id for example in sample_examples()] == [user.id for user in sample_users()]


def test_samples_items_have_titles_and_attributes() -> None:
    """Every item of the sample has a title, a description and evidence."""
    assert all(item.title and dict(item.attributes)["description"] and item.evidence for item in sample_items())


def test_samples_ratings_have_titles_and_reviews() -> None:
    """Every rating of the sample carries its item's title, a review and a time."""
    assert all(one.title and one.review and one.at for one in sample_interactions())


@pytest.mark.parametrize("write", [write_plain, write_gzip])
def test_plain_and_gzipped_files_read_alike(tmp_path: Path, write: Callable[[Path, str], None]) -> None:
    """Both kinds of file give the same records."""
    data = load(folder_of(tmp_path, write=write))
    assert data.rows == (Interaction(user="ann", item="atlas", rating=4, title="Atlas", at=START),)


def test_blank_lines_are_passed_over(tmp_path: Path) -> None:
    """A line without content is no row, and still counts in line numbers."""
    with pytest.raises(RecordError, match=r"interactions\.jsonl:4: "):
        load(folder_of(tmp_path, rows=[LINE, "", "  ", "{"]))


@pytest.mark.parametrize("field", ["user_id", "item_id"])
def test_number_as_id_is_read_as_text(tmp_path: Path, field: str) -> None:
    """Ids that are numbers in the file are their digits."""
    (one,) = load(folder_of(tmp_path, rows=[{**LINE, field: 17}])).rows
    assert (one.user if field == "user_id" else one.item) == "17"


@pytest.mark.parametrize(
    ("fields", "review"),
    [
        ({"review_title": "Fine", "review_text": "Round."}, "Fine. Round."),
        ({"review_title": "Fine"}, "Fine"),
        ({"review_text": "Round."}, "Round."),
        ({"review_title": None, "review_text": "Round."}, "Round."),
        ({"review_title": "", "review_text": None}, ""),
        ({}, ""),
    ],
)
def test_review_is_title_and_text(tmp_path: Path, fields: Fields, review: str) -> None:
    """What there is of a review's title and text makes the review."""
    (one,) = load(folder_of(tmp_path, rows=[{**LINE, **fields}])).rows
    assert one.review == review


def test_rating_of_an_item_without_a_line_has_no_title(tmp_path: Path) -> None:
    """A rating may be of an item that the items' file does not hold."""
    (one,) = load(folder_of(tmp_path, items=[])).rows
    assert one.title == ""


# Attributes


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("maps", "maps"),
        (1999, "1999"),
        (0, "0"),
        (7.5, "7.5"),
        (True, "yes"),
        (False, "no"),
        (["maps", "books"], "maps, books"),
        ({"street": True, "lot": False}, "street: yes, lot: no"),
        ([{"a": [1, True]}, None], "a: 1, yes, None"),
    ],
    ids=repr,
)
def test_attribute_is_plain_text(tmp_path: Path, value: object, text: str) -> None:
    """Whatever JSON an attribute is, it becomes one text."""
    assert item_from(tmp_path, genre=value).attributes == (("genre", text),)


@pytest.mark.parametrize("value", [None, "", []], ids=repr)
def test_attribute_without_value_is_left_out(tmp_path: Path, value: object) -> None:
    """An attribute that says nothing is none."""
    assert item_from(tmp_path, genre=value).attributes == ()


def test_nested_attributes_stand_beside_the_others(tmp_path: Path) -> None:
    """What stands in `attributes` counts like any other field."""
    item = item_from(tmp_path, year=1999, attributes={"WiFi": "free", "Parking": {"street": True}})
    assert item.attributes == (("Parking", "street: yes"), ("WiFi", "free"), ("year", "1999"))


def test_id_and_title_are_no_attributes(tmp_path: Path) -> None:
    """What has a place of its own in the record is not repeated as an attribute."""
    item = item_from(tmp_path, title="Atlas")
    assert (item.title, item.attributes) == ("Atlas", ())


@pytest.mark.parametrize("name", ["average_rating", "rating_number", "review_count", "stars"])
def test_average_that_holds_the_targets_rating_is_dropped(tmp_path: Path, name: str) -> None:
    """Averages and counts over all ratings never become attributes: they would leak the target."""
    assert item_from(tmp_path, **{name: 4.5, "year": 1999}).attributes == (("year", "1999"),)


@pytest.mark.parametrize("name", ["average_rating", "rating_number", "review_count", "stars"])
def test_average_inside_attributes_is_dropped(tmp_path: Path, name: str) -> None:
    """Averages and counts inside `attributes` leak no less, and go too."""
    assert item_from(tmp_path, attributes={name: 4.5, "year": 1999}).attributes == (("year", "1999"),)


# What does not hold

BAD_LINES: dict[str, tuple[Fields | str, str]] = {
    "not JSON": ("{oops", "line"),
    "an array": ("[1, 2]", "line"),
    "a number": ("5", "line"),
    "no user": ({"item_id": "atlas", "rating": 4}, "user_id"),
    "no item": ({"user_id": "ann", "rating": 4}, "item_id"),
    "null user": ({**LINE, "user_id": None}, "user_id"),
    "null item": ({**LINE, "item_id": None}, "item_id"),
    "array as user": ({**LINE, "user_id": ["ann"]}, "user_id"),
    "fraction as item": ({**LINE, "item_id": 1.5}, "item_id"),
    "truth as user": ({**LINE, "user_id": True}, "user_id"),
    "number as review title": ({**LINE, "review_title": 5, "review_text": "x"}, "review_title"),
    "array as review": ({**LINE, "review_text": ["x"]}, "review_text"),
    "no rating": ({"user_id": "ann", "item_id": "atlas"}, "rating"),
    "empty user": ({**LINE, "user_id": " "}, "user"),
    "lone surrogate": ('{"user_id": "\\ud800", "item_id": "atlas", "rating": 4}', "user"),
    "rating in words": ({**LINE, "rating": "many"}, "rating"),
    "null rating": ({**LINE, "rating": None}, "rating"),
    "NaN rating": ('{"user_id": "ann", "item_id": "atlas", "rating": NaN}', "rating"),
    "infinite rating": ('{"user_id": "ann", "item_id": "atlas", "rating": 1e999}', "rating"),
    "time in words": ({**LINE, "timestamp": "yesterday"}, "timestamp"),
    "time in milliseconds": ({**LINE, "timestamp": 1_612_726_920_000}, "timestamp"),
    "NaN time": ('{"user_id": "ann", "item_id": "atlas", "rating": 4, "timestamp": NaN}', "timestamp"),
}


@pytest.mark.parametrize("write", [write_plain, write_gzip])
@pytest.mark.parametrize(("line", "field"), BAD_LINES.values(), ids=BAD_LINES)
def test_bad_line_names_file_line_and_field(
    tmp_path: Path, line: Fields | str, field: str, write: Callable[[Path, str], None]
) -> None:
    """A line that does not hold is refused with its file, its number and its field."""
    with pytest.raises(RecordError, match=r"interactions\.jsonl(\.gz)?:3: ") as caught:
        load(folder_of(tmp_path, rows=[LINE, LINE, line], write=write))
    assert caught.value.field == field


def test_bad_item_names_its_file(tmp_path: Path) -> None:
    """An item without an id is refused with the items' file and its line."""
    with pytest.raises(RecordError, match=r"items\.jsonl:2: item_id is missing"):
        load(folder_of(tmp_path, items=[ATLAS, {"title": "Globe"}]))


@pytest.mark.parametrize("name", ["interactions", "items"])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    """A folder that lacks one of its two files is refused with the names it could have."""
    (folder_of(tmp_path) / f"{name}.jsonl").unlink()
    with pytest.raises(ConfigurationError, match=rf"neither {name}\.jsonl nor {name}\.jsonl\.gz"):
        load(tmp_path)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    """A folder that is not there is refused by its path."""
    with pytest.raises(ConfigurationError, match=re.escape(str(tmp_path / "none"))):
        load(tmp_path / "none")


def _truncated(good: bytes) -> bytes:
    return good[:-12]


def _not_gzip(good: bytes) -> bytes:
    return b'{"item_id": "x"}\n'


def _not_utf8(good: bytes) -> bytes:
    return gzip.compress(b'{"user_id": "\xff"}\n')


def _bad_bytes(good: bytes) -> bytes:
    whole = gzip.compress(random.Random(0).randbytes(20_000).hex().encode())
    return whole[:3000] + b"\xff" * 40 + whole[3040:]


@pytest.mark.parametrize("spoil", [_truncated, _not_gzip, _not_utf8, _bad_bytes])
def test_spoilt_file_is_named(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    """A file that is cut, not gzip, not UTF-8, or spoilt in its middle is refused by its path."""
    path = folder_of(tmp_path, write=write_gzip) / "interactions.jsonl.gz"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ConfigurationError, match=re.escape(str(path))):
        load(tmp_path)


def test_lines_come_one_by_one(tmp_path: Path) -> None:
    """Lines before a bad one are handed over before the error."""
    path = tmp_path / "pairs.jsonl"
    write_plain(path, lines_of([LINE, "{"]))
    lines = read_lines(path)
    assert next(lines) == (LINE, f"{path}:1")


@pytest.mark.parametrize(
    ("facts", "scale"),
    [
        (None, RatingScale(1, 5)),
        ("{}", RatingScale(1, 5)),
        ('{"rating_min": 1, "rating_max": 10}', RatingScale(1, 10)),
        ('{"rating_min": 0.5}', RatingScale(0.5, 5)),
    ],
)
def test_scale_is_read_from_dataset_json(tmp_path: Path, facts: str | None, scale: RatingScale) -> None:
    """dataset.json may set the scale's ends; what it leaves out is 1 to 5."""
    assert load(folder_of(tmp_path, facts=facts)).scale == scale


@pytest.mark.parametrize(
    "facts", ["{", "[]", '{"rating_min": "low"}', '{"rating_min": 5, "rating_max": 1}', '{"rating_max": 1e999}']
)
def test_scale_that_cannot_be_is_refused(tmp_path: Path, facts: str) -> None:
    """A dataset.json without a usable scale is refused by its path."""
    with pytest.raises(ConfigurationError, match=r"dataset\.json"):
        load(folder_of(tmp_path, facts=facts))


def test_rating_off_the_scale_is_refused(tmp_path: Path) -> None:
    """An example whose rating is off the data's scale cannot be made."""
    data = load(folder_of(tmp_path, rows=[LINE, {**LINE, "rating": 9}]))
    with pytest.raises(RecordError, match="off the scale"):
        data.example(data.rows[1])


# Users, items, pairs


def test_user_has_the_whole_history() -> None:
    """A user's history is every rating of theirs, oldest first."""
    assert [one.item for one in DATA.user("ann").history] == ["b", "c", "a"]


def test_item_has_the_whole_evidence() -> None:
    """An item's evidence is every rating of it, oldest first, beside its title."""
    item = DATA.item("a")
    assert (item.title, [one.user for one in item.evidence]) == ("A", ["bob", "ann", "cid"])


def test_unknown_ids_have_nothing() -> None:
    """Ids that the data does not hold give records without history and evidence."""
    assert (DATA.user("zoe").history, DATA.item("z").evidence, DATA.item("z").title) == ((), (), None)


def test_users_come_in_the_files_order() -> None:
    """Users are listed by their first rating in the file."""
    assert DATA.user_ids == ("ann", "bob", "cid")


@pytest.mark.parametrize(
    ("day", "history", "evidence"),
    [(None, "bca", ["bob", "ann", "cid"]), (3, "bc", ["bob"]), (2, "b", []), (1, "", []), (4, "bca", ["bob", "ann"])],
)
def test_pair_holds_what_lies_strictly_before(day: int | None, history: str, evidence: list[str]) -> None:
    """A pair at a time sees nothing of that time or later; without a time it sees all."""
    user, item = DATA.pair("ann", "a", None if day is None else START + timedelta(days=day))
    assert ("".join(one.item for one in user.history), [one.user for one in item.evidence]) == (history, evidence)


def test_pair_of_unknown_ids_is_empty() -> None:
    """A pair may be of ids that the data does not hold."""
    user, item = DATA.pair("zoe", "z", START)
    assert (user.history, item.evidence) == ((), ())


# Examples


def test_example_is_the_last_rating_of_each_user() -> None:
    """Leave-last-one-out: the newest rating is to be predicted from those before it."""
    found = [(one.user.id, one.item.id, [row.item for row in one.user.history]) for one in DATA.examples()]
    assert found == [("ann", "a", ["b", "c"])]


@pytest.mark.parametrize(("least", "users"), [(0, ["ann", "bob", "cid"]), (1, ["ann"]), (2, ["ann"]), (3, [])])
def test_users_with_too_little_history_are_left_out(least: int, users: list[str]) -> None:
    """`min_history` counts what lies before the rating to predict."""
    assert [example.user.id for example in DATA.examples(min_history=least)] == users


def test_example_without_times_leaves_out_its_own_rating() -> None:
    """Without times the target is the last in the file, and it alone is hidden."""
    data = Dataset((row("ann", "a", None), row("ann", "b", None), row("bob", "b", None)), {})
    (example,) = data.examples()
    assert ([one.item for one in example.user.history], [one.user for one in example.item.evidence]) == (["a"], ["bob"])


def test_examples_are_on_the_datas_scale() -> None:
    """An example carries the scale of its data."""
    data = Dataset((row("ann", "a", 1, 9), row("ann", "b", 2, 10)), {}, RatingScale(1, 10))
    assert [(example.rating, example.scale) for example in data.examples()] == [(10, RatingScale(1, 10))]


rows = st.builds(row, st.sampled_from("uv"), st.sampled_from("ab"), st.none() | st.integers(0, 4), st.integers(1, 5))


@given(st.lists(rows, max_size=12))
def test_no_example_sees_its_own_rating(found: list[Interaction]) -> None:
    """Whatever the ratings, an example holds neither its target nor anything of its time or later."""
    for example in Dataset(tuple(found), {}).examples(min_history=0):
        for seen in (*example.user.history, *example.item.evidence):
            assert (seen.user, seen.item) != (example.user.id, example.item.id) or example.at is not None
            assert example.at is None or (seen.at is not None and seen.at < example.at)


@pytest.mark.parametrize(
    ("seconds", "at"),
    [
        (None, None),
        (0, datetime(1970, 1, 1, tzinfo=UTC)),
        (1_612_726_920, datetime(2021, 2, 7, 19, 42, tzinfo=UTC)),
        (0.5, datetime(1970, 1, 1, 0, 0, 0, 500_000, tzinfo=UTC)),
    ],
)
def test_instant_is_unix_seconds_in_utc(seconds: float | None, at: datetime | None) -> None:
    """A timestamp is seconds since 1970, in UTC; null is no time."""
    assert instant(seconds) == at


@pytest.mark.parametrize("value", ["5", [], {}, 1e30, float("inf"), float("nan")], ids=repr)
def test_instant_that_no_date_can_hold_is_refused(value: object) -> None:
    """What is no number, or beyond the calendar, is refused."""
    with pytest.raises(RecordError, match="Unix seconds"):
        instant(value)
