"""A table larger than memory: one pass over its source leaves it on disk in pieces, and nobody holds more than one.

    rows = Stored.of(lake.pinned("iceberg:shop.orders"), Path("runs/.stored-..."))
    for cells in rows.pieces(0): ...            # one column, piece by piece: what the survey counts
    codes = CodeShards.of(rows.parts(), codec)  # then whole numbers, (rows, D), memory-mapped: what is trained on

Numbers are kept as they are, text as whole numbers with a dictionary beside them. Each piece is written with its digest
before the next is read, so a pass that was killed goes on where it stopped, and a piece that changed is found out. All
that is counted is summed over pieces, in the order of the rows: the result is that of a table in memory, to the bit.
The folder is private, and removed when the run has no use for it any more.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dpvae import memory
from dpvae.data import lake
from dpvae.data.dtypes import is_text
from dpvae.data.lake import Cells, Table
from dpvae.data.table import TableCodec
from dpvae.errors import DataError

IN_MEMORY, SHARE = 4e9, 1 / 3  # bytes, and of those that are free: a larger table is kept on disk
PIECE = 2**20  # cells, of eight bytes each; a few pieces are held at once
NOTES = "pieces.jsonl"
TEXT = 8.0  # bytes that a cell of text takes in memory, for each in its file: eight of a pointer, fifty of a short text


class Stored:
    """A table in a folder; answers like :class:`dpvae.data.lake.Table`, a piece at a time."""

    def __init__(self, folder: Path, header: tuple[tuple[str, str], ...], origin: Mapping[str, Any] | None) -> None:
        self.folder, self.header, self.origin = folder, header, origin
        self.names = tuple(name for name, _ in header)
        self.sizes: list[int] = []  # rows of each piece
        self.texts: list[dict[str, int]] = [{} for _ in header]
        self.kept: dict[str, Any] = {}

    @property
    def piece(self) -> int:
        """Rows in a piece."""
        return max(PIECE // len(self.header), 1)

    @classmethod
    def of(cls, source: Any, folder: Path) -> Stored:
        """The rows of ``source``, stored in ``folder`` (or found there, whole or in part, from the same source)."""
        table = cls(folder, lake.header(source), lake.origin(source))
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not table._found():
            for piece in _pieces(source, table.piece, skip=table.rows):
                table._store(piece)
            table._note({"whole": True})
        if table.rows < 2:
            raise DataError(f"rows={table.rows}: expected at least 2")
        return table

    @property
    def rows(self) -> int:
        """How many there are; private."""
        return sum(self.sizes)

    def parts(self) -> Iterator[Table]:
        """The table, a piece at a time."""
        for number in range(len(self.sizes)):
            yield Table(self.names, tuple(self._read(number, j) for j in range(len(self.names))))

    def pieces(self, j: int) -> Iterator[Cells]:
        """Column ``j``, a piece at a time."""
        return (self._read(number, j) for number in range(len(self.sizes)))

    def remove(self) -> None:
        """Delete every piece, and the shards of codes with them."""
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- on disk -------------------------------------------------------------------------------------------------

    def _path(self, number: int) -> Path:
        return self.folder / f"piece-{number:06d}.bin"

    def _found(self) -> bool:
        """Take up what is there; whether that is all. What does not fit its digest is stored again."""
        notes = self.folder / NOTES
        lines = notes.read_text().splitlines() if notes.is_file() else []
        for line in lines:
            try:
                note = json.loads(line)
            except ValueError:  # the last line of a killed process
                break
            if note.get("whole"):
                return True
            if note["header"] != [list(c) for c in self.header] or not _is(self._path(len(self.sizes)), note["sha256"]):
                break
            self.sizes.append(note["rows"])
            for texts, new in zip(self.texts, note["texts"], strict=True):
                texts.update({text: len(texts) + i for i, text in enumerate(new)})
        notes.write_text("".join(f"{line}\n" for line in lines[:len(self.sizes)]))
        return False

    def _note(self, note: Mapping[str, Any]) -> None:
        with (self.folder / NOTES).open("a") as file:
            file.write(json.dumps(note) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _store(self, piece: Table) -> None:
        path, new = self._path(len(self.sizes)), []
        digest = hashlib.sha256()
        with path.open("wb") as file:
            for (_, dtype), cells, texts in zip(self.header, piece.cells, self.texts, strict=True):
                before = len(texts)
                values = cells.values
                if is_text(dtype):
                    values = np.fromiter((texts.setdefault(text, len(texts)) for text in values), np.int64, len(values))
                new.append(list(texts)[before:])
                for block in (np.ascontiguousarray(values, _kept(dtype, values)), cells.missing):
                    file.write(block.tobytes())
                    digest.update(block.tobytes())
            file.flush()
            os.fsync(file.fileno())
        self._note({"header": [list(c) for c in self.header], "rows": piece.rows, "sha256": digest.hexdigest(),
                    "texts": new})
        self.sizes.append(piece.rows)

    def _read(self, number: int, j: int) -> Cells:
        rows, dtype = self.sizes[number], self.header[j][1]
        kind = np.dtype(_type_of(dtype))
        at = sum(rows * (np.dtype(_type_of(other)).itemsize + 1) for _, other in self.header[:j])
        values: Any = np.memmap(self._path(number), kind, "r", at, rows)
        missing = np.array(np.memmap(self._path(number), np.bool_, "r", at + rows * kind.itemsize, rows))
        return Cells(self._spelled[j][values] if is_text(dtype) else np.array(values), missing, dtype)

    @cached_property
    def _spelled(self) -> list[np.ndarray]:
        return [np.array(list(texts) or [""], dtype=object) for texts in self.texts]


def _type_of(dtype: str) -> type:
    """How a column is kept: as :class:`Cells` has it, text as whole numbers."""
    if dtype == "bool":
        return np.bool_
    real = dtype in ("double", "float", "halffloat") or dtype.startswith("decimal")
    value = dtype.removeprefix("dictionary<values=").split(",")[0] if dtype.startswith("dictionary") else dtype
    return np.float64 if real or value in ("double", "float") else np.bool_ if value == "bool" else np.int64


def _kept(dtype: str, values: np.ndarray) -> type:
    kind = _type_of(dtype)
    if not is_text(dtype) and np.dtype(kind) != values.dtype:
        raise AssertionError(f"{dtype}: cells of type {values.dtype}, expected {np.dtype(kind)}")
    return kind


def _pieces(source: Any, rows: int, *, skip: int) -> Iterator[Table]:
    """Tables of so many ``rows`` (the last one fewer), without the first ``skip`` rows."""
    waiting: list[Table] = []
    held = 0
    for part in lake.batches(source, rows):
        if skip >= part.rows:
            skip -= part.rows
            continue
        part = part.take(slice(skip, None)) if skip else part
        skip = 0
        waiting.append(part)
        held += part.rows
        while held >= rows:
            whole = _joined(waiting)
            yield whole.take(slice(rows))
            waiting, held = [whole.take(slice(rows, None))], whole.rows - rows
    if held:
        yield _joined(waiting)


def _joined(tables: list[Table]) -> Table:
    if len(tables) == 1:
        return tables[0]
    return Table(tables[0].names, tuple(
        Cells(np.concatenate([c.values for c in column]), np.concatenate([c.missing for c in column]), column[0].dtype)
        for column in zip(*(table.cells for table in tables), strict=True)))


def _is(path: Path, sha256: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


class CodeShards:
    """Codes (rows, D) in files; rows are read by slice or by index, and copied out."""

    def __init__(self, files: list[Path], sizes: list[int], columns: int, dtype: Any) -> None:
        self.files, self.sizes, self.dtype = files, sizes, np.dtype(dtype)
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.shape = (int(self.starts[-1]), columns)

    @classmethod
    def of(cls, table: Stored, codec: TableCodec, outside: str) -> CodeShards:
        """The codes of a stored table, beside it."""
        files, dtype = [], None
        for number, part in enumerate(table.parts()):
            codes = codec.encode(part, outside)
            dtype = codes.dtype
            files.append(table.folder / f"codes-{number:06d}.bin")
            files[-1].write_bytes(codes.tobytes())
        return cls(files, table.sizes, len(table.names), dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def _map(self, number: int) -> Any:
        return np.memmap(self.files[number], self.dtype, "r", shape=(self.sizes[number], self.shape[1]))

    def __getitem__(self, rows: Any) -> np.ndarray:
        """The rows of a slice, or of an array of positions, (n, D)."""
        if isinstance(rows, slice):
            first, last, step = rows.indices(len(self))
            if step != 1:
                raise IndexError(f"step={step}: expected neighbouring rows")
            touched = [n for n in range(len(self.files)) if self.starts[n] < last and self.starts[n + 1] > first]
            parts = [self._map(n)[max(first - self.starts[n], 0):last - self.starts[n]] for n in touched]
            return np.concatenate(parts) if parts else np.empty((0, self.shape[1]), self.dtype)
        rows = np.asarray(rows)
        out = np.empty((len(rows), self.shape[1]), self.dtype)
        piece = np.searchsorted(self.starts, rows, side="right") - 1
        order = np.argsort(piece, kind="stable")
        ends = np.cumsum(np.bincount(piece, minlength=len(self.files)))
        for number in np.unique(piece):
            here = order[ends[number - 1] if number else 0:ends[number]]
            out[here] = self._map(number)[rows[here] - self.starts[number]]
        return out

    def split(self, rows: int) -> Iterator[np.ndarray]:
        """All rows, ``rows`` at a time."""
        return (self[start:start + rows] for start in range(0, len(self), rows))


def place_of(source: Any, root: Path) -> Path:
    """The folder for the pieces of ``source``: the same for the same source, so that a killed pass is found again."""
    origin, named, part = lake.origin(source), source, ""
    if isinstance(source, lake.Selected):
        named, part = source.place, str(source)
    if origin is None:
        known = lake.place.split(str(named)) if lake.place.scheme_of(str(named)) else None
        path = Path(known.name if known else named).absolute()
        files = {str(file): file.stat() for file in [path, *sorted(path.rglob("*"))]}  # a folder's time may stay
        origin = {name: [found.st_size, found.st_mtime_ns] for name, found in files.items()}
        part += f" of {known.table}" if known else ""
    text = json.dumps([origin, os.environ.get("RANK", "0"), part], sort_keys=True)
    return root / f".stored-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def bytes_in_memory(source: Any) -> float:
    """What reading ``source`` whole would take, roughly; 0 where nothing says so. Private: it decides where rows are
    kept, and nothing else."""
    rows = lake.row_count(source)
    return lake.text_bytes(source) * TEXT if rows is None else rows * len(lake.header(source)) * 9.0


def fits(source: Any) -> bool:
    """Whether reading ``source`` whole takes little of the memory that is free."""
    return bytes_in_memory(source) < min(IN_MEMORY, SHARE * memory.free())


@contextmanager
def held(source: Any, root: Path) -> Iterator[Table | Stored]:
    """The rows of ``source``, in memory where they fit and otherwise in a folder below ``root`` for the while."""
    if fits(source):
        yield lake.read(source)
        return
    rows = Stored.of(source, place_of(source, root))
    try:
        yield rows
    finally:
        rows.remove()


def fingerprint(table: Table | Stored) -> bytes:
    """A digest of the cells, their types and their order, column by column: the same in memory and on disk."""
    digest = hashlib.sha256()
    for j, (name, dtype) in enumerate(table.header):
        digest.update(f"{name}\0{dtype}\0{table.rows}\0".encode())
        for cells in table.pieces(j):
            digest.update(np.packbits(cells.missing).tobytes())
        between = b""
        for cells in table.pieces(j):
            if cells.values.dtype == object:
                digest.update(between + "\0".join(map(str, cells.values)).encode("utf-8", "surrogatepass"))
                between = b"\0"
            else:
                digest.update(np.ascontiguousarray(cells.values).tobytes())
    return digest.digest()
