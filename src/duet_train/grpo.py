"""``python -m duet_train grpo``: the policy writes, a frozen recommender reads, and what helped it is reinforced.

DUET's third stage: joint generation, advantages within groups, and the rating error of the recommender as reward
(DUET, "Reward" and section 1.4 of its released settings; GRPO by TRL).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from duet import ConfigurationError, DuetError
from duet_train.data.prepared import Prepared
from duet_train.dataset import Row, columns, held_out_rows, training_rows, within
from duet_train.recommenders import MINILM, TRAINABLE, check_recommender, key, open_envs, with_mode
from duet_train.settings import Settings, add_training_arguments, read, require_training, trl_arguments

T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_training_arguments(parser, Settings, "GRPOConfig")


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit code."""
    settings, keys, argv = read(args, Settings)
    if not settings.data:
        raise ConfigurationError("data must name the directory that prepare wrote")
    check_recommender(settings)
    data = Prepared.open(settings.data)
    require_training()
    training_args, model_args = arguments(settings, keys, argv)
    train(settings, data, training_args, model_args)
    return 0


def arguments(settings: Settings, keys: dict[str, Any], argv: list[str]) -> tuple[Any, Any]:
    """TRL's settings, checked.

    Args:
        settings: This project's own.
        keys: Of the YAML file, for TRL.
        argv: Options, for TRL.

    Raises:
        ConfigurationError: They do not hold, or a run could not be resumed with them.
    """
    from trl import GRPOConfig, ModelConfig

    from duet_train.models import check_adapter, check_model
    from duet_train.preflight import check_cycle, check_groups
    from duet_train.server_rollouts import check_arguments

    served = settings.rollouts == "server"
    defaults = {"use_peft": True, "lora_dropout": 0.0, "logging_steps": 1, "report_to": "none", "save_steps": 50}
    if served:
        # TRL's own mode leaves out a whole completion where rounding adds up over its tokens.
        defaults["vllm_importance_sampling_mode"] = "token_truncate"
    training_args, model_args = trl_arguments(keys, argv, (GRPOConfig, ModelConfig), **defaults)
    if training_args.output_dir in (None, "trainer_output"):
        raise ConfigurationError("output_dir must name the run directory")
    if settings.rollouts != "trl" and training_args.use_vllm:
        raise ConfigurationError("use_vllm is for rollouts: trl; a vLLM server over HTTP is rollouts: server")
    if served:
        check_arguments(training_args, use_peft=model_args.use_peft)
    check_model(model_args)
    check_adapter(settings.adapter, model_args)
    check_cycle(training_args)
    check_groups(settings, training_args)
    training_args.remove_unused_columns = False
    return training_args, model_args


def train(settings: Settings, data: Prepared, training_args: Any, model_args: Any) -> None:
    """Train, or go on where an earlier attempt was killed.

    Args:
        settings: This project's own.
        data: What prepare wrote.
        training_args: TRL's GRPOConfig.
        model_args: TRL's ModelConfig.
    """
    from duet_train.callbacks import CompleteCheckpoints, HeldOut, History, last_checkpoint
    from duet_train.card import start_card, unsupported, write_adapter_card
    from duet_train.models import load_policy, load_tokenizer, prompt_ids
    from duet_train.preflight import Preflight
    from duet_train.rewards import TRLReward
    from duet_train.trainers import save, train_to_the_end

    folder = Path(training_args.output_dir)
    main = training_args.process_index == 0
    settings = agreed(lambda: with_mode(settings, data, folder), main)
    tokenizer = load_tokenizer(model_args.model_name_or_path, model_args.model_revision)
    template = training_args.chat_template_kwargs

    def fitting(rows: list[Row], what: str) -> list[Row]:
        lengths = [len(prompt_ids(tokenizer, row.messages, template)) for row in rows]
        kept = within(rows, lengths, settings.max_prompt_length)
        if len(kept) < len(rows) and main:
            over = f"prompts over {settings.max_prompt_length} tokens"
            _say(f"{len(rows) - len(kept)} of {len(rows)} {what} rows left out: {over}")
        return kept

    rows = fitting(training_rows(data, settings, seed=training_args.seed), "training")
    held_out = held_out_rows(data, settings, seed=training_args.seed)
    held_out = fitting(held_out, "held-out") if held_out else []
    card = start_card(folder, "grpo", data, len(rows), settings, training_args, model_args)
    if main:
        for sentence in unsupported():
            _say(f"check: {sentence}")

    embedder, updates = _embedder(settings, folder)

    def envs() -> Any:
        return open_envs(settings, data, embedder=embedder)

    reward = TRLReward(
        envs,
        {row.id: row for row in rows},
        attempts=settings.reward_attempts,
        max_failed_share=settings.max_failed_share,
        cached=embedder is None,
    )
    # Normalised one by one and then summed, as BLUE's, terms are functions of their own to TRL.
    apart = training_args.multi_objective_aggregation == "normalize_then_sum"
    reward_funcs = reward.functions(list(settings.terms)) if apart else [reward.reward]
    training_args.reward_weights = [*settings.terms.values(), 1.0] if apart else [1.0]
    rollout = _rollout(settings, training_args)
    history = History(folder, card.values["attempt"], reward=reward, rollout=rollout)
    measured = HeldOut(
        folder,
        card.values["attempt"],
        held_out,
        envs,
        tokenizer,
        card,
        steps=settings.held_out_steps,
        max_new_tokens=training_args.max_completion_length,
        chat_template_kwargs=template,
    )
    server = rollout if settings.rollouts == "server" else None
    check = Preflight(rows, envs, stop=settings.preflight == "stop", server=server)
    callbacks: list[Any] = [*updates, history, measured, CompleteCheckpoints()]
    if settings.preflight != "off":
        callbacks.insert(0, check)
    model, peft_config = load_policy(model_args, training_args, settings.adapter)
    trainer = _trainer_class(settings)(
        model=model,
        reward_funcs=reward_funcs,
        args=training_args,
        train_dataset=columns(rows),
        processing_class=tokenizer,
        callbacks=callbacks,
        peft_config=peft_config,
        rollout_func=rollout,
    )
    check.trainer = measured.trainer = trainer
    for update in updates:
        update.reward = reward
    try:
        train_to_the_end(trainer, last_checkpoint(folder))
    except BaseException:
        if main:
            card.update(status="aborted")
        raise
    finally:
        asyncio.run_coroutine_threadsafe(reward.aclose(), trainer.async_loop).result()
        if server is not None:
            server.close()
    save(trainer, folder / ("adapter" if model_args.use_peft else "model"))
    if main:
        card.update(status="finished", finished=_now(), steps=trainer.state.global_step)
        write_adapter_card(folder / ("adapter" if model_args.use_peft else "model"), card)
        _say(f"finished: {folder}; a page of it: python -m duet_train report {folder}")


def agreed(found: Callable[[], T], main: bool) -> T:
    """What the main process finds, in all processes; what it raises, too.

    Args:
        found: Called in the main process alone.
        main: Whether this is the one.
    """
    from accelerate.utils import broadcast_object_list

    told: list[Any] = [None]
    if main:
        try:
            told = [found()]
        except DuetError as exc:
            told = [exc]
    broadcast_object_list(told)
    if isinstance(told[0], DuetError):
        raise told[0]
    value: T = told[0]
    return value


def _embedder(settings: Settings, folder: Path) -> tuple[Any, list[Any]]:
    """An embedder that learns beside the policy, and what makes it learn; neither unless it is asked for."""
    kind, _, name = settings.embedder.partition(":")
    if kind != TRAINABLE:
        return None, []
    from duet_train.embedder_updates import EmbedderUpdates
    from duet_train.embedding import TrainableEmbedder

    embedder = TrainableEmbedder(
        name or MINILM,
        learning_rate=settings.embedder_learning_rate,
        temperature=settings.contrastive_temperature,
        both_directions=True,
    )
    return embedder, [EmbedderUpdates(embedder, folder)]


def _rollout(settings: Settings, training_args: Any) -> Any:
    if settings.rollouts == "trl":
        return None
    if settings.rollouts == "server":
        from duet_train.server_rollouts import ServerRollout

        folder = Path(training_args.output_dir)
        return ServerRollout(settings.server, settings.server_model, folder / "served", api_key=key(settings))
    from duet_train.rollouts import SharedPrefixRollout

    return SharedPrefixRollout()


def _trainer_class(settings: Settings) -> Any:
    from trl import GRPOTrainer

    from duet_train.trainers import quiet

    if settings.rollouts == "server":
        from duet_train.server_rollouts import server_trainer_class

        return quiet(server_trainer_class())
    return quiet(GRPOTrainer)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
