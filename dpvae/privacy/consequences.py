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

import numpy as np

from dpvae.errors import AccountingError
from dpvae.privacy import dots, pld, rdp
from dpvae.privacy.accountant import LARGEST_EPSILON, open_
from dpvae.privacy.composition import Composition
from dpvae.privacy.events import Event
from dpvae.privacy.rdp import Floats

GROUPS = (2, 5, 10)
SHARES = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0, 1.25)  # of epsilon: where the curve is stated
MIXTURE = "mixture of Gaussians, exact up to its discretisation"
GENERIC = "group property of the whole curve"
NO_BOUND = "none at this delta: published thresholds protect single records"


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


def consequences(events: Sequence[Event], delta: float, neighbouring: str = "add_remove") -> Consequences:
    """The curve and the groups of ``events``; every number is an upper bound."""
    composition, left = open_(events, delta, neighbouring)
    above = rdp.epsilon(composition, left)
    if composition.empty or composition.selected or above == 0 or above > LARGEST_EPSILON:
        return Consequences((), ())
    upper = pld.epsilon(composition, left)
    mesh = min(math.sqrt(1e-3 * upper / composition.terms), upper / 400)
    epsilons = upper * np.array(SHARES)
    curve = _deltas(composition, epsilons, left, mesh) + composition.delta
    profile = tuple((float(e), float(min(1.0, d))) for e, d in zip(epsilons, curve, strict=True) if e != upper)
    groups = _groups(composition, delta, left, upper, mesh)
    return _checked(Consequences((*profile, (upper, delta)), groups))


def _deltas(composition: Composition, epsilons: Floats, delta: float, mesh: float) -> Floats:
    if composition.replace:
        return np.asarray(pld.composed(composition, mesh).get_delta_for_epsilon(list(epsilons)), dtype=np.float64)
    return dots.deltas(composition, epsilons, delta, mesh)


def _groups(composition: Composition, delta: float, left: float, upper: float, mesh: float) -> tuple[Group, ...]:
    if not composition.replace and composition.delta == 0:
        # the losses of k records are about k times as large, and so may the grid be
        return tuple(Group(k, dots.epsilon(composition, left, k * mesh, people=k), MIXTURE) for k in GROUPS)
    epsilons = upper * np.linspace(0.02, 3.0, 300)
    curve = _deltas(composition, epsilons, left, mesh) + composition.delta
    return tuple(_generic(k, epsilons, curve, delta) for k in GROUPS)


def _generic(records: int, epsilons: Floats, curve: Floats, delta: float) -> Group:
    """(epsilon, d) for one record is (k epsilon, d (e^(k epsilon) - 1) / (e^epsilon - 1)) for k of them."""
    with np.errstate(over="ignore"):
        grown = curve * np.expm1(records * epsilons) / np.expm1(epsilons)
    holds = np.flatnonzero(grown <= delta)
    if not holds.size:
        return Group(records, None, NO_BOUND)
    return Group(records, float(records * epsilons[holds[0]]), GENERIC)


def _checked(found: Consequences) -> Consequences:
    """Refuses a curve that is none: epsilon up, delta down."""
    deltas = [d for _, d in sorted(found.profile)]
    if any(later > earlier * (1 + 1e-6) for earlier, later in itertools.pairwise(deltas)):
        raise AccountingError("profile: delta grows with epsilon; please report these events")
    return found
