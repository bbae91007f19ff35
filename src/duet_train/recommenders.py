"""The frozen recommender of a training run, and the env that scores with it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import anyio

from duet import (
    CatalogueReward,
    ConfigurationError,
    ContrastiveReward,
    Embedder,
    Endpoint,
    HTTPEmbedder,
    HTTPEndpoint,
    LeakageReward,
    Ledger,
    LengthReward,
    LLMRecommender,
    NextItemReward,
    ProfileSchema,
    RatingReward,
    Recommender,
    RewardEnv,
    RewardTerm,
    Sampling,
    SentimentReward,
    local,
)
from duet_train.card import read_card
from duet_train.data.prepared import Prepared
from duet_train.dataset import catalogue, seen_items
from duet_train.modes import AUTO, Mode, decide
from duet_train.settings import Settings
from duet_train.tools import address_and_model, least_mass

LOCAL, HEAD = "local", "head:"
MINILM, TRAINABLE = "minilm", "trainable"
TERMS = ("rating", "sentiment", "length", "leakage", "next_item", "contrastive", "catalogue")
IN_BATCH = frozenset({"contrastive"})
"""Those whose score depends on the other completions of the batch."""
ASKING = frozenset({"rating", "sentiment", "next_item"})
"""Those that ask the recommender."""

S = TypeVar("S", bound=Settings)


def check_recommender(settings: Settings) -> None:
    """What can be known to be wrong with the rewards and their recommender before anything is asked.

    Args:
        settings: With `recommender`.

    Raises:
        ConfigurationError: It is missing, no address, or no folder of a head.
    """
    if unknown := sorted(settings.terms.keys() - set(TERMS)):
        raise ConfigurationError(f"rewards: no term {unknown[0]!r}: there are {', '.join(TERMS)}")
    if not settings.terms.keys() & ASKING:
        return
    spec = settings.recommender
    if "next_item" in settings.terms and spec.startswith(HEAD):
        raise ConfigurationError("rewards: next_item asks in text, which a fitted head cannot answer")
    if not spec:
        raise ConfigurationError("recommender must be URL,MODEL, head:DIR, or local: whose error is the reward?")
    if spec.startswith(HEAD):
        if not (Path(spec.removeprefix(HEAD)) / "head.json").is_file():
            raise ConfigurationError(f"recommender: {spec!r} is no folder that `python -m duet_train head` wrote")
    elif spec != LOCAL:
        address_and_model(spec, "recommender")


class Opened:
    """What the terms of a run stand on, opened when first asked for and closed together.

    Args:
        settings: Checked.
        data: What prepare wrote.
        ledger: Where finished answers are kept and looked up, instead of the file that the settings name.
        embedder: For terms in embedding space, instead of the one that the settings name.
    """

    def __init__(
        self, settings: Settings, data: Prepared, *, ledger: Ledger | None = None, embedder: Embedder | None = None
    ) -> None:
        self._settings = settings
        self._data = data
        self._ledger = ledger
        self._embedder = embedder
        self._endpoint: Any = None
        self._mode: Mode | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Opened:
        await self._stack.__aenter__()
        if self._ledger is None and self._settings.ledger:
            self._ledger = await self._stack.enter_async_context(Ledger(self._settings.ledger))
            await self._ledger.get("")  # a file that cannot be used ends the run before the first reward
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._stack.__aexit__(*exc_info)

    async def recommender(self) -> Recommender:
        """The recommender that the settings name."""
        settings = self._settings
        if settings.recommender.startswith(HEAD):
            from duet_train.head import HeadRecommender

            return HeadRecommender.load(Path(settings.recommender.removeprefix(HEAD)))
        return self._asking(await self.endpoint(), await self.mode())

    async def mode(self) -> Mode:
        """How the recommender is asked: as the settings say, or as its server allows.

        Raises:
            ConfigurationError: It is a head, which is not asked.
            EndpointError: The server has to be asked, and does not answer.
        """
        if self._mode is None:
            endpoint = await self.endpoint()
            self._mode = await decide(
                self._settings.recommender_mode,
                lambda mode: self._asking(endpoint, mode),
                gives_logprobs=self._embedded,
            )
        return self._mode

    def _asking(self, endpoint: Endpoint, mode: Mode) -> LLMRecommender:
        return LLMRecommender(
            endpoint,
            mode=mode,
            scale=self._data.scale,
            recent=int(self._data.settings["recent"]),
            review_chars=self._settings.review_chars,
            # The embedded model may write a rating as any of many tokens.
            sampling=self._sampling(top_logprobs=200 if self._embedded and mode == "expected" else None),
            ledger=self._ledger,
            minimum_mass=self._minimum_mass,
        )

    async def endpoint(self) -> Any:
        """Where the recommender answers.

        Raises:
            ConfigurationError: It is a head, which answers no questions.
        """
        spec = self._settings.recommender
        if spec.startswith(HEAD):
            raise ConfigurationError(f"recommender: {spec!r} cannot choose an item in text: name an endpoint")
        if self._endpoint is None:
            self._endpoint = await self._stack.enter_async_context(self._engine(spec))
        return self._endpoint

    def _engine(self, spec: str) -> Any:
        if spec == LOCAL:
            return local.engine()
        address, model = address_and_model(spec, "recommender")
        return HTTPEndpoint(address, model, api_key=key(self._settings))

    async def embedder(self) -> Embedder:
        """The embedder that was given, or that the settings name."""
        if self._embedder is None:
            spec = self._settings.embedder
            if spec == MINILM:
                from duet_train.minilm import MiniLM

                self._embedder = MiniLM()
            else:
                address, model = address_and_model(spec, "embedder")
                opened = HTTPEmbedder(address, model, api_key=key(self._settings))
                self._embedder = await self._stack.enter_async_context(opened)
        return self._embedder

    async def term(self, name: str, weight: float) -> RewardTerm:
        """A term of the reward.

        Args:
            name: One of `TERMS`.
            weight: Its factor in the sum.
        """
        settings, most = self._settings, self._settings.recommender_concurrency
        if name == "rating":
            return RatingReward(await self.recommender(), weight=weight, concurrency=most)
        if name == "sentiment":
            return SentimentReward(await self.recommender(), weight=weight, concurrency=most)
        if name == "length":
            return LengthReward(settings.length_chars, weight=weight)
        if name == "leakage":
            return LeakageReward(weight=weight)
        if name == "next_item":
            return NextItemReward(
                await self.endpoint(),
                mode="expected" if await self.mode() == "expected" else "letter",
                items=catalogue(self._data),
                seen=self._seen,
                sampling=self._sampling(),
                ledger=self._ledger,
                weight=weight,
                concurrency=most,
                minimum_mass=self._minimum_mass,
            )
        frozen = settings.embedder.partition(":")[0] != TRAINABLE
        if name == "contrastive":
            return ContrastiveReward(
                await self.embedder(),
                temperature=settings.contrastive_temperature,
                seen=self._seen,
                relative=True,  # from far below −1 otherwise, where writing no profile at all would pay
                frozen=frozen,
                weight=weight,
            )
        return CatalogueReward(
            await self.embedder(), catalogue(self._data), seen=self._seen, frozen=frozen, weight=weight
        )

    @cached_property
    def _seen(self) -> dict[str, set[str]]:
        return seen_items(self._data)

    @property
    def _embedded(self) -> bool:
        return self._settings.recommender == LOCAL

    @property
    def _minimum_mass(self) -> float:
        return least_mass(self._settings.recommender_minimum_mass, embedded=self._embedded)

    def _sampling(self, **more: Any) -> Sampling:
        return Sampling(temperature=0.0, seed=42, extra_body=self._settings.extra_body, **more)


def with_mode(settings: S, data: Prepared, folder: Path) -> S:
    """The same settings, with the mode of the recommender decided: all of a run asks alike, and its card says how.

    A run that goes on keeps the mode that its card names, those of 0.1 theirs, unless the settings name one.

    Args:
        settings: Checked.
        data: What prepare wrote.
        folder: The run directory.

    Raises:
        EndpointError: The server has to be asked, and does not answer.
    """
    if settings.recommender_mode != AUTO or not asks_in_text(settings):
        return settings

    async def found() -> str:
        async with Opened(settings, data) as opened:
            return await opened.mode()

    before = read_card(folder).get("settings", {}).get("recommender_mode", AUTO)
    return dataclasses.replace(settings, recommender_mode=anyio.run(found) if before == AUTO else before)


def asks_in_text(settings: Settings) -> bool:
    """Whether a term of the reward asks a language model.

    Args:
        settings: With `recommender`.
    """
    return bool(settings.terms.keys() & ASKING) and not settings.recommender.startswith(HEAD)


@asynccontextmanager
async def open_envs(
    settings: Settings, data: Prepared, *, ledger: Ledger | None = None, embedder: Embedder | None = None
) -> AsyncIterator[Callable[[ProfileSchema], RewardEnv]]:
    """The way to the env of a schema, for as long as the block lasts; all share their terms.

    Args:
        settings: Checked.
        data: What prepare wrote.
        ledger: Where finished answers are kept and looked up, instead of the file that the settings name.
        embedder: For terms in embedding space, instead of the one that the settings name.

    Raises:
        LedgerError: The file cannot be used.
    """
    async with Opened(settings, data, ledger=ledger, embedder=embedder) as opened:
        terms = [await opened.term(name, weight) for name, weight in settings.terms.items()]
        yield lambda schema: RewardEnv(
            terms, schema=schema, format_penalty=settings.format_penalty, strict_paper=settings.strict_paper
        )


def key(settings: Settings) -> str | None:
    """The key of all endpoints, from the environment.

    Args:
        settings: With `api_key_env`.
    """
    return os.environ.get(settings.api_key_env) or None
