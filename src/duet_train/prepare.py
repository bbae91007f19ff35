"""``python -m duet_train prepare``: a log of ratings in, splits and examples out.

Everything runs in DuckDB on disk within ``--memory``, so a log may be larger than memory, texts included.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import duckdb

from duet import RatingScale, RecordError
from duet_train.data.formats import FORMATS
from duet_train.data.pipeline import build, connect, workplace
from duet_train.data.settings import HISTORIES, SPLITS, Settings
from duet_train.data.watch import Watch

_DEFAULTS = Settings()


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
        manifest: dict[str, Any] = Watch(db, memory=memory, show=progress).over(work)
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
