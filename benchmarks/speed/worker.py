"""One client in a process of its own: tasks in as JSON lines, CPU time out."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from clients import CLIENTS, Client
from jobs import Jobs


async def many(ask: Callable[[int], Awaitable[Any]], calls: int, concurrency: int, seconds: float, jobs: Jobs) -> int:
    """Make the calls, `concurrency` at once, none begun after `seconds`; how many were made."""
    numbers, begun, ends = jobs.numbers(), 0, time.monotonic() + seconds

    async def repeat() -> None:
        nonlocal begun
        while begun < calls and (begun < concurrency or time.monotonic() < ends):
            begun += 1
            if not await ask(next(numbers)):
                raise ValueError("an answer without text")

    async with asyncio.TaskGroup() as group:
        for _ in range(min(calls, concurrency)):
            group.create_task(repeat())
    return begun


async def measure(client: Client, task: dict[str, Any], jobs: Jobs) -> dict[str, Any]:
    """CPU seconds and calls of one task, after a wave that imports what is needed and opens connections."""
    ask = client.stream if task["what"] == "stream" else client.reward
    await many(ask, task["warm"], task["warm"], 60, jobs)
    gc.collect()
    wall, cpu = time.monotonic(), time.process_time()
    calls = await many(ask, task["calls"], task["concurrency"], task["seconds"], jobs)
    return {"calls": calls, "cpu": time.process_time() - cpu, "wall": time.monotonic() - wall}


async def run(name: str, task: dict[str, Any], jobs: Jobs) -> dict[str, Any]:
    """The figures of one task, or what went wrong."""
    client = CLIENTS[name](task["url"], jobs)
    try:
        await client.open()
        return await measure(client, task, jobs)
    except ImportError as exc:
        return {"missing": exc.name}
    except Exception as exc:
        while isinstance(exc, ExceptionGroup):
            exc = exc.exceptions[0]
        if isinstance(exc, NotImplementedError):
            return {}
        return {"failed": f"{type(exc).__name__}: {exc}"[:200]}
    finally:
        await client.close()


def main() -> None:
    """Answer each line of standard input with one of standard output."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not mix with the figures
    jobs = Jobs()
    with asyncio.Runner() as runner:  # one event loop, since some clients keep connections beyond their own life
        for line in sys.stdin:
            print(json.dumps(runner.run(run(sys.argv[1], json.loads(line), jobs))), file=out, flush=True)


if __name__ == "__main__":
    main()
