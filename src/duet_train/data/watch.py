"""A long piece of work on a connection: how far it is, and how to stop it.

It runs in a thread of its own: a statement is only stopped at once from outside, and the main thread is free to show a
bar.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import duckdb
from tqdm import tqdm

from duet import ConfigurationError
from duet_train.data.pipeline import STEPS

_TICK = 0.2  # seconds between two looks
_PATIENCE = 100  # looks at work that was told to stop
_FORMAT = "{desc:<20} |{bar:22}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


class Watch:
    """Runs work on a connection.

    Args:
        db: The connection.
        memory: What the connection may use, for messages.
        show: Whether to show a bar on stderr.
    """

    def __init__(self, db: duckdb.DuckDBPyConnection, *, memory: str, show: bool) -> None:
        self._db = db
        self._memory = memory
        self._show = show
        self._step = ""
        self._stopped = False
        self._done = threading.Event()
        self._result: Any = None
        self._error: BaseException | None = None

    def over(self, work: Callable[..., Any]) -> Any:
        """The result of ``work(begin=...)``; `begin` is called with the name of each step.

        Raises:
            ConfigurationError: Memory or disk was too small, or a file could not be read or written.
            KeyboardInterrupt: As it came, once the work has stopped.
        """
        threading.Thread(target=self._run, args=(work,), daemon=True).start()
        try:
            self._show_until_done()
        except BaseException:
            self._stop()
            raise
        if self._error is not None:
            raise self._explained(self._error)
        return self._result

    def _run(self, work: Callable[..., Any]) -> None:
        try:
            self._result = work(begin=self._begin)
        except BaseException as exc:  # handed to the main thread, which raises it
            self._error = exc
        finally:
            self._done.set()

    def _stop(self) -> None:
        self._stopped = True
        for _ in range(_PATIENCE):
            # Again and again, since an interrupt between two statements stops neither.
            self._db.interrupt()
            if self._done.wait(_TICK):
                break

    def _begin(self, step: str) -> None:
        if self._stopped:
            raise KeyboardInterrupt
        self._step = step

    def _show_until_done(self) -> None:
        with tqdm(total=len(STEPS), disable=not self._show, bar_format=_FORMAT) as bar:
            shown = ""
            # Not Thread.join: interrupted, it takes the thread for finished.
            while not self._done.is_set():
                # A file that collects stderr gets a line a step, a person sees it move.
                if self._step != shown or (self._step and sys.stderr.isatty()):
                    shown = self._step
                    self._draw(bar, STEPS.index(shown), shown)
                self._done.wait(_TICK)
            if self._error is None:
                self._draw(bar, len(STEPS), "done")

    def _draw(self, bar: Any, done: int, name: str) -> None:
        bar.n = done
        bar.set_description_str(name, refresh=False)
        bar.set_postfix_str(self._part(name), refresh=True)

    def _part(self, name: str) -> str:
        """How far the statement at work is, where there is one and the database can tell."""
        percent = self._db.query_progress()
        return f"{percent:.0f} % of this" if 0 <= percent < 100 and name in STEPS[:-1] else ""

    def _explained(self, error: BaseException) -> BaseException:
        if isinstance(error, duckdb.OutOfMemoryException):
            reason = f"out of memory with --memory {self._memory}: give it more, or fewer --threads"
        elif isinstance(error, duckdb.IOException | OSError):
            reason = " ".join(str(error).split())[:400]
        else:
            return error
        explained = ConfigurationError(f"{self._step}: {reason}")
        explained.__cause__ = error
        return explained
