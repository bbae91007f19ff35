"""What an evaluation is asked for by name: methods, repeats of one method, and pairs to compare."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from duet import ConfigurationError
from duet_train.comparing import Pair, every_pair

MODEL_FREE = ("mean", "median", "bias")


def names(text: str) -> list[str]:
    """The names in a list with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def repeats_of(args: argparse.Namespace) -> dict[str, list[str]]:
    """The methods that ``--repeats`` takes as runs of one, by the name that it gives them.

    Args:
        args: As `evaluate` takes them.

    Raises:
        ConfigurationError: An option is not of the form, names the same run twice, or takes a name that is in use.
    """
    found: dict[str, list[str]] = {}
    for option in args.repeats or ():
        name, equals, text = option.partition("=")
        runs = names(text)
        if not (equals and name) or "," in name or len(runs) < 2:
            raise ConfigurationError(f"--repeats must look like NAME=METHOD@RUN,METHOD@RUN, got {option!r}")
        if len(set(runs)) < len(runs) or len({run.partition("@")[0] for run in runs}) > 1:
            raise ConfigurationError(f"--repeats {name!r} must name different runs of one method, got {text!r}")
        if name in (*MODEL_FREE, *names(args.methods), *runs, *found):
            raise ConfigurationError(f"--repeats: the name {name!r} is taken")
        found[name] = runs
    return found


def evaluated(args: argparse.Namespace) -> list[str]:
    """Every method that is evaluated: those of ``--methods``, then the runs of ``--repeats``.

    Args:
        args: As `evaluate` takes them.

    Raises:
        ConfigurationError: As `repeats_of`.
    """
    runs = [run for each in repeats_of(args).values() for run in each]
    return list(dict.fromkeys([*names(args.methods), *runs]))


def check_runs(args: argparse.Namespace, elsewhere: Mapping[str, tuple[str, str]]) -> None:
    """Whether the runs of each repeated method are models of different names.

    Args:
        args: As `evaluate` takes them.
        elsewhere: Address and model by the name that ``--at`` gives them.

    Raises:
        ConfigurationError: Two are of one name, so that the ledger would answer for one with the other's texts.
    """
    for name, runs in repeats_of(args).items():
        asked = [run.partition("@")[2] or args.model for run in runs]
        models = [elsewhere[one][1] if one in elsewhere else one for one in asked]
        if twice := next((model for model in models if models.count(model) > 1), None):
            raise ConfigurationError(
                f"--repeats {name!r}: two of its runs are served as {twice!r}, and the ledger knows a model by its "
                "name: serve each under a name of its own"
            )


def pairs_of(args: argparse.Namespace) -> list[Pair]:
    """Which method is held against which: those of ``--compare``, else all, a repeated method in place of its runs.

    Args:
        args: As `evaluate` takes them.

    Raises:
        ConfigurationError: A pair is not of two names that are evaluated.
    """
    repeats = repeats_of(args)
    runs = {run for each in repeats.values() for run in each}
    known = [*MODEL_FREE, *evaluated(args), *repeats]
    if not args.compare:
        return every_pair([name for name in known if name not in runs])
    pairs = [_pair(option, known) for option in args.compare]
    return list(dict.fromkeys(pairs))


def _pair(option: str, known: Sequence[str]) -> Pair:
    match names(option):
        case [first, second] if first != second:
            pass
        case _:
            raise ConfigurationError(f"--compare must look like METHOD,METHOD, got {option!r}")
    for name in (first, second):
        if name not in known:
            raise ConfigurationError(f"--compare has {name!r}, which is not evaluated: there are {', '.join(known)}")
    return first, second
