"""The Yelp Open Dataset and its older editions."""

from __future__ import annotations

import csv
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from readers import Tables, json_lines, read, real_samples, sample, sample_objects, written

from duet import RatingScale, RecordError

REVIEW = {
    "review_id": "r1",
    "user_id": "u1",
    "business_id": "b1",
    "stars": 4.0,
    "useful": 3,
    "funny": 1,
    "cool": 1,
    "text": "Slow start.\n\nBetter now.",
    "date": "2015-02-03 04:05:06",
}
OLD_REVIEW = {
    "votes": {"funny": 0, "useful": 2, "cool": 1},
    "user_id": "u1",
    "review_id": "r1",
    "stars": 5,
    "date": "2008-06-07",
    "text": "listens",
    "type": "review",
    "business_id": "b1",
}


def reviews(tmp_path: Path, *records: dict[str, Any]) -> Path:
    """A file of reviews."""
    return written(tmp_path, "review.json", json_lines(*records))


def business(tmp_path: Path, **fields: Any) -> dict[str, str]:
    """Attributes of a business with these fields."""
    record = {"business_id": "b1", "name": "Bar", "stars": 3.5, "review_count": 9, **fields}
    items = written(tmp_path, "business.json", json_lines(record))
    return read("yelp", reviews(tmp_path, REVIEW), items).attributes("b1")


def seconds(text: str) -> float:
    """Unix seconds of a date in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def test_review(tmp_path: Path) -> None:
    """Times are read as UTC, the text keeps its line ends, and there is no title."""
    found = read("yelp", reviews(tmp_path, REVIEW))
    time = seconds("2015-02-03 04:05:06")
    assert found.rows == [(0, "u1", "b1", 4.0, time, None, "Slow start.\n\nBetter now.")]


def test_review_of_an_older_edition(tmp_path: Path) -> None:
    """Votes are nested and the date is a day."""
    found = read("yelp", reviews(tmp_path, OLD_REVIEW))
    assert found.rows == [(0, "u1", "b1", 5.0, seconds("2008-06-07"), None, "listens")]


def test_business_named_as_item(tmp_path: Path) -> None:
    """Some editions say item_id where others say business_id."""
    renamed = {**REVIEW, "item_id": "b1"}
    del renamed["business_id"]
    items = written(tmp_path, "item.json", json_lines({"item_id": "b1", "name": "Bar"}))
    found = read("yelp", reviews(tmp_path, renamed), items)
    assert (found.pairs, found.items) == ([("u1", "b1", 4.0)], {"b1": ("Bar", {})})


def test_date_that_is_none_is_named(tmp_path: Path) -> None:
    """A date that cannot be read is named by line and value."""
    with pytest.raises(RecordError, match=r"review\.json:2: timestamp .* got '2014-13-40'"):
        read("yelp", reviews(tmp_path, REVIEW, {**REVIEW, "date": "2014-13-40"}))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("True", "yes"),
        ("False", "no"),
        ("u'free'", "free"),
        ("'no'", "no"),
        ("full_bar", "full_bar"),
        ("2", "2"),
        (2, "2"),
        (True, "yes"),
        ("{'garage': False, 'street': True, u'lot': True, 'valet': None}", "street, lot"),
        ({"garage": False, "street": True}, "street"),
        ("not (a literal", "not (a literal"),
        ("__import__('os')", "__import__('os')"),
    ],
)
def test_attribute(tmp_path: Path, value: object, text: str) -> None:
    """Values are read from literals within texts, flags become the names of those that hold; nothing is run."""
    assert business(tmp_path, attributes={"A": value}) == {"A": text}


@pytest.mark.parametrize("value", ["None", None, "", "{'garage': False}", {}, "u''"])
def test_attribute_that_says_nothing(tmp_path: Path, value: object) -> None:
    """A value that says nothing is no attribute."""
    assert business(tmp_path, attributes={"A": value}) == {}


def test_business_without_attributes(tmp_path: Path) -> None:
    """The attributes may be null as a whole, and so may the categories."""
    assert business(tmp_path, attributes=None, categories=None, hours=None) == {}


@pytest.mark.parametrize("value", ["Doctors, Health & Medical", ["Doctors", "Health & Medical"]])
def test_categories(tmp_path: Path, value: object) -> None:
    """Categories are a text in newer editions and a list in older ones."""
    assert business(tmp_path, categories=value) == {"categories": "Doctors, Health & Medical"}


def test_averages_are_left_out(tmp_path: Path) -> None:
    """Place and neighbourhood stay; stars and counts go, and so do address and hours."""
    fields = {"city": "Phoenix", "state": "AZ", "neighborhoods": ["West"], "is_open": 1, "hours": {"Monday": "8:0-9:0"}}
    assert business(tmp_path, **fields) == {"city": "Phoenix", "neighborhoods": "West", "state": "AZ"}


def read_csv(tmp_path: Path) -> Tables:
    """Reviews and businesses as CSV."""
    content = (
        "business_id,date,review_id,stars,text,type,user_id,cool,useful,funny\n"
        'b1,2012-02-27,r1,5,"Great, ""really"".\n\nGo.",review,u1,2,5,0\n'
    )
    items = (
        ",business_categories,business_city,business_full_address,business_id,business_name,business_neighborhoods,"
        "business_review_count,business_stars,business_state,business_type\n"
        '0,Food; Grocery,Phoenix,"1 W St\nPhoenix, AZ",b1,Shop,,5,3.5,AZ,business\n'
    )
    return read("yelp", written(tmp_path, "review.csv", content), written(tmp_path, "business.csv", items))


def test_reviews_as_csv(tmp_path: Path) -> None:
    """Reviews of an older edition as CSV, with line ends in quotes."""
    time = seconds("2012-02-27")
    assert read_csv(tmp_path).rows == [(0, "u1", "b1", 5.0, time, None, 'Great, "really".\n\nGo.')]


def test_businesses_as_csv(tmp_path: Path) -> None:
    """Prefixed columns, an unnamed first one, semicolons between categories."""
    assert read_csv(tmp_path).items == {
        "b1": ("Shop", {"categories": "Food, Grocery", "city": "Phoenix", "state": "AZ"})
    }


@real_samples
@pytest.mark.parametrize("edition", ["open", "2015", "agentsociety"])
def test_real_reviews(edition: str) -> None:
    """Every real review is read as its line says, whatever the edition."""
    expected = sample_objects(f"yelp_{edition}_review.json")
    found = read("yelp", sample(f"yelp_{edition}_review.json"))
    assert found.scale == RatingScale(1, 5)
    assert [(*row[1:5], row[6]) for row in found.rows] == [
        (row["user_id"], row.get("business_id") or row["item_id"], row["stars"], seconds(row["date"]), row["text"])
        for row in expected
    ]


@real_samples
@pytest.mark.parametrize("file", ["yelp_open_business.json", "yelp_2015_business.json", "yelp_agentsociety_item.json"])
def test_real_businesses(file: str) -> None:
    """Every real business has its name; no attribute shows a literal's quotes or braces, nor an average."""
    expected = sample_objects(file)
    found = read("yelp", sample("yelp_open_review.json"), sample(file))
    names = {row.get("business_id") or row.get("item_id"): row["name"] for row in expected}
    assert {item: title for item, (title, _) in found.items.items()} == names
    shown = [(name, text) for _, attributes in found.items.values() for name, text in attributes.items()]
    assert not [pair for pair in shown if pair[1].startswith(("u'", "'", "{")) or pair[1] == "None"]
    assert not {name for name, _ in shown} & {"stars", "review_count", "hours"}


@real_samples
def test_real_csv() -> None:
    """Every real review and business of the CSV forms is read as Python's own CSV reader sees it."""
    review_path, business_path = sample("yelp_kaggle_reviews.csv"), sample("yelp_2013_business.csv")
    found = read("yelp", review_path, business_path)
    with review_path.open(encoding="utf-8", newline="") as lines:
        expected = [
            (row["user_id"], row["business_id"], float(row["stars"]), row["text"]) for row in csv.DictReader(lines)
        ]
    assert [(*row[1:4], row[6]) for row in found.rows] == expected
    with business_path.open(encoding="utf-8", newline="") as lines:
        names = {row["business_id"]: row["business_name"] for row in csv.DictReader(lines)}
    assert {item: title for item, (title, _) in found.items.items()} == names
