"""Rows that hold a condition: ``{"sex": "Female", "age": (30, 40)}``. Post-processing: costs no privacy.

With the codebook prior the other columns follow the model's exact conditional law: the weight of point k is multiplied
by p(condition | k), and inside a point columns are independent. With the normal prior, points are draws of the prior,
so the law is exact in the limit (importance resampling); :class:`Evidence` says how many of them count.

A condition may be what no table of this kind would hold. The model gives every combination some probability, if only
that of its noise, and rows drawn on such ground mean nothing, so it is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from dpvae import checks
from dpvae.data import lake
from dpvae.data.cells import from_axis, to_axis, to_keys
from dpvae.data.dtypes import is_text
from dpvae.data.lake import Cells, Table
from dpvae.data.schema import Column, Schema
from dpvae.data.table import TableCodec
from dpvae.errors import DataError
from dpvae.models.mixture import Mixture, effective_size
from dpvae.models.vae import VAE
from dpvae.rng import seed_of

PROPOSALS = 65_536  # points of a normal prior from which those that fit are drawn
FEWEST_EFFECTIVE = 100.0  # of them must count
ISO = {"time": ("%H:%M", "%H:%M:%S"), "datetime": (
    "%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S")}
LEAST_PROBABILITY = 1e-7  # of a single value or range; less is noise
LEAST_LIFT = 1e-4  # p(condition) by the product of its parts; less is a contradiction


@dataclass(frozen=True)
class Evidence:
    """How likely a condition is under the model, and how many of its points it rests on."""

    probability: float
    effective: float  # points that count: 1 / sum of squared weights
    points: int

    def __str__(self) -> str:
        return (f"the model gives this condition a probability of {self.probability:.3g}; "
                f"{self.effective:.0f} of its {self.points} points carry it")


@dataclass(frozen=True)
class Conditions:
    """A condition in the model's terms: per column position, the share of each code that fulfils it."""

    schema: Schema
    masks: dict[int, torch.Tensor] = field(default_factory=dict)
    exact: dict[str, float] = field(default_factory=dict)  # a point of the axis, where a code may be a whole bin
    between: dict[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def parse(cls, schema: Schema, given: Mapping[str, Any]) -> Conditions:
        """A value, ``None`` for a missing cell, a pair (low, high) of a numeric column, or a list of alternatives."""
        conditions = cls(schema)
        for name, value in given.items():
            conditions._hold(schema.column(name), value)
        return conditions

    def _hold(self, column: Column, value: Any) -> None:
        position = self.schema.names.index(column.name)
        if isinstance(value, tuple) and len(value) == 2 and column.is_numeric:
            low, high = _ends(column, value)
            shares = TableCodec(Schema((column,))).shares(column.name, low, high)
            if not shares.any():
                raise DataError(f"given {column.name}={value!r}: the model holds no value between {column.text(low)} "
                                f"and {column.text(high)}; widen the range")
            self.between[column.name] = (low, high)
        else:
            several = isinstance(value, list | tuple | set | frozenset)
            shares = np.zeros(column.cardinality)
            for one in value if several else (value,):
                code, axis = code_of(column, one)
                shares[code] = 1.0
                if axis is not None and not several:
                    self.exact[column.name] = axis
        self.masks[position] = torch.as_tensor(shares)

    def evidence(self, mixture: Mixture) -> Evidence:
        """Raises :class:`DataError` where the condition is practically impossible under the model."""
        log_K = mixture.log_weights + mixture.log_evidence(self.masks)
        log_p = float(log_K.logsumexp(0))
        alone = {j: float((mixture.log_weights + mixture.log_evidence({j: mask})).logsumexp(0))
                 for j, mask in self.masks.items()}
        rarest = min(alone, key=lambda j: alone[j])
        if alone[rarest] < math.log(LEAST_PROBABILITY):
            raise DataError(f"given {self.schema.names[rarest]}: the model gives this a probability of "
                            f"{math.exp(alone[rarest]):.2g}: next to impossible; drop it from the condition")
        if log_p - sum(alone.values()) < math.log(LEAST_LIFT):
            names = ", ".join(self.schema.names[j] for j in self.masks)
            raise DataError(f"given {names}: the model gives this a probability of {math.exp(log_p):.2g}, where its "
                            f"parts alone would give {math.exp(sum(alone.values())):.2g}: next to impossible together; "
                            "fix fewer columns")
        return Evidence(math.exp(log_p), effective_size(log_K), mixture.points)

    def settle(self, cells: dict[str, Cells]) -> dict[str, Cells]:
        """Cells with what was asked for in full precision."""
        for name, axis in self.exact.items():
            rows = len(cells[name].values)
            cells[name] = from_axis(self.schema.column(name), np.full(rows, axis), np.zeros(rows, dtype=bool))
        return cells


def conditioned(vae: VAE, schema: Schema, given: Mapping[str, Any], *, seed: int) -> tuple[Mixture, Conditions,
                                                                                           Evidence]:
    """The model given a condition; see :class:`Evidence` for when it is refused."""
    conditions = Conditions.parse(schema, given)
    mixture = Mixture.of(vae, generator=torch.Generator().manual_seed(seed_of(seed, "given")), points=PROPOSALS,
                         double=vae.codebook is not None)
    evidence = conditions.evidence(mixture)
    if vae.codebook is None and evidence.effective < FEWEST_EFFECTIVE:
        raise DataError(f"given: {evidence.effective:.0f} of {mixture.points} latents fit; expected at least "
                        f"{FEWEST_EFFECTIVE:.0f}: the model holds this next to impossible, fix fewer columns")
    return mixture.given(conditions.masks), conditions, evidence


def code_of(column: Column, value: Any) -> tuple[int, float | None]:
    """The code that ``value`` falls under and, for a number or a date, its place on the column's axis."""
    cells = lake.read({column.name: lake.as_given(value)}, least=1).cells[0]
    if cells.missing[0]:
        if not column.nullable:
            raise DataError(f"given {column.name}=None: expected a value; the model knows no missing cells there")
        return column.cardinality - 1, None
    if not column.is_numeric:
        known, names = list(column.categories or ()), column.labels
        if column.kind == "boolean":
            value = value if isinstance(value, bool) else to_keys(column, cells)[0]
        spelled = dict(zip(names, known, strict=False))
        if value not in known and str(value) not in spelled:
            raise DataError(f"given {column.name}={cells.values[0]!r}: expected one of "
                            f"{', '.join(names[:len(known)])}{checks.did_you_mean(str(value), names[:len(known)])}")
        return known.index(value if value in known else spelled[str(value)]), None
    axis = _place(column, cells)
    low, high = column.lower, column.upper
    assert low is not None
    assert high is not None
    if not low <= axis <= high or (column.step and abs(column.on_grid(axis) - axis) > column.step / 1000):
        raise DataError(f"given {column.name}={value!r}: expected {column.kind} in {column.text(low)} .. "
                        f"{column.text(high)}, as precise as the column")
    code = TableCodec(Schema((column,))).encode(Table((column.name,), (cells,)), "clip")[0, 0]
    return int(code), axis


def _place(column: Column, cells: Cells) -> float:
    """The point of a column's axis that a person means: written as the column is, or a date or a time as ISO has it."""
    axis = float(to_axis(column, cells)[0])
    iso = ISO.get(column.kind or "", ()) if is_text(cells.dtype) else ()
    found = (float(to_axis(replace(column, format=format), cells)[0]) for format in iso)
    return axis if axis == axis else next((place for place in found if place == place), axis)


def _ends(column: Column, pair: tuple[Any, Any]) -> tuple[float, float]:
    """Both ends of a range on the column's axis; ``None`` is the column's own end."""
    assert column.lower is not None
    assert column.upper is not None
    ends = [column.lower, column.upper]
    for i, end in enumerate(pair):
        if end is not None:
            ends[i] = _place(column, lake.read({column.name: lake.as_given(end)}, least=1).cells[0])
    if not ends[0] <= ends[1] or ends[1] < column.lower or ends[0] > column.upper:
        raise DataError(f"given {column.name}={pair!r}: expected a low and a high end in "
                        f"{column.text(column.lower)} .. {column.text(column.upper)}")
    return max(ends[0], column.lower), min(ends[1], column.upper)
