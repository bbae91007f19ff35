"""A killed run of ``grpo`` goes on as if nothing had been; faults are left out; what cannot work is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from world import answer, recommender_server
from world_policy import WARNINGS, Ground, break_ground, command, lines

from duet.testing import Answer, FakeServer, Request
from duet_train.__main__ import main
from duet_train.card import read_card

torch: Any = pytest.importorskip("torch")

pytestmark = [pytest.mark.filterwarnings(WARNINGS), pytest.mark.timeout(300)]

STEPS = 9
OPTIONS: dict[str, object] = {
    "use_peft": "true",
    "lora_r": 8,
    "learning_rate": 1e-2,
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "max_steps": STEPS,
    "save_steps": 4,
    "held_out": 8,
    "held_out_steps": 4,
    "preflight": "off",
    "disable_tqdm": "true",
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    """As in the processes that are killed."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """The policy has learnt the form alone."""
    return break_ground(tmp_path_factory.getbasetemp() / "form", each=7)


@pytest.fixture(scope="module")
def reader() -> Iterator[str]:
    """A recommender that is up, as the option wants it."""
    with recommender_server().run_in_thread() as server:
        yield f"{server.base_url},reader"


# Killed and started again


def effective(run: Path, name: str = "history.jsonl") -> dict[int, list[dict[str, Any]]]:
    """The lines of the last attempt at each step, less what the clock and the attempts put in."""
    found: dict[int, list[dict[str, Any]]] = {}
    every = lines(run / name)
    last = {line["step"]: line["attempt"] for line in every}
    for line in every:
        if line["attempt"] == last[line["step"]]:
            found.setdefault(line["step"], []).append({key: line[key] for key in line if not _passing(key)})
    return found


def _passing(key: str) -> bool:
    return key in ("attempt", "replayed", "step_time") or key.startswith("duet/seconds/")


def killed_after(step: int, words: list[str], run: Path) -> int:
    """Run a command in a process of its own and kill it when a step is written down; the last step it wrote."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(  # noqa: S603 - our own interpreter
        [sys.executable, "-m", "duet_train", *words], env=environment, stderr=subprocess.PIPE
    )
    history = run / "history.jsonl"
    while process.poll() is None and not (history.exists() and f'"step": {step},' in history.read_text("utf-8")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said.decode()
    return int(max(line["step"] for line in lines(history)))


@pytest.mark.train
@pytest.mark.faults
@pytest.mark.serial
@pytest.mark.parametrize(
    "updates",
    [
        pytest.param({}, id="one-update"),
        pytest.param(
            {"steps_per_generation": 2, "gradient_accumulation_steps": 1, "num_iterations": 2},
            id="four-updates",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_killed_run_goes_on_as_if_nothing_had_been(
    ground: Ground, reader: str, tmp_path: Path, updates: dict[str, object]
) -> None:
    """After kill -9 the same command makes the history, completions and weights of a run that was not killed."""
    options = OPTIONS | updates | {"recommender": reader}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(command("grpo", ground.data, ground.policy, whole, **options)) == 0
    words = command("grpo", ground.data, ground.policy, broken, **options)
    seen = killed_after(6, words, broken)
    assert main(words) == 0
    assert effective(broken) == effective(whole)
    assert effective(broken, "completions.jsonl") == effective(whole, "completions.jsonl")
    assert effective(broken, "held_out.jsonl") == effective(whole, "held_out.jsonl")
    again = [line for line in lines(broken / "history.jsonl") if line["attempt"] == 1]
    assert [line["step"] for line in again] == list(range(5, STEPS + 1))
    assert [line["replayed"] for line in again] == [line["step"] <= seen for line in again]
    assert _weights(broken) == _weights(whole)


def _weights(run: Path) -> dict[str, bytes]:
    from safetensors.torch import load_file

    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in tensors.items() if "lora_B" in name)
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


# The recommender fails


def without(word: str) -> Callable[[Request], Answer]:
    """The recommender, which refuses every profile that holds a word."""

    def answered(request: Request) -> Answer:
        return Answer(status=400) if word in request.json["messages"][-1]["content"] else answer(request)

    return answered


@pytest.mark.train
@pytest.mark.faults
def test_fault_is_no_reward_and_never_zero(ground: Ground, tmp_path: Path) -> None:
    """What the recommender failed at has no reward and says why; the rest of the step is learnt from."""
    options = {"max_steps": 2, "held_out": 0, "max_failed_share": 1.0, "reward_attempts": 1}
    with FakeServer(without("fair"), model="reader").run_in_thread() as server:
        given = OPTIONS | options | {"recommender": f"{server.base_url},reader"}
        assert main(command("grpo", ground.data, ground.policy, tmp_path / "run", **given)) == 0
    written = lines(tmp_path / "run" / "completions.jsonl")
    failed = [line for line in written if line["error"] == "EndpointRejected"]
    assert 0 < len(failed) < len(written)
    assert all(line["reward"] is None and line["rating"] is None for line in failed)
    assert all(line["reward"] is not None for line in written if line not in failed)
    shares = [line["duet/failed_share"] for line in lines(tmp_path / "run" / "history.jsonl")]
    assert sum(shares) / len(shares) == pytest.approx(len(failed) / len(written))


@pytest.mark.train
@pytest.mark.faults
def test_run_stops_when_most_fails(ground: Ground, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A recommender that dies on the way ends the run with a sentence, and what was learnt before stays on disk."""
    answers = iter(range(10))

    def dying(request: Request) -> Answer:
        return Answer(status=400) if next(answers, None) is None else answer(request)

    with FakeServer(dying, model="reader").run_in_thread() as server:
        options = {"held_out": 0, "save_steps": 1, "reward_attempts": 1, "recommender": f"{server.base_url},reader"}
        words = command("grpo", ground.data, ground.policy, tmp_path / "run", **OPTIONS | options)
        assert main(words) == 1
    assert "rewards of this step have no value (EndpointRejected" in capsys.readouterr().err.splitlines()[-1]
    assert len(lines(tmp_path / "run" / "history.jsonl")) in range(1, STEPS)
    assert read_card(tmp_path / "run")["status"] == "aborted"


# What cannot work


def test_rollouts_are_not_held_to_the_form(
    ground: Ground, reader: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A random policy writes no profile, since no grammar makes it: the run says so before the first step and stops."""
    options = OPTIONS | {"held_out": 0, "preflight": "stop", "recommender": reader}
    assert main(command("grpo", ground.data, ground.untrained, tmp_path / "run", **options)) == 2
    assert "none of 16 completions is a profile" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run" / "history.jsonl").exists()


@pytest.fixture(scope="module")
def unloadable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a model and cannot be loaded."""
    folder = tmp_path_factory.mktemp("unloadable")
    (folder / "model.safetensors").touch()
    return folder


def adapter_for(base: str, folder: Path) -> Path:
    """An adapter for a base."""
    from safetensors.numpy import save_file

    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": 8,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    names = [f"base_model.model.model.layers.0.self_attn.q_proj.lora_{half}.weight" for half in "AB"]
    shapes = [(8, 4), (4, 8)]
    tensors = {name: np.zeros(shape, np.float32) for name, shape in zip(names, shapes, strict=True)}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps_per_generation": 2, "save_steps": 3}, "save_steps must be a multiple of 2"),
        ({"num_iterations": 3, "save_steps": 4}, "save_steps must be a multiple of 3"),
        ({"save_strategy": "no"}, "save_strategy must be steps"),
        ({"save_only_model": "true"}, "save_only_model"),
        ({"num_generation": 4}, "unknown option '--num_generation'"),
        ({"num_generations": 3}, "TRL refuses the settings"),
        ({"data": "nowhere"}, "nowhere"),
        ({"recommender": "reader"}, "recommender"),
        ({"model_name_or_path": "./nowhere"}, "there is no such folder"),
        ({"model_name_or_path": "."}, "holds no .safetensors"),
        ({"trust_remote_code": "true"}, "trust_remote_code"),
        ({"adapter": "./nowhere"}, "nowhere"),
        ({"adapter": "other"}, "the adapter is for 'other/base'"),
        ({"rollouts": "shared_prefix", "use_vllm": "true"}, "use_vllm is for rollouts: trl"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_mistake_is_one_sentence(
    ground: Ground,
    reader: str,
    unloadable: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, object],
    said: str,
) -> None:
    """What cannot work is refused in one line, before a model is loaded and before the run directory is made."""
    monkeypatch.chdir(tmp_path)
    adapter_for("other/base", tmp_path / "other")
    given = OPTIONS | {"recommender": reader} | options
    assert main(command("grpo", ground.data, unloadable, tmp_path / "run", **given)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "run").exists()
