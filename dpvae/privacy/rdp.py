"""Renyi accounting: a second opinion from above, and cheap bounds on the tails of the privacy loss.

For a pair (P, Q) everything follows from ``log_moment(a) = log integral P^a Q^(1-a)``: the Renyi divergence of order a
is ``log_moment(a) / (a - 1)``, and moments of composed mechanisms add. Sampled Gaussians are integrated numerically
by the trapezoid rule, which converges geometrically on these analytic integrands, for any real order and for both
neighbouring relations (dp_accounting's own Renyi accountant prices a Gaussian under replace-one with half its
sensitivity, google/differential-privacy#378, and refuses the sampled one).

>>> from dpvae.privacy.composition import merge
>>> from dpvae.privacy.events import SampledGaussian
>>> print(f"{epsilon(merge([SampledGaussian('dpsgd', 'x', 0.6, 256 / 32561, 500)]), 1e-5):.2f}")
5.91
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from dpvae.privacy.composition import Composition
from dpvae.privacy.normal import Floats

REMOVE, ADD, REPLACE = "remove", "add", "replace"

_MOST_POINTS = 60_000
_ORDERS = tuple((1 + np.geomspace(0.02, 10_000, 96)).tolist())
_BELOW_ONE = tuple((1 - np.geomspace(0.05, 1_000, 40)).tolist())


def directions(composition: Composition) -> tuple[str, ...]:
    """The ordered pairs (P, Q) whose worst is the claim; replace-one and unsampled pairs are symmetric."""
    if composition.replace:
        return (REPLACE,)
    return (REMOVE, ADD) if composition.sampled else (REMOVE,)


def log_ratio(x: Floats, noise: float, rate: float) -> Floats:
    """log of ((1-q) N(0) + q N(1)) / N(0) at ``x``, both of sd ``noise``."""
    ratio: Floats = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * x - 1) / (2 * noise * noise))
    return ratio


def epsilon(composition: Composition, delta: float) -> float:
    """The smallest epsilon of any order, by the conversion of Canonne, Kamath and Steinke (arXiv 2004.00010)."""
    if composition.empty:
        return 0.0
    chosen = _some(composition, _ORDERS)
    orders, worst = np.array(chosen), 0.0
    for direction in directions(composition):
        divergence = log_moments(composition, direction, chosen) / (orders - 1)
        bound = divergence + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
        worst = max(worst, float(np.min(bound)))  # below zero: the two outputs differ by less than delta
    return worst


def tails(composition: Composition, direction: str, mass: float) -> tuple[float, float]:
    """[low, high] outside of which the total privacy loss lies with probability at most ``2 * mass`` (Chernoff)."""
    need = -math.log(mass)
    above, below = _some(composition, _ORDERS), _some(composition, _BELOW_ONE)
    high = np.min((log_moments(composition, direction, above) + need) / (np.array(above) - 1))
    low = np.max((log_moments(composition, direction, below) + need) / (np.array(below) - 1))
    return float(low), float(high)


def _some(composition: Composition, orders: tuple[float, ...]) -> tuple[float, ...]:
    """Any orders give bounds; for many distinct mechanisms fewer of them give a slightly wider one in time."""
    return orders[::4] if composition.many else orders


def log_moments(composition: Composition, direction: str, orders: tuple[float, ...]) -> Floats:
    """log_moment at each order, for the whole composition. Returns shape (orders,)."""
    a = np.asarray(orders)
    total = np.zeros_like(a)
    if composition.gaussian is not None:
        total += a * (a - 1) / 2 / composition.gaussian**2
    for noise, rate, steps in composition.sampled:
        total += steps * _sampled(noise, rate, direction, orders)
    for epsilon_, count in composition.pure:  # randomised response dominates every epsilon-DP mechanism
        total += count * (np.logaddexp(a * epsilon_, (1 - a) * epsilon_) - np.logaddexp(0, epsilon_))
    for trial, runs, shape in composition.selected:
        total += (a - 1) * _selected(trial, runs, shape, orders)
    return total


def _selected(trial: Composition, runs: float, shape: float, orders: tuple[float, ...]) -> Floats:
    """Renyi divergence of the best of a random number of runs (Papernot and Steinke 2022, theorem 2).

    epsilon(a) + (1 + shape) (1 - 1/b) epsilon(b) + (1 + shape) log(1/gamma) / b + log(runs) / (a - 1), at the best b,
    where epsilon(.) bounds one run in both directions.
    """
    a = np.asarray(orders)
    one = np.max([log_moments(trial, way, orders) for way in directions(trial)], axis=0) / (a - 1)
    log_gamma = log_of_stopping(runs, shape)
    spread = (1 + shape) * np.min((1 - 1 / a) * one - log_gamma / a)
    result: Floats = one + spread + math.log(runs) / (a - 1)
    return result


def log_of_stopping(runs: float, shape: float) -> float:
    """log gamma of the truncated negative binomial law with this mean; gamma in (0, 1] is its chance to stop.

    >>> round(math.exp(log_of_stopping(10.0, 1.0)), 6)  # the geometric law: 1 / mean
    0.1
    """
    def mean(log_gamma: float) -> float:
        g = math.exp(log_gamma)
        if shape < 1e-9:
            return (1 / g - 1) / -log_gamma
        return shape * (1 - g) / (g * -math.expm1(shape * log_gamma))

    low, high = -700.0, -1e-12
    if runs <= mean(high) * (1 + 1e-9):
        return high
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(middle) > runs else (low, middle)
    return low


@lru_cache(maxsize=4096)
def _sampled(noise: float, rate: float, direction: str, orders: tuple[float, ...]) -> Floats:
    """log integral of N(0) exp(a u + (1-a) v), with u and v the log ratios of P and Q to N(0), at each order a."""
    step, pad = min(noise / 8, noise * noise / 4), 14 * noise + 1
    sides = 2 if direction == REPLACE else 1
    sizes = [int((sides * max(abs(a), abs(1 - a)) + 1 + 2 * pad) / step) + 1 for a in orders]
    longest = max((size for size in sizes if size <= _MOST_POINTS), default=0)
    x: Floats = -pad + step * np.arange(longest, dtype=np.float64)
    rise = log_ratio(x, noise, rate)
    mirrored = log_ratio(-x, noise, rate) if direction == REPLACE else rise
    normal = -((x / noise) ** 2) / 2 + math.log(step / noise / math.sqrt(2 * math.pi))
    result = np.full(len(orders), math.inf)
    for i, (a, size) in enumerate(zip(orders, sizes, strict=True)):
        if size > longest:
            continue  # too far out for this grid: this order gives no bound
        if direction == REPLACE:
            a = max(a, 1 - a)  # symmetric: the peak is moved to x > 0
            exponent = normal[:size] + a * rise[:size] + (1 - a) * mirrored[:size]
        else:
            exponent = normal[:size] + (a if direction == REMOVE else 1 - a) * rise[:size]
        peak = float(exponent.max())
        result[i] = peak + math.log(float(np.exp(exponent - peak).sum()))
    return result
