"""Pictures as sharp as measured ones: how strong a cosine frequency is in them, and gains by frequency.

The middle of a law is smoother than any picture that follows it, and a spread under noise is drawn in; but how strong
each frequency is in real pictures is on the diagonal of second moments that were paid for. Frequencies are taken
together in rings, from the coarsest to the finest, so that noise averages out.

Shapes: N pictures, C channels, D = C x height x width pixels, R rings, as many as pixels along the shorter side.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MOST = 3.0  # of a gain


def waves(side: int) -> Tensor:
    """The cosine frequencies along a side as orthonormal rows, (side, side) double."""
    at = torch.arange(side, dtype=torch.float64)
    rows = torch.cos(math.pi * (at + 0.5) * at[:, None] / side)
    return rows / rows.norm(dim=1, keepdim=True)


def rings(height: int, width: int) -> Tensor:
    """The ring of each frequency, (height, width) long.

    >>> rings(3, 3).tolist()
    [[0, 1, 2], [1, 1, 2], [2, 2, 2]]
    """
    down, across = torch.arange(height), torch.arange(width)
    count = min(height, width)
    return torch.maximum((down * count // height)[:, None], across * count // width)


def frequencies_of(x_ND: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Cosine coefficients of every channel, (N, C, height, width)."""
    down, across = (waves(side).to(x_ND) for side in size[1:])
    return down @ x_ND.view(-1, *size) @ across.T


def power(x_ND: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Mean square of a coefficient in each ring, (R,), over pictures without their means."""
    return by_ring(frequencies_of(x_ND, size).square().mean((0, 1)), rings(*size[1:]))


def by_ring(values: Tensor, ring: Tensor) -> Tensor:
    """The mean of ``values`` in each ring, (R,); of the same shape as ``ring``."""
    total = torch.zeros(int(ring.max()) + 1, dtype=values.dtype, device=values.device)
    ring = ring.to(values.device).flatten()
    return total.index_add(0, ring, values.flatten()) / torch.bincount(ring)


def gains(wanted_R: Tensor, found_R: Tensor) -> Tensor:
    """What makes coefficients of power ``found`` as strong as ``wanted``, (R,), from 1 to :data:`MOST`; a power of zero
    is one that nobody knows, and its ring is raised as the one before.

    >>> gains(torch.tensor([4.0, 9.0, 0.0, 1.0]), torch.tensor([1.0, 4.0, 1.0, 4.0])).tolist()
    [2.0, 1.5, 1.5, 1.0]
    """
    found, last = [], 1.0
    for wanted, own in zip(wanted_R.tolist(), found_R.tolist(), strict=True):
        last = min(max(math.sqrt(wanted / max(own, 1e-12)), 1.0), MOST) if wanted else last
        found.append(last)
    return torch.tensor(found, dtype=wanted_R.dtype, device=wanted_R.device)


def raised(x_ND: Tensor, gains_R: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Pictures whose every frequency is multiplied by the gain of its ring, (N, D)."""
    down, across = (waves(side).to(x_ND) for side in size[1:])
    strong = frequencies_of(x_ND, size) * gains_R.to(x_ND)[rings(*size[1:]).to(x_ND.device)]
    return (down.T @ strong @ across).flatten(1)
