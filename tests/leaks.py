"""Sees to it that nothing is left over: no task, no descriptor, no thread beyond the pools of workers."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import anyio

_POOLS = ("AnyIO worker thread", "asyncio_", "Trio thread")  # they keep idle threads for whoever comes next


@contextlib.asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """Whatever the block opened must be gone at its end, or within a second."""
    before = _held()
    yield
    with anyio.move_on_after(1):
        while _held() - before:  # noqa: ASYNC110 - the system offers no event for it
            await anyio.sleep(0.001)
    assert not (left := _held() - before), f"left over: {sorted(left)}"


def _held() -> Counter[str]:
    """Tasks, threads and descriptors by what they are."""
    tasks = (f"task {task.id} {task.name}" for task in anyio.get_running_tasks())
    threads = (f"thread {thread.name}" for thread in threading.enumerate() if not thread.name.startswith(_POOLS))
    return Counter([*tasks, *threads, *descriptors()])


def descriptors() -> list[str]:
    """What this process has open, by number, where the system tells."""
    folder = Path("/proc/self/fd")
    found = []
    for number in os.listdir(folder) if folder.exists() else ():
        with contextlib.suppress(OSError):  # the one that lists the folder is gone again
            found.append(f"descriptor {number} {os.readlink(folder / number)}")
    return found
