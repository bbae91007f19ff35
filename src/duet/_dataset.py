"""Ratings on disk: ``interactions.jsonl[.gz]`` and ``items.jsonl[.gz]`` in one folder, read into pairs and examples.

Interactions have ``user_id``, ``item_id``, ``rating`` and, where known, ``timestamp`` (Unix seconds, UTC),
``review_title`` and ``review_text``. Items have ``item_id`` and, where known, ``title``; everything else of them
becomes an attribute. A ``dataset.json`` may give ``rating_min`` and ``rating_max``.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs

from duet._errors import ConfigurationError, RecordError
from duet._records import Example, Interaction, Item, RatingScale, User

# Averages and counts over all ratings hold the target's own, so they would leak it into the prompt.
_LEAKING = re.compile(
    r"(avg|average|mean)_?(rating|stars)|(rating|review)s?_?(number|count)|(num|n)_?(ratings|reviews)|stars", re.I
)


@attrs.frozen
class Dataset:
    """Ratings and items, indexed by user and by item.

    Args:
        rows: Every rating, in the file's order.
        items: By id, without evidence.
        scale: Of all ratings.
    """

    rows: tuple[Interaction, ...]
    items: Mapping[str, Item] = attrs.field(hash=False, repr=False)
    scale: RatingScale = RatingScale()
    _by_user: Mapping[str, list[Interaction]] = attrs.field(init=False, repr=False, eq=False)
    _by_item: Mapping[str, list[Interaction]] = attrs.field(init=False, repr=False, eq=False)

    @_by_user.default
    def _index_users(self) -> Mapping[str, list[Interaction]]:
        return _grouped(self.rows, "user")

    @_by_item.default
    def _index_items(self) -> Mapping[str, list[Interaction]]:
        return _grouped(self.rows, "item")

    @property
    def user_ids(self) -> tuple[str, ...]:
        """In the order of their first rating in the file."""
        return tuple(self._by_user)

    def user(self, user_id: str) -> User:
        """A user with the whole history; an unknown id has none."""
        return User(user_id, self._by_user.get(user_id, ()))

    def item(self, item_id: str) -> Item:
        """An item with the whole evidence; an unknown id has none."""
        item = self.items.get(item_id) or Item(item_id)
        return attrs.evolve(item, evidence=self._by_item.get(item_id, ()))

    def pair(self, user_id: str, item_id: str, at: datetime | None) -> tuple[User, Item]:
        """A pair with what lies strictly before `at`; with all there is where that is None."""
        user, item = self.user(user_id), self.item(item_id)
        return (user, item) if at is None else (user.before(at), item.before(at))

    def example(self, target: Interaction) -> Example:
        """The pair of one rating, with what lies strictly before it."""
        return Example(self.user(target.user), self.item(target.item), target.rating, at=target.at, scale=self.scale)

    def examples(self, *, min_history: int = 1) -> Iterator[Example]:
        """The last rating of each user who has at least `min_history` before it: leave-last-one-out."""
        for user_id in self._by_user:
            example = self.example(self.user(user_id).history[-1])
            if len(example.user.history) >= min_history:
                yield example


def load(directory: Path) -> Dataset:
    """Read a folder.

    Args:
        directory: Holds ``interactions.jsonl[.gz]`` and ``items.jsonl[.gz]``.

    Raises:
        ConfigurationError: A file is missing.
        RecordError: A line does not hold; names file, line and field.
    """
    items = {item.id: item for item in _read(directory, "items", _item)}
    titles = {item.id: item.title or "" for item in items.values()}
    rows = tuple(_read(directory, "interactions", lambda fields: _interaction(fields, titles)))
    return Dataset(rows, items, _scale(directory))


def _read(directory: Path, name: str, make: Any) -> Iterator[Any]:
    path = next((path for path in (directory / f"{name}.jsonl", directory / f"{name}.jsonl.gz") if path.exists()), None)
    if path is None:
        raise ConfigurationError(f"{directory}: neither {name}.jsonl nor {name}.jsonl.gz is there")
    for fields, where in read_lines(path):
        try:
            yield make(fields)
        except RecordError as exc:
            raise RecordError(f"{where}: {exc}", field=exc.field) from None


def read_lines(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """The JSON objects of a JSON-lines file, gzipped or not, each with "file:line" for messages.

    Raises:
        RecordError: A line is no JSON object.
        ConfigurationError: The file cannot be read.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _object(line, f"{path}:{number}"), f"{path}:{number}"
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as exc:
        raise ConfigurationError(f"cannot read {path}: {exc}") from exc


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise RecordError(f"{where}: not JSON: {exc}", field="line") from None
    if not isinstance(value, dict):
        raise RecordError(f"{where}: not a JSON object", field="line")
    return value


def instant(timestamp: object) -> datetime | None:
    """A time from Unix seconds.

    Raises:
        RecordError: It is neither a number that a date can hold nor None.
    """
    if timestamp is None:
        return None
    if isinstance(timestamp, int | float):
        try:
            return datetime.fromtimestamp(timestamp, UTC)
        except (ValueError, OverflowError, OSError):
            pass
    raise RecordError(f"timestamp must be Unix seconds or null, got {timestamp!r}", field="timestamp")


def required(fields: Mapping[str, Any], name: str) -> Any:
    """A field of a line.

    Raises:
        RecordError: It is not there.
    """
    if name not in fields:
        raise RecordError(f"{name} is missing", field=name)
    return fields[name]


def identifier(fields: Mapping[str, Any], name: str) -> str:
    """An id: text, or a whole number as its digits.

    Raises:
        RecordError: It is neither, or not there.
    """
    value = required(fields, name)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RecordError(f"{name} must be text or a whole number, got {value!r}", field=name)
    return str(value)


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise RecordError(f"{name} must be text or null, got {value!r:.80}", field=name)
    return value or ""


def _interaction(fields: Mapping[str, Any], titles: Mapping[str, str]) -> Interaction:
    item_id = identifier(fields, "item_id")
    review = ". ".join(filter(None, (_text(fields, name) for name in ("review_title", "review_text"))))
    return Interaction(
        user=identifier(fields, "user_id"),
        item=item_id,
        rating=required(fields, "rating"),
        title=titles.get(item_id, ""),
        review=review,
        at=instant(fields.get("timestamp")),
    )


def _item(fields: Mapping[str, Any]) -> Item:
    known = {name: value for name, value in fields.items() if name not in ("item_id", "title")}
    nested = known.pop("attributes", None)
    attributes = {**known, **(nested if isinstance(nested, Mapping) else {})}
    return Item(
        identifier(fields, "item_id"),
        title=fields.get("title"),
        attributes={
            name: _plain(value)
            for name, value in attributes.items()
            if value not in (None, "", []) and not _LEAKING.fullmatch(name)
        },
    )


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _scale(directory: Path) -> RatingScale:
    path = directory / "dataset.json"
    if not path.exists():
        return RatingScale()
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return RatingScale(facts.get("rating_min", 1), facts.get("rating_max", 5))
    except (OSError, ValueError, AttributeError) as exc:
        raise ConfigurationError(f"cannot read {path}: {exc}") from exc


def _grouped(rows: Iterable[Interaction], key: str) -> dict[str, list[Interaction]]:
    groups: defaultdict[str, list[Interaction]] = defaultdict(list)
    for row in rows:
        groups[getattr(row, key)].append(row)
    return dict(groups)
