"""``python -m duet_train dpo``: direct preference optimisation on right and wrong completions of the same prompt.

LettinGo's last stage (arXiv 2506.18309): every completion from which the recommender predicts the right sentiment is
preferred to every one from which it predicts a wrong one. The reference is the policy as it was at the start: with LoRA
the same weights with the new adapter off.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from duet import ConfigurationError
from duet_train.completions import matched
from duet_train.data.prepared import Prepared
from duet_train.dataset import Row, training_rows
from duet_train.groups import group_file, read_groups
from duet_train.pairs import Pair, PairRule, fates, paired
from duet_train.settings import add_training_arguments, option, read, require_training
from duet_train.tuning import TuningSettings, check_template, fitting, say, train_and_save, tuning_arguments
from duet_train.turns import Turns


@dataclasses.dataclass(kw_only=True)
class DPOSettings(TuningSettings):
    """What DPO needs to know: the groups, and which of their completions make pairs."""

    groups: str = option("", "the scored groups that explore wrote: its folder or file")
    pairs: str = option("sentiment", "sentiment: right times wrong by like, neutral, dislike (LettinGo's); or margin")
    margin: float = option(0.25, "with pairs margin: least difference of the rewards")

    def check(self) -> None:
        """As for all fine-tuning, and the groups.

        Raises:
            ConfigurationError: Names the key.
        """
        super().check()
        if not self.groups:
            raise ConfigurationError("groups must name what explore wrote: its folder or file")
        if self.pairs not in get_args(PairRule):
            raise ConfigurationError(f"pairs must be {' or '.join(get_args(PairRule))}, got {self.pairs!r}")
        if not self.margin > 0:
            raise ConfigurationError(f"margin must be above 0, got {self.margin:g}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_training_arguments(parser, DPOSettings, "DPOConfig")


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit code."""
    settings, keys, argv = read(args, DPOSettings)
    data = Prepared.open(settings.data)
    require_training()
    from trl import DPOConfig

    training_args, model_args = tuning_arguments(settings, keys, argv, DPOConfig, learning_rate=5e-6)
    if training_args.max_length is not None:
        raise ConfigurationError("max_length must be none: nothing is cut; max_completion_length leaves pairs out")
    groups = read_groups(group_file(Path(settings.groups)))
    made = paired(groups, settings.pairs, settings.margin)
    rows = training_rows(data, settings, seed=training_args.seed)
    found = with_rows(made.pairs, rows, settings.groups)
    if training_args.process_index == 0:
        say(f"check: {len(made.pairs)} pairs: {fates(made, len(groups))}")
    train(settings, data, found, training_args, model_args)
    return 0


def with_rows(pairs: Sequence[Pair], rows: Sequence[Row], source: str) -> list[tuple[Row, Pair]]:
    """Each pair with its row.

    Args:
        pairs: By the ids of rows.
        rows: Of the data that the run names.
        source: What to call the groups.

    Raises:
        ConfigurationError: A pair belongs to no row.
    """
    found = matched([(pair.example, pair.chosen) for pair in pairs], rows, source)
    return [(row, pair) for (row, _), pair in zip(found, pairs, strict=True)]


def train(
    settings: DPOSettings, data: Prepared, pairs: Sequence[tuple[Row, Pair]], training_args: Any, model_args: Any
) -> None:
    """Train, or go on where an earlier attempt was killed.

    Args:
        settings: This project's own.
        data: What prepare wrote.
        pairs: With their rows.
        training_args: TRL's DPOConfig.
        model_args: TRL's ModelConfig.

    Raises:
        ConfigurationError: No pair fits the limits.
    """
    from datasets import Dataset

    from duet_train.callbacks import CompleteCheckpoints, History
    from duet_train.card import start_card, unsupported
    from duet_train.models import load_policy, load_tokenizer

    tokenizer = load_tokenizer(model_args.model_name_or_path, model_args.model_revision)
    turns = Turns(tokenizer, settings.template_kwargs)
    columns, sentences = tokens(pairs, turns, settings)
    card = start_card(
        Path(training_args.output_dir), "dpo", data, len(columns["prompt_ids"]), settings, training_args, model_args
    )
    if training_args.process_index == 0:
        for sentence in [*sentences, *check_template(turns), *unsupported()]:
            say(f"check: {sentence}")
    model, peft_config = load_policy(model_args, training_args, settings.adapter)
    trainer = _trainer_class()(
        model=model,
        args=training_args,
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer,
        callbacks=[History(Path(training_args.output_dir), card.values["attempt"]), CompleteCheckpoints()],
        peft_config=peft_config,
    )
    folder = train_and_save(trainer, card)
    if training_args.process_index == 0:
        say(f"finished: {folder}; serve it: python -m duet_train host, and compare it by evaluate --methods duet@NAME")


def tokens(
    pairs: Sequence[tuple[Row, Pair]], turns: Turns, settings: TuningSettings
) -> tuple[dict[str, list[list[int]]], list[str]]:
    """The columns that DPOTrainer trains on, and what was left out; nothing is cut.

    Args:
        pairs: With their rows.
        turns: Tokenises.
        settings: Limits of prompt and completion.

    Raises:
        ConfigurationError: Nothing is left.
    """
    prompts = fitting([row for row, _ in pairs], turns, settings.max_prompt_length)
    made = [
        (prompts[row.id], turns.completion(pair.chosen), turns.completion(pair.rejected))
        for row, pair in pairs
        if row.id in prompts
    ]
    limit = settings.max_completion_length
    kept = [one for one in made if max(len(one[1]), len(one[2])) <= limit]
    lost = [
        (len(pairs) - len(made), f"prompts have more than max_prompt_length = {settings.max_prompt_length} tokens"),
        (len(made) - len(kept), f"pairs hold a completion of more than max_completion_length = {limit} tokens"),
    ]
    sentences = [f"{count} of {len(pairs)} {what}; they are left out" for count, what in lost if count]
    if not kept:
        raise ConfigurationError(f"nothing is left to train on: {'; '.join(sentences)}")
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return {name: [one[place] for one in kept] for place, name in enumerate(names)}, sentences


def _trainer_class() -> Any:
    from trl import DPOTrainer

    from duet_train.trainers import quiet

    class TokenisedDPOTrainer(DPOTrainer):  # type: ignore[misc]
        """Takes the ids as they are: TRL would render prompt and completion by the chat template in one go."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    return quiet(TokenisedDPOTrainer)
