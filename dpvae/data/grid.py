"""Equal bins on the scale of a numeric column, from what the survey released: public, and free.

The survey's bins hold equal mass, which suits tables of counts. A density wants bins of equal width around the middle
of the column, fine against its spread, with one wide bin at either end for what lies far out. They reach beyond the
column's bounds: a value out there is strange, not impossible.

>>> column = Column("x", "continuous", "double", nullable=False, lower=-9, upper=9, heaps=(), decimals=9,
...                 edges=(-9.0, -1.0, 1.0, 9.0), within=((-9.0, -1.0, 1.0, 9.0), (0.0, 1.0, 0.0)))
>>> place, scale = spread(column)
>>> round(place, 2), round(scale, 2), len(regridded(column).edges)
(0.0, 0.57, 43)
"""

from __future__ import annotations

import dataclasses

import numpy as np

from dpvae.data.schema import Column, Schema

BINS = 40  # of equal width
BULK = (0.01, 0.99)
REACH = 5.0  # of them, to either side of the middle, in standard deviations


def spread(column: Column) -> tuple[float, float]:
    """Mean and standard deviation of a resolved numeric column, as its released histogram has them; between
    measured bounds, what lies beyond the quantiles :data:`BULK` is pulled in to them."""
    edges, weights = column.within if column.within is not None else (column.edges or (0.0, 1.0), ())
    cuts = np.array(edges, dtype=np.float64)
    mass = np.maximum(np.array(weights, dtype=np.float64), 0.0) if len(weights) else np.diff(cuts)
    mass = mass / mass.sum() if mass.sum() > 0 else np.full(len(cuts) - 1, 1 / (len(cuts) - 1))
    # where the bulk lies: between measured bounds, noise may leave a little mass anywhere, however far out
    bulk = BULK if "lower" not in column.declared or "upper" not in column.declared else (0.0, 1.0)
    low, high = np.interp(bulk, np.concatenate([[0.0], np.cumsum(mass)]), cuts)
    left, right = np.clip(cuts[:-1], low, high), np.clip(cuts[1:], low, high)
    middles, widths = (left + right) / 2, right - left
    mean = float(mass @ middles)
    variance = float(mass @ ((middles - mean) ** 2 + widths**2 / 12))
    return mean, max(float(np.sqrt(variance)), 1e-9 * max(abs(mean), 1.0), column.step / 4)


def regridded(column: Column) -> Column:
    """``column`` with equal bins within :data:`REACH` of its middle; a column that is not numeric stays as it is."""
    if not column.is_numeric or column.bins < 2 or "edges" in column.declared:
        return column
    mean, scale = spread(column)
    assert column.edges is not None
    low, high = column.edges[0], column.edges[-1]
    low, high = min(low, mean - (REACH + 1) * scale), max(high, mean + (REACH + 1) * scale)
    inner = mean + scale * np.linspace(-REACH, REACH, BINS + 1)
    if column.step:
        inner = (np.ceil(inner / column.step - 1e-9) - 0.5) * column.step
    inner = np.unique(inner[(inner > low) & (inner < high)])
    return dataclasses.replace(column, edges=(low, *(float(edge) for edge in inner), high))


def equal_bins(schema: Schema) -> Schema:
    """A resolved schema with every numeric column :func:`regridded`."""
    return dataclasses.replace(schema, columns=tuple(map(regridded, schema.columns)))
