"""What holds of every file format alike."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from readers import connection, json_lines, read, written
from test_readers_amazon import META_2023, REVIEW, REVIEW_2018, REVIEW_2023
from test_readers_books import CROSSED, CROSSED_BOOKS, SHELVED
from test_readers_google_local import PLACE
from test_readers_google_local import REVIEW as PLACE_REVIEW
from test_readers_movielens import movie_100k
from test_readers_recbole import INTER, ITEM
from test_readers_yelp import REVIEW as YELP_REVIEW

from duet import ConfigurationError
from duet_train.data.formats import FORMATS

OWN = {"user_id": "u1", "item_id": "i1", "rating": 4, "timestamp": 1000}

# Name of the format → name and content of the interactions, name and content of the items.
FILES: dict[str, tuple[str, str | bytes, str, str | bytes]] = {
    "amazon-2014": ("r.json", json_lines(REVIEW), "m.json", "{'asin': 'B1', 'title': 'T'}\n"),
    "amazon-2018": ("r.json", json_lines(REVIEW_2018), "m.json", json_lines({"asin": "B1", "title": "T"})),
    "amazon-2023": ("r.jsonl", json_lines(REVIEW_2023), "m.jsonl", json_lines(META_2023)),
    "book-crossing": ("r.csv", CROSSED, "b.csv", CROSSED_BOOKS),
    "goodbooks": ("r.csv", "user_id,book_id,rating\n1,258,5\n", "b.csv", "book_id,title\n258,T\n"),
    "goodreads": ("r.json", json_lines(SHELVED), "b.json", json_lines({"book_id": "7001", "title": "T"})),
    "google-local": ("r.json", json_lines(PLACE_REVIEW), "m.json", json_lines(PLACE)),
    "jsonl": ("interactions.jsonl", json_lines(OWN), "items.jsonl", json_lines({"item_id": "i1", "title": "T"})),
    "movielens-100k": ("u.data", "196\t242\t3\t900000001\n", "u.item", movie_100k(3)),
    "movielens-10m": ("r.dat", "1::122::0.5::850000001\n", "m.dat", "122::Ä (1992)::Comedy|Romance\n"),
    "movielens-1m": ("r.dat", "1::122::5::850000001\n", "m.dat", "122::Ä (1992)::Comedy\n".encode("latin-1")),
    "movielens-latest": (
        "r.csv",
        "userId,movieId,rating,timestamp\n1,11,0.5,1250000001\n",
        "m.csv",
        "movieId,title,genres\n11,T,Drama\n",
    ),
    "recbole": ("s.inter", INTER, "s.item", ITEM),
    "yelp": ("r.json", json_lines(YELP_REVIEW), "b.json", json_lines({"business_id": "b1", "name": "T"})),
}
each_format = pytest.mark.parametrize("name", FORMATS)


def files(tmp_path: Path, name: str, *, zipped: bool = False) -> tuple[Path, Path]:
    """Interactions and items of a format."""
    first, rows, second, items = FILES[name]
    paths = written(tmp_path, first, rows), written(tmp_path, second, items)
    if not zipped:
        return paths
    inner = [written(tmp_path, f"{path.name}.gz", gzip.compress(path.read_bytes())) for path in paths]
    return inner[0], inner[1]


def test_every_format_is_tested() -> None:
    """No format is without files here."""
    assert set(FILES) == set(FORMATS)


@each_format
def test_files_are_read(tmp_path: Path, name: str) -> None:
    """Interactions and items are read, and the items have titles."""
    found = read(name, *files(tmp_path, name))
    assert found.rows
    assert all(title for title, _ in found.items.values())


@each_format
def test_gzipped_files_read_the_same(tmp_path: Path, name: str) -> None:
    """A name that ends in .gz is decompressed in place, with the same result."""
    assert read(name, *files(tmp_path, name, zipped=True)) == read(name, *files(tmp_path, name))


@each_format
def test_items_may_be_missing(tmp_path: Path, name: str) -> None:
    """Without items the rows are the same, and the table of items is there and empty."""
    interactions, items = files(tmp_path, name)
    alone = read(name, interactions)
    assert (alone.rows, alone.items) == (read(name, interactions, items).rows, {})


@each_format
@pytest.mark.parametrize("which", [0, 1], ids=["interactions", "items"])
def test_missing_file_is_named(tmp_path: Path, name: str, which: int) -> None:
    """A file that is not there is named."""
    paths = files(tmp_path, name)
    paths[which].unlink()
    with pytest.raises(ConfigurationError, match=f"{paths[which].name}: no such file"):
        read(name, *paths)


@each_format
def test_file_that_is_no_gzip_is_named(tmp_path: Path, name: str) -> None:
    """A file that only claims to be compressed is named."""
    interactions, _ = files(tmp_path, name)
    broken = written(tmp_path, f"{interactions.name}.gz", interactions.read_bytes())
    with pytest.raises(ConfigurationError, match=broken.name):
        read(name, broken)


@each_format
def test_truncated_gzip_is_named(tmp_path: Path, name: str) -> None:
    """A compressed file that was cut is an error, not a shorter data set."""
    interactions, _ = files(tmp_path, name)
    rows = interactions.read_bytes()
    cut = written(
        tmp_path, f"{interactions.name}.gz", gzip.compress(rows + rows.splitlines(keepends=True)[-1] * 5000)[:-60]
    )
    with pytest.raises(ConfigurationError, match=cut.name):
        read(name, cut)


@each_format
def test_reading_again_replaces_the_tables(tmp_path: Path, name: str) -> None:
    """The same connection can read twice."""
    interactions, items = files(tmp_path, name)
    with connection() as db:
        for _ in range(2):
            FORMATS[name](db, interactions, items)
        counted = db.table("raw_interactions").aggregate("count(*)").fetchall()
    assert counted == [(len(read(name, interactions).rows),)]


def test_setting_of_the_caller_is_kept(tmp_path: Path) -> None:
    """Rows are in file order even where the connection was told not to care, which it is told again."""
    rows = json_lines(*({**OWN, "user_id": f"u{number}"} for number in range(200_000)))
    path = written(tmp_path, "interactions.jsonl", rows)
    with connection() as db:
        db.execute("SET preserve_insertion_order = false")
        FORMATS["jsonl"](db, path, None)
        moved = db.table("raw_interactions").filter("user_id <> 'u' || source_row").aggregate("count(*)").fetchall()
        kept = db.execute("SELECT current_setting('preserve_insertion_order')").fetchone()
    assert (moved, kept) == ([(0,)], (False,))
