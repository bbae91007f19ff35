"""Pairs of completions for DPO, from scored groups. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, get_args

import attrs

from duet import ConfigurationError
from duet_train.groups import Group, Sample
from duet_train.metrics import sentiments

PairRule = Literal["sentiment", "margin"]


@attrs.frozen(kw_only=True)
class Pair:
    """Two completions of one prompt, of which one is preferred.

    Args:
        example: Id of the row.
        chosen: The preferred text.
        rejected: The other one.
    """

    example: int
    chosen: str = attrs.field(repr=False)
    rejected: str = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class Paired:
    """The pairs of all groups, and what became of the groups.

    Args:
        pairs: In the order of the groups.
        all_right: Groups without a wrong completion.
        all_wrong: Groups without a right one.
        too_close: Groups whose rewards lie within the margin.
        unknown: Groups without a well-formed completion that has what the rule asks for.
    """

    pairs: Sequence[Pair]
    all_right: int = 0
    all_wrong: int = 0
    too_close: int = 0
    unknown: int = 0


def pairs_by_sentiment(groups: Sequence[Group]) -> Paired:
    """Every right completion with every wrong one of the same prompt (LettinGo, arXiv 2506.18309, "Pairs").

    A completion is right where the predicted rating has the sentiment of the true one: like, neutral or dislike, which
    are the upper quarter, the middle and the lower quarter of the scale (LettinGo states no limits). Groups that are
    all right or all wrong have no pair. Completions that are no profile predict nothing, and are neither.

    Args:
        groups: As `explore` wrote them.
    """
    found: list[Pair] = []
    fates: Counter[str] = Counter()
    for group in groups:
        known = [
            (sample, sample.rating) for sample in group.samples if sample.well_formed and sample.rating is not None
        ]
        if not known:
            fates["unknown"] += 1
            continue
        gold, *predicted = sentiments([group.gold, *(rating for _, rating in known)], group.scale).tolist()
        right = [sample for (sample, _), one in zip(known, predicted, strict=True) if one == gold]
        wrong = [sample for (sample, _), one in zip(known, predicted, strict=True) if one != gold]
        fates["all_right"] += not wrong
        fates["all_wrong"] += not right
        found += _product(group, [(chosen, rejected) for chosen in right for rejected in wrong])
    return Paired(pairs=found, **fates)


def pairs_by_margin(groups: Sequence[Group], margin: float) -> Paired:
    """Every two completions of one prompt whose rewards lie far enough apart, the better one preferred.

    Args:
        groups: As `explore` wrote them.
        margin: Least difference of the rewards, above 0.

    Raises:
        ConfigurationError: The margin is not above 0.
    """
    if not margin > 0:
        raise ConfigurationError(f"margin must be above 0, got {margin:g}")
    found: list[Pair] = []
    fates: Counter[str] = Counter()
    for group in groups:
        known = [
            (sample, sample.reward) for sample in group.samples if sample.well_formed and sample.reward is not None
        ]
        far = [(one, other) for one, high in known for other, low in known if high - low >= margin - 1e-9]
        fates["unknown"] += not known
        fates["too_close"] += bool(known) and not far
        found += _product(group, far)
    return Paired(pairs=found, **fates)


def paired(groups: Sequence[Group], rule: str, margin: float) -> Paired:
    """The pairs by a rule.

    Args:
        groups: As `explore` wrote them.
        rule: "sentiment" or "margin".
        margin: For the latter.

    Raises:
        ConfigurationError: There is no such rule, or no pair; says how many groups were all right or all wrong.
    """
    if rule not in get_args(PairRule):
        raise ConfigurationError(f"pairs must be {' or '.join(get_args(PairRule))}, got {rule!r}")
    made = pairs_by_sentiment(groups) if rule == "sentiment" else pairs_by_margin(groups, margin)
    if not made.pairs:
        raise ConfigurationError(f"there is no pair to learn from: {fates(made, len(groups))}")
    return made


def fates(made: Paired, groups: int) -> str:
    """What became of the groups, in words.

    Args:
        made: Pairs and counts.
        groups: All of them.
    """
    counted = [
        (made.all_right, "all right"),
        (made.all_wrong, "all wrong"),
        (made.too_close, "closer together than the margin"),
        (made.unknown, "without a well-formed completion that has a prediction"),
    ]
    used = groups - sum(count for count, _ in counted)
    return ", ".join(
        [f"of {groups} groups {used} have pairs", *(f"{count} are {what}" for count, what in counted if count)]
    )


def _product(group: Group, pairs: Sequence[tuple[Sample, Sample]]) -> list[Pair]:
    """Equal texts cannot be told apart, and the same two texts count once."""
    texts = dict.fromkeys((chosen.completion, rejected.completion) for chosen, rejected in pairs)
    both_ways = {(rejected, chosen) for chosen, rejected in texts} & texts.keys()
    return [
        Pair(example=group.example, chosen=chosen, rejected=rejected)
        for chosen, rejected in texts
        if chosen != rejected and (chosen, rejected) not in both_ways
    ]
