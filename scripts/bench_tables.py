#!/usr/bin/env python3
"""Train, release, verify and judge: quality and cost on tables, for several epsilons and seeds.

    python scripts/bench_tables.py --train TRAIN.csv --test TEST.csv --target income --judge JUDGE.py \
        --schema dpvae/data/tables/adult.yaml --epsilon 1 3 10 --seeds 0 1 2 --out reports/bench/adult

Every run is the command line a user would type, in its own process: CPU seconds and peak memory are the kernel's
count of that whole process. The judge is any program with the options --real-train, --real-test, --synth, --target
that prints JSON; it sees only the released Parquet. Writes OUT.json and OUT.md (median of the seeds).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FIGURES = ("gb_auc", "lr_auc", "tvd_2way", "tvd_1way", "tvd_1way_max", "cpu_s", "peak_mb")


def measured(command: list[str], folder: Path) -> dict[str, float]:
    """Run ``command`` in ``folder``; CPU seconds and peak resident memory of the process."""
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"failed: {shlex.join(command)}\n{said}")
    return {"cpu_s": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss / 1024}


def one_run(args: argparse.Namespace, epsilon: float, seed: int) -> dict[str, float]:
    """One training, release, verification and judgement."""
    rows = sum(1 for _ in args.train.open()) - 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dpvae = [sys.executable, "-m", "dpvae"]
        options = [f"data={args.train}", f"data.target={args.target}", f"data.rows={rows}",
                   f"privacy.epsilon={epsilon}", f"privacy.delta={args.delta}", "run.name=bench", f"run.seed={seed}",
                   "report.progress=quiet"]
        options += [f"data.schema={args.schema}"] if args.schema else []
        cost = measured([*dpvae, "train", *options, *args.override], folder)
        measured([*dpvae, "release", "run=bench", f"rows={rows}", "to=out", f"seed={seed}"], folder)
        measured([*dpvae, "verify", "out"], folder)
        (synth,) = (folder / "out" / "data").glob("*.parquet")
        judged = subprocess.run([sys.executable, str(args.judge), "--real-train", str(args.train), "--real-test",
                                 str(args.test), "--synth", str(synth), "--target", args.target, "--no-dcr"],
                                capture_output=True, check=True)
    return {**figures(json.loads(judged.stdout)), **cost}


def figures(judged: dict[str, Any]) -> dict[str, float]:
    """The judge's numbers this report keeps."""
    fidelity = judged["fidelity"]
    return {"gb_auc": judged["tstr"]["gb"]["roc_auc"], "lr_auc": judged["tstr"]["lr"]["roc_auc"],
            **{name: fidelity[name] for name in ("tvd_2way", "tvd_1way", "tvd_1way_max")}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("train", "test", "judge"):
        parser.add_argument(f"--{name}", type=lambda p: Path(p).resolve(), required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--schema", type=lambda p: Path(p).resolve(), help="public schema; without it all is surveyed")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1.0, 3.0, 10.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", dest="override", nargs="*", default=[], help="further key=value for dpvae train")
    args = parser.parse_args()
    runs = []
    for epsilon in args.epsilon:
        for seed in args.seeds:
            runs.append({"epsilon": epsilon, "seed": seed, **one_run(args, epsilon, seed)})
            print(json.dumps({k: round(v, 4) for k, v in runs[-1].items()}), flush=True)
    write(args, runs)


def write(args: argparse.Namespace, runs: list[dict[str, float]]) -> None:
    """OUT.json with every run, OUT.md with medians."""
    shown = ["python scripts/bench_tables.py", f"--train {args.train.name} --test {args.test.name}",
             f"--target {args.target}", f"--schema {args.schema.name}" if args.schema else "",
             f"--epsilon {' '.join(f'{e:g}' for e in args.epsilon)} --seeds {' '.join(map(str, args.seeds))}",
             f"--delta {args.delta:g}", *args.override]
    command = " ".join(part for part in shown if part)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps({"command": command, "runs": runs}, indent=1) + "\n")
    lines = [f"`{command}`", "", f"Median of {len(args.seeds)} seeds.", "",
             "| epsilon | " + " | ".join(FIGURES) + " |", "|---" * (len(FIGURES) + 1) + "|"]
    for epsilon in args.epsilon:
        chosen = [run for run in runs if run["epsilon"] == epsilon]
        cells = [f"{statistics.median(run[name] for run in chosen):.{0 if name in ('cpu_s', 'peak_mb') else 4}f}"
                 for name in FIGURES]
        lines.append(f"| {epsilon:g} | " + " | ".join(cells) + " |")
    args.out.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
