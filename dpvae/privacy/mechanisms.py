"""One-shot private statistics: every function returns what may be published *and* the event that pays for it.

**Integers, so that floating point cannot leak.** Textbook Gaussian noise in floating point is not private: the low
bits of ``count + noise`` betray ``count`` (Mironov 2012; Jin et al. 2021, arXiv 2112.05307). Here the exact answer is
always an integer ``c`` and the noise is ``round(sd * z)``, so the result ``c + round(sd * z) = round(c + sd * z)`` is
a post-processing of the Gaussian mechanism; which noise values can occur, and how likely they are, does not depend on
``c``. What is left is the sampler's own distance from a true Gaussian (:meth:`SecretStream.normal`).

>>> from dpvae.privacy.noise import SecretKey
>>> stream = SecretKey.generate().stream("docs")
>>> noisy, event = noisy_counts([np.array([30, 70])], noise_multiplier=2.0, stream=stream, phase="anchor", what="sex")
>>> noisy[0].dtype, event.noise_multiplier
(dtype('int64'), 2.0)
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpvae import checks
from dpvae.errors import ConfigError
from dpvae.privacy.events import Gaussian, PureDP, Threshold
from dpvae.privacy.noise import SecretStream
from dpvae.privacy.rdp import log_of_stopping

V = TypeVar("V", bound=Hashable)

_UNITS = 1 << 20  # steps between the middle and an end of a clipped range: rounding costs 5e-7 of the half range
_PRODUCT_UNITS = 1 << 12  # steps in the largest norm of a factor: products stay exact in a double up to 5e8 records
_LARGEST_SD = 2.0**52  # above it, a rounded float would no longer be an exact integer


def cell_sd(noise_multiplier: float, tables: float) -> float:
    """The noise of one cell when ``tables`` histograms are released together.

    A record is in one cell of each table, so adding it moves the joint vector by ``sqrt(tables)`` in L2. A histogram
    that gets a share of the squared signal of its own is one of 1 / share.

    >>> cell_sd(10.0, 4)
    20.0
    """
    checks.positive(noise_multiplier=noise_multiplier)
    checks.at_least(1, tables=tables)
    sd = noise_multiplier * math.sqrt(tables)
    if sd > _LARGEST_SD:
        raise ConfigError(f"noise_multiplier={noise_multiplier!r}: expected less; its noise does not fit an integer")
    return sd


def _integer_noise(stream: SecretStream, sd: float, size: int) -> NDArray[np.int64]:
    return np.rint(sd * stream.normal(size)).astype(np.int64)


def noisy_counts(
    tables: Sequence[NDArray[Any]], *, noise_multiplier: float, stream: SecretStream, phase: str, what: str
) -> tuple[list[NDArray[np.int64]], Gaussian]:
    """Histograms with a known domain, released together; each record is in at most one cell of each table.

    Every cell gets noise of sd :func:`cell_sd`, empty cells included. Counts may come out negative: clipping them
    is post-processing, and biased, so it is the reader's choice.
    """
    event = Gaussian(phase, what, noise_multiplier)
    sd = cell_sd(noise_multiplier, len(tables))
    for table in tables:
        if not np.issubdtype(table.dtype, np.integer):
            raise ConfigError(f"tables: expected integer counts, got {table.dtype}; weights are not counts")
    return [table.astype(np.int64) + _integer_noise(stream, sd, table.size).reshape(table.shape)
            for table in tables], event


def noisy_mean_clipped(
    values: ArrayLike | Iterator[ArrayLike], *, lower: float, upper: float, divisor: float, noise_multiplier: float,
    stream: SecretStream, phase: str, what: str,
) -> tuple[float, float, Gaussian]:
    """Mean of one number per record, its noise sd, and the event. ``values`` has shape (records,), or comes in blocks.

    Values are clipped to [``lower``, ``upper``] (nan counts as ``lower``) and centred, so one record moves the sum by
    at most half the range; the sum is taken in whole steps of 2**-20 of that, exactly, with integer noise. The
    divisor must be public: dividing by the private number of records would spend it unpaid.
    """
    event = Gaussian(phase, what, noise_multiplier)
    checks.positive(divisor=divisor)
    if not (math.isfinite(lower) and math.isfinite(upper) and lower < upper):
        raise ConfigError(f"lower={lower!r}, upper={upper!r}: expected two finite numbers, lower < upper")
    middle, half = lower / 2 + upper / 2, upper / 2 - lower / 2
    sd = cell_sd(noise_multiplier, 1) * _UNITS
    total = 0
    for block in values if isinstance(values, Iterator) else (values,):
        clipped = np.clip(np.nan_to_num(np.asarray(block, dtype=np.float64), nan=lower), lower, upper)
        # The last clip holds even where rounding of `middle` or `half` pushed the quotient past one.
        units = np.clip(np.rint((clipped - middle) / half * _UNITS), -_UNITS, _UNITS).astype(np.int64)
        total += int(units.sum())
    noisy = total + int(_integer_noise(stream, sd, 1)[0])
    step = half / _UNITS / divisor
    return middle + noisy * step, sd * step, event


def noisy_products(
    blocks: Iterable[tuple[NDArray[Any], NDArray[Any]]], *, left_norm: float, right_norm: float,
    noise_multiplier: float, stream: SecretStream, phase: str, what: str,
) -> tuple[NDArray[np.float64], float, Gaussian]:
    """The sum over records of ``outer(left, right)``, (F, G), the sd of one of its numbers, and the event.

    ``blocks`` yields (left (B, F), right (B, G)): one row per record, a function of that record and of what is
    released. Each factor is scaled down to its norm where it is longer, so one record moves the sum by at most
    ``left_norm * right_norm`` in L2. Factors are cut to whole steps of ``norm / 4096``, towards zero: sums of their
    products are exact, in any order and on any machine, and the noise is an integer. A record with a NaN adds nothing.
    """
    event = Gaussian(phase, what, noise_multiplier)
    checks.positive(left_norm=left_norm, right_norm=right_norm)
    sd = cell_sd(noise_multiplier, 1) * _PRODUCT_UNITS**2
    total: NDArray[np.float64] | None = None
    for left, right in blocks:
        part = _units(left, left_norm).T @ _units(right, right_norm)
        total = part if total is None else total + part
    if total is None:
        raise ConfigError("blocks: expected at least one, if need be without records")
    noisy = np.rint(total).astype(np.int64) + _integer_noise(stream, sd, total.size).reshape(total.shape)
    step = left_norm * right_norm / _PRODUCT_UNITS**2
    return np.asarray(noisy * step, dtype=np.float64), sd * step, event


def _units(rows: NDArray[Any], norm: float) -> NDArray[np.float64]:
    """Rows as whole multiples of ``norm / 4096``, none longer than ``norm``: checked on the integers themselves."""
    exact = np.asarray(rows, dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        length = np.sqrt(np.square(exact).sum(1, keepdims=True))
        units = np.trunc(exact * (_PRODUCT_UNITS / np.maximum(length, norm) * (1 - 1e-12)))
        kept = np.square(units).sum(1, keepdims=True) <= _PRODUCT_UNITS**2  # False where it is NaN
    return np.where(kept, units, 0.0)


def noisy_choice(
    blocks: Iterable[NDArray[Any]], *, choices: int, epsilon: float, stream: SecretStream, phase: str, what: str,
) -> tuple[list[int], PureDP]:
    """The positions of the ``choices`` largest of many scores, each of which one record moves by at most 1.

    The exponential mechanism, repeated without putting back: Gumbel noise of scale ``2 / epsilon`` on every score,
    and the largest are named, in order (Durfee and Rogers 2019, arXiv 1905.04273, lemma 4.2). The noise does not grow
    with the number of candidates. The scores come in blocks and are counted through.
    """
    event = PureDP(phase, what, epsilon, choices)
    best: list[tuple[float, int]] = []
    start = 0
    for scores in blocks:
        values = np.nan_to_num(np.asarray(scores, dtype=np.float64)) * (epsilon / 2)
        values -= np.log(-np.log(stream.uniform(values.shape)))
        for i in np.argpartition(-values, min(choices, len(values) - 1))[:choices].tolist() if len(values) else []:
            best.append((float(values[i]), start + i))
        best = sorted(best, reverse=True)[:choices]
        start += len(values)
    return [position for _, position in best], event


def noisy_sums(
    contributions: Iterable[NDArray[np.float64]], size: int, *, noise_multiplier: float, stream: SecretStream,
    phase: str, what: str,
) -> tuple[NDArray[np.float64], Gaussian]:
    """The sum over records of one vector each, (size,), with noise of sd ``noise_multiplier`` per coordinate.

    ``contributions`` yields parts of shape (records, size). A vector longer than 1 is scaled down to it. Each is then
    cut to whole steps of 2**-20 towards zero, which makes none longer, so that the sum and its noise are integers.
    """
    event = Gaussian(phase, what, noise_multiplier)
    total = np.zeros(size, dtype=np.int64)
    for part in contributions:
        part = np.nan_to_num(part, nan=0.0, posinf=0.0, neginf=0.0)
        part = part / np.maximum(np.abs(part).max(axis=1, initial=1.0), 1.0)[:, None]  # or its square may be infinite
        # the norm is rounded too: a hair below one, so that no vector comes out longer
        shorter = np.minimum(1.0, (1 - 1e-12) / np.maximum(np.linalg.norm(part, axis=1), 1e-300))
        total += np.trunc(part * shorter[:, None] * _UNITS).astype(np.int64).sum(axis=0)
    noisy = total + _integer_noise(stream, cell_sd(noise_multiplier, 1) * _UNITS, size)
    return noisy / _UNITS, event


def noisy_sparse_sums(
    parts: Iterable[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]], size: int, *,
    noise_multiplier: float, stream: SecretStream, phase: str, what: str,
) -> tuple[NDArray[np.float64], Gaussian]:
    """:func:`noisy_sums` of long vectors that are mostly zero, (size,).

    ``parts`` yields (record, cell, weight), each of shape (entries,): a record's vector is the sum of its entries, and
    all of them are in one part. A vector longer than 1 is scaled down to it and cut to steps of 2**-20 towards zero.
    Every cell gets noise of sd ``noise_multiplier``, those that no record touches included.
    """
    event = Gaussian(phase, what, noise_multiplier)
    total = np.zeros(size, dtype=np.int64)
    for record, cell, weight in parts:
        if not len(cell):
            continue
        if int(cell.min()) < 0 or int(cell.max()) >= size:
            raise ConfigError(f"cell: expected numbers in [0, {size}), got {cell.min()} to {cell.max()}")
        weight = np.clip(np.nan_to_num(weight, nan=0.0), -1e6, 1e6)  # so that no square is infinite
        keys, entry = np.unique(record.astype(np.int64) * size + cell, return_inverse=True)
        values = np.bincount(entry, weight, len(keys)).astype(np.float64)  # of nothing it counts in whole numbers
        _, owner = np.unique(keys // size, return_inverse=True)
        norms = np.sqrt(np.bincount(owner, values**2))
        values *= np.minimum(1.0, (1 - 1e-12) / np.maximum(norms, 1e-300))[owner]
        np.add.at(total, keys % size, np.trunc(values * _UNITS).astype(np.int64))
    noisy = total + _integer_noise(stream, cell_sd(noise_multiplier, 1) * _UNITS, size)
    return noisy / _UNITS, event


def publication_threshold(noise_multiplier: float, columns: float, delta: float) -> int:
    """The smallest noisy count that may be published, so that a value of one record stays hidden.

    One of ``columns``, which share the squared signal and delta; a column with a share of its own is one of 1 / share.
    With ``p = delta / (columns * (1 + delta))``: the smallest integer t with P(1 + round(sd * z) >= t) <= p.

    >>> publication_threshold(10.0, 1, 1e-6)
    50
    """
    checks.fraction(delta=delta)
    sd = cell_sd(noise_multiplier, columns)
    p = delta / (columns * (1 + delta))
    threshold = math.floor(1.5 - sd * NormalDist().inv_cdf(p))
    while math.erfc((threshold - 1.5) / sd / math.sqrt(2)) / 2 > p:
        threshold += 1
    return threshold


def number_of_runs(mean: float, shape: float, stream: SecretStream) -> int:
    """How many runs a :class:`~dpvae.privacy.events.RepeatAndSelect` makes; drawn in secret, never chosen.

    The truncated negative binomial law: P(K = k + 1) / P(K = k) = (1 - gamma) (k + shape) / (k + 1).
    """
    log_gamma = log_of_stopping(mean, shape)
    stay = -math.expm1(log_gamma)
    if shape < 1e-9:
        chance = stay / -log_gamma
    else:
        chance = stay * shape / math.expm1(-shape * log_gamma)
    left, k = float(stream.uniform(1)[0]), 1
    while left > chance and chance > 0.0:
        left -= chance
        chance *= stay * (k + shape) / (k + 1)
        k += 1
    return k


def frequent_values(
    histograms: Sequence[Mapping[V, int]], *, noise_multiplier: float, delta: float, stream: SecretStream,
    floor: float = 0, shares: Sequence[float] | None = None, phase: str, what: str,
) -> tuple[list[dict[V, int]], Threshold]:
    """The values that many records share, with noisy counts, from columns whose domain is not public.

    A stability histogram (Korolova et al. 2009; bounded contributions: Wilson et al. 2020, arXiv 1909.01917; Gaussian
    noise: Gopi et al. 2020, arXiv 2002.09745). Each record has at most one value per column. A value is published
    iff its noisy count reaches ``max(publication_threshold, floor)``; a value nobody holds never is. Most frequent
    first, ties by repr, so the order tells nothing about the order of the rows. ``shares`` of the squared signal and of
    delta, one for each column, must be public; by default all columns get the same.

    **Why it is private.** Let D' be D plus one record, holding one value in each of T columns. Let M' be the
    mechanism that publishes only values present in D. On M', the two data sets differ by at most 1 in T counts: a
    Gaussian release of L2 sensitivity sqrt(T) and post-processing, with pair (P', Q'). The real mechanism differs on
    D' alone, when a value new in D' (so of count 1) passes its threshold: by a union bound over T columns with
    probability p <= delta / (1 + delta), independently of all other noise. Hence its pair is
    P = (1 - p) P' + p (something D can never publish), Q = Q'. For every epsilon, with H the hockey-stick divergence:
    H(P | Q) <= p + H(P' | Q'), and H(Q | P) = sup_S Q'(S) - e^epsilon (1 - p) P'(S) <= H(Q' | P') + p / (1 - p),
    because on the best S, e^epsilon (1 - p) P'(S) <= Q'(S) <= 1. Both are within delta of the Gaussian's. With other
    mechanisms beside it, 1 - p multiplies: the accountant adds prod(1 + delta_i) - 1. With shares a_j, the count of
    column j moves by sqrt(a_j) in units of its noise over the multiplier, the T counts by sqrt(sum of a_j) <= 1; a new
    value passes with chance a_j p at most, and the union bound holds as well.
    """
    event = Threshold(phase, what, noise_multiplier, delta)
    among = _among(len(histograms), shares)
    return [_publish(histogram, cell_sd(noise_multiplier, columns),
                     max(float(publication_threshold(noise_multiplier, columns, delta)), floor), stream)
            for histogram, columns in zip(histograms, among, strict=True)], event


def _among(columns: int, shares: Sequence[float] | None) -> list[float]:
    """Of how many equal columns each is one."""
    if shares is None:
        return [columns] * columns
    if len(shares) != columns or math.fsum(shares) > 1 + 1e-9 or not all(0 < share <= 1 for share in shares):
        raise ConfigError(f"shares={list(shares)}: expected one above 0 for each of {columns} columns, that add up to "
                          "at most 1")
    return [1 / share for share in shares]


def _publish(histogram: Mapping[V, int], sd: float, least: float, stream: SecretStream) -> dict[V, int]:
    values = sorted(histogram, key=repr)  # which value meets which noise must not depend on the order of rows
    if any(histogram[value] < 1 for value in values):
        raise ConfigError("histograms: expected counts >= 1; a value nobody holds must not be listed")
    noise = _integer_noise(stream, sd, len(values)).tolist()
    noisy = {value: int(histogram[value]) + z for value, z in zip(values, noise, strict=True)}
    kept = [value for value in values if noisy[value] >= least]
    return {value: noisy[value] for value in sorted(kept, key=lambda v: (-noisy[v], repr(v)))}
