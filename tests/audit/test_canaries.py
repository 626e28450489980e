"""Lower bounds: golden numbers, coverage on mechanisms whose epsilon is known, and what planted records show."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats

from dpvae.audit import canaries

DELTA = 1e-5


def gaussian_epsilon(noise: float) -> float:
    mu = 1 / noise

    def gap(epsilon: float) -> float:
        return float(stats.norm.cdf(mu / 2 - epsilon / mu)
                     - math.exp(epsilon) * stats.norm.cdf(-mu / 2 - epsilon / mu)) - DELTA

    return float(optimize.brentq(gap, 0, 80)) if gap(0) > 0 else 0.0


def gaussian_curve(noise: float) -> canaries.Curve:
    """The trade-off of one Gaussian release."""
    return lambda x: stats.norm.cdf(stats.norm.ppf(x) - 1 / noise)


# Golden: an independent implementation (jax-privacy 2.0, auditing) agreed with these to 5e-7.
@pytest.mark.parametrize(("m", "r", "v", "any_mechanism", "gaussian"), [
    (1000, 1000, 700, 0.732, 1.372), (1000, 100, 100, 3.465, 5.549), (5000, 5000, 4000, 1.327, 2.334)])
def test_one_run_bounds_agree_with_the_published_implementations(m: int, r: int, v: int, any_mechanism: float,
                                                                 gaussian: float) -> None:
    assert canaries.steinke(canaries=m, guesses=r, correct=v, delta=DELTA) == pytest.approx(any_mechanism, abs=6e-4)
    found = canaries.f_dp(gaussian_curve, gaussian_epsilon, canaries=m, guesses=r, correct=v, strongest=0.05,
                          weakest=100, rounds=18)
    assert found == pytest.approx(gaussian, abs=2e-3)


def test_a_curve_of_pairs_is_never_above_the_trade_off_it_was_taken_from() -> None:
    epsilons = np.linspace(0, 8, 200)
    mu = 1.3
    deltas = stats.norm.cdf(mu / 2 - epsilons / mu) - np.exp(epsilons) * stats.norm.cdf(-mu / 2 - epsilons / mu)
    x = np.linspace(1e-4, 1 - 1e-4, 300)
    exact, lower = gaussian_curve(1 / mu)(x), canaries.profile_curve(epsilons, deltas)(x)
    assert (lower <= exact + 1e-9).all()
    assert np.abs(lower - exact).max() < 2e-3


def run_of_dp_sgd(seed: int, *, noise: float, rate: float, steps: int, m: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    inside = rng.random(m) < 0.5
    coins = (rng.random((steps, m)) < rate) * inside
    return inside, coins, coins + noise * rng.standard_normal((steps, m))


def test_lower_bounds_hold_in_at_least_nineteen_of_twenty_runs_and_the_tightest_proves_sixty_per_cent() -> None:
    noise, rate, steps, m, runs = 1.0, 0.1, 60, 200, 30
    true = canaries.epsilon_of(noise, rate, steps, DELTA)
    above: dict[str, int] = {"steinke": 0, "all-updates": 0}
    shares = []
    for seed in range(runs):
        inside, coins, seen = run_of_dp_sgd(seed, noise=noise, rate=rate, steps=steps, m=m)
        scores = canaries.likelihood_ratios(seen, np.full(m, noise), rate)
        order = np.argsort(scores)
        correct = int((~inside[order[:m // 3]]).sum() + inside[order[-(m // 3):]].sum())
        above["steinke"] += canaries.steinke(canaries=m, guesses=2 * (m // 3), correct=correct, delta=DELTA) > true
        proved = canaries.all_updates(seen[:, inside], coins[:, inside], rate=rate, steps=steps, delta=DELTA)
        above["all-updates"] += proved > true
        shares.append(proved / true)
    assert max(above.values()) <= 4, f"{above} of {runs}: more than chance gives a bound of 95 % (p < 0.05)"
    assert np.mean(shares) > 0.6


def test_half_the_noise_is_proved_to_cost_more_than_the_claim() -> None:
    claimed = canaries.epsilon_of(1.0, 0.1, 60, DELTA)
    inside, coins, seen = run_of_dp_sgd(1, noise=0.5, rate=0.1, steps=60, m=200)
    proved = canaries.all_updates(seen[:, inside], coins[:, inside], rate=0.1, steps=60, delta=DELTA,
                                  confidence=canaries.ALARM)
    assert proved > claimed


def test_the_two_sided_bound_of_a_perfect_and_of_a_blind_attack() -> None:
    inside, outside = np.ones(1000), -np.ones(1000)
    assert canaries.two_sided(inside, outside, delta=DELTA) == pytest.approx(math.log(1000 / 4.4), abs=0.3)
    assert canaries.two_sided(outside, outside, delta=DELTA) == 0
