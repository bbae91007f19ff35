"""Results as Markdown."""

from __future__ import annotations

import math
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet import RatingScale
from duet_train.evaluate import _finite
from duet_train.figures import assemble
from duet_train.judging import Judgement, Made
from duet_train.popularity import Popularity
from duet_train.ranking_metrics import hit_rate_at_k, mrr, ndcg_at_k
from duet_train.scoring import Gold
from duet_train.tables import interval, markdown, number, table

GOLD = Gold(
    ratings=np.array([5.0, 3.0, 1.0]),
    users=["a", "b", "c"],
    scale=RatingScale(),
    history_lengths=np.array([1, 8, 60]),
    variances=np.array([0.0, 1.0, 2.0]),
    median=4.0,
)


def judged(*predicted: float) -> Judgement:
    """Three rows of a method."""
    values = np.array(predicted)
    made = [Made(None, TimeoutError()) if math.isnan(value) else Made(None) for value in predicted]
    return Judgement(
        made=made,
        predicted=values,
        shuffled_users=values,
        shuffled_items=values,
        errors=[type(one.error).__name__ if one.error else "" for one in made],
        seconds=2.4,
        calls=7,
    )


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """Three rows, a baseline, a method, and one that failed everywhere."""
    baselines = {"median": np.full(3, 4.0)}
    found = assemble(GOLD, baselines, {"duet": judged(5, 2, math.nan), "lost": judged(*[math.nan] * 3)})
    return found | {"facts": {"rows": "3 of split test"}}


def section(text: str, title: str) -> str:
    """What stands under a heading."""
    return text.split(f"### {title}\n\n")[1].split("\n\n###")[0]


def figure(estimate: float) -> dict[str, float]:
    """An interval."""
    return {"estimate": estimate, "low": 0.0, "high": 1.0, "units": 3}


# Cells


@given(st.lists(st.lists(st.text("abc|–", max_size=8), min_size=3, max_size=3), min_size=1, max_size=5))
def test_lines_of_a_table_are_of_one_length(rows: list[list[str]]) -> None:
    """A table reads well as plain text: all its lines are equally long, one a row after head and rule."""
    lines = table(["method", "x", "long head"], rows).splitlines()
    assert len(lines) == len(rows) + 2
    assert len({len(line) for line in lines}) == 1


def test_table_says_which_columns_are_to_the_right() -> None:
    """The first column stands to the left, all others to the right, in Markdown too."""
    assert table(["a", "b"], [["one", "two"]]).splitlines() == ["| a   |   b |", "| --- | --: |", "| one | two |"]


@pytest.mark.parametrize("value", [None, math.nan])
def test_no_number_is_a_dash(value: float | None) -> None:
    """What JSON calls null and Python nan is a dash."""
    assert number(value) == "–"
    assert interval({"estimate": value, "low": value, "high": value}) == "–"


def test_interval_stands_behind_its_estimate() -> None:
    """Estimate first, ends in brackets; unknown ends are dashes."""
    assert interval({"estimate": 0.5, "low": 0.25, "high": 1.0}) == "0.500 [0.250, 1.000]"
    assert interval({"estimate": 0.5, "low": math.nan, "high": math.nan}) == "0.500 [–, –]"
    assert interval(None) == "–"


@pytest.mark.parametrize(("p_value", "shown"), [(0.0004, "p < 0.001"), (0.25, "p 0.250"), (None, "p –")])
def test_p_value_is_never_shown_as_zero(results: dict[str, Any], p_value: float | None, shown: str) -> None:
    """A small p-value is less than something, and not nothing."""
    test = {"difference": figure(0.5), "p_value": p_value}
    methods = {"duet": results["methods"]["duet"] | {"against": test}}
    assert f"0.500 [0.000, 1.000], {shown} |" in markdown(results | {"methods": methods})


# Tables


def test_facts_stand_first(results: dict[str, Any]) -> None:
    """What a reader must know is said before any number."""
    assert markdown(results).startswith("- rows: 3 of split test\n\n### Rating")


def test_every_method_has_its_line_in_every_table(results: dict[str, Any]) -> None:
    """Baselines and methods stand in all tables of ratings, those that failed too."""
    text = markdown(results)
    for title in (
        "Rating",
        "Is it personal?",
        "Like (from 4), neutral, dislike (up to 2)",
        "MAE by length of the history",
    ):
        lines = section(text, title).splitlines()[2:]
        assert [line.split("|")[1].strip() for line in lines] == ["median", "duet", "lost"], title


def test_rows_without_a_prediction_are_counted(results: dict[str, Any]) -> None:
    """A section of its own says how many rows have none, by method and error."""
    assert section(markdown(results), "Rows without a prediction").splitlines() == [
        "- duet: 1 TimeoutError",
        "- lost: 3 TimeoutError",
    ]


def test_first_error_of_a_kind_is_quoted() -> None:
    """What the first error says stands beside the count."""
    lost = attrs.evolve(judged(math.nan, 4, 4), reasons={"TimeoutError": "it took too long"})
    found = assemble(GOLD, {"median": np.full(3, 4.0)}, {"duet": lost}) | {"facts": {}}
    assert "- duet: 1 TimeoutError, the first: it took too long" in markdown(found).splitlines()


def test_section_of_failures_is_left_out_where_none_is() -> None:
    """Where every row has a prediction there is nothing to list."""
    found = assemble(GOLD, {"median": np.full(3, 4.0)}, {"duet": judged(5, 4, 4)}) | {"facts": {}}
    assert "without a prediction" not in markdown(found)


def test_results_from_disk_give_the_same_tables(results: dict[str, Any]) -> None:
    """Results as JSON holds them, without nan and infinity, read as those in memory."""
    assert markdown(_finite(results)) == markdown(results)


def test_parse_rate_stands_beside_the_errors(results: dict[str, Any]) -> None:
    """A failed row is in the share that was parsed, and in no error."""
    line = next(line for line in section(markdown(results), "Rating").splitlines() if "duet" in line)
    assert [cell.strip() for cell in line.split("|")[2:4]] == ["0.67", "0.500 [0.000, 1.000]"]


def test_failures_as_median_stand_beside_the_complete_cases(results: dict[str, Any]) -> None:
    """One row of three failed, whose true rating is 1 and the median 4; where all failed the constant is left."""
    lines = section(markdown(results), "Rating").splitlines()
    heads, duet, lost = ([cell.strip() for cell in line.split("|")] for line in (lines[0], lines[3], lines[4]))
    place = heads.index("MAE, failures as median")
    assert heads[place - 1 : place + 3] == ["MAE", "MAE, failures as median", "RMSE", "RMSE, failures as median"]
    assert duet[place].startswith("1.333 [")
    assert lost[place] == next(line for line in lines if "median " in line[:10]).split("|")[place].strip()


def test_results_of_an_earlier_version_are_read(results: dict[str, Any]) -> None:
    """Results without the later figures have dashes in their place."""
    later = ("filled", "against_filled", "tau", "popularity")

    def earlier(figures: dict[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in figures.items() if key not in later}
        return {key: earlier(value) if isinstance(value, dict) else value for key, value in kept.items()}

    methods = {name: earlier(one) for name, one in results["methods"].items()}
    text = markdown(results | {"methods": methods})
    assert all("–" in line for line in section(text, "Rating").splitlines()[2:])


def test_cost_counts_calls_and_failures(results: dict[str, Any]) -> None:
    """Methods that ask a model show calls, tokens, seconds and what went wrong."""
    lines = section(markdown(results), "Cost of the profiles").splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[0] == ["duet", "7", "0", "0", "–", "2", "1 TimeoutError"]
    assert cells[1][-1] == "3 TimeoutError"


def test_groups_name_their_bounds(results: dict[str, Any]) -> None:
    """Columns of groups say from where to where, and cells how many rows."""
    text = section(markdown(results), "MAE by length of the history")
    assert [head.strip() for head in text.splitlines()[0].split("|")[2:-1]] == ["≤ 5", "> 5, ≤ 10", "> 50"]
    assert "(n=1)" in text


def test_groups_of_popularity_are_named() -> None:
    """Head, middle and tail stand beside their bounds in training interactions, and a large one in full."""
    counts = np.array([0, 8, 4000])
    gold = attrs.evolve(GOLD, popularity=Popularity(counts=counts, tail=3, middle=1234))
    text = markdown(assemble(gold, {"median": np.full(3, 4.0)}, {"duet": judged(5, 2, math.nan)}) | {"facts": {}})
    lines = section(text, "MAE by popularity of the item").splitlines()
    heads = [head.strip() for head in lines[0].split("|")[2:-1]]
    assert heads == ["tail (≤ 3)", "middle (> 3, ≤ 1234)", "head (> 1234)"]
    assert lines[3].split("|")[-2].strip() == "–"


def test_second_recommender_has_its_tables(results: dict[str, Any]) -> None:
    """What the second recommender made of the same profiles stands in tables of its own, cost aside."""
    text = markdown(results | {"transfer": results["methods"]})
    title = "Rating, before the second recommender"
    assert section(text, title).splitlines()[2:] == section(text, "Rating").splitlines()[2:]
    assert text.count("Cost of the profiles") == 1


def test_ranking_states_what_random_order_gives(results: dict[str, Any]) -> None:
    """The last line of a ranking is the random floor, as the metrics themselves have it."""
    names = ("ndcg@1", "ndcg@5", "ndcg@10", "hit@1", "hit@5", "mrr")
    one = {name: figure(0.5) for name in names} | {"failed": 2, "candidates": 40}
    text = markdown(results | {"ranking": {"random": {"ease": one}, "ease": {"ease": one}}})
    floor = [f"{value:.3f}" for value in floors()]
    for kind in ("random", "ease"):
        lines = section(text, f"Ranking among 10, {kind} negatives").splitlines()
        assert "2 of 40" in lines[2]
        assert [cell.strip() for cell in lines[-1].split("|")[1:-2]] == ["random order", *floor]


def floors() -> list[float]:
    """The metrics of ten equal scores, in the order of the columns."""
    equal = [0.0] * 10
    found = [ndcg_at_k(equal, 3, k) for k in (1, 5, 10)] + [hit_rate_at_k(equal, 3, k) for k in (1, 5)]
    return [*found, mrr(equal, 3)]


def test_choice_states_what_chance_gives(results: dict[str, Any]) -> None:
    """One of ten is right by chance."""
    text = markdown(results | {"choice": {"duet": {"accuracy": figure(0.5), "failed": 1}}})
    assert "random order" in section(text, "Next item, one of ten").splitlines()[-1]


def test_texts_and_catalogue_have_their_tables(results: dict[str, Any]) -> None:
    """Figures that a method lacks are dashes."""
    names = [f"{name}@{k}" for k in (5, 10, 20) for name in ("recall", "precision", "mrr", "ndcg")]
    more = {"texts": {"duet": {"coverage_user": 0.25}}, "catalogue": {"duet": {name: figure(0.5) for name in names}}}
    text = markdown(results | more)
    assert section(text, "The texts").count("–") == 6
    assert section(text, "The whole catalogue, by embedding").count("0.500 [") == 12


def test_what_was_not_measured_has_no_table(results: dict[str, Any]) -> None:
    """Empty tables are left out."""
    text = markdown(results | {"texts": {}, "ranking": {}, "catalogue": {}, "choice": {}})
    assert text == markdown(results)
    assert "embedding" not in text
