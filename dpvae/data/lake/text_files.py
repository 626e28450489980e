"""Tables in text: CSV and JSON lines, as Arrow record batches whose cells stay text (dtype ``csv``).

Guessing a type from a file's content would publish a fact about private cells (one letter in one cell turns a numeric
column into text), so the kind of such a column is declared, or measured with noise like everything else
(:mod:`dpvae.data.survey`). A broken file is refused with the line to repair.
"""

from __future__ import annotations

import codecs
import csv
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv

from dpvae.data.lake.arrow import CSV, check_names, first_line
from dpvae.errors import DataError


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


def _as_text(names: list[str]) -> pa.Schema:
    check_names(names)
    return pa.schema([(name, pa.string()) for name in names])


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
