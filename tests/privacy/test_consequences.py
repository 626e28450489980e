"""The curve behind a claim, groups of records, and private selection, against other people's numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import binom, norm

from dpvae.errors import ConfigError
from dpvae.privacy.accountant import crosscheck, price
from dpvae.privacy.consequences import MIXTURE, NO_BOUND, UNION, consequences, threshold_delta
from dpvae.privacy.events import (
    Gaussian,
    PureDP,
    RepeatAndSelect,
    SampledGaussian,
    Threshold,
    from_dict,
    to_dict,
)
from dpvae.privacy.mechanisms import number_of_runs, publication_threshold
from dpvae.privacy.noise import SecretKey
from dpvae.report import meaning

TRAINING = SampledGaussian("dpsgd", "x", 1.2, 256 / 32561, 2500)


def test_groups_cost_what_the_mixture_of_gaussians_costs() -> None:
    """3.50, 10.31 and 25.02: dp_accounting 0.6, from_mixture_gaussian_mechanism."""
    found = consequences([TRAINING], 1e-5)
    assert [group.how for group in found.groups] == [MIXTURE] * 3
    assert [group.epsilon for group in found.groups] == pytest.approx([3.50, 10.31, 25.02], rel=0.002)


def test_a_group_under_plain_gaussians_is_a_louder_gaussian() -> None:
    found = consequences([Gaussian("a", "x", 12.0)], 1e-6)
    for group in found.groups:
        expected = price([Gaussian("a", "x", 12.0 / group.records)], delta=1e-6).upper
        assert group.epsilon == pytest.approx(expected, rel=0.005)


def test_pure_epsilons_of_a_group_multiply() -> None:
    found = consequences([PureDP("a", "x", 0.2)], 1e-9)
    assert [group.epsilon for group in found.groups] == pytest.approx([0.4, 1.0, 2.0], rel=0.01)


def test_a_group_under_thresholds_pays_for_the_values_that_it_alone_holds() -> None:
    groups = consequences([TRAINING, Threshold("survey", "values", 50.0, 5e-7)], 1e-5).groups
    assert [group.how for group in groups] == [UNION] * 3
    for group in groups:  # with little noise beside it: as much as without the threshold, at the delta that is left
        louder = [TRAINING, Gaussian("survey", "values", 50.0)]
        expected = consequences(louder, 1e-5 - threshold_delta(50.0, 5e-7, group.records)).groups
        assert group.epsilon == pytest.approx(expected[(2, 5, 10).index(group.records)].epsilon, rel=1e-3)


def test_a_group_whose_values_pass_a_threshold_gets_no_bound_and_the_reason() -> None:
    two, five, ten = consequences([Threshold("survey", "values", 2.0, 5e-7)], 1e-5).groups
    assert two.epsilon is not None
    assert (five.epsilon, five.how, ten.epsilon, ten.how) == (None, NO_BOUND, None, NO_BOUND)


@pytest.mark.parametrize("columns", [1, 3, 40])
@pytest.mark.parametrize("records", [1, 2, 5, 10])
@pytest.mark.parametrize("noise", [2.0, 10.0, 60.0])
def test_no_split_of_a_groups_cells_over_values_is_published_with_a_larger_chance(
    columns: int, records: int, noise: float
) -> None:
    delta, sd = 1e-6, noise * math.sqrt(columns)
    threshold = publication_threshold(noise, columns, delta)
    stated = threshold_delta(noise, delta, records)

    def chance(count: int) -> float:
        return float(norm.sf((threshold - count - 0.5) / sd))

    for parts in partitions(records):
        p = columns * sum(map(chance, parts))
        assert math.isinf(stated) or p / max(1 - p, 0.0) <= stated * (1 + 1e-9)
    if records == 1:
        assert stated == pytest.approx(delta, rel=1e-6)


@pytest.mark.parametrize("shares", [[0.9, 0.1], [0.6, 0.3, 0.1], [0.5, *[0.05] * 10]])
@pytest.mark.parametrize("records", [1, 2, 5, 10])
@pytest.mark.parametrize("noise", [2.0, 10.0, 60.0])
def test_nor_where_columns_have_shares_of_their_own(shares: list[float], records: int, noise: float) -> None:
    stated = threshold_delta(noise, 1e-6, records)
    for parts in partitions(records):
        p = sum(float(norm.sf((publication_threshold(noise, 1 / share, 1e-6) - count - 0.5) / noise * math.sqrt(share)))
                for share in shares for count in parts)
        assert math.isinf(stated) or p / max(1 - p, 0.0) <= stated * (1 + 1e-9)


def partitions(total: int, largest: int | None = None) -> list[tuple[int, ...]]:
    """Every way to write ``total`` as a sum."""
    largest = total if largest is None else largest
    if total == 0:
        return [()]
    return [(part, *rest) for part in range(min(total, largest), 0, -1) for rest in partitions(total - part, part)]


def test_replace_one_groups_cost_what_the_mixtures_of_both_sides_cost() -> None:
    """For k records and one step, the pair is sum_j w_j N(j) against sum_j w_j N(-j): integrated here on a grid."""
    step, delta = SampledGaussian("d", "x", 2.0, 0.3, 1), 1e-3
    for group in consequences([step], delta, "replace_one").groups:
        weights = binom.pmf(np.arange(group.records + 1), group.records, 0.3)
        ends = np.linspace(-40, 50, 400_001)
        up, down = (norm.sf(ends[:, None], sign * np.arange(group.records + 1), 2.0) @ weights for sign in (1, -1))
        exact = brentq(lambda e, up=up, down=down: float((up - math.exp(e) * down).max()) - delta, 0.0, 60.0)
        assert group.how == MIXTURE
        assert exact * (1 - 1e-9) <= group.epsilon <= exact * 1.01 + 0.01


def test_a_replaced_group_costs_more_than_one_replaced_record_and_more_than_an_added_group() -> None:
    one = price([TRAINING], delta=1e-5, neighbouring="replace_one").upper
    for replaced, added in zip(consequences([TRAINING], 1e-5, "replace_one").groups,
                               consequences([TRAINING], 1e-5).groups, strict=True):
        assert replaced.epsilon is not None
        assert added.epsilon is not None
        assert max(one * replaced.records * 0.8, added.epsilon) < replaced.epsilon


@pytest.mark.parametrize("noise", [0.8, 4.0])
def test_the_curve_of_a_gaussian_is_the_exact_one_rounded_up(noise: float) -> None:
    for epsilon, delta in consequences([Gaussian("a", "x", noise)], 1e-5).profile:
        exact = norm.cdf(0.5 / noise - epsilon * noise) - math.exp(epsilon) * norm.cdf(-0.5 / noise - epsilon * noise)
        assert exact - 1e-12 <= delta <= exact * 1.02 + 2e-8


def test_odds_from_the_curve_are_far_below_those_of_the_single_pair() -> None:
    """The single pair says 99.2 % where the mechanism allows 61.2 % (riskcal 1.5.1)."""
    noisy = [SampledGaussian("dpsgd", "x", 0.6, 256 / 32561, 500)]
    upper = price(noisy, delta=1e-5).upper
    assert meaning.right_guesses([(upper, 1e-5)]) == pytest.approx(0.992, abs=0.001)
    found = consequences(noisy, 1e-5)
    assert meaning.right_guesses(found.profile) == pytest.approx(0.612, abs=0.001)
    assert meaning.true_positive_rate(found.profile, 0.001) < 0.05


@pytest.mark.parametrize(("runs", "shape", "epsilon"), [(10, 0, 2.998), (10, 1, 3.554), (30, 0, 3.300), (100, 1, 4.50)])
def test_a_private_selection_costs_what_papernot_and_steinke_say(runs: float, shape: float, epsilon: float) -> None:
    """dp_accounting 0.6, RepeatAndSelectDpEvent."""
    event = RepeatAndSelect("tuning", "best of several runs", (TRAINING,), runs, shape)
    check = crosscheck([event], 1e-5)
    assert check.pld == check.rdp == pytest.approx(epsilon, rel=0.005)
    assert check.rdp < price([TRAINING] * int(runs), delta=1e-5).upper
    assert from_dict(to_dict(event)) == event


def test_a_selection_composes_with_everything_else() -> None:
    event = RepeatAndSelect("tuning", "x", (TRAINING,), 10.0)
    alone, both = price([event], delta=1e-5), price([event, Gaussian("a", "x", 5.0)], delta=1e-5)
    assert alone.upper < both.upper < alone.upper + price([Gaussian("a", "x", 5.0)], delta=1e-5).upper
    assert alone.lower == 0
    assert both.lower > 0
    assert consequences([event], 1e-5).profile == ()


def test_a_single_run_that_is_always_shown_costs_no_less_than_itself() -> None:
    assert price([RepeatAndSelect("t", "x", (TRAINING,), 1.0)], delta=1e-5).upper >= price([TRAINING], delta=1e-5).upper


@pytest.mark.parametrize("bad", [
    {"trial": []}, {"trial": "x"}, {"runs": 0.5}, {"runs": float("nan")}, {"shape": -0.5}, {"shape": 11},
    {"trial": [{"type": "Threshold", "phase": "s", "what": "v", "noise_multiplier": 1.0, "delta": 1e-6}]},
    {"trial": [{"type": "RepeatAndSelect", "trial": []}]},
])
def test_a_selection_that_no_theorem_covers_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        from_dict({**to_dict(RepeatAndSelect("t", "x", (TRAINING,), 3.0)), **bad})


@pytest.mark.parametrize("shape", [0.0, 0.5, 1.0])
def test_the_number_of_runs_is_drawn_with_its_mean_and_never_zero(shape: float) -> None:
    stream = SecretKey.from_seed(3).stream("runs")
    drawn = np.array([number_of_runs(6.0, shape, stream) for _ in range(4000)])
    assert drawn.min() == 1
    assert drawn.mean() == pytest.approx(6.0, abs=5 * drawn.std() / math.sqrt(drawn.size))
