"""``python -m duet_train prepare``: a log of ratings in, splits and examples out.

Everything runs in DuckDB on disk within ``--memory``, so a log may be larger than memory, texts included. It runs in a
thread, since that is what can be stopped at once, and what leaves the main thread free to show how far it is.
"""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import duckdb
from tqdm import tqdm

from duet import ConfigurationError, RatingScale, RecordError
from duet_train.data.formats import FORMATS
from duet_train.data.pipeline import STEPS, build, connect, workplace
from duet_train.data.settings import HISTORIES, SPLITS, Settings

_DEFAULTS = Settings()
_TICK = 0.2  # seconds between two looks at the work


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    files = parser.add_argument_group("files")
    files.add_argument(
        "--format", required=True, choices=sorted(FORMATS), metavar="NAME", help=", ".join(sorted(FORMATS))
    )
    files.add_argument("--interactions", required=True, type=Path, metavar="FILE", help="the ratings, gzipped or not")
    files.add_argument("--items", type=Path, metavar="FILE", help="titles and attributes")
    files.add_argument("--out", required=True, type=Path, metavar="DIR", help="directory to make")
    files.add_argument("--overwrite", action="store_true", help="replace DIR where it is a prepared directory")
    files.add_argument("--scale", type=_scale, metavar="MIN:MAX", help="rating scale (default: the format's)")
    _add_rows(parser.add_argument_group("rows"))
    _add_examples(parser.add_argument_group("examples"))
    machine = parser.add_argument_group("machine (changes nothing in the result)")
    machine.add_argument("--memory", default="4GB", metavar="SIZE", help="most memory for data (default: 4GB)")
    machine.add_argument("--threads", type=int, metavar="N", help="default: one a core, and 512 MB for each")


def _add_rows(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--core", type=int, default=_DEFAULTS.core, metavar="K", help="keep the K-core; 0 keeps all (default: 5)"
    )
    group.add_argument("--split", choices=SPLITS, default=_DEFAULTS.split, help="default: global-time")
    group.add_argument(
        "--ratios",
        type=_ratios,
        default=_DEFAULTS.ratios,
        metavar="A:B:C",
        help="shares of train, validation and test (default: 8:1:1)",
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of --split by-user (default: 0)")


def _add_examples(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--histories",
        choices=HISTORIES,
        default=_DEFAULTS.histories,
        help="earlier rows of the same and earlier splits, or of train alone (default: prequential)",
    )
    for name, what in (
        ("history", "most rows of the user for the profile (default: 10; published: 30, 50, 70)"),
        ("recent", "rows after those, raw for the recommender (default: 0; LettinGo: 10)"),
        ("evidence", "most rows of the item (default: 10)"),
        ("min_history", "leave out targets with fewer rows before them (default: 1)"),
    ):
        option = f"--{name.replace('_', '-')}"
        group.add_argument(option, type=int, default=getattr(_DEFAULTS, name), metavar="N", help=what)


def run(args: argparse.Namespace) -> int:
    """Prepare a log; the exit code.

    Raises:
        ConfigurationError: A file or a setting does not hold.
        RecordError: A row does not hold.
    """
    names = [field.name for field in attrs.fields(Settings)]
    manifest = prepare(
        partial(FORMATS[args.format], interactions=args.interactions, items=args.items),
        args.out,
        Settings(**{name: getattr(args, name) for name in names}),
        scale=args.scale,
        format_name=args.format,
        inputs={"interactions": args.interactions} | ({"items": args.items} if args.items else {}),
        memory=args.memory,
        threads=args.threads,
        overwrite=args.overwrite,
    )
    print(summary(manifest, args.out))
    return 0


def prepare(
    read: Callable[[duckdb.DuckDBPyConnection], RatingScale],
    out: Path,
    settings: Settings = _DEFAULTS,
    *,
    scale: RatingScale | None = None,
    format_name: str = "",
    inputs: Mapping[str, Path] | None = None,
    memory: str = "4GB",
    threads: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Make a prepared directory.

    Args:
        read: Fills ``raw_interactions`` and ``raw_items`` of a connection, and gives the scale.
        out: The directory; it appears when all of it is there.
        settings: What to do.
        scale: Instead of the reader's.
        format_name: For the manifest.
        inputs: For the manifest: role to file.
        memory: Most memory that DuckDB uses for data, as "4GB".
        threads: None: one a core, but no more than one for each 512 MB.
        overwrite: Replace a prepared directory.
        progress: Show a bar on stderr.

    Returns:
        The manifest.

    Raises:
        ConfigurationError: A file or a setting does not hold, or memory or disk is too small.
        RecordError: A row does not hold.
    """
    with workplace(out, overwrite=overwrite) as place, connect(place, memory=memory, threads=threads) as db:
        work = partial(
            build,
            db,
            read,
            place / "result",
            settings,
            scale=scale,
            format_name=format_name,
            inputs=inputs,
        )
        manifest: dict[str, Any] = _Watch(db, memory, show=progress).over(work)
        return manifest


def summary(manifest: Mapping[str, Any], out: Path) -> str:
    """What came out, in a few lines."""
    counts = manifest["counts"]
    lines = [
        f"{out}: {counts['rows']:,} of {counts['read']:,} rows, {counts['users']:,} users, {counts['items']:,} items; "
        f"{counts['duplicates']:,} duplicates left out"
    ]
    for name, split in counts["splits"].items():
        shown = f", {split['examples']:,} examples" if "examples" in split else ""
        lines.append(f"{name:>10}: {split['rows']:,} rows{shown}")
    return "\n".join(lines)


class _Watch:
    """Runs work on a connection in a thread, with a bar, and stops it on an interrupt."""

    def __init__(self, db: duckdb.DuckDBPyConnection, memory: str, *, show: bool) -> None:
        self._db = db
        self._memory = memory
        self._show = show
        self._step = ""
        self._stopped = False
        self._result: Any = None
        self._error: BaseException | None = None

    def over(self, work: Callable[..., Any]) -> Any:
        """The result of ``work(begin=…)``."""
        thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        thread.start()
        try:
            self._show_until_done(thread)
        except BaseException:
            self._stopped = True
            self._db.interrupt()
            thread.join()
            raise
        if self._error is not None:
            raise self._explained(self._error)
        return self._result

    def _run(self, work: Callable[..., Any]) -> None:
        try:
            self._result = work(begin=self._begin)
        except BaseException as exc:  # handed to the main thread, which raises it
            self._error = exc

    def _begin(self, step: str) -> None:
        if self._stopped:
            raise KeyboardInterrupt
        self._step = step

    def _show_until_done(self, thread: threading.Thread) -> None:
        with tqdm(total=len(STEPS), disable=not self._show, unit="step", mininterval=_TICK) as bar:
            while thread.is_alive():
                thread.join(_TICK)
                if self._step:
                    bar.set_description(self._step, refresh=False)
                    bar.n = STEPS.index(self._step)
                    bar.set_postfix_str(self._part(), refresh=True)
            if self._error is None:
                bar.n = bar.total

    def _part(self) -> str:
        """How far the statement at work is, where DuckDB can tell."""
        percent = self._db.query_progress()
        return f"{percent:.0f} %" if 0 <= percent <= 100 else ""

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


def _scale(text: str) -> RatingScale:
    try:
        minimum, maximum = text.split(":")
        return RatingScale(float(minimum), float(maximum))
    except (ValueError, RecordError):
        raise argparse.ArgumentTypeError(f"must be MIN:MAX with MIN below MAX, got {text!r}") from None


def _ratios(text: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, text.split(":")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be three numbers as 8:1:1, got {text!r}") from None
