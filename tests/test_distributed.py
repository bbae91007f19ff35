"""Several processes: two on this machine's processors, and the shipped configurations for GPUs."""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from world import recommender_server
from world_policy import WARNINGS, Ground, break_ground, command, lines

from duet_train.card import read_card
from duet_train.settings import CONFIGS

torch: Any = pytest.importorskip("torch")
pytest.importorskip("accelerate")

pytestmark = [pytest.mark.filterwarnings(WARNINGS), pytest.mark.timeout(300)]

SHIPPED = sorted((CONFIGS / "accelerate").glob("*.yaml"))
STEPS, HELD_OUT = 3, 6
OPTIONS: dict[str, object] = {
    "use_peft": "true",
    "lora_r": 8,
    "learning_rate": 1e-2,
    "num_generations": 8,
    "per_device_train_batch_size": 4,
    "max_steps": STEPS,
    "save_steps": STEPS,
    "held_out": HELD_OUT,
    "held_out_steps": STEPS,
    "preflight": "off",
    "disable_tqdm": "true",
}
"""A step is one group of eight, of which each process writes four."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """The policy has learnt the form alone."""
    torch.set_num_threads(1)
    return break_ground(tmp_path_factory.getbasetemp() / "form", each=7)


@pytest.fixture(scope="module")
def launch(ground: Ground) -> Callable[..., int]:
    """Run ``grpo`` in two processes; how many ratings the recommender was asked for."""

    def run(folder: Path, *arguments: str, gpus: bool = False, fails: bool = False, **more: object) -> int:
        here = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
        paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        here |= {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | ({"PRETEND_GPUS": "1"} if gpus else {})
        options = OPTIONS | ({"use_cpu": "false"} if gpus else {}) | more
        shape = ["--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0"]
        launcher = [sys.executable, "-m", "accelerate.commands.launch", *arguments, *shape]
        with recommender_server().run_in_thread() as server:
            options |= {"recommender": f"{server.base_url},reader"}
            words = command("grpo", ground.data, ground.policy, folder, **options)
            done = subprocess.run(  # noqa: S603 - our own interpreter
                [*launcher, "-m", "two_processes", *words], env=os.environ | here, capture_output=True, text=True
            )
            assert (done.returncode != 0) == fails, done.stderr
            print(done.stderr)
            return len(server.requests)

    return run


@pytest.fixture(scope="module")
def finished(launch: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A run of two processes that each hold all weights, and how many ratings were asked for."""
    folder = tmp_path_factory.mktemp("two") / "run"
    return folder, launch(folder, "--multi_gpu", "--num_machines", "1", "--dynamo_backend", "no")


# Two processes


@pytest.mark.train
def test_group_spans_processes(finished: tuple[Path, int]) -> None:
    """Each step is one group of eight completions of one example, of which neither process repeats the other's."""
    for step in range(1, STEPS + 1):
        written = _of_step(finished[0], step)
        assert len(written) == 8
        assert {(line["example"], line["group"]) for line in written} == {(written[0]["example"], 0)}
        first, second = ([line["completion"] for line in half] for half in (written[:4], written[4:]))
        assert first != second


@pytest.mark.train
def test_advantages_are_within_the_whole_group(finished: tuple[Path, int]) -> None:
    """TRL's mean and spread of a step are those of all eight rewards."""
    for line in lines(finished[0] / "history.jsonl"):
        rewards = [one["reward"] for one in _of_step(finished[0], line["step"])]
        assert line["reward"] == pytest.approx(statistics.fmean(rewards), abs=1e-5)
        assert line["reward_std"] == pytest.approx(statistics.stdev(rewards), abs=1e-5)
        assert line["duet/group_spread"] == pytest.approx(statistics.pstdev(rewards), abs=1e-5)


def _of_step(run: Path, step: int) -> list[dict[str, Any]]:
    return [line for line in lines(run / "completions.jsonl") if line["step"] == step]


@pytest.mark.train
def test_one_process_writes(finished: tuple[Path, int]) -> None:
    """There is one line a step, one measurement at the start and one at the end, and all are of the first attempt."""
    folder, _ = finished
    assert [line["step"] for line in lines(folder / "history.jsonl")] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines(folder / "held_out.jsonl")] == [0, STEPS]
    assert {line["attempt"] for line in lines(folder / "history.jsonl")} == {0}
    card = read_card(folder)
    assert (card["attempt"], card["status"], card["steps"]) == (0, "finished", STEPS)


@pytest.mark.train
def test_held_out_rows_are_measured_once(finished: tuple[Path, int]) -> None:
    """The processes share the held-out rows: each is written once a measurement."""
    samples = lines(finished[0] / "samples.jsonl")
    for step in (0, STEPS):
        examples = [line["example"] for line in samples if line["step"] == step]
        assert len(set(examples)) == len(examples) == HELD_OUT


@pytest.mark.train
def test_completions_are_scored_once(finished: tuple[Path, int]) -> None:
    """The recommender is asked for no completion by two processes, and for its mode by one of them."""
    folder, requests = finished
    trained = [line for line in lines(folder / "completions.jsonl") if not line["malformed"]]
    mode = 2  # whether it gives log-probabilities, and whether it answers without
    measured = 2 * 2 * HELD_OUT  # at the start and at the end, as they are and swapped
    assert (
        len({(line["example"], line["completion"]) for line in trained}) <= requests - mode <= len(trained) + measured
    )


@pytest.mark.train
def test_both_processes_learn_the_same(finished: tuple[Path, int]) -> None:
    """At the end both processes have the same weights, which are not those of the start."""
    folder, _ = finished
    notes = [folder.with_suffix(f".{process}").read_text(encoding="utf-8") for process in (0, 1)]
    assert notes[0] == notes[1]
    assert any(tensor.abs().max() > 0 for name, tensor in _adapter(folder).items() if "lora_B" in name)


def _adapter(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    tensors: dict[str, Any] = load_file(folder / "adapter" / "adapter_model.safetensors")
    return tensors


# Rewards that compare completions, and weights in bfloat16

ALIKE: dict[str, object] = {
    "rewards": "contrastive=1",
    "num_generations": 8,
    "temperature": 0.5,
    "use_peft": "false",
    "dtype": "bfloat16",
    "bf16": "true",
    "learning_rate": 3e-7,
}
PLAIN = ("--multi_gpu", "--num_machines", "1", "--dynamo_backend", "no")


@pytest.fixture(scope="module")
def compared(launch: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in bfloat16 of two processes with two groups each, whose completions are compared with each other."""
    folder = tmp_path_factory.mktemp("compared") / "run"
    launch(folder, *PLAIN, **ALIKE, per_device_train_batch_size=16)
    return folder


@pytest.mark.train
@pytest.mark.slow
def test_equal_completions_of_a_group_earn_the_same(compared: Path) -> None:
    """In a step each completion of an example has one reward, however often it was written."""
    written = lines(compared / "completions.jsonl")
    earned: dict[tuple[object, ...], set[float]] = {}
    for line in written:
        earned.setdefault((line["step"], line["example"], line["completion"]), set()).add(line["reward"])
    assert len(earned) < len(written) == STEPS * 32
    assert {len(rewards) for rewards in earned.values()} == {1}


@pytest.mark.parametrize("rewards", ["contrastive=1", pytest.param("rating=1,contrastive=0.5", marks=pytest.mark.slow)])
def test_group_across_processes_is_refused(
    launch: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str], rewards: str
) -> None:
    """Where a process would compare half a group, the run ends before it starts and says what to change."""
    launch(tmp_path / "run", *PLAIN, fails=True, **ALIKE | {"rewards": rewards}, per_device_train_batch_size=4)
    assert "must be a multiple of num_generations = 8, got 4 × 1" in capfd.readouterr().out
    assert not (tmp_path / "run" / "card.json").exists()


@pytest.mark.train
@pytest.mark.slow
def test_small_updates_in_bfloat16_are_kept(ground: Ground, compared: Path) -> None:
    """Two processes that load their weights in bfloat16 change nearly all of them at a learning rate of 3e-7."""
    assert _changed(ground.policy, compared / f"checkpoint-{STEPS}") > 0.98
    notes = [compared.with_suffix(f".{process}").read_text(encoding="utf-8") for process in (0, 1)]
    assert notes[0] == notes[1]


@pytest.mark.train
@pytest.mark.slow
def test_small_updates_of_sharded_weights_are_kept(launch: Callable[..., int], ground: Ground, tmp_path: Path) -> None:
    """FSDP holds float32 weights of its own: small updates are kept there too."""
    options = ALIKE | {"rewards": "rating", "per_device_train_batch_size": 16}
    launch(tmp_path / "run", "--config_file", str(CONFIGS / "accelerate" / "fsdp.yaml"), gpus=True, **options)
    assert _changed(ground.policy, tmp_path / "run" / "model") > 0.98


def _changed(before: Path, after: Path) -> float:
    """The share of weights that differ from those of the start, rounded to bfloat16 as they were loaded."""
    from safetensors.torch import load_file

    start, end = (load_file(folder / "model.safetensors") for folder in (before, after))
    changed = [(end[name].float() != weights.to(torch.bfloat16).float()).flatten() for name, weights in start.items()]
    return float(torch.cat(changed).float().mean())


# The shipped configurations


@pytest.mark.train
@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_sharded_weights_learn_the_same(
    launch: Callable[..., int], finished: tuple[Path, int], tmp_path: Path, path: Path
) -> None:
    """With the weights sharded over the processes the run is the same and leaves the same adapter."""
    if path.stem.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    launch(tmp_path / "run", "--config_file", str(path), gpus=True)
    whole, sharded = (
        [line["completion"] for line in lines(run / "completions.jsonl")] for run in (finished[0], tmp_path / "run")
    )
    assert sharded == whole
    expected = _adapter(finished[0])
    found = _adapter(tmp_path / "run")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-3)


def _launched(path: Path, *more: str) -> Any:
    """The arguments of `accelerate launch` with a configuration, as it reads them itself."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    words = ["--config_file", str(path), *more, "-m", "duet_train", "grpo"]
    return _validate_launch_command(launch_command_parser().parse_args(words))[0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "fsdp",
            {"use_fsdp": True, "use_deepspeed": False, "fsdp_version": 2, "fsdp_state_dict_type": "FULL_STATE_DICT"},
        ),
        ("zero2", {"use_fsdp": False, "use_deepspeed": True, "zero_stage": 2}),
        ("zero3", {"use_fsdp": False, "use_deepspeed": True, "zero_stage": 3, "zero3_save_16bit_model": True}),
    ],
)
def test_accelerate_reads_the_configuration(name: str, expected: dict[str, object]) -> None:
    """accelerate takes a configuration as it is meant: eight processes on one machine, in bf16, sharded so."""
    args = _launched(CONFIGS / "accelerate" / f"{name}.yaml")
    common = {"num_processes": 8, "num_machines": 1, "machine_rank": 0, "mixed_precision": "bf16"}
    assert {key: getattr(args, key) for key in common | expected} == common | expected


def test_every_configuration_is_tested() -> None:
    """No configuration is shipped that no test here names."""
    assert [path.stem for path in SHIPPED] == ["fsdp", "zero2", "zero3"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_commented_keys_are_keys(path: Path, tmp_path: Path) -> None:
    """With the lines for several machines switched on, accelerate still reads the configuration."""
    wanted = tuple(f"# {key}" for key in ("num_", "machine_rank: 0", "main_process_", "rdzv_backend"))
    written = path.read_text(encoding="utf-8").splitlines()
    switched = [line.removeprefix("# ") if line.startswith(wanted) else line for line in written]
    other = tmp_path / path.name
    other.write_text("\n".join(_last_wins(switched)), encoding="utf-8")
    args = _launched(other)
    assert (args.num_processes, args.num_machines, args.main_process_port) == (16, 2, 29500)


def _last_wins(text: Sequence[str]) -> list[str]:
    """YAML allows a key once: of several lines with one key the last is kept."""
    last = {line.partition(":")[0]: place for place, line in enumerate(text) if line[:1].isalpha()}
    return [line for place, line in enumerate(text) if last.get(line.partition(":")[0], place) == place]
