"""The sample data that ships with the package, as records."""

from __future__ import annotations

import functools
import importlib.resources

from duet._dataset import Dataset, load
from duet._records import Example, Interaction, Item, User


def sample_users() -> tuple[User, ...]:
    """The sample data's users, each with the whole history."""
    data = _sample()
    return tuple(map(data.user, data.user_ids))


def sample_items() -> tuple[Item, ...]:
    """The sample data's items, each with attributes and the whole evidence."""
    data = _sample()
    return tuple(map(data.item, data.items))


def sample_interactions() -> tuple[Interaction, ...]:
    """The sample data's ratings with their reviews, in the file's order."""
    return _sample().rows


def sample_examples() -> tuple[Example, ...]:
    """One example a user: the last rating to predict, and what came before it to go by."""
    return tuple(_sample().examples())


@functools.cache
def _sample() -> Dataset:
    with importlib.resources.as_file(importlib.resources.files("duet") / "sample") as directory:
        return load(directory)
