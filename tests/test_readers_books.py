"""Book-Crossing, goodbooks and GoodReads."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from readers import json_lines, read, real_samples, sample, written

from duet import ConfigurationError, RatingScale, RecordError

# Book-Crossing

CROSSED = b'"User-ID";"ISBN";"Book-Rating"\r\n"1001";"111111111X";"0"\r\n"1002";"2222222222";"5"\r\n'
CROSSED_BOOKS = (
    '"ISBN";"Book-Title";"Book-Author";"Year-Of-Publication";"Publisher";"Image-URL-S";"Image-URL-M";"Image-URL-L"\r\n'
    '"1";"The \\"real\\"; story &amp; more";"Müller";"0";"Lübbe";"x";"y";"z"\r\n'
    '"2";"Plain";"B. Author";"1999";"";"x";"y";"z"\r\n'
).encode("latin-1")


def test_implicit_ratings_are_left_out_and_counted(tmp_path: Path) -> None:
    """A rating of 0 says only that a book was read: it is counted, and places in the file stay as they are."""
    found = read("book-crossing", written(tmp_path, "ratings.csv", CROSSED))
    assert found.rows == [(1, "1002", "2222222222", 5.0, None, None, None)]
    assert (found.scale, found.counts) == (RatingScale(1, 10), {"without a rating": 1})


def test_missing_rating_is_no_implicit_one(tmp_path: Path) -> None:
    """Only a 0 means that nothing was rated; an empty field does not hold."""
    with pytest.raises(RecordError, match=r"ratings\.csv:4: rating"):
        read("book-crossing", written(tmp_path, "ratings.csv", CROSSED + b'"1003";"3333333333";""\r\n'))


def test_bad_row_after_implicit_ones_is_named_by_its_line(tmp_path: Path) -> None:
    """Rows that were left out still count as lines."""
    with pytest.raises(RecordError, match=r"ratings\.csv:4: rating must be a number from 1 to 10, got '11'"):
        read("book-crossing", written(tmp_path, "ratings.csv", CROSSED + b'"1003";"3333333333";"11"\r\n'))


def test_crossed_books(tmp_path: Path) -> None:
    """Quotes behind backslashes, semicolons in quotes, latin-1 letters, CR LF; a year of 0 is none."""
    books = written(tmp_path, "books.csv", CROSSED_BOOKS)
    found = read("book-crossing", written(tmp_path, "ratings.csv", CROSSED), books)
    assert found.items == {
        "1": ('The "real"; story &amp; more', {"author": "Müller", "publisher": "Lübbe"}),
        "2": ("Plain", {"author": "B. Author", "year": "1999"}),
    }


def test_crossed_files_with_plain_line_ends(tmp_path: Path) -> None:
    """Line ends of LF alone read the same."""
    found = read("book-crossing", written(tmp_path, "ratings.csv", CROSSED.replace(b"\r\n", b"\n")))
    assert found.pairs == [("1002", "2222222222", 5.0)]


@real_samples
def test_real_crossed_files() -> None:
    """Every explicit real rating is read, the others are counted, and every book has its title."""
    ratings, books = sample("book_crossing_BX-Book-Ratings.csv"), sample("book_crossing_BX-Books.csv")
    found = read("book-crossing", ratings, books)
    rows = [
        [field.strip('"') for field in line.split(";")] for line in ratings.read_text(encoding="latin-1").splitlines()
    ]
    expected = [(user, book, float(rating)) for user, book, rating in rows[1:]]
    assert found.pairs == [row for row in expected if row[2] > 0]
    assert found.counts == {"without a rating": sum(row[2] == 0 for row in expected)}
    with books.open(encoding="latin-1", newline="") as lines:
        reader = csv.DictReader(lines, delimiter=";", doublequote=False, escapechar="\\")
        titles = {row["ISBN"]: row["Book-Title"] for row in reader}
    assert {item: title for item, (title, _) in found.items.items()} == titles


# goodbooks


def test_goodbooks(tmp_path: Path) -> None:
    """No times; averages, counts and histograms of a book are left out; years are whole."""
    ratings = written(tmp_path, "ratings.csv", "user_id,book_id,rating\n1,258,5\n2,4081,4\n")
    books = written(
        tmp_path,
        "books.csv",
        "book_id,authors,original_publication_year,original_title,title,language_code,average_rating,ratings_count,"
        "work_text_reviews_count,ratings_5\n"
        '258,"A. One, B. Two",-750.0,Original,"Full (Series, #1)",eng,4.34,10,5,3\n'
        "259,C. Three,,Only the original,,,4.0,1,1,1\n",
    )
    found = read("goodbooks", ratings, books)
    assert (found.pairs, found.times) == ([("1", "258", 5.0), ("2", "4081", 4.0)], [None, None])
    assert found.items == {
        "258": ("Full (Series, #1)", {"author": "A. One, B. Two", "language_code": "eng", "year": "-750"}),
        "259": ("Only the original", {"author": "C. Three"}),
    }


def test_goodbooks_without_a_column_are_refused(tmp_path: Path) -> None:
    """Another file in its place is named with what its header has."""
    with pytest.raises(ConfigurationError, match=r"to_read\.csv: no column 'rating'"):
        read("goodbooks", written(tmp_path, "to_read.csv", "user_id,book_id\n1,2\n"))


@real_samples
def test_real_goodbooks() -> None:
    """Every real rating and title is read as Python's own CSV reader sees it."""
    ratings, books = sample("goodbooks_ratings_sample.csv"), sample("goodbooks_books.csv")
    found = read("goodbooks", ratings, books)
    with ratings.open(encoding="utf-8", newline="") as lines:
        expected = [(row["user_id"], row["book_id"], float(row["rating"])) for row in csv.DictReader(lines)]
    assert found.pairs == expected
    with books.open(encoding="utf-8", newline="") as lines:
        titles = {row["book_id"]: row["title"].strip() for row in csv.DictReader(lines)}
    assert {item: title for item, (title, _) in found.items.items()} == titles


# GoodReads

SHELVED = {
    "user_id": "u1",
    "book_id": "7001",
    "review_id": "r1",
    "rating": 5,
    "review_text": "Could not stop.",
    "date_added": "Mon Aug 01 10:00:00 -0700 2016",
    "date_updated": "Tue Nov 01 10:00:00 -0700 2016",
    "read_at": "Mon Oct 31 00:00:00 -0700 2016",
    "started_at": "",
    "n_votes": 16,
    "n_comments": 0,
}


def shelved(tmp_path: Path, *changes: dict[str, Any]) -> Any:
    """Reviews that differ from the plain one in these fields."""
    return read(
        "goodreads", written(tmp_path, "reviews.json", json_lines(*({**SHELVED, **change} for change in changes)))
    )


def test_goodreads_review(tmp_path: Path) -> None:
    """The time is the last update's: only by then is the rating known to have been there."""
    assert shelved(tmp_path, {}).rows == [(0, "u1", "7001", 5.0, 1478019600.0, None, "Could not stop.")]


def test_goodreads_review_without_an_update(tmp_path: Path) -> None:
    """Without an update the time is that of adding the book."""
    assert shelved(tmp_path, {"date_updated": ""}).times == [1470070800.0]


def test_goodreads_books_that_were_not_rated(tmp_path: Path) -> None:
    """A rating of 0 means none: left out and counted."""
    found = shelved(tmp_path, {"rating": 0}, {})
    assert ([row[0] for row in found.rows], found.counts) == ([1], {"without a rating": 1})


def test_goodreads_date_that_is_none_is_named(tmp_path: Path) -> None:
    """A date in another form is named by its line."""
    with pytest.raises(RecordError, match=r"reviews\.json:2: timestamp"):
        shelved(tmp_path, {}, {"date_updated": "2017-10-09"})


def test_goodreads_book(tmp_path: Path) -> None:
    """Shelves that name a subject are the categories; averages, counts and ids are left out."""
    book = {
        "book_id": "7001",
        "title": "Harbour (#1)",
        "average_rating": "4.03",
        "ratings_count": "16",
        "text_reviews_count": "7",
        "popular_shelves": [{"count": "70", "name": "to-read"}, {"count": "7", "name": "mystery"}, {"count": "1"}],
        "authors": [{"author_id": "9", "role": ""}],
        "description": "A tale.",
        "format": "",
        "num_pages": "400",
        "publication_year": "2001",
        "publisher": "Simon",
        "language_code": "eng",
        "similar_books": ["1"],
    }
    reviews = written(tmp_path, "reviews.json", json_lines(SHELVED))
    found = read("goodreads", reviews, written(tmp_path, "books.json", json_lines(book)))
    assert found.items == {
        "7001": (
            "Harbour (#1)",
            {
                "categories": "mystery",
                "description": "A tale.",
                "language_code": "eng",
                "num_pages": "400",
                "publisher": "Simon",
                "year": "2001",
            },
        )
    }
