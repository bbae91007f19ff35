"""``python -m duet profile``: pairs in, JSON lines out, resumable."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

import attrs

from duet._cli import add_arguments, open_endpoint, profiler_for, read_data, read_options
from duet._dataset import Dataset, identifier, instant, read_lines
from duet._errors import ConfigurationError, RecordError
from duet._ledger import Ledger
from duet._profiler import Pair
from duet._results import Outcome


def add_parser(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="interactions and items, JSON lines")
    parser.add_argument(
        "--pairs", type=Path, required=True, metavar="FILE", help="JSON lines: user_id, item_id, timestamp?"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON lines, rewritten by every run (default: stdout)")
    parser.add_argument("--ledger", type=Path, metavar="FILE", help="SQLite; what is in it is not asked again")
    parser.add_argument("--concurrency", type=int, default=16, metavar="N", help="most pairs under way (default: 16)")
    add_arguments(parser)


async def run(args: argparse.Namespace) -> int:
    """Run the command; the exit code."""
    from tqdm import tqdm

    if args.concurrency < 1:
        raise ConfigurationError(f"--concurrency must be at least 1, got {args.concurrency}")
    data = read_data(args.data)
    options = read_options(args, data)
    pairs = [_pair(fields, where, data) for fields, where in read_lines(args.pairs)]
    if not pairs:
        raise ConfigurationError(f"{args.pairs}: no pairs")
    succeeded = 0
    async with AsyncExitStack() as stack:
        ledger = await stack.enter_async_context(Ledger(args.ledger)) if args.ledger else None
        parallel = min(4, args.concurrency, len(pairs))
        endpoint = await stack.enter_async_context(open_endpoint(options, pairs, parallel))
        profiler = profiler_for(options, endpoint, ledger)
        out = stack.enter_context(_opened(args.out))
        bar = stack.enter_context(tqdm(total=len(pairs), desc="profiles", unit="pair", file=sys.stderr))
        async with profiler.profile_many(pairs, concurrency=args.concurrency) as outcomes:
            async for outcome in outcomes:
                print(json.dumps(line_of(outcome), ensure_ascii=False), file=out, flush=True)
                succeeded += outcome.profile is not None
                bar.update()
    print(f"{succeeded} of {len(pairs)} pairs profiled", file=sys.stderr)
    return 0 if succeeded else 1


def line_of(outcome: Outcome) -> dict[str, Any]:
    """One line of output: index, ids, and a profile or an error."""
    profile, error = outcome.profile, outcome.error
    return {
        "index": outcome.index,
        "user_id": outcome.user.id if outcome.user else None,
        "item_id": outcome.item.id if outcome.item else None,
        "profile": None if profile is None else attrs.asdict(profile),
        "error": None if error is None else {"type": type(error).__name__, "message": str(error)},
    }


def _pair(fields: dict[str, Any], where: str, data: Dataset) -> Pair:
    """The pair of one line, with what lies strictly before its time; without one, with all there is."""
    try:
        user_id, item_id = identifier(fields, "user_id"), identifier(fields, "item_id")
        return data.pair(user_id, item_id, instant(fields.get("timestamp")))
    except RecordError as exc:
        raise RecordError(f"{where}: {exc}", field=exc.field) from None


@contextmanager
def _opened(path: Path | None) -> Iterator[TextIO]:
    if path is None:
        yield sys.stdout
        return
    try:
        file = path.open("w", encoding="utf-8")
    except OSError as exc:
        raise ConfigurationError(f"cannot write {path}: {exc}") from exc
    try:
        with file:
            yield file
    except OSError as exc:
        raise ConfigurationError(f"cannot write {path}: {exc}") from exc
