#!/usr/bin/env python3
"""How the cost of a private step grows: with rows, columns, batch and parameters, one at a time.

    python scripts/bench_scale.py out=reports/bench/scale.json

Around a table of 100,000 rows and 12 columns, a batch of 1024 and 218 thousand parameters. Milliseconds are the median
process CPU time of a whole private step (clipping=fast) and, beside it, of an ordinary step of the same model.

Options: vary=rows,columns,batch,parameters  rounds=7  threads=1  out=FILE.json
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from bench_models import Model, table
from bench_step import milliseconds, plain_step

from dpvae.privacy.noise import SecretKey
from dpvae.privacy.plan import SgdPlan
from dpvae.train.dpsgd import PrivateSteps

USUAL = {"rows": 100_000, "columns": 12, "batch": 1024, "hidden": 256}
SWEEPS = {"rows": ("rows", (10_000, 100_000, 1_000_000, 10_000_000)), "columns": ("columns", (6, 12, 48, 192)),
          "batch": ("batch", (64, 256, 1024, 4096)), "parameters": ("hidden", (64, 128, 256, 512, 1024))}


def private_ms(model: Model, size: dict[str, int], rounds: int) -> float:
    """The median private step on a table of that many rows."""
    records = model.records(1024).repeat(-(-size["rows"] // 1024), 1)[:size["rows"]]
    plan = SgdPlan(noise_multiplier=1.0, sampling_rate=size["batch"] / size["rows"], steps=1, clip_norm=1.0,
                   latent_samples=1)
    steps = PrivateSteps(model.module, records, model.loss, plan=plan, rows=size["rows"], key=SecretKey.generate(),
                         learning_rate=1e-4, microbatch=None, latents=model.latents,
                         example=lambda count, generator: model.records(count))

    def step(number: int) -> None:
        steps.step(number, 1.0)

    times = [milliseconds(step, number, records.device) for number in range(rounds + 2)]
    steps.close()
    return statistics.median(times[2:])


def plain_ms(model: Model, size: dict[str, int], rounds: int) -> float:
    step, cpu = plain_step(model, size["batch"], torch.device("cpu")), torch.device("cpu")
    return statistics.median([milliseconds(step, number, cpu) for number in range(rounds + 2)][2:])


def main() -> None:
    options = {"vary": ",".join(SWEEPS), "rounds": "7", "threads": "1", "out": ""}
    options |= dict(argument.split("=", 1) for argument in sys.argv[1:])
    torch.set_num_threads(int(options["threads"]))
    results: dict[str, Any] = {"command": "python scripts/bench_scale.py " + " ".join(sys.argv[1:])}
    for name in options["vary"].split(","):
        knob, values = SWEEPS[name]
        for value in values:
            size = USUAL | {knob: value}
            torch.manual_seed(0)
            model = table(columns=size["columns"], hidden=size["hidden"])
            parameters = sum(p.numel() for p in model.module.parameters())
            rounds = int(options["rounds"])
            private, plain = private_ms(model, size, rounds), plain_ms(model, size, rounds)
            entry = {**size, "parameters": parameters, "private_ms": round(private, 2), "plain_ms": round(plain, 2),
                     "ratio": round(private / plain, 2)}
            results.setdefault(name, []).append(entry)
            print(name, json.dumps(entry))
    if options["out"]:
        Path(options["out"]).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
