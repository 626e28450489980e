"""Tables in files: one file or a folder of them, as Arrow record batches.

Parquet is read here, text (CSV, JSON lines) by :mod:`dpvae.data.lake.text_files`; and here stands what every kind of
table answers to.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.parquet as pq

from dpvae.data.lake.arrow import first_line
from dpvae.data.lake.push import row_groups
from dpvae.data.lake.text_files import Csv, Json
from dpvae.data.where import Where
from dpvae.errors import DataError

PARQUET_ENDINGS = (".parquet", ".pq")
JSON_ENDINGS = (".jsonl", ".ndjson")
ENDINGS = (".csv", *PARQUET_ENDINGS, *JSON_ENDINGS)


class Source(Protocol):
    """A table that can be read from its start, any number of times."""

    @property
    def dtype(self) -> str | None:
        """The type name that all columns go by, where that is not their own."""

    def schema(self) -> pa.Schema:
        """Names and types; reads no row."""

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        """All rows in order, at most ``rows`` at a time, in bounded memory."""


@runtime_checkable
class Narrowed(Protocol):
    """A source that can leave out what is not wanted before it reads it."""

    def narrowed(self, columns: Sequence[str], where: Where | None) -> Source:
        """The same table with these columns, which are in its own order, and at least the rows where ``where`` holds;
        that is bound to the columns' types."""


class Versioned(ABC):
    """A lake table at one of its versions, which consists of data files."""

    text: str  # how it was named
    dtype = None

    @abstractmethod
    def schema(self) -> pa.Schema:
        """Names and types; reads no row."""

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        """All rows in order, at most ``rows`` at a time, in bounded memory."""
        for part in self.parts():
            yield from self.of_part(part, rows)

    @property
    @abstractmethod
    def snapshot(self) -> Any:
        """The version; ``None`` for a table that was never written to."""

    @abstractmethod
    def parts(self) -> dict[str, str]:
        """The data files in an order that never changes, each with the deletions in it."""

    @abstractmethod
    def of_part(self, part: str, rows: int) -> Iterator[pa.RecordBatch]:
        """The rows of one data file."""

    @abstractmethod
    def portable(self) -> Callable[[], Versioned]:
        """What opens the very same version in another process; it pickles."""


def opened(place: str | os.PathLike[str]) -> Source:
    """The file or the folder at ``place``."""
    path = Path(place)
    if not path.exists():
        raise DataError(f"data={str(path)!r}: no such file; give the path of a .csv or .parquet file")
    if path.is_dir():
        return _folder(path)
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise DataError(f"data={str(path)!r}: unknown ending {path.suffix!r}; expected .csv, .parquet, .pq or .jsonl")
    if path.stat().st_size == 0:
        raise DataError(f"data={str(path)!r}: the file is empty; expected a header and at least two rows")
    return Csv(path) if ending == ".csv" else Json(path) if ending in JSON_ENDINGS else Parquet(path)


def _folder(path: Path) -> Source:
    """The tables of one kind in a folder, in the order of their names; those of a release lie in its ``data``."""
    inside = path / "data" if (path / "certificate.json").is_file() else path
    found = sorted(file for file in inside.iterdir() if file.suffix.lower() in ENDINGS and file.name[0] not in "._")
    if not found:
        raise DataError(f"data={str(path)!r}: is a folder without a table; expected one .csv, .parquet or .jsonl "
                        "file, or several of a kind inside the folder")
    if len({file.suffix.lower() for file in found}) > 1:
        raise DataError(f"data={str(path)!r}: holds {found[0].name} and files of another kind; expected one kind")
    return Folder(tuple(opened(file) for file in found), path)


@dataclass(frozen=True)
class Parquet:
    """One Parquet file."""

    path: Path
    columns: tuple[str, ...] | None = None
    where: Where | None = None
    dtype = None

    def schema(self) -> pa.Schema:
        found = _parquet_schema(self.path)
        return found if self.columns is None else pa.schema([found.field(name) for name in self.columns])

    def narrowed(self, columns: Sequence[str], where: Where | None) -> Parquet:
        """See :class:`Narrowed`."""
        return replace(self, columns=tuple(columns), where=where)

    def row_count(self) -> int:
        """From the footers, without reading a row; private where the table is."""
        return int(pq.read_metadata(self.path).num_rows)

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        try:
            groups = None if self.where is None else row_groups(self.path, self.where, self.schema())
            with pq.ParquetFile(self.path) as file:
                yield from file.iter_batches(batch_size=rows, row_groups=groups, columns=self.columns,
                                             use_threads=False)
        except MemoryError:  # Arrow's own is an ArrowException too
            raise
        except (pa.ArrowException, OSError) as error:
            raise _broken(self.path, error) from error


@dataclass(frozen=True)
class Folder:
    """Files of one kind and one schema, one after the other."""

    parts: tuple[Any, ...]
    path: Path

    @property
    def dtype(self) -> str | None:
        dtype: str | None = self.parts[0].dtype
        return dtype

    def schema(self) -> pa.Schema:
        first: pa.Schema = self.parts[0].schema()
        for part in self.parts[1:]:
            check_same(first, part.schema(), f"data={str(part.path)!r}", self.parts[0].path.name)
        return first

    def row_count(self) -> int | None:
        """Of Parquet files; private where the table is."""
        return sum(part.row_count() for part in self.parts) if isinstance(self.parts[0], Parquet) else None

    def text_bytes(self) -> int:
        """Of files of text."""
        return 0 if isinstance(self.parts[0], Parquet) else sum(part.text_bytes() for part in self.parts)

    def narrowed(self, columns: Sequence[str], where: Where | None) -> Source:
        """See :class:`Narrowed`."""
        self.schema()
        parts = [part.narrowed(columns, where) for part in self.parts if isinstance(part, Narrowed)]
        return replace(self, parts=tuple(parts)) if parts else self

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        self.schema()
        for part in self.parts:
            yield from part.batches(rows)


def check_same(expected: pa.Schema, found: pa.Schema, where: str, other: str) -> None:
    """Raise where two schemas differ; the error names the column."""
    for field in expected:
        if field.name not in found.names:
            raise DataError(f"{where}: has no column {field.name!r}, which {other} has; it was renamed or dropped")
        if found.field(field.name).type != field.type:
            raise DataError(f"{where}: column={field.name!r} is {found.field(field.name).type}, but {field.type} in "
                            f"{other}; its type was changed")
    for name in found.names:
        if name not in expected.names:
            raise DataError(f"{where}: column={name!r} is not in {other}; it is new")
    if found.names != expected.names:
        moved = next(a for a, b in zip(found.names, expected.names, strict=True) if a != b)
        raise DataError(f"{where}: column={moved!r} stands in another place than in {other}")


def _broken(path: Path, error: BaseException) -> DataError:
    return DataError(f"data={str(path)!r}: not a readable Parquet file ({first_line(error)}); it may be truncated: "
                     "write it again")


def _parquet_schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path).remove_metadata()
    except (pa.ArrowException, OSError) as error:
        raise _broken(path, error) from error


def stored(path: Path, rows: int | None = None) -> pa.Table:
    """The (first ``rows``) rows of a Parquet file as stored: for columns that are no table's, as images are."""
    try:
        with pq.ParquetFile(path) as file:
            if rows is None:
                return file.read(use_threads=False)
            return pa.Table.from_batches([next(file.iter_batches(batch_size=rows, use_threads=False))]
                                         if file.metadata.num_rows else [], file.schema_arrow)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"data={str(path)!r}: {first_line(error)}; repair the file") from error
