"""What a finished run leaves in its ``public/`` folder: model, plan, settings, events, metrics, claim.

Nothing here was computed from private records except through the events that paid for it. Settings are written
without the places (paths, URLs) that they name on this machine.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dpvae.config import TrainConfig
from dpvae.files import write_bytes, write_json
from dpvae.modalities import Result
from dpvae.privacy.ledger import Ledger
from dpvae.privacy.plan import Plan
from dpvae.report.source import write_events

if TYPE_CHECKING:
    from dpvae.train.run import RunFolder

NOISE = {
    "one-shot": "rounded Gaussian added to integers; AES-256-CTR keystream, key from the operating system",
    "dpsgd": "rounded Gaussian added to sums rounded to the same grid (a power of two, at most 2**-24 of the noise), "
             "scaled to the clip norm and what rounding adds to it; AES-256-CTR, one stream per step",
}
PADDING = ("a batch may be taken in parts, and a part filled up to a public size with rows of weight zero; no record "
           "is dropped")
REPLAY = ("a step replayed after a crash draws the identical mask and noise from a key sealed in private/, which is "
          "destroyed when the run ends: the same release, not a second one")


def write_public(run: RunFolder, config: TrainConfig, planned: Plan, ledger: Ledger, result: Result, *,
                 dataset: str) -> None:
    """Write the ``public/`` folder of ``run``; ``dataset`` is the ledger's name for what it was trained on."""
    result.publish(run.public, config.run.seed)
    write_json(run.public / "plan.json", planned.to_dict())
    shown = replace(config, ledger=replace(config.ledger, url=None), run=replace(config.run, root=""),  # no places
                    report=replace(config.report, place=None),
                    data=replace(config.data, path=None, schema=config.data.schema and Path(config.data.schema).name,
                                 public=config.data.public and Path(config.data.public).name))
    write_json(run.public / "config.json", asdict(shown))
    write_bytes(run.public / "events.jsonl", write_events(result.events))
    lines = [json.dumps(metric, sort_keys=True) for metric in result.metrics]
    write_bytes(run.public / "metrics.jsonl", "".join(f"{line}\n" for line in lines).encode())
    drawn = NOISE | ({"padding": PADDING} if config.performance.compile and planned.sgd else {})
    rows = max(round(result.rows), 1)
    write_json(run.public / "claim.json", {
        "epsilon_target": config.privacy.epsilon, "delta": planned.delta, "neighbouring": planned.neighbouring,
        "unit": config.data.protects, "n_ref": rows,
        "n_ref_source": "declared" if planned.facts.rows else "measured",
        "private": config.privacy.secret_seed is None and config.privacy.noise,
        "divisor": planned.sgd.sampling_rate * rows if planned.sgd else None,
        "noise": "; ".join(f"{name}: {text}" for name, text in drawn.items()), "replay": REPLAY, "dataset": dataset,
        "ledger_head": ledger.head(), "ledger_rows": len(ledger.rows()),
        "cumulative_epsilon": _finite(ledger.spent(dataset, planned.delta).upper)})


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
