"""Text files as DuckDB relations, read in place, and where in its file a record stands.

Files whose name ends in ``.gz`` are decompressed while they are read. No file is ever held in memory whole.
"""

from __future__ import annotations

import csv
import glob
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TextIO

import attrs
import duckdb

from duet import ConfigurationError


class Source(Protocol):
    """Records in an order, as a relation and as places that a message can name."""

    @property
    def path(self) -> Path | str:
        """The file, or what else holds the records."""

    def relation(self, db: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyRelation:
        """The records, in file order."""

    def where(self, record: int) -> str:
        """The place of a record, counted from 0, as a person would look it up."""

    def fault(self, reason: str) -> str:
        """Where and why the records cannot be read, from DuckDB's reason."""


def existing(path: Path) -> Path:
    """The path itself.

    Raises:
        ConfigurationError: No file is there.
    """
    if not path.is_file():
        raise ConfigurationError(f"{path}: no such file")
    return path


def is_csv(path: Path) -> bool:
    """Whether a file's name says that it is CSV, gzipped or not."""
    return path.name.removesuffix(".gz").endswith(".csv")


@contextmanager
def open_text(path: Path, encoding: str = "utf-8") -> Iterator[TextIO]:
    """A text file, gzipped or not, with its line ends as they are.

    Raises:
        ConfigurationError: It is missing, or cannot be read to where the caller reads it.
    """
    opener = gzip.open if existing(path).suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding=encoding, errors="replace", newline="") as text:
            yield text
    except (OSError, EOFError, zlib.error) as exc:
        raise ConfigurationError(f"cannot read {path}: {exc}") from exc


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

    def fault(self, reason: str) -> str:
        """The first line that is no JSON object; DuckDB's own line numbers are not to be relied on."""
        with open_text(self.path) as text:
            for number, line in enumerate(text, 1):
                if line.strip() and (found := _json_fault(line)):
                    return f"{self.path}:{number}: {found}"
        return f"{self.path}: {reason}"


@attrs.frozen
class Lines:
    """Whole lines as they are, in one VARCHAR column ``record``: for lines that are no JSON."""

    path: Path

    def relation(self, db: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyRelation:
        """The lines, in file order."""
        # A control character that no line of text holds as delimiter, so that nothing splits a line.
        lines = _read_csv(db, self.path, ("record",), header=False, delimiter="\x01", quote="", escape="")
        return lines.filter("record IS NOT NULL")

    def where(self, record: int) -> str:
        """File and line."""
        return _nth_line(self.path, "utf-8", record)

    def fault(self, reason: str) -> str:
        """File, line and reason."""
        return _csv_fault(self.path, reason)


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
            header = next(csv.reader(text, **self._dialect()), None)
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
        return _read_csv(
            db,
            self.path,
            tuple(f"c{place}" for place in range(len(self.columns))),
            header=self.names is None,
            delimiter=self.delimiter,
            quote=self.quote,
            escape=self.escape,
            encoding=self.encoding,
        )

    def column(self, *names: str) -> str:
        """SQL for the first of these columns that the file has; ``NULL`` where it has none of them."""
        places = [self.columns.index(name) for name in names if name in self.columns]
        return f"c{places[0]}" if places else "NULL"

    def where(self, record: int) -> str:
        """File and first line of the record."""
        if not self.quote:
            return _nth_line(self.path, self.encoding, record + (self.names is None))
        try:
            return f"{self.path}:{self._first_line(record + (self.names is None))}"
        except csv.Error:  # a field beyond what the module reads
            return f"{self.path}, record {record + 1}"

    def fault(self, reason: str) -> str:
        """File, line and reason."""
        return _csv_fault(self.path, reason)

    def _first_line(self, record: int) -> int:
        with open_text(self.path, self.encoding) as text:
            reader = csv.reader(text, **self._dialect())
            for _ in islice(_nonblank(reader), record):
                pass
            return reader.line_num + 1

    def _dialect(self) -> dict[str, Any]:
        if not self.quote:
            return {"delimiter": self.delimiter[0], "quoting": csv.QUOTE_NONE}
        doubled = self.escape == self.quote
        return {
            "delimiter": self.delimiter,
            "quotechar": self.quote,
            "doublequote": doubled,
            "escapechar": None if doubled else self.escape,
        }


@attrs.frozen
class NamedRecords:
    """The records of a delimited file as JSON objects by column name, in one column ``record``.

    Args:
        source: The file.
        value: SQL that cleans a field; ``{field}`` stands for it.
    """

    source: Delimited
    value: str = "{field}"

    @property
    def path(self) -> Path:
        """The file."""
        return self.source.path

    def relation(self, db: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyRelation:
        """The objects, in file order."""
        pairs = (
            f"{_quoted(name)}, {self.value.format(field=f'c{place}')}" for place, name in enumerate(self.source.columns)
        )
        return self.source.relation(db).project(f"json_object({', '.join(pairs)}) AS record")

    def where(self, record: int) -> str:
        """File and first line of the record."""
        return self.source.where(record)

    def fault(self, reason: str) -> str:
        """File, line and reason."""
        return self.source.fault(reason)


def _read_csv(
    db: duckdb.DuckDBPyConnection,
    path: Path,
    columns: tuple[str, ...],
    *,
    header: bool,
    delimiter: str,
    quote: str,
    escape: str,
    encoding: str = "utf-8",
) -> duckdb.DuckDBPyRelation:
    # As text: the Python method of the same name refuses the encodings that the SQL function reads.
    types = ", ".join(f"{_quoted(name)}: 'VARCHAR'" for name in columns)
    return db.sql(
        f"FROM read_csv({_quoted(glob.escape(str(existing(path))))}, columns = {{{types}}}, auto_detect = false, "
        f"header = {str(header).lower()}, delim = {_quoted(delimiter)}, quote = {_quoted(quote)}, "
        f"escape = {_quoted(escape)}, encoding = {_quoted(encoding)})"
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _json_fault(line: str) -> str | None:
    try:
        value = json.loads(line)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "not JSON: holds half of a character (a lone surrogate)"
    except (ValueError, RecursionError) as exc:
        return f"not JSON: {exc}"
    return None if isinstance(value, dict) else "not a JSON object"


def _csv_fault(path: Path, reason: str) -> str:
    line = re.search(r"CSV Error on Line: (\d+)", reason)
    return f"{path}{f':{line[1]}' if line else ''}: {reason}"


def _nonblank(records: Iterator[list[str]]) -> Iterator[list[str]]:
    return (record for record in records if record)


def _nth_line(path: Path, encoding: str, record: int) -> str:
    """The line on which a record stands where each record has a line and blank lines are skipped."""
    with open_text(path, encoding) as text:
        numbers = (number for number, line in enumerate(text, 1) if line.strip())
        line = next(islice(numbers, record, None), None)
    return f"{path}:{line}" if line else str(path)
