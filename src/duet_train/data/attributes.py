"""What a record says of its item, as texts for a prompt; pure Python, one record at a time."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

# Averages and counts over all ratings hold the target's own rating; ranks by sales hold the future. Names are compared
# in lower case, letters and digits alone.
_LEAKING = re.compile(
    "(average|avg|mean).*(rating|review|stars|score|vote)"
    "|(rating|review|stars|score|vote)s?(average|avg|mean|number|count)"
    "|(number|num|count)(of)?(rating|review|vote)|^n(ratings|reviews|votes)"
    "|^(rating|ratings)[1-9]?$|^(item|business)?stars$|customerreviews?$|checkincount$"
    "|(^|sales|sellers)ranks?$"
)


@attrs.frozen
class ItemRecord:
    """An item as one record of a file describes it.

    Args:
        item_id: None where the record has none.
        title: None where the record has none.
        attributes: By name; values of any JSON type.
    """

    item_id: object
    title: object = None
    attributes: Mapping[str, object] = attrs.field(factory=dict)


ItemFields = Callable[[str], ItemRecord]
"""From one record's text to its item; raises ValueError where the text is no record."""


def leaks(name: str) -> bool:
    """Whether an attribute of this name is an average or a count over ratings, or a rank by sales."""
    return _LEAKING.search(re.sub("[^a-z0-9]", "", name.lower())) is not None


def picked(fields: Mapping[str, Any], names: Iterable[str]) -> dict[str, object]:
    """The fields of these names that are there."""
    return {name: fields[name] for name in names if name in fields}


def text_of(value: object) -> str:
    """A value as a prompt shows it: lists with commas, a mapping of flags as the names of those that hold.

    An empty text stands for a value that says nothing.
    """
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case float() if not math.isfinite(value):
            return ""
        case float() if value.is_integer():
            return str(int(value))
        case Mapping():
            return _text_of_mapping(value)
        case list() | tuple() | set():
            return ", ".join(filter(None, map(text_of, value)))
        case _:
            return str(value).strip()


def _text_of_mapping(value: Mapping[Any, object]) -> str:
    if value and all(isinstance(entry, bool | None) for entry in value.values()):
        return ", ".join(str(name) for name, holds in value.items() if holds)
    parts = ((str(name).strip(" :\n"), text_of(entry)) for name, entry in value.items() if not leaks(str(name)))
    return ", ".join(f"{name}: {text}" for name, text in parts if text)


def attribute_texts(attributes: Mapping[str, object]) -> str:
    """A JSON object of texts with sorted keys, without what leaks and without what says nothing."""
    texts = {str(name): text_of(value) for name, value in attributes.items() if not leaks(str(name))}
    return json.dumps({name: text for name, text in texts.items() if text}, ensure_ascii=False, sort_keys=True)


def json_object(record: str) -> dict[str, Any]:
    """The object of a JSON line.

    Raises:
        ValueError: It is no JSON object.
    """
    try:
        return _mapping(json.loads(record))
    except RecursionError as exc:
        raise ValueError(f"nested too deeply: {exc}") from None


def literal_object(record: str) -> dict[str, Any]:
    """The dict of a line that is a Python literal; only literals are read, nothing is run.

    Raises:
        ValueError: It is no dict literal.
    """
    try:
        return _mapping(ast.literal_eval(record.strip()))
    except (SyntaxError, TypeError, MemoryError, RecursionError) as exc:
        raise ValueError(f"no Python literal: {exc}") from None


def _mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("not an object")  # noqa: TRY004 (a fault of the text, not of the caller)
    return value


def item_function(item: ItemFields) -> Callable[[str | None], dict[str, str | None]]:
    """The function that DuckDB calls on each record; an unreadable one has no id, and is named afterwards."""

    def call(record: str | None) -> dict[str, str | None]:
        try:
            made = item(record or "")
        except ValueError:
            return {"item_id": None, "title": None, "attributes": None}
        return {
            "item_id": None if made.item_id is None else _clean(str(made.item_id)),
            "title": _clean(text_of(made.title)) or None,
            "attributes": _clean(attribute_texts(made.attributes)),
        }

    return call


def _clean(text: str) -> str:
    """Without lone surrogates, which no database text can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
