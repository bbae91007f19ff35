"""Public data sets as people find them. Set DUET_TEST_DATA to a folder of them to run these."""

from __future__ import annotations

import json
import os
import re
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from duet import Example, JointProfiler, JointPrompt, Outcome, RatingPrompt, RatingScale
from duet._dataset import Dataset, load
from duet.testing import ScriptedEndpoint, completion_text

FOLDER = os.environ.get("DUET_TEST_DATA", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="set DUET_TEST_DATA to a folder of data sets")

LARGE = "movielens_1m"  # 900 000 rows take six seconds to read, so one test does
SETS = sorted(path.parent.name for path in Path(FOLDER).glob("*/interactions.jsonl*")) if FOLDER else []
SMALL = [name for name in SETS if name != LARGE]
TEXTUAL = ["amazon_digital_music", "yelp_2021_sample", "amazon_beauty_2023"]
UNDATED = "book_crossing"

each_set = pytest.mark.parametrize("name", SMALL)
each_textual_set = pytest.mark.parametrize("name", TEXTUAL)


def facts_of(name: str) -> dict[str, Any]:
    """What the set says of itself."""
    facts: dict[str, Any] = json.loads((Path(FOLDER) / name / "dataset.json").read_text(encoding="utf-8"))
    return facts


@cache
def data_of(name: str) -> Dataset:
    """A set, read once."""
    return read(name)


def read(name: str) -> Dataset:
    """A set, or a skipped test where the folder holds none of the name."""
    if name not in SETS:
        pytest.skip(f"{FOLDER} holds no {name}")
    return load(Path(FOLDER) / name)


def examples_of(name: str, count: int = 200) -> list[Example]:
    """The first examples of a set."""
    return list(islice(data_of(name).examples(), count))


@each_set
def test_set_holds_what_it_says(name: str) -> None:
    """Every line of a set is read: as many ratings, users and items as its own description counts."""
    data, facts = data_of(name), facts_of(name)
    assert (len(data.rows), len(data.user_ids), len(data.items)) == (
        facts["interactions"],
        facts["users"],
        facts["items"],
    )


@each_set
def test_scale_is_the_sets_own(name: str) -> None:
    """The scale is the one in dataset.json, and every rating lies on it."""
    data, facts = data_of(name), facts_of(name)
    assert data.scale == RatingScale(facts["rating_min"], facts["rating_max"])
    assert all(row.rating in data.scale for row in data.rows)


@each_set
def test_examples_respect_time(name: str) -> None:
    """Nothing that an example sees is of its target's time or later, or is its target."""
    for example in examples_of(name):
        for row in (*example.user.history, *example.item.evidence):
            if example.at is None:
                assert (row.user, row.item) != (example.user.id, example.item.id)
            else:
                assert row.at is not None
                assert row.at < example.at


def test_large_set_is_read() -> None:
    """A set of 900 000 ratings is read and gives examples."""
    assert len(list(islice(read(LARGE).examples(), 20))) == 20


@each_textual_set
def test_no_text_from_the_data_holds_angle_brackets(name: str) -> None:
    """In the data's part of a prompt no character could open or close a tag."""
    for example in examples_of(name):
        _, message = JointPrompt().render(example.user, example.item)
        assert not re.search("[<>]", message["content"])


@each_textual_set
def test_every_line_of_a_prompt_is_short(name: str) -> None:
    """No review, title or attribute makes a line of more than 380 characters."""
    for example in examples_of(name):
        _, message = JointPrompt().render(example.user, example.item)
        assert max(map(len, message["content"].split("\n"))) <= 380


@each_textual_set
def test_a_prompt_shows_ten_rows_a_side(name: str) -> None:
    """However long a history is, ten of its rows are shown, and ten of the evidence."""
    for example in examples_of(name):
        _, message = JointPrompt().render(example.user, example.item)
        shown = len(re.findall(r"^\[\d+\] rated ", message["content"], re.M))
        assert shown == min(10, len(example.user.history)) + min(10, len(example.item.evidence))


@each_textual_set
def test_rating_prompt_holds_no_angle_brackets(name: str) -> None:
    """The recommender's prompt with raw interactions keeps the data's text harmless too."""
    for example in examples_of(name):
        _, message = RatingPrompt(recent=5).render(example.user, example.item, None)
        assert not re.search("[<>]", message["content"])


@pytest.mark.anyio
@each_textual_set
async def test_real_pairs_are_profiled(name: str) -> None:
    """Two hundred real pairs become two hundred profiles."""
    pairs = [(example.user, example.item) for example in examples_of(name)]
    async with JointProfiler(ScriptedEndpoint(completion_text())).profile_many(pairs, concurrency=8) as stream:
        outcomes: list[Outcome] = [outcome async for outcome in stream]
    assert sum(outcome.profile is not None for outcome in outcomes) == 200


def test_undated_set_has_no_times() -> None:
    """Book-Crossing holds no times, so no example has one."""
    assert {example.at for example in examples_of(UNDATED)} == {None}


def test_undated_set_is_on_its_own_scale() -> None:
    """Book-Crossing's examples lie on a scale of 1 to 10, and its prompts say so."""
    example = examples_of(UNDATED, 1)[0]
    _, message = JointPrompt(scale=data_of(UNDATED).scale).render(example.user, example.item)
    assert "on a scale of 1 to 10" in message["content"]


def test_undated_set_gives_an_example_a_user() -> None:
    """Without times, too, every user with two ratings has an example with a history."""
    data = data_of(UNDATED)
    several = [user_id for user_id in data.user_ids[:500] if len(data.user(user_id).history) > 1]
    assert [example.user.id for example in examples_of(UNDATED, len(several))] == several
