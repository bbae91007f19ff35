"""``python -m duet_train evaluate``: the published comparisons, on the same rows, before one frozen recommender."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import attrs
import numpy as np

from duet import ConfigurationError, LLMRecommender, Recommender
from duet_train.asked import evaluated, names, pairs_of, repeats_of
from duet_train.baselines import Profiler
from duet_train.comparing import compare
from duet_train.data.prepared import Prepared, PreparedExample
from duet_train.extras import catalogue_table, choice_table, text_table
from duet_train.figures import assemble, check_leaks, gold_of, model_free
from duet_train.judging import Floats, Judgement, judge, rejudge
from duet_train.methods import METHODS, CountingLedger, Tools, build
from duet_train.modes import AUTO, MODES
from duet_train.negatives import CandidateSet
from duet_train.predictions import PREDICTIONS, TRANSFER, write_predictions
from duet_train.ranking import Catalogue, method_scores, ranking_figures
from duet_train.repeats import repeat_figures
from duet_train.scoring import Gold
from duet_train.tables import markdown
from duet_train.tools import address_and_model, check_options, open_second, open_tools

Step = Callable[[], object]
Counted = tuple[Profiler, CountingLedger]

_MODE = ", mode "  # between a recommender and how it was asked, in the facts of the results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="what prepare wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for ledger, rows and results")
    parser.add_argument(
        "--methods",
        default="10h,template,duet",
        metavar="NAMES",
        help=f"{', '.join(METHODS)}; duet@NAME asks model NAME",
    )
    parser.add_argument(
        "--repeats",
        action="append",
        metavar="NAME=METHOD@RUN,METHOD@RUN",
        help="runs of other seeds as one method NAME; may be repeated",
    )
    parser.add_argument(
        "--compare", action="append", metavar="A,B", help="test A over B instead of all pairs; may be repeated"
    )
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"))
    parser.add_argument("--sample", type=int, metavar="N", help="so many rows of the split, drawn by --seed")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    model = parser.add_argument_group("models")
    model.add_argument("--local", action="store_true", help="the embedded engine profiles and recommends")
    model.add_argument("--base-url", default=os.environ.get("DUET_BASE_URL"), help="of the profiler [DUET_BASE_URL]")
    model.add_argument("--model", default=os.environ.get("DUET_MODEL"), help="of the profiler [DUET_MODEL]")
    model.add_argument(
        "--at", action="append", metavar="NAME=URL,MODEL", help="where METHOD@NAME asks; may be repeated"
    )
    model.add_argument("--extra-body", metavar="JSON", help="merged into every chat request, to turn thinking off")
    model.add_argument("--api-key-env", default="DUET_API_KEY", metavar="NAME", help="holds the key [DUET_API_KEY]")
    model.add_argument("--recommender-base-url", metavar="URL", help="default: the profiler's")
    model.add_argument("--recommender-model", metavar="NAME", help="default: the profiler's")
    model.add_argument("--recommender-head", type=Path, metavar="DIR", help="what the verb head wrote")
    model.add_argument("--transfer-to", metavar="URL,MODEL", help="a second recommender judges the same profiles")
    model.add_argument("--embedder", metavar="minilm|URL,MODEL", help="for alignment and the whole catalogue")
    model.add_argument("--engine", choices=("llama.cpp", "vllm", "openai"), help="of the profiler, for --constrained")
    model.add_argument("--constrained", action="store_true", help="decode under grammars; --local always does")
    prompt = parser.add_argument_group("prompts")
    prompt.add_argument(
        "--mode",
        choices=MODES,
        default=AUTO,
        help="of the rating; auto is expected where the server gives log-probabilities, else decimal",
    )
    prompt.add_argument(
        "--minimum-mass",
        type=float,
        metavar="P",
        help="least probability of all labels together, with expected and --choice [0.5; 0 for the embedded engine]",
    )
    prompt.add_argument("--shown", type=int, default=10, metavar="N", help="most rows of either side in a prompt")
    prompt.add_argument("--review-chars", type=int, default=200, metavar="N")
    prompt.add_argument("--section-chars", type=int, metavar="N", help="most characters of a section")
    prompt.add_argument("--max-tokens", type=int, default=896, metavar="N")
    prompt.add_argument("--temperature", type=float, default=0.0, metavar="T")
    prompt.add_argument("--domain", default="products", help="books, movies, music, places or products")
    more = parser.add_argument_group("more tables")
    more.add_argument("--ranking", type=int, default=0, metavar="N", help="rank ten candidates for N drawn rows")
    more.add_argument("--negatives", default="random,ease", help="random, ease, or both")
    more.add_argument("--ranking-methods", metavar="NAMES", help="default: all of --methods")
    more.add_argument("--choice", action="store_true", help="next-item choice from the user's profile")
    more.add_argument("--concurrency", type=int, default=16, metavar="N")


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit code."""
    return int(anyio.run(_evaluate, args))


async def _evaluate(args: argparse.Namespace) -> int:
    check_options(args)
    data = Prepared.open(args.data)
    rows = data.examples(args.split, sample=args.sample, seed=args.seed)
    if not rows:
        raise ConfigurationError(f"{args.data}: the split {args.split!r} has no examples")
    check_leaks(rows)
    gold, catalogue = gold_of(data, rows), Catalogue.of(data)
    baselines = model_free(data, rows, gold)
    ranked = _ranked(args, data, rows)
    sets = _candidates(args, ranked, catalogue)
    args.out.mkdir(parents=True, exist_ok=True)
    args.mode = _earlier_mode(args) if args.mode == AUTO else args.mode
    async with open_tools(args, data, rows) as tools:
        drawn = {"split": args.split, "seed": args.seed, "rows": [row.row for row in rows]}
        _write(args.out / "rows.json", drawn | {"mode": getattr(tools.recommender, "mode", None)})
        methods = {name: _counted(name, tools) for name in evaluated(args)}
        judged = await _judge(args, rows, methods, tools)
        write_predictions(args.out / PREDICTIONS, rows, baselines, judged)
        results = assemble(gold, baselines, judged) | _side_by_side(args, gold, baselines, judged)
        results["facts"] = _facts(args, data, rows, results["best_baseline"], tools.recommender)
        if args.transfer_to:
            second = await _transfer(args, data, rows, judged, tools, results["facts"])
            write_predictions(args.out / TRANSFER, rows, baselines, second)
            results["transfer"] = assemble(gold, baselines, second)["methods"]
            results["transfer_side_by_side"] = _side_by_side(args, gold, baselines, second)
        results["texts"] = await text_table(rows, judged, tools)
        results["ranking"] = await _rank(args, data, ranked, sets, methods, catalogue, tools)
        results["catalogue"] = await catalogue_table(data, rows, judged, catalogue, tools)
        if args.choice:
            results["choice"] = await choice_table(data, rows, judged, catalogue, tools, seed=args.seed)
    _write(args.out / "results.json", results)
    text = markdown(results)
    (args.out / "results.md").write_text(text, encoding="utf-8")
    print(text, end="")
    return 0 if any(not np.isnan(one.predicted).all() for one in judged.values()) else 1


def _ranked(args: argparse.Namespace, data: Prepared, rows: Sequence[PreparedExample]) -> list[PreparedExample]:
    """The rows to rank, drawn as `--sample` draws: fewer lie within more, and within those that are evaluated."""
    drawn = {row.id for row in data.examples(args.split, sample=min(args.ranking, len(rows)), seed=args.seed)}
    return [row for row in rows if row.id in drawn]


def _candidates(
    args: argparse.Namespace, rows: Sequence[PreparedExample], catalogue: Catalogue
) -> dict[str, list[CandidateSet]]:
    """By kind; drawn before any model is asked, since too small a catalogue has none."""
    kinds = names(args.negatives) if args.ranking else []
    return {kind: [catalogue.candidates(row, kind, args.seed) for row in rows] for kind in kinds}


def _counted(name: str, tools: Tools) -> Counted:
    ledger = CountingLedger(tools.ledger)
    return build(name, attrs.evolve(tools, ledger=ledger)), ledger


async def _judge(
    args: argparse.Namespace, rows: Sequence[PreparedExample], methods: Mapping[str, Counted], tools: Tools
) -> dict[str, Judgement]:
    judged = {}
    for name, (profiler, ledger) in methods.items():
        with _bar(name, 4 * len(rows)) as step:
            found = await judge(
                rows, profiler, tools.recommender, concurrency=tools.concurrency, seed=args.seed, step=step
            )
        judged[name] = attrs.evolve(found, calls=ledger.calls)
    return judged


def _side_by_side(
    args: argparse.Namespace, gold: Gold, baselines: Mapping[str, Floats], judged: Mapping[str, Judgement]
) -> dict[str, Any]:
    """Repeated methods over their runs, and the tests of pairs."""
    repeats = {name: {run: judged[run] for run in runs} for name, runs in repeats_of(args).items()}
    predicted = {
        **baselines,
        **{name: one.predicted for name, one in judged.items()},
        **{name: np.array([one.predicted for one in runs.values()]) for name, runs in repeats.items()},
    }
    return {
        "repeats": {name: repeat_figures(gold, runs) for name, runs in repeats.items()},
        "comparisons": [attrs.asdict(one) for one in compare(gold, predicted, pairs_of(args))],
    }


async def _rank(
    args: argparse.Namespace,
    data: Prepared,
    rows: Sequence[PreparedExample],
    sets: Mapping[str, Sequence[CandidateSet]],
    methods: Mapping[str, Counted],
    catalogue: Catalogue,
    tools: Tools,
) -> dict[str, Any]:
    tables: dict[str, Any] = {}
    for kind, drawn in sets.items():
        numbers = {"rows": [row.row for row in rows]}
        _write(args.out / f"candidates-{kind}.json", numbers | catalogue.record(drawn))
        tables[kind] = {"ease": ranking_figures([catalogue.ease_scores(one) for one in drawn], drawn)}
        for name in names(args.ranking_methods or args.methods):
            with _bar(f"{name}, {kind}", sum(len(one.items) for one in drawn)) as step:
                scores = await method_scores(
                    data,
                    rows,
                    drawn,
                    catalogue.item_ids,
                    methods[name][0],
                    tools.recommender,
                    split=args.split,
                    concurrency=tools.concurrency,
                    step=step,
                )
            tables[kind][name] = ranking_figures(scores, drawn)
    return tables


async def _transfer(
    args: argparse.Namespace,
    data: Prepared,
    rows: Sequence[PreparedExample],
    judged: Mapping[str, Judgement],
    tools: Tools,
    facts: dict[str, Any],
) -> dict[str, Judgement]:
    again = {}
    async with open_second(args, data, tools.ledger) as recommender:
        facts["second recommender"] += _mode_of(recommender)
        for name, one in judged.items():
            with _bar(f"{name}, transfer", 3 * len(rows)) as step:
                again[name] = await rejudge(
                    rows, one, recommender, concurrency=args.concurrency, seed=args.seed, step=step
                )
    return again


def _facts(
    args: argparse.Namespace,
    data: Prepared,
    rows: Sequence[PreparedExample],
    best_baseline: str,
    recommender: Recommender,
) -> dict[str, Any]:
    """What a reader of the tables must know."""
    settings = data.settings
    timed = rows[0].example.at is not None
    second = address_and_model(args.transfer_to, "--transfer-to")[1] if args.transfer_to else "none"
    return {
        "rows": f"{len(rows)} of split {args.split}, seed {args.seed}",
        "split": f"{settings['split']}, {settings['histories']}, {'by time' if timed else 'in file order'}",
        "history": f"at most {settings['history']} rows, and {settings['recent']} raw ones after them",
        "prompt": f"at most {args.shown} rows a side, {args.review_chars} characters a review",
        "profiler": _profiler_named(args),
        "recommender": _recommender_named(args) + _mode_of(recommender),
        "second recommender": second,
        "embedder": (args.embedder or "none").rpartition(",")[2],
        **{f"runs of {name}": ", ".join(runs) for name, runs in repeats_of(args).items()},
        "intervals": "95 %, bootstrap over users; gains are differences of MAE, positive is better",
        "best baseline": best_baseline,
    }


def _profiler_named(args: argparse.Namespace) -> str:
    return "embedded SmolLM2-135M" if args.local else str(args.model)


def _recommender_named(args: argparse.Namespace) -> str:
    if args.recommender_head:
        return "a head fitted on raw history and item text, which reads the profiles alone"
    return args.recommender_model or "the same"


def _mode_of(recommender: Recommender) -> str:
    return f"{_MODE}{recommender.mode}" if isinstance(recommender, LLMRecommender) else ""


def _earlier_mode(args: argparse.Namespace) -> str:
    """The mode of the results that are already in the folder, where they are of the same models; else "auto".

    Where 0.1 began and there are no results yet, it is "expected": the default that it had, for it noted none.
    """
    facts = _read(args.out / "results.json").get("facts")
    if isinstance(facts, dict):
        name, _, mode = str(facts.get("recommender")).rpartition(_MODE)
        same = (facts.get("profiler"), name) == (_profiler_named(args), _recommender_named(args))
        return mode if same and mode in MODES else AUTO
    rows = _read(args.out / "rows.json")
    return "expected" if rows and "mode" not in rows else AUTO


def _read(path: Path) -> dict[str, Any]:
    """What a file of JSON holds; nothing where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class _bar:
    """A progress bar on stderr; entering it gives the function that moves it on."""

    def __init__(self, name: str, total: int) -> None:
        from tqdm import tqdm

        self._bar: Any = tqdm(total=total, desc=name, unit="call", file=sys.stderr)

    def __enter__(self) -> Step:
        return lambda: self._bar.update()

    def __exit__(self, *exc_info: object) -> None:
        self._bar.close()


def _write(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(_finite(value), ensure_ascii=False, indent=1, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    """The same as JSON can hold it: what is no finite number is null."""
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if isinstance(value, np.generic):
        return _finite(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value
