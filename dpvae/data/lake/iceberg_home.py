"""An Iceberg table as a home for files: branches to stage on, tags to pin with, marks in the snapshot's summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyiceberg.exceptions import CommitFailedException, NoSuchTableError
from pyiceberg.io.pyarrow import parquet_files_to_data_files
from pyiceberg.table import Table as IcebergTable
from pyiceberg.table import TableProperties
from sqlalchemy.exc import OperationalError

from dpvae.data.lake import iceberg
from dpvae.data.lake.iceberg import local, told
from dpvae.data.lake.register import FOLDER, MARK, Held, again, check_columns, moved
from dpvae.data.lake.write import storable
from dpvae.errors import DataError

MAIN = "main"
CONFLICT = (CommitFailedException, OperationalError)  # the second: a locked SQLite catalog


def open_home(text: str) -> IcebergHome:
    """The home at ``iceberg:[catalog.]namespace.table``."""
    catalog, identifier = iceberg.catalog_of(text)
    return IcebergHome(text, catalog, identifier)


@dataclass(frozen=True)
class IcebergHome:
    """See :class:`dpvae.data.lake.register.Home`."""

    text: str
    catalog: Any
    identifier: str

    def _table(self) -> IcebergTable | None:
        with told(self.text):
            try:
                return self.catalog.load_table(self.identifier)
            except NoSuchTableError:
                return None

    def folder(self) -> Path:
        table = self._table()
        if table is None:
            raise DataError(f"{self.text}: no such table")
        location = local(table.location())
        if location is None:
            raise DataError(f"{self.text}: lies at {table.location()}; expected a warehouse on a file system of this "
                            "machine, mount it, or release into a folder and load that, see docs/lakehouse.md")
        folder = location / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def create(self, schema: pa.Schema) -> None:
        schema = storable(schema)
        with told(self.text):
            self.catalog.create_namespace_if_not_exists(self.identifier.rpartition(".")[0])
            table = self.catalog.create_table_if_not_exists(self.identifier, schema)
            check_columns(self.text, iceberg.Iceberg(self.text, table, None).schema(), schema)
            if table.metadata.name_mapping() is None:  # for files that have names alone
                with table.transaction() as change:
                    change.set_properties({TableProperties.DEFAULT_NAME_MAPPING:
                                           table.schema().name_mapping.model_dump_json()})
            if table.current_snapshot() is None:  # a branch needs a snapshot to stand on: one without rows
                with table.transaction() as change, change.update_snapshot().fast_append():
                    pass

    def ids(self) -> Mapping[str, int]:
        table = self._table()
        return {} if table is None else {field.name: field.field_id for field in table.schema().fields}

    def held(self, version: str | None = None) -> Held | None:
        table = self._table()
        if table is None:
            return None
        found = iceberg.opened(self.text if version is None else f"{self.text}@{version}")
        if found.snapshot is None:
            return None
        files = []
        for task in found.tasks():
            path = local(task.file.file_path)
            whole = path is not None and not task.delete_files
            files.append(str(path) if whole else f"{task.file.file_path} (rows were deleted)")
        return _held(table.snapshot_by_id(found.snapshot), tuple(files))

    def history(self) -> list[Held]:
        table = self._table()
        found, at = [], table.current_snapshot() if table is not None else None
        while at is not None and table is not None:
            found.append(_held(at, ()))
            at = table.snapshot_by_id(at.parent_snapshot_id) if at.parent_snapshot_id is not None else None
        return found

    def made_from_it(self) -> list[str]:
        found, prefix = [], self.text.removesuffix(self.identifier)
        for identifier in iceberg.tables(self.catalog):
            table = self.catalog.load_table(identifier)
            for snapshot in table.metadata.snapshots:
                marks = _held(snapshot, ()).marks
                if marks.get("dpvae.source.table") == self.text:
                    found.append(f"{prefix}{'.'.join(identifier)}@{snapshot.snapshot_id} from "
                                 f"{marks.get('dpvae.source.snapshot-id')}")
        return found

    def write(self, files: Sequence[Path], marks: Mapping[str, str], *, replace: bool, expected: str | None) -> None:
        def attempt() -> None:
            table = self._table()
            assert table is not None
            if _head(table) != expected:
                raise moved(self.text, expected, _head(table))
            _commit(table, MAIN, files, marks, replace=replace)

        with told(self.text):
            again(attempt, CONFLICT, self.text)

    def stage(self, name: str, files: Sequence[Path], marks: Mapping[str, str]) -> None:
        def attempt() -> None:
            table = self._table()
            assert table is not None
            if name in table.metadata.refs:
                table.manage_snapshots().remove_branch(name).commit()
            head = table.current_snapshot()
            if head is not None:
                table.manage_snapshots().create_branch(head.snapshot_id, name).commit()
            _commit(table, name, files, marks, replace=head is not None)

        with told(self.text):
            again(attempt, CONFLICT, self.text)

    def staged(self, name: str) -> str | None:
        table = self._table()
        found = table.metadata.refs.get(name) if table is not None else None
        snapshot = table.snapshot_by_id(found.snapshot_id) if table is not None and found else None
        parent = snapshot.parent_snapshot_id if snapshot else None
        whole = snapshot is not None and table is not None and (str(parent) if parent else None) == _head(table)
        return name if whole else None  # a branch that does not stand on what readers see is of no use

    def publish(self, name: str, tag: str) -> None:
        def attempt() -> None:
            table = self._table()
            assert table is not None
            snapshot = table.snapshot_by_id(table.metadata.refs[name].snapshot_id)
            assert snapshot is not None
            base = str(snapshot.parent_snapshot_id) if snapshot.parent_snapshot_id is not None else None
            if _head(table) != base:
                raise moved(self.text, base, _head(table))
            change = table.manage_snapshots().create_tag(snapshot.snapshot_id, tag).remove_branch(name)
            change.set_current_snapshot(snapshot_id=snapshot.snapshot_id).commit()

        with told(self.text):
            again(attempt, CONFLICT, self.text)


def _head(table: IcebergTable) -> str | None:
    found = table.current_snapshot()
    return str(found.snapshot_id) if found is not None else None


def _held(snapshot: Any, files: tuple[str, ...]) -> Held:
    said = dict(snapshot.summary.additional_properties) if snapshot.summary else {}
    marks = {name: value for name, value in said.items() if name.startswith(MARK)}
    operation = snapshot.summary.operation.value if snapshot.summary else "append"
    return Held(str(snapshot.snapshot_id), files, marks, operation)


def _commit(table: IcebergTable, branch: str, files: Sequence[Path], marks: Mapping[str, str], *,
            replace: bool) -> None:
    """One snapshot: these files added, or in the place of all that were there."""
    old = [task.file for task in table.scan(snapshot_id=table.metadata.refs[branch].snapshot_id).plan_files()
           ] if replace else []
    new = parquet_files_to_data_files(io=table.io, table_metadata=table.metadata,
                                      file_paths=iter([file.as_uri() for file in files]))
    with table.transaction() as transaction:
        update = transaction.update_snapshot(snapshot_properties=dict(marks), branch=branch)
        with update.overwrite() if replace else update.fast_append() as change:
            for file in old:
                change.delete_data_file(file)
            for file in new:
                change.append_data_file(file)
