"""The catalogue term: the expected gain of the right item's rank, what is ranked, and what has no value."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import anyio
import numpy as np
import pytest
from embedding_space import Floats, Space, pair, values, written
from hypothesis import given, settings
from hypothesis import strategies as st

from duet import (
    CatalogueReward,
    ConfigurationError,
    EndpointUnavailable,
    Example,
    Item,
    ProfileSchema,
    RatingError,
    RewardEnv,
    TermScore,
    User,
)
from duet.testing import completion_text
from duet_train.retrieval import catalogue_figures

pytestmark = pytest.mark.anyio

# Ever further from the profile, c1 and c2 equally far on both of its sides.
PLANE = {"text": [1.0, 0.0], "b": [2.0, 0.1], "c1": [1.0, 1.0], "c2": [1.0, -1.0], "d": [0.0, 1.0], "e": [-1.0, 0.0]}
ITEMS = [Item(name, title=name) for name in PLANE if name != "text"]


async def scores(example: Example, space: Space | None = None, items: Sequence[Item] = ITEMS, **fields: Any) -> Any:
    """The one score of a profile."""
    term = CatalogueReward(space or Space(PLANE), items, **fields)
    (score,) = await term.score([written("text")], [example])
    return score


# The formula

numbers = st.lists(st.integers(-2, 2), min_size=2, max_size=2).filter(any)


def exact(profile: Sequence[int], item: Sequence[int]) -> Fraction:
    """The sign and square of the cosine, times what is the same for every item: ties are ties."""
    dot = sum(a * b for a, b in zip(profile, item, strict=True))
    return Fraction(dot * abs(dot), sum(a * a for a in item))


def mean_gain(profile: Sequence[int], items: list[list[int]], k: int, metric: str) -> float:
    """The gain of the first item, averaged over every order of all that sorts them by nearness."""
    near = [exact(profile, item) for item in items]
    gains = []
    for order in itertools.permutations(range(len(items))):
        if all(near[one] >= near[other] for one, other in itertools.pairwise(order)):
            rank = order.index(0) + 1
            gain = 1 / math.log2(rank + 1) if metric == "ndcg" else 1 / rank
            gains.append(gain if rank <= k else 0.0)
    return math.fsum(gains) / len(gains)


@given(
    numbers, st.lists(numbers, min_size=2, max_size=6), st.integers(1, 7) | st.none(), st.sampled_from(["ndcg", "mrr"])
)
@settings(deadline=None, max_examples=120)
def test_value_is_the_mean_gain_over_all_orders(
    profile: list[int], items: list[list[int]], k: int | None, metric: str
) -> None:
    """The value is the gain of the right item's rank, in expectation over the orders of equally near items."""
    vectors = {"text": profile} | {str(number): item for number, item in enumerate(items)}
    catalogue = [Item(str(number)) for number in range(len(items))]

    async def main() -> TermScore:
        return await scores(pair("ann", "0"), Space(vectors), catalogue, k=k, metric=metric)  # type: ignore[no-any-return]

    assert anyio.run(main).value == pytest.approx(mean_gain(profile, items, k or len(items), metric))


@given(st.lists(numbers, min_size=2, max_size=6), st.data())
@settings(deadline=None, max_examples=60)
def test_length_of_vectors_does_not_matter(items: list[list[int]], data: st.DataObject) -> None:
    """Only directions count, and ties stay ties."""
    catalogue = [Item(str(number)) for number in range(len(items))]
    plain = {"text": [1, 2]} | {str(number): item for number, item in enumerate(items)}
    factors = {text: data.draw(st.floats(1e-100, 1e100)) for text in plain}
    longer: dict[str, Floats] = {text: [factors[text] * number for number in vector] for text, vector in plain.items()}

    spaces: list[Mapping[str, Floats]] = [plain, longer]

    async def main() -> list[float]:
        return [(await scores(pair("ann", "0"), Space(vectors), catalogue)).value for vectors in spaces]

    first, second = anyio.run(main)
    assert first == pytest.approx(second)


async def test_equal_directions_tie_whatever_the_rounding() -> None:
    """Items in one direction are equally near, though their vectors of length 1 differ in the last bits."""
    vectors = {"text": [1.0, 1.0, 0.5]} | {str(n): [0.1 * n, 0.7 * n, 0.3 * n] for n in range(1, 41)}
    items = [Item(str(n)) for n in range(1, 41)]
    mean = math.fsum(1 / math.log2(rank + 1) for rank in range(1, 41)) / 40
    assert [(await scores(pair("ann", item.id), Space(vectors), items)).value for item in items] == [
        pytest.approx(mean)
    ] * 40


async def test_items_close_to_each_other_do_not_tie() -> None:
    """A small difference in nearness is a difference in rank."""
    vectors = {"text": [1.0, 0.0], "b": [1.0, 1e-4], "c": [1.0, 2e-4]}
    items = [Item("b"), Item("c")]
    assert [(await scores(pair("ann", name), Space(vectors), items)).value for name in "bc"] == [1, 1 / math.log2(3)]


@pytest.mark.parametrize(
    ("item", "value"),
    [("b", 1), ("c1", (1 / math.log2(3) + 1 / 2) / 2), ("c2", (1 / math.log2(3) + 1 / 2) / 2), ("e", 1 / math.log2(6))],
)
async def test_value_by_hand(item: str, value: float) -> None:
    """Rank 1 earns 1, rank 5 earns 1/log₂ 6, and two that share ranks 2 and 3 the mean of both."""
    assert (await scores(pair("ann", item))).value == pytest.approx(value)


@pytest.mark.parametrize(("k", "value"), [(1, 0), (2, 1 / math.log2(3) / 2), (3, (1 / math.log2(3) + 1 / 2) / 2)])
async def test_no_gain_beyond_k(k: int, value: float) -> None:
    """Where a tie reaches beyond k, the places beyond earn nothing."""
    assert (await scores(pair("ann", "c1"), k=k)).value == pytest.approx(value)


async def test_reciprocal_rank_where_asked_for() -> None:
    """The metric "mrr" takes 1 / rank."""
    assert (await scores(pair("ann", "e"), metric="mrr")).value == pytest.approx(1 / 5)


@pytest.mark.parametrize("had", [[], ["b"], ["b", "d"]])
@pytest.mark.parametrize("item", ["b", "c1", "e"])
async def test_value_is_the_one_that_evaluation_measures(item: str, had: list[str]) -> None:
    """The reward is the figure of `evaluate`, NDCG at a k of the whole catalogue or more."""
    names = [one.id for one in ITEMS]
    matrix = np.array([PLANE[name] for name in names])
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    seen = [names.index(name) for name in had]
    figures = catalogue_figures(np.array([[1.0, 0.0]]), matrix, [names.index(item)], [seen], ["ann"])
    assert (await scores(pair("ann", item, had=had))).value == pytest.approx(figures["ndcg@5"]["estimate"])


# What is ranked


@pytest.mark.parametrize(
    ("had", "seen"), [(["b", "c2"], {}), ([], {"ann": ["b", "c2"]}), (["b"], {"ann": {"c2", "c1"}, "bob": ["e"]})]
)
async def test_what_the_user_had_is_not_ranked(had: list[str], seen: dict[str, Any]) -> None:
    """What the user had, by the example or by what is known beside it, stands in nobody's way."""
    assert (await scores(pair("ann", "c1", had=had), seen=seen)).value == 1


async def test_item_that_comes_twice_counts_once() -> None:
    """An item of one id is one item."""
    assert (await scores(pair("ann", "d"), items=[*ITEMS, *ITEMS])).value == pytest.approx(1 / math.log2(5))


async def test_items_of_equal_texts_tie() -> None:
    """Two items that nothing tells apart share their ranks."""
    items = [Item("one", title="b"), Item("two", title="b"), Item("d", title="d")]
    assert (await scores(pair("ann", "one"), items=items)).value == pytest.approx((1 + 1 / math.log2(3)) / 2)


async def test_item_without_a_direction_is_not_ranked() -> None:
    """An item that the embedder makes nothing of stands in nobody's way."""
    assert (await scores(pair("ann", "c1"), Space(PLANE | {"b": [0.0, 0.0], "c2": [math.nan, 1.0]}))).value == 1


async def test_rest_of_the_batch_does_not_matter() -> None:
    """Each profile of a batch has the value that it has alone."""
    examples = [pair("ann", "b"), pair("ann", "c1"), pair("bob", "e", had=["b"])]
    batch = await CatalogueReward(Space(PLANE), ITEMS).score([written("text")] * 3, examples)
    assert values(batch) == [(await scores(example)).value for example in examples]


def test_rewards_may_be_kept() -> None:
    """An env with this term says that its rewards do not depend on the batch."""
    assert not RewardEnv([CatalogueReward(Space(PLANE), ITEMS)]).in_batch


# Which texts


async def test_each_text_is_embedded_once() -> None:
    """A batch asks for each item and each distinct profile once."""
    space = Space(PLANE)
    await CatalogueReward(space, ITEMS).score([written("text")] * 3, [pair("ann", "b")] * 3)
    assert sorted(space.asked) == sorted(PLANE)


@pytest.mark.parametrize("frozen", [False, True])
async def test_vectors_of_items_are_kept_only_where_frozen(frozen: bool) -> None:
    """A second call embeds the catalogue anew, or with a frozen embedder the profile alone."""
    space = Space(PLANE)
    term = CatalogueReward(space, ITEMS, frozen=frozen)
    for _ in range(2):
        await term.score([written("text")], [pair("ann", "b")])
    assert sorted(space.asked[len(PLANE) :]) == (["text"] if frozen else sorted(PLANE))


async def test_item_is_embedded_with_its_attributes() -> None:
    """Title and attributes of the catalogue are embedded, whatever the example's item is called."""
    space = Space(lambda text: [1.0, len(text)])
    items = [Item("b", title="Atlas", attributes={"genre": "maps"}), Item("d")]
    await scores(Example(User("ann"), Item("b", title="Other"), 4), space, items)
    assert sorted(space.asked) == ["Atlas. maps", "d", "text"]


# What has no value


async def test_item_outside_the_catalogue_is_the_error_of_its_row() -> None:
    """An item that is not in the catalogue has no rank, and the others have theirs."""
    found = await CatalogueReward(Space(PLANE), ITEMS).score([written("text")] * 2, [pair("u", "q"), pair("u", "b")])
    assert (values(found), str(found[0].error)) == ([None, 1], "the item 'q' is not in the catalogue")


@pytest.mark.parametrize("text", ["text", "b"])
async def test_no_direction_is_the_error_of_its_row(text: str) -> None:
    """Without a direction of the profile, or of the right item, there is no rank."""
    score = await scores(pair("ann", "b"), Space(PLANE | {text: [0.0, 0.0]}))
    assert (score.value, type(score.error)) == (None, RatingError)


async def test_missing_side_is_the_error_of_its_row() -> None:
    """A profile that says nothing of the user has no value, and asks for nothing."""
    space = Space(PLANE)
    (score,) = await CatalogueReward(space, ITEMS).score([written(None, "text")], [pair("ann", "b")])
    assert (type(score.error), space.calls) == (ConfigurationError, [])


async def test_embedders_fault_gives_no_reward() -> None:
    """Where the embedder is down the reward has no value, and is not 0."""

    class Down(Space):
        async def embed(self, texts: Sequence[str]) -> list[Floats]:
            raise EndpointUnavailable("down")

    env = RewardEnv([CatalogueReward(Down({}), ITEMS)], schema=ProfileSchema("user"))
    reward = await env.score(completion_text(ProfileSchema("user")), pair("ann", "b"))
    assert (reward.value, type(reward.error)) == (None, EndpointUnavailable)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"k": 0}, "k must"), ({"metric": "auc"}, "metric must"), ({"items": ITEMS[:1] * 2}, "two items or more, got 1")],
)
def test_settings_that_cannot_work_are_refused(fields: dict[str, Any], message: str) -> None:
    """A cut-off below one, an unknown metric and a catalogue of one item are refused."""
    with pytest.raises(ConfigurationError, match=message):
        CatalogueReward(Space(PLANE), **{"items": ITEMS, **fields})
