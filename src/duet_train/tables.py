"""Results as Markdown, which is what the terminal gets too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def markdown(results: Mapping[str, Any]) -> str:
    """All tables of an evaluation.

    Args:
        results: As `evaluate` writes them to results.json.
    """
    parts = [_heading(results), _ratings(results["methods"]), _personal(results["methods"]), _cost(results["methods"])]
    parts += [_groups(results["methods"], name, title) for name, title in _GROUPS]
    if results.get("texts"):
        parts.append(_texts(results["texts"]))
    if results.get("ranking"):
        parts += [_ranking(kind, methods) for kind, methods in results["ranking"].items()]
    if results.get("catalogue"):
        parts.append(_catalogue(results["catalogue"]))
    if results.get("choice"):
        parts.append(_choice(results["choice"]))
    return "\n\n".join(part for part in parts if part) + "\n"


_GROUPS = (("history_length", "MAE by length of the history"), ("variance", "MAE by variance of the user's ratings"))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that it reads well as plain text; all columns but the first to the right.

    Args:
        head: Names of the columns.
        rows: As many cells in each.
    """
    widths = [max(len(line[column]) for line in (head, *rows)) for column in range(len(head))]
    lines = [_line(head, widths), "| " + " | ".join(_rule(width, place) for place, width in enumerate(widths)) + " |"]
    return "\n".join([*lines, *(_line(row, widths) for row in rows)])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.ljust(width) if place == 0 else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "| " + " | ".join(padded) + " |"


def _rule(width: int, place: int) -> str:
    return "-" * width if place == 0 else "-" * (width - 1) + ":"


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def interval(figure: Mapping[str, float], digits: int = 3) -> str:
    """An estimate with its interval."""
    if figure["estimate"] is None or math.isnan(figure["estimate"]):
        return "–"
    return f"{number(figure['estimate'], digits)} [{number(figure['low'], digits)}, {number(figure['high'], digits)}]"


def _heading(results: Mapping[str, Any]) -> str:
    facts = results["facts"]
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def _ratings(methods: Mapping[str, Any]) -> str:
    head = ["method", "parsed", "MAE", "RMSE", "accuracy", "macro F1", "weighted F1", "Spearman"]
    rows = []
    for name, figures in methods.items():
        rating = figures["rating"]
        cells = [interval(rating[key]) for key in ("mae", "rmse", "accuracy", "macro_f1", "weighted_f1", "spearman")]
        rows.append([name, number(rating["parse_rate"], 2), *cells])
    return "### Rating\n\n" + table(head, rows)


def _personal(methods: Mapping[str, Any]) -> str:
    head = [
        "method",
        "gain over median",
        "gain over other users",
        "gain over other items",
        "tau within users",
        "personal",
        "against best baseline",
    ]
    rows = []
    for name, figures in methods.items():
        personal = figures.get("personal")
        if personal is None:
            continue
        rows.append(
            [
                name,
                interval(personal["gain_over_median"]["difference"]),
                interval(personal["users"]["difference"]),
                interval(personal["items"]["difference"]),
                number(personal["within_user"]["mean"]),
                "yes" if personal["personal"] else "no",
                _against(figures["against"]),
            ]
        )
    return "### Is it personal?\n\n" + table(head, rows) if rows else ""


def _against(test: Mapping[str, Any] | None) -> str:
    if test is None:
        return "–"
    return f"{interval(test['difference'])}, p {number(test['p_value'])}"


def _cost(methods: Mapping[str, Any]) -> str:
    head = ["method", "prompt tokens", "completion tokens", "from cache", "seconds", "failures"]
    rows = []
    for name, figures in methods.items():
        cost = figures.get("cost")
        if cost is not None:
            failures = ", ".join(f"{count} {kind}" for kind, count in figures["failures"].items()) or "none"
            share = number(cost["cached_share"], 2)
            rows.append(
                [
                    name,
                    str(cost["prompt_tokens"]),
                    str(cost["completion_tokens"]),
                    share,
                    number(cost["seconds"], 0),
                    failures,
                ]
            )
    return "### Cost of the profiles\n\n" + table(head, rows) if rows else ""


def _groups(methods: Mapping[str, Any], key: str, title: str) -> str:
    bounds = sorted(
        {
            (
                group["above"] if group["above"] is not None else -math.inf,
                group["up_to"] if group["up_to"] is not None else math.inf,
            )
            for figures in methods.values()
            for group in figures["groups"][key]
        }
    )
    if not bounds:
        return ""
    rows = []
    for name, figures in methods.items():
        found = {(g["above"] if g["above"] is not None else -math.inf): g for g in figures["groups"][key]}
        rows.append([name, *(_group_cell(found.get(low)) for low, _ in bounds)])
    return f"### {title}\n\n" + table(["method", *(_bound(low, high) for low, high in bounds)], rows)


def _group_cell(group: Mapping[str, Any] | None) -> str:
    return "–" if group is None else f"{interval(group['mae'])} (n={group['rows']})"


def _bound(low: float, high: float) -> str:
    if math.isinf(low):
        return f"≤ {high:g}" if not math.isinf(high) else "all"
    return f"> {low:g}" if math.isinf(high) else f"{low:g}–{high:g}"


def _texts(texts: Mapping[str, Any]) -> str:
    head = [
        "method",
        "alignment",
        "mismatched",
        "gap",
        "coverage user",
        "coverage item",
        "with stop words, user",
        "item",
    ]
    keys = ("matched", "mismatched", "gap", "coverage_user", "coverage_item", "coverage_user_all", "coverage_item_all")
    rows = [[name, *(number(figures.get(key, math.nan)) for key in keys)] for name, figures in texts.items()]
    return "### The texts\n\n" + table(head, rows)


def _ranking(kind: str, methods: Mapping[str, Any]) -> str:
    keys = ("ndcg@1", "ndcg@5", "ndcg@10", "hit@1", "hit@5", "mrr")
    rows = [
        [name, *(interval(figures[key]) for key in keys), f"{figures['failed']} of {figures['candidates']}"]
        for name, figures in methods.items()
    ]
    rows.append(["random order", "0.100", "0.295", "0.454", "0.100", "0.500", "0.293", ""])
    return f"### Ranking among 10, {kind} negatives\n\n" + table(
        ["method", *(key.upper() for key in keys), "failed"], rows
    )


def _catalogue(methods: Mapping[str, Any]) -> str:
    keys = [f"{name}@{k}" for k in (5, 10, 20) for name in ("recall", "ndcg")] + ["mrr@20", "precision@20"]
    rows = [[name, *(interval(figures[key]) for key in keys)] for name, figures in methods.items()]
    return "### The whole catalogue, by embedding\n\n" + table(["method", *keys], rows)


def _choice(methods: Mapping[str, Any]) -> str:
    rows = [[name, interval(figures["accuracy"]), str(figures["failed"])] for name, figures in methods.items()]
    return "### Next item, one of ten\n\n" + table(["method", "accuracy", "failed"], rows)
