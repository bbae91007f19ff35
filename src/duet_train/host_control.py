"""The file in which a host says what it serves, and the way in which another process has it publish.

The file holds an address on loopback and a secret; only its owner can read it. Whoever can read it may publish.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import SocketAttribute, SocketStream, TaskStatus
from anyio.streams.buffered import BufferedByteReceiveStream

from duet import ConfigurationError, DuetError, EndpointUnavailable

MAX_LINE = 65_536  # bytes
PATIENCE = 900.0
"""Seconds that a publish may take; an embedded engine loads the weights anew."""

Publish = Callable[[str, Path], Awaitable[Mapping[str, Any]]]


def read_state(path: Path) -> dict[str, Any]:
    """What a state file holds; empty where there is none.

    Args:
        path: As ``--state`` names it.

    Raises:
        ConfigurationError: It cannot be read, or is something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        raise ConfigurationError(f"cannot read the state file {path}: {exc}") from exc
    if not isinstance(value, dict) or not isinstance(value.get("versions"), dict):
        raise ConfigurationError(f"{path} is not the state file of a host")
    return value


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Replace a state file in one step, readable by its owner alone.

    Args:
        path: As ``--state`` names it.
        state: JSON.

    Raises:
        ConfigurationError: It cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump(state, file, ensure_ascii=False, indent=1)
        beside.replace(path)
    except OSError as exc:
        raise ConfigurationError(f"cannot write the state file {path}: {exc.strerror}") from exc


async def check_unused(path: Path) -> None:
    """That no running host has this state file.

    Args:
        path: As ``--state`` names it.

    Raises:
        ConfigurationError: One has, or it is no state file.
    """
    control = read_state(path).get("control")
    if control:
        try:
            await (await anyio.connect_tcp("127.0.0.1", int(control["port"]))).aclose()
        except OSError:
            return
        raise ConfigurationError(f"{path} belongs to a host that is running: name another --state, or stop it")


async def listen(publish: Publish, *, task_status: TaskStatus[Mapping[str, Any]]) -> None:
    """Take requests to publish until cancelled; its start gives port and secret.

    Args:
        publish: Publishes an adapter; what it returns is the answer.
        task_status: Of the task group.
    """
    token = secrets.token_urlsafe(24)
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(SocketAttribute.local_port)  # noqa: S610 - no database
        task_status.started({"port": port, "token": token})
        await listener.serve(partial(_answer, publish, token))


async def _answer(publish: Publish, token: str, stream: SocketStream) -> None:
    async with stream:
        try:
            with anyio.fail_after(10):
                request = json.loads(await BufferedByteReceiveStream(stream).receive_until(b"\n", MAX_LINE))
            known = secrets.compare_digest(str(request["token"]).encode(), token.encode())
            name, folder = str(request["name"]), Path(str(request["folder"]))
        except (
            anyio.EndOfStream,
            anyio.IncompleteRead,
            anyio.DelimiterNotFound,
            OSError,
            ValueError,
            KeyError,
            TypeError,
        ):
            return
        if known:
            answer = await _published(publish, name, folder)
            await _send(stream, answer)


async def _published(publish: Publish, name: str, folder: Path) -> Mapping[str, Any]:
    try:
        return await publish(name, folder)
    except DuetError as exc:
        return {"error": str(exc), "caller": isinstance(exc, ConfigurationError)}


async def _send(stream: SocketStream, value: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError, anyio.BrokenResourceError):  # whoever asked has left; published all the same
        await stream.send(json.dumps(value).encode() + b"\n")


async def ask_to_publish(path: Path, name: str, folder: Path) -> dict[str, Any]:
    """Have the host of a state file publish an adapter; base_url and model that are served now.

    Args:
        path: The host's state file.
        name: The adapter's name, without a version.
        folder: As PEFT saves it.

    Raises:
        ConfigurationError: No host runs with this file, or it refuses the adapter.
        EndpointUnavailable: The host or its engine failed.
    """
    control = read_state(path).get("control")
    if not control:
        raise ConfigurationError(f"no host is running with the state file {path}")
    request = {"token": control["token"], "name": name, "folder": os.path.abspath(folder)}  # noqa: ASYNC240
    try:
        with anyio.fail_after(PATIENCE):
            async with await anyio.connect_tcp("127.0.0.1", int(control["port"])) as stream:
                await stream.send(json.dumps(request).encode() + b"\n")
                answer = json.loads(await BufferedByteReceiveStream(stream).receive_until(b"\n", MAX_LINE))
    except OSError as exc:
        raise ConfigurationError(f"no host is running with the state file {path}") from exc
    except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError, ValueError) as exc:
        raise EndpointUnavailable(f"the host of {path} went away before it had published {name}") from exc
    if "error" in answer:
        raise (ConfigurationError if answer["caller"] else EndpointUnavailable)(answer["error"])
    return dict(answer)
