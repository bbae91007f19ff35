"""``python -m duet_train prepare`` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from duet_train.__main__ import main
from duet_train.data.prepared import Prepared

LINES = [
    {"user_id": user, "item_id": item, "rating": 4, "timestamp": 100 * place, "review_text": f"{user} on {item}"}
    for place, item in enumerate("vwxyz")
    for user in "abc"
]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Fifteen ratings on disk."""
    path = tmp_path / "interactions.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in LINES))
    return path


def prepared(log: Path, *more: str) -> int:
    """The exit code of a run beside the log."""
    words = ["--format", "jsonl", "--interactions", str(log), "--out", str(log.parent / "out"), "--core", "0"]
    return main(["prepare", *words, *more])


def test_log_becomes_a_directory(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A log is prepared with exit code 0, and stdout says what came of it."""
    assert prepared(log) == 0
    assert "15 of 15 rows, 3 users, 5 items" in capsys.readouterr().out
    assert len(Prepared.open(log.parent / "out").matrix("train").ratings) == 12


def test_settings_reach_the_manifest(log: Path) -> None:
    """Every setting of the command line stands in the manifest."""
    words = "--split leave-last-one-out --ratios 6:2:2 --histories train-only --history 30 --recent 10 --evidence 5"
    assert prepared(log, *words.split(), "--min-history", "2", "--seed", "7") == 0
    assert Prepared.open(log.parent / "out").settings == {
        "core": 0,
        "split": "leave-last-one-out",
        "ratios": [6, 2, 2],
        "histories": "train-only",
        "history": 30,
        "recent": 10,
        "evidence": 5,
        "min_history": 2,
        "seed": 7,
    }


def test_scale_can_be_given(log: Path) -> None:
    """A scale of the command line takes the place of the format's."""
    assert prepared(log, "--scale", "0:10") == 0
    assert Prepared.open(log.parent / "out").scale.maximum == 10


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--core", "9"], "duet_train prepare: nothing is left of the 9-core"),
        (["--scale", "1:3"], "duet_train prepare: row 0: rating is 4, off the scale of 1 to 3"),
        (["--memory", "lots"], "duet_train prepare: memory must be a size such as 4GB, got 'lots'"),
        (["--items", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--history", "-1"], "duet_train prepare: history must not be negative"),
    ],
)
def test_what_does_not_hold_is_one_sentence(
    log: Path, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bad input ends with exit code 2 and one sentence, without a traceback and without a directory."""
    assert prepared(log, *words) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error
    assert not (log.parent / "out").exists()


@pytest.mark.parametrize(
    "words", [["--scale", "5:1"], ["--scale", "five"], ["--ratios", "8-1-1"], ["--split", "random"]]
)
def test_what_cannot_be_read_is_usage(log: Path, words: list[str]) -> None:
    """An argument that cannot be read ends with exit code 2."""
    with pytest.raises(SystemExit) as stop:
        prepared(log, *words)
    assert stop.value.code == 2


def test_interrupt_is_130(log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An interrupt ends with exit code 130, a word, and no directory."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("duet_train.data.watch.Watch._show_until_done", interrupted)
    assert prepared(log) == 130
    assert "interrupted" in capsys.readouterr().err
    assert [path.name for path in log.parent.iterdir()] == ["interactions.jsonl"]


@pytest.mark.parametrize("words", [["--help"], ["prepare", "--help"]])
def test_help_imports_no_torch(words: list[str]) -> None:
    """Help is there on a machine without torch, transformers and pandas."""
    assert blocked(["torch", "transformers", "pandas", "pyarrow"], words).startswith("usage: python -m duet_train")


def test_verbs_are_listed_without_their_packages() -> None:
    """The list of verbs imports none of them."""
    assert "prepare" in blocked(["duckdb", "numpy", "torch"], ["--help"])


def test_prepare_needs_no_torch(log: Path) -> None:
    """A log is prepared without torch, pandas or pyarrow."""
    words = [
        "prepare",
        "--format",
        "jsonl",
        "--interactions",
        str(log),
        "--out",
        str(log.parent / "out"),
        "--core",
        "0",
    ]
    assert "15 of 15 rows" in blocked(["torch", "transformers", "pandas", "pyarrow"], words)


def test_missing_package_is_one_sentence() -> None:
    """Without duckdb, `prepare` names the command that installs it."""
    with pytest.raises(subprocess.CalledProcessError) as failed:
        blocked(["duckdb"], ["prepare", "--help"])
    assert failed.value.returncode == 2
    assert "the package duckdb is not installed; install it with: pip install" in failed.value.stderr


def blocked(packages: list[str], words: list[str]) -> str:
    """What a run prints in an interpreter where these packages cannot be imported."""
    program = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {packages!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "from duet_train.__main__ import main\n"
        f"sys.exit(main({words!r}))\n"
    )
    command = [sys.executable, "-W", "error", "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603 (its own program)
