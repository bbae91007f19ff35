"""The recommenders: profiles in, one rating on the scale out."""

from __future__ import annotations

import base64
import functools
import json
import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet import (
    Completion,
    ConfigurationError,
    EmbeddingRecommender,
    EndpointRejected,
    EndpointUnavailable,
    HTTPEmbedder,
    HTTPEndpoint,
    Interaction,
    Item,
    JointProfile,
    Ledger,
    LLMRecommender,
    Message,
    Profile,
    Rating,
    RatingError,
    RatingPrompt,
    RatingScale,
    Sampling,
    TokenLogprob,
    Usage,
    User,
)
from duet._recommender import cosine, predicted
from duet.testing import Answer, ConstantRecommender, FakeServer, ScriptedEndpoint

pytestmark = pytest.mark.anyio

HISTORY = [
    Interaction(user="ann", item=f"i{number}", rating=4, title=f"Title {number}", review=f"Review {number}.")
    for number in range(12)
]
USER = User("ann", HISTORY, name="Ann")
ITEM = Item("atlas", title="Atlas", attributes={"genre": "maps", "year": "1999"})
PROFILE = JointProfile(user=Profile(text="Loves maps."), item=Profile(text="An atlas of rivers."))
TEN = RatingScale(1, 10)
PICKLED_BY_0_1 = base64.b64decode(
    "gASV3QAAAAAAAACMDWR1ZXQuX3Jlc3VsdHOUjAZSYXRpbmeUk5QpgZR9lCiMBXZhbHVllEdADAAAAAAAAIwEdGV4dJSMATSUjA1w"
    "cm9iYWJpbGl0aWVzlEdACAAAAAAAAEc/4AAAAAAAAIaUR0AQAAAAAAAARz/gAAAAAAAAhpSGlIwFdXNhZ2WUaACMBVVzYWdllJOU"
    "KYGUfZQojA1wcm9tcHRfdG9rZW5zlEtajBFjb21wbGV0aW9uX3Rva2Vuc5RLAYwNY2FjaGVkX3Rva2Vuc5RLAIwJZXN0aW1hdGVk"
    "lIl1YnViLg=="
)


def scored(*alternatives: tuple[str, float], chosen: tuple[str, float] | None = None) -> Completion:
    """A one-token answer with the probabilities of what could stand in its place."""
    tops = tuple((token, math.log(probability)) for token, probability in alternatives)
    token, probability = chosen or alternatives[0]
    entry = TokenLogprob(token, math.log(probability), tops)
    return Completion(token, finish_reason="length", logprobs=(entry,), usage=Usage(90, 1))


async def predict(answer: Any, profile: JointProfile | None = PROFILE, **settings: Any) -> Rating:
    """One prediction."""
    return await LLMRecommender(ScriptedEndpoint(answer), **settings).predict(USER, ITEM, profile)


async def asked(profile: JointProfile | None = PROFILE, **settings: Any) -> tuple[Sequence[Message], Sampling]:
    """What one prediction asks of the endpoint."""
    endpoint = ScriptedEndpoint(scored(("4", 1.0)) if settings.get("mode", "expected") == "expected" else "4")
    await LLMRecommender(endpoint, **settings).predict(USER, ITEM, profile)
    return endpoint.calls[0]


# Expected rating


@pytest.mark.parametrize(
    ("alternatives", "mean"),
    [
        ([("4", 1.0)], 4.0),
        ([("4", 0.5), ("5", 0.25), ("3", 0.25)], 4.0),
        ([("5", 0.6), ("1", 0.2)], (5 * 0.6 + 1 * 0.2) / 0.8),
        ([("The", 0.7), ("2", 0.2), ("3", 0.1)], (2 * 0.2 + 3 * 0.1) / 0.3),
        ([(" 4", 0.3), ("4", 0.1), ("2", 0.4)], (4 * 0.4 + 2 * 0.4) / 0.8),
        ([("4", 0.5), ("7", 0.3), ("45", 0.1), ("4.5", 0.1)], 4.0),
    ],
    ids=["certain", "three", "two", "words", "leading space", "other numbers"],
)
async def test_expected_rating_is_the_mean_over_the_labels(alternatives: list[tuple[str, float]], mean: float) -> None:
    """The rating is the mean of the labels under their probabilities, normalised over the labels alone."""
    assert (await predict(scored(*alternatives), minimum_mass=0)).value == pytest.approx(mean)


async def test_probabilities_are_normalised_and_ascending() -> None:
    """The distribution names every rating of the scale, lowest first, and sums to one."""
    rating = await predict(scored(("5", 0.3), ("3", 0.3), ("The", 0.4)))
    assert list(rating.probabilities) == [(1.0, 0.0), (2.0, 0.0), (3.0, 0.5), (4.0, 0.0), (5.0, 0.5)]


async def test_letters_stand_for_ratings_of_two_digits() -> None:
    """On a scale to ten, A stands for 1 and J for 10."""
    assert (await predict(scored(("J", 0.5), ("A", 0.25), (" B", 0.25)), scale=TEN)).value == pytest.approx(5.75)


async def test_digits_are_no_labels_on_a_scale_to_ten() -> None:
    """Where letters are asked for, a digit is no rating."""
    with pytest.raises(RatingError):
        await predict(scored(("7", 1.0)), scale=TEN)


async def test_chosen_token_missing_from_the_list_is_added() -> None:
    """A server that leaves the chosen token out of the alternatives loses none of its weight."""
    assert (await predict(scored(("5", 0.25), chosen=("4", 0.75)))).value == pytest.approx(4.25)


async def test_chosen_token_in_the_list_counts_once() -> None:
    """A chosen token that is among the alternatives too is not counted twice."""
    assert (await predict(scored(("4", 0.5), ("2", 0.5)))).value == pytest.approx(3.0)


async def test_chosen_token_alone_is_enough() -> None:
    """A server that gives no alternatives at all still gives a rating."""
    entry = TokenLogprob("4", math.log(0.9))
    assert (await predict(Completion("4", logprobs=(entry,)))).value == pytest.approx(4.0)


async def test_only_the_first_token_counts() -> None:
    """Tokens after the first have no say."""
    entries = (TokenLogprob("4", 0.0), TokenLogprob("1", 0.0))
    assert (await predict(Completion("41", logprobs=entries))).value == pytest.approx(4.0)


async def test_no_logprobs_is_the_endpoints_fault() -> None:
    """An endpoint without log-probabilities is refused with the modes that need none."""
    with pytest.raises(EndpointRejected, match="mode='decimal' or 'integer'"):
        await predict("4")


@pytest.mark.parametrize("tops", [[("The", 0.9), ("A", 0.1)], [("6", 1.0)], [("0", 1.0)]], ids=repr)
async def test_no_label_among_the_tokens_is_a_rating_error(tops: list[tuple[str, float]]) -> None:
    """Where none of the likeliest tokens is on the scale there is no rating, and the text says what came."""
    with pytest.raises(RatingError) as caught:
        await predict(scored(*tops))
    assert caught.value.text == tops[0][0]


@given(st.lists(st.tuples(st.sampled_from("12345"), st.floats(-50, 0)), min_size=1, max_size=20))
def test_expected_rating_lies_between_the_labels(tops: list[tuple[str, float]]) -> None:
    """The mean never leaves the range of the labels that had any weight."""
    entry = TokenLogprob(tops[0][0], tops[0][1], tuple(tops))
    rating = anyio.run(functools.partial(predict, minimum_mass=0), Completion("", logprobs=(entry,)))
    found = [int(token) for token, _ in tops]
    assert min(found) - 1e-9 <= rating.value <= max(found) + 1e-9


THOUGHT = ("<think>", 1.0)


@pytest.mark.parametrize(
    ("alternatives", "mass"),
    [
        ([("4", 1.0)], 1.0),
        ([("4", 0.5), ("2", 0.25), ("The", 0.25)], 0.75),
        ([("▁4", 0.25), ("4", 0.25), (" 4", 0.125), ("Ġ4", 0.125)], 0.75),
        ([("\n5", 0.5), ("Ċ5", 0.25)], 0.75),
        ([("4", 0.75), ("4", 0.75)], 1.0),
    ],
    ids=["certain", "word beside", "spaces", "line feeds", "never above one"],
)
async def test_mass_of_the_labels_is_on_the_rating(alternatives: list[tuple[str, float]], mass: float) -> None:
    """The rating says how probable all labels were together, however a vocabulary writes the space before them."""
    assert (await predict(scored(*alternatives))).mass == pytest.approx(mass)


@pytest.mark.parametrize("mark", ["▁", "Ġ", " ", "\n", "Ċ", "\u00a0"], ids=ascii)
async def test_a_label_with_a_space_is_the_same_label(mark: str) -> None:
    """The two ways to write 4 have the larger part of the probability together, and no other label gains by it."""
    rating = await predict(scored(("4", 0.25), (f"{mark}4", 0.25), ("1", 0.5)))
    assert rating.probabilities == ((1.0, 0.5), (2.0, 0.0), (3.0, 0.0), (4.0, 0.5), (5.0, 0.0))


@pytest.mark.parametrize(
    "alternatives",
    [
        [THOUGHT, ("1", math.exp(-20)), ("2", math.exp(-20)), ("3", math.exp(-25))],
        [("The", 0.7), ("2", 0.2), ("3", 0.1)],
        [("4", 0.49), ("I", 0.4)],
        [THOUGHT],
    ],
    ids=["thinks", "words", "just below half", "no label at all"],
)
async def test_a_small_mass_is_a_rating_error(alternatives: list[tuple[str, float]]) -> None:
    """Where the labels have less than half of the probability, what is left of them is no rating."""
    with pytest.raises(RatingError) as caught:
        await predict(scored(*alternatives))
    assert caught.value.text == alternatives[0][0]


async def test_error_says_that_the_model_thinks_and_how_to_stop_it() -> None:
    """The message of a small mass names the likeliest token, the cause, and the setting to change."""
    with pytest.raises(RatingError) as caught:
        await predict(scored(THOUGHT, ("4", math.exp(-20))))
    for part in (
        "'<think>'",
        "thinks",
        "extra_body",
        '{"chat_template_kwargs": {"enable_thinking": false}}',
        "decimal",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("minimum", [0.0, 1e-9, 0.3])
async def test_a_lower_minimum_accepts_less(minimum: float) -> None:
    """A caller who knows the model may accept any mass but none at all."""
    rating = await predict(scored(("The", 0.7), ("2", 0.2), ("3", 0.1)), minimum_mass=minimum)
    assert [rating.value, rating.mass] == pytest.approx([7 / 3, 0.3])


async def test_a_higher_minimum_accepts_more_only() -> None:
    """A minimum of 1 refuses what leaves a part to other tokens."""
    with pytest.raises(RatingError):
        await predict(scored(("4", 0.9), ("The", 0.1)), minimum_mass=1)


@pytest.mark.parametrize("minimum", [-0.1, 1.1, math.nan])
def test_minimum_mass_is_a_probability(minimum: float) -> None:
    """A minimum that is no probability is refused before anything is asked."""
    with pytest.raises(ConfigurationError, match="minimum_mass"):
        LLMRecommender(ScriptedEndpoint("4"), minimum_mass=minimum)


@pytest.mark.parametrize("mode", ["decimal", "integer"])
async def test_written_rating_has_no_mass(mode: str) -> None:
    """A rating that was read from words has no mass."""
    assert (await predict("4", mode=mode)).mass is None


@pytest.mark.parametrize("logprob", [math.nan, math.inf, 3.0], ids=str)
@pytest.mark.parametrize("label", ["4", "The"])
async def test_what_is_no_logprob_is_the_endpoints_fault(logprob: float, label: str) -> None:
    """NaN, and a logarithm above zero, are nothing that a rating can be made of: the endpoint's fault."""
    entry = TokenLogprob("5", -0.1, (("5", -0.1), (label, logprob)))
    with pytest.raises(EndpointUnavailable, match="log-probability"):
        await predict(Completion("5", logprobs=(entry,)))


@pytest.mark.parametrize("logprob", [-math.inf, -9999.0], ids=str)
async def test_impossible_alternatives_count_as_nothing(logprob: float) -> None:
    """Servers write an impossible token as minus infinity, or as a very small number."""
    entry = TokenLogprob("5", 0.0, (("5", 0.0), ("1", logprob)))
    assert (await predict(Completion("5", logprobs=(entry,)))).value == 5.0


async def over_http(entry: TokenLogprob | dict[str, Any], **settings: Any) -> Rating:
    """What is predicted from an answer whose body holds these log-probabilities, as they are."""
    choice = {"index": 0, "message": {"content": "4"}, "finish_reason": "length", "logprobs": {"content": [entry]}}
    body = json.dumps({"object": "chat.completion", "model": "fake", "choices": [choice]})
    async with (
        FakeServer(Answer(body=body)) as server,
        HTTPEndpoint(server.base_url, "fake", retries=0) as endpoint,
    ):
        return await LLMRecommender(endpoint, **settings).predict(USER, ITEM, PROFILE)


def written_entry(own: Any, *tops: tuple[str, Any]) -> dict[str, Any]:
    """OpenAI's object of one token."""
    return {"token": "4", "logprob": own, "top_logprobs": [{"token": name, "logprob": value} for name, value in tops]}


@pytest.mark.parametrize(
    "entry",
    [
        written_entry(-0.5, ("4", -0.5), ("2", None)),
        written_entry(None, ("2", None), ("4", -0.5)),
        written_entry(-0.5, ("4", None), ("2", None)),
        {"token": "4", "logprob": -0.5, "top_logprobs": [None]},
    ],
    ids=["other", "token's own", "token among the alternatives", "whole entry"],
)
async def test_null_alternative_is_left_out(entry: dict[str, Any]) -> None:
    """An alternative whose log-probability is null says nothing, and the others stay what they are."""
    rating = await over_http(entry)
    assert [rating.value, rating.mass] == pytest.approx([4.0, math.exp(-0.5)])


@pytest.mark.parametrize(
    "entry",
    [
        written_entry(math.nan, ("4", -0.5)),
        written_entry(-0.5, ("4", -0.5), ("2", math.nan)),
        written_entry("NaN"),
        written_entry(math.inf),
        written_entry(None),
    ],
    ids=["own", "alternative", "as text", "infinite", "nothing at all"],
)
async def test_nan_over_http_is_the_endpoints_fault(entry: dict[str, Any]) -> None:
    """A body with NaN for a log-probability is no usable answer."""
    with pytest.raises(EndpointUnavailable):
        await over_http(entry)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_rating_survives_pickling(protocol: int) -> None:
    """A rating with all its fields is the same after a pickle."""
    rating = Rating(3.5, text="4", probabilities=((3.0, 0.5), (4.0, 0.5)), usage=Usage(90, 1), mass=0.75)
    assert pickle.loads(pickle.dumps(rating, protocol)) == rating  # noqa: S301 - our own


def test_rating_pickled_by_0_1_still_loads() -> None:
    """A rating that was pickled before there was a mass has none."""
    rating = pickle.loads(PICKLED_BY_0_1)  # noqa: S301 - our own
    assert rating == Rating(3.5, text="4", probabilities=((3.0, 0.5), (4.0, 0.5)), usage=Usage(90, 1))
    assert rating.mass is None


async def test_expected_mode_asks_for_one_scored_token() -> None:
    """One token, greedy, with twenty alternatives is what the mode asks for."""
    _, sampling = await asked()
    assert sampling == Sampling(temperature=0.0, seed=42, max_tokens=1, logprobs=True, top_logprobs=20)


async def test_more_alternatives_where_asked_for() -> None:
    """A caller's top_logprobs replaces the twenty."""
    _, sampling = await asked(sampling=Sampling(top_logprobs=200, max_tokens=99))
    assert (sampling.top_logprobs, sampling.max_tokens) == (200, 1)


async def test_expected_rating_over_http() -> None:
    """Log-probabilities reach the recommender over the wire."""
    entry = TokenLogprob("4", math.log(0.5), (("4", math.log(0.5)), ("2", math.log(0.5))))
    async with (
        FakeServer(Answer("4", logprobs=[entry])) as server,
        HTTPEndpoint(server.base_url, "fake") as endpoint,
    ):
        rating = await LLMRecommender(endpoint).predict(USER, ITEM, PROFILE)
    assert rating.value == pytest.approx(3.0)


@pytest.mark.parametrize("scale", [RatingScale(0.2, 0.8), RatingScale(0, 100)], ids=str)
def test_scale_without_fitting_labels_is_refused(scale: RatingScale) -> None:
    """Mode 'expected' needs between two and 26 whole numbers on the scale."""
    with pytest.raises(ConfigurationError, match="whole numbers"):
        LLMRecommender(ScriptedEndpoint("4"), scale=scale)


# A rating in words


@pytest.mark.parametrize(
    ("mode", "text", "value"),
    [
        ("decimal", "<rating>3.87</rating>", 3.87),
        ("decimal", "4", 4.0),
        ("integer", "<rating>4</rating>", 4.0),
        ("integer", "I would say 4 out of 5.", 4.0),
        ("integer", "<think>2 or 3?</think>3", 3.0),
    ],
)
async def test_written_rating_is_parsed(mode: str, text: str, value: float) -> None:
    """The modes in words read what parse_rating reads."""
    assert (await predict(text, mode=mode)).value == value


@pytest.mark.parametrize("mode", ["decimal", "integer"])
@pytest.mark.parametrize("text", ["", "no idea", "3 or 4", "<rating>7</rating>"])
async def test_answer_without_one_rating_is_refused(mode: str, text: str) -> None:
    """An answer with no number, several, or one off the scale raises with its text."""
    with pytest.raises(RatingError) as caught:
        await predict(text, mode=mode)
    assert caught.value.text == text


async def test_written_rating_keeps_text_and_usage() -> None:
    """The rating carries the recommender's own words and the tokens spent."""
    rating = await predict(Completion("<rating>4</rating>", usage=Usage(90, 6)), mode="integer")
    assert (rating.text, rating.usage) == ("<rating>4</rating>", Usage(90, 6))


async def test_expected_rating_keeps_text_and_usage() -> None:
    """The expected rating carries the token and the tokens spent too."""
    rating = await predict(scored(("4", 1.0)))
    assert (rating.text, rating.usage) == ("4", Usage(90, 1))


@pytest.mark.parametrize("mode", ["decimal", "integer"])
async def test_written_rating_asks_for_twenty_tokens(mode: str) -> None:
    """Unless told otherwise a written rating may have twenty tokens and needs no log-probabilities."""
    _, sampling = await asked(mode=mode)
    assert sampling == Sampling(temperature=0.0, seed=42, max_tokens=20)


async def test_callers_token_limit_is_kept() -> None:
    """A caller's max_tokens replaces the twenty."""
    _, sampling = await asked(mode="decimal", sampling=Sampling(max_tokens=500))
    assert sampling.max_tokens == 500


@pytest.mark.parametrize("mode", ["expected", "decimal", "integer"])
async def test_limit_under_the_newer_name_is_the_only_one(mode: str) -> None:
    """Where max_completion_tokens is set no max_tokens goes along, since reasoning models refuse it."""
    _, sampling = await asked(mode=mode, sampling=Sampling(max_completion_tokens=500))
    fields = sampling.request_fields()
    assert (fields["max_completion_tokens"], "max_tokens" in fields) == (500, False)


async def test_scale_holds_for_written_ratings() -> None:
    """A rating in words is checked against the recommender's own scale."""
    assert (await predict("8.5", mode="decimal", scale=TEN)).value == 8.5


def test_unknown_mode_is_refused() -> None:
    """A mode that is none of the three is refused by its name."""
    mode: Any = "guess"
    with pytest.raises(ConfigurationError, match="guess"):
        LLMRecommender(ScriptedEndpoint("4"), mode=mode)


# What is shown


@pytest.mark.parametrize("profile", [PROFILE, None], ids=["profile", "no profile"])
@pytest.mark.parametrize("mode", ["expected", "decimal", "integer"])
@pytest.mark.parametrize("guarded", [False, True])
async def test_what_is_sent_is_what_the_prompt_renders(guarded: bool, mode: Any, profile: JointProfile | None) -> None:
    """The messages are those of RatingPrompt.render."""
    messages, _ = await asked(profile, mode=mode, recent=2, guarded=guarded)
    assert messages == RatingPrompt(mode=mode, recent=2, guarded=guarded).render(USER, ITEM, profile)


async def test_recent_interactions_are_shown() -> None:
    """The newest rows of the history, as many as asked for, stand beside the profile."""
    messages, _ = await asked(recent=2)
    shown = [number for number in range(12) if f"Title {number}\n" in messages[1]["content"]]
    assert shown == [10, 11]


async def test_without_recent_no_interaction_is_shown() -> None:
    """By default the recommender sees the profile and no raw history."""
    messages, _ = await asked()
    assert "Title" not in messages[1]["content"]


async def test_without_profile_the_records_are_left() -> None:
    """With neither profile nor recent interactions the item's title is all there is."""
    messages, _ = await asked(None)
    assert "Nothing is known of this user." in messages[1]["content"]
    assert "title: Atlas" in messages[1]["content"]


async def test_endpoints_error_passes_through() -> None:
    """What the endpoint raises leaves predict as the very same object."""
    error = EndpointUnavailable("down")
    with pytest.raises(EndpointUnavailable) as caught:
        await predict(error)
    assert caught.value is error


@pytest.mark.parametrize("answer", [scored(("4", 0.5), ("5", 0.5)), "no label"], ids=["expected", "no logprobs"])
async def test_ledger_answers_the_second_time(tmp_path: Path, answer: Completion | str) -> None:
    """What is in the ledger is not asked again, be it a rating or none."""
    endpoint = ScriptedEndpoint(answer)
    found: list[Rating | type[Exception]] = []
    async with Ledger(tmp_path / "ledger.db") as ledger:
        for _ in range(2):
            try:
                found.append(await LLMRecommender(endpoint, ledger=ledger).predict(USER, ITEM, PROFILE))
            except EndpointRejected as exc:
                found.append(type(exc))
    assert (len(endpoint.calls), found[0]) == (1, found[1])


# A caller's own


class Returns:
    """A recommender that returns what it is given."""

    def __init__(self, value: Any) -> None:
        self._value = value

    async def predict(self, user: User, item: Item, profile: JointProfile | None) -> Any:
        return self._value


@pytest.mark.parametrize("value", [3, 3.5, Rating(3.5, text="mine")])
async def test_number_or_rating_is_taken(value: Rating | float) -> None:
    """A recommender may return a plain number or a Rating."""
    expected = value if isinstance(value, Rating) else Rating(value)
    assert await predicted(Returns(value), USER, ITEM, PROFILE) == expected


@pytest.mark.parametrize("value", [None, "many", math.nan, math.inf, object()])
async def test_what_is_no_number_is_a_rating_error(value: Any) -> None:
    """What a recommender returns and is no finite number is a RatingError."""
    with pytest.raises(RatingError, match="no rating"):
        await predicted(Returns(value), USER, ITEM, PROFILE)


async def test_a_predict_that_is_not_async_is_a_configuration_error() -> None:
    """A recommender whose predict is an ordinary function is refused with a sentence that says so."""

    class Plain:
        def predict(self, user: User, item: Item, profile: JointProfile | None) -> float:
            return 3.0

    with pytest.raises(ConfigurationError, match="must be async"):
        await predicted(Plain(), USER, ITEM, PROFILE)  # type: ignore[arg-type]


# Embeddings


class Vectors:
    """An embedder with the vectors given."""

    def __init__(self, *vectors: Sequence[float]) -> None:
        self._vectors = vectors
        self.texts: list[str] = []

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        self.texts = list(texts)
        return self._vectors


async def nearness(degrees: float, **settings: Any) -> float:
    """The rating for two vectors at this angle."""
    turned = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return (await EmbeddingRecommender(Vectors((1, 0), turned), **settings).predict(USER, ITEM, PROFILE)).value


async def test_nearer_profiles_have_a_higher_rating() -> None:
    """The rating falls as the angle between the profiles grows."""
    ratings = [await nearness(degrees, low=-1.0) for degrees in range(0, 181, 15)]
    assert ratings == sorted(set(ratings), reverse=True)


@pytest.mark.parametrize(
    ("degrees", "settings", "value"),
    [
        (0, {}, 5.0),
        (90, {}, 1.0),
        (60, {}, 3.0),
        (180, {}, 1.0),
        (60, {"low": 0.6, "high": 0.9}, 1.0),
        (0, {"low": 0.0, "high": 0.5}, 5.0),
        (90, {"low": -1.0}, 3.0),
        (60, {"scale": TEN}, 5.5),
    ],
)
async def test_cosine_is_mapped_in_a_straight_line(degrees: float, settings: dict[str, Any], value: float) -> None:
    """`low` stands for the lowest rating, `high` for the highest, and what lies beyond is clipped."""
    assert await nearness(degrees, **settings) == pytest.approx(value)


@pytest.mark.parametrize(
    ("low", "high"), [(0.5, 0.5), (0.6, 0.4), (-1.1, 1.0), (0.0, 1.1), (math.nan, 1.0), (0.0, math.nan)]
)
def test_limits_that_cannot_work_are_refused(low: float, high: float) -> None:
    """Two limits out of order, or off the range of a cosine, are refused."""
    with pytest.raises(ConfigurationError, match="low"):
        EmbeddingRecommender(Vectors(), low=low, high=high)


@pytest.mark.parametrize("vectors", [((0, 0), (1, 0)), ((1, 0), (0, 0)), ((), ())])
async def test_zero_vector_is_a_rating_error(vectors: tuple[Sequence[float], Sequence[float]]) -> None:
    """Where a vector is zero there is no angle and no rating."""
    with pytest.raises(RatingError, match="zero"):
        await EmbeddingRecommender(Vectors(*vectors)).predict(USER, ITEM, PROFILE)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
async def test_vector_that_is_not_finite_is_a_rating_error(value: float) -> None:
    """An embedding with NaN or infinity in it has no angle and gives no rating."""
    with pytest.raises(RatingError, match="not finite"):
        await EmbeddingRecommender(Vectors((value, 1.0), (1.0, 0.0))).predict(USER, ITEM, PROFILE)


@pytest.mark.parametrize("length", [1e-320, 1e-200, 1e200, 1.7e308])
async def test_length_of_a_vector_does_not_matter(length: float) -> None:
    """The shortest and the longest vectors that a float can hold have an angle like all others."""
    vectors = Vectors((length, 0.0), (length, 0.0))
    assert (await EmbeddingRecommender(vectors).predict(USER, ITEM, PROFILE)).value == 5.0


NO_USER = JointProfile(item=Profile(text="An atlas of rivers."))
NO_ITEM = JointProfile(user=Profile(text="Loves maps."))
TITLES = "; ".join(f"Title {number}" for number in range(2, 12))


@pytest.mark.parametrize(
    ("profile", "texts"),
    [
        (PROFILE, ["Loves maps.", "An atlas of rivers."]),
        (NO_USER, [TITLES, "An atlas of rivers."]),
        (NO_ITEM, ["Loves maps.", "Atlas; maps; 1999"]),
        (None, [TITLES, "Atlas; maps; 1999"]),
    ],
    ids=["both", "no user", "no item", "none"],
)
async def test_records_stand_in_for_a_missing_profile(profile: JointProfile | None, texts: list[str]) -> None:
    """A side without a profile is represented by titles and attributes."""
    embedder = Vectors((1, 0), (1, 0))
    await EmbeddingRecommender(embedder).predict(USER, ITEM, profile)
    assert embedder.texts == texts


@pytest.mark.parametrize(
    ("user", "item"), [(User("ann"), Item("atlas")), (User("ann", name="Ann"), Item("atlas", title=""))]
)
async def test_unknown_records_still_give_texts(user: User, item: Item) -> None:
    """Records that say nothing still give texts that are not empty."""
    embedder = Vectors((1, 0), (1, 0))
    await EmbeddingRecommender(embedder).predict(user, item, None)
    assert all(embedder.texts)


async def test_embeddings_over_http() -> None:
    """Two profiles with the same words are as near as can be."""
    same = JointProfile(user=Profile(text="Maps."), item=Profile(text="Maps."))
    async with FakeServer() as server, HTTPEmbedder(server.base_url, "fake") as embedder:
        rating = await EmbeddingRecommender(embedder).predict(USER, ITEM, same)
    assert rating.value == pytest.approx(5.0)


numbers = st.floats(-1e3, 1e3).filter(lambda value: value == 0 or abs(value) > 1e-3)
pairs = st.integers(1, 8).flatmap(
    lambda size: st.tuples(*[st.lists(numbers, min_size=size, max_size=size).filter(any)] * 2)
)


@given(pairs)
def test_cosine_is_symmetric(pair: tuple[list[float], list[float]]) -> None:
    """The order of the vectors does not matter."""
    a, b = pair
    assert cosine(a, b) == pytest.approx(cosine(b, a))


@given(pairs, st.floats(1e-3, 1e3))
def test_cosine_does_not_depend_on_length(pair: tuple[list[float], list[float]], factor: float) -> None:
    """A vector may be stretched without changing the angle."""
    a, b = pair
    assert cosine([factor * value for value in a], b) == pytest.approx(cosine(a, b), abs=1e-9)


@given(pairs)
def test_cosine_lies_between_minus_one_and_one(pair: tuple[list[float], list[float]]) -> None:
    """A cosine is one of an angle."""
    assert -1 - 1e-9 <= cosine(*pair) <= 1 + 1e-9


@given(pairs)
def test_cosine_with_itself_is_one(pair: tuple[list[float], list[float]]) -> None:
    """A vector lies in its own direction, and its negative in the other."""
    a, _ = pair
    assert (cosine(a, a), cosine(a, [-value for value in a])) == pytest.approx((1, -1))


async def test_constant_recommender_is_a_recommender() -> None:
    """The test double predicts its one rating for every pair."""
    assert await ConstantRecommender(2.5).predict(USER, ITEM, None) == Rating(2.5)
