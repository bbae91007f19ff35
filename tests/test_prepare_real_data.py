"""`prepare` on public data sets as people find them. Set DUET_TEST_DATA to a folder of them to run these."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from duet import ConfigurationError, JointPrompt
from duet_train.data.formats import FORMATS
from duet_train.data.prepared import Prepared
from duet_train.data.settings import Settings
from duet_train.prepare import prepare

FOLDER = os.environ.get("DUET_TEST_DATA", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="set DUET_TEST_DATA to a folder of data sets")

SETS = sorted(path.parent.name for path in Path(FOLDER).glob("*/interactions.jsonl*")) if FOLDER else []
TEXTUAL = ["amazon_digital_music", "yelp_2021_sample"]


def prepared(name: str, out: Path, settings: Settings) -> Prepared:
    """A set prepared in `out`, or a skipped test where the folder holds none of the name."""
    if name not in SETS:
        pytest.skip(f"{FOLDER} holds no {name}")
    interactions, items = (Path(FOLDER) / name / f"{part}.jsonl.gz" for part in ("interactions", "items"))
    prepare(partial(FORMATS["jsonl"], interactions=interactions, items=items), out, settings, progress=False)
    return Prepared.open(out)


def facts_of(name: str) -> dict[str, Any]:
    """What the set says of itself."""
    facts: dict[str, Any] = json.loads((Path(FOLDER) / name / "dataset.json").read_text(encoding="utf-8"))
    return facts


@pytest.mark.parametrize("name", SETS)
def test_five_core_is_as_large_as_the_set_says(name: str, tmp_path: Path) -> None:
    """Rows, users and items of the 5-core are those that the set's own description counts; an empty one is refused."""
    if not facts_of(name)["five_core"]["users"]:
        with pytest.raises(ConfigurationError, match="nothing is left of the 5-core"):
            prepared(name, tmp_path / "out", Settings(core=5))
        return
    counts = prepared(name, tmp_path / "out", Settings(core=5)).manifest["counts"]
    found = {"users": counts["users"], "items": counts["items"], "interactions": counts["rows"]}
    assert found == facts_of(name)["five_core"]


@pytest.mark.parametrize("name", TEXTUAL)
def test_last_row_of_each_user_is_the_test(name: str, tmp_path: Path) -> None:
    """Leaving the last one out without a core tests one row of each user who has two or more."""
    data = prepared(name, tmp_path / "out", Settings(core=0, split="leave-last-one-out"))
    users = data.matrix("test").users.tolist()
    assert len(set(users)) == len(users)
    sizes = [len(data.matrix(split).users) for split in ("train", "validation", "test")]
    assert (sum(sizes), sizes[1]) == (facts_of(name)["interactions"], facts_of(name)["users_ge3"])


@pytest.mark.parametrize("name", TEXTUAL)
def test_own_review_is_in_no_prompt(name: str, tmp_path: Path) -> None:
    """The words that a user wrote of the target are not in the prompt for it."""
    data = prepared(name, tmp_path / "out", Settings(core=0, split="leave-last-one-out"))
    reviews = {(row.user, row.item): row.review for row in _rows(data)}
    checked = 0
    for one in data.examples("test", sample=200):
        own = reviews.get((one.example.user.id, one.example.item.id), "")[:100]
        text = JointPrompt().render(one.example.user, one.example.item)[1]["content"]
        checked += len(own) == 100
        assert len(own) < 100 or own not in text
    assert checked > 20


def _rows(data: Prepared) -> list[Any]:
    """Rows that later items and histories show: enough to know many targets' own words."""
    late = [one.example for split in ("validation", "test") for one in data.examples(split)]
    return [row for example in late for row in (*example.user.history, *example.item.evidence)]
