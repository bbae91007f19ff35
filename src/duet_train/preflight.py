"""What can be seen to go wrong before the first step, in plain words."""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback

from duet import ConfigurationError, EndpointError, Reward
from duet_train.dataset import Row
from duet_train.precision import sampling_arithmetic
from duet_train.recommenders import IN_BATCH, TRAINABLE
from duet_train.rewards import OpenEnvs, TRLReward, malformed
from duet_train.settings import Settings

FLAT = 1e-6


class Preflight(TrainerCallback):  # type: ignore[misc]
    """Samples a group for a few rows when a run starts, scores them, and says what they foretell.

    Random numbers drawn here are given back, so that a run is the same with and without it.

    Args:
        rows: Of which the first are sampled.
        open_envs: Opens the way to the env of each schema.
        stop: Whether a fatal finding ends the run; else it is only said.
        server: The rollout whose server is to be looked at; None where the policy samples in this process.
        groups: How many rows are sampled.
    """

    def __init__(
        self, rows: Sequence[Row], open_envs: OpenEnvs, *, stop: bool, server: Any = None, groups: int = 4
    ) -> None:
        self._all, self._rows = rows, list(rows[:groups])
        self._server = server
        self._open_envs = open_envs
        self._stop = stop
        self.trainer: Any = None
        """Set when there is one."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check, unless the run only goes on."""
        if self._server is not None:
            self._look_at_server(args)
        if state.global_step:
            return
        with _same_chance():
            texts = self._sample(args.num_generations)
        ids = [row.id for row in self._rows for _ in range(args.num_generations)]
        rewards = asyncio.run(self._score(texts, ids))
        found = findings(rewards, args.num_generations)
        fatal, sentences = (gather_object([part])[0] for part in found)
        self._tell(sentences if state.is_world_process_zero else [], sentences[0] if fatal else "")

    def _tell(self, sentences: Sequence[str], fatal: str) -> None:
        for sentence in sentences:
            print(f"check: {sentence}", file=sys.stderr, flush=True)
        if fatal and self._stop:
            raise ConfigurationError(f"{fatal} (--preflight warn goes on all the same)")

    def _look_at_server(self, args: Any) -> None:
        from duet_train.server_check import check_server

        longest = max(len(ids) for ids in self.trainer._tokenize_prompts([list(row.messages) for row in self._all])[0])
        found = check_server(self._server, self.trainer, max_prompt_length=longest)
        self._tell(
            (*found.problems, *found.warnings) if args.process_index == 0 else (), next(iter(found.problems), "")
        )

    def _sample(self, generations: int) -> list[str]:
        trainer = self.trainer
        seen = trainer.state.num_input_tokens_seen
        trainer.model.train()
        prompts = [list(row.messages) for row in self._rows for _ in range(generations)]
        with sampling_arithmetic(trainer):
            completions = trainer._generate(prompts)[3]
        trainer._metrics["train"].clear()
        trainer.state.num_input_tokens_seen = seen
        return [completion[-1]["content"] for completion in completions]

    async def _score(self, texts: Sequence[str], ids: Sequence[int]) -> list[Reward]:
        reward = TRLReward(self._open_envs, {row.id: row for row in self._rows})
        try:
            return await reward.score(texts, ids)
        finally:
            await reward.aclose()


def findings(rewards: Sequence[Reward], group: int) -> tuple[bool, list[str]]:
    """Whether training is bound to fail, and what a sample of rewards foretells, the gravest first.

    Args:
        rewards: Of whole groups, one after the other.
        group: Completions of each.
    """
    failed = [reward for reward in rewards if reward.value is None]
    if len(failed) == len(rewards):
        error = failed[0].error
        asked = ": is the recommender up?" if isinstance(error, EndpointError) else ""
        return True, [f"no reward has a value ({type(error).__name__}: {error}){asked}"]
    parsed = [reward for reward in rewards if not malformed(reward)]
    if not parsed:
        return True, [
            f"none of {len(rewards)} completions is a profile, so every reward is the same and nothing can be learnt: "
            "warm-start with `python -m duet_train sft --teacher template`, and give its adapter as --adapter"
        ]
    sentences = []
    spreads = [_spread(rewards[start : start + group]) for start in range(0, len(rewards), group)]
    flat = sum(spread < FLAT for spread in spreads)
    if flat == len(spreads):
        sentences.append(
            f"in all {flat} sampled groups the rewards are equal, so nothing can be learnt from them: raise the "
            "temperature, or take a recommender whose answer depends on the profile (--recommender_mode expected)"
        )
    elif flat:
        sentences.append(f"in {flat} of {len(spreads)} sampled groups all rewards are equal: these teach nothing")
    if len(parsed) < len(rewards) / 2:
        sentences.append(f"only {len(parsed)} of {len(rewards)} completions are profiles: warm-start by sft")
    if failed:
        sentences.append(f"{len(failed)} of {len(rewards)} rewards have no value ({type(failed[0].error).__name__})")
    return flat == len(spreads), sentences


def _spread(group: Sequence[Reward]) -> float:
    values = [reward.value for reward in group if reward.value is not None]
    return statistics.pstdev(values) if values else 0.0


@contextmanager
def _same_chance() -> Iterator[None]:
    import numpy as np
    import torch

    python, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(numbers)


def check_groups(settings: Settings, training_args: Any) -> None:
    """Equal completions of one group must earn the same, whichever process scores them.

    Each process scores its own completions, so what a reward is compared with has to lie there.

    Args:
        settings: With rewards and embedder.
        training_args: TRL's GRPOConfig.

    Raises:
        ConfigurationError: A term compares completions within the batch, and groups span processes; or each process
            would train an embedder of its own.
    """
    if training_args.world_size == 1:
        return
    if settings.embedder.partition(":")[0] == TRAINABLE:
        raise ConfigurationError(
            "embedder: trainable needs one process, as each would train another embedder and reward by it: "
            "take a frozen one (minilm, or URL,MODEL), or leave out accelerate launch"
        )
    each, steps = training_args.per_device_train_batch_size, training_args.steps_per_generation
    group = training_args.num_generations
    for term in sorted(settings.terms.keys() & IN_BATCH) if each * steps % group else ():
        raise ConfigurationError(
            f"rewards: {term} compares the completions of one process, so each process must hold whole groups: "
            f"per_device_train_batch_size × steps_per_generation must be a multiple of num_generations = {group}, "
            f"got {each} × {steps}"
        )


def check_cycle(training_args: Any) -> None:
    """Checkpoints must lie between two batches of rollouts: one saved within cannot go on where it was.

    Args:
        training_args: TRL's GRPOConfig.

    Raises:
        ConfigurationError: They do not.
    """
    steps = training_args.steps_per_generation * training_args.num_iterations
    cycle = max(1, -(-steps // training_args.gradient_accumulation_steps))
    if training_args.save_strategy != "steps":
        raise ConfigurationError("save_strategy must be steps: a run that is killed goes on from its last checkpoint")
    if training_args.save_steps % cycle or training_args.save_steps < 1:
        raise ConfigurationError(
            f"save_steps must be a multiple of {cycle}, the steps that one batch of rollouts is used for, "
            f"got {training_args.save_steps:g}: a checkpoint within it could not go on where it was"
        )
    if steps % training_args.gradient_accumulation_steps:
        raise ConfigurationError(
            "steps_per_generation times num_iterations must be a multiple of gradient_accumulation_steps: "
            "an optimizer step would mix two batches of rollouts, and a resumed run could not repeat it"
        )
    if training_args.save_only_model or training_args.ignore_data_skip:
        raise ConfigurationError("save_only_model and ignore_data_skip must be false: a resumed run needs both")
