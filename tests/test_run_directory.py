"""What a run writes down: lines, groups, cards and swapped users."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet import Completion, Example, Item, JointPrompt, ProfileSchema, User, parse_profile
from duet.testing import completion_text

pytest.importorskip("trl")

from duet_train.callbacks import _number_groups, _swapped, append_lines, last_checkpoint, read_lines
from duet_train.card import plain
from duet_train.dataset import Row

SCHEMA = ProfileSchema()


def row(number: int, user: str) -> Row:
    example = Example(User(user), Item(f"i{number}"), 4.0)
    return Row(id=number, example=example, messages=JointPrompt().render(example.user, example.item), schema=SCHEMA)


def test_lines_come_back(tmp_path: Path) -> None:
    """What was appended is read again, in order."""
    path = tmp_path / "history.jsonl"
    append_lines(path, [{"step": 1}])
    append_lines(path, [{"step": 2}, {"step": 3}])
    assert [line["step"] for line in read_lines(path)] == [1, 2, 3]


@given(cut=st.integers(min_value=1, max_value=12))
def test_line_cut_by_a_kill_harms_no_other(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Wherever a kill cut the last line, those before and those written after it are whole."""
    path = tmp_path_factory.mktemp("run") / "history.jsonl"
    append_lines(path, [{"step": 1}, {"step": 2}])
    path.write_bytes(path.read_bytes()[:-cut])
    append_lines(path, [{"step": 3}])
    steps = [line["step"] for line in read_lines(path)]
    assert steps[0] == 1
    assert steps[-1] == 3


def test_what_is_no_number_is_null(tmp_path: Path) -> None:
    """Every line is JSON that any reader takes: no NaN and no infinity."""
    assert plain({"loss": float("nan"), "path": Path("x"), "many": (1, float("inf"))}) == {
        "loss": None,
        "path": "x",
        "many": [1, None],
    }


def test_groups_are_runs_of_one_example() -> None:
    """Completions of one example that follow each other are a group; a reward without a value is in none."""
    lines: list[dict[str, Any]] = [
        {"example": example, "reward": reward}
        for example, reward in [(1, 0.0), (1, 1.0), (2, None), (2, 0.5), (1, 0.2)]
    ]
    assert _number_groups(lines) == [[0.0, 1.0], [0.5], [0.2]]
    assert [line["group"] for line in lines] == [0, 0, 1, 1, 2]


def test_swapped_users_come_from_others() -> None:
    """Each item keeps its profile and gets that of another user, never one of the same user."""
    rows = [row(1, "ann"), row(2, "ann"), row(3, "bob")]
    texts = [completion_text(user_profile=f"of row {one.id}", item_profile=f"item {one.id}") for one in rows]
    profiles = {one: parse_profile(Completion(text), SCHEMA) for one, text in _swapped(rows, texts)}
    users = {one: profile.user.text for one, profile in profiles.items() if profile.user}
    assert users == {1: "of row 3", 2: "of row 3", 3: "of row 1"}
    assert [profile.item.text for profile in profiles.values() if profile.item] == ["item 1", "item 2", "item 3"]


def test_malformed_are_not_swapped() -> None:
    """A completion that is no profile is neither given nor taken."""
    rows = [row(1, "ann"), row(2, "bob"), row(3, "cid")]
    texts = [completion_text(), "nothing", completion_text()]
    assert [one for one, _ in _swapped(rows, texts)] == [1, 3]


def test_only_whole_checkpoints_count(tmp_path: Path) -> None:
    """The newest checkpoint that was marked as whole is the one to go on from, by number and not by name."""
    for step in (9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}" / "complete").touch()
    found = last_checkpoint(tmp_path)
    assert found is not None
    assert found.name == "checkpoint-10"


def test_card_survives_a_second_attempt(tmp_path: Path) -> None:
    """A card is rewritten whole and stays JSON."""
    from duet_train.card import Card

    card = Card(tmp_path, {"attempt": 0})
    card.update(status="running")
    card.update(status="finished", held_out={"start": {"reward": float("nan")}})
    assert json.loads((tmp_path / "card.json").read_text()) == {
        "attempt": 0,
        "status": "finished",
        "held_out": {"start": {"reward": None}},
    }
