#!/usr/bin/env python
"""What it looks like when a promise is broken: DP-SGD in twenty lines of numpy, right, and with the classic mistakes.

    python scripts/examples/broken_trainer.py             # a minute
    python scripts/examples/broken_trainer.py --fast      # seconds: one mistake

The audit knows nothing of these trainers but the claim they make. It drives each of them on rows of its own, with
people that a bug would give away, and says which sentence of the promise does not hold.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from dpvae.audit.replay import Claim, audit_step

CLAIM = Claim(clip_norm=0.5, noise_multiplier=1.3, sampling_rate=0.25, steps=60, divisor=10.0)
ROWS, COLUMNS = 40, 60


class Right:
    """Sample, clip each record, add noise, divide by a public number."""

    def __init__(self, rows: Any, key: Any) -> None:
        self.rows, self.key, self.number = rows, key, 0
        self.parameters = self.weights = np.zeros(rows.shape[1])

    def clipped_sum(self, gradients: Any) -> Any:
        """At most the clip norm from each record."""
        safe = np.where(np.isfinite(gradients).all(1, keepdims=True), gradients, 0.0)
        norms = np.linalg.norm(safe, axis=1, keepdims=True)
        return (safe * CLAIM.clip_norm / np.maximum(norms, CLAIM.clip_norm)).sum(0)

    def scale(self) -> float:
        """Standard deviation of the noise."""
        return CLAIM.noise_multiplier * CLAIM.clip_norm

    def divisor(self, batch: Any) -> float:
        """Public: the expected size of a batch."""
        return CLAIM.divisor

    def step(self, released: Any = None) -> dict[str, Any]:
        """One update; ``released`` is what a run on other rows released at this step."""
        batch = self.rows[self.key.stream("dpsgd", self.number, "mask").mask(len(self.rows), CLAIM.sampling_rate)]
        with np.errstate(all="ignore"):
            total = self.clipped_sum(batch - 0.1 * self.weights)
        noise = self.key.stream("dpsgd", self.number, "noise").normal(total.size) * self.scale()
        update = (total + noise) / self.divisor(batch)
        self.weights = self.weights - 0.5 * (update if released is None else released / CLAIM.divisor)
        self.parameters, self.number = self.weights, self.number + 1
        return {"update": update}


class ClipsTheBatch(Right):
    """One clip for the sum: who is alone in a direction moves it by far more than the clip norm."""

    def clipped_sum(self, gradients: Any) -> Any:
        """The sum, clipped once, at the batch's size."""
        total = np.nan_to_num(gradients).sum(0)
        return total * min(1.0, CLAIM.clip_norm * max(len(gradients), 1) / max(np.linalg.norm(total), 1e-12))


class HalfTheNoise(Right):
    """Half of what was priced."""

    def scale(self) -> float:
        """Too small."""
        return 0.5 * super().scale()


class DividesByTheBatch(Right):
    """The private number of records in the batch leaves with every update."""

    def divisor(self, batch: Any) -> float:
        """Not public."""
        return max(len(batch), 1)


TRAINERS = (Right, ClipsTheBatch, HalfTheNoise, DividesByTheBatch)


def main(*, fast: bool) -> dict[str, tuple[str, ...]]:
    """Each trainer's name, and the tests that it failed."""
    rng = np.random.default_rng(0)
    rows, found = rng.normal(size=(ROWS, COLUMNS)), {}
    for trainer in TRAINERS[:2] if fast else TRAINERS:
        planted = None if fast else 10.0 * np.eye(COLUMNS)[:30]  # rows that leave a trace of their own
        verdict = audit_step(trainer, CLAIM, rows, canaries=planted, quick=fast)
        found[trainer.__name__] = () if verdict.passed else tuple(verdict.caught_by)
        print(f"{trainer.__name__}: {'nothing contradicts its claim' if verdict.passed else 'BROKEN'}")
        for finding in verdict.failed[:3]:
            print(f"  {finding}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="one mistake, quickly")
    main(fast=parser.parse_args().fast)
