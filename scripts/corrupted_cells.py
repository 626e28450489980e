#!/usr/bin/env python3
"""One corrupted cell in each row, by several laws; and how often the best detector that real rows can train finds it.

    domain    any other value of the column's domain, each as likely
    marginal  another value, drawn as often as the column holds it
    entry     an error of entry: a slip of the decimal point, a sign, two letters swapped

:func:`ceiling` is no part of dpvae and not private: a network sees real rows with one cell changed, as often as it
likes, and learns which cell it was. What it misses, hardly anybody can be expected to find. Integer and categorical
columns.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dpvae.data.cells import to_axis
from dpvae.data.lake import Cells, Table
from dpvae.data.schema import Schema

LAWS = ("entry", "domain", "marginal")
SMALL = 120  # values of a column that the network tells apart one by one
QUANTILES, SEEN, REPEATED = 60, 40, 2000
WIDTH, BATCH, RATE = 320, 1024, 2e-3


def corrupted(table: Table, schema: Schema, law: str, rng: np.random.Generator) -> tuple[Table, np.ndarray]:
    """The rows of ``table``, one cell of each changed by ``law``, and which one, (rows,)."""
    if law != "entry":
        values, where = changed(numbers(table, schema), bounds(schema), law, rng, numbers(table, schema))
        return _spelled(values, schema), where
    columns = [cells.values.astype(str).tolist() for cells in table.cells]
    where = rng.integers(len(schema.columns), size=table.rows)
    for i, j in enumerate(where):
        while (new := _slip(columns[j][i], schema.columns[j].is_numeric, rng)) == columns[j][i]:
            pass
        columns[j][i] = new
    return _text(schema, columns), where


def _slip(old: str, numeric: bool, rng: np.random.Generator) -> str:
    if numeric:
        number = float(old)
        return f"{rng.choice([number * 10, number * 100, -number] if number else [-1.0, 999_999.0]):.0f}"
    at = int(rng.integers(max(len(old) - 1, 1)))
    typo = old[:at] + old[at + 1:at + 2] + old[at:at + 1] + old[at + 2:] + ("" if len(old) > 2 else "x")
    return typo if typo != old else old + "x"


def _text(schema: Schema, columns: list[list[str]]) -> Table:
    """Cells as a CSV file holds them."""
    nothing = np.zeros(len(columns[0]), dtype=bool)
    return Table(schema.names, tuple(Cells(np.array(c, dtype=object), nothing, "csv") for c in columns))


def _spelled(values: np.ndarray, schema: Schema) -> Table:
    return _text(schema, [[str(v) if column.is_numeric else str((column.categories or ())[v]) for v in part]
                          for column, part in zip(schema.columns, values.T.tolist(), strict=True)])


def numbers(table: Table, schema: Schema) -> np.ndarray:
    """Every cell as a whole number: its value, or its category's place, (rows, D)."""
    found = []
    for column, cells in zip(schema.columns, table.cells, strict=True):
        place = {str(category): i for i, category in enumerate(column.categories or ())}
        found.append(to_axis(column, cells).astype(np.int64) if column.is_numeric
                     else np.array([place[str(value)] for value in cells.values.tolist()]))
    return np.stack(found, 1)


def bounds(schema: Schema) -> np.ndarray:
    """The least and the greatest number of each column, (2, D)."""
    ends = [(int(c.lower or 0), int(c.upper or 0)) if c.is_numeric else (0, len(c.categories or ()) - 1)
            for c in schema.columns]
    return np.array(ends).T


def changed(values: np.ndarray, ends: np.ndarray, law: str, rng: np.random.Generator,
            pool: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``values`` (rows, D) with one cell of each row changed, and which; ``pool`` (N, D) holds the marginals."""
    values, where = values.copy(), rng.integers(values.shape[1], size=len(values))
    for j in range(values.shape[1]):
        rows = left = np.flatnonzero(where == j)
        old = values[rows, j].copy()
        while len(left):
            values[left, j] = (rng.integers(ends[0, j], ends[1, j] + 1, size=len(left)) if law == "domain"
                               else pool[rng.integers(len(pool), size=len(left)), j])
            left = rows[values[rows, j] == old]
    return values, where


@dataclass(frozen=True)
class _Places:
    """Rows of numbers as places in one table of embeddings."""

    ends: np.ndarray
    quantiles: list[np.ndarray]
    seen: list[tuple[np.ndarray, np.ndarray]]  # values, how often

    @classmethod
    def of(cls, train: np.ndarray, ends: np.ndarray) -> _Places:
        steps = np.linspace(0, 1, QUANTILES)
        return cls(ends, [np.unique(np.quantile(column, steps)) for column in train.T],
                   [np.unique(column, return_counts=True) for column in train.T])

    def __call__(self, values: np.ndarray) -> tuple[Tensor, int]:
        found, width = [], 0
        for (low, high), edges, (known, counts), column in zip(self.ends.T, self.quantiles, self.seen, values.T,
                                                               strict=True):
            if high - low <= SMALL:
                found.append(width + column - low)
                width += high - low + 1
                continue
            found.append(width + np.searchsorted(edges, column, side="right"))
            width += len(edges) + 1
            if len(known) < REPEATED:  # values that come again: has this one been seen?
                at = np.searchsorted(known, column).clip(0, len(known) - 1)
                found.append(width + np.where(known[at] == column, counts[at], 0).clip(0, SEEN))
                width += SEEN + 1
        return torch.as_tensor(np.stack(found, 1)), width


class _Detector(nn.Module):
    """Rows of places to a score for each column."""

    def __init__(self, width: int, columns: int) -> None:
        super().__init__()
        self.first = nn.EmbeddingBag(width, WIDTH, mode="sum")
        nn.init.normal_(self.first.weight, std=0.2)
        self.rest = nn.Sequential(nn.LayerNorm(WIDTH), nn.SiLU(), nn.Dropout(0.1), nn.Linear(WIDTH, WIDTH), nn.SiLU(),
                                  nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, columns))

    def forward(self, places: Tensor) -> Tensor:
        return self.rest(self.first(places))


def ceiling(train: Table, test: Table, schema: Schema, law: str, *, seconds: float) -> dict[str, float]:
    """How often the detector that learned from ``train`` for so long names the corrupted cell of a row of ``test``
    first (``top1``), and how often it expects to (``expected``: its mean greatest probability)."""
    known, ends, rng = numbers(train, schema), bounds(schema), np.random.default_rng(0)
    places = _Places.of(known, ends)
    torch.manual_seed(0)
    detector = _Detector(places(known[:1])[1], len(schema.columns))
    optimiser = torch.optim.AdamW(detector.parameters(), lr=RATE, weight_decay=1e-4)
    start = time.process_time()
    while (spent := (time.process_time() - start) / seconds) < 1:
        optimiser.param_groups[0]["lr"] = RATE * (0.5 + 0.5 * math.cos(math.pi * spent)) + 1e-5
        rows, where = changed(known[rng.integers(len(known), size=BATCH)], ends, law, rng, known)
        optimiser.zero_grad()
        functional.cross_entropy(detector(places(rows)[0]), torch.as_tensor(where)).backward()
        optimiser.step()
    table, where = corrupted(test, schema, law, np.random.default_rng(0))
    detector.eval()
    with torch.no_grad():
        p_BD = detector(places(numbers(table, schema))[0]).softmax(1).numpy()
    return {"top1": float((p_BD.argmax(1) == where).mean()), "expected": float(p_BD.max(1).mean())}
