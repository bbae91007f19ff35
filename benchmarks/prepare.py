"""What `prepare` costs on a large generated log, beside the same steps written plainly in pandas.

    python benchmarks/prepare.py --rows 10000000 --pandas-rows 1000000 --memory 4GB --work DIR --json prepare.json

Both read the same gzipped JSON lines and do the same: last of duplicates, 5-core, global-time split without unseen
users and items, the last ten rows of user and item strictly before each target, three Parquet files. At the size that
pandas does too, their files are compared row by row. Each run is a process of its own; the table says what it took.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SEED = 0
CORE, WINDOW = 5, 10
# Shares of users and items in rows, and the exponent of the power law, are near those of large review logs.
ROWS_A_USER, ROWS_AN_ITEM, EXPONENT = 16, 48, 0.8
_TEXT = """
the a of and to it is was in my for with this that but on as one not very great good bad never again story sound
price taste room staff cover song page plot voice heavy light quick slow warm cold loud quiet fresh stale clean
dusty sharp blunt early late small large simple clever honest plain gift friend morning winter street corner
window table bottle guitar record novel chapter ending singer waiter menu coffee bread soup garden battery cable
"""
WORDS = _TEXT.split()

GENERATE = """
COPY (
    SELECT 'user-' || least({users} - 1, floor({user_share} - 1))::BIGINT AS user_id,
           'item-' || least({items} - 1, floor({item_share} - 1))::BIGINT AS item_id,
           1 + hash(r, {seed}, 2) % 5 AS rating,
           1200000000 + 86400 * (hash(r, {seed}, 3) % 3650) AS timestamp,
           left(list_aggregate(
                list_transform(range(45), lambda k: {words}[1 + (hash(r, {seed}, k) % {count})::INTEGER]),
                'string_agg', ' '), {length})
           || CASE WHEN r % 10 = 0 THEN ' &amp; so on<br />' ELSE '' END AS review_text
    FROM range({rows}) AS rows(r))
TO '{path}' (FORMAT json, COMPRESSION gzip)
"""


def generate(path: Path, rows: int) -> None:
    """Write a log: users and items by a power law, days as times, 200 characters of words, a tenth with HTML."""
    import duckdb

    def share(count: int, salt: int) -> str:
        uniform = f"((hash(r, {SEED}, -{salt}) % 1000000007) / 1000000007.0)"
        return f"pow((pow({count}, {1 - EXPONENT}) - 1) * {uniform} + 1, {1 / (1 - EXPONENT)})"

    users, items = max(rows // ROWS_A_USER, 10), max(rows // ROWS_AN_ITEM, 10)
    statement = GENERATE.format(
        users=users,
        items=items,
        user_share=share(users, 1),
        item_share=share(items, 2),
        seed=SEED,
        words=WORDS,
        count=len(WORDS),
        length=200,
        rows=rows,
        path=path,
    )
    with duckdb.connect(config={"memory_limit": "2GB", "threads": 2}) as db:
        db.execute(statement)


def with_pandas(source: Path, out: Path) -> None:
    """The same steps as they would be written in a notebook."""
    import pandas as pd

    rows = pd.read_json(source, lines=True, dtype=False)
    rows["timestamp"] = rows["timestamp"].astype("float64")
    rows["source_row"] = range(len(rows))
    rows = rows.sort_values(["timestamp", "source_row"], kind="stable")
    rows = rows.drop_duplicates(["user_id", "item_id"], keep="last")
    size = -1
    while size != len(rows):
        size = len(rows)
        enough = rows.groupby("user_id")["item_id"].transform("size").ge(CORE)
        enough &= rows.groupby("item_id")["user_id"].transform("size").ge(CORE)
        rows = rows[enough]
    rows = rows.reset_index(drop=True)
    rows["row"] = rows.index
    rows["review"] = rows.pop("review_text").map(plain_clean)
    train_end, validation_end = (rows["timestamp"].iloc[int(size * share + 1e-9) - 1] for share in (0.8, 0.9))
    rows["split"] = "test"
    rows.loc[rows["timestamp"] <= validation_end, "split"] = "validation"
    rows.loc[rows["timestamp"] <= train_end, "split"] = "train"
    train = rows[rows["split"] == "train"]
    unseen = ~(rows["user_id"].isin(train["user_id"]) & rows["item_id"].isin(train["item_id"]))
    rows.loc[unseen & (rows["split"] != "train"), "split"] = "dropped"
    out.mkdir()
    rows[["row", "user_id", "item_id", "rating", "timestamp", "review", "split"]].to_parquet(
        out / "interactions.parquet", compression="zstd", index=False
    )
    pd.DataFrame({"item_id": sorted(rows["item_id"].unique())}).to_parquet(out / "items.parquet", index=False)
    shown = rows[rows["split"] != "dropped"].copy()
    shown["history"] = windows(shown, "user_id")
    shown["evidence"] = windows(shown, "item_id")
    shown = shown[shown["history"].map(len) > 0]
    order = shown["split"].map({"train": 0, "validation": 1, "test": 2})
    shown = shown.assign(order=order).sort_values(["order", "row"])
    shown[["split", "row", "history", "evidence"]].to_parquet(out / "examples.parquet", compression="zstd", index=False)


def windows(rows: Any, key: str) -> Any:
    """For each row the last rows of the same key that lie strictly before it."""
    import numpy as np
    import pandas as pd

    found: dict[int, Any] = {}
    for _, group in rows.groupby(key, sort=False):
        ids, times = group["row"].to_numpy(), group["timestamp"].to_numpy()
        for row, end in zip(ids, np.searchsorted(times, times, side="left"), strict=True):
            found[row] = ids[max(end - WINDOW, 0) : end]
    return pd.Series(found).reindex(rows["row"]).to_numpy()


def plain_clean(text: str) -> str:
    """As `prepare` cleans the generated texts."""
    return " ".join(re.sub(r"<br\s*/?>", " ", html.unescape(html.unescape(text))).split())


def prepared(source: Path, out: Path, memory: str, threads: int) -> list[str]:
    """The command line of `prepare`."""
    return [
        *(sys.executable, "-m", "duet_train", "prepare", "--format", "jsonl", "--interactions", str(source)),
        *("--out", str(out), "--core", str(CORE), "--split", "global-time", "--overwrite"),
        *("--memory", memory, "--threads", str(threads)),
    ]


def measure(command: list[str], watched: Path) -> dict[str, Any]:
    """Run a process; wall and CPU seconds, peak RSS, and the most disk that working files in `watched` took."""
    load, peak, done = os.getloadavg()[0], [0], threading.Event()
    before = disk(watched)

    def watch() -> None:
        while not done.wait(0.5):
            peak[0] = max(peak[0], disk(watched) - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    with subprocess.Popen(command) as process:  # noqa: S603 (its own command lines)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - started
    done.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return {
        "wall_s": round(wall, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_rss_mb": round(usage.ru_maxrss / 1024),
        "peak_disk_mb": round(peak[0] / 1e6),
        "load_before": round(load, 2),
    }


def disk(directory: Path) -> int:
    """Bytes of all files below; those that vanish while it counts are none."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.stat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue
    return total


def same(ours: Path, theirs: Path) -> bool:
    """Whether both made the same rows, splits, texts and windows."""
    import duckdb

    compared = {
        "interactions": "row, user_id, item_id, rating::DOUBLE, timestamp, review, split",
        "examples": "split, row, history, evidence",
    }
    for name, columns in compared.items():
        one, other = (duckdb.read_parquet(str(where / f"{name}.parquet")).project(columns) for where in (ours, theirs))
        if one.except_(other).limit(1).fetchall() or other.except_(one).limit(1).fetchall():
            return False
    return True


def runs(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every measurement, as it is made."""
    sizes = [size for size in (args.pandas_rows, args.rows) if size]
    for rows in dict.fromkeys(sizes):
        source = args.work / f"log-{rows}.jsonl.gz"
        if not source.exists():
            command = [sys.executable, __file__, "--generate", str(rows), "--work", str(args.work)]
            subprocess.run(command, check=True)  # noqa: S603 (as above)
        out = args.work / f"prepared-{rows}"
        found = measure(prepared(source, out, args.memory, args.threads), args.work)
        counts = json.loads((out / "manifest.json").read_text())["counts"]
        kept = {"kept_rows": counts["rows"], "examples": sum(s.get("examples", 0) for s in counts["splits"].values())}
        yield {"what": "prepare", "rows": rows, "input_mb": round(source.stat().st_size / 1e6), **found, **kept}
        if rows == args.pandas_rows:
            plain = args.work / f"pandas-{rows}"
            shutil.rmtree(plain, ignore_errors=True)
            found = measure([sys.executable, __file__, "--pandas", str(source), "--work", str(plain)], args.work)
            yield {"what": "pandas", "rows": rows, **found, "same_as_prepare": same(out, plain)}
        if not args.keep:
            shutil.rmtree(out)


def table(results: list[dict[str, Any]]) -> str:
    """The measurements as a Markdown table."""
    lines = ["| | rows | wall s | CPU s | rows/s | rows/CPU-s | peak RSS MB | working disk MB |", "|" + " --- |" * 8]
    for one in results:
        speed = f"{one['rows'] / one['wall_s']:,.0f} | {one['rows'] / one['cpu_s']:,.0f}"
        lines.append(
            f"| {one['what']} | {one['rows']:,} | {one['wall_s']:,} | {one['cpu_s']:,} | {speed} "
            f"| {one['peak_rss_mb']:,} | {one['peak_disk_mb']:,} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Generate, measure, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000, help="of the large log; 0 leaves it out")
    parser.add_argument("--pandas-rows", type=int, default=1_000_000, help="of the log that pandas reads too")
    parser.add_argument("--memory", default="4GB")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--work", type=Path, required=True, help="directory for the logs (3 GB) and everything made")
    parser.add_argument("--json", type=Path, help="also write the results there")
    parser.add_argument("--keep", action="store_true", help="leave what prepare made in place")
    parser.add_argument("--generate", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--pandas", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.pandas:
        return with_pandas(args.pandas, args.work)
    args.work.mkdir(parents=True, exist_ok=True)
    if args.generate:
        return generate(args.work / f"log-{args.generate}.jsonl.gz", args.generate)
    results = list(runs(args))
    print(table(results))
    if args.json:
        facts = {"cpus": os.cpu_count(), "python": platform.python_version(), "memory_limit": args.memory}
        args.json.write_text(json.dumps({**facts, "threads": args.threads, "runs": results}, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
