"""Every file format by the name that the command line knows it by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import duckdb

from duet import RatingScale
from duet_train.data.amazon import read_amazon_2014, read_amazon_2018, read_amazon_2023
from duet_train.data.book_crossing import read_book_crossing
from duet_train.data.goodbooks import read_goodbooks
from duet_train.data.goodreads import read_goodreads
from duet_train.data.google_local import read_google_local
from duet_train.data.movielens import (
    read_movielens_1m,
    read_movielens_10m,
    read_movielens_100k,
    read_movielens_latest,
)
from duet_train.data.own import read_own
from duet_train.data.recbole import read_recbole
from duet_train.data.yelp import read_yelp


class Reader(Protocol):
    """Reads files of one format into ``raw_interactions`` and ``raw_items``, and gives the scale of the ratings."""

    def __call__(self, db: duckdb.DuckDBPyConnection, interactions: Path, items: Path | None) -> RatingScale: ...


FORMATS: Mapping[str, Reader] = {
    "amazon-2014": read_amazon_2014,
    "amazon-2018": read_amazon_2018,
    "amazon-2023": read_amazon_2023,
    "book-crossing": read_book_crossing,
    "goodbooks": read_goodbooks,
    "goodreads": read_goodreads,
    "google-local": read_google_local,
    "jsonl": read_own,
    "movielens-100k": read_movielens_100k,
    "movielens-10m": read_movielens_10m,
    "movielens-1m": read_movielens_1m,
    "movielens-latest": read_movielens_latest,
    "recbole": read_recbole,
    "yelp": read_yelp,
}
"""``jsonl`` is the project's own format; `read_frame` in ``frames`` reads what is in memory already."""
