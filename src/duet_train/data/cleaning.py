"""Texts as people wrote them: HTML entities decoded, tags and surplus white space gone."""

from __future__ import annotations

import html
import json
import re

import duckdb

# Tags of HTML alone: a reader's own "<sarcasm>" and "a <b" stay.
_TAG = re.compile(
    r"<!--.*?-->|</?(?:a|abbr|b|big|blockquote|body|br|center|cite|code|dd|del|div|dl|dt|em|font|h[1-6]|head|hr|html|i|iframe"
    r"|img|input|ins|label|li|link|meta|ol|p|pre|q|s|script|small|span|strike|strong|style|sub|sup|table|tbody|td|th|thead"
    r"|tr|tt|u|ul|var)(?:\s[^<>]*)?/?>",
    re.IGNORECASE | re.DOTALL,
)
# Files that were escaped once by the shop and once more by whoever exported them hold &amp;quot;.
_DEPTH = 2


def clean(text: str) -> str:
    """A text without HTML, on one line.

    Entities are decoded up to twice, tags become a space, and each run of white space becomes one space. It is done
    once, on whole files; cleaning a text that is clean changes nothing unless it writes about HTML.
    """
    for _ in range(_DEPTH):
        text = html.unescape(text)
    return " ".join(_TAG.sub(" ", text).split())


def clean_attributes(attributes: str) -> str:
    """The same for each value of a JSON object of texts; values that end up empty go."""
    texts = {name: clean(value) for name, value in json.loads(attributes).items()}
    return json.dumps({name: text for name, text in texts.items() if text}, ensure_ascii=False, sort_keys=True)


def install(db: duckdb.DuckDBPyConnection) -> None:
    """Make ``cleaned(text)`` and ``cleaned_attributes(json)`` known to a connection; NULL and nothing left are NULL.

    Python sees only texts that hold something to clean, since a call costs a hundred times the test for it.
    """
    db.create_function("python_clean", clean, ["VARCHAR"], "VARCHAR")
    db.create_function("cleaned_attributes", clean_attributes, ["VARCHAR"], "VARCHAR")
    db.execute(_CLEANED)


_CLEANED = r"""
CREATE OR REPLACE TEMP MACRO cleaned(t) AS nullif(
    CASE WHEN regexp_matches(
        t, '[&<\x00-\x1f\x7f-\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]|  |^ | $')
         THEN python_clean(t) ELSE t END,
    '')
"""
