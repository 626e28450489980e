"""Tables in files: CSV, JSON lines and Parquet, one file or a folder of them, as Arrow record batches.

The cells of CSV and JSON files stay text (dtype ``csv``). Guessing a type from a file's content would publish a fact
about private cells (one letter in one cell turns a numeric column into text), so the kind of such a column is
declared, or measured with noise like everything else (:mod:`dpvae.data.survey`).
"""

from __future__ import annotations

import codecs
import csv
import itertools
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from dpvae.data.lake.arrow import CSV, check_names, first_line
from dpvae.data.lake.push import row_groups
from dpvae.data.where import Where
from dpvae.errors import DataError

PARQUET_ENDINGS = (".parquet", ".pq")
JSON_ENDINGS = (".jsonl", ".ndjson")
ENDINGS = (".csv", *PARQUET_ENDINGS, *JSON_ENDINGS)


class Source(Protocol):
    """A table that can be read from its start, any number of times."""

    @property
    def dtype(self) -> str | None:
        """The type name that all columns go by, where that is not their own."""

    def schema(self) -> pa.Schema:
        """Names and types; reads no row."""

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        """All rows in order, at most ``rows`` at a time, in bounded memory."""


@runtime_checkable
class Narrowed(Protocol):
    """A source that can leave out what is not wanted before it reads it."""

    def narrowed(self, columns: Sequence[str], where: Where | None) -> Source:
        """The same table with these columns, which are in its own order, and at least the rows where ``where`` holds;
        that is bound to the columns' types."""


class Versioned(ABC):
    """A lake table at one of its versions, which consists of data files."""

    text: str  # how it was named
    dtype = None

    @abstractmethod
    def schema(self) -> pa.Schema:
        """Names and types; reads no row."""

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        """All rows in order, at most ``rows`` at a time, in bounded memory."""
        for part in self.parts():
            yield from self.of_part(part, rows)

    @property
    @abstractmethod
    def snapshot(self) -> Any:
        """The version; ``None`` for a table that was never written to."""

    @abstractmethod
    def parts(self) -> dict[str, str]:
        """The data files in an order that never changes, each with the deletions in it."""

    @abstractmethod
    def of_part(self, part: str, rows: int) -> Iterator[pa.RecordBatch]:
        """The rows of one data file."""

    @abstractmethod
    def portable(self) -> Callable[[], Versioned]:
        """What opens the very same version in another process; it pickles."""


def opened(place: str | os.PathLike[str]) -> Source:
    """The file or the folder at ``place``."""
    path = Path(place)
    if not path.exists():
        raise DataError(f"data={str(path)!r}: no such file; give the path of a .csv or .parquet file")
    if path.is_dir():
        return _folder(path)
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise DataError(f"data={str(path)!r}: unknown ending {path.suffix!r}; expected .csv, .parquet, .pq or .jsonl")
    if path.stat().st_size == 0:
        raise DataError(f"data={str(path)!r}: the file is empty; expected a header and at least two rows")
    return Csv(path) if ending == ".csv" else Json(path) if ending in JSON_ENDINGS else Parquet(path)


def _folder(path: Path) -> Source:
    """The tables of one kind in a folder, in the order of their names; those of a release lie in its ``data``."""
    inside = path / "data" if (path / "certificate.json").is_file() else path
    found = sorted(file for file in inside.iterdir() if file.suffix.lower() in ENDINGS and file.name[0] not in "._")
    if not found:
        raise DataError(f"data={str(path)!r}: is a folder without a table; expected one .csv, .parquet or .jsonl "
                        "file, or several of a kind inside the folder")
    if len({file.suffix.lower() for file in found}) > 1:
        raise DataError(f"data={str(path)!r}: holds {found[0].name} and files of another kind; expected one kind")
    return Folder(tuple(opened(file) for file in found), path)


@dataclass(frozen=True)
class Parquet:
    """One Parquet file."""

    path: Path
    columns: tuple[str, ...] | None = None
    where: Where | None = None
    dtype = None

    def schema(self) -> pa.Schema:
        found = _parquet_schema(self.path)
        return found if self.columns is None else pa.schema([found.field(name) for name in self.columns])

    def narrowed(self, columns: Sequence[str], where: Where | None) -> Parquet:
        """See :class:`Narrowed`."""
        return replace(self, columns=tuple(columns), where=where)

    def row_count(self) -> int:
        """From the footers, without reading a row; private where the table is."""
        return int(pq.read_metadata(self.path).num_rows)

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        try:
            groups = None if self.where is None else row_groups(self.path, self.where, self.schema())
            with pq.ParquetFile(self.path) as file:
                yield from file.iter_batches(batch_size=rows, row_groups=groups, columns=self.columns,
                                             use_threads=False)
        except MemoryError:  # Arrow's own is an ArrowException too
            raise
        except (pa.ArrowException, OSError) as error:
            raise _broken(self.path, error) from error


@dataclass(frozen=True)
class Csv:
    """One CSV file, its cells as text."""

    path: Path
    dtype = CSV

    def schema(self) -> pa.Schema:
        return _as_text(_csv_header(self.path)[0])

    def text_bytes(self) -> int:
        """Of the file; private as a number of rows is."""
        return self.path.stat().st_size

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        (names, separator), batch = _csv_header(self.path), None
        _check_encoding(self.path)
        try:
            with pacsv.open_csv(self.path, pacsv.ReadOptions(use_threads=False, column_names=names, skip_rows=1),
                                pacsv.ParseOptions(delimiter=separator, newlines_in_values=True),
                                _csv_as_text(names)) as reader:
                for batch in reader:
                    yield batch
            _check_last_quote(self.path, pa.Table.from_batches([batch] if batch is not None else [], self.schema()))
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"data={str(self.path)!r}: {first_line(error)}; repair the file") from error


@dataclass(frozen=True)
class Json:
    """One file of JSON lines, its values as text; the first line names the columns."""

    path: Path
    dtype = CSV

    def schema(self) -> pa.Schema:
        return _as_text(list(next(self._lines(), {})))

    def text_bytes(self) -> int:
        """Of the file; private as a number of rows is."""
        return self.path.stat().st_size

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        schema, lines = self.schema(), self._lines()
        while block := list(itertools.islice(lines, rows)):
            yield pa.RecordBatch.from_pylist(block, schema)

    def _lines(self) -> Iterator[dict[str, str | None]]:
        names: list[str] = []
        try:
            with self.path.open(encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        found = json.loads(line, parse_int=str, parse_float=str, parse_constant=str)
                        names = names or list(found)
                        yield {name: self._text(number, names, name, value) for name, value in found.items()}
        except UnicodeDecodeError as error:
            raise DataError(f"data={str(self.path)!r}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
        except (ValueError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"data={str(self.path)!r}: line {number} is no JSON object; repair that line") from None

    def _text(self, number: int, names: list[str], name: str, value: Any) -> str | None:
        if name not in names or isinstance(value, (dict, list)):
            raise DataError(f"data={str(self.path)!r}: line {number}, {name!r}: expected the names of the first line, "
                            "and plain values")
        return str(value).lower() if isinstance(value, bool) else value


@dataclass(frozen=True)
class Folder:
    """Files of one kind and one schema, one after the other."""

    parts: tuple[Any, ...]
    path: Path

    @property
    def dtype(self) -> str | None:
        dtype: str | None = self.parts[0].dtype
        return dtype

    def schema(self) -> pa.Schema:
        first: pa.Schema = self.parts[0].schema()
        for part in self.parts[1:]:
            check_same(first, part.schema(), f"data={str(part.path)!r}", self.parts[0].path.name)
        return first

    def row_count(self) -> int | None:
        """Of Parquet files; private where the table is."""
        return sum(part.row_count() for part in self.parts) if isinstance(self.parts[0], Parquet) else None

    def text_bytes(self) -> int:
        """Of files of text."""
        return 0 if isinstance(self.parts[0], Parquet) else sum(part.text_bytes() for part in self.parts)

    def narrowed(self, columns: Sequence[str], where: Where | None) -> Source:
        """See :class:`Narrowed`."""
        self.schema()
        parts = [part.narrowed(columns, where) for part in self.parts if isinstance(part, Narrowed)]
        return replace(self, parts=tuple(parts)) if parts else self

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        self.schema()
        for part in self.parts:
            yield from part.batches(rows)


def check_same(expected: pa.Schema, found: pa.Schema, where: str, other: str) -> None:
    """Raise where two schemas differ; the error names the column."""
    for field in expected:
        if field.name not in found.names:
            raise DataError(f"{where}: has no column {field.name!r}, which {other} has; it was renamed or dropped")
        if found.field(field.name).type != field.type:
            raise DataError(f"{where}: column={field.name!r} is {found.field(field.name).type}, but {field.type} in "
                            f"{other}; its type was changed")
    for name in found.names:
        if name not in expected.names:
            raise DataError(f"{where}: column={name!r} is not in {other}; it is new")
    if found.names != expected.names:
        moved = next(a for a, b in zip(found.names, expected.names, strict=True) if a != b)
        raise DataError(f"{where}: column={moved!r} stands in another place than in {other}")


def _as_text(names: list[str]) -> pa.Schema:
    check_names(names)
    return pa.schema([(name, pa.string()) for name in names])


def _broken(path: Path, error: BaseException) -> DataError:
    return DataError(f"data={str(path)!r}: not a readable Parquet file ({first_line(error)}); it may be truncated: "
                     "write it again")


def _csv_header(path: Path) -> tuple[list[str], str]:
    """Column names, and the separator: the one of ``, ; tab |`` that the header line holds most of."""
    try:
        with path.open("rb") as file:
            header = file.readline()
            while header.count(b'"') % 2 and (more := file.readline()):  # a quoted name may hold line breaks
                header += more
        line = header.decode("utf-8-sig")
        separator = max(",;\t|", key=line.count)
        names = [name.strip() for name in next(csv.reader([line], delimiter=separator), [])]
    except UnicodeDecodeError as error:
        raise DataError(f"data={str(path)!r}: not UTF-8 (byte {error.start}); save the file as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"data={str(path)!r}: the header line cannot be read ({error})") from error
    check_names(names)
    if broken := [name for name in names if "\n" in name or "\r" in name]:
        raise DataError(f"column={broken[0]!r}: its name holds a line break; rename it")
    return names, separator


def read_csv(path: Path) -> pa.Table:
    """The whole file at once: a broken line is named."""
    names, separator = _csv_header(path)
    _check_encoding(path)
    ragged: list[Any] = []

    def refuse(row: Any) -> str:
        ragged.append(row)
        return "error"

    try:
        table = pacsv.read_csv(
            path, pacsv.ReadOptions(use_threads=False, column_names=names, skip_rows=1),
            pacsv.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=refuse),
            _csv_as_text(names))
    except (pa.ArrowException, OSError) as error:
        if ragged:
            row = ragged[0]
            raise DataError(f"data={str(path)!r}: line {_ragged_line(path, separator) or row.number} has "
                            f"{row.actual_columns} cells; expected {row.expected_columns} as in the header; "
                            "repair that line") from None
        raise DataError(f"data={str(path)!r}: {first_line(error)}; repair the file") from error
    _check_last_quote(path, table)
    return table


def _csv_as_text(names: list[str]) -> pacsv.ConvertOptions:
    return pacsv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), null_values=[""],
                                strings_can_be_null=True, quoted_strings_can_be_null=True)


def _check_encoding(path: Path) -> None:
    """Arrow checks only the cells that it keeps, and cannot show a ragged row that is no text."""
    decoder, done = codecs.getincrementaldecoder("utf-8")(), 0
    with path.open("rb") as file:
        while True:
            block = file.read(2**20)
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise DataError(f"data={str(path)!r}: not UTF-8 near byte {done + error.start}; save the file as "
                                "UTF-8") from None
            if not block:
                return
            done += len(block)


def _ragged_line(path: Path, separator: str) -> int | None:
    """The line where the first row of another length ends, counted as an editor counts."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, delimiter=separator)
            expected = len(next(rows))
            return next((rows.line_num for row in rows if row and len(row) != expected), None)
    except (OSError, UnicodeDecodeError, csv.Error):
        return None


def _check_last_quote(path: Path, table: pa.Table) -> None:
    """A quote that never closes would swallow the rest of the file into one cell, without a word."""
    last = [str(column[-1].as_py() or "") for column in table.columns] if table.num_rows else []
    if any("\n" in cell for cell in last):
        with path.open("rb") as file:
            quotes = sum(block.count(b'"') for block in iter(lambda: file.read(2**20), b""))
        if quotes % 2:
            raise DataError(f"data={str(path)!r}: a quoted cell is never closed (an odd number of quotes, and the last "
                            "cell spans lines); close it")


def _parquet_schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path).remove_metadata()
    except (pa.ArrowException, OSError) as error:
        raise _broken(path, error) from error


def stored(path: Path, rows: int | None = None) -> pa.Table:
    """The (first ``rows``) rows of a Parquet file as stored: for columns that are no table's, as images are."""
    try:
        with pq.ParquetFile(path) as file:
            if rows is None:
                return file.read(use_threads=False)
            return pa.Table.from_batches([next(file.iter_batches(batch_size=rows, use_threads=False))]
                                         if file.metadata.num_rows else [], file.schema_arrow)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"data={str(path)!r}: {first_line(error)}; repair the file") from error
