"""Pictures as sharp as measured ones: how strong a cosine frequency is in them, and gains by frequency.

The middle of a law is smoother than any picture that follows it, and a spread under noise is drawn in; but how strong
each frequency is in real pictures is on the diagonal of second moments that were paid for. A ring holds frequencies
that are about as fine, the coarsest first: what is known of it stands in for what is not known of one of them.

Shapes: N pictures, C channels, H x W pixels and frequencies, D = C x H x W, R rings, as many as the shorter side has
pixels.
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
    """Mean square of each frequency, (H, W), over channels and pictures without their means."""
    return frequencies_of(x_ND, size).square().mean((0, 1))


def by_ring(values: Tensor, ring: Tensor) -> Tensor:
    """The mean of ``values`` in each ring, (R,); of the same shape as ``ring``."""
    total = torch.zeros(int(ring.max()) + 1, dtype=values.dtype, device=values.device)
    ring = ring.to(values.device).flatten()
    return total.index_add(0, ring, values.flatten()) / torch.bincount(ring)


def gains(wanted_HW: Tensor, found_HW: Tensor) -> Tensor:
    """What makes frequencies of power ``found`` as strong as ``wanted``, (H, W), from 1 to :data:`MOST`; a power of
    zero is one that nobody knows: its frequency is raised as the last ring before it that holds a known one.

    >>> gains(torch.tensor([[4.0, 9.0], [1.0, 99.0]]), torch.tensor([[1.0, 4.0], [4.0, 1.0]])).tolist()
    [[2.0, 1.5], [1.0, 3.0]]
    """
    known = (wanted_HW > 0).to(wanted_HW.dtype)
    gain = (wanted_HW / found_HW.clamp_min(1e-12)).sqrt().clamp(1.0, MOST) * known
    ring = rings(*gain.shape).to(gain.device)
    total_R, count_R, last = by_ring(gain, ring), by_ring(known, ring), torch.ones_like(gain[0, 0])
    for number, (total, count) in enumerate(zip(total_R, count_R, strict=True)):
        last = total / count if count else last
        gain = torch.where((known == 0) & (ring == number), last, gain)
    return gain


def raised(x_ND: Tensor, gains_HW: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Pictures whose every frequency is multiplied by its gain, (N, D)."""
    down, across = (waves(side).to(x_ND) for side in size[1:])
    return (down.T @ (frequencies_of(x_ND, size) * gains_HW.to(x_ND)) @ across).flatten(1)
