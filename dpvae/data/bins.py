"""From noisy histograms to bounds, bins and the shape inside them: all of it post-processing, nothing is private.

The axis is cut twice. First into *scale cells*, four to an octave on both sides of zero, which cover every number
there is with a few hundred cells and tell where the data lies. Then into *leaves*: about four thousand, dealt out
to the scale cells by their noisy share. Leaves get fine where the data is, however long its tails.

A histogram of so many cells is mostly noise. :func:`denoise` first finds where there is anything at all: a block of
cells, of any size, whose noisy sum stands out. Then it splits the known total down the tree of blocks, unevenly only
where the noisy counts say so (Haar shrinkage, Donoho and Johnstone 1994, on the cells that are alive). What comes out
is coarse where data is thin, exact where it is plenty; it keeps spikes and has no fog in empty regions.

>>> noisy = np.array([1000.0, 990.0, 2.0, -3.0, 1.0, 0.0, 4.0, -2.0])
>>> denoise([noisy], sd=5.0, total=1990.0).tolist()
[995.0, 995.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from dpvae.data.dtypes import float_range, int_range
from dpvae.data.schema import CLOCK, Column

CODES = 32  # of a numeric column: heaps and bins together
LEAVES = 4096
PER_OCTAVE = 4
FIRST = -40  # octave of numbers without a grid
SMALLEST = 2.0**FIRST
BLOCKS = (1, 16, 256)  # cells of a table in one cell of its coarser copies
SIGNIFICANT = 4.0  # noise sds that a bin's mass must reach
FEWEST = 4  # bins all the same, of a histogram that hardly stands out of its noise: the tables to come have less
_YEARS = np.array([f"{year}-01-01" for year in (*range(1600, 1900, 50), *range(1900, 2100), *range(2100, 2550, 50))],
                  dtype="datetime64[s]").astype(np.float64)
_FALSE_ALARMS = 0.002  # expected number of empty blocks, of all sizes, taken for data
_BESIDE = 2.0  # noise sds that are enough beside a block that stands out
_NEAR = 3.0  # in blocks beyond the reach, of the size of a coarser copy's cells at most
_CROSS, _FEW = 4.0, 0.05  # noise sds, and of the mass, that show that a column goes beyond zero
_SPLIT = 3.0  # noise sds by which two halves must differ to be split unevenly
_TALL = 4.0  # times its neighbours: how dense a leaf is that holds a repeated value
_FEWEST, _SHARE = 3, 0.25  # such leaves, and of the mass that they must hold, for a column to be made of such values


def coarsened(cells: np.ndarray) -> list[np.ndarray]:
    """The histogram, and the same in blocks of 16 and of 256 cells where it has several such blocks.

    A table of its own keeps a large block's noise small: a sum over 256 noisy cells has 16 times the noise of one.

    >>> [len(table) for table in coarsened(np.ones(300, dtype=int))]
    [300, 19, 2]
    """
    blocks = [size for size in BLOCKS if size == 1 or len(cells) > size]
    return [np.add.reduceat(cells, np.arange(0, len(cells), size)) for size in blocks]


def denoise(noisy: Sequence[np.ndarray], sd: float, total: float, reach: int | None = None,
            usual: np.ndarray | None = None) -> np.ndarray:
    """The histogram behind the tables that :func:`coarsened` made and noise of ``sd`` per cell came upon.

    Non-negative, shape of ``noisy[0]``, summing to ``total``, which is known better than any sum of cells. Little
    evidence is enough beside cells that stand out; where ``reach`` is given, only in blocks of at most so many. What
    the counts do not tell apart in a block is dealt out in proportion to ``usual``; evenly where that is not given.
    """
    cells = len(noisy[0])
    sums, noise = _tree(noisy, sd)
    alive = _alive(sums, noise, reach or len(sums[-1]))
    alive[cells:] = 0.0
    counts = _halves(alive if usual is None else np.concatenate([alive[:cells] * usual, alive[cells:]]))
    mass = np.array([total])
    for level in range(1, len(sums)):
        (left, right), (few, many) = sums[level].reshape(-1, 2).T, counts[level].reshape(-1, 2).T
        even = mass * (few - many) / np.maximum(few + many, 1e-300)
        seen = left - right
        gap = np.where(np.abs(seen - even) > _SPLIT * noise[level] * math.sqrt(2), seen, even)
        first = np.clip((mass + gap) / 2, 0, mass)
        first = np.where(many == 0, mass, np.where(few == 0, 0.0, first))
        mass = np.column_stack([first, mass - first]).ravel()
    return mass[:cells]


def _halves(cells: np.ndarray) -> list[np.ndarray]:
    """Sums over blocks of halving size, from the whole (padded to a power of two) down to the cells."""
    size = 1 << max(len(cells) - 1, 0).bit_length()
    levels = [np.concatenate([cells, np.zeros(size - len(cells))])]
    while len(levels[-1]) > 1:
        levels.append(levels[-1].reshape(-1, 2).sum(axis=1))
    return levels[::-1]


def _tree(noisy: Sequence[np.ndarray], sd: float) -> tuple[list[np.ndarray], list[float]]:
    """Block sums from the whole down to the cells, each from the coarsest table that has it, and their noise."""
    depth = len(_halves(noisy[0]))
    sums: list[np.ndarray] = []
    noise: list[float] = []
    for block, table in reversed(list(zip(BLOCKS, noisy, strict=False))):
        wanted = depth - len(sums) - block.bit_length() + 1  # levels whose blocks this table can add up
        levels = _halves(np.concatenate([table, np.zeros((1 << (depth - 1)) // block - len(table))]))
        sums += levels[len(levels) - wanted:]
        noise += [sd * math.sqrt(1 << (wanted - 1 - i)) for i in range(wanted)]
    return sums, noise


def _alive(sums: list[np.ndarray], noise: list[float], reach: int) -> np.ndarray:
    """1 for the cells that may hold something: in or beside a block, of any size, that stands out of the noise."""
    clear = _clear(sums)
    stands_out = [s > max(clear * z, 0.5) for s, z in zip(sums, noise, strict=True)]
    for level in range(len(sums) - 2, -1, -1):
        stands_out[level] |= stands_out[level + 1].reshape(-1, 2).any(axis=1)
    kept = np.ones(1, dtype=bool)
    for level in range(1, len(sums)):
        inner = np.repeat(stands_out[level].reshape(-1, 2).any(axis=1), 2)  # something smaller stands out in there
        size = len(sums[-1]) >> level
        enough = _BESIDE if size <= reach else _NEAR if size <= BLOCKS[1] else clear
        beside = sums[level] > max(enough * noise[level], 0.5)
        kept = np.repeat(kept, 2) & (~inner | stands_out[level] | beside)
    return kept.astype(np.float64)


def _clear(sums: list[np.ndarray]) -> float:
    return NormalDist().inv_cdf(1 - _FALSE_ALARMS / (2 * len(sums[-1])))


def stands_out(noisy: Sequence[np.ndarray], sd: float) -> bool:
    """Whether any block of cells, smaller than the whole, shows that something is in it: see :func:`denoise`."""
    sums, noise = _tree(noisy, sd)
    clear = _clear(sums)
    return any(bool((s > max(clear * z, 0.5)).any()) for s, z in zip(sums[1:], noise[1:], strict=True))


def snap(edges: np.ndarray, step: float) -> np.ndarray:
    """Increasing edges, moved halfway between grid points so that a cell [a, b) keeps the points it had."""
    return np.unique((np.ceil(edges / step - 1e-9) - 0.5) * step) if step else np.unique(edges)


def scale_cells(column: Column) -> np.ndarray:
    """Edges of the scale cells, a function of the column's kind and grid alone."""
    first, last = FIRST, 128
    if column.kind == "integer":
        first, last = 0, 63
    elif column.kind == "datetime":
        return snap(_YEARS, column.step)
    elif column.step:
        first = math.floor(math.log2(column.step))
    octaves = np.repeat(np.arange(first, last), PER_OCTAVE)
    sizes = 2.0**octaves * (1 + np.tile(np.arange(PER_OCTAVE), last - first) / PER_OCTAVE)
    low, high = int_range(column.dtype) if column.kind == "integer" else float_range(column.dtype)
    edges = np.concatenate([-sizes[::-1], sizes])
    edges = np.unique(np.clip(edges, low, high + 1.0))
    return snap(edges, column.step)


def count(edges: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Histogram of the present values; what lies beyond an end counts in the cell at that end."""
    present = axis[~np.isnan(axis)]
    cell = np.clip(np.searchsorted(edges, present, side="right") - 1, 0, len(edges) - 2)
    return np.bincount(cell, minlength=len(edges) - 1)


def on_one_side(edges: np.ndarray, mass: np.ndarray, sd: float) -> np.ndarray:
    """Scale cells without what lies beyond zero, where that is little and may be noise: most columns have one sign.

    >>> on_one_side(np.array([-7.5, -0.5, 0.5, 8.5]), np.array([30.0, 500.0, 800.0]), sd=10.0).tolist()
    [0.0, 500.0, 800.0]
    """
    kept = mass.copy()
    for side in (edges[1:] < 0, edges[:-1] > 0):
        if mass[side].sum() < min(_CROSS * sd, _FEW * mass.sum()):
            kept[side] = 0.0
    return kept


def bounds(column: Column, edges: np.ndarray, mass: np.ndarray) -> tuple[float, float]:
    """Outer edges of the scale cells that hold denoised mass; declared bounds stand."""
    held = np.flatnonzero(mass > 0)
    low, high = (edges[held[0]], edges[held[-1] + 1]) if len(held) else (0.0, 0.0)
    if column.kind == "continuous":  # the cell around zero is zero
        low, high = (0.0 if abs(end) <= SMALLEST else end for end in (low, high))
    half = column.step / 2
    lower = column.lower if column.lower is not None else min(column.on_grid(low + half), _or(column.upper, np.inf))
    upper = column.upper if column.upper is not None else max(column.on_grid(high - half), lower)
    return float(lower), float(upper)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def is_small(column: Column) -> bool:
    """Whether every value between declared bounds gets a leaf of its own; then heaps need no search."""
    if not column.step or column.lower is None or column.upper is None:
        return False
    return (column.upper - column.lower) / column.step < LEAVES


def leaves(column: Column, edges: np.ndarray | None, mass: np.ndarray | None) -> np.ndarray:
    """Edges of the leaves between the column's bounds.

    With scale cells and their mass, each cell gets its share of the leaves. Without (both bounds are declared), half
    of the leaves are spread evenly and half by order of magnitude, because nothing is known about the shape yet.
    """
    half = column.step / 2
    lower, upper = _or(column.lower, 0.0) - half, _or(column.upper, 0.0) + half
    if upper <= lower:
        upper = lower + (column.step or 1e-6 * max(abs(lower), 1.0))
    if column.step and (upper - lower) / column.step <= LEAVES:
        points = round((upper - lower) / column.step)
        return lower + column.step * np.arange(points + 1)
    if edges is None or mass is None:
        raw = np.concatenate([np.linspace(lower, upper, LEAVES // 2 + 1), _magnitudes(column, lower, upper)])
    else:
        raw = _deal(edges, mass)
    inner = snap(raw[(raw > lower) & (raw < upper)], column.step)
    gap = half or (upper - lower) * 1e-9
    inner = inner[(inner > lower + gap) & (inner < upper - gap)]
    return np.concatenate([[lower], inner, [upper]])


def _magnitudes(column: Column, lower: float, upper: float) -> np.ndarray:
    if column.kind in CLOCK:
        return np.linspace(lower, upper, LEAVES // 2 + 2)
    sides = int(lower < 0) + int(upper > 0)
    largest = float(max(abs(lower), abs(upper)))
    sizes = largest * 2.0 ** np.linspace(-16, 0, LEAVES // 2 // max(sides, 1))
    return np.concatenate([-sizes, [0.0], sizes])


def expected(grid: np.ndarray, edges: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """What falls into each leaf of ``grid``, as far as the mass of the scale cells between ``edges`` tells; a little
    everywhere.

    >>> expected(np.array([0.0, 1.0, 4.0]), np.array([0.0, 2.0, 4.0]), np.array([6.0, 1.0])).round(3).tolist()
    [3.004, 4.004]
    """
    total = float(mass.sum())
    inside = np.diff(np.interp(grid, edges, np.concatenate([[0.0], np.cumsum(mass)])))
    return np.asarray(inside + 1e-3 * max(total, 1.0) / len(inside))


def _deal(edges: np.ndarray, mass: np.ndarray) -> np.ndarray:
    share = mass / max(mass.sum(), 1e-300)
    least = np.where(mass > 0, LEAVES // (4 * max(int(np.count_nonzero(mass)), 1)), 0)
    pieces = np.maximum(np.maximum(np.rint(share * LEAVES).astype(int), least), 2)
    return np.concatenate([np.linspace(a, b, n, endpoint=False) for a, b, n in
                           zip(edges[:-1], edges[1:], pieces, strict=True)] + [edges[-1:]])


def choose(leaf_edges: np.ndarray, mass: np.ndarray, sd: float, bins: int) -> np.ndarray:
    """Positions of the bin edges among ``leaf_edges``: at most ``bins`` bins of even mass, none lost in noise where
    there are more than FEWEST.

    A leaf that is a bin's worth by itself becomes one. Empty ends belong to the first and the last bin.
    """
    total = float(mass.sum())
    heavy = min(SIGNIFICANT * sd, total / FEWEST)
    low, high = max(total / bins / 4, heavy, 1e-12), max(total, 1e-12) * 1.01
    cuts = _cut(mass, low)
    if len(cuts) - 1 > bins:
        for _ in range(20):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if len(_cut(mass, middle)) - 1 > bins else (low, middle)
        cuts = _cut(mass, high)
    return np.array(cuts)


def _cut(mass: np.ndarray, least: float) -> list[int]:
    """Positions at which runs of leaves reach ``least``; a heavy leaf stands alone."""
    cuts, run = [0], 0.0
    for position, here in enumerate(mass.tolist()):
        if here >= least and position > cuts[-1]:
            if run >= least / 2:
                cuts.append(position)  # what ran up to here is a bin
            elif len(cuts) > 1:
                cuts[-1] = position  # too little for a bin: it joins the one before
            run = 0.0
        run += here
        if run >= least:
            cuts.append(position + 1)
            run = 0.0
    if cuts[-1] != len(mass):
        if run < least / 2 and len(cuts) > 1:
            cuts[-1] = len(mass)
        else:
            cuts.append(len(mass))
    return cuts


def repeats(leaf_edges: np.ndarray, mass: np.ndarray, sd: float) -> bool:
    """Whether a column is made of values that many rows share, as amounts on a form are: several leaves stand out of
    the noise and far out of their neighbours, and hold much of the mass.

    >>> repeats(np.arange(41.0), np.tile([100.0, 0.0, 10.0, 0.0], 10), sd=5.0)
    True
    >>> repeats(np.arange(41.0), np.full(40, 27.5), sd=5.0)
    False
    """
    density = np.concatenate([[0.0], mass / np.diff(leaf_edges), [0.0]])
    tall = (mass >= SIGNIFICANT * sd) & (density[1:-1] >= _TALL * np.maximum(density[:-2], density[2:])) & (mass > 0)
    return bool(tall.sum() >= _FEWEST and mass[tall].sum() >= _SHARE * mass.sum())


def trim(mass: np.ndarray) -> slice:
    """The leaves from the first to the last that hold mass; all of them where none does."""
    held = np.flatnonzero(mass > 0)
    return slice(int(held[0]), int(held[-1]) + 1) if len(held) else slice(0, len(mass))


def compress(leaf_edges: np.ndarray, mass: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same density with fewer leaves: equal neighbours are joined, except across the edges at ``keep``."""
    density = mass / np.diff(leaf_edges)
    change = np.abs(np.diff(density)) > 1e-6 * np.maximum(density[1:], density[:-1])
    starts = np.unique(np.concatenate([[0], np.flatnonzero(change) + 1, keep[:-1]]))
    return leaf_edges[np.append(starts, len(mass))], np.add.reduceat(mass, starts)
