"""``python -m duet_train rlso``: the policy learns to write what an embedder finds items by, and the embedder to find.

LangPTune's loop: K times, J contrastive updates of the embedder on freshly written profiles, then T batches of fresh
profiles, from each of which the policy learns by REBEL in several passes. The reward is the NDCG of the user's next
item over the whole catalogue. Without either half it is one of the paper's ablations.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from duet import ConfigurationError
from duet_train.data.prepared import Prepared
from duet_train.dataset import columns
from duet_train.recommenders import check_recommender, open_envs, with_mode
from duet_train.settings import Settings, add_training_arguments, option, read, require_training, trl_arguments


@dataclasses.dataclass(kw_only=True)
class RLSOSettings(Settings):
    """What rlso needs to know beside the keys of every training run.

    Defaults are LangPTune's with Gemma-2B, but that all rows of a user are trained on.
    """

    sides: str = option("user", "the side that a completion writes")
    sections: str = option("profile", "sections of that side, in order")
    independent: bool = option(True, "the item is not in sight, as it is what should be found")
    history_limit: int = option(4, "most rows of the user in a prompt: the latest, or those of first_interactions")
    first_interactions: bool = option(
        False, "one row a user: the first history_limit interactions, and the first new item after them"
    )
    rewards: str = option("catalogue", "terms with weights, as in catalogue=1,length=0.1")
    format_penalty: float = option(0.0, "the reward of a completion that is no profile")
    embedder: str = option("minilm", "minilm, a folder with weights in safetensors, or a hub's name")
    embedder_learning_rate: float = option(1e-7, "of the embedder")
    embedder_pooling: str = option(
        "", "how tokens become a vector: mean, cls, lasttoken; default: as the embedder says"
    )
    embedder_max_tokens: int | None = option(None, "the embedder cuts longer texts; default: its own limit")
    iterations: int = option(5, "K: how often both phases are done")
    contrastive_updates: int = option(800, "J: updates of the embedder in an iteration; 0 leaves it as it is")
    policy_updates: int = option(
        800,
        "updates of the policy in an iteration, num_iterations of them on each batch; 0 leaves it as it is",
    )
    eta: float = option(1.0, "of REBEL: how far log-ratios follow rewards")
    contrastive_batch_size: int = option(128, "profiles in an update of the embedder, each other's negatives")
    both_directions: bool = option(False, "items find their profiles too: half of the contrastive loss")
    sampling_batch_size: int = option(32, "profiles written at once for the embedder")
    unfrozen_layers: int = option(0, "without LoRA: train the last so many layers alone; 0 trains all")

    def check(self) -> None:
        """What can be known to be wrong without reading data or loading a model.

        Raises:
            ConfigurationError: Names the key.
        """
        super().check()
        if self.schema.sides != ("user",) or "profile" not in self.schema.sections or not self.independent:
            raise ConfigurationError("rlso needs sides: user, sections with profile, and independent: true")
        if self.rollouts == "server":
            raise ConfigurationError("rollouts must be shared_prefix or trl: rlso samples in its own process")
        for name, least in (("iterations", 1), ("sampling_batch_size", 1), ("contrastive_batch_size", 2)):
            if getattr(self, name) < least:
                raise ConfigurationError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if min(self.contrastive_updates, self.policy_updates) < 0 or not self.updates:
            raise ConfigurationError("contrastive_updates and policy_updates must not be negative, nor both 0")
        if self.first_interactions and self.history_limit < 1:
            raise ConfigurationError(f"first_interactions needs history_limit of at least 1, got {self.history_limit}")
        if self.embedder_pooling not in ("", "mean", "cls", "lasttoken"):
            raise ConfigurationError(f"embedder_pooling must be mean, cls or lasttoken, got {self.embedder_pooling!r}")
        if self.embedder == "trainable" or self.embedder.startswith(("http://", "https://")):
            raise ConfigurationError("embedder must be minilm, a folder or a hub's name: rlso trains it in its process")

    @property
    def updates(self) -> int:
        """Updates of an iteration, both phases together."""
        return self.contrastive_updates + self.policy_updates


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_training_arguments(parser, RLSOSettings, "GRPOConfig")


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit code."""
    settings, keys, argv = read(args, RLSOSettings)
    if not settings.data:
        raise ConfigurationError("data must name the directory that prepare wrote")
    check_recommender(settings)
    data = Prepared.open(settings.data)
    require_training()
    training_args, model_args = arguments(settings, keys, argv)
    train(settings, data, training_args, model_args)
    return 0


def arguments(settings: RLSOSettings, keys: dict[str, Any], argv: Sequence[str]) -> tuple[Any, Any]:
    """TRL's settings, checked.

    Args:
        settings: This project's own.
        keys: Of the YAML file, for TRL.
        argv: Options, for TRL.

    Raises:
        ConfigurationError: They do not hold.
    """
    from trl import GRPOConfig, ModelConfig

    from duet_train.embedding import check_embedder
    from duet_train.models import check_adapter, check_model
    from duet_train.rebel import check_rebel, updates_per_batch

    defaults = {
        "use_peft": True,
        "lora_dropout": 0.0,
        "disable_dropout": True,
        "logging_steps": 1,
        "report_to": "none",
        "num_generations": 2,
        "num_iterations": 4,
        "lr_scheduler_type": "constant",
        "adam_epsilon": 1e-6,
        "weight_decay": 0.01,
        # Checkpoints are written where a phase ends, and nowhere else.
        "save_strategy": "no",
    }
    training_args, model_args = trl_arguments(keys, argv, (GRPOConfig, ModelConfig), **defaults)
    if training_args.output_dir in (None, "trainer_output"):
        raise ConfigurationError("output_dir must name the run directory")
    if settings.unfrozen_layers and (model_args.use_peft or settings.adapter):
        raise ConfigurationError("unfrozen_layers is for use_peft: false without an adapter: LoRA trains none of them")
    if training_args.save_strategy != "no":
        raise ConfigurationError("save_strategy must be no: rlso writes a checkpoint after each phase")
    check_model(model_args)
    check_adapter(settings.adapter, model_args)
    check_embedder(settings.embedder)
    check_rebel(training_args)
    if settings.policy_updates % (cycle := updates_per_batch(training_args)):
        raise ConfigurationError(
            f"policy_updates must be a multiple of {cycle}, the updates made on one batch of completions; "
            f"got {settings.policy_updates}"
        )
    training_args.max_steps = max(1, settings.iterations * settings.policy_updates)
    training_args.remove_unused_columns = False
    return training_args, model_args


def train(settings: RLSOSettings, data: Prepared, training_args: Any, model_args: Any) -> None:
    """Train, or go on from the phase in which an earlier attempt was killed.

    Args:
        settings: This project's own.
        data: What prepare wrote.
        training_args: TRL's GRPOConfig.
        model_args: TRL's ModelConfig.
    """
    from transformers import set_seed

    from duet_train import rlso_phases as phases
    from duet_train.callbacks import CompleteCheckpoints, HeldOut, last_checkpoint, read_lines
    from duet_train.card import start_card, unsupported, write_adapter_card
    from duet_train.models import load_policy, load_tokenizer
    from duet_train.preflight import Preflight
    from duet_train.rebel import rebel_trainer, train_until
    from duet_train.rewards import TRLReward
    from duet_train.rollouts import SharedPrefixRollout
    from duet_train.trainers import save

    folder, seed = Path(training_args.output_dir), training_args.seed
    phases.check_same_run(folder, settings, training_args)
    settings = with_mode(settings, data, folder)
    tokenizer = load_tokenizer(model_args.model_name_or_path, model_args.model_revision)
    rows = phases.next_item_rows(data, settings, settings.split, settings.rows, tokenizer, training_args)
    other = "test" if settings.split == "validation" else "validation"
    held_out = phases.next_item_rows(data, settings, other, settings.held_out, tokenizer, training_args)
    if not rows:
        after = f" after a user's first {settings.history_limit} rows" if settings.first_interactions else ""
        raise ConfigurationError(
            f"{settings.data}: no row of {settings.split} has a new item{after} and a prompt that fits"
        )
    card = start_card(folder, "rlso", data, len(rows), settings, training_args, model_args)
    for sentence in unsupported():
        _say(f"check: {sentence}")
    embedder = _embedder(settings, training_args)

    def envs() -> Any:
        return open_envs(settings, data, embedder=embedder)

    def fresh_reward() -> TRLReward:
        # It keeps what it scored, which holds for the embedder of one phase.
        return TRLReward(
            envs,
            {row.id: row for row in rows},
            attempts=settings.reward_attempts,
            max_failed_share=settings.max_failed_share,
        )

    rollout = None if settings.rollouts == "trl" else SharedPrefixRollout()
    counts = settings.contrastive_updates, settings.policy_updates
    history = phases.PhaseHistory(folder, card.values["attempt"], *counts, rollout=rollout)
    measured = HeldOut(
        folder,
        card.values["attempt"],
        held_out,
        envs,
        tokenizer,
        card,
        steps=settings.updates,
        max_new_tokens=training_args.max_completion_length,
        chat_template_kwargs=training_args.chat_template_kwargs,
    )

    def measure(step: int) -> None:
        if not any(line["step"] == step for line in read_lines(folder / "held_out.jsonl")):
            measured.measure(SimpleNamespace(global_step=step, is_world_process_zero=True))

    model, peft_config = load_policy(model_args, training_args, settings.adapter)
    phases.unfreeze(model, settings.unfrozen_layers)
    trainer = rebel_trainer(
        eta=settings.eta,
        model=model,
        reward_funcs=fresh_reward().reward,
        args=training_args,
        train_dataset=columns(rows),
        processing_class=tokenizer,
        callbacks=[history, CompleteCheckpoints()],
        peft_config=peft_config,
        rollout_func=rollout,
    )
    measured.trainer = trainer

    contrasted, checkpoint = phases.last_embedder(folder), last_checkpoint(folder)
    if contrasted:
        embedder.load(folder / f"embedder-{contrasted}")
    if checkpoint:
        trainer._load_from_checkpoint(str(checkpoint))
    elif settings.policy_updates and not contrasted and settings.preflight != "off":
        # Two completions are often alike, so it takes more groups than elsewhere to tell that all are.
        check = Preflight(rows, envs, stop=settings.preflight == "stop", groups=16)
        check.trainer = trainer
        check.on_train_begin(training_args, trainer.state, trainer.control)
    learned = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    measure(contrasted * settings.contrastive_updates + learned)

    for iteration in range(settings.iterations):
        step = iteration * settings.updates
        if settings.contrastive_updates and contrasted <= iteration:
            set_seed(phases.phase_seed(seed, iteration))
            phases.contrast(trainer, tokenizer, embedder, rows, settings, history, step=step, seed=seed + iteration)
            phases.save_embedder(embedder, folder, iteration + 1)
            measure(step + settings.contrastive_updates)
        if learned < (until := (iteration + 1) * settings.policy_updates):
            reward = fresh_reward()
            history.watch(reward)
            trainer.reward_funcs = [reward.reward]
            if checkpoint is None:
                set_seed(seed)
            try:
                train_until(trainer, until, checkpoint)
            finally:
                asyncio.run_coroutine_threadsafe(reward.aclose(), trainer.async_loop).result()
            checkpoint = last_checkpoint(folder)
            measure(step + settings.updates)

    if settings.contrastive_updates:
        embedder.save(folder / "embedder")
    if settings.policy_updates:
        place = folder / ("adapter" if model_args.use_peft else "model")
        save(trainer, place)
        write_adapter_card(place, card)
    card.update(status="finished", finished=datetime.now(UTC).isoformat(timespec="seconds"))
    _say(f"finished: {folder}; a page of it: python -m duet_train report {folder}")


def _embedder(settings: RLSOSettings, training_args: Any) -> Any:
    """The embedder; but for its learning rate its AdamW is the policy's, since LangPTune has one for both."""
    from duet_train.embedding import TrainableEmbedder

    return TrainableEmbedder(
        settings.embedder,
        pooling=settings.embedder_pooling or None,  # type: ignore[arg-type]
        max_tokens=settings.embedder_max_tokens,
        learning_rate=settings.embedder_learning_rate,
        weight_decay=training_args.weight_decay,
        betas=(training_args.adam_beta1, training_args.adam_beta2),
        eps=training_args.adam_epsilon,
        temperature=settings.contrastive_temperature,
        both_directions=settings.both_directions,
    )


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
