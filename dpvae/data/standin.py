"""Made-up rows in the shape of a table that nobody opens: what a budget buys can be tried on them for free.

Only public facts go in: the header and the declared schema. Hidden groups make the columns depend on one another, so
that there is something to learn; what the schema leaves open is made up as well.

>>> from dpvae.data.schema import Schema
>>> age = {"name": "age", "kind": "integer", "dtype": "int64", "lower": 0, "upper": 99}
>>> schema = Schema.from_dict({"columns": [age]})
>>> table = made_up(schema, 5, seed=0)
>>> table.names, table.rows
(('age',), 5)
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from dpvae.data.dtypes import is_text
from dpvae.data.lake import CSV, Table
from dpvae.data.schema import DAY, SPELLINGS, Column, Schema
from dpvae.data.table import TableCodec
from dpvae.rng import stream

GROUPS = 8  # hidden, and what makes columns depend on one another
STRENGTH = 1.2  # of a group's own taste, in logits, beside the taste that all share
BINS = 24
LETTERS = tuple("abcdefgh")
FORMATS = {"datetime": "%Y-%m-%d", "time": "%H:%M"}
FROM, TO = 1577836800.0, 1735603200.0  # 2020-01-01 to 2024-12-31, in seconds


def made_up(schema: Schema, rows: int, *, seed: int) -> Table:
    """``rows`` made-up rows with the columns and types of ``schema``; ``seed`` is public."""
    whole = dataclasses.replace(schema, columns=tuple(answered(column, i) for i, column in enumerate(schema.columns)))
    rng = stream(seed, "stand-in")
    group = rng.choice(GROUPS, rows, p=rng.dirichlet(np.full(GROUPS, 2.0)))
    codes = np.stack([_codes(column, group, rng) for column in whole.columns], 1)
    cells = TableCodec(whole).decode(codes, rng)
    return Table(whole.names, tuple(c._replace(values=c.values.astype(str).astype(object)) if c.dtype == CSV else c
                                    for c in cells.values()))


def answered(column: Column, index: int) -> Column:
    """``column`` with every open question answered by something plausible."""
    kind = column.kind or _kind(column.dtype, index)
    known = dataclasses.replace(column, kind=kind, nullable=False, other=False, heaps=(), within=None, rare=None,
                                spelling=column.spelling or (SPELLINGS[0] if kind == "boolean" else None))
    if not known.is_numeric:
        return dataclasses.replace(known, categories=column.categories or (
            (False, True) if kind == "boolean" else LETTERS))
    low, high = {"datetime": (FROM, TO), "time": (0.0, DAY - 60)}.get(kind, (0.0, 100.0))
    below = column.upper - 1 if column.upper is not None else low
    lower = column.lower if column.lower is not None else min(low, below)
    upper = column.upper if column.upper is not None else max(high, lower + 1)
    known = dataclasses.replace(
        known, lower=lower, upper=upper, decimals=column.decimals if column.decimals is not None else
        2 if kind == "continuous" else None, unit=column.unit or {"datetime": "D", "time": "m"}.get(kind),
        format=column.format or (FORMATS.get(kind) if is_text(column.dtype) else None))
    half = known.step / 2
    bins = int(max(1, min(BINS, (upper - lower) / known.step + 1))) if known.step else BINS
    edges = np.linspace(lower - half, upper + half, bins + 1)
    return dataclasses.replace(known, edges=tuple(map(float, edges)))


def _kind(dtype: str, index: int) -> str:
    """For a column of which only the type is known, or (in a CSV file) not even that."""
    if dtype == CSV:
        return ("categorical", "continuous", "integer")[index % 3]
    for start, kind in (("bool", "boolean"), ("int", "integer"), ("uint", "integer"), ("timestamp", "datetime"),
                        ("date", "datetime"), ("time", "time"), ("float", "continuous"), ("double", "continuous")):
        if dtype.startswith(start):
            return kind
    return "categorical"


def _codes(column: Column, group: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """(rows,): ordered columns lean to a place of their group, others to its favourites."""
    values = column.values
    if column.is_numeric:
        centre = rng.uniform(0.15, 0.85, GROUPS) * values
        logits = -0.5 * ((np.arange(values)[None] - centre[:, None]) / (0.15 * values + 0.5)) ** 2
    else:
        logits = rng.normal(0, 1, values)[None] + STRENGTH * rng.normal(0, 1, (GROUPS, values))
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    below = shares.cumsum(1)[group]
    found: NDArray[np.int64] = (rng.random(len(group))[:, None] > below).sum(1).clip(max=values - 1).astype(np.int64)
    return found
