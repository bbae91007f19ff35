"""Keys of training: this project's own, checked without torch, and TRL's beside them."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from duet import ConfigurationError
from duet_train.__main__ import VERBS, main
from duet_train.settings import CONFIGS, Settings, add_training_arguments, read, read_config, trl_arguments

WITHOUT_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "trl", "peft", "datasets", "accelerate"}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent())
from duet_train.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def given(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_training_arguments(parser, Settings, "GRPOConfig")
    args, rest = parser.parse_known_args(words)
    args.rest = rest
    return args


@pytest.fixture
def yaml_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(
        "data: prepared\nhistory_limit: 3\nlearning_rate: 1e-4\nsections: [cue, profile]\n", encoding="utf-8"
    )
    return path


def test_defaults_are_duets() -> None:
    """Without a word the prompt is DUET's: ten rows a side, 200 characters, six sections."""
    settings, _, _ = read(given(), Settings)
    assert (settings.history_limit, settings.evidence_limit, settings.review_chars) == (10, 10, 200)
    assert len(settings.schema.slots) == 6


def test_file_sets_own_keys(yaml_file: Path) -> None:
    """A key of the file that is ours becomes a setting."""
    settings, _, _ = read(given("--config", str(yaml_file)), Settings)
    assert settings.history_limit == 3


def test_option_wins_over_file(yaml_file: Path) -> None:
    """An option overrides the file's key."""
    settings, _, _ = read(given("--config", str(yaml_file), "--history_limit", "5"), Settings)
    assert settings.history_limit == 5


def test_other_keys_are_for_trl(yaml_file: Path) -> None:
    """A key of the file that is not ours is passed on."""
    _, keys, _ = read(given("--config", str(yaml_file)), Settings)
    assert keys == {"learning_rate": "1e-4"}


def test_other_options_are_for_trl() -> None:
    """An option that is not ours is passed on with its value."""
    _, _, argv = read(given("--data", "d", "--num_generations", "4"), Settings)
    assert argv == ["--num_generations", "4"]


def test_list_of_file_is_list_with_commas(yaml_file: Path) -> None:
    """A YAML list is read as our lists are written."""
    settings, _, _ = read(given("--config", str(yaml_file)), Settings)
    assert settings.schema.sections == ("cue", "profile")


def test_weights_of_terms() -> None:
    """A term without a weight has weight 1."""
    assert Settings(rewards="rating, length=0.25").terms == {"rating": 1.0, "length": 0.25}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--split", "tset"], "split"),
        (["--rollouts", "vllm"], "rollouts"),
        (["--recommender_mode", "guess"], "recommender_mode"),
        (["--recommender_minimum_mass", "1.5"], "recommender_minimum_mass"),
        (["--independent", "maybe"], "independent"),
        (["--history_limit", "ten"], "history_limit"),
        (["--max_failed_share", "0"], "max_failed_share"),
        (["--rewards", "rating=much"], "rewards"),
        (["--sides", "user,shop"], "side"),
        (["--rollouts", "server"], "server"),
        (["--recommender_extra_body", "{"], "recommender_extra_body"),
        (["--config", "no-such-file"], "no-such-file"),
    ],
)
def test_wrong_value_is_named(words: list[str], named: str) -> None:
    """A value that cannot hold is refused in a sentence that names its key."""
    with pytest.raises(ConfigurationError, match=named):
        read(given(*words), Settings)


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_shipped_configuration_is_yaml(name: str) -> None:
    """Each configuration is found by its name and holds keys."""
    assert read_config(name)


@pytest.mark.parametrize("name", ["duet", "blue", "smoke"])
def test_shipped_keys_are_known(name: str, tmp_path: Path) -> None:
    """Every key of a configuration for grpo is ours or TRL's, and TRL accepts the values."""
    from trl import GRPOConfig, ModelConfig

    _, keys, argv = read(given("--config", name, "--bf16", "false", "--output_dir", str(tmp_path)), Settings)
    training_args, model_args = trl_arguments(keys, argv, (GRPOConfig, ModelConfig))
    assert training_args.output_dir == str(tmp_path)
    assert model_args.model_name_or_path


def test_duet_makes_two_updates_of_256() -> None:
    """DUET's configuration draws 512 completions for two updates of 256, in groups of 8, on one process."""
    keys = read_config("duet")
    update = keys["per_device_train_batch_size"] * keys["gradient_accumulation_steps"]
    drawn = keys["per_device_train_batch_size"] * keys["steps_per_generation"]
    assert (keys["num_generations"], update, drawn) == (8, 256, 512)


@pytest.mark.parametrize(("keys", "argv"), [({"num_generation": 4}, []), ({}, ["--num_generation", "4"])])
def test_unknown_key_is_refused(keys: dict[str, int], argv: list[str]) -> None:
    """A key that neither we nor TRL know is refused by name, wherever it stands."""
    from trl import GRPOConfig

    with pytest.raises(ConfigurationError, match="num_generation'"):
        trl_arguments(keys, argv, (GRPOConfig,))


def test_what_trl_refuses_is_one_sentence(tmp_path: Path) -> None:
    """TRL's own complaint about a value is passed on as a configuration error."""
    from trl import GRPOConfig

    argv = ["--output_dir", str(tmp_path), "--num_generations", "3", "--per_device_train_batch_size", "4"]
    with pytest.raises(ConfigurationError, match="TRL refuses"):
        trl_arguments({}, argv, (GRPOConfig,))


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_help_needs_no_torch(verb: str) -> None:
    """Each verb shows its help where torch and the rest are not installed."""
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", WITHOUT_TORCH, verb, "--help"], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


def test_training_without_torch_names_the_extra(tmp_path: Path) -> None:
    """Without torch a training verb says what to install, after it has checked its arguments."""
    words = ["sft", "--teacher", "template", "--data", str(tmp_path), "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", WITHOUT_TORCH, *words], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 2
    assert "manifest" in done.stderr or "duet-profiles[train]" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["grpo"], "data must name"),
        (["grpo", "--data", "d"], "recommender must be"),
        (["grpo", "--data", "d", "--recommender", "head:nowhere"], "head"),
        (["grpo", "--data", "d", "--recommender", "http://127.0.0.1:1/v1"], "recommender"),
        (["grpo", "--data", "d", "--recommender", "local", "--rewards", "praise"], "praise"),
        (["grpo", "--data", "d", "--recommender", "local"], "d"),
    ],
)
def test_bad_run_is_one_sentence(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What a run lacks is said in one line, with the exit code of wrong usage."""
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_unknown_option_of_another_verb_is_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """A verb that passes nothing on to TRL refuses what it does not know."""
    with pytest.raises(SystemExit):
        main(["head", "--data", "d", "--out", "o", "--num_generations", "4"])
    assert "num_generations" in capsys.readouterr().err
