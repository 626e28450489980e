"""The VAE against what can be computed without it: enumeration, quadrature, and the linear-Gaussian closed form."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from dpvae.errors import ConfigError
from dpvae.models.elbo import kl_to_standard_normal
from dpvae.models.likelihood import GaussianColumns
from dpvae.models.vae import VAE

SIZES = (2, 3, 2)
ALL_ROWS = torch.tensor(list(product(*map(range, SIZES))))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(components: int | None, *, layers: int = 1, latent_dim: int = 2, seed: int = 0) -> VAE:
    """A VAE with uneven weights, so that no symmetry hides a mistake."""
    vae = VAE(SIZES, latent_dim=latent_dim, hidden=8, layers=layers, components=components, generator=generator(seed))
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=generator(seed + 1)))
    return vae


def product_probability(vae: VAE, z_Z: Tensor, row_D: Tensor) -> float:
    """p(x | z) by the book: softmax each column, multiply."""
    logits, chance, start = vae.decode(z_Z[None])[0].detach().double().tolist(), 1.0, 0
    for size, code in zip(SIZES, row_D.tolist(), strict=True):
        part = np.exp(logits[start:start + size])
        chance *= part[code] / part.sum()
        start += size
    return float(chance)


# -- the codebook: everything is exact -------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [0, 1])
def test_a_codebooks_log_probability_is_the_sum_over_its_points(layers: int) -> None:
    vae = made(6, layers=layers)
    assert vae.codebook is not None
    weights, points = vae.codebook.log_weights.detach().exp().double().tolist(), vae.codebook.points.detach()
    brute = [math.log(sum(w * product_probability(vae, z, row) for w, z in zip(weights, points, strict=True)))
             for row in ALL_ROWS]
    exact = vae.log_prob(ALL_ROWS, samples=1, generator=generator())
    np.testing.assert_allclose(exact.numpy(), brute, rtol=1e-5)
    assert float(exact.double().exp().sum()) == pytest.approx(1, abs=1e-5)


def test_a_codebooks_elbo_at_its_exact_posterior_is_its_log_probability() -> None:
    vae = made(6)
    elbo = vae.elbo(ALL_ROWS, torch.zeros(0))
    torch.testing.assert_close(elbo.value.detach(), vae.log_prob(ALL_ROWS, samples=1, generator=generator()))
    assert (elbo.rate >= 0).all()
    assert (elbo.rate <= math.log(6) + 2.0).all()
    assert (elbo.distortion > 0).all()


def test_a_codebooks_posterior_is_bayes_rule() -> None:
    vae = made(6)
    assert vae.codebook is not None
    posterior_BK = vae.posterior(ALL_ROWS).detach()
    weights, points = vae.codebook.log_weights.detach().exp().tolist(), vae.codebook.points.detach()
    for row, q_K in zip(ALL_ROWS, posterior_BK, strict=True):
        joint = np.array([w * product_probability(vae, z, row) for w, z in zip(weights, points, strict=True)])
        np.testing.assert_allclose(q_K.numpy(), joint / joint.sum(), rtol=1e-4)


def test_the_rate_and_the_distortion_of_a_codebook_are_expectations_under_its_posterior() -> None:
    vae = made(4)
    assert vae.codebook is not None
    q_BK = vae.posterior(ALL_ROWS).detach().double()
    log_x_BK = torch.tensor([[math.log(product_probability(vae, z, row)) for z in vae.codebook.points.detach()]
                             for row in ALL_ROWS]).double()
    elbo = vae.elbo(ALL_ROWS, torch.zeros(0))
    torch.testing.assert_close(elbo.distortion.detach().double(), -(q_BK * log_x_BK).sum(1), rtol=1e-4, atol=1e-5)
    rate_B = (q_BK * (q_BK.log() - vae.codebook.log_weights.detach().double())).sum(1)
    torch.testing.assert_close(elbo.rate.detach().double(), rate_B, rtol=1e-3, atol=1e-5)


# -- the standard normal prior: a bound, tighter with every sample ---------------------------------------------------


def by_quadrature(vae: VAE, rows_BD: Tensor) -> Tensor:
    """log p(x) with a two-dimensional latent, by the midpoint rule on [-8, 8]^2."""
    axis = torch.linspace(-7.95, 7.95, 160)
    z_GZ = torch.cartesian_prod(axis, axis)
    log_z_G = vae.prior.log_prob(z_GZ) + 2 * math.log(0.1)
    logits_GW = vae.decode(z_GZ).detach()
    return torch.stack([(vae.likelihood.log_prob(logits_GW, row.expand(len(z_GZ), -1)) + log_z_G).double().logsumexp(0)
                        for row in rows_BD])


def test_the_probabilities_of_all_rows_add_up_to_one_under_the_standard_normal() -> None:
    assert float(by_quadrature(made(None), ALL_ROWS).exp().sum()) == pytest.approx(1, abs=1e-4)


def test_elbo_is_below_the_importance_bound_which_rises_with_samples_to_the_log_probability() -> None:
    vae = made(None)
    exact = float(by_quadrature(vae, ALL_ROWS).mean())
    noise_TBZ = torch.randn(600, len(ALL_ROWS), 2, generator=generator(3))
    elbo, doubt = estimate([vae.elbo(ALL_ROWS, noise_BZ[None]).value.detach().mean() for noise_BZ in noise_TBZ])
    bounds = {k: estimate([vae.log_prob(ALL_ROWS, samples=k, generator=generator(t)).mean() for t in range(trials)])
              for k, trials in ((1, 600), (5, 400), (50, 100), (1000, 10))}
    assert abs(elbo - bounds[1][0]) < doubt + bounds[1][1], "one sample: the ELBO, estimated another way"
    assert elbo < exact - doubt, "the encoder is not the posterior here: the bound is strict"
    for fewer, more in ((1, 5), (5, 50), (50, 1000)):
        assert bounds[fewer][0] < bounds[more][0] + bounds[fewer][1] + bounds[more][1]
    assert bounds[5][0] > bounds[1][0] + bounds[1][1], "and five samples are visibly better than one"
    best, doubt = bounds[1000]
    assert best < exact + doubt
    assert best == pytest.approx(exact, abs=0.02 + doubt)


def estimate(values: list[Tensor]) -> tuple[float, float]:
    """Mean, and four standard errors of it."""
    stacked = torch.stack(values).double()
    return float(stacked.mean()), 4 * float(stacked.std()) / len(values) ** 0.5


@pytest.mark.parametrize("components", [None, 6])
def test_the_score_of_a_row_is_the_same_whatever_rows_stand_beside_it(components: int | None) -> None:
    vae = made(components)
    together = vae.log_prob(ALL_ROWS, samples=4, generator=generator(1))
    alone = torch.cat([vae.log_prob(row[None], samples=4, generator=generator(1)) for row in ALL_ROWS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_more_latent_samples_leave_the_elbo_where_it_is() -> None:
    vae, rows_BD = made(None), ALL_ROWS
    many = vae.elbo(rows_BD, torch.randn(4000, len(rows_BD), 2, generator=generator(5)))
    apart = torch.stack([vae.elbo(rows_BD, torch.randn(1, len(rows_BD), 2, generator=generator(s))).value.detach()
                         for s in range(400)])
    difference = apart.mean(0) - many.value.detach()
    assert (difference.abs() < 5 * apart.std(0) / 20 + 1e-3).all()
    torch.testing.assert_close(many.rate.detach(), kl_to_standard_normal(*vae.encode(rows_BD)).detach())


# -- what both priors promise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("components", [None, 6])
def test_sampled_rows_follow_the_models_own_probability(components: int | None) -> None:
    vae, rows = made(components), 20_000
    exact = (by_quadrature(vae, ALL_ROWS) if components is None
             else vae.log_prob(ALL_ROWS, samples=1, generator=generator()).double()).exp().numpy()
    drawn = vae.sample(rows, generator=generator(6))
    seen = [int((drawn == row).all(-1).sum()) for row in ALL_ROWS]
    assert sum(seen) == rows
    assert stats.chisquare(seen, exact / exact.sum() * rows).pvalue > 1e-4


@pytest.mark.parametrize("components", [None, 6])
def test_the_elbo_of_a_row_is_the_same_whatever_rows_stand_beside_it(components: int | None) -> None:
    vae = made(components)
    noise_KBZ = torch.randn(2, len(ALL_ROWS), 2, generator=generator(7))
    together = vae.elbo(ALL_ROWS, noise_KBZ)
    for i in range(len(ALL_ROWS)):
        alone = vae.elbo(ALL_ROWS[i:i + 1], noise_KBZ[:, i:i + 1])
        torch.testing.assert_close(alone.value[0], together.value[i], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("components", [None, 6])
def test_the_same_generator_makes_the_same_model_and_another_one_another(components: int | None) -> None:
    same, twin, other = made(components), made(components), made(components, seed=9)
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), twin.parameters(), strict=True))
    assert not torch.equal(same.decoder[-1].weight, other.decoder[-1].weight)


@pytest.mark.parametrize("components", [None, 6])
def test_long_tables_are_handled_in_parts_without_a_seam(components: int | None,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    vae, rows_BD = made(components), ALL_ROWS.repeat(3, 1)
    whole = vae.latent(rows_BD)
    monkeypatch.setattr("dpvae.models.vae._ROWS_AT_ONCE", 5)
    torch.testing.assert_close(vae.latent(rows_BD), whole)
    assert vae.log_prob(rows_BD, samples=2, generator=generator()).shape == (len(rows_BD),)
    assert vae.sample(13, generator=generator()).shape == (13, 3)


def test_no_layer_of_the_model_looks_at_the_batch() -> None:
    forbidden = (nn.modules.batchnorm._BatchNorm, nn.Dropout)
    assert not any(isinstance(module, forbidden) for c in (None, 6) for module in made(c).modules())


@pytest.mark.parametrize("wrong", [{"latent_dim": 0}, {"hidden": 0}, {"layers": -1}])
def test_a_shape_that_makes_no_model_is_refused_by_name(wrong: dict[str, int]) -> None:
    shape = {"latent_dim": 2, "hidden": 8, "layers": 1} | wrong
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        VAE(SIZES, **shape, components=None, generator=generator())


# -- the linear-Gaussian VAE: probabilistic PCA, whose marginal likelihood is known (Tipping & Bishop 1999) ---------

SCALE = 0.6


def linear_gaussian(columns: int = 4, latent_dim: int = 2) -> tuple[VAE, Tensor, Tensor]:
    """x = mu + W z + scale e, in double precision; W has orthogonal columns, so the posterior factorises."""
    vae = VAE([1] * columns, latent_dim=latent_dim, hidden=1, layers=0, components=None, generator=generator())
    basis, _ = torch.linalg.qr(torch.randn(columns, latent_dim, generator=generator(1), dtype=torch.float64))
    weight = basis * torch.tensor([1.5, 0.4], dtype=torch.float64)[:latent_dim]
    shift = torch.randn(columns, generator=generator(2), dtype=torch.float64)
    vae.likelihood = GaussianColumns(columns, scale=SCALE)  # type: ignore[assignment]
    vae.decoder = linear(weight, shift)
    precision = 1 + (weight**2).sum(0) / SCALE**2  # of the posterior, (Z,)
    gain = weight.T / SCALE**2 / precision[:, None]
    log_std = -0.5 * precision.log()
    vae.encoder = linear(torch.cat([gain, torch.zeros_like(gain)]), torch.cat([-gain @ shift, log_std]))
    return vae, weight, shift


def linear(weight: Tensor, bias: Tensor) -> nn.Sequential:
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return nn.Sequential(layer)


def marginal(weight: Tensor, shift: Tensor) -> MultivariateNormal:
    return MultivariateNormal(shift, weight @ weight.T + SCALE**2 * torch.eye(len(shift), dtype=torch.float64))


def cubature(rows: int, dim: int) -> Tensor:
    """+-sqrt(Z) along each axis: expectations of quadratics under N(0, I) are exact, so the ELBO has no noise."""
    points = torch.eye(dim, dtype=torch.float64) * dim**0.5
    return torch.cat([points, -points])[:, None].expand(-1, rows, -1)


def test_the_elbo_of_a_linear_gaussian_vae_at_the_exact_posterior_is_its_marginal_likelihood() -> None:
    vae, weight, shift = linear_gaussian()
    rows_BD = 3 * torch.randn(30, 4, generator=generator(3), dtype=torch.float64)
    elbo = vae.elbo(rows_BD, cubature(30, 2)).value.detach()
    torch.testing.assert_close(elbo, marginal(weight, shift).log_prob(rows_BD), rtol=1e-10, atol=1e-10)


def test_one_importance_sample_of_the_exact_posterior_has_no_variance() -> None:
    vae, weight, shift = linear_gaussian()
    rows_BD = torch.randn(30, 4, generator=generator(3), dtype=torch.float64)
    for seed in range(3):
        one = vae.log_prob(rows_BD, samples=1, generator=generator(seed))
        torch.testing.assert_close(one, marginal(weight, shift).log_prob(rows_BD), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("shift_by", "widen_by"), [(0.3, 0.0), (0.0, 0.5), (0.0, -0.5), (-0.2, 0.2)])
def test_away_from_the_exact_posterior_the_elbo_is_lower_by_exactly_its_kl(shift_by: float, widen_by: float) -> None:
    vae, weight, shift = linear_gaussian()
    rows_BD = torch.randn(20, 4, generator=generator(4), dtype=torch.float64)
    with torch.no_grad():
        mean_BZ, log_std_BZ = vae.encode(rows_BD)
        vae.encoder[0].bias.add_(torch.tensor([shift_by] * 2 + [widen_by] * 2, dtype=torch.float64))
        gap_B = kl_to_standard_normal(torch.full_like(mean_BZ, shift_by) / log_std_BZ.exp(),
                                      torch.full_like(log_std_BZ, widen_by))
        elbo = vae.elbo(rows_BD, cubature(20, 2)).value
    exact = marginal(weight, shift).log_prob(rows_BD)
    assert (elbo < exact).all()
    torch.testing.assert_close(exact - elbo, gap_B, rtol=1e-8, atol=1e-8)


def test_rows_sampled_from_a_linear_gaussian_vae_have_its_mean_and_covariance() -> None:
    vae, weight, shift = linear_gaussian()
    vae.decoder.float()
    rows_BD = vae.sample(40_000, generator=generator(5)).double()
    exact = marginal(weight, shift)
    torch.testing.assert_close(rows_BD.mean(0), exact.mean, atol=0.05, rtol=0)
    torch.testing.assert_close(torch.cov(rows_BD.T), exact.covariance_matrix, atol=0.08, rtol=0)
