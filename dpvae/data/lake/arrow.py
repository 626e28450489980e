"""Arrow and numpy: what a table is inside dpvae, and how it becomes an Arrow table again.

A :class:`Table` is named columns of plain numpy arrays, each with a mask of missing cells and the *name* of the type
it came with. A released table is the same three things per column, so it leaves through :func:`to_arrow` with the very
types the original had.

>>> table = Table(("n",), (Cells(np.array([1, 2]), np.array([False, True]), "int16"),))
>>> to_arrow(table)["n"].to_pylist(), str(to_arrow(table)["n"].type)
([1, None], 'int16')
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dpvae.checks import did_you_mean
from dpvae.errors import DataError

CSV = "csv"
MARK = b"dpvae.dtype"  # of a field whose cells are those of a text file
DAY_MS = 86_400_000


class Cells(NamedTuple):
    """One column: ``values`` and ``missing`` are arrays of shape (rows,); a missing cell's value means nothing.

    Numbers are int64 or float64, text is an object array of ``str``, datetimes and times of day are int64 ticks in the
    unit of ``dtype`` (days for both date types), booleans are bool.
    """

    values: np.ndarray
    missing: np.ndarray
    dtype: str


class Rows(Protocol):
    """A table in memory or on disk, a piece at a time."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def header(self) -> tuple[tuple[str, str], ...]: ...

    @property
    def rows(self) -> int: ...

    def pieces(self, j: int) -> Iterator[Cells]:
        """Column ``j``, a piece at a time."""


@dataclass(frozen=True)
class Table:
    """Columns of one length, in the order of the source."""

    names: tuple[str, ...]
    cells: tuple[Cells, ...]
    origin: Mapping[str, Any] | None = None  # of a lake table: its name, its snapshot, its columns

    @property
    def rows(self) -> int:
        """How many rows; private where the table is."""
        return len(self.cells[0].values)

    @property
    def header(self) -> tuple[tuple[str, str], ...]:
        """(name, type) of each column."""
        return tuple((name, cells.dtype) for name, cells in zip(self.names, self.cells, strict=True))

    def parts(self) -> Iterator[Table]:
        """The table, a piece at a time: it is one piece. A larger one is :class:`dpvae.data.stored.Stored`."""
        yield self

    def pieces(self, j: int) -> Iterator[Cells]:
        """Column ``j``, a piece at a time."""
        yield self.cells[j]

    def column(self, name: str) -> Cells:
        """One column by name; :class:`DataError` with the nearest name where there is none."""
        if name not in self.names:
            raise DataError(f"column={name!r}: not in the table{did_you_mean(name, self.names)}")
        return self.cells[self.names.index(name)]

    def take(self, index: np.ndarray | slice) -> Table:
        """The rows at ``index`` (positions, a boolean mask, or a slice, which copies nothing)."""
        return Table(self.names, tuple(Cells(c.values[index], c.missing[index], c.dtype) for c in self.cells))


def check_names(names: list[str]) -> None:
    """Columns that there are, each with a name of its own in one line."""
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


def check_type(name: str, kind: pa.DataType) -> None:
    """Refuse nested and binary columns, with the remedy."""
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    t = pa.types
    if not any(test(value) for test in (t.is_integer, t.is_floating, t.is_decimal, t.is_boolean, t.is_date, t.is_time,
                                        t.is_timestamp, t.is_string, t.is_large_string, t.is_string_view, t.is_null)):
        raise DataError(f"column={name!r}: type {kind} is not supported; expected numbers, text, booleans, dates or "
                        "times of day: unnest it, or leave it out with data.columns=")


def first_line(error: BaseException) -> str:
    """Of what a library says, as much as fits into an error."""
    return str(error).strip().split("\n")[0][:200]


def dtype_of(field: pa.Field, whole: str | None = None) -> str:
    """The type name that a column goes by: ``whole``, that of its table, or the one it is marked with, or its own."""
    return whole or (field.metadata or {}).get(MARK, b"").decode() or str(field.type)


def marked(table: pa.Table, dtypes: Sequence[str | None]) -> pa.Table:
    """The table, its columns to be known as cells of text files where ``dtypes`` say so."""
    return table.cast(pa.schema([field.with_metadata({MARK: CSV}) if dtype == CSV else field
                                 for field, dtype in zip(table.schema, dtypes, strict=True)]))


def from_arrow(field: pa.Field, column: pa.ChunkedArray, dtype: str | None) -> Cells:
    """One Arrow column as plain arrays; ``dtype`` is the name it keeps."""
    name, dtype = field.name, dtype_of(field, dtype)
    check_type(name, column.type)
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
        return _text(name, array, missing, dtype)
    if t.is_boolean(values):
        return Cells(array.fill_null(False).to_numpy(zero_copy_only=False), missing, dtype)
    if t.is_floating(values) or t.is_decimal(values):
        numbers = array.cast(pa.float64()).to_numpy(zero_copy_only=False)
        missing = missing | np.isnan(numbers)
        return Cells(np.where(missing, 0.0, numbers), missing, dtype)
    return Cells(_ticks(name, array), missing, dtype)


def _text(name: str, array: pa.Array, missing: np.ndarray, dtype: str) -> Cells:
    """Text as ``str``; equal cells share one, which is most of the time and of the memory of reading them."""
    coded = array.cast(pa.large_string()).dictionary_encode()
    texts, index = coded.dictionary, coded.indices.fill_null(0).to_numpy(zero_copy_only=False)
    try:
        texts.validate(full=True)
    except pa.ArrowException as error:
        raise DataError(f"column={name!r}: holds text that is not UTF-8; write it again as UTF-8") from error
    if not len(texts):
        return Cells(np.full(len(array), "", dtype=object), missing, dtype)
    texts = pc.utf8_trim_whitespace(texts) if dtype == CSV else texts
    values = texts.to_numpy(zero_copy_only=False)[index]
    values[missing] = ""
    empty = pc.equal(texts, "").to_numpy(zero_copy_only=False)[index]
    return Cells(values, missing | (empty & (dtype == CSV)), dtype)


def distinct(cells: Cells) -> tuple[Cells, np.ndarray]:
    """The different cells of a column, and which of them each row holds, (rows,): what follows from one cell alone need
    not be worked out for every row.

    >>> few, index = distinct(Cells(np.array([7, 5, 7, 0]), np.array([False, False, False, True]), "int64"))
    >>> few.values[:2].tolist(), few.missing.tolist(), index.tolist()
    ([7, 5], [False, False, True], [0, 1, 0, 2])
    """
    kind = pa.large_string() if cells.values.dtype == object else None
    coded = pa.array(cells.values, kind, mask=cells.missing).dictionary_encode("encode")
    missing = coded.dictionary.is_null().to_numpy(zero_copy_only=False)
    values = coded.dictionary.fill_null("" if kind is not None else cells.values.dtype.type(0).item())
    return (Cells(values.to_numpy(zero_copy_only=False), missing, cells.dtype),
            coded.indices.to_numpy(zero_copy_only=False))


def _ticks(name: str, array: pa.Array) -> np.ndarray:
    """Integers, dates, timestamps and times of day as int64."""
    t = pa.types
    if t.is_date64(array.type):
        return np.asarray(array.cast(pa.int64()).fill_null(0)) // DAY_MS
    if t.is_date32(array.type) or t.is_time32(array.type):
        array = array.cast(pa.int32())
    try:
        return np.asarray(array.cast(pa.int64()).fill_null(0))
    except pa.ArrowInvalid as error:
        raise DataError(f"column={name!r}: {first_line(error)}; expected integers below 2**63") from error


def to_arrow(columns: Mapping[str, Cells] | Table) -> pa.Table:
    """The columns as an Arrow table with the types their ``dtype`` names."""
    if isinstance(columns, Table):
        columns = dict(zip(columns.names, columns.cells, strict=True))
    return pa.table({name: _to_arrow(*cells) for name, cells in columns.items()})


def to_batch(columns: Mapping[str, Cells] | Table) -> pa.RecordBatch:
    """The columns as one record batch."""
    table = to_arrow(columns)
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], table.schema)


def to_pandas(columns: Mapping[str, Cells] | Table) -> Any:
    """The columns as a pandas DataFrame."""
    return to_arrow(columns).to_pandas()


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
    if pa.types.is_date32(kind) or pa.types.is_time32(kind):
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
