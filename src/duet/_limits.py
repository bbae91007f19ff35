"""What a run may spend, and how fast: requests and tokens a minute, and a budget that ends before the call too many."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Self

import anyio
import attrs

from duet._endpoint import Endpoint
from duet._errors import BudgetExceeded, ConfigurationError
from duet._events import GenerationEnd, TextDelta
from duet._log import log
from duet._prompts import Message
from duet._results import Completion, Usage
from duet._settings import Sampling

MINUTE = 60.0
MILLION = 1_000_000


class Budget:
    """What may be spent in all. May be shared by any number of endpoints.

    A call starts only where what is spent, with what the calls under way may still spend, leaves room for it: for its
    prompt at four characters a token, and `Sampling.max_tokens`. Without a token limit a completion counts as nothing
    until it is there, so set one. What a call really used takes the place of the estimate at its end.

    Args:
        requests: Most calls; an endpoint's own retries are within a call.
        tokens: Most tokens, of prompts and completions together.
        cost: Most money, in the currency of the prices.
        prompt_price: Of a million tokens of prompts.
        completion_price: Of a million tokens of completions.
        cached_price: Of a million tokens of prompts that came from the prefix cache; by default as any of the prompt.

    Raises:
        ConfigurationError: A number is negative, or there is a most of money without a price.
    """

    def __init__(
        self,
        *,
        requests: int | None = None,
        tokens: int | None = None,
        cost: float | None = None,
        prompt_price: float = 0.0,
        completion_price: float = 0.0,
        cached_price: float | None = None,
    ) -> None:
        self._most: dict[str, float | None] = {"requests": requests, "tokens": tokens, "cost": cost}
        self._prices = (prompt_price, completion_price, prompt_price if cached_price is None else cached_price)
        if any(value is not None and value < 0 for value in self._most.values()) or min(self._prices) < 0:
            raise ConfigurationError("nothing of a budget may be negative")
        if cost is not None and not any(self._prices):
            raise ConfigurationError("a budget of cost needs prompt_price or completion_price")
        self._used = Usage()
        self._requests = 0
        self._reserved = Usage()
        self._under_way = 0

    @property
    def requests(self) -> int:
        """Calls that were started."""
        return self._requests

    @property
    def usage(self) -> Usage:
        """Tokens of the calls that are over."""
        return self._used

    @property
    def cost(self) -> float:
        """Of the calls that are over, in the currency of the prices."""
        return self._price(self._used)

    @contextmanager
    def reserve(self, estimate: Usage) -> Iterator[Call]:
        """Room for one call, for as long as the block lasts.

        Args:
            estimate: What it may use.

        Raises:
            BudgetExceeded: There is no room.
        """
        self._check(estimate)
        call = Call(estimate)
        self._requests += 1
        self._under_way += 1
        self._reserved = _sum(self._reserved, estimate)
        try:
            yield call
        finally:
            self._under_way -= 1
            self._reserved = _sum(self._reserved, estimate, sign=-1)
            self._used = _sum(self._used, call.used)

    def _check(self, estimate: Usage) -> None:
        total = _sum(_sum(self._used, self._reserved), estimate)
        wanted = {"requests": self._requests + 1, "tokens": total.total_tokens, "cost": self._price(total)}
        for name, most in self._most.items():
            if most is not None and wanted[name] > most:
                log().warning("budget.exceeded", limit=name, most=most)
                raise BudgetExceeded(
                    f"the budget of {most:g} {name} leaves no room for this call: {self._requests} calls and "
                    f"{self._used.total_tokens} tokens are spent, {self._under_way} calls are under way"
                )

    def _price(self, usage: Usage) -> float:
        prompt, completion, cached = self._prices
        fresh = usage.prompt_tokens - usage.cached_tokens
        return (fresh * prompt + usage.cached_tokens * cached + usage.completion_tokens * completion) / MILLION


class Call:
    """One call under way.

    Args:
        estimate: What it may use.
    """

    def __init__(self, estimate: Usage) -> None:
        self._prompt = Usage(estimate.prompt_tokens, 0, estimated=True)
        self._answered = False
        self.used = Usage()
        """What it used, as far as is known: nothing before the first answer."""

    def heard(self) -> None:
        """Some of the answer has come, so the prompt was read."""
        before = self.used if self._answered else self._prompt
        self._answered = True
        self.used = attrs.evolve(before, completion_tokens=before.completion_tokens + 1)

    def over(self, usage: Usage | None) -> None:
        """The answer is whole.

        Args:
            usage: As the endpoint counted it.
        """
        self.used = usage if usage is not None else self.used


class LimitedEndpoint:
    """Another endpoint, no faster and no more than allowed.

    A call that comes too early waits its turn, in order; one for which the budget has no room raises before anything is
    sent. Over any minute no more than the limits are started. Tokens count as estimated when a call starts, and as
    counted by the endpoint when it is over.

    Args:
        endpoint: The other one, which stays open.
        requests_per_minute: Most calls started in any minute.
        tokens_per_minute: Most tokens in any minute.
        budget: What may be spent in all.

    Raises:
        ConfigurationError: A limit is below 1.

    Example:
        ```python
        limited = LimitedEndpoint(endpoint, requests_per_minute=500, budget=Budget(tokens=2_000_000))
        profiler = JointProfiler(limited, sampling=Sampling(max_tokens=896))
        ```
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        budget: Budget | None = None,
    ) -> None:
        for name, value in (
            ("requests_per_minute", requests_per_minute),
            ("tokens_per_minute", tokens_per_minute),
        ):
            if value is not None and value < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {value}")
        self._endpoint = endpoint
        self._requests = _Window(requests_per_minute)
        self._tokens = _Window(tokens_per_minute)
        self._budget = budget or Budget()
        self._turn = anyio.Lock()

    @property
    def model(self) -> str:
        """Of the other endpoint."""
        return self._endpoint.model

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """As the other endpoint's, in its turn.

        Args:
            messages: The prompt.
            sampling: How to sample.

        Raises:
            BudgetExceeded: There is no room for the call; nothing was sent.
            EndpointError: The infrastructure's fault.
        """
        async with self._admitted(messages, sampling) as call:
            completion = await self._endpoint.generate(messages, sampling)
            call.over(completion.usage)
            return completion

    def stream(
        self, messages: Sequence[Message], sampling: Sampling
    ) -> AbstractAsyncContextManager[AsyncIterator[TextDelta | GenerationEnd]]:
        """As the other endpoint's, in its turn; of one that is left early the deltas count as tokens.

        Args:
            messages: The prompt.
            sampling: How to sample.

        Raises:
            BudgetExceeded: On entering the block: there is no room for the call; nothing was sent.
            EndpointError: The infrastructure's fault.
        """
        return self._stream(messages, sampling)

    @asynccontextmanager
    async def _stream(
        self, messages: Sequence[Message], sampling: Sampling
    ) -> AsyncIterator[AsyncIterator[TextDelta | GenerationEnd]]:
        async with (
            self._admitted(messages, sampling) as call,
            self._endpoint.stream(messages, sampling) as deltas,
        ):
            yield _Counted(deltas, call)

    @asynccontextmanager
    async def _admitted(self, messages: Sequence[Message], sampling: Sampling) -> AsyncIterator[Call]:
        estimate = _estimate(messages, sampling)
        with self._budget.reserve(estimate) as call:
            async with self._turn:
                await self._requests.admit(1)
                entry = await self._tokens.admit(estimate.total_tokens)
            try:
                yield call
            finally:
                self._tokens.correct(entry, call.used.total_tokens)


class _Counted:
    """A stream that tells its call what has come."""

    def __init__(self, deltas: AsyncIterator[TextDelta | GenerationEnd], call: Call) -> None:
        self._deltas = deltas
        self._call = call

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TextDelta | GenerationEnd:
        step = await anext(self._deltas)
        if isinstance(step, TextDelta):
            self._call.heard()
        else:
            self._call.over(step.completion.usage)
        return step


@attrs.define(eq=False)
class _Entry:
    at: float
    amount: int
    counts: bool = True


class _Window:
    """How much was started in the last minute."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._entries: deque[_Entry] = deque()
        self._sum = 0

    async def admit(self, amount: int) -> _Entry:
        """Wait until there is room. What is more than a whole minute's share goes when nothing else does."""
        while (pause := self._pause(amount, anyio.current_time())) > 0:  # noqa: ASYNC110 - waits for time to pass
            await anyio.sleep(pause)
        return self.note(anyio.current_time(), amount)

    def note(self, now: float, amount: int) -> _Entry:
        """Something was started."""
        entry = _Entry(now, amount, counts=self._limit is not None)
        if entry.counts:
            self._entries.append(entry)
            self._sum += amount
        return entry

    def correct(self, entry: _Entry, amount: int) -> None:
        """Put what it was in the place of what it was taken for."""
        if entry.counts:
            self._sum += amount - entry.amount
        entry.amount = amount

    def _pause(self, amount: int, now: float) -> float:
        """Seconds until enough of what was started is a minute ago."""
        while self._entries and self._entries[0].at + MINUTE <= now:
            old = self._entries.popleft()
            old.counts = False
            self._sum -= old.amount
        if self._limit is None or not self._entries or self._sum + amount <= self._limit:
            return 0.0
        over = self._sum + amount - self._limit
        for entry in self._entries:
            over -= entry.amount
            if over <= 0:
                break
        return entry.at + MINUTE - now


def _estimate(messages: Sequence[Message], sampling: Sampling) -> Usage:
    prompt = sum(len(message["content"]) for message in messages) // 4
    return Usage(prompt, sampling.max_tokens or sampling.max_completion_tokens or 0, estimated=True)


def _sum(first: Usage, second: Usage, *, sign: int = 1) -> Usage:
    return Usage(
        first.prompt_tokens + sign * second.prompt_tokens,
        first.completion_tokens + sign * second.completion_tokens,
        cached_tokens=first.cached_tokens + sign * second.cached_tokens,
        estimated=first.estimated or second.estimated,
    )
