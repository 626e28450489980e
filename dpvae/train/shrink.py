"""Noisy counts pulled towards what is expected of them, by as much as their known noise asks for. Post-processing: free.

Counts of words and of sequences are mostly noise: a few cells hold much, most hold next to nothing. So each count ``y``
with noise of standard deviation ``sd`` is moved towards an expectation ``m``, by adaptive shrinkage (Stephens 2017,
Biostatistics 18:2): the truth is ``m`` plus a draw from a scale mixture of normals, whose weights are learnt from all noisy
cells together (by EM), separately for cells of like ``m / sd``. What stands out of the noise stays, the rest goes to ``m``.

>>> rng = np.random.default_rng(0)
>>> truth = np.r_[np.full(1000, 5.0), np.full(20, 400.0)]
>>> noisy = truth + 10 * rng.normal(size=1020)
>>> found = shrink(noisy, np.full(1020, 5.0), 10.0)
>>> bool(np.abs(found[:1000] - 5).mean() < 1.0), bool(np.abs(found[1000:] - 400).mean() < 12)
(True, True)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_SCALES = np.concatenate([[0.0], 2.0 ** np.arange(-1, 14)])  # of the mixture, in units of the noise
_NULL = 10.0  # pseudo-cells at the expectation itself: evidence is needed to leave it
_ROUNDS = 30
_POINTS = 4000  # values that a large group of cells is summed up in while weights are learnt
_PART = 1 << 18

Floats = NDArray[np.float64]


def shrink(noisy: ArrayLike, expected: ArrayLike, sd: ArrayLike) -> Floats:
    """Estimates of the counts behind ``noisy``, of its shape and never negative."""
    y = np.asarray(noisy, dtype=np.float64)
    m, s = (np.broadcast_to(np.asarray(a, dtype=np.float64), y.shape) for a in (expected, sd))
    s = np.maximum(s, 1e-9)
    z = ((y - m) / s).ravel().clip(-1e5, 1e5)
    group = np.floor(np.log2(np.maximum(m / s, 2.0**-8))).clip(-8, 12).astype(np.int8).ravel()
    moved = np.zeros_like(z)
    for number in np.unique(group):
        cells = np.flatnonzero(group == number)
        weights = _weights(z[cells])
        for start in range(0, len(cells), _PART):
            part = cells[start:start + _PART]
            moved[part] = (_responsibility(z[part], weights) @ _KEPT) * z[part]
    return np.maximum(m + moved.reshape(y.shape) * s, 0.0)


_VARIANCES = 1.0 + _SCALES**2
_KEPT = _SCALES**2 / _VARIANCES


def _responsibility(z_N: Floats, weights: Floats) -> Floats:
    """The posterior of the scales, (N, scales)."""
    log_NS = -0.5 * z_N[:, None] ** 2 / _VARIANCES - 0.5 * np.log(_VARIANCES) + np.log(weights)
    found = np.exp(log_NS - log_NS.max(1, keepdims=True))
    return np.asarray(found / found.sum(1, keepdims=True))


def _weights(z_N: Floats) -> Floats:
    """Of the scales, by EM; many cells are counted on a grid first."""
    counts = np.ones(len(z_N))
    if len(z_N) > _POINTS:
        heights, edges = np.histogram(z_N.clip(-50, 50), bins=_POINTS)
        kept = heights > 0
        z_N, counts = ((edges[1:] + edges[:-1]) / 2)[kept], heights[kept].astype(float)
    weights = np.full(len(_SCALES), 1 / len(_SCALES))
    for _ in range(_ROUNDS):
        total = counts @ _responsibility(z_N, weights)
        total[0] += _NULL
        weights = np.maximum(total / total.sum(), 1e-12)
    return weights
