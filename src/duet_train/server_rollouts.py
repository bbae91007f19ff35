"""Completions sampled by a vLLM server over HTTP, the policy's adapter swapped in each step; no vllm, no NCCL here.

One server can be recommender and policy at once: it answers to the base model's name and to the adapter's.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from duet import ConfigurationError, DuetError, EndpointRejected
from duet_train.server_adapters import (
    AdapterVersions,
    adapter_weights,
    check_lora,
    log,
    on_main,
    write_adapter,
)
from duet_train.server_client import VLLMServer

DIFFERENCE = "duet/server/logp_difference"
"""The metric: mean |log-probability of the trainer − of the server| over a step's completion tokens, in nats."""

_TRL_DIFFERENCE = "sampling/sampling_logp_difference/mean"


class StaleAdapter(DuetError):
    """The server does not serve the policy that is trained."""


class ServerRollout:
    """Samples from a vLLM server that loads adapters while it runs: a GRPOTrainer's `rollout_func`.

    With `server_trainer_class` the difference between server and trainer is corrected and watched; TRL's own trainer
    samples all the same, without either.

    With several processes each asks for its own rows, and the first publishes the adapter for all.

    Args:
        base_url: The server's address up to and including the version, as in "http://127.0.0.1:8000/v1".
        base_model: The name it serves the base model under.
        adapter_dir: Where versions of the adapter are written for the server to read, one at a time.
        api_key: Sent as a bearer token; never shown.
        run_name: The first part of the versions' names.
        concurrency: Most requests of this process under way; a request samples all completions of a prompt.
        max_logp_difference: Where the alarm is, in nats (see `DIFFERENCE`). With a server in bfloat16 it stayed below
            0.06; with an adapter that was not swapped it was 0.13 to 0.6 after four steps (docs, "Lab note").
        patience: So many steps over the limit in a row end the run.
        timeout: Seconds for one request.
        attempts: How often a request is sent that the server could not answer.
        folder_on_server: `adapter_dir` as the server sees it, where that differs (a container).

    Attributes:
        seconds: Wall time of the last call.
        adapter: Name of the version that is served; "" before the first.

    Raises:
        ConfigurationError: A name, an address or a number cannot be right.
    """

    def __init__(
        self,
        base_url: str,
        base_model: str,
        adapter_dir: Path | str,
        *,
        api_key: str | None = None,
        run_name: str = "policy",
        concurrency: int = 32,
        max_logp_difference: float = 0.15,
        patience: int = 3,
        timeout: float = 600.0,
        attempts: int = 5,
        folder_on_server: str | None = None,
    ) -> None:
        for name, value in (("concurrency", concurrency), ("patience", patience), ("attempts", attempts)):
            if value < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {value}")
        if not max_logp_difference > 0 or not timeout > 0:
            raise ConfigurationError("max_logp_difference and timeout must be above 0")
        self.server = VLLMServer(base_url, api_key=api_key, timeout=timeout, attempts=attempts)
        self.base_model = base_model
        self.max_logp_difference = max_logp_difference
        self.seconds = 0.0
        self.adapter = ""
        self._versions = AdapterVersions(self.server, Path(adapter_dir), run_name, folder_on_server=folder_on_server)
        self._concurrency, self._patience = concurrency, patience
        self._step: int | None = None
        self._calls: dict[tuple[int, bool], int] = {}
        self._over = 0

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        """Sample one completion for each prompt from the policy as it is now.

        Args:
            prompts: Chat messages or texts, repeated as often as each needs completions.
            trainer: A GRPOTrainer.

        Returns:
            `prompt_ids` and `completion_ids` as lists of token ids, and `logprobs`, those of the sampled tokens.

        Raises:
            EndpointError: The server is gone or refuses.
        """
        started = time.perf_counter()
        model = self.publish(trainer)
        groups = [(prompt, len(list(same))) for prompt, same in itertools.groupby(prompts)]
        ids = trainer._tokenize_prompts([prompt for prompt, _ in groups])[0]
        seeds = self._seeds(trainer)
        requests = [
            {"model": model, "prompt": list(tokens), "n": count, "seed": next(seeds), **sampling_fields(trainer)}
            for tokens, (_, count) in zip(ids, groups, strict=True)
        ]
        answers = self.server.post_all("completions", requests, concurrency=self._concurrency)
        rows = [
            (list(tokens), *choice)
            for tokens, (_, count), answer in zip(ids, groups, answers, strict=True)
            for choice in _choices(answer, count)
        ]
        prompt_ids, completion_ids, logprobs = map(list, zip(*rows, strict=True))
        self.seconds = time.perf_counter() - started
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": logprobs}

    def publish(self, trainer: Any) -> str:
        """Have the server serve the policy of the trainer's step, once a step; every process has to call it.

        Args:
            trainer: A GRPOTrainer with a LoRA.

        Returns:
            The name to ask the server for.

        Raises:
            EndpointError: The server is gone or refuses the adapter.
            ConfigurationError: The trainer has no LoRA, or one that vLLM cannot serve.
        """
        step = int(trainer.state.global_step)
        if step == self._step:
            return self.adapter
        model = trainer.accelerator.unwrap_model(trainer.model)
        check_lora(getattr(model, "peft_config", {}).get("default"))
        weights = adapter_weights(trainer)
        self.adapter = on_main(trainer, lambda: self._publish(trainer, weights, step))
        self._step = step
        return self.adapter

    def _publish(self, trainer: Any, weights: dict[str, Any], step: int) -> str:
        return self._versions.publish(lambda folder: write_adapter(trainer, weights, folder), step)

    def sync_weights(self) -> None:
        """Nothing: TRL's name for what `publish` does when it samples."""

    def watch(self, difference: float, step: int) -> None:
        """Warn of a step whose log-probabilities differ too much, and end the run when it does not pass.

        Args:
            difference: See `DIFFERENCE`.
            step: Its number in the log, one above the adapter's version.

        Raises:
            StaleAdapter: `patience` steps in a row were over the limit.
        """
        if difference <= self.max_logp_difference:
            self._over = 0
            return
        self._over += 1
        text = (
            f"step {step}: the server does not serve the adapter of this step: its log-probabilities and the trainer's "
            f"differ by {difference:.3f} nat on average, and {self.max_logp_difference:g} is the limit (adapter "
            f"{self.adapter}). Does something before the server cache or route, or is its base model another one or "
            "quantised? At a temperature other than 1 it has to run with --logprobs-mode processed_logprobs"
        )
        if self._over >= self._patience:
            raise StaleAdapter(f"{text}. This is step {self._over} in a row")
        if self._over == 1:
            log.warning("%s. The run stops after %d such steps in a row", text, self._patience)

    def close(self) -> None:
        """Have the server drop the adapter; only where this process published it."""
        self._versions.close()

    def _seeds(self, trainer: Any) -> Iterator[int]:
        """One a request, never the same twice in a run: vLLM adds the completion's place to it."""
        key = (int(trainer.state.global_step), bool(trainer.model.training))
        call = self._calls[key] = self._calls.get(key, 0) + 1
        for place in itertools.count():
            text = repr((trainer.args.seed, *key, call, trainer.accelerator.process_index, place))
            yield int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


def sampling_fields(trainer: Any) -> dict[str, Any]:
    """The request's fields beside model and prompt. What is not sent, the server takes from the model's own defaults.

    Args:
        trainer: A GRPOTrainer.
    """
    return {
        "max_tokens": trainer.max_completion_length,
        "temperature": trainer.temperature,
        "top_p": trainer.top_p,
        "top_k": trainer.top_k or 0,
        "min_p": trainer.min_p or 0.0,
        "repetition_penalty": trainer.repetition_penalty,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": sorted(trainer.eos_token_ids),
        "logprobs": 0,
        "return_token_ids": True,
    }


def _choices(answer: Any, count: int) -> list[tuple[list[int], list[float]]]:
    """Tokens and log-probabilities of each completion."""
    choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
    rows = [
        (choice.get("token_ids") or [], (choice.get("logprobs") or {}).get("token_logprobs") or [])
        for choice in choices
    ]
    if len(rows) != count or not all(0 < len(tokens) == len(logps) for tokens, logps in rows):
        raise EndpointRejected(
            f"the server's answer lacks completions, their token ids or log-probabilities ({count} were asked for): "
            "rollouts need a vLLM that knows return_token_ids"
        )
    return [(tokens, [math.nan if logp is None else logp for logp in logps]) for tokens, logps in rows]


def check_arguments(args: Any, *, use_peft: bool = True) -> None:
    """That TRL's arguments go together with sampling from a server.

    Args:
        args: A GRPOConfig.
        use_peft: Whether a LoRA is trained, and not all weights.

    Raises:
        ConfigurationError: Names the argument.
    """
    if not use_peft:
        check_lora(None)
    if args.use_vllm:
        raise ConfigurationError(
            "use_vllm lets TRL sample from vLLM its own way: leave it off with rollouts from a server"
        )
    if not args.vllm_importance_sampling_correction:
        raise ConfigurationError(
            "vllm_importance_sampling_correction has to be on with rollouts from a server: it is what notices that an "
            "adapter was not swapped"
        )
    if args.generation_kwargs:
        raise ConfigurationError("generation_kwargs are not sent to a server: use temperature, top_p, top_k and min_p")


def server_trainer_class(base: type[Any] | None = None) -> type[Any]:
    """A GRPOTrainer that corrects for the server's log-probabilities, and raises the alarm where they are far off.

    TRL weighs each token by the ratio of the trainer's probability to the sampler's, as
    `vllm_importance_sampling_mode` says, but only where vLLM samples under its own control. This trainer has it do so
    with a `ServerRollout` too. Where the trainer's and the server's arithmetic differ, as bfloat16 and float32 do,
    "token_truncate" is the mode to take: the ratio of a whole completion is a product of hundreds.

    Args:
        base: What to build on; TRL's GRPOTrainer by default.

    Returns:
        A class; its `rollout_func` has to be a `ServerRollout`. Making one raises ConfigurationError, before a model is
        loaded, where there is no LoRA that vLLM can serve.
    """
    if base is None:
        from trl.trainer.grpo_trainer import GRPOTrainer

        base = GRPOTrainer
    parent: Any = base

    class ServerGRPOTrainer(parent):  # type: ignore[misc]
        def __init__(self, model: Any, *positional: Any, rollout_func: ServerRollout, **named: Any) -> None:
            peft_config = named.get("peft_config") or getattr(model, "peft_config", {}).get("default")
            check_lora(peft_config)
            if (args := named.get("args")) is not None:
                check_arguments(args)
            super().__init__(model, *positional, rollout_func=rollout_func, **named)
            # What TRL asks before it corrects, and before a rollout function of vLLM's samples.
            self.use_vllm, self.vllm_generation, self._last_loaded_step = True, rollout_func, -1

        def _generate_and_score_completions(self, inputs: Sequence[Any]) -> Any:
            output = super()._generate_and_score_completions(inputs)
            metrics = self._metrics["train" if self.model.training else "eval"]
            difference = metrics[_TRL_DIFFERENCE][-1]
            metrics[DIFFERENCE].append(difference)
            if self.model.training:
                self.rollout_func.watch(difference, self.state.global_step + 1)
            return output

    return ServerGRPOTrainer
