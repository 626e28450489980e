"""Tables of three columns by the target, over few groups of codes: what holds a mixture to more than its pairs.

A mixture that fits every pair by the target is free in all that pairs leave open, and its posterior of the target is
sharper than they warrant. Tables of three columns by the target say how sharp it may be. In full they would be mostly
empty cells, so each column's codes are first put into a few groups that are as different in the target as its noisy
table with the target tells: that table is released already, so the groups are public.

Shapes: C codes of a column, F features, G groups of all features, K points, L target values, W one-hot width.

>>> grouped(np.array([[90, 10], [10, 90], [85, 15], [50, 50]]), sd=1.0, most=3)   # by their share of the second value
array([0, 2, 0, 1])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpvae.models.likelihood import Columns
from dpvae.train import misfit

RECORDS_AT_ONCE = 2**18
Counts = NDArray[np.int64]
Groups = Mapping[int, NDArray[np.int64]]  # of each feature: code -> group
Tables = Mapping[tuple[int, int, int], Counts]  # three features -> (L, groups of each)


def grouped(table: Counts, sd: float, most: int) -> NDArray[np.int64]:
    """The group of each code of a column, (C,), from its noisy table with the target ``table`` (C, L) and the noise of
    a cell: at most ``most``, so that as much as can be of what the column tells of the target is between them."""
    if len(table) <= most:
        return np.arange(len(table))
    mass_C, score_C = _scores(table, sd)
    order = np.argsort(score_C, kind="stable")
    weight = np.append(0.0, np.cumsum(mass_C[order]))
    total = np.append(0.0, np.cumsum((mass_C * score_C)[order]))
    best, cuts = np.where(np.arange(len(weight)) == 0, 0.0, -np.inf), []
    for _ in range(most):  # the best way to end a group at each place, given where the group before it ended
        between = np.subtract.outer(total, total) ** 2 / np.maximum(np.subtract.outer(weight, weight), 1e-9)
        value = np.where(np.tri(len(weight), k=-1, dtype=bool), best + between, -np.inf)
        cuts.append(value.argmax(1))
        best = value.max(1)
    ends = [len(table)]
    for cut in reversed(cuts):
        ends.insert(0, int(cut[ends[0]]))
    found = np.empty(len(table), dtype=np.int64)
    for group, (start, end) in enumerate(pairwise(ends)):
        found[order[start:end]] = group
    return found


def _scores(table: Counts, sd: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each code's mass, (C,), and its place on the axis along which the column tells most of the target, (C,): the
    first of a correspondence analysis, with rare codes drawn towards the middle by as much as noise moves them."""
    held_CL = np.maximum(table, 0.5).astype(np.float64)
    mass_C, base_L = held_CL.sum(1), held_CL.sum(0) / held_CL.sum()
    lift_CL = (held_CL - mass_C[:, None] * base_L) / (mass_C[:, None] + 2 * sd) / np.sqrt(base_L)
    axis_L = np.linalg.svd(np.sqrt(mass_C)[:, None] * lift_CL, full_matrices=False)[2][0]
    return mass_C, lift_CL @ axis_L


def counts(codes: NDArray[np.integer], groups: Groups, target: tuple[int, int] | None = None) -> list[Counts]:
    """The exact tables of all triples of features in their order, each (L, groups of each), by the values of ``target``
    (column, number of values) where there is one; private."""
    column, levels = target if target is not None else (0, 1)
    sizes = {j: int(table.max()) + 1 for j, table in groups.items()}
    total = {(i, j, k): np.zeros((levels, sizes[i], sizes[j], sizes[k]), dtype=np.int64)
             for i, j, k in combinations(groups, 3)}
    for start in range(0, len(codes), RECORDS_AT_ONCE):
        part = codes[start:start + RECORDS_AT_ONCE]
        held = {j: table[part[:, j]] for j, table in groups.items()}
        level = part[:, column].astype(np.int64) if target is not None else 0
        for i, j in combinations(groups, 2):
            pair = (level * sizes[i] + held[i]) * sizes[j] + held[j]
            for k in (k for k in groups if k > j):
                table = total[i, j, k]
                table += np.bincount(pair * sizes[k] + held[k], minlength=table.size).reshape(table.shape)
    return list(total.values())


@dataclass(frozen=True)
class Triples:
    """Released noisy tables, and the groups they are over."""

    groups: Groups
    tables: Tables


class Residual:
    """How far a mixture is from the released tables. One matrix product for each middle column."""

    def __init__(self, triples: Triples, columns: Columns, sd: float, device: torch.device) -> None:
        self.features = sorted(triples.groups)
        self.sd, self.levels = sd, len(next(iter(triples.tables.values())))
        self.cells = sum(table.size for table in triples.tables.values())
        sizes = [int(triples.groups[j].max()) + 1 for j in self.features]
        self.starts = [0, *np.cumsum(sizes).tolist()]
        self.pooled_WG = torch.zeros(columns.width, self.starts[-1], device=device)
        for place, j in enumerate(self.features):
            codes = torch.arange(columns.starts[j], columns.starts[j + 1])
            self.pooled_WG[codes, self.starts[place] + torch.as_tensor(triples.groups[j])] = 1.0
        self.goals = [self._goal(triples.tables, middle).to(device) for middle in range(1, len(self.features) - 1)]

    def _goal(self, tables: Tables, middle: int) -> Tensor:
        """All tables with this middle column, in units of the noise: (its own groups x those of the columns to its
        left, groups of the columns to its right x L)."""
        left, right = self.features[:middle], self.features[middle + 1:]
        rows = [np.concatenate([tables[i, self.features[middle], k] for k in right], -1) for i in left]
        goal = np.concatenate(rows, 1).transpose(2, 1, 3, 0)
        return torch.as_tensor(goal.reshape(goal.shape[0] * goal.shape[1], -1) / self.sd, dtype=torch.float32)

    def __call__(self, p_KW: Tensor, w_K: Tensor, given_KL: Tensor | None) -> Tensor:
        """Sum of squared residuals in units of the noise; ``w_K`` are expected rows of each point."""
        rows_1K = (w_K / self.sd)[None]
        rows_LK = rows_1K * given_KL.T if given_KL is not None and self.levels > 1 else rows_1K
        return misfit.triples(self.pooled_WG.T @ p_KW.T, rows_LK, self.goals, self.starts)


def of_features(with_target: Mapping[int, Counts], sd: float, most: int) -> dict[int, NDArray[np.int64]]:
    """The groups of every feature that has a released table with the target; see :func:`grouped`."""
    return {j: grouped(table, sd, most) for j, table in sorted(with_target.items())}
