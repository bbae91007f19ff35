"""What `make reliability` counts, and how it adds up."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script, as a module."""
    spec = importlib.util.spec_from_file_location("reliability", ROOT / "benchmarks" / "reliability.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_row_is_counted_by_some_test(script: ModuleType) -> None:
    """The table has the rows that tests count for, and no other."""
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*.py"))
    counted = set(re.findall(r"""(?:tally|counted)\("([a-z ]+)"[,)]""", sources))
    assert counted == set(script.ROWS)


def test_page_has_every_row(script: ModuleType) -> None:
    """The page on reliability has the table's rows, in its order."""
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    table = page.partition("| | tried | survived | |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| ([a-z ]+) \|", table, re.M) == list(script.ROWS)


def test_counts_are_added_up(script: ModuleType, tmp_path: Path) -> None:
    """Counts of one row are summed, the last note is kept, and a row without any says that it was not run."""
    lines = [("kills", 3, 2, "first"), ("kills", 1, 1, ""), ("soak", 5, 5, "flat")]
    tally = tmp_path / "tally.jsonl"
    names = ("row", "tried", "survived", "note")
    tally.write_text("".join(json.dumps(dict(zip(names, line, strict=True))) + "\n" for line in lines))
    text = script.table(script.totals(tally))
    assert "| kills | 4 | 3 |" in text
    assert "; first |" in text
    assert "| faults | not run yet |" in text
