"""Groups in the making: the samples of a prompt asked for, kept, and scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import anyio
import attrs

from duet import Completion, Endpoint, EndpointError, Ledger, ProfileSchema, Reward, RewardEnv, Sampling
from duet_train.dataset import Row
from duet_train.groups import Group, Sample


class GroupMaker:
    """Samples and scores the group of a row.

    Args:
        endpoints: By the name of the model.
        envs: The env of a schema.
        ledger: Where every finished generation is kept.
        arms: Model and temperature of each sample of a group, in the order in which they are asked for.
        sampling: Of all of them; temperature and seed are set here.
        seed: Of the run.
        constrained: Decode under the schema's grammar.
        concurrency: Most generations under way.
    """

    def __init__(
        self,
        endpoints: Mapping[str, Endpoint],
        envs: Callable[[ProfileSchema], RewardEnv],
        ledger: Ledger,
        *,
        arms: Sequence[tuple[str, float]],
        sampling: Sampling,
        seed: int,
        constrained: bool,
        concurrency: int,
    ) -> None:
        self._endpoints = endpoints
        self._envs = envs
        self._ledger = ledger
        self._arms = arms
        self._base = sampling
        # One of its own for each sample of a group: the ledger would take two of one seed for the same.
        self._seeds = [1000 * seed + place for place in range(len(arms))]
        self._constrained = constrained
        self._limit = anyio.CapacityLimiter(concurrency)

    async def group(self, row: Row) -> Group:
        """The scored group of a row, whole or not at all.

        Args:
            row: Of training.

        Raises:
            EndpointError: An endpoint failed. What was generated is in the ledger, and is not asked again.
        """
        completions = await self._generate(row)
        # Equal texts are scored once: the ledger would not know of the one while the other is being asked.
        texts = list(dict.fromkeys(completion.text for completion in completions))
        scored = await self._envs(row.schema).score_many(texts, [row.example] * len(texts))
        by_text = dict(zip(texts, scored, strict=True))
        rewards = [by_text[completion.text] for completion in completions]
        for reward in rewards:
            if isinstance(reward.error, EndpointError):
                raise reward.error
        example = row.example
        return Group(
            example=row.id,
            user=example.user.id,
            item=example.item.id,
            gold=example.rating,
            scale=example.scale,
            samples=tuple(_sample(*made) for made in zip(self._arms, self._seeds, completions, rewards, strict=True)),
        )

    async def _generate(self, row: Row) -> list[Completion]:
        """All completions of a row. One that fails stops no other, since each is kept as soon as it is there."""
        made: dict[int, Completion] = {}
        errors: list[Exception] = []

        async def one(place: int) -> None:
            endpoint = self._endpoints[self._arms[place][0]]
            try:
                async with self._limit:
                    sampling = self._sampling(place, row.schema)
                    made[place] = await self._ledger.generate(
                        endpoint, row.messages, sampling, schema=row.schema, users=row.subjects
                    )
            except Exception as exc:  # raised below: a task group would wrap it, and cancel the others
                errors.append(exc)

        async with anyio.create_task_group() as group:
            for place in range(len(self._arms)):
                group.start_soon(one, place)
        if errors:
            raise min(errors, key=lambda error: isinstance(error, EndpointError))
        return [made[place] for place in range(len(self._arms))]

    def _sampling(self, place: int, schema: ProfileSchema) -> Sampling:
        sampling = attrs.evolve(self._base, temperature=self._arms[place][1], seed=self._seeds[place])
        return sampling.under_grammar(schema.grammar()) if self._constrained else sampling


def _sample(arm: tuple[str, float], seed: int, completion: Completion, reward: Reward) -> Sample:
    usage, error = completion.usage, reward.error
    return Sample(
        model=arm[0],
        temperature=arm[1],
        seed=seed,
        completion=completion.text,
        finish_reason=completion.finish_reason,
        reward=reward.value,
        terms=dict(reward.terms),
        rating=None if reward.rating is None else reward.rating.value,
        error=None if error is None else f"{type(error).__name__}: {error}",
        prompt_tokens=None if usage is None else usage.prompt_tokens,
        completion_tokens=None if usage is None else usage.completion_tokens,
    )
