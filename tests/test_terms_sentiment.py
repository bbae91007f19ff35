"""Like, neutral or dislike as a term: the rule of evaluation, and whose fault a missing value is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from embedding_space import pair, values, written
from hypothesis import given
from hypothesis import strategies as st

from duet import (
    ConfigurationError,
    EndpointUnavailable,
    Example,
    HTTPEndpoint,
    Item,
    JointProfile,
    LLMRecommender,
    Rating,
    RatingError,
    RatingScale,
    RewardEnv,
    SentimentReward,
    TermScore,
    User,
)
from duet._terms import sentiment
from duet.testing import ConstantRecommender, FakeServer, completion_text
from duet_train.metrics import sentiments

pytestmark = pytest.mark.anyio


class Predicts:
    """A recommender that answers in turn, or raises."""

    def __init__(self, *answers: Any) -> None:
        self.answers = iter(answers)

    async def predict(self, user: User, item: Item, profile: JointProfile | None) -> Rating | float:
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]  # whatever the test wants


async def scores(
    predicted: Sequence[Any], rated: Sequence[float], scale: RatingScale = RatingScale()
) -> list[TermScore]:
    """The scores of predictions beside the true ratings."""
    examples = [Example(User("ann"), Item("x"), rating, scale=scale) for rating in rated]
    return await SentimentReward(Predicts(*predicted), concurrency=1).score([written("likes x")] * len(rated), examples)


@pytest.mark.parametrize(
    ("rated", "predicted", "value"),
    [(5, 4, 1), (4, 5, 1), (4, 3, 0), (3, 3, 1), (3, 2, 0), (2, 1, 1), (1, 2, 1), (2, 4, 0), (4, 3.5, 1), (4, 3.49, 0)],
)
async def test_right_class_earns_one(rated: float, predicted: float, value: float) -> None:
    """On one to five, 4 and up is liked, 2 and down disliked; the same class earns 1, another 0."""
    assert values(await scores([predicted], [rated])) == [value]


quarters = st.tuples(st.integers(-20, 20), st.integers(1, 60))
scales = quarters.map(lambda pair: RatingScale(pair[0] / 4, (pair[0] + pair[1]) / 4)).filter(lambda scale: scale.points)


@given(st.floats(-30, 30) | st.integers(-80, 80).map(lambda number: number / 4), scales)
def test_classes_are_those_of_evaluation(rating: float, scale: RatingScale) -> None:
    """What is rewarded is the class that is measured, on every scale."""
    assert sentiment(rating, scale) == sentiments([rating], scale)[0]


async def test_classes_are_those_of_the_scale() -> None:
    """On one to ten, 8 and up is liked and 3 and down disliked."""
    found = await scores([8, 7, 3], [10, 10, 1], RatingScale(1, 10))
    assert values(found) == [1, 0, 1]


async def test_prediction_beyond_the_scale_counts_as_its_end() -> None:
    """A prediction far above the scale is a like."""
    assert values(await scores([99.0, -1e300], [5, 5])) == [1, 0]


async def test_score_keeps_what_the_recommender_said() -> None:
    """The score carries the recommender's rating."""
    rating = Rating(4.2, text="four and a bit")
    assert [score.rating for score in await scores([rating], [4])] == [rating]


@pytest.mark.parametrize("fault", [EndpointUnavailable("down"), RatingError("no"), ValueError("a bug")], ids=repr)
async def test_recommenders_fault_is_the_error_of_its_row(fault: Exception) -> None:
    """What the recommender raises over one profile leaves the others alone."""
    found = await scores([5, fault, 5], [5, 5, 5])
    assert (values(found), found[1].error) == ([1, None, 1], fault)


async def test_scale_without_whole_numbers_has_no_classes() -> None:
    """Where no whole number lies on the scale there are no classes, and the error says so."""
    (found,) = await scores([0.5], [0.5], RatingScale(0.2, 0.8))
    assert (found.value, type(found.error)) == (None, ConfigurationError)


async def test_recommender_on_another_scale_gives_no_value() -> None:
    """A recommender that predicts on another scale than the example's is an error in the settings."""

    class OnAScale(Predicts):
        scale = RatingScale(1, 10)

    (found,) = await SentimentReward(OnAScale(9)).score([written("likes x")], [pair("ann", "x")])
    assert type(found.error) is ConfigurationError


async def test_term_stands_beside_others() -> None:
    """The weight of the term multiplies it in the sum, under its own name."""
    env = RewardEnv([SentimentReward(ConstantRecommender(5), weight=0.5)])
    reward = await env.score(completion_text(), pair("ann", "x", rating=4))
    assert (reward.value, dict(reward.terms)) == (0.5, {"sentiment": 1.0})


async def test_reward_is_computed_over_http() -> None:
    """A language model behind a server is judged by the class of its rating."""
    async with FakeServer("<rating>4.61</rating>") as server, HTTPEndpoint(server.base_url, "fake") as endpoint:
        env = RewardEnv([SentimentReward(LLMRecommender(endpoint, mode="decimal"))])
        rewards = [await env.score(completion_text(), pair("ann", "x", rating=rating)) for rating in (4, 3)]
    assert [reward.value for reward in rewards] == [1, 0]


def test_term_needs_some_concurrency() -> None:
    """A term that may ask nothing at once is refused."""
    with pytest.raises(ConfigurationError, match="concurrency"):
        SentimentReward(ConstantRecommender(3), concurrency=0)
