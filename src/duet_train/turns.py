"""Prompts and completions as token ids, cut exactly where a rollout cuts them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from duet import Message
from duet_train.models import prompt_ids


class Turns:
    """Token ids of a conversation as a policy meets and writes it.

    The prompt is rendered by the chat template up to where the answer begins, as for a rollout. The completion is
    tokenised on its own, since in a rollout no token spans the border, and ends in the token that ends a turn. To
    render both by the template in one go would add what some templates write after a turn, and, for models that can
    think aloud, another prompt than the one that is served.

    Args:
        tokenizer: With a chat template.
        chat_template_kwargs: As for rollouts, such as ``{"enable_thinking": False}``.
    """

    def __init__(self, tokenizer: Any, chat_template_kwargs: Mapping[str, Any] | None = None) -> None:
        self._tokenizer = tokenizer
        self._kwargs = dict(chat_template_kwargs or {})

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a prompt, ready for the answer.

        Args:
            messages: As the row has them.
        """
        return prompt_ids(self._tokenizer, messages, self._kwargs)

    def completion(self, text: str) -> list[int]:
        """Ids of an answer with the token that ends it.

        Args:
            text: The whole answer.
        """
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return [*ids, self._tokenizer.eos_token_id]

    def ends_otherwise(self) -> str | None:
        """What the chat template writes after an answer, where that does not begin with the token that ends rollouts.

        Returns:
            The text after an answer, or None where all is well.
        """
        answer = "An answer."
        asked: list[Message] = [{"role": "user", "content": "A question."}]
        told: list[Message] = [*asked, {"role": "assistant", "content": answer}]
        text: str = self._tokenizer.apply_chat_template(told, tokenize=False, **self._kwargs)
        after = text.rpartition(answer)[2]
        return None if after.lstrip().startswith(self._tokenizer.eos_token) else after
