"""How far a mixture's tables are from released ones, with the slope of that, in one go.

A fit asks for both hundreds of times, and the slope needs little that the distance did not: it is worked out beside it,
without what automatic differentiation keeps, fills with zeros and adds up on the way.

Shapes: K points, W one-hot width, L target values, G groups of all features.

>>> p_KW = torch.tensor([[0.25, 0.75, 0.5, 0.5]], requires_grad=True)
>>> kept = torch.zeros(4, 4)
>>> kept[:2, 2:] = 1  # two columns of two codes: one pair
>>> chi2 = pairs(p_KW, torch.ones(1, 1), torch.zeros(1, 4, 4), kept)
>>> chi2.backward()
>>> chi2.item(), p_KW.grad
(0.3125, tensor([[0.2500, 0.7500, 0.6250, 0.6250]]))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

BANDS = 4  # of rows, in which the tables of all pairs are computed: five eighths of the whole square


def pairs(p_KW: Tensor, rows_KL: Tensor, goals_LWW: Tensor, kept_WW: Tensor,
          whole: tuple[Tensor, float] | None = None) -> Tensor:
    """Sum of squares of ``p^T diag(rows_l) p - goal_l`` over target values l and the cells where ``kept_WW``, which is
    zero below the diagonal, is one. ``rows_KL``: expected rows of each point, in units of the noise.

    ``whole``: (goal (W, W), ratio) of tables that are not split by the target: ``ratio`` times the sum over l.
    """
    with torch.no_grad():
        slope_KW, slope_KL = torch.zeros_like(p_KW), torch.zeros_like(rows_KL)
        off_LWW = torch.zeros_like(goals_LWW)
        for level, rows_K in enumerate(rows_KL.T):
            weighted_KW = rows_K[:, None] * p_KW
            for top in _bands(p_KW.shape[1]):  # each pair once: nothing to the left of a band
                off_LWW[level, top, top.start:] = p_KW[:, top].T @ weighted_KW[:, top.start:]
        whole_WW = None if whole is None else (off_LWW.sum(0).mul_(whole[1]).sub_(whole[0])).mul_(kept_WW)
        off_LWW.sub_(goals_LWW).mul_(kept_WW)
        chi2 = off_LWW.square().sum()
        if whole is not None and whole_WW is not None:
            chi2 += whole_WW.square().sum()
            off_LWW += whole[1] * whole_WW
        for level, off_WW in enumerate(off_LWW):
            pulled_KW = p_KW @ (off_WW + off_WW.T).mul_(2)
            slope_KL[:, level] = (p_KW * pulled_KW).sum(1).div_(2)
            slope_KW += pulled_KW.mul_(rows_KL[:, level, None])
    return _with_slope(chi2, (p_KW, slope_KW), (rows_KL, slope_KL))


def triples(q_GK: Tensor, rows_LK: Tensor, goals: Sequence[Tensor], starts: Sequence[int]) -> Tensor:
    """The same for tables of three columns over groups: feature f has the groups ``starts[f]`` to ``starts[f + 1]`` of
    ``q_GK``, each point's probability of it. ``goals``: for each middle column all its tables, (its groups x those of
    the columns to its left, those of the columns to its right x L)."""
    with torch.no_grad():
        chi2, slope_GK = q_GK.new_zeros(()), torch.zeros_like(q_GK)
        right_GLK = q_GK[:, None] * rows_LK
        slope_GLK = torch.zeros_like(right_GLK)
        for middle, goal in enumerate(goals, 1):
            left, own, right = slice(starts[middle]), slice(starts[middle], starts[middle + 1]), starts[middle + 1]
            both = (q_GK[own, None] * q_GK[left]).flatten(0, 1)
            others = right_GLK[right:].flatten(0, 1)
            off = both @ others.T - goal
            chi2 += off.square().sum()
            off *= 2
            slope = (off @ others).unflatten(0, (own.stop - own.start, -1))  # own, left, K
            slope_GK[own] += (slope * q_GK[left]).sum(1)
            slope_GK[left] += slope.mul_(q_GK[own, None]).sum(0)
            slope_GLK[right:] += (off.T @ both).unflatten(0, (-1, len(rows_LK)))
        slope_LK = (slope_GLK * q_GK[:, None]).sum(0)
        slope_GK += slope_GLK.mul_(rows_LK).sum(1)
    return _with_slope(chi2, (q_GK, slope_GK), (rows_LK, slope_LK))


def _bands(width: int) -> list[slice]:
    size = math.ceil(width / BANDS)
    return [slice(start, min(start + size, width)) for start in range(0, width, size)]


def _with_slope(value: Tensor, *slopes: tuple[Tensor, Tensor]) -> Tensor:
    """``value``, whose slope in each of these tensors is known."""
    found: Tensor = _Known.apply(value, [slope for _, slope in slopes], *[tensor for tensor, _ in slopes])
    return found


class _Known(torch.autograd.Function):
    """A number with the slopes it comes with."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, slopes: list[Tensor], *tensors: Tensor) -> Tensor:
        ctx.slopes = slopes
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(slope * grads[0] for slope in ctx.slopes)
