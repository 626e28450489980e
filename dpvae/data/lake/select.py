"""A part of a table: some of its columns, and the rows where a condition is true.

Each kind of table is told what is wanted, and skips what it can: files and row groups by their statistics, columns that
nobody asked for, rows that a database leaves out (:class:`dpvae.data.lake.files.Narrowed`). What comes back is then
looked at row by row, always by the same rule, so the rows are the same wherever the table lies.

>>> part = selected({"age": [17, 40, None], "sex": ["f", "m", "f"]}, columns="sex", where="age >= 18")
>>> [batch.to_pylist() for batch in part.batches(10)]
[[{'sex': 'm'}]]
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from dpvae.checks import did_you_mean
from dpvae.data.lake.arrow import dtype_of, from_arrow
from dpvae.data.lake.files import Narrowed, Source
from dpvae.data.where import Where, parse
from dpvae.errors import ConfigError, DataError


@dataclass(frozen=True)
class Selected:
    """See the module; ``table`` is the whole one, whose name and version a run remembers, and ``place`` its file."""

    place: str | None
    table: Source
    columns: tuple[str, ...] | None
    where: Where | None

    @cached_property
    def header(self) -> tuple[tuple[str, str], ...]:
        """Of the whole table."""
        return tuple((field.name, dtype_of(field, self.table.dtype)) for field in self.table.schema())

    @property
    def dtype(self) -> str | None:
        return self.table.dtype

    def schema(self) -> pa.Schema:
        whole = self.table.schema()
        return whole if self.columns is None else pa.schema([whole.field(name) for name in self.columns])

    def row_count(self) -> int | None:
        """At most; private where the table is."""
        count: int | None = getattr(self.table, "row_count", lambda: None)()
        return count

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        names, bound = [name for name, _ in self.header], self.where.bound(self.header) if self.where else None
        kept = list(self.columns or names)
        needed = [name for name in names if name in {*kept, *(bound.columns if bound else ())}]
        source = self.table.narrowed(needed, bound) if isinstance(self.table, Narrowed) else self.table
        for batch in source.batches(rows):
            found = batch if bound is None else batch.filter(pa.array(bound.holds(self._cells(batch))))
            if found.num_rows:
                yield found.select(kept)

    def _cells(self, batch: pa.RecordBatch) -> Callable[[str], tuple[np.ndarray, np.ndarray]]:
        return lambda name: from_arrow(batch.schema.field(name), pa.chunked_array([batch.column(name)]), self.dtype)[:2]

    def __str__(self) -> str:
        """What is selected, in one line that is the same for the same selection."""
        return f"{'*' if self.columns is None else ', '.join(map(repr, self.columns))} where {self.where}"


def selected(table: Any, *, columns: str | None, where: str | None) -> Selected:
    """These columns (``a, b``; names with a comma in double quotes) and rows of a table of any kind.

    Raises :class:`DataError` where a column is not in the table, or a value cannot be one of its column.
    """
    from dpvae.data import lake

    found = Selected(str(table) if isinstance(table, str | os.PathLike) else None, lake.source(lake.pinned(table)),
                     names_of(columns), parse(where) if where is not None else None)
    known = [name for name, _ in found.header]
    for name in found.columns or ():
        if name not in known:
            raise DataError(f"data.columns: column={name!r}: not in the table{did_you_mean(name, known)}")
    if found.where is not None:
        found.where.bound(found.header)
    return found


def names_of(columns: str | None) -> tuple[str, ...] | None:
    """The names in a list such as ``age, city`` or ``[age, "net, pay"]``.

    >>> names_of('[age, "net, pay"]')
    ('age', 'net, pay')
    """
    if columns is None:
        return None
    bare = columns.strip()
    bare = bare[1:-1] if bare[:1] == "[" and bare[-1:] == "]" else bare
    names = tuple(name.strip() for name in next(csv.reader([bare], skipinitialspace=True), []))
    if not all(names) or not names or len(set(names)) < len(names):
        raise ConfigError(f"data.columns={columns!r}: expected names of columns with commas between, each once, "
                          "such as age,city")
    return names
