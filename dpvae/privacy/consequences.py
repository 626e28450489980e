"""What a claim says beyond its one pair of numbers: the whole curve of (epsilon, delta), and groups of records.

The curve is what odds are computed from (:mod:`dpvae.report.meaning`): a single pair stands for the worst mechanism
that has it, which real noise is far from. Groups: a person with k records is protected less, and by how much depends
on the mechanism, so it is computed rather than multiplied.

>>> from dpvae.privacy.events import Gaussian
>>> found = consequences([Gaussian("anchor", "marginals", noise_multiplier=4.0)], 1e-5)
>>> [f"{group.records}: {group.epsilon:.2f}" for group in found.groups if group.epsilon]
['2: 1.99', '5: 5.68', '10: 13.21']
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dpvae.errors import AccountingError
from dpvae.privacy import dots, pld, rdp
from dpvae.privacy.accountant import LARGEST_EPSILON, LEAST_DELTA, open_
from dpvae.privacy.composition import Composition
from dpvae.privacy.events import Event
from dpvae.privacy.normal import ndtr, ndtri

GROUPS = (2, 5, 10)
SHARES = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0, 1.25)  # of epsilon: where the curve is stated
MIXTURE = "mixture of Gaussians, exact up to its discretisation"
UNION = f"{MIXTURE}; published thresholds by a union bound over the group's values"
NO_BOUND = "none at this delta: the group's own values may pass a threshold with a larger chance"
SELECTED = "none: no bound for groups is known of a private selection"
MOST_COLUMNS = 1e12


@dataclass(frozen=True)
class Group:
    """Epsilon for ``records`` records that are one person's; ``None`` where no bound holds at the claim's delta."""

    records: int
    epsilon: float | None
    how: str


@dataclass(frozen=True)
class Consequences:
    """``profile``: pairs (epsilon, delta) that all hold; ``groups``: epsilon at the claim's delta, for several rows."""

    profile: tuple[tuple[float, float], ...]
    groups: tuple[Group, ...]


def consequences(
    events: Sequence[Event], delta: float, neighbouring: str = "add_remove", *, upper: float | None = None
) -> Consequences:
    """The curve and the groups of ``events``; every number is an upper bound.

    ``upper`` is what they cost at ``delta``, where that is known already; the curve is stated at shares of it.
    """
    composition, left = open_(events, delta, neighbouring)
    return _worked_out(composition, delta, left, upper)


@lru_cache(maxsize=64)
def _worked_out(composition: Composition, delta: float, left: float, upper: float | None) -> Consequences:
    above = rdp.epsilon(composition, left)
    if composition.selected:
        return Consequences((), tuple(Group(records, None, SELECTED) for records in GROUPS))
    if composition.empty or above == 0 or above > LARGEST_EPSILON:
        return Consequences((), ())
    upper = pld.epsilon(composition, left) if upper is None else upper
    mesh = min(math.sqrt(1e-3 * upper / composition.terms), upper / 400)
    epsilons = upper * np.array(SHARES)
    curve = dots.deltas(composition, epsilons, left, mesh) + composition.delta
    profile = tuple((float(e), float(min(1.0, d))) for e, d in zip(epsilons, curve, strict=True) if e != upper)
    groups = tuple(_group(composition, delta, records, mesh) for records in GROUPS)
    return _checked(Consequences((*profile, (upper, delta)), groups))


def _group(composition: Composition, delta: float, records: int, mesh: float) -> Group:
    """The losses of k records are about k times as large, and so may the grid be."""
    kept = [threshold_delta(*threshold, records) for threshold in composition.thresholds]
    left = delta - math.expm1(sum(map(math.log1p, kept)))
    if left < LEAST_DELTA:
        return Group(records, None, NO_BOUND)
    return Group(records, dots.epsilon(composition, left, records * mesh, people=records), UNION if kept else MIXTURE)


def threshold_delta(noise_multiplier: float, delta: float, records: int) -> float:
    """The delta of a :class:`~dpvae.privacy.events.Threshold` for ``records`` records; infinite where none holds.

    By the proof of :func:`dpvae.privacy.mechanisms.frequent_values`, with the chance p_k that some value which the
    group alone holds is published. In one of T columns the group's k cells hold values with counts c_1 + ... = k. A
    value of count c passes with chance f(c) = P(sd z >= t - c - 1/2), where T f(1) <= p = delta / (1 + delta) and
    sd = nm sqrt(T). Below the threshold f is convex, so the worst are k values of one cell or one value of k:
    p_k = max(k p, T f(k)). T is not part of the event: the largest over all T is taken. Between two of them, T f(k) =
    p H(z - u) / H(z), with H the normal's upper tail, H(z) = p / T and u = (k - 1) / sd; that grows with z and with u.
    Where columns have shares a_j, each is one of T = 1 / a_j, and the sum of a_j (T f(k)) is no more than the largest.
    """
    p, columns = delta / (1 + delta), np.geomspace(1, MOST_COLUMNS, 800)
    z = np.array([-ndtri(p / float(count)) for count in columns[1:]])
    same = columns[1:] * ndtr((records - 1) / noise_multiplier / np.sqrt(columns[:-1]) - z)
    chance = max(records * p, float(same.max()))
    return chance / (1 - chance) if chance < 0.5 else math.inf


def _checked(found: Consequences) -> Consequences:
    """Refuses a curve that is none: epsilon up, delta down."""
    deltas = [d for _, d in sorted(found.profile)]
    if any(later > earlier * (1 + 1e-6) for earlier, later in itertools.pairwise(deltas)):
        raise AccountingError("profile: delta grows with epsilon; please report these events")
    return found
