"""Metrics of profile texts: alignment with its control, coverage by words."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duet import ConfigurationError
from duet_train.profile_metrics import STOP_WORDS, alignment, coverage, words


def embeddings(seed: int, pairs: int = 12) -> Any:
    return np.random.default_rng(seed).normal(size=(2, pairs, 5))


# Alignment


@pytest.mark.parametrize("seed", range(5))
def test_alignment_equals_the_matrix_of_cosines(seed: int) -> None:
    """Matched is the mean of the diagonal of all cosines, mismatched that of the rest."""
    users, items = embeddings(seed)
    oracle = pytest.importorskip("sklearn.metrics.pairwise", reason="scikit-learn is the oracle")
    cosines = oracle.cosine_similarity(users, items)
    rest = cosines[~np.eye(len(cosines), dtype=bool)]
    found = alignment(users, items)
    assert [found.matched, found.mismatched] == pytest.approx([np.trace(cosines) / len(cosines), rest.mean()])


def test_gap_is_the_mean_of_gaps() -> None:
    """The gaps of the pairs average to the gap, so that it can be bootstrapped."""
    found = alignment(*embeddings(0))
    assert found.gap == pytest.approx(found.gaps.mean())
    assert found.gap == pytest.approx(found.matched - found.mismatched)


def test_texts_all_alike_have_no_gap() -> None:
    """A cosine of 1 that every pair has is no alignment."""
    found = alignment(np.ones((4, 3)), np.ones((4, 3)))
    assert [found.matched, found.gap] == pytest.approx([1, 0])


@settings(deadline=None)
@given(st.floats(0.01, 100))
def test_length_of_embeddings_does_not_matter(factor: float) -> None:
    """Only directions count."""
    users, items = embeddings(3)
    assert alignment(users * factor, items).gap == pytest.approx(alignment(users, items).gap)


def test_one_pair_has_no_control() -> None:
    """With a single pair there is a cosine and no gap."""
    found = alignment([[1.0, 0.0]], [[1.0, 0.0]])
    assert found.matched == 1.0
    assert math.isnan(found.mismatched)
    assert math.isnan(found.gap)


def test_no_pairs_is_nan() -> None:
    """No pairs have no alignment."""
    assert math.isnan(alignment(np.empty((0, 3)), np.empty((0, 3))).matched)


@pytest.mark.parametrize("row", [[0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_row_without_direction_is_refused(row: list[float]) -> None:
    """A failed embedding is named, and not averaged in."""
    with pytest.raises(ConfigurationError, match="row 1 of items has no direction"):
        alignment([[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], row])


def test_sides_must_pair() -> None:
    """Embeddings of different number are refused."""
    with pytest.raises(ConfigurationError, match="row by row"):
        alignment([[1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]])


# Coverage


def test_words_are_letters_and_digits() -> None:
    """Punctuation and underscores part words; accents and digits do not."""
    assert words("Café-Bar «Ōsaka_2»: it's 90s funk!") == ["café", "bar", "ōsaka", "2", "it", "s", "90s", "funk"]


@pytest.mark.parametrize(("one", "other"), [("STRASSE", "straße"), ("Cafe\u0301", "CAFÉ"), ("ΣΊΣΥΦΟΣ", "σίσυφος")])
def test_case_and_composition_do_not_matter(one: str, other: str) -> None:
    """A word is the same in capitals and with its accent apart."""
    assert words(one) == words(other)


def test_coverage_is_the_share_of_content_words() -> None:
    """Three of four content words occur; the stop words around them do not count."""
    assert coverage("The user loves jazz and techno.", ["Loves it", "jazz by the user"], stop_words=STOP_WORDS) == 0.75


def test_coverage_with_stop_words() -> None:
    """Without a stop list every word counts."""
    assert coverage("the jazz", ["the blues"], stop_words=frozenset()) == 0.5


def test_every_occurrence_counts() -> None:
    """An invented word said twice counts twice."""
    assert coverage("jazz techno techno", ["jazz"]) == pytest.approx(1 / 3)


@pytest.mark.parametrize("profile", ["", "the and of", "…"])
def test_profile_without_content_is_nan(profile: str) -> None:
    """What says nothing is neither covered nor invented."""
    assert math.isnan(coverage(profile, ["jazz"]))


@settings(deadline=None)
@given(st.text())
def test_text_covers_itself(text: str) -> None:
    """A profile copied from its history is covered whole."""
    found = coverage(text, [text], stop_words=frozenset())
    assert found == 1.0 or math.isnan(found)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["jazz", "the", "blues", "rock"])), st.lists(st.sampled_from(["jazz", "rock", "pop"])))
def test_more_history_never_covers_less(profile: list[str], history: list[str]) -> None:
    """A longer history cannot lower coverage."""
    text = " ".join(profile)
    less, more = coverage(text, history[:1]), coverage(text, history)
    assert math.isnan(more) or more >= less


def test_stop_words_are_words() -> None:
    """Every stop word is one word as `words` cuts them, so that each can match."""
    assert all(words(word) == [word] for word in STOP_WORDS)
