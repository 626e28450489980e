"""Columns as a few centred numbers: what second moments are taken of, in tables too wide for all their pairs.

Each column gets functions of its codes that are orthonormal under its *released* one-way table: as many as its codes
less one where it is a category (its commonest codes, where there are many), position and curvature where it has an
order. A column of 32 bins thereby counts two numbers instead of 31, and a table's noise shrinks with them.

Shapes: D columns, F functions in all, n codes of one column.

>>> maps = contrasts([np.array([50, 50])], [None])
>>> maps[0].round(2).ravel().tolist()
[-1.0, 1.0]
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dpvae.data.schema import Column

Numbers = NDArray[np.float64]

MOST_CATEGORIES = 12  # of a column without order, that get a function of their own
RAREST = 0.02  # a code counts at least as if it had this share: one record must not weigh too much


def code_order(column: Column) -> Numbers | None:
    """Where each code of a numeric column lies on its axis, NaN for missing; ``None`` for a category."""
    if not column.is_numeric:
        return None
    edges = np.array(column.edges or ())
    middles = (edges[1:] + edges[:-1]) / 2
    return np.concatenate([np.array(column.heaps or ()), middles, [np.nan] * bool(column.nullable)])


def contrasts(one_way: Sequence[NDArray[np.generic]], orders: Sequence[Numbers | None]) -> list[Numbers]:
    """Per column, (n, functions): each function has mean 0 under the released one-way table, and variance near 1."""
    return [_orthonormal(shares(table), order) for table, order in zip(one_way, orders, strict=True)]


def shares(table: NDArray[np.generic]) -> Numbers:
    """A noisy one-way table as probabilities, none of them zero."""
    positive = np.maximum(table.astype(np.float64), 0.5)
    return np.asarray(positive / positive.sum())


def _orthonormal(p: Numbers, order: Numbers | None) -> Numbers:
    raw = _indicators(p) if order is None else _curve(p, order)
    weight = np.sqrt(np.maximum(p, RAREST))
    q, _ = np.linalg.qr(weight[:, None] * np.column_stack([np.ones(len(p)), raw]))
    functions = (q / weight[:, None])[:, 1:]
    return np.asarray(functions - p @ functions)


def _indicators(p: Numbers) -> Numbers:
    kept = np.sort(np.argsort(-p, kind="stable")[:MOST_CATEGORIES + 1])
    return np.asarray(np.eye(len(p))[:, kept[:-1]])


def _curve(p: Numbers, order: Numbers) -> Numbers:
    """Mid-rank in (-1, 1), its square where there are three codes, and an indicator of missing cells."""
    missing = np.isnan(order)
    rank = np.zeros(len(p))
    place = np.argsort(order[~missing], kind="stable")
    inside = p[~missing][place]
    middle = (np.cumsum(inside) - inside / 2) / inside.sum()
    rank[np.flatnonzero(~missing)[place]] = 2 * middle - 1
    present = int((~missing).sum())
    columns = [rank] * (present > 1) + [rank**2] * (present > 2) + [missing * 1.0] * (present < len(p))
    return np.column_stack(columns) if columns else np.zeros((len(p), 0))


def rows_of(codes: NDArray[np.integer], maps: Sequence[Numbers]) -> Numbers:
    """The functions of each record, (records, F)."""
    return np.concatenate([table[codes[:, j]] for j, table in enumerate(maps)], axis=1)
