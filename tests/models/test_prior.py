"""One contract for every prior, and the systematic sampling of the codebook."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.distributions import Normal

from dpvae.models.prior import Codebook, StandardNormal, strata


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uneven(components: int = 5) -> Codebook:
    codebook = Codebook(3, components, generator=generator(0))
    with torch.no_grad():
        codebook.weights.copy_(torch.linspace(-1.5, 1.5, components))
    return codebook


PRIORS = {"standard normal": lambda: StandardNormal(3), "codebook": uneven}
every_prior = pytest.mark.parametrize("make", PRIORS.values(), ids=PRIORS.keys())


@every_prior
def test_a_prior_draws_rows_of_its_dimension_as_a_function_of_the_generator(make: Callable[[], Any]) -> None:
    prior = make()
    drawn = prior.sample(7, generator=generator(1))
    assert drawn.shape == (7, prior.dim)
    assert torch.equal(drawn, prior.sample(7, generator=generator(1)))
    assert not torch.equal(drawn, prior.sample(7, generator=generator(2)))


@every_prior
def test_the_mean_and_the_covariance_of_draws_are_those_of_the_prior(make: Callable[[], Any]) -> None:
    prior, rows = make(), 40_000
    drawn = prior.sample(rows, generator=generator(3)).detach().double()
    mean_Z, covariance_ZZ = torch.zeros(3).double(), torch.eye(3).double()
    if isinstance(prior, Codebook):
        weights, points = prior.log_weights.detach().double().exp(), prior.points.detach().double()
        mean_Z = weights @ points
        covariance_ZZ = (points - mean_Z).T @ (weights[:, None] * (points - mean_Z))
    torch.testing.assert_close(drawn.mean(0), mean_Z, atol=5 / rows**0.5, rtol=0)
    torch.testing.assert_close(torch.cov(drawn.T), covariance_ZZ, atol=8 / rows**0.5, rtol=0)


def test_the_standard_normal_is_what_torch_distributions_says() -> None:
    z_BZ = 2 * torch.randn(50, 4, generator=generator(5))
    torch.testing.assert_close(StandardNormal(4).log_prob(z_BZ), Normal(0.0, 1.0).log_prob(z_BZ).sum(-1))


def test_the_weights_of_a_codebook_add_up_to_one_and_its_draws_are_its_points() -> None:
    codebook = uneven()
    assert float(codebook.log_weights.detach().exp().sum()) == pytest.approx(1)
    drawn = codebook.sample(50, generator=generator(6))
    assert {tuple(z.tolist()) for z in drawn} <= {tuple(point.tolist()) for point in codebook.points}


@pytest.mark.parametrize("rows", [1, 3, 10, 101, 1000])
def test_systematic_sampling_draws_each_point_floor_or_ceil_of_its_share(rows: int) -> None:
    codebook = uneven()
    share = rows * codebook.log_weights.detach().double().exp().numpy()
    for seed in range(20):
        counts = np.bincount(codebook.sample_index(rows, generator=generator(seed)).numpy(), minlength=5)
        assert counts.sum() == rows
        assert (counts >= np.floor(share - 1e-9)).all()
        assert (counts <= np.ceil(share + 1e-9)).all()


def test_each_draw_of_a_systematic_sample_follows_the_weights() -> None:
    codebook, rows, trials = uneven(), 3, 4000
    drawn = np.stack([codebook.sample_index(rows, generator=generator(seed)).numpy() for seed in range(trials)])
    wanted = codebook.log_weights.detach().double().exp().numpy() * trials
    for position in range(rows):
        assert stats.chisquare(np.bincount(drawn[:, position], minlength=5), wanted).pvalue > 1e-4


def test_a_systematic_sample_comes_in_random_order() -> None:
    codebook = uneven()
    index = codebook.sample_index(4000, generator=generator(8)).numpy()
    assert abs(stats.spearmanr(index, np.arange(4000)).statistic) < 4 / 4000**0.5


def test_a_point_without_weight_is_never_drawn() -> None:
    codebook = uneven()
    with torch.no_grad():
        codebook.weights[[0, 4]] = -torch.inf
    counts = np.bincount(codebook.sample_index(10_000, generator=generator(9)).numpy(), minlength=5)
    assert counts[0] == 0
    assert counts[4] == 0


# -- strata ----------------------------------------------------------------------------------------------------------


@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any), seed=st.integers(0, 99))
def test_every_stratum_of_a_group_holds_one_number_in_every_column(sizes: list[int], seed: int) -> None:
    group = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    uniform = strata(group, 3, generator=generator(seed))
    assert ((uniform >= 0) & (uniform < 1)).all()
    for g, size in enumerate(sizes):
        held = (uniform[group == g].double() * size + 1e-6).long().sort(0).values
        assert torch.equal(held, torch.arange(size)[:, None].expand(size, 3))


def test_the_numbers_of_one_row_are_uniform_and_independent() -> None:
    group = torch.tensor([0, 0, 0, 1])
    drawn = np.stack([strata(group, 2, generator=generator(seed)).numpy() for seed in range(3000)])
    for row in range(4):
        x, y = drawn[:, row].T
        assert stats.kstest(x, "uniform").pvalue > 1e-4
        assert stats.kstest(y, "uniform").pvalue > 1e-4
        assert stats.chi2_contingency(np.histogram2d(x, y, 3)[0]).pvalue > 1e-4


def test_two_rows_of_a_group_never_share_a_stratum_but_rows_of_two_groups_may() -> None:
    group = torch.tensor([0, 0, 1])
    drawn = np.stack([strata(group, 1, generator=generator(seed)).numpy().ravel() for seed in range(200)])
    halves = drawn > 0.5
    assert (halves[:, 0] != halves[:, 1]).all()
    assert 50 < (halves[:, 0] == halves[:, 2]).sum() < 150
