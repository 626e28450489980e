"""What released counts say of one column: its categories, or its heaps and bins. Nothing private comes here.

:mod:`dpvae.data.survey` touches the rows and releases noisy counts; each function below takes a column and such counts
and returns the answers that close its open questions, so all of it is free.

>>> job = Column("job", "categorical", "string", nullable=False)
>>> categories(job, {"nurse": 40, "smith": 90}, left=3.0, sd=2.0)
{'categories': ('smith', 'nurse'), 'other': False, 'rare': None}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dpvae.data import bins as binning
from dpvae.data.schema import Category, Column

MOST_CATEGORIES = 96  # with a code of their own; rarer ones share a code, and are told apart by their counts alone
MOST_VALUES = 5000  # published of one column
LEVELS = 8  # values between a column's bounds, of which each has a code of its own
LIKELY = 2.0  # noise sds that make such a value one, where the histogram of magnitudes had it within bounds already
FEWEST_BINS = 8  # codes kept for bins, however many heaps there are
Answers = dict[str, Any]


def published(counts: Mapping[Category, int]) -> list[Category]:
    """The values that a column may have, most frequent first."""
    return sorted(counts, key=lambda v: (-counts[v], repr(v)))[:MOST_VALUES]


def categories(column: Column, counts: Mapping[Category, int], *, left: float, sd: float) -> Answers:
    """The published values, most frequent first; ``other`` for the rarest and for the ``left`` cells, if these are no
    noise of ``sd`` a count.

    The rarest of the published values share the code of ``other`` and keep their counts, to be told apart by.
    """
    values = published(counts)
    kept, shared = values[:MOST_CATEGORIES], values[MOST_CATEGORIES:]
    unseen = left > 3 * sd * math.sqrt(len(values) + 1) or (not kept and not column.nullable)
    weights = *(float(max(counts[v], 0)) for v in shared), max(left, 1.0) if unseen else 0.0
    if column.kind == "ordinal" and not any(isinstance(v, str) for v in kept):
        kept.sort()
    return {"categories": tuple(kept), "other": bool(unseen or shared),
            "rare": (tuple(shared), weights) if shared else None}


def bins(column: Column, grid: np.ndarray, heaps: tuple[float, ...], noisy: list[np.ndarray], *, sd: float,
         present: float, rows: float, usual: np.ndarray | None) -> Answers:
    """Heaps, edges and what lies between them, from the tables of a column's leaves.

    ``noisy[0]`` has a cell for each leaf of ``grid``, then one for each heap; the others are coarser copies of the
    leaves. ``present`` of the ``rows`` have a cell; ``usual`` is what each leaf holds as far as magnitudes tell.
    """
    leaves = len(grid) - 1
    if column.step and leaves <= LEVELS:
        return levels(column, heaps, noisy[0], sd=sd)
    total = present - float(noisy[0][leaves:].sum())
    doubt = binning.SIGNIFICANT * sd * math.sqrt(len(heaps) + 1)
    mass = binning.denoise([noisy[0][:leaves], *noisy[1:]], sd, max(total, doubt / 4), usual=usual)
    free = {name for name in ("lower", "upper") if name not in column.declared}
    if heaps and free and total <= doubt:
        return {"heaps": heaps, "edges": (), "lower": min(heaps), "upper": max(heaps)}
    if total <= min(doubt, rows / 2):  # next to nothing is there: one bin
        mass, grid = np.array([1.0]), grid[[0, -1]]
    held = binning.trim(mass) if free else slice(0, len(mass))
    held = slice(held.start if "lower" in free else 0, held.stop if "upper" in free else len(mass))
    return _cut(column, grid[held.start:held.stop + 1], mass[held], heaps, sd=sd, free=free)


def _cut(column: Column, grid: np.ndarray, mass: np.ndarray, heaps: tuple[float, ...], *, sd: float, free: set[str]
         ) -> Answers:
    cuts = binning.choose(grid, mass, sd, max(binning.CODES - len(heaps), FEWEST_BINS))
    within = binning.compress(grid, mass, cuts)
    repeats = not binning.is_small(column) and binning.repeats(grid, mass, sd)
    half = column.step / 2
    lower = min([column.on_grid(grid[0] + half), *heaps])
    upper = max([column.on_grid(grid[-1] - half), lower, *heaps])
    return {"heaps": heaps, "edges": _floats(grid[cuts]), "within": (_floats(within[0]), _rounded(within[1])),
            "repeats": repeats or None,
            **{k: float(v) for k, v in (("lower", lower), ("upper", upper)) if k in free}}


def levels(column: Column, heaps: tuple[float, ...], noisy: np.ndarray, *, sd: float) -> Answers:
    """So few values that each has a code of its own: all of a declared range, and of a measured one those seen."""
    points = [column.on_grid((column.lower or 0.0) + i * column.step) for i in range(len(noisy) - len(heaps))]
    seen = [value for value, count in zip(points, noisy.tolist(), strict=False) if count > LIKELY * sd]
    if {"lower", "upper"} <= {*column.declared}:
        seen = points
    kept = tuple(dict.fromkeys((*heaps, *seen))) or (points[int(np.argmax(noisy[:len(points)]))],)
    free = {"lower": min(kept), "upper": max(kept)}
    return {"heaps": kept, "edges": (), **{k: v for k, v in free.items() if k not in column.declared}}


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(v) for v in values)


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(v), 2) for v in values)
