"""``dpvae lake``: a warehouse to begin with, tables copied into and out of it, and what a table says about itself.

Nothing here trains, scores or releases; a copy is as private as what it was made of.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from dpvae.config import LakeConfig
from dpvae.data import builtin, lake, place
from dpvae.data.lake import register
from dpvae.data.lake.write import storable
from dpvae.errors import ConfigError, DataError

ROWS_AT_ONCE = 65_536
ROWS_PER_FILE = 2**20
DEMO, DEMO_TABLE = "iceberg:demo.census", "adult"


def act(config: LakeConfig) -> str:
    """Do what the action says; returns what to tell the user."""
    if not config.table:
        example = {"init": "warehouse", "copy": "orders.csv to=iceberg:shop.orders", "show": DEMO}[config.action]
        raise ConfigError(f"lake {config.action}: expected one word more, such as dpvae lake {config.action} {example}")
    if config.action == "init":
        return _init(config)
    if config.action == "show":
        return _show(config.table)
    if not config.to:
        raise ConfigError("lake copy: expected to=TABLE, such as to=iceberg:shop.orders")
    rows = copy(config.table, config.to)
    return f"copied {rows:,} rows of {config.table} to {place.shown(config.to)}"


def _init(config: LakeConfig) -> str:
    iceberg = importlib.import_module("dpvae.data.lake.iceberg")
    done = [iceberg.init(str(config.table), config.catalog)]
    if config.demo and config.catalog == "default":
        held = register.home(DEMO).held()
        if held is None or not held.files:
            rows = copy(DEMO_TABLE, DEMO)
            done.append(f"{DEMO}: {rows:,} rows of the built-in table {DEMO_TABLE!r}, to try it on")
        done.append(f"next, in this folder: dpvae train data={DEMO} privacy.epsilon=3 run.name=lake1")
    return "\n".join(done)


def copy(table: str, to: str) -> int:
    """Copy ``table`` into ``to``, which must hold no rows yet; returns their number. All rows, or none."""
    source = lake.source(str(builtin.path(table)) if table in builtin.names() else table)
    batches = (_typed(batch, source.dtype) for batch in source.batches(ROWS_AT_ONCE))
    if place.scheme_of(to) in place.DATABASES:
        return int(importlib.import_module("dpvae.data.lake.sql").write(to, batches))
    if place.scheme_of(to) in place.LAKES:
        return _into_lake(to, source.schema(), batches)
    raise DataError(f"to={to!r}: expected {', '.join(f'{name}:' for name in place.SCHEMES)}")


def _typed(batch: pa.RecordBatch, dtype: str | None) -> pa.RecordBatch:
    """The batch as it came; the text of a CSV file without the blanks around it."""
    return lake.to_batch(lake.to_table(batch, dtype)) if dtype == lake.CSV else batch


def _into_lake(to: str, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> int:
    home = register.home(to)
    held = home.held()
    if held is not None and held.files:
        raise DataError(f"to={to}: holds rows already; expected a new table")
    home.create(schema)
    with register.alone(home):
        folder = home.folder() / "copied"
        shutil.rmtree(folder, ignore_errors=True)  # of a copy that was killed: no commit knows its files
        folder.mkdir()
        files: list[Path] = []
        rows = 0
        held, wanted = home.held(), storable(schema, home.ids())
        for block in _blocks(batches):
            files.append(folder / f"part-{len(files):05d}.parquet")
            rows += _write(files[-1], wanted, block)
        home.write(files, {"dpvae.copied": "true"}, replace=False, expected=held.version if held else None)
    return rows


def _blocks(batches: Iterator[pa.RecordBatch]) -> Iterator[Iterator[pa.RecordBatch]]:
    """The batches of one file after another's."""
    for first in batches:
        def block(first: pa.RecordBatch = first) -> Iterator[pa.RecordBatch]:
            rows = first.num_rows
            yield first
            while rows < ROWS_PER_FILE and (following := next(batches, None)) is not None:
                rows += following.num_rows
                yield following

        yield block()


def _write(path: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> int:
    import pyarrow.parquet as pq

    rows = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_table(pa.Table.from_batches([batch]).cast(schema))
            rows += batch.num_rows
    return rows


def _show(table: str) -> str:
    """Versions with their marks, newest first; and, both ways, what it was made from and what was made from it."""
    home = register.home(table)
    history = home.history()
    if not history:
        raise DataError(f"{table}: no such table, or nothing was ever written to it")
    lines = [f"{table}: {len(history)} versions"]
    for state in history:
        lines.append(f"  {state.version} {state.operation}" + "".join(f"\n    {n} {v}" for n, v in state.marks.items()))
    made = home.made_from_it()
    return "\n".join([*lines, *(f"  made from it: {line}" for line in made)])
