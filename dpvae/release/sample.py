"""From a released model to rows. Post-processing: costs no privacy.

The public seed makes it reproducible: the same run, seed and number of rows give the same table, bit by bit. A
:class:`Sampler` draws in blocks of their own seeds, so it needs no memory for a long table, and the first rows of a
long table are the rows of a short one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpvae.data import lake
from dpvae.data.lake import Cells, Table
from dpvae.data.schema import Schema
from dpvae.data.table import TableCodec
from dpvae.errors import DataError
from dpvae.files import read_json
from dpvae.models.mixture import Mixture
from dpvae.models.vae import VAE
from dpvae.release.condition import Conditions, Evidence, code_of, conditioned
from dpvae.release.constraints import enforce
from dpvae.rng import seed_of, stream
from dpvae.train.checkpoint import load_model

BLOCK = 8192  # rows


def load_public(public: Path) -> tuple[VAE, Schema]:
    """The released model and schema of a run's ``public/`` folder."""
    return load_model(public), Schema.from_dict(read_json(public / "schema.json"))


def sample_codes(vae: VAE, rows: int, seed: int, *names: str | int) -> np.ndarray:
    """Codes, (rows, D)."""
    generator = torch.Generator().manual_seed(seed_of(seed, "sample", *names))
    return vae.sample(rows, generator=generator).numpy()


class Sampler:
    """Rows of one model, of any number: under a condition, with another balance, within the schema's constraints.

    Args:
        given: see :meth:`dpvae.release.condition.Conditions.parse`.
        balance: new shares of the values of ``label``, such as ``{">50K": 0.5, "<=50K": 0.5}``, or ``even``: the rows
            of each value follow the model given it, only their numbers change.
        label: the column that is balanced; ``None`` for the schema's target.
    """

    def __init__(self, vae: VAE, schema: Schema, *, seed: int, given: Mapping[str, Any] | None = None,
                 balance: Mapping[str, float] | str | None = None, label: str | None = None) -> None:
        self.vae, self.schema, self.seed = vae, schema, seed
        self.codec, self.conditions = TableCodec(schema), Conditions(schema)
        self.evidence: Evidence | None = None
        self._mixture: Mixture | None = None
        if given:
            self._mixture, self.conditions, self.evidence = conditioned(vae, schema, given, seed=seed)
        if balance is not None:
            mixture = self._mixture or Mixture.of(vae, generator=torch.Generator().manual_seed(seed_of(seed, "given")))
            self._mixture = self._balanced(mixture, balance, label or schema.target)

    def rows(self, rows: int) -> dict[str, Cells]:
        """``rows`` rows at once, by column, in the original types."""
        return self.draw(rows, 0)[0]

    def draw(self, rows: int, first: int, *names: str | int) -> tuple[dict[str, Cells], np.ndarray | None]:
        """``rows`` rows, numbered from ``first``, from the streams called ``names``; and their codes (rows, D), where
        nothing was changed after they were drawn."""
        if not self._plain:
            return self._settled(rows, first, *names), None
        codes = sample_codes(self.vae, rows, self.seed, *names)
        return self.codec.decode(codes, stream(self.seed, "decode", *names)), codes

    def blocks(self, rows: int) -> Iterator[dict[str, Cells]]:
        """The same law in blocks of :data:`BLOCK` rows; row i is the same however many rows are asked for."""
        for number, first in enumerate(range(0, rows, BLOCK)):
            cells = self._settled(BLOCK, first, "block", number)
            yield {name: Cells(c.values[:rows - first], c.missing[:rows - first], c.dtype) for name, c in cells.items()}

    @property
    def _plain(self) -> bool:
        return self._mixture is None and not self.schema.constraints

    def _settled(self, rows: int, first: int, *names: str | int) -> dict[str, Cells]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, "sample", *names))
        rng = stream(self.seed, "decode", *names)

        def draw(count: int) -> dict[str, Cells]:
            if self._mixture is None:
                codes = self.vae.sample(count, generator=generator).numpy()
            else:
                codes = self._mixture.sample(count, generator=generator).numpy()
            return self.conditions.settle(self.codec.decode(codes, rng, self.conditions.between))

        held = np.ones(rows, dtype=bool)
        given = {self.schema.names[j]: held for j in self.conditions.masks}
        return enforce(self.schema, draw(rows), first=first, seed=self.seed, redraw=lambda index: draw(len(index)),
                       given=given)

    def _balanced(self, mixture: Mixture, balance: Mapping[str, float] | str, label: str | None) -> Mixture:
        if label is None:
            raise DataError("balance: the schema names no target; say which column with label=")
        column = self.schema.column(label)
        if balance == "even":
            balance = dict.fromkeys(map(str, column.categories or ()), 1.0)
        if not isinstance(balance, Mapping) or not balance or column.is_numeric:
            raise DataError(f"balance={balance!r} of {label}: expected even, or a share for each category, such as "
                            '{">50K": 0.5, "<=50K": 0.5}')
        if any(isinstance(s, bool) or not isinstance(s, int | float) or not s >= 0 for s in balance.values()) or (
                not sum(balance.values()) > 0):
            raise DataError(f"balance={dict(balance)!r}: expected shares that are not negative, and one above 0")
        shares = {code_of(column, value)[0]: float(share) for value, share in balance.items()}
        return mixture.balanced(self.schema.names.index(label), shares)


def sample_cells(vae: VAE, schema: Schema, rows: int, *, seed: int) -> dict[str, Cells]:
    """Columns by name, in the original types."""
    return Sampler(vae, schema, seed=seed).rows(rows)


def drawn(vae: VAE, schema: Schema, rows: int, *, seed: int) -> tuple[dict[str, Cells], np.ndarray]:
    """Rows as they are released, and their codes (rows, D)."""
    if schema.constraints:
        cells = sample_cells(vae, schema, rows, seed=seed)
        return cells, TableCodec(schema).encode(readable(schema, cells), "clip")
    codes = sample_codes(vae, rows, seed)
    return TableCodec(schema).decode(codes, stream(seed, "decode")), codes


class _Middle:
    """Stands in for a random generator where the middle of a bin is wanted."""

    def random(self, size: int) -> np.ndarray:
        return np.full(size, 0.5)

    def integers(self, high: int, size: int) -> np.ndarray:
        return np.zeros(size, dtype=np.int64)


@torch.no_grad()
def likeliest(vae: VAE, schema: Schema, z_BZ: np.ndarray) -> dict[str, Cells]:
    """The most likely cell of each column given a latent; a bin stands for its median."""
    logits_BW = vae.decode(torch.as_tensor(z_BZ))
    codes = torch.stack([part.argmax(-1) for part in logits_BW.split(vae.likelihood.sizes, -1)], -1)
    middle: Any = _Middle()
    return TableCodec(schema).decode(codes.numpy(), middle)


def readable(schema: Schema, cells: Mapping[str, Cells]) -> Table:
    """Released cells as a table that :class:`TableCodec` can read again: cells for a CSV file are text there."""
    return Table(schema.names, tuple(map(readable_cells, cells.values())))


def readable_cells(cells: Cells) -> Cells:
    """Typed cells of a CSV column as the text they are written as."""
    return cells._replace(values=cells.values.astype(str).astype(object)) if cells.dtype == lake.CSV else cells


def parse_given(text: str) -> dict[str, Any]:
    """The conditions of a command line, as JSON: ``low..high`` is a range, ``a|b`` are alternatives, null is missing.

    >>> parse_given('{"sex": "Female", "age": "30..40", "race": "White|Black"}')
    {'sex': 'Female', 'age': ('30', '40'), 'race': ['White', 'Black']}
    """
    try:
        given = json.loads(text)
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise DataError(f"given={text!r}: expected given.COLUMN=VALUE, or the file of a table of partial rows")
    return {name: _one_given(value) for name, value in given.items()}


def _one_given(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    low, dots, high = value.partition("..")
    if dots:
        return (low or None, high or None)
    return value.split("|") if "|" in value else value


def first(cells: Mapping[str, Cells], count: int) -> list[dict[str, Any]]:
    """The first ``count`` rows, by column, as JSON knows them."""
    shown = lake.to_arrow({name: Cells(c.values[:count], c.missing[:count], c.dtype) for name, c in cells.items()})
    return [{name: value if isinstance(value, (int, float, bool, type(None))) else str(value)
             for name, value in row.items()} for row in shown.to_pylist()]
