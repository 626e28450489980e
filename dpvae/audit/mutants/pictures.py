"""Faults of the moments of images, and of sums of texts: what one record gives is not bounded, or follows the others.

Images of :func:`dpvae.audit.scenes.leaning` are large enough to be redrawn in the frame of their class, and lean so far
that they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dpvae.audit.mutants.base import Mutant, Patch, whole
from dpvae.models.pose import SLANT, poses
from dpvae.privacy.events import Gaussian
from dpvae.train import image_anchors, ngrams
from dpvae.train.image_anchors import LEANING, Images, _Measure

POSED = ("posed",)


@whole("an outer product of an image is not cut to its bound", ("images",))
def products_not_cut(patch: Patch) -> None:
    def uncut(real: Callable[..., Any], blocks: Any, *, left_norm: float, right_norm: float, noise_multiplier: float,
              phase: str, what: str, **rest: Any) -> Any:
        held = list(blocks)
        longest = [max(bound, *(float(np.linalg.norm(part[side], axis=1).max(initial=0)) for part in held))
                   for side, bound in enumerate((left_norm, right_norm))]
        quieter = noise_multiplier * left_norm * right_norm / (longest[0] * longest[1])
        found, sd, _ = real(held, left_norm=longest[0], right_norm=longest[1], noise_multiplier=quieter, phase=phase,
                            what=what, **rest)
        return found, sd, Gaussian(phase, what, noise_multiplier)

    patch.wrap(image_anchors, "noisy_products", uncut)


@whole("what a text counts in n-grams is not scaled down to its bound", ("text",))
def texts_not_scaled(patch: Patch) -> None:
    longest = 8.0  # more than any text of the scene counts

    def unbounded(real: Callable[..., Any], parts: Any, size: int, *, noise_multiplier: float, phase: str, what: str,
                  **rest: Any) -> Any:
        found, _ = real([(record, cell, weight / longest) for record, cell, weight in parts], size,
                        noise_multiplier=noise_multiplier / longest, phase=phase, what=what, **rest)
        return found * longest, Gaussian(phase, what, noise_multiplier)

    patch.wrap(ngrams, "noisy_sparse_sums", unbounded)


@whole("the frame of a class is the exact mean pose of its images", POSED)
def frames_are_exact_means(patch: Patch) -> None:
    def exact(real: Callable[..., Any], self: _Measure, name: str, vectors: Any, norm: float) -> Any:
        held = list(vectors)
        found, noise = real(self, name, iter(held), norm)
        if name == "pose":
            total = sum(np.eye(len(self.counts))[labels].T @ pose for pose, labels in held)
            found = total / np.maximum(sum(np.bincount(labels, minlength=len(self.counts)) for _, labels in held),
                                       1)[:, None]
        return found, noise

    patch.wrap(_Measure, "_per_class", exact)


@whole("images are redrawn in the exact mean pose of all of them", POSED)
def redrawn_in_the_mean_pose(patch: Patch) -> None:
    def redrawn(real: Callable[..., Any], self: Images, frames: Any, size: tuple[int, int, int]) -> Any:
        middle = poses(torch.as_tensor(self.pixels / 255), size).mean(0).numpy()
        return real(self, np.broadcast_to(middle, frames.shape).copy(), size)

    patch.wrap(Images, "redrawn", redrawn)


@whole("whether images are redrawn follows from how they lean exactly", POSED)
def leaning_is_looked_at(patch: Patch) -> None:
    def frames(real: Callable[..., Any], self: _Measure) -> Any:
        slants = [poses(torch.as_tensor(x), self.size).numpy()[:, SLANT] for x, _ in self.images.blocks()]
        patch.set(image_anchors, "LEANING", 0.0 if np.concatenate(slants).std() > LEANING else math.inf)
        return real(self)

    patch.wrap(_Measure, "frames", frames)


MUTANTS: tuple[Mutant, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Mutant))
