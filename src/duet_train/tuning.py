"""What fine-tuning on texts that are there already has in common, whether on single ones (sft) or on pairs (dpo)."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from duet import ConfigurationError
from duet_train.card import Card
from duet_train.dataset import Row, within
from duet_train.settings import Settings, option, trl_arguments
from duet_train.turns import Turns


@dataclasses.dataclass(kw_only=True)
class TuningSettings(Settings):
    """What any fine-tuning on texts needs to know beside the rest."""

    max_completion_length: int = option(896, "completions of more tokens are left out: a rollout would cut them")
    chat_template_kwargs: str = option("", "JSON for the chat template, the same as for grpo and for serving")

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """Keywords of the chat template."""
        try:
            found = json.loads(self.chat_template_kwargs or "{}")
        except ValueError as exc:
            raise ConfigurationError("chat_template_kwargs must be JSON") from exc
        if not isinstance(found, dict):
            raise ConfigurationError("chat_template_kwargs must be a JSON object")
        return found

    def check(self) -> None:
        """As for all runs, and the keys of this class.

        Raises:
            ConfigurationError: Names the key.
        """
        super().check()
        if not self.data:
            raise ConfigurationError("data must name the directory that prepare wrote")
        if self.max_completion_length < 1:
            raise ConfigurationError(f"max_completion_length must be at least 1, got {self.max_completion_length}")
        _ = self.template_kwargs


def tuning_arguments(
    settings: Settings, keys: dict[str, Any], argv: Sequence[str], kind: Any, **defaults: Any
) -> tuple[Any, Any]:
    """TRL's settings of a fine-tuning, checked.

    Args:
        settings: This project's own.
        keys: Of the YAML file, for TRL.
        argv: Options, for TRL.
        kind: TRL's class of training arguments.
        **defaults: Of the verb, where neither says anything.

    Raises:
        ConfigurationError: They do not hold, or a run could not be resumed with them.
    """
    import torch
    from trl import ModelConfig

    from duet_train.models import check_adapter, check_model

    common = {
        "use_peft": True,
        "lora_dropout": 0.0,
        "logging_steps": 1,
        "report_to": "none",
        "save_steps": 50,
        "save_total_limit": 2,
        "max_length": None,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    training_args, model_args = trl_arguments(keys, argv, (kind, ModelConfig), **common | defaults)
    if training_args.output_dir in (None, "trainer_output"):
        raise ConfigurationError("output_dir must name the run directory")
    if training_args.save_strategy != "steps" or training_args.save_only_model or training_args.ignore_data_skip:
        raise ConfigurationError(
            "save_strategy must be steps, save_only_model and ignore_data_skip false: a run that is killed goes on "
            "from its last checkpoint"
        )
    check_model(model_args)
    check_adapter(settings.adapter, model_args)
    return training_args, model_args


def fitting(rows: Sequence[Row], turns: Turns, limit: int) -> dict[int, list[int]]:
    """The prompts of at most so many tokens, by the id of their row.

    Args:
        rows: Any number; rows of one id count once.
        turns: Tokenises.
        limit: Of tokens.

    Raises:
        ConfigurationError: None is left.
    """
    unique = list({row.id: row for row in rows}.values())
    ids = {row.id: turns.prompt(row.messages) for row in unique}
    return {row.id: ids[row.id] for row in within(unique, [len(ids[row.id]) for row in unique], limit)}


def check_template(turns: Turns) -> list[str]:
    """A sentence where the chat template ends an answer in another token than rollouts do.

    Args:
        turns: Tokenises.
    """
    after = turns.ends_otherwise()
    if after is None:
        return []
    return [
        f"the chat template goes on with {after!r:.40} after an answer, and a rollout ends at the tokenizer's eos "
        "token: the policy learns the latter"
    ]


def train_and_save(trainer: Any, card: Card) -> Path:
    """Train, or go on where an earlier attempt was killed; the folder of the trained weights.

    Args:
        trainer: With a new or an unfinished run.
        card: Of the run; said to be finished at the end.
    """
    from duet_train.callbacks import last_checkpoint
    from duet_train.card import write_adapter_card
    from duet_train.trainers import save, train_to_the_end

    run = Path(trainer.args.output_dir)
    train_to_the_end(trainer, last_checkpoint(run))
    folder = run / ("adapter" if card.values["model"]["use_peft"] else "model")
    save(trainer, folder)
    if trainer.args.process_index == 0:
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        card.update(status="finished", finished=finished, steps=trainer.state.global_step)
        write_adapter_card(folder, card)
    return folder


def say(sentence: str) -> None:
    """Talk goes to stderr."""
    print(sentence, file=sys.stderr, flush=True)
