"""A column by its different cells, so that what follows from a cell is worked out once for each of them.

A column of text or categories repeats itself: a million rows of Adult hold nine kinds of work. Its codes, its numbers
and what it costs to lie outside a domain are functions of one cell, so rows only look them up.

>>> work = Cells(np.array(["Private", "?", "Private"], dtype=object), np.zeros(3, dtype=bool), "string")
>>> found = Distinct.of(Column("work", "categorical", "string"), work)
>>> found.cells.values.tolist(), found.rows(np.array([1.5, 0.0])).tolist()
(['Private', '?'], [1.5, 0.0, 1.5])
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dpvae.data.lake import Cells, distinct
from dpvae.data.schema import Column


@dataclass(frozen=True)
class Distinct:
    """Row i of a column holds the cell of ``cells`` at ``place[i]``; ``None``: each row its own."""

    cells: Cells
    place: np.ndarray | None

    @classmethod
    def of(cls, column: Column, cells: Cells) -> Distinct:
        """Numbers that came as numbers stay as they are: most differ, and numpy works them out together."""
        spelled = cells.values.dtype == object or not column.is_numeric
        return cls(*distinct(cells)) if spelled else cls(cells, None)

    def rows(self, values: np.ndarray) -> np.ndarray:
        """What was worked out for each of ``cells``, for each row."""
        return values if self.place is None else values[self.place]
