"""A base model with trained adapters behind one OpenAI-compatible address on loopback, as `host` serves it."""

from __future__ import annotations

import re
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import anyio

from duet import ConfigurationError, HTTPEndpoint
from duet_train.adapters import Adapter, check_fits, read_adapter
from duet_train.bases import Base, read_base

ENGINES = ("auto", "vllm", "llama.cpp")
CONTEXT, PARALLEL = 6144, 4
"""Of the embedded engine: the longest prompt of the configurations with its completion; requests served at once."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class Server(Protocol):
    """What the two engines have in common."""

    name: str
    one_adapter: bool
    base_url: str

    @property
    def failure(self) -> str: ...
    async def start(self) -> None: ...
    async def serve(self, adapters: Mapping[str, Adapter]) -> None: ...
    async def aclose(self) -> None: ...


class Hosted:
    """A base model and its adapters, being served. Made by `serve`.

    Attributes:
        base_url: Address up to and including "/v1".
        base_model: Name of the model without an adapter. With the embedded engine only served where there is none.
        models: Of each adapter, the versioned name that it is served under now.
        versions: Of each adapter, the number of that version.
        engine: "vllm" or "llama.cpp".
    """

    def __init__(self, server: Server, base: Base, api_key: str, versions: Mapping[str, int]) -> None:
        self._server = server
        self._base = base
        self._api_key = api_key
        self._adapters: dict[str, dict[str, Adapter]] = {}
        self._lock = anyio.Lock()
        self.versions: dict[str, int] = dict(versions)
        self.models: dict[str, str] = {}
        self.base_model: str = base.name
        self.engine: Any = server.name

    @property
    def base_url(self) -> str:
        """Address up to and including "/v1"."""
        return self._server.base_url

    @property
    def model(self) -> str:
        """The name to ask for: the first adapter's, or the base model's where there is no adapter."""
        return next(iter(self.models.values()), self.base_model)

    @property
    def failure(self) -> str:
        """Why nothing is served any more; empty while it is."""
        return self._server.failure

    def endpoint(self, model: str | None = None, **settings: Any) -> HTTPEndpoint:
        """An endpoint for it.

        Args:
            model: A name; None takes `model`. It stays what it is when another version is published.
            settings: Keyword arguments of `duet.HTTPEndpoint`.
        """
        own: dict[str, Any] = {"api_key": self._api_key or None, "engine": self.engine}
        return HTTPEndpoint(self.base_url, model or self.model, **own | settings)

    async def publish(self, name: str, folder: str | PathLike[str]) -> str:
        """Serve an adapter as the next version of its name; the name to ask for from now on.

        vLLM goes on serving the version before until the one after is published. The embedded engine restarts at the
        same address: requests under way break off, and it serves the new version alone.

        Args:
            name: Without a version. The embedded engine has one adapter and so one name.
            folder: As PEFT saves it, in safetensors. It is copied, so it may change afterwards.

        Raises:
            ConfigurationError: The adapter is not for this base, or cannot be served.
            EndpointUnavailable: The engine does not answer.
        """
        async with self._lock:
            return await self._publish({name: check_adapter(name, Path(folder), self._base)})

    async def _publish(self, adapters: Mapping[str, Adapter]) -> str:
        if self._server.one_adapter and len({*self.models, *adapters}) > 1:
            raise ConfigurationError(
                f"the embedded engine serves one adapter: {', '.join(sorted({*self.models, *adapters}))}"
            )
        # A number is used up even where it fails, so that no name ever stands for two adapters.
        self.versions |= {name: self.versions.get(name, 0) + 1 for name in adapters}
        fresh = {name: f"{name}-v{self.versions[name]}" for name in adapters}
        served = {name: dict(list(kept.items())[-1:]) for name, kept in self._adapters.items()}
        for name, adapter in adapters.items():
            before = {} if self._server.one_adapter else served.get(name, {})
            served[name] = {**before, fresh[name]: adapter}
        await self._server.serve({model: one for kept in served.values() for model, one in kept.items()})
        self._adapters, self.models = served, {**self.models, **fresh}
        return next(reversed(fresh.values()), self.base_model)


def check_adapter(name: str, folder: Path, base: Base) -> Adapter:
    """An adapter, checked before anything is loaded.

    Args:
        name: To serve it under.
        folder: As PEFT saves it.
        base: What it is to be served on.

    Raises:
        ConfigurationError: The name is not one, the files are damaged, or they are for another base.
    """
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"an adapter's name has letters, digits, '.', '_' and '-' and is no path; got {name!r}"
        )
    adapter = read_adapter(folder)
    check_fits(adapter, base)
    return adapter


@asynccontextmanager
async def serve(
    base: str | PathLike[str],
    adapters: Mapping[str, str | PathLike[str]] | None = None,
    *,
    engine: str = "auto",
    port: int = 0,
    context: int | None = None,
    parallel: int | None = None,
    threads: int | None = None,
    api_key: str = "",
    thinking: bool = False,
    vllm_command: str = "vllm",
    vllm_args: Sequence[str] = (),
    ready_within: float = 1800.0,
    versions: Mapping[str, int] | None = None,
) -> AsyncIterator[Hosted]:
    """Serve a base model with adapters for the length of a block; entering it waits until it answers.

    Args:
        base: A folder of safetensors, a GGUF file, "packaged", or a hub's name.
        adapters: Folders as PEFT saves them, by name. Each is served as NAME-v1, then -v2 and so on.
        engine: "vllm", "llama.cpp" (the embedded engine), or "auto": vLLM where it is installed and can serve the base.
        port: On loopback; 0 takes a free one.
        context: Tokens of prompt and completion together; None takes vLLM's own, or 6144 with the embedded engine.
        parallel: Requests served at once; None takes vLLM's own, or 4.
        threads: Of the embedded engine; None takes one less than there are cores.
        api_key: What requests must send; empty for none.
        thinking: Whether the chat templates of models such as Qwen3 have the model think. Off, as in training.
        vllm_command: The executable of vLLM, which may be in an environment of its own.
        vllm_args: Further arguments of ``vllm serve``.
        ready_within: Seconds that vLLM may take to start.
        versions: Of each name, the number that was used last.

    Raises:
        ConfigurationError: Something cannot be served, found out before it is loaded; or the port is in use.
        MissingExtraError: The embedded engine or the packaged model is not installed.
        EndpointUnavailable: The engine did not start.
    """
    found = read_base(str(base))
    checked = {name: check_adapter(name, Path(folder), found) for name, folder in (adapters or {}).items()}
    chosen = choose_engine(engine, found, vllm_command)
    if chosen == "llama.cpp" and len(checked) > 1:
        raise ConfigurationError(f"the embedded engine serves one adapter, vLLM several; got {', '.join(checked)}")
    port = free_port(port)
    with tempfile.TemporaryDirectory(prefix="duet-host-") as work:
        if chosen == "vllm":
            server = _vllm(
                found,
                Path(work),
                command=vllm_command,
                port=port,
                adapters=max(1, len(checked)),
                rank=max((one.rank for one in checked.values()), default=16),
                context=context,
                parallel=parallel,
                api_key=api_key,
                thinking=thinking,
                extra=vllm_args,
                ready_within=ready_within,
            )
        else:
            server = _embedded(
                found,
                Path(work),
                port=port,
                context=context or CONTEXT,
                parallel=parallel or PARALLEL,
                threads=threads,
                api_key=api_key,
                thinking=thinking,
            )
        hosted = Hosted(server, found, api_key, versions or {})
        try:
            await server.start()
            await hosted._publish(checked)
            yield hosted
        finally:
            await server.aclose()


def _vllm(base: Base, work: Path, **settings: Any) -> Server:
    from duet_train.host_vllm import VLLMServer

    return VLLMServer(base, work, **settings)


def _embedded(base: Base, work: Path, **settings: Any) -> Server:
    from duet_train.host_embedded import EmbeddedServer

    return EmbeddedServer(base, work, **settings)


def choose_engine(engine: str, base: Base, vllm_command: str) -> str:
    """The engine that serves a base.

    Args:
        engine: One of `ENGINES`.
        base: GGUF is for the embedded engine alone.
        vllm_command: Looked up where vLLM is wanted.

    Raises:
        ConfigurationError: There is no such engine, or vLLM is asked for and not there.
    """
    if engine not in ENGINES:
        raise ConfigurationError(f"engine must be one of {', '.join(ENGINES)}; got {engine!r}")
    there = shutil.which(vllm_command) is not None
    if not there and (engine == "vllm" or vllm_command != "vllm"):
        raise ConfigurationError(f"there is no command {vllm_command!r}: install vllm, or name it with --vllm-command")
    if engine != "auto":
        return engine
    return "vllm" if there and not base.is_gguf else "llama.cpp"


def free_port(port: int) -> int:
    """A port on loopback that nobody listens at.

    Args:
        port: The one that is wanted; 0 takes any.

    Raises:
        ConfigurationError: It is in use, or no port.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else "there is no such port"
            raise ConfigurationError(f"cannot listen at port {port} of 127.0.0.1: {why}") from exc
        return int(probe.getsockname()[1])
