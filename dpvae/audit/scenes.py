"""The auditor's own rows: made-up people, and those who join them to make trouble."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dpvae.audit.replay import Person, Scene
from dpvae.audit.twin import CANARIES, faults
from dpvae.config import ModelConfig, PerformanceConfig, ReportConfig, TrainConfig, TrainerConfig
from dpvae.data.schema import Schema
from dpvae.rng import stream
from dpvae.train.trainer import Trainer

Rows = dict[str, list[Any]]
STEPS = 8  # of DP-SGD, where the program as a whole is looked at
UNIQUE, FAR = "Ushuaia", 987_654_321


def people(rows: int, seed: int = 0) -> Rows:
    """A table with text, integers, decimals and a target that depends on them; nothing missing."""
    rng = stream(seed, "people")
    age = rng.integers(18, 80, rows)
    return {"city": rng.choice(["north", "south", "east"], rows).tolist(), "age": age.tolist(),
            "pay": np.round(rng.gamma(2.0, 10.0, rows), 1).tolist(),
            "income": np.where(age > 50, "high", "low").tolist()}


def troublemakers(table: Mapping[str, Sequence[Any]], schema: Schema | None = None) -> dict[str, dict[str, Any]]:
    """Rows that a careless program trips over, each within what is *declared* about the table."""
    first = {name: values[0] for name, values in table.items()}
    declared = {c.name: c for c in schema.columns} if schema is not None else {}
    unusual, missing = {}, {}
    for name, values in table.items():
        column = declared.get(name)
        fixed = set(column.declared) if column is not None else set()
        held = [v for v in values if v is not None]
        rare = min(Counter(held).items(), key=lambda item: (item[1], repr(item[0])))[0] if held else None
        number = isinstance(rare, (int, float)) and not isinstance(rare, bool)
        if fixed or (column is not None and name == (schema.target if schema else None)):
            unusual[name] = rare
        elif number:
            unusual[name] = float(FAR) if isinstance(rare, float) else FAR
        else:
            unusual[name] = UNIQUE if isinstance(rare, str) else rare
        may = column is None or (bool(column.nullable) if "nullable" in fixed else not fixed)
        missing[name] = None if may else rare
    return {"a unique record": unusual, "a duplicate": dict(first), "an empty record": missing}


def small(config: TrainConfig, *, steps: int = STEPS) -> TrainConfig:
    """The same settings on a model that trains in a tenth of a second. Plan, clipping, sampler stay what they are."""
    return TrainConfig(
        data=config.data, model=ModelConfig(latent_dim=24, hidden=16, components=12, layers=config.model.layers),
        trainer=_quick(config, steps), privacy=config.privacy,
        performance=PerformanceConfig(device="cpu", clipping=config.performance.clipping, threads=1), run=config.run,
        report=ReportConfig(progress="quiet"))


def _quick(config: TrainConfig, steps: int) -> TrainerConfig:
    trainer = config.trainer
    return replace(trainer, steps=steps, fit_steps=3, sleep_steps=2, latent_samples=min(trainer.latent_samples or 4, 4),
                   metric_releases=min(trainer.metric_releases or 2, 2))


def scene(trainer: Trainer, *, where: str = "", quick: bool = False, seed: int = 0) -> Scene:
    """The rows of a captured trainer, the people who join them, and canaries."""
    codes = trainer.codes.cpu().numpy().astype(np.int64)
    last = _nobody(codes, np.array(trainer.vae.likelihood.sizes))
    spoiling = faults(last) if last is not None else {}
    last = codes[-1] if last is None else last
    joining = (Person("unseen values", last), Person("a duplicate", codes[0]),
               *(Person(f"a loss that is {name}", last, fault) for name, fault in spoiling.items()))
    return Scene(codes, joining, np.arange(CANARIES), where, quick, seed)


def _nobody(codes: Any, sizes: Any) -> Any:
    """A row that nobody holds, of codes as rare as can be; ``None`` where the table holds every row there is."""
    held = {tuple(row) for row in codes.tolist()}
    row = sizes - 1
    for number in range(1000):
        if tuple(row.tolist()) not in held:
            return row
        row = stream(number, "nobody").integers(0, sizes)
    return None
