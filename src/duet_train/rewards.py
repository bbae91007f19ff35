"""A `duet.RewardEnv` in the shape that TRL calls."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

import anyio
import attrs

from duet import CompletionError, DuetError, EndpointError, ProfileSchema, Reward, RewardEnv
from duet_train.dataset import Row

OpenEnvs = Callable[[], AbstractAsyncContextManager[Callable[[ProfileSchema], RewardEnv]]]
Key = tuple[int, str]  # id of the row, completion
CACHED = 20_000
FORM = "form"


@attrs.frozen(kw_only=True)
class Scored:
    """One completion of a step and what it earned.

    Args:
        row: What it was written for.
        completion: The policy's whole text.
        reward: Its reward.
        tokens: Tokens of the completion; None where nobody counted.
    """

    row: Row
    completion: str
    reward: Reward
    tokens: int | None = None


class TRLReward:
    """Gives TRL the rewards of its completions.

    The env is made on the event loop that asks first, which is TRL's own, since an HTTP client belongs to one loop. A
    reward without a value stays None, so that TRL leaves the completion out of its group: it is never 0. Rewards are
    remembered for as long as it lives; beyond that, the answers of a recommender with a ledger are kept there, each as
    soon as it came, so that a run that was killed in mid-batch asks only for the rest.

    Args:
        open_envs: Opens the way to the env of each schema.
        rows: By the id in the column "example".
        attempts: How often a reward is asked for in all, where the infrastructure fails; the endpoint's own retries
            are within each.
        max_failed_share: A step in which more of the rewards have no value ends the run.
        pause: Seconds before the second attempt; each further one waits twice as long.
        cached: Whether a reward holds for the whole run; not so where an embedder learns beside the policy.
    """

    def __init__(
        self,
        open_envs: OpenEnvs,
        rows: Mapping[int, Row],
        *,
        attempts: int = 2,
        max_failed_share: float = 0.5,
        pause: float = 1.0,
        cached: bool = True,
    ) -> None:
        self._open_envs = open_envs
        self._rows = rows
        self._attempts = attempts
        self._max_failed_share = max_failed_share
        self._pause = pause
        self._cached = cached
        self._stack = AsyncExitStack()
        self._env: Callable[[ProfileSchema], RewardEnv] | None = None
        self._cache: OrderedDict[Key, Reward] = OrderedDict()
        self._in_batch = False
        self._lock = anyio.Lock()
        self._batch: Sequence[Any] | None = None
        self._batch_rewards: list[Reward] = []
        self.scored: list[Scored] = []
        """What was scored since somebody last took it."""
        self.seconds: float = 0.0
        """Wall time of the last call."""

    async def reward(
        self, prompts: Sequence[Any], completions: Sequence[Any], *, example: Sequence[int], **columns: Any
    ) -> list[float | None]:
        """The rewards of a batch, as TRL asks for them: hand over this bound method.

        Args:
            prompts: Not looked at.
            completions: As chat messages or texts.
            example: The id of each row.
            **columns: Not looked at but for "completion_ids".

        Raises:
            DuetError: Too many have no value.
        """
        started = time.monotonic()
        texts = [completion if isinstance(completion, str) else completion[-1]["content"] for completion in completions]
        rewards = await self.score(texts, example)
        self.seconds = time.monotonic() - started
        counted = columns.get("completion_ids") or [None] * len(texts)
        self.scored += [
            Scored(row=self._rows[one], completion=text, reward=reward, tokens=None if ids is None else len(ids))
            for one, text, reward, ids in zip(example, texts, rewards, counted, strict=True)
        ]
        self._stop_if_failing(rewards)
        return [reward.value for reward in rewards]

    def functions(self, terms: Sequence[str]) -> list[Callable[..., Any]]:
        """A reward function for each term and one for the form, for TRL to normalise one by one.

        The completions are scored once, by whichever is called first. A completion that earned the format penalty has
        no value in any term, and −1 in "form", where others have 0. One without a reward has no value anywhere, even
        where some of its terms have one, so that TRL leaves it out of its group as it does where terms are summed.

        Args:
            terms: Names of the env's terms.
        """
        return [_Part(self, name).function() for name in (*terms, FORM)]

    async def parts(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[Reward]:
        """The whole rewards of a batch, which is scored once for all functions that ask.

        Args:
            prompts: As for `reward`.
            completions: As for `reward`; the very same list in each call for one batch.
            **columns: As for `reward`.
        """
        async with self._lock:
            if self._batch is not completions:
                before = len(self.scored)
                await self.reward(prompts, completions, **columns)
                self._batch, self._batch_rewards = completions, [one.reward for one in self.scored[before:]]
        return self._batch_rewards

    async def score(self, completions: Sequence[str], ids: Sequence[int]) -> list[Reward]:
        """The whole rewards of completions, in order.

        Args:
            completions: The policy's texts.
            ids: Of the row that each was written for.
        """
        found: list[Reward | None] = [None] * len(completions)
        for attempt in range(self._attempts):
            left = [place for place, reward in enumerate(found) if reward is None or _may_pass(reward)]
            if not left:
                break
            if self._in_batch:
                left = list(range(len(found)))  # the others of the batch are part of each reward
            if attempt:
                await anyio.sleep(self._pause * 2 ** (attempt - 1))
            for place, reward in zip(
                left, await self._ask([(ids[one], completions[one]) for one in left]), strict=True
            ):
                found[place] = reward
        return [reward for reward in found if reward is not None]

    async def aclose(self) -> None:
        """Close what the env holds open; on the loop that asked."""
        self._env = None
        await self._stack.aclose()

    async def _ask(self, keys: Sequence[Key]) -> list[Reward]:
        """A batch for each schema; its rewards in the order of the keys."""
        env = await self._envs()
        self._in_batch = any(env(self._rows[one].schema).in_batch for one, _ in keys[:1])
        found: list[Reward | None] = [None] * len(keys)
        for schema in dict.fromkeys(self._rows[one].schema for one, _ in keys):
            places = [place for place, (one, _) in enumerate(keys) if self._rows[one].schema == schema]
            for place, reward in zip(places, await self._scored(env(schema), [keys[i] for i in places]), strict=True):
                found[place] = reward
        return [reward for reward in found if reward is not None]

    async def _scored(self, env: RewardEnv, keys: Sequence[Key]) -> list[Reward]:
        """Equal completions of one row are scored once, now and later; where a term looks at the batch, never."""
        if env.in_batch:
            return await self._score_many(env, keys)
        new = [key for key in dict.fromkeys(keys) if key not in self._cache]
        known = {key: self._cache[key] for key in keys if key in self._cache}
        made = dict(zip(new, await self._score_many(env, new), strict=True))
        self._remember(made)
        return [(known | made)[key] for key in keys]

    async def _score_many(self, env: RewardEnv, keys: Sequence[Key]) -> list[Reward]:
        return await env.score_many([text for _, text in keys], [self._rows[one].example for one, _ in keys])

    def _remember(self, made: Mapping[Key, Reward]) -> None:
        if not self._cached:
            return
        self._cache.update({key: reward for key, reward in made.items() if reward.value is not None})
        while len(self._cache) > CACHED:
            self._cache.popitem(last=False)

    async def _envs(self) -> Callable[[ProfileSchema], RewardEnv]:
        if self._env is None:
            self._env = await self._stack.enter_async_context(self._open_envs())
        return self._env

    def _stop_if_failing(self, rewards: Sequence[Reward]) -> None:
        failed = [reward for reward in rewards if reward.value is None]
        if len(failed) > self._max_failed_share * len(rewards):
            error = failed[0].error
            raise DuetError(
                f"{len(failed)} of {len(rewards)} rewards of this step have no value "
                f"({type(error).__name__}: {error}): the run stops rather than learn from the rest"
            ) from error


@attrs.frozen
class _Part:
    """One term of a TRLReward."""

    whole: TRLReward
    name: str

    def function(self) -> Callable[..., Any]:
        """What TRL calls; TRL takes the metric's name from it."""

        async def term(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
            rewards = await self.whole.parts(prompts, completions, **columns)
            return [self._value(reward) for reward in rewards]

        term.__name__ = self.name
        return term

    def _value(self, reward: Reward) -> float | None:
        if reward.value is None:
            return None
        # A reward with both a value and an error is a penalty: for the form, or under strict_paper for the rating.
        penalised = reward.error is not None
        if self.name == FORM:
            return -float(penalised)
        return None if penalised else reward.terms.get(self.name)


def _may_pass(reward: Reward) -> bool:
    return reward.value is None and isinstance(reward.error, EndpointError)


def malformed(reward: Reward) -> bool:
    """Whether the completion was no profile.

    Args:
        reward: What it earned.
    """
    return isinstance(reward.error, CompletionError)
