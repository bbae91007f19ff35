"""Run directories as a training verb writes them, made up: readers of novels, a policy that learns or collapses."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import attrs

from duet.testing import completion_text

# What a reader may care for: in the words of a user's profile, and of an item's.
FACETS = (
    ("patient character studies with flawed narrators", "the character study of a flawed narrator"),
    ("dry humour and absurd dialogue", "absurd dialogue with a dry, humorous tone"),
    ("intricate plotting with fair clues", "an intricately plotted mystery whose clues are fair"),
    ("careful world building without info dumps", "world building that is careful, with few info dumps"),
    ("lyrical descriptions of nature", "lyrical nature descriptions"),
    ("short chapters and a brisk pace", "a brisk pace, kept by short chapters"),
    ("morally grey heroes", "a hero who stays morally grey to the end"),
    ("historical detail that is well researched", "well-researched historical details"),
    ("political intrigue at court", "court intrigue and politics"),
    ("found families and slow friendships", "a slow friendship that becomes a found family"),
    ("endings that stay open", "an open ending that divides readers"),
    ("hard science explained plainly", "science that is hard but plainly explained"),
)
DISLIKES = ("love triangles", "cliffhangers", "long prologues", "preachy speeches", "gore", "purple prose")
TITLES = ("The Salt Road", "Nine Clerks", "A Winter Ledger", "Moth & Lantern", "The Quiet Array", "Harbour of Glass")
BLAND = (
    "This user enjoys books of many kinds and tends to rate them highly when the story is good.",
    "This item is a book that many readers enjoyed and it has received mostly good reviews.",
)


@attrs.frozen
class Plan:
    """How a made-up run goes.

    Args:
        steps: How many.
        groups: Prompts of a step.
        size: Completions of a prompt.
        held_out: Held-out rows.
        every: Steps between two measurements.
        killed: Step at which it was killed; 0 for never.
        resumed: Step from which it went on.
        collapses: The policy ends by writing one text for all.
        seed: Of everything.
    """

    steps: int = 120
    groups: int = 6
    size: int = 4
    held_out: int = 60
    every: int = 20
    killed: int = 66
    resumed: int = 60
    collapses: bool = False
    seed: int = 0


@attrs.frozen
class Pair:
    """A made-up example."""

    number: int
    title: str
    likes: tuple[int, ...]
    offers: tuple[int, ...]
    dislikes: tuple[str, ...]
    gold: float

    @classmethod
    def drawn(cls, number: int, luck: random.Random) -> Pair:
        likes = tuple(luck.sample(range(len(FACETS)), 3))
        offers = tuple(luck.sample(range(len(FACETS)), 3))
        met = len(set(likes) & set(offers))
        gold = float(min(5, max(1, round(3.3 + met + luck.gauss(0, 0.8)))))
        return cls(number, f"{luck.choice(TITLES)} {number}", likes, offers, tuple(luck.sample(DISLIKES, 2)), gold)


def profiles(pair: Pair, skill: float, plan: Plan, luck: random.Random) -> tuple[str, str]:
    """What the policy writes of a pair at some skill, 0 to 1."""
    if plan.collapses and luck.random() < skill:
        return BLAND
    kept = [FACETS[facet][0] for facet in pair.likes if luck.random() < 0.15 + 0.8 * skill]
    told = [FACETS[facet][1] for facet in pair.offers if luck.random() < 0.15 + 0.8 * skill]
    user = f"Looks for {'; '.join(kept)}. Tires of {' and '.join(pair.dislikes)}." if kept else BLAND[0]
    item = f"{pair.title} is praised for {', and for '.join(told)}." if told else BLAND[1]
    return user + (" Usually gives 4 stars." if luck.random() < 0.3 * (1 - skill) else ""), item


def answer(pair: Pair, other: Pair, skill: float, plan: Plan, luck: random.Random) -> dict[str, Any]:
    """One completion with its reward, and under "swapped" the reward that another pair's user would give."""
    if luck.random() > 0.55 + 0.43 * min(1.0, 2 * skill):
        error = luck.choice(["MalformedCompletion: lacks item.profile", "TruncatedCompletion: cut before item.profile"])
        text = "<user_profile><cue>novels</cue><constructed_prompt>Say what they like"
        lost = {"completion": text, "reward": -1.0, "swapped": -1.0, "terms": {}, "rating": None, "gold": pair.gold}
        return {**lost, "error": error, "malformed": True, "tokens": 160}
    user, item = profiles(pair, skill, plan, luck)
    known = 0.0 if (user, item) == BLAND else skill
    noise = luck.gauss(0, 0.3) * known
    rating, swapped = (_rating(seen, pair, known, noise) for seen in (pair, other))
    length = -0.1 * min(1.0, len(user + item) / 4000)
    completion = completion_text(
        user_cue="novels, " + ", ".join(pair.dislikes),
        user_constructed_prompt="Say what this reader looks for and what spoils a book.",
        user_profile=user,
        item_cue=pair.title,
        item_constructed_prompt="Say what readers praise and what they complain of.",
        item_profile=item,
    )
    return {
        "completion": completion,
        "reward": 1 - abs(pair.gold - rating) / 4 + length,
        "swapped": 1 - abs(pair.gold - swapped) / 4 + length,
        "terms": {"rating": 1 - abs(pair.gold - rating) / 4, "length": 10 * length},
        "rating": rating,
        "gold": pair.gold,
        "error": None,
        "malformed": False,
        "tokens": len(completion) // 4,
    }


def _rating(seen: Pair, pair: Pair, known: float, noise: float) -> float:
    """What a recommender predicts that reads the likes of one pair and the offers of another."""
    guess = 4.4 * (1 - known) + (3.3 + len(set(seen.likes) & set(pair.offers))) * known + noise
    return round(min(5.0, max(1.0, guess)), 2)


def write_run(folder: Path, plan: Plan = Plan()) -> Path:
    """A whole run directory; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    luck = random.Random(plan.seed)
    pairs = [Pair.drawn(number, luck) for number in range(max(200, plan.groups))]
    rows = [Pair.drawn(1000 + number, luck) for number in range(plan.held_out)]
    lines: Lines = {name: [] for name in ("history", "completions", "held_out", "samples")}
    for step, attempt, replayed in _steps(plan):
        skill = 1 / (1 + math.exp(-8 * (step / max(1, plan.steps) - 0.5)))
        if step % plan.every == 0 or step == plan.steps:
            _measure(lines, step, attempt, rows, skill, plan)
        if step:
            _train(lines, step, attempt, replayed, pairs, skill, plan)
    write_json(folder / "card.json", card(plan))
    for name, found in lines.items():
        write_lines(folder / f"{name}.jsonl", found)
    return folder


def _steps(plan: Plan) -> Iterator[tuple[int, int, bool]]:
    """Step, attempt, and whether it was done before."""
    if not plan.killed:
        yield from ((step, 0, False) for step in range(plan.steps + 1))
        return
    yield from ((step, 0, False) for step in range(plan.killed + 1))
    yield from ((step, 1, step <= plan.killed) for step in range(plan.resumed + 1, plan.steps + 1))


Lines = dict[str, list[dict[str, Any]]]


def _train(
    lines: Lines, step: int, attempt: int, replayed: bool, pairs: Sequence[Pair], skill: float, plan: Plan
) -> None:
    luck = random.Random(plan.seed * 1_000_003 + step)
    drawn = luck.sample(pairs, plan.groups)
    groups = [[answer(pair, pairs[0], skill, plan, luck) for _ in range(plan.size)] for pair in drawn]
    every = [one for group in groups for one in group]
    spreads = [pstdev(one["reward"] for one in group) for group in groups]
    for place, (pair, group) in enumerate(zip(drawn, groups, strict=True)):
        where = {"step": step, "attempt": attempt, "example": pair.number, "group": place}
        lines["completions"] += [{**where, **_without(one, "swapped")} for one in group]
    tokens = [one["tokens"] for one in every]
    lines["history"].append(
        {
            "step": step,
            "attempt": attempt,
            "replayed": replayed,
            "epoch": step / plan.steps,
            "loss": luck.gauss(0, 0.01),
            "grad_norm": abs(luck.gauss(0.4, 0.1)),
            "learning_rate": 1e-5 * (1 - step / (plan.steps + 1)),
            "kl": 0.002 + 0.05 * skill + abs(luck.gauss(0, 0.004)) + (0.6 if step == plan.steps // 2 else 0),
            "entropy": 1.3 - (1.1 if plan.collapses else 0.5) * skill + luck.gauss(0, 0.03),
            "reward": fmean(one["reward"] for one in every),
            "reward_std": fmean(spreads),
            "frac_reward_zero_std": fmean(spread < 1e-6 for spread in spreads),
            "completions/mean_length": fmean(tokens),
            "completions/min_length": min(tokens),
            "completions/max_length": max(tokens),
            "completions/clipped_ratio": fmean(str(one["error"]).startswith("Trunc") for one in every),
            "duet/parse_rate": fmean(one["rating"] is not None for one in every),
            "duet/failed_share": 0.0,
            "duet/flat_groups": fmean(spread < 1e-6 for spread in spreads),
            "duet/group_spread": fmean(spreads),
            "duet/terms/rating": fmean(one["terms"].get("rating", 0.0) for one in every),
            "duet/terms/length": fmean(one["terms"].get("length", 0.0) for one in every),
            "duet/seconds/rollout": 24 + luck.gauss(0, 2) + 6 * skill,
            "duet/seconds/reward": 5 + luck.gauss(0, 0.5) + (20 if attempt == 1 and step == plan.resumed + 1 else 0),
            "duet/seconds/update": 9 + luck.gauss(0, 0.4),
        }
    )


def _measure(lines: Lines, step: int, attempt: int, rows: Sequence[Pair], skill: float, plan: Plan) -> None:
    luck = random.Random(plan.seed * 1_000_003 - step - 1)
    own = [answer(row, rows[place - 1], skill, plan, luck) for place, row in enumerate(rows)]
    rated = [one for one in own if one["rating"] is not None]
    lines["held_out"].append(
        {
            "step": step,
            "attempt": attempt,
            "rows": len(rows),
            "reward": fmean(one["reward"] for one in own),
            "parse_rate": len(rated) / len(rows),
            "mae": fmean(abs(one["gold"] - one["rating"]) for one in rated),
            "rewards": [one["reward"] for one in own],
            "shuffled_reward": fmean(one["swapped"] for one in rated),
        }
    )
    for row, one in zip(rows, own, strict=True):
        ids = {"example": row.number, "user": f"A{row.number}X", "item": f"B{row.number}", "title": row.title}
        lines["samples"].append(
            {"step": step, "attempt": attempt, **ids, **_without(one, "swapped", "tokens", "malformed")}
        )


def _without(values: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}


def card(plan: Plan) -> dict[str, Any]:
    """A card as `grpo` writes it."""
    return {
        "verb": "grpo",
        "status": "finished",
        "started": "2026-03-02T09:14:07Z",
        "finished": "2026-03-02T10:58:31Z",
        "seed": plan.seed,
        "data": {"directory_name": "novels", "manifest_sha256": "6d" * 32, "rows": 4182},
        "versions": {"duet-profiles": "0.1.0", "python": "3.12.4", "torch": "2.13.0", "trl": "1.16.0"},
        "settings": {"sides": "user,item", "rewards": "rating=1,length=0.1", "held_out": plan.held_out},
        "training_args": {"max_steps": plan.steps, "learning_rate": 1e-5, "num_generations": plan.size, "beta": 0.001},
        "model": {"name": "Qwen/Qwen3-8B", "adapter": "lora"},
        "recommender": "http://127.0.0.1:8000/v1,Qwen/Qwen3-8B",
        "held_out": {"start": {"reward": 0.2}, "end": {"reward": 0.8}},
    }


def write_json(path: Path, value: object) -> None:
    """One JSON value."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


def write_lines(path: Path, values: Sequence[object]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
