"""p(z): the standard normal of the textbook, or a codebook of learned points.

The codebook is a discrete latent embedded in the space of a continuous one: z is one of K learned points, so a VAE
with it *is* a mixture of K products, its marginals are finite sums, and its posterior over the points is exact. The
decoder still accepts any z of R^Z, so the latent space can be walked in between.

Shapes: B rows, Z latent dimensions, K points.

>>> import torch
>>> StandardNormal(2).log_prob(torch.zeros(1, 2)).exp()
tensor([0.1592])
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class StandardNormal(nn.Module):
    """z ~ N(0, I)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def sample(self, rows: int, *, generator: torch.Generator) -> Tensor:
        """(rows, Z)."""
        return torch.randn(rows, self.dim, generator=generator, device=generator.device)

    def log_prob(self, z_BZ: Tensor) -> Tensor:
        """(B,) nats."""
        return -0.5 * (z_BZ**2 + math.log(2 * math.pi)).sum(-1)


class Codebook(nn.Module):
    """z = points[k] with k ~ softmax(weights); both are learned from what is already released."""

    def __init__(self, dim: int, components: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.dim = dim
        self.points = nn.Parameter(torch.randn(components, dim, generator=generator))
        self.weights = nn.Parameter(torch.zeros(components))

    @property
    def log_weights(self) -> Tensor:
        """(K,) nats."""
        return self.weights.log_softmax(0)

    def sample_index(self, rows: int, *, generator: torch.Generator) -> Tensor:
        """(rows,) indices of points, in random order; see :func:`systematic`."""
        return systematic(self.log_weights.detach(), rows, generator=generator)

    def sample(self, rows: int, *, generator: torch.Generator) -> Tensor:
        """(rows, Z)."""
        return self.points[self.sample_index(rows, generator=generator)]


def strata(group_B: Tensor, columns: int, *, generator: torch.Generator) -> Tensor:
    """Uniform numbers for rows whose ``group_B`` is sorted, (B, columns) in [0, 1).

    In each column the m rows of a group share out [0, 1) in m equal strata, in random order and with a common offset:
    each number on its own is uniform and independent of the row's other numbers, and together they are spread more
    evenly than chance would (Latin hypercube sampling, McKay et al. 1979). What is drawn with them follows the same
    distribution, row by row, with less sampling error in every column of every group.
    """
    rows, device = len(group_B), group_B.device
    sizes = torch.bincount(group_B)
    starts_B = (sizes.cumsum(0) - sizes)[group_B]
    place_B = torch.arange(rows, device=device) - starts_B
    uniform_BD = torch.empty(rows, columns, device=device)
    for j in range(columns):
        shuffled = torch.argsort(group_B + torch.rand(rows, generator=generator, device=device, dtype=torch.float64))
        offset = torch.rand(len(sizes), generator=generator, device=device)
        uniform_BD[shuffled, j] = (place_B + offset[group_B]) / sizes[group_B]
    return uniform_BD.clamp_max(1 - 2.0**-24)


def systematic(log_weights_K: Tensor, rows: int, *, generator: torch.Generator) -> Tensor:
    """(rows,) indices by weight, in random order.

    Systematic resampling: each point is drawn floor or ceil of (rows x weight) times, so the sample is closer to
    the weights than independent draws would be, and each draw on its own still follows them.
    """
    edges = log_weights_K.double().exp().cumsum(0).to(generator.device)
    start = torch.rand(1, generator=generator, device=generator.device, dtype=torch.float64)
    ticks = (torch.arange(rows, device=generator.device, dtype=torch.float64) + start) / rows * edges[-1]
    index = torch.searchsorted(edges, ticks).clamp_max(len(edges) - 1)
    return index[torch.randperm(rows, generator=generator, device=generator.device)]
