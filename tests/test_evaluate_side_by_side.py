"""``evaluate`` as a user compares methods with it: every prediction on disk, pairs tested, several runs as one."""

from __future__ import annotations

import argparse
import io
import json
import re
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import attrs
import pytest
from evaluations import prepared

from duet import TokenLogprob
from duet.testing import Answer, FakeServer, Request, completion_text
from duet_train.__main__ import main
from duet_train.asked import MODEL_FREE, pairs_of
from duet_train.comparing import holm
from duet_train.evaluate import add_arguments
from duet_train.predictions import read_predictions
from duet_train.tables import number

METHODS = ("--methods", "duet@start,duet@trained")
RUNS = ("--methods", "duet@start", "--repeats", "trained=duet@s1,duet@s3")
SAYS = {"start": 1, "s1": 2, "s3": 4, "trained": 3}
"""The rating that each model's profiles lead to."""


def answer(request: Request) -> Answer:
    """A profile that names its model, and the rating that goes with that name; 5 where there is no profile."""
    if not request.json.get("logprobs"):
        return Answer(completion_text(user_profile=f"Written by {request.json['model']}."))
    named = re.search(r"Written by (\w+)\.", request.json["messages"][1]["content"])
    token = str(SAYS[named[1]]) if named else "5"
    return Answer(token, logprobs=(TokenLogprob(token, -0.1, ((token, -0.1),)),))


@attrs.frozen
class Ran:
    """What a run left and printed."""

    out: Path
    stdout: str
    requests: int

    @property
    def results(self) -> dict[str, Any]:
        """The figures on disk."""
        found: dict[str, Any] = json.loads((self.out / "results.json").read_text())
        return found

    def table(self, title: str) -> list[list[str]]:
        """The cells under a heading, head and rule left out."""
        text = self.stdout.split(f"### {title}\n\n")[1].split("\n\n")[0]
        return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared log with six test rows, rated 2, 1, 5, 4, 3 and 2."""
    return prepared(tmp_path_factory.mktemp("side") / "data").directory


def evaluate(data: Path, out: Path, *more: str, second: str = "") -> Ran:
    """Run it; with `second` another server judges as well."""
    shown = io.StringIO()
    with FakeServer(answer).run_in_thread() as server, redirect_stdout(shown), redirect_stderr(io.StringIO()):
        words = ["--data", str(data), "--out", str(out), "--base-url", server.base_url, "--model", "fake"]
        again = ["--transfer-to", f"{server.base_url},{second}"] if second else []
        assert main(["evaluate", *words, *more, *again]) == 0
        asked = sum(request.path.endswith("/chat/completions") for request in server.requests)
    return Ran(out, shown.getvalue(), asked)


@pytest.fixture(scope="module")
def ran(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A method before and after training, beside the models without words."""
    return evaluate(data, tmp_path_factory.mktemp("side") / "out", *METHODS)


@pytest.fixture(scope="module")
def judged_twice(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One method before two recommenders."""
    return evaluate(data, tmp_path_factory.mktemp("side") / "out", "--methods", "duet@start", second="second")


@pytest.fixture(scope="module")
def repeated(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One method of two runs beside the one that they started from."""
    return evaluate(data, tmp_path_factory.mktemp("side") / "out", *RUNS)


# Predictions


def test_predictions_of_all_methods_are_kept(ran: Ran) -> None:
    """Models without words and methods alike have every row, and methods both controls."""
    found = read_predictions(ran.out).aggregate("method, control, count(*) AS n").fetchall()
    expected = [(name, "own", 6) for name in (*MODEL_FREE, "duet@start", "duet@trained")]
    for name in ("duet@start", "duet@trained"):
        expected += [(name, "other_user", 6), (name, "other_item", 6)]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(("transfer", "key"), [(False, "methods"), (True, "transfer")])
def test_figures_can_be_computed_from_the_file(judged_twice: Ran, transfer: bool, key: str) -> None:
    """The file alone gives the MAE of every method before either recommender."""
    own = read_predictions(judged_twice.out, transfer=transfer).filter("control = 'own'")
    found = dict(own.aggregate("method, avg(abs(rating - prediction))").fetchall())
    methods = judged_twice.results[key]
    assert found == pytest.approx({name: methods[name]["rating"]["mae"]["estimate"] for name in methods})


def test_directory_of_before_is_resumed(ran: Ran, data: Path, tmp_path: Path) -> None:
    """A directory that has a ledger and no predictions gets them without any new generation."""
    shutil.copy(ran.out / "ledger.sqlite", tmp_path)
    again = evaluate(data, tmp_path, *METHODS)
    assert again.requests == 0
    assert (tmp_path / "predictions.parquet").read_bytes() == (ran.out / "predictions.parquet").read_bytes()


# Pairs


def test_every_method_is_compared_with_every_other(ran: Ran) -> None:
    """Five methods are ten pairs, those without a model included, the later over the earlier."""
    lines = [cells[0] for cells in ran.table("Method over method")]
    assert len(lines) == len(set(lines)) == 10
    assert {"median over mean", "duet@start over bias", "duet@trained over duet@start"} <= set(lines)


def test_trained_over_start_is_one_line(ran: Ran) -> None:
    """The line says what is gained: 1 always is off by 1.83 and 3 always by 1.17, on six rows."""
    line = next(cells for cells in ran.table("Method over method") if cells[0] == "duet@trained over duet@start")
    assert line[1] == "6"
    assert line[2].startswith("0.667 [")
    assert float(line[4]) >= float(line[3])


def test_second_recommender_has_its_pairs(judged_twice: Ran) -> None:
    """Before the second recommender the same pairs are tested."""
    lines = judged_twice.table("Method over method, before the second recommender")
    assert [cells[0] for cells in lines] == [cells[0] for cells in judged_twice.table("Method over method")]
    assert len(judged_twice.results["transfer_side_by_side"]["comparisons"]) == 6


def test_results_hold_the_pairs(ran: Ran) -> None:
    """What is printed is in results.json, with gain, interval and both p-values."""
    pair = ran.results["comparisons"][-1]
    assert (pair["first"], pair["second"], pair["rows"]) == ("duet@trained", "duet@start", 6)
    assert pair["difference"]["estimate"] == pytest.approx(2 / 3)
    assert pair["difference"]["units"] == 6
    assert 0 < pair["p_value"] <= pair["p_holm"] <= 1
    assert pair["spread"] is None


def test_pairs_can_be_picked(ran: Ran, data: Path, tmp_path: Path) -> None:
    """Only what is asked for is tested, as it is asked for, and only that is corrected for."""
    shutil.copy(ran.out / "ledger.sqlite", tmp_path)
    picked = ("--compare", "duet@start,duet@trained", "--compare", "mean, median", "--compare", "mean,median")
    found = evaluate(data, tmp_path, *METHODS, *picked)
    lines = [cells[0] for cells in found.table("Method over method")]
    assert lines == ["duet@start over duet@trained", "mean over median"]
    pairs = found.results["comparisons"]
    assert [pair["p_holm"] for pair in pairs] == holm([pair["p_value"] for pair in pairs])


def test_gain_that_rounds_to_nothing_has_no_sign() -> None:
    """What rounds to 0 is shown as 0, and not as minus 0."""
    assert number(-0.0004) == "0.000"


# Several runs


def test_runs_are_one_method(repeated: Ran) -> None:
    """Ratings of 2 and of 4 are off by 1.17 and 1.5 on average: their mean, and a spread of a third by √2."""
    (line,) = repeated.table("Several runs as one method")
    assert line[:2] == ["trained", "2"]
    assert re.fullmatch(r"1\.333 \[[\d.]+, [\d.]+\] ± 0\.236", line[3])
    assert repeated.results["repeats"]["trained"]["runs"] == ["duet@s1", "duet@s3"]
    assert repeated.results["repeats"]["trained"]["mae"]["by_run"] == pytest.approx([7 / 6, 1.5])


def test_each_run_stands_in_the_tables_and_in_the_file(repeated: Ran) -> None:
    """The runs are evaluated like any method, though --methods has none of them."""
    lines = [cells[0] for cells in repeated.table("Rating")]
    assert lines == [*MODEL_FREE, "duet@start", "duet@s1", "duet@s3"]
    assert set(lines) == set(read_predictions(repeated.out, "polars")["method"])


def test_pairs_take_the_runs_together(repeated: Ran) -> None:
    """All runs are one side of a pair, with the spread of their gains beside its interval."""
    lines = {cells[0]: cells[1:] for cells in repeated.table("Method over method")}
    assert list(lines)[-1] == "trained over duet@start"
    assert not [name for name in lines if "@s" in name.replace("duet@start", "")]
    gain, spread = lines["trained over duet@start"][1], lines["trained over duet@start"][4]
    assert gain.startswith("0.500 [")
    assert spread == "0.236"
    assert lines["duet@start over mean"][4] == "–"


def test_run_can_be_compared_by_itself() -> None:
    """A run of a repeated method is picked by its own name."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    picked = ("--compare", "duet@s3,duet@s1", "--compare", "trained,duet@s1")
    args = parser.parse_args(["--data", "data", "--out", "out", *RUNS, *picked])
    assert pairs_of(args) == [("duet@s3", "duet@s1"), ("trained", "duet@s1")]


def test_facts_name_the_runs(repeated: Ran) -> None:
    """Which runs a name stands for is said before any number."""
    assert "- runs of trained: duet@s1, duet@s3\n" in repeated.stdout


# Mistakes


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--repeats", "duet@a,duet@b"], "--repeats must look like NAME=METHOD@RUN,METHOD@RUN"),
        (["--repeats", "=duet@a,duet@b"], "--repeats must look like"),
        (["--repeats", "trained=duet@a"], "--repeats must look like"),
        (["--repeats", "trained=duet@a,duet@a"], "must name different runs of one method"),
        (["--repeats", "trained=duet@a,kar@b"], "must name different runs of one method"),
        (["--repeats", "bias=duet@a,duet@b"], "the name 'bias' is taken"),
        (["--repeats", "10h=duet@a,duet@b"], "the name '10h' is taken"),
        (["--repeats", "x=duet@a,duet@b", "--repeats", "x=duet@c,duet@d"], "the name 'x' is taken"),
        (["--repeats", "trained=duett@a,duett@b"], "no method 'duett'"),
        (["--repeats", "trained=duet,duet@fake"], "two of its runs are served as 'fake'"),
        (["--compare", "10h"], "--compare must look like METHOD,METHOD"),
        (["--compare", "10h,10h"], "--compare must look like"),
        (["--compare", "10h,mean,median"], "--compare must look like"),
        (["--compare", "10h,kar"], "--compare has 'kar', which is not evaluated: there are mean, median, bias, 10h"),
    ],
)
def test_mistake_is_one_sentence(
    data: Path, tmp_path: Path, more: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bad input ends with exit code 2 and one sentence on stderr, before any model is asked."""
    with FakeServer(answer).run_in_thread() as server:
        words = ["--data", str(data), "--out", str(tmp_path), "--base-url", server.base_url, "--model", "fake"]
        code = main(["evaluate", *words, "--methods", "10h", *more])
        assert not server.requests
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert sentence in said.err
    assert said.err.count("\n") == 1


def test_runs_of_one_name_at_two_addresses_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ledger knows a model by its name: two hosts that call theirs alike would be one run twice."""
    at = [f"--at=s{run}=http://127.0.0.1:{run}/v1,policy-v1" for run in (1, 3)]
    words = ["--data", str(data), "--out", str(tmp_path), "--base-url", "http://127.0.0.1:9/v1", "--model", "fake"]
    assert main(["evaluate", *words, *RUNS, *at]) == 2
    assert "two of its runs are served as 'policy-v1'" in capsys.readouterr().err
