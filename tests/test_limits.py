"""Limits: how much may be spent, and how fast."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet import (
    Budget,
    BudgetExceeded,
    Completion,
    ConfigurationError,
    GenerationEnd,
    LimitedEndpoint,
    Message,
    Sampling,
    TextDelta,
    Usage,
)
from duet._limits import _Window

pytestmark = pytest.mark.anyio

PROMPT: list[Message] = [{"role": "user", "content": "x" * 40}]
TEN = Sampling(max_tokens=10)


class Counting:
    """An endpoint that counts its calls, and what each used."""

    model = "m"

    def __init__(self, usage: Usage | None = Usage(10, 5), *, fails: bool = False, slow: float = 0.0) -> None:
        self.calls = 0
        self.usage = usage
        self.fails = fails
        self.slow = slow

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        self.calls += 1
        await anyio.sleep(self.slow)
        if self.fails:
            raise RuntimeError("down")
        return Completion("text", usage=self.usage)

    @asynccontextmanager
    async def stream(
        self, messages: Sequence[Message], sampling: Sampling
    ) -> AsyncIterator[AsyncIterator[TextDelta | GenerationEnd]]:
        self.calls += 1

        async def steps() -> AsyncIterator[TextDelta | GenerationEnd]:
            yield TextDelta("a")
            yield TextDelta("b")
            yield GenerationEnd(Completion("ab", usage=self.usage))

        made = steps()
        try:
            yield made
        finally:
            await made.aclose()  # type: ignore[attr-defined]


async def test_budget_of_requests_ends_before_the_next_call() -> None:
    """With a budget of two calls the third raises, and nothing is sent."""
    endpoint, budget = Counting(), Budget(requests=2)
    limited = LimitedEndpoint(endpoint, budget=budget)
    for _ in range(2):
        await limited.generate(PROMPT, TEN)
    with pytest.raises(BudgetExceeded, match="2 requests"):
        await limited.generate(PROMPT, TEN)
    assert (endpoint.calls, budget.requests) == (2, 2)


async def test_budget_of_tokens_counts_what_was_used() -> None:
    """What a call used takes the place of its estimate."""
    budget = Budget(tokens=50)
    limited = LimitedEndpoint(Counting(), budget=budget)
    for _ in range(3):  # each is taken for 20 and uses 15: 15 + 15 + 20 fit into 50
        await limited.generate(PROMPT, TEN)
    with pytest.raises(BudgetExceeded, match="tokens"):
        await limited.generate(PROMPT, TEN)
    assert budget.usage == Usage(30, 15)


async def test_budget_of_cost_knows_the_prices() -> None:
    """Prompt, cached prompt and completion have prices of their own, for a million tokens."""
    budget = Budget(cost=100.0, prompt_price=2.0, completion_price=8.0, cached_price=0.5)
    await LimitedEndpoint(Counting(Usage(1000, 100, cached_tokens=400)), budget=budget).generate(PROMPT, TEN)
    assert budget.cost == pytest.approx((600 * 2.0 + 400 * 0.5 + 100 * 8.0) / 1e6)


async def test_calls_under_way_keep_their_room() -> None:
    """Calls that run side by side cannot go beyond the budget together."""
    endpoint, budget = Counting(slow=0.01), Budget(tokens=45)
    limited = LimitedEndpoint(endpoint, budget=budget)
    refused = 0

    async def call() -> None:
        nonlocal refused
        try:
            await limited.generate(PROMPT, TEN)
        except BudgetExceeded:
            refused += 1

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(call)
    assert (endpoint.calls, refused) == (2, 3)


async def test_failed_call_uses_no_tokens() -> None:
    """A call without an answer gives its tokens back; as a request it counts."""
    budget = Budget(tokens=20)
    limited = LimitedEndpoint(Counting(fails=True), budget=budget)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            await limited.generate(PROMPT, TEN)
    assert (budget.usage.total_tokens, budget.requests) == (0, 2)


async def test_stream_counts_its_usage() -> None:
    """A stream that was read to its end counts as the endpoint says."""
    budget = Budget()
    async with LimitedEndpoint(Counting(), budget=budget).stream(PROMPT, TEN) as deltas:
        assert [type(step) async for step in deltas] == [TextDelta, TextDelta, GenerationEnd]
    assert budget.usage == Usage(10, 5)


async def test_stream_left_early_counts_what_came() -> None:
    """Of a stream that was left, the prompt and the deltas that came count, as an estimate."""
    budget = Budget()
    async with LimitedEndpoint(Counting(), budget=budget).stream(PROMPT, TEN) as deltas:
        await anext(deltas)
    assert budget.usage == Usage(10, 1, estimated=True)


async def test_stream_without_room_raises_on_entering() -> None:
    """A stream for which there is no room sends nothing."""
    endpoint = Counting()
    with pytest.raises(BudgetExceeded):
        async with LimitedEndpoint(endpoint, budget=Budget(requests=0)).stream(PROMPT, TEN):
            pass
    assert endpoint.calls == 0


async def test_two_endpoints_share_a_budget() -> None:
    """A budget holds for all endpoints that have it."""
    budget = Budget(requests=1)
    await LimitedEndpoint(Counting(), budget=budget).generate(PROMPT, TEN)
    with pytest.raises(BudgetExceeded):
        await LimitedEndpoint(Counting(), budget=budget).generate(PROMPT, TEN)


@pytest.mark.serial
async def test_requests_wait_for_their_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third of two calls a minute starts when the first is a minute ago."""
    monkeypatch.setattr("duet._limits.MINUTE", 0.2)
    limited = LimitedEndpoint(Counting(), requests_per_minute=2)
    started = anyio.current_time()
    for _ in range(3):
        await limited.generate(PROMPT, TEN)
    assert 0.2 <= anyio.current_time() - started < 2


@pytest.mark.serial
async def test_tokens_wait_for_their_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call whose tokens do not fit into the minute waits, and those of calls that are over count as used."""
    monkeypatch.setattr("duet._limits.MINUTE", 0.2)
    limited = LimitedEndpoint(Counting(), tokens_per_minute=50)
    started = anyio.current_time()
    for _ in range(4):
        await limited.generate(PROMPT, TEN)
    assert 0.2 <= anyio.current_time() - started < 2


async def test_call_larger_than_a_minute_goes_alone() -> None:
    """A call of more tokens than a minute has is not kept waiting for ever."""
    with anyio.fail_after(2):
        await LimitedEndpoint(Counting(), tokens_per_minute=5).generate(PROMPT, TEN)


@given(amounts=st.lists(st.integers(1, 30), max_size=40), steps=st.lists(st.floats(0, 30), max_size=40))
def test_no_minute_holds_more_than_the_limit(amounts: list[int], steps: list[float]) -> None:
    """Whatever comes when, no sixty seconds hold more than the limit, but for one that is larger by itself."""
    window, now, started = _Window(50), 0.0, []
    for amount, step in zip(amounts, steps, strict=False):
        now += step
        while (pause := window._pause(amount, now)) > 0:
            now += pause
        started.append((now, amount))
        window.note(now, amount)
    for at, _ in started:
        assert sum(amount for other, amount in started if at <= other < at + 60 - 1e-6) <= 50


@pytest.mark.parametrize("options", [{"requests_per_minute": 0}, {"tokens_per_minute": -1}])
async def test_limit_below_one_is_refused(options: dict[str, int]) -> None:
    """A limit that lets nothing through is a mistake."""
    with pytest.raises(ConfigurationError):
        LimitedEndpoint(Counting(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"requests": -1}, {"cost": 1.0}, {"prompt_price": -0.1}])
async def test_budget_that_makes_no_sense_is_refused(options: dict[str, float]) -> None:
    """Negative numbers, and money without prices, are mistakes."""
    with pytest.raises(ConfigurationError):
        Budget(**options)  # type: ignore[arg-type]
