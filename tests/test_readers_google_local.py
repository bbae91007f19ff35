"""Google Local reviews."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from readers import Tables, json_lines, read, written

from duet import RatingScale, RecordError

REVIEW = {
    "user_id": "100000000000000000007",
    "name": "A. Person",
    "time": 1600000000677,
    "rating": 5,
    "text": "Friendly",
    "pics": None,
    "resp": {"time": 1610000000818, "text": "Thanks"},
    "gmap_id": "0xa1:0xb2",
}
PLACE = {
    "gmap_id": "0xa1:0xb2",
    "name": "Corner Chemist",
    "address": "Corner Chemist, 1 Some St",
    "description": None,
    "latitude": 1.5,
    "longitude": 2.5,
    "category": ["Pharmacy", "Store"],
    "avg_rating": 4.9,
    "num_of_reviews": 16,
    "price": "$$",
    "hours": [["Friday", "8AM–6PM"]],
    "MISC": {"Service options": ["In-store shopping", "Delivery"], "Accessibility": ["Wheelchair accessible entrance"]},
    "state": "Open ⋅ Closes 6PM",
    "relative_results": ["0xc3"],
    "url": "x",
}


def reviewed(tmp_path: Path, *changes: dict[str, Any], place: dict[str, Any] | None = None) -> Tables:
    """Reviews that differ from the plain one in these fields, and a place."""
    reviews = written(tmp_path, "reviews.json", json_lines(*({**REVIEW, **change} for change in changes)))
    return read("google-local", reviews, written(tmp_path, "meta.json", json_lines(place)) if place else None)


def test_review(tmp_path: Path) -> None:
    """Times are milliseconds; the owner's answer is passed over."""
    found = reviewed(tmp_path, {})
    assert found.rows == [(0, "100000000000000000007", "0xa1:0xb2", 5.0, 1600000000.677, None, "Friendly")]
    assert found.scale == RatingScale(1, 5)


def test_review_without_a_rating(tmp_path: Path) -> None:
    """A rating of null is left out and counted; text may be null."""
    found = reviewed(tmp_path, {"rating": None}, {"text": None})
    assert (len(found.rows), found.texts, found.counts) == (1, [(None, None)], {"without a rating": 1})


def test_rating_that_is_no_number_is_named(tmp_path: Path) -> None:
    """Something else than null in place of a rating does not hold."""
    with pytest.raises(RecordError, match=r"reviews\.json:1: rating"):
        reviewed(tmp_path, {"rating": "none"})


def test_place(tmp_path: Path) -> None:
    """Categories and services describe a place; averages, counts and what was open that day do not."""
    assert reviewed(tmp_path, {}, place=PLACE).items == {
        "0xa1:0xb2": (
            "Corner Chemist",
            {
                "Accessibility": "Wheelchair accessible entrance",
                "Service options": "In-store shopping, Delivery",
                "address": "Corner Chemist, 1 Some St",
                "categories": "Pharmacy, Store",
                "price": "$$",
            },
        )
    }


def test_place_without_details(tmp_path: Path) -> None:
    """Everything but the id may be null."""
    place = {"gmap_id": "0x1", "name": None, "category": None, "MISC": None}
    assert reviewed(tmp_path, {}, place=place).items == {"0x1": (None, {})}
