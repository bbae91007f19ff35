"""The records: what they refuse, what they normalise, and what an Example cuts away."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duet import (
    Candidate,
    Completion,
    Cues,
    Deadlines,
    EndpointSettings,
    Example,
    GenerationDone,
    GenerationEnd,
    Interaction,
    Item,
    JointProfile,
    JointPrompt,
    Outcome,
    Profile,
    ProfileSchema,
    Rating,
    RatingPrompt,
    RatingScale,
    RecordError,
    Reward,
    Sampling,
    SectionDelta,
    SectionDone,
    TermScore,
    TextDelta,
    TokenLogprob,
    Usage,
    User,
)

NAIVE = datetime(2020, 5, 17, 12)
AWARE = NAIVE.replace(tzinfo=UTC)

UNUSABLE_IDS = ["", " ", "\t\n", "\u00a0", "a\x00b", "a\ud800b", "\udfff", None, 7, b"u"]
NOT_FINITE = [math.nan, math.inf, -math.inf, "nan"]


def row(user: str = "u", item: str = "i", rating: float = 4.0, **fields: Any) -> Interaction:
    return Interaction(user=user, item=item, rating=rating, **fields)


def days(number: int) -> datetime:
    return NAIVE + timedelta(days=number)


def refused(make: Callable[[], object]) -> RecordError:
    with pytest.raises(RecordError) as caught:
        make()
    return caught.value


# Ids


@pytest.mark.parametrize("bad", UNUSABLE_IDS, ids=repr)
@pytest.mark.parametrize("field", ["user", "item"])
def test_interaction_refuses_an_unusable_id(field: str, bad: Any) -> None:
    """An interaction whose user or item id cannot be a key is refused, and the error names the field."""
    ids: dict[str, Any] = {"user": "u", "item": "i", field: bad}
    assert refused(lambda: Interaction(**ids, rating=3)).field == field


@pytest.mark.parametrize("bad", UNUSABLE_IDS, ids=repr)
@pytest.mark.parametrize("kind", [User, Item])
def test_user_and_item_refuse_an_unusable_id(kind: Callable[[Any], object], bad: Any) -> None:
    """A user or item whose id cannot be a key is refused, and the error names the field."""
    assert refused(lambda: kind(bad)).field == "id"


def test_the_message_quotes_the_unusable_id() -> None:
    """The message of a refused id shows the value as Python would write it."""
    assert r"'a\x00b'" in str(refused(lambda: User("a\x00b")))


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1).filter(str.strip))
@settings(deadline=None, max_examples=60)
def test_every_other_id_is_kept_as_it_is(identifier: str) -> None:
    """An id that is neither blank nor unsendable is kept character by character."""
    assert User(identifier).id == identifier


# Ratings and times


@pytest.mark.parametrize("bad", NOT_FINITE, ids=repr)
def test_interaction_refuses_a_rating_that_is_not_finite(bad: Any) -> None:
    """An interaction's rating must be finite, and the error names the field."""
    assert refused(lambda: row(rating=bad)).field == "rating"


@pytest.mark.parametrize("bad", NOT_FINITE, ids=repr)
def test_predicted_rating_refuses_a_value_that_is_not_finite(bad: Any) -> None:
    """A predicted rating must be finite, and the error names the field."""
    assert refused(lambda: Rating(bad)).field == "value"


@pytest.mark.parametrize("bad", NOT_FINITE, ids=repr)
def test_example_refuses_a_rating_that_is_not_finite(bad: Any) -> None:
    """An example's rating must be finite, and the error names the field."""
    assert refused(lambda: Example(User("u"), Item("i"), bad)).field == "rating"


@pytest.mark.parametrize("bad", [None, "four", "", [], pytest.param(object(), id="object")], ids=repr)
def test_rating_that_is_no_number_is_refused(bad: Any) -> None:
    """What cannot be read as a number is refused as a rating, and the error names the field."""
    assert refused(lambda: row(rating=bad)).field == "rating"


RATED: list[Callable[[Any], object]] = [
    lambda rating: row(rating=rating),
    lambda rating: Rating(rating),
    lambda rating: Example(User("u"), Item("i"), rating),
    lambda rating: RatingScale(1, rating),
]


@pytest.mark.parametrize("make", RATED, ids=["Interaction", "Rating", "Example", "RatingScale"])
@pytest.mark.parametrize("bad", [10**400, "a", None], ids=["huge", "text", "None"])
def test_number_that_no_float_can_hold_is_refused(make: Callable[[Any], object], bad: Any) -> None:
    """Whatever a record takes as a number, one that no float can hold is a RecordError of that field."""
    assert refused(lambda: make(bad)).field == "rating"


@given(st.floats(allow_nan=False, allow_infinity=False))
@settings(deadline=None, max_examples=60)
def test_interaction_keeps_every_finite_rating(rating: float) -> None:
    """An interaction knows no scale: every finite rating is kept."""
    assert row(rating=rating).rating == rating


@pytest.mark.parametrize("bad", ["2020-05-17", 1589673600, date(2020, 5, 17)], ids=repr)
@pytest.mark.parametrize("make", [lambda at: row(at=at), lambda at: Example(User("u"), Item("i"), 3, at=at)])
def test_time_that_is_no_datetime_is_refused(make: Callable[[Any], object], bad: Any) -> None:
    """A time must be a datetime or None, and the error names the field."""
    assert refused(lambda: make(bad)).field == "at"


# Texts


TEXTS: list[Callable[[Any], object]] = [
    lambda text: row(title=text).title,
    lambda text: row(review=text).review,
    lambda text: User("u", name=text).name,
    lambda text: Item("i", title=text).title,
    lambda text: Item("i", attributes={"k": text}).attributes[0][1],
    lambda text: Item("i", attributes={text: "v"}).attributes[0][0],
]


@pytest.mark.parametrize("kept", TEXTS)
def test_text_loses_what_cannot_be_sent(kept: Callable[[Any], object]) -> None:
    """NUL and lone surrogates in free text become the replacement character."""
    assert kept("a\x00b\ud83dc\udfff") == "a\ufffdb\ufffdc\ufffd"


@pytest.mark.parametrize("kept", TEXTS)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")))
@settings(deadline=None, max_examples=30)
def test_text_that_can_be_sent_is_kept(kept: Callable[[Any], object], text: str) -> None:
    """Free text without NUL and lone surrogates is kept character by character."""
    assert kept(text) == text


@pytest.mark.parametrize("field", ["title", "review"])
def test_missing_text_is_empty_text(field: str) -> None:
    """A title or review of None is an empty text."""
    missing: dict[str, Any] = {field: None}
    assert getattr(row(**missing), field) == ""


def test_text_that_is_no_str_is_written_out() -> None:
    """An attribute that is no text is kept as its text."""
    assert Item("i", attributes={"year": 1999}).attributes == (("year", "1999"),)


def test_review_of_a_megabyte_is_kept_whole() -> None:
    """A review of a megabyte is kept whole: cutting is the prompt's business."""
    review = "wörter " * 150_000
    assert row(review=review).review == review


def test_repr_leaves_out_the_review() -> None:
    """The repr of an interaction does not print the review."""
    assert "secret words" not in repr(row(review="secret words"))


# Histories


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), max_size=12))
@settings(deadline=None, max_examples=80)
def test_history_is_oldest_first(drawn: list[tuple[int, int]]) -> None:
    """A history is kept oldest first whatever order it was given in."""
    history = User("u", [row(rating=rating, at=days(day)) for day, rating in drawn]).history
    times = [found.at for found in history]
    assert times == sorted(times, key=lambda at: at or datetime.min)


@given(st.lists(st.sampled_from([row(item=name, at=at) for name in "abc" for at in (None, days(1), days(2))])))
@settings(deadline=None, max_examples=80)
def test_exact_duplicates_count_once(rows: list[Interaction]) -> None:
    """A history holds every distinct row exactly once."""
    history = User("u", rows).history
    assert sorted(map(repr, history)) == sorted(map(repr, set(rows)))


def test_undated_rows_come_first_in_the_order_given() -> None:
    """Undated rows stand before dated ones and keep their order."""
    history = User("u", [row(item="late", at=days(2)), row(item="z"), row(item="early", at=days(1)), row(item="a")])
    assert [found.item for found in history.history] == ["z", "a", "early", "late"]


def test_rows_of_one_moment_keep_their_order() -> None:
    """Rows of the same moment keep the order in which they were given."""
    history = User("u", [row(item=name, at=days(1)) for name in "cab"]).history
    assert [found.item for found in history] == ["c", "a", "b"]


def test_rows_that_differ_in_one_field_are_both_kept() -> None:
    """Two rows that differ in the review alone are no duplicates."""
    assert len(User("u", [row(review="a"), row(review="b")]).history) == 2


def test_history_may_be_a_generator() -> None:
    """Any iterable of rows will do as a history."""
    assert len(User("u", (row(item=name) for name in "ab")).history) == 2


def test_user_refuses_rows_of_another_user() -> None:
    """A history with another user's row is refused, and the error names the row's field."""
    assert refused(lambda: User("u", [row(), row(user="v")])).field == "history[1].user"


def test_item_refuses_rows_of_another_item() -> None:
    """Evidence with another item's row is refused, and the error names the row's field."""
    assert refused(lambda: Item("i", [row(), row(item="j")])).field == "evidence[1].item"


@pytest.mark.parametrize("bad", ["row", {"rating": 3}, None], ids=repr)
@pytest.mark.parametrize(("kind", "name"), [(User, "history"), (Item, "evidence")])
def test_row_that_is_no_interaction_is_refused(kind: Any, name: str, bad: object) -> None:
    """A row that is no Interaction is refused, and the error names its place."""
    assert refused(lambda: kind("u" if kind is User else "i", [row(), bad])).field == f"{name}[1]"


@pytest.mark.parametrize("times", [(NAIVE, AWARE), (AWARE, NAIVE)], ids=["naive first", "aware first"])
def test_history_refuses_naive_beside_aware_times(times: tuple[datetime, datetime]) -> None:
    """A history that mixes naive and aware times is refused, and the error names the row's field."""
    rows = [row(item="undated"), *(row(at=at) for at in times)]
    assert refused(lambda: User("u", rows)).field == "history[2].at"


def test_evidence_refuses_naive_beside_aware_times() -> None:
    """Evidence that mixes naive and aware times is refused, and the error names the row's field."""
    assert refused(lambda: Item("i", [row(at=AWARE), row(at=NAIVE)])).field == "evidence[1].at"


def test_aware_times_of_different_zones_are_ordered() -> None:
    """Aware times are ordered by the moment, whatever their zone."""
    first = datetime.fromisoformat("2020-01-01T09:00+09:00")
    second = datetime.fromisoformat("2020-01-01T02:00+00:00")
    assert [found.at for found in User("u", [row(at=second), row(at=first)]).history] == [first, second]


# Attributes


def test_attributes_are_sorted_pairs() -> None:
    """Attributes are kept as pairs sorted by key."""
    assert Item("i", attributes={"b": "2", "a": "1"}).attributes == (("a", "1"), ("b", "2"))


@given(st.dictionaries(st.text("abcxyz", max_size=3), st.text("abc", max_size=3)), st.randoms())
@settings(deadline=None, max_examples=50)
def test_order_of_attributes_does_not_matter(attributes: dict[str, str], random: Any) -> None:
    """Items that differ only in the order of their attributes are equal."""
    pairs = list(attributes.items())
    random.shuffle(pairs)
    assert Item("i", attributes=dict(pairs)) == Item("i", attributes=attributes)


def test_attributes_survive_evolve() -> None:
    """An item made from another one's attributes has the same attributes."""
    item = Item("i", attributes={"b": "2", "a": "1"})
    assert attrs.evolve(item, title="t").attributes == item.attributes


# Hashing and pickling


CANDIDATES: dict[str, Any] = {"candidates": [Item("k")]}
STOP: dict[str, Any] = {"stop": ["a"], "extra_body": {"top_k": 20}}
RECORDS: list[object] = [
    RatingScale(0, 10),
    row(title="t", review="r", at=AWARE),
    User("u", [row(at=NAIVE)], name="Ann"),
    Item("i", [row(at=NAIVE)], title="t", attributes={"a": "1"}),
    Example(User("u", [row(item="j", at=NAIVE)]), Item("i"), 3, at=days(1), **CANDIDATES),
    Usage(3, 4, cached_tokens=1, estimated=True),
    TokenLogprob("5", -0.1, (("5", -0.1), ("4", -2.4))),
    Completion("text", finish_reason="length", model="m", usage=Usage(1, 2), logprobs=(TokenLogprob("t", -1.0),)),
    Cues("u", "i"),
    Profile(text="t", cue="c", constructed_prompt="p"),
    JointProfile(user=Profile(text="t"), item=Profile(text="t"), completion="c", model="m", usage=Usage(1, 2)),
    Rating(3.5, text="3.5", probabilities=((3.0, 0.5), (4.0, 0.5)), usage=Usage(1, 2)),
    Reward(0.5, rating=Rating(3.0), terms={"rating": 0.5}),
    Outcome(index=0, user=User("u"), item=Item("i"), profile=JointProfile()),
    Candidate(index=0, item=Item("i"), rating=Rating(3.0)),
    SectionDelta("user", "cue", "d"),
    SectionDone("user", "cue", "t"),
    TextDelta("t"),
    GenerationEnd(Completion("t")),
    GenerationDone(JointProfile(), "stop"),
    ProfileSchema(sides="user", sections="profile", max_chars=9),
    Sampling(temperature=0.5, **STOP),
    Deadlines(total=None),
    EndpointSettings("http://h/v1", "m", "k"),
    JointPrompt(history_limit=3),
    RatingPrompt(mode="decimal"),
    TermScore(0.5, rating=Rating(3.0)),
]
record = pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)


@record
def test_record_survives_pickling(record: object) -> None:
    """A record read back from a pickle equals the one written."""
    assert pickle.loads(pickle.dumps(record)) == record  # noqa: S301  # our own bytes


@record
def test_record_can_be_hashed(record: object) -> None:
    """Equal records have equal hashes, so records can be keys."""
    copy = pickle.loads(pickle.dumps(record))  # noqa: S301  # our own bytes
    assert {record: "found"}[copy] == "found"


@record
def test_record_is_frozen(record: Any) -> None:
    """No field of a record can be set anew."""
    name = attrs.fields(type(record))[0].name
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(record, name, None)


def test_reward_with_an_error_survives_pickling() -> None:
    """A reward carries its error through a pickle."""
    reward = Reward(None, error=RecordError("no", field="at"))
    copy = pickle.loads(pickle.dumps(reward))  # noqa: S301  # our own bytes
    assert copy.error.field == "at"


def test_total_tokens_are_prompt_and_completion() -> None:
    """Cached tokens are part of the prompt's, so the total does not count them again."""
    assert Usage(10, 5, cached_tokens=8).total_tokens == 15


# What an Example cuts


times = st.one_of(st.none(), st.integers(-3, 3).map(days))
users = st.lists(st.tuples(st.sampled_from("ijk"), times, st.integers(1, 5))).map(
    lambda rows: User("u", [row(item=name, at=at, rating=rating) for name, at, rating in rows])
)
items = st.lists(st.tuples(st.sampled_from("uvw"), times, st.integers(1, 5))).map(
    lambda rows: Item("i", [row(user=name, at=at, rating=rating) for name, at, rating in rows])
)


def older(rows: tuple[Interaction, ...], at: datetime) -> tuple[Interaction, ...]:
    return tuple(found for found in rows if found.at is not None and found.at < at)


@given(users, items, st.integers(-3, 3).map(days))
@settings(deadline=None, max_examples=100)
def test_dated_example_keeps_exactly_the_older_history(user: User, item: Item, at: datetime) -> None:
    """An example with a time keeps those rows of the history that are strictly older, and no others."""
    assert Example(user, item, 3, at=at).user.history == older(user.history, at)


@given(users, items, st.integers(-3, 3).map(days))
@settings(deadline=None, max_examples=100)
def test_dated_example_keeps_exactly_the_older_evidence(user: User, item: Item, at: datetime) -> None:
    """An example with a time keeps those rows of the evidence that are strictly older, and no others."""
    assert Example(user, item, 3, at=at).item.evidence == older(item.evidence, at)


@given(users, items)
@settings(deadline=None, max_examples=100)
def test_undated_example_leaves_out_the_pair_and_nothing_else(user: User, item: Item) -> None:
    """An example without a time leaves out every row of the same user with the same item, and keeps all others."""
    example = Example(user, item, 3)
    kept = (example.user.history, example.item.evidence)
    assert kept == (
        tuple(found for found in user.history if found.item != "i"),
        tuple(found for found in item.evidence if found.user != "u"),
    )


@given(items, st.one_of(st.none(), st.integers(-3, 3).map(days)))
@settings(deadline=None, max_examples=60)
def test_candidates_are_cut_like_the_item(item: Item, at: datetime | None) -> None:
    """A candidate keeps exactly those rows of its evidence that the same item beside the user would keep."""
    example = Example(User("u"), item, 3, at=at, candidates=[item, item])
    assert example.candidates == (example.item, example.item)


def test_candidate_of_another_id_is_cut_too() -> None:
    """Of any candidate, rows that are not older than the target go."""
    later = Item("j", [row(user="v", item="j", at=days(number)) for number in (-1, 0, 1)])
    (candidate,) = Example(User("u"), Item("i"), 3, at=days(0), candidates=[later]).candidates
    assert [found.at for found in candidate.evidence] == [days(-1)]


@given(users, items, st.one_of(st.none(), st.integers(-3, 3).map(days)))
@settings(deadline=None, max_examples=60)
def test_cutting_twice_is_cutting_once(user: User, item: Item, at: datetime | None) -> None:
    """An example made of another one's user and item equals it."""
    example = Example(user, item, 3, at=at)
    assert Example(example.user, example.item, 3, at=at) == example


def test_example_leaves_the_callers_records_alone() -> None:
    """The user and the item handed to an example keep all their rows."""
    user = User("u", [row(at=days(3))])
    Example(user, Item("i"), 3, at=days(0))
    assert len(user.history) == 1


def test_example_keeps_the_name_title_and_attributes() -> None:
    """Cutting rows touches nothing else of the user and the item."""
    user, item = User("u", [row(at=days(3))], name="Ann"), Item("i", title="Maps", attributes={"year": "1999"})
    example = Example(user, item, 3, at=days(0))
    assert (example.user.name, example.item.title, example.item.attributes) == ("Ann", "Maps", (("year", "1999"),))


def test_example_refuses_a_naive_time_beside_aware_rows() -> None:
    """An example whose time is naive while its history's are aware is refused, and the error names the row's field."""
    user = User("u", [row(item="j", at=AWARE)])
    assert refused(lambda: Example(user, Item("i"), 3, at=NAIVE)).field == "user.history[0].at"


def test_example_refuses_a_history_and_evidence_of_different_clocks() -> None:
    """Naive times in the history and aware ones in the evidence are refused, and the error names the row's field."""
    user, item = User("u", [row(item="j", at=NAIVE)]), Item("i", [row(user="v", at=AWARE)])
    assert refused(lambda: Example(user, item, 3)).field == "item.evidence[0].at"


# Scales


@pytest.mark.parametrize("rating", [0.99, 5.01, -1, 100])
def test_example_refuses_a_rating_off_the_scale(rating: float) -> None:
    """An example's rating must lie on its scale, and the error names the field."""
    assert refused(lambda: Example(User("u"), Item("i"), rating)).field == "rating"


def test_example_refuses_a_history_off_the_scale() -> None:
    """A row of the history that is off the scale is refused, and the error names the row's field."""
    user = User("u", [row(item="j"), row(item="k", rating=10)])
    assert refused(lambda: Example(user, Item("i"), 3)).field == "user.history[1].rating"


def test_example_refuses_evidence_off_the_scale() -> None:
    """A row of the evidence that is off the scale is refused, and the error names the row's field."""
    item = Item("i", [row(user="v", rating=0)])
    assert refused(lambda: Example(User("u"), item, 3)).field == "item.evidence[0].rating"


def test_example_refuses_a_candidates_evidence_off_the_scale() -> None:
    """A row of a candidate's evidence that is off the scale is refused, and the error names the row's field."""
    candidates = [Item("j"), Item("k", [row(user="v", item="k", rating=9)])]
    error = refused(lambda: Example(User("u"), Item("i"), 3, candidates=candidates))
    assert error.field == "candidates[1].evidence[0].rating"


def test_example_takes_another_scale() -> None:
    """An example on another scale takes the ratings of that scale."""
    assert Example(User("u"), Item("i"), 10, scale=RatingScale(0, 10)).rating == 10


@pytest.mark.parametrize(("low", "high"), [(5, 1), (3, 3), (math.nan, 5), (1, math.inf), (-math.inf, 5), (1, math.nan)])
def test_scale_that_is_no_interval_is_refused(low: float, high: float) -> None:
    """A scale whose ends are not finite, or not in order, is refused."""
    with pytest.raises(RecordError, match="minimum < maximum"):
        RatingScale(low, high)


ends = st.floats(-1000, 1000, allow_nan=False)
scales = st.tuples(ends, ends).filter(lambda pair: pair[0] < pair[1]).map(lambda pair: RatingScale(*pair))


@given(scales, st.floats(allow_nan=False))
@settings(deadline=None, max_examples=80)
def test_clipped_rating_is_on_the_scale(scale: RatingScale, rating: float) -> None:
    """Whatever is clipped lies on the scale."""
    assert scale.clip(rating) in scale


@given(scales, st.floats(allow_nan=False))
@settings(deadline=None, max_examples=80)
def test_clipping_moves_only_what_is_off_the_scale(scale: RatingScale, rating: float) -> None:
    """A rating is on the scale exactly if clipping leaves it where it is."""
    assert (scale.clip(rating) == rating) == (rating in scale)


@pytest.mark.parametrize(
    ("scale", "points"),
    [(RatingScale(), (1, 2, 3, 4, 5)), (RatingScale(0.5, 3.5), (1, 2, 3)), (RatingScale(-1, 1), (-1, 0, 1))],
    ids=str,
)
def test_points_are_the_whole_numbers_on_the_scale(scale: RatingScale, points: tuple[int, ...]) -> None:
    """The points of a scale are the whole numbers on it, ascending."""
    assert scale.points == points


def test_range_of_the_papers_scale_is_four() -> None:
    """The range of one to five is four, the M of the paper's reward."""
    assert RatingScale().range == 4


def test_scale_reads_as_a_prompt_names_it() -> None:
    """A scale's text is free of needless decimals."""
    assert str(RatingScale(0.5, 10)) == "0.5 to 10"
