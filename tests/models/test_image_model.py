"""The image model is a density: pixels add up to one, the prior is the mixture it says, no image moves another."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small_images import covariances, some_model
from torch import Tensor

from dpvae.models.image_bounds import bounds
from dpvae.models.images import ImageVAE, Pixels, as_bytes


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(("middle", "log_scale"), [(0.3, -3.0), (-0.2, -1.0), (1.4, -5.0), (0.5, -0.5)])
def test_the_256_values_of_a_pixel_add_up_to_one(middle: float, log_scale: float) -> None:
    x_N1 = (torch.arange(256, dtype=torch.float64) / 255)[:, None]
    log_N = Pixels.log_prob(x_N1, torch.full_like(x_N1, middle), torch.full_like(x_N1, log_scale))
    assert float(log_N.exp().sum()) == pytest.approx(1.0, abs=1e-9)


def test_a_pixel_has_the_logistic_probability_of_its_interval() -> None:
    """Golden: sigma((x + 1/510 - m) / s) - sigma((x - 1/510 - m) / s), worked out by hand for x = 100/255."""
    x, m, s = 100 / 255, 0.35, 0.07
    wanted = logistic((x + 0.5 / 255 - m) / s) - logistic((x - 0.5 / 255 - m) / s)
    value = Pixels.log_prob(torch.tensor([[x]], dtype=torch.float64), torch.tensor([[m]], dtype=torch.float64),
                            torch.tensor([[math.log(s)]], dtype=torch.float64))
    assert float(value) == pytest.approx(math.log(wanted), rel=1e-9)
    assert float(value) == pytest.approx(-4.35768, abs=1e-5)


def test_pixels_far_from_the_middle_keep_a_finite_gradient() -> None:
    middle = torch.tensor([[50.0, -50.0, 0.5]], requires_grad=True)
    Pixels.log_prob(torch.tensor([[0.0, 1.0, 0.2]]), middle, torch.full((1, 3), -5.5)).sum().backward()
    assert middle.grad is not None
    assert torch.isfinite(middle.grad).all()


def test_drawn_pixels_follow_the_law() -> None:
    middle, log_scale = torch.full((200_000, 1), 0.4), torch.full((200_000, 1), -2.5)
    drawn = Pixels.sample(middle, log_scale, generator=torch.Generator().manual_seed(1))
    assert float(drawn.mean()) == pytest.approx(0.4, abs=0.002)
    zero = logistic((0.5 / 255 - 0.4) / math.exp(-2.5))
    assert float((drawn == 0).float().mean()) == pytest.approx(zero, abs=0.001)


def test_the_prior_is_the_mixture_of_normal_laws_that_torch_knows() -> None:
    vae = some_model()
    z = torch.randn(7, 4, generator=torch.Generator().manual_seed(2))
    for c in range(3):
        stretched = (covariances(vae, c)[:, None] * vae.stretches.square()[:, None, None]).flatten(0, 1)
        normal = torch.distributions.MultivariateNormal(vae.centres[c].repeat_interleave(2, 0), stretched)
        weights = (vae.log_weights[c][:, None] + vae.log_shares[c]).flatten()
        mixture = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=weights), normal)
        found = vae.log_prior(z, torch.full((7,), c))
        torch.testing.assert_close(found, mixture.log_prob(z), rtol=1e-4, atol=1e-4)


def test_latents_have_the_moments_of_their_class_and_no_cluster_of_weight_zero_is_drawn() -> None:
    vae = some_model()
    label = torch.full((50_000,), 2)
    z = vae.draw_latents(label, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(z.mean(0), vae.centres[2, 0], atol=0.02, rtol=0)
    inside = covariances(vae, 2)[0]
    torch.testing.assert_close(z.T.cov(), inside * (0.3 * 0.7**2 + 0.7 * 1.6**2), atol=0.05, rtol=0)
    length = torch.einsum("nz,zy,ny->n", z - z.mean(0), torch.linalg.inv(inside), z - z.mean(0)) / 4
    # of a normal law (Isserlis): E r^4 = (E r^2)^2 (1 + 2 / Z); of a stretched one E s^4 times that
    fourth = (1 + 2 / 4) * (0.3 * 0.7**4 + 0.7 * 1.6**4)
    assert float(length.square().mean()) == pytest.approx(fourth, rel=0.05)


def test_classes_are_drawn_within_one_of_their_share() -> None:
    label = some_model().draw_labels(101, generator=torch.Generator().manual_seed(4))
    counts = torch.bincount(label, minlength=3).numpy()
    assert np.abs(counts - 101 * np.array([0.5, 0.3, 0.2])).max() < 1
    assert label[:20].unique().numel() > 1, "in random order"


def two_grays(vae: ImageVAE) -> None:
    """The network draws white, the linear decoder black, whatever the latent."""
    vae.laws = lambda z, label: [  # type: ignore[method-assign]
        (torch.full((len(z), vae.pixels), gray), torch.full((len(z), vae.pixels), -3.0)) for gray in (1.0, 0.0)]


def test_half_of_the_pictures_are_the_networks_and_half_are_linear_by_the_coin_of_a_public_seed() -> None:
    vae, label = some_model(), torch.zeros(4000, dtype=torch.long)
    two_grays(vae)
    drawn, again = (vae.sample(label, generator=torch.Generator().manual_seed(9)).flatten(1) for _ in range(2))
    assert ((drawn == 255).all(1) | (drawn == 0).all(1)).all(), "no picture is of both decoders"
    assert float((drawn == 255).all(1).float().mean()) == pytest.approx(0.5, abs=0.04)
    torch.testing.assert_close(drawn, again, rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("posed", [False, True])
def test_the_bound_holds_the_mean_of_both_decoders_likelihoods(posed: bool) -> None:
    """Closed form, pixel by pixel: log (1/2 prod_d p_network(x_d) + 1/2 prod_d p_linear(x_d))."""
    vae = some_model((1, 4, 4), posed=posed).double()
    vae.rest.copy_(torch.linspace(-3, -1, 16))
    x_N = (torch.arange(32).view(2, 16) * 7 % 255).double() / 255
    label, noise = torch.tensor([0, 2]), torch.zeros(2, 4, dtype=torch.float64)
    z = vae.encode(x_N, label)[0]
    linear, _, rest = vae.linear(z, label, vae.rest)
    for law, (middle, log_scale) in zip(vae.laws(z, label), [vae.decode(z, label), (linear, rest)], strict=True):
        torch.testing.assert_close(law, (middle, log_scale))
    assert posed or torch.equal(rest[0], vae.rest)
    for n, bound in enumerate(-vae.elbo(x_N, label, noise).distortion):
        sides = []
        for middle, log_scale in vae.laws(z, label):
            pixels = zip(x_N[n].tolist(), middle[n].tolist(), log_scale[n].exp().tolist(), strict=True)
            parts = [(1 if x == 1 else logistic((x + 0.5 / 255 - m) / s))
                     - (0 if x == 0 else logistic((x - 0.5 / 255 - m) / s)) for x, m, s in pixels]
            sides.append(math.prod(parts))
        assert float(bound) == pytest.approx(math.log(0.5 * sides[0] + 0.5 * sides[1]), abs=1e-6)


@torch.no_grad()
def test_a_picture_of_either_decoder_costs_at_most_the_toss_of_a_coin_more_than_under_that_decoder_alone() -> None:
    vae = some_model((1, 8, 8))
    label, noise = torch.arange(3).repeat(20), torch.randn(60, 4, generator=torch.Generator().manual_seed(1))
    z = vae.draw_latents(label, generator=torch.Generator().manual_seed(2))
    both = vae.laws
    for side in range(2):
        x = Pixels.sample(*both(z, label)[side], generator=torch.Generator().manual_seed(3))
        vae.laws = lambda z, y, side=side: [both(z, y)[side]]  # type: ignore[method-assign]
        alone = vae.elbo(x, label, noise).value
        vae.laws = both  # type: ignore[method-assign]
        assert (vae.elbo(x, label, noise).value >= alone - math.log(2) - 1e-3).all()


@pytest.mark.parametrize("size", [(1, 8, 8), (1, 9, 11), (3, 8, 10)])
def test_a_new_decoder_is_the_linear_picture_in_any_size(size: tuple[int, int, int]) -> None:
    vae = ImageVAE(size, classes=2, clusters=1, directions=3, hidden=8, generator=torch.Generator().manual_seed(0))
    z, label = torch.randn(5, 3), torch.tensor([0, 1, 0, 1, 1])
    middle, log_scale = vae.decode(z, label)
    torch.testing.assert_close(middle, vae.linear(z, label)[0])
    assert middle.shape == log_scale.shape == (5, math.prod(size))
    assert as_bytes(middle, size).shape == (5, *size)


@pytest.mark.parametrize("posed", [False, True])
def test_no_picture_of_a_batch_moves_another(posed: bool) -> None:
    vae = some_model((3, 8, 10), posed=posed)
    z, label = torch.randn(6, 4, generator=torch.Generator().manual_seed(5)), torch.tensor([0, 1, 2, 0, 1, 2])
    alone = [torch.cat(vae.decode(z[i:i + 1], label[i:i + 1]), 1) for i in range(6)]
    torch.testing.assert_close(torch.cat(vae.decode(z, label), 1), torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_dreaming_makes_the_encoder_undo_what_the_decoder_does() -> None:
    """The middle is half of the linear picture's deviation, so the encoder has to double what it sees."""
    vae = some_model((1, 8, 8))

    def halved(z: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        middle = 0.4 + 0.002 * z @ vae.basis + 0.0 * vae.means[label]
        return middle, torch.full_like(middle, -5.5)

    vae.decode = halved  # type: ignore[method-assign]
    vae.means.fill_(0.4)
    before = vae.log_std.clone()
    vae.dream(2000, generator=torch.Generator().manual_seed(6))
    assert (vae.log_std != before).all()
    assert float(vae.gain.min()) >= 0.2


def test_the_encoder_is_as_sure_as_picture_and_prior_together() -> None:
    """Closed form: linear pictures under a wide prior leave the noise of a pixel (the basis is orthonormal); a narrow
    prior leaves its own spread."""
    vae, generator = some_model((1, 8, 8)), torch.Generator()
    vae.shapes.copy_(torch.eye(2).expand_as(vae.shapes))
    vae.means.fill_(0.5)
    vae.centres.zero_()
    vae.stretches.copy_(torch.tensor([0.5, 1.0]))

    def linear(z: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        middle = vae.linear(z, label)[0]
        return middle, torch.full_like(middle, math.log(0.02))

    vae.decode = linear  # type: ignore[method-assign]
    noise = 0.02 * math.pi / math.sqrt(3)  # of a logistic law
    for wide in (0.3, 0.01):
        vae.factors.copy_(wide * torch.eye(4).expand_as(vae.factors))
        vae.dream(4000, generator=generator.manual_seed(6))
        narrow = float(vae.log_labels.exp() @ (vae.log_shares.exp() @ torch.tensor([4.0, 1.0])))
        wanted = (1 / noise**2 + narrow / wide**2) ** -0.5
        torch.testing.assert_close(vae.log_std.exp(), torch.full((4,), wanted), rtol=0.15, atol=0)


@torch.no_grad()
def test_the_bound_stays_below_the_evidence() -> None:
    """One direction, one cluster: p(x | y) is a sum over a fine grid of z."""
    vae = ImageVAE((1, 8, 8), classes=1, clusters=1, directions=1, hidden=4, generator=torch.Generator().manual_seed(7))
    vae.basis.copy_(torch.ones(1, 64) / 8)
    vae.means.fill_(0.5)
    vae.dream(2000, generator=torch.Generator().manual_seed(7))
    label = torch.zeros(1, dtype=torch.long)
    x = Pixels.sample(*vae.decode(torch.tensor([[0.7]]), label), generator=torch.Generator().manual_seed(8))
    grid = torch.linspace(-6, 6, 2001)[:, None]
    labels = label.expand(2001)
    log_QN = torch.stack([Pixels.log_prob(x, *law) for law in vae.laws(grid, labels)])
    log_joint = log_QN.logsumexp(0) - math.log(2) + vae.log_prior(grid, labels)
    evidence = float(torch.logsumexp(log_joint, 0) + math.log(12 / 2000))
    noise = torch.randn(500, 1, generator=torch.Generator().manual_seed(9))
    bound = vae.elbo(x.expand(500, -1), labels[:500], noise).value.mean()
    assert evidence - 5.0 < float(bound) < evidence


@pytest.mark.parametrize("posed", [False, True])
def test_a_picture_has_the_same_bound_to_the_last_bit_whoever_else_is_there(posed: bool) -> None:
    vae, generator = some_model((1, 9, 8), posed=posed), torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (200, 72), generator=generator, dtype=torch.uint8)
    label = torch.arange(200) % 7 % 3
    noise = torch.randn(2, 4, generator=generator)
    together = bounds(vae, x, label, noise).value
    assert together.shape == (2, 200)
    for kept in (torch.randperm(200, generator=generator), torch.tensor([7]), torch.arange(150, 9, -1)):
        assert torch.equal(bounds(vae, x[kept], label[kept], noise).value, together[:, kept])
    with torch.no_grad():
        plain = [vae.elbo(x.float() / 255, label, one.expand(200, -1)).value for one in noise]
    torch.testing.assert_close(together, torch.stack(plain).double(), rtol=1e-5, atol=0)
    assert bounds(vae, x[:0], label[:0], noise).value.shape == (2, 0)
