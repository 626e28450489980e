"""The claim: epsilon by privacy loss distributions, computed by Google's dp_accounting.

Its connect-the-dots discretisation is pessimistic, so every mesh gives a valid upper bound; a coarse one can be several
times too high at small epsilons. The mesh starts where the error is expected below 0.2 % and is halved until epsilon
moves by less than 0.5 %. Its time grows with every distinct mechanism; above a handful of them, and where the claim is
only recomputed (``library=False``), the same discretisation on the same mesh is done by :mod:`dpvae.privacy.dots`.

dp_accounting takes about a second to import, so that happens on first use.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from dpvae.errors import AccountingError
from dpvae.privacy import dots, rdp
from dpvae.privacy.composition import Composition

SETTLED = 0.005
_STARTING_ERROR = 0.002
_MOST_HALVINGS = 12
_SMALL = 1e-2  # an epsilon below it is computed to this one's precision


@functools.lru_cache(maxsize=1024)
def epsilon(composition: Composition, delta: float, *, library: bool = True) -> float:
    """An upper bound on epsilon at ``delta``, within about 0.2 % of the true value."""
    above = rdp.epsilon(composition, delta)
    if above == 0:
        return 0.0  # proven already, and a mesh relative to it would be endless
    mesh = _first_mesh(composition, max(above, _SMALL))
    best = _at_mesh(composition, delta, mesh, library)
    for _ in range(_MOST_HALVINGS):
        mesh /= 2
        finer = _at_mesh(composition, delta, mesh, library)
        moved, best = best - finer, min(best, finer)
        if moved <= SETTLED * best + 1e-3 * _SMALL:
            return best
    raise AccountingError(f"pld={best:.6g}: does not settle at delta={delta:g}; the events cannot be certified")


def _first_mesh(composition: Composition, guess: float) -> float:
    """The error of connecting the dots is below terms * mesh**2, that of rounding a pure epsilon below mesh."""
    rounded = sum(count for _, count in composition.pure)
    smooth = max(1, composition.terms - rounded)
    mesh = min(math.sqrt(_STARTING_ERROR * guess / smooth), guess / 50)
    return min(mesh, _STARTING_ERROR * guess / rounded) if rounded else mesh


def _at_mesh(composition: Composition, delta: float, mesh: float, library: bool = True) -> float:
    if composition.many or not library:
        return dots.epsilon(composition, delta, mesh)
    return float(composed(composition, mesh).get_epsilon_for_delta(delta))


def composed(composition: Composition, mesh: float) -> Any:
    """The privacy loss distribution of everything, as dp_accounting's object."""
    parts = []
    if composition.gaussian is not None:
        parts.append(_gaussian(composition.gaussian, 1.0, 1, mesh, False))
    parts += [_gaussian(*sampled, mesh, composition.replace) for sampled in composition.sampled]
    parts += [_pure(*pure, mesh) for pure in composition.pure]
    return functools.reduce(lambda a, b: a.compose(b), parts)


@functools.lru_cache(maxsize=64)
def _gaussian(noise: float, rate: float, steps: int, mesh: float, replace: bool) -> Any:
    from dp_accounting.pld import privacy_loss_distribution as pld
    from dp_accounting.privacy_accountant import NeighboringRelation as Relation

    one = pld.from_gaussian_mechanism(
        noise,
        sampling_prob=rate,
        value_discretization_interval=mesh,
        neighboring_relation=Relation.REPLACE_ONE if replace else Relation.ADD_OR_REMOVE_ONE,
    )
    return one.self_compose(steps)


@functools.lru_cache(maxsize=64)
def _pure(epsilon_: float, count: int, mesh: float) -> Any:
    from dp_accounting.pld import privacy_loss_distribution as pld
    from dp_accounting.pld.common import DifferentialPrivacyParameters

    one = pld.from_privacy_parameters(DifferentialPrivacyParameters(epsilon_, 0), value_discretization_interval=mesh)
    return one.self_compose(count)
