"""The tables of the texts: alignment and coverage, the whole catalogue by embedding, and next-item choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from evaluations import ITEMS, ByText, judgement, log, made_by_hand, prepared, tools
from prepare_oracle import Rated

from duet import (
    Completion,
    EndpointRejected,
    Item,
    JointProfile,
    Ledger,
    Message,
    Profile,
    RatingError,
    Sampling,
    TokenLogprob,
    choice_prompt,
)
from duet.testing import ScriptedAnswer, ScriptedEndpoint
from duet_train.choice import choose
from duet_train.data.prepared import Prepared, PreparedExample
from duet_train.extras import catalogue_table, choice_table, text_table
from duet_train.judging import Made
from duet_train.ranking import Catalogue
from duet_train.retrieval import alignment_figures, catalogue_figures, embed_all, item_text

pytestmark = pytest.mark.anyio

SAMPLING = Sampling(temperature=0.0, max_tokens=1, logprobs=True, top_logprobs=20)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Six test rows, one a user."""
    return prepared(tmp_path_factory.mktemp("texts") / "out")


@pytest.fixture(scope="module")
def rows(data: Prepared) -> list[PreparedExample]:
    """All test rows."""
    return data.examples("test")


@pytest.fixture(scope="module")
def catalogue(data: Prepared) -> Catalogue:
    """All items and who has which."""
    return Catalogue.of(data)


# Embedding


async def test_vectors_are_of_length_one_and_in_order() -> None:
    """Texts come back in order as unit vectors, whatever the size of a batch."""
    embedder = ByText({"a": (2.0, 0.0, 0.0), "b": (0.0, 3.0, 4.0)})
    for batch in (1, 2, 5):
        found = await embed_all(embedder, ["a", "b", "a"], lambda: None, batch)
        np.testing.assert_allclose(found, np.array([[1, 0, 0], [0, 0.6, 0.8], [1, 0, 0]], dtype=np.float64))


async def test_no_direction_stays_zero() -> None:
    """A vector of zeros or without a length has no direction: it is zero, and no warning is given."""
    embedder = ByText({"zero": (0.0, 0.0, 0.0), "nan": (math.nan, 1.0, 0.0), "inf": (math.inf, 1.0, 0.0)})
    assert not (await embed_all(embedder, ["zero", "nan", "inf"], lambda: None)).any()


async def test_no_texts_are_no_vectors() -> None:
    """Nothing to embed asks nothing."""
    assert len(await embed_all(ByText({}), [], lambda: None)) == 0


def test_item_is_embedded_by_title_and_attributes() -> None:
    """No review takes part, and an item without a title goes by its id."""
    assert item_text(Item("x", title="Maps", attributes={"kind": "atlas"})) == "Maps. atlas"
    assert item_text(Item("x")) == "x"


# Alignment and coverage


def test_alignment_has_its_control() -> None:
    """The cosine of a row's own two profiles stands beside that of all other pairs, and the gap between them."""
    found = alignment_figures(np.eye(3), np.eye(3))
    assert found == {"matched": 1.0, "mismatched": 0.0, "gap": 1.0}


def test_pair_without_a_direction_is_left_out() -> None:
    """One embedding of zeros does not end the evaluation: its pair is left out."""
    users = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    assert alignment_figures(users, np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))["matched"] == 1.0


async def test_texts_are_covered_by_their_own_side(rows: list[PreparedExample], tmp_path: Path) -> None:
    """A profile of the user's words is covered by the user's rows, one of others' by none; titles cover the item."""
    made = made_by_hand(rows, user="words turn", item="thing nowhere")
    found = (await text_table(rows, {"some": judgement(made)}, tools(tmp_path)))["some"]
    assert (found["coverage_user"], found["coverage_item"]) == (1.0, 0.5)


async def test_stop_words_count_where_they_are_asked_for(rows: list[PreparedExample], tmp_path: Path) -> None:
    """Coverage stands with stop words and without."""
    made = made_by_hand(rows, user="nowhere of in", item="the thing")
    found = (await text_table(rows, {"some": judgement(made)}, tools(tmp_path)))["some"]
    assert (found["coverage_user"], found["coverage_user_all"]) == (0.0, pytest.approx(2 / 3))


async def test_one_side_alone_has_its_coverage(rows: list[PreparedExample], tmp_path: Path) -> None:
    """A method that writes of the user alone has the user's coverage, no item's and no alignment."""
    kit = tools(tmp_path, embedder=ByText({}))
    found = (await text_table(rows, {"user": judgement(made_by_hand(rows, "words", ""))}, kit))["user"]
    assert found["coverage_user"] == 1.0
    assert math.isnan(found["coverage_item"])
    assert "matched" not in found


async def test_method_without_texts_is_left_out(rows: list[PreparedExample], tmp_path: Path) -> None:
    """Where nothing was written there is nothing to show, and failed rows are passed over."""
    bare = judgement([Made(JointProfile()), *[Made(None, TimeoutError())] * 5])
    assert await text_table(rows, {"10h": bare}, tools(tmp_path)) == {}


# The whole catalogue


def test_history_is_not_ranked_and_the_positive_is() -> None:
    """Items that the user had leave the ranking, but for the positive, even where it is named among them."""
    items = np.eye(30)
    user = items[0] * 3 + items[1] * 2 + items[2]
    with_history = catalogue_figures(user[None], items, [2], [[0, 1, 2]], ["u"])
    without = catalogue_figures(user[None], items, [2], [[]], ["u"])
    assert with_history["mrr@5"]["estimate"] == 1.0
    assert without["mrr@5"]["estimate"] == pytest.approx(1 / 3)


def test_catalogue_resamples_users_whole() -> None:
    """Three rows of two users are two units, in every metric at every cutoff."""
    found = catalogue_figures(np.eye(3), np.eye(3), [0, 1, 2], [[], [], []], ["ann", "ann", "bob"])
    assert {one["units"] for one in found.values()} == {2}


async def test_all_items_the_user_had_are_left_out(tmp_path: Path, anyio_backend: str) -> None:
    """Not only the rows that a prompt shows: a window of two does not make the others candidates."""
    data = prepared(tmp_path / "out", history=2)
    row = data.examples("test")[:1]
    had = [one.item for one in log() if one.user == row[0].example.user.id]
    vectors = {f"The {int(item[1:])}th thing": (1.0, 0.0, 0.0) for item in had} | {"words": (1.0, 0.0, 0.0)}
    kit = tools(tmp_path, embedder=ByText(vectors))
    table = await catalogue_table(data, row, {"some": judgement(made_by_hand(row))}, Catalogue.of(data), kit)
    assert table["some"]["mrr@5"]["estimate"] == 1.0


async def test_catalogue_states_the_random_order(
    data: Prepared, rows: list[PreparedExample], catalogue: Catalogue, tmp_path: Path
) -> None:
    """Beside the methods stands what a random order of the ranked items gives: 5 of 17 at 5."""
    kit = tools(tmp_path, embedder=ByText({}))
    table = await catalogue_table(data, rows, {"some": judgement(made_by_hand(rows))}, catalogue, kit)
    assert table["random order"]["recall@5"]["estimate"] == pytest.approx(5 / (ITEMS - 7))
    assert table["some"]["recall@5"] == table["random order"]["recall@5"]


async def test_no_embedder_is_no_catalogue(
    data: Prepared, rows: list[PreparedExample], catalogue: Catalogue, tmp_path: Path
) -> None:
    """Without an embedder the table is empty."""
    assert await catalogue_table(data, rows, {"some": judgement(made_by_hand(rows))}, catalogue, tools(tmp_path)) == {}


# Next-item choice


def letters(*likely: tuple[str, float], chosen: str = "A") -> Completion:
    """An answer of one token with its alternatives."""
    return Completion(chosen, logprobs=(TokenLogprob(chosen, dict(likely).get(chosen, -9.0), likely),))


def named(title: str, messages: Sequence[Message]) -> Completion:
    """The letter of a title, and no other."""
    lines = messages[1]["content"].splitlines()
    right = next(line[0] for line in lines if line[1:] == f". {title}")
    return letters((right, 0.0), chosen=right)


def test_choice_is_lettered_in_order() -> None:
    """Titles stand one a line after their letters, and nothing in them or in the profile breaks a line."""
    content = choice_prompt("Likes\nmaps", ["One", "Two\nlines"])[1]["content"]
    assert content.splitlines()[1] == "Likes maps"
    assert "A. One\nB. Two lines" in content


async def test_scores_are_those_of_the_letters() -> None:
    """Each item has its letter's log-probability; the same letter with a space before it is no other label."""
    endpoint = ScriptedEndpoint(letters(("A", -3.0), (" B", -0.5), ("▁A", -2.0), ("x", -3.0)))
    found = await choose(endpoint, "words", ["one", "two"], sampling=SAMPLING, ledger=None)
    assert found == pytest.approx([math.log(math.exp(-3) + math.exp(-2)), -0.5])


async def test_missing_letter_is_less_likely_than_any_other() -> None:
    """A letter that is not among the likeliest tokens is not unknown: it is last."""
    endpoint = ScriptedEndpoint(letters(("B", -0.5), ("A", -7.0)))
    found = await choose(endpoint, "words", ["one", "two", "three"], sampling=SAMPLING, ledger=None)
    assert found == pytest.approx([-7.0, -0.5, -math.inf])


async def test_chosen_letter_counts_where_the_server_leaves_it_out() -> None:
    """Some servers list alternatives only: the token itself is one of the likeliest."""
    endpoint = ScriptedEndpoint(letters(("B", -0.1), chosen="A"))
    found = await choose(endpoint, "words", ["one", "two"], sampling=SAMPLING, ledger=None)
    assert found[0] == pytest.approx(-9.0)


@pytest.mark.parametrize(
    "answer",
    [
        letters(("x", 0.0), chosen="x"),
        letters(("C", 0.0), chosen="C"),
        letters(("<think>", 0.0), ("A", -20.0), chosen="<think>"),
        letters(("A", -1.0), ("x", -0.5), chosen="x"),
    ],
    ids=["no letter", "another letter", "thinks", "less than half"],
)
async def test_no_letter_is_no_choice(answer: Completion) -> None:
    """An answer in which the letters shown have less than half of the probability is a failure."""
    with pytest.raises(RatingError, match="the labels A, B"):
        await choose(ScriptedEndpoint(answer), "words", ["one", "two"], sampling=SAMPLING, ledger=None)


async def test_no_logprobs_for_a_choice_are_the_endpoints_fault() -> None:
    """An answer without log-probabilities chooses nothing, and that is not the model's fault."""
    with pytest.raises(EndpointRejected, match="no log-probabilities"):
        await choose(ScriptedEndpoint(Completion("A")), "words", ["one", "two"], sampling=SAMPLING, ledger=None)


async def test_a_lower_minimum_accepts_an_unlikely_letter() -> None:
    """A model that spreads its bets may be asked all the same."""
    endpoint = ScriptedEndpoint(letters(("x", -0.1), ("A", -4.0), chosen="x"))
    found = await choose(endpoint, "words", ["one", "two"], sampling=SAMPLING, ledger=None, minimum_mass=0.0)
    assert found == pytest.approx([-4.0, -math.inf])


async def test_choice_is_kept_in_the_ledger(tmp_path: Path) -> None:
    """The same question is asked once."""
    endpoint = ScriptedEndpoint(letters(("A", 0.0)))
    async with Ledger(tmp_path / "ledger.sqlite") as ledger:
        for _ in range(2):
            await choose(endpoint, "words", ["one"], sampling=SAMPLING, ledger=ledger)
    assert len(endpoint.calls) == 1


async def accuracy(
    data: Prepared,
    rows: Sequence[PreparedExample],
    catalogue: Catalogue,
    made: Sequence[Made],
    endpoint: ScriptedEndpoint,
    directory: Path,
) -> tuple[float, int]:
    """Accuracy of the choice, and how many rows failed."""
    kit = tools(directory, endpoint)
    async with kit.ledger:
        found = (await choice_table(data, rows, {"some": judgement(made)}, catalogue, kit, seed=0))["some"]
    return found["accuracy"]["estimate"], found["failed"]


async def test_perfect_knowledge_is_always_right(
    data: Prepared, rows: list[PreparedExample], catalogue: Catalogue, tmp_path: Path
) -> None:
    """A model that knows the next item has accuracy 1, though it names one letter of ten."""
    titles = {f"words {row.row}": row.example.item.title or "" for row in rows}

    def answer(messages: Sequence[Message], sampling: Sampling) -> ScriptedAnswer:
        return named(titles[messages[1]["content"].splitlines()[1]], messages)

    made = [Made(JointProfile(user=Profile(text=text))) for text in titles]
    assert await accuracy(data, rows, catalogue, made, ScriptedEndpoint(answer), tmp_path) == (1.0, 0)


async def test_always_wrong_is_never_right(
    data: Prepared, rows: list[PreparedExample], catalogue: Catalogue, tmp_path: Path
) -> None:
    """A model that names another letter alone has accuracy 0, not the chance of what it left unnamed."""
    sets = [catalogue.candidates(row, "random", 0) for row in rows]
    # The letter before the right one, and the last for the first.
    wrong = {f"words {row.row}": "ABCDEFGHIJ"[one.position - 1] for row, one in zip(rows, sets, strict=True)}

    def answer(messages: Sequence[Message], sampling: Sampling) -> ScriptedAnswer:
        letter = wrong[messages[1]["content"].splitlines()[1]]
        return letters((letter, 0.0), chosen=letter)

    made = [Made(JointProfile(user=Profile(text=text))) for text in wrong]
    assert await accuracy(data, rows, catalogue, made, ScriptedEndpoint(answer), tmp_path) == (0.0, 0)


async def test_failures_of_the_choice_are_counted_apart(
    data: Prepared, rows: list[PreparedExample], catalogue: Catalogue, tmp_path: Path
) -> None:
    """A row without a profile and one without an answer are no choices, neither right nor wrong."""
    made = [Made(None, TimeoutError()), *made_by_hand(rows[1:])]
    answer, failed = await accuracy(data, rows, catalogue, made, ScriptedEndpoint(Completion("A")), tmp_path)
    assert math.isnan(answer)
    assert failed == 6


async def test_choice_resamples_users_whole(data: Prepared, catalogue: Catalogue, tmp_path: Path) -> None:
    """Training rows are several a user: the units are the users."""
    rows = data.examples("train")
    kit = tools(tmp_path, ScriptedEndpoint(letters(("A", 0.0))))
    async with kit.ledger:
        table = await choice_table(data, rows, {"some": judgement(made_by_hand(rows))}, catalogue, kit, seed=0)
    assert table["some"]["failed"] == 0
    assert table["some"]["accuracy"]["units"] == len({row.example.user.id for row in rows}) < len(rows)


async def test_method_that_writes_of_no_user_chooses_nothing(
    data: Prepared, rows: list[PreparedExample], catalogue: Catalogue, tmp_path: Path
) -> None:
    """Without a profile of the user there is no choice to make, and no line in the table."""
    bare = judgement(made_by_hand(rows, user=""))
    assert await choice_table(data, rows, {"10h": bare}, catalogue, tools(tmp_path), seed=0) == {}


async def test_unknown_title_goes_by_the_id(tmp_path: Path) -> None:
    """Where an item has no title its id stands in the list."""
    data = prepared(tmp_path / "out", [*log(), Rated("u0", "i99", 5, 10_000.0)])
    rows = [row for row in data.examples("test") if row.example.item.id == "i99"]
    endpoint = ScriptedEndpoint(lambda messages, sampling: named("i99", messages))
    assert await accuracy(data, rows, Catalogue.of(data), made_by_hand(rows), endpoint, tmp_path) == (1.0, 0)
