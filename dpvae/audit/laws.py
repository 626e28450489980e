"""The two laws of randomness that DP-SGD is priced by, as tests on what was seen.

Both take plain arrays and return one :class:`~dpvae.audit.verdict.Finding` per property. A p-value is exact where a
textbook has the law (chi-square, normal, binomial), and where it is an approximation it is taken five times as large
as it comes out (``SAFETY``); ``scripts/bench_audit.py`` measures the false alarms of all of it. The properties are
chosen by what a law *is* (shape, scale everywhere, no dependence in any direction), not by known mistakes.

Shapes: S steps, P parameters, R records.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from dpvae.audit.verdict import Finding
from dpvae.rng import stream

Floats = NDArray[np.float64]
SAFETY = 5.0
BINS = 64
REPEATS = 60  # of a one-shot release
MOST_PAIRED = 2500  # coordinates; above, pairs of them cost too much memory


def two_sided(statistic: Any, freedom: Any) -> Any:
    """p-value of a chi-square statistic that may be too large or too small."""
    low, high = stats.chi2.cdf(statistic, freedom), stats.chi2.sf(statistic, freedom)
    return np.minimum(1.0, 2 * np.minimum(low, high))


def normal_scores(noise: Floats, sd: float | Floats, step: float) -> Floats:
    """Rounded Gaussian noise as standard normals: a random point of each step's share of the law, mapped back."""
    if not step:
        return noise / sd
    low, high = stats.norm.cdf((noise - step / 2) / sd), stats.norm.cdf((noise + step / 2) / sd)
    upper = noise > 0  # the far tail keeps its digits on the other side
    low = np.where(upper, stats.norm.sf((noise + step / 2) / sd), low)
    high = np.where(upper, stats.norm.sf((noise - step / 2) / sd), high)
    place = low + stream(3, "rounding").random(noise.shape) * (high - low)
    return np.asarray(np.where(upper, stats.norm.isf(place), stats.norm.ppf(place)))


def smallest(p: Any) -> float:
    """Bonferroni over an array of p-values."""
    array = np.asarray(p, dtype=np.float64).ravel()
    return float(min(1.0, array.min() * array.size)) if array.size else 1.0


def _normal(z: Any) -> Any:
    return 2 * stats.norm.sf(np.abs(z))


# -- T2 --------------------------------------------------------------------------------------------------------------


def noise_law(z_SP: Floats, *, layers: Sequence[int] = (), directions_SP: Floats | None = None, test: str = "T2",
              where: str = "") -> list[Finding]:
    """Is this independent N(0, 1) on every coordinate, at every step, and in every direction?

    Args:
        z_SP: noise in units of what was priced, sigma C.
        layers: sizes of the parameter tensors, in order; sums and scales are looked at in each.
        directions_SP: one direction per step, such as that of the clipped sum: noise may not avoid it.
    """
    if z_SP.size == 0 or not np.isfinite(z_SP).all():
        return [Finding(test, "noise is there and is finite", 0.0, "no noise was seen, or NaN", where)]
    found = [Finding(test, law, float(p), seen, where)
             for law, p, seen in (*_shape(z_SP), *_scale(z_SP, layers), *_dependence(z_SP))]
    if directions_SP is not None:
        found += [Finding(test, law, float(p), seen, where) for law, p, seen in _along(z_SP, directions_SP)]
    return found


def _shape(z_SP: Floats) -> Iterator[tuple[str, float, str]]:
    z = z_SP.ravel()
    law = stats.kstest(z, "norm")
    yield "noise follows the normal law (Kolmogorov-Smirnov)", law.pvalue, f"D={law.statistic:.4f}, p={law.pvalue:.2g}"
    if len(z) >= 10 * BINS:
        counts = np.bincount(np.minimum((stats.norm.cdf(z) * BINS).astype(int), BINS - 1), minlength=BINS)
        yield "noise follows the normal law (chi-square)", stats.chisquare(counts).pvalue, ""
    largest = float(np.abs(z).max())
    inside = len(z) * np.log1p(-min(2 * stats.norm.sf(largest), 1 - 1e-16))
    p = 2 * min(np.exp(inside), -np.expm1(inside))
    yield "its largest value is as large as that of a normal", min(1.0, SAFETY * p), f"{largest:.2f} sd"
    if len(z) >= 2000:
        flat = (np.mean(z**4) - 3) / np.sqrt(96 / len(z))
        yield "its tails are those of a normal", min(1.0, SAFETY * float(_normal(flat))), f"kurtosis off by {flat:.1f}"
        some = np.round(z[:5000], 5)  # a difference of two sums has digits of its own, further down
        distinct = len(np.unique(some)) / len(some)
        yield "it is as fine as single precision, and no short list", float(distinct > 0.95), f"{distinct:.1%} distinct"


def _scale(z_SP: Floats, layers: Sequence[int]) -> Iterator[tuple[str, float, str]]:
    steps, size = z_SP.shape
    squares = z_SP**2
    ratio = float(np.sqrt(squares.mean()))
    yield "its standard deviation is sigma C", two_sided(squares.sum(), z_SP.size), f"{ratio:.4f} of what was priced"
    p_P = two_sided(squares.sum(0), steps)
    silent = int((squares.sum(0) == 0).sum())
    worst = float(np.sqrt(squares.mean(0).min()))
    yield "every coordinate has it", smallest(p_P), (
        f"{silent} coordinates have none" if silent else f"the quietest has {worst:.3f}")
    yield "every step has it", smallest(two_sided(squares.sum(1), size)), (
        f"the quietest step has {float(np.sqrt(squares.mean(1).min())):.3f}")
    for p, words in _by_layer(squares, layers):
        yield "every layer has it at every step", p, words


def _by_layer(squares_SP: Floats, layers: Sequence[int]) -> Iterator[tuple[float, str]]:
    if len(layers) < 2 or sum(layers) != squares_SP.shape[1]:
        return
    parts = [part for part in np.split(squares_SP, np.cumsum(layers)[:-1], axis=1) if part.size]
    p = [two_sided(part.sum(1), part.shape[1]) for part in parts]
    total = [two_sided(part.sum(), part.size) for part in parts]
    yield min(1.0, 2 * min(smallest(np.array(p)), smallest(total))), f"{len(layers)} layers"


def _dependence(z_SP: Floats) -> Iterator[tuple[str, float, str]]:
    steps, size = z_SP.shape
    together = float(two_sided((z_SP.sum(1) ** 2 / size).sum(), steps))
    yield "coordinates share no common part", together, ""
    if size >= 16:
        lag, z = _largest_lag(z_SP)
        yield "no coordinate repeats another", min(1.0, SAFETY * size * float(_normal(z))), f"lag {lag}: {z:.1f} sd"
    if steps < 2:
        return
    pair, z = _closest_steps(z_SP)
    p = min(1.0, steps * (steps - 1) / 2 * float(_normal(z)))
    yield "no step repeats another", p, f"steps {pair[0]} and {pair[1]}: {z:.1f} sd"
    lag, z = _largest_lag(np.ascontiguousarray(z_SP.T))
    yield "steps are not correlated at any distance", min(1.0, SAFETY * steps * float(_normal(z))), f"{lag}: {z:.1f} sd"
    yield "no step holds the values of another", *_same_values(z_SP)
    if steps >= 40 and size <= MOST_PAIRED:
        pair, z = _closest_steps(np.ascontiguousarray(z_SP.T))
        p = min(1.0, size * (size - 1) / 2 * float(_normal(z)))
        yield "no coordinate is a copy of another", p, f"coordinates {pair[0]} and {pair[1]}: {z:.1f} sd"
    if steps >= 4:
        yield "steps share no subspace", *_subspace(z_SP)


def _largest_lag(z_SP: Floats) -> tuple[int, float]:
    """The most correlated distance between coordinates, over all steps, in standard deviations."""
    steps, size = z_SP.shape  # or the other way round, for distances between steps
    spectrum = np.fft.rfft(z_SP, 2 * size, axis=1)
    auto = np.fft.irfft((spectrum * spectrum.conj()).sum(0), 2 * size)[1:max(size - 1000 // steps, size // 2, 2)]
    z = auto / np.sqrt(steps * (size - np.arange(1, len(auto) + 1)))
    lag = int(np.abs(z).argmax())
    return lag + 1, float(z[lag])


def _closest_steps(z_SP: Floats) -> tuple[tuple[int, int], float]:
    """The most correlated pair of steps: given the first, the second's projection on it is exactly N(0, 1)."""
    norms = np.maximum(np.linalg.norm(z_SP, axis=1, keepdims=True), 1e-300)
    gram = np.triu((z_SP / norms) @ z_SP.T, 1)
    place = int(np.abs(gram).argmax())
    first, second = divmod(place, len(z_SP))
    return (first, second), float(gram[first, second])


def _same_values(z_SP: Floats) -> tuple[float, str]:
    """Two steps whose sorted absolute values agree too well to be two draws: one is the other, shuffled."""
    size = z_SP.shape[1]
    if size < 60:
        return 1.0, "too few coordinates to tell"
    ranked = np.sort(stats.halfnorm.cdf(np.abs(z_SP)), axis=1)
    closest = min(float(np.abs(ranked[s + 1:] - ranked[s]).max(1).min()) for s in range(len(ranked) - 1))
    x = max(np.sqrt(size / 2) * closest, 1e-6)  # the Kolmogorov law's lower tail
    p = np.sqrt(2 * np.pi) / x * np.exp(-np.pi**2 / 8 / x**2) * len(z_SP) * (len(z_SP) - 1) / 2
    return float(min(1.0, 100 * SAFETY * p)), f"closest pair differs by {closest:.4f}"


def _subspace(z_SP: Floats) -> tuple[float, str]:
    """Later steps projected on the span of the earlier ones: exactly chi-square."""
    half = min(len(z_SP) // 2, z_SP.shape[1] // 2)
    if half < 1:
        return 1.0, ""
    basis, _ = np.linalg.qr(z_SP[:half].T)
    inside = (z_SP[half:] @ basis) ** 2
    return float(two_sided(inside.sum(), inside.size)), f"{inside.mean():.3f} of what was priced"


def _along(z_SP: Floats, directions_SP: Floats) -> Iterator[tuple[str, float, str]]:
    norms = np.linalg.norm(directions_SP, axis=1)
    held = norms > 0
    if held.any():
        along = (z_SP[held] * directions_SP[held]).sum(1) / norms[held]
        yield "it covers the direction of what it hides", float(two_sided((along**2).sum(), held.sum())), (
            f"{float(np.sqrt((along**2).mean())):.3f} of what was priced")


# -- T3 --------------------------------------------------------------------------------------------------------------


def sampling_law(taken_SR: Floats, rate: float, *, where: str = "") -> list[Finding]:
    """Are these independent coins of probability ``rate``, one per record and step?

    ``taken_SR`` holds how often each record took part in each step; anything but 0 and 1 fails.
    """
    whole = np.rint(taken_SR)
    off = float(np.abs(taken_SR - whole).max(initial=0.0))
    most, least = float(whole.max(initial=0.0)), float(whole.min(initial=0.0))
    once = off < 0.25 and most <= 1 and least >= 0
    found = [Finding("T3", "a record takes part wholly or not at all, and never twice", float(once),
                     f"at most {most:g} times; fractions off by {off:.2g}", where)]
    if not np.isfinite(taken_SR).all():
        return [*found, Finding("T3", "participation can be read off", 0.0, "NaN", where)]
    if rate == 1:
        return [*found, Finding("T3", "everybody takes part in every step", float((whole == 1).all()), "", where)]
    coins = np.clip(whole, 0, 1)
    return found + [Finding("T3", law, float(min(1.0, p)), seen, where)
                    for law, p, seen in (*_rates(coins, rate), *_independence(coins, rate))]


def _rates(coins_SR: Floats, rate: float) -> Iterator[tuple[str, float, str]]:
    steps, records = coins_SR.shape
    yield "the rate is the one that was priced", stats.binomtest(
        int(coins_SR.sum()), coins_SR.size, rate).pvalue, f"{coins_SR.mean():.4f} for {rate:.4f}"
    sizes, often = coins_SR.sum(1), coins_SR.sum(0)
    yield "batch sizes vary as independent coins make them", _dispersion(sizes, records, rate), (
        f"standard deviation {sizes.std():.2f} for {np.sqrt(records * rate * (1 - rate)):.2f}")
    yield "every batch could be such a batch", smallest(_binomial(sizes, records, rate)), (
        f"sizes {sizes.min():.0f} to {sizes.max():.0f}")
    yield "all records take part equally often", _dispersion(often, steps, rate), (
        f"{often.min():.0f} to {often.max():.0f} of {steps} steps")
    yield "no record stands out", smallest(_binomial(often, steps, rate)), ""


def _binomial(counts: Floats, n: int, rate: float) -> Floats:
    low, high = stats.binom.cdf(counts, n, rate), stats.binom.sf(counts - 1, n, rate)
    return np.asarray(np.minimum(1.0, 2 * np.minimum(low, high)))


def _dispersion(counts: Floats, n: int, rate: float) -> float:
    """Sum of squared standardised binomials; a gamma law with their exact mean and variance stands for it."""
    spread = n * rate * (1 - rate)
    statistic = float(((counts - n * rate) ** 2 / spread).sum())
    variance = len(counts) * (2 + (1 - 6 * rate * (1 - rate)) / spread)
    shape, scale = len(counts) ** 2 / variance, variance / len(counts)
    low, high = stats.gamma.cdf(statistic, shape, scale=scale), stats.gamma.sf(statistic, shape, scale=scale)
    return float(min(1.0, SAFETY * 2 * min(low, high)))


def _independence(coins_SR: Floats, rate: float) -> Iterator[tuple[str, float, str]]:
    steps, records = coins_SR.shape
    if steps < 3:
        return
    standard = (coins_SR - rate) / np.sqrt(rate * (1 - rate))
    spectrum = np.fft.rfft(standard, 2 * steps, axis=0)
    lags = np.fft.irfft((spectrum * spectrum.conj()).sum(1), 2 * steps)[1:max(steps // 2, 2)]
    z = lags / np.sqrt(records * (steps - np.arange(1, len(lags) + 1)))
    worst = int(np.abs(z).argmax())
    yield "a record's coin does not depend on its earlier ones", SAFETY * len(z) * float(_normal(z[worst])), (
        f"lag {worst + 1}: {z[worst]:.1f} sd")
    near = min(max(round(1 / rate), 1), len(z))
    total = float(lags[:near].sum() / np.sqrt(sum(records * (steps - lag) for lag in range(1, near + 1))))
    yield "a record is not spared because it just took part", SAFETY * float(_normal(total)), f"{total:.1f} sd"
    shared_SS = (coins_SR @ coins_SR.T)[np.triu_indices(steps, 1)]
    yield "no two batches have more or fewer records in common than chance gives", smallest(
        _binomial(shared_SS, records, rate**2)), f"{shared_SS.min():.0f} to {shared_SS.max():.0f}"
    shared_RR = (coins_SR.T @ coins_SR)[np.triu_indices(records, 1)]
    yield "no two records take part together more or less often than chance gives", smallest(
        _binomial(shared_RR, steps, rate**2)), f"{shared_RR.min():.0f} to {shared_RR.max():.0f}"
