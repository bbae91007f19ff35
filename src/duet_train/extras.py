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
from duet_train.judging import Judgement, in_order
from duet_train.methods import Tools
from duet_train.profile_metrics import coverage
from duet_train.ranking import Catalogue
from duet_train.ranking_metrics import hit_rate_at_k
from duet_train.retrieval import alignment_figures, catalogue_figures, embed_all, item_text, user_text


async def text_table(rows: Sequence[PreparedExample], judged: Mapping[str, Judgement], tools: Tools) -> dict[str, Any]:
    """Alignment of the two profiles, with its control, and how much of a profile occurs in its side's data.

    Args:
        rows: What was profiled.
        judged: By method.
        tools: Without an embedder there is no alignment.
    """
    table: dict[str, Any] = {}
    for name, one in judged.items():
        written = [(row, made.profile) for row, made in zip(rows, one.made, strict=True) if _both(made.profile)]
        if len(written) < 2:
            continue
        table[name] = _coverages(written)
        if tools.embedder is not None:
            users = await embed_all(tools.embedder, [user_text(profile) for _, profile in written], lambda: None)
            items = await embed_all(tools.embedder, [_item_profile(profile) for _, profile in written], lambda: None)
            table[name] |= alignment_figures(users, items)
    return table


def _coverages(written: Sequence[tuple[PreparedExample, JointProfile | None]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name, stop_words in (("", None), ("_all", frozenset[str]())):
        options: dict[str, Any] = {} if stop_words is None else {"stop_words": stop_words}
        users = [coverage(user_text(made), _words(row.profile_user.history), **options) for row, made in written]
        items = [
            coverage(_item_profile(made), [*_words(row.example.item.evidence), item_text(row.example.item)], **options)
            for row, made in written
        ]
        figures |= {f"coverage_user{name}": float(np.nanmean(users)), f"coverage_item{name}": float(np.nanmean(items))}
    return figures


async def catalogue_table(
    data: Prepared, rows: Sequence[PreparedExample], judged: Mapping[str, Judgement], catalogue: Catalogue, tools: Tools
) -> dict[str, Any]:
    """The user's profile against every item by embedding (LangPTune, BLUE).

    Args:
        data: Where the items are.
        rows: What was profiled.
        judged: By method.
        catalogue: Item codes, and who has what.
        tools: Without an embedder the table is empty.
    """
    if tools.embedder is None:
        return {}
    items = data.items(ItemRequest(item_id) for item_id in catalogue.item_ids)
    vectors = await embed_all(tools.embedder, [item_text(item) for item in items], lambda: None)
    table: dict[str, Any] = {}
    for name, one in judged.items():
        written = [(row, text) for row, made in zip(rows, one.made, strict=True) if (text := user_text(made.profile))]
        if written:
            users = await embed_all(tools.embedder, [text for _, text in written], lambda: None)
            positives = [catalogue.item_codes[row.example.item.id] for row, _ in written]
            seen = [[catalogue.item_codes[one.item] for one in row.example.user.history] for row, _ in written]
            table[name] = catalogue_figures(users, vectors, positives, seen)
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
        judged: By method.
        catalogue: Draws the candidates.
        tools: The recommender's endpoint answers.
        seed: Of the candidates.
    """
    sets = [catalogue.candidates(row, "random", seed) for row in rows]
    wanted = sorted({catalogue.item_ids[code] for one in sets for code in one.items})
    items = data.items(ItemRequest(item_id) for item_id in wanted)
    titles = {item.id: item.title or item.id for item in items}
    sampling = Sampling(temperature=0.0, seed=42, max_tokens=1, logprobs=True, top_logprobs=20)
    table = {}
    for name, one in judged.items():

        async def hit(index: int, one: Judgement = one) -> float:
            text = user_text(one.made[index].profile)
            options = [titles[catalogue.item_ids[code]] for code in sets[index].items]
            if not text:
                return math.nan
            try:
                scores = await choose(tools.judge, text, options, sampling=sampling, ledger=tools.ledger)
            except DuetError:
                return math.nan
            return hit_rate_at_k(scores, sets[index].position, 1)

        hits = np.array(await in_order(hit, range(len(rows)), tools.concurrency, lambda: None))
        found = hits[~np.isnan(hits)]
        if found.size:
            table[name] = {"accuracy": attrs.asdict(mean_interval(found)), "failed": int(np.isnan(hits).sum())}
    return table


def _both(profile: JointProfile | None) -> bool:
    return profile is not None and profile.user is not None and profile.item is not None


def _item_profile(profile: JointProfile | None) -> str:
    return profile.item.text if profile is not None and profile.item is not None else ""


def _words(rows: Iterable[Interaction]) -> list[str]:
    return [f"{row.title} {row.review}" for row in rows]
