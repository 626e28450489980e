"""Tables into databases: ``duckdb:FILE``, ``sqlite:FILE`` and ``postgresql://``; whole, in one transaction.

Columns get the SQL types that their Arrow types stand for: a ``smallint`` comes back as one, a ``numeric(10, 2)`` too.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from dpvae.data import place
from dpvae.data.lake.arrow import first_line
from dpvae.data.lake.push import quoted
from dpvae.data.lake.write import storable
from dpvae.errors import ConfigError, DataError, DPVAEError

NOTES = "dpvae_release"  # (table_name, name, content): what came with a table


def write(to: str, batches: Iterable[pa.RecordBatch], *, table: str = "rows",
          notes: Mapping[str, str] | None = None) -> int:
    """Create the table of ``to`` (or ``table``) with these rows, and ``notes`` on it; the number of rows.

    Raises :class:`DataError` where the table is there already; the database is then as it was.
    """
    named = place.split(to)
    table = named.table or table
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise DataError(f"to={place.shown(to)}: no rows to write")
    rows = itertools.chain([first], batches)
    try:
        if named.scheme == "duckdb":
            return _duckdb(named.name, table, first.schema, rows, notes or {})
        return _sqlalchemy(named, table, first.schema, rows, notes or {})
    except DPVAEError:
        raise
    except Exception as problem:  # each driver raises classes of its own
        raise DataError(f"to={place.shown(to)}: {type(problem).__name__}: {first_line(problem)}; nothing was "
                        "written") from problem


def _duckdb(file: str, table: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch],
            notes: Mapping[str, str]) -> int:
    from dpvae.data.lake.duck import NOTES, duckdb

    schema = _plain(schema)
    Path(file).absolute().parent.mkdir(parents=True, exist_ok=True)
    with duckdb.connect(file) as connection:
        if connection.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = ?", [table]).fetchall():
            raise DataError(f"to=duckdb:{file}: table {table!r} is there already; name another with ?table=")
        connection.execute("BEGIN")
        reader = pa.RecordBatchReader.from_batches(schema, (_cast(batch, schema) for batch in batches))
        connection.register("incoming", reader)
        connection.execute(f"CREATE TABLE {quoted(table)} AS SELECT * FROM incoming")
        connection.unregister("incoming")
        connection.execute(f"CREATE TABLE IF NOT EXISTS {NOTES} (table_name VARCHAR, name VARCHAR, content VARCHAR)")
        connection.execute(f"DELETE FROM {NOTES} WHERE table_name = ?", [table])
        for name, content in notes.items():
            connection.execute(f"INSERT INTO {NOTES} VALUES (?, ?, ?)", [table, name, content])
        connection.execute("COMMIT")
        found: int = connection.execute(f"SELECT count(*) FROM {quoted(table)}").fetchall()[0][0]
    return found


def _plain(schema: pa.Schema) -> pa.Schema:
    """Without dictionaries, which DuckDB would make enumerations of one batch's values."""
    return pa.schema([(f.name, f.type.value_type if pa.types.is_dictionary(f.type) else
                       pa.string() if pa.types.is_null(f.type) else f.type) for f in schema])


def _cast(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    if batch.schema == schema:
        return batch
    return pa.Table.from_batches([batch]).cast(schema).combine_chunks().to_batches()[0]


def _sqlalchemy(named: place.Place, table: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch],
                notes: Mapping[str, str]) -> int:
    url = named.name if named.scheme == "postgresql" else f"sqlite:///{named.name}"
    try:
        engine = sa.create_engine(_with_driver(url))
    except ModuleNotFoundError as error:
        raise ConfigError(f"{named.scheme}: {error.name} is not installed; pip install 'dpvae[postgres]'") from None
    metadata, rows = sa.MetaData(), 0
    made = sa.Table(table, metadata, *(sa.Column(field.name, sql_type(field.type)) for field in schema))
    noted = sa.Table(NOTES, metadata, *(sa.Column(name, sa.Text) for name in ("table_name", "name", "content")))
    stored = storable(schema)
    with contextlib.ExitStack() as stack:
        stack.callback(engine.dispose)
        connection = stack.enter_context(engine.begin())
        if sa.inspect(connection).has_table(table):
            raise DataError(f"to={named.scheme}: table {table!r} is there already; name another with ?table=")
        metadata.create_all(connection)
        for batch in batches:
            connection.execute(made.insert(), _cast(batch, stored).to_pylist())
            rows += batch.num_rows
        connection.execute(noted.delete().where(noted.c.table_name == table))
        if notes:
            connection.execute(noted.insert(), [{"table_name": table, "name": name, "content": content}
                                                for name, content in notes.items()])
    return rows


def _with_driver(url: str) -> str:
    """psycopg, which comes with the extra ``postgres``, where no driver is named."""
    return url.replace("postgresql://", "postgresql+psycopg://", 1)


def type_name(kind: pa.DataType) -> str:
    """The name of an Arrow type in SQL, as PostgreSQL has it and SQLite takes it.

    >>> [type_name(kind) for kind in (pa.bool_(), pa.float64(), pa.timestamp("us", "UTC"), pa.time64("us"))]
    ['BOOLEAN', 'DOUBLE PRECISION', 'TIMESTAMP WITH TIME ZONE', 'TIME WITHOUT TIME ZONE']
    """
    return str(sql_type(kind).compile(dialect=postgresql.dialect()))


def sql_type(kind: pa.DataType) -> Any:
    """The SQLAlchemy type of an Arrow type.

    >>> [str(sql_type(kind)) for kind in (pa.int16(), pa.decimal128(10, 2), pa.string(), pa.date32())]
    ['SMALLINT', 'NUMERIC(10, 2)', 'TEXT', 'DATE']
    """
    t = pa.types
    if t.is_dictionary(kind):
        return sql_type(kind.value_type)
    if t.is_decimal(kind):
        return sa.Numeric(kind.precision, kind.scale)
    if t.is_timestamp(kind):
        return sa.DateTime(timezone=kind.tz is not None)
    for test, made in ((t.is_boolean, sa.Boolean), (t.is_date, sa.Date), (t.is_time, sa.Time),
                       (t.is_float32, sa.REAL),
                       (t.is_floating, sa.Double), (t.is_int8, sa.SmallInteger), (t.is_uint8, sa.SmallInteger),
                       (t.is_int16, sa.SmallInteger), (t.is_uint16, sa.Integer), (t.is_int32, sa.Integer),
                       (t.is_integer, sa.BigInteger)):
        if test(kind):
            return made()
    return sa.Text()
