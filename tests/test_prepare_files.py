"""The directory that `prepare` makes: the same bytes each time, all of it or none, and what its manifest says."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from prepare_oracle import Rated, fill

from duet import ConfigurationError, RatingScale
from duet_train.data.pipeline import connect, memory_bytes, workplace
from duet_train.data.settings import SPLITS, Settings, Split
from duet_train.data.watch import Watch
from duet_train.prepare import prepare

FILES = ("interactions.parquet", "items.parquet", "examples.parquet", "manifest.json")
LOG = [
    Rated(user, item, 1 + place % 5, float(place))
    for place, (user, item) in enumerate((u, i) for i in "wxyz" for u in "abc")
]
ALL = Settings(core=0)


def small(db: duckdb.DuckDBPyConnection) -> RatingScale:
    """A reader of twelve rows."""
    return fill(db, LOG)


def large(db: duckdb.DuckDBPyConnection) -> RatingScale:
    """A reader of 200 000 rows with texts, some with HTML, many of one moment: several groups in a file."""
    fill(db, [])
    db.execute(
        "INSERT INTO raw_interactions SELECT r, 'u' || hash(r) % 10000, 'i' || hash(r, 1) % 2500, 1 + hash(r, 2) % 5, "
        "hash(r, 3) % 65000, NULL, repeat(md5(r::VARCHAR), (r % 9)::INTEGER) || if(r % 7 = 0, '&amp;', '') "
        "FROM range(200000) AS t(r)"
    )
    db.execute("INSERT INTO raw_items SELECT 'i' || n, 'Title &amp; ' || n, '{\"a\": \"b\"}' FROM range(2000) AS t(n)")
    return RatingScale()


def digests(directory: Path) -> dict[str, str]:
    """SHA-256 of every file of a directory."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


@pytest.mark.parametrize("split", SPLITS)
def test_same_input_gives_same_bytes(tmp_path: Path, split: Split) -> None:
    """Other threads and other memory change no byte of any file."""
    found = []
    for name, threads, memory in (("one", 1, "2GB"), ("four", 4, "2GB"), ("three", 3, "600MB")):
        prepare(large, tmp_path / name, Settings(split=split), threads=threads, memory=memory, progress=False)
        found.append(digests(tmp_path / name))
    assert set(found[0]) == set(FILES)
    assert found[0] == found[1] == found[2]


def test_manifest_describes_the_files(tmp_path: Path) -> None:
    """Every output stands in the manifest with its bytes and digest, every input with its name and digest."""
    source = tmp_path / "log.jsonl"
    source.write_text("not read here")
    manifest = prepare(small, tmp_path / "out", ALL, inputs={"interactions": source}, progress=False)
    said = {file["name"]: (file["bytes"], file["sha256"]) for file in manifest["outputs"]}
    found = digests(tmp_path / "out")
    assert said == {name: ((tmp_path / "out" / name).stat().st_size, found[name]) for name in FILES[:3]}
    assert manifest["inputs"]["interactions"]["sha256"] == hashlib.sha256(b"not read here").hexdigest()


def test_manifest_holds_no_path(tmp_path: Path) -> None:
    """Nothing of the machine is in the manifest."""
    source = tmp_path / "log.jsonl"
    source.write_text("")
    prepare(small, tmp_path / "out", ALL, inputs={"interactions": source}, progress=False)
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()


def test_manifest_counts_splits(tmp_path: Path) -> None:
    """Rows of each split are counted, and targets with and without a history add up to them."""
    counts = prepare(small, tmp_path / "out", Settings(core=0, min_history=2), progress=False)["counts"]
    assert sum(split["rows"] for split in counts["splits"].values()) == counts["rows"] == 12
    train = counts["splits"]["train"]
    assert (train["rows"], train["examples"], train["without_history"]) == (9, 3, 6)


def test_returned_manifest_is_the_written_one(tmp_path: Path) -> None:
    """What `prepare` returns is what the file says."""
    manifest = prepare(small, tmp_path / "out", ALL, progress=False)
    written = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert json.loads(json.dumps(manifest)) == written


def test_every_item_has_a_row(tmp_path: Path) -> None:
    """Items that nobody described are there without a title, sorted by id; described ones that nobody rated are not."""

    def read(db: duckdb.DuckDBPyConnection) -> RatingScale:
        fill(db, [Rated("a", "y"), Rated("a", "x")])
        db.execute("""INSERT INTO raw_items VALUES ('y', ' Why &amp; How', '{"k": "v"}'), ('z', 'Unrated', '{}')""")
        return RatingScale()

    prepare(read, tmp_path / "out", ALL, progress=False)
    rows = duckdb.read_parquet(str(tmp_path / "out" / "items.parquet")).fetchall()
    assert rows == [("x", None, "{}"), ("y", "Why & How", '{"k": "v"}')]


def test_review_joins_title_and_text(tmp_path: Path) -> None:
    """A review is its title and its text, cleaned; none where neither says anything."""
    log = [
        Rated("a", "v", title="Bed &amp; bath", text="Fine.<br />Again"),
        Rated("a", "w", text="Only text"),
        Rated("a", "x", title="Only title"),
        Rated("a", "y", text=" <br> "),
        Rated("a", "z"),
    ]
    prepare(lambda db: fill(db, log), tmp_path / "out", ALL, progress=False)
    rows = duckdb.read_parquet(str(tmp_path / "out" / "interactions.parquet")).project("review").fetchall()
    assert [text for (text,) in rows] == ["Bed & bath. Fine. Again", "Only text", "Only title", None, None]


# The directory appears whole or not at all


def test_nothing_else_stays_behind(tmp_path: Path) -> None:
    """Beside the finished directory nothing is left of the work."""
    prepare(small, tmp_path / "out", ALL, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    """Where reading fails there is no directory, whole or half."""

    def fail(db: duckdb.DuckDBPyConnection) -> RatingScale:
        small(db)
        raise ConfigurationError("no such format")

    with pytest.raises(ConfigurationError, match="no such format"):
        prepare(fail, tmp_path / "out", ALL, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_full_directory_is_refused(tmp_path: Path) -> None:
    """A directory that holds anything is left as it is."""
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="is not empty"):
        prepare(small, tmp_path, ALL, progress=False)


def test_empty_directory_is_taken(tmp_path: Path) -> None:
    """An empty directory of the name is no hindrance."""
    (tmp_path / "out").mkdir()
    prepare(small, tmp_path / "out", ALL, progress=False)
    assert set(digests(tmp_path / "out")) == set(FILES)


def test_overwrite_replaces_a_prepared_directory(tmp_path: Path) -> None:
    """A prepared directory is replaced as a whole where that is asked for."""
    prepare(small, tmp_path / "out", ALL, progress=False)
    prepare(small, tmp_path / "out", Settings(core=0, history=3), overwrite=True, progress=False)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["settings"]["history"] == 3


def test_overwrite_spares_what_is_not_its_own(tmp_path: Path) -> None:
    """A directory without a manifest is never replaced."""
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="so it is not overwritten"):
        prepare(small, tmp_path, ALL, overwrite=True, progress=False)
    assert (tmp_path / "note.txt").read_text() == "mine"


def test_file_in_the_way_is_named(tmp_path: Path) -> None:
    """A file of the directory's name is not touched."""
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ConfigurationError, match="there is a file of this name"), workplace(tmp_path / "out"):
        pass


# Memory, disk, interrupts


def test_too_little_memory_is_said(tmp_path: Path) -> None:
    """Out of memory, the sentence names the setting to raise."""

    def work(begin: Any) -> None:
        begin("reading")
        raise duckdb.OutOfMemoryException("failed to pin block")

    with connect(tmp_path) as db, pytest.raises(ConfigurationError, match="reading: out of memory with --memory 1GB"):
        Watch(db, memory="1GB", show=False).over(work)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, even in a process that was started to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.faults
@pytest.mark.serial
@pytest.mark.usefixtures("interruptible")
def test_interrupt_stops_the_statement(tmp_path: Path) -> None:
    """An interrupt ends a statement that would run for hours, and leaves the connection free."""

    def work(begin: Any) -> None:
        begin("reading")
        db.execute("SELECT sum(hash(a.range, b.range)) FROM range(10000000) a, range(10000000) b")

    with connect(tmp_path, threads=1) as db:
        later = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        later.start()
        with pytest.raises(KeyboardInterrupt):
            Watch(db, memory="1GB", show=False).over(work)
        assert db.execute("SELECT 1").fetchall() == [(1,)]


@pytest.mark.parametrize(("text", "size"), [("4GB", 4 * 10**9), ("512 MiB", 512 << 20), ("1.5gb", 15 * 10**8)])
def test_memory_is_read(text: str, size: int) -> None:
    """Sizes are read with decimal and binary units."""
    assert memory_bytes(text) == size


@pytest.mark.parametrize("text", ["", "4", "GB", "much", "-4GB", "10MB", "infGB", "nanGB"])
def test_memory_that_is_none_is_refused(text: str) -> None:
    """What is no size, or too small to work in, is refused."""
    with pytest.raises(ConfigurationError, match="memory must be"):
        memory_bytes(text)


def test_no_threads_are_refused(tmp_path: Path) -> None:
    """Without a thread nothing can run."""
    with pytest.raises(ConfigurationError, match="threads must be at least 1"):
        connect(tmp_path, threads=0)
