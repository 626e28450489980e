"""Delta tables, through deltalake: ``delta:PATH[@version]``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from dpvae.data import place
from dpvae.data.lake.arrow import first_line
from dpvae.data.lake.files import Versioned
from dpvae.data.lake.push import expression
from dpvae.data.where import Where
from dpvae.errors import ConfigError, DataError, DPVAEError

try:
    from deltalake import DeltaTable
    from deltalake.exceptions import TableNotFoundError
except ImportError as error:
    raise ConfigError("delta: deltalake is not installed; pip install 'dpvae[delta]'") from error


@contextmanager
def told(text: str) -> Iterator[None]:
    """What deltalake raises, as one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DPVAEError:
        raise
    except TableNotFoundError:
        raise DataError(f"{text}: no Delta table there; give the path of one") from None
    except Exception as problem:  # it raises built-in classes as well as its own
        raise DataError(f"{text}: {type(problem).__name__}: {first_line(problem)}; check the table") from problem


def opened(text: str) -> Delta:
    """The table at its newest version, or at the one after the @."""
    named = place.split(text)
    if named.version is not None and not named.version.isdigit():
        raise DataError(f"{text}: expected a version's number after @")
    with told(text):
        table = DeltaTable(named.name, version=int(named.version) if named.version else None)
        return Delta(text, str(Path(named.name).absolute()) if "://" not in named.name else named.name, table.version())


@dataclass(frozen=True)
class Delta(Versioned):
    """One version of a table."""

    text: str
    path: str
    snapshot: int | None = None
    columns: tuple[str, ...] | None = None
    where: Where | None = None

    def narrowed(self, columns: Sequence[str], where: Where | None) -> Delta:
        """See :class:`dpvae.data.lake.files.Narrowed`."""
        return replace(self, columns=tuple(columns), where=where)

    @cached_property
    def _dataset(self) -> Any:
        with told(self.text):
            return DeltaTable(self.path, version=self.snapshot).to_pyarrow_dataset()

    def schema(self) -> pa.Schema:
        return pa.schema([(f.name, pa.string() if f.type in (pa.large_string(), pa.string_view()) else f.type)
                          for f in self._dataset.schema if self.columns is None or f.name in self.columns])

    @cached_property
    def _said(self) -> Any:
        return None if self.where is None else expression(self.where, self._dataset.schema)

    @cached_property
    def _files(self) -> dict[str, Any]:
        return {fragment.path: fragment for fragment in self._dataset.get_fragments(self._said)}

    def parts(self) -> dict[str, str]:
        return dict.fromkeys(sorted(self._files), "")

    def row_count(self) -> int:
        """From the footers, without reading a row; private where the table is."""
        return sum(int(fragment.count_rows()) for fragment in self._files.values())

    def of_part(self, part: str, rows: int) -> Iterator[pa.RecordBatch]:
        schema = self.schema()
        with told(self.text):
            for batch in self._files[part].to_batches(
                    schema=self._dataset.schema, columns=schema.names, filter=self._said, batch_size=rows,
                    batch_readahead=1, fragment_readahead=1, use_threads=False):
                yield batch.cast(schema) if batch.schema != schema else batch

    def portable(self) -> Callable[[], Delta]:
        return partial(Delta, self.text, self.path, self.snapshot)
