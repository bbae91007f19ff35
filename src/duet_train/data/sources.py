"""Text files as DuckDB relations, read in place, and where in its file a record stands.

Files whose name ends in ``.gz`` are decompressed while they are read. No file is ever held in memory whole.
"""

from __future__ import annotations

import csv
import glob
import gzip
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Protocol, TextIO

import attrs
import duckdb

from duet import ConfigurationError

# One review or one item on a single line; the longest real metadata lines have some hundred kilobytes.
_LONGEST_LINE = 8 << 20


class Source(Protocol):
    """Records in an order, as a relation and as places that a message can name."""

    def relation(self, db: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyRelation:
        """The records, in file order."""

    def where(self, record: int) -> str:
        """The place of a record, counted from 0, as a person would look it up."""


def existing(path: Path) -> Path:
    """The path itself.

    Raises:
        ConfigurationError: No file is there.
    """
    if not path.is_file():
        raise ConfigurationError(f"{path}: no such file")
    return path


def open_text(path: Path, encoding: str = "utf-8") -> TextIO:
    """A text file, gzipped or not, with its line ends as they are."""
    existing(path)
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding=encoding, errors="replace", newline="")
    return path.open(encoding=encoding, errors="replace", newline="")


@attrs.frozen
class JSONLines:
    """JSON objects, one a line.

    Args:
        path: The file.
        fields: Top-level fields, each a VARCHAR column: text as it is, numbers and nested values as JSON writes them,
            NULL where a line lacks the field. None for one column, ``record``, with the whole object as JSON.
    """

    path: Path
    fields: tuple[str, ...] | None = None

    def relation(self, db: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyRelation:
        """The objects, in file order."""
        columns = {"record": "JSON"} if self.fields is None else dict.fromkeys(self.fields, "VARCHAR")
        return db.read_json(
            glob.escape(str(existing(self.path))),
            columns=columns,
            format="newline_delimited",
            records="false" if self.fields is None else "true",
        )

    def where(self, record: int) -> str:
        """File and line."""
        return _nth_line(self.path, "utf-8", record)


@attrs.frozen
class Lines:
    """Whole lines as they are, in one VARCHAR column ``record``: for lines that are no JSON."""

    path: Path

    def relation(self, db: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyRelation:
        """The lines, in file order."""
        return db.read_csv(
            glob.escape(str(existing(self.path))),
            columns={"record": "VARCHAR"},
            auto_detect=False,
            header=False,
            # A control character that no line of text holds, so that nothing splits it.
            delimiter="\x01",
            quotechar="",
            escapechar="",
            max_line_size=_LONGEST_LINE,
        )

    def where(self, record: int) -> str:
        """File and line."""
        return _nth_line(self.path, "utf-8", record)


@attrs.frozen
class Delimited:
    """Fields between delimiters, all read as VARCHAR; empty fields are NULL.

    Args:
        path: The file.
        names: Of the columns, where the file has no header. None: the first line names them.
        delimiter: Between fields, up to four characters.
        quote: Around a field that holds delimiters or line ends; "" where the format has none.
        escape: Before a quote inside quotes.
        encoding: "utf-8" or "latin-1".
    """

    path: Path
    names: tuple[str, ...] | None = None
    delimiter: str = attrs.field(default=",", kw_only=True)
    quote: str = attrs.field(default='"', kw_only=True)
    escape: str = attrs.field(default='"', kw_only=True)
    encoding: str = attrs.field(default="utf-8", kw_only=True)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, from the header where the file has one; an unnamed column is ``column<place>``.

        Raises:
            ConfigurationError: The file is missing, or empty where there must be a header.
        """
        if self.names is not None:
            return self.names
        with open_text(self.path, self.encoding) as text:
            header = next(self._records(text), None)
        if not header:
            raise ConfigurationError(f"{self.path}: empty, where a header line was expected")
        header[0] = header[0].removeprefix("\ufeff")
        return tuple(name or f"column{place}" for place, name in enumerate(header))

    def require(self, *names: str) -> Delimited:
        """The source itself.

        Raises:
            ConfigurationError: The header lacks one of these columns.
        """
        missing = [name for name in names if name not in self.columns]
        if missing:
            raise ConfigurationError(f"{self.path}: no column {missing[0]!r}; its header names {list(self.columns)}")
        return self

    def relation(self, db: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyRelation:
        """The records, in file order, as columns ``c0``, ``c1``, …: names of a header may differ in case alone."""
        return db.read_csv(
            glob.escape(str(existing(self.path))),
            columns={f"c{place}": "VARCHAR" for place in range(len(self.columns))},
            auto_detect=False,
            header=self.names is None,
            delimiter=self.delimiter,
            quotechar=self.quote,
            escapechar=self.escape,
            encoding=self.encoding,
            max_line_size=_LONGEST_LINE,
        )

    def column(self, *names: str) -> str:
        """SQL for the first of these columns that the file has; ``NULL`` where it has none of them."""
        places = [self.columns.index(name) for name in names if name in self.columns]
        return f"c{places[0]}" if places else "NULL"

    def where(self, record: int) -> str:
        """File and first line of the record."""
        if not self.quote:
            return _nth_line(self.path, self.encoding, record + (self.names is None))
        with open_text(self.path, self.encoding) as text:
            reader = self._records(text)
            next(islice(_nonblank(reader), record + (self.names is None) - 1, None), None)
            return f"{self.path}:{reader.line_num + 1}"

    def _records(self, text: TextIO) -> csv.reader:  # type: ignore[valid-type]
        if not self.quote:
            return csv.reader(text, delimiter=self.delimiter[0], quoting=csv.QUOTE_NONE)
        doubled = self.escape == self.quote
        return csv.reader(
            text,
            delimiter=self.delimiter,
            quotechar=self.quote,
            doublequote=doubled,
            escapechar=None if doubled else self.escape,
        )


def _nonblank(records: Iterator[list[str]]) -> Iterator[list[str]]:
    return (record for record in records if record)


def _nth_line(path: Path, encoding: str, record: int) -> str:
    """The line on which a record stands where each record has a line and blank lines are skipped."""
    with open_text(path, encoding) as text:
        numbers = (number for number, line in enumerate(text, 1) if line.strip())
        line = next(islice(numbers, record, None), None)
    return f"{path}:{line}" if line else str(path)
