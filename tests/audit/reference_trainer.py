"""A DP-SGD trainer in twenty lines of numpy, right as it stands, with a place for each mistake; no test in here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dpvae.audit.replay import Claim

ROWS, COLUMNS = 40, 60
CLAIM = Claim(clip_norm=0.5, noise_multiplier=1.3, sampling_rate=0.25, steps=60, divisor=10.0)


@dataclass
class Reference:
    """Linear regression of nothing on everything: the gradient of a row is the row, moved by the weights."""

    rows: Any
    key: Any

    def __post_init__(self) -> None:
        self.weights = np.zeros(self.rows.shape[1])
        self.number = 0
        self.parameters = self.weights

    # each of these is where some mutant lives

    def coins(self) -> Any:
        return self.key.stream("dpsgd", self.number, "mask").mask(len(self.rows), CLAIM.sampling_rate)

    def gradients(self, batch: Any) -> Any:
        return batch - 0.1 * self.weights

    def clipped(self, gradients: Any) -> Any:
        norms = np.linalg.norm(np.nan_to_num(gradients, nan=0.0, posinf=0.0, neginf=0.0), axis=1, keepdims=True)
        finite = np.isfinite(gradients).all(1, keepdims=True)
        safe = np.where(finite, gradients, 0.0)
        return safe * CLAIM.clip_norm / np.maximum(norms, CLAIM.clip_norm)

    def noise(self, size: int) -> Any:
        scale = CLAIM.noise_multiplier * CLAIM.clip_norm
        return self.key.stream("dpsgd", self.number, "noise").normal(size) * scale

    def divisor(self, batch: Any) -> float:
        return CLAIM.divisor

    def step(self, released: Any = None) -> dict[str, Any]:
        batch = self.rows[self.coins()]
        with np.errstate(all="ignore"):
            total = self.clipped(self.gradients(batch)).sum(0)
        noisy = total + self.noise(total.size)
        update = noisy / self.divisor(batch)
        told = update if released is None else np.broadcast_to(released, total.shape) / CLAIM.divisor
        self.weights = self.weights - 0.5 * told
        self.parameters = self.weights
        self.number += 1
        return {"update": update}


def rows(seed: int = 0) -> Any:
    """(ROWS, COLUMNS)."""
    return np.random.default_rng(seed).normal(size=(ROWS, COLUMNS))


def canaries(count: int = 50) -> Any:
    """Records with orthogonal gradients."""
    return np.eye(count, COLUMNS) * 5
