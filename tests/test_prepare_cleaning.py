"""Texts are cleaned of HTML and surplus white space, and of nothing else."""

from __future__ import annotations

import json

import duckdb
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from duet_train.data.cleaning import clean, clean_attributes, install

_pieces = st.sampled_from(
    ["&amp;", "&quot;", "<br />", "<", ">", " ", "\n", "\t", "\u00a0", "\u2003", "a", "é", "&", "3"]
)
texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), st.lists(_pieces).map("".join)
)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Bed &amp; Breakfast", "Bed & Breakfast"),
        ("&quot;Great&quot; &#39;sound&#39;", "\"Great\" 'sound'"),
        ("&amp;quot;twice&amp;quot;", '"twice"'),
        ("one<br />two<br>three", "one two three"),
        ("a <b>bold</b> <a href='x'>link</a>", "a bold link"),
        ("&lt;br /&gt;escaped", "escaped"),
        ("I <3 this, 5 > 4 & so on", "I <3 this, 5 > 4 & so on"),
        ("<sarcasm>sure</sarcasm>", "<sarcasm>sure</sarcasm>"),
        ("<bread> is no tag", "<bread> is no tag"),
        ("one<!-- hidden -->two", "one two"),
        ("  two\n\n lines\u00a0here ", "two lines here"),
        ("AT&T R&B", "AT&T R&B"),
        ("", ""),
    ],
)
def test_text_is_cleaned(text: str, cleaned: str) -> None:
    """Entities are decoded, twice where they were escaped twice, tags of HTML and surplus white space go."""
    assert clean(text) == cleaned


def test_attributes_keep_their_json() -> None:
    """Quotes that come out of entities cannot break the object; values with nothing left go."""
    cleaned = clean_attributes('{"b": "12&quot; disc<br>", "a": "<p></p>"}')
    assert json.loads(cleaned) == {"b": '12" disc'}


@hypothesis_settings(deadline=None, max_examples=30)
@given(st.lists(texts, min_size=1, max_size=50))
def test_database_cleans_as_python_does(some: list[str]) -> None:
    """The shortcut for texts without anything to clean lets none through that has."""
    with duckdb.connect() as db:
        install(db)
        db.execute("CREATE TABLE texts (place INTEGER, t VARCHAR)")
        db.executemany("INSERT INTO texts VALUES (?, ?)", list(enumerate(some)))
        found = db.execute("SELECT cleaned(t) FROM texts ORDER BY place").fetchall()
    assert [text for (text,) in found] == [clean(text) or None for text in some]


def test_no_text_stays_none() -> None:
    """A text that is absent stays absent."""
    with duckdb.connect() as db:
        install(db)
        assert db.execute("SELECT cleaned(NULL), cleaned_attributes(NULL)").fetchall() == [(None, None)]
