"""Synthetic rows as files: Parquet, CSV, or the SQL that makes a test database. Nothing private is involved.

CSV spells what its source spelled; SQL has the types that a column's kind stands for, in whatever text it was kept.
Rows come in blocks, so any number of them fits; a file appears when it is whole. An ``id`` column numbers the rows:
with the same run and seed, row 17 is the same row in a table of a hundred and of a million, so others may refer to it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

import numpy as np

from dpvae.checks import one_of
from dpvae.data import lake
from dpvae.data.cells import spelled, typed
from dpvae.data.lake import Append, Cells
from dpvae.data.lake.sql import type_name
from dpvae.data.schema import Schema
from dpvae.errors import DataError
from dpvae.files import whole

FORMATS = ("parquet", "csv", "sql")
_ENDINGS = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".sql": "sql"}
_AT_ONCE = 200  # rows per INSERT


def format_of(to: str, format: str | None) -> str:
    """The format of a file: what is asked for, or what its ending says."""
    if format is not None:
        one_of(FORMATS, format=format)
        return format
    ending = Path(to).suffix.lower()
    if ending not in _ENDINGS:
        raise DataError(f"to={to!r}: unknown ending {ending!r}; expected {', '.join(_ENDINGS)}, or give format=")
    return _ENDINGS[ending]


def numbered(blocks: Iterable[dict[str, Cells]], name: str | None) -> Iterator[dict[str, Cells]]:
    """Blocks with a first column ``name`` that counts rows from 1; without one, as they are."""
    first = 1
    for block in blocks:
        rows = len(next(iter(block.values())).values)
        if name is not None:
            if name in block:
                raise DataError(f"id={name!r}: the table has a column of that name; choose another")
            block = {name: Cells(np.arange(first, first + rows), np.zeros(rows, dtype=bool), "int64"), **block}
        first += rows
        yield block


def write(blocks: Iterable[dict[str, Cells]], to: str | os.PathLike[str], *, format: str, table: str,
          key: str | None = None, schema: Schema | None = None) -> int:
    """Write all blocks to one file and return the number of rows; ``table`` and its primary ``key`` are for SQL.

    ``schema`` says of the columns in it how their source spells them (CSV), and what their text stands for (SQL).
    """
    rows = 0
    written = {"csv": spelled, "sql": typed}.get(format, lambda column, cells: cells)
    known = {column.name: column for column in schema.columns} if schema is not None else {}
    Path(to).absolute().parent.mkdir(parents=True, exist_ok=True)
    opened = _sql(Path(to), table, key) if format == "sql" else lake.appending(to, format)
    with opened as append:
        for block in blocks:
            append({name: written(known[name], cells) if name in known else cells for name, cells in block.items()})
            rows += len(next(iter(block.values())).values)
    return rows


@contextmanager
def _sql(target: Path, table: str, key: str | None) -> Iterator[Append]:
    """Standard SQL that SQLite and PostgreSQL read: one CREATE TABLE, then INSERTs, in one transaction."""
    with whole(target) as part, part.open("w", encoding="utf-8") as file:
        file.write("BEGIN;\n")
        started: list[bool] = []

        def append(block: Any) -> None:
            if not started:
                file.write(_create(block, table, key))
                started.append(True)
            _insert(file, block, table)

        yield append
        file.write("COMMIT;\n")


def _create(block: dict[str, Cells], table: str, key: str | None) -> str:
    lines = [f"  {_name(field.name)} {type_name(field.type)}{' PRIMARY KEY' if field.name == key else ''}"
             for field in lake.to_arrow(block).schema]
    return f"CREATE TABLE {_name(table)} (\n" + ",\n".join(lines) + "\n);\n"


def _insert(file: IO[str], block: dict[str, Cells], table: str) -> None:
    rows = [tuple(row.values()) for row in lake.to_arrow(block).to_pylist()]
    for start in range(0, len(rows), _AT_ONCE):
        values = ",\n".join("(" + ", ".join(map(_literal, row)) + ")" for row in rows[start:start + _AT_ONCE])
        file.write(f"INSERT INTO {_name(table)} VALUES\n{values};\n")


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Decimal):
        return f"{value:f}"
    return "'" + str(value).replace("'", "''") + "'"
