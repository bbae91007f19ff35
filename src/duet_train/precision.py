"""What is trained is held in float32, whatever the model was loaded in; the arithmetic is that of mixed precision.

AdamW at a learning rate of 1e-6 moves a weight by about as much. Numbers in bfloat16 near 0.02 lie 1e-4 apart, so that
nearly all such updates of weights in bfloat16 are rounded away. Weights in float32 keep them, and autocast computes
with their roundings (Micikevicius et al., "Mixed Precision Training", arXiv 1710.03740).

FSDP and DeepSpeed hold float32 weights of their own once mixed precision is on, and are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any


def hold_in_float32(trainer: Any) -> dict[str, Any]:
    """Turn what is trained into float32, before the trainer makes its optimizer.

    Frozen weights keep their dtype where arithmetic is in mixed precision; without it, a model that is trained whole or
    in part becomes float32 as a whole, since layers of two dtypes do not compute together.

    Args:
        trainer: Any of TRL's, new.

    Returns:
        The dtype that each converted weight had, by its name: what `as_loaded` goes back to. Empty under FSDP and
        DeepSpeed.
    """
    if _is_sharded(trainer):
        return {}
    everything = not (_is_mixed(trainer) or _has_adapters(trainer.model))
    before = {
        name: weights.dtype
        for name, weights in trainer.model.named_parameters()
        if _is_half(weights) and (everything or weights.requires_grad)
    }
    for name, weights in trainer.model.named_parameters():
        if name in before:
            weights.data = weights.data.float()
    if (reference := getattr(trainer, "ref_model", None)) is not None and before:
        _match(reference, trainer)
    return before


def as_loaded(trainer: Any, dtypes: dict[str, Any]) -> None:
    """Give a model back the dtype that its arithmetic rounded to, to be saved in.

    Adapters stay float32, and so does a model that computed in float32: what is saved is what was measured.

    Args:
        trainer: At the end of its training.
        dtypes: What `hold_in_float32` returned.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if _has_adapters(model) or not _is_mixed(trainer):
        return
    for name, weights in model.named_parameters():
        if name in dtypes:
            weights.data = weights.data.to(dtypes[name])


def sampling_arithmetic(trainer: Any) -> AbstractContextManager[None]:
    """The arithmetic of training, for sampling: autocast, which keeps its rounded copy of the weights for the block.

    Without it each token would round all weights anew, and before the first step nothing would be rounded at all.
    Models with adapters are sampled as TRL samples them: transformers calls the model inside, which autocast does not
    wrap.

    Args:
        trainer: Any of TRL's.
    """
    if _is_sharded(trainer) or _has_adapters(trainer.model):
        return nullcontext()
    autocast: AbstractContextManager[None] = trainer.accelerator.autocast()
    return autocast


def _match(reference: Any, trainer: Any) -> None:
    """Let the reference compute to the bit what the policy computed at the start: the KL term then begins at 0.

    Autocast rounds the weights of linear layers by itself, so these may stay as they were loaded, for half the memory.
    Not so where the reference follows the policy: its steps would be rounded away like those of the policy.
    """
    follows = getattr(trainer.args, "sync_ref_model", False)
    may_stay = set(_linear(reference)) if _is_mixed(trainer) and not follows else set()
    trained = {name for name, weights in trainer.model.named_parameters() if not _is_half(weights)}
    for name, weights in reference.named_parameters():
        if name in trained and id(weights) not in may_stay:
            weights.data = weights.data.float()


def _linear(model: Any) -> Iterator[int]:
    """The ids of the weights that linear layers alone read; not so of a head that is the embedding as well."""
    from torch.nn import Linear

    others = {
        id(weights)
        for module in model.modules()
        if not isinstance(module, Linear)
        for weights in module.parameters(recurse=False)
    }
    for module in model.modules():
        if isinstance(module, Linear):
            yield from (id(weights) for weights in module.parameters(recurse=False) if id(weights) not in others)


def _is_half(weights: Any) -> bool:
    import torch

    return weights.dtype in (torch.bfloat16, torch.float16)


def _is_mixed(trainer: Any) -> bool:
    return bool(trainer.accelerator.mixed_precision != "no")


def _is_sharded(trainer: Any) -> bool:
    return str(trainer.accelerator.distributed_type.value) in ("FSDP", "DEEPSPEED")


def _has_adapters(model: Any) -> bool:
    return hasattr(model, "peft_config")
