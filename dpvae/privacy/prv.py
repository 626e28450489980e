"""Numerical composition of privacy loss random variables: bounds on epsilon from both sides.

After Gopi, Lee and Wutschitz, "Numerical composition of differential privacy" (2021, arXiv 2106.02848). Each loss L is
rounded to a grid of width h and shifted to keep its mean, all are convolved by FFT, and epsilon is read off the sum.
Rounding errors are independent, have mean zero and span h, so by Hoeffding the sum of k of them exceeds
``slack = h sqrt(k log(1/beta) / 2)`` with probability at most beta. Hence, with all other errors (cut tails,
wrap-around) counted into ``lost``,

    epsilon(delta + lost) - slack  <=  true epsilon  <=  epsilon(delta - lost) + slack.

Nothing here is shared with dp_accounting, whose figure is the claim: two codes, one answer.

>>> from dpvae.privacy.composition import merge
>>> from dpvae.privacy.events import Gaussian
>>> low, middle, high = bounds(merge([Gaussian("a", "x", noise_multiplier=4.0)]), 1e-5)
>>> low < 0.926342 < high  # exact: 0.9263415 (Balle and Wang 2018)
True
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.fft import irfft, rfft
from numpy.typing import NDArray

from dpvae.privacy import rdp
from dpvae.privacy.composition import Composition
from dpvae.privacy.normal import Floats, fast_length, ndtr, ndtri
from dpvae.privacy.rdp import ADD, REMOVE, REPLACE

_CUT = 1e-4  # share of delta that goes to each kind of numerical loss
_FFT_FLOOR = 1e-14
_MOST_POINTS = 1 << 20
_WIDE = 0.012  # half the width of the bracket around many distinct mechanisms, in epsilon
_SMALL = 1e-3  # an epsilon below it is computed to this one's precision
Bounds = tuple[float, float, float]
Complex = NDArray[np.complex128]


@lru_cache(maxsize=1024)  # a run asks what it has spent again and again, an audit of many runs with one plan
def bounds(composition: Composition, delta: float, *, relative: float = 2e-3) -> Bounds:
    """(lower, estimate, upper) of epsilon at ``delta``; aims at upper - lower = 2 * ``relative`` * epsilon."""
    if composition.empty:
        return 0.0, 0.0, 0.0
    beta = _CUT * delta
    spread = math.sqrt(composition.terms * -math.log(beta) / 2)
    guess, best = rdp.epsilon(composition, delta), (0.0, 0.0, math.inf)
    if composition.many:
        relative = min(_WIDE / max(guess, _SMALL), 10 * relative)
    for _ in range(3):
        mesh = relative * max(guess, _SMALL) / spread
        low, middle, high = _worst(composition, delta, mesh, spread, beta)
        best = max(best[0], low), middle, min(best[2], high)
        if max(middle, _SMALL) > guess / 2 or high - low <= 4 * relative * middle:
            break
        guess = middle
    return best


@lru_cache(maxsize=1024)
def estimate(composition: Composition, delta: float, *, relative: float = 2e-4) -> float:
    """A fast figure without a bound, for searches: on a mean-preserving grid the error shrinks with k h**2."""
    if composition.empty:
        return 0.0
    guess = max(rdp.epsilon(composition, delta), _SMALL)
    mesh = min(math.sqrt(relative * guess / composition.terms), guess / 200)
    return _worst(composition, delta, mesh, 0.0, 0.0)[1]


def _worst(composition: Composition, delta: float, mesh: float, spread: float, beta: float) -> Bounds:
    """The larger of both directions, bound by bound. ``add`` rarely decides: in a hurry, its bounds may be wider."""
    each = [_one_direction(composition, way, delta, mesh * (4 if way == ADD and composition.many else 1), spread, beta)
            for way in rdp.directions(composition)]
    low, middle, high = (max(column) for column in zip(*each, strict=True))
    return low, middle, high


def _one_direction(
    composition: Composition, way: str, delta: float, mesh: float, spread: float, beta: float
) -> Bounds:
    cut = _CUT * delta
    low, high = rdp.tails(composition, way, cut)
    # A wider mesh than asked for where the grid would not fit: looser bounds, and still bounds.
    mesh = max([mesh, (high - low) / _MOST_POINTS]
               + [_width(noise, rate, way, cut / composition.terms) / _MOST_POINTS
                  for noise, rate, _ in composition.sampled])
    slack = spread * mesh
    first, last = math.floor((low - slack) / mesh) - 1, math.ceil((high + slack) / mesh) + 1
    size = fast_length(last - first + 1)
    spectrum, shift = np.ones(size // 2 + 1, dtype=np.complex128), 0.0
    for start, masses, drift, count in _losses(composition, way, mesh, cut / composition.terms):
        spectrum *= _power(rfft(_wrapped(masses, start, size)), count)
        shift += count * drift
    first += round(-shift / mesh)
    sums = np.roll(irfft(spectrum, size), -first)
    losses = (first + np.arange(size, dtype=np.float64)) * mesh + shift
    lost = 4 * cut + 3 * beta + _FFT_FLOOR
    return (max(0.0, _epsilon(losses, sums, delta + lost) - slack), _epsilon(losses, sums, delta),
            _epsilon(losses, sums, delta - lost) + slack)


def _losses(composition: Composition, way: str, mesh: float, tail: float) -> Iterator[tuple[int, Floats, float, int]]:
    """(first grid point, masses, shift that restores the mean, count) of each distinct mechanism."""
    if composition.gaussian is not None:
        yield *_gaussian(composition.gaussian, mesh, tail), 1
    for noise, rate, steps in composition.sampled:
        yield *_sampled(noise, rate, way, mesh, tail), steps
    for epsilon, count in composition.pure:
        k, p = round(epsilon / mesh), 1 / (1 + math.exp(-epsilon))
        masses = np.zeros(2 * k + 1)
        masses[0] += 1 - p
        masses[-1] += p
        yield -k, masses, (2 * p - 1) * (epsilon - k * mesh), count


def _gaussian(noise: float, mesh: float, tail: float) -> tuple[int, Floats, float]:
    """The loss of N(1) against N(0) is N(1 / 2s^2, 1 / s^2)."""
    mean, sd = 1 / (2 * noise * noise), 1 / noise
    reach = -ndtri(tail) * sd
    start, stop = math.floor((mean - reach) / mesh), math.ceil((mean + reach) / mesh)
    points = np.arange(start, stop + 1)
    z = ((np.append(points, stop + 1) - 0.5) * mesh - mean) / sd
    masses = _between(z)
    return start, masses, mean - float(masses @ points) * mesh / float(masses.sum())


def _sampled(noise: float, rate: float, way: str, mesh: float, tail: float) -> tuple[int, Floats, float]:
    """The loss of one Poisson-sampled step; it rises with x (with -x for ``add``), so its law is that of x."""
    ends = _ends(noise, way, tail)
    start, stop = (round(float(loss) / mesh) for loss in _loss(ends, noise, rate, way))
    points = np.arange(start, stop + 1)
    edges = np.clip(_inverse((np.append(points, stop + 1) - 0.5) * mesh, noise, rate, way), *ends)
    mixture = 0.0 if way == ADD else rate

    masses = (1 - mixture) * _between(edges / noise) + mixture * _between((edges - 1) / noise)
    x = np.linspace(ends[0], ends[1], max(4001, int((ends[1] - ends[0]) / min(noise / 8, noise * noise / 4))))
    density = (1 - mixture) * np.exp(-((x / noise) ** 2) / 2) + mixture * np.exp(-(((x - 1) / noise) ** 2) / 2)
    mean = float(density @ _loss(x, noise, rate, way)) / float(density.sum())
    return start, masses, mean - float(masses @ points) * mesh / float(masses.sum())


def _ends(noise: float, way: str, tail: float) -> Floats:
    """The range of x that is kept; at most ``tail`` lies beyond each end."""
    reach = -ndtri(tail) * noise
    return np.array([-reach, reach + (way != ADD)])


def _width(noise: float, rate: float, way: str, tail: float) -> float:
    return float(np.ptp(_loss(_ends(noise, way, tail), noise, rate, way)))


def _loss(x: Floats, noise: float, rate: float, way: str) -> Floats:
    if way == REMOVE:
        return rdp.log_ratio(x, noise, rate)
    if way == ADD:
        return -rdp.log_ratio(-x, noise, rate)
    return rdp.log_ratio(x, noise, rate) - rdp.log_ratio(-x, noise, rate)


def _inverse(loss: Floats, noise: float, rate: float, way: str) -> Floats:
    """The x at which ``_loss`` takes these values; infinite beyond its range."""
    variance = noise * noise
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        if way == REPLACE:  # with y = exp(x/s^2 - loss/2): y - 1/y = 2 (1-q)/(q exp(-1/2s^2)) sinh(loss/2)
            scale = (1 - rate) / rate * math.exp(min(0.5 / variance, 700.0))
            return np.asarray(variance * (loss / 2 + np.arcsinh(scale * np.sinh(loss / 2))))
        sign = -1 if way == ADD else 1
        ratio = np.expm1(sign * loss) + rate  # q exp((2x-1)/2s^2)
        x = 0.5 + variance * np.log(np.maximum(ratio, 0.0) / rate)
        return np.asarray(sign * x)


def _between(z: Floats) -> Floats:
    """Normal probability between successive ``z``, from the nearer tail: no cancellation far out."""
    masses: Floats = np.where(z[1:] < 0, np.diff(ndtr(z)), -np.diff(ndtr(-z)))
    return masses


def _wrapped(masses: Floats, start: int, size: int) -> Floats:
    """``masses`` on a circle of ``size`` points, index 0 standing for a loss of 0."""
    return np.bincount((start + np.arange(masses.size)) % size, weights=masses, minlength=size).astype(np.float64)


def _power(spectrum: Complex, count: int) -> Complex:
    """spectrum ** count by repeated squaring, several times faster than numpy's complex power."""
    result = None
    while True:
        if count & 1:
            result = spectrum if result is None else result * spectrum
        count >>= 1
        if not count:
            assert result is not None
            return result
        spectrum = spectrum * spectrum


def _epsilon(losses: Floats, masses: Floats, delta: float) -> float:
    """The smallest epsilon >= 0 with E max(0, 1 - exp(epsilon - loss)) <= ``delta``."""
    above = losses > 0
    losses, masses = losses[above], masses[above]
    tail, weighted = np.cumsum(masses[::-1])[::-1], np.cumsum((masses * np.exp(-losses))[::-1])[::-1]
    if losses.size == 0 or delta <= 0:
        return 0.0 if delta > 0 else math.inf
    with np.errstate(over="ignore", invalid="ignore"):  # losses above 709: what is not a number counts as over delta
        over = np.flatnonzero(~(tail - np.exp(losses) * weighted <= delta))
    at = int(over[-1]) + 1 if over.size else 0  # epsilon lies between losses[at - 1] and losses[at]
    if at >= losses.size or tail[at] <= delta:
        return float(losses[at - 1]) if at else 0.0
    if weighted[at] <= 0:
        return float(losses[at])
    return max(0.0, math.log((tail[at] - delta) / weighted[at]))
