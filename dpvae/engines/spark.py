"""Spark: ``mapInArrow`` over a table of items; every Python worker builds its function once.

On a cluster that has one already (Databricks, EMR), its session is used; else one is started on this machine.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

SCHEMA = "place long, done binary"


def mapped(make: Callable[[], Callable[[Any], Any]], items: Sequence[Any], *, workers: int) -> Iterator[Any]:
    """See :func:`dpvae.engines.mapped`."""
    from pyspark.sql import SparkSession

    session = SparkSession.getActiveSession()
    ours = session is None
    if ours:
        here = {"spark.master": f"local[{workers}]", "spark.ui.enabled": "false", "spark.log.level": "ERROR"}
        session = SparkSession.builder.appName("dpvae").config(map=here).getOrCreate()
    try:
        rows = [(place, pickle.dumps(item)) for place, item in enumerate(items)]
        session.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "1")
        table = session.createDataFrame(rows, "place long, item binary").repartitionByRange(len(rows), "place")
        done = table.mapInArrow(_Work(pickle.dumps(make)), SCHEMA).toLocalIterator()
        for row in sorted(done, key=lambda row: row["place"]):
            yield pickle.loads(row["done"])
    finally:
        if ours:
            session.stop()


class _Work:
    """What travels to Spark's workers."""

    def __init__(self, make: bytes) -> None:
        self.make = make

    def __call__(self, batches: Iterator[Any]) -> Iterator[Any]:
        work = pickle.loads(self.make)()
        for batch in batches:
            for place, item in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield type(batch).from_pydict({"place": [place], "done": [pickle.dumps(work(pickle.loads(item)))]})
