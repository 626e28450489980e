"""The free encoder: q(z | x) learned in the decoder's sleep.

Pairs (z, x ~ p(x | z)) are drawn from the decoder, which is already released, and the encoder maximises
E[log q(z | x)] on them (the sleep phase of Hinton et al. 1995; reweighted wake-sleep, Bornschein & Bengio 2015).
No private row is read, so this is post-processing: no noise, no clip, any number of steps, and the encoder may be
published. Training an encoder on private rows beside a noised decoder would not be free: it couples the records
(measured: one record moved the others' clipped gradients by 1.27 where 1 was claimed).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dpvae.models.vae import VAE


class Sleep:
    """Sleep-phase training of ``vae.encoder``, resumable between calls of :meth:`run`."""

    def __init__(self, vae: VAE, *, learning_rate: float = 2e-3, batch: int = 512) -> None:
        self.vae, self.batch = vae, batch
        self.optimiser = torch.optim.Adam(vae.encoder.parameters(), lr=learning_rate)

    def run(self, steps: int, *, generator: torch.Generator) -> float:
        """Train for ``steps``; returns the last loss, -E[log q(z | x)] in nats. Reads nothing private."""
        loss = torch.tensor(math.nan)
        for _ in range(steps):
            with torch.no_grad():
                z_BZ = self.vae.prior.sample(self.batch, generator=generator)
                codes_BD = self.vae.likelihood.sample(self.vae.decode(z_BZ), generator=generator)
            loss = -log_q(self.vae, codes_BD, z_BZ).mean()
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self.optimiser.step()
        return float(loss.detach())


def log_q(vae: VAE, codes_BD: Tensor, z_BZ: Tensor) -> Tensor:
    """log q(z | x) of the encoder, (B,) nats."""
    mean_BZ, log_std_BZ = vae.encode(codes_BD)
    return -(0.5 * (((z_BZ - mean_BZ) / log_std_BZ.exp()) ** 2 + math.log(2 * math.pi)) + log_std_BZ).sum(-1)
