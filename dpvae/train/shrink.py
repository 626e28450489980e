"""Noisy counts pulled towards what is expected of them, by as much as their known noise asks for. Post-processing: free.

Counts of words and of sequences are mostly noise: a few cells hold much, most hold less than was expected of them, or nothing.
So the count behind a noisy one is estimated by its posterior mean under a prior of normal bumps at multiples of the
expectation (and of the noise, for what nobody expected). The bumps' weights are learnt from all noisy cells of like expectation
together, by EM: the empirical Bayes of Robbins (1956), on a grid (Koenker and Mizera 2014, JASA 109:506).

>>> rng = np.random.default_rng(0)
>>> truth = np.r_[np.full(1000, 5.0), np.full(20, 400.0)]
>>> noisy = truth + 10 * rng.normal(size=1020)
>>> found = shrink(noisy, np.full(1020, 5.0), 10.0)
>>> bool(np.abs(found[:1000] - 5).mean() < 2.0), bool(np.abs(found[1000:] - 400).mean() < 12)
(True, True)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MULTIPLES = np.concatenate([[0.0], 2.0 ** np.arange(-3.0, 3.01, 0.5)])  # of the expectation
_JUMPS = 2.0 ** np.arange(0.0, 14.01, 0.5)  # of the noise
_WIDTH = 0.2  # of a bump, by its place: half of what lies between two
_EXPECTED = int(np.argmin(np.abs(_MULTIPLES - 1)))
_PULL = 5.0  # pseudo-cells at the expectation itself
_ROUNDS = 40
_POINTS = 2000  # values that a large group of cells is summed up in while weights are learnt
_PART = 1 << 16

Floats = NDArray[np.float64]


def shrink(noisy: ArrayLike, expected: ArrayLike, sd: ArrayLike) -> Floats:
    """Estimates of the counts behind ``noisy``, of its shape and never negative."""
    y = np.asarray(noisy, dtype=np.float64)
    s = np.maximum(np.broadcast_to(np.asarray(sd, dtype=np.float64), y.shape), 1e-9)
    z, m = (y / s).ravel(), (np.broadcast_to(np.asarray(expected, dtype=np.float64), y.shape) / s).ravel()
    group = np.round(2 * np.log2(m.clip(2.0**-8, 2.0**12))).astype(np.int16)
    found = np.zeros_like(z)
    for number in np.unique(group):
        cells = np.flatnonzero(group == number)
        weights = _weights(z[cells], float(np.median(m[cells])))
        for start in range(0, len(cells), _PART):
            part = cells[start:start + _PART]
            found[part] = _mean(z[part], _places(m[part]), weights)
    return found.reshape(y.shape) * s


def _places(m_N: Floats) -> Floats:
    """Where the bumps are, in units of the noise, (N, K)."""
    return np.concatenate([m_N[:, None] * _MULTIPLES, np.broadcast_to(_JUMPS, (len(m_N), len(_JUMPS)))], 1)


def _posterior(z_N: Floats, places_NK: Floats, weights_K: Floats) -> Floats:
    """Of the bumps, (N, K)."""
    variance_NK = 1 + (_WIDTH * places_NK) ** 2
    log_NK = -0.5 * ((z_N[:, None] - places_NK) ** 2 / variance_NK + np.log(variance_NK)) + np.log(weights_K)
    log_NK -= log_NK.max(1, keepdims=True)
    found = np.exp(log_NK)
    return np.asarray(found / found.sum(1, keepdims=True))


def _mean(z_N: Floats, places_NK: Floats, weights_K: Floats) -> Floats:
    """The posterior mean of the counts, (N,)."""
    kept_NK = 1 - 1 / (1 + (_WIDTH * places_NK) ** 2)
    inside_NK = places_NK + kept_NK * (z_N[:, None] - places_NK)
    return np.asarray(np.maximum((_posterior(z_N, places_NK, weights_K) * inside_NK).sum(1), 0.0))


def _weights(z_N: Floats, m: float) -> Floats:
    """Of the bumps, (K,), by EM; many cells are counted on a grid first."""
    counts = np.ones(len(z_N))
    if len(z_N) > _POINTS:
        low, high = z_N.min(), min(float(z_N.max()), max(float(np.quantile(z_N, 0.999)), 0.0) + 30.0)
        heights, edges = np.histogram(z_N.clip(low, high), bins=_POINTS)
        z_N, counts = ((edges[1:] + edges[:-1]) / 2)[heights > 0], heights[heights > 0].astype(float)
    places_NK = _places(np.full(len(z_N), m))
    weights = np.full(places_NK.shape[1], 1 / places_NK.shape[1])
    for _ in range(_ROUNDS):
        total = counts @ _posterior(z_N, places_NK, weights)
        total[_EXPECTED] += _PULL
        weights = np.maximum(total / total.sum(), 1e-12)
    return weights
