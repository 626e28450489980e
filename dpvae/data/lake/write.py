"""Tables into files: whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from dpvae.data.lake.arrow import Cells, Table, to_arrow
from dpvae.errors import DataError
from dpvae.files import whole

Append = Callable[["Mapping[str, Cells] | Table | pa.RecordBatch"], None]


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
def appending(path: str | os.PathLike[str], format: str, *, marks: Mapping[str, str] | None = None,
              stored: Mapping[str, int] | None = None) -> Iterator[Append]:
    """A function that appends columns to a Parquet (``parquet``) or CSV (``csv``) file; the file appears under ``path``
    when all of it is written, or not at all. ``marks`` go into a Parquet file's footer; ``stored`` makes it a file of
    a lake table that knows its columns by these numbers (:func:`storable`)."""
    opened: list[Any] = []

    def append(columns: Mapping[str, Cells] | Table | pa.RecordBatch) -> None:
        table = pa.Table.from_batches([columns]) if isinstance(columns, pa.RecordBatch) else to_arrow(columns)
        if not opened and format == "parquet":
            schema = table.schema if stored is None else storable(table.schema, stored)
            opened.append(pq.ParquetWriter(part, schema, compression="zstd"))
            opened[0].add_key_value_metadata(dict(marks or {}))
        elif not opened:
            opened.append(pacsv.CSVWriter(part, table.schema,
                                          write_options=pacsv.WriteOptions(quoting_style="needed")))
        opened[0].write_table(table.cast(opened[0].schema) if format == "parquet" else table)

    with whole(Path(path)) as part:
        yield append
        for writer in opened:
            writer.close()


def storable(schema: pa.Schema, ids: Mapping[str, int] | None = None) -> pa.Schema:
    """The nearest types that Iceberg and Delta have; :class:`DataError` where there is none.

    ``ids`` are Iceberg's numbers of the columns: in a file that has them, a column that is dropped and made anew under
    its old name is another column.

    >>> kinds = {"a": pa.int8(), "b": pa.dictionary(pa.int8(), pa.string()), "c": pa.timestamp("ns", tz="UTC")}
    >>> [str(kind) for kind in storable(pa.schema(kinds)).types]
    ['int32', 'string', 'timestamp[us, tz=UTC]']
    """
    said = {name: {"PARQUET:field_id": str(number)} for name, number in (ids or {}).items()}
    return pa.schema([pa.field(field.name, _storable(field.name, field.type), metadata=said.get(field.name))
                      for field in schema])


def _storable(name: str, kind: pa.DataType) -> pa.DataType:
    t = pa.types
    if t.is_dictionary(kind):
        return _storable(name, kind.value_type)
    if t.is_int8(kind) or t.is_int16(kind) or t.is_uint8(kind) or t.is_uint16(kind):
        return pa.int32()
    if t.is_uint32(kind) or t.is_uint64(kind):
        return pa.int64()
    if t.is_float16(kind):
        return pa.float32()
    if t.is_large_string(kind) or t.is_string_view(kind) or t.is_null(kind):
        return pa.string()
    if t.is_date64(kind):
        return pa.date32()
    if t.is_timestamp(kind):
        return pa.timestamp("us", "UTC" if kind.tz else None)
    if t.is_time(kind):
        return pa.time64("us")
    if t.is_decimal(kind) and kind.precision > 38:
        raise DataError(f"column={name!r}: {kind} has more digits than a lake table keeps (38); narrow it")
    return pa.decimal128(kind.precision, kind.scale) if t.is_decimal(kind) else kind
