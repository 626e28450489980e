"""A variational autoencoder of images of some classes, between what noisy moments say and what a network adds.

    y ~ noisy counts of the classes
    z | y ~ a mixture of normal laws around the clusters of that class, each stretched by one of S factors
    x | z, y ~ one logistic law per pixel, cut to 256 steps, of one of two decoders, by a fair coin for each picture:
               network   middle and width come from a small convolutional network that sees the linear picture
                         mean_y + z B  (B: released directions) and the mean picture of y
               linear    the middle is the linear picture itself; the width follows from what no direction holds

The network's pictures are crisp and near to real ones; the linear ones teach classifiers more. A bound on log p(x, y)
sums over both sides of the coin: it is exact there.

Where the model is posed, the linear picture is one in the frame of its class, its pose beside it, and is redrawn in
that pose before the network sees it (:mod:`dpvae.models.pose`).

A picture that is shown is the middle of every pixel's law, and raised to how strong each frequency is in real ones
(:mod:`dpvae.models.spectrum`).

The encoder is linear in x (redrawn) and made of released numbers, so inference is free: q(z | x, y) is normal around
``B (x - mean_y)`` times a gain, which is fitted to the decoder's own pictures (sleep phase).

Shapes: N images, C classes, K clusters of a class, Z directions, D = channels x height x width pixels in [0, 1], E = D,
or D + P where the model is posed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpvae.models.elbo import Elbo
from dpvae.models.pose import POSE, drawn_from, seen_in
from dpvae.models.spectrum import gains, power, raised

LOG_SCALE = (-5.5, -0.5)  # of a pixel's logistic law, in units of the whole range
START = -2.5
LEAST_STD = 1e-2
AT_ONCE = 1024  # labels of one stratified draw: which picture is picture i follows from it
IN_CACHE = 256  # pictures that are drawn together: their layers stay in the cache


class Pixels:
    """The likelihood: a logistic law cut to the 256 values of a byte (Salimans et al. 2017, PixelCNN++, eq. 2)."""

    @staticmethod
    def log_prob(x_ND: Tensor, middle_ND: Tensor, log_scale_ND: Tensor) -> Tensor:
        """log p(x | z) in nats, summed over the last axis; ``x`` holds bytes / 255. The first and the last value reach
        as far as the law does, so the 256 probabilities of a pixel add up to one."""
        middle_ND, log_scale_ND = middle_ND.to(x_ND.dtype), log_scale_ND.to(x_ND.dtype)  # no law of half precision
        inverse_ND = (-log_scale_ND).exp()
        above_ND = (x_ND + 0.5 / 255 - middle_ND) * inverse_ND
        below_ND = (x_ND - 0.5 / 255 - middle_ND) * inverse_ND
        # log(sigmoid(a) - sigmoid(b)) = logsigmoid(a) + logsigmoid(-b) + log(1 - exp(b - a))
        inside_ND = F.logsigmoid(above_ND) + F.logsigmoid(-below_ND) + torch.log(-torch.expm1(below_ND - above_ND))
        first, last = x_ND < 0.5 / 255, x_ND > 1 - 0.5 / 255
        return torch.where(first, F.logsigmoid(above_ND), torch.where(last, F.logsigmoid(-below_ND), inside_ND)).sum(-1)

    @staticmethod
    def sample(middle_ND: Tensor, log_scale_ND: Tensor, *, generator: torch.Generator) -> Tensor:
        """Pixels drawn from the law, in [0, 1] and in whole bytes."""
        uniform_ND = torch.rand(middle_ND.shape, generator=generator, device=middle_ND.device).clamp(1e-6, 1 - 1e-6)
        return ((middle_ND + log_scale_ND.exp() * torch.logit(uniform_ND)).clamp(0, 1) * 255).round() / 255


class Refiner(nn.Module):
    """From a linear picture and the mean picture of its class to the middle and width of every pixel's law.

    Works on blocks of 2 x 2 pixels; starts as the linear picture itself. Group norms, so that each image stands alone.
    """

    def __init__(self, channels: int, height: int, width: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.size = (channels, height, width)
        self.inside = nn.Conv2d(8 * channels, hidden, 3, padding=1)
        self.first, self.second = nn.Conv2d(hidden, hidden, 3, padding=1), nn.Conv2d(hidden, hidden, 3, padding=1)
        groups = math.gcd(hidden, 4)
        self.norms = nn.ModuleList([nn.GroupNorm(groups, hidden), nn.GroupNorm(groups, hidden)])
        self.outside = nn.Conv2d(hidden, 8 * channels, 3, padding=1)
        initialise(self, generator)
        nn.init.zeros_(self.outside.weight)

    def forward(self, linear_ND: Tensor, mean_ND: Tensor) -> tuple[Tensor, Tensor]:
        """(middle, log scale), each (N, D)."""
        channels, height, width = self.size
        picture = torch.cat([linear_ND.view(-1, *self.size), mean_ND.view(-1, *self.size)], 1) * 2 - 1
        blocks = F.pixel_unshuffle(F.pad(picture, (0, width % 2, 0, height % 2)), 2)
        if not torch.is_grad_enabled():  # fastest, but Opacus takes wrong gradients of convolutions in this order
            blocks = blocks.contiguous(memory_format=torch.channels_last)
        hidden = F.silu(self.inside(blocks))
        hidden = hidden + F.silu(self.first(self.norms[0](hidden)))
        hidden = hidden + F.silu(self.second(self.norms[1](hidden)))
        out = F.pixel_shuffle(self.outside(hidden), 2)[:, :, :height, :width]
        change, log_scale = out[:, :channels].flatten(1), out[:, channels:].flatten(1)
        return linear_ND + change, (log_scale + START).clamp(*LOG_SCALE)


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """He et al.'s start for every weight, from ``generator`` alone; biases at zero."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.weight.normal_(0, math.sqrt(2 / layer.weight[0].numel()), generator=generator)
            if layer.bias is not None:
                layer.bias.zero_()


class ImageVAE(nn.Module):
    """Released moments as buffers, the decoder as parameters.

    Args:
        size: (channels, height, width).
        classes, clusters, directions, axes, stretches: C, K, Z, F, S.
        posed: whether pictures have a frame for each class, and poses of their own.
        hidden: channels of the decoder's hidden layers.
    """

    means: Tensor  # (C, E)
    basis: Tensor  # (Z, E), orthonormal rows
    frames: Tensor  # (C, P), or (C, 0) where the model is not posed
    log_labels: Tensor  # (C,)
    log_weights: Tensor  # (C, K); -inf where a class has fewer clusters
    centres: Tensor  # (C, K, Z)
    factors: Tensor  # (C, Z, Z): axes of a class's spread as columns
    shapes: Tensor  # (C, K, F, F), lower: what a cluster makes of the first F of its class's axes
    stretches: Tensor  # (S,): what the whole rest of a latent, from its centre, may be multiplied by
    log_shares: Tensor  # (C, S): how often it is
    gain: Tensor  # (Z,) of the encoder
    log_std: Tensor  # (Z,) of the encoder
    rest: Tensor  # (D,) log scale of the laws around a linear picture
    power: Tensor  # (H, W) of the frequencies of real pictures; 0 where it is not known
    gains: Tensor  # (2, H, W) of the pictures of both decoders

    def __init__(self, size: tuple[int, int, int], *, classes: int, clusters: int, directions: int, hidden: int,
                 axes: int = 1, stretches: int = 1, posed: bool = False, generator: torch.Generator) -> None:
        super().__init__()
        self.size, self.posed = (size[0], size[1], size[2]), posed
        self.shape: dict[str, Any] = {"size": list(size), "classes": classes, "clusters": clusters,
                                      "directions": directions, "axes": axes, "stretches": stretches, "posed": posed,
                                      "hidden": hidden}
        self.pixels, pose = math.prod(size), POSE * posed
        for name, value in {
                "means": torch.zeros(classes, self.pixels + pose),
                "basis": torch.zeros(directions, self.pixels + pose), "frames": torch.zeros(classes, pose),
                "log_labels": torch.zeros(classes), "log_weights": torch.zeros(classes, clusters),
                "centres": torch.zeros(classes, clusters, directions),
                "factors": torch.eye(directions).repeat(classes, 1, 1),
                "shapes": torch.eye(axes).repeat(classes, clusters, 1, 1), "stretches": torch.ones(stretches),
                "log_shares": torch.full((classes, stretches), -math.log(stretches)), "gain": torch.ones(directions),
                "log_std": torch.full((directions,), math.log(0.1)),
                "rest": torch.full((self.pixels,), START), "power": torch.zeros(size[1:]),
                "gains": torch.ones(2, *size[1:])}.items():
            self.register_buffer(name, value)
        self.decoder = Refiner(*size, hidden, generator)

    # -- the prior ---------------------------------------------------------------------------------------------------

    def draw_labels(self, count: int, *, generator: torch.Generator) -> Tensor:
        """Classes by their noisy shares, (count,), in random order; each count is within one of its share."""
        edges = self.log_labels.double().exp().cumsum(0)
        device = generator.device
        start = torch.rand(1, generator=generator, dtype=torch.float64, device=device)
        ticks = (torch.arange(count, dtype=torch.float64, device=device) + start) / count * edges[-1]
        label_N = torch.searchsorted(edges, ticks).clamp_max(len(edges) - 1)
        return label_N[torch.randperm(count, generator=generator, device=device)]

    def draw_latents(self, label_N: Tensor, *, generator: torch.Generator) -> Tensor:
        """z | y, (N, Z)."""
        cluster_N = torch.multinomial(self.log_weights.exp()[label_N], 1, generator=generator)[:, 0]
        noise_NZ = torch.randn(len(label_N), self.basis.shape[0], generator=generator, device=generator.device)
        axes = self.shapes.shape[2]
        shaped_NF1 = self.shapes[label_N, cluster_N] @ noise_NZ[:, :axes, None]
        shaped_NZ1 = torch.cat([shaped_NF1, noise_NZ[:, axes:, None]], 1)
        stretch_N = torch.multinomial(self.log_shares.exp()[label_N], 1, generator=generator)[:, 0]
        rest_NZ = (self.factors[label_N] @ shaped_NZ1)[..., 0] * self.stretches[stretch_N, None]
        return self.centres[label_N, cluster_N] + rest_NZ

    def log_prior(self, z_NZ: Tensor, label_N: Tensor) -> Tensor:
        """log p(z | y), (N,) nats."""
        found = torch.empty(len(z_NZ), dtype=z_NZ.dtype, device=z_NZ.device)
        for c in label_N.unique().tolist():
            of_c = label_N == c
            found[of_c] = self._log_prior_of(c, z_NZ[of_c])
        return found

    def _log_prior_of(self, c: int, z_MZ: Tensor) -> Tensor:
        """log p(z | c), (M,) nats. Latents and centres are whitened once each, not each latent for each centre."""
        axes, factor = self.shapes.shape[2], torch.linalg.lu_factor(self.factors[c])
        white_ZM, centre_ZK = (torch.linalg.lu_solve(*factor, point.mT) for point in (z_MZ, self.centres[c]))
        apart_KFM = white_ZM[:axes] - centre_ZK[:axes].mT[..., None]
        shaped_KFM = torch.linalg.solve_triangular(self.shapes[c], apart_KFM, upper=False)
        square_KM = shaped_KFM.square().sum(1) + torch.cdist(centre_ZK[axes:].mT, white_ZM[axes:].mT).square()
        volume_K = self.shapes[c].diagonal(dim1=1, dim2=2).log().sum(1)
        log_S = self.log_shares[c] - z_MZ.shape[1] * self.stretches.log()
        log_SKM = log_S[:, None, None] - 0.5 * square_KM / self.stretches.square()[:, None, None]
        log_KM = (self.log_weights[c] - volume_K)[:, None] + log_SKM.logsumexp(0)
        volume = factor.LU.diagonal().abs().log().sum()
        return log_KM.logsumexp(0) - volume - 0.5 * z_MZ.shape[1] * math.log(2 * math.pi)

    # -- the decoder -------------------------------------------------------------------------------------------------

    def linear(self, z_NZ: Tensor, label_N: Tensor, *maps_D: Tensor) -> list[Tensor]:
        """The linear picture, the mean picture of its class and ``maps``, all in the pose of this one, (N, D) each."""
        mean_NE = self.means[label_N]
        linear_NE = mean_NE + z_NZ @ self.basis
        maps_ND = [map_D.expand(len(z_NZ), -1) for map_D in maps_D]
        if not self.posed:
            return [linear_NE, mean_NE, *maps_ND]
        return drawn_from(linear_NE, self.frames[label_N], self.size, mean_NE[:, :self.pixels], *maps_ND)

    def decode(self, z_NZ: Tensor, label_N: Tensor) -> tuple[Tensor, Tensor]:
        """Middle and log scale of every pixel's law, (N, D) each, of the network."""
        return self.decoder(*self.linear(z_NZ, label_N))

    def laws(self, z_NZ: Tensor, label_N: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The same of both decoders, the network first; each has half of the pictures."""
        linear_ND, mean_ND, rest_ND = self.linear(z_NZ, label_N, self.rest)
        return [self.decoder(linear_ND, mean_ND), (linear_ND, rest_ND.clamp(*LOG_SCALE))]

    @torch.no_grad()
    def sample(self, label_N: Tensor, *, generator: torch.Generator) -> Tensor:
        """Pictures of these classes, as bytes (N, channels, height, width): the middle of every pixel's law, raised."""
        parts = []
        for label in label_N.split(IN_CACHE):
            z_NZ = self.draw_latents(label, generator=generator)
            mean_ND = self.linear(z_NZ, label)[1]
            sides = [mean_ND + raised(middle_ND.clamp(0, 1) - mean_ND, gains_HW, self.size)
                     for (middle_ND, _), gains_HW in zip(self.laws(z_NZ, label), self.gains, strict=False)]
            parts.append(as_bytes(by_coin(sides, generator=generator), self.size))
        return torch.cat(parts)

    # -- the encoder -------------------------------------------------------------------------------------------------

    def project(self, x_ND: Tensor, label_N: Tensor, drawn_from_NZ: Tensor | None = None) -> Tensor:
        """Where a picture lies in the released directions, (N, Z): a function of it and of what is released.
        ``drawn_from``: the latents of a picture of the model, which tell its pose."""
        return (self.basis @ self._residual(x_ND, label_N, drawn_from_NZ).T).T  # rounded alike at each place of a batch

    def _residual(self, x_ND: Tensor, label_N: Tensor, drawn_from_NZ: Tensor | None) -> Tensor:
        """What the mean of its class leaves of a picture, in the frame of that class, (N, E)."""
        if not self.posed:
            return x_ND - self.means[label_N]
        told_NP = None if drawn_from_NZ is None else (drawn_from_NZ @ self.basis)[:, self.pixels:]
        return seen_in(x_ND, self.frames[label_N], self.size, told_NP) - self.means[label_N]

    def encode(self, x_ND: Tensor, label_N: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of q(z | x, y), (N, Z) each."""
        mean_NZ = self.project(x_ND, label_N) * self.gain
        return mean_NZ, self.log_std.expand_as(mean_NZ)

    @torch.no_grad()
    def dream(self, count: int, *, generator: torch.Generator) -> None:
        """Fit gain and spread of the encoder to the decoder's own pictures, by least squares, and how much these are to
        be raised: free. Their poses are told: measured on pixels that were drawn one by one they would be noisier than
        those of any real picture.

        The spread is the best of a q whose latents are independent: one over the posterior's precision, that of the
        picture and that of the prior together (Bishop 2006, section 10.1.2).
        """
        label_N = self.draw_labels(count, generator=generator)
        z_NZ = self.draw_latents(label_N, generator=generator)
        seen_NZ = torch.cat([self.project(Pixels.sample(*self.decode(z, y), generator=generator), y, z)
                             for z, y in zip(z_NZ.split(IN_CACHE), label_N.split(IN_CACHE), strict=True)])
        self.gain.copy_(((seen_NZ * z_NZ).sum(0) / seen_NZ.square().sum(0).clamp_min(1e-6)).clamp(0.2, 2.0))
        slope_Z = (seen_NZ * z_NZ).sum(0) / z_NZ.square().sum(0).clamp_min(1e-6)  # of what is seen on what is true
        noise_Z = (seen_NZ - slope_Z * z_NZ).square().mean(0).clamp_min(LEAST_STD**2)
        narrow_C = (self.log_shares.exp() / self.stretches.square()).sum(1)
        prior_CZ = torch.linalg.inv(self.factors).square().sum(1) * narrow_C[:, None]
        precision_Z = slope_Z.square() / noise_Z + self.log_labels.exp() @ prior_CZ
        self.log_std.copy_(-0.5 * precision_Z.log())
        self._sharpen(z_NZ[:AT_ONCE], label_N[:AT_ONCE])

    def _sharpen(self, z_NZ: Tensor, label_N: Tensor) -> None:
        """Fit the gains to pictures of these latents: free, as their powers and those of real ones are released."""
        for gains_HW, (middle_ND, _) in zip(self.gains, self.laws(z_NZ, label_N), strict=True):
            left_ND = self._residual(middle_ND.clamp(0, 1), label_N, z_NZ)[:, :self.pixels]
            gains_HW.copy_(gains(self.power, power(left_ND, self.size)))

    def elbo(self, x_ND: Tensor, label_N: Tensor, noise_NZ: Tensor) -> Elbo:
        """The bound on log p(x, y), one value per picture, from one latent sample each; both decoders count."""
        mean_NZ, log_std_NZ = self.encode(x_ND, label_N)
        z_NZ = mean_NZ + log_std_NZ.exp() * noise_NZ
        log_q_N = -(0.5 * noise_NZ.square() + log_std_NZ + 0.5 * math.log(2 * math.pi)).sum(1)
        log_QN = torch.stack([Pixels.log_prob(x_ND, *law) for law in self.laws(z_NZ, label_N)])
        distortion_N = math.log(len(log_QN)) - log_QN.logsumexp(0)
        return Elbo(rate=log_q_N - self.log_prior(z_NZ, label_N) - self.log_labels[label_N], distortion=distortion_N)


def by_coin(sides: Sequence[Tensor], *, generator: torch.Generator) -> Tensor:
    """For each of N pictures one side, each as likely as another, (N, D)."""
    count = len(sides[0])
    side_N = torch.randint(len(sides), (count,), generator=generator, device=generator.device)
    return torch.stack(list(sides))[side_N, torch.arange(count, device=side_N.device)]


def as_bytes(middle_ND: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Pixels of [0, 1] as bytes, (N, channels, height, width)."""
    return (middle_ND.clamp(0, 1) * 255).round().to(torch.uint8).view(-1, *size)
