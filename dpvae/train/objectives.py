"""What DP-SGD minimises, per record: how the latents of a record are inferred is what tells the trainers apart.

* ``joint``: reparameterised samples of a trained encoder (Kingma & Welling 2013); encoder and decoder are both clipped
  and noised.
* ``decoder_only``: samples of the free sleep-phase encoder, with importance weights normalised inside the record
  (reweighted wake-sleep, Bornschein & Bengio 2015, eq. 3).
* ``anchored``: samples of the codebook's exact posterior, so the gradient is that of log p(x) itself (Fisher's
  identity).

Every loss is a function of one record, of released parameters and of fresh randomness: K latent samples are averaged
inside the record before the clip, and no record sees another. The samples lie on the second axis, so that Opacus sums
them into one gradient per record. The normal numbers behind the samples, (B, K, Z) or (B, K, 1), come from the caller.

Shapes: B records, K samples, Z latent, D columns, W one-hot width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dpvae.models.elbo import kl_to_standard_normal
from dpvae.models.vae import VAE
from dpvae.train.dpsgd import Example
from dpvae.train.independence import Loss
from dpvae.train.sleep import log_q


class EncoderAndDecoder(nn.Module):
    """Both halves as one module with one forward pass, for joint training."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.encoder, self.decoder = vae.encoder, vae.decoder

    def forward(self, x_BW: Tensor, noise_BKZ: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, K, W), mean and log standard deviation (B, Z) of the posterior."""
        mean_BZ, log_std_BZ = self.encoder(x_BW).chunk(2, -1)
        log_std_BZ = log_std_BZ.clamp(-6.0, 3.0)
        z_BKZ = mean_BZ[:, None] + log_std_BZ.exp()[:, None] * noise_BKZ
        return self.decoder(z_BKZ), mean_BZ, log_std_BZ


def joint(vae: VAE) -> Loss:
    """-ELBO of each record."""

    def loss(module: nn.Module, codes_BD: Tensor, noise_BKZ: Tensor) -> Tensor:
        logits_BKW, mean_BZ, log_std_BZ = module(vae.likelihood.one_hot(codes_BD), noise_BKZ)
        distortion_B = -_log_prob(vae, logits_BKW, codes_BD).mean(1)
        return distortion_B + kl_to_standard_normal(mean_BZ, log_std_BZ)

    return loss


def decoder_only(vae: VAE) -> Loss:
    """-sum_k w_k log p(x | z_k), z_k ~ q(z | x), w_k proportional to p(x, z_k) / q(z_k | x) and held fixed."""

    def loss(module: nn.Module, codes_BD: Tensor, noise_BKZ: Tensor) -> Tensor:
        with torch.no_grad():
            mean_BZ, log_std_BZ = vae.encode(codes_BD)
            z_BKZ = mean_BZ[:, None] + log_std_BZ.exp()[:, None] * noise_BKZ
            log_q_BK = torch.stack([log_q(vae, codes_BD, z_BKZ[:, k]) for k in range(z_BKZ.shape[1])], 1)
            log_z_BK = torch.stack([vae.prior.log_prob(z_BKZ[:, k]) for k in range(z_BKZ.shape[1])], 1)
        log_x_BK = _log_prob(vae, module(z_BKZ), codes_BD)
        weights_BK = (log_x_BK.detach() + log_z_BK - log_q_BK).softmax(1)
        return -(weights_BK * log_x_BK).sum(1)

    return loss


def posterior(vae: VAE) -> Loss:
    """-mean_k log p(x | z_k), z_k from the codebook's exact posterior given x."""

    def loss(module: nn.Module, codes_BD: Tensor, noise_BK1: Tensor) -> Tensor:
        codebook = vae.codebook
        assert codebook is not None
        with torch.no_grad():
            cumulated_BK = vae.posterior(codes_BD).cumsum(1)
            uniform_BK = 0.5 * torch.erfc(-noise_BK1[..., 0] / math.sqrt(2)) * cumulated_BK[:, -1:]
            z_BKZ = codebook.points[torch.searchsorted(cumulated_BK, uniform_BK).clamp_max(len(codebook.points) - 1)]
        return -_log_prob(vae, module(z_BKZ), codes_BD).mean(1)

    return loss


def random_codes(vae: VAE) -> Example:
    """Records drawn uniformly from the public domain: for checks that must not look at a private row."""

    def draw(count: int, generator: torch.Generator) -> Tensor:
        return torch.stack([torch.randint(0, size, (count,), generator=generator) for size in vae.likelihood.sizes], 1)

    return draw


def _log_prob(vae: VAE, logits_BKW: Tensor, codes_BD: Tensor) -> Tensor:
    """log p(x | z) for every sample, (B, K)."""
    return vae.likelihood.log_prob(logits_BKW, codes_BD[:, None].expand(-1, logits_BKW.shape[1], -1))
