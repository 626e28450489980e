"""A Delta table as a home for files: each state is a commit, whose metadata are the marks.

Delta has no branches and no tags. What is staged is a list of files beside the table, of which readers know nothing; a
release stays whole because VACUUM does not look below ``_dpvae``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction

from dpvae.data import place
from dpvae.data.lake.delta import opened, told
from dpvae.data.lake.register import FOLDER, MARK, Held, again, check_columns, moved, rows_of, schema_of
from dpvae.data.lake.write import storable
from dpvae.errors import DataError


def open_home(text: str) -> DeltaHome:
    """The home at ``delta:PATH``."""
    name = place.split(text).name
    if "://" in name:
        raise DataError(f"to={text}: expected a path on a file system of this machine; mount it, or release into a "
                        "folder and load that, see docs/lakehouse.md")
    return DeltaHome(text, Path(name).absolute())


@dataclass(frozen=True)
class DeltaHome:
    """See :class:`dpvae.data.lake.register.Home`."""

    text: str
    path: Path

    def folder(self) -> Path:
        folder = self.path / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _table(self) -> DeltaTable | None:
        with told(self.text):
            return DeltaTable(self.path) if DeltaTable.is_deltatable(str(self.path)) else None

    def create(self, schema: pa.Schema) -> None:
        for field in schema:
            if pa.types.is_time(field.type):
                raise DataError(f"column={field.name!r}: {field.type}, and Delta Lake has no times of day; leave the "
                                "column out with data.columns=, or take iceberg: or a folder")
        with told(self.text):
            if self._table() is None:
                DeltaTable.create(self.path, storable(schema), mode="ignore")
            check_columns(self.text, opened(self.text).schema(), schema)

    def ids(self) -> Mapping[str, int]:
        return {}

    def held(self, version: str | None = None) -> Held | None:
        if version is not None and self._note(version).is_file():
            found = json.loads(self._note(version).read_text())
            return Held(found["version"], tuple(found["files"]), found["marks"], "staged")
        table = self._table()
        states = self.history()
        if table is None or not states:
            return None
        wanted = [state for state in states
                  if version in (None, state.version, f"dpvae-{state.marks.get('dpvae.release')}")]
        if not wanted:
            raise DataError(f"{self.text}@{version}: no such version; the newest is {table.version()}")
        parts = opened(f"{self.text}@{wanted[0].version}").parts()
        files = tuple(str(self.path / part.removeprefix(f"{self.path}/")) for part in parts)
        return Held(wanted[0].version, files, wanted[0].marks, wanted[0].operation)

    def history(self) -> list[Held]:
        table = self._table()
        with told(self.text):
            commits = table.history() if table is not None else []
        return [Held(str(commit["version"]), (), {name: str(value) for name, value in commit.items()
                                                  if name.startswith(MARK)}, str(commit.get("operation", "?")))
                for commit in commits]

    def made_from_it(self) -> list[str]:
        return []  # a Delta table has no catalog that could be asked

    def write(self, files: Sequence[Path], marks: Mapping[str, str], *, replace: bool, expected: str | None) -> None:
        def attempt() -> None:
            table = self._table()
            assert table is not None
            if str(table.version()) != expected:
                raise moved(self.text, expected, table.version())
            self._commit(table, files, marks, replace=replace)

        with told(self.text):
            again(attempt, (CommitFailedError,), self.text)

    def _commit(self, table: DeltaTable, files: Sequence[Path], marks: Mapping[str, str], *, replace: bool) -> None:
        said: dict[str, Any] = {**marks, "userMetadata": json.dumps(dict(marks))}  # what Spark's DESCRIBE HISTORY shows
        table.create_write_transaction(
            [self._added(file) for file in files], "overwrite" if replace else "append",
            storable(schema_of(files)) if files else table.schema(),
            commit_properties=CommitProperties(custom_metadata=said, max_commit_retries=0))

    def _added(self, file: Path) -> AddAction:
        found = file.stat()
        return AddAction(path=file.relative_to(self.path).as_posix(), size=found.st_size, partition_values={},
                         modification_time=int(found.st_mtime * 1000), data_change=True,
                         stats=json.dumps({"numRecords": rows_of(file)}))

    def _note(self, name: str) -> Path:
        return self.path / FOLDER / f"{name}.staged.json"

    def stage(self, name: str, files: Sequence[Path], marks: Mapping[str, str]) -> None:
        table = self._table()
        assert table is not None
        note = self._note(name)
        partial = note.with_suffix(".partial")
        held = Held(str(table.version()), tuple(str(file) for file in files), marks)
        partial.write_text(json.dumps(asdict(held)))
        os.replace(partial, note)

    def staged(self, name: str) -> str | None:
        table, note = self._table(), self._note(name)
        whole = table is not None and note.is_file() and (
            json.loads(note.read_text())["version"] == str(table.version()))
        return name if whole else None

    def publish(self, name: str, tag: str) -> None:
        found = json.loads(self._note(name).read_text())
        self.write([Path(file) for file in found["files"]], found["marks"], replace=True, expected=found["version"])
        self._note(name).unlink()
