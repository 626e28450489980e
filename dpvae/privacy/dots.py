"""Privacy loss distributions of many distinct mechanisms at once: the claim where dp_accounting takes a minute, and
the price that `dpvae verify` recomputes, which must not wait a second for an import.

The same discretisation as dp_accounting's (connect the dots: Doroshenko et al. 2022, arXiv 2207.04380, algorithm 1),
written for whole arrays, and one product of spectra instead of a chain of convolutions. It is pessimistic step by step:
between grid points the hockey-stick curve of each mechanism is replaced by the chord above it, losses beyond the grid
count as infinite, and whatever the circular convolution could wrap from the top to the bottom is counted as infinite
too. The tests hold it against dp_accounting, under both neighbouring relations.

>>> from dpvae.privacy.composition import merge
>>> from dpvae.privacy.events import SampledGaussian
>>> print(f"{epsilon(merge([SampledGaussian('dpsgd', 'x', 0.6, 256 / 32561, 500)]), 1e-5, 1e-3):.2f}")
4.85
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.fft import irfft, rfft

from dpvae.privacy import prv, rdp
from dpvae.privacy.composition import Composition
from dpvae.privacy.normal import Floats, fast_length, log_ndtr, ndtr, ndtri
from dpvae.privacy.rdp import ADD, REMOVE, REPLACE

_CUT = 1e-4  # share of delta that goes to each kind of cut tail
_ROUNDING = 1e-15  # of one mass, per composed mechanism
_ORDERS = np.geomspace(0.05, 200.0, 40)  # of the Chernoff bounds on the sum


def epsilon(composition: Composition, delta: float, mesh: float, people: int = 1) -> float:
    """An upper bound on epsilon at ``delta``, on a grid of this width.

    ``people`` > 1: for that many records added, removed or replaced together. A step then mixes Gaussians, one for each
    number of them that is sampled, which is exact for the worst case (Ganesh 2024, arXiv 2401.10294; under replace-one
    by the argument in :mod:`dpvae.privacy.composition`, with mixtures of shifts in the place of one).
    """
    found = []
    for way in rdp.directions(composition):
        losses, sums, lost = _added_up(composition, way, delta, mesh, people)
        found.append(prv._epsilon(losses, sums, delta - lost))
    return max(found)


def deltas(composition: Composition, epsilons: Floats, delta: float, mesh: float) -> Floats:
    """Upper bounds on delta at each of ``epsilons`` (none negative); tails are cut as for a claim at ``delta``."""
    worst = np.zeros_like(epsilons)
    for way in rdp.directions(composition):
        losses, sums, lost = _added_up(composition, way, delta, mesh, 1)
        losses, sums = losses[losses > 0], sums[losses > 0]
        above = np.append(np.cumsum(sums[::-1])[::-1], 0.0)
        weighted = np.append(np.cumsum((sums * np.exp(-losses))[::-1])[::-1], 0.0)
        at = np.searchsorted(losses, epsilons, side="right")
        worst = np.maximum(worst, lost + np.maximum(above[at] - np.exp(epsilons) * weighted[at], 0.0))
    return np.minimum(worst, 1.0)


def _added_up(
    composition: Composition, way: str, delta: float, mesh: float, people: int
) -> tuple[Floats, Floats, float]:
    """(losses, their masses, mass of infinite ones) of the whole composition."""
    cut = _CUT * delta
    parts = list(_parts(composition, way, mesh, cut, people))
    lost = sum(count * max(0.0, 1 - float(masses.sum())) for _, masses, count in parts)  # infinite losses, at least
    low, high = _window(parts, mesh, cut)
    first, last = math.floor(low / mesh), math.ceil(high / mesh)
    size = fast_length(last - first + 1)
    spectrum = np.ones(size // 2 + 1, dtype=np.complex128)
    for start, masses, count in parts:
        spectrum *= prv._power(rfft(prv._wrapped(masses, start, size)), count)
    sums = np.maximum(np.roll(irfft(spectrum, size), -first), 0.0)
    losses = (first + np.arange(size, dtype=np.float64)) * mesh
    return losses, sums, lost + 2 * cut + _ROUNDING * composition.terms


def _window(parts: list[tuple[int, Floats, int]], mesh: float, mass: float) -> tuple[float, float]:
    """[low, high] outside of which the sum of the discretised losses lies with probability at most 2 ``mass``."""
    up, down = np.zeros_like(_ORDERS), np.zeros_like(_ORDERS)
    for start, masses, count in parts:
        losses = (start + np.arange(masses.size)) * mesh
        for total, sign in ((up, 1.0), (down, -1.0)):
            exponent = sign * np.outer(_ORDERS, losses)
            peak = exponent.max(axis=1)
            total += count * (peak + np.log(np.maximum(np.exp(exponent - peak[:, None]) @ masses, 1e-300)))
    need = -math.log(mass)
    return float(np.max((-down - need) / _ORDERS)), float(np.min((up + need) / _ORDERS))


def _parts(
    composition: Composition, way: str, mesh: float, cut: float, people: int
) -> Iterator[tuple[int, Floats, int]]:
    """(first grid point, masses, count) of each distinct mechanism; masses that are missing are infinite losses."""
    tail = cut / composition.terms
    if composition.gaussian is not None:
        yield *_dots(composition.gaussian / people, 1.0, way, mesh, tail), 1
    for noise, rate, steps in composition.sampled:
        step = _dots(noise, rate, way, mesh, tail) if people == 1 else _group(noise, rate, people, way, mesh, tail)
        yield *step, steps
    for bound, count in composition.pure:  # randomised response, both losses rounded up
        top, bottom = math.ceil(people * bound / mesh), -math.floor(people * bound / mesh)
        masses = np.zeros(top - bottom + 1)
        masses[-1] += 1 / (1 + math.exp(-people * bound))
        masses[0] += 1 / (1 + math.exp(people * bound))
        yield bottom, masses, count


def _dots(noise: float, rate: float, way: str, mesh: float, tail: float) -> tuple[int, Floats]:
    """One step, or one unsampled Gaussian (a rate of 1)."""
    reach = -ndtri(tail) * noise
    if rate == 1:
        ends = np.array([-0.5 - reach, 0.5 + reach]) / noise**2
    else:
        ends = prv._loss(np.array([-reach, reach + (way != ADD)]), noise, rate, way)
    return _connected(ends, mesh, lambda epsilons: hockey_stick(epsilons, noise, rate, way))


def _group(noise: float, rate: float, people: int, way: str, mesh: float, tail: float) -> tuple[int, Floats]:
    """One step seen by several records at once."""
    reach, weights = -ndtri(tail) * noise, _binomial(people, rate)
    ends = _group_loss(np.array([-reach, reach + (people if way != ADD else 0)]), noise, weights, way)
    return _connected(np.sort(ends), mesh, lambda epsilons: group_hockey_stick(epsilons, noise, rate, people, way))


def _connected(ends: Floats, mesh: float, curve: Callable[[Floats], Floats]) -> tuple[int, Floats]:
    """The masses whose hockey-stick curve touches ``curve`` at every grid point and is straight in exp(epsilon)."""
    start, stop = math.floor(float(ends[0]) / mesh), math.ceil(float(ends[1]) / mesh) + 1
    deltas_ = np.minimum.accumulate(curve(np.arange(start, stop + 1, dtype=np.float64) * mesh))
    steps = np.diff(deltas_)
    masses = np.empty_like(deltas_)
    masses[0] = 1 - deltas_[0] + steps[0] / math.expm1(mesh)
    masses[1:-1] = (steps[1:] - steps[:-1] * math.exp(mesh)) / math.expm1(mesh)
    masses[-1] = steps[-1] / math.expm1(-mesh)
    return start, np.maximum(masses, 0.0)


def hockey_stick(epsilons: Floats, noise: float, rate: float, way: str) -> Floats:
    """sup_S P(S) - exp(epsilon) Q(S) of one step. ``remove``: P = (1-q) N(0) + q N(1), Q = N(0); ``add``: swapped;
    ``replace``: Q = (1-q) N(0) + q N(-1).

    The best S is a half line that ends where the loss equals epsilon; its ends and tails are combined so that no two
    large numbers are subtracted.
    """
    # exp overflows beyond; delta falls with epsilon, so the upper end errs upwards, and at the lower one delta is 1.0
    epsilons = np.clip(epsilons, -700.0, 700.0)
    if way == REPLACE and rate < 1:
        x = prv._inverse(epsilons, noise, rate, way) / noise
        outer = ndtr(-x - 1 / noise)
        found = rate * (ndtr(1 / noise - x) - outer) - np.expm1(epsilons) * ((1 - rate) * ndtr(-x) + rate * outer)
        return np.clip(found, 0.0, 1.0)
    sign = -1.0 if way == ADD else 1.0
    ratio = np.expm1(sign * epsilons) + rate  # q exp((x - 1/2) / s^2) at the end x of the half line
    inside = ratio > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        x = 0.5 + noise * noise * np.log(np.where(inside, ratio, 1.0) / rate)
    lift = (x - 0.5) / (noise * noise)
    if way == ADD:
        found = np.exp(epsilons) * rate * (np.exp(lift + log_ndtr(x / noise)) - ndtr((x - 1) / noise))
        return np.clip(np.where(inside, found, 0.0), 0.0, 1.0)
    found = rate * (ndtr((1 - x) / noise) - np.exp(lift + log_ndtr(-x / noise)))
    return np.clip(np.where(inside, found, -np.expm1(np.minimum(epsilons, 0.0))), 0.0, 1.0)


def group_hockey_stick(epsilons: Floats, noise: float, rate: float, people: int, way: str) -> Floats:
    """:func:`hockey_stick` with a mixture of N(0) to N(people) in the place of (1-q) N(0) + q N(1)."""
    weights, shifts = _binomial(people, rate), np.arange(people + 1)
    target = -epsilons if way == ADD else epsilons
    inside = target > (-math.inf if way == REPLACE else math.log(weights[0]))  # below it no half line is best
    goal = np.where(inside, target, 0.0)
    low = np.full_like(goal, -40 * noise - people)
    high = np.full_like(goal, people + noise * (40 + np.abs(goal).max() * noise))
    for _ in range(100):
        x = (low + high) / 2
        above = _group_loss(x, noise, weights, REPLACE if way == REPLACE else REMOVE) > goal
        low, high = np.where(above, low, x), np.where(above, x, high)
    away = ndtr((shifts - x[:, None]) / noise) @ weights  # P(S) of remove and replace
    if way == ADD:
        found = ndtr(x / noise) - np.exp(epsilons) * (ndtr((x[:, None] - shifts) / noise) @ weights)
        return np.clip(np.where(inside, found, 0.0), 0.0, 1.0)
    back = ndtr((-shifts - x[:, None]) / noise) @ weights if way == REPLACE else ndtr(-x / noise)
    found = away - np.exp(epsilons) * back
    return np.clip(np.where(inside, found, -np.expm1(np.minimum(epsilons, 0.0))), 0.0, 1.0)


def _group_loss(x: Floats, noise: float, weights: Floats, way: str) -> Floats:
    """The loss of P against Q at ``x``."""
    ratio = _mixed_ratio(x, noise, weights)
    return ratio - _mixed_ratio(-x, noise, weights) if way == REPLACE else -ratio if way == ADD else ratio


def _mixed_ratio(x: Floats, noise: float, weights: Floats) -> Floats:
    """log of the mixture's density over that of N(0), at ``x``."""
    shifts = np.arange(weights.size)
    logs = np.log(weights) + (2 * np.multiply.outer(x, shifts) - shifts**2) / (2 * noise * noise)
    result: Floats = np.logaddexp.reduce(logs, axis=-1)
    return result


def _binomial(people: int, rate: float) -> Floats:
    return np.array([math.comb(people, j) * rate**j * (1 - rate) ** (people - j) for j in range(people + 1)])
