"""Images and models so small that a whole training takes a fraction of a second; no test in here."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpvae.models.images import ImageVAE

ROWS = 90


def pictures(rows: int = ROWS, seed: int = 0) -> dict[str, Any]:
    """Bars of two directions, in gray and a little noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, rows)
    images = rng.integers(0, 40, (rows, 8, 8))
    for image, label, place in zip(images, labels, rng.integers(1, 6, rows), strict=True):
        image[(slice(None), slice(place, place + 2)) if label else (slice(place, place + 2), slice(None))] += 200
    return {"images": images.astype(np.uint8), "labels": np.array(["across", "down"])[labels]}


def some_model(size: tuple[int, int, int] = (1, 9, 8), seed: int = 0, *, posed: bool = False) -> ImageVAE:
    """Three classes, two clusters each (the last has one), four directions, rests of two lengths, and a decoder that
    has learned something."""
    generator = torch.Generator().manual_seed(seed)
    vae = ImageVAE(size, classes=3, clusters=2, directions=4, axes=2, stretches=2, posed=posed, hidden=8,
                   generator=generator)
    pixels = vae.means.shape[1]
    vae.means.copy_(torch.rand(3, pixels, generator=generator))
    vae.basis.copy_(torch.linalg.qr(torch.randn(pixels, 4, generator=generator))[0].T)
    vae.log_labels.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    vae.log_weights.copy_(torch.tensor([[0.6, 0.4], [0.1, 0.9], [1.0, 0.0]]).log())
    vae.centres.copy_(torch.randn(3, 2, 4, generator=generator))
    vae.factors.copy_((0.1 * torch.randn(3, 4, 4, generator=generator)).tril() + 0.5 * torch.eye(4))
    vae.shapes.copy_((0.3 * torch.randn(3, 2, 2, 2, generator=generator)).tril(-1)
                     + torch.tensor([[0.5, 1.5], [1.2, 0.8]]).diag_embed())
    vae.stretches.copy_(torch.tensor([0.7, 1.6]))
    vae.log_shares.copy_(torch.tensor([[0.5, 0.5], [0.8, 0.2], [0.3, 0.7]]).log())
    torch.nn.init.normal_(vae.decoder.outside.weight, std=0.05, generator=generator)
    return vae


def covariances(vae: ImageVAE, label: int) -> Tensor:
    """Of the clusters of a class where rests are not stretched, (K, Z, Z)."""
    whole = torch.stack([torch.block_diag(shape, torch.eye(vae.factors.shape[1] - len(shape)))
                         for shape in vae.shapes[label]])
    factors = vae.factors[label] @ whole
    return factors @ factors.mT
