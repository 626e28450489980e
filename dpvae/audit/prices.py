"""What a ledger's events cost, worked out without the program's own accountants.

Every claim goes through one door (:mod:`dpvae.privacy.accountant`); a mistake in that door, such as half of the steps
composed, is in all three of its accountants. So the events are handed to Google's dp_accounting here once more, one by
one, as they stand on the ledger.

>>> from dpvae.privacy.events import Gaussian
>>> 0.925 < cost((Gaussian("anchor", "marginals", noise_multiplier=4.0),), 1e-5, target=1.0) < 0.93
True
"""

from __future__ import annotations

import functools
import math

from dpvae.privacy.events import Event, Gaussian, PureDP, SampledGaussian, Threshold

MESH = 1e-3  # of the target; losses are rounded up to it
DOUBT = 0.02  # of the target: what rounding up may come to


@functools.lru_cache(maxsize=256)
def cost(events: tuple[Event, ...], delta: float, *, target: float) -> float | None:
    """Epsilon of ``events`` at ``delta``, one record more or less, too large by at most ``DOUBT * target`` where it is
    near ``target``; ``None`` where an event is none that it knows."""
    from dp_accounting.pld import privacy_loss_distribution as pld

    step = MESH * min(target, 1.0)
    composed, left, mesh = pld.identity(step), delta, {"value_discretization_interval": step}
    for event in events:
        if isinstance(event, Threshold):
            left -= event.delta
        if isinstance(event, (Gaussian, Threshold)):
            one, times = pld.from_gaussian_mechanism(event.noise_multiplier, **mesh), getattr(event, "count", 1)
        elif isinstance(event, SampledGaussian):
            one = pld.from_gaussian_mechanism(event.noise_multiplier, sampling_prob=event.sampling_rate, **mesh)
            times = event.steps
        elif isinstance(event, PureDP):
            one, times = pld.from_randomized_response(2 / (1 + math.exp(event.epsilon)), 2, **mesh), event.count
        else:
            return None
        composed = composed.compose(one.self_compose(times))
    return float(composed.get_epsilon_for_delta(left)) if left > 0 else math.inf
