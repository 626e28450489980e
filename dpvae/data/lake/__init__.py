"""The one door to files and foreign tables: everything that knows pyarrow, pyiceberg, deltalake or duckdb lives here.

A table is named by one form of text, and read as Arrow record batches in bounded memory:

    people.csv | people.parquet | people.jsonl | folder/
    iceberg:[catalog.]namespace.table[@snapshot|branch|tag]
    delta:PATH[@version]
    duckdb:FILE?table=NAME

or it is anything in Python that holds columns (:mod:`dpvae.data.lake.held`). See :mod:`dpvae.data.place` for the
form, and one module for each kind of table.

>>> table = read({"age": [39, None], "sex": ["Male", "Female"]})
>>> table.names, table.rows, table.column("age").missing.tolist()
(('age', 'sex'), 2, [False, True])
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dpvae.checks import did_you_mean
from dpvae.data import place
from dpvae.data.lake import files, held, text_files
from dpvae.data.lake.arrow import (
    CSV,
    Cells,
    Rows,
    Table,
    arrow_type,
    check_names,
    check_type,
    distinct,
    dtype_of,
    first_line,
    from_arrow,
    to_arrow,
    to_batch,
    to_pandas,
)
from dpvae.data.lake.files import PARQUET_ENDINGS, Source, Versioned, stored
from dpvae.data.lake.held import as_given
from dpvae.data.lake.select import Selected, selected
from dpvae.data.lake.write import Append, appending, write_parquet
from dpvae.errors import DataError

READERS = {"iceberg": "iceberg", "delta": "delta", "duckdb": "duck"}  # scheme -> module


def source(table: Any) -> Source:
    """``table`` as a source of record batches: a place in the form above, a :class:`Table`, or any frame."""
    if isinstance(table, (Versioned, Selected)):
        return table
    if isinstance(table, (str, os.PathLike)):
        scheme = place.scheme_of(str(table))
        if scheme is None:
            return files.opened(table)
        if scheme not in READERS:
            raise DataError(f"data={str(table)!r}: can be written to, not read from; expected a file, a folder, "
                            f"{', '.join(f'{name}:' for name in READERS)}")
        found: Source = importlib.import_module(f"dpvae.data.lake.{READERS[scheme]}").opened(str(table))
        return found
    return held.Held(held.opened(table))


def pinned(table: Any) -> Any:
    """A lake table opened at the very version that it has now; anything else as it is. What is read of it twice is then
    the same twice."""
    return versioned(table) if isinstance(table, str) and place.scheme_of(table) in place.LAKES else table


def origin(table: Any) -> dict[str, Any] | None:
    """Of a lake table: its name, its version, and its columns; what is written down about where rows came from."""
    if isinstance(table, Selected):
        return origin(table.table)
    if not isinstance(table, Versioned):
        return origin(versioned(table)) if isinstance(table, str) and place.scheme_of(table) in place.LAKES else None
    named = place.split(table.text)
    return {"table": f"{named.scheme}:{named.name}", "snapshot": str(table.snapshot),
            "columns": [list(column) for column in header(table)]}


def row_count(table: Any) -> int | None:
    """How many rows a table says it has, where that costs nothing to ask. It is private."""
    count: int | None = getattr(source(table), "row_count", lambda: None)()
    return count


def text_bytes(table: Any) -> int:
    """How long the text of a file is whose rows nobody has counted. It is private."""
    found = source(table)
    held = found.table if isinstance(found, Selected) else found
    size: int = getattr(held, "text_bytes", lambda: 0)()
    return size


def read(source: Any, *, least: int = 2) -> Table:
    """A whole table in memory, of ``least`` rows at least: one alone cannot be trained on."""
    if isinstance(source, Table):
        table = source
    else:
        arrow, dtype = _whole(source)
        check_names(arrow.column_names)
        table = Table(tuple(arrow.column_names),
                      tuple(map(from_arrow, arrow.schema, arrow.columns, repeat(dtype))), origin(source))
    if table.rows < least:
        found = "no row" if table.rows == 0 else "one row"
        raise DataError(f"rows={table.rows}: the table has {found}; expected at least {least}")
    return table


def _whole(table: Any) -> tuple[pa.Table, str | None]:
    found = source(table)
    if isinstance(found, held.Held):
        return found.table, None
    if isinstance(found, text_files.Csv):  # at once, so that a broken line can be named
        return text_files.read_csv(found.path), CSV
    schema = found.schema()
    check_names(schema.names)
    batches = [batch.cast(schema) if batch.schema != schema else batch for batch in found.batches(2**20)]
    return pa.Table.from_batches(batches, schema), found.dtype


def versioned(table: Any) -> Versioned:
    """A lake table as its data files."""
    if isinstance(table, Versioned):
        return table
    if place.scheme_of(table) not in place.LAKES:
        raise DataError(f"data={table}: expected a lake table, {', '.join(f'{name}:' for name in place.LAKES)}")
    found: Any = source(table)
    return found  # type: ignore[no-any-return]


def parts_at(table: str, version: str) -> dict[str, str] | None:
    """The data files of an earlier version, each with the deletions in it; ``None`` where that version is forgotten."""
    named = place.split(table)
    try:
        return versioned(f"{named.scheme}:{named.name}@{version}").parts()
    except DataError:
        return None


def empty_batch(schema: pa.Schema) -> pa.RecordBatch:
    """No rows of these columns."""
    return pa.RecordBatch.from_pylist([], schema)


def beside(batch: pa.RecordBatch, kept: Sequence[str], columns: Mapping[str, Cells]) -> pa.RecordBatch:
    """Columns of a batch, and new ones after them."""
    for name in kept:
        if name not in batch.schema.names:
            raise DataError(f"column={name!r}: not in the table{did_you_mean(name, batch.schema.names)}")
    new = to_batch(columns)
    return pa.RecordBatch.from_arrays([*(batch.column(name) for name in kept), *new.columns], [*kept, *columns])


def batches(table: Any, rows: int) -> Iterator[Table]:
    """The table in parts of at most ``rows`` rows, in order; only a frame is held in memory as a whole."""
    found = source(table)
    for batch in found.batches(rows):
        for start in range(0, batch.num_rows, rows):
            yield to_table(batch.slice(start, rows), found.dtype)


def to_table(batch: pa.RecordBatch, dtype: str | None = None) -> Table:
    """One record batch as a :class:`Table`."""
    part = pa.Table.from_batches([batch])
    check_names(part.column_names)
    return Table(tuple(part.column_names), tuple(map(from_arrow, part.schema, part.columns, repeat(dtype))))


def header(table: Any) -> tuple[tuple[str, str], ...]:
    """Names and type names, and nothing else: what may be known before any budget is set."""
    if isinstance(table, Table):
        return table.header
    found = source(table)
    schema = found.schema()
    check_names(schema.names)
    for field in schema:
        check_type(field.name, field.type)
    return tuple((field.name, dtype_of(field, found.dtype)) for field in schema)


__all__ = [
    "CSV", "PARQUET_ENDINGS", "Append", "Cells", "Rows", "Selected", "Source", "Table", "Versioned", "appending",
    "arrow_type", "as_given", "batches", "beside", "distinct", "empty_batch", "first_line", "header", "origin",
    "parts_at", "pinned", "place", "pq", "read", "row_count", "selected", "source", "stored", "text_bytes", "to_arrow",
    "to_batch", "to_pandas", "to_table", "versioned", "write_parquet",
]
