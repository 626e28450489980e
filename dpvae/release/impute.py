"""Missing cells drawn from p(missing | observed): multiple imputation (Rubin 1987). Post-processing: costs no privacy.

With the codebook prior every draw is exact: a point from its posterior given the observed cells, then the missing
cells given the point. With the normal prior the points are draws of the prior, and the free encoder then moves each
row's latent by Metropolis-within-Gibbs steps (Mattei & Frellsen 2018). The table that is filled is yours: what comes
out holds its observed cells unchanged, and is as private as they are.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from dpvae.data.cells import from_axis, to_axis
from dpvae.data.dtypes import is_text
from dpvae.data.lake import Cells, Table
from dpvae.data.schema import Column, Schema
from dpvae.data.table import TableCodec
from dpvae.errors import DataError
from dpvae.models.mixture import Mixture, as_codes
from dpvae.models.vae import VAE
from dpvae.release.sample import readable_cells
from dpvae.rng import seed_of, stream
from dpvae.train.sleep import log_q

GIBBS_STEPS = 10


class Imputer:
    """Fills the holes of tables that have the columns of ``schema``."""

    def __init__(self, vae: VAE, schema: Schema, *, seed: int, outside: str = "error") -> None:
        self.vae, self.schema, self.seed, self.outside = vae, schema, seed, outside
        self.mixture = Mixture.of(vae, generator=torch.Generator().manual_seed(seed_of(seed, "impute", "points")))
        self.forbidden = [vae.likelihood.starts[j] + column.cardinality - 1
                          for j, column in enumerate(schema.columns) if column.nullable and column.cardinality > 1]

    def draw(self, table: Table, *names: str | int) -> Table:
        """One completed copy of ``table``; observed cells and types are kept. ``names`` tell the draws apart."""
        codes, observed = encode_partial(self.schema, table, self.outside)
        x_BD, seen_BD = as_codes(codes), torch.as_tensor(observed)
        generator = torch.Generator().manual_seed(seed_of(self.seed, "impute", *names))
        full_BD = self.mixture.complete(x_BD, seen_BD, generator=generator, forbidden=self.forbidden)
        if self.vae.codebook is None:
            full_BD = self._refined(full_BD, seen_BD, generator)
        return self._filled(table, full_BD.numpy(), observed, stream(self.seed, "impute", *names))

    @torch.no_grad()
    def _refined(self, x_BD: Tensor, seen_BD: Tensor, generator: torch.Generator) -> Tensor:
        """Metropolis-within-Gibbs: propose z from the encoder, accept by p(observed | z) p(z) / q(z | x), redraw."""
        vae = self.vae
        mean_BZ, _ = vae.encode(x_BD)
        z_BZ, places_BD = mean_BZ, vae.likelihood.flat(x_BD)
        for _ in range(GIBBS_STEPS):
            mean_BZ, log_std_BZ = vae.encode(x_BD)
            new_BZ = mean_BZ + log_std_BZ.exp() * torch.randn(mean_BZ.shape, generator=generator)
            weight_B = [torch.where(seen_BD, vae.likelihood.log_probs(vae.decode(z)).gather(1, places_BD), 0).sum(1)
                        + vae.prior.log_prob(z) - log_q(vae, x_BD, z) for z in (new_BZ, z_BZ)]
            taken_B = torch.rand(len(x_BD), generator=generator).log() < weight_B[0] - weight_B[1]
            z_BZ = torch.where(taken_B[:, None], new_BZ, z_BZ)
            log_BW = vae.likelihood.log_probs(vae.decode(z_BZ))
            log_BW[:, self.forbidden] = -torch.inf
            x_BD = torch.where(seen_BD, x_BD, vae.likelihood.sample(log_BW, generator=generator))
        return x_BD

    def _filled(self, table: Table, codes: np.ndarray, observed: np.ndarray, rng: np.random.Generator) -> Table:
        filled = []
        for j, (column, cells) in enumerate(zip(self.schema.columns, table.cells, strict=True)):
            holes = ~observed[:, j]
            if not holes.any():
                filled.append(cells)
                continue
            typed = column if cells.dtype == "null" else _typed(column, cells)  # nothing seen: no type either
            drawn = TableCodec(Schema((typed,))).decode(codes[holes, j:j + 1], rng)[column.name]
            if cells.dtype == "null":
                filled.append(drawn)
                continue
            values, missing = cells.values.copy(), cells.missing.copy()
            values[holes] = drawn.values if values.dtype != object else drawn.values.astype(str)
            missing[holes] = drawn.missing
            filled.append(Cells(values, missing, cells.dtype))
        return Table(table.names, tuple(filled))


def encode_partial(schema: Schema, table: Table, outside: str = "error") -> tuple[np.ndarray, np.ndarray]:
    """Codes (rows, D), 0 where a cell is missing, and which cells are observed, (rows, D) bool.

    A missing cell is a hole here, even where the model knows "missing" as a value.
    """
    if table.names != schema.names:
        raise DataError(f"columns={', '.join(table.names)}: expected those of fit, in their order: "
                        f"{', '.join(schema.names)}")
    codes = np.zeros((table.rows, len(schema.columns)), dtype=np.int64)
    observed = np.zeros(codes.shape, dtype=bool)
    for j, (column, cells) in enumerate(zip(schema.columns, table.cells, strict=True)):
        seen = ~cells.missing
        part = Cells(cells.values[seen], cells.missing[seen], cells.dtype)
        if seen.any():
            codes[seen, j] = TableCodec(Schema((column,))).encode(Table((column.name,), (part,)), outside)[:, 0]
        observed[:, j] = seen
    return codes, observed


def complete(vae: VAE, schema: Schema, table: Table, copies: int, *, seed: int) -> dict[str, Cells]:
    """Every partial row of ``table`` completed ``copies`` times, one after the other, in the schema's types."""
    codes, observed = encode_partial(schema, table)
    imputer = Imputer(vae, schema, seed=seed)
    generator = torch.Generator().manual_seed(seed_of(seed, "complete"))
    x_BD, seen_BD = as_codes(codes.repeat(copies, 0)), torch.as_tensor(observed.repeat(copies, 0))
    full = imputer.mixture.complete(x_BD, seen_BD, generator=generator, forbidden=imputer.forbidden).numpy()
    cells = TableCodec(schema).decode(full, stream(seed, "complete"))
    for j, (column, given) in enumerate(zip(schema.columns, table.cells, strict=True)):
        if column.is_numeric:  # a code may stand for a whole bin
            axis = np.where(observed[:, j], to_axis(column, given), np.nan).repeat(copies)
            drawn = to_axis(column, readable_cells(cells[column.name]))
            axis = np.where(np.isnan(axis), drawn, axis)
            cells[column.name] = from_axis(column, np.nan_to_num(axis), np.isnan(axis))
    return cells


def _typed(column: Column, cells: Cells) -> Column:
    """``column`` as one that is written in the type of ``cells``: drawn cells go where those stand."""
    if is_text(cells.dtype) or column.kind == "boolean":
        return column if is_text(column.dtype) else dataclasses.replace(column, dtype=cells.dtype)
    return dataclasses.replace(column, dtype=cells.dtype)
