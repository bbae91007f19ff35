"""Amazon reviews of 2014, 2018 and 2023."""

from __future__ import annotations

import ast
import csv
from pathlib import Path
from typing import Any

import pytest
from readers import json_lines, read, real_samples, sample, sample_objects, written

from duet import ConfigurationError, RatingScale, RecordError

REVIEW = {
    "reviewerID": "A1",
    "asin": "B1",
    "reviewerName": "R",
    "helpful": [1, 2],
    "reviewText": "Warm &#34;sound&#34;",
    "overall": 5.0,
    "summary": "Good",
    "unixReviewTime": 1400000000,
    "reviewTime": "02 28, 2014",
}
REVIEW_2018 = {**REVIEW, "vote": "1,234", "style": {"Size:": " 7 oz"}, "verified": True, "image": ["x.jpg"]}
REVIEW_2023 = {
    "rating": 4.0,
    "title": "Nice",
    "text": "one<br />two",
    "images": [{"small_image_url": "x.jpg"}],
    "asin": "B2",
    "parent_asin": "B1",
    "user_id": "A1",
    "timestamp": 1500000000832,
    "helpful_vote": 7,
    "verified_purchase": True,
}
META_2023 = {
    "parent_asin": "B1",
    "title": "Lamp",
    "main_category": "All Beauty",
    "features": ["Small", "Bright"],
    "description": [],
    "price": None,
    "store": "Acme",
    "categories": ["Home", "Lamps"],
    "details": {"Color": "red", "Best Sellers Rank": {"Lamps": 3}},
    "average_rating": 4.5,
    "rating_number": 120,
    "bought_together": None,
}
RATINGS_2014 = "A1,B1,5.0,1400000000\nA2,B1,3.0,1400000001\n"
RATINGS_2018 = "B1,A1,5.0,1400000000\nB1,A2,3.0,1400000001\n"


def one(tmp_path: Path, name: str, review: dict[str, Any], meta: str | None = None) -> Any:
    """A single review, read, with its metadata."""
    items = None if meta is None else written(tmp_path, "meta.json", meta)
    return read(name, written(tmp_path, "reviews.json", json_lines(review)), items)


def meta_2014(tmp_path: Path, *metas: dict[str, Any]) -> Any:
    """Items of metadata as Python literals."""
    return one(tmp_path, "amazon-2014", REVIEW, "".join(f"{meta!r}\n" for meta in metas)).items


@pytest.mark.parametrize(("name", "review"), [("amazon-2014", REVIEW), ("amazon-2018", REVIEW_2018)])
def test_review_of_2014_and_2018(tmp_path: Path, name: str, review: dict[str, Any]) -> None:
    """Users, products, whole seconds and texts as they are; votes with commas and dicts beside them do not matter."""
    found = one(tmp_path, name, review)
    assert found.rows == [(0, "A1", "B1", 5.0, 1400000000.0, "Good", "Warm &#34;sound&#34;")]


def test_review_of_2018_without_text(tmp_path: Path) -> None:
    """Text and summary may be missing."""
    bare = {name: value for name, value in REVIEW_2018.items() if name not in ("reviewText", "summary")}
    assert one(tmp_path, "amazon-2018", bare).texts == [(None, None)]


def test_exact_duplicates_are_kept(tmp_path: Path) -> None:
    """The reader gives every row of the file; removing duplicates is for `prepare`, which counts them."""
    reviews = written(tmp_path, "reviews.json", json_lines(REVIEW_2018, REVIEW_2018))
    assert len(read("amazon-2018", reviews).rows) == 2


def test_review_of_2023(tmp_path: Path) -> None:
    """Milliseconds become seconds, the product is the parent's, and the text keeps its tags."""
    found = one(tmp_path, "amazon-2023", REVIEW_2023)
    assert found.rows == [(0, "A1", "B1", 4.0, 1500000000.832, "Nice", "one<br />two")]


def test_review_of_2023_without_parent(tmp_path: Path) -> None:
    """Without the id that items are joined on, a row does not hold."""
    with pytest.raises(RecordError, match=r"reviews\.json:1: item_id"):
        one(tmp_path, "amazon-2023", {**REVIEW_2023, "parent_asin": None})


def test_review_of_another_edition_is_refused(tmp_path: Path) -> None:
    """A file of 2023 read as one of 2014 stops at its first line."""
    with pytest.raises(RecordError, match=r"reviews\.json:1: user_id"):
        one(tmp_path, "amazon-2014", REVIEW_2023)


@pytest.mark.parametrize("rating", [0, 6])
def test_rating_off_the_scale_is_refused(tmp_path: Path, rating: float) -> None:
    """Amazon's ratings are 1 to 5."""
    with pytest.raises(RecordError, match="rating must be a number from 1 to 5"):
        one(tmp_path, "amazon-2014", {**REVIEW, "overall": rating})


def test_csv_with_a_header(tmp_path: Path) -> None:
    """Reviews as CSV, with commas, quotes and line ends in the text."""
    content = (
        "reviewerID,asin,reviewerName,helpful,reviewText,overall,summary,unixReviewTime,reviewTime\n"
        'A1,B1,"x ""y"", z","[0, 0]","one, ""two""\nthree",5.0,good,1400000000,"02 28, 2014"\n'
    )
    found = read("amazon-2014", written(tmp_path, "reviews.csv", content))
    assert found.rows == [(0, "A1", "B1", 5.0, 1400000000.0, "good", 'one, "two"\nthree')]


def test_bad_row_of_a_csv_is_named_by_its_line(tmp_path: Path) -> None:
    """Lines are those of the file, though a text spans several."""
    content = (
        "reviewerID,asin,reviewText,overall,summary,unixReviewTime\n"
        'A1,B1,"one\n\nthree",5.0,good,1\n'
        "A1,B2,text,none,good,2\n"
    )
    with pytest.raises(RecordError, match=r"reviews\.csv:5: rating .* got 'none'"):
        read("amazon-2014", written(tmp_path, "reviews.csv", content))


@pytest.mark.parametrize(("name", "content"), [("amazon-2014", RATINGS_2014), ("amazon-2018", RATINGS_2018)])
def test_ratings_alone(tmp_path: Path, name: str, content: str) -> None:
    """Ratings without text come as CSV without a header, user first in 2014 and item first in 2018."""
    found = read(name, written(tmp_path, "ratings.csv", content))
    assert [row[:5] for row in found.rows] == [(0, "A1", "B1", 5, 1400000000), (1, "A2", "B1", 3, 1400000001)]


def test_ratings_alone_of_2023(tmp_path: Path) -> None:
    """In 2023 they have a header, and milliseconds."""
    content = "user_id,parent_asin,rating,timestamp\nA1,B1,5.0,1400000000500\n"
    assert read("amazon-2023", written(tmp_path, "ratings.csv", content)).times == [1400000000.5]


def test_csv_without_a_needed_column_is_refused(tmp_path: Path) -> None:
    """The message names the column and what the header has."""
    with pytest.raises(ConfigurationError, match="no column 'parent_asin'"):
        read("amazon-2023", written(tmp_path, "ratings.csv", "user_id,rating,timestamp\nA1,5.0,1\n"))


def test_metadata_of_2014_are_python_literals(tmp_path: Path) -> None:
    """Single quotes, None and trailing commas are read; what was bought with a product, and its rank, are not."""
    items = meta_2014(
        tmp_path,
        {
            "asin": "B1",
            "title": 'It\'s "new"',
            "price": 9.49,
            "imUrl": "x.jpg",
            "brand": "",
            "related": {"also_bought": ["B2"]},
            "salesRank": {"Music": 939190},
            "categories": [["CDs & Vinyl", "Pop"], ["CDs & Vinyl", "Rock"]],
            "description": None,
        },
    )
    assert items == {"B1": ('It\'s "new"', {"categories": "CDs & Vinyl, Pop, Rock", "price": "9.49"})}


def test_metadata_of_2014_as_json(tmp_path: Path) -> None:
    """The same metadata are read where somebody has rewritten them as JSON."""
    found = one(tmp_path, "amazon-2014", REVIEW, '{"asin": "B1", "title": null, "brand": "Acme"}\n')
    assert found.items == {"B1": (None, {"brand": "Acme"})}


def test_halves_of_characters_are_replaced(tmp_path: Path) -> None:
    """A literal may hold a lone surrogate, which no database text can."""
    found = one(tmp_path, "amazon-2014", REVIEW, "{'asin': 'B1', 'title': 'a\\ud83d'}\n")
    assert found.items == {"B1": ("a?", {})}


@pytest.mark.parametrize("line", ["__import__('os').getcwd()", "{'asin': open('x')}", "{'asin': 'B1'", "['B1']", "B1"])
def test_what_is_no_literal_is_refused_and_not_run(tmp_path: Path, line: str) -> None:
    """Only literals are read; anything else is named by its line."""
    with pytest.raises(RecordError, match=r"meta\.json:2: no item id, or no readable record"):
        one(tmp_path, "amazon-2014", REVIEW, "{'asin': 'B1'}\n" + line + "\n")


def test_metadata_of_2018(tmp_path: Path) -> None:
    """Singular names are those of 2018, keys of details end in colons; a script in place of a title is none."""
    meta = {
        "asin": "B1",
        "title": "var aPageStart = (new Date()).getTime();",
        "category": ["Beauty", "Soap"],
        "feature": ["Mild"],
        "description": ["One.", "Two."],
        "main_cat": '<img src="x.png"/>',
        "rank": "5 in Beauty",
        "also_buy": ["B2"],
        "details": {"\n    Item Weight: \n    ": "2 ounces", "Average Customer Review:": "4.5"},
    }
    found = one(tmp_path, "amazon-2018", REVIEW_2018, json_lines(meta))
    assert found.items == {
        "B1": (
            None,
            {
                "categories": "Beauty, Soap",
                "description": "One., Two.",
                "details": "Item Weight: 2 ounces",
                "features": "Mild",
            },
        )
    }


def test_metadata_of_2023(tmp_path: Path) -> None:
    """Items are the parents; averages, counts and ranks are left out, nested ones too."""
    found = one(tmp_path, "amazon-2023", REVIEW_2023, json_lines(META_2023))
    assert found.items == {
        "B1": (
            "Lamp",
            {
                "categories": "Home, Lamps",
                "details": "Color: red",
                "features": "Small, Bright",
                "main_category": "All Beauty",
                "store": "Acme",
            },
        )
    }


@real_samples
@pytest.mark.parametrize(
    ("name", "file"),
    [("amazon-2014", "amazon_2014_5core_reviews.json"), ("amazon-2018", "amazon_2018_5core_reviews.json")],
)
def test_real_reviews(name: str, file: str) -> None:
    """Every real review of 2014 and 2018 is read as its line says."""
    found = read(name, sample(file))
    assert found.scale == RatingScale(1, 5)
    assert [row[1:] for row in found.rows] == [
        (
            review["reviewerID"],
            review["asin"],
            review["overall"],
            review["unixReviewTime"],
            review.get("summary") or None,
            review.get("reviewText") or None,
        )
        for review in sample_objects(file)
    ]


@real_samples
def test_real_csv() -> None:
    """Every real review of the CSV form is read as Python's own CSV reader sees it."""
    path = sample("amazon_2014_5core_reviews.csv")
    with path.open(encoding="utf-8", newline="") as lines:
        expected = list(csv.DictReader(lines))
    assert [(*row[1:3], row[6]) for row in read("amazon-2014", path).rows] == [
        (review["reviewerID"], review["asin"], review["reviewText"] or None) for review in expected
    ]


@real_samples
def test_real_metadata_of_2014() -> None:
    """Every real item is read, with its title; none of its attributes is a rank or a link."""
    path = sample("amazon_2014_meta.pyliteral.json")
    expected = [ast.literal_eval(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = read("amazon-2014", sample("amazon_2014_5core_reviews.json"), path)
    assert {item: title for item, (title, _) in found.items.items()} == {
        meta["asin"]: meta["title"] for meta in expected
    }
    assert {name for _, attributes in found.items.values() for name in attributes} == {
        *("brand", "categories", "description", "price")
    }


@real_samples
def test_real_reviews_of_2023() -> None:
    """Every real review of 2023 is read, by parent and in seconds of the years 1996 to 2023."""
    reviews = sample_objects("amazon_2023_reviews.jsonl")
    found = read("amazon-2023", sample("amazon_2023_reviews.jsonl"))
    assert [row[1:4] for row in found.rows] == [(row["user_id"], row["parent_asin"], row["rating"]) for row in reviews]
    assert all(time is not None and 820454400 < time < 1704067200 for time in found.times)
    assert any(text is not None and "<br" in text for _, text in found.texts)
