"""A list of events in the smallest form an accountant needs.

All unsampled Gaussians compose to one Gaussian (their inverse squared noise adds), equal sampled steps merge into one
count, and the additive deltas of thresholds into one delta. Neighbouring relations are translated here, once:

- ``add_remove``: one row more or less; events are stated for it.
- ``replace_one``: one row changed, i.e. one removed and another added. An L2 sensitivity of 1 becomes at most 2, a pure
  epsilon becomes 2 epsilon, a threshold's delta stays (its proof conditions on the rows both data sets share). For a
  Poisson-sampled Gaussian the pair is (1-q) N(0) + q N(+1) against (1-q) N(0) + q N(-1). It dominates: any test f with
  E f = s under N(0) has E f <= Phi(Phi^-1(s) + 1) under N(g) and >= Phi(Phi^-1(s) - 1) under N(g') for all
  |g|, |g'| <= 1 (Neyman-Pearson), and one threshold test attains both at once for g = +1, g' = -1.

>>> from dpvae.privacy.events import Gaussian
>>> merge([Gaussian("a", "x", 20.0, count=2), Gaussian("b", "y", 20.0, count=2)]).gaussian
10.0
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dpvae import checks
from dpvae.config import NEIGHBOURS
from dpvae.errors import AccountingError
from dpvae.privacy.events import Event, Gaussian, PureDP, RepeatAndSelect, SampledGaussian, Threshold

MANY = 8  # distinct sampled mechanisms; above, bounds are a little wider and much faster
MOST_NOISE = 1e9  # more counts as this much, which costs nothing that double precision could show


@dataclass(frozen=True)
class Composition:
    """What a list of events costs, mechanism by mechanism, under one neighbouring relation."""

    gaussian: float | None  # noise multiplier of all unsampled Gaussians together
    sampled: tuple[tuple[float, float, int], ...]  # (noise multiplier, sampling rate, steps)
    pure: tuple[tuple[float, int], ...]  # (epsilon, count)
    delta: float  # what thresholds add
    thresholds: tuple[tuple[float, float], ...] = ()  # (noise multiplier, delta) of each, for groups of records
    replace: bool = False
    selected: tuple[tuple[Composition, float, float], ...] = ()  # (one run, mean number of runs, shape of their law)

    @property
    def empty(self) -> bool:
        """Whether nothing was spent, apart from ``delta``."""
        return not (self.gaussian is not None or self.sampled or self.pure or self.selected)

    @property
    def many(self) -> bool:
        """Whether there are so many distinct sampled mechanisms that accountants have to hurry."""
        return len(self.sampled) > MANY

    @property
    def terms(self) -> int:
        """Independent privacy losses that a numerical accountant has to add up."""
        return (self.gaussian is not None) + sum(s for *_, s in self.sampled) + sum(c for _, c in self.pure)


def merge(events: Sequence[Event], neighbouring: str = "add_remove") -> Composition:
    """The composition of ``events``, in any order, under ``neighbouring``."""
    checks.one_of(NEIGHBOURS, neighbouring=neighbouring)
    factor = 2 if neighbouring == "replace_one" else 1
    precision = log_kept = 0.0
    sampled: Counter[tuple[float, float]] = Counter()
    pure: Counter[float] = Counter()
    selected, thresholds = [], []
    for event in events:
        match event:
            case Gaussian():
                precision += _precision(event.noise_multiplier, event.count)
            case SampledGaussian() if event.sampling_rate == 1:
                precision += _precision(event.noise_multiplier, event.steps)
            case SampledGaussian():
                sampled[min(event.noise_multiplier, MOST_NOISE), event.sampling_rate] += event.steps
            case PureDP():
                pure[factor * event.epsilon] += event.count
            case Threshold():
                precision += _precision(event.noise_multiplier, 1)
                log_kept += math.log1p(event.delta)
                thresholds.append((event.noise_multiplier, event.delta))
            case RepeatAndSelect():
                selected.append((merge(event.trial, neighbouring), event.runs, event.shape))
            case _:
                raise AccountingError(f"event={event!r}: no accountant can price it; expected one of privacy/events.py")
    return Composition(
        gaussian=1 / math.sqrt(precision) / factor if precision else None,
        sampled=tuple((noise, rate, steps) for (noise, rate), steps in sorted(sampled.items())),
        pure=tuple(sorted(pure.items())),
        delta=math.expm1(log_kept),  # prod(1 + delta_i) - 1: see mechanisms.frequent_values
        thresholds=tuple(thresholds),
        replace=factor == 2,
        selected=tuple(selected),
    )


def _precision(noise_multiplier: float, count: int) -> float:
    if noise_multiplier < 1e-100:
        raise AccountingError(f"noise_multiplier={noise_multiplier!r}: too little noise to be priced")
    return count / min(noise_multiplier, MOST_NOISE) ** 2
