"""What the commands share: which endpoint, which data, which prompt."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import as_file, files
from pathlib import Path

import attrs

from duet import local
from duet._dataset import Dataset, load
from duet._endpoint import HTTPEndpoint
from duet._errors import ConfigurationError
from duet._ledger import Ledger
from duet._profiler import JointProfiler, Pair
from duet._prompts import JointPrompt
from duet._schema import ProfileSchema
from duet._settings import Engine, Sampling

EMBEDDED_NOTE = "No --base-url: using the embedded SmolLM2-135M. It shows the machinery, not quality."


@attrs.frozen
class Options:
    """The shared part of a command line."""

    base_url: str | None
    model: str | None
    api_key: str | None = attrs.field(repr=False)
    engine: Engine | None
    gguf: Path | None
    constrained: bool
    prompt: JointPrompt
    sampling: Sampling

    @property
    def embedded(self) -> bool:
        """True where no endpoint was named."""
        return self.base_url is None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shared arguments."""
    where = parser.add_argument_group("endpoint (default: the embedded engine)")
    where.add_argument("--base-url", default=os.environ.get("DUET_BASE_URL"), help="address up to /v1 [DUET_BASE_URL]")
    where.add_argument("--model", default=os.environ.get("DUET_MODEL"), help="model or adapter name [DUET_MODEL]")
    where.add_argument("--api-key-env", metavar="NAME", help="environment variable with the key [DUET_API_KEY]")
    where.add_argument("--engine", choices=("llama.cpp", "vllm", "openai"), help="what serves it, for --constrained")
    where.add_argument("--constrained", action="store_true", help="decode under the profile's grammar")
    where.add_argument("--gguf", type=Path, metavar="FILE", help="weights for the embedded engine")
    prompt = parser.add_argument_group("prompt")
    prompt.add_argument("--history", type=_count, default=None, metavar="N", help="most rows of the user's history")
    prompt.add_argument("--evidence", type=_count, default=None, metavar="N", help="most rows of the item's evidence")
    prompt.add_argument("--section-chars", type=_positive, default=None, metavar="N", help="most characters a section")
    prompt.add_argument("--max-tokens", type=_positive, default=896, metavar="N", help="most tokens of a completion")
    prompt.add_argument("--temperature", type=float, default=0.7, metavar="T", help="0 is greedy (default: 0.7)")
    prompt.add_argument("--seed", type=int, default=6, metavar="N", help="of the sampling (default: 6)")


def read_options(args: argparse.Namespace, data: Dataset) -> Options:
    """The shared options, checked.

    Raises:
        ConfigurationError: They do not fit together.
    """
    embedded = args.base_url is None
    if not embedded and not args.model:
        raise ConfigurationError("--base-url needs --model")
    if embedded and args.model:
        raise ConfigurationError("--model (or DUET_MODEL) needs --base-url (or DUET_BASE_URL)")
    if not embedded and args.gguf:
        raise ConfigurationError("--gguf is for the embedded engine, --base-url for another one")
    # 135M parameters read about 200 tokens a second on one core, so the embedded default shows it fewer of them.
    rows, chars = (5, 160) if embedded else (10, None)
    schema = ProfileSchema(max_chars=args.section_chars or chars)
    return Options(
        base_url=args.base_url,
        model=args.model,
        api_key=_key(args.api_key_env),
        engine=args.engine,
        gguf=args.gguf,
        constrained=args.constrained or embedded,
        prompt=JointPrompt(
            schema=schema,
            history_limit=rows if args.history is None else args.history,
            evidence_limit=rows if args.evidence is None else args.evidence,
            scale=data.scale,
        ),
        sampling=Sampling(max_tokens=args.max_tokens, temperature=args.temperature, seed=args.seed),
    )


def read_data(directory: Path | None) -> Dataset:
    """The given folder, or the packaged sample."""
    if directory is not None:
        return load(directory)
    with as_file(files("duet") / "sample") as folder:
        return load(folder)


@asynccontextmanager
async def open_endpoint(options: Options, pairs: Sequence[Pair], parallel: int) -> AsyncIterator[HTTPEndpoint]:
    """The endpoint that the options name; the embedded engine is sized to the pairs' prompts."""
    if options.base_url is not None and options.model is not None:
        async with HTTPEndpoint(
            options.base_url, options.model, api_key=options.api_key, engine=options.engine
        ) as endpoint:
            yield endpoint
        return
    say(EMBEDDED_NOTE)
    prompts = (options.prompt.render(user, item) for user, item in pairs)
    context = local.context_for(prompts, options.sampling.max_tokens or 896)
    async with local.engine(options.gguf, parallel=parallel, context=context) as endpoint:
        yield endpoint


def profiler_for(options: Options, endpoint: HTTPEndpoint, ledger: Ledger | None = None) -> JointProfiler:
    """The profiler that the options describe."""
    return JointProfiler(
        endpoint,
        prompt=options.prompt,
        sampling=options.sampling,
        ledger=ledger,
        constrained=options.constrained,
    )


def say(text: str) -> None:
    """Talk goes to stderr; stdout is data."""
    print(text, file=sys.stderr, flush=True)


def _key(name: str | None) -> str | None:
    if name is None:
        return os.environ.get("DUET_API_KEY") or None
    if not os.environ.get(name):
        raise ConfigurationError(f"--api-key-env: the environment variable {name} is not set")
    return os.environ[name]


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value
