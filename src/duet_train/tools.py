"""The options of an evaluation made into endpoints, a recommender and all else that its methods share."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

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
    Recommender,
    Sampling,
    local,
)
from duet_train.asked import check_runs, evaluated, names, pairs_of
from duet_train.data.prepared import Prepared, PreparedExample
from duet_train.methods import METHODS, Tools, parse_method
from duet_train.modes import Mode, decide
from duet_train.settings import check_address


def check_options(args: argparse.Namespace) -> None:
    """What can be known to be wrong before anything is read or asked.

    Args:
        args: As `evaluate` takes them.

    Raises:
        ConfigurationError: An option does not hold.
    """
    if args.concurrency < 1 or args.ranking < 0:
        raise ConfigurationError("--concurrency must be at least 1, and --ranking not negative")
    if not names(args.methods):
        raise ConfigurationError(f"--methods names none: there are {', '.join(METHODS)}")
    for name in evaluated(args):
        parse_method(name)
    if missing := sorted(set(names(args.ranking_methods or "")) - set(evaluated(args))):
        raise ConfigurationError(f"--ranking-methods has {missing[0]!r}, which --methods has not")
    elsewhere = named_addresses(args.at or ())
    asked = {name.partition("@")[2] for name in evaluated(args)}
    if unused := sorted(elsewhere.keys() - asked):
        raise ConfigurationError(f"--at names {unused[0]!r}, which no method of --methods asks")
    check_runs(args, elsewhere)
    pairs_of(args)
    extra_body(args)
    if args.minimum_mass is not None and not 0 <= args.minimum_mass <= 1:
        raise ConfigurationError(f"--minimum-mass must lie from 0 to 1, got {args.minimum_mass:g}")
    if not (args.local or (args.base_url and args.model)):
        raise ConfigurationError(
            "--base-url and --model name the profiler's endpoint; --local takes the embedded engine"
        )
    if args.recommender_model and not (args.recommender_base_url or args.base_url):
        raise ConfigurationError("--recommender-model needs --recommender-base-url")
    if args.recommender_head and (args.recommender_base_url or args.recommender_model):
        raise ConfigurationError("--recommender-head is a recommender of its own: no other can be named beside it")
    if args.recommender_base_url and not (args.recommender_model or args.model):
        raise ConfigurationError("--recommender-base-url needs --recommender-model")
    for option, given in (("--transfer-to", args.transfer_to), ("--embedder", args.embedder)):
        if given and given != "minilm":
            address_and_model(given, option)


def named_addresses(options: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Address and model by the name that ``--at`` gives them.

    Args:
        options: Each "NAME=URL,MODEL".

    Raises:
        ConfigurationError: One is not of this form.
    """
    found = {}
    for option in options:
        check_address(option, "--at")
        name, equals, where = option.partition("=")
        if not equals or not name:
            raise ConfigurationError(f"--at must look like NAME=http://127.0.0.1:8000/v1,MODEL, got {option!r}")
        found[name] = address_and_model(where, "--at")
    return found


def extra_body(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of the engine's own for every chat request: those for embeddings are no chat, and servers refuse them.

    Args:
        args: With `extra_body`.

    Raises:
        ConfigurationError: It is no JSON object.
    """
    try:
        body = json.loads(args.extra_body or "{}")
    except ValueError as exc:
        raise ConfigurationError("--extra-body must be JSON") from exc
    if not isinstance(body, dict):
        raise ConfigurationError("--extra-body must be a JSON object")
    return body


def address_and_model(text: str, option: str) -> tuple[str, str]:
    """The two halves of "URL,MODEL".

    Args:
        text: What was given.
        option: For which option.

    Raises:
        ConfigurationError: There are no two halves.
    """
    check_address(text, option)
    address, comma, model = text.rpartition(",")
    if not comma or not address.startswith(("http://", "https://")) or not model:
        raise ConfigurationError(f"{option} must look like http://127.0.0.1:8000/v1,NAME, got {text!r}")
    return address, model


@asynccontextmanager
async def open_tools(args: argparse.Namespace, data: Prepared, rows: Sequence[PreparedExample]) -> AsyncIterator[Tools]:
    """What all methods share, for as long as the block lasts.

    Args:
        args: Checked options.
        data: Prepared.
        rows: What is evaluated; the embedded engine's context is sized to them.

    Raises:
        ConfigurationError: An option does not hold.
        MissingExtraError: The embedded engine or the embedder is not installed.
    """
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
        judge = default
        if args.recommender_base_url or args.recommender_model:
            address, model = args.recommender_base_url or args.base_url, args.recommender_model or args.model
            judge = await stack.enter_async_context(HTTPEndpoint(address, model, api_key=_key(args)))
        embedded = args.local and judge is default
        yield Tools(
            endpoint=endpoint_of,
            recommender=await _frozen(args, judge, data, ledger, embedded=embedded),
            judge=judge,
            ledger=ledger,
            prompt=prompt,
            sampling=Sampling(
                max_tokens=args.max_tokens, temperature=args.temperature, seed=args.seed, extra_body=extra_body(args)
            ),
            constrained=args.constrained or args.local,
            domain=args.domain,
            embedder=await _embedder(args, stack),
            concurrency=min(4, args.concurrency) if args.local else args.concurrency,
            minimum_mass=least_mass(args.minimum_mass, embedded=embedded),
        )


@asynccontextmanager
async def open_second(args: argparse.Namespace, data: Prepared, ledger: Ledger) -> AsyncIterator[LLMRecommender]:
    """The recommender of ``--transfer-to``, for as long as the block lasts.

    Args:
        args: Checked options.
        data: Prepared.
        ledger: Where finished generations are kept.
    """
    address, model = address_and_model(args.transfer_to, "--transfer-to")
    async with HTTPEndpoint(address, model, api_key=_key(args)) as endpoint:
        yield await _recommender(args, endpoint, data, ledger)


async def _endpoints(
    args: argparse.Namespace, prompt: JointPrompt, rows: Sequence[PreparedExample], stack: AsyncExitStack
) -> tuple[Endpoint, Callable[[str | None], Endpoint]]:
    """The endpoint for all, and the way to one for another model."""
    elsewhere = {}
    for name, (address, model) in named_addresses(args.at or ()).items():
        endpoint = HTTPEndpoint(address, model, api_key=_key(args), engine=args.engine)
        elsewhere[name] = await stack.enter_async_context(endpoint)
    if args.local:
        prompts = (prompt.render(row.profile_user, row.example.item) for row in rows)
        context = local.context_for(prompts, args.max_tokens) + 512  # baselines ask in more words
        engine = await stack.enter_async_context(local.engine(parallel=4, context=context))
        return engine, lambda model: elsewhere.get(model or "") or _only(engine, model)

    def endpoint_of(model: str | None) -> Endpoint:
        if model in elsewhere:
            return elsewhere[model]
        endpoint = HTTPEndpoint(args.base_url, model or args.model, api_key=_key(args), engine=args.engine)
        stack.push_async_callback(endpoint.aclose)
        return endpoint

    return endpoint_of(None), endpoint_of


def _only(engine: Endpoint, model: str | None) -> Endpoint:
    if model is not None:
        raise ConfigurationError(f"--local has one model and no {model!r}: serve it, and name its --base-url")
    return engine


async def _frozen(
    args: argparse.Namespace, judge: Endpoint, data: Prepared, ledger: Ledger, *, embedded: bool
) -> Recommender:
    if args.recommender_head is None:
        return await _recommender(args, judge, data, ledger, embedded=embedded)
    from duet_train.head import HeadRecommender

    return HeadRecommender.load(args.recommender_head)


async def _recommender(
    args: argparse.Namespace, endpoint: Endpoint, data: Prepared, ledger: Ledger, *, embedded: bool = False
) -> LLMRecommender:
    def asking(mode: Mode) -> LLMRecommender:
        # `recent` is the most it would show; which rows it may show is decided by the user it is given.
        return LLMRecommender(
            endpoint,
            mode=mode,
            scale=data.scale,
            recent=max(10, int(data.settings["recent"])),
            review_chars=args.review_chars,
            sampling=Sampling(
                temperature=0.0, seed=42, top_logprobs=200 if embedded else None, extra_body=extra_body(args)
            ),
            ledger=ledger,
            minimum_mass=least_mass(args.minimum_mass, embedded=embedded),
        )

    return asking(await decide(args.mode, asking, gives_logprobs=embedded))


def least_mass(asked: float | None, *, embedded: bool) -> float:
    """The least probability of all labels together that a recommender's answer must have.

    The model of the embedded engine gives the labels about three per cent: with 0.5 it would never answer.

    Args:
        asked: What the options or settings say; None leaves it to the model.
        embedded: Whether the embedded engine recommends.
    """
    if asked is not None:
        return asked
    return 0.0 if embedded else 0.5


async def _embedder(args: argparse.Namespace, stack: AsyncExitStack) -> Embedder | None:
    if args.embedder is None:
        return None
    if args.embedder == "minilm":
        from duet_train.minilm import MiniLM

        return MiniLM()
    address, model = address_and_model(args.embedder, "--embedder")
    return await stack.enter_async_context(HTTPEmbedder(address, model, api_key=_key(args)))


def _key(args: argparse.Namespace) -> str | None:
    return os.environ.get(args.api_key_env) or None
