#!/usr/bin/env python3
"""AUROC of dpvae's scores on tables with known anomalies, with and without privacy, beside three baselines.

    python scripts/bench_anomaly.py --data FOLDER_OF_NPZ --seeds 0 1 2 3 4 --out reports/bench/anomaly

Each file holds X (rows, columns) and y (1 = anomaly). Protocol S trains on half of the normal rows and scores the rest;
protocol U trains on all rows, anomalies among them, and scores them. `off` is trainer=density with privacy=off (NOT
PRIVATE); `private` is epsilon 1 where the file has 5,000 rows or more, else 3. Public about a table is what its
publishers say of it: columns scaled to 0..1, 8-bit pixels, or (declared for `private` alone) standardised, then
-20..20, and what lies outside is clipped. The rest is measured under the same epsilon. Baselines see the exact rows:
the sum of squared standardised columns (what a collapsed VAE scores), the distance to the 5th nearest neighbour, an
isolation forest.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import NearestNeighbors

from dpvae import DPVAE
from dpvae.evaluate.anomaly import Split, auroc, clean_split, collapsed, contaminated_split, standardised

PUBLISHED = {"thyroid": (0, 1), "pendigits": (0, 1), "satellite": (0, 255)}
STANDARDISED = {"cardio": (-20, 20), "mammography": (-20, 20)}  # declared where measuring would cost
FIGURES = ("off", "private", "collapsed", "knn", "iforest")
DELTA = 1e-5


def score(split: Split, name: str, *, epsilon: float, off: bool, seed: int) -> np.ndarray:
    """Surprise of each test row, in nats."""
    facts: dict[str, Any] = {"kind": "continuous", "decimals": 9, "heaps": []}
    known = PUBLISHED if off else PUBLISHED | STANDARDISED
    if name in known:
        facts |= dict(zip(("min", "max"), known[name], strict=True))
    schema = {"columns": {f"x{j}": facts for j in range(split.train.shape[1])}}
    options = {"trainer.sleep_steps": 1, "trainer.metric_share": 1e-6, "data.outside": "clip", "privacy.noise": not off}
    model = DPVAE(20.0 if off else epsilon, delta=DELTA, rows=len(split.train), trainer="density", seed=seed,
                  options=options)
    return -model.fit(split.train, schema=schema).score_samples(split.test)


def neighbours(split: Split, seed: int) -> np.ndarray:
    train, test = standardised(split)
    return NearestNeighbors(n_neighbors=5).fit(train).kneighbors(test)[0][:, -1]


def forest(split: Split, seed: int) -> np.ndarray:
    return -IsolationForest(random_state=seed).fit(split.train).score_samples(split.test)


def one(path: Path, protocol: str, seed: int) -> dict[str, Any]:
    held = np.load(path)
    name = path.stem.partition("_")[2]
    rows, labels = held["X"].astype(np.float64), held["y"].astype(np.int64)
    make: Callable[..., Split] = clean_split if protocol == "S" else contaminated_split
    split = make(rows, labels, rng=np.random.default_rng(seed))
    epsilon = 1.0 if len(rows) >= 5000 else 3.0
    result: dict[str, Any] = {"table": name, "protocol": protocol, "seed": seed, "epsilon": epsilon,
                              "train_rows": len(split.train), "columns": rows.shape[1]}
    judges: dict[str, Callable[[], np.ndarray]] = {
        "off": lambda: score(split, name, epsilon=epsilon, off=True, seed=seed),
        "private": lambda: score(split, name, epsilon=epsilon, off=False, seed=seed),
        "collapsed": lambda: collapsed(split), "knn": lambda: neighbours(split, seed),
        "iforest": lambda: forest(split, seed)}
    for figure, judge in judges.items():
        start = time.process_time()
        result[figure] = 100 * auroc(split.anomaly, judge())
        result[f"{figure}_cpu_s"] = time.process_time() - start
    return result


def table(runs: list[dict[str, Any]], protocol: str) -> list[str]:
    names = list(dict.fromkeys(run["table"] for run in runs))
    lines = ["| table | epsilon | " + " | ".join(FIGURES) + " |", "|---" * (len(FIGURES) + 2) + "|"]
    means: dict[str, list[float]] = {figure: [] for figure in FIGURES}
    for name in names:
        held = [run for run in runs if run["table"] == name and run["protocol"] == protocol]
        cells = []
        for figure in FIGURES:
            values = np.array([run[figure] for run in held])
            means[figure].append(float(values.mean()))
            cells.append(f"{values.mean():.1f} ± {values.std():.1f}")
        lines.append(f"| {name} | {held[0]['epsilon']:g} | " + " | ".join(cells) + " |")
    lines.append("| **mean** | | " + " | ".join(f"**{np.mean(means[figure]):.2f}**" for figure in FIGURES) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs = []
    for protocol in ("S", "U"):
        for path in sorted(args.data.glob("*.npz")):
            for seed in args.seeds:
                runs.append(one(path, protocol, seed))
                print({k: round(v, 1) if isinstance(v, float) else v for k, v in runs[-1].items()}, flush=True)
    command = f"python scripts/bench_anomaly.py --data {args.data.name} --seeds {' '.join(map(str, args.seeds))}"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps({"command": command, "runs": runs}, indent=1) + "\n")
    lines = [f"`{command}`", "", f"AUROC x 100, mean ± sd of {len(args.seeds)} seeds. `off` is NOT PRIVATE "
             f"(privacy=off); `private` has the epsilon named, delta {DELTA:g}, everything measured included; "
             "`collapsed`, `knn` and `iforest` see the exact rows.", "",
             "## Trained on normal rows (S)", "", *table(runs, "S"), "",
             "## Trained on all rows, anomalies among them (U)", "", *table(runs, "U")]
    args.out.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
