"""``python -m duet_train sft``: supervised fine-tuning on chosen completions.

On the best of each group that `explore` wrote it is the middle rung of LettinGo's comparison (arXiv 2506.18309); on a
teacher's or on given completions it is a warm start, for a policy that does not know the form of a profile yet.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from duet import ConfigurationError
from duet_train.completions import best_of, matched, read_completions, taught, well_formed
from duet_train.data.prepared import Prepared
from duet_train.dataset import Row, training_rows
from duet_train.groups import group_file, read_groups
from duet_train.settings import add_training_arguments, option, read, require_training
from duet_train.teachers import TEACHERS
from duet_train.tuning import TuningSettings, check_template, fitting, say, train_and_save, tuning_arguments
from duet_train.turns import Turns


@dataclasses.dataclass(kw_only=True)
class SFTSettings(TuningSettings):
    """What supervised fine-tuning needs to know: where its completions come from."""

    groups: str = option("", "train on the best completion of each group that explore wrote: its folder or file")
    completions: str = option("", 'train on given completions: a file of JSON lines {"example", "completion"}')
    teacher: str = option("", f"train on completions made without a model: {', '.join(TEACHERS)}")
    min_reward: float | None = option(None, "with groups: leave out those whose best earned less")

    def check(self) -> None:
        """As for all fine-tuning, and one source of completions.

        Raises:
            ConfigurationError: Names the key.
        """
        super().check()
        if sum(map(bool, (self.groups, self.completions, self.teacher))) != 1:
            raise ConfigurationError("one of groups, completions and teacher must say what to train on")
        if self.teacher and self.teacher not in TEACHERS:
            raise ConfigurationError(f"no teacher {self.teacher!r}: there is {', '.join(TEACHERS)}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_training_arguments(parser, SFTSettings, "SFTConfig")


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit code."""
    settings, keys, argv = read(args, SFTSettings)
    data = Prepared.open(settings.data)
    require_training()
    from trl import SFTConfig

    defaults = {"completion_only_loss": True, "learning_rate": 2e-4}
    training_args, model_args = tuning_arguments(settings, keys, argv, SFTConfig, **defaults)
    if training_args.packing or not training_args.completion_only_loss:
        raise ConfigurationError("packing must be false and completion_only_loss true: the prompt is not to be learnt")
    pairs, sentences = chosen(settings, data, training_args.seed)
    for sentence in sentences if training_args.process_index == 0 else ():
        say(f"check: {sentence}")
    train(settings, data, pairs, training_args, model_args)
    return 0


def chosen(settings: SFTSettings, data: Prepared, seed: int) -> tuple[list[tuple[Row, str]], list[str]]:
    """What to train on, and what there is to say of it.

    Args:
        settings: The source.
        data: What prepare wrote.
        seed: Of the sample of rows, and of the choice between equally good completions.

    Raises:
        ConfigurationError: The source cannot be read, does not belong to the data, or holds nothing to train on.
    """
    rows = training_rows(data, settings, seed=seed)
    sentences = []
    if settings.teacher:
        source, given = f"teacher {settings.teacher}", taught(settings.teacher, data, rows, settings, seed=seed)
    elif settings.completions:
        source, given = settings.completions, read_completions(Path(settings.completions))
    else:
        source, groups = settings.groups, read_groups(group_file(Path(settings.groups)))
        given = best_of(groups, seed=seed, min_reward=settings.min_reward)
        if len(given) < len(groups):
            sentences.append(
                f"{len(groups) - len(given)} of {len(groups)} groups have no completion that is good enough"
            )
    pairs = matched(given, rows, source)
    kept = well_formed(pairs, source)
    if len(kept) < len(pairs):
        sentences.append(f"{len(pairs) - len(kept)} of {len(pairs)} completions are no profiles, and are left out")
    return kept, sentences


def train(
    settings: SFTSettings, data: Prepared, pairs: Sequence[tuple[Row, str]], training_args: Any, model_args: Any
) -> None:
    """Train, or go on where an earlier attempt was killed.

    Args:
        settings: This project's own.
        data: What prepare wrote.
        pairs: Rows, and the completion to learn for each.
        training_args: TRL's SFTConfig.
        model_args: TRL's ModelConfig.

    Raises:
        ConfigurationError: No completion fits the limits.
    """
    from datasets import Dataset
    from trl import SFTTrainer

    from duet_train.callbacks import CompleteCheckpoints, History
    from duet_train.card import start_card, unsupported
    from duet_train.models import load_policy, load_tokenizer
    from duet_train.trainers import quiet

    tokenizer = load_tokenizer(model_args.model_name_or_path, model_args.model_revision)
    turns = Turns(tokenizer, settings.template_kwargs)
    columns, sentences = tokens(pairs, turns, settings, training_args.max_length)
    card = start_card(
        Path(training_args.output_dir), "sft", data, len(columns["input_ids"]), settings, training_args, model_args
    )
    if training_args.process_index == 0:
        for sentence in [*sentences, *check_template(turns), *unsupported()]:
            say(f"check: {sentence}")
    model, peft_config = load_policy(model_args, training_args, settings.adapter)
    trainer = quiet(SFTTrainer)(
        model=model,
        args=training_args,
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer,
        callbacks=[History(Path(training_args.output_dir), card.values["attempt"]), CompleteCheckpoints()],
        peft_config=peft_config,
    )
    folder = train_and_save(trainer, card)
    if training_args.process_index == 0:
        key = "--adapter" if model_args.use_peft else "--model_name_or_path"
        say(f"finished: {folder}; go on from it: python -m duet_train grpo {key} {folder} …")


def tokens(
    pairs: Sequence[tuple[Row, str]], turns: Turns, settings: TuningSettings, max_length: int | None
) -> tuple[dict[str, list[list[int]]], list[str]]:
    """The columns that SFTTrainer reads, a loss on the completion alone; and what was left out.

    Nothing is cut: a completion without its end teaches not to end.

    Args:
        pairs: Rows and completions.
        turns: Tokenises.
        settings: Limits of prompt and completion.
        max_length: Of both together; None sets none.

    Raises:
        ConfigurationError: Nothing is left.
    """
    prompts = fitting([row for row, _ in pairs], turns, settings.max_prompt_length)
    made = [(prompts[row.id], turns.completion(text)) for row, text in pairs if row.id in prompts]
    short = [(prompt, text) for prompt, text in made if len(text) <= settings.max_completion_length]
    kept = [(prompt, text) for prompt, text in short if max_length is None or len(prompt) + len(text) <= max_length]
    lost = [
        (len(pairs) - len(made), f"prompts have more than max_prompt_length = {settings.max_prompt_length} tokens"),
        (
            len(made) - len(short),
            f"completions have more than max_completion_length = {settings.max_completion_length}",
        ),
        (len(short) - len(kept), f"prompts and completions together have more than max_length = {max_length} tokens"),
    ]
    sentences = [f"{count} of {len(pairs)} {what}; they are left out" for count, what in lost if count]
    if not kept:
        raise ConfigurationError(f"nothing is left to train on: {'; '.join(sentences)}")
    return {
        "input_ids": [prompt + text for prompt, text in kept],
        "completion_mask": [[0] * len(prompt) + [1] * len(text) for prompt, text in kept],
    }, sentences
