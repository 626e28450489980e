"""A synthetic table of any length, drawn in shards: the same bytes for any number of workers, on any engine.

Every shard of :data:`SHARD` rows has a seed of its own, a function of the public seed and of where it begins, so it
can be drawn alone, anywhere. Each worker holds one shard in memory. A file holds :data:`PART` shards, whoever writes
it. A table of one shard is what it would be if it were drawn at once. Post-processing: costs no privacy.

    Shards(Path("runs/first/public")).sample_shard(seed=0, start=65_536, rows=1000)      # an Arrow record batch
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpvae.data import lake
from dpvae.data.lake import Cells
from dpvae.engines import mapped
from dpvae.errors import DataError, ReleaseError
from dpvae.release.marks import CERTIFICATE
from dpvae.release.sample import Sampler, first, load_public, readable

SHARD = 65_536  # rows
PART = 8  # shards in a file


class Shards:
    """The released model of a run's ``public`` folder, as a function of (seed, start, rows)."""

    def __init__(self, public: Path) -> None:
        self.vae, self.schema = load_public(public)

    def sample_shard(self, seed: int, start: int, rows: int) -> Any:
        """Rows ``start`` .. ``start + rows`` of the table that ``seed`` stands for, as one Arrow record batch.

        ``start`` is a multiple of :data:`SHARD`, ``rows`` at most that: a shorter shard is the last one of its table.
        """
        return lake.to_batch(self.cells(seed, start, rows)[0])

    def cells(self, seed: int, start: int, rows: int) -> tuple[dict[str, Cells], np.ndarray]:
        """The same as cells by column, and their codes (rows, D)."""
        if start % SHARD or not 0 < rows <= SHARD:
            raise DataError(f"start={start}, rows={rows}: expected a multiple of {SHARD}, and at most {SHARD} rows")
        sampler = Sampler(self.vae, self.schema, seed=seed)
        cells, codes = sampler.draw(rows, start, *(("shard", start // SHARD) if start else ()))
        return cells, sampler.codec.encode(readable(self.schema, cells), "clip") if codes is None else codes


@dataclass(frozen=True)
class Part:
    """What is known of a written file: rows, counts per column and label, and the first rows as mappings."""

    rows: int
    histograms: list[Any]
    sample: list[dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """The parts of one table; called, it gives the function that draws and writes part number n."""

    public: Path
    folder: Path
    rows: int
    seed: int
    marks: Mapping[str, str]
    stored: Mapping[str, int] | None  # of a lake table: its numbers of the columns, and its types; None: original types

    def __call__(self) -> Callable[[int], Part]:
        torch.set_num_threads(1)
        shards = Shards(self.public)
        return lambda number: self.write(shards, number)

    @property
    def parts(self) -> range:
        """Numbers of the files."""
        return range(-(-self.rows // (SHARD * PART)))

    def write(self, shards: Shards, number: int) -> Part:
        """Draw and write one file; it appears whole."""
        begin = number * SHARD * PART
        counts = [np.zeros(size, dtype=np.int64) for size in shards.schema.cardinalities]
        sample: list[dict[str, Any]] = []
        end = min(begin + SHARD * PART, self.rows)
        with lake.appending(self.folder / f"part-{number:05d}.parquet", "parquet", marks=self.marks,
                            stored=self.stored) as append:
            for start in range(begin, end, SHARD):
                cells, codes = shards.cells(self.seed, start, min(SHARD, end - start))
                append(cells)
                for j, total in enumerate(counts):
                    total += np.bincount(codes[:, j], minlength=len(total))
                sample = sample or first(cells, 10)
        return Part(end - begin, [total.tolist() for total in counts], sample if number == 0 else [])


def _check_room(job: Job) -> None:
    """Refuse a table that the disk cannot hold before hours are spent on it: one shard tells how large a row is."""
    probe = job.folder / "probe.parquet"
    with lake.appending(probe, "parquet", stored=job.stored) as append:
        append(Shards(job.public).cells(job.seed, 0, SHARD)[0])
    wanted, free = probe.stat().st_size / SHARD * job.rows, shutil.disk_usage(job.folder).free
    probe.unlink()
    if wanted > free:
        raise ReleaseError(f"rows={job.rows}: take about {wanted / 1e9:,.0f} GB, of which {free / 1e9:,.0f} GB are "
                           "free there; release fewer rows, or into another folder")


def table_writer(public: Path, rows: int, *, seed: int, engine: str = "local", workers: int | None = None,
                 stored: Mapping[str, int] | None = None) -> Callable[[Path, Mapping[str, str]], Mapping[str, Any]]:
    """What :func:`dpvae.release.bundle.write_release` calls to fill its data folder."""

    def write(folder: Path, marks: Mapping[str, str]) -> Mapping[str, Any]:
        # beside its certificate a file is the same whenever it is drawn; in a lake it must name it by digest
        said = marks if stored is not None else {name: value for name, value in marks.items() if name != CERTIFICATE}
        job = Job(public.absolute(), folder.absolute(), rows, seed, said, stored)
        if len(job.parts) > 1:
            _check_room(job)
        parts = list(mapped(job, job.parts, engine=engine, workers=workers))
        counts = [np.sum(column, axis=0).tolist() for column in zip(*(part.histograms for part in parts), strict=True)]
        return {"histograms": dict(zip(Shards(public).schema.names, counts, strict=True)),
                "rows": sum(part.rows for part in parts), "sample": parts[0].sample}

    return write

