"""The contrastive term: its formula, what is no negative, which texts it embeds, and what has no value."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import anyio
import numpy as np
import pytest
from embedding_space import Floats, Space, pair, values, written
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from duet import (
    ConfigurationError,
    ContrastiveReward,
    DuetError,
    Embedder,
    EndpointUnavailable,
    Example,
    HTTPEmbedder,
    Interaction,
    Item,
    JointProfile,
    LengthReward,
    ProfileSchema,
    RatingError,
    RewardEnv,
    TermScore,
    User,
)
from duet._nearness import Vectors, item_text
from duet.testing import Answer, FakeServer, completion_text
from duet_train import retrieval

pytestmark = pytest.mark.anyio

PLANE = {"x": [1.0, 0.0], "y": [0.0, 1.0], "likes x": [1.0, 0.0], "likes y": [0.0, 1.0], "both": [1.0, 1.0]}

Pairs = Sequence[tuple[JointProfile, Example]]


async def scores(pairs: Pairs, embedder: Embedder, **fields: Any) -> list[TermScore]:
    """The scores of a batch in this space."""
    profiles, examples = [profile for profile, _ in pairs], [example for _, example in pairs]
    return await ContrastiveReward(embedder, **fields).score(profiles, examples)


def scored(pairs: Pairs, embedder: Embedder, **fields: Any) -> list[float | None]:
    """The values of a batch, from where there is no event loop."""

    async def main() -> list[float | None]:
        return values(await scores(pairs, embedder, **fields))

    return anyio.run(main)


TWO = [(written("likes x"), pair("ann", "x")), (written("likes y"), pair("bob", "y"))]


# The formula

numbers = st.lists(st.integers(-3, 3), min_size=3, max_size=3).filter(any)


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[tuple[JointProfile, Example]], dict[str, Floats]]:
    """Rows of a few users and items, so that groups, shared items and known items occur; and where the texts lie."""
    histories = draw(st.fixed_dictionaries({user: st.sets(st.sampled_from("wxyz"), max_size=1) for user in "abc"}))
    keys = draw(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("wxyz"), st.integers(0, 3)), min_size=1))
    rows = [
        (written(f"{user} in words {text}"), pair(user, item, had=sorted(histories[user]))) for user, item, text in keys
    ]
    texts = {*"wxyz", *(f"{user} in words {text}" for user, _, text in keys)}
    return rows, {text: draw(numbers) for text in sorted(texts)}


def had(pairs: Pairs) -> dict[str, set[str]]:
    """The items of each user: history, and what they are to find."""
    found: dict[str, set[str]] = {}
    for _, example in pairs:
        found.setdefault(example.user.id, set()).update({example.item.id}, {row.item for row in example.user.history})
    return found


def text_of(profile: JointProfile) -> str:
    assert profile.user is not None
    return profile.user.text


def oracle(pairs: Pairs, vectors: dict[str, Floats], temperature: float) -> list[float | None]:
    """The formula over matrices: rows weighted so that each item, and each user, has the weight of one."""
    users = [example.user.id for _, example in pairs]
    items = [example.item.id for _, example in pairs]
    texts = [text_of(profile) for profile, _ in pairs]
    known = had(pairs)
    left, right = (np.array([vectors[key] for key in keys], dtype=np.float64) for keys in (texts, items))
    left, right = (matrix / np.linalg.norm(matrix, axis=1, keepdims=True) for matrix in (left, right))
    logits = left @ right.T / temperature
    of_user = {user: {text for text, one in zip(texts, users, strict=True) if one == user} for user in users}
    user_weight = [1 / len(of_user[user]) / texts.count(text) for user, text in zip(users, texts, strict=True)]
    item_weight = [1 / items.count(item) for item in items]
    found: list[float | None] = []
    for row, (user, item) in enumerate(zip(users, items, strict=True)):
        directions = []
        for near, weights, negative in (
            (logits[row], item_weight, [other not in known[user] for other in items]),
            (logits[:, row], user_weight, [other != user and item not in known[other] for other in users]),
        ):
            if any(negative):
                weighted = np.array(weights) * np.array(negative)
                below = logsumexp([*near, logits[row, row]], b=[*weighted, 1.0])
                directions.append(float(logits[row, row] - below))
        found.append(sum(directions) / len(directions) if directions else None)
    return found


@given(batches(), st.sampled_from([0.05, 0.1, 1.0]))
@settings(deadline=None, max_examples=150)
def test_value_is_the_mean_of_both_log_softmaxes(batch: Any, temperature: float) -> None:
    """The value is the mean of log softmax over items and over users, without what may be right."""
    rows, vectors = batch
    expected = oracle(rows, vectors, temperature)
    found = scored(rows, Space(vectors), temperature=temperature)
    assert [value is None for value in found] == [value is None for value in expected]
    assert [value or 0 for value in found] == pytest.approx([value or 0 for value in expected], abs=1e-9)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
async def test_value_of_one_profile_a_user_is_plain_infonce(temperature: float) -> None:
    """With one profile a user and one user an item it is InfoNCE in both directions, as one computes it by hand."""
    rows = [*TWO, (written("both"), pair("cy", "z"))]
    found = values(await scores(rows, Space(PLANE | {"z": [1.0, 1.0]}), temperature=temperature))
    near = math.sqrt(0.5) / temperature
    alone = -math.log1p((1 + math.exp(near)) / math.exp(1 / temperature))
    between = -math.log1p(2 * math.exp(near) / math.exp(1 / temperature))
    assert found == pytest.approx([alone, alone, between])


async def test_default_temperature() -> None:
    """The temperature is a tenth unless told otherwise."""
    assert values(await scores(TWO, Space(PLANE))) == values(await scores(TWO, Space(PLANE), temperature=0.1))


@given(batches(), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_order_of_the_batch_does_not_matter(batch: Any, random: Any) -> None:
    """A batch in another order has the same scores in that order."""
    rows, vectors = batch
    order = list(range(len(rows)))
    random.shuffle(order)
    found = scored(rows, Space(vectors))
    assert scored([rows[place] for place in order], Space(vectors)) == [found[place] for place in order]


@given(batches(), st.data())
@settings(deadline=None, max_examples=60)
def test_length_of_vectors_does_not_matter(batch: Any, data: st.DataObject) -> None:
    """Only directions count: vectors of any length give the same scores."""
    rows, vectors = batch
    factors = {text: data.draw(st.floats(1e-100, 1e100)) for text in vectors}
    longer = {text: [factors[text] * number for number in vector] for text, vector in vectors.items()}
    found, other = scored(rows, Space(vectors)), scored(rows, Space(longer))
    assert [value or 0 for value in other] == pytest.approx([value or 0 for value in found], abs=1e-9)


@given(batches(), st.integers(2, 4))
@settings(deadline=None, max_examples=60)
def test_size_of_the_groups_does_not_matter(batch: Any, size: int) -> None:
    """Each row as often as anyone likes: no copy punishes another, and none weighs more."""
    rows, vectors = batch
    assert scored(list(rows) * size, Space(vectors)) == scored(rows, Space(vectors)) * size


@given(batches(), st.lists(numbers, min_size=1, max_size=3))
@settings(deadline=None, max_examples=60)
def test_rest_of_the_group_does_not_matter(batch: Any, more: list[list[int]]) -> None:
    """What else was written for the same pair is no negative, wherever it lies."""
    rows, vectors = batch
    _, example = rows[0]
    group = [(written(f"attempt {number}"), example) for number in range(len(more))]
    space = Space(vectors | {f"attempt {number}": vector for number, vector in enumerate(more)})
    assert scored([*rows, *group], space)[0] == scored(rows, Space(vectors))[0]


@given(st.integers(0, 89), st.integers(1, 30))
@settings(deadline=None, max_examples=40)
def test_nearer_profile_earns_more(angle: int, closer: int) -> None:
    """Of two profiles that are equally far from all else, the one nearer to its item earns more."""
    texts = {"x": [1.0, 0.0, 0.0], "y": [0.0, 1.0, 0.0], "likes y": [0.0, 1.0, 0.0]}
    for name, degrees in (("far", angle + closer), ("near", angle)):
        texts[name] = [math.cos(math.radians(degrees)), 0.0, math.sin(math.radians(degrees))]
    rows = [(written("far"), pair("ann", "x")), (written("near"), pair("ann", "x")), TWO[1]]
    far, near, _ = scored(rows, Space(texts))
    assert far is not None
    assert near is not None
    assert near > far


@pytest.mark.parametrize("count", [2, 5])
async def test_one_text_for_all_earns_what_chance_does(count: int) -> None:
    """Where all is equally near, the value is −log n."""
    rows = [(written("the same"), pair(f"u{number}", f"i{number}")) for number in range(count)]
    found = values(await scores(rows, Space(lambda text: [1.0, 2.0])))
    assert found == pytest.approx([-math.log(count)] * count)


async def test_relative_value_of_chance_is_nothing() -> None:
    """Measured against chance, all equally near is 0, however many they are."""
    rows = [(written("the same"), pair(f"u{number}", f"i{number}")) for number in range(5)]
    found = values(await scores(rows, Space(lambda text: [1.0, 2.0]), relative=True))
    assert found == pytest.approx([0.0] * 5)


async def test_relative_value_of_certainty_is_one() -> None:
    """Measured against chance, a profile that finds its item for certain earns 1."""
    assert values(await scores(TWO, Space(PLANE), relative=True, temperature=0.01)) == pytest.approx([1, 1])


async def test_relative_value_compares_each_direction_with_its_own_chance() -> None:
    """Five items and two users have different levels of chance, and each is 0."""
    rows = [(written("one"), pair("ann", "x")), (written("two"), pair("bob", "y"))]
    more = [Item(name) for name in ("p", "q", "r")]
    found = values(await scores(rows, Space(lambda text: [1.0]), negatives=more, relative=True))
    assert found == pytest.approx([0, 0])


@pytest.mark.parametrize("temperature", [0, -1, math.inf, math.nan])
def test_temperature_must_be_positive(temperature: float) -> None:
    """A temperature that divides nothing is refused."""
    with pytest.raises(ConfigurationError, match="temperature must be above 0"):
        ContrastiveReward(Space({}), temperature=temperature)


# What is a negative


async def test_other_item_of_the_user_is_no_negative() -> None:
    """What the user is to find elsewhere in the batch does not count against them."""
    rows = [*TWO, (written("likes x"), pair("ann", "z"))]
    here, near = Space(PLANE | {"z": [-1.0, 0.0]}), Space(PLANE | {"z": [1.0, 0.1]})
    assert values(await scores(rows, here))[0] == values(await scores(rows, near))[0]


@pytest.mark.parametrize(("had", "seen"), [(["z"], {}), ([], {"ann": ["z"]})], ids=["history", "seen"])
async def test_item_that_the_user_had_is_no_negative(had: list[str], seen: dict[str, list[str]]) -> None:
    """What the user had, by the example or by what is known beside it, does not count against them."""
    rows = [(written("likes x"), pair("ann", "x", had=had)), TWO[1], (written("both"), pair("cy", "z"))]
    here, near = Space(PLANE | {"z": [-1.0, 0.0]}), Space(PLANE | {"z": [1.0, 0.1]})
    assert values(await scores(rows, here, seen=seen))[0] == values(await scores(rows, near, seen=seen))[0]


async def test_another_users_item_is_a_negative() -> None:
    """An item of another user that comes nearer costs."""
    rows = [*TWO, (written("both"), pair("cy", "z"))]
    here, near = Space(PLANE | {"z": [-1.0, 0.0]}), Space(PLANE | {"z": [1.0, 0.1]})
    far, close = values(await scores(rows, here))[0], values(await scores(rows, near))[0]
    assert far is not None
    assert close is not None
    assert close < far


@pytest.mark.parametrize(("had", "seen"), [(["x"], {}), ([], {"cy": ["x"]})], ids=["history", "seen"])
async def test_profile_of_a_user_who_had_the_item_is_no_negative(had: list[str], seen: dict[str, list[str]]) -> None:
    """A user who had the item may be as near to it as they like."""
    rows = [TWO[0], TWO[1], (written("both"), pair("cy", "z", had=had))]
    space = PLANE | {"z": [0.0, -1.0]}
    far, near = [await scores(rows, Space(space | {"both": [1.0, y]}), seen=seen) for y in (1.0, 0.1)]
    assert far[0].value == near[0].value


async def test_two_users_of_one_item_are_no_negatives() -> None:
    """Of two users that are to find the same item, neither costs the other anything."""
    rows = [(written("likes x"), pair("ann", "x")), (written("both"), pair("cy", "x"))]
    assert [type(score.error) for score in await scores(rows, Space(PLANE))] == [ConfigurationError] * 2


async def test_candidates_are_negatives_of_their_own_row() -> None:
    """The candidates of an example stand beside its item, and beside no other's."""
    space = Space(PLANE | {"z": [1.0, 0.0]})
    plain = values(await scores(TWO, space))
    mine, other = values(await scores([(TWO[0][0], pair("ann", "x", candidates=["z"])), TWO[1]], space))
    assert other == plain[1]
    assert mine == pytest.approx((plain[0] or 0) / 2 - math.log(2 + math.exp(-10)) / 2)


@pytest.mark.parametrize("again", ["x", "y"])
async def test_candidate_that_is_there_already_counts_once(again: str) -> None:
    """The right item, or one that the batch has, is not counted again as a candidate."""
    rows = [(TWO[0][0], pair("ann", "x", candidates=[again])), TWO[1]]
    assert values(await scores(rows, Space(PLANE))) == values(await scores(TWO, Space(PLANE)))


async def test_given_negatives_make_up_for_a_batch_of_one_user() -> None:
    """With negatives of its own the term scores one user alone, over items only."""
    near = 1 / 0.1 - math.sqrt(0.5) / 0.1
    found = values(await scores(TWO[:1], Space(PLANE | {"z": [1.0, 1.0]}), negatives=[Item("z")]))
    assert found == pytest.approx([-math.log1p(math.exp(-near))])


@pytest.mark.parametrize(
    "again",
    [Item("x", title="x"), Item("y", title="y"), Item("y", title="both")],
    ids=["the right one", "in the batch", "by another title"],
)
async def test_given_negative_that_is_in_the_batch_counts_once(again: Item) -> None:
    """An item of the batch is no further negative by being given too."""
    assert values(await scores(TWO, Space(PLANE), negatives=[again])) == values(await scores(TWO, Space(PLANE)))


@pytest.mark.parametrize(
    "rows", [TWO[:1], TWO[:1] * 8, [TWO[0], (written("both"), pair("ann", "y"))]], ids=["one", "a group", "a user"]
)
async def test_no_negatives_are_no_value(rows: Pairs) -> None:
    """Where everything in the batch may be right nothing can be said, and the error says what to do."""
    found = await scores(rows, Space(PLANE))
    assert values(found) == [None] * len(rows)
    assert all("give negatives=" in str(score.error) for score in found)


async def test_no_profiles_have_no_scores() -> None:
    """An empty batch is not embedded."""
    space = Space({})
    assert (await scores([], space), space.calls) == ([], [])


async def test_batches_of_different_lengths_are_refused() -> None:
    """Profiles and examples must be as many."""
    with pytest.raises(ValueError, match="zip"):
        await ContrastiveReward(Space(PLANE)).score([written("likes x")], [])


# Which texts


async def test_each_text_is_embedded_once() -> None:
    """A batch of groups asks for each distinct text once."""
    space = Space(PLANE)
    await scores([*TWO * 4], space)
    assert sorted(space.asked) == ["likes x", "likes y", "x", "y"]


@pytest.mark.parametrize("rating", [1, 5])
async def test_item_is_embedded_without_what_was_said_of_it(rating: float) -> None:
    """Of an item the title and the attributes are embedded: neither ratings nor reviews."""
    evidence = [Interaction(user="cy", item="x", rating=2, title="other", review="dreadful")]
    item = Item("x", evidence, title="Atlas", attributes={"year": "1999", "genre": "maps"})
    space = Space(lambda text: [1.0, len(text)])
    await scores([(written("likes x"), Example(User("ann"), item, rating)), TWO[1]], space)
    assert sorted(space.asked) == ["Atlas. maps. 1999", "likes x", "likes y", "y"]


@pytest.mark.parametrize(
    "item", [Item("i", title="T", attributes={"b": "2", "a": "1"}), Item("i", title="T"), Item("i")], ids=str
)
def test_item_is_embedded_as_in_evaluation(item: Item) -> None:
    """What is rewarded is embedded as what is measured."""
    assert item_text(item) == retrieval.item_text(item)


async def test_item_profiles_are_embedded_where_asked_for() -> None:
    """With item_profiles the item is what was written of it, and its record is not embedded."""
    rows = [(written("likes x", "of x"), pair("ann", "x")), (written("likes y", "of y"), pair("bob", "y"))]
    space = Space(PLANE | {"of x": [1.0, 0.0], "of y": [0.0, 1.0]})
    found = values(await scores(rows, space, item_profiles=True))
    assert found == values(await scores(TWO, Space(PLANE)))
    assert sorted(space.asked) == ["likes x", "likes y", "of x", "of y"]


async def test_item_profiles_of_one_item_share_its_weight() -> None:
    """Several profiles of another item count as one item, at their mean."""
    rows = [
        (written("likes x", "x"), pair("ann", "x")),
        *[(written("likes y", text), pair("bob", "y")) for text in "yz"],
    ]
    found = values(await scores(rows, Space(PLANE | {"z": [1.0, 0.0]}), item_profiles=True, temperature=1.0))
    items = 1 - math.log(math.e + (1 + math.e) / 2)
    users = 1 - math.log(math.e + 1)
    assert found[0] == pytest.approx((items + users) / 2)


@pytest.mark.parametrize(
    ("profile", "fields"),
    [(written(None, "of x"), {}), (written("likes x"), {"item_profiles": True})],
    ids=["no user", "no item"],
)
async def test_missing_side_is_the_error_of_its_row(profile: JointProfile, fields: dict[str, Any]) -> None:
    """A profile without the side that is read has no value, and the others have theirs."""
    whole = [(written(f"likes {item}", item), pair(user, item)) for user, item in (("bob", "y"), ("cy", "x"))]
    found = await scores([(profile, pair("ann", "z")), *whole], Space(PLANE), **fields)
    assert type(found[0].error) is ConfigurationError
    assert None not in values(found)[1:]


# An embedder that changes, and one that does not


class Learns(Space):
    """An embedder whose weights change."""

    updates = 0


@pytest.mark.parametrize(
    ("frozen", "again"), [(False, ["likes x", "likes y", "x", "y"]), (True, ["likes x", "likes y"])]
)
async def test_vectors_of_items_are_kept_only_where_frozen(frozen: bool, again: list[str]) -> None:
    """A second call embeds everything anew, or with a frozen embedder the profiles alone."""
    space = Space(PLANE)
    term = ContrastiveReward(space, frozen=frozen)
    for _ in range(2):
        await term.score([profile for profile, _ in TWO], [example for _, example in TWO])
    assert sorted(space.asked[4:]) == again


async def test_kept_vectors_give_the_same_scores() -> None:
    """Scores from kept vectors are those of the first call."""
    term = ContrastiveReward(Space(PLANE), frozen=True)
    first, second = [
        await term.score([profile for profile, _ in TWO], [example for _, example in TWO]) for _ in range(2)
    ]
    assert values(first) == values(second)


async def test_changed_embedder_changes_the_scores() -> None:
    """Without `frozen` the next call sees what the embedder has become."""
    space = Space(PLANE)
    term = ContrastiveReward(space)
    profiles, examples = [profile for profile, _ in TWO], [example for _, example in TWO]
    before = values(await term.score(profiles, examples))
    space.find = lambda text: [1.0, 1.0]
    assert values(await term.score(profiles, examples)) != before


@pytest.mark.parametrize(("updates", "asked"), [(0, 0), (1, 1)])
async def test_kept_vectors_are_forgotten_when_the_embedder_learns(updates: int, asked: int) -> None:
    """An embedder that counts its updates is embedded with anew after one."""
    space = Learns(PLANE)
    vectors = Vectors(space, frozen=True, most=9)
    await vectors.space([], ["x"])
    space.updates += updates
    await vectors.space([], ["x"])
    assert space.asked.count("x") == 1 + asked


async def test_no_more_vectors_are_kept_than_allowed() -> None:
    """Of more items than may be kept the oldest are forgotten."""
    space = Space(PLANE)
    vectors = Vectors(space, frozen=True, most=1)
    for items in (["x"], ["y"], ["y"], ["x"]):
        await vectors.space([], items)
    assert space.calls == [["x"], ["y"], ["x"]]


async def test_many_texts_come_in_several_calls() -> None:
    """Texts are embedded some hundred at a time, each once."""
    space = Space(lambda text: [1.0])
    await Vectors(space, frozen=False, most=0).space(map(str, range(1200)), [])
    assert (len(space.calls), sorted(map(int, space.asked))) == (3, list(range(1200)))


# What has no value


@pytest.mark.parametrize("vector", [[0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]], ids=repr)
async def test_profile_without_a_direction_is_the_error_of_its_row(vector: list[float]) -> None:
    """A profile that the embedder makes nothing of has no value, and is nobody's negative."""
    found = await scores([*TWO, (written("?"), pair("cy", "z"))], Space(PLANE | {"?": vector, "z": [-1.0, -1.0]}))
    more = await scores([*TWO, (written("?"), pair("cy", "z"))], Space(PLANE | {"?": [-1.0, -1.0], "z": [-1.0, -1.0]}))
    assert (found[2].value, type(found[2].error)) == (None, RatingError)
    assert all((one or 0) >= (other or 0) for one, other in zip(values(found)[:2], values(more)[:2], strict=True))


async def test_item_without_a_direction_is_the_error_of_its_rows() -> None:
    """An item that the embedder makes nothing of has no value, and is nobody's negative."""
    found = await scores([*TWO, (written("both"), pair("cy", "z"))], Space(PLANE | {"z": [0.0, 0.0]}))
    assert (found[2].value, type(found[2].error)) == (None, RatingError)
    assert None not in values(found)[:2]


@pytest.mark.parametrize(
    "vectors", [lambda text: [1.0] * len(text), lambda text: [1.0, 2.0][: len(text)]], ids=["by length", "short names"]
)
async def test_vectors_of_different_lengths_are_refused(vectors: Any) -> None:
    """Vectors that cannot be compared are an error, not a cosine of what they share."""
    with pytest.raises(DuetError, match="different lengths"):
        await scores(TWO, Space(vectors))


async def test_wrong_number_of_vectors_is_refused() -> None:
    """An embedder that loses a text is an error."""

    class Loses(Space):
        async def embed(self, texts: Sequence[str]) -> list[Floats]:
            return (await super().embed(texts))[1:]

    with pytest.raises(DuetError, match="3 vectors for 4 texts"):
        await scores(TWO, Loses(PLANE))


def user_only(text: str) -> str:
    return completion_text(ProfileSchema("user"), user_profile=text)


async def test_embedders_fault_gives_no_rewards() -> None:
    """Where the embedder is down no reward of the batch has a value."""

    class Down(Space):
        async def embed(self, texts: Sequence[str]) -> list[Floats]:
            raise EndpointUnavailable("down")

    env = RewardEnv([ContrastiveReward(Down({}))], schema=ProfileSchema("user"))
    rewards = await env.score_many([user_only("likes x"), "no profile"], [example for _, example in TWO])
    assert [(reward.value, type(reward.error).__name__) for reward in rewards] == [
        (None, "EndpointUnavailable"),
        (-1, "MalformedCompletion"),
    ]


async def test_reward_is_computed_over_http() -> None:
    """A server's embeddings reach the term, and a malformed completion of the batch is no part of it."""
    vectors = PLANE | {"z": [1.0, 0.0]}

    def answer(request: Any) -> Answer:
        data = [{"index": at, "embedding": vectors[text]} for at, text in enumerate(request.json["input"])]
        return Answer(body=json.dumps({"data": data}))

    async with FakeServer(answer) as server, HTTPEmbedder(server.base_url, "fake") as embedder:
        env = RewardEnv([ContrastiveReward(embedder)], schema=ProfileSchema("user"))
        texts = [user_only("likes x"), user_only("likes y"), "no profile"]
        rewards = await env.score_many(texts, [*(example for _, example in TWO), pair("cy", "z")])
    assert [reward.value for reward in rewards] == [*values(await scores(TWO, Space(PLANE))), -1]


# Rewards that hold in their batch alone


def test_env_with_the_term_depends_on_the_batch() -> None:
    """An env says that its rewards depend on the batch where one term does."""
    env = RewardEnv([LengthReward(9), ContrastiveReward(Space({}))])
    assert (env.in_batch, [term.name for term in env.terms]) == (True, ["length", "contrastive"])


def test_env_without_it_does_not() -> None:
    """An env of terms that look at one profile says that its rewards do not depend on the batch."""
    assert not RewardEnv([LengthReward(9)]).in_batch


async def test_term_is_part_of_a_sum() -> None:
    """The weight of the term multiplies it in the sum."""
    env = RewardEnv([ContrastiveReward(Space(PLANE), weight=0.5)], schema=ProfileSchema("user"))
    rewards = await env.score_many([user_only(text_of(one)) for one, _ in TWO], [example for _, example in TWO])
    assert [reward.value for reward in rewards] == [0.5 * reward.terms["contrastive"] for reward in rewards]
