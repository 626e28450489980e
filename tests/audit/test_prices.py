"""The audit's own price of a ledger agrees with the accountants', and with a closed form."""

from __future__ import annotations

import math

import pytest
from scipy import optimize, stats

from dpvae.audit.prices import DOUBT, cost
from dpvae.privacy.accountant import price
from dpvae.privacy.events import Event, Gaussian, PureDP, SampledGaussian, Threshold

DELTA = 1e-5
EVENTS: tuple[Event, ...] = (
    Gaussian("anchor", "tables", 8.0), Gaussian("metric", "noisy ELBO", 30.0, 5), PureDP("choice", "sets", 0.05, 3),
    Threshold("survey", "values", 12.0, 1e-6), SampledGaussian("dpsgd", "gradients", 2.0, 0.1, 40))


def test_gaussians_cost_what_the_closed_form_says() -> None:
    sigma = 4.0 / math.sqrt(3)

    def delta(epsilon: float) -> float:  # Balle and Wang 2018, theorem 8
        a, b = 1 / (2 * sigma), epsilon * sigma
        return float(stats.norm.cdf(a - b) - math.exp(epsilon) * stats.norm.cdf(-a - b))

    exact = optimize.brentq(lambda epsilon: delta(epsilon) - DELTA, 0.1, 10)
    assert cost((Gaussian("a", "x", 4.0, 3),), DELTA, target=exact) == pytest.approx(exact, rel=0.005)


def test_a_mixed_ledger_costs_what_the_accountants_say() -> None:
    upper = price(EVENTS, delta=DELTA).upper
    found = cost(EVENTS, DELTA, target=upper)
    assert found is not None
    assert upper * (1 - 0.005) <= found <= upper * (1 + DOUBT)


def test_thresholds_that_use_up_delta_cost_everything() -> None:
    assert cost((Threshold("survey", "values", 12.0, 2e-5),), DELTA, target=1.0) == math.inf
