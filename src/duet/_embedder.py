"""Embeddings over any OpenAI-compatible server."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from duet._caller import Served
from duet._errors import ConfigurationError
from duet._settings import Deadlines
from duet._sse import read_embeddings
from duet._wire import Wire

if TYPE_CHECKING:
    import ssl

    import openai


class Embedder(Protocol):
    """What turns texts into vectors. Any object of this shape will do."""

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """One vector a text, in order, all of one length.

        Args:
            texts: Any number of any length; batches are the embedder's business.

        Raises:
            EndpointError: The infrastructure's fault.
        """


class _Embedder(Served):
    """Embeddings over a wire."""

    def __init__(self, wire: Wire, model: str, *, batch_size: int, deadlines: Deadlines, retries: int) -> None:
        super().__init__(wire, model, deadlines=deadlines, retries=retries)
        if batch_size < 1:
            raise ConfigurationError(f"batch_size must be at least 1, got {batch_size}")
        self._batch_size = batch_size

    async def embed(self, texts: Sequence[str]) -> list[Sequence[float]]:
        """One vector a text, in order.

        Args:
            texts: Any number; none gives an empty list without a request.

        Raises:
            EndpointError: See the error tree.
        """
        vectors: list[Sequence[float]] = []
        for start in range(0, len(texts), self._batch_size):
            vectors += await self._embed_batch(texts[start : start + self._batch_size])
        return vectors

    async def _embed_batch(self, texts: Sequence[str]) -> list[Sequence[float]]:
        ends = self._caller.ends()
        body = {"model": self._model, "input": list(texts)}

        read = functools.partial(read_embeddings, expected=len(texts))
        return await self._caller.retrying(ends, functools.partial(self._caller.ask, "embeddings", body, ends, read))


class HTTPEmbedder(_Embedder):
    """Embeddings from an OpenAI-compatible server, spoken to directly.

    Args:
        base_url: As for `HTTPEndpoint`.
        model: Name of the embedding model.
        api_key: As for `HTTPEndpoint`.
        headers: As for `HTTPEndpoint`.
        batch_size: Most texts in one request.
        deadlines: As for `HTTPEndpoint`; `total` holds for each request.
        retries: As for `HTTPEndpoint`.
        verify: As for `HTTPEndpoint`.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        batch_size: int = 256,
        deadlines: Deadlines = Deadlines(),
        retries: int = 2,
        verify: ssl.SSLContext | bool = True,
    ) -> None:
        from duet._wire_http import HTTPWire

        wire = HTTPWire(base_url, api_key=api_key, headers=headers or {}, verify=verify)
        super().__init__(wire, model, batch_size=batch_size, deadlines=deadlines, retries=retries)


class AsyncOpenAIEmbedder(_Embedder):
    """Embeddings through a caller's own `openai.AsyncOpenAI`, `AsyncAzureOpenAI` or subclass.

    Args:
        client: As for `AsyncOpenAIEndpoint`.
        model: Model or deployment name.
        batch_size: Most texts in one request.
        deadlines: As for `AsyncOpenAIEndpoint`; `total` holds for each request.
        retries: As for `AsyncOpenAIEndpoint`.

    Raises:
        MissingExtraError: As for `AsyncOpenAIEndpoint`.
    """

    def __init__(
        self,
        client: openai.AsyncOpenAI,
        model: str,
        *,
        batch_size: int = 256,
        deadlines: Deadlines = Deadlines(),
        retries: int = 2,
    ) -> None:
        from duet._wire_openai import OpenAIWire

        super().__init__(OpenAIWire(client), model, batch_size=batch_size, deadlines=deadlines, retries=retries)
