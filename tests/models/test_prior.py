"""One contract for every prior, and the systematic sampling of the codebook."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Normal

from dpvae.models.prior import Codebook, StandardNormal


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
