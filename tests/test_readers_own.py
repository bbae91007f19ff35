"""The project's own JSON lines."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from readers import FOLDER, json_lines, read, real_samples, written

from duet import ConfigurationError, RatingScale, RecordError

ROW = {"user_id": "u1", "item_id": "i1", "rating": 4, "timestamp": 1000}


def rows_of(directory: Path, *records: dict[str, Any]) -> Path:
    """A file of interactions."""
    return written(directory, "interactions.jsonl", json_lines(*records))


def test_rows_keep_the_order_of_the_file(tmp_path: Path) -> None:
    """Rows are numbered from 0 as they stand in the file."""
    found = read("jsonl", rows_of(tmp_path, {**ROW, "user_id": "z"}, {**ROW, "user_id": "a"}))
    assert [(row[0], row[1]) for row in found.rows] == [(0, "z"), (1, "a")]


def test_texts_are_as_in_the_file(tmp_path: Path) -> None:
    """Entities, tags and line ends are left to be cleaned later."""
    texts = {"review_title": "Fish &amp; chips", "review_text": "one<br />two\n\nthree"}
    found = read("jsonl", rows_of(tmp_path, {**ROW, **texts}))
    assert found.texts == [("Fish &amp; chips", "one<br />two\n\nthree")]


def test_absent_fields_are_null(tmp_path: Path) -> None:
    """Time and texts may be missing, null or empty."""
    bare = {"user_id": "u", "item_id": "i", "rating": 3}
    found = read("jsonl", rows_of(tmp_path, bare, {**bare, "timestamp": None, "review_title": "", "review_text": None}))
    assert [row[4:] for row in found.rows] == [(None, None, None)] * 2


def test_numbers_as_ids_are_texts(tmp_path: Path) -> None:
    """Ids are texts, whatever JSON type they have."""
    found = read("jsonl", rows_of(tmp_path, {**ROW, "user_id": 7, "item_id": 12}))
    assert found.pairs == [("7", "12", 4.0)]


def test_scale_is_the_declared_one(tmp_path: Path) -> None:
    """A dataset.json beside the interactions gives the scale."""
    written(tmp_path, "dataset.json", '{"rating_min": 1, "rating_max": 10}')
    assert read("jsonl", rows_of(tmp_path, ROW)).scale == RatingScale(1, 10)


@pytest.mark.parametrize(
    ("ratings", "scale"),
    [((2, 3), RatingScale(1, 5)), ((0.5, 5), RatingScale(0.5, 5)), ((3, 10), RatingScale(3, 10))],
)
def test_scale_without_a_declaration(tmp_path: Path, ratings: tuple[float, ...], scale: RatingScale) -> None:
    """Without dataset.json the scale is 1 to 5 if that holds every rating, else what occurs."""
    assert read("jsonl", rows_of(tmp_path, *({**ROW, "rating": rating} for rating in ratings))).scale == scale


def test_scale_of_a_single_value_is_asked_for(tmp_path: Path) -> None:
    """One value outside 1 to 5 tells no scale, and the message says where to declare one."""
    with pytest.raises(ConfigurationError, match=r"every rating is 80.*dataset\.json"):
        read("jsonl", rows_of(tmp_path, {**ROW, "rating": 80}))


def test_no_rating_at_all_is_refused(tmp_path: Path) -> None:
    """A file without rows is no data set."""
    with pytest.raises(ConfigurationError, match="holds no rating"):
        read("jsonl", written(tmp_path, "interactions.jsonl", ""))


def test_unreadable_declaration_is_named(tmp_path: Path) -> None:
    """A dataset.json that is no JSON is an error and not passed over."""
    written(tmp_path, "dataset.json", "{")
    with pytest.raises(ConfigurationError, match=r"dataset\.json"):
        read("jsonl", rows_of(tmp_path, ROW))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("user_id", None),
        ("user_id", "  \t"),
        ("item_id", ""),
        ("item_id", "a\x00b"),
        ("rating", None),
        ("rating", "five"),
        ("rating", True),
        ("rating", float("inf")),
        ("timestamp", "yesterday"),
        ("timestamp", 1.6e15),
    ],
)
def test_bad_field_is_named_with_its_line(tmp_path: Path, field: str, value: object) -> None:
    """The first row that does not hold is named by file, line and field; blank lines count as lines."""
    content = json_lines(ROW) + "\n" + json_lines({**ROW, field: value})
    with pytest.raises(RecordError, match=rf"interactions\.jsonl:3: {field} ") as caught:
        read("jsonl", written(tmp_path, "interactions.jsonl", content))
    assert caught.value.field == field


def test_bad_value_is_shown(tmp_path: Path) -> None:
    """The message quotes the value."""
    with pytest.raises(RecordError, match="got 'five'"):
        read("jsonl", rows_of(tmp_path, ROW, {**ROW, "rating": "five"}))


def test_rating_off_the_declared_scale_is_refused(tmp_path: Path) -> None:
    """A rating outside the declared scale does not hold."""
    written(tmp_path, "dataset.json", '{"rating_min": 1, "rating_max": 5}')
    with pytest.raises(RecordError, match=r"interactions\.jsonl:1: rating must be a number from 1 to 5, got '6'"):
        read("jsonl", rows_of(tmp_path, {**ROW, "rating": 6}))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{not json", "not JSON"),
        ("[3]", "not a JSON object"),
        ('{"user_id": "\\ud83d"}', "lone surrogate"),
        ("\ufeff{}", "BOM"),
        ('{"user_id": "u"} {"user_id": "v"}', "Extra data"),
    ],
)
def test_broken_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    """A line that is no JSON object is named by its number, with the reason."""
    content = json_lines(ROW) + "\n" + line + "\n" + json_lines(ROW)
    with pytest.raises(ConfigurationError, match=rf"interactions\.jsonl:3: .*{reason}"):
        read("jsonl", written(tmp_path, "interactions.jsonl", content))


def test_item_fields_become_attributes(tmp_path: Path) -> None:
    """Everything but id and title is an attribute, nested ones included, each as a text."""
    item = {
        "item_id": "i1",
        "title": "One",
        "categories": ["a", "b"],
        "price": 9.5,
        "year": 1999.0,
        "open": False,
        "nothing": None,
        "attributes": {"WiFi": "free", "Parking": {"lot": True, "street": False}},
    }
    found = read("jsonl", rows_of(tmp_path, ROW), written(tmp_path, "items.jsonl", json_lines(item)))
    assert found.items == {
        "i1": (
            "One",
            {"WiFi": "free", "Parking": "lot", "categories": "a, b", "open": "no", "price": "9.5", "year": "1999"},
        )
    }


LEAKING = [
    *("average_rating", "avg_rating", "rating_number", "num_of_reviews", "review_count", "ratings_count", "stars"),
    *("ratings_5", "Average Customer Review:", "Best Sellers Rank", "salesRank", "work_text_reviews_count"),
    *("vote_average", "vote_count", "business_stars", "Customer Reviews", "n_ratings", "rating"),
]


@pytest.mark.parametrize("name", LEAKING)
def test_averages_and_counts_are_no_attributes(tmp_path: Path, name: str) -> None:
    """What is computed over all ratings holds the target's own, so it never becomes an attribute."""
    item = {"item_id": "i1", name: 4.2, "details": {name: 4.2, "Colour": "red"}, "attributes": {name: 4.2}}
    found = read("jsonl", rows_of(tmp_path, ROW), written(tmp_path, "items.jsonl", json_lines(item)))
    assert found.attributes("i1") == {"details": "Colour: red"}


@pytest.mark.parametrize("name", ["mpaa_rating", "brand", "author", "starsign", "count", "Operating System"])
def test_other_names_are_kept(tmp_path: Path, name: str) -> None:
    """A name that merely resembles an average stays."""
    found = read(
        "jsonl", rows_of(tmp_path, ROW), written(tmp_path, "items.jsonl", json_lines({"item_id": "i1", name: "x"}))
    )
    assert found.attributes("i1") == {name: "x"}


def test_last_record_of_an_item_counts(tmp_path: Path) -> None:
    """Where an item is described twice, the last description is kept and the other one counted."""
    items = json_lines({"item_id": "i1", "title": "Old"}, {"item_id": "i2"}, {"item_id": "i1", "title": "New"})
    found = read("jsonl", rows_of(tmp_path, ROW), written(tmp_path, "items.jsonl", items))
    assert (found.items["i1"][0], found.counts) == ("New", {"repeated items": 1})


def test_item_without_an_id_is_named(tmp_path: Path) -> None:
    """A record without an id is named by file and line."""
    items = written(tmp_path, "items.jsonl", json_lines({"item_id": "i1"}, {"title": "?"}))
    with pytest.raises(RecordError, match=r"items\.jsonl:2: no item id"):
        read("jsonl", rows_of(tmp_path, ROW), items)


def test_names_with_glob_characters_are_plain_names(tmp_path: Path) -> None:
    """Brackets, stars and quotes in a path name that very file."""
    directory = tmp_path / "a[b]*c'd"
    directory.mkdir()
    assert read("jsonl", rows_of(directory, ROW)).pairs == [("u1", "i1", 4.0)]


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1).filter(str.strip)
record = st.fixed_dictionaries(
    {"user_id": text, "item_id": text, "rating": st.integers(1, 5)},
    optional={"timestamp": st.integers(0, 2**32), "review_title": text, "review_text": text},
)


@settings(max_examples=40, deadline=None)
@given(st.lists(record, min_size=1, max_size=8))
def test_every_row_comes_back(tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]]) -> None:
    """Whatever the texts, every field of every row is what was written, in order."""
    found = read("jsonl", rows_of(tmp_path_factory.mktemp("rows"), *records))
    expected = [
        (
            place,
            *(row.get(name) for name in ("user_id", "item_id", "rating", "timestamp", "review_title", "review_text")),
        )
        for place, row in enumerate(records)
    ]
    assert found.rows == expected


@real_samples
@pytest.mark.parametrize("name", ["amazon_digital_music", "yelp_2021_sample", "book_crossing"])
def test_real_set_is_read_whole(name: str) -> None:
    """As many rows, users, items, titles, times and texts as the set says of itself."""
    folder = FOLDER / name
    if not folder.is_dir():
        pytest.skip(f"no {name}")
    facts = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    found = read("jsonl", folder / "interactions.jsonl.gz", folder / "items.jsonl.gz")
    assert found.scale == RatingScale(facts["rating_min"], facts["rating_max"])
    assert {
        "interactions": len(found.rows),
        "users": len({row[1] for row in found.rows}),
        "items": len(found.items),
        "items_with_title": sum(title is not None for title, _ in found.items.values()),
        "with_timestamp": sum(time is not None for time in found.times),
        "with_text": sum(text is not None for _, text in found.texts),
    }.items() <= facts.items()


@real_samples
def test_real_rows_are_those_of_the_file() -> None:
    """Every row of a real set is what the line of the file says."""
    path = FOLDER / "yelp_2021_sample" / "interactions.jsonl.gz"
    if not path.exists():
        pytest.skip(f"no {path.name}")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        expected = [json.loads(line) for line in lines]
    found = read("jsonl", path)
    assert [(row[1], row[2], row[3], row[4], row[6]) for row in found.rows] == [
        (row["user_id"], row["item_id"], row["rating"], row["timestamp"], row.get("review_text")) for row in expected
    ]
