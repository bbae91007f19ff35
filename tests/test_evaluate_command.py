"""``python -m duet_train evaluate`` as a user meets it, against a server over HTTP."""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import attrs
import pytest
from evaluations import log, prepared

from duet import TokenLogprob
from duet.testing import Answer, FakeServer, Request, completion_text
from duet_train.__main__ import main
from duet_train.data.prepared import Prepared
from duet_train.evaluate import _ranked

LAST = [f"words of u{user} in turn 7" for user in range(6)]
"""The reviews of the test rows."""

FULL = [
    *("--methods", "10h,kar,rlmrec,palr,lettingo,reason4rec,duet"),
    *("--ranking", "2", "--ranking-methods", "10h,duet", "--choice"),
    # One at a time: of two that ask the same at once, neither finds the other's answer in the ledger.
    *("--concurrency", "1"),
]


def answer(request: Request) -> Answer:
    """A rating for one that is asked for, a letter for a choice, and else a profile."""
    if not request.path.endswith("/chat/completions"):
        return Answer()
    if not request.json.get("logprobs"):
        return Answer(completion_text())
    content = request.json["messages"][1]["content"]
    token = "B" if "Letter:" in content else str(2 + len(content) % 4)
    return Answer(token, logprobs=(TokenLogprob(token, -0.1, ((token, -0.1), ("1", -3.0))),))


def words(server: FakeServer, data: Path, out: Path, *more: str) -> list[str]:
    """A command line."""
    common = ["evaluate", "--data", str(data), "--out", str(out), "--base-url", server.base_url, "--model", "fake"]
    return [*common, *more]


def asked(requests: list[Request]) -> Counter[str]:
    """What was asked of chat models, and how often."""
    return Counter(
        json.dumps(request.json, sort_keys=True) for request in requests if request.path.endswith("/chat/completions")
    )


def no_constant(name: str) -> None:
    """JSON has no such number."""
    raise AssertionError(name)


def results(out: Path) -> dict[str, Any]:
    """What was written, strictly JSON."""
    found: dict[str, Any] = json.loads((out / "results.json").read_text(), parse_constant=no_constant)
    return found


@attrs.frozen
class Ran:
    """A run of the whole command, with all tables."""

    out: Path
    stdout: str
    requests: list[Request]
    code: int


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared log whose histories are of train, so that no target is in any other's."""
    return prepared(tmp_path_factory.mktemp("command") / "data").directory


@pytest.fixture(scope="module")
def ran(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One run with everything; most tests look at what it left."""
    return run_all(data, tmp_path_factory.mktemp("command") / "out")


def run_all(data: Path, out: Path, *more: str) -> Ran:
    """Run it before a server that embeds, too."""
    shown = io.StringIO()
    with FakeServer(answer).run_in_thread() as server, redirect_stdout(shown), redirect_stderr(io.StringIO()):
        code = main(words(server, data, out, *(more or FULL), "--embedder", f"{server.base_url},fake"))
        return Ran(out, shown.getvalue(), list(server.requests), code)


# What a run leaves


def test_run_ends_well(ran: Ran) -> None:
    """Exit code 0 where anything was predicted."""
    assert ran.code == 0


def test_everything_is_on_disk(ran: Ran) -> None:
    """Rows, results, tables, candidates of both kinds and the ledger."""
    names = {path.name for path in ran.out.iterdir()}
    assert names >= {"rows.json", "results.json", "results.md", "candidates-random.json", "candidates-ease.json"}
    assert "ledger.sqlite" in names


def test_terminal_shows_the_file(ran: Ran) -> None:
    """What stands in results.md is what stdout shows, and nothing else is there."""
    assert ran.stdout == (ran.out / "results.md").read_text()


def test_rows_are_on_disk(ran: Ran) -> None:
    """The same rows for every method: their numbers are written, and how the recommender is asked."""
    found = json.loads((ran.out / "rows.json").read_text())
    assert found == {"split": "test", "seed": 0, "rows": [42, 43, 44, 45, 46, 47], "mode": "expected"}


def test_results_hold_every_method(ran: Ran) -> None:
    """Those without a model first, then as they were asked for."""
    expected = ["mean", "median", "bias", *FULL[1].split(",")]
    assert list(results(ran.out)["methods"]) == expected


def test_results_are_strict_json(ran: Ran) -> None:
    """There is no NaN and no Infinity in the file, though constants have no rank correlation."""
    assert results(ran.out)["methods"]["mean"]["rating"]["spearman"]["estimate"] is None


def test_calls_are_counted_by_method(ran: Ran) -> None:
    """One generation a row in one pass, more where each side is written apart, and none without a model."""
    methods = results(ran.out)["methods"]
    calls = {name: methods[name]["cost"]["calls"] for name in ("10h", "kar", "duet")}
    assert calls == {"10h": 0, "kar": 12, "duet": 6}


def test_prefix_cache_is_told(ran: Ran) -> None:
    """Where the server tells what came from its cache, the share stands in the results."""
    assert results(ran.out)["methods"]["duet"]["cost"]["cached_share"] == pytest.approx(100 / 120)


def test_ease_is_in_every_ranking(ran: Ran) -> None:
    """EASE needs no model and stands first, beside the methods that were asked for."""
    for kind in ("random", "ease"):
        assert list(results(ran.out)["ranking"][kind]) == ["ease", "10h", "duet"]


def test_candidates_are_on_disk(ran: Ran) -> None:
    """The ids of all ten candidates of each ranked row, the positive's place, and the seed."""
    for kind in ("random", "ease"):
        sets = json.loads((ran.out / f"candidates-{kind}.json").read_text())["sets"]
        assert [len(one["items"]) for one in sets] == [10, 10]
        assert all({"position", "seed", "user"} <= one.keys() for one in sets)


def test_ranked_rows_are_drawn_by_the_seed(data: Path) -> None:
    """Not the first rows of the file: another seed ranks others, and fewer lie within more of the same seed."""
    log = Prepared.open(data)
    rows = log.examples("test")

    def ranked(count: int, seed: int) -> list[int]:
        options = argparse.Namespace(split="test", ranking=count, seed=seed)
        return [row.row for row in _ranked(options, log, rows)]

    draws = [ranked(2, seed) for seed in range(8)]
    assert all(len(one) == 2 and set(one) <= set(ranked(4, seed)) for seed, one in enumerate(draws))
    assert {row for one in draws for row in one} == {row.row for row in rows}
    assert ranked(99, 0) == [row.row for row in rows]
    assert ranked(0, 0) == []


def test_ranked_rows_lie_within_the_sample(data: Path, tmp_path: Path) -> None:
    """What is ranked is also evaluated, and the candidates say which rows these are."""
    with FakeServer(answer).run_in_thread() as server:
        more = ["--methods", "template", "--sample", "3", "--ranking", "2", "--negatives", "random"]
        assert main(words(server, data, tmp_path, *more)) == 0
    ranked = json.loads((tmp_path / "candidates-random.json").read_text())["rows"]
    assert len(ranked) == 2
    assert set(ranked) < set(json.loads((tmp_path / "rows.json").read_text())["rows"])


def test_random_ranking_is_stated(ran: Ran) -> None:
    """Every ranking says what a random order gives."""
    assert ran.stdout.count("| random order") == 4


def test_recommender_is_the_same_for_all(ran: Ran) -> None:
    """One system prompt for all ratings of one recommender, whatever the method."""
    ratings = [request.json for request in ran.requests if request.json and request.json.get("logprobs")]
    systems = {one["messages"][0]["content"] for one in ratings if "Letter:" not in one["messages"][1]["content"]}
    assert len(systems) == 1


# Leaks


def test_reviews_of_targets_are_in_no_request(ran: Ran) -> None:
    """What the user wrote of the target is never shown to any model, while earlier reviews are."""
    text = "\n".join(asked(ran.requests))
    assert "words of u0 in turn 5" in text
    assert not [review for review in LAST if review in text]


def test_labels_of_targets_change_no_request(ran: Ran, tmp_path: Path) -> None:
    """Other labels of the test rows: byte for byte the same requests, as often, and other figures."""
    changed = [attrs.evolve(one, rating=6 - one.rating) if (one.time or 0) >= 700 else one for one in log()]
    other = run_all(prepared(tmp_path / "data", changed).directory, tmp_path / "out")
    assert asked(other.requests) == asked(ran.requests)
    assert results(other.out)["methods"] != results(ran.out)["methods"]


# Again


def test_second_run_asks_nothing_and_finds_the_same(ran: Ran, data: Path) -> None:
    """With its ledger a run is repeated without any generation, and its results differ in seconds alone."""
    before = results(ran.out)
    again = run_all(data, ran.out)
    assert not asked(again.requests)
    assert timeless(results(again.out)) == timeless(before)


def timeless(value: Any) -> Any:
    """The same without wall times."""
    if isinstance(value, dict):
        return {key: timeless(one) for key, one in value.items() if key != "seconds"}
    return [timeless(one) for one in value] if isinstance(value, list) else value


# Small runs


def test_second_recommender_judges_the_same_profiles(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Profiles made for one recommender are judged by the other, which is asked for ratings alone; both are shown."""
    with FakeServer(answer).run_in_thread() as first, FakeServer(answer).run_in_thread() as second:
        more = ["--methods", "duet", "--sample", "2", "--transfer-to", f"{second.base_url},second"]
        assert main(words(first, data, tmp_path, *more)) == 0
        assert {request.json["model"] for request in second.requests} == {"second"}
        assert all(request.json["max_tokens"] == 1 for request in second.requests)
    assert list(results(tmp_path)["transfer"]) == ["mean", "median", "bias", "duet"]
    shown = capsys.readouterr().out
    assert "### Rating, before the second recommender" in shown
    assert "second recommender: second" in shown


def test_windows_reach_recommender_and_profile(tmp_path: Path) -> None:
    """With rows set apart, ratings are asked for with exactly those, and profiles are made of the rows before."""
    data = prepared(tmp_path / "data", history=3, recent=2).directory
    with FakeServer(answer).run_in_thread() as server:
        assert main(words(server, data, tmp_path / "out", "--methods", "10h,duet", "--sample", "1")) == 0
        requests = [request.json for request in server.requests]
    user = json.loads((tmp_path / "out" / "rows.json").read_text())["rows"][0] - 42
    for request in requests:
        turns = [turn for turn in range(8) if f"words of u{user} in turn {turn}" in request["messages"][1]["content"]]
        if not request.get("logprobs"):
            assert turns == [1, 2, 3]
        elif turns:  # a request with another user's rows has none of this one's
            assert turns == [4, 5]


def test_adapter_is_asked_by_its_name(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """duet@NAME asks the model NAME for profiles, before the same recommender."""
    with FakeServer(answer).run_in_thread() as server:
        assert main(words(server, data, tmp_path, "--methods", "duet@adapter", "--sample", "2")) == 0
        models = Counter(request.json["model"] for request in server.requests)
    assert models["adapter"] == 2
    assert models["fake"] >= 2
    assert "duet@adapter" in capsys.readouterr().out


def test_recommender_can_be_another_model(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A recommender of its own is asked for ratings, and named with its mode."""
    more = ["--methods", "template", "--sample", "2", "--recommender-model", "other"]
    with FakeServer(answer).run_in_thread() as server:
        assert main(words(server, data, tmp_path, *more)) == 0
        assert {request.json["model"] for request in server.requests} == {"other"}
    assert "recommender: other, mode expected" in capsys.readouterr().out


def test_nothing_predicted_is_exit_code_1(data: Path, tmp_path: Path) -> None:
    """Where every prediction failed the results are written, with all failures counted, and the exit code is 1."""
    with FakeServer("no rating").run_in_thread() as server:
        assert main(words(server, data, tmp_path, "--methods", "template", "--sample", "2")) == 1
    template = results(tmp_path)["methods"]["template"]
    assert template["rating"]["parse_rate"] == 0
    assert sum(template["failures"].values()) == 2


THINKING_OFF = {"chat_template_kwargs": {"enable_thinking": False}}


def thinks(request: Request) -> Answer:
    """Begins every answer of one token with a thought, unless the request switches that off."""
    if not (request.json or {}).get("logprobs") or request.json.get("chat_template_kwargs"):
        return answer(request)
    tops = (("<think>", 0.0), *((str(rating), -20.0) for rating in range(1, 6)))
    return Answer("<think>", logprobs=(TokenLogprob("<think>", 0.0, tops),))


@pytest.mark.parametrize("second", [False, True], ids=["recommender", "second recommender"])
def test_model_that_thinks_is_no_recommender(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], second: bool
) -> None:
    """Rows for which it would think first have no prediction, and the table counts them and says what to do."""
    with FakeServer(answer).run_in_thread() as plain, FakeServer(thinks).run_in_thread() as thinking:
        first, other = (plain, thinking) if second else (thinking, plain)
        more = ["--methods", "template", "--sample", "3", "--transfer-to", f"{other.base_url},second"]
        assert main(words(first, data, tmp_path, *more)) == (0 if second else 1)
    found = results(tmp_path)["transfer" if second else "methods"]["template"]
    assert (found["failures"], found["rating"]["parse_rate"]) == ({"RatingError": 3}, 0.0)
    title = f"### Rows without a prediction{', before the second recommender' if second else ''}\n\n"
    noted = capsys.readouterr().out.split(title)[1].splitlines()[0]
    assert noted.startswith("- template: 3 RatingError, the first: the labels 1, 2, 3, 4, 5 have")
    assert '{"chat_template_kwargs": {"enable_thinking": false}}' in noted


def test_model_whose_thinking_is_off_recommends(data: Path, tmp_path: Path) -> None:
    """With the setting that the message names, every row has a prediction."""
    more = ["--methods", "template", "--sample", "3", "--extra-body", json.dumps(THINKING_OFF)]
    with FakeServer(thinks).run_in_thread() as server:
        assert main(words(server, data, tmp_path, *more)) == 0
    found = results(tmp_path)["methods"]["template"]
    assert (found["failures"], found["rating"]["parse_rate"]) == ({}, 1.0)


PROFILE, RATING, CHOICE = "profile", "rating", "choice"


def kind(request: dict[str, Any]) -> tuple[str, str]:
    """What a chat request asks for, and of which model."""
    if not request.get("logprobs"):
        return PROFILE, request["model"]
    return CHOICE if "Letter:" in request["messages"][1]["content"] else RATING, request["model"]


@pytest.fixture(scope="module")
def with_body(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Request]:
    """All that an evaluation with every table, model and address asks, with a body of the engine's own."""
    out = tmp_path_factory.mktemp("body") / "out"
    with FakeServer(answer).run_in_thread() as server, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        url = server.base_url
        more = [
            *("--methods", "10h,kar,palr,duet,lettingo@served,duet@start", "--at", f"start={url},elsewhere"),
            *("--sample", "2", "--ranking", "1", "--ranking-methods", "duet", "--choice", "--constrained"),
            *("--recommender-model", "frozen", "--transfer-to", f"{url},second", "--embedder", f"{url},vectors"),
            *("--extra-body", json.dumps(THINKING_OFF)),
        ]
        assert main(words(server, data, out, *more)) == 0
        return list(server.requests)


@pytest.mark.parametrize(
    "asked_for",
    [
        (PROFILE, "fake"),
        (PROFILE, "served"),
        (PROFILE, "elsewhere"),
        (RATING, "frozen"),
        (RATING, "second"),
        (CHOICE, "frozen"),
    ],
    ids="-".join,
)
def test_extra_body_is_in_every_chat_request(with_body: list[Request], asked_for: tuple[str, str]) -> None:
    """Whatever is asked of a chat model, be it profile, rating or choice, carries the fields of --extra-body."""
    chats = [request.json for request in with_body if request.path.endswith("/chat/completions")]
    bodies = [chat.get("chat_template_kwargs") for chat in chats if kind(chat) == asked_for]
    assert bodies == [{"enable_thinking": False}] * len(bodies) != []


def test_no_request_is_overlooked(with_body: list[Request]) -> None:
    """All requests are chats of those kinds with the fields, or embeddings or lists of models without them."""
    seen = {(request.path.rpartition("/v1/")[2], b"chat_template_kwargs" in request.body) for request in with_body}
    assert seen == {("chat/completions", True), ("embeddings", False), ("models", False)}


def test_minimum_mass_is_a_setting(data: Path, tmp_path: Path) -> None:
    """Whoever accepts any mass gets a prediction for every row."""
    with FakeServer(thinks).run_in_thread() as server:
        more = ["--methods", "template", "--sample", "3", "--minimum-mass", "0"]
        assert main(words(server, data, tmp_path, *more)) == 0
    assert results(tmp_path)["methods"]["template"]["rating"]["parse_rate"] == 1.0


# Mistakes


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--methods", "duett"], "no method 'duett'"),
        (["--methods", ","], "--methods names none"),
        (["--base-url", ""], "--base-url and --model"),
        (["--transfer-to", "http://127.0.0.1:1/v1"], "--transfer-to must look like"),
        (["--transfer-to", "second,model"], "--transfer-to must look like"),
        (["--embedder", "mpnet"], "--embedder must look like"),
        (["--split", "validation", "--sample", "0"], "has no examples"),
        (["--ranking", "2", "--negatives", "hard"], "no negatives 'hard'"),
        (["--ranking", "-1"], "--ranking not negative"),
        (["--ranking-methods", "kar"], "'kar', which --methods has not"),
        (["--minimum-mass", "1.5"], "--minimum-mass must lie from 0 to 1"),
        (["--concurrency", "0"], "--concurrency must be at least 1"),
        (["--base-url", "", "--local", "--recommender-model", "other"], "--recommender-model needs"),
    ],
)
def test_mistake_is_one_sentence(
    data: Path, tmp_path: Path, more: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bad input ends with exit code 2 and one sentence on stderr, before any model is asked."""
    with FakeServer(answer).run_in_thread() as server:
        code = main([*words(server, data, tmp_path / "out"), *more])
        assert not server.requests
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert said.err.startswith("duet_train evaluate: ")
    assert sentence in said.err
    assert said.err.count("\n") == 1


def test_directory_that_was_not_prepared_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A directory without a manifest is named."""
    words = [
        "evaluate",
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
        "--base-url",
        "http://x",
        "--model",
        "m",
    ]
    assert main(words) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_split_without_examples_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A split that is empty has nothing to measure."""
    data = prepared(tmp_path / "data", min_history=99).directory
    words = ["evaluate", "--data", str(data), "--out", str(tmp_path / "out"), "--base-url", "http://x", "--model", "m"]
    assert main(words) == 2
    assert "the split 'test' has no examples" in capsys.readouterr().err


def test_no_heavy_package_is_needed(data: Path, tmp_path: Path) -> None:
    """Help and a whole run import neither torch nor sentence_transformers."""
    code = (
        "import sys; from duet_train.__main__ import main; code = main(sys.argv[1:]);"
        "assert not {'torch', 'sentence_transformers', 'transformers'} & set(sys.modules), 'imported'; sys.exit(code)"
    )
    with FakeServer(answer).run_in_thread() as server:
        line = words(server, data, tmp_path, "--methods", "template", "--sample", "2")
        done = subprocess.run([sys.executable, "-c", code, *line], capture_output=True, text=True, check=False)  # noqa: S603
    assert (done.returncode, "### Rating" in done.stdout) == (0, True), done.stderr
