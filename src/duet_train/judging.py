"""Profiles made, judged by a frozen recommender, and judged again with the pairing broken."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import anyio
import attrs
import numpy as np
import numpy.typing as npt

from duet import DuetError, Item, JointProfile, Rating, Recommender, Usage, User
from duet_train.baselines import Profiler
from duet_train.data.prepared import PreparedExample

T = TypeVar("T")
R = TypeVar("R")
Floats = npt.NDArray[np.float64]


@attrs.frozen
class Made:
    """What a method made of one row: a profile or an error."""

    profile: JointProfile | None
    error: Exception | None = attrs.field(default=None, eq=False)


@attrs.frozen(kw_only=True)
class Judgement:
    """One method over all rows; arrays are one number a row, nan where there is none.

    Args:
        made: Profile or error of each row.
        predicted: With the true pairing.
        shuffled_users: All that the recommender sees of the user comes from another row's user. Where one generation
            wrote both sides, the item's text may still speak of the right user: the gain is then too small, never too
            large.
        shuffled_items: The item's profile comes from another row's item; its title stays.
        errors: Names of what went wrong, profile first, by row; "" where nothing did.
        seconds: Wall time of making the profiles; near zero where a ledger held them.
        calls: Generations that the profiles took, those that a ledger held included; None where nobody counted.
        shuffled_user_errors: As `errors`, with the shuffled users; empty where nobody kept them.
        shuffled_item_errors: The same with the shuffled items.
        reasons: What the first error of each name says, of the names in `errors` that are this package's.
    """

    made: Sequence[Made]
    predicted: Floats
    shuffled_users: Floats
    shuffled_items: Floats
    errors: Sequence[str]
    seconds: float
    calls: int | None = None
    shuffled_user_errors: Sequence[str] = ()
    shuffled_item_errors: Sequence[str] = ()
    reasons: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def usage(self) -> Usage:
        """Tokens of all profiles together."""
        used = [made.profile.usage for made in self.made if made.profile is not None and made.profile.usage is not None]
        return Usage(
            sum(usage.prompt_tokens for usage in used),
            sum(usage.completion_tokens for usage in used),
            cached_tokens=sum(usage.cached_tokens for usage in used),
            estimated=any(usage.estimated for usage in used),
        )


async def judge(
    rows: Sequence[PreparedExample],
    profiler: Profiler,
    recommender: Recommender,
    *,
    concurrency: int,
    seed: int,
    step: Callable[[], object] = lambda: None,
) -> Judgement:
    """Make the profiles of all rows and predict from them, with the true and with broken pairings.

    Args:
        rows: What is predicted.
        profiler: The method.
        recommender: Frozen, and the same for every method.
        concurrency: Most calls under way.
        seed: Of the shuffles.
        step: Called after each of the four calls of a row.
    """
    started = time.monotonic()

    async def make(row: PreparedExample) -> Made:
        try:
            return Made(await profiler.profile(row.profile_user, row.example.item))
        except Exception as exc:
            return Made(None, exc)

    made = await in_order(make, rows, concurrency, step)
    seconds = time.monotonic() - started
    return await _judged(rows, made, seconds, recommender, concurrency=concurrency, seed=seed, step=step)


async def rejudge(
    rows: Sequence[PreparedExample],
    before: Judgement,
    recommender: Recommender,
    *,
    concurrency: int,
    seed: int,
    step: Callable[[], object] = lambda: None,
) -> Judgement:
    """The same profiles before another recommender.

    Args:
        rows: As they were judged before.
        before: What was made of them.
        recommender: The other one.
        concurrency: Most calls under way.
        seed: Of the shuffles.
        step: Called after each of the three calls of a row.
    """
    return await _judged(rows, before.made, 0.0, recommender, concurrency=concurrency, seed=seed, step=step)


async def _judged(
    rows: Sequence[PreparedExample],
    made: Sequence[Made],
    seconds: float,
    recommender: Recommender,
    *,
    concurrency: int,
    seed: int,
    step: Callable[[], object],
) -> Judgement:
    users = derangement([row.example.user.id for row in rows], seed)
    items = derangement([row.example.item.id for row in rows], seed + 1)
    here = range(len(rows))
    predicted, errors = await _predict(rows, made, list(here), list(here), recommender, concurrency, step)
    by_user, user_errors = await _predict(rows, made, users, list(here), recommender, concurrency, step)
    by_item, item_errors = await _predict(rows, made, list(here), items, recommender, concurrency, step)
    return Judgement(
        made=made,
        predicted=predicted,
        shuffled_users=by_user,
        shuffled_items=by_item,
        errors=_names(errors),
        seconds=seconds,
        shuffled_user_errors=_names(user_errors),
        shuffled_item_errors=_names(item_errors),
        reasons=_reasons(errors),
    )


def _names(errors: Sequence[Exception | None]) -> list[str]:
    return ["" if error is None else type(error).__name__ for error in errors]


def _reasons(errors: Sequence[Exception | None]) -> dict[str, str]:
    """What the first error of each name says; those of other packages may say anything."""
    ours = [error for error in errors if isinstance(error, DuetError)]
    return {type(error).__name__: " ".join(str(error).split()) for error in reversed(ours)}


async def in_order(
    function: Callable[[T], Awaitable[R]], values: Sequence[T], concurrency: int, step: Callable[[], object]
) -> list[R]:
    """Apply `function` to every value, at most `concurrency` at once; results in the order of the values."""
    results: dict[int, R] = {}
    waiting = iter(enumerate(values))

    async def work() -> None:
        for index, value in waiting:
            results[index] = await function(value)
            step()

    async with anyio.create_task_group() as group:
        for _ in range(min(concurrency, len(values))):
            group.start_soon(work)
    return [results[index] for index in range(len(values))]


def raw_user(row: PreparedExample, profile: JointProfile) -> User:
    """The user as the recommender sees it beside the profile: the recent rows that were set apart.

    Where none were set apart, a method that makes no profile (10H) shows the history itself, and the others show none.

    Args:
        row: What is predicted.
        profile: What the method made.
    """
    bare = profile.user is None and profile.item is None
    return row.example.user if bare and not row.recent_user.history else row.recent_user


async def rated(recommender: Recommender, user: User, item: Item, profile: JointProfile) -> float:
    """What a recommender predicts, as a number.

    Args:
        recommender: Any.
        user: What it may see of the user beside the profile.
        item: What it may see of the item.
        profile: What a method made.

    Raises:
        RecordError: It returned no finite number.
    """
    answer = await recommender.predict(user, item, profile)
    return answer.value if isinstance(answer, Rating) else Rating(answer).value


def derangement(keys: Sequence[str], seed: int) -> list[int]:
    """For each row another one whose key differs, in random order.

    Rows are grouped by key, and everyone takes the row that is the largest group's size further on. Where one key has
    more than half of the rows some rows must meet their own key again.

    Args:
        keys: One a row.
        seed: Of the order.
    """
    shuffled = np.random.default_rng(seed).permutation(len(keys))
    first_seen = {key: place for place, key in reversed(list(enumerate(keys[row] for row in shuffled)))}
    order = sorted(shuffled.tolist(), key=lambda row: first_seen[keys[row]])
    shift = max(Counter(keys).values(), default=0)
    partner = dict(zip(order, order[shift:] + order[:shift], strict=True))
    return [partner[row] for row in range(len(keys))]


async def _predict(
    rows: Sequence[PreparedExample],
    made: Sequence[Made],
    users: Sequence[int],
    items: Sequence[int],
    recommender: Recommender,
    concurrency: int,
    step: Callable[[], object],
) -> tuple[Floats, list[Exception | None]]:
    """Predictions and errors for every row, the user from row `users[i]`, the item's text from `items[i]`."""

    async def one(index: int) -> tuple[float, Exception | None]:
        sides = made[users[index]], made[items[index]]
        user_side, item_side = (side.profile for side in sides)
        if user_side is None or item_side is None:
            return math.nan, next((side.error for side in sides if side.error), None)
        profile = JointProfile(user=user_side.user, item=item_side.item)
        row = rows[index].example
        try:
            user = raw_user(rows[users[index]], user_side)
            return row.scale.clip(await rated(recommender, user, row.item, profile)), None
        except Exception as exc:
            return math.nan, exc

    answers = await in_order(one, range(len(rows)), concurrency, step)
    return np.array([value for value, _ in answers], dtype=np.float64), [error for _, error in answers]
