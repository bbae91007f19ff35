"""The frozen recommender of a training run, and the env that scores with it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from duet import (
    ConfigurationError,
    Embedder,
    HTTPEmbedder,
    HTTPEndpoint,
    LeakageReward,
    Ledger,
    LengthReward,
    LLMRecommender,
    ProfileSchema,
    RatingReward,
    RatingScale,
    Recommender,
    RewardEnv,
    RewardTerm,
    Sampling,
    local,
)
from duet_train.settings import Settings
from duet_train.tools import address_and_model

LOCAL = "local"
HEAD = "head:"


def check_recommender(settings: Settings) -> None:
    """What can be known to be wrong with the recommender before anything is asked.

    Args:
        settings: With `recommender`.

    Raises:
        ConfigurationError: It is missing, no address, or no folder of a head.
    """
    spec = settings.recommender
    if not spec:
        raise ConfigurationError("recommender must be URL,MODEL, head:DIR, or local: whose error is the reward?")
    if spec.startswith(HEAD):
        if not (Path(spec.removeprefix(HEAD)) / "head.json").is_file():
            raise ConfigurationError(f"recommender: {spec!r} is no folder that `python -m duet_train head` wrote")
    elif spec != LOCAL:
        address_and_model(spec, "recommender")


@asynccontextmanager
async def open_recommender(
    settings: Settings, scale: RatingScale, *, recent: int = 0, ledger: Ledger | None = None
) -> AsyncIterator[Recommender]:
    """The recommender that the settings name, for as long as the block lasts.

    Args:
        settings: Checked.
        scale: Of the data.
        recent: Most raw rows of the user that it may show.
        ledger: Where finished answers are kept and looked up.
    """
    spec = settings.recommender
    if spec.startswith(HEAD):
        from duet_train.head import HeadRecommender

        yield HeadRecommender.load(Path(spec.removeprefix(HEAD)))
        return
    async with AsyncExitStack() as stack:
        if spec == LOCAL:
            endpoint: Any = await stack.enter_async_context(local.engine())
        else:
            address, model = address_and_model(spec, "recommender")
            endpoint = await stack.enter_async_context(HTTPEndpoint(address, model, api_key=key(settings)))
        yield LLMRecommender(
            endpoint,
            mode=settings.recommender_mode,  # type: ignore[arg-type]
            scale=scale,
            recent=recent,
            review_chars=settings.review_chars,
            sampling=Sampling(
                temperature=0.0,
                seed=42,
                top_logprobs=200 if spec == LOCAL and settings.recommender_mode == "expected" else None,
                extra_body=settings.extra_body,
            ),
            ledger=ledger,
        )


@asynccontextmanager
async def open_terms(
    settings: Settings,
    scale: RatingScale,
    *,
    recent: int = 0,
    ledger: Ledger | None = None,
    embedder: Embedder | None = None,
) -> AsyncIterator[list[RewardTerm]]:
    """The terms that the settings name, for as long as the block lasts.

    Args:
        settings: Checked.
        scale: Of the data.
        recent: Most raw rows of the user that the recommender may show.
        ledger: Where finished answers are kept and looked up.
        embedder: For terms in embedding space, instead of the one that the settings name.

    Raises:
        ConfigurationError: A term is unknown.
    """
    async with AsyncExitStack() as stack:

        async def rating(weight: float) -> RewardTerm:
            opened = open_recommender(settings, scale, recent=recent, ledger=ledger)
            recommender = await stack.enter_async_context(opened)
            return RatingReward(recommender, weight=weight, concurrency=settings.recommender_concurrency)

        async def length(weight: float) -> RewardTerm:
            return LengthReward(settings.length_chars, weight=weight)

        async def leakage(weight: float) -> RewardTerm:
            return LeakageReward(weight=weight)

        makers: dict[str, Callable[[float], Any]] = {"rating": rating, "length": length, "leakage": leakage}
        if unknown := sorted(settings.terms.keys() - makers.keys()):
            raise ConfigurationError(f"rewards: no term {unknown[0]!r}: there are {', '.join(makers)}")
        yield [await makers[name](weight) for name, weight in settings.terms.items()]


@asynccontextmanager
async def open_envs(
    settings: Settings, scale: RatingScale, *, recent: int = 0, ledger: Ledger | None = None
) -> AsyncIterator[Callable[[ProfileSchema], RewardEnv]]:
    """The way to the env of a schema, for as long as the block lasts; all share their terms.

    Args:
        settings: Checked.
        scale: Of the data.
        recent: Most raw rows of the user that the recommender may show.
        ledger: Where finished answers are kept and looked up.
    """
    async with open_terms(settings, scale, recent=recent, ledger=ledger) as terms:
        yield lambda schema: RewardEnv(terms, schema=schema, strict_paper=settings.strict_paper)


def open_embedder(settings: Settings) -> Any:
    """The embedder that the settings name, as an async context manager.

    Args:
        settings: With `embedder`.
    """
    if settings.embedder == "minilm":
        return _minilm()
    address, model = address_and_model(settings.embedder, "embedder")
    return HTTPEmbedder(address, model, api_key=key(settings))


@asynccontextmanager
async def _minilm() -> AsyncIterator[Embedder]:
    from duet_train.minilm import MiniLM

    yield MiniLM()


def key(settings: Settings) -> str | None:
    """The key of all endpoints, from the environment.

    Args:
        settings: With `api_key_env`.
    """
    return os.environ.get(settings.api_key_env) or None
