"""The VAE: prior -> z -> decoder -> product of columns, and an encoder back.

Two priors, one model (see :mod:`dpvae.models.prior`):

* standard normal: log p(x) is bounded by the ELBO, or more tightly by importance weighting (IWAE);
* codebook: log p(x) = logsumexp_k [log w_k + log p(x | z_k)] and the posterior over points are exact, and the ELBO at
  that posterior equals log p(x).

Shapes: B rows, D columns, W one-hot width, Z latent, K points or samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpvae import checks
from dpvae.models.elbo import Elbo, kl_categorical, kl_to_standard_normal
from dpvae.models.likelihood import Columns
from dpvae.models.links import Link, follow
from dpvae.models.nets import mlp
from dpvae.models.prior import Codebook, StandardNormal

_ROWS_AT_ONCE = 4096  # bounds memory where a (rows, points) or (rows, samples) table is made


class VAE(nn.Module):
    """A VAE over rows of integer codes.

    Args:
        cardinalities: number of codes of each column.
        latent_dim: Z. hidden, layers: width and number of the decoder's hidden layers (0: a linear decoder).
        components: points of the codebook prior; ``None`` for the standard normal.
        links: (source, target) of columns that follow another where rows are drawn; see :meth:`link`.
        generator: public randomness of the initial weights.
    """

    def __init__(self, cardinalities: Sequence[int], *, latent_dim: int, hidden: int, layers: int,
                 components: int | None, generator: torch.Generator, links: Sequence[tuple[int, int]] = ()) -> None:
        super().__init__()
        checks.whole(1, latent_dim=latent_dim, hidden=hidden)
        checks.whole(0, layers=layers)
        self.shape: dict[str, Any] = {"cardinalities": list(cardinalities), "latent_dim": latent_dim, "hidden": hidden,
                                      "layers": layers, "components": components}
        self.likelihood = Columns(cardinalities)
        self.prior = (StandardNormal(latent_dim) if components is None
                      else Codebook(latent_dim, components, generator=generator))
        self.decoder = mlp(latent_dim, hidden, self.likelihood.width, layers=layers)
        self.encoder = mlp(self.likelihood.width, hidden, 2 * latent_dim, layers=max(layers, 1))
        self._initialise(generator)
        self.link([Link(i, j, torch.ones(cardinalities[i], cardinalities[j])) for i, j in links])

    def _initialise(self, generator: torch.Generator) -> None:
        with torch.no_grad():
            for layer in (*self.decoder, *self.encoder):
                if isinstance(layer, nn.Linear):
                    layer.weight.normal_(0, 1 / math.sqrt(layer.in_features), generator=generator)
                    layer.bias.zero_()

    def link(self, links: Sequence[Link]) -> None:
        """Let columns follow others from here on, where rows are drawn from a codebook."""
        for link in links:
            self.register_buffer(f"link_{link.source}_{link.target}", link.ratio_ST)
        if links:
            self.shape["links"] = [[link.source, link.target] for link in links]

    @property
    def links(self) -> tuple[Link, ...]:
        """The columns that follow others."""
        return tuple(Link(i, j, getattr(self, f"link_{i}_{j}")) for i, j in self.shape.get("links", ()))

    @property
    def width(self) -> int:
        """W, the one-hot width of a row."""
        return self.likelihood.width

    @property
    def codebook(self) -> Codebook | None:
        """The prior, where it is a codebook."""
        return self.prior if isinstance(self.prior, Codebook) else None

    def decode(self, z_BZ: Tensor) -> Tensor:
        """Logits, (B, W)."""
        return self.decoder(z_BZ)

    def encode(self, codes_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of q(z | x), each (B, Z)."""
        mean_BZ, log_std_BZ = self.encoder(self.likelihood.one_hot(codes_BD)).chunk(2, -1)
        return mean_BZ, log_std_BZ.clamp(-6.0, 3.0)

    def elbo(self, codes_BD: Tensor, noise_KBZ: Tensor) -> Elbo:
        """Monte-Carlo ELBO of each row over K reparameterised samples; ``noise_KBZ`` is standard normal.

        For the codebook the exact posterior is used and the noise is ignored.
        """
        if self.codebook is not None:
            return self._exact_elbo(codes_BD)
        mean_BZ, log_std_BZ = self.encode(codes_BD)
        z_KBZ = mean_BZ + log_std_BZ.exp() * noise_KBZ
        log_KB = self.likelihood.log_prob(self.decode(z_KBZ), codes_BD.expand(len(z_KBZ), -1, -1))
        return Elbo(rate=kl_to_standard_normal(mean_BZ, log_std_BZ), distortion=-log_KB.mean(0))

    def _joint(self, codes_BD: Tensor) -> Tensor:
        """log w_k + log p(x | z_k), (B, K): D rows of log p are added up for each record."""
        codebook = self.codebook
        assert codebook is not None
        log_KW = self.likelihood.log_probs(self.decode(codebook.points))
        places_BD = self.likelihood.flat(codes_BD.long())
        return codebook.log_weights + F.embedding_bag(places_BD, log_KW.T.contiguous(), mode="sum")

    def _exact_elbo(self, codes_BD: Tensor) -> Elbo:
        joint_BK = self._joint(codes_BD)
        log_q_BK = joint_BK.log_softmax(-1)
        assert self.codebook is not None
        rate_B = kl_categorical(log_q_BK, self.codebook.log_weights)
        return Elbo(rate=rate_B, distortion=-(joint_BK.logsumexp(-1) + rate_B))

    def posterior(self, codes_BD: Tensor) -> Tensor:
        """q(k | x) of a codebook, exact, (B, K): a function of this row and the weights, of nothing else."""
        return self._joint(codes_BD).softmax(-1)

    @torch.no_grad()
    def log_prob(self, codes_BD: Tensor, *, samples: int, generator: torch.Generator) -> Tensor:
        """log p(x), (B,) nats: exact for a codebook, else the IWAE bound with ``samples`` draws of q (Burda 2015)."""
        # one set of draws for all rows, so that a row's score does not depend on the rows beside it
        noise_KZ = torch.randn(samples, self.prior.dim, generator=generator, device=codes_BD.device)
        return torch.cat([self._log_prob(part, noise_KZ) for part in codes_BD.split(_ROWS_AT_ONCE)])

    def _log_prob(self, codes_BD: Tensor, noise_KZ: Tensor) -> Tensor:
        if self.codebook is not None:
            return self._joint(codes_BD).logsumexp(-1)
        mean_BZ, log_std_BZ = self.encode(codes_BD)
        weights = []
        for noise_Z in noise_KZ:
            noise_BZ = noise_Z.expand_as(mean_BZ)
            z_BZ = mean_BZ + log_std_BZ.exp() * noise_BZ
            log_q_B = -(0.5 * (noise_BZ**2 + math.log(2 * math.pi)) + log_std_BZ).sum(-1)
            log_x_B = self.likelihood.log_prob(self.decode(z_BZ), codes_BD)
            weights.append(log_x_B + self.prior.log_prob(z_BZ) - log_q_B)
        return torch.stack(weights).logsumexp(0) - math.log(len(noise_KZ))

    @torch.no_grad()
    def latent(self, codes_BD: Tensor) -> Tensor:
        """The latent a row stands for, (B, Z): the mean of the amortised q(z | x)."""
        return torch.cat([self.encode(part)[0] for part in codes_BD.split(_ROWS_AT_ONCE)])

    @torch.no_grad()
    def sample(self, rows: int, *, generator: torch.Generator) -> Tensor:
        """Rows of codes, (rows, D): z from the prior, x from the decoder. Post-processing: costs nothing.

        From a codebook, rows of the same point are drawn by strata.
        """
        if self.codebook is not None:
            return self._stratified(self.codebook, rows, generator)
        return torch.cat([self.likelihood.sample(self.decode(z_BZ), generator=generator)
                          for z_BZ in self.prior.sample(rows, generator=generator).split(_ROWS_AT_ONCE)])

    def _stratified(self, codebook: Codebook, rows: int, generator: torch.Generator) -> Tensor:
        order = torch.randperm(rows, generator=generator, device=generator.device)
        index_B = codebook.sample_index(rows, generator=generator).sort().values
        log_KW = self.decode(codebook.points)
        codes_BD = self.likelihood.stratified(log_KW, index_B, generator=generator)
        return follow(self.likelihood, self.links, log_KW, index_B, codes_BD, generator=generator)[order]
