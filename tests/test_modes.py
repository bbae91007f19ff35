"""How a recommender is asked: what was named, else what its server allows, in training as in evaluation."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from evaluations import prepared

from duet import (
    Completion,
    EndpointError,
    EndpointRejected,
    EndpointUnavailable,
    HTTPEndpoint,
    Ledger,
    LLMRecommender,
    RatingScale,
    Sampling,
    TokenLogprob,
)
from duet.testing import Answer, FakeServer, Request, ScriptedEndpoint, completion_text
from duet_train.__main__ import main
from duet_train.card import Card, write_adapter_card
from duet_train.data.prepared import Prepared
from duet_train.modes import Mode, decide
from duet_train.recommenders import Opened, with_mode
from duet_train.settings import Settings

pytestmark = pytest.mark.anyio

WRITTEN = "<rating>3.40</rating>"


def scored(token: str) -> TokenLogprob:
    """A token that the server is sure of."""
    return TokenLogprob(token, -0.01, ((token, -0.01), ("1", -6.0)))


def gives(request: Request) -> Answer:
    """A server that gives log-probabilities."""
    return reply(request, Answer("4", logprobs=[scored("4")]))


def thinks(request: Request) -> Answer:
    """One that gives them, and whose model would rather think."""
    return reply(request, Answer("<think>", logprobs=[scored("<think>")]))


def keeps_quiet(request: Request) -> Answer:
    """One that takes the question and gives none."""
    return reply(request, Answer("4"))


def refuses(status: int) -> Callable[[Request], Answer]:
    """One that takes no question for them."""
    return lambda request: reply(request, Answer(status=status))


def reply(request: Request, to_scored: Answer) -> Answer:
    """A profile, a rating in words, or the answer to a question for log-probabilities."""
    if request.json.get("logprobs"):
        return to_scored
    return Answer(WRITTEN if "rating" in request.json["messages"][0]["content"].lower() else completion_text())


SERVERS: list[Any] = [
    pytest.param(gives, "expected", id="gives"),
    pytest.param(thinks, "expected", id="thinks"),
    pytest.param(keeps_quiet, "decimal", id="keeps quiet"),
    pytest.param(refuses(400), "decimal", id="400"),
    pytest.param(refuses(403), "decimal", id="403"),
    pytest.param(refuses(422), "decimal", id="422"),
    pytest.param(refuses(501), "decimal", id="501"),
]


async def found(server: FakeServer, asked: str = "auto", **settings: Any) -> Mode:
    """What is decided before a server."""
    async with HTTPEndpoint(server.base_url, "fake", retries=0) as endpoint:
        return await decide(asked, lambda mode: LLMRecommender(endpoint, mode=mode, **settings))


# What is decided


@pytest.mark.parametrize(("answers", "mode"), SERVERS)
async def test_server_decides_where_nobody_does(answers: Callable[[Request], Answer], mode: str) -> None:
    """Log-probabilities are read wherever they are given, and else two decimals; at most two questions tell."""
    async with FakeServer(answers) as server:
        assert await found(server) == mode
    assert len(server.requests) == (1 if mode == "expected" else 2)
    assert server.requests[0].json["max_tokens"] == 1


@pytest.mark.parametrize("asked", ["expected", "decimal", "integer"])
async def test_a_mode_that_is_named_stands(asked: str) -> None:
    """Where a mode is named nothing is asked, whatever the server gives."""
    async with FakeServer(refuses(400)) as server:
        assert await found(server, asked) == asked
    assert not server.requests


@pytest.mark.parametrize("status", [400, 401, 404])
async def test_a_refusal_of_everything_is_no_decision(status: int) -> None:
    """A wrong key or model refuses every question: that says nothing of log-probabilities, and is raised."""
    async with FakeServer(Answer(status=status)) as server:
        with pytest.raises(EndpointRejected):
            await found(server)


@pytest.mark.parametrize("answer", [Answer(status=503), Answer(fault="close")], ids=["503", "closed"])
async def test_a_server_that_is_down_is_no_decision(answer: Answer) -> None:
    """Where no answer comes nothing is known, and the error is raised."""
    async with FakeServer(answer) as server:
        with pytest.raises(EndpointUnavailable):
            await found(server)


async def test_question_is_that_of_the_recommender() -> None:
    """It is asked as all ratings are, with the fields of the engine's own."""
    endpoint = ScriptedEndpoint(Completion("4", logprobs=(scored("4"),)))
    sampling = Sampling(temperature=0.0, extra_body={"top_k": 1})
    await decide("auto", lambda mode: LLMRecommender(endpoint, mode=mode, sampling=sampling))
    ((messages, used),) = endpoint.calls
    assert (messages[0]["role"], used.top_logprobs, dict(used.extra_body)) == ("system", 20, {"top_k": 1})


@pytest.mark.parametrize("scale", [RatingScale(0, 100), RatingScale(0.2, 0.8)], ids=str)
async def test_scale_without_labels_is_decimal(scale: RatingScale) -> None:
    """On a scale without fitting whole numbers there is nothing to read log-probabilities of."""
    async with FakeServer(keeps_quiet) as server:
        assert await found(server, scale=scale) == "decimal"


async def test_engine_that_is_known_is_not_asked() -> None:
    """Of the embedded engine it is known that it gives log-probabilities."""
    endpoint = ScriptedEndpoint("no")
    mode = await decide("auto", lambda mode: LLMRecommender(endpoint, mode=mode), gives_logprobs=True)
    assert (mode, endpoint.calls) == ("expected", [])


@pytest.mark.parametrize("answers", [gives, keeps_quiet], ids=["gives", "keeps quiet"])
async def test_ledger_keeps_what_the_server_said(answers: Callable[[Request], Answer], tmp_path: Path) -> None:
    """With a ledger the server is asked once."""
    async with FakeServer(answers) as server, Ledger(tmp_path / "ledger.sqlite") as ledger:
        first = await found(server, ledger=ledger)
        asked = len(server.requests)
        assert await found(server, ledger=ledger) == first
    assert len(server.requests) == asked


# Training


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A prepared log."""
    return prepared(tmp_path_factory.mktemp("modes") / "data")


def settings(server: FakeServer, **more: Any) -> Settings:
    """Of a training run before a server."""
    return Settings(**{"recommender": f"{server.base_url},fake"} | more)


def a_card(folder: Path, mode: str) -> None:
    """The card of an earlier attempt."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "card.json").write_text(json.dumps({"settings": {"recommender_mode": mode}}))


@pytest.mark.parametrize(("answers", "mode"), SERVERS)
def test_training_and_evaluation_ask_alike(
    data: Prepared, tmp_path: Path, answers: Callable[[Request], Answer], mode: str
) -> None:
    """Before the same server both take the same mode, and the evaluation's results name it."""
    with FakeServer(answers).run_in_thread() as server:
        assert with_mode(settings(server), data, tmp_path / "run").recommender_mode == mode
        words = ["--data", str(data.directory), "--out", str(tmp_path / "out"), "--methods", "template"]
        words += ["--base-url", server.base_url, "--model", "fake", "--sample", "1"]
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            main(["evaluate", *words])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["facts"]["recommender"] == f"the same, mode {mode}"


@pytest.mark.parametrize("before", ["decimal", "integer", "expected"])
def test_run_that_goes_on_keeps_its_mode(data: Prepared, tmp_path: Path, before: str) -> None:
    """A run of 0.1, whose card says decimal, stays decimal, and so does any other mode; nothing is asked."""
    a_card(tmp_path, before)
    with FakeServer(gives).run_in_thread() as server:
        assert with_mode(settings(server), data, tmp_path).recommender_mode == before
        assert not server.requests


@pytest.mark.parametrize("mode", ["decimal", "integer", "expected"])
def test_mode_that_is_named_wins_over_the_card(data: Prepared, tmp_path: Path, mode: str) -> None:
    """What the settings name stands, also in a run that began otherwise."""
    a_card(tmp_path, "decimal" if mode != "decimal" else "expected")
    with FakeServer(gives).run_in_thread() as server:
        assert with_mode(settings(server, recommender_mode=mode), data, tmp_path).recommender_mode == mode
        assert not server.requests


@pytest.mark.parametrize("more", [{"recommender": "head:somewhere"}, {"rewards": "length=1"}], ids=["head", "no term"])
def test_where_no_model_is_asked_there_is_no_mode(data: Prepared, tmp_path: Path, more: dict[str, Any]) -> None:
    """With a fitted head, or without a term that asks, nothing is decided and nobody asked."""
    with FakeServer(gives).run_in_thread() as server:
        assert with_mode(settings(server, **more), data, tmp_path).recommender_mode == "auto"
        assert not server.requests


def test_training_without_its_recommender_ends_at_once(data: Prepared, tmp_path: Path) -> None:
    """Where the server does not answer the error says so before anything is loaded."""
    with FakeServer(Answer(status=401)).run_in_thread() as server, pytest.raises(EndpointError):
        with_mode(settings(server), data, tmp_path)


@pytest.mark.parametrize(("answers", "requests"), [(gives, 1), (keeps_quiet, 2)], ids=["gives", "keeps quiet"])
async def test_terms_share_one_decision(data: Prepared, answers: Callable[[Request], Answer], requests: int) -> None:
    """Every term of a run asks in the mode that was decided once."""
    async with FakeServer(answers) as server, Opened(settings(server), data) as opened:
        for name in ("rating", "sentiment", "next_item"):
            await opened.term(name, 1.0)
    assert len(server.requests) == requests


@pytest.mark.parametrize(
    ("recommender", "mode", "said"),
    [
        ("http://127.0.0.1:1/v1,reader", "expected", "http://127.0.0.1:1/v1,reader, mode expected;"),
        ("http://127.0.0.1:1/v1,reader", "decimal", "http://127.0.0.1:1/v1,reader, mode decimal;"),
        ("head:head", "auto", "head:head;"),
    ],
)
def test_card_of_the_weights_names_the_mode(tmp_path: Path, recommender: str, mode: str, said: str) -> None:
    """The model card says how the recommender was asked that the policy was trained before."""
    values: dict[str, Any] = {
        "verb": "grpo",
        "model": {"model_name_or_path": "base", "use_peft": True},
        "data": {"directory_name": "data", "manifest_sha256": "0" * 64, "rows": 1},
        "recommender": recommender,
        "settings": {"rewards": "rating", "recommender_mode": mode},
        "seed": 0,
        "versions": dict.fromkeys(("trl", "transformers", "peft", "torch"), "1"),
    }
    write_adapter_card(tmp_path, Card(tmp_path, values))
    assert f"- Recommender: {said}" in (tmp_path / "README.md").read_text()


# Evaluation


def evaluated(data: Prepared, out: Path, server: FakeServer, *more: str) -> dict[str, str]:
    """The facts of an evaluation."""
    words = ["--data", str(data.directory), "--out", str(out), "--methods", "template", "--sample", "2"]
    words += ["--base-url", server.base_url, "--model", "fake", *more]
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        assert main(["evaluate", *words]) == 0
    facts: dict[str, str] = json.loads((out / "results.json").read_text())["facts"]
    return facts


@pytest.mark.parametrize("mode", ["expected", "decimal", "integer"])
def test_evaluation_in_a_mode_that_is_named(data: Prepared, tmp_path: Path, mode: str) -> None:
    """--mode wins over what the server gives, for both recommenders."""
    with FakeServer(gives).run_in_thread() as server:
        facts = evaluated(data, tmp_path, server, "--mode", mode, "--transfer-to", f"{server.base_url},second")
    assert (facts["recommender"], facts["second recommender"]) == (f"the same, mode {mode}", f"second, mode {mode}")


def test_each_recommender_is_asked_as_its_server_allows(data: Prepared, tmp_path: Path) -> None:
    """A second recommender without log-probabilities writes decimals, and the results say so."""
    with FakeServer(gives).run_in_thread() as server, FakeServer(refuses(400)).run_in_thread() as other:
        facts = evaluated(data, tmp_path, server, "--transfer-to", f"{other.base_url},second")
    assert (facts["recommender"], facts["second recommender"]) == ("the same, mode expected", "second, mode decimal")


def test_evaluation_goes_on_in_its_mode(data: Prepared, tmp_path: Path) -> None:
    """The results in a folder say how it was asked, and the server is not asked for that again."""
    with FakeServer(gives).run_in_thread() as server:
        evaluated(data, tmp_path, server, "--mode", "decimal")
        asked = len(server.requests)
        assert evaluated(data, tmp_path, server)["recommender"] == "the same, mode decimal"
        assert len(server.requests) == asked


def test_other_recommender_in_the_same_folder_is_decided_anew(data: Prepared, tmp_path: Path) -> None:
    """A mode that was another model's says nothing."""
    with FakeServer(gives).run_in_thread() as server:
        evaluated(data, tmp_path, server, "--mode", "decimal")
        facts = evaluated(data, tmp_path, server, "--recommender-model", "other")
    assert facts["recommender"] == "other, mode expected"


@pytest.mark.parametrize("mode", ["decimal", "expected"])
def test_evaluation_that_did_not_finish_goes_on_in_its_mode(data: Prepared, tmp_path: Path, mode: str) -> None:
    """Without results the ledger knows what the server said."""
    with FakeServer(gives if mode == "expected" else keeps_quiet).run_in_thread() as server:
        evaluated(data, tmp_path, server)
        (tmp_path / "results.json").unlink()
        asked = len(server.requests)
        assert evaluated(data, tmp_path, server)["recommender"] == f"the same, mode {mode}"
        assert len(server.requests) == asked


def test_evaluation_that_0_1_began_goes_on_as_expected(data: Prepared, tmp_path: Path) -> None:
    """Its rows name no mode: it is the default of 0.1, and the server is not asked for it."""
    (tmp_path / "rows.json").write_text('{"split": "test", "seed": 0, "rows": [1]}')
    with FakeServer(gives).run_in_thread() as server:
        assert evaluated(data, tmp_path, server)["recommender"] == "the same, mode expected"
        assert not any("title: unknown title" in request.body.decode() for request in server.requests)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"facts": {"recommender": 1}}'], ids=repr)
def test_results_that_cannot_be_read_decide_nothing(data: Prepared, tmp_path: Path, text: str) -> None:
    """A file that holds no results is as good as none."""
    (tmp_path / "results.json").write_text(text)
    with FakeServer(gives).run_in_thread() as server:
        assert evaluated(data, tmp_path, server)["recommender"] == "the same, mode expected"
