"""Secrets planted wherever one is given, and looked for wherever something comes out."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import traceback
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import openai
import pytest
from evaluations import prepared
from wires import AnyEndpoint, ask, serving

from duet import (
    AsyncOpenAIEmbedder,
    AsyncOpenAIEndpoint,
    ConfigurationError,
    Deadlines,
    DuetError,
    EmbeddingRecommender,
    EndpointError,
    EndpointSettings,
    HTTPEmbedder,
    HTTPEndpoint,
    Item,
    JointProfiler,
    Ledger,
    LimitedEndpoint,
    LLMRecommender,
    RatingReward,
    RewardEnv,
    Sampling,
    User,
)
from duet.__main__ import main
from duet.testing import Answer, FakeServer, Transcript
from duet_train.__main__ import main as train_main
from duet_train.card import start_card, write_adapter_card
from duet_train.generators import parse_generators
from duet_train.recommenders import check_recommender
from duet_train.settings import Settings
from duet_train.tools import named_addresses

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_leaks")]

KEY = "sk-planted/0a1b+2c3d=="
HEADERS = {
    "x-api-key": "planted-in-a-header-4e5f",
    "proxy-authorization": "Basic cGxhbnRlZDpwbGFudGVkLXBhc3M=",
    "x-gateway-password": 'planted "quoted" words-6a7b',
}
PASSWORD = "planted-in-an-address-8c9d"
PLANTED = (KEY, *HEADERS.values(), "cGxhbnRlZDpwbGFudGVkLXBhc3M=", PASSWORD)
ECHO = " ; ".join(PLANTED[:-1])
IN_JSON = json.dumps(ECHO)[1:-1].replace("/", "\\/")
DEADLINES = Deadlines(connect=2, first_token=0.2, idle=0.2, total=0.3)

Hidden = Callable[[Iterable[str | bytes]], None]


def forms(secret: str) -> list[bytes]:
    """A secret as it is, and as it stands in JSON and in an address."""
    quoted = json.dumps(secret)[1:-1]
    return [form.encode() for form in {secret, quoted, quoted.replace("/", "\\/"), quote(secret, safe="")}]


@pytest.fixture
def hidden(tally: Callable[..., None]) -> Hidden:
    """Fails where a planted secret shows in what came out. Counts each path that they may leave by."""

    def check(places: Iterable[str | bytes]) -> None:
        shown = [place if isinstance(place, bytes) else place.encode("utf-8", "replace") for place in places]
        found = {secret for secret in PLANTED for place in shown for form in forms(secret) if form in place}
        tally("secrets", 1, int(not found))
        assert shown
        assert found == set()

    return check


def exposures(error: BaseException) -> list[str | bytes]:
    """All that an error says, and those behind it, and its pickle."""
    places: list[str | bytes] = ["".join(traceback.format_exception(error)), pickle.dumps(error)]
    chain: list[BaseException | None] = [error]
    while chain:
        one = chain.pop()
        if one is not None:
            places += [str(one), repr(one), repr(one.args), repr(vars(one)), repr(getattr(one, "__notes__", ()))]
            chain += [one.__cause__, one.__context__]
    return places


class _Records(logging.Handler):
    """Keeps all that a record holds as text."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.texts: list[str | bytes] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.name + ": " + self.format(record) + repr(vars(record)))


@pytest.fixture
def logged() -> Iterator[list[str | bytes]]:
    """What goes to any of our loggers at any level."""
    records, root = _Records(), logging.getLogger()
    loggers = [root, *(logging.getLogger(name) for name in (*logging.root.manager.loggerDict, "openai", "httpcore"))]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
    root.addHandler(records)
    yield records.texts
    root.removeHandler(records)
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@asynccontextmanager
async def endpoint_with_secrets(wire: str, base_url: str, password: str = PASSWORD) -> AsyncIterator[AnyEndpoint]:
    """An endpoint that holds all of them."""
    settings: dict[str, Any] = {"retries": 1, "deadlines": DEADLINES}
    if wire == "http":
        async with HTTPEndpoint(base_url, "fake", api_key=KEY, headers=HEADERS, **settings) as endpoint:
            yield endpoint
        return
    http_client = openai.DefaultAsyncHttpxClient(verify=False)
    address = base_url.replace("//", f"//user:{password}@") if password else base_url
    client = openai.AsyncOpenAI(base_url=address, api_key=KEY, default_headers=HEADERS, http_client=http_client)
    async with client:
        yield AsyncOpenAIEndpoint(client, "fake", **settings)


def error_body(message: str) -> str:
    return f'{{"error": {{"message": "{message}", "code": "planted"}}}}'


def events(*payloads: str) -> Answer:
    return Answer(body="".join(f"data: {one}\n\n" for one in payloads), content_type="text/event-stream")


LEAD = '{"choices": [{"index": 0, "delta": {"content": "A"}}]}'
AT_ONCE = {"retry-after": "0"}
ANSWERS: dict[str, Answer | Transcript] = {
    **{
        f"status {status}": Answer(status=status, body=error_body(IN_JSON), headers=AT_ONCE)
        for status in (400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 501, 502, 503, 504)
    },
    "plain text": Answer(status=401, body=f"no such key: {ECHO}", content_type="text/plain"),
    "a web page": Answer(status=502, body=f"<html>{ECHO}</html>", content_type="text/html", headers=AT_ONCE),
    "a web page with 200": Answer(body=f"<html>{ECHO}</html>", content_type="text/html"),
    "redirect": Answer(status=302, body="", headers={"location": f"http://127.0.0.1:9/{quote(ECHO, safe='')}?k={KEY}"}),
    "redirect in plain": Answer(status=307, body="", headers={"location": f"http://u:{KEY}@127.0.0.1:9/"}),
    "broken JSON": Answer(body=f'{{"choices": "{IN_JSON}', content_type="application/json"),
    "broken JSON of an error": Answer(status=400, body=f'{{"error": "{IN_JSON}'),
    "no completion": Answer(body=f'{{"choices": ["{IN_JSON}"]}}', content_type="application/json"),
    "no usage": Answer(
        body=f'{{"choices": [{{"message": {{"content": "A"}}}}], "usage": {{"prompt_tokens": "{IN_JSON}"}}}}'
    ),
    "at the edge": Answer(status=400, body=error_body("x" * 480 + IN_JSON)),
    "an event": events(f'{{"choices": ["{IN_JSON}"]}}'),
    "an event in mid-stream": events(LEAD, error_body(IN_JSON)),
    "broken event": events(LEAD, f'{{"choices": "{IN_JSON}'),
    "status line": Transcript(f"HTTP/1.1 {ECHO}\r\n\r\n".encode(), recorded=False),
    "no HTTP": Transcript(f"{ECHO}\r\n\r\n".encode(), recorded=False),
    "broken header": Transcript(f"HTTP/1.1 200 OK\r\n{ECHO}\r\n\r\n".encode(), recorded=False),
    "broken length": Transcript(f"HTTP/1.1 200 OK\r\nContent-Length: {ECHO}\r\n\r\n".encode(), recorded=False),
    "broken chunk": Transcript(
        f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{ECHO}\r\n".encode(), recorded=False
    ),
    "encoding": Answer("A", headers={"content-encoding": ECHO}),
    "reset": Answer(fault="reset"),
    "cut": Answer(fault="cut_midstream"),
    "hang": Answer(fault="hang"),
    "hang in mid-stream": Answer(fault="hang_midstream"),
    "end early": Answer(fault="end_early"),
}


@pytest.fixture
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("duet._caller._backoff", lambda tries: 0.0)


async def failing(endpoint: AnyEndpoint, how: str) -> list[str | bytes]:
    """What the error of one call shows; nothing where it succeeds."""
    try:
        await ask(endpoint, how)
    except DuetError as exc:
        return [*exposures(exc), repr(endpoint), str(endpoint), f"{endpoint}"]
    return [repr(endpoint)]


# What comes out of calls


@pytest.mark.usefixtures("_without_pauses")
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_error_hides_what_the_server_repeats(
    wire: str, how: str, answer: Answer | Transcript, hidden: Hidden, logged: list[str | bytes]
) -> None:
    """Whatever a server says and however, neither the error nor those behind it nor a log has a secret."""
    async with serving(answer) as server, endpoint_with_secrets(wire, server.base_url) as endpoint:
        places = await failing(endpoint, how)
    # What a server sends in its headers stands in the libraries' own logs at the level DEBUG.
    hidden([*places, *(text for text in logged if str(text).startswith("duet"))])


@pytest.mark.parametrize("wire", ["http", "openai"])
async def test_no_log_shows_what_is_sent(wire: str, hidden: Hidden, logged: list[str | bytes]) -> None:
    """No logger of any library says at any level what the headers of a request hold."""
    async with serving(Answer("A")) as server:
        async with endpoint_with_secrets(wire, server.base_url, password="") as endpoint:
            await ask(endpoint, "stream")
        assert server.requests[0].headers["x-api-key"] == HEADERS["x-api-key"]
    hidden(["anything", *logged])


@pytest.mark.usefixtures("_without_pauses")
async def test_error_of_a_server_that_is_gone_hides_all(
    wire: str, how: str, hidden: Hidden, logged: list[str | bytes]
) -> None:
    """Where nobody listens, the error knows nothing of the secrets either."""
    async with serving() as server:
        address = server.base_url
    async with endpoint_with_secrets(wire, address) as endpoint:
        places = await failing(endpoint, how)
    assert len(places) > 3
    hidden([*places, *logged])


async def test_unknown_engine_hides_what_the_server_repeats(wire: str, hidden: Hidden) -> None:
    """The name of an engine is the server's to choose."""
    async with serving(owned_by=ECHO) as server, endpoint_with_secrets(wire, server.base_url) as endpoint:
        with pytest.raises(ConfigurationError) as caught:
            await endpoint.generate([{"role": "user", "content": "A?"}], Sampling(grammar="root ::= [a]"))
    hidden(exposures(caught.value))


@pytest.mark.parametrize("status", [200, 401])
async def test_embedder_hides_what_the_server_repeats(status: int, hidden: Hidden) -> None:
    """An embedder keeps as quiet as an endpoint."""
    answer = Answer(status=status, body=error_body(IN_JSON))
    async with serving(answer) as server:
        async with HTTPEmbedder(server.base_url, "fake", api_key=KEY, headers=HEADERS, retries=0) as embedder:
            with pytest.raises(EndpointError) as caught:
                await embedder.embed(["A"])
            hidden([*exposures(caught.value), repr(embedder)])


# What objects show


def holders() -> list[object]:
    """Every public object that holds a key, and some that hold those."""
    client = openai.AsyncOpenAI(
        base_url=f"http://user:{PASSWORD}@127.0.0.1:9/v1", api_key=KEY, default_headers=HEADERS, http_client=_Never()
    )
    endpoint = HTTPEndpoint("http://127.0.0.1:9/v1", "fake", api_key=KEY, headers=HEADERS)
    limited = LimitedEndpoint(endpoint, requests_per_minute=1)
    recommender = LLMRecommender(limited, mode="decimal")
    embedder = HTTPEmbedder("http://127.0.0.1:9/v1", "fake", api_key=KEY, headers=HEADERS)
    return [
        endpoint,
        AsyncOpenAIEndpoint(client, "fake"),
        embedder,
        AsyncOpenAIEmbedder(client, "fake"),
        limited,
        recommender,
        EmbeddingRecommender(embedder),
        RatingReward(recommender),
        RewardEnv([RatingReward(recommender)]),
        JointProfiler(endpoint),
        EndpointSettings("http://127.0.0.1:9/v1", "fake", KEY),
    ]


class _Never(openai.DefaultAsyncHttpxClient):
    """Spares the 50 ms in which certificates are loaded."""

    def __init__(self) -> None:
        super().__init__(verify=False)


def test_objects_do_not_show_their_secrets(hidden: Hidden) -> None:
    """However an object becomes text, alone or in a container, no secret is in it."""
    for one in holders():
        hidden([repr(one), str(one), f"{one}", f"{one!r:>80}", repr([one]), repr({"a": (one,)})])


@pytest.mark.parametrize("write", [pickle.dumps, copy.copy, copy.deepcopy])
def test_endpoint_is_not_pickled(write: Callable[[Any], Any], hidden: Hidden) -> None:
    """What may hold a key refuses to be pickled or copied, in one sentence."""
    for one in holders()[:-1]:
        if write is copy.copy and not isinstance(one, HTTPEndpoint | AsyncOpenAIEndpoint | HTTPEmbedder):
            continue  # a shallow copy holds the same endpoint
        with pytest.raises(TypeError, match="may hold a key, so it is neither pickled nor copied") as caught:
            write(one)
        hidden(exposures(caught.value))


@pytest.mark.parametrize("value", [f"{KEY}\n", f"{KEY}\r\nx: y", f"{KEY}\0", f"{KEY}\u2028"])
def test_key_that_is_refused_is_not_shown(value: str, hidden: Hidden) -> None:
    """A key that no header can hold is not in the error that says so."""
    for settings in ({"api_key": value}, {"headers": {"x-api-key": value}}):
        with pytest.raises(ConfigurationError) as caught:
            HTTPEndpoint("http://127.0.0.1:9/v1", "fake", **settings)
        hidden(exposures(caught.value))


# What is written


@pytest.fixture
def planted_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key where commands look for it."""
    for name in ("DUET_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, KEY)


def files(folder: Path) -> list[str | bytes]:
    """Every file below a folder, and its name."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [*(path.read_bytes() for path in found), *(str(path) for path in found)]


async def test_ledger_holds_no_secret(tmp_path: Path, hidden: Hidden) -> None:
    """Neither what came nor what failed leaves a secret in the ledger's files."""
    answers = [Answer(), Answer(status=401, body=error_body(IN_JSON)), Answer(), Answer(body=ECHO)]
    async with serving(answers) as server, endpoint_with_secrets("http", server.base_url) as endpoint:
        async with Ledger(tmp_path / "ledger.sqlite") as ledger:
            pairs = [(User("u"), Item(f"i{number}", title=f"T{number}")) for number in range(4)]
            async with JointProfiler(endpoint, ledger=ledger).profile_many(pairs, concurrency=1) as outcomes:
                made = [outcome async for outcome in outcomes]
            hidden([*files(tmp_path), *(repr(outcome) for outcome in made)])
            assert await ledger.count() == 2


@pytest.mark.usefixtures("planted_key")
def test_command_shows_and_writes_no_secret(tmp_path: Path, hidden: Hidden, capsys: pytest.CaptureFixture[str]) -> None:
    """A bulk run whose server repeats the key leaves it in no output, and its exit code is 1."""
    (tmp_path / "interactions.jsonl").write_text('{"user_id": "u", "item_id": "i", "rating": 4, "timestamp": 1}\n')
    (tmp_path / "items.jsonl").write_text('{"item_id": "i", "title": "T"}\n')
    (tmp_path / "pairs.jsonl").write_text('{"user_id": "u", "item_id": "i"}\n')
    words = ["profile", "--data", str(tmp_path), "--pairs", str(tmp_path / "pairs.jsonl")]
    words += ["--out", str(tmp_path / "out.jsonl"), "--ledger", str(tmp_path / "ledger.sqlite")]
    with FakeServer(Answer(status=401, body=error_body(json.dumps(KEY)[1:-1]))).run_in_thread() as server:
        assert main([*words, "--base-url", server.base_url, "--model", "fake"]) == 1
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert "***" in (tmp_path / "out.jsonl").read_text()
    hidden([*files(tmp_path), *capsys.readouterr()])


@pytest.mark.usefixtures("planted_key")
def test_exploration_shows_and_writes_no_secret(
    tmp_path: Path, hidden: Hidden, capsys: pytest.CaptureFixture[str]
) -> None:
    """An exploration with keys for its models and its recommender names the variables and writes no value."""
    data = prepared(tmp_path / "data").directory
    answers = [Answer(), Answer(status=401, body=error_body(json.dumps(KEY)[1:-1]))]
    with FakeServer(answers).run_in_thread() as server:
        words = ["explore", "--data", str(data), "--output_dir", str(tmp_path / "run"), "--rows", "2", "--samples", "2"]
        words += ["--generators", f"{server.base_url},one,OPENAI_API_KEY", "--recommender", f"{server.base_url},judge"]
        words += ["--recommender_mode", "decimal"]  # else the refused key ends it before there is a card
        assert train_main(words) == 1
        assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {KEY}"}
    card = (tmp_path / "run" / "card.json").read_text()
    assert "DUET_API_KEY" in card
    hidden([*files(tmp_path / "run"), *capsys.readouterr()])


@pytest.mark.usefixtures("planted_key")
def test_cards_of_a_run_hold_no_secret(tmp_path: Path, hidden: Hidden) -> None:
    """Card and model card name the variable of the key and not its value."""
    data = prepared(tmp_path / "data")
    run = tmp_path / "run"
    card = start_card(run, "grpo", data, 3, Settings(recommender="http://127.0.0.1:9/v1,judge"), seed=0)
    card.values["model"] = {"model_name_or_path": "packaged", "use_peft": True}
    write_adapter_card(run, card)
    hidden(files(run))


ADDRESS = f"http://user:{PASSWORD}@127.0.0.1:9/v1"


@pytest.mark.parametrize("address", [ADDRESS, f"http://127.0.0.1:9/v1?key={PASSWORD}"])
@pytest.mark.parametrize(
    "read",
    [
        lambda address: HTTPEndpoint(address, "fake"),
        lambda address: HTTPEmbedder(address, "fake"),
        lambda address: check_recommender(Settings(recommender=f"{address},judge")),
        lambda address: check_recommender(Settings(recommender=address)),
        lambda address: Settings(rollouts="server", server=address, server_model="base"),
        lambda address: parse_generators(f"{address},one"),
        lambda address: parse_generators(address),
        lambda address: named_addresses([f"one={address},one"]),
        lambda address: named_addresses([address]),
    ],
)
def test_address_with_a_secret_is_refused_unseen(read: Callable[[str], Any], address: str, hidden: Hidden) -> None:
    """User, password and query are refused wherever an address is given, before anything is written."""
    with pytest.raises(ConfigurationError) as caught:
        read(address)
    hidden(exposures(caught.value))
