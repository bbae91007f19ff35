"""``python -m duet_train host``: serve a base model with trained adapters on loopback, and publish the next ones."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from duet import ConfigurationError, DuetError, EndpointUnavailable
from duet_train.host_control import ask_to_publish, check_unused, listen, read_state, write_state
from duet_train.hosting import ENGINES, Hosted, serve

__all__ = ["Hosted", "add_arguments", "run", "serve"]

_STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_POLL = 0.25


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument(
        "--base", metavar="MODEL", help="a folder of safetensors, a GGUF file, packaged, or a hub's name"
    )
    parser.add_argument("--adapter", action="append", metavar="NAME=DIR", help="as PEFT saves it; may be repeated")
    parser.add_argument("--port", type=int, default=0, metavar="N", help="on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="auto: vllm where it is installed")
    parser.add_argument(
        "--state", type=Path, metavar="FILE", help="says what is served; --publish finds the host by it"
    )
    parser.add_argument("--publish", metavar="NAME=DIR", help="have the running host of --state serve this adapter")
    parser.add_argument("--context", type=_positive, metavar="N", help="tokens of prompt and completion together")
    parser.add_argument("--parallel", type=_positive, metavar="N", help="requests served at once")
    parser.add_argument("--threads", type=_positive, metavar="N", help="of the embedded engine")
    parser.add_argument("--api-key-env", metavar="VARIABLE", help="environment variable with the key to ask for")
    parser.add_argument("--thinking", action="store_true", help="let models such as Qwen3 think")
    parser.add_argument("--vllm-command", default="vllm", metavar="PATH", help="the executable of vLLM")
    parser.add_argument("--vllm-args", metavar="WORDS", help="more arguments of vllm serve, as one word")
    parser.add_argument("--ready-within", type=float, default=1800.0, metavar="S", help="seconds for vLLM to start")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit code."""
    return int(anyio.run(_publish if args.publish else _host, args))


async def _publish(args: argparse.Namespace) -> int:
    if args.state is None or args.base or args.adapter:
        raise ConfigurationError("--publish takes the --state of a running host, and no --base or --adapter")
    name, folder = named_folder(args.publish)
    answer = await ask_to_publish(args.state, name, folder)
    _announce(answer["base_url"], answer["model"])
    return 0


async def _host(args: argparse.Namespace) -> int:
    """Serve until a signal comes (exit code 0, 130 for an interrupt) or the engine fails."""
    if not args.base:
        raise ConfigurationError("--base must name the model: a folder, a GGUF file, packaged, or a hub's name")
    number, faults = signal.SIGTERM, list[DuetError]()
    with anyio.open_signal_receiver(*_STOPS) as signals:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_until_it_fails, args, faults, tasks.cancel_scope)
            number = await anext(signals)
            tasks.cancel_scope.cancel()
    if faults:
        raise faults[0]
    _say("stopped")
    return 130 if number == signal.SIGINT else 0


async def _until_it_fails(args: argparse.Namespace, faults: list[DuetError], scope: anyio.CancelScope) -> None:
    try:
        faults.append(EndpointUnavailable(await _served(args)))
    except DuetError as exc:
        faults.append(exc)
    scope.cancel()


async def _served(args: argparse.Namespace) -> str:
    """Serve as the options say; why it ended."""
    settings = options(args)
    if args.state is not None:
        await check_unused(args.state)
        write_state(args.state, {"versions": settings["versions"]})
    async with serve(args.base, **settings) as hosted, anyio.create_task_group() as tasks:
        state: dict[str, Any] = {}
        try:
            if args.state is not None:
                state["control"] = await tasks.start(listen, partial(_publish_here, hosted, args.state, state))
                _write(args.state, hosted, state)
            _announce(hosted.base_url, hosted.model)
            _say(
                f"{hosted.engine} serves {', '.join([*hosted.models.values()] or [hosted.base_model])}; Ctrl-C stops it"
            )
            while not (failure := hosted.failure):  # noqa: ASYNC110 - another process fails, and tells nobody
                await anyio.sleep(_POLL)
            tasks.cancel_scope.cancel()
        finally:
            if state:
                write_state(args.state, {"versions": hosted.versions})
    return failure


async def _publish_here(
    hosted: Hosted, path: Path, state: Mapping[str, Any], name: str, folder: Path
) -> dict[str, str]:
    model = await hosted.publish(name, folder)
    _write(path, hosted, state)
    _announce(hosted.base_url, model)
    return {"base_url": hosted.base_url, "model": model}


def _write(path: Path, hosted: Hosted, state: Mapping[str, Any]) -> None:
    now = {"base_url": hosted.base_url, "model": hosted.model, "models": hosted.models, "base_model": hosted.base_model}
    write_state(path, {**now, "engine": hosted.engine, "pid": os.getpid(), "versions": hosted.versions, **state})


def options(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `serve` that a command line asks for.

    Args:
        args: As this verb takes them.

    Raises:
        ConfigurationError: An adapter is not written as NAME=DIR or named twice, or the key's variable is empty.
    """
    pairs = [named_folder(text) for text in args.adapter or ()]
    if len(dict(pairs)) < len(pairs):
        raise ConfigurationError("--adapter: two adapters have the same name")
    api_key = os.environ.get(args.api_key_env, "") if args.api_key_env else ""
    if args.api_key_env and not api_key:
        raise ConfigurationError(f"--api-key-env: the environment variable {args.api_key_env} is not set")
    same = ("engine", "port", "context", "parallel", "threads", "thinking", "vllm_command", "ready_within")
    versions = read_state(args.state).get("versions", {}) if args.state else {}
    own = {
        "adapters": dict(pairs),
        "api_key": api_key,
        "vllm_args": shlex.split(args.vllm_args or ""),
        "versions": versions,
    }
    return {name: getattr(args, name) for name in same} | own


def named_folder(text: str) -> tuple[str, Path]:
    """Name and folder of an adapter.

    Args:
        text: NAME=DIR.

    Raises:
        ConfigurationError: It is not written so.
    """
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise ConfigurationError(f"an adapter is written NAME=DIR, as in policy=run/adapter; got {text!r}")
    return name, Path(folder)


def _announce(base_url: str, model: str) -> None:
    print(f"DUET_BASE_URL={base_url} DUET_MODEL={shlex.quote(model)}", flush=True)


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
