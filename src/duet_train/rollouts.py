"""Completions sampled inside this process, with every distinct prompt read once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs

from duet import ConfigurationError

Ids = list[int]


@attrs.define(kw_only=True)
class SharedPrefixRollout:
    """TRL's own sampling, less the repeated work: a group's prompt runs through the model once, not once a completion.

    GRPO draws several completions of one prompt. TRL reads the prompt anew for each of them. Here the distinct prompts
    of a batch are read once, their keys and values are copied to the rows, and transformers samples on from there. In
    float32 and without dropout the completions are those of TRL at the same seed. Pass an instance to a GRPOTrainer as
    `rollout_func`.

    Dropout is off while it samples, which TRL leaves on.

    Args:
        chunk: Rows decoded at once, to bound the memory of keys and values; all of a batch by default, as TRL does.
            Best a multiple of the completions a prompt. The random numbers then fall otherwise than in TRL.

    Attributes:
        seconds: Wall time of the last call.

    Raises:
        ConfigurationError: `chunk` is below 1.
    """

    chunk: int | None = None
    seconds: float = attrs.field(default=0.0, init=False)

    def __attrs_post_init__(self) -> None:
        if self.chunk is not None and self.chunk < 1:
            raise ConfigurationError(f"chunk must be at least 1, not {self.chunk}")

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        """Sample one completion for each prompt.

        Args:
            prompts: Chat messages or texts, each repeated as often as it needs completions, in any order.
            trainer: A GRPOTrainer that generates with transformers.

        Returns:
            `prompt_ids` and `completion_ids` as lists of token ids, and `logprobs`, which is None: TRL computes them.

        Raises:
            ConfigurationError: The trainer generates in a way that takes no filled cache.
        """
        _check(trainer)
        started = time.perf_counter()
        prompt_ids, _, _ = trainer._tokenize_prompts(prompts)
        rows = self.chunk or len(prompt_ids)
        completion_ids: list[Ids] = []
        with _generating(trainer) as model:
            for start in range(0, len(prompt_ids), rows):
                completion_ids += _complete(model, prompt_ids[start : start + rows], trainer)
        self.seconds = time.perf_counter() - started
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}


def _check(trainer: Any) -> None:
    """Refuse what would be ignored or fail in the middle of a run."""
    if trainer.use_vllm or trainer.use_transformers_continuous_batching:
        raise ConfigurationError("shared-prefix rollouts: neither use_vllm nor use_transformers_continuous_batching")
    if trainer.generation_config.cache_implementation is not None:
        raise ConfigurationError("shared-prefix rollouts take no cache_implementation")
    if trainer._is_vlm:
        raise ConfigurationError("shared-prefix rollouts are for models of text alone")


@contextmanager
def _generating(trainer: Any) -> Iterator[Any]:
    """The bare model, whole and without dropout, gradients or checkpointing; afterwards as it was."""
    import torch
    from trl.models.utils import unwrap_model_for_generation

    args = trainer.args
    with (
        unwrap_model_for_generation(
            trainer.model_wrapped,
            trainer.accelerator,
            gather_deepspeed3_params=args.ds3_gather_for_generation,
            generation_kwargs=trainer.generation_kwargs,
            gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,
        ) as model,
        torch.no_grad(),
        trainer._dist.summon_full_params(trainer.model_wrapped, recurse=False),
        _without_dropout(model),
    ):
        yield model


@contextmanager
def _without_dropout(model: Any) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _complete(model: Any, prompts: Sequence[Ids], trainer: Any) -> list[Ids]:
    """One completion a row, cut after its first end token."""
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    place = {ids: index for index, ids in enumerate(distinct)}
    device = trainer.accelerator.device
    ids, mask = _left_padded(distinct, trainer.generation_config.pad_token_id, device)
    cache = _read(model, ids[:, :-1], mask[:, :-1])
    rows = ids.new_tensor([place[tuple(prompt)] for prompt in prompts])
    if cache is not None:
        cache.batch_select_indices(rows)
    # All ids go in: the penalty of repetition looks at them, and transformers itself finds what the cache has.
    made = model.generate(
        input_ids=ids[rows],
        attention_mask=mask[rows],
        past_key_values=cache,
        generation_config=trainer.generation_config,
    )
    ends = frozenset(trainer.eos_token_ids)
    return [_cut(row, ends) for row in made[:, ids.shape[1] :].tolist()]


def _left_padded(prompts: Sequence[Sequence[int]], pad: int, device: Any) -> tuple[Any, Any]:
    """Token ids and attention mask, one row a prompt."""
    import torch

    width = max(map(len, prompts))
    ids = [[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _read(model: Any, ids: Any, mask: Any) -> Any:
    """The keys and values of the prompts; None where there is nothing to read."""
    from transformers import DynamicCache

    if ids.shape[1] == 0:
        return None
    # generate() of a model with adapters is that of the model inside, which mixed precision does not wrap.
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    cache = DynamicCache(config=base.config.get_text_config(decoder=True))
    base(
        input_ids=ids,
        attention_mask=None if mask.all() else mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        **({"logits_to_keep": 1} if base._supports_logits_to_keep() else {}),
    )
    return cache


def _cut(ids: Ids, ends: frozenset[int]) -> Ids:
    """The ids up to the first end token, which stays."""
    return next((ids[: place + 1] for place, one in enumerate(ids) if one in ends), ids)
