"""Completions sampled inside this process, with every distinct prompt read once."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import attrs

from duet import ConfigurationError
from duet_train.precision import sampling_arithmetic

Ids = list[int]

ROOM = 128
"""Positions by which the memory of keys and values grows at once."""


@attrs.define(kw_only=True)
class SharedPrefixRollout:
    """TRL's own sampling, less the repeated work: a group's prompt runs through the model once, not once a completion.

    GRPO draws several completions of one prompt. TRL reads the prompt anew for each of them. Here the distinct prompts
    of a batch are read once, their keys and values are copied to the rows, and transformers samples on from there,
    with memory that grows now and then and not at every token. In float32 and without dropout the completions are
    those of TRL at the same seed. Pass an instance to a GRPOTrainer as `rollout_func`.

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
        sampling_arithmetic(trainer),
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
    # Without any padding transformers leaves grouped heads to torch, whose half precision on a CPU is slow at that.
    spare = int(device.type == "cpu" and model.dtype.itemsize < 4)
    ids, mask = _left_padded(distinct, trainer.generation_config.pad_token_id, device, spare)
    memory = _read(model, ids[:, :-1], mask[:, :-1])
    rows = ids.new_tensor([place[tuple(prompt)] for prompt in prompts])
    if memory is not None:
        memory.batch_select_indices(rows)
    # All ids go in: the penalty of repetition looks at them, and transformers itself finds what the cache has.
    made = model.generate(
        input_ids=ids[rows],
        attention_mask=mask[rows],
        generation_config=trainer.generation_config,
        **{_cache_name(model): memory},
    )
    ends = frozenset(trainer.eos_token_ids)
    return [_cut(row, ends) for row in made[:, ids.shape[1] :].tolist()]


def _left_padded(prompts: Sequence[Sequence[int]], pad: int, device: Any, spare: int) -> tuple[Any, Any]:
    """Token ids and attention mask, one row a prompt; the longest has `spare` positions of padding."""
    import torch

    width = max(map(len, prompts)) + spare
    ids = [[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _read(model: Any, ids: Any, mask: Any) -> Any:
    """The keys and values of the prompts; None where there is nothing to read."""
    if ids.shape[1] == 0:
        return None
    # generate() of a model with adapters is that of the model inside, which mixed precision does not wrap.
    base = _base(model)
    memory = _memory(base.config.get_text_config(decoder=True))
    _forward(model, base)(
        input_ids=ids,
        attention_mask=None if mask.all() else mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        use_cache=True,
        **{_cache_name(base): memory},
        **({"logits_to_keep": 1} if base._supports_logits_to_keep() else {}),
    )
    return memory


def _cache_name(model: Any) -> str:
    """What the forward of a model calls its cache: transformers renamed `past_key_values` to `cache`."""
    # The class's own: mixed precision replaces that of the instance.
    parameters = inspect.signature(type(_base(model)).forward).parameters
    return "cache" if "cache" in parameters else "past_key_values"


def _base(model: Any) -> Any:
    """The model itself, without its adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _forward(model: Any, base: Any) -> Any:
    """How the model inside is called: under FSDP2 by way of the outermost, which has to gather what is its own."""
    from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

    if base is model or not isinstance(model, FSDPModule):
        return base
    if not hasattr(model, "read_prompts"):
        model.read_prompts = lambda **inputs: base(**inputs)
        register_fsdp_forward_method(model, "read_prompts")
    return model.read_prompts


def _memory(config: Any) -> Any:
    """An empty cache for a model; layers that look at everything before them have room to grow."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    memory = DynamicCache(config=config)
    memory.layers = [_roomy_layer()() if type(layer) is DynamicLayer else layer for layer in memory.layers]
    return memory


@cache
def _roomy_layer() -> type[Any]:
    """A layer that writes new keys and values behind the old ones, where transformers' own copies all at each token.

    Under autocast it holds them rounded: attention would round all of them at each token.
    """
    import torch
    from transformers.cache_utils import DynamicLayer

    class RoomyLayer(DynamicLayer):  # type: ignore[misc]
        _layer_type = None  # transformers keeps its own layer for its own caches
        keys: Any
        values: Any
        key_room: Any = None
        value_room: Any = None

        def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            if torch.is_autocast_enabled(kind := key_states.device.type):
                half = torch.get_autocast_dtype(kind)
                key_states, value_states = key_states.to(half), value_states.to(half)
            if not self.is_initialized:
                return super().update(key_states, value_states, *args, **kwargs)  # type: ignore[no-any-return]
            self.key_room, self.keys = _append(self.key_room, self.keys, key_states)
            self.value_room, self.values = _append(self.value_room, self.values, value_states)
            return self.keys, self.values

    return RoomyLayer


def _append(room: Any, held: Any, new: Any) -> tuple[Any, Any]:
    """Memory with room behind what is held and new, and the part of it that is both.

    Args:
        room: The memory whose first positions `held` is; any other is left alone.
        held: Rows × heads × positions × width.
        new: Likewise.
    """
    start, end = held.shape[-2], held.shape[-2] + new.shape[-2]
    if room is None or room.data_ptr() != held.data_ptr() or end > room.shape[-2]:
        room = held.new_empty((*held.shape[:-2], end + ROOM, held.shape[-1]))
        room[..., :start, :] = held
    room[..., start:end, :] = new
    return room, room[..., :end, :]


def _cut(ids: Ids, ends: frozenset[int]) -> Ids:
    """The ids up to the first end token, which stays."""
    return next((ids[: place + 1] for place, one in enumerate(ids) if one in ends), ids)
