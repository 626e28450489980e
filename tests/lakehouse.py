"""A warehouse in a folder of its own, and a run on one of its tables that takes a second to train; no test in here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpvae import cli
from dpvae.data.lake import register

ROWS = 600
TINY = "experiment=smoke privacy.epsilon=20 data.rows=600 data.target=income"
PEOPLE, SYNTH, SCORED = "iceberg:demo.people", "iceberg:demo.synth", "iceberg:demo.scored"


def people(rows: int = ROWS, seed: int = 0, first: int = 0) -> pa.Table:
    """People with an identifier that the model learns as one more number."""
    rng = np.random.default_rng(seed)
    age = rng.integers(18, 80, rows)
    return pa.table({"key": np.arange(first, first + rows), "age": age,
                     "city": rng.choice(["north", "south", "east"], rows),
                     "pay": rng.gamma(2.0, 10.0, rows).round(1), "income": np.where(age > 50, "high", "low")})


def typed(line: str) -> int:
    """One command as it is typed."""
    return cli.main(line.split())


def make(table: str, rows: pa.Table) -> None:
    """A new lake table with these rows."""
    grow(table, rows, create=True)


def grow(table: str, rows: pa.Table, *, create: bool = False) -> None:
    """One more data file."""
    home = register.home(table)
    if create:
        home.create(rows.schema)
    held = home.held()
    path = home.folder() / f"grown-{held.version if held else 0}.parquet"
    pq.write_table(rows, path)
    home.write([path], {}, replace=False, expected=held.version if held else None)


def train(name: str = "one", table: str = PEOPLE) -> Path:
    """A finished run."""
    assert typed(f"train data={table} run.name={name} {TINY}") == 0
    return Path("runs", name).absolute()


def passed(run: Path) -> Callable[[], None]:
    """Stands in for the quick audit, which takes half a minute: writes what a passed one leaves."""

    def write() -> None:
        from dpvae.report.source import read_run

        found: Mapping[str, Any] = {
            "format": "dpvae-audit/1", "model_sha256": read_run(run).model_sha256, "passed": True, "sentence": "passed",
            "quick": True, "alpha": 0.001, "bounds": [], "self_test": {"tried": 0, "caught": 0}, "left_out": [],
            "attacks": None, "caught": [],
            "tests": [{"test": "A1", "says": "three accountants agree", "passed": True, "asked": 3, "smallest_p": 1.0,
                       "of": 3, "failed": [], "catches": []}]}
        (run / "public" / "audit.json").write_text(json.dumps(found))

    return write


def values(table: str) -> list[dict[str, Any]]:
    """All rows of a table, in no particular order."""
    from dpvae.data import lake

    found = [row for batch in lake.source(table).batches(1000) for row in batch.to_pylist()]
    return sorted(found, key=lambda row: json.dumps(row, default=str, sort_keys=True))
