"""What a run's page shows of a model: how its rows spread over each column, ten of them, and the pairs it gets wrong.

Rows are drawn from the released model with a public seed and compared with the noisy tables that were released: nothing
private is read, and nothing is spent.

    write_json(public / "preview.json", preview(vae, schema, anchors, rows=10_000, seed=0))
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvae.data.schema import Schema
from dpvae.models.vae import VAE
from dpvae.release.sample import drawn, first
from dpvae.train.anchor import Anchors, count

WORST = 6
Counts = NDArray[np.integer]


def preview(vae: VAE, schema: Schema, anchors: Anchors, *, rows: int, seed: int) -> dict[str, Any]:
    """``histograms`` (counts by column, in the order of its labels), ``rows``, ``sample``, and ``pairs``."""
    cells, codes = drawn(vae, schema, rows, seed=seed)
    histograms = {column.name: np.bincount(codes[:, j], minlength=column.cardinality).tolist()
                  for j, column in enumerate(schema.columns)}
    return {"rows": rows, "histograms": histograms, "sample": first(cells, 10),
            "pairs": worst_pairs(anchors, codes, schema)}


def worst_pairs(anchors: Anchors, codes: Counts, schema: Schema) -> dict[str, Any] | None:
    """The pairs furthest from their noisy released table beyond what noise explains; ``None`` where none was released.

    Both distances are total variation; that of noise alone is what a perfect model would show on average, given the
    privacy noise of each cell and the sampling error of so many ``codes`` (rows, D).
    """
    found: list[dict[str, Any]] = []
    for (i, j), table, sd in _tables(anchors):
        drawn_ = count(codes, schema.cardinalities, (i, j)) / max(len(codes), 1)
        total = max(float(table.sum()), 1.0)
        spread = np.hypot(sd / total, np.sqrt(drawn_ * (1 - drawn_) / max(len(codes), 1)))
        found.append({"columns": [schema.names[i], schema.names[j]],
                      "distance": float(0.5 * np.abs(table / total - drawn_).sum()),
                      "distance_of_noise_alone": float(0.5 * math.sqrt(2 / math.pi) * spread.sum())})
    found.sort(key=lambda pair: pair["distance_of_noise_alone"] - pair["distance"])
    return {"measured": len(found), "worst": found[:WORST]} if found else None


def _tables(anchors: Anchors) -> Iterator[tuple[tuple[int, int], NDArray[Any], float]]:
    """Every released pair of columns: its noisy counts (codes of i, codes of j) and the noise of a cell."""
    for i, j in anchors.pairs:
        yield (i, j), *anchors.pair(i, j)
    if anchors.target is not None:
        for j, table in anchors.with_target.items():
            yield (j, anchors.target), table, anchors.sd["with-target"]
