"""``python -m duet demo``: a pair written live, or several with a table at the end."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from duet._cli import Options, add_arguments, open_endpoint, profiler_for, read_data, read_options, say
from duet._endpoint import HTTPEndpoint
from duet._errors import ConfigurationError, DuetError
from duet._events import GenerationDone, SectionDelta, SectionDone
from duet._recommender import LLMRecommender
from duet._records import Example
from duet._results import JointProfile, Outcome, Reward
from duet._reward import RewardEnv
from duet._settings import Sampling
from duet._terms import RatingReward


def add_parser(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("--pairs", type=int, default=1, metavar="N", help="how many pairs; one is written live")
    parser.add_argument("--data", type=Path, metavar="DIR", help="interactions.jsonl[.gz] and items.jsonl[.gz]")
    parser.add_argument("--mode", choices=("expected", "decimal", "integer"), default="expected", help="of the rating")
    add_arguments(parser)


async def run(args: argparse.Namespace) -> int:
    """Run the command; the exit code."""
    if args.pairs < 1:
        raise ConfigurationError(f"--pairs must be at least 1, got {args.pairs}")
    data = read_data(args.data)
    options = read_options(args, data)
    examples = list(islice(data.examples(min_history=4), args.pairs)) or list(islice(data.examples(), args.pairs))
    if not examples:
        raise ConfigurationError(f"{args.data}: no user has two ratings, so there is nothing to predict from")
    if len(examples) < args.pairs:
        say(f"The data holds {len(examples)} users with enough history: profiling those.")
    pairs = [(example.user, example.item) for example in examples]
    async with open_endpoint(options, pairs, parallel=min(4, len(pairs))) as endpoint:
        # The embedded engine gives as many alternatives as are asked for, and its small model spreads its bets: the
        # labels have about three per cent.
        sampling = Sampling(temperature=0.0, seed=42, top_logprobs=200 if options.embedded else None)
        mass = 0.0 if options.embedded else 0.5
        recommender = LLMRecommender(endpoint, mode=args.mode, scale=data.scale, sampling=sampling, minimum_mass=mass)
        env = RewardEnv([RatingReward(recommender)], schema=options.prompt.schema)
        if len(examples) == 1:
            return await _one(options, endpoint, env, examples[0])
        return await _several(options, endpoint, env, examples)


async def _one(options: Options, endpoint: HTTPEndpoint, env: RewardEnv, example: Example) -> int:
    started = time.monotonic()
    print(_bold(f"{_cut(example.user.id, 40)} × {_cut(example.item.title or example.item.id, 100)}"), flush=True)
    try:
        profile = await _write_live(options, endpoint, example)
    except DuetError as exc:
        print(flush=True)
        say(printable(f"{type(exc).__name__}: {exc}"))
        return 1
    reward = await env.score(profile.completion, example)
    usage = profile.usage
    tokens = f"{usage.prompt_tokens} + {usage.completion_tokens}" if usage else "unknown"
    print(f"\n{_verdict(reward, example)}   tokens {tokens}   {time.monotonic() - started:.1f} s")
    if reward.error is not None:
        say(printable(f"No rating: {reward.error}"))
    return 0


async def _write_live(options: Options, endpoint: HTTPEndpoint, example: Example) -> JointProfile:
    open_section = ("", "")
    async with profiler_for(options, endpoint).stream(example.user, example.item) as events:
        async for event in events:
            match event:
                case SectionDelta(side=side, section=section, delta=delta):
                    if (side, section) != open_section:
                        open_section = (side, section)
                        print(f"\n{_dim(f'{side} {section}'.replace('_', ' '))}\n  ", end="")
                    print(printable(delta), end="", flush=True)
                case SectionDone():
                    print(flush=True)
                case GenerationDone(profile=profile):
                    return profile
    raise AssertionError("a stream ends with GenerationDone or an error")


async def _several(options: Options, endpoint: HTTPEndpoint, env: RewardEnv, examples: Sequence[Example]) -> int:
    from tqdm import tqdm

    started = time.monotonic()
    outcomes: list[Outcome] = []
    pairs = [(example.user, example.item) for example in examples]
    profiler = profiler_for(options, endpoint)
    with tqdm(total=len(pairs), desc="profiles", unit="pair", file=sys.stderr) as bar:
        async with profiler.profile_many(pairs, concurrency=4 if options.embedded else 16) as stream:
            async for outcome in stream:
                outcomes.append(outcome)
                bar.update()
    say("Asking the recommender …")
    made = sorted((outcome for outcome in outcomes if outcome.profile), key=lambda outcome: outcome.index)
    completions = [outcome.profile.completion for outcome in made if outcome.profile]
    rewards = await env.score_many(completions, [examples[outcome.index] for outcome in made])
    _print_table(examples, outcomes, dict(zip((outcome.index for outcome in made), rewards, strict=True)))
    _print_summary(outcomes, rewards, time.monotonic() - started)
    return 0 if made else 1


def _print_table(examples: Sequence[Example], outcomes: Sequence[Outcome], rewards: dict[int, Reward]) -> None:
    print(_bold(f"{'user':<16} {'item':<32} {'predicted':>9} {'true':>6} {'reward':>7} {'tokens':>7}"))
    for outcome in sorted(outcomes, key=lambda outcome: outcome.index):
        example = examples[outcome.index]
        head = f"{_cut(example.user.id, 16):<16} {_cut(example.item.title or example.item.id, 32):<32}"
        reward = rewards.get(outcome.index)
        if reward is None or outcome.profile is None:
            print(f"{head} {type(outcome.error).__name__}: {_cut(str(outcome.error), 60)}")
            continue
        predicted = f"{reward.rating.value:.2f}" if reward.rating else "–"
        value = f"{reward.value:.3f}" if reward.value is not None else "–"
        tokens = outcome.profile.usage.total_tokens if outcome.profile.usage else "–"
        print(f"{head} {predicted:>9} {example.rating:>6.1f} {value:>7} {tokens:>7}")


def _print_summary(outcomes: Sequence[Outcome], rewards: Sequence[Reward], seconds: float) -> None:
    failed = Counter(type(outcome.error).__name__ for outcome in outcomes if outcome.error)
    unrated = Counter(type(reward.error).__name__ for reward in rewards if reward.error)
    values = [reward.value for reward in rewards if reward.value is not None]
    parts = [f"{len(outcomes)} pairs in {seconds:.0f} s: {len(rewards)} profiled"]
    parts += [f"{count} {name}" for name, count in failed.items()]
    parts += [f"{count} unrated ({name})" for name, count in unrated.items()]
    if values:
        parts.append(f"mean reward {sum(values) / len(values):.3f}")
    print("\n" + ", ".join(parts))


def _verdict(reward: Reward, example: Example) -> str:
    predicted = f"{reward.rating.value:.2f}" if reward.rating else "none"
    value = f"{reward.value:.3f}" if reward.value is not None else "none"
    return f"predicted {predicted}   true {example.rating:.1f}   reward {value}"


def printable(text: str) -> str:
    """Text for a terminal: what a model writes must not move the cursor."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)


def _cut(text: str, width: int) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= width else line[: width - 1] + "…"


def _styled(text: str, code: str) -> str:
    plain = sys.stdout is None or not sys.stdout.isatty() or bool(os.environ.get("NO_COLOR"))
    return text if plain else f"\033[{code}m{text}\033[0m"


def _bold(text: str) -> str:
    return _styled(text, "1")


def _dim(text: str) -> str:
    return _styled(text, "2")
