"""DuckDB tables: ``duckdb:FILE?table=NAME``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from dpvae.data import place
from dpvae.data.lake.arrow import first_line
from dpvae.data.lake.push import quoted, sql
from dpvae.data.where import Where
from dpvae.errors import ConfigError, DataError

NOTES = "dpvae_release"  # (table_name, name, content): what came with a released table

try:
    import duckdb
except ImportError as error:
    raise ConfigError("duckdb: duckdb is not installed; pip install 'dpvae[duckdb]'") from error


def opened(text: str) -> Duck:
    """The table; a file that has one table needs no ``?table=``."""
    named = place.split(text)
    if not Path(named.name).is_file():
        raise DataError(f"{text}: no such file")
    with _connected(text, named.name) as connection:
        names = [name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()]
        names += [name for (name,) in connection.execute(
            "SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()]
    names = [name for name in names if name != NOTES]
    if named.table is None and len(names) == 1:
        return Duck(text, named.name, names[0])
    if named.table not in names:
        raise DataError(f"{text}: expected ?table= with one of {', '.join(sorted(names)[:5]) or 'none'}")
    return Duck(text, named.name, str(named.table))


@contextmanager
def _connected(text: str, file: str) -> Iterator[Any]:
    try:
        with duckdb.connect(file, read_only=True) as connection:
            yield connection
    except duckdb.Error as problem:
        raise DataError(f"{text}: {first_line(problem)}; check the file") from problem


@dataclass(frozen=True)
class Duck:
    """One table or view."""

    text: str
    file: str
    table: str
    columns: tuple[str, ...] | None = None
    condition: str = "true"
    dtype = None

    def narrowed(self, columns: Sequence[str], where: Where | None) -> Duck:
        """See :class:`dpvae.data.lake.files.Narrowed`."""
        return replace(self, columns=tuple(columns), condition=sql(where, self.schema()) if where else "true")

    def schema(self) -> pa.Schema:
        with _connected(self.text, self.file) as connection:
            found: pa.Schema = self._select(connection, 1, " LIMIT 0").schema
        return found

    def row_count(self) -> int:
        """Without reading a row, where it is a table; private where that is."""
        with _connected(self.text, self.file) as connection:
            return int(connection.sql(f"SELECT count(*) FROM {quoted(self.table)}").fetchall()[0][0])

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        with _connected(self.text, self.file) as connection:
            yield from self._select(connection, rows)

    def _select(self, connection: Any, rows: int, limit: str = "") -> Any:
        columns = "*" if self.columns is None else ", ".join(map(quoted, self.columns))
        return connection.sql(f"SELECT {columns} FROM {quoted(self.table)} WHERE {self.condition}{limit}"
                              ).to_arrow_reader(rows)
