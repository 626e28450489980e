"""What the survey answers where nothing stands out of its noise: the likeliest entry of a public list.

A table of 200 rows has no class of cells and no order of magnitude that passes the usual tests at epsilon 1. To answer
"anything is possible" makes numbers of 1e37; the noisy counts say more than that, since it is known how many rows they
count in all. So each entry of a short list made beforehand (this class; between 0 and 64; this decade) is weighed by
how likely it makes the noisy counts that came out and by how common it is among tables; the likeliest is taken, or
the mean of the likely ones.
What goes in are released numbers and constants, so this costs nothing. An answer that noise alone would have brought up
as easily is a bare guess, and the schema says so.

>>> counts = np.array([3.0, 41.0, -7.0])
>>> log_likelihood([counts], [np.eye(3)], sd=10.0, rows=50.0).round(1)  # all 50 in the second cell
array([-11.,   8., -16.])
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvae.data.schema import Column

Array = NDArray[np.float64]
Range = tuple[float, float, str, float]  # from, to, how values lie between them, nats against it
CLEAR = 4.0  # nats beyond the logarithm of the list's length: noise alone brings that once in fifty surveys
USUAL_OCTAVE, PER_OCTAVE = 6, 0.3  # the usual largest value of a column is 2^6; nats by octave away from it
OCTAVES = range(-20, 42)  # of largest values that are considered
SIDES: tuple[Range, ...] = (  # in units of the largest value
    (0, 1, "even", 0.0), (0, 1, "low", 0.5), (1 / 4, 1, "even", 0.5), (1 / 4, 1, "bell", 1.0), (-1, 1, "even", 1.0),
    (-1, 1, "bell", 1.0), (-1, 1, "low", 2.0), (-1, 0, "even", 3.0), (-1, 0, "low", 3.5), (-1, -1 / 4, "even", 3.5))
LOW = 64  # times smaller than the largest value: from there on a column of mostly small values is even over the scale
YEARS = tuple((first, first + span) for span in (1, 5, 20, 80) for first in range(1900, 2050, min(span, 10)))
USUAL_YEAR, PER_YEAR = 2015, 0.05
CLASSES = {"integer": 1.2, "text": 1.4, "false or true": 3.0, "False or True": 3.0, "%Y-%m-%d": 3.0}  # nats against
# a class of cells
DECIMALS, OTHER_CLASS = 2.5, 5.0  # against a number with that many decimals; against any other class
EMPTY = 6.0  # against a column without cells
FEWER = 0.2  # of the numbers of a column, that need one decimal less than the others
TAIL = 0.02  # of the mean of likely ranges, left out at each end
NAMED = 8  # columns in a sentence
MOST = 0.9  # of a column's cells, that are expected of one class


def log_likelihood(noisy: Sequence[Array], shapes: Sequence[Array], sd: float, rows: float) -> Array:
    """Log likelihood ratio of each entry against empty tables, shape (entries,).

    ``noisy``: released tables; ``shapes``: for each of them, by entry (rows), the share of all ``rows`` in its cells.
    """
    return np.asarray(sum(((rows * shape) @ table - 0.5 * (rows * shape) ** 2 @ np.ones(len(table))) / sd**2
                          for table, shape in zip(noisy, shapes, strict=True)))


def kind(column: Column, noisy: Mapping[str, float], sd: float, rows: float) -> tuple[str | None, bool]:
    """The likeliest class of cells, of those that ``noisy`` counts, and whether that is a bare guess; ``None``: the
    likeliest is that there are none."""
    against = np.array([_against(column, name) for name in noisy])
    counts, shapes = np.array(list(noisy.values())), MOST * np.eye(len(noisy))
    for i, (coarser, name) in enumerate(pairwise(noisy)):
        if coarser.startswith("decimals") and name.startswith("decimals"):  # one in ten numbers ends in a zero, or more
            shapes[i + 1, i:i + 2] = FEWER, MOST - FEWER
    evidence = log_likelihood([counts], [shapes], sd, rows)
    best = int(np.argmax(evidence - against))
    return list(noisy)[best] if evidence[best] - against[best] > -EMPTY else None, _bare(evidence, best)


def _bare(evidence: Array, best: int) -> bool:
    """Empty tables exceed a likelihood ratio of exp(t) once in exp(t) times at most (Markov), by each entry."""
    return bool(evidence[best] < CLEAR + math.log(len(evidence)))


def _against(column: Column, name: str) -> float:
    if name.startswith("decimals"):
        return DECIMALS
    return 0.0 if column.kind == "datetime" and name == "D" else CLASSES.get(name, OTHER_CLASS)


def magnitudes(column: Column, edges: Array, tables: Sequence[Array], sd: float, rows: float) -> tuple[Array, bool]:
    """``rows`` spread over the scale cells (between ``edges``) that they are likely to be in, shape (cells,), and
    whether that is a bare guess.

    ``tables``: the noisy histogram of the cells, and in blocks: see :func:`dpvae.data.bins.coarsened`.
    """
    ranges = _years() if column.kind == "datetime" else _sizes()
    spread = ((_spread(edges, low, high, shape), cost) for low, high, shape, cost in ranges)
    shapes, against = zip(*((share / share.sum(), cost) for share, cost in spread if share.any()), strict=True)
    size = [math.ceil(len(tables[0]) / len(table)) for table in tables]  # 1, then that of a block
    blocks = [np.add.reduceat(shapes, np.arange(0, len(tables[0]), s), axis=1) for s in size]
    evidence = log_likelihood(tables, blocks, sd, rows)
    weight = evidence - np.array(against)
    best = int(np.argmax(weight))
    if _bare(evidence, best):  # nearly all ranges are possible: their mean would be a range of no column
        return max(rows, 1.0) * shapes[best], True
    weight = np.exp(weight - weight[best])
    return max(rows, 1.0) * _without_tails(weight / weight.sum() @ np.array(shapes)), False


def usual(column: Column, edges: Array) -> Array:
    """How common values are that lie in each scale cell, up to a factor, (cells,): those of 2^6 more than smaller and
    larger ones. Cells get narrower by the octave, so evenly over them would mean that most values are next to zero."""
    if column.kind == "datetime":
        return np.ones(len(edges) - 1)
    largest = np.maximum(abs(edges[1:]), abs(edges[:-1]))
    return np.asarray(np.exp(-PER_OCTAVE * abs(np.log2(np.maximum(largest, 1e-300)) - USUAL_OCTAVE)))


def _without_tails(share: Array) -> Array:
    below = np.cumsum(share)
    kept = np.where((below > TAIL) & (below - share < 1 - TAIL), share, 0.0)
    return np.asarray(kept / kept.sum())


def _spread(edges: Array, low: float, high: float, shape: str) -> Array:
    """What falls into each cell, if anything: even on the axis, like a bell (four sds either way), or even over the
    cells ("low": most values are small; not all the way down to zero)."""
    inner = np.clip(edges, low, high)
    if shape == "bell":
        place = np.tanh(4 * 0.8 * (2 * (inner - low) / (high - low) - 1))
    elif shape == "low":
        near = np.maximum(abs(inner[1:]), abs(inner[:-1])) >= max(abs(low), abs(high)) / LOW
        place = np.concatenate([[0.0], np.cumsum((np.diff(inner) > 0) & near)])
    else:
        place = inner
    return np.asarray(np.diff(place))


def _sizes() -> list[Range]:
    return [(low * 2.0**octave, high * 2.0**octave, shape, cost + PER_OCTAVE * abs(octave - USUAL_OCTAVE))
            for octave in OCTAVES for low, high, shape, cost in SIDES]


def _years() -> list[Range]:
    return [(_seconds(first), _seconds(last), "even",
             PER_YEAR * abs(min(max(USUAL_YEAR, first), last) - USUAL_YEAR) + 0.5 * math.log(last - first))
            for first, last in YEARS]


def _seconds(year: int) -> float:
    return float(np.datetime64(f"{year}-01-01", "s").astype(np.int64))


def said(columns: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    """What was guessed, for a person, of the columns (name, facts) of a released schema; nothing where nothing was."""
    guessed: dict[str, list[str]] = {}
    for name, facts in columns:
        found = facts.get("guessed")
        for what in found if isinstance(found, (list, tuple)) else ():
            guessed.setdefault(str(what), []).append(name)
    if not guessed:
        return ""
    listed = "; ".join(f"the {what} of {', '.join(names[:NAMED])}"
                       + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
                       for what, names in guessed.items())
    return (f"guessed, because the noise hid it: {listed}. Synthetic cells there say little about the real ones. "
            "Declare what is public of these columns (kind, min and max, categories; dpvae init drafts a schema), or "
            "take a larger epsilon or more rows")
