"""Runs a command for as long as this process's stdin stays open; run as a script, it needs nothing of this package.

An inference server starts processes of its own, and a host that is killed cannot stop them: they would go on holding
the accelerator's memory. The end of stdin, which a dying parent brings about too, ends the command and all that it
started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading


def main(grace: float, command: list[str]) -> int:
    """Run the command until it ends, or stdin does and `grace` seconds are over; its exit code."""
    # A group of its own: Ctrl-C in the terminal reaches the host alone, and the whole group can be ended.
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2, start_new_session=True)  # noqa: S603
    threading.Thread(target=_end_with_stdin, args=(child, grace), daemon=True).start()
    code = child.wait()
    _signal_group(child, signal.SIGKILL)
    return code if code >= 0 else 128 - code


def _end_with_stdin(child: subprocess.Popen[bytes], grace: float) -> None:
    sys.stdin.read()
    child.terminate()
    try:
        child.wait(grace)
    except subprocess.TimeoutExpired:
        _signal_group(child, signal.SIGKILL)


def _signal_group(child: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
