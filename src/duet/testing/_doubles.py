"""Doubles that need no network: an endpoint that says what a script has, and a recommender with one opinion."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager

import anyio.lowlevel

from duet._errors import ConfigurationError
from duet._events import GenerationEnd, TextDelta
from duet._prompts import Message
from duet._records import Item, User
from duet._results import Completion, JointProfile, Rating, Usage
from duet._settings import Sampling

ScriptedAnswer = str | Completion | Exception
"""What a scripted model says: a text, a whole completion, or an error to raise."""


class ScriptedEndpoint:
    """An `Endpoint` without any network.

    Args:
        answers: One text or completion, repeated for ever; several, used in turn; or a callable, asked each time.
            Exceptions among them are raised.
        model: Its name.
        chunk_chars: Characters in each delta of a stream.

    Raises:
        ConfigurationError: `chunk_chars` cannot work.
    """

    def __init__(
        self,
        answers: ScriptedAnswer | Iterable[ScriptedAnswer] | Callable[[Sequence[Message], Sampling], ScriptedAnswer],
        *,
        model: str = "scripted",
        chunk_chars: int = 7,
    ) -> None:
        if chunk_chars < 1:
            raise ConfigurationError(f"chunk_chars must be at least 1, got {chunk_chars}")
        self.calls: list[tuple[Sequence[Message], Sampling]] = []
        """What was asked, in order."""
        self._answer = answers if callable(answers) else _script(answers)
        self._model = model
        self._chunk_chars = chunk_chars

    @property
    def model(self) -> str:
        """The name given."""
        return self._model

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """The next answer.

        Args:
            messages: Kept in `calls`.
            sampling: Kept in `calls`.

        Raises:
            AssertionError: There were fewer answers than calls.
            Exception: One that was among the answers.
        """
        await anyio.lowlevel.checkpoint()
        self.calls.append((messages, sampling))
        answer = self._answer(messages, sampling)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Completion):
            return answer
        prompt_chars = sum(len(message["content"]) for message in messages)
        usage = Usage(prompt_chars // 4, (len(answer) + 3) // 4, estimated=True)
        return Completion(answer, model=self._model, usage=usage)

    @asynccontextmanager
    async def stream(
        self, messages: Sequence[Message], sampling: Sampling
    ) -> AsyncIterator[AsyncIterator[TextDelta | GenerationEnd]]:
        """The next answer in deltas of `chunk_chars` characters, a `GenerationEnd` last.

        Args:
            messages: Kept in `calls`.
            sampling: Kept in `calls`.

        Raises:
            AssertionError: There were fewer answers than calls.
            Exception: One that was among the answers.
        """
        completion = await self.generate(messages, sampling)
        async with aclosing(self._events(completion)) as events:
            yield events

    async def _events(self, completion: Completion) -> AsyncGenerator[TextDelta | GenerationEnd, None]:
        for at in range(0, len(completion.text), self._chunk_chars):
            await anyio.lowlevel.checkpoint()
            yield TextDelta(completion.text[at : at + self._chunk_chars])
        yield GenerationEnd(completion)


def _script(answers: ScriptedAnswer | Iterable[ScriptedAnswer]) -> Callable[..., ScriptedAnswer]:
    if isinstance(answers, str | Completion | Exception):
        return lambda messages, sampling: answers
    rest = iter(answers)
    used = 0

    def answer(messages: Sequence[Message], sampling: Sampling) -> ScriptedAnswer:
        nonlocal used
        for value in rest:
            used += 1
            return value
        raise AssertionError(f"the scripted endpoint was asked again after its {used} answers: script one more")

    return answer


class ConstantRecommender:
    """A `Recommender` that predicts the same for every pair.

    Args:
        value: In rating points.
    """

    def __init__(self, value: float) -> None:
        self.calls: int = 0
        """How often it was asked."""
        self._rating = Rating(value)

    async def predict(self, user: User, item: Item, profile: JointProfile | None) -> Rating:
        """The one rating.

        Args:
            user: Not looked at.
            item: Not looked at.
            profile: Not looked at.
        """
        await anyio.lowlevel.checkpoint()
        self.calls += 1
        return self._rating
