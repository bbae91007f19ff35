"""``python -m duet demo`` and ``python -m duet profile``.

Exit codes: 0 when at least one pair succeeded and all are accounted for, 1 when none did, 2 for usage, 130 for an
interrupt. Data goes to stdout, talk to stderr.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

import anyio

from duet import _bulk, _demo
from duet._errors import ConfigurationError, DuetError, MissingExtraError, RecordError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code."""
    args = _parser().parse_args(argv)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # closed by whoever started us; talk goes nowhere
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a character gets a stand-in
    try:
        return int(anyio.run(args.run, args))
    except (ConfigurationError, MissingExtraError, RecordError) as exc:
        print(f"duet {args.command}: {exc}", file=sys.stderr)
        return 2
    except DuetError as exc:
        print(f"duet {args.command}: {type(exc).__name__}: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read stdout has left; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as exc:
        print(f"duet {args.command}: {exc}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m duet", description="Profiles of users and items in plain language, for recommenders."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="profile a pair live, or several with a table")
    _demo.add_parser(demo)
    demo.set_defaults(run=_demo.run)
    profile = commands.add_parser("profile", help="profile many pairs: JSON lines in, JSON lines out")
    _bulk.add_parser(profile)
    profile.set_defaults(run=_bulk.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
