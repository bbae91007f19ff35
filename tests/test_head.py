"""The fitted head: a frozen recommender that reads the profiles and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from duet import ConfigurationError, Interaction, Item, JointProfile, Profile, RatingScale, User
from duet_train.head import HeadRecommender, features, fit, item_text, predict, save, user_text

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
