#!/usr/bin/env python3
"""Where does which part of the budget pay? Anchors alone, joint DP-SGD and the default way, on known tables.

    python scripts/bench_routing.py --judge JUDGE.py --rows 20000 --epsilon 1 3 --out reports/bench/routing

Tables: ``narrow`` (a structural model of 12 columns; a real one with --real TRAIN.csv TEST.csv TARGET), ``medium``
(a structural model of 32), ``wide`` (200 columns moved by 20 hidden clusters), ``crossed`` (200 columns, the label is
the exclusive or of two hidden coins) and ``parity`` (the label is the exclusive or of four of 20 columns).

Every cell is one training by the command line in a process of its own and the judge's numbers on what it released.
One seed, and as many rows as --rows says: this shows which way to go, not how well it goes; for that there is
scripts/bench_tables.py. Writes OUT.json and OUT.md after every cell; cells that OUT.json has are not run again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from bench_tables import figures, measured
from make_tables import make

TABLES: dict[str, tuple[str, dict[str, float]]] = {
    "narrow": ("scm", {"columns": 12}),
    "medium": ("scm", {"columns": 32}),
    "wide": ("clusters", {"columns": 200, "strength": 0.5}),
    "crossed": ("crossed", {"columns": 200, "strength": 0.5}),
    "parity": ("parity", {"columns": 20, "order": 5}),
}
ARMS = {"anchors alone": ["trainer.anchor_share=1"], "joint DP-SGD": ["trainer=joint"], "default": []}
SHOWN = ("gb_auc", "lr_auc", "gb_accuracy", "tvd_2way", "cpu_s", "peak_mb")
TEST_ROWS = 5000


def tables(args: argparse.Namespace, name: str) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Train rows, test rows, target."""
    if name == "narrow" and args.real:
        train, test = (pd.read_csv(path, skipinitialspace=True) for path in args.real[:2])
        return train, test, args.real[2]
    kind, knobs = TABLES[name]
    whole = make(kind, rows=args.rows + TEST_ROWS, seed=args.seed, **knobs)
    return whole[:args.rows], whole[args.rows:], "label"


def judged(args: argparse.Namespace, folder: Path, synth: Path, target: str) -> dict[str, float]:
    """The judge's figures on ``synth``."""
    said = subprocess.run([sys.executable, str(args.judge), "--real-train", str(folder / "train.csv"), "--real-test",
                           str(folder / "test.csv"), "--synth", str(synth), "--target", target, "--no-dcr"],
                          capture_output=True, check=True).stdout
    found = json.loads(said)
    return {**figures(found), "gb_accuracy": found["tstr"]["gb"]["accuracy"]}


def cell(args: argparse.Namespace, name: str, arm: str, epsilon: float) -> dict[str, Any]:
    """One training and its judgement; epsilon 0: the real rows themselves, the ceiling."""
    train, test, target = tables(args, name)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        train.to_csv(folder / "train.csv", index=False)
        test.to_csv(folder / "test.csv", index=False)
        if arm == "real rows":
            return judged(args, folder, folder / "train.csv", target)
        dpvae = [sys.executable, "-m", "dpvae"]
        knobs = [f"data.target={target}", f"data.rows={len(train)}", f"privacy.epsilon={epsilon}",
                 f"privacy.delta={args.delta}", f"run.seed={args.seed}", *ARMS[arm]]
        cost, _ = measured([*dpvae, "train", "data=train.csv", "run.name=bench", "performance.threads=1",
                            "report.progress=quiet", *knobs], folder)
        measured([*dpvae, "release", "run=bench", f"rows={len(train)}", "to=out"], folder)
        (synth,) = (folder / "out" / "data").glob("*.parquet")
        return {**judged(args, folder, synth, target), **cost}


def command(args: argparse.Namespace) -> str:
    real = f" --real {Path(args.real[0]).name} {Path(args.real[1]).name} {args.real[2]}" if args.real else ""
    return (f"python scripts/bench_routing.py --rows {args.rows} --epsilon {' '.join(f'{e:g}' for e in args.epsilon)} "
            f"--seed {args.seed} --delta {args.delta:g} --tables {' '.join(args.tables)}{real}"
            + (f" --ways {' '.join(map(shlex.quote, args.ways))}" if args.ways != list(ARMS) else ""))


def write(args: argparse.Namespace, cells: list[dict[str, Any]]) -> None:
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps({"command": command(args), "cells": cells}, indent=1) + "\n")
    lines = [f"`{command(args)}`", "", f"{args.rows:,} rows, one seed.", "",
             "| table | epsilon | way | " + " | ".join(SHOWN) + " |", "|---" * (len(SHOWN) + 3) + "|"]
    for one in cells:
        shown = [f"{one[name]:.{0 if name in ('cpu_s', 'peak_mb') else 3}f}" if name in one else "" for name in SHOWN]
        lines.append(f"| {one['table']} | {one['epsilon'] or ''} | {one['way']} | " + " | ".join(shown) + " |")
    args.out.with_suffix(".md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", type=lambda p: Path(p).resolve(), required=True)
    parser.add_argument("--real", nargs=3, metavar=("TRAIN", "TEST", "TARGET"), help="a narrow table of your own")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--ways", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1.0, 3.0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    known = args.out.with_suffix(".json")
    cells: list[dict[str, Any]] = json.loads(known.read_text())["cells"] if known.is_file() else []
    done = {(one["table"], one["way"], one["epsilon"]) for one in cells}
    for name in args.tables:
        for arm, epsilon in [("real rows", 0.0), *((arm, e) for e in args.epsilon for arm in args.ways)]:
            if (name, arm, epsilon) not in done:
                cells.append({"table": name, "way": arm, "epsilon": epsilon, **cell(args, name, arm, epsilon)})
                print(json.dumps(cells[-1]), flush=True)
                write(args, cells)


if __name__ == "__main__":
    main()
