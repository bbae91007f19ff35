"""What scored groups say of the ways to sample them: how good the best of so many calls is, and how unlike they are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import attrs
import numpy as np

from duet import Completion, CompletionError, ProfileSchema, parse_profile
from duet_train.groups import Group, Sample
from duet_train.intervals import mean_interval
from duet_train.profile_metrics import words
from duet_train.tables import interval, number, table

Arm = tuple[str, float]
Likeness = Callable[[str, str], float]


@attrs.frozen
class Strategy:
    """A way to spend calls: at random over some of the arms.

    Args:
        name: What tables call it.
        arms: Model and temperature of each.
    """

    name: str
    arms: frozenset[Arm]

    def samples(self, group: Group) -> list[Sample]:
        """Its samples of a group.

        Args:
            group: Of any arms.
        """
        return [sample for sample in group.samples if sample.arm in self.arms]


def strategies(groups: Sequence[Group]) -> list[Strategy]:
    """Every arm alone; every model over its temperatures; every temperature over the models; and all together.

    Args:
        groups: As `explore` wrote them.
    """
    arms = list(dict.fromkeys(sample.arm for group in groups for sample in group.samples))
    models, temperatures = list(dict.fromkeys(m for m, _ in arms)), list(dict.fromkeys(t for _, t in arms))
    found = [Strategy(f"{model}, T {temperature:g}", frozenset([(model, temperature)])) for model, temperature in arms]
    if len(temperatures) > 1:
        found += [
            Strategy(f"{one}, all temperatures", frozenset(arm for arm in arms if arm[0] == one)) for one in models
        ]
    if len(models) > 1:
        found += [Strategy(f"all models, T {t:g}", frozenset(arm for arm in arms if arm[1] == t)) for t in temperatures]
    found.append(Strategy("all models, all temperatures", frozenset(arms)))
    return list({strategy.arms: strategy for strategy in reversed(found)}.values())[::-1]


def expected_best(rewards: Sequence[float], calls: int) -> float:
    """The mean, over all choices of so many of the rewards, of the best of the choice.

    Unbiased for the best of `calls` new samples, as the estimator of pass@k is (Chen et al., arXiv 2107.03374), of
    which it is the form for rewards that are not just 0 or 1: the i-th smallest of n rewards is the best of
    C(i − 1, k − 1) of the C(n, k) choices.

    Args:
        rewards: Of independent samples, at least `calls` of them.
        calls: k, from 1.

    Returns:
        nan for fewer rewards than calls.
    """
    if not 1 <= calls <= len(rewards):
        return math.nan
    choices = math.comb(len(rewards), calls)
    return math.fsum(
        math.comb(place, calls - 1) / choices * reward
        for place, reward in enumerate(sorted(rewards))
        if place >= calls - 1
    )


def distinct(first: str, second: str, n: int = 2) -> float:
    """Share of the runs of n words in two texts that are different from one another (distinct-n, Li et al., 2016).

    Taken over pairs, and not over a whole group, it does not fall with the size of the group.

    Args:
        first: A text.
        second: Another.
        n: Words of a run.

    Returns:
        Near 0.5 for a text beside itself, up to 1; nan for texts without such a run.
    """
    runs = [tuple(found[at : at + n]) for found in (words(first), words(second)) for at in range(len(found) - n + 1)]
    return len(set(runs)) / len(runs) if runs else math.nan


def word_likeness(first: str, second: str) -> float:
    """Cosine of the word counts of two texts: 1 for the same words as often, 0 for none in common.

    Args:
        first: A text.
        second: Another.
    """
    one, other = Counter(words(first)), Counter(words(second))
    length = math.sqrt(sum(n * n for n in one.values()) * sum(n * n for n in other.values()))
    return sum(count * other[word] for word, count in one.items()) / length if length else math.nan


def profile_text(sample: Sample, schema: ProfileSchema) -> str:
    """The profiles of a completion, without cues and constructed prompts; "" for one that is no profile.

    Args:
        sample: Of a group.
        schema: The shape of its completion.
    """
    try:
        profile = parse_profile(Completion(sample.completion), schema)
    except CompletionError:
        return ""
    return "\n".join(side.text for side in (profile.user, profile.item) if side is not None)


def figures(
    groups: Sequence[Group], schemas: Mapping[int, ProfileSchema], likeness: Likeness = word_likeness, *, seed: int = 0
) -> dict[str, Any]:
    """What each strategy is worth, beside the first arm.

    Args:
        groups: As `explore` wrote them.
        schemas: The shape of the completions, by the id of the row.
        likeness: Of two texts, from 0 to 1.
        seed: Of the bootstrap, in which whole users are drawn.

    Returns:
        By the name of the strategy: "calls" (per example), "parse_rate", "tokens" (per call), "distinct", "similarity",
        "best" and "gain" by the number of calls, each an interval; JSON can hold all of it.
    """
    ways = strategies(groups)
    users = [group.user for group in groups]
    best = {way.name: _best(groups, way) for way in ways}
    found: dict[str, Any] = {}
    for way in ways:
        chosen = [way.samples(group) for group in groups]
        everything = [sample for samples in chosen for sample in samples]
        texts = [
            [text for sample in samples if (text := profile_text(sample, schemas[group.example]))]
            for group, samples in zip(groups, chosen, strict=True)
        ]
        found[way.name] = {
            "calls": _mean(list(map(len, chosen))),
            "parse_rate": sum(map(len, texts)) / max(1, len(everything)),
            "tokens": _mean([one.completion_tokens for one in everything if one.completion_tokens is not None]),
            "distinct": _over_pairs(texts, distinct, users, seed),
            "similarity": _over_pairs(texts, likeness, users, seed),
            "best": {k: _interval(values, users, seed) for k, values in best[way.name].items()},
            "gain": {
                k: _interval(values - best[ways[0].name][k], users, seed)
                for k, values in best[way.name].items()
                if k in best[ways[0].name]
            },
        }
    return found


def _best(groups: Sequence[Group], way: Strategy) -> dict[int, Any]:
    """By the number of calls, the expected best reward of each group; nan for a group of fewer rewards."""
    rewards = [[one.reward for one in way.samples(group) if one.reward is not None] for group in groups]
    most = max(map(len, rewards), default=0)
    return {calls: np.array([expected_best(known, calls) for known in rewards]) for calls in range(1, most + 1)}


def _over_pairs(texts: Sequence[Sequence[str]], measure: Likeness, users: Sequence[str], seed: int) -> dict[str, Any]:
    """The mean over the pairs of each group, then over groups."""
    means = [
        _mean([value for a, b in combinations(group, 2) if not math.isnan(value := measure(a, b))]) for group in texts
    ]
    return _interval(np.array(means, dtype=np.float64), users, seed)


def _interval(values: Any, users: Sequence[str], seed: int) -> dict[str, Any]:
    known = ~np.isnan(values)
    owners = [user for user, there in zip(users, known, strict=True) if there]
    return attrs.asdict(mean_interval(values[known], users=owners, seed=seed)) | {"examples": int(known.sum())}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def markdown(found: Mapping[str, Any]) -> str:
    """The figures as two Markdown tables.

    Args:
        found: As `figures` gives them.
    """
    most = max((calls for one in found.values() for calls in one["best"]), default=0)
    shown = sorted({2**power for power in range(most.bit_length())} | {most}) if most else []
    head = ["strategy", "calls", "parsed", "tokens", "distinct-2", "similarity", *(f"best of {k}" for k in shown)]
    rows = [
        [
            name,
            number(one["calls"], 0),
            number(one["parse_rate"], 2),
            number(one["tokens"], 0),
            interval(one["distinct"], 2),
            interval(one["similarity"], 2),
            *(interval(one["best"].get(k)) for k in shown),
        ]
        for name, one in found.items()
    ]
    first = next(iter(found), "")
    gains = [[name, *(interval(one["gain"].get(k)) for k in shown)] for name, one in found.items() if name != first]
    parts = [f"### Best of so many calls\n\n{table(head, rows)}"]
    if gains:
        parts.append(f"### Gain over {first}, at as many calls\n\n{table(['strategy', *head[6:]], gains)}")
    return "\n\n".join(parts) + "\n"
