"""From counted lengths to stretches: how often a vector is so many times as long as a normal one. In the field's words,
a Gaussian scale mixture (Andrews and Mallows 1974), whose weights are deconvolved from noisy counts.

In many directions normal vectors are all about as long as each other, and what a cluster leaves of an image is not:
some garments are plain, some printed. So the rest of a latent is normal, times one of some stretches. What is counted
of images are lengths, each of which a stretch may have by the chi-squared law; that is undone here, for free.

Shapes: C classes, L lengths that are told apart, S = L stretches, Z directions.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]
OCTAVES = np.arange(-3, 3.5, 0.5)
EDGES = 2.0**OCTAVES  # between lengths: mean squares of a vector, one for a normal one
SQUARES = 2.0 ** np.append(OCTAVES - 0.25, OCTAVES[-1] + 0.25)  # of stretches, in the middle between edges
ROUNDS = 100


def length_of(vectors: Array) -> NDArray[np.int64]:
    """The number of the length of each of n vectors (n, Z), (n,)."""
    return np.searchsorted(EDGES, (vectors**2).mean(1))


def lengths(size: int, squares: Array) -> Array:
    """How likely the mean square of ``size`` normal numbers of variance ``squares`` (S,) has each length, (L, S).

    >>> lengths(2, np.ones(1)).sum(0), lengths(2, np.ones(1))[0]   # of two numbers: exponential, 1 - exp(-1 / 8)
    (array([1.]), array([0.1175031]))
    """
    below = torch.special.gammainc(torch.tensor(size / 2, dtype=torch.float64),
                                   torch.as_tensor(size / 2 * EDGES[:, None] / squares)).numpy()
    return np.diff(np.pad(below, ((1, 1), (0, 0)), constant_values=((0, 1), (0, 0))), axis=0)


def stretches(counted: Array, doubt: float, size: int) -> tuple[Array, Array]:
    """Stretches (S,) and how often a vector of each class has each, (C, S), from noisy shares of lengths (C, L).

    The shares that make what was counted likeliest (Dempster et al. 1977), drawn to normal vectors as far as noise of
    ``doubt`` in a share hides how these differ; where it hides all (two standard deviations), one stretch of one.
    """
    normal = lengths(size, np.ones(1))[:, 0]
    apart = counted - normal
    count = len(normal)
    differ = np.mean((apart**2).sum(1)) - (count + 2 * math.sqrt(2 * count)) * doubt**2
    if differ <= 0:
        return np.ones(1), np.ones((len(counted), 1))
    differ = min(differ, 2.0)  # of shares that add up to one
    known = differ / (differ + count * doubt**2)
    seen, told = np.maximum(normal + known * apart, 0.0), lengths(size, SQUARES)
    shares = np.full((len(counted), len(SQUARES)), 1 / len(SQUARES))
    for _ in range(ROUNDS):
        shares = shares * (seen / np.maximum(shares @ told.T, 1e-12) @ told)
        shares /= shares.sum(1, keepdims=True)
    return np.sqrt(SQUARES), shares
