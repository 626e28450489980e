"""What epsilon means: bounds against closed forms and against the best attack there is."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from dpvae.report.meaning import GRID, RARE, posterior, right_guesses, risk, sentence, true_positive_rate

EPSILONS = st.floats(0, 20)
DELTAS = st.floats(0, 0.1)
RATES = st.floats(0, 1)


def test_no_privacy_loss_leaves_a_coin_toss() -> None:
    assert right_guesses([(0.0, 0.0)]) == 0.5
    assert posterior([(0.0, 0.0)], 0.1) == pytest.approx(0.1)
    assert true_positive_rate([(0.0, 0.0)], 0.01) == pytest.approx(0.01)


def test_pure_dp_posterior_odds_grow_by_exactly_e_to_the_epsilon() -> None:
    assert posterior([(1.0, 0.0)], 0.5) == pytest.approx(math.e / (1 + math.e))
    assert posterior([(2.0, 0.0)], 0.1) == pytest.approx(math.e**2 / (math.e**2 + 9))


def test_randomised_response_reaches_the_bound_on_right_guesses() -> None:
    assert right_guesses([(math.log(3), 0.0)]) == pytest.approx(0.75)
    assert right_guesses([(math.log(3), 0.1)]) == pytest.approx((3 + 0.1) / 4)


def test_everything_is_possible_when_delta_is_one() -> None:
    assert right_guesses([(0.0, 1.0)]) == 1.0


@pytest.mark.parametrize("sigma", [0.5, 1.0, 4.0])
def test_exact_gaussian_attack_never_beats_its_epsilon_and_delta(sigma: float) -> None:
    epsilon = 1.5 / sigma
    delta = norm.cdf(0.5 / sigma - epsilon * sigma) - math.exp(epsilon) * norm.cdf(-0.5 / sigma - epsilon * sigma)
    for rate in GRID:
        exact = norm.cdf(norm.ppf(rate) + 1 / sigma)
        assert exact <= true_positive_rate([(epsilon, delta)], rate) + 1e-12
    assert norm.cdf(0.5 / sigma) <= right_guesses([(epsilon, delta)]) + 1e-12


@given(epsilon=EPSILONS, delta=DELTAS, low=RATES, high=RATES)
def test_curve_is_monotone_and_above_random_guessing(epsilon: float, delta: float, low: float, high: float) -> None:
    low, high = sorted((low, high))
    assert true_positive_rate([(epsilon, delta)], low) <= true_positive_rate([(epsilon, delta)], high) + 1e-12
    assert low - 1e-12 <= true_positive_rate([(epsilon, delta)], low) <= 1


@given(epsilon=EPSILONS, delta=DELTAS, prior=st.floats(0.001, 0.999), evidence=st.floats(RARE, 1))
def test_no_evidence_above_the_floor_moves_a_belief_further(
        epsilon: float, delta: float, prior: float, evidence: float) -> None:
    assert posterior([(epsilon, delta)], prior, evidence) <= posterior([(epsilon, delta)], prior) + 1e-12


def test_more_pairs_never_make_the_bound_worse() -> None:
    assert true_positive_rate([(1.0, 1e-5), (0.5, 1e-3)], 0.01) <= true_positive_rate([(1.0, 1e-5)], 0.01)


def test_trade_off_is_straight_between_its_points() -> None:
    points = risk([(1.0, 1e-3)]).trade_off
    for a, b in itertools.pairwise(points):
        middle = (a.false_positive_rate + b.false_positive_rate) / 2
        line = (a.true_positive_rate + b.true_positive_rate) / 2
        assert true_positive_rate([(1.0, 1e-3)], middle) == pytest.approx(line, abs=3e-6)


@given(epsilon=st.floats(1e-6, 15), delta=st.floats(1e-12, 0.1))
def test_published_chances_are_rounded_up(epsilon: float, delta: float) -> None:
    found = risk([(epsilon, delta)])
    assert found.right_guesses_at_even_odds >= right_guesses([(epsilon, delta)]) - 1e-11
    assert found.posterior_from_prior_0_5 >= posterior([(epsilon, delta)], 0.5) - 1e-11


@given(upper=st.floats(1e-9, 50))
def test_sentence_never_states_a_smaller_epsilon(upper: float) -> None:
    words = sentence(lower=upper / 2, upper=upper, delta=1e-5, unit="row", neighbouring="add_remove", subject="It")
    stated = float(words.split("epsilon <= ")[1].split(" ")[0])
    low = float(words.split("(between ")[1].split(" ")[0])
    assert stated >= upper * (1 - 1e-6) - 1e-9
    assert low <= upper / 2 * (1 + 1e-6) + 1e-9
