"""REBEL: the policy learns by regressing differences of rewards on differences of log-ratios (LangPTune, RLSO)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from duet import ConfigurationError


def rebel_loss(log_ratios: Any, rewards: Any, eta: float = 1.0) -> Any:
    """The squared error of ``Δa − Δb`` against ``η (R(a) − R(b))``, where Δ is log π − log π_old of a whole completion.

    Args:
        log_ratios: (pairs, 2), sums over the tokens of a completion, in nats.
        rewards: (pairs, 2), nan where a completion has none: such a pair teaches nothing.
        eta: η; larger steps the larger it is.

    Returns:
        A scalar: the sum over pairs that have both rewards, divided by the number of all pairs, so that it does not
        matter how a batch is cut into smaller ones.
    """
    difference = rewards[:, 0] - rewards[:, 1]
    error = log_ratios[:, 0] - log_ratios[:, 1] - eta * difference.nan_to_num()
    return (error.square() * ~difference.isnan()).mean()


def whiten(rewards: Any) -> Any:
    """Rewards with mean 0 and standard deviation 1 over those that are there; equal ones are all 0.

    Args:
        rewards: Any shape, nan where there is none; nan stays.
    """
    known = rewards[~rewards.isnan()]
    if known.numel() < 2:
        return rewards * 0
    return (rewards - known.mean()) / (known.std() + 1e-8)


def check_rebel(training_args: Any) -> None:
    """What can be known to be wrong with TRL's settings before a model is loaded.

    Args:
        training_args: A GRPOConfig.

    Raises:
        ConfigurationError: Names the key.
    """
    args = training_args
    if args.num_generations != 2:
        raise ConfigurationError(f"num_generations must be 2, as REBEL compares pairs; got {args.num_generations}")
    if args.per_device_train_batch_size % 2:
        raise ConfigurationError(
            f"per_device_train_batch_size must be even, so that no pair is torn; got {args.per_device_train_batch_size}"
        )
    if args.use_vllm or args.world_size > 1:
        raise ConfigurationError("rlso runs in one process and samples in it: use_vllm false, no accelerate launch")


def updates_per_batch(training_args: Any) -> int:
    """Updates made on one batch of fresh completions.

    Args:
        training_args: A GRPOConfig.

    Raises:
        ConfigurationError: It is no whole number.
    """
    passes = training_args.steps_per_generation * training_args.num_iterations
    updates, rest = divmod(passes, training_args.gradient_accumulation_steps)
    if rest or not updates:
        raise ConfigurationError(
            "steps_per_generation × num_iterations must be a multiple of gradient_accumulation_steps, got "
            f"{training_args.steps_per_generation} × {training_args.num_iterations} "
            f"and {training_args.gradient_accumulation_steps}"
        )
    return int(updates)


def rebel_trainer(*, eta: float = 1.0, **options: Any) -> Any:
    """A GRPOTrainer of TRL whose loss is REBEL's; everything else is TRL's.

    The reward of a completion is that of the reward function, 0 where the completion has no end token, less ``beta``
    times log π_old − log π_ref of the whole completion, whitened over the batch of completions. Pairs stay whole: to
    TRL's shuffle and to its cutting a pair is one row.

    Args:
        eta: As for `rebel_loss`.
        **options: Of a GRPOTrainer, with one reward function.
    """
    import torch
    from trl import GRPOTrainer

    from duet_train.trainers import quiet

    class RebelTrainer(GRPOTrainer):  # type: ignore[misc]
        def _calculate_rewards(
            self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Sequence[Sequence[int]]
        ) -> Any:
            rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
            endless = [ids[-1] not in self.eos_token_ids for ids in completion_ids_list]
            rewards[torch.tensor(endless, device=rewards.device)] = 0.0
            self._earned = rewards.sum(dim=1)
            return rewards

        def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
            made = super()._generate_and_score_completions(inputs)
            made.setdefault("old_per_token_logps", None)
            if made["old_per_token_logps"] is None:
                with torch.no_grad():
                    made["old_per_token_logps"], _ = self._logps(self.model, made)
            rewards, mask = self._earned, made["completion_mask"]
            if self.beta:
                drift = ((made["old_per_token_logps"] - made["ref_per_token_logps"]) * mask).sum(dim=1)
                rewards = rewards - self.beta * drift
                self._metrics["train"]["kl"].append((drift.sum() / mask.sum()).item())
            made["rewards"] = whiten(rewards)
            return {name: _paired(value) for name, value in made.items() if value is not None}

        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
            rows = {name: value.flatten(0, 1) for name, value in inputs.items() if value.ndim > 1}
            mask = rows["completion_mask"]
            logps, entropies = self._logps(model, rows)
            log_ratios = ((logps - rows["old_per_token_logps"]) * mask).sum(dim=1)
            self._metrics["train"]["entropy"].append(((entropies * mask).sum() / mask.sum()).item())
            loss = rebel_loss(log_ratios.view(-1, 2), inputs["rewards"], eta)
            return loss / self.current_gradient_accumulation_steps

        def _logps(self, model: Any, rows: dict[str, Any]) -> tuple[Any, Any]:
            """Log-probabilities and entropies of the completions' tokens."""
            logps, entropies, _ = self._get_per_token_logps_and_entropies(
                model,
                torch.cat([rows["prompt_ids"], rows["completion_ids"]], dim=1),
                torch.cat([rows["prompt_mask"], rows["completion_mask"]], dim=1),
                rows["completion_ids"].size(1),
                batch_size=self.args.per_device_train_batch_size,
                compute_entropy=True,
            )
            return logps, entropies

    return quiet(RebelTrainer)(**options)


def _paired(value: Any) -> Any:
    """Completions to pairs along the first dimension; a number stays."""
    return value.unflatten(0, (-1, 2)) if value.ndim else value


def train_until(trainer: Any, step: int, checkpoint: Path | None) -> None:
    """Updates up to a step, and a checkpoint there.

    Every call goes on from a checkpoint, within a process as after a crash, so both give the same.

    Args:
        trainer: Of `rebel_trainer`; its schedule spans the updates of the whole run.
        step: Number of updates since the run's start.
        checkpoint: Where to go on from; None at the start.
    """
    from transformers import TrainerCallback

    class StopAt(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step >= step:
                control.should_save = control.should_training_stop = True

    # A trainer keeps its optimizer and completions: what is loaded must go into new ones, as in a new process.
    trainer.optimizer = trainer.lr_scheduler = trainer._buffered_inputs = None
    trainer._step = 0
    callback = StopAt()
    trainer.add_callback(callback)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        trainer.remove_callback(callback)
