"""MovieLens 100K, 1M, 10M, and the CSV sets since (latest, 20M, 25M, 32M).

Source: Harper and Konstan, ACM TiiS 5(4), 2015, and the README file of each set.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

from duet import RatingScale
from duet_train.data.attributes import ItemRecord, json_object
from duet_train.data.raw_tables import Fields, store_interactions, store_items
from duet_train.data.sources import Delimited, NamedRecords

_WHOLE_STARS = RatingScale(1, 5)
_HALF_STARS = RatingScale(0.5, 5)
_RATING_COLUMNS = ("userId", "movieId", "rating", "timestamp")
_MOVIE_COLUMNS = ("movieId", "title", "genres")
_GENRES_100K = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
_MOVIE_COLUMNS_100K = ("movieId", "title", "released", "released_on_video", "url", *_GENRES_100K)
_NO_GENRES = "(no genres listed)"


def read_movielens_100k(db: duckdb.DuckDBPyConnection, interactions: Path, items: Path | None) -> RatingScale:
    """Read ``u.data`` (tabs) and ``u.item`` (``|``, latin-1, a flag a genre).

    Args:
        db: An open connection.
        interactions: ``u.data``.
        items: ``u.item``.

    Returns:
        1 to 5.

    Raises:
        ConfigurationError: A file is missing or unreadable.
        RecordError: A row does not hold; names file, line and field.
    """
    scale = _ratings(db, Delimited(interactions, _RATING_COLUMNS, delimiter="\t", quote="", escape=""), _WHOLE_STARS)
    if items is not None:
        movies = Delimited(items, _MOVIE_COLUMNS_100K, delimiter="|", quote="", escape="", encoding="latin-1")
        store_items(db, NamedRecords(movies), _movie_100k)
    return scale


def read_movielens_1m(db: duckdb.DuckDBPyConnection, interactions: Path, items: Path | None) -> RatingScale:
    """Read ``ratings.dat`` and ``movies.dat`` of the 1M set (``::``, latin-1, whole stars).

    Args:
        db: An open connection.
        interactions: ``ratings.dat``.
        items: ``movies.dat``.

    Returns:
        1 to 5.

    Raises:
        ConfigurationError: A file is missing or unreadable.
        RecordError: A row does not hold; names file, line and field.
    """
    return _read_dat(db, interactions, items, _WHOLE_STARS, "latin-1")


def read_movielens_10m(db: duckdb.DuckDBPyConnection, interactions: Path, items: Path | None) -> RatingScale:
    """Read ``ratings.dat`` and ``movies.dat`` of the 10M set (``::``, UTF-8, half stars).

    Args:
        db: An open connection.
        interactions: ``ratings.dat``.
        items: ``movies.dat``.

    Returns:
        0.5 to 5.

    Raises:
        ConfigurationError: A file is missing or unreadable.
        RecordError: A row does not hold; names file, line and field.
    """
    return _read_dat(db, interactions, items, _HALF_STARS, "utf-8")


def read_movielens_latest(db: duckdb.DuckDBPyConnection, interactions: Path, items: Path | None) -> RatingScale:
    """Read ``ratings.csv`` and ``movies.csv`` (latest, 20M, 25M, 32M: header, half stars).

    Args:
        db: An open connection.
        interactions: ``ratings.csv``.
        items: ``movies.csv``.

    Returns:
        0.5 to 5.

    Raises:
        ConfigurationError: A file is missing or unreadable.
        RecordError: A row does not hold; names file, line and field.
    """
    scale = _ratings(db, Delimited(interactions).require(*_RATING_COLUMNS), _HALF_STARS)
    if items is not None:
        store_items(db, NamedRecords(Delimited(items).require(*_MOVIE_COLUMNS)), _movie)
    return scale


def _read_dat(
    db: duckdb.DuckDBPyConnection, interactions: Path, items: Path | None, scale: RatingScale, encoding: str
) -> RatingScale:
    _ratings(db, Delimited(interactions, _RATING_COLUMNS, delimiter="::", quote="", escape=""), scale)
    if items is not None:
        movies = Delimited(items, _MOVIE_COLUMNS, delimiter="::", quote="", escape="", encoding=encoding)
        store_items(db, NamedRecords(movies), _movie)
    return scale


def _ratings(db: duckdb.DuckDBPyConnection, source: Delimited, scale: RatingScale) -> RatingScale:
    user, item, rating, time = map(source.column, _RATING_COLUMNS)
    return store_interactions(db, source, Fields(user=user, item=item, rating=rating, time=time), scale=scale)


def _movie(record: str) -> ItemRecord:
    fields = json_object(record)
    genres = (fields["genres"] or "").split("|")
    named = [genre for genre in genres if genre != _NO_GENRES]
    return ItemRecord(fields["movieId"], fields["title"], {"categories": named})


def _movie_100k(record: str) -> ItemRecord:
    fields = json_object(record)
    genres = [genre for genre in _GENRES_100K[1:] if fields[genre] == "1"]
    return ItemRecord(fields["movieId"], fields["title"], {"categories": genres, "released": fields["released"]})
