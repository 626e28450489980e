"""What a fit to noisy tables expects of a decoder's weights: a density, and what it is good for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

from dpvae.models.vae import VAE
from dpvae.privacy.noise import SecretKey
from dpvae.train import anchor, fit_prior
from dpvae.train.fit_prior import Places, Prior, covariance

SIZES = (4, 9, 2)
AXIS = np.append(np.arange(8.0), np.nan)  # eight bins and the code of what is missing
ORDERS: tuple[Places | None, ...] = (None, AXIS, None)


def drawn(seed: int, sizes: Sequence[int] = SIZES, points: int = 5) -> VAE:
    generator = torch.Generator().manual_seed(seed)
    vae = VAE(sizes, latent_dim=3, hidden=8, layers=0, components=points, generator=generator)
    with torch.no_grad():
        vae.decoder[-1].weight.normal_(generator=generator)  # type: ignore[operator, union-attr]
        vae.codebook.points.normal_(generator=generator)  # type: ignore[union-attr]
    return vae


def weights(vae: VAE) -> torch.Tensor:
    return vae.decoder[-1].weight.detach()  # type: ignore[return-value, union-attr]


def prior(vae: VAE, orders: Sequence[Places | None] = ORDERS, free: Sequence[int] = ()) -> float:
    with torch.no_grad():
        return float(Prior(vae.likelihood, orders, torch.device("cpu"))(vae, free))


def spread(vae: VAE) -> torch.Tensor:
    """Variance of the points along each direction, as the codebook weighs them."""
    points, weight = vae.codebook.points.detach(), vae.codebook.log_weights.detach().exp()[:, None]  # type: ignore[union-attr]
    return (weight * points.square()).sum(0) - (weight * points).sum(0).square()


def test_it_is_the_density_of_what_directions_do_to_logits_with_that_covariance() -> None:
    def by_hand(vae: VAE) -> float:
        block, moved = vae.likelihood.slice(1), weights(vae) * spread(vae).sqrt()
        along = MultivariateNormal(torch.zeros(9, dtype=torch.float64),
                                   torch.as_tensor(covariance(AXIS)) * fit_prior.WEIGHT_SD**2)
        rest = torch.cat([moved[:block.start], moved[block.stop:]])
        return float(-2 * along.log_prob(moved[block].T.double()).sum() + rest.square().sum() / fit_prior.WEIGHT_SD**2
                     + (spread(vae) - 1).square().sum())

    one, two = drawn(1), drawn(2)
    assert prior(one) - prior(two) == pytest.approx(by_hand(one) - by_hand(two), rel=1e-4)


def test_without_an_order_every_weight_stands_for_itself() -> None:
    vae = drawn(3)
    moved = weights(vae) * spread(vae).sqrt()
    squares = float(moved.square().sum() / fit_prior.WEIGHT_SD**2 + (spread(vae) - 1).square().sum())
    assert prior(vae, ()) == pytest.approx(squares, rel=1e-5)
    assert prior(vae, (None, np.array([1.0, 2.0] + 7 * [np.nan]), None)) == pytest.approx(squares, rel=1e-5), (
        "two codes with a place have no curve between them")


def test_points_pay_for_no_place_of_their_own() -> None:
    vae, more = drawn(5), drawn(5, points=5)
    with torch.no_grad():
        more.codebook.points += 7.0  # type: ignore[union-attr]
    assert prior(more) == pytest.approx(prior(vae), rel=1e-3), "the bias takes what all points share"
    with torch.no_grad():  # all but one point where they were, and so with a thousand
        more.codebook.points[:] = vae.codebook.points[[3, 1, 0, 2, 4]]  # type: ignore[union-attr,index]
        more.codebook.weights[:] = vae.codebook.weights[[3, 1, 0, 2, 4]]  # type: ignore[union-attr,index]
    assert prior(more) == pytest.approx(prior(vae), rel=1e-5)


def test_one_point_alone_is_fitted() -> None:
    vae = VAE(SIZES, latent_dim=3, hidden=8, layers=0, components=1, generator=torch.Generator().manual_seed(1))
    rows = np.stack([np.arange(200) % size for size in SIZES], 1)
    anchors, _ = anchor.measure(rows, SIZES, None, noise={"one-way": 2.0, "pairs": 2.0}, key=SecretKey.from_seed(1))
    residual = anchor.fit(vae, anchors, steps=5, learning_rate=0.03, generator=torch.Generator().manual_seed(1),
                          orders=ORDERS)
    assert np.isfinite(residual)
    assert torch.isfinite(weights(vae)).all()


def test_directions_that_were_measured_for_themselves_are_left_out() -> None:
    vae = drawn(4)
    before = prior(vae, free=[1])
    with torch.no_grad():
        vae.decoder[-1].weight[:, 1] *= 100  # type: ignore[operator, union-attr]
        vae.codebook.points[:, 1] *= 100  # type: ignore[union-attr]
    assert prior(vae, free=[1]) == before
    assert prior(vae) > 100 * before


@pytest.mark.parametrize("places", [AXIS, np.array([5.0, 1.0, 2.0, 3.0, 9.0]), np.array([np.nan, 3.0, 1.0, 2.0])])
def test_a_covariance_is_one_of_its_diagonal_and_falls_with_the_ranks_between(places: Places) -> None:
    found = covariance(places)
    assert np.allclose(np.diag(found), 1.0)
    assert np.linalg.eigvalsh(found).min() >= fit_prior.ALONE - 1e-9, "no weights are forbidden"
    codes = np.flatnonzero(np.isfinite(places))
    codes = codes[np.argsort(places[codes])]
    assert all(np.diff(found[codes[0], codes]) < 0)
    assert found[np.isnan(places)].sum() == np.isnan(places).sum(), "missing cells have no neighbours"


def test_a_value_listed_before_the_bins_has_the_neighbours_that_it_has_on_the_axis() -> None:
    heap_first = np.array([4.5, *AXIS[:8]])
    order = np.argsort(heap_first)
    assert np.allclose(covariance(heap_first)[np.ix_(order, order)], covariance(np.sort(heap_first)))


def law(codes: int) -> np.ndarray:
    """Two groups of people of 5 % and 95 %, and their ages: (2, codes)."""
    age = np.arange(codes)
    old, all_ = np.exp(-0.5 * ((age - 0.85 * codes) / (0.1 * codes)) ** 2), np.ones(codes)
    return np.stack([0.05 * old / old.sum(), 0.95 * all_ / all_.sum()])


def test_noisy_tables_of_a_smooth_law_are_fitted_better_than_without_their_order() -> None:
    codes, people = 30, 20_000
    truth = law(codes)
    rows = np.repeat(np.stack(np.divmod(np.arange(2 * codes), codes), 1), np.round(people * truth.ravel()).astype(int),
                     axis=0)
    found = {}
    for name, orders in {"ordered": (None, np.arange(float(codes))), "not": ()}.items():
        anchors, _ = anchor.measure(rows, (2, codes), None, noise={"one-way": 20.0, "pairs": 25.0},
                                    key=SecretKey.from_bytes(bytes(32)))
        vae = VAE((2, codes), latent_dim=4, hidden=8, layers=0, components=40,
                  generator=torch.Generator().manual_seed(0))
        anchor.start_bias(vae, anchors)
        anchor.fit(vae, anchors, steps=300, learning_rate=0.05, generator=torch.Generator(), orders=orders)
        with torch.no_grad():
            p_KW = vae.likelihood.log_probs(vae.decode(vae.codebook.points)).exp()  # type: ignore[union-attr]
            joint = p_KW[:, :2].T @ (vae.codebook.log_weights.exp()[:, None] * p_KW[:, 2:])  # type: ignore[union-attr]
        rare = joint[0] / joint[0].sum()
        found[name] = 0.5 * float((rare - torch.as_tensor(truth[0] / truth[0].sum())).abs().sum())
    assert found["ordered"] < 0.75 * found["not"], found


@pytest.mark.slow
def test_one_strong_pair_among_forty_columns_is_kept() -> None:
    """16 standard deviations of its noise; where a thousand points paid for their places, the fit said independent."""
    rng, people, levels = np.random.default_rng(0), 20_000, 20
    hidden = rng.normal(size=people)
    first = np.clip((3 * hidden + 10).round(), 0, levels - 1)
    label = np.clip((0.7 * hidden + 0.7 * rng.normal(size=people) + 2).round(), 0, 4)
    rows = np.column_stack([first, rng.integers(0, 2, (people, 38)), label]).astype(np.int64)
    sizes = (levels, *38 * [2], 5)
    anchors, _ = anchor.measure(rows, sizes, 39, noise={"one-way": 19.0, "with-target": 11.0, "pairs": 4.8},
                                key=SecretKey.from_seed(1))
    vae = VAE(sizes, latent_dim=64, hidden=8, layers=0, components=500, generator=torch.Generator().manual_seed(1))
    anchor.start_bias(vae, anchors)
    orders = (np.arange(float(levels)), *38 * [None], np.arange(5.0))
    anchor.fit(vae, anchors, steps=300, learning_rate=anchor.LEARNING_RATE,
               generator=torch.Generator().manual_seed(1), orders=orders)
    drawn_rows = vae.sample(people, generator=torch.Generator().manual_seed(2)).numpy()
    real, kept = (np.corrcoef(table[:, 0], table[:, 39])[0, 1] for table in (rows, drawn_rows))
    assert real == pytest.approx(0.68, abs=0.02)
    assert kept > 0.25
