"""``python -m duet_train VERB``: one module a verb, and only the chosen one is imported.

Exit codes: 0 when the verb did what was asked, 1 when an endpoint or a model failed, 2 for usage, 130 for an interrupt.
Data goes to stdout, talk to stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from duet import ConfigurationError, DuetError, MissingExtraError, RecordError

VERBS: Mapping[str, str] = {
    "prepare": "turn a log of ratings into splits and examples",
    "evaluate": "measure profiles beside baselines on prepared data",
    "head": "fit a small frozen recommender on raw history and item text",
    "grpo": "train the policy by the error of a frozen recommender (DUET)",
    "explore": "sample many profiles an example and score them (LettinGo)",
    "sft": "fine-tune on the best completions, or on given ones",
    "dpo": "train on pairs of right and wrong completions (LettinGo)",
    "rlso": "train by whole-catalogue ranking and the embedder in turn (LangPTune)",
    "host": "serve a base model with trained adapters on loopback",
    "report": "one page of pictures for a run",
}
"""Each verb, which is also the name of its module, and what it does."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    verb = words[0] if words else ""
    try:
        args = _arguments(_parser(verb), words)
        return int(args.run(args))
    except (ConfigurationError, MissingExtraError, RecordError) as exc:
        return _fail(2, f"duet_train {verb}: {exc}")
    except DuetError as exc:
        return _fail(1, f"duet_train {verb}: {type(exc).__name__}: {exc}")
    except KeyboardInterrupt:
        return _fail(130, "\ninterrupted")
    except BrokenPipeError:
        # Whoever read stdout has left; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _fail(code: int, sentence: str) -> int:
    print(sentence, file=sys.stderr, flush=True)
    return code


def _parser(chosen: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m duet_train", description="From logs of ratings to measured and trained profilers."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, summary in VERBS.items():
        about = f"{summary[0].upper()}{summary[1:]}."
        sub = verbs.add_parser(verb, help=summary, description=about, allow_abbrev=False)
        if verb == chosen:
            module = _module(verb)
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


def _arguments(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """What is not ours goes on to TRL, with the verbs that say so."""
    args, rest = parser.parse_known_args(words)
    args.rest = rest
    if rest and not getattr(args, "passes_on", False):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return args


def _module(verb: str) -> Any:
    name = f"duet_train.{verb}"
    try:
        return import_module(name)
    except ModuleNotFoundError as exc:
        missing = (exc.name or "").partition(".")[0]
        if missing in ("", "duet", "duet_train"):
            raise
        raise MissingExtraError(
            f'the package {missing} is not installed; install it with: pip install "duet-profiles[evaluate]"'
        ) from exc


if __name__ == "__main__":
    sys.exit(main())
