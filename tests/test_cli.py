"""The commands, run as a user runs them: data on stdout, talk on stderr, and what the exit code says."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib.resources import files
from pathlib import Path
from typing import Any

import anyio
import commands
import pytest

from duet import ProfileSchema, TokenLogprob
from duet.__main__ import main
from duet.testing import Answer, FakeServer, Request, completion_text, sample_examples

SAMPLE = str(files("duet") / "sample")
TEXT = completion_text()
KEY = "sk-very-secret-123"
ENVIRON = {name: value for name, value in os.environ.items() if not re.match("DUET_|OPENAI_|PYTHON", name)}
FIRST = sample_examples()[0]
EXPECTED = Answer("4", logprobs=[TokenLogprob("4", 0.0, (("4", 0.0), ("3", -math.inf)))])


def answer(request: Request) -> Answer:
    """A recommender's answer to the recommender's question, else a profile."""
    fields = request.json
    if "You predict" not in fields["messages"][0]["content"]:
        return Answer(TEXT)
    return EXPECTED if fields.get("logprobs") else Answer("<rating>4.00</rating>")


def answer_but_for_the_first(request: Request) -> Answer:
    """As `answer`, with nonsense for the item of the first example."""
    about = request.json["messages"][1]["content"]
    return Answer("nonsense") if f"\ntitle: {FIRST.item.title}\n" in about else answer(request)


def command(*arguments: object) -> list[str]:
    """The command line."""
    return [sys.executable, "-m", "duet", *map(str, arguments)]


def duet(*arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(  # noqa: S603 - the command is this package's own
        command(*arguments), capture_output=True, text=True, env=ENVIRON | environ, timeout=50, check=False
    )


def at(server: FakeServer) -> list[str]:
    """The options that name a server."""
    return ["--base-url", server.base_url, "--model", "fake"]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A server that plays both profiler and recommender."""
    with FakeServer(answer).run_in_thread() as running:
        yield running


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A file of five pairs, one with a time and one of ids that nobody knows."""
    lines: list[dict[str, Any]] = [{"user_id": "ada", "item_id": f"game-0{number}"} for number in range(1, 4)]
    lines += [{"user_id": "ada", "item_id": "game-04", "timestamp": 1_612_726_920}, {"user_id": "zoe", "item_id": "z"}]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def profile(server: FakeServer, pairs: Path, *more: object, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run `profile` on the sample data."""
    return duet("profile", *at(server), "--data", SAMPLE, "--pairs", pairs, *more, **environ)


def objects(text: str) -> list[dict[str, Any]]:
    """JSON lines, in the order of their index."""
    return sorted((json.loads(line) for line in text.splitlines()), key=lambda line: line["index"])


# demo, one pair


def test_demo_streams_every_section(server: FakeServer) -> None:
    """One pair is written out section by section, each under its name."""
    done = duet("demo", *at(server))
    found = [re.sub(r"\s+", " ", text).strip() for text in done.stdout.split("\n\n")[1:7]]
    names = [f"{side} {section}".replace("_", " ") for side, section in ProfileSchema().slots]
    texts = re.findall(r"<(?:cue|constructed_prompt|profile)>(.*?)</", TEXT)
    assert (done.returncode, found) == (0, [f"{name} {text}" for name, text in zip(names, texts, strict=True)])


@pytest.mark.parametrize("mode", ["expected", "decimal", "integer"])
def test_demo_ends_with_the_prediction(server: FakeServer, mode: str) -> None:
    """The last line tells what was predicted, what is true and what it earned."""
    last = duet("demo", *at(server), "--mode", mode).stdout.splitlines()[-1]
    assert re.match(r"predicted 4\.00   true 3\.0   reward 0\.750   tokens 120 \+ 40 ", last)


def test_demo_says_nothing_on_stderr(server: FakeServer) -> None:
    """Where all goes well there is nothing to talk about."""
    assert duet("demo", *at(server)).stderr == ""


def test_demo_shows_no_escapes_in_a_pipe(server: FakeServer) -> None:
    """What is not a terminal gets no colours."""
    assert "\033" not in duet("demo", *at(server)).stdout


def test_demo_keeps_a_models_escapes_from_the_terminal() -> None:
    """What a model writes cannot move the cursor."""
    with FakeServer(completion_text(user_profile="Likes \033[2J maps.")).run_in_thread() as server:
        assert "\033" not in duet("demo", *at(server), "--mode", "decimal").stdout


def test_demo_keeps_the_datas_escapes_from_the_terminal(server: FakeServer, tmp_path: Path) -> None:
    """What the data says of user and item can neither move the cursor nor start a line of its own."""
    rows = [{"user_id": "u\x1b[2J", "item_id": "i", "rating": 3, "timestamp": day} for day in range(2)]
    (tmp_path / "interactions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "items.jsonl").write_text(json.dumps({"item_id": "i", "title": "Evil\x1b[2J\nsecond line"}))
    done = duet("demo", *at(server), "--data", tmp_path)
    assert ("\x1b" in done.stdout, "\nsecond line" in done.stdout) == (False, False)


def test_demo_keeps_a_servers_escapes_from_the_terminal() -> None:
    """What a server says in an error cannot move the cursor."""
    body = json.dumps({"error": {"message": "bad \x1b[2J"}})
    with FakeServer(Answer(status=400, body=body)).run_in_thread() as server:
        errors = duet("demo", *at(server)).stderr
    assert ("bad" in errors, "\x1b" in errors) == (True, False)


def test_demo_writes_where_only_ascii_goes(server: FakeServer) -> None:
    """A terminal that cannot show a character gets a stand-in, not a traceback."""
    done = duet("demo", *at(server), PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, f"{FIRST.user.id} ? {FIRST.item.title}")


def test_demo_without_stdout_is_no_traceback(server: FakeServer) -> None:
    """With stdout closed (`>&-`) the demo does not crash."""
    script = "import sys; sys.stdout = None; from duet.__main__ import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(  # noqa: S603 - the command is this package's own
        [sys.executable, "-c", script, "demo", *at(server)], capture_output=True, text=True, env=ENVIRON, check=False
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)


def test_demo_without_a_rating_still_shows_the_profile() -> None:
    """A recommender that gives no rating is talk on stderr, and no failure of the profile."""
    with FakeServer(TEXT).run_in_thread() as server:
        done = duet("demo", *at(server))
    assert (done.returncode, "predicted none" in done.stdout, done.stderr[:10]) == (0, True, "No rating:")


def test_demo_with_options_sends_them(server: FakeServer) -> None:
    """Sampling and prompt options reach the request."""
    duet(
        "demo",
        *at(server),
        *["--temperature", "0.2", "--seed", "5", "--max-tokens", "77", "--history", "1", "--evidence", "0"],
    )
    fields = server.requests[0].json
    rows = fields["messages"][1]["content"].count("] rated ")
    assert (fields["temperature"], fields["seed"], fields["max_tokens"], rows) == (0.2, 5, 77, 1)


def test_demo_constrained_sends_the_grammar(server: FakeServer) -> None:
    """--constrained decodes under the profile's grammar."""
    duet("demo", *at(server), "--constrained", "--engine", "vllm", "--section-chars", "50")
    sent = server.requests[0].json["structured_outputs"]
    assert sent == {"grammar": ProfileSchema(max_chars=50).grammar()}


def test_endpoint_from_the_environment(server: FakeServer) -> None:
    """DUET_BASE_URL and DUET_MODEL stand in for the options."""
    assert duet("demo", DUET_BASE_URL=server.base_url, DUET_MODEL="adapter").returncode == 0
    assert server.requests[0].json["model"] == "adapter"


def test_demo_on_ones_own_data(server: FakeServer, tmp_path: Path) -> None:
    """--data takes another folder, and its scale is in the prompt."""
    rows = [{"user_id": "u", "item_id": f"i{day}", "rating": 9, "timestamp": 86_400 * day} for day in range(3)]
    (tmp_path / "interactions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "items.jsonl").write_text("")
    (tmp_path / "dataset.json").write_text('{"rating_max": 10}')
    done = duet("demo", *at(server), "--data", tmp_path, "--mode", "decimal")
    assert done.returncode == 0
    assert "on a scale of 1 to 10" in server.requests[0].json["messages"][1]["content"]


# demo, several pairs


def test_table_has_a_row_a_pair(server: FakeServer) -> None:
    """Several pairs end in a table with a row for each, predictions beside the truth."""
    lines = duet("demo", *at(server), "--pairs", 3).stdout.splitlines()
    expected = [
        f"4.00 {example.rating:.1f} {1 - abs(example.rating - 4) / 4:.3f} 160" for example in sample_examples()[:3]
    ]
    assert [" ".join(line.split()[-4:]) for line in lines[1:4]] == expected


def test_summary_accounts_for_every_pair() -> None:
    """The last line counts what was profiled and what failed, by the error's name."""
    with FakeServer(answer_but_for_the_first).run_in_thread() as server:
        done = duet("demo", *at(server), "--pairs", 3)
    assert done.returncode == 0
    assert re.match(
        r"3 pairs in \d+ s: 2 profiled, 1 MalformedCompletion, mean reward 0\.\d{3}$", done.stdout.splitlines()[-1]
    )


def test_failed_pair_has_a_row_with_its_error() -> None:
    """A pair that failed stands in the table with the error in the place of numbers."""
    with FakeServer(answer_but_for_the_first).run_in_thread() as server:
        lines = duet("demo", *at(server), "--pairs", 3).stdout.splitlines()
    assert [bool(re.search("MalformedCompletion: the completion lacks", line)) for line in lines[1:4]] == [
        True,
        False,
        False,
    ]


def test_unrated_pairs_are_counted() -> None:
    """Profiles without a rating are counted apart from those that failed."""
    with FakeServer(TEXT).run_in_thread() as server:
        done = duet("demo", *at(server), "--pairs", 2, "--mode", "integer")
    assert (done.returncode, done.stdout.splitlines()[-1].split(": ")[1]) == (0, "2 profiled, 2 unrated (RatingError)")


def test_more_pairs_than_the_data_holds(server: FakeServer) -> None:
    """Where the data holds fewer users, those are profiled and stderr says so."""
    done = duet("demo", *at(server), "--pairs", 500)
    assert "The data holds 12 users" in done.stderr
    assert len(done.stdout.splitlines()) == 1 + 12 + 2


# Exit codes


@pytest.mark.parametrize("count", [1, 3])
def test_demo_fails_when_no_pair_succeeds(count: int) -> None:
    """A server that answers nonsense for all is exit code 1."""
    with FakeServer("nonsense").run_in_thread() as server:
        assert duet("demo", *at(server), "--pairs", count).returncode == 1


def test_profile_fails_when_no_pair_succeeds(pairs: Path) -> None:
    """Nonsense for all pairs is exit code 1, and still a line for each."""
    with FakeServer("nonsense").run_in_thread() as server:
        done = profile(server, pairs)
    assert (done.returncode, len(objects(done.stdout))) == (1, 5)


@pytest.fixture
def _without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that names no endpoint."""
    for name in os.environ.keys() - ENVIRON.keys():
        monkeypatch.delenv(name)


def exit_code(arguments: list[str]) -> int | str | None:
    """Run a command in this process, which spares the 0.3 s in which another one starts; the exit code."""
    try:
        return main(arguments)
    except SystemExit as exc:
        return exc.code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "COMMAND"),
        ("train", "invalid choice"),
        ("demo --oops", "--oops"),
        ("demo --pairs many", "--pairs"),
        ("demo --pairs 0", "--pairs must be at least 1"),
        ("demo --mode guess", "--mode"),
        ("demo --base-url http://127.0.0.1:9/v1", "--base-url needs --model"),
        ("demo --model m", "needs --base-url"),
        ("profile --model m --data {sample} --pairs x", "needs --base-url"),
        ("demo --base-url nowhere --model m", "base_url"),
        ("demo --base-url http://127.0.0.1:9/v1 --model m --data /missing", "/missing"),
        ("demo --base-url http://127.0.0.1:9/v1 --model m --api-key-env UNSET", "UNSET is not set"),
        ("demo --base-url http://127.0.0.1:9/v1 --model m --gguf x.gguf", "--gguf"),
        ("demo --base-url http://127.0.0.1:9/v1 --model m --section-chars 0", "--section-chars"),
        ("demo --base-url http://127.0.0.1:9/v1 --model m --history -1", "--history"),
        ("demo --base-url http://127.0.0.1:9/v1 --model m --temperature -1", "temperature"),
        ("profile --data {sample}", "--pairs"),
        ("profile --pairs x", "--data"),
        ("profile --base-url http://127.0.0.1:9/v1 --model m --data {sample} --pairs /missing.jsonl", "/missing.jsonl"),
        ("profile --base-url http://127.0.0.1:9/v1 --model m --data {sample} --pairs {sample}", "cannot read"),
        ("profile --base-url http://127.0.0.1:9/v1 --model m --data {sample} --pairs /dev/null", "no pairs"),
        ("profile --base-url http://127.0.0.1:9/v1 --model m --data /missing --pairs x", "/missing"),
    ],
)
@pytest.mark.usefixtures("_without_settings")
def test_wrong_usage_is_exit_code_two(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be run is exit code 2, with the reason on stderr, no exception, and nothing on stdout."""
    assert exit_code(arguments.format(sample=SAMPLE).split()) == 2
    told = capsys.readouterr()
    assert (told.out, message in told.err) == ("", True)


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["profile", "--help"]], ids=" ".join)
def test_help_is_exit_code_zero(arguments: list[str]) -> None:
    """Every command explains itself."""
    done = duet(*arguments)
    assert (done.returncode, done.stdout[:6]) == (0, "usage:")


def test_server_that_is_not_there_is_exit_code_one(tmp_path: Path) -> None:
    """An endpoint that cannot be reached is exit code 1 with the error's name, and no traceback."""
    done = duet("demo", "--base-url", "http://127.0.0.1:1/v1", "--model", "fake")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "EndpointUnavailable: http://127.0.0.1:1/v1" in done.stderr


# profile


def test_profile_writes_a_line_a_pair(server: FakeServer, pairs: Path) -> None:
    """Every pair is one JSON line with its index, ids and profile, and no error."""
    found = objects(profile(server, pairs).stdout)
    asked = [json.loads(line) for line in pairs.read_text().splitlines()]
    assert [(line["index"], line["user_id"], line["item_id"], line["error"]) for line in found] == [
        (index, line["user_id"], line["item_id"], None) for index, line in enumerate(asked)
    ]


def test_profiles_line_holds_both_sides(server: FakeServer, pairs: Path) -> None:
    """The profile in a line has the sections of both sides, the completion and the tokens spent."""
    found = objects(profile(server, pairs).stdout)[0]["profile"]
    assert (found["user"]["text"], found["completion"], found["usage"]["prompt_tokens"]) == (
        re.findall("<profile>(.*?)</profile>", TEXT)[0],
        TEXT,
        120,
    )


def test_failed_pair_is_a_line_with_its_error(pairs: Path) -> None:
    """A pair that failed is a line with the error's type and message, and no profile."""

    with FakeServer(["nonsense", TEXT]).run_in_thread() as running:
        done = profile(running, pairs, "--concurrency", 1)
    first, *rest = objects(done.stdout)
    assert (done.returncode, first["profile"], first["error"]["type"]) == (0, None, "MalformedCompletion")
    assert [line["error"] for line in rest] == [None] * 4


def test_profile_counts_on_stderr(server: FakeServer, pairs: Path) -> None:
    """The last word on stderr is how many pairs were profiled."""
    assert profile(server, pairs).stderr.splitlines()[-1] == "5 of 5 pairs profiled"


def test_pair_with_a_time_sees_what_lies_before(server: FakeServer, pairs: Path) -> None:
    """A pair's timestamp cuts history and evidence."""
    profile(server, pairs, "--concurrency", 1)
    told = [request.json["messages"][1]["content"] for request in server.requests]
    assert ["There is no history for this user" in text for text in told] == [False, False, False, True, True]


def test_out_file_holds_what_stdout_would(server: FakeServer, pairs: Path, tmp_path: Path) -> None:
    """With --out the lines go to a file, which each run writes anew."""
    out = tmp_path / "out.jsonl"
    out.write_text("an earlier run")
    done = profile(server, pairs, "--out", out)
    assert (done.stdout, objects(out.read_text())) == ("", objects(profile(server, pairs).stdout))


def test_ledger_makes_the_second_run_free(server: FakeServer, pairs: Path, tmp_path: Path) -> None:
    """A second run with the same ledger gives the same completions and makes no request."""
    runs = [objects(profile(server, pairs, "--ledger", tmp_path / "ledger.db").stdout) for _ in range(2)]
    first, second = ([line["profile"]["completion"] for line in run] for run in runs)
    assert (first, len(server.requests)) == (second, 5)


def test_ledger_resumes_a_run_that_broke_off(server: FakeServer, pairs: Path, tmp_path: Path) -> None:
    """After a run over some of the pairs, a run over all asks for the others only."""
    some = tmp_path / "some.jsonl"
    some.write_text("".join(pairs.read_text().splitlines(keepends=True)[:2]))
    for file in (some, pairs):
        profile(server, file, "--ledger", tmp_path / "ledger.db")
    assert len(server.requests) == 5


def test_unwritable_out_is_exit_code_two(server: FakeServer, pairs: Path, tmp_path: Path) -> None:
    """An --out that cannot be written is refused by its path before any request."""
    done = profile(server, pairs, "--out", tmp_path / "missing" / "out.jsonl")
    assert (done.returncode, "Traceback" in done.stderr, server.requests) == (2, False, [])


def test_refused_run_leaves_the_out_file_alone(server: FakeServer, pairs: Path, tmp_path: Path) -> None:
    """Wrong usage does not empty the results of an earlier run."""
    out = tmp_path / "out.jsonl"
    out.write_text("precious\n")
    done = profile(server, pairs, "--out", out, "--concurrency", 0)
    assert (done.returncode, out.read_text()) == (2, "precious\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="other systems have no disk that is always full")
def test_full_disk_is_exit_code_two(server: FakeServer, pairs: Path) -> None:
    """An --out that can take no more ends in its path and a reason."""
    done = profile(server, pairs, "--out", "/dev/full")
    assert (done.returncode, "Traceback" in done.stderr, "cannot write /dev/full" in done.stderr) == (2, False, True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"user_id": "ada"}', "item_id is missing"),
        ('{"user_id": " ", "item_id": "z"}', "must be a non-empty str"),
        ('{"user_id": "ada", "item_id": "z", "timestamp": "now"}', "timestamp must be Unix seconds"),
    ],
)
def test_bad_pair_names_file_and_line(server: FakeServer, pairs: Path, line: str, message: str) -> None:
    """A line of --pairs that does not hold is exit code 2 with file and line, before any request."""
    pairs.write_text(f"{pairs.read_text()}\n{line}\n")
    done = profile(server, pairs)
    assert (done.returncode, server.requests) == (2, [])
    assert f"{pairs}:7: {message}" in done.stderr.replace("User.id ", "")


@pytest.mark.parametrize("concurrency", [1, 3])
def test_concurrency_bounds_the_requests(pairs: Path, concurrency: int) -> None:
    """No more requests are under way than --concurrency allows."""
    with FakeServer(Answer(TEXT, first_after=0.02)).run_in_thread() as server:
        profile(server, pairs, "--concurrency", concurrency)
    assert server.peak_in_flight <= concurrency


# The key


def test_key_is_sent_from_the_named_variable(pairs: Path) -> None:
    """--api-key-env names the variable whose value is sent as a bearer token."""
    with FakeServer(answer, api_key=KEY).run_in_thread() as server:
        assert profile(server, pairs, "--api-key-env", "MY_KEY", MY_KEY=KEY).returncode == 0


def test_openais_key_goes_to_no_other_host(server: FakeServer, pairs: Path) -> None:
    """OPENAI_API_KEY is not sent to an address that was named."""
    profile(server, pairs, OPENAI_API_KEY=KEY)
    assert {"authorization" in request.headers for request in server.requests} == {False}


@pytest.mark.parametrize("key", [f"{KEY}\n", f"{KEY}\r", "sk-sécret"], ids=ascii)
def test_key_that_cannot_be_sent_is_exit_code_two(server: FakeServer, key: str) -> None:
    """A key with a line end (an .env file with CRLF) is wrong usage, told without the key."""
    done = duet("demo", *at(server), DUET_API_KEY=key)
    assert (done.returncode, "Traceback" in done.stderr, key.strip() in done.stderr) == (2, False, False)


def _accepts(request: Request) -> Answer:
    return answer(request)


def _repeats_the_key(request: Request) -> Answer:
    return Answer(status=401, body=json.dumps({"error": {"message": f"wrong key {request.headers['authorization']}"}}))


def _fails(request: Request) -> Answer:
    return Answer(fault="close")


@pytest.mark.parametrize("name", ["demo", "profile"])
@pytest.mark.parametrize("behave", [_accepts, _repeats_the_key, _fails])
def test_key_never_shows(behave: Callable[[Request], Answer], name: str, pairs: Path, tmp_path: Path) -> None:
    """Whatever the server does, the key is on neither stdout nor stderr, and not in the ledger."""
    ledger = tmp_path / "ledger.db"
    more = ["--data", SAMPLE, "--pairs", pairs, "--ledger", ledger] if name == "profile" else []
    with FakeServer(behave).run_in_thread() as server:
        done = duet(name, *at(server), *more, DUET_API_KEY=KEY)
    kept = ledger.read_bytes() if name == "profile" else b""
    assert KEY not in done.stdout + done.stderr
    assert KEY.encode() not in kept


# Leaving


def started(*arguments: object) -> AbstractContextManager[subprocess.Popen[str]]:
    """This package's command, under way."""
    return commands.started(command(*arguments), ENVIRON)


def first_line_with(process: subprocess.Popen[str], text: str) -> str:
    """Read stdout up to a line."""
    assert process.stdout is not None
    return next(line for line in process.stdout if text in line)


def interrupted(process: subprocess.Popen[str]) -> tuple[int, bool]:
    """Interrupt a command: its exit code, and whether it showed a traceback."""
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    return process.returncode, "Traceback" in errors


@pytest.mark.faults
@pytest.mark.serial
def test_interrupted_demo_is_exit_code_130() -> None:
    """Ctrl-C in the middle of a stream ends in 130 without a traceback, and stops the server."""
    with FakeServer(Answer(TEXT, pace=0.02)).run_in_thread() as server, started("demo", *at(server)) as process:
        first_line_with(process, "user cue")
        assert interrupted(process) == (130, False)
        anyio.run(server.wait_disconnects, 1)


@pytest.mark.faults
@pytest.mark.serial
@pytest.mark.parametrize("name", ["demo", "profile"])
def test_interrupted_bulk_run_is_exit_code_130(pairs: Path, name: str) -> None:
    """Ctrl-C among many pairs ends in 130 without a traceback, and cuts off every request."""
    more = ["--data", SAMPLE, "--pairs", pairs] if name == "profile" else ["--pairs", 5]

    async def until_five_are_asked(server: FakeServer) -> None:
        with anyio.fail_after(30):
            while server.in_flight < 5:  # noqa: ASYNC110 - what is waited for happens in another process
                await anyio.sleep(0.01)

    with FakeServer(Answer(fault="hang")).run_in_thread() as server, started(name, *at(server), *more) as process:
        anyio.run(until_five_are_asked, server)
        assert interrupted(process) == (130, False)
        anyio.run(server.wait_disconnects, 5)


@pytest.mark.parametrize("name", ["demo", "profile"])
def test_reader_that_leaves_gets_no_traceback(pairs: Path, name: str) -> None:
    """As under `| head -1`, a command whose reader has left ends in 1 and in silence."""
    more = ["--data", SAMPLE, "--pairs", pairs, "--concurrency", 1] if name == "profile" else []
    with (
        FakeServer(Answer(TEXT, pace=0.002, first_after=0.1)).run_in_thread() as server,
        started(name, *at(server), *more) as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
        assert (process.wait(30), re.findall("Traceback|Exception ignored|Error", errors)) == (1, [])


# The embedded engine


def test_demo_without_an_endpoint_runs_the_embedded_engine() -> None:
    """With nothing named, the packaged model writes all six sections and predicts, and stderr says which it is."""
    pytest.importorskip("xllamacpp")
    small = "--history 0 --evidence 0 --section-chars 3 --max-tokens 150 --temperature 0"
    done = duet("demo", *small.split())
    names = [f"\n{side} {section}\n".replace("_", " ") for side, section in ProfileSchema().slots]
    assert (done.returncode, [name in done.stdout for name in names]) == (0, [True] * 6)
    assert done.stderr.splitlines()[0].startswith("No --base-url: using the embedded SmolLM2-135M.")
