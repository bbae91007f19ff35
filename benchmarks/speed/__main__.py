"""``make bench``: every client beside the floor, every goal with its verdict, as a table and as JSON."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import checks
import server as mock
from clients import CLIENTS
from compare import LOADS, Costs, compare
from goals import GOALS, Goal

RESULTS = Path(__file__).parents[1] / "results"
PACKAGES = ("aiohttp", "anyio", "jiter", "httptools", "orjson", "httpx", "openai", "instructor", "litellm")


def main() -> int:
    """Run everything; 1 where a "must" is missed."""
    parser = argparse.ArgumentParser(prog="benchmarks/speed", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and pairs, for a first look")
    parser.add_argument("--rounds", type=int, help="turns of each client (default: 9, quick 3)")
    parser.add_argument("--json", type=Path, help="where the figures go (default: benchmarks/results/speed-DATE.json)")
    args = parser.parse_args()
    about = _about(args.quick)
    try:
        mock.built()
    except mock.NoCompilerError:
        print("No C compiler (cc, or what CC names) to build the mock server: nothing is measured, nothing judged.")
        return 0
    found = {name: _checked(name, args.quick) for name in checks.CHECKS}
    with mock.running() as server:
        costs = compare(server, args.rounds or (3 if args.quick else 9))
    print(file=sys.stderr)
    reached = [(goal, goal.measured(costs, found)) for goal in GOALS]
    goals = {goal.name: {"value": value, "must": goal.must, "aim": goal.aim} for goal, value in reached}
    path = args.json or RESULTS / f"speed-{about['date'][:10]}.json"
    _write(path, about | {"goals": goals, "checks": found} | asdict(costs))
    _print_tables(costs, reached, about)
    return int(any(goal.verdict(value) in ("MISSED", "not measured") for goal, value in reached))


def _checked(name: str, quick: bool) -> checks.Figures:
    print(".", end="", file=sys.stderr, flush=True)
    return checks.run(name, quick)


def _about(quick: bool) -> dict[str, Any]:
    """When, where and with what."""
    found = {name: _version(name) for name in PACKAGES}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "quick": quick,
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "load": os.getloadavg(),
            "system": platform.system(),
        },
        "python": platform.python_version(),
        "packages": {name: version for name, version in found.items() if version},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _print_tables(costs: Costs, reached: list[tuple[Goal, float | None]], about: dict[str, Any]) -> None:
    machine = about["machine"]
    place = f"{machine['processor']}, {machine['cores']} cores, load {machine['load'][0]:.1f}"
    print(f"{about['date']}, {place}, Python {about['python']}\n")
    heads = [f"{load.name}: µs a {'call' if load.chunks == 1 else 'chunk'}" for load in LOADS]
    clients = [name for name in CLIENTS if name not in costs.missing]
    print(_table(["CPU of the client", *heads], [[name, *_cells(costs, name)] for name in clients]))
    for name, what in costs.missing.items():
        print(f"{name}: left out, {what} is not installed")
    for where, what in costs.failures.items():
        print(f"{where}: {what}")
    texts = [goal.row(value) for goal, value in reached]
    print("\n" + _table(["goal", "measured", "must", "aim", "reached"], texts))


def _cells(costs: Costs, name: str) -> list[str]:
    """Microseconds, the share of the floor, and how many times cheaper than AsyncOpenAI."""
    cells = []
    for load in LOADS:
        cost = costs.median(load.name, name)
        floor = costs.ratio("floor", load.name, name, load.name)
        usual = costs.ratio("AsyncOpenAI", load.name, name, load.name)
        each = cost and cost / load.chunks
        figures = (("{:,.0f}" if each and each >= 1000 else "{:.3g}", each), ("{:.2f}", floor), ("× {:.1f}", usual))
        cells.append(" · ".join(form.format(figure) for form, figure in figures if figure is not None))
    return cells


def _table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with its columns aligned."""
    widths = [max(len(row[place]) for row in [head, *rows]) for place in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in lines) + "\n"


def _write(path: Path, figures: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(f"figures: {path}")


if __name__ == "__main__":
    sys.exit(main())
