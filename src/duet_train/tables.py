"""Results as Markdown, which is what the terminal gets too."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Figures = Mapping[str, Any]
Column = tuple[str, Callable[[Figures], str]]
"""Its head, and the cell that it makes of a method's figures."""


def markdown(results: Figures) -> str:
    """All tables of an evaluation.

    Args:
        results: As `evaluate` writes them to results.json.
    """
    parts = [_heading(results["facts"]), *_method_tables(results["methods"], ""), *side_by_side_tables(results, "")]
    if results.get("transfer"):
        suffix = ", before the second recommender"
        parts += _method_tables(results["transfer"], suffix)
        parts += side_by_side_tables(results.get("transfer_side_by_side", {}), suffix)
    if results.get("texts"):
        parts.append("### The texts\n\n" + _by_method(results["texts"], _TEXTS))
    parts += [_ranking(kind, methods) for kind, methods in results.get("ranking", {}).items()]
    if results.get("catalogue"):
        parts.append("### The whole catalogue, by embedding\n\n" + _by_method(results["catalogue"], _CATALOGUE))
    if results.get("choice"):
        random = [["random order", "0.100", ""]]
        parts.append("### Next item, one of ten\n\n" + _by_method(results["choice"], _CHOICE, random))
    return "\n\n".join(part for part in parts if part) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that it reads well as plain text; all columns but the first to the right.

    Args:
        head: Names of the columns.
        rows: As many cells in each.
    """
    widths = [max(len(line[column]) for line in (head, *rows)) for column in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(_line(cells, widths) for cells in (head, rule, *rows))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
    return "| " + " | ".join(padded) + " |"


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:z.{digits}f}"


def interval(figure: Mapping[str, float | None] | None, digits: int = 3) -> str:
    """An estimate with its interval, or a dash where there is none."""
    if figure is None or number(figure["estimate"]) == "–":
        return "–"
    low, high = number(figure["low"], digits), number(figure["high"], digits)
    return f"{number(figure['estimate'], digits)} [{low}, {high}]"


# Columns


def _shown(*names: str) -> list[Column]:
    """Columns of intervals that are called by their keys."""
    return [(name, lambda figures, name=name: interval(figures[name])) for name in names]  # type: ignore[misc]


def _difference(name: str) -> Callable[[Figures], str]:
    return lambda figures: interval(figures["personal"].get(name, {}).get("difference"))


def _against(key: str) -> Callable[[Figures], str]:
    def cell(figures: Figures) -> str:
        test = figures.get(key)
        return "–" if test is None else f"{interval(test['difference'])}, p {_p_value(test['p_value'])}"

    return cell


def _p_value(value: float | None) -> str:
    return "< 0.001" if value is not None and value < 0.001 else number(value)


def _verdict(figures: Figures) -> str:
    return {True: "yes", False: "no", None: "–"}[figures["personal"].get("personal")]


def _failures(figures: Figures) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in figures["failures"].items()) or "none"


_RATING: list[Column] = [
    ("parsed", lambda rating: number(rating["parse_rate"], 2)),
    ("MAE", lambda rating: interval(rating["mae"])),
    ("MAE, failures as median", lambda rating: interval(rating["filled"].get("mae"))),
    ("RMSE", lambda rating: interval(rating["rmse"])),
    ("RMSE, failures as median", lambda rating: interval(rating["filled"].get("rmse"))),
    ("accuracy", lambda rating: interval(rating["accuracy"])),
    ("macro F1", lambda rating: interval(rating["macro_f1"])),
    ("weighted F1", lambda rating: interval(rating["weighted_f1"])),
    ("Spearman", lambda rating: interval(rating["spearman"])),
]
_PERSONAL: list[Column] = [
    ("gain over median", _difference("gain_over_median")),
    ("gain over other users", _difference("users")),
    ("gain over other items", _difference("items")),
    ("tau within users", lambda figures: interval(figures["personal"].get("tau"))),
    ("personal", _verdict),
    ("against best baseline", _against("against")),
    ("the same, failures as median", _against("against_filled")),
]
_SENTIMENT: list[Column] = [
    ("accuracy", lambda sentiment: interval(sentiment["accuracy"])),
    ("macro F1", lambda sentiment: interval(sentiment["macro_f1"])),
    ("weighted F1", lambda sentiment: interval(sentiment["weighted_f1"])),
]
_COST: list[Column] = [
    ("calls", lambda figures: number(figures["cost"]["calls"], 0)),
    ("prompt tokens", lambda figures: str(figures["cost"]["prompt_tokens"])),
    ("completion tokens", lambda figures: str(figures["cost"]["completion_tokens"])),
    ("from cache", lambda figures: number(figures["cost"]["cached_share"], 2)),
    ("seconds", lambda figures: number(figures["cost"]["seconds"], 0)),
    ("failures", _failures),
]
_TEXTS: list[Column] = [
    (head, lambda figures, key=key: number(figures.get(key)))  # type: ignore[misc]
    for head, key in (
        ("alignment", "matched"),
        ("mismatched", "mismatched"),
        ("gap", "gap"),
        ("coverage user", "coverage_user"),
        ("coverage item", "coverage_item"),
        ("with stop words, user", "coverage_user_all"),
        ("item", "coverage_item_all"),
    )
]
_RANKING: list[Column] = [
    *_shown("ndcg@1", "ndcg@5", "ndcg@10", "hit@1", "hit@5", "mrr"),
    ("failed", lambda figures: f"{figures['failed']} of {figures['candidates']}"),
]
_CATALOGUE = _shown(*(f"{name}@{k}" for k in (5, 10, 20) for name in ("recall", "precision", "mrr", "ndcg")))
_CHOICE: list[Column] = [*_shown("accuracy"), ("failed", lambda figures: str(figures["failed"]))]
_GROUPS = (
    ("history_length", "MAE by length of the history"),
    ("variance", "MAE by variance of the user's ratings"),
    ("popularity", "MAE by popularity of the item"),
)

_REPEATS: list[Column] = [
    ("runs", lambda figures: str(len(figures["runs"]))),
    *(
        (head, lambda figures, key=key: _over_runs(figures[key]))
        for head, key in (
            ("parsed", "parse_rate"),
            ("MAE", "mae"),
            ("RMSE", "rmse"),
            ("accuracy", "accuracy"),
            ("macro F1", "macro_f1"),
            ("weighted F1", "weighted_f1"),
            ("Spearman", "spearman"),
            ("gain over other users", "gain_over_other_users"),
        )
    ),
]
_COMPARISON: list[Column] = [
    ("rows", lambda pair: str(pair["rows"])),
    ("gain in MAE", lambda pair: interval(pair["difference"])),
    ("p", lambda pair: _p_value(pair["p_value"])),
    ("p, Holm", lambda pair: _p_value(pair["p_holm"])),
    ("± over runs", lambda pair: number(pair["spread"])),
]


# Tables


def _by_method(methods: Mapping[str, Figures], columns: Sequence[Column], more: Sequence[Sequence[str]] = ()) -> str:
    """A line a method, and more lines at the end."""
    rows = [[name, *(cell(figures) for _, cell in columns)] for name, figures in methods.items()]
    return table(["method", *(head for head, _ in columns)], [*rows, *more])


def _heading(facts: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def _method_tables(methods: Mapping[str, Figures], suffix: str) -> list[str]:
    """What is measured of every method before one recommender."""
    rating = {name: {**figures["rating"], "filled": figures.get("filled", {})} for name, figures in methods.items()}
    sentiment = {name: figures["sentiment"] for name, figures in rating.items()}
    limits = next(iter(sentiment.values()))
    like = f"### Like (from {limits['like_from']:g}), neutral, dislike (up to {limits['dislike_to']:g})"
    costs = {name: figures for name, figures in methods.items() if "cost" in figures}
    return [
        f"### Rating{suffix}\n\n" + _by_method(rating, _RATING),
        _unpredicted(methods, suffix),
        f"### Is it personal?{suffix}\n\n" + _by_method(methods, _PERSONAL),
        f"{like}{suffix}\n\n" + _by_method(sentiment, _SENTIMENT),
        f"### Cost of the profiles\n\n{_by_method(costs, _COST)}" if costs and not suffix else "",
        *(_groups(methods, key, title + suffix) for key, title in _GROUPS),
    ]


def _unpredicted(methods: Mapping[str, Figures], suffix: str) -> str:
    """How many rows of each method have no prediction, and what the first error of each kind says."""
    lines = []
    for name, figures in methods.items():
        for kind, count in figures.get("failures", {}).items():
            reason = figures.get("reasons", {}).get(kind)
            lines.append(f"- {name}: {count} {kind}" + (f", the first: {reason}" if reason else ""))
    return f"### Rows without a prediction{suffix}\n\n" + "\n".join(lines) if lines else ""


def _groups(methods: Mapping[str, Figures], key: str, title: str) -> str:
    """A column a group; every method has the same groups, less those in which it predicted nothing."""
    by_method = {name: figures["groups"].get(key, []) for name, figures in methods.items()}
    heads = {_bounds(group): _head(group) for groups in by_method.values() for group in groups}
    rows = []
    for name, groups in by_method.items():
        cells = {_bounds(group): f"{interval(group['mae'])} (n={group['rows']})" for group in groups}
        rows.append([name, *(cells.get(bound, "–") for bound in sorted(heads))])
    return f"### {title}\n\n" + table(["method", *(heads[bound] for bound in sorted(heads))], rows) if heads else ""


def _head(group: Figures) -> str:
    bound = _bound(*_bounds(group))
    return f"{group['name']} ({bound})" if "name" in group else bound


def _bounds(group: Figures) -> tuple[float, float]:
    """Above the first, up to the second; JSON has null for what is not finite."""
    low, high = group["above"], group["up_to"]
    return -math.inf if low is None else low, math.inf if high is None else high


def _bound(low: float, high: float) -> str:
    named = ([] if math.isinf(low) else [f"> {_short(low)}"]) + ([] if math.isinf(high) else [f"≤ {_short(high)}"])
    return ", ".join(named) or "all"


def _short(bound: float) -> str:
    return f"{bound:.3g}" if bound < 1000 else f"{bound:.0f}"


def _ranking(kind: str, methods: Mapping[str, Figures]) -> str:
    random = ["random order", "0.100", "0.295", "0.454", "0.100", "0.500", "0.293", ""]
    return f"### Ranking among 10, {kind} negatives\n\n" + _by_method(methods, _RANKING, [random])


def side_by_side_tables(results: Figures, suffix: str) -> list[str]:
    """Repeated methods over their runs, and every pair that was tested.

    Args:
        results: With ``repeats`` and ``comparisons``, where there are any.
        suffix: Of the headings.
    """
    repeats, pairs = results.get("repeats"), results.get("comparisons")
    return [
        f"### Several runs as one method{suffix}\n\n" + _by_method(repeats, _REPEATS) if repeats else "",
        f"### Method over method{suffix}\n\n" + _comparisons(pairs) if pairs else "",
    ]


def _comparisons(pairs: Sequence[Figures]) -> str:
    """A line a pair; the spread over runs where any of the methods has several."""
    by_pair = {f"{one['first']} over {one['second']}": one for one in pairs}
    spread = any(number(one["spread"]) != "–" for one in pairs)
    return _by_method(by_pair, _COMPARISON if spread else _COMPARISON[:-1])


def _over_runs(figure: Figures) -> str:
    return f"{interval(figure)} ± {number(figure['spread'])}"
