"""The one parser of ratings: which answers state a rating, and which do not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duet import RatingError, RatingScale, parse_rating

STATED = [
    ("4", 4),
    ("4.0", 4),
    ("4,5", 4.5),
    (" 4.25\n", 4.25),
    ("4.", 4),
    ("4. The user loves maps.", 4),
    ("(4)", 4),
    ("'4'", 4),
    ("**4.5**", 4.5),
    ("Rating: 4", 4),
    ("rating=3.5", 3.5),
    ("I would say 3.87.", 3.87),
    ("4 stars", 4),
    ("4-star", 4),
    ("4★", 4),
    ("4/5", 4),
    ("4 / 5", 4),
    ("3.87/5.00", 3.87),
    ("4.5 out of 5", 4.5),
    ("4.0 out of 5.0 stars", 4),
    ("4.0 (out of 5.0)", 4),
    ("4 (of 5)", 4),
    ("3 of 5", 3),
    ("on a scale of 1 to 5: 4", 4),
    ("on a scale from 1-5, 3.5", 3.5),
    ("4.0, that is 4", 4),
    ("<rating>4.25</rating>", 4.25),
    ("<rating> 4.25 </rating>", 4.25),
    ("<RATING>3.00</Rating>", 3),
    ("<rating>4.25/5</rating>", 4.25),
    ("<rating>4.25", 4.25),
    ("4.25</rating>", 4.25),
    ("The 2 of them would say <rating>4.00</rating>, or 3.", 4),
]

NO_RATING = ["", " ", "four", "N/A", "...", "v4", "4th", "None", "<rating></rating>", "★★★★", "1,234", "4.2.1"]
SEVERAL = [
    *["4 or 5", "4-5", "4–5 stars", "between 3.5 and 4", "4\n5", "4, for 3 reasons"],
    *["<rating>4 or 5</rating>", "<rating>4</rating> or <rating>5</rating>"],
]
OFF_SCALE = ["0", "0.99", "5.01", "6", "-1", "−1", "100", "<rating>5.50</rating>", "7 out of 10", "10/10"]

twos = st.integers(100, 500).map(lambda hundredths: hundredths / 100)
FORMS = ["<rating>{:.2f}</rating>", "{:.2f}", "{:.2f}/5", "{:.2f} out of 5", "The rating is {:.2f}.", "\n{:.2f}\n"]


def refusal(text: str, scale: RatingScale = RatingScale()) -> RatingError:
    with pytest.raises(RatingError) as caught:
        parse_rating(text, scale)
    return caught.value


def read(text: str) -> float | None:
    """The rating, or None where there is none."""
    try:
        return parse_rating(text)
    except RatingError:
        return None


@pytest.mark.parametrize(("text", "expected"), STATED, ids=repr)
def test_stated_rating_is_read(text: str, expected: float) -> None:
    """An answer that states one rating, in any usual form, parses to it."""
    assert parse_rating(text) == expected


@pytest.mark.parametrize("form", FORMS)
@given(rating=twos)
@settings(deadline=None, max_examples=60)
def test_every_rating_of_two_decimals_is_read(form: str, rating: float) -> None:
    """Every two-decimal rating on the scale parses to itself in every form."""
    assert parse_rating(form.format(rating)) == rating


@given(twos)
@settings(deadline=None, max_examples=60)
def test_decimal_comma_reads_as_a_point(rating: float) -> None:
    """A rating with a decimal comma parses to the same number."""
    assert parse_rating(f"{rating:.2f}".replace(".", ",")) == rating


@pytest.mark.parametrize("text", NO_RATING, ids=repr)
def test_answer_without_a_number_is_refused(text: str) -> None:
    """An answer that holds no number holds no rating."""
    assert "holds no rating" in str(refusal(text))


@pytest.mark.parametrize("text", SEVERAL, ids=repr)
def test_answer_with_different_numbers_is_refused(text: str) -> None:
    """An answer that holds two different numbers is no rating: which was meant cannot be told."""
    assert "2 different numbers" in str(refusal(text))


@given(twos, twos)
@settings(deadline=None, max_examples=60)
def test_two_ratings_are_one_only_if_equal(one: float, other: float) -> None:
    """Two ratings in one answer parse exactly if they are the same number."""
    assert read(f"{one:.2f} and {other:.2f}") == (one if one == other else None)


@pytest.mark.parametrize("text", OFF_SCALE, ids=repr)
def test_rating_off_the_scale_is_refused(text: str) -> None:
    """A number that is off the scale is no rating, and is not clipped in silence."""
    refusal(text)


@pytest.mark.parametrize(
    ("text", "scale"), [("0", RatingScale(0, 1)), ("-1", RatingScale(-1, 1)), ("37", RatingScale(0, 100))]
)
def test_scale_decides_what_is_a_rating(text: str, scale: RatingScale) -> None:
    """A number that lies on another scale is a rating there."""
    assert parse_rating(text, scale) == float(text)


@pytest.mark.parametrize("text", ["9 out of 10", "9/10", "9.0", "<rating>9</rating>"])
def test_scale_of_ten_reads_the_same_forms(text: str) -> None:
    """The forms do not depend on the scale."""
    assert parse_rating(text, RatingScale(1, 10)) == 9


@pytest.mark.parametrize(
    "text",
    [
        "<think>They gave 2 and 3.</think>4",
        "<THINK>\n2\n</THINK>\n\n4.00",
        "They gave 2 and 3.</think>4",
        "<think></think><rating>4.00</rating>",
        "<think><rating>2.00</rating></think><rating>4.00</rating>",
        "<rating>2.00</rating></think><rating>4.00</rating>",
    ],
    ids=repr,
)
def test_numbers_in_reasoning_do_not_count(text: str) -> None:
    """What stands inside <think>, or before a </think> without one, does not count."""
    assert parse_rating(text) == 4


@pytest.mark.parametrize(
    "text", ["<think>4", "<think>\nOkay, this user gave 5", "<think><rating>4.00</rating>"], ids=repr
)
def test_answer_that_ends_in_reasoning_is_refused(text: str) -> None:
    """An answer that ends inside <think> states no rating, whatever numbers it weighed."""
    assert "holds no rating" in str(refusal(text))


@pytest.mark.parametrize("text", ["3/10", "3 out of 10", "<rating>3/10</rating>"], ids=repr)
def test_number_over_another_maximum_is_refused(text: str) -> None:
    """A number over another scale's maximum is no rating on this scale, even where it lies on it."""
    refusal(text)


def test_tagged_rating_wins_over_numbers_around_it() -> None:
    """Where a rating is tagged, the numbers around the tag do not count."""
    assert parse_rating("Of 3 books, 2 were fine: <rating>4.50</rating> (1 to 5)") == 4.5


def test_tagged_number_off_the_scale_is_not_replaced_by_another() -> None:
    """A tagged number off the scale is refused even beside a number on it."""
    assert "off the scale" in str(refusal("<rating>9.00</rating>, so 4"))


@pytest.mark.parametrize("text", ["no idea", "1 or 2", "17"])
def test_error_carries_the_answer(text: str) -> None:
    """The error of an answer without a rating carries its whole text."""
    assert refusal(text).text == text


def test_message_shows_the_start_of_a_long_answer() -> None:
    """The message of an unreadable answer of any length stays short."""
    assert len(str(refusal("la " * 100_000))) < 300


@given(st.text())
@settings(deadline=None, max_examples=200)
def test_any_text_gives_a_rating_on_the_scale_or_a_rating_error(text: str) -> None:
    """Whatever the answer, it parses to a number on the scale or raises RatingError, and nothing else."""
    found = read(text)
    assert found is None or found in RatingScale()
