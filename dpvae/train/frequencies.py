"""Images in low frequencies, and what noisy second moments of these say of all frequencies and of single pixels.

A discrete cosine transform: most of an image lies in its lowest frequencies, and fewer numbers bring less noise. What
is estimated here follows from released moments, whose noise is known, so it costs no privacy. Shapes: Q frequencies, D
pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from dpvae.models.images import LOG_SCALE
from dpvae.models.spectrum import by_ring, rings, waves
from dpvae.privacy.image_plan import frequencies

Array = NDArray[np.float64]
MOST = 800  # of all channels together: the second moments are a square table of them
KNOWN = 4.0  # times its noise: a mean power of a ring that is known
LEAST_POWER = 0.1  # of that of its ring: a frequency's


@dataclass(frozen=True)
class Frequencies:
    """The lowest ``kept`` frequencies (height, width) of images of ``size``, and what their second moments tell."""

    size: tuple[int, int, int]
    kept: tuple[int, int]

    @classmethod
    def of(cls, size: tuple[int, int, int], rows: float, epsilon: float) -> Frequencies:
        """As many as the second moments of ``rows`` images can tell at ``epsilon``."""
        finest = math.isqrt(2 * MOST // (size[0] + 1))
        height, width = (min(frequencies(side, rows, epsilon), finest) for side in size[1:])
        return cls(size, (height, width))

    @cached_property
    def cosines(self) -> Array:
        """(Q, D), orthonormal rows; see :func:`cosines`."""
        return cosines(self.size, self.kept)

    def power(self, squares: Array, sd: float) -> Array:
        """Mean squares (height, width) of frequencies: each one's own as far as it is apart from those around it by
        more than noise of ``sd``, and zero where noise hides its ring, or where it was not measured."""
        channels, height, width = self.size
        found, start = torch.zeros(self.kept, dtype=torch.float64), 0
        for tall, wide in _each(channels, self.kept):
            part = squares[start:start + tall * wide].reshape(tall, wide)
            found[:tall, :wide] += torch.as_tensor(part) / channels
            start += tall * wide
        ring, doubt = rings(height, width)[:self.kept[0], :self.kept[1]], sd**2 / channels
        around = F.avg_pool2d(found[None], 3, 1, 1, count_include_pad=False)[0]
        apart = found - around
        own = around + (1 - doubt / apart.square().clamp_min(doubt)) * apart
        mean_R = by_ring(found, ring)
        known = (mean_R > KNOWN * (doubt / torch.bincount(ring.flatten())).sqrt())[ring]
        power = torch.where(known, own.maximum(LEAST_POWER * mean_R[ring]), 0.0)
        return np.pad(power.numpy(), ((0, height - self.kept[0]), (0, width - self.kept[1])))

    def rest(self, moments: Array, sd: float) -> Array:
        """Log scales (D,) of logistic laws with the variances of single pixels under second ``moments``: each pixel's
        own where pixels differ more than the noise does."""
        count = len(self.cosines)
        own = ((moments[:count, :count] @ self.cosines) * self.cosines).sum(0)
        apart, doubt = own - own.mean(), sd * (self.cosines**2).sum(0)
        kept = max(1 - np.mean(doubt**2) / max(np.mean(apart**2), 1e-12), 0.0)
        variance = np.maximum(own.mean() + kept * apart, 1e-12)
        return np.asarray(np.clip(0.5 * np.log(3 * variance) - math.log(math.pi), *LOG_SCALE))


def cosines(size: tuple[int, int, int], kept: tuple[int, int]) -> Array:
    """The lowest ``kept`` cosine frequencies along height and width, (Q, D), orthonormal rows; in colour those of the
    light, and half as many each way of what is coloured, as JPEG holds them: fewer numbers, and so less noise."""
    channels, height, width = size
    down, across = waves(height).numpy(), waves(width).numpy()
    return np.vstack([np.kron(colour, np.einsum("ai,bj->abij", down[:tall], across[:wide]).reshape(tall * wide, -1))
                      for colour, (tall, wide) in zip(_colours(channels), _each(channels, kept), strict=True)])


def _colours(channels: int) -> Array:
    """Light, and what is coloured in orthogonal directions of it, (channels, channels)."""
    if channels != 3:
        return np.eye(channels)
    colours = np.array([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
    return np.asarray(colours / np.linalg.norm(colours, axis=1, keepdims=True))


def _each(channels: int, kept: tuple[int, int]) -> list[tuple[int, int]]:
    """How many frequencies along height and width are kept of each."""
    return [kept, *[(-(-kept[0] // 2), -(-kept[1] // 2))] * (channels - 1)]
