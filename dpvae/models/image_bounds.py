"""Bounds of many pictures, each to the last bit a function of that picture, its class and the model.

How a sum is rounded depends on the shape of a batch. So a picture is always among :data:`TOGETHER` of its own class;
where there are fewer, they are repeated. So few at a time stay in the cache: 1,024 cost twice as much.

Shapes: N pictures, D pixels, Z directions, S latents for each picture.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpvae.models.elbo import Elbo
from dpvae.models.images import ImageVAE

TOGETHER = 64


@torch.no_grad()
def bounds(vae: ImageVAE, bytes_ND: Tensor, label_N: Tensor, noise_SZ: Tensor) -> Elbo:
    """Rate and distortion of uint8 pictures, (S, N) double each, in nats: one for each of the same S latents for every
    picture. Were these dealt out by position, one picture would move the others'. As private as the pictures."""
    found = torch.zeros(2, len(noise_SZ), len(label_N), dtype=torch.float64, device=label_N.device)
    count = torch.bincount(label_N)
    for alike in label_N.argsort(stable=True).split(count.tolist()):
        for part in alike.split(TOGETHER) if len(alike) else ():
            filled = part[torch.arange(TOGETHER, device=part.device) % len(part)]
            x_TD, label_T = bytes_ND[filled].float() / 255, label_N[filled]
            for noise_Z, values_2N in zip(noise_SZ, found.unbind(1), strict=True):
                bound = vae.elbo(x_TD, label_T, noise_Z.expand(TOGETHER, -1))
                values_2N[:, part] = torch.stack(bound)[:, :len(part)].double()
    return Elbo(*found)
