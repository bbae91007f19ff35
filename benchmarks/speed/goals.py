"""What is aimed at, and whether a run got there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from compare import Costs

Checks = Mapping[str, Mapping[str, float]]
Measured = Callable[[Costs, Checks], float | None]


@dataclass(frozen=True)
class Goal:
    """One row of the table.

    Args:
        name: What is measured.
        measured: Reads the figure from a run; None where it could not be measured.
        must: What must be reached. None for a figure that is only printed: no time is judged, since a slow
            machine would miss it.
        aim: What is aimed at, where there is more to want.
        at_least: Whether more is better.
        form: How the figures are written.
    """

    name: str
    measured: Measured
    must: float | None = None
    aim: float | None = None
    at_least: bool = False
    form: str = "{:.3g}"

    def row(self, value: float | None) -> list[str]:
        """The row as text."""
        sign = "≥ " if self.at_least else "≤ "
        must, aim = (sign + self.form.format(goal) if goal is not None else "" for goal in (self.must, self.aim))
        return [self.name, "" if value is None else self.form.format(value), must, aim, self.verdict(value)]

    def verdict(self, value: float | None) -> str:
        """What is reached: "aim", "must", or neither."""
        if self.must is None:
            return ""
        if value is None:
            return "not measured"
        if not self._reaches(value, self.must):
            return "MISSED"
        return "aim" if self.aim is not None and self._reaches(value, self.aim) else "must"

    def _reaches(self, value: float, goal: float) -> bool:
        return value >= goal if self.at_least else value <= goal


def _over(load: str, client: str) -> Measured:
    """How many times as much another client costs as ours; below 1 for the floor."""
    return lambda costs, _: costs.ratio(client, load, "ours", load)


def _growth(costs: Costs, _: Checks) -> float | None:
    return costs.ratio("ours", "reward 1024, kept", "ours", "reward 64, kept")


def _highest(check: str, *names: str) -> Measured:
    return lambda _, checks: max(checks[check][name] for name in names or checks[check])


def _lowest(check: str, *names: str) -> Measured:
    return lambda _, checks: min(checks[check][name] for name in names)


GOALS = (
    Goal("stream, 256 at once, of the floor", _over("stream 256", "floor"), 0.30, 0.42, at_least=True),
    Goal("stream, 256 at once, × AsyncOpenAI", _over("stream 256", "AsyncOpenAI"), 15, 25, at_least=True),
    Goal("reward calls, 256 at once, of the floor", _over("reward 256", "floor"), 0.18, 0.33, at_least=True),
    Goal("reward calls, 256 at once, × AsyncOpenAI", _over("reward 256", "AsyncOpenAI"), 5, at_least=True),
    Goal("reward calls, 1024 at once, of the floor", _over("reward 1024", "floor"), 0.13, 0.30, at_least=True),
    Goal("reward calls, 1024 at once, × AsyncOpenAI", _over("reward 1024", "AsyncOpenAI"), 10, at_least=True),
    Goal("CPU per call, 1024 at once over 64, kept", _growth, 1.6, 1.3),
    Goal("memory beyond the first 1000 pairs, MB", _highest("memory", "quick consumer", "slow consumer"), 16, 6),
    Goal("drawn and not handed over, concurrency 64, slow consumer", _highest("in_flight", "drawn", "requests"), 64),
    Goal("bytes sent on to a consumer that sleeps", _highest("in_flight", "bytes sent on"), 0),
    Goal(
        "prefix cache, of the best order's share",
        _lowest("prefix_cache", "iterator user by user", "shuffled list"),
        0.95,
        0.99,
        at_least=True,
    ),
    Goal("first of 10 000 outcomes, × first of 256", _highest("first_result", "times"), 2, 1.2),
    Goal("first of 10 000 outcomes, server answers in 50 ms, ms", _highest("first_result", "first outcome")),
    Goal("cancel 1024 streams, CPU × aiohttp", _highest("cancellation", "times"), 1.5),
    Goal("cancel 1024 streams, until all sockets are closed, ms", _highest("cancellation", "wall")),
    Goal("the same with aiohttp, ms", _highest("cancellation", "aiohttp, wall")),
    Goal("total deadline, × asyncio.timeout around aiohttp", _highest("deadline"), 1.05, 1.01, form="{:.4g}"),
    Goal("import duet, CPU × import openai", _highest("imports", "of openai"), 0.25, 0.15),
    Goal("import duet, CPU × import httpx", _highest("imports", "of httpx")),
    Goal("import duet, CPU ms", _highest("imports", "duet")),
    Goal("openai, aiohttp, httpx imported with it", _highest("imports", "heavy"), 0),
    Goal("rewards of a training step, wall time × aiohttp", _highest("training_step", "times"), 2, 1.2),
    Goal("one reward call at a time, × 64 at once", _highest("training_step", "of serial")),
)
