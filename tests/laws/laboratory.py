"""Instruments of the laws' tests: what a trainer would release before its noise, on two tables one person apart.

The comparison is the one that differential privacy makes. Both runs see the *same released past*: the anchors are
given, the noise is silent, the masks agree on the records they share, and the second run's released gradients are
overwritten with the first run's. What is left is how far one record moves what is about to be released.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import Names, ScriptedKey, silent, small_trainer, small_vae, start_at_dpsgd
from torch import Tensor

from dpvae.models.vae import VAE
from dpvae.train import trainer as trainer_module
from dpvae.train.dpsgd import PrivateSteps


@dataclass
class Tape:
    """The gradients a run released, times the *public* divisor: clipped sums, where the noise was silent."""

    divisor: float
    sums: list[Tensor] = field(default_factory=list)
    script: list[Tensor] | None = None  # what the optimiser gets instead


def tapped(tape: Tape) -> type[PrivateSteps]:
    """``PrivateSteps`` whose released gradients are read off just before the update."""

    class Tapped(PrivateSteps):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            inner = self.optimizer.original_optimizer
            update = inner.step

            def step(closure: Any = None) -> Any:
                parameters = [p for group in inner.param_groups for p in group["params"]]
                tape.sums.append(torch.cat([p.grad.flatten() for p in parameters]) * tape.divisor)
                if tape.script is not None:
                    told = tape.script[len(tape.sums) - 1] / tape.divisor
                    for p, part in zip(parameters, told.split([p.numel() for p in parameters]), strict=True):
                        p.grad = part.view_as(p).clone()
                return update()

            inner.step = step  # type: ignore[method-assign]

    return Tapped


def moved(patch: pytest.MonkeyPatch, name: str, codes: np.ndarray, person: np.ndarray, folder: Path, *,
          prepare: Callable[[VAE], None] = lambda vae: None, before: Callable[[Any], None] = lambda trainer: None,
          from_dpsgd: bool = True, **changes: Any) -> list[float]:
    """Per step of DP-SGD, by how much (in units of C) adding ``person`` moves the clipped sum.

    ``before(trainer)`` runs before each of the two trainings: mutants use it to reach the private rows.
    """
    tapes = []
    for which, table in enumerate((codes, np.concatenate([codes, person[None].astype(codes.dtype)]))):
        vae = small_vae(name)
        prepare(vae)
        trainer = small_trainer(name, table, folder / str(which), vae=vae, **changes,
                                key=ScriptedKey(normal=silent, mask=shared_masks(len(codes))))
        if from_dpsgd:
            start_at_dpsgd(trainer)
        assert trainer.plan.sgd is not None
        tape = Tape(trainer.plan.sgd.sampling_rate * trainer.rows, script=tapes[0].sums if tapes else None)
        patch.setattr(trainer_module, "PrivateSteps", tapped(tape))
        before(trainer)
        trainer.fit()
        tapes.append(tape)
    clip = small_trainer(name, codes, folder / "clip", **changes).config.trainer.clip_norm
    without, with_person = (tape.sums for tape in tapes)
    assert len(without) == len(with_person) > 0
    return [float((b - a).norm()) / clip for a, b in zip(without, with_person, strict=True)]


def shared_masks(rows: int) -> Callable[[Names, np.ndarray], np.ndarray]:
    """Masks that agree on the first ``rows`` records; whoever comes after them is in every batch."""
    def mask(names: Names, real: np.ndarray) -> np.ndarray:
        seed = sum(part for part in names if isinstance(part, int))
        common = np.random.default_rng(seed).random(rows) < 0.5
        return np.concatenate([common, np.ones(len(real) - rows, dtype=bool)])

    return mask
