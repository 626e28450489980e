"""The fast privacy loss distributions say what dp_accounting says, and never less than the truth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from dpvae.privacy import dots, pld, prv, rdp
from dpvae.privacy.composition import merge
from dpvae.privacy.events import Event, Gaussian, PureDP, SampledGaussian

LISTS: dict[str, list[Event]] = {
    "one": [SampledGaussian("dpsgd", "x", 0.8, 0.01, 300)],
    "small": [SampledGaussian("dpsgd", "x", 4.0, 0.005, 100)],
    "mixed": [Gaussian("a", "x", 8.0), SampledGaussian("dpsgd", "x", 1.1, 0.02, 80), PureDP("b", "y", 0.03, 4),
              SampledGaussian("dpsgd", "x", 2.0, 0.25, 30)],
    "plain": [Gaussian("a", "x", 3.0)],
}


@pytest.mark.parametrize("relation", ["add_remove", "replace_one"])
@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("delta", [1e-5, 1e-8])
def test_the_recomputed_claim_is_dp_accountings_to_a_ten_thousandth_and_not_below(
    name: str, delta: float, relation: str
) -> None:
    composition = merge(LISTS[name], relation)
    theirs, ours = (pld.epsilon(composition, delta, library=library) for library in (True, False))
    assert theirs <= ours <= theirs * (1 + 1e-4)


@given(st.lists(st.tuples(st.floats(0.5, 8), st.floats(1e-4, 0.3), st.integers(1, 3000)), min_size=1, max_size=2),
       st.lists(st.floats(1.0, 60.0), max_size=2), st.sampled_from(["add_remove", "replace_one"]),
       st.floats(-9, -4))
@settings(max_examples=25)
def test_random_lists_cost_the_same_with_and_without_dp_accounting(
    sampled: list[tuple[float, float, int]], plain: list[float], relation: str, exponent: float
) -> None:
    composition = merge([*(SampledGaussian("dpsgd", "x", *each) for each in sampled),
                         *(Gaussian("anchor", "x", noise) for noise in plain)], relation)
    if rdp.epsilon(composition, 10**exponent) > 50:
        return
    theirs, ours = (pld.epsilon(composition, 10**exponent, library=library) for library in (True, False))
    assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("relation", ["add_remove", "replace_one"])
def test_a_coarser_grid_is_never_cheaper_and_none_is_below_the_lower_bound(name: str, relation: str) -> None:
    composition = merge(LISTS[name], relation)
    low = prv.bounds(composition, 1e-5)[0]
    found = [dots.epsilon(composition, 1e-5, mesh) for mesh in (4e-3, 1e-3, 2.5e-4)]
    assert all(coarse >= fine - 1e-6 for coarse, fine in itertools.pairwise(found))
    assert found[-1] >= low


@pytest.mark.parametrize("way", ["remove", "add", "replace"])
@pytest.mark.parametrize(("noise", "rate"), [(0.6, 0.01), (1.0, 0.3), (5.0, 0.0001), (1.0, 1.0), (20.0, 1.0)])
def test_the_hockey_stick_is_the_best_half_line_of_all(way: str, noise: float, rate: float) -> None:
    ends = np.linspace(-12 * noise, 12 * noise + 1, 200_001)
    mixed = (1 - rate) * norm.sf(ends / noise) + rate * norm.sf((ends - 1) / noise)
    plain = norm.sf(ends / noise)
    if way == "replace" and rate < 1:  # an unsampled Gaussian comes with its noise halved, as an added record's
        plain = (1 - rate) * norm.sf(ends / noise) + rate * norm.sf((ends + 1) / noise)
    for epsilon in (-0.5, -1e-3, 0.0, 1e-4, 0.01, 0.1, 1.0, 3.0):
        e = np.exp(epsilon)
        first, second = (plain, mixed) if way == "add" else (mixed, plain)
        pairs = ((first, second), (1 - first, 1 - second))
        best = max(0.0, 1 - e, *(float((p - e * q).max()) for p, q in pairs))
        assert float(dots.hockey_stick(np.array([epsilon]), noise, rate, way)[0]) == pytest.approx(best, abs=3e-7)


@given(st.lists(st.tuples(st.floats(0.5, 6), st.floats(1e-3, 0.3), st.integers(1, 200)), min_size=1, max_size=3))
@settings(max_examples=15)
def test_random_lists_stay_above_the_lower_bound_and_beside_the_estimate(
    mechanisms: list[tuple[float, float, int]]
) -> None:
    composition = merge([SampledGaussian("dpsgd", "x", *each) for each in mechanisms])
    low, middle, _ = prv.bounds(composition, 1e-5)
    if middle > 20:
        return
    found = dots.epsilon(composition, 1e-5, max(1e-4, middle / 2000))
    assert low <= found <= middle * 1.03 + 0.01


def test_whatever_is_cut_off_is_paid_for(monkeypatch: pytest.MonkeyPatch) -> None:
    composition = merge(LISTS["one"])
    honest = dots.epsilon(composition, 1e-5, 1e-3)
    monkeypatch.setattr(dots, "_CUT", 0.1)
    assert dots.epsilon(composition, 1e-5, 1e-3) > honest


def test_a_grid_that_rounds_losses_down_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: shifted by one grid point per step, the same masses cost less than the lower bound allows."""
    real, composition = dots._dots, merge(LISTS["one"])
    monkeypatch.setattr(dots, "_dots", lambda *args: (real(*args)[0] - 1, real(*args)[1]))
    assert dots.epsilon(composition, 1e-5, 1e-3) < prv.bounds(composition, 1e-5)[0]
