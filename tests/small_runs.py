"""Tables, trainers and keys so small that a whole training takes a fraction of a second; no test in here.

A :class:`ScriptedKey` stands in for the secret key: it logs every draw by the name of its stream, and a test may
replace what comes out (no noise, forced masks) without touching the code that asks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpvae.config import (
    DataConfig,
    ModelConfig,
    PerformanceConfig,
    PrivacyConfig,
    ReportConfig,
    RunConfig,
    TrainConfig,
    TrainerConfig,
)
from dpvae.models.vae import VAE
from dpvae.privacy.noise import SecretKey
from dpvae.privacy.plan import Plan, PublicFacts, SgdPlan
from dpvae.train import anchor
from dpvae.train.anchor import Anchors
from dpvae.train.checkpoint import save_state
from dpvae.train.trainer import PHASES, Moment, Trainer

SIZES = (4, 3, 3)  # the last code of the first two columns is held by nobody
TRAINERS = ("anchored", "decoder_only", "joint")
Names = tuple[str | int, ...]
Script = Callable[[Names, Any], Any]  # (names of the stream, what was really drawn) -> what the asker gets


@dataclass(frozen=True)
class Draw:
    """One call on one secret stream."""

    names: Names
    kind: str  # normal, mask, uniform, ...
    size: int


@dataclass
class ScriptedKey:
    """A secret key whose draws are logged, and replaced where a script says so."""

    key: SecretKey = field(default_factory=lambda: SecretKey.from_bytes(bytes(range(32))))
    normal: Script = lambda names, real: real
    mask: Script = lambda names, real: real
    draws: list[Draw] = field(default_factory=list)

    def stream(self, *names: str | int) -> Any:
        return _ScriptedStream(self, names, self.key.stream(*names))

    def tag(self, data: bytes) -> str:
        return self.key.tag(data)


class _ScriptedStream:
    def __init__(self, script: ScriptedKey, names: Names, real: Any) -> None:
        self.script, self.names, self.real = script, names, real

    def __getattr__(self, kind: str) -> Any:
        def draw(*args: Any, **kwargs: Any) -> Any:
            drawn = getattr(self.real, kind)(*args, **kwargs)
            return self._logged("normal" if kind == "bulk_normal" else kind, drawn)

        return draw

    def _logged(self, kind: str, drawn: Any) -> Any:
        """Summed or single, a normal is a normal to the scripts."""
        self.script.draws.append(Draw(self.names, kind, len(drawn) if kind == "bytes" else int(np.size(drawn))))
        change = getattr(self.script, kind, None)
        return drawn if change is None else change(self.names, drawn)


def silent(names: Names, real: np.ndarray) -> np.ndarray:
    """A script for ``normal``: no noise at all."""
    return np.zeros_like(real)


def some_codes(rows: int, seed: int = 0) -> np.ndarray:
    """(rows, 3): three dependent columns; codes 3 and 2 of the first two are never used."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 3, rows)
    second = np.where(rng.random(rows) < 0.8, first % 2, rng.integers(0, 2, rows))
    return np.stack([first, second, (first + second + (rng.random(rows) < 0.2)) % 3], 1).astype(np.int16)


def public_anchors(codes: np.ndarray, *, sd: float = 2.0, target: int | None = 2) -> Anchors:
    """Anchors of ``codes`` as some earlier release may have fixed them."""
    noise = {"one-way": sd, "pairs": sd} | ({"with-target": sd} if target is not None else {})
    return anchor.measure(codes, SIZES, target, noise=noise, key=SecretKey.from_seed(1))[0]


def small_config(name: str, **changes: Any) -> TrainConfig:
    """A configuration that trains in a fraction of a second; ``changes`` by group: ``trainer={...}``."""
    groups: dict[str, tuple[type, dict[str, Any]]] = {
        "data": (DataConfig, {}),
        "model": (ModelConfig, {"latent_dim": 4, "hidden": 8, "components": 8}),
        "trainer": (TrainerConfig, {"name": name, "fit_steps": 4, "steps": 4, "sampling_rate": 0.3, "sleep_steps": 2,
                                    "metric_releases": 2, "latent_samples": 4}),
        "privacy": (PrivacyConfig, {"epsilon": 8.0, "delta": 1e-5}),
        "performance": (PerformanceConfig, {"device": "cpu"}),
        "report": (ReportConfig, {"progress": "quiet"}),
        "run": (RunConfig, {}),
    }
    return replace(TrainConfig(), **{
        group: kind(**{**values, **changes.get(group, {})}) for group, (kind, values) in groups.items()},
        **{group: value for group, value in changes.items() if group not in groups})


def small_plan(config: TrainConfig, *, rows: int, columns: int = 3, metric_releases: int = 0,
               noise: float = 1.0) -> Plan:
    """A plan without its calibration: the noise is given, the price is not asked for."""
    trainer = config.trainer
    sgd = SgdPlan(noise_multiplier=noise, sampling_rate=trainer.sampling_rate or 0.3, steps=trainer.steps or 4,
                  clip_norm=trainer.clip_norm, latent_samples=trainer.latent_samples)
    return Plan(target_epsilon=8.0, delta=1e-5, neighbouring="add_remove", trainer=trainer.name,
                facts=PublicFacts(columns=columns, rows=rows), shares={}, anchor_noise={"one-way": 2.0},
                metric_noise=5.0, metric_releases=metric_releases, sgd=sgd,
                components=config.model.components or 0, fit_steps=trainer.fit_steps or 4)


def small_vae(name: str, seed: int = 0) -> VAE:
    """The model of a trainer: a codebook for ``anchored``, a standard normal for the others."""
    codebook = name == "anchored"
    return VAE(SIZES, latent_dim=4, hidden=8, layers=0 if codebook else 1, components=8 if codebook else None,
               generator=torch.Generator().manual_seed(seed))


def small_trainer(name: str, codes: np.ndarray, folder: Path, *, key: Any = None, anchors: Anchors | None = None,
                  vae: VAE | None = None, rows: int = 60, plan: Plan | None = None,
                  listen: Callable[[Moment], None] = lambda moment: None, **changes: Any) -> Trainer:
    """A trainer over ``codes``; ``rows`` is the public row count, whatever the private one is."""
    config = small_config(name, **changes)
    folder.mkdir(parents=True, exist_ok=True)
    return Trainer(plan=plan or small_plan(config, rows=rows), config=config, vae=vae or small_vae(name),
                   codes=torch.as_tensor(codes).long(), anchors=anchors or public_anchors(some_codes(60)), rows=rows,
                   key=key or ScriptedKey(), checkpoint=folder / "state.safetensors", listen=listen)


def start_at_dpsgd(trainer: Trainer) -> None:
    """Leave a checkpoint that says: everything before DP-SGD is done, and these are the weights."""
    save_state(trainer.checkpoint, {"vae": trainer.vae.state_dict(), "metrics": [], "extra": {}, "step": 0,
                                    "phase": PHASES[trainer.config.trainer.name].index("dpsgd")})


def people(rows: int, seed: int = 0) -> dict[str, list[Any]]:
    """A small table of made-up people: text, integers, decimals; nothing missing."""
    rng = np.random.default_rng(seed)
    age = rng.integers(18, 80, rows)
    return {"city": rng.choice(["north", "south", "east"], rows).tolist(), "age": age.tolist(),
            "pay": np.round(rng.gamma(2.0, 10.0, rows), 1).tolist(),
            "income": np.where(age > 50, "high", "low").tolist()}
