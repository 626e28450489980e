"""Tables in memory: Arrow tables, data frames, arrays and mappings, as an Arrow table.

Types that somebody chose are the table's: Arrow's, polars', numpy's, pandas' nullable and categorical ones. A type that
Python or pandas *found* by looking at the cells is not: one cell more (a fraction, a hole, a word) would be another
type, and so another plan. Such columns are lists, arrays of objects, and pandas columns of int64, float64, bool, object
and str. Their cells are text, each spelled by itself, as those of a text file are (dtype ``csv``): what kind they are
is declared, or measured with noise.

>>> from dpvae.data.lake.arrow import dtype_of
>>> table = opened({"n": [1, 2.0, None], "m": np.array([1, 2, 3])})
>>> [(field.name, dtype_of(field)) for field in table.schema], table["n"].to_pylist()
([('n', 'csv'), ('m', 'int64')], ['1', '2', None])
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dpvae.data.lake.arrow import CSV, Table, first_line, marked, to_arrow
from dpvae.errors import DataError

FOUND = ("int64", "float64", "bool", "object", "str")  # pandas' types that may follow from the cells
WHOLE = 2.0**63  # from here on no number is written as a whole one


@dataclass(frozen=True)
class Held:
    """A table in memory."""

    table: pa.Table
    dtype = None

    def schema(self) -> pa.Schema:
        return self.table.schema

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        yield from self.table.to_batches()


def opened(source: Any) -> pa.Table:
    """What a frame holds, as an Arrow table. Raises :class:`DataError` where it is no table."""
    try:
        return _foreign(source)
    except (pa.ArrowException, ValueError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"table={type(source).__name__}: cannot be read ({first_line(error)}); expected columns "
                        "of one length, with distinct names") from error


def as_given(value: Any) -> pa.Array:
    """One cell that a person typed: its type is no secret."""
    return pa.array([value], from_pandas=True)


def _foreign(source: Any) -> pa.Table:
    if isinstance(source, Table):
        return marked(to_arrow(source), [cells.dtype for cells in source.cells])
    if isinstance(source, pa.Table):
        return source
    if isinstance(source, pa.RecordBatch):
        return pa.Table.from_batches([source])
    if type(source).__module__.split(".")[0] == "pandas":
        return _joined([str(name) for name in source.columns],
                       [source.iloc[:, j] for j in range(len(source.columns))])
    if isinstance(source, np.ndarray):
        if source.ndim != 2:
            raise DataError(f"table=array of shape {source.shape}: expected two dimensions (rows, columns)")
        return _joined([f"x{j}" for j in range(source.shape[1])], list(source.T))
    if isinstance(source, Mapping):
        return _joined([str(name) for name in source], list(source.values()))
    if hasattr(source, "__arrow_c_stream__"):
        return pa.table(source)
    raise DataError(f"table={type(source).__name__}: expected a path ending in .csv or .parquet, a DataFrame, "
                    "or an Arrow table")


def _joined(names: list[str], columns: list[Any]) -> pa.Table:
    if not names:
        raise DataError("columns=0: the table has no columns; expected at least one")
    arrays = [_column(name, values) for name, values in zip(names, columns, strict=True)]
    return marked(pa.table([array for array, _ in arrays], names), [dtype for _, dtype in arrays])


def _column(name: str, values: Any) -> tuple[Any, str | None]:
    """A column, and ``csv`` where its type was not chosen."""
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return values, None
    if type(values).__module__.split(".")[0] == "polars":
        return values.to_arrow(), None
    if type(values).__module__.split(".")[0] == "pandas":
        if str(values.dtype) not in FOUND:
            return _chosen(pa.array(values, from_pandas=True)), None
        values = values.to_numpy()
        return (_numbers(name, values) if values.dtype != object else _texts(name, values)), CSV
    if isinstance(values, np.ndarray) and values.dtype != object:
        return pa.array(values, from_pandas=True), None
    return _texts(name, values), CSV


def _chosen(array: Any) -> Any:
    """An array with a type that does not tell how many categories there are."""
    if pa.types.is_dictionary(array.type):
        return array.cast(pa.dictionary(pa.int32(), array.type.value_type, array.type.ordered))
    return array


def _numbers(name: str, values: np.ndarray) -> Any:
    """Whole numbers, numbers and booleans, spelled as :func:`_word` spells each of them; much faster."""
    if values.dtype == bool:
        return pc.if_else(pa.array(values), "True", "False")
    if values.dtype.kind != "f":
        return pa.array(values).cast(pa.string())
    if np.isinf(values).any():
        raise _infinite(name, int(np.flatnonzero(np.isinf(values))[0]) + 1)
    missing = np.isnan(values)
    whole = ~missing & (values == np.rint(values)) & (np.abs(values) < WHOLE)
    return pc.if_else(pa.array(whole), pa.array(np.where(whole, values, 0).astype(np.int64)).cast(pa.string()),
                      pa.array(values, mask=missing).cast(pa.string()))


def _infinite(name: str, row: int) -> DataError:
    return DataError(f"column={name!r}: inf in row {row}; expected finite numbers, or missing cells")


def _texts(name: str, values: Any) -> Any:
    """Cells of any types as text; ``None`` and what is not equal to itself (NaN, NaT) are missing."""
    try:
        return pa.array(values, pa.string(), from_pandas=True)  # nothing but text: the same, at once
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return pa.array([_word(name, row, value) for row, value in enumerate(values, 1)], pa.string())


def _word(name: str, row: int, value: Any) -> str | None:
    """One cell, from itself alone: a number that is whole is one, whatever its type."""
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or type(value).__name__ in ("NAType", "NaTType") or value != value:
        return None
    if isinstance(value, (str, int)):  # True and False are whole numbers to Python
        return str(value)
    if isinstance(value, float) and math.isinf(value):
        raise _infinite(name, row)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < WHOLE else str(
            pa.array([value]).cast(pa.string())[0])
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, dt.datetime):
        return value.isoformat(sep=" ")
    if isinstance(value, (dt.date, dt.time)):
        return value.isoformat()
    raise DataError(f"column={name!r}: holds {type(value).__name__}; expected numbers, text, booleans, dates or times "
                    "of day: unnest it, or leave it out")
