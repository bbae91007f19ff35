"""``python -m duet_train evaluate``: the published comparisons, on the same rows, before one frozen recommender."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import attrs
import numpy as np

from duet import (
    ConfigurationError,
    Embedder,
    Endpoint,
    HTTPEmbedder,
    HTTPEndpoint,
    JointPrompt,
    Ledger,
    LLMRecommender,
    ProfileSchema,
    Sampling,
    local,
)
from duet_train.baselines import Profiler
from duet_train.data.prepared import Prepared, PreparedExample
from duet_train.extras import catalogue_table, choice_table, text_table
from duet_train.figures import assemble, check_leaks, gold_of, model_free
from duet_train.judging import Judgement, judge, rejudge
from duet_train.methods import METHODS, Tools, build
from duet_train.ranking import Catalogue, method_scores, ranking_figures
from duet_train.tables import markdown

Step = Callable[[], object]


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
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"))
    parser.add_argument("--sample", type=int, metavar="N", help="so many rows of the split, drawn by --seed")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    model = parser.add_argument_group("models")
    model.add_argument("--local", action="store_true", help="the embedded engine profiles and recommends")
    model.add_argument("--base-url", default=os.environ.get("DUET_BASE_URL"), help="of the profiler [DUET_BASE_URL]")
    model.add_argument("--model", default=os.environ.get("DUET_MODEL"), help="of the profiler [DUET_MODEL]")
    model.add_argument("--api-key-env", default="DUET_API_KEY", metavar="NAME", help="holds the key [DUET_API_KEY]")
    model.add_argument("--recommender-base-url", metavar="URL", help="default: the profiler's")
    model.add_argument("--recommender-model", metavar="NAME", help="default: the profiler's")
    model.add_argument("--transfer-to", metavar="URL,MODEL", help="a second recommender judges the same profiles")
    model.add_argument("--embedder", metavar="minilm|URL,MODEL", help="for alignment and the whole catalogue")
    model.add_argument("--engine", choices=("llama.cpp", "vllm", "openai"), help="of the profiler, for --constrained")
    model.add_argument("--constrained", action="store_true", help="decode under grammars; --local always does")
    prompt = parser.add_argument_group("prompts")
    prompt.add_argument("--mode", choices=("expected", "decimal", "integer"), default="expected", help="of the rating")
    prompt.add_argument("--shown", type=int, default=10, metavar="N", help="most rows of either side in a prompt")
    prompt.add_argument("--review-chars", type=int, default=200, metavar="N")
    prompt.add_argument("--section-chars", type=int, metavar="N", help="most characters of a section")
    prompt.add_argument("--max-tokens", type=int, default=896, metavar="N")
    prompt.add_argument("--temperature", type=float, default=0.0, metavar="T")
    prompt.add_argument("--domain", default="products", help="books, movies, music, places or products")
    more = parser.add_argument_group("more tables")
    more.add_argument("--ranking", type=int, default=0, metavar="N", help="rank ten candidates for N of the rows")
    more.add_argument("--negatives", default="random,ease", help="random, ease, or both")
    more.add_argument("--ranking-methods", metavar="NAMES", help="default: all of --methods")
    more.add_argument("--choice", action="store_true", help="next-item choice from the user's profile")
    more.add_argument("--concurrency", type=int, default=16, metavar="N")


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit code."""
    return int(anyio.run(_evaluate, args))


async def _evaluate(args: argparse.Namespace) -> int:
    data = Prepared.open(args.data)
    rows = data.examples(args.split, sample=args.sample, seed=args.seed)
    if not rows:
        raise ConfigurationError(f"{args.data}: the split {args.split!r} has no examples")
    check_leaks(rows)
    gold, catalogue = gold_of(data, rows), Catalogue.of(data)
    baselines = model_free(data, rows, gold)
    args.out.mkdir(parents=True, exist_ok=True)
    _write(args.out / "rows.json", {"split": args.split, "seed": args.seed, "rows": [row.row for row in rows]})
    async with _open_tools(args, data, rows) as tools:
        methods = {name: build(name, tools) for name in _names(args.methods)}
        judged = await _judge(args, rows, methods, tools)
        results = assemble(gold, baselines, judged)
        results["facts"] = _facts(args, data, rows, results["best_baseline"])
        results["texts"] = await text_table(rows, judged, tools)
        results["catalogue"] = await catalogue_table(data, rows, judged, catalogue, tools)
        if args.ranking:
            results["ranking"] = await _rank(args, data, rows[: args.ranking], methods, catalogue, tools)
        if args.choice:
            results["choice"] = await choice_table(data, rows, judged, catalogue, tools, seed=args.seed)
        if args.transfer_to:
            results["transfer"] = assemble(gold, baselines, await _transfer(args, rows, judged, tools))["methods"]
    _write(args.out / "results.json", results)
    text = markdown(results)
    (args.out / "results.md").write_text(text, encoding="utf-8")
    print(text)
    return 0 if any(not np.isnan(one.predicted).all() for one in judged.values()) else 1


async def _judge(
    args: argparse.Namespace, rows: Sequence[PreparedExample], methods: Mapping[str, Profiler], tools: Tools
) -> dict[str, Judgement]:
    judged = {}
    for name, profiler in methods.items():
        with _bar(name, 4 * len(rows)) as step:
            judged[name] = await judge(
                rows, profiler, tools.recommender, concurrency=tools.concurrency, seed=args.seed, step=step
            )
    return judged


async def _rank(
    args: argparse.Namespace,
    data: Prepared,
    rows: Sequence[PreparedExample],
    methods: Mapping[str, Profiler],
    catalogue: Catalogue,
    tools: Tools,
) -> dict[str, Any]:
    chosen = _names(args.ranking_methods) if args.ranking_methods else list(methods)
    tables: dict[str, Any] = {}
    for kind in _names(args.negatives):
        sets = [catalogue.candidates(row, kind, args.seed) for row in rows]
        records = [one.record(data.matrix("train").user_ids, catalogue.item_ids) for one in sets]
        _write(args.out / f"candidates-{kind}.json", {"ease": catalogue.model.record(), "sets": records})
        tables[kind] = {"ease": ranking_figures([catalogue.ease_scores(one) for one in sets], sets)}
        for name in chosen:
            with _bar(f"{name}, {kind}", sum(len(one.items) for one in sets)) as step:
                scores = await method_scores(
                    data,
                    rows,
                    sets,
                    catalogue.item_ids,
                    methods[name],
                    tools.recommender,
                    concurrency=tools.concurrency,
                    step=step,
                )
            tables[kind][name] = ranking_figures(scores, sets)
    return tables


async def _transfer(
    args: argparse.Namespace, rows: Sequence[PreparedExample], judged: Mapping[str, Judgement], tools: Tools
) -> dict[str, Judgement]:
    address, model = _two(args.transfer_to, "--transfer-to")
    again = {}
    async with HTTPEndpoint(address, model, api_key=_key(args)) as endpoint:
        recommender = _recommender(args, endpoint, rows, tools.ledger)
        for name, one in judged.items():
            with _bar(f"{name}, transfer", 3 * len(rows)) as step:
                again[name] = await rejudge(
                    rows, one, recommender, concurrency=tools.concurrency, seed=args.seed, step=step
                )
    return again


@asynccontextmanager
async def _open_tools(
    args: argparse.Namespace, data: Prepared, rows: Sequence[PreparedExample]
) -> AsyncIterator[Tools]:
    prompt = JointPrompt(
        schema=ProfileSchema(max_chars=args.section_chars),
        history_limit=args.shown,
        evidence_limit=args.shown,
        review_chars=args.review_chars,
        scale=data.scale,
    )
    async with AsyncExitStack() as stack:
        ledger = await stack.enter_async_context(Ledger(args.out / "ledger.sqlite"))
        default, endpoint_of = await _endpoints(args, prompt, rows, stack)
        judge_endpoint = default
        if args.recommender_base_url or args.recommender_model:
            address = args.recommender_base_url or args.base_url
            found = HTTPEndpoint(address, args.recommender_model or args.model, api_key=_key(args))
            judge_endpoint = await stack.enter_async_context(found)
        yield Tools(
            endpoint=endpoint_of,
            recommender=_recommender(args, judge_endpoint, rows, ledger),
            judge=judge_endpoint,
            ledger=ledger,
            prompt=prompt,
            sampling=Sampling(max_tokens=args.max_tokens, temperature=args.temperature, seed=args.seed),
            constrained=args.constrained or args.local,
            domain=args.domain,
            embedder=await _embedder(args, stack),
            concurrency=min(4, args.concurrency) if args.local else args.concurrency,
        )


async def _endpoints(
    args: argparse.Namespace, prompt: JointPrompt, rows: Sequence[PreparedExample], stack: AsyncExitStack
) -> tuple[Endpoint, Callable[[str | None], Endpoint]]:
    """The endpoint for all, and the way to one for another model."""
    if args.local:
        prompts = (prompt.render(row.profile_user, row.example.item) for row in rows)
        context = local.context_for(prompts, args.max_tokens) + 512  # baselines ask in more words
        engine = await stack.enter_async_context(local.engine(parallel=4, context=context))
        return engine, lambda model: engine
    if not (args.base_url and args.model):
        raise ConfigurationError(
            "--base-url and --model name the profiler's endpoint; --local takes the embedded engine"
        )

    def endpoint_of(model: str | None) -> HTTPEndpoint:
        endpoint = HTTPEndpoint(args.base_url, model or args.model, api_key=_key(args), engine=args.engine)
        stack.push_async_callback(endpoint.aclose)
        return endpoint

    return endpoint_of(None), endpoint_of


def _recommender(
    args: argparse.Namespace, endpoint: Endpoint, rows: Sequence[PreparedExample], ledger: Ledger
) -> LLMRecommender:
    # `recent` is the most it would show; which rows it may show is decided by the user it is given.
    return LLMRecommender(
        endpoint,
        mode=args.mode,
        scale=rows[0].example.scale,
        recent=10,
        review_chars=args.review_chars,
        sampling=Sampling(temperature=0.0, seed=42, top_logprobs=200 if args.local else None),
        ledger=ledger,
    )


async def _embedder(args: argparse.Namespace, stack: AsyncExitStack) -> Embedder | None:
    if args.embedder is None:
        return None
    if args.embedder == "minilm":
        from duet_train.minilm import MiniLM

        return MiniLM()
    address, model = _two(args.embedder, "--embedder")
    return await stack.enter_async_context(HTTPEmbedder(address, model, api_key=_key(args)))


def _facts(
    args: argparse.Namespace, data: Prepared, rows: Sequence[PreparedExample], best_baseline: str
) -> dict[str, Any]:
    """What a reader of the tables must know."""
    settings = data.settings
    timed = rows[0].example.at is not None
    return {
        "rows": f"{len(rows)} of split {args.split}, seed {args.seed}",
        "split": f"{settings['split']}, {settings['histories']}, {'by time' if timed else 'in file order'}",
        "history": f"at most {settings['history']} rows, and {settings['recent']} raw ones after them",
        "prompt": f"at most {args.shown} rows a side, {args.review_chars} characters a review",
        "profiler": "embedded SmolLM2-135M" if args.local else args.model,
        "recommender": args.recommender_model or ("the same" if args.local else args.model) + f", mode {args.mode}",
        "intervals": "95 %, bootstrap over rows; gains are differences of MAE, positive is better",
        "best baseline": best_baseline,
    }


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _two(text: str, option: str) -> tuple[str, str]:
    address, comma, model = text.rpartition(",")
    if not comma or not address or not model:
        raise ConfigurationError(f"{option} must look like http://127.0.0.1:8000/v1,NAME, got {text!r}")
    return address, model


def _key(args: argparse.Namespace) -> str | None:
    return os.environ.get(args.api_key_env) or None


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
    text = json.dumps(_finite(value), ensure_ascii=False, indent=1, default=str)
    path.write_text(text + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    """The same as JSON can hold it: what is no finite number is null."""
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if attrs.has(type(value)):
        return _finite(attrs.asdict(value))
    if isinstance(value, np.generic):
        return _finite(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value
