"""Blocks that treat every row alone: no batch statistics, so one record never moves another's gradient.

>>> mlp(4, 8, 2, layers=1)
Sequential(
  (0): Linear(in_features=4, out_features=8, bias=True)
  (1): SiLU()
  (2): Linear(in_features=8, out_features=2, bias=True)
)
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn


def mlp(inputs: int, hidden: int, outputs: int, *, layers: int) -> nn.Sequential:
    """``layers`` hidden layers of width ``hidden``; with none, one linear map."""
    widths = [inputs, *[hidden] * layers]
    blocks: list[nn.Module] = []
    for before, after in pairwise(widths):
        blocks += [nn.Linear(before, after), nn.SiLU()]
    return nn.Sequential(*blocks, nn.Linear(widths[-1], outputs))
