"""The tables beside the ratings: what the texts are like, the whole catalogue by embedding, and next-item choice."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from duet import DuetError, Interaction, JointProfile, Sampling
from duet_train.choice import choose
from duet_train.data.prepared import ItemRequest, Prepared, PreparedExample
from duet_train.intervals import mean_interval
from duet_train.judging import Floats, Judgement, Made, in_order
from duet_train.methods import PAIRED, Tools
from duet_train.negatives import CandidateSet
from duet_train.profile_metrics import STOP_WORDS, coverage
from duet_train.ranking import Catalogue
from duet_train.ranking_metrics import hit_rate_at_k
from duet_train.retrieval import alignment_figures, catalogue_figures, embed_all, item_text, user_text

Written = Sequence[tuple[PreparedExample, JointProfile]]


async def text_table(rows: Sequence[PreparedExample], judged: Mapping[str, Judgement], tools: Tools) -> dict[str, Any]:
    """Alignment of the two profiles, with its control, and how much of a profile occurs in its side's data.

    Args:
        rows: What was profiled.
        judged: By method.
        tools: Without an embedder there is no alignment.
    """
    table: dict[str, Any] = {}
    for name, one in judged.items():
        profiles = [(row, made.profile) for row, made in zip(rows, one.made, strict=True) if made.profile is not None]
        if any(user_text(profile) or _item_profile(profile) for _, profile in profiles):
            table[name] = _coverages(profiles) | await _alignment(profiles, tools)
    return table


def _coverages(profiles: Written) -> dict[str, float]:
    """Mean coverage of each side, without and with stop words; nan for a side that was not written."""
    figures: dict[str, float] = {}
    for name, stop_words in (("", STOP_WORDS), ("_all", frozenset[str]())):
        users = [
            coverage(user_text(profile), _words(row.profile_user.history), stop_words=stop_words)
            for row, profile in profiles
        ]
        items = [coverage(_item_profile(profile), _item_words(row), stop_words=stop_words) for row, profile in profiles]
        figures |= {f"coverage_user{name}": _known_mean(users), f"coverage_item{name}": _known_mean(items)}
    return figures


async def _alignment(profiles: Written, tools: Tools) -> dict[str, float]:
    """Cosines of the profiles that have both sides."""
    pairs = [
        (user_text(profile), _item_profile(profile))
        for _, profile in profiles
        if user_text(profile) and _item_profile(profile)
    ]
    if tools.embedder is None or len(pairs) < 2:
        return {}
    users = await embed_all(tools.embedder, [user for user, _ in pairs], lambda: None)
    items = await embed_all(tools.embedder, [item for _, item in pairs], lambda: None)
    return alignment_figures(users, items)


async def catalogue_table(
    data: Prepared, rows: Sequence[PreparedExample], judged: Mapping[str, Judgement], catalogue: Catalogue, tools: Tools
) -> dict[str, Any]:
    """The user's profile against every item by embedding (LangPTune, BLUE), and what a random order would give.

    Args:
        data: Where the items are.
        rows: What was profiled.
        judged: By method; those that write with the target in sight are left out.
        catalogue: Item codes, and who has what.
        tools: Without an embedder the table is empty.
    """
    if tools.embedder is None:
        return {}
    items = data.items(ItemRequest(item_id) for item_id in catalogue.item_ids)
    vectors = await embed_all(tools.embedder, [item_text(item) for item in items], lambda: None)

    def figures(shown: Sequence[PreparedExample], users: Floats) -> dict[str, Any]:
        positives = [catalogue.item_codes[row.example.item.id] for row in shown]
        owners = [row.example.user.id for row in shown]
        return catalogue_figures(users, vectors, positives, [catalogue.had(row) for row in shown], owners)

    table: dict[str, Any] = {}
    for name, one in _unaware(judged):
        written = [(row, text) for row, made in zip(rows, one.made, strict=True) if (text := user_text(made.profile))]
        if written:
            users = await embed_all(tools.embedder, [text for _, text in written], lambda: None)
            table[name] = figures([row for row, _ in written], users)
    if table:
        # Every item at the same distance: ties are resolved in expectation.
        table["random order"] = figures(rows, np.zeros((len(rows), vectors.shape[1])))
    return table


async def choice_table(
    data: Prepared,
    rows: Sequence[PreparedExample],
    judged: Mapping[str, Judgement],
    catalogue: Catalogue,
    tools: Tools,
    *,
    seed: int,
) -> dict[str, Any]:
    """Next item, one of ten random ones, from the user's profile alone (BLUE).

    Args:
        data: Where the items are.
        rows: What was profiled.
        judged: By method; those that write of no user, or with the target in sight, are left out.
        catalogue: Draws the candidates.
        tools: The recommender's endpoint answers.
        seed: Of the candidates.
    """
    sets = [catalogue.candidates(row, "random", seed) for row in rows]
    titles = _titles(data, catalogue, sets)
    users = np.array([row.example.user.id for row in rows])
    table = {}
    for name, one in _unaware(judged):
        if any(made.profile is None or made.profile.user is not None for made in one.made):
            hits = await _hits(rows, one.made, sets, titles, tools)
            known = ~np.isnan(hits)
            accuracy = mean_interval(hits[known], users=users[known])
            table[name] = {"accuracy": attrs.asdict(accuracy), "failed": int((~known).sum())}
    return table


def _unaware(judged: Mapping[str, Judgement]) -> list[tuple[str, Judgement]]:
    """The methods whose text of the user was written without the target in sight."""
    return [(name, one) for name, one in judged.items() if name.partition("@")[0] not in PAIRED]


def _titles(data: Prepared, catalogue: Catalogue, sets: Sequence[CandidateSet]) -> list[list[str]]:
    """The titles of each row's candidates; the id of an item that has none."""
    wanted = sorted({code for one in sets for code in one.items})
    items = data.items(ItemRequest(catalogue.item_ids[code]) for code in wanted)
    titles = {code: item.title or item.id for code, item in zip(wanted, items, strict=True)}
    return [[titles[code] for code in one.items] for one in sets]


async def _hits(
    rows: Sequence[PreparedExample],
    made: Sequence[Made],
    sets: Sequence[CandidateSet],
    titles: Sequence[Sequence[str]],
    tools: Tools,
) -> Floats:
    """1 for each row where the likeliest letter is the right one, a share where it ties; nan where there is none."""
    body = tools.sampling.extra_body
    sampling = Sampling(temperature=0.0, seed=42, max_tokens=1, logprobs=True, top_logprobs=20, extra_body=body)

    async def hit(row: int) -> float:
        text = user_text(made[row].profile)
        if not text:
            return math.nan
        example = rows[row].example
        users = {example.user.id, *(one.user for one in example.item.evidence)}
        try:
            scores = await choose(
                tools.judge,
                text,
                titles[row],
                sampling=sampling,
                ledger=tools.ledger,
                users=users,
                minimum_mass=tools.minimum_mass,
            )
        except DuetError:
            return math.nan
        return hit_rate_at_k(scores, sets[row].position, 1)

    return np.array(await in_order(hit, range(len(sets)), tools.concurrency, lambda: None), dtype=np.float64)


def _item_profile(profile: JointProfile) -> str:
    return profile.item.text if profile.item is not None else ""


def _item_words(row: PreparedExample) -> list[str]:
    return [*_words(row.example.item.evidence), item_text(row.example.item)]


def _words(rows: Iterable[Interaction]) -> list[str]:
    return [f"{row.title} {row.review}" for row in rows]


def _known_mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan
