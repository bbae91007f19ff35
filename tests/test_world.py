"""The generated world holds what was planted, and its recommender reads profiles and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from world import (
    IMPERSONAL,
    QUALITIES,
    TEMPERS,
    ReadingRecommender,
    Taste,
    Words,
    World,
    completion,
    honest,
    make_world,
    prepared,
    read,
    recommender_server,
)

from duet import (
    Example,
    HTTPEndpoint,
    Interaction,
    Item,
    JointProfile,
    LLMRecommender,
    Profile,
    RatingReward,
    RewardEnv,
    User,
)
from duet_train.data.prepared import Prepared, PreparedExample

tastes = st.builds(
    lambda pair, temper: Taste(pair[0], pair[1], temper),
    st.permutations(QUALITIES).map(lambda order: (order[0], order[1])),
    st.sampled_from(list(TEMPERS)),
)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


@pytest.fixture(scope="module")
def data(world: World, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared(tmp_path_factory.mktemp("world") / "data", world)


@pytest.fixture(scope="module")
def held_out(data: Prepared) -> list[PreparedExample]:
    return data.examples("validation")


def profile(user: str, item: str) -> JointProfile:
    return JointProfile(user=Profile(text=user), item=Profile(text=item))


async def mean_reward(completions: Sequence[str], examples: Sequence[Example]) -> float:
    rewards = await RewardEnv([RatingReward(ReadingRecommender())]).score_many(completions, examples)
    values = [reward.value for reward in rewards if reward.value is not None]
    assert len(values) == len(examples)
    return sum(values) / len(values)


# The recommender


@given(tastes, st.sampled_from(QUALITIES))
def test_honest_profiles_foretell_the_rating(taste: Taste, quality: str) -> None:
    """What was planted, put in words, is read as the rating that came of it."""
    assert read(f"loved {taste.loves} hated {taste.hates} {taste.temper}", f"so {quality}") == taste.rating(quality)


@given(st.text(), st.text())
def test_any_text_is_read(user: str, item: str) -> None:
    """Whatever the profiles say, the prediction lies on the scale."""
    assert 1 <= read(user, item) <= 5


@pytest.mark.parametrize(
    ("user", "item"),
    [
        ("", ""),
        ("loved quiet", ""),
        ("", "so quiet"),
        ("loved food", "so nice"),
        ("quiet", "quiet"),
        ("hated fancy", "so quiet"),
    ],
)
def test_no_match_is_the_middle(user: str, item: str) -> None:
    """Where the profiles say nothing that fits together, the prediction is the middle of the scale."""
    assert read(user, item) == 3.0


def test_words_decide_not_their_number() -> None:
    """A longer profile, or one that repeats itself, predicts what the short one does."""
    short = read("loved quiet", "so quiet")
    assert read("loved quiet " * 50 + "and much more besides", "so quiet " * 50) == short == 5.0


@pytest.mark.anyio
async def test_records_are_not_read() -> None:
    """History, evidence, ids and titles that say it all change nothing."""
    told = [Interaction(user="quiet", item="loved quiet", rating=5.0, title="quiet", review="loved quiet")]
    user, item = (
        User("quiet", told, name="loved quiet strict"),
        Item("so quiet", title="so quiet", attributes={"quiet": "quiet"}),
    )
    silent = profile("visits places", "a place")
    assert await ReadingRecommender().predict(user, item, silent) == await ReadingRecommender().predict(
        User("u"), Item("i"), silent
    )


@pytest.mark.anyio
async def test_missing_profile_is_the_middle() -> None:
    """Without profiles there is nothing to read."""
    assert (await ReadingRecommender().predict(User("u"), Item("i"), None)).value == 3.0


@pytest.mark.anyio
@pytest.mark.usefixtures("nothing_leaks")
async def test_server_reads_what_the_recommender_reads() -> None:
    """Behind an address it gives the same ratings, and a title that names the quality is not read there either."""
    pairs = [profile("loved quiet strict", "so quiet"), profile("hated quiet", "so quiet"), profile("fair", "so nice")]
    item = Item("i", title="so quiet")
    async with recommender_server() as server, HTTPEndpoint(server.base_url, "reader") as endpoint:
        asked = LLMRecommender(endpoint, mode="decimal")
        answers = [(await asked.predict(User("u"), item, pair)).value for pair in pairs]
    assert answers == [4.0, 1.0, 3.0]


# The world


def test_same_seed_is_the_same_world() -> None:
    """A world is its seed's."""
    assert make_world(8, seed=1) == make_world(8, seed=1) != make_world(8, seed=2)


def test_held_out_users_and_places_are_new(data: Prepared, held_out: Sequence[PreparedExample]) -> None:
    """No user and no target of validation is a user or a target of training."""
    trained = data.examples("train")
    assert len(trained) > 200
    assert len(held_out) > 60
    for part in ("user", "item"):
        seen, new = ({getattr(one.example, part).id for one in rows} for rows in (trained, held_out))
        assert not seen & new


def test_each_example_is_a_whole_history(data: Prepared) -> None:
    """A user has one example, with four rows before it; the critics have none."""
    examples = data.examples("train") + data.examples("validation")
    assert {len(one.profile_user.history) for one in examples} == {4}
    assert len({one.example.user.id for one in examples}) == len(examples)


def test_data_alone_tell_the_taste(world: World, held_out: Sequence[PreparedExample]) -> None:
    """What a user loves and hates, and what a place is like, stand in the rows that a prompt shows."""
    for one in held_out:
        right = honest(world, one.example)
        reviews = {row.review for row in one.profile_user.history}
        assert {f"loved {right.loves}", f"hated {right.hates}"} <= reviews
        assert {row.review for row in one.example.item.evidence} <= {f"so {right.quality}"}


def test_labels_replace_last_ratings_alone(world: World, tmp_path: Path) -> None:
    """Permuted labels change targets, and neither history nor evidence."""
    small = make_world(8)
    before, after = (
        {one.example.user.id: one for one in prepared(tmp_path / name, small, labels).examples("train")}
        for name, labels in (("a", None), ("b", {"u1": 3.5, "u2": 2.5}))
    )
    assert {user: one.example.rating for user, one in after.items()} == {
        user: one.example.rating for user, one in before.items()
    } | {user: rating for user, rating in {"u1": 3.5, "u2": 2.5}.items() if user in before}
    for user, one in before.items():
        assert attrs.evolve(after[user].example, rating=one.example.rating) == one.example


@pytest.mark.anyio
async def test_honesty_pays(world: World, held_out: Sequence[PreparedExample]) -> None:
    """Honest profiles earn all there is; impersonal ones, and honest ones of another user, far less."""
    examples = [one.example for one in held_out]
    right = [honest(world, example) for example in examples]
    others = right[1:] + right[:1]
    strangers = [attrs.evolve(other, quality=own.quality) for own, other in zip(right, others, strict=True)]
    assert await mean_reward([completion(words, words) for words in right], examples) == 1.0
    for said in ([IMPERSONAL] * len(right), strangers):
        assert (
            await mean_reward([completion(own, words) for own, words in zip(right, said, strict=True)], examples) < 0.65
        )


@pytest.mark.anyio
async def test_cues_are_not_read(held_out: Sequence[PreparedExample], world: World) -> None:
    """Cues that say it all beside impersonal profiles earn what impersonal profiles earn."""
    example = held_out[0].example
    told, silent = honest(world, example), Words()
    assert await mean_reward([completion(told, silent)], [example]) == await mean_reward(
        [completion(silent, silent)], [example]
    )
