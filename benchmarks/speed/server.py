"""The mock server: built with the C compiler on first use, started on a free port, asked for its counters."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("mock_server.c")


class NoCompilerError(Exception):
    """There is no C compiler, so nothing can be measured."""


class Server:
    """A running mock server.

    Args:
        port: Where it listens.
    """

    def __init__(self, port: int) -> None:
        self._root = f"http://127.0.0.1:{port}"

    def url(self, *options: str) -> str:
        """The base address under which requests get what the options say."""
        return "/".join([self._root, *options, "v1"])

    def counters(self) -> dict[str, Any]:
        """What happened since the counters were last set to zero."""
        return _get(f"{self._root}/counters")

    def zero(self) -> dict[str, Any]:
        """The counters, which begin again at zero; the prefix cache is emptied."""
        return _get(f"{self._root}/zero")


@contextmanager
def running() -> Iterator[Server]:
    """A mock server for the length of the block.

    Raises:
        NoCompilerError: There is no C compiler.
    """
    command = [str(built())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Server(int(process.stdout.readline()))
        finally:
            process.stdin.close()  # the server ends with its input


def built() -> Path:
    """The server's binary, newer than its source."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise NoCompilerError
    folder = Path(__file__).with_name("build")
    binary = folder / "mock_server"
    if not binary.exists() or binary.stat().st_mtime < SOURCE.stat().st_mtime:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            made = Path(fresh) / "mock_server"
            subprocess.run([compiler, "-O2", "-std=gnu11", "-o", str(made), str(SOURCE)], check=True)  # noqa: S603 - as above
            made.replace(binary)
    return binary


def _get(url: str) -> dict[str, Any]:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(url, timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)
        return found
