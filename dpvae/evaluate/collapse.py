"""Did the latent learn anything? Posterior collapse is the normal failure of a private VAE, so every report says.

Three numbers, all from what is already released (noisy one-way tables, the model, its own rows), so all free:

* ``independent_elbo``: the log-likelihood of independent columns with the noisy one-way frequencies, nats per row. A
  model whose noisy ELBO is no better has learned no dependence at all.
* ``rate``: the mean KL(q(z|x) || p(z)) over synthetic rows, nats per row: how much of a row goes through the latent.
* ``active_units``: latent dimensions whose posterior mean varies over synthetic rows (variance above 0.01; Burda et
  al. 2015, section 5.2), of ``latent_dim``.

>>> import numpy as np
>>> round(independent_elbo([np.array([50, 50]), np.array([100, 0])]), 4)   # one fair coin, one certainty
-0.6931
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpvae.models.images import AT_ONCE, ImageVAE, Pixels, by_coin
from dpvae.models.vae import VAE

ACTIVE = 0.01
ROWS = 4096


def independent_elbo(one_way: Sequence[NDArray[np.int64]]) -> float:
    """Minus the sum of the columns' entropies under the noisy frequencies, nats per row; negative counts are zero."""
    total = 0.0
    for table in one_way:
        counts = np.maximum(table, 0).astype(float)
        shares = counts[counts > 0] / max(counts.sum(), 1.0)
        total += float((shares * np.log(shares)).sum())
    return total


@torch.no_grad()
def diagnose(vae: VAE, one_way: Sequence[NDArray[np.int64]], *, generator: torch.Generator) -> dict[str, Any]:
    """The three numbers for a released model; reads no private row."""
    codes = vae.sample(ROWS, generator=generator)
    noise = torch.randn(1, ROWS, vae.prior.dim, generator=generator)
    return {"independent_elbo": independent_elbo(one_way), "rate": float(vae.elbo(codes, noise).rate.mean()),
            "active_units": int((vae.latent(codes).var(0) > ACTIVE).sum()), "latent_dim": vae.prior.dim,
            "unit": "nats per row"}


@torch.no_grad()
def diagnose_images(vae: ImageVAE, *, generator: torch.Generator) -> dict[str, Any]:
    """The same for a released model of images, from :data:`ROWS` images of its own, nats per image: independent pixels
    are those of these images, without their class; the rate holds the class, too."""
    rates, means, drawn, labels = [], [], [], vae.draw_labels(ROWS, generator=generator)
    for label_N in labels.split(AT_ONCE):
        laws = vae.laws(vae.draw_latents(label_N, generator=generator), label_N)
        x_ND = by_coin([Pixels.sample(*law, generator=generator) for law in laws], generator=generator)
        rates.append(vae.elbo(x_ND, label_N, torch.randn(len(x_ND), vae.basis.shape[0], generator=generator)).rate)
        means.append(vae.encode(x_ND, label_N)[0])
        drawn.append((x_ND * 255).round().to(torch.uint8).numpy())
    tables = [np.bincount(column, minlength=256) for column in (*np.concatenate(drawn).T, labels.numpy())]
    return {"independent_elbo": independent_elbo(tables), "rate": float(torch.cat(rates).mean()),
            "active_units": int((torch.cat(means).var(0) > ACTIVE).sum()), "latent_dim": vae.basis.shape[0],
            "unit": "nats per image"}
