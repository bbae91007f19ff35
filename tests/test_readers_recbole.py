"""RecBole's atomic files, read and written."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from readers import FOLDER, Tables, connection, read, real_samples, sample, tables, written

from duet import ConfigurationError, RatingScale, RecordError
from duet_train.data.formats import FORMATS
from duet_train.data.recbole import read_recbole, write_recbole

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\nu1\tOld Mill\t5\t990000001\nu2\tSea-Lane\t3\t\n"
ITEM = "item_id:token\tmovie_title:token_seq\trelease_year:float\tgenre:token_seq\nSea-Lane\tSea-Lane\t1959\tDrama\n"


def read_inter(tmp_path: Path, content: str, items: str | None = None) -> Tables:
    """Atomic files with this content."""
    item_path = None if items is None else written(tmp_path, "set.item", items)
    return read("recbole", written(tmp_path, "set.inter", content), item_path)


def test_interactions(tmp_path: Path) -> None:
    """Columns are found by name behind their types; an empty time is none."""
    found = read_inter(tmp_path, INTER)
    assert [row[:5] for row in found.rows] == [
        (0, "u1", "Old Mill", 5.0, 990000001.0),
        (1, "u2", "Sea-Lane", 3.0, None),
    ]


def test_columns_in_another_order(tmp_path: Path) -> None:
    """Neither the order of columns nor further ones matter."""
    found = read_inter(tmp_path, "useful:float\tstars:float\tbusiness_id:token\tuser_id:token\n1\t4\tb1\tu1\n")
    assert found.pairs == [("u1", "b1", 4.0)]


def test_items(tmp_path: Path) -> None:
    """The title is the column that is named as one; all others are attributes, averages and counts excepted."""
    header = "item_id:token\tmovie_title:token_seq\tgenre:token_seq\titem_stars:float\treview_count:float\n"
    items = header + "i1\tOne\tA B\t4\t9\n"
    assert read_inter(tmp_path, INTER, items).items == {"i1": ("One", {"genre": "A B"})}


def test_quotes_are_plain_characters(tmp_path: Path) -> None:
    """Quotes that do not enclose a field as CSV writers do stay as they are; those that do are taken off."""
    rows = ['i1\t"Great" Show', 'i2\tx "y" z', 'i3\t"the ""in"" side"', 'i4\t"open', 'i5\t"A" and "B"']
    items = "item_id:token\ttitle:token_seq\n" + "\n".join(rows) + "\n"
    assert {item: title for item, (title, _) in read_inter(tmp_path, INTER, items).items.items()} == {
        "i1": '"Great" Show',
        "i2": 'x "y" z',
        "i3": 'the "in" side',
        "i4": '"open',
        "i5": '"A" and "B"',
    }


@pytest.mark.parametrize(
    ("ratings", "scale"),
    [(("1", "3"), RatingScale(1, 5)), (("0.5", "4"), RatingScale(0.5, 4)), (("0", "100"), RatingScale(0, 100))],
)
def test_scale(tmp_path: Path, ratings: tuple[str, ...], scale: RatingScale) -> None:
    """The scale is 1 to 5 if that holds every rating, else what occurs."""
    rows = "".join(f"u\ti\t{rating}\n" for rating in ratings)
    assert read_inter(tmp_path, "user_id:token\titem_id:token\trating:float\n" + rows).scale == scale


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("user_id\titem_id:token\trating:float", "column 'user_id' has no type"),
        ("user_id:token\titem_id:token", "none of the columns rating, stars"),
        ("user_id:token\trating:float", "none of the columns item_id"),
        ("user_id:text\trating:float", "column 'user_id:text' has no type"),
    ],
)
def test_header_that_is_not_recboles(tmp_path: Path, header: str, reason: str) -> None:
    """A header without types, or without a needed column, is named."""
    with pytest.raises(ConfigurationError, match=rf"set\.inter:1: {reason}"):
        read_inter(tmp_path, header + "\nu\ti\t5\n")


def test_bad_row_is_named(tmp_path: Path) -> None:
    """A rating that is no number is named by its line."""
    with pytest.raises(RecordError, match=r"set\.inter:4: rating .* got 'five'"):
        read_inter(tmp_path, INTER + "u3\tx\tfive\t1\n")


# Writing


def filled(db: duckdb.DuckDBPyConnection, rows: list[tuple[object, ...]], items: list[tuple[object, ...]]) -> None:
    """The tables that a reader would have filled."""
    db.execute(
        "CREATE TABLE raw_interactions (source_row BIGINT, user_id VARCHAR, item_id VARCHAR, rating DOUBLE, "
        "timestamp DOUBLE, review_title VARCHAR, review_text VARCHAR)"
    )
    db.execute("CREATE TABLE raw_items (item_id VARCHAR, title VARCHAR, attributes VARCHAR)")
    db.executemany("INSERT INTO raw_interactions VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    if items:
        db.executemany("INSERT INTO raw_items VALUES (?, ?, ?)", items)


def round_trip(directory: Path, rows: list[tuple[object, ...]], items: list[tuple[object, ...]]) -> Tables:
    """Written, and read again."""
    with connection() as db:
        filled(db, rows, items)
        write_recbole(db, directory, "set")
        item_path = directory / "set.item" if items else None
        return tables(db, read_recbole(db, directory / "set.inter", item_path))


ROWS: list[tuple[object, ...]] = [
    (0, "u1", "i1", 4.5, 990000001.25, 'A "title"', "text"),
    (1, "u2", "i2", 3.0, None, None, None),
]


def test_files_have_recboles_form(tmp_path: Path) -> None:
    """Tabs, and a typed header; a column a key of the attributes."""
    with connection() as db:
        filled(db, ROWS[1:], [("i2", "Two", '{"genre": "Drama", "year": "1999"}')])
        write_recbole(db, tmp_path / "set", "set")
    assert (tmp_path / "set" / "set.inter").read_text() == "user_id:token\titem_id:token\trating:float\nu2\ti2\t3.0\n"
    assert (tmp_path / "set" / "set.item").read_text() == (
        "item_id:token\ttitle:token_seq\tgenre:token_seq\tyear:token_seq\ni2\tTwo\tDrama\t1999\n"
    )


def test_no_item_file_without_items(tmp_path: Path) -> None:
    """Where nothing is known of items, no file says so."""
    round_trip(tmp_path, ROWS, [])
    assert [path.name for path in tmp_path.iterdir()] == ["set.inter"]


def test_rows_come_back(tmp_path: Path) -> None:
    """Ids, ratings, times and texts survive, missing ones too."""
    assert round_trip(tmp_path, ROWS, []).rows == ROWS


def test_tabs_and_line_ends_become_spaces(tmp_path: Path) -> None:
    """What would divide fields or rows is written as one space."""
    found = round_trip(tmp_path, [(0, "u1", "i1", 4.0, 1.0, "a\tb", "c\r\nd\n\ne")], [])
    assert found.texts == [("a b", "c d e")]


def test_names_of_attributes_that_a_header_cannot_hold(tmp_path: Path) -> None:
    """A colon becomes a space; of names that differ in case alone the first value counts; a title is not repeated."""
    attributes = {"a:b": "1", "Color": "red", "color": "blue", "it's": "x", "p/q~r": "y", "Title": "no", "": "z"}
    found = round_trip(tmp_path, ROWS, [("i1", "One", json.dumps(attributes)), ("i2", None, '{"color": "green"}')])
    assert found.items == {
        "i1": ("One", {"": "z", "Color": "red", "a b": "1", "it's": "x", "p/q~r": "y"}),
        "i2": (None, {"Color": "green"}),
    }


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A file where the folder should be is an error that names it."""
    written(tmp_path, "taken", "")
    with pytest.raises(ConfigurationError, match=r"cannot write set to .*taken"):
        round_trip(tmp_path / "taken", ROWS, [])


one_line = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\x00\t\r\n"), min_size=1, max_size=12
).filter(lambda text: bool(text.strip()))


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.lists(st.tuples(one_line, one_line, st.floats(1, 5), st.integers(0, 2**37), one_line), min_size=1, max_size=5)
)
def test_any_row_comes_back(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[str, str, float, int, str]]
) -> None:
    """Whatever stands in a field, quotes included, it is read as it was written."""
    rows = [
        (place, user, item, rating, time, None, text) for place, (user, item, rating, time, text) in enumerate(drawn)
    ]
    assert round_trip(tmp_path_factory.mktemp("set"), list(rows), []).rows == rows


# Real files


@real_samples
def test_real_files() -> None:
    """Every real row and title is what a plain split of its line gives."""
    inter, item = sample("recbole_atomic_ml-1m.inter"), sample("recbole_atomic_ml-1m.item")
    found = read("recbole", inter, item)
    rows = [line.split("\t") for line in inter.read_text(encoding="utf-8").splitlines()[1:]]
    assert [row[1:5] for row in found.rows] == [(row[0], row[1], float(row[2]), float(row[3])) for row in rows]
    items = [line.split("\t") for line in item.read_text(encoding="utf-8").splitlines()[1:]]
    assert found.items == {row[0]: (row[1], {"genre": row[3], "release_year": row[2]}) for row in items}


@real_samples
@pytest.mark.parametrize("name", ["yelp_2021_sample", "amazon_beauty_2023"])
def test_real_set_comes_back(tmp_path: Path, name: str) -> None:
    """A real set written and read again has the same rows and items, but for line ends in texts."""
    folder = FOLDER / name
    if not folder.is_dir():
        pytest.skip(f"no {name}")
    with connection() as db:
        scale = FORMATS["jsonl"](db, folder / "interactions.jsonl.gz", folder / "items.jsonl.gz")
        before = tables(db, scale)
        write_recbole(db, tmp_path, name)
        after = tables(db, read_recbole(db, tmp_path / f"{name}.inter", tmp_path / f"{name}.item"))
    assert [row[:5] for row in after.rows] == [row[:5] for row in before.rows]
    assert [" ".join((text or "").split()) for _, text in after.texts] == [
        " ".join((text or "").split()) for _, text in before.texts
    ]
    assert after.items == before.items
