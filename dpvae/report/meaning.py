"""What (epsilon, delta) means to somebody who is not a statistician: a sentence, and what an attacker can reach.

Every number here is a bound that holds against anyone who knows all other rows, all code and all public inputs,
and follows from (epsilon, delta) alone (Wasserman & Zhou 2010; Kairouz, Oh, Viswanath 2015; the best trade-off of
several (epsilon, delta) pairs is their pointwise minimum, so a whole privacy profile can be passed as pairs).
Numbers are rounded against us: chances up, never down.

>>> round(true_positive_rate([(1.0, 1e-5)], 0.01), 4)
0.0272
>>> round(posterior([(1.0, 1e-5)], 0.5), 3)
0.732
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Pairs = Sequence[tuple[float, float]]

RARE = 0.001  # posteriors are stated for evidence that turns up at least this often without the person
GRID = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97, 1.0)
RELATIONS = {"add_remove": "added or removed", "replace_one": "replaced by any other"}


@dataclass(frozen=True, kw_only=True)
class Point:
    """A corner of the trade-off curve: an attack wrong at most this often is right at most that often."""

    false_positive_rate: float
    true_positive_rate: float


@dataclass(frozen=True, kw_only=True)
class Risk:
    """Upper bounds on any membership attack, from (epsilon, delta) alone."""

    true_positive_rate_at_1_percent: float
    true_positive_rate_at_0_1_percent: float
    right_guesses_at_even_odds: float
    posterior_from_prior_0_5: float
    posterior_from_prior_0_1: float
    posterior_from_prior_0_01: float
    posterior_evidence_at_least: float
    trade_off: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Something the claim does not cover."""

    topic: str
    statement: str


NOT_COVERED = (
    Gap(topic="people with several rows", statement=(
        "The guarantee is per unit. Somebody with k rows is protected by about k times the epsilon, and with a delta "
        "that grows faster; the program does not know which rows belong to one person.")),
    Gap(topic="correlated records", statement=(
        "What can be inferred about a person from other people's rows (relatives, a household, the population as a "
        "whole) is not hidden. A true statistic about a group is a finding, not a breach.")),
    Gap(topic="declared inputs", statement=(
        "Everything under scope.public_inputs was taken as public. If it was read off the private data, it leaks.")),
    Gap(topic="other releases of the same data", statement=(
        "Each release adds to what is known. lineage.cumulative_epsilon, where it is not 'none', has the sum.")),
    Gap(topic="timing and other side channels", statement=(
        "How long a run took, its memory and its files under private/ are not part of the guarantee.")),
    Gap(topic="floating point", statement=(
        "Noisy counts, the noisy ELBO and the noisy sums of DP-SGD are whole numbers of steps, which closes the known "
        "attack on the lowest bits. Clipped gradients are added up in single precision: that a record moves their sum "
        "by no more than the clip norm holds up to rounding (about 1e-6 of the sum).")),
    Gap(topic="the operator", statement=(
        "The certificate proves that its events cost what it says. That the run did what its events say rests on the "
        "code and on whoever ran it; evidence.audit tells whether it was tested.")),
    Gap(topic="accuracy", statement=(
        "Synthetic rows carry noise and the model's own errors. No statistic is promised to be near the real one.")),
)


def true_positive_rate(pairs: Pairs, false_positive_rate: float) -> float:
    """The most often an attack can be right that is wrong at most ``false_positive_rate`` of the time.

    Both directions of the definition bound it: TPR <= e^eps FPR + delta, and 1 - FPR <= e^eps (1 - TPR) + delta.
    """
    bounds = [1.0]
    for epsilon, delta in pairs:
        bounds.append(_exp(epsilon) * false_positive_rate + delta if false_positive_rate else delta)
        bounds.append(1 - math.exp(-epsilon) * (1 - false_positive_rate - delta))
    return max(0.0, min(bounds))


def right_guesses(pairs: Pairs) -> float:
    """The largest share of right guesses about membership at even odds: (1 + total variation) / 2."""
    return min([1.0, *((1 + delta * math.exp(-epsilon)) / (1 + math.exp(-epsilon)) for epsilon, delta in pairs)])


def posterior(pairs: Pairs, prior: float, evidence_at_least: float = RARE) -> float:
    """The largest belief in membership, from ``prior``, after evidence that is not rarer than ``evidence_at_least``.

    Bayes with P(evidence | in) <= TPR(P(evidence | out)). Without the floor no bound exists for delta > 0:
    an event of probability delta may give everything away.
    """
    hit = true_positive_rate(pairs, evidence_at_least)
    return prior * hit / (prior * hit + (1 - prior) * evidence_at_least)


def risk(pairs: Pairs) -> Risk:
    """All the bounds of a certificate, rounded up to six decimals."""
    return Risk(
        true_positive_rate_at_1_percent=_up(true_positive_rate(pairs, 0.01)),
        true_positive_rate_at_0_1_percent=_up(true_positive_rate(pairs, 0.001)),
        right_guesses_at_even_odds=_up(right_guesses(pairs)),
        posterior_from_prior_0_5=_up(posterior(pairs, 0.5)),
        posterior_from_prior_0_1=_up(posterior(pairs, 0.1)),
        posterior_from_prior_0_01=_up(posterior(pairs, 0.01)),
        posterior_evidence_at_least=RARE,
        trade_off=tuple(Point(false_positive_rate=x, true_positive_rate=_up(true_positive_rate(pairs, x)))
                        for x in sorted({*GRID, *(x for pair in pairs for x in _corners(pair))})),
    )


def sentence(*, lower: float, upper: float, delta: float, unit: str, neighbouring: str, subject: str,
             pairs: Pairs = ()) -> str:
    """The guarantee as one plain sentence; ``subject`` is what was published ("This release", "This run")."""
    relation = RELATIONS.get(neighbouring, neighbouring)
    pairs = [*pairs, (upper, delta)]
    return (
        f"{subject} is differentially private with epsilon <= {decimals(upper, up=True)} "
        f"(between {decimals(lower, up=False)} and {decimals(upper, up=True)}) at delta = {delta:.3g}, "
        f"for one {unit} {relation}: whoever sees all of it and knows every other {unit} guesses whether a given "
        f"{unit} was in the data with at most {percent(right_guesses(pairs))} of guesses right "
        f"(50 % is a coin toss), and an attack that wrongly accuses 1 % of outsiders "
        f"finds at most {percent(true_positive_rate(pairs, 0.01))} of those inside."
    )


def _corners(pair: tuple[float, float]) -> tuple[float, float]:
    """Where the two bounds of one pair meet and end; drawn, so that straight lines between points are exact."""
    epsilon, delta = pair
    return round((1 - delta) / (1 + _exp(epsilon)), 6), round(1 - delta, 6)


def percent(share: float, places: int = 1) -> str:
    """A share as per cent, rounded up."""
    scale = 10.0**places
    return f"{math.ceil(share * 100 * scale - 1e-7) / scale:.{places}f} %"


def decimals(value: float, *, up: bool) -> str:
    """Three decimals (three significant digits below 0.1), rounded away from optimism."""
    places = 3 if value >= 0.1 or value <= 0 else min(12, 2 - math.floor(math.log10(value)))
    scaled = value * 10**places
    whole = math.ceil(scaled - 1e-6) if up else math.floor(scaled + 1e-6)
    return f"{whole / 10**places:.{places}f}"


def _up(value: float) -> float:
    return min(1.0, math.ceil(value * 1e6 - 1e-6) / 1e6)


def _exp(epsilon: float) -> float:
    return math.exp(min(epsilon, 700.0))
