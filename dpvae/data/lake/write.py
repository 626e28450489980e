"""Tables into files: whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from dpvae.data.lake.arrow import Cells, Table, to_arrow
from dpvae.errors import DataError

Append = Callable[["Mapping[str, Cells] | Table"], None]


def write_parquet(columns: Mapping[str, Cells] | Table, path: str | os.PathLike[str]) -> None:
    """Write one Parquet file; a file that appears under ``path`` is whole."""
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    try:
        pq.write_table(to_arrow(columns), partial, compression="zstd")
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def appending(path: str | os.PathLike[str], format: str) -> Iterator[Append]:
    """A function that appends columns to a Parquet (``parquet``) or CSV (``csv``) file; the file appears under ``path``
    when all of it is written, or not at all."""
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    opened: list[Any] = []

    def append(columns: Mapping[str, Cells] | Table) -> None:
        table = to_arrow(columns)
        if not opened:
            opened.append(pq.ParquetWriter(partial, table.schema, compression="zstd") if format == "parquet"
                          else pacsv.CSVWriter(partial, table.schema,
                                               write_options=pacsv.WriteOptions(quoting_style="needed")))
        opened[0].write_table(table.cast(opened[0].schema) if format == "parquet" else table)

    try:
        yield append
        for writer in opened:
            writer.close()
        if opened:
            os.replace(partial, target)
    except OSError as error:
        raise DataError(f"to={str(target)!r}: cannot be written ({error.strerror or error}); "
                        "choose another place") from error
    finally:
        partial.unlink(missing_ok=True)
