"""Iceberg tables, through pyiceberg and the catalogs that its own configuration names.

``dpvae lake init WAREHOUSE`` makes the embedded default: a SQLite catalog beside a local warehouse, written into
``.pyiceberg.yaml`` of the working directory as the catalog ``default``. Whatever reads that file (pyiceberg's command
line, Ray, polars) finds the same tables; a REST, Glue or Hive catalog is another entry of it, and needs nothing here.

A scan of pyiceberg holds whole data files in memory, several at once. Here files are read one after the other, batch by
batch; only a file with row-level deletes, or of an older schema, is left to pyiceberg, which holds that one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pyarrow as pa
import pyarrow.parquet as pq

from dpvae.data import place
from dpvae.data.lake.arrow import first_line
from dpvae.data.lake.files import Versioned
from dpvae.data.lake.push import moment
from dpvae.data.where import Joined, Where
from dpvae.errors import ConfigError, DataError, DPVAEError

try:
    import yaml
    from pyiceberg import expressions
    from pyiceberg.catalog import Catalog, load_catalog
    from pyiceberg.exceptions import NoSuchTableError
    from pyiceberg.io.pyarrow import ArrowScan, schema_to_pyarrow
    from pyiceberg.schema import Schema
    from pyiceberg.table import FileScanTask, StaticTable
    from pyiceberg.table import Table as IcebergTable
    from pyiceberg.utils.config import Config
except ImportError as error:
    raise ConfigError("iceberg: pyiceberg is not installed; pip install 'dpvae[lake]'") from error

CONFIG = ".pyiceberg.yaml"
FIELD_ID = b"PARQUET:field_id"


def init(warehouse: str | Path, name: str = "default") -> str:
    """Make a warehouse with a SQLite catalog, and name it in the configuration; what is there already is left as it is.

    Returns a line about what was done.
    """
    folder, settings = Path(warehouse).absolute(), _read_settings()
    wanted = {"type": "sql", "uri": f"sqlite:///{folder / 'catalog.db'}", "warehouse": folder.as_uri()}
    known = _settings_of(name)
    if known and known.get("uri") != wanted["uri"]:
        raise ConfigError(f"lake: pyiceberg's configuration names the catalog {name!r} already ({known.get('uri')}); "
                          "use that one, or work in another folder")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"lake: {warehouse} is a file; name a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _told(str(warehouse)):
            load_catalog(name, **wanted)  # makes the database
        if not known:
            settings.setdefault("catalog", {})[name] = wanted
            Path(CONFIG).write_text(yaml.safe_dump(settings, sort_keys=False))
    except OSError as problem:
        raise ConfigError(f"lake: {warehouse} cannot be made ({problem.strerror or problem}); name another "
                          "folder") from None
    if _settings_of(name).get("uri") != wanted["uri"]:
        raise ConfigError(f"lake: another configuration comes before ./{CONFIG} (PYICEBERG_HOME, or one in the home "
                          f"folder); write into that one: catalog: {{{name}: {wanted}}}")
    return f"warehouse {warehouse}: " + ("was there already; nothing changed" if known else
                                         f"made, and named in ./{CONFIG} as the catalog {name!r}")


def _read_settings() -> dict[str, Any]:
    path = Path(CONFIG)
    found = yaml.safe_load(path.read_text()) if path.is_file() else None
    return found if isinstance(found, dict) else {}


def _settings_of(name: str) -> dict[str, Any]:
    try:
        return dict(Config().get_catalog_config(name) or {})
    except Exception as problem:  # strictyaml has a class of its own for every mistake
        raise ConfigError(f"{CONFIG}: cannot be read ({first_line(problem)}); repair it") from None


def catalog_of(text: str) -> tuple[Catalog, str]:
    """The catalog of ``iceberg:[catalog.]namespace.table`` and the identifier in it."""
    parts = place.split(text).name.split(".")
    name, settings = "default", {}
    if len(parts) > 2 and (settings := _settings_of(parts[0])):
        name, parts = parts[0], parts[1:]
    settings = settings or _settings_of("default")
    if not settings:
        raise DataError(f"{text}: no Iceberg catalog is configured here; make one with dpvae lake init WAREHOUSE, or "
                        f"name yours in ./{CONFIG}, see docs/lakehouse.md")
    with _told(text):
        return load_catalog(name, **settings), ".".join(parts)


def table_of(text: str) -> IcebergTable:
    """The table that ``text`` names, as it is now."""
    catalog, identifier = catalog_of(text)
    with _told(text):
        try:
            return catalog.load_table(identifier)
        except NoSuchTableError:
            there = [".".join(found) for found in tables(catalog)]
            raise DataError(f"{text}: no such table; there are {', '.join(there[:5]) or 'none'}") from None


def tables(catalog: Catalog) -> list[tuple[str, ...]]:
    """Identifiers of all tables."""
    return sorted(found for space in catalog.list_namespaces() for found in catalog.list_tables(space))


@contextmanager
def _told(text: str) -> Iterator[None]:
    """What pyiceberg, a catalog or a file system raises, as one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pyiceberg announces its own deprecations
            yield
    except DPVAEError:
        raise
    except Exception as problem:  # each backend raises classes of its own
        raise DataError(f"{text}: {type(problem).__name__}: {first_line(problem)}; check the catalog") from problem


told = _told


def opened(text: str) -> Iceberg:
    """The table at the snapshot, branch or tag after the @, or as it is now."""
    version, table = place.split(text).version, table_of(text)
    if version is None:
        current = table.current_snapshot()
        return Iceberg(text, table, current.snapshot_id if current else None)
    if found := table.metadata.refs.get(version):
        return Iceberg(text, table, found.snapshot_id)
    if version.isdigit() and table.snapshot_by_id(int(version)):
        return Iceberg(text, table, int(version))
    refs = ", ".join(sorted(table.metadata.refs)) or "none"
    raise DataError(f"{text}: no such snapshot, branch or tag; expected one of {refs}, or the number of a snapshot")


@dataclass(frozen=True)
class Iceberg(Versioned):
    """One snapshot of a table; ``None``: a table that was never written to. Its columns are those that it has now,
    or, where a version was asked for, those that it had then."""

    text: str
    table: IcebergTable
    snapshot: int | None = None
    columns: tuple[str, ...] | None = None
    where: Where | None = None

    def narrowed(self, columns: Sequence[str], where: Where | None) -> Iceberg:
        """See :class:`dpvae.data.lake.files.Narrowed`; files are left out by their statistics and partitions."""
        return replace(self, columns=tuple(columns), where=where)

    @cached_property
    def _projection(self) -> Schema:
        asked = place.split(self.text).version is not None
        whole = self.table.scan(snapshot_id=self.snapshot).projection() if asked else self.table.schema()
        return whole if self.columns is None else Schema(*(f for f in whole.fields if f.name in self.columns))

    def schema(self) -> pa.Schema:
        found = schema_to_pyarrow(self._projection, include_field_ids=False)
        return pa.schema([(f.name, pa.string() if f.type == pa.large_string() else f.type) for f in found])

    def tasks(self) -> list[FileScanTask]:
        """What is to be read, a data file each, in an order that never changes."""
        if self.snapshot is None:
            return []
        with _told(self.text):
            scan = self.table.scan(_said(self.where, self.schema()) if self.where else expressions.AlwaysTrue(),
                                   snapshot_id=self.snapshot)
            return sorted(scan.plan_files(), key=lambda task: task.file.file_path)

    def parts(self) -> dict[str, str]:
        """The data files, each with the files of its deleted rows."""
        return {task.file.file_path: " ".join(sorted(file.file_path for file in task.delete_files))
                for task in self.tasks()}

    def row_count(self) -> int:
        """From the footers, without reading a row; private where the table is."""
        return sum(task.file.record_count for task in self.tasks())

    def of_part(self, part: str, rows: int) -> Iterator[pa.RecordBatch]:
        """The rows of one data file."""
        schema, task = self.schema(), self._tasks[part]
        with _told(self.text):
            for batch in self._plain(task, rows) or self._with_pyiceberg(task):
                yield batch.cast(schema) if batch.schema != schema else batch

    @cached_property
    def _tasks(self) -> dict[str, FileScanTask]:
        return {task.file.file_path: task for task in self.tasks()}

    def portable(self) -> Callable[[], Iceberg]:
        """What opens this very snapshot again, in a process that knows no catalog."""
        properties = dict(self.table.io.properties)
        return partial(_reopened, self.text, self.table.metadata_location, self.snapshot, properties)

    def _plain(self, task: FileScanTask, rows: int) -> Iterator[pa.RecordBatch] | None:
        """Straight from the file, where it has every column and no deleted row; else ``None``."""
        if task.delete_files or str(task.file.file_format).rsplit(".", 1)[-1] != "PARQUET":
            return None
        stream = self.table.io.new_input(task.file.file_path).open()
        file = pq.ParquetFile(stream)
        found = {int(f.metadata[FIELD_ID]): f.name for f in file.schema_arrow if f.metadata and FIELD_ID in f.metadata}
        mapping = self.table.metadata.name_mapping()
        if not found and mapping is not None:
            ids = {name: each.field_id for each in mapping.root if each.field_id is not None for name in each.names}
            found = {ids[f.name]: f.name for f in file.schema_arrow if f.name in ids}
        wanted = [found.get(field.field_id) for field in self._projection.fields]
        if None in wanted:
            stream.close()
            return None
        return self._renamed(file, stream, wanted, rows)

    def _renamed(self, file: Any, stream: Any, wanted: Sequence[Any], rows: int) -> Iterator[pa.RecordBatch]:
        names = [field.name for field in self._projection.fields]
        with stream:
            for batch in file.iter_batches(batch_size=rows, columns=list(wanted), use_threads=False):
                yield batch.select(list(wanted)).rename_columns(names)

    def _with_pyiceberg(self, task: FileScanTask) -> Iterator[pa.RecordBatch]:
        scan = ArrowScan(self.table.metadata, self.table.io, self._projection, expressions.AlwaysTrue())
        return iter(scan.to_record_batches([task]))


def _said(where: Where, schema: pa.Schema) -> Any:
    """A bound condition for pyiceberg, or a wider one."""
    if isinstance(where, Joined):
        join = expressions.And if where.word == "and" else expressions.Or
        return join(*(_said(part, schema) for part in where.parts))
    kind, name = schema.field(where.column).type, where.column
    if where.op.startswith("is"):
        return expressions.NotNull(name) if where.op == "is not null" else (
            expressions.Or(expressions.IsNull(name), expressions.IsNaN(name)))
    if pa.types.is_decimal(kind):  # to which pyiceberg rounds
        return expressions.AlwaysTrue()
    values = [moment(value, kind) for value in where.values]
    if not isinstance(values[0], (bool, int, float, str)):
        values = [value.isoformat() for value in values]
    if where.op.endswith("in"):
        return (expressions.In if where.op == "in" else expressions.NotIn)(name, values)
    return {"=": expressions.EqualTo, "!=": expressions.NotEqualTo, "<": expressions.LessThan,
            "<=": expressions.LessThanOrEqual, ">": expressions.GreaterThan, ">=": expressions.GreaterThanOrEqual,
            }[where.op](name, values[0])


def local(location: str) -> Path | None:
    """The folder of a ``file:`` location; ``None`` for one that is elsewhere."""
    parsed = urlparse(location)
    if parsed.scheme not in ("file", ""):
        return None
    return Path(unquote(parsed.path) if parsed.scheme else location)


def _reopened(text: str, metadata: str, snapshot: int | None, properties: dict[str, str]) -> Iceberg:
    with _told(text):
        return Iceberg(text, StaticTable.from_metadata(metadata, properties), snapshot)
