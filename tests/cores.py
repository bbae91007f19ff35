"""Time that a busy machine takes, so that a test can leave it out."""

from __future__ import annotations

from pathlib import Path


def waited_for_a_core(who: object = "thread-self") -> float:
    """Seconds in which a process's first thread could have run and others had the cores, where the system tells.

    Args:
        who: The process's number; by default the thread that asks.
    """
    try:
        return int(Path(f"/proc/{who}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0
