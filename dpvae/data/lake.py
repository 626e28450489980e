"""The one door to files and foreign tables: everything that knows pyarrow lives here.

Inside dpvae a table is a :class:`Table`: named columns of plain numpy arrays, each with a mask of missing cells and
the *name* of the type it came with. A released table is the same three things per column, so it leaves through
:func:`to_arrow` with the very types the original had.

The cells of a CSV file stay text (dtype ``csv``). Guessing a type from a file's content would publish a fact about
private cells (one letter in one cell turns a numeric column into text), so the kind of a CSV column is declared, or
measured with noise like everything else (:mod:`dpvae.data.survey`).

>>> table = read({"age": [39, None], "sex": ["Male", "Female"]})
>>> table.names, table.rows, table.column("age").missing.tolist()
(('age', 'sex'), 2, [False, True])
"""

from __future__ import annotations

import codecs
import csv
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from dpvae.checks import did_you_mean
from dpvae.errors import DataError

CSV = "csv"
PARQUET_ENDINGS = (".parquet", ".pq")
DAY_MS = 86_400_000


class Cells(NamedTuple):
    """One column: ``values`` and ``missing`` are arrays of shape (rows,); a missing cell's value means nothing.

    Numbers are int64 or float64, text is an object array of ``str``, datetimes are int64 ticks in the unit of
    ``dtype`` (days for both date types), booleans are bool.
    """

    values: np.ndarray
    missing: np.ndarray
    dtype: str


Append = Callable[["Mapping[str, Cells] | Table"], None]


@dataclass(frozen=True)
class Table:
    """Columns of one length, in the order of the source."""

    names: tuple[str, ...]
    cells: tuple[Cells, ...]

    @property
    def rows(self) -> int:
        """How many rows; private where the table is."""
        return len(self.cells[0].values)

    @property
    def header(self) -> tuple[tuple[str, str], ...]:
        """(name, type) of each column."""
        return tuple((name, cells.dtype) for name, cells in zip(self.names, self.cells, strict=True))

    def column(self, name: str) -> Cells:
        """One column by name; :class:`DataError` with the nearest name where there is none."""
        if name not in self.names:
            raise DataError(f"column={name!r}: not in the table{did_you_mean(name, self.names)}")
        return self.cells[self.names.index(name)]

    def take(self, index: np.ndarray) -> Table:
        """The rows at ``index`` (positions or a boolean mask)."""
        return Table(self.names, tuple(Cells(c.values[index], c.missing[index], c.dtype) for c in self.cells))


# ---- reading ----------------------------------------------------------------------------------------------------


def read(source: Any) -> Table:
    """A whole table from a CSV or Parquet path, a DataFrame, or anything that speaks the Arrow C stream."""
    if isinstance(source, Table):
        table = source
    else:
        arrow, dtype = _open(source)
        _check_names(arrow.column_names)
        table = Table(tuple(arrow.column_names),
                      tuple(_from_arrow(n, c, dtype) for n, c in zip(arrow.column_names, arrow.columns, strict=True)))
    if table.rows < 2:
        found = "no row" if table.rows == 0 else "one row"
        raise DataError(f"rows={table.rows}: the table has {found}; expected at least 2")
    return table


def batches(source: Any, rows: int) -> Iterator[Table]:
    """The table in parts of at most ``rows`` rows, in order; a file is never held in memory as a whole."""
    if isinstance(source, (str, os.PathLike)):
        path = _existing(source)
        opened = _csv_batches(path) if path.suffix.lower() == ".csv" else _parquet_batches(path, rows)
        dtype = CSV if path.suffix.lower() == ".csv" else None
    else:
        arrow, dtype = (to_arrow(source), None) if isinstance(source, Table) else _open(source)
        opened = iter(arrow.to_batches())
    for batch in opened:
        for start in range(0, batch.num_rows, rows):
            part = pa.Table.from_batches([batch.slice(start, rows)])
            _check_names(part.column_names)
            yield Table(tuple(part.column_names), tuple(
                _from_arrow(n, c, dtype) for n, c in zip(part.column_names, part.columns, strict=True)))


def _parquet_batches(path: Path, rows: int) -> Iterator[pa.RecordBatch]:
    _check_names(_parquet_schema(path).names)
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=rows, use_threads=False)


def _csv_batches(path: Path) -> Iterator[pa.RecordBatch]:
    names, separator = _csv_header(path)
    _check_encoding(path)
    try:
        with pacsv.open_csv(path, pacsv.ReadOptions(use_threads=False, column_names=names, skip_rows=1),
                            pacsv.ParseOptions(delimiter=separator, newlines_in_values=True),
                            _csv_as_text(names)) as reader:
            yield from reader
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"data={str(path)!r}: {_first_line(error)}; repair the file") from error


def header(source: Any) -> tuple[tuple[str, str], ...]:
    """Names and type names, and nothing else: what may be known before any budget is set."""
    if isinstance(source, Table):
        return source.header
    if isinstance(source, (str, os.PathLike)):
        path = _existing(source)
        if path.suffix.lower() == ".csv":
            return tuple((name, CSV) for name in _csv_header(path)[0])
        schema = _parquet_schema(path)
    else:
        schema = _open(source)[0].schema
    _check_names(schema.names)
    for field in schema:
        _check_type(field.name, field.type)
    return tuple((field.name, str(field.type)) for field in schema)


def _open(source: Any) -> tuple[pa.Table, str | None]:
    """An Arrow table, and the dtype that its columns go by where that is not their own."""
    if isinstance(source, (str, os.PathLike)):
        path = _existing(source)
        return (_read_csv(path), CSV) if path.suffix.lower() == ".csv" else (_read_parquet(path), None)
    try:
        return _foreign(source), None
    except (pa.ArrowException, ValueError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"table={type(source).__name__}: cannot be read ({_first_line(error)}); expected columns "
                        "of one type each, with distinct names") from error


def _foreign(source: Any) -> pa.Table:
    if isinstance(source, pa.Table):
        return source
    if isinstance(source, pa.RecordBatch):
        return pa.Table.from_batches([source])
    if type(source).__module__.split(".")[0] == "pandas":
        if not len(source.columns):
            raise DataError("columns=0: the table has no columns; expected at least one")
        return pa.Table.from_pandas(source.set_axis(_named(source.columns), axis=1), preserve_index=False)
    if isinstance(source, np.ndarray):
        if source.ndim != 2:
            raise DataError(f"table=array of shape {source.shape}: expected two dimensions (rows, columns)")
        return pa.table({f"x{i}": pa.array(source[:, i], from_pandas=True) for i in range(source.shape[1])})
    if isinstance(source, Mapping):
        return pa.table({str(name): pa.array(values, from_pandas=True) for name, values in source.items()})
    if hasattr(source, "__arrow_c_stream__"):
        return pa.table(source)
    raise DataError(f"table={type(source).__name__}: expected a path ending in .csv or .parquet, a DataFrame, "
                    "or an Arrow table")


def _named(columns: Any) -> list[str]:
    return [str(name) for name in columns]


def _existing(source: str | os.PathLike[str]) -> Path:
    path = Path(source)
    if not path.exists():
        raise DataError(f"data={str(path)!r}: no such file; give the path of a .csv or .parquet file")
    if path.is_dir():
        raise DataError(f"data={str(path)!r}: is a folder; expected one .csv or .parquet file")
    if path.suffix.lower() not in (".csv", *PARQUET_ENDINGS):
        raise DataError(f"data={str(path)!r}: unknown ending {path.suffix!r}; expected .csv, .parquet or .pq")
    if path.stat().st_size == 0:
        raise DataError(f"data={str(path)!r}: the file is empty; expected a header and at least two rows")
    return path


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
    _check_names(names)
    if broken := [name for name in names if "\n" in name or "\r" in name]:
        raise DataError(f"column={broken[0]!r}: its name holds a line break; rename it")
    return names, separator


def _read_csv(path: Path) -> pa.Table:
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
        raise DataError(f"data={str(path)!r}: {_first_line(error)}; repair the file") from error
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
        raise DataError(f"data={str(path)!r}: not a readable Parquet file ({_first_line(error)}); it may be "
                        "truncated: write it again") from error


def _read_parquet(path: Path) -> pa.Table:
    _check_names(_parquet_schema(path).names)
    try:
        with pq.ParquetFile(path) as file:
            return file.read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"data={str(path)!r}: not a readable Parquet file ({_first_line(error)}); it may be "
                        "truncated: write it again") from error


def _check_names(names: list[str]) -> None:
    if not names:
        raise DataError("columns=0: the table has no columns; expected at least one")
    seen: set[str] = set()
    for position, name in enumerate(names, 1):
        if not name:
            raise DataError(f"column {position}: has no name; name it in the header, or leave it out "
                            "(pandas: to_csv(index=False))")
        if name in seen:
            raise DataError(f"column={name!r}: appears twice; expected distinct column names, rename one")
        seen.add(name)


def _check_type(name: str, kind: pa.DataType) -> None:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    t = pa.types
    if not any(test(value) for test in (t.is_integer, t.is_floating, t.is_decimal, t.is_boolean, t.is_date,
                                        t.is_timestamp, t.is_string, t.is_large_string, t.is_string_view, t.is_null)):
        raise DataError(f"column={name!r}: type {kind} is not supported; expected numbers, text, booleans or dates: "
                        "unnest or drop it")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]


def _from_arrow(name: str, column: pa.ChunkedArray, dtype: str | None) -> Cells:
    _check_type(name, column.type)
    dtype = dtype or str(column.type)
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # what combine_chunks leaves of a column without chunks
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    if pa.types.is_dictionary(array.type):
        if pa.types.is_string_view(array.type.value_type):  # which Arrow cannot decode
            array = array.cast(pa.dictionary(array.type.index_type, pa.large_string()))
        array = array.dictionary_decode()
    missing = array.is_null().to_numpy(zero_copy_only=False)
    values, t = array.type, pa.types
    if t.is_null(values):
        return Cells(np.full(len(array), "", dtype=object), np.ones(len(array), dtype=bool), dtype)
    if t.is_string(values) or t.is_large_string(values) or t.is_string_view(values):
        text = array.cast(pa.large_string())
        try:
            text.validate(full=True)
        except pa.ArrowException as error:
            raise DataError(f"column={name!r}: holds text that is not UTF-8; write it again as UTF-8") from error
        text = pc.utf8_trim_whitespace(text) if dtype == CSV else text
        missing = missing | (pc.equal(text, "").fill_null(True).to_numpy(zero_copy_only=False) & (dtype == CSV))
        return Cells(text.fill_null("").to_numpy(zero_copy_only=False), missing, dtype)
    if t.is_boolean(values):
        return Cells(array.fill_null(False).to_numpy(zero_copy_only=False), missing, dtype)
    if t.is_floating(values) or t.is_decimal(values):
        numbers = array.cast(pa.float64()).to_numpy(zero_copy_only=False)
        missing = missing | np.isnan(numbers)
        return Cells(np.where(missing, 0.0, numbers), missing, dtype)
    return Cells(_ticks(name, array), missing, dtype)


def _ticks(name: str, array: pa.Array) -> np.ndarray:
    """Integers, dates and timestamps as int64."""
    t = pa.types
    if t.is_date64(array.type):
        return np.asarray(array.cast(pa.int64()).fill_null(0)) // DAY_MS
    if t.is_date32(array.type):
        array = array.cast(pa.int32())
    try:
        return np.asarray(array.cast(pa.int64()).fill_null(0))
    except pa.ArrowInvalid as error:
        raise DataError(f"column={name!r}: {_first_line(error)}; expected integers below 2**63") from error


# ---- writing ----------------------------------------------------------------------------------------------------


def to_arrow(columns: Mapping[str, Cells] | Table) -> pa.Table:
    """The columns as an Arrow table with the types their ``dtype`` names."""
    if isinstance(columns, Table):
        columns = dict(zip(columns.names, columns.cells, strict=True))
    return pa.table({name: _to_arrow(*cells) for name, cells in columns.items()})


def to_pandas(columns: Mapping[str, Cells] | Table) -> Any:
    """The columns as a pandas DataFrame."""
    return to_arrow(columns).to_pandas()


def write_parquet(columns: Mapping[str, Cells] | Table, path: str | os.PathLike[str]) -> None:
    """Write one Parquet file; a file that appears under ``path`` is whole."""
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    try:
        pq.write_table(to_arrow(columns), partial, compression="zstd")
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def appending(path: str | os.PathLike[str], format: str) -> Iterator[Append]:
    """A function that appends columns to a Parquet (``parquet``) or CSV (``csv``) file; the file appears under ``path``
    when all of it is written, or not at all."""
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    opened: list[Any] = []

    def append(columns: Mapping[str, Cells] | Table) -> None:
        table = to_arrow(columns)
        if not opened:
            opened.append(pq.ParquetWriter(partial, table.schema, compression="zstd") if format == "parquet"
                          else pacsv.CSVWriter(partial, table.schema,
                                               write_options=pacsv.WriteOptions(quoting_style="needed")))
        opened[0].write_table(table.cast(opened[0].schema) if format == "parquet" else table)

    try:
        yield append
        for writer in opened:
            writer.close()
        if opened:
            os.replace(partial, target)
    except OSError as error:
        raise DataError(f"to={str(target)!r}: cannot be written ({error.strerror or error}); "
                        "choose another place") from error
    finally:
        partial.unlink(missing_ok=True)


def arrow_type(dtype: str) -> pa.DataType:
    """The Arrow type that prints as ``dtype``.

    >>> str(arrow_type("dictionary<values=string, indices=int8, ordered=0>"))
    'dictionary<values=string, indices=int8, ordered=0>'
    >>> str(arrow_type("timestamp[us, tz=UTC]"))
    'timestamp[us, tz=UTC]'
    """
    if found := re.fullmatch(r"dictionary<values=(.+), indices=(\w+), ordered=([01])>", dtype):
        return pa.dictionary(arrow_type(found[2]), arrow_type(found[1]), ordered=found[3] == "1")
    if found := re.fullmatch(r"timestamp\[(s|ms|us|ns)(?:, tz=(.+))?\]", dtype):
        return pa.timestamp(found[1], tz=found[2])
    if found := re.fullmatch(r"decimal(32|64|128|256)\((\d+), (-?\d+)\)", dtype):
        return getattr(pa, f"decimal{found[1]}")(int(found[2]), int(found[3]))
    try:
        return pa.type_for_alias(dtype)
    except ValueError:
        raise DataError(f"dtype={dtype!r}: no such column type") from None


_NATURAL = {"i": pa.int64(), "f": pa.float64(), "b": pa.bool_(), "O": pa.string(), "U": pa.string()}


def _to_arrow(values: np.ndarray, missing: np.ndarray, dtype: str) -> pa.Array:
    kind = _NATURAL[values.dtype.kind] if dtype == CSV else arrow_type(dtype)
    if pa.types.is_dictionary(kind):
        return _to_dictionary(values, missing, kind)
    if pa.types.is_null(kind):
        return pa.nulls(len(values))
    if pa.types.is_date64(kind):
        return pa.array(values * DAY_MS, pa.int64(), mask=missing).cast(kind)
    if pa.types.is_date32(kind):
        return pa.array(values, pa.int64(), mask=missing).cast(pa.int32()).cast(kind)
    if pa.types.is_decimal(kind):
        return pa.array(np.round(values, kind.scale), pa.float64(), mask=missing).cast(kind)
    return pa.array(values, mask=missing).cast(kind)


def _to_dictionary(values: np.ndarray, missing: np.ndarray, kind: pa.DictionaryType) -> pa.Array:
    plain = _to_arrow(values, missing, str(kind.value_type)).dictionary_encode()
    try:
        index = plain.indices.cast(kind.index_type)
    except pa.ArrowInvalid:  # one code more than the original held: the next wider index
        index = plain.indices
    return pa.DictionaryArray.from_arrays(index, plain.dictionary, ordered=kind.ordered)
