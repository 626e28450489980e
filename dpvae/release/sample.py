"""From a released model to rows, and to the Parquet files of a release. Post-processing: costs no privacy.

The public seed makes it reproducible: the same run, seed and number of rows give the same table, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpvae.data import lake
from dpvae.data.lake import Cells
from dpvae.data.schema import Schema
from dpvae.data.table import TableCodec
from dpvae.models.vae import VAE
from dpvae.rng import seed_of, stream
from dpvae.train.checkpoint import load_model, read_json


def load_public(public: Path) -> tuple[VAE, Schema]:
    """The released model and schema of a run's ``public/`` folder."""
    return load_model(public), Schema.from_dict(read_json(public / "schema.json"))


def sample_codes(vae: VAE, rows: int, *, seed: int) -> np.ndarray:
    """Codes, (rows, D)."""
    generator = torch.Generator().manual_seed(seed_of(seed, "sample"))
    return vae.sample(rows, generator=generator).numpy()


def sample_cells(vae: VAE, schema: Schema, rows: int, *, seed: int) -> dict[str, Cells]:
    """Columns by name, in the original types."""
    return TableCodec(schema).decode(sample_codes(vae, rows, seed=seed), stream(seed, "decode"))


def table_writer(public: Path, rows: int, *, seed: int) -> Callable[[Path], Mapping[str, Any]]:
    """What :func:`dpvae.release.bundle.write_release` calls to fill its data folder."""

    def write(folder: Path) -> Mapping[str, Any]:
        vae, schema = load_public(public)
        codes = sample_codes(vae, rows, seed=seed)
        cells = TableCodec(schema).decode(codes, stream(seed, "decode"))
        lake.write_parquet(cells, folder / "part-00000.parquet")
        histograms = {column.name: np.bincount(codes[:, j], minlength=column.cardinality).tolist()
                      for j, column in enumerate(schema.columns)}
        return {"histograms": histograms, "rows": rows, "sample": _first(cells, 10)}

    return write


def _first(cells: Mapping[str, Cells], count: int) -> list[dict[str, Any]]:
    shown = lake.to_arrow({name: Cells(c.values[:count], c.missing[:count], c.dtype) for name, c in cells.items()})
    return [{name: value if isinstance(value, (int, float, bool, type(None))) else str(value)
             for name, value in row.items()} for row in shown.to_pylist()]
