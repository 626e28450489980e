"""The auditor's own rows: made-up people, and those who join them to make trouble."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from dpvae.audit.runner import Person, Scene
from dpvae.audit.twin import CANARIES, faults
from dpvae.config import ModelConfig, PerformanceConfig, ReportConfig, TrainConfig, TrainerConfig
from dpvae.models.vae import VAE
from dpvae.rng import seed_of, stream
from dpvae.train.trainer import Trainer

Rows = dict[str, list[Any]]
STEPS = 24  # of DP-SGD, where the program as a whole is looked at: a checkpoint is among them
ODD = 12  # random rows, and columns that are turned round


def people(rows: int, seed: int = 0) -> Rows:
    """A table with text, integers, decimals and a target that depends on them; nothing missing; as many columns as
    every kind of one-shot release takes."""
    rng = stream(seed, "people")
    age = rng.integers(18, 80, rows)
    return {"city": rng.choice(["north", "south", "east"], rows).tolist(), "age": age.tolist(),
            "pay": np.round(rng.gamma(2.0, 10.0, rows), 1).tolist(),
            "member": rng.choice(["yes", "no"], rows).tolist(),
            "income": np.where(age > 50, "high", "low").tolist()}


def images(rows: int) -> Rows:
    """Waves of 8 x 8 pixels, of three classes."""
    rng = stream(0, "images")
    label, (y, x) = rng.integers(0, 3, rows), np.mgrid[:8, :8]
    waves = 128 + 100 * np.sin((label[:, None, None] + 1) * x / 2 + y / 3) + rng.normal(0, 20, (rows, 8, 8))
    return {"images": list(np.clip(waves, 0, 255).astype(np.uint8)), "labels": label.astype(str).tolist()}


def leaning(rows: int) -> Rows:
    """Strokes of 16 x 16 pixels that lean to either side, thin ones and wide ones: so that their poses are asked for,
    and they are redrawn."""
    rng = stream(0, "leaning")
    label, at = rng.integers(0, 2, rows), np.arange(16) - 7.5
    slant, width = rng.choice([-0.75, 0.75], rows)[:, None, None], 1.2 + 0.6 * label[:, None, None]
    mass = np.exp(-0.5 * (((at - slant * at[:, None]) / width) ** 2 + (at[:, None] / 3.5) ** 2))
    return {"images": list(np.rint(255 * mass).astype(np.uint8)), "labels": label.astype(str).tolist()}


def texts(rows: int) -> Rows:
    """Short requests about money and about fun."""
    rng = stream(0, "texts")
    said = ("pay my bill", "book a flight", "cancel card", "play some jazz", "weather in rome", "tell a joke")
    which = rng.integers(0, len(said), rows)
    return {"text": [f"{said[i]} {n}" for i, n in zip(which, rng.integers(0, 9, rows), strict=True)],
            "label": np.where(which < 3, "money", "fun").tolist()}


def small(config: TrainConfig) -> TrainConfig:
    """The same settings on a model that trains in a tenth of a second. Plan, clipping, sampler stay what they are."""
    return TrainConfig(
        data=config.data, model=ModelConfig(latent_dim=24, hidden=16, components=12, layers=config.model.layers),
        trainer=_quick(config.trainer), privacy=config.privacy,
        performance=PerformanceConfig(device="cpu", clipping=config.performance.clipping, threads=1), run=config.run,
        report=ReportConfig(progress="quiet"))


def _quick(trainer: TrainerConfig) -> TrainerConfig:
    return replace(trainer, steps=STEPS, fit_steps=3, sleep_steps=2, latent_samples=min(trainer.latent_samples or 4, 4),
                   metric_releases=min(trainer.metric_releases or 2, 2))


def scene(trainer: Trainer, *, where: str = "", quick: bool = False, seed: int = 0) -> Scene:
    """The rows of a captured trainer, the people who join them, and canaries."""
    codes = trainer.codes.cpu().numpy()
    last = _nobody(trainer, codes)
    spoiling = faults(last) if last is not None else {}
    last = codes[-1] if last is None else last
    joining = (Person("unseen values", last), Person("a duplicate", codes[0]),
               *(Person(f"a loss that is {name}", last, fault) for name, fault in spoiling.items()))
    # one column of a table, one value each, is sharpest; other records are random ones
    canaries = np.arange(CANARIES) if isinstance(trainer.vae, VAE) else _random(trainer, CANARIES, 0)
    return Scene(codes, joining, canaries, where, quick, seed, _odd(trainer))


def _odd(trainer: Trainer) -> Any:
    """Rows as unusual as can be: random ones, and of a table those of first and of last codes, in all columns or all
    but one."""
    rows = _random(trainer, ODD, 1)
    if not isinstance(trainer.vae, VAE):
        return rows
    last = (np.array(trainer.vae.likelihood.sizes) - 1).astype(rows.dtype)
    corners = [last * 0, last]
    for column in range(min(len(last), ODD)):
        for base, other in ((last * 0, last), (last, last * 0)):
            corners.append(np.where(np.arange(len(last)) == column, other, base))
    return np.concatenate([rows, np.stack(corners)])


def _nobody(trainer: Trainer, codes: Any) -> Any:
    """A row that nobody holds, of a table of codes as rare as can be; ``None`` where the table holds every row there
    is."""
    held = {row.tobytes() for row in codes}
    rare = (np.array(trainer.vae.likelihood.sizes) - 1).astype(codes.dtype) if isinstance(trainer.vae, VAE) else None
    tried = itertools.chain([rare] if rare is not None else [], (_random(trainer, 1, n)[0] for n in range(1000)))
    return next((row for row in tried if row.tobytes() not in held), None)


def _random(trainer: Trainer, count: int, seed: int) -> Any:
    """Random records, as the trainer itself makes them from public facts."""
    generator = torch.Generator().manual_seed(seed_of(seed, "nobody"))
    return trainer.example()(count, generator).cpu().numpy().astype(trainer.codes.cpu().numpy().dtype)
