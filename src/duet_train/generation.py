"""Greedy completions of the policy that is being trained, for measurements on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from duet import Message
from duet_train.models import prompt_ids
from duet_train.precision import sampling_arithmetic

BATCH = 8


def greedy(
    trainer: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[str]:
    """A completion for each prompt, by the policy as it is; the same in every process of a distributed run.

    Args:
        trainer: Any of TRL's, with the model prepared.
        tokenizer: The policy's.
        prompts: Chat messages.
        max_new_tokens: Of a completion.
        chat_template_kwargs: As in training.
    """
    from accelerate.utils import gather_object

    ids = [prompt_ids(tokenizer, messages, chat_template_kwargs) for messages in prompts]
    # Prompts of like length together waste least on padding.
    order = sorted(range(len(ids)), key=lambda place: -len(ids[place]))
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    accelerator = trainer.accelerator
    rounds = -(-len(batches) // accelerator.num_processes)
    found: list[tuple[int, str]] = []
    with _model(trainer) as model:
        for number in range(rounds):
            mine = number * accelerator.num_processes + accelerator.process_index
            # Every process takes part in every round, as sharded weights need all of them.
            batch = batches[min(mine, len(batches) - 1)]
            texts = _decode(model, tokenizer, [ids[place] for place in batch], max_new_tokens)
            if mine < len(batches):
                found += zip(batch, texts, strict=True)
    return [text for _, text in sorted(gather_object(found))]


def _decode(model: Any, tokenizer: Any, ids: Sequence[list[int]], max_new_tokens: int) -> list[str]:
    batch = tokenizer.pad({"input_ids": list(ids)}, padding=True, padding_side="left", return_tensors="pt")
    batch = batch.to(next(model.parameters()).device)
    written = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=max_new_tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    texts: list[str] = tokenizer.batch_decode(written[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


@contextmanager
def _model(trainer: Any) -> Iterator[Any]:
    """The bare model, whole and without dropout or gradients; afterwards as it was."""
    import torch
    from trl.models.utils import unwrap_model_for_generation

    distribution = getattr(trainer, "_dist", None)
    whole = distribution.summon_full_params(trainer.model_wrapped, recurse=False) if distribution else nullcontext()
    training = trainer.model.training
    opened = unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator)
    with torch.no_grad(), sampling_arithmetic(trainer), whole, opened as model:
        model.eval()
        try:
            yield model
        finally:
            model.train(training)
