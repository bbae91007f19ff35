"""Joint profiles: one pair, one pair as it is written, or any number."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Self

import attrs
from anyio.lowlevel import checkpoint

from duet._concurrency import map_unordered
from duet._endpoint import Endpoint
from duet._errors import ConfigurationError, IncompleteStream, RecordError
from duet._events import GenerationDone, GenerationEnd, ProfileEvent, TextDelta
from duet._ledger import Ledger, digest_of, read_through, subjects
from duet._log import INFO, hears, log
from duet._parser import SectionParser, joint_profile, parse_profile
from duet._prompts import JointPrompt, Message
from duet._records import Item, User
from duet._results import Completion, Cues, JointProfile, Outcome, Usage
from duet._schema import ProfileSchema
from duet._settings import Sampling

Pair = tuple[User, Item]


class JointProfiler:
    """Writes the profiles of a user and an item, aligned with each other, in one generation (DUET).

    Holds settings only, so one profiler may serve any number of tasks.

    Args:
        endpoint: What generates.
        prompt: What the model is asked, and in which shape it answers.
        sampling: How to sample; 896 tokens are the paper's limit.
        ledger: Where finished generations are kept and looked up.
        constrained: Decode under the schema's grammar, for models that do not keep to the form by themselves.

    Example:
        ```python
        async with HTTPEndpoint("http://127.0.0.1:8000/v1", "Qwen/Qwen3-8B") as endpoint:
            profile = await JointProfiler(endpoint).profile(user, item)
        ```
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        prompt: JointPrompt = JointPrompt(),
        sampling: Sampling = Sampling(max_tokens=896),
        ledger: Ledger | None = None,
        constrained: bool = False,
    ) -> None:
        if "profile" not in prompt.schema.sections:
            raise ConfigurationError(f"a JointProfiler needs the section 'profile', got {prompt.schema.sections!r}")
        self._endpoint = endpoint
        self._prompt = prompt
        self._sampling = sampling
        self._ledger = ledger
        self._constrained = constrained

    async def profile(self, user: User, item: Item, *, cues: Cues | None = None) -> JointProfile:
        """The joint profile of one pair.

        Args:
            user: With the history to go by.
            item: With the evidence to go by.
            cues: Cues to build on instead of writing new ones.

        Raises:
            EndpointError: The infrastructure's fault.
            CompletionError: The completion is no profile.
            LedgerError: The ledger cannot be read or written.
        """
        job = self._job(user, item, cues)
        completion = await read_through(self._ledger, self._endpoint, job.messages, job.sampling, job.schema, job.users)
        return parse_profile(completion, job.schema, cues)

    def stream(self, user: User, item: Item, *, cues: Cues | None = None) -> AbstractAsyncContextManager[ProfileStream]:
        """The same as it is written: ``async with profiler.stream(…) as events``, then ``async for event in events``.

        Leaving the block early stops the generation on the server. Errors come as from `profile`, on entering the block
        or while iterating.

        Args:
            user: With the history to go by.
            item: With the evidence to go by.
            cues: Cues to build on instead of writing new ones.
        """
        return _Streaming(self._endpoint, self._ledger, self._job(user, item, cues), cues)

    def profile_many(
        self, pairs: Iterable[Pair] | AsyncIterable[Pair], *, concurrency: int = 32
    ) -> AbstractAsyncContextManager[AsyncIterator[Outcome]]:
        """Profiles of any number of pairs, as they finish: as many outcomes as pairs.

        Pairs are drawn as they are needed: at most `concurrency` are drawn and not yet handed over. A pair that fails
        is an outcome with an error. With a ledger, pairs that are in it cost nothing, so a run that broke off is run
        again.

        The prompts of one user begin alike, and a server's prefix cache serves that beginning where they follow each
        other. So the pairs of a list are sent user by user, in whatever order they stand; those of an iterator go out
        as they are drawn.

        Args:
            pairs: (user, item), from an iterable or an async iterable of any length.
            concurrency: Most pairs under way.

        Raises:
            ConfigurationError: `concurrency` is below 1.
        """
        if not isinstance(pairs, list | tuple):
            return map_unordered(self._outcome, pairs, concurrency)
        found = tuple(pairs)
        return map_unordered(lambda _, place: self._outcome(place, found[place]), _user_by_user(found), concurrency)

    async def _outcome(self, index: int, pair: Pair) -> Outcome:
        user: User | None = None
        item: Item | None = None
        started = time.monotonic()
        try:
            user, item = _checked(pair, index)
            profile = await self.profile(user, item)
        except Exception as exc:
            log().warning("pair.failed", index=index, error=type(exc).__name__, seconds=_since(started))
            return Outcome(index=index, user=user, item=item, error=exc)
        if hears(INFO):
            log().info("pair.profiled", index=index, seconds=_since(started), **_figures(profile))
        return Outcome(index=index, user=user, item=item, profile=profile)

    def _job(self, user: User, item: Item, cues: Cues | None) -> _Job:
        if not (isinstance(user, User) and isinstance(item, Item)):
            raise RecordError(f"a pair is a User and an Item, got {type(user).__name__} and {type(item).__name__}")
        schema = self._prompt.schema_for(cues)
        sampling = self._sampling.under_grammar(schema.grammar()) if self._constrained else self._sampling
        users = frozenset[str]() if self._ledger is None else self._prompt.subjects(user, item)
        if cues is not None:  # they may be made from rows that the prompt does not show
            users |= subjects(self._ledger, user, item)
        return _Job(self._prompt.render(user, item, cues=cues), sampling, schema, users)


class ProfileStream:
    """The events of one profile: `SectionDelta` and `SectionDone` as they come, `GenerationDone` last.

    Made by `JointProfiler.stream`. Once it has failed, every further step raises the same error.

    Args:
        deltas: What an endpoint's stream yields.
        schema: The shape of the completion.
        cues: Cues that were given in the prompt; the profile carries them where the schema leaves them out.
        keep: Awaited with the whole completion before it is parsed, so that a malformed one is kept too; None keeps
            none.
    """

    def __init__(
        self,
        deltas: AsyncIterator[TextDelta | GenerationEnd],
        schema: ProfileSchema,
        cues: Cues | None,
        keep: Callable[[Completion], Awaitable[None]] | None,
    ) -> None:
        self._deltas = deltas
        self._parser = SectionParser(schema)
        self._cues = cues
        self._keep = keep
        self._events: deque[ProfileEvent] = deque()
        self._profile: JointProfile | None = None
        self._failure: Exception | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ProfileEvent:
        while not self._events:
            if self._failure is not None:
                raise self._failure
            if self._profile is not None:
                raise StopAsyncIteration
            try:
                await self._advance()
            except Exception as exc:
                self._failure = exc
                raise
        return self._events.popleft()

    async def get_final_profile(self) -> JointProfile:
        """Read to the end and return the profile.

        Raises:
            EndpointError: The infrastructure's fault.
            CompletionError: The completion is no profile.
        """
        async for _ in self:
            pass
        assert self._profile is not None
        return self._profile

    async def _advance(self) -> None:
        step = await anext(self._deltas, None)
        if isinstance(step, TextDelta):
            self._events.extend(self._parser.feed(step.text))
        elif step is not None:
            await self._finish(step.completion)
        else:
            raise IncompleteStream("the endpoint's stream ended without a GenerationEnd")

    async def _finish(self, completion: Completion) -> None:
        if self._keep is not None:
            await self._keep(completion)
        sections = self._parser.close(completion.finish_reason)
        self._profile = joint_profile(sections, completion, self._cues)
        self._events.append(GenerationDone(self._profile, completion.finish_reason))


@attrs.frozen
class _Job:
    """What one profile asks of the endpoint."""

    messages: tuple[Message, ...]
    sampling: Sampling
    schema: ProfileSchema
    users: frozenset[str]


class _Streaming(AbstractAsyncContextManager[ProfileStream]):
    """A block around the events of one profile; no `asynccontextmanager`, for the same reason as in the endpoint."""

    def __init__(self, endpoint: Endpoint, ledger: Ledger | None, job: _Job, cues: Cues | None) -> None:
        self._endpoint, self._ledger, self._job, self._cues = endpoint, ledger, job, cues
        self._asked: AbstractAsyncContextManager[AsyncIterator[TextDelta | GenerationEnd]] | None = None

    async def __aenter__(self) -> ProfileStream:
        job, ledger, model = self._job, self._ledger, self._endpoint.model
        digest = "" if ledger is None else digest_of(job.messages, model, job.sampling, job.schema)
        kept = None if ledger is None else await ledger.get(digest)
        if kept is not None:
            return ProfileStream(_Replay(kept), job.schema, self._cues, None)

        async def keep(completion: Completion) -> None:
            if ledger is not None:
                await ledger.put(digest, completion, model=model, messages=job.messages, users=job.users)

        self._asked = self._endpoint.stream(job.messages, job.sampling)
        return ProfileStream(await self._asked.__aenter__(), job.schema, self._cues, keep)

    async def __aexit__(self, *exc_info: Any) -> bool | None:
        return None if self._asked is None else await self._asked.__aexit__(*exc_info)


class _Replay:
    """A kept completion as a stream; no async generator, since nobody would close it."""

    def __init__(self, completion: Completion) -> None:
        self._steps = iter((TextDelta(completion.text), GenerationEnd(completion)))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TextDelta | GenerationEnd:
        await checkpoint()
        for step in self._steps:
            return step
        raise StopAsyncIteration


def _user_by_user(pairs: Sequence[Pair]) -> Iterable[int]:
    """The places of the pairs: those of one user together, users in the order in which they first appear."""
    places: dict[str | None, list[int]] = {}
    for place, pair in enumerate(pairs):
        user = pair[0] if isinstance(pair, tuple) and pair else None
        places.setdefault(user.id if isinstance(user, User) else None, []).append(place)
    return itertools.chain.from_iterable(places.values())


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)


def _figures(profile: JointProfile) -> dict[str, object]:
    """What an event says of a profile."""
    usage = profile.usage or Usage()
    return {
        "model": profile.model,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "from_ledger": profile.from_ledger,
    }


def _checked(pair: Pair, index: int) -> Pair:
    if isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], User) and isinstance(pair[1], Item):
        return pair
    raise RecordError(
        f"pairs[{index}] must be a (User, Item) tuple, got {type(pair).__name__}", field=f"pairs[{index}]"
    )
