"""A table as d numbers per row, and how much of it comes back: compression, and the map of a report.

The axes are the principal directions of the latents of the model's *own* rows, so they are post-processing: nothing
private is read, for any d. Which rows are then compressed is up to their owner.

>>> axes = Axes.of(np.array([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]]))
>>> axes.compress(np.array([[3.0, 5.0]]), 1).ravel().round(6).tolist()
[1.0]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpvae.models.vae import VAE

ROWS = 4096
MAPPED = 600  # synthetic rows on a report's map

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Axes:
    """Principal directions of some latents: ``middle`` (Z,), ``directions`` (Z, Z), the strongest first."""

    middle: Array
    directions: Array

    @classmethod
    def of(cls, latents: Array) -> Axes:
        """From latents (rows, Z); each direction points to where its largest coordinate is positive."""
        middle = latents.mean(0)
        directions = np.linalg.svd(latents - middle, full_matrices=False)[2].T
        largest = np.abs(directions).argmax(0)
        return cls(middle, directions * np.sign(directions[largest, np.arange(directions.shape[1])]))

    def compress(self, latents: Array, d: int) -> Array:
        """(rows, d)."""
        return (latents - self.middle) @ self.directions[:, :d]

    def restore(self, numbers: Array) -> Array:
        """Latents, (rows, Z)."""
        return self.middle + numbers @ self.directions[:, :numbers.shape[1]].T


@torch.no_grad()
def own_axes(vae: VAE, *, generator: torch.Generator) -> Axes:
    """The axes of a released model, from rows that it draws."""
    return Axes.of(vae.latent(vae.sample(ROWS, generator=generator)).double().numpy())


@torch.no_grad()
def synthetic_map(vae: VAE, *, column: int | None, generator: torch.Generator) -> dict[str, Any]:
    """:data:`MAPPED` synthetic rows on the first two axes: ``x``, ``y``, and the code of ``column``, if any."""
    axes = own_axes(vae, generator=generator)
    codes = vae.sample(MAPPED, generator=generator)
    places = axes.compress(vae.latent(codes).double().numpy(), 2)
    places = np.pad(places, ((0, 0), (0, 2 - places.shape[1])))
    label = codes[:, column].tolist() if column is not None else None
    return {"x": places[:, 0].round(3).tolist(), "y": places[:, 1].round(3).tolist(), "label": label}
