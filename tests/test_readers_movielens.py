"""MovieLens 100K, 1M, 10M and the CSV sets since."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from readers import read, real_samples, sample, written

from duet import ConfigurationError, RatingScale, RecordError


def movie_100k(*genres: int, number: str = "1", title: str = "Paper Boat (1995)") -> str:
    """A line of u.item with the flags of these genres set."""
    flags = ["1" if place in genres else "0" for place in range(19)]
    return "|".join([number, title, "01-Jan-1995", "", "http://example.org/", *flags]) + "\n"


def test_ratings_of_100k(tmp_path: Path) -> None:
    """Tabs, no header."""
    found = read("movielens-100k", written(tmp_path, "u.data", "196\t242\t3\t900000001\n186\t302\t1\t900000002\n"))
    assert [row[:5] for row in found.rows] == [(0, "196", "242", 3.0, 900000001), (1, "186", "302", 1.0, 900000002)]


def test_movies_of_100k(tmp_path: Path) -> None:
    """Genres are flags by place; letters are latin-1; the flag for no known genre says nothing."""
    movies = movie_100k(3, 5) + movie_100k(0, number="2", title="Café, Le")
    items = written(tmp_path, "u.item", movies, "latin-1")
    found = read("movielens-100k", written(tmp_path, "u.data", "1\t1\t5\t900000001\n"), items)
    assert found.items == {
        "1": ("Paper Boat (1995)", {"categories": "Animation, Comedy", "released": "01-Jan-1995"}),
        "2": ("Café, Le", {"released": "01-Jan-1995"}),
    }


@pytest.mark.parametrize(
    ("name", "encoding", "scale"),
    [("movielens-1m", "latin-1", RatingScale(1, 5)), ("movielens-10m", "utf-8", RatingScale(0.5, 5))],
)
def test_dat_files(tmp_path: Path, name: str, encoding: str, scale: RatingScale) -> None:
    """Double colons without header; latin-1 in the 1M set, UTF-8 in the 10M set; a single colon divides nothing."""
    movie = 'Château d\'Été, Le: "A" (2001)::Comedy|Romance\n'
    items = written(tmp_path, "movies.dat", "12::" + movie, encoding)
    found = read(name, written(tmp_path, "ratings.dat", "1::12::5::990000001\n"), items)
    assert found.scale == scale
    assert found.rows == [(0, "1", "12", 5.0, 990000001.0, None, None)]
    assert found.items == {"12": ('Château d\'Été, Le: "A" (2001)', {"categories": "Comedy, Romance"})}


def test_half_stars_of_10m(tmp_path: Path) -> None:
    """The 10M set has half stars from 0.5."""
    found = read("movielens-10m", written(tmp_path, "ratings.dat", "1::122::0.5::850000001\n1::185::4.5::850000002\n"))
    assert [rating for _, _, rating in found.pairs] == [0.5, 4.5]


def test_half_stars_are_none_of_1m(tmp_path: Path) -> None:
    """A rating below the scale of the 1M set is named by its line."""
    with pytest.raises(RecordError, match=r"ratings\.dat:2: rating must be a number from 1 to 5, got '0.5'"):
        read("movielens-1m", written(tmp_path, "ratings.dat", "1::122::5::850000001\n1::185::0.5::850000002\n"))


def test_movies_of_10m_in_another_encoding(tmp_path: Path) -> None:
    """Letters that are no UTF-8 are an error with file and line."""
    items = written(tmp_path, "movies.dat", "1::A::Drama\n2::é::Drama\n", "latin-1")
    with pytest.raises(ConfigurationError, match=r"movies\.dat:2: "):
        read("movielens-10m", written(tmp_path, "ratings.dat", "1::1::5::1\n"), items)


def test_latest(tmp_path: Path) -> None:
    """CSV with a header, quotes where a title has commas, half stars."""
    ratings = written(tmp_path, "ratings.csv", "userId,movieId,rating,timestamp\n1,11,0.5,1250000001\n")
    movies = written(
        tmp_path,
        "movies.csv",
        'movieId,title,genres\n11,"Lighthouse, The (1995)",Comedy|Drama\n12,"""Ünder"" (2001)",(no genres listed)\n',
    )
    found = read("movielens-latest", ratings, movies)
    assert found.scale == RatingScale(0.5, 5)
    assert found.rows == [(0, "1", "11", 0.5, 1250000001.0, None, None)]
    assert found.items == {
        "11": ("Lighthouse, The (1995)", {"categories": "Comedy, Drama"}),
        "12": ('"Ünder" (2001)', {}),
    }


@pytest.mark.parametrize("line", ["1,11,3.0", "1,11,3.0,4,5", '1,"11,3.0,1250000001'])
def test_line_of_another_shape_is_named(tmp_path: Path, line: str) -> None:
    """A row with too few fields, too many, or an open quote is an error that names file and line."""
    content = f"userId,movieId,rating,timestamp\n1,11,0.5,1250000001\n{line}\n"
    with pytest.raises(ConfigurationError, match=r"ratings\.csv:3: "):
        read("movielens-latest", written(tmp_path, "ratings.csv", content))


def test_empty_file_is_named(tmp_path: Path) -> None:
    """A file without the expected header is named."""
    with pytest.raises(ConfigurationError, match=r"ratings\.csv: empty"):
        read("movielens-latest", written(tmp_path, "ratings.csv", ""))


def test_byte_order_mark(tmp_path: Path) -> None:
    """A mark before the header does not change the name of the first column."""
    content = "\ufeffuserId,movieId,rating,timestamp\n1,11,0.5,1250000001\n"
    assert read("movielens-latest", written(tmp_path, "ratings.csv", content)).pairs == [("1", "11", 0.5)]


def split(path: Path, delimiter: str) -> list[list[str]]:
    """Fields of every line of a latin-1 file."""
    return [line.split(delimiter) for line in path.read_text(encoding="latin-1").splitlines()]


@real_samples
@pytest.mark.parametrize(
    ("name", "ratings", "movies", "between", "within"),
    [
        ("movielens-100k", "movielens_100k_u.data", "movielens_100k_u.item", "\t", "|"),
        ("movielens-1m", "movielens_1m_ratings.dat", "movielens_1m_movies.dat", "::", "::"),
    ],
)
def test_real_files(name: str, ratings: str, movies: str, between: str, within: str) -> None:
    """Every real rating and title is what a plain split of its line gives."""
    found = read(name, sample(ratings), sample(movies))
    assert [row[1:5] for row in found.rows] == [
        (user, item, float(rating), float(time)) for user, item, rating, time in split(sample(ratings), between)
    ]
    expected = {fields[0]: fields[1] for fields in split(sample(movies), within)}
    assert {item: title for item, (title, _) in found.items.items()} == expected


@real_samples
def test_real_genres_of_1m() -> None:
    """Every real movie of 1M has the genres of its line."""
    found = read("movielens-1m", sample("movielens_1m_ratings.dat"), sample("movielens_1m_movies.dat"))
    assert {item: attributes["categories"].split(", ") for item, (_, attributes) in found.items.items()} == {
        fields[0]: fields[2].split("|") for fields in split(sample("movielens_1m_movies.dat"), "::")
    }


@real_samples
def test_real_letters_of_1m() -> None:
    """The letters beyond ASCII of the real file are letters, not question marks."""
    found = read("movielens-1m", sample("movielens_1m_ratings.dat"), sample("movielens_1m_movies.dat"))
    letters = {letter for title, _ in found.items.values() for letter in title or "" if not letter.isascii()}
    assert letters
    assert all(letter.isalpha() for letter in letters)


@real_samples
def test_real_latest() -> None:
    """Every real rating and movie of the CSV form is read as Python's own CSV reader sees it."""
    ratings, movies = sample("movielens_latest_ratings.csv"), sample("movielens_latest_movies.csv")
    found = read("movielens-latest", ratings, movies)
    with ratings.open(encoding="utf-8", newline="") as lines:
        expected = [
            (row["userId"], row["movieId"], float(row["rating"]), float(row["timestamp"]))
            for row in csv.DictReader(lines)
        ]
    assert [row[1:5] for row in found.rows] == expected
    with movies.open(encoding="utf-8", newline="") as lines:
        titles = {row["movieId"]: row["title"] for row in csv.DictReader(lines)}
    assert {item: title for item, (title, _) in found.items.items()} == titles
