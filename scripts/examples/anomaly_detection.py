#!/usr/bin/env python
"""Strange rows of a private table, found by a private model: which rows, which cells, and above what.

    python scripts/examples/anomaly_detection.py          # a minute: 4,000 made-up payments, 40 of them strange
    python scripts/examples/anomaly_detection.py --fast   # seconds: a tiny model

The model is trained under differential privacy and may leave the house; a score is about its row, so it stays. What is
strange in a made-up table is known, so the result can be judged: area under the ROC curve, and how often the cell that
was tampered with is the one that the model names.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

import dpvae

STRANGE = 40


@dataclass(frozen=True)
class Found:
    """How well strange rows were told apart: area under the curve, and the share whose cell was named."""

    auc: float
    named: float


def payments(rows: int, rng: np.random.Generator) -> pd.DataFrame:
    """Shops of three kinds, each with its hours, its amounts and its way to pay."""
    kind = rng.choice(3, rows, p=[0.5, 0.3, 0.2])
    return pd.DataFrame({
        "shop": np.array(["bakery", "fuel", "jeweller"])[kind],
        "amount": np.exp(rng.normal(np.array([1.5, 3.8, 6.0])[kind], 0.4)).round(2).clip(0, 2000),
        "hour": (np.array([8, 14, 16])[kind] + rng.normal(0, 2, rows)).round().clip(0, 23).astype(int),
        "way": np.where(rng.random(rows) < np.array([0.8, 0.2, 0.05])[kind], "cash", "card"),
    })


def main(*, fast: bool) -> Found:
    """Train, score, explain, judge."""
    rng = np.random.default_rng(7)
    table = payments(1_000 if fast else 4_000, rng)
    tampered = rng.choice(len(table), STRANGE, replace=False)
    other = payments(len(table), rng)
    cells = np.array(["amount", "hour"])[rng.integers(0, 2, STRANGE)]
    for row, cell in zip(tampered, cells, strict=True):  # a value that is normal elsewhere
        elsewhere = other[other.shop != table.shop[row]]
        table.loc[row, cell] = elsewhere[cell].sample(1, random_state=int(row)).iloc[0]
    small = {"model.components": 32, "model.latent_dim": 8, "trainer.fit_steps": 60, "trainer.steps": 5,
             "trainer.sleep_steps": 5}
    model = dpvae.DPVAE(epsilon=3.0, rows=len(table), options=small if fast else None)
    schema = {"columns": {"shop": {"kind": "categorical", "categories": ["bakery", "fuel", "jeweller"]},
                          "amount": {"kind": "continuous", "min": 0, "max": 2000},
                          "hour": {"kind": "integer", "min": 0, "max": 23},
                          "way": {"kind": "categorical", "categories": ["cash", "card"]}}}
    model.fit(table, schema=schema)
    scores = -np.asarray(model.score_samples(table))  # nats: higher is stranger
    costliest = np.array(table.columns)[model.explain(table.iloc[tampered]).argmax(1)]
    named = float(np.mean(costliest == cells))
    found = Found(float(roc_auc_score(np.isin(np.arange(len(table)), tampered), scores)), named)
    print(model.epsilon_)
    print(f"strange rows against the rest: AUC {found.auc:.3f}; the tampered cell is named first in {found.named:.0%}")
    print(f"one row in a hundred of the model's own lies above {-model.threshold(0.01):.2f} nats; that costs nothing")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="a tiny model, for a test")
    main(fast=parser.parse_args().fast)
