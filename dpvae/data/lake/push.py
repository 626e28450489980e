"""What an engine is told of a condition, so that it can leave out files, row groups and rows before it reads them.

An engine may keep more rows than the condition means (floating-point corners, types that it compares otherwise), never
fewer: :mod:`dpvae.data.lake.select` looks at every row that comes back. So what cannot be said exactly is left out.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dpvae.data.dtypes import TICKS
from dpvae.data.where import Joined, Where


def expression(where: Where, schema: pa.Schema) -> Any:
    """A bound condition for Arrow's own readers, or a wider one; ``None`` where nothing can be said."""
    if isinstance(where, Joined):
        parts = [expression(part, schema) for part in where.parts]
        if where.word == "or" and any(part is None for part in parts):
            return None
        return _joined(where.word, [part for part in parts if part is not None])
    kind, field = schema.field(where.column).type, pc.field(where.column)
    if where.op.startswith("is"):
        return field.is_null(nan_is_null=True) if where.op == "is null" else field.is_valid()
    if pa.types.is_dictionary(kind) or pa.types.is_decimal(kind):
        return None
    values = [pa.scalar(moment(value, kind), kind) for value in where.values]
    if where.op.endswith("in"):
        equal = [field == value for value in values]
        return _joined("or", equal) if where.op == "in" else None
    return {"=": field.__eq__, "!=": field.__ne__, "<": field.__lt__, "<=": field.__le__, ">": field.__gt__,
            ">=": field.__ge__}[where.op](values[0])


def moment(value: Any, kind: pa.DataType) -> Any:
    """A cell's whole number as the date or the time that it stands for; other values as they are."""
    if pa.types.is_date(kind):
        return dt.date(1970, 1, 1) + dt.timedelta(days=value)
    if pa.types.is_time(kind):
        micros = value * 10**6 // TICKS[kind.unit]
        return (dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=micros)).time()
    if pa.types.is_timestamp(kind):
        micros = value * 10**6 // TICKS[kind.unit]
        return dt.datetime(1970, 1, 1, tzinfo=dt.UTC if kind.tz else None) + dt.timedelta(microseconds=micros)
    return value


def _joined(word: str, parts: list[Any]) -> Any:
    found = parts[0] if parts else None
    for part in parts[1:]:
        found = found & part if word == "and" else found | part
    return found


def row_groups(path: Any, where: Where, schema: pa.Schema) -> list[int] | None:
    """The row groups of a Parquet file in which the condition may hold, by their statistics; ``None``: all."""
    said = expression(where, schema)
    if said is None:
        return None
    import pyarrow.dataset as pads  # and pandas with it, a tenth of what a worker's imports take
    from pyarrow.fs import LocalFileSystem

    fragment = pads.ParquetFileFormat().make_fragment(str(path), LocalFileSystem())
    return [group.id for group in fragment.subset(said, schema=schema).row_groups]


def sql(where: Where, schema: pa.Schema) -> str:
    """A bound condition for DuckDB, or a wider one.

    >>> from dpvae.data.where import Check
    >>> print(sql(Check("day", ">=", (18262,)), pa.schema([("day", pa.date32())])))
    "day" >= CAST('2020-01-01' AS DATE)
    """
    if isinstance(where, Joined):
        return f" {where.word} ".join(f"({sql(part, schema)})" for part in where.parts)
    kind, name = schema.field(where.column).type, quoted(where.column)
    if where.op.startswith("is"):  # not a number is a missing cell, which DuckDB takes for the largest number
        return f"{name} IS NULL OR lower(CAST({name} AS VARCHAR)) = 'nan'" if where.op == "is null" else (
            f"{name} IS NOT NULL")
    if pa.types.is_dictionary(kind) or pa.types.is_decimal(kind):
        return "true"
    said = ", ".join(_literal(moment(value, kind), kind) for value in where.values)
    return f"{name} {where.op} " + (f"({said})" if where.op.endswith("in") else said)


def quoted(name: str) -> str:
    """A name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def _literal(value: Any, kind: pa.DataType) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dt.time):
        return f"CAST('{value}' AS TIME)"
    if isinstance(value, (dt.date, dt.datetime)):
        zone = " WITH TIME ZONE" if isinstance(value, dt.datetime) and value.tzinfo else ""
        return f"CAST('{value}' AS {'TIMESTAMP' + zone if isinstance(value, dt.datetime) else 'DATE'})"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return f"CAST({value!r} AS {'FLOAT' if pa.types.is_float32(kind) else 'DOUBLE'})" if isinstance(value, float) else (
        str(value))
