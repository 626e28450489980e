"""Who is in a batch: independent coins of one chance, drawn in time that follows the batch and not the table.

Tossing n coins of chance q is the same law as drawing the number of heads, Binomial(n, q), and then a uniform subset
of that size: given the number of heads every subset is equally likely. Both draws are exact up to 2**-120: the number
comes from a table of the distribution in whole numbers, the subset from whole-number draws without replacement. The
coins of :meth:`SecretStream.mask` cost about 10 ns a row; this costs about 40 ns a record *in the batch*.

Batches of a fixed capacity keep the shapes of a step static: rows of weight zero fill the batch up, what does not fit
goes into further chunks, and nobody is ever dropped. Weight zero means a clip factor of zero, so padding changes
neither what is released nor its sensitivity.

>>> from dpvae.privacy.noise import SecretKey
>>> batch = poisson_batch(SecretKey.from_seed(0).stream("doc"), 10**6, 0.004)
>>> bool((np.diff(batch) > 0).all()), 3500 < len(batch) < 4500
(True, True)
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, repeat

import numpy as np
from numpy.typing import NDArray

from dpvae import checks
from dpvae.privacy.noise import SecretKey, SecretStream

COINS_UP_TO = 100_000  # public rows: below, a coin per row is as fast
_WORD, _FINE = 64, 192  # bits of a rate, and of the distribution's table

Indices = NDArray[np.int64]


def draw_batch(key: SecretKey, step: int, rows: int, rate: float, *, public_rows: int) -> Indices:
    """The records of DP-SGD step ``step``, ascending. Which of the two ways is taken follows from the public row
    count; the law is the same."""
    stream = key.stream("dpsgd", step, "mask")
    if public_rows <= COINS_UP_TO:
        return stream.mask(rows, rate).nonzero()[0]
    return poisson_batch(stream, rows, rate)


def poisson_batch(stream: SecretStream, rows: int, rate: float) -> Indices:
    """Indices below ``rows``, each in with chance ``floor(rate * 2**64) / 2**64`` independently; ascending."""
    checks.share(rate=rate)
    checks.whole(0, rows=rows)
    return _subset(stream, rows, _binomial(stream, rows, rate))


def _binomial(stream: SecretStream, rows: int, rate: float) -> int:
    if rate == 1 or rows == 0:
        return rows
    first, edges = _table(rows, int(rate * 2.0**_WORD))
    return first + bisect_right(edges, int.from_bytes(stream.bytes(16), "big"))


@lru_cache(maxsize=8)
def _table(rows: int, chance: int) -> tuple[int, list[int]]:
    """The smallest count of positive weight, and 2**128 times the distribution function from there on.

    Whole numbers throughout: weights by the ratio of neighbours, (n - k) p / ((k + 1) (1 - p)), from the mode outwards
    until they vanish at 2**-192 of it; p = ``chance`` / 2**64.
    """
    no = 2**_WORD - chance
    mode = min((rows + 1) * chance >> _WORD, rows)
    up, down = [1 << _FINE], []
    for k in range(mode, rows):
        weight = up[-1] * (rows - k) * chance // ((k + 1) * no)
        if not weight:
            break
        up.append(weight)
    weight = 1 << _FINE
    for k in range(mode, 0, -1):
        weight = weight * k * no // ((rows - k + 1) * chance) if chance else 0
        if not weight:
            break
        down.append(weight)
    weights = down[::-1] + up
    total, sum_, edges = sum(weights), 0, []
    for weight in weights[:-1]:
        sum_ += weight
        edges.append((sum_ << 128) // total)
    return mode - len(down), edges


def _subset(stream: SecretStream, rows: int, size: int) -> Indices:
    """A uniform subset, ascending: draw with replacement, keep what is new, until there are enough."""
    if 2 * size > rows:
        left_out = np.ones(rows, dtype=bool)
        left_out[_subset(stream, rows, rows - size)] = False
        return left_out.nonzero()[0]
    narrow = np.int32 if rows <= 2**31 else np.int64  # sorts twice as fast
    chosen = np.empty(0, dtype=narrow)
    while missing := size - len(chosen):
        drawn = _distinct(stream.integers(rows, missing).astype(narrow))
        places = np.searchsorted(chosen, drawn)
        new = np.append(chosen, -1)[places] != drawn
        chosen = np.insert(chosen, places[new], drawn[new]) if len(chosen) else drawn
    return chosen.astype(np.int64)


def _distinct(values: NDArray[np.signedinteger]) -> NDArray[np.signedinteger]:
    values.sort()
    new = np.empty(len(values), dtype=bool)
    new[:1] = True
    np.not_equal(values[1:], values[:-1], out=new[1:])
    return values[new]


@dataclass(frozen=True)
class Padding:
    """How a batch is cut: ``parts`` chunks of ``first`` rows, and as many of ``further`` rows as it takes. Public."""

    first: int
    further: int
    parts: int = 1

    @classmethod
    def of(cls, rate: float, public_rows: int, *, at_most: int) -> Padding:
        """One standard deviation above the expected batch, then one standard deviation at a time; multiples of 8, and
        never more than ``at_most`` rows at once (memory)."""
        mean, sd = rate * public_rows, math.sqrt(max(rate * (1 - rate) * public_rows, 1.0))
        parts = max(math.ceil((mean + sd) / at_most), 1)
        first, further = (min(8 * math.ceil(size / 8), at_most) for size in ((mean + sd) / parts, sd))
        return cls(first, further, parts)

    def chunks(self, batch: Indices) -> Iterator[tuple[Indices, int]]:
        """(rows to take, how many of them count): filled up with row 0, which counts nothing."""
        start = 0
        for size in chain(repeat(self.first, self.parts), repeat(self.further)):
            part = batch[start:start + size]
            yield np.concatenate([part, np.zeros(size - len(part), dtype=np.int64)]), len(part)
            start += size
            if start >= len(batch):
                return
