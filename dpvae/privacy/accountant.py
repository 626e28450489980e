"""From events to epsilon, and from a target epsilon back to noise.

Three accountants of different authors look at every claim: privacy loss distributions (:mod:`dpvae.privacy.pld`, the
claim), privacy loss random variables (:mod:`dpvae.privacy.prv`, a bracket from both sides) and Renyi divergences
(:mod:`dpvae.privacy.rdp`, a bound from above). They must come out in order, ``PRV lower <= PLD <= RDP``; else nothing
is certified. Opacus' Gaussian-DP accountant is not used anywhere: it under-reports by up to 42 %. A list with a private
selection (:class:`~dpvae.privacy.events.RepeatAndSelect`) is priced by Renyi alone, which then stands in every place.

>>> from dpvae.privacy.events import Gaussian
>>> print(price([Gaussian("anchor", "marginals", noise_multiplier=4.0)], delta=1e-5))
epsilon <= 0.927 (between 0.924 and 0.927) at delta=1e-05, unit row, add_remove
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dpvae import checks
from dpvae.errors import AccountingError, ConfigError
from dpvae.privacy import pld, prv, rdp
from dpvae.privacy.composition import Composition, merge
from dpvae.privacy.events import Event

LEAST_DELTA = 1e-12  # below it, the rounding of double precision FFTs would be part of the claim
LARGEST_EPSILON = 500.0  # above it, Renyi alone prices: such a spend protects nobody, and only has to be refused
TOLERANCE = 1e-3  # accountants may differ by their own rounding, in units of epsilon and relatively


@dataclass(frozen=True)
class Epsilon:
    """A privacy loss with its doubt: the guarantee is ``upper``; ``lower`` says how much of it is slack."""

    lower: float
    estimate: float
    upper: float
    delta: float
    unit: str = "row"
    neighbouring: str = "add_remove"

    def __str__(self) -> str:
        upper = rounded_up(self.upper)
        lower = f"{math.floor(self.lower * 1000) / 1000:.3f}" if math.isfinite(self.lower) else "inf"
        return (f"epsilon <= {upper} (between {lower} and {upper}) at delta={self.delta:g}, "
                f"unit {self.unit}, {self.neighbouring}")


@dataclass(frozen=True)
class CrossCheck:
    """What each accountant says about the same events; made only if they are in order."""

    epsilon: Epsilon
    pld: float
    prv_lower: float
    prv_upper: float
    rdp: float


def price(
    events: Sequence[Event], *, delta: float, neighbouring: str = "add_remove", unit: str = "row"
) -> Epsilon:
    """What ``events`` cost together at ``delta``. Thresholds use up a part of ``delta`` first."""
    return crosscheck(events, delta, neighbouring, unit=unit).epsilon


def crosscheck(
    events: Sequence[Event], delta: float, neighbouring: str = "add_remove", *, unit: str = "row", library: bool = True
) -> CrossCheck:
    """:func:`price` with every accountant's own figure; :class:`AccountingError` names the one out of order.

    ``library=False`` recomputes the PLD figure without dp_accounting, to within 0.01 %, in a hundredth of the time.
    """
    composition, left = open_(events, delta, neighbouring)
    try:
        low, middle, high, claim, above = _ask_all(composition, left, library)
    except AccountingError:
        raise
    except (ArithmeticError, ValueError, MemoryError) as error:
        raise AccountingError(f"delta={delta:g}: these events cannot be priced ({error!r})") from error
    bound = Epsilon(min(low, claim), min(middle, claim), claim, delta, unit, neighbouring)
    return CrossCheck(bound, pld=claim, prv_lower=low, prv_upper=high, rdp=above)


def calibrate(
    build: Callable[[float], Sequence[Event]], *, epsilon: float, delta: float, neighbouring: str = "add_remove"
) -> float:
    """The largest signal scale whose events cost at most ``epsilon``, and at least 99.5 % of it.

    ``build(s)`` must get noisier as ``s`` falls. The search runs on a fast estimate; what is returned was priced by
    the claim itself, so it is never above the target.

    >>> from dpvae.privacy.events import Gaussian
    >>> scale = calibrate(lambda s: [Gaussian("a", "x", noise_multiplier=1 / s)], epsilon=1.0, delta=1e-5)
    >>> 0.995 <= price([Gaussian("a", "x", noise_multiplier=1 / scale)], delta=1e-5).upper <= 1.0
    True
    """
    checks.positive(epsilon=epsilon)

    def composed(scale: float) -> tuple[Composition, float]:
        return open_(build(scale), delta, neighbouring)

    low = _bracket(lambda scale: rdp.epsilon(*composed(scale)), epsilon)
    goal = 0.998 * epsilon
    for _ in range(6):
        scale = _solve(lambda scale: prv.estimate(*composed(scale)), goal, low)
        claim = pld.epsilon(*composed(scale))
        if 0.995 * epsilon <= claim <= epsilon:
            price(build(scale), delta=delta, neighbouring=neighbouring)  # all three agree, or it raises
            return scale
        goal *= 0.998 * epsilon / claim
    raise AccountingError(f"epsilon={epsilon:g}: no noise costs 99.5 to 100 % of it; build() must be smooth")


def open_(events: Sequence[Event], delta: float, neighbouring: str) -> tuple[Composition, float]:
    """The merged events, and the delta that thresholds leave for everything else."""
    checks.fraction(delta=delta)
    composition = merge(events, neighbouring)
    left = delta - composition.delta
    if left < LEAST_DELTA:
        raise ConfigError(
            f"delta={delta:g}: expected at least {LEAST_DELTA:g} more than the {composition.delta:g} that published "
            "thresholds use; raise privacy.delta or declare the categories"
        )
    return composition, left


def _ask_all(composition: Composition, delta: float, library: bool) -> tuple[float, float, float, float, float]:
    """PRV lower, estimate and upper, PLD, RDP; in order."""
    above = rdp.epsilon(composition, delta)
    if above > LARGEST_EPSILON:
        return 0.0, above, above, above, above
    if composition.selected:  # no loss distribution is known for a selection: Renyi alone prices the whole list
        rest = replace(composition, selected=())
        low = 0.0 if rest.empty else prv.bounds(rest, delta)[0]
        _in_order(low, above, above, above)
        return low, above, above, above, above
    low, middle, high = prv.bounds(composition, delta)
    claim = pld.epsilon(composition, delta, library=library)
    _in_order(low, claim, high, above)
    return low, middle, high, claim, above


def _in_order(low: float, claim: float, high: float, above: float) -> None:
    def exceeds(a: float, b: float) -> bool:
        return not a <= b * (1 + TOLERANCE) + 1e-6  # a nan exceeds everything

    if exceeds(low, claim):
        failed = "PRV" if exceeds(low, above) else "PLD"
    elif exceeds(claim, above * (1 + pld.SETTLED)):
        failed = "RDP" if exceeds(low, above) else "PLD"
    elif exceeds(claim, high * (1 + pld.SETTLED)):
        failed = "PLD"
    else:
        return
    raise AccountingError(
        f"{failed} is out of order: PRV {low:.6g} to {high:.6g}, PLD {claim:.6g}, RDP {above:.6g}; expected "
        "PRV lower <= PLD <= RDP. Nothing can be certified; please report these events"
    )


def _bracket(cost: Callable[[float], float], target: float) -> float:
    """A scale whose cost is at most ``target`` and, where it can be reached, more than half of it."""
    low, high = 0.0, math.inf
    scale = 1.0
    for _ in range(200):
        value = cost(scale)
        if value <= target:
            low = scale
            if value > target / 2:
                return low
        else:
            high = scale
        if low > 1e12 or high < 1e-12:
            break
        scale = scale * 4 if math.isinf(high) else scale / 4 if low == 0 else math.sqrt(low * high)
        if high <= low * 1.0001:
            return low
    if low == 0:
        raise ConfigError(f"epsilon={target:g}: expected more; what no noise can shrink costs {value:.3g} already")
    raise ConfigError(f"epsilon={target:g}: build(scale) never costs as much; expected less noise for a larger scale")


def _solve(cost: Callable[[float], float], goal: float, low: float) -> float:
    """A scale >= ``low`` whose cost is within 0.05 % of ``goal``: secants in log-log space, kept inside a bracket."""
    high, scale = math.inf, low
    slope, last = 1.0, (0.0, 0.0)
    for step in range(40):
        here = (math.log(scale), math.log(max(cost(scale), 1e-300)))
        gap = math.log(goal) - here[1]
        if abs(gap) <= 5e-4:
            return scale
        low, high = (max(low, scale), high) if gap > 0 else (low, min(high, scale))
        if step and here[0] != last[0]:
            slope = min(max((here[1] - last[1]) / (here[0] - last[0]), 0.05), 20.0)
        last = here
        guess = math.exp(here[0] + min(max(gap / slope, -2.0), 2.0))
        scale = guess if low < guess < high else math.sqrt(low * high)
    raise AccountingError(f"epsilon={goal:g}: the search for noise did not settle; build() must be smooth in its scale")


def rounded_up(value: float) -> str:
    """Three decimals, never less than the value: a claim is not rounded in its own favour."""
    return f"{math.ceil(value * 1000) / 1000:.3f}" if math.isfinite(value) else "inf"
