"""The evidence lower bound as two named numbers per row, and the only Kullback-Leibler divergence in the repository.

    log p(x) >= E_q(z|x)[log p(x|z)] - KL(q(z|x) || p(z)) = -(distortion + rate)        (Kingma & Welling 2013, eq. 3)

Rate and distortion are the names of Alemi et al. 2018 (Fixing a Broken ELBO): nats spent on the latent, nats of
surprise left in the row. Both have shape (B,), one value per row; whoever calls reduces.

>>> import torch
>>> kl = kl_to_standard_normal(torch.zeros(1, 3), torch.zeros(1, 3))
>>> float(Elbo(rate=kl, distortion=torch.tensor([2.0])).value)
-2.0
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Elbo(NamedTuple):
    """One value per row, in nats: ``rate`` (B,) = KL(q || p), ``distortion`` (B,) = -E_q[log p(x|z)]."""

    rate: Tensor
    distortion: Tensor

    @property
    def value(self) -> Tensor:
        """The bound itself, (B,): higher is better."""
        return -(self.rate + self.distortion)


def kl_to_standard_normal(mean_BZ: Tensor, log_std_BZ: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, 1)) summed over the latent, (B,) nats (Kingma & Welling 2013, appendix B)."""
    return 0.5 * (mean_BZ**2 + (2 * log_std_BZ).exp() - 1 - 2 * log_std_BZ).sum(-1)


def kl_categorical(log_q_BK: Tensor, log_p_K: Tensor) -> Tensor:
    """KL(q || p) between categorical distributions, (B,) nats; a q of zero contributes nothing."""
    q_BK = log_q_BK.exp()
    return torch.where(q_BK > 0, q_BK * (log_q_BK - log_p_K), torch.zeros_like(q_BK)).sum(-1)
