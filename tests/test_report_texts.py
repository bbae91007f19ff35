"""What a report makes of the texts: their variety and likeness, and the phrases that two profiles share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet import RatingScale
from duet.testing import completion_text
from duet_train.reporting.run import Answer, Run
from duet_train.reporting.shared import Shared, shared, stem, usual_stems, words_of
from duet_train.reporting.texts import (
    distinct,
    likeness,
    profiles_of,
    rating_figures,
    scale_of,
    sections_of,
    text_figures,
    tf_idf,
    unit_vectors,
)


def test_sections_of_what_lacks_some() -> None:
    """What a completion has is found, in whatever schema, after any thinking aloud."""
    assert sections_of("<think><user_profile></think>" + completion_text())[("user", "profile")]
    assert profiles_of("<item_profile><profile>Maps.</profile></item_profile>") == {"item": "Maps."}
    assert profiles_of("nothing") == {}


def test_distinct_counts_within_a_budget_of_words() -> None:
    """Distinct-n is the share of different n-grams, within texts, among the first so many words."""
    assert distinct(["a b a b"], 1, 100) == 0.5
    assert distinct(["a b", "b a"], 2, 100) == 1.0
    assert distinct(["a b", "a b"], 2, 100) == 0.5
    assert distinct(["A a " * 50], 1, 2) == 0.5
    assert distinct(["a"], 2, 100) is None


def test_likeness_is_one_for_one_text_and_nought_for_strangers() -> None:
    """Equal texts have cosine 1, texts that share no word 0, and a single text none."""
    assert likeness(tf_idf(["deep strategy"] * 3)) == pytest.approx(1)
    assert likeness(tf_idf(["deep strategy", "gentle humour"])) == pytest.approx(0)
    assert likeness(tf_idf(["deep strategy"])) is None


@given(st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=2, max_size=8))
def test_likeness_is_the_mean_over_all_pairs(rows: list[list[float]]) -> None:
    """The sum by squares is the mean cosine of all pairs; what has no direction counts as 0."""
    vectors = unit_vectors(rows)
    pairs = [(left, right) for place, left in enumerate(vectors) for right in vectors[:place]]
    brute = sum(sum(weight * right.get(key, 0) for key, weight in left.items()) for left, right in pairs) / len(pairs)
    assert likeness(vectors) == pytest.approx(brute, abs=1e-9)


def answers(texts: Sequence[str], **more: Any) -> list[Answer]:
    """A completion a step, of different examples."""
    return [Answer(step=step, example=str(step), text=text, **more) for step, text in enumerate(texts)]


def test_stated_ratings_are_found_as_the_reward_finds_them() -> None:
    """A profile that states a rating on the scale is counted, one that speaks of ratings only is not."""
    texts = ["Gives 4 stars.", "Rates highly.", "Likes maps."]
    run = Run(name="r", answers=answers([completion_text(user_profile=text) for text in texts]))
    figures = text_figures(run, RatingScale())
    assert [value for _, value in figures.states_rating] == [1, 0, 0]
    assert [value for _, value in figures.rating_words] == [1, 1, 0]


def test_texts_are_compared_across_examples_only() -> None:
    """Several completions of one example count as one."""
    same = completion_text(user_profile="Likes maps.")
    run = Run(name="r", answers=[Answer(step=1, example="7", text=same) for _ in range(5)])
    assert text_figures(run, RatingScale()).likeness["user"] == []


def test_completions_that_are_no_profile_are_left_out_of_the_texts() -> None:
    """What does not parse has no profile to compare."""
    assert text_figures(Run(name="r", answers=answers(["no", "profile"])), RatingScale()).states_rating == []


@pytest.mark.parametrize(
    ("about", "ratings", "expected"),
    [
        ({}, [1, 5], RatingScale()),
        ({}, [0, 9.5], RatingScale(0, 10)),
        ({"data": {"scale": {"minimum": 0, "maximum": 100}}}, [3], RatingScale(0, 100)),
        ({"scale": [1, 10]}, [3], RatingScale(1, 10)),
        ({"scale": [5, 1]}, [], RatingScale()),
        ({}, [0, 0], RatingScale(0, 1)),
    ],
)
def test_scale_is_the_card_s_or_fits_the_ratings(
    about: dict[str, Any], ratings: list[float], expected: RatingScale
) -> None:
    """The scale comes from the card, else it is the usual one where that holds all ratings."""
    run = Run(name="r", card=about, answers=[Answer(step=1, gold=rating) for rating in ratings])
    assert scale_of(run) == expected


def test_rating_figures_are_of_both_ends() -> None:
    """Predictions of the first and the last fifth of the steps are told apart, with the true ratings of the last."""
    rows = [Answer(step=step, rating=float(step), gold=float(10 - step)) for step in range(1, 11)]
    figures = rating_figures(Run(name="r", answers=rows), RatingScale(1, 10))
    assert figures is not None
    assert (figures.early, figures.late, figures.true) == ([1, 2], [9, 10], [1, 0])
    assert rating_figures(Run(name="r"), RatingScale()) is None


# Shared phrases


USER = "This user enjoys strategic games with deep character development and dry humour, but dislikes slow pacing."
ITEM = "A strategy game praised for humour; the characters develop, and it is deep. Reviewers call its pace slow."


def phrases_of(both: Shared) -> list[tuple[str, str]]:
    """Each phrase as both texts write it."""
    return [
        tuple(  # type: ignore[misc]
            next(text[mark.start : mark.end] for mark in marks if mark.phrase == phrase)
            for text, marks in zip((USER, ITEM), both.marks, strict=True)
        )
        for phrase in range(len(both.phrases))
    ]


def test_phrases_meet_in_other_forms_and_in_other_order() -> None:
    """A phrase is found on both sides, with other endings and the other way round."""
    assert phrases_of(shared(USER, ITEM, usual_stems([]))) == [
        ("strategic games", "strategy game"),
        ("deep", "deep"),
        ("character development", "characters develop"),
        ("humour", "humour"),
        ("slow pacing", "pace slow"),
    ]


def test_words_of_most_profiles_are_not_marked() -> None:
    """What six of ten profiles of the run say, says nothing of a pair: it is named and left plain."""
    usual = usual_stems([f"Enjoys games with feature{number}" for number in range(10)])
    both = shared(USER, "Enjoys a deep game", usual)
    assert both.phrases == ["deep"]
    assert both.usual == ["enjoys", "games"]
    assert not usual_stems(["Enjoys games"] * 3) & {stem("games")}


def test_more_than_six_phrases_get_no_colour_of_their_own() -> None:
    """What is shared beside the six largest phrases is marked without a colour."""
    words = "alpha, bravo, charlie, delta, echo, foxtrot, golf, hotel"
    both = shared(words, words)
    assert len(both.phrases) == 6
    assert len(both.others) == 2
    assert {mark.phrase for mark in both.marks[0]} == {-1, 0, 1, 2, 3, 4, 5}


@given(st.text("abcdefgh ,.'’ßİ日", max_size=60), st.text("abcdefgh ,.'’ßİ日", max_size=60))
def test_marks_lie_in_order_and_on_both_sides(user: str, item: str) -> None:
    """Marks do not overlap, lie within their text, and each phrase has one on either side."""
    both = shared(user, item)
    for text, marks in zip((user, item), both.marks, strict=True):
        bounds = [bound for mark in marks for bound in (mark.start, mark.end)]
        assert bounds == sorted(bounds)
        assert all(0 <= bound <= len(text) for bound in bounds)
    assert {mark.phrase for mark in both.marks[0]} == {mark.phrase for mark in both.marks[1]}
    assert len(both.phrases) == len({mark.phrase for mark in both.marks[0]} - {-1})


def test_stop_words_are_never_marked() -> None:
    """Function words are shared by all texts, and no sign of alignment."""
    both = shared("it is what they do with the", "it is what they do with the")
    assert both.marks == ([], [])


@pytest.mark.parametrize(
    "family",
    [
        ("strategy", "strategies", "strategic"),
        ("narrative", "narration", "narrator", "narratives"),
        ("pace", "paced", "pacing"),
        ("character", "characters", "characterisation"),
        ("play", "plays", "player", "playing"),
        ("emotion", "emotional", "emotions"),
        ("mystery", "mysteries", "mysterious"),
        ("complex", "complexity"),
        ("replay", "replayable", "replayability"),
        ("plan", "planned", "planning"),
    ],
)
def test_forms_of_a_word_have_one_stem(family: tuple[str, ...]) -> None:
    """Words of one family meet."""
    assert len({stem(word) for word in family}) == 1


@pytest.mark.parametrize(("one", "other"), [("music", "muse"), ("planet", "plan"), ("novel", "novice"), ("日本", "日")])
def test_other_words_do_not_meet(one: str, other: str) -> None:
    """A stem is not cut so short that strangers meet."""
    assert stem(one) != stem(other)


@given(st.text(max_size=40))
def test_words_lie_where_they_say(text: str) -> None:
    """Every word is a stretch of its text, in order."""
    ends = [bound for word in words_of(text) for bound in (word.start, word.end)]
    assert ends == sorted(ends)
    assert all(text[word.start : word.end].strip() for word in words_of(text))
