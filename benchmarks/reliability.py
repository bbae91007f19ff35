"""Everything that must survive, in full: what was tried, what survived, as a table.

Runs the tests of reliability under the sizes below and adds up what they count.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
FULL = {"DUET_KILLS": "200", "DUET_HOSTILE": "2000", "DUET_SOAK": "50000"}
SOAK = "tests/test_soak.py"
NONE_CHOSEN = 5  # of pytest
ROWS = {
    "faults": "a fault × asyncio or trio × one pair, streamed, in bulk, or over a caller's client",
    "kills": "SIGKILL at a random moment of a bulk run with a ledger",
    "interrupts": "Ctrl-C in `duet profile` and `duet_train evaluate`, and the run after it",
    "cancellations": "cancelled at the n-th point where any task of a call waits, for every n",
    "bad inputs": "wrong settings, records and files, each a typed error or one sentence",
    "hostile texts": "injections of eight families in reviews, titles, ids and profiles",
    "secrets": "planted keys through error paths, logs, reprs, pickles and the ledger",
    "soak": "streams, one in twenty with a fault",
}


def main() -> int:
    """Run, print, write; the exit code of pytest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the short form that every change is tested with")
    parser.add_argument("--only", metavar="EXPRESSION", help="for pytest -k, to run some rows alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    args = parser.parse_args()
    sizes = {} if args.quick else FULL
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tally = Path(folder) / "tally.jsonl"
        environ = {**os.environ, **sizes, "DUET_TALLY": str(tally)}
        chosen = ["-k", args.only] if args.only else []
        # The soak in a process that has imported nothing else, since it weighs that process.
        codes = [run_tests([*files, *chosen], environ) for files in (["tests", f"--ignore={SOAK}"], [SOAK])]
        found = totals(tally)
    print(table(found))
    code = next((code for code in codes if code not in (0, NONE_CHOSEN)), 0)
    print(f"\n{time.monotonic() - started:.0f} s, pytest ended with {code}")
    if args.json:
        args.json.write_text(json.dumps({"sizes": sizes, "rows": found}, indent=1) + "\n", encoding="utf-8")
    return code


def run_tests(words: list[str], environ: dict[str, str]) -> int:
    """The exit code of pytest."""
    command = [sys.executable, "-m", "pytest", "-q", *words]
    return subprocess.run(command, cwd=ROOT, env=environ, check=False).returncode  # noqa: S603 - our own tests


def totals(tally: Path) -> dict[str, dict[str, int | str]]:
    """The counts of each row, and its last note."""
    found: dict[str, dict[str, int | str]] = {}
    for line in tally.read_text(encoding="utf-8").splitlines() if tally.exists() else ():
        entry = json.loads(line)
        row = found.setdefault(entry["row"], {"tried": 0, "survived": 0, "note": ""})
        row["tried"] += entry["tried"]
        row["survived"] += entry["survived"]
        row["note"] = entry["note"] or row["note"]
    return found


def table(found: dict[str, dict[str, int | str]]) -> str:
    """As Markdown; a row that nothing was counted for says so."""
    lines = ["| | tried | survived | |", "| --- | ---: | ---: | --- |"]
    for name, what in ROWS.items():
        row = found.get(name)
        counts = f"{row['tried']:,} | {row['survived']:,}" if row else "not run yet | "
        note = f"; {row['note']}" if row and row["note"] else ""
        lines.append(f"| {name} | {counts} | {what}{note} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
