"""Candidates of one user, each with its joint profile and prediction, as they come."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager

from duet._concurrency import map_unordered
from duet._log import INFO, hears, log
from duet._profiler import JointProfiler
from duet._recommender import Recommender, predicted
from duet._records import Item, User
from duet._results import Candidate, JointProfile


def rank(
    user: User,
    candidates: Iterable[Item] | AsyncIterable[Item],
    *,
    profiler: JointProfiler,
    recommender: Recommender,
    concurrency: int = 16,
) -> AbstractAsyncContextManager[AsyncIterator[Candidate]]:
    """Profile and predict every candidate; they come as they finish, as many as went in.

    Sort what you keep: ``sorted(found, key=lambda candidate: -candidate.rating.value)``. A candidate that fails has an
    error and no rating; it is never given a low score in silence. Equal ratings are ties: break them at random, or
    count them in expectation, never by input order.

    Args:
        user: With the history to go by.
        candidates: Items, each with the evidence to go by.
        profiler: Makes the joint profiles; the prompts share the user's part, which a server's prefix cache serves.
        recommender: Predicts the ratings.
        concurrency: Most candidates under way.

    Returns:
        ``async with rank(…) as candidates``, then ``async for candidate in candidates``.

    Raises:
        ConfigurationError: `concurrency` is below 1.
    """

    async def judge(index: int, item: Item) -> Candidate:
        profile: JointProfile | None = None
        try:
            profile = await profiler.profile(user, item)
            rating = await predicted(recommender, user, item, profile)
        except Exception as exc:
            log().warning("candidate.failed", index=index, error=type(exc).__name__, profiled=profile is not None)
            return Candidate(index=index, item=item, profile=profile, error=exc)
        if hears(INFO):
            log().info("candidate.rated", index=index, rating=rating.value, from_ledger=profile.from_ledger)
        return Candidate(index=index, item=item, profile=profile, rating=rating)

    return map_unordered(judge, candidates, concurrency)
