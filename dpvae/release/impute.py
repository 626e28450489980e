"""Missing cells drawn from p(missing | observed): multiple imputation (Rubin 1987). Post-processing: costs no privacy.

With the codebook prior every draw is exact: a point from its posterior given the observed cells, then the missing
cells given the point. With the normal prior the points are draws of the prior, and the free encoder then moves each
row's latent by Metropolis-within-Gibbs steps (Mattei & Frellsen 2018). The table that is filled is yours: what comes
out holds its observed cells unchanged, and is as private as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dpvae.data.cells import from_axis, spelled, to_axis
from dpvae.data.dtypes import is_text
from dpvae.data.lake import Cells, Table
from dpvae.data.schema import Column, Schema
from dpvae.data.table import TableCodec
from dpvae.errors import DataError
from dpvae.models.mixture import Mixture, as_codes
from dpvae.models.vae import VAE
from dpvae.release.constraints import ROUNDS, Given, Rows, broken, computed, enforce, repaired
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
        """One completed copy of ``table``; observed cells and types are kept. ``names`` tell the draws apart.

        Rows that break the schema's constraints are drawn again, :data:`~dpvae.release.constraints.ROUNDS` times at
        most, and then mended where a hole allows it: what is observed may break them by itself.
        """
        codes, observed = encode_partial(self.schema, table, self.outside)
        generator = torch.Generator().manual_seed(seed_of(self.seed, "impute", *names))
        rng = stream(self.seed, "impute", *names)
        filled = self._drawn(table, codes, observed, generator, rng)
        if not self.schema.constraints:
            return filled
        for _ in range(ROUNDS):
            bad = np.flatnonzero(self._broken(filled) & ~observed.all(1))
            if not len(bad):
                return filled
            again = self._drawn(table.take(bad), codes[bad], observed[bad], generator, rng)
            good = ~self._broken(again)
            filled = _replaced(filled, bad[good], again.take(good))
        bad = np.flatnonzero(self._broken(filled) & ~observed.all(1))
        return _replaced(filled, bad, self._changed(filled.take(bad), observed[bad], repaired))

    def _broken(self, table: Table) -> np.ndarray:
        return broken(self.schema, dict(zip(table.names, table.cells, strict=True)))

    def _drawn(self, table: Table, codes: np.ndarray, observed: np.ndarray, generator: torch.Generator,
               rng: np.random.Generator) -> Table:
        x_BD, seen_BD = as_codes(codes), torch.as_tensor(observed)
        full_BD = self.mixture.complete(x_BD, seen_BD, generator=generator, forbidden=self.forbidden)
        if self.vae.codebook is None:
            full_BD = self._refined(full_BD, seen_BD, generator)
        filled = self._filled(table, full_BD.numpy(), observed, rng)
        return self._changed(filled, observed, computed) if self.schema.constraints else filled

    def _changed(self, table: Table, observed: np.ndarray, change: Callable[[Schema, Rows, Given], Rows]) -> Table:
        """``table`` with its holes as ``change`` leaves them, in its own types."""
        columns = tuple(map(_typed, self.schema.columns, table.cells))
        rows = change(dataclasses.replace(self.schema, columns=columns),
                      dict(zip(table.names, table.cells, strict=True)),
                      {name: observed[:, j] for j, name in enumerate(table.names)})
        return Table(table.names, tuple(
            _put(old, ~observed[:, j], spelled(column, rows[column.name]), ~observed[:, j])
            if rows[column.name] is not old else old
            for j, (column, old) in enumerate(zip(columns, table.cells, strict=True))))

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
            drawn = TableCodec(Schema((_typed(column, cells),))).decode(codes[holes, j:j + 1], rng)[column.name]
            if cells.dtype == "null":
                filled.append(drawn)
                continue
            filled.append(_put(cells, holes, spelled(column, drawn)))
        return Table(table.names, tuple(filled))


def _replaced(table: Table, where: np.ndarray, by: Table) -> Table:
    """``table`` with the rows at ``where`` replaced."""
    return Table(table.names, tuple(_put(old, where, new) for old, new in zip(table.cells, by.cells, strict=True)))


def _put(cells: Cells, where: np.ndarray, by: Cells, index: np.ndarray | slice = slice(None)) -> Cells:
    """``cells`` with those at ``where`` replaced by the cells ``index`` of ``by``, as they are written there."""
    values, missing = cells.values.copy(), cells.missing.copy()
    new = by.values[index]
    values[where] = new if values.dtype != object else new.astype(str)
    missing[where] = by.missing[index]
    return Cells(values, missing, cells.dtype)


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
    """Every partial row of ``table`` completed ``copies`` times, one after the other, in the schema's types and within
    its constraints."""
    codes, observed = encode_partial(schema, table)
    imputer = Imputer(vae, schema, seed=seed)
    generator, rng = torch.Generator().manual_seed(seed_of(seed, "complete")), stream(seed, "complete")
    known = [to_axis(column, cells) if column.is_numeric else None  # a code may stand for a whole bin
             for column, cells in zip(schema.columns, table.cells, strict=True)]

    def draw(row: np.ndarray) -> dict[str, Cells]:
        full = imputer.mixture.complete(as_codes(codes[row]), torch.as_tensor(observed[row]), generator=generator,
                                        forbidden=imputer.forbidden).numpy()
        cells = TableCodec(schema).decode(full, rng)
        for j, (column, axis) in enumerate(zip(schema.columns, known, strict=True)):
            if axis is not None:
                place = np.where(observed[row, j], axis[row], to_axis(column, readable_cells(cells[column.name])))
                cells[column.name] = from_axis(column, np.nan_to_num(place), np.isnan(place))
        return cells

    rows = np.arange(table.rows).repeat(copies)
    given = {name: observed[rows, j] for j, name in enumerate(schema.names)}
    return enforce(schema, draw(rows), first=0, seed=seed, redraw=lambda index: draw(rows[index]), given=given)


def _typed(column: Column, cells: Cells) -> Column:
    """``column`` as one that is written in the type of ``cells``: drawn cells go where those stand."""
    if cells.dtype == "null":  # nothing seen: no type either
        return column
    if is_text(cells.dtype):
        return column if is_text(column.dtype) else dataclasses.replace(column, dtype=cells.dtype)
    return dataclasses.replace(column, dtype=cells.dtype)
