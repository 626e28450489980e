#!/usr/bin/env python3
"""Synthetic images judged: classifiers trained on them, distances, coverage, copies; by epsilon, with parts left out.

    python scripts/bench_images.py --judge JUDGE.py --data mnist=mnist.npz --epsilons 1 10 --out reports/bench/images

A run is one `dpvae train`, one `dpvae release` of as many images as there are, and one judge. An arm is a set of
settings; `moments` leaves DP-SGD out. Runs that are in OUT.json already are kept, so a long benchmark may be made in
pieces; `--only-report` writes the tables and the picture again. The judge prints a JSON object with tstr.cnn, tstr.mlp,
tstr.logreg, judge_fd, coverage, precision, copy_share (and the ceiling of real images).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ARMS = {"default": [], "moments": ["trainer.anchor_share=1.0"], "K8": ["trainer.latent_samples=8"],
        "joint": ["trainer=joint"]}
FIGURES = (("CNN", "cnn"), ("MLP", "mlp"), ("LogReg", "logreg"), ("judge_fd", "judge_fd"), ("coverage", "coverage"),
           ("precision", "precision"), ("copies", "copy_share"))
COLOURS = ("#2f6fb0", "#c4572c", "#3f8f4f", "#8a5bb0", "#b08a2f", "#5f6b76", "#b0436f", "#3a9c9c")


def spend(*command: str) -> float:
    """Run a command; its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL,
                   env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def one(name: str, path: Path, epsilon: float, seed: int, arm: str, judge: Path, count: int) -> dict[str, Any]:
    """One run and its figures; accuracies and shares in percent."""
    with tempfile.TemporaryDirectory() as folder:
        runs, release, verdict = f"{folder}/runs", f"{folder}/release", f"{folder}/verdict.json"
        train = spend("-m", "dpvae", "train", "data=images", f"data.path={path}", f"privacy.epsilon={epsilon}",
                      "privacy.delta=1e-5", f"run.root={runs}", "run.name=run", f"run.seed={seed}",
                      "report.progress=quiet", *ARMS[arm])
        start = time.time()
        draw = spend("-m", "dpvae", "release", "run=run", f"root={runs}", f"rows={count}", f"to={release}")
        wall = time.time() - start
        spend(str(judge), "--real-train", str(path), "--real-test", str(path), "--synth", f"{release}/data/images.npz",
              "--out", verdict)
        found = json.loads(Path(verdict).read_text())
    figures = {"cnn": 100 * found["tstr"]["cnn"], "mlp": 100 * found["tstr"]["mlp"],
               "logreg": 100 * found["tstr"]["logreg"], "judge_fd": found["judge_fd"], "coverage": found["coverage"],
               "precision": found["precision"], "copy_share": found["copy_share"]}
    ceiling = {name: 100 * value for name, value in found["ceiling"].items()} | {"judge_fd": found["judge_fd_floor"]}
    return {"data": name, "epsilon": epsilon, "seed": seed, "arm": arm, "train_cpu_s": round(train, 1),
            "release_cpu_s": round(draw, 1), "release_wall_s": round(wall, 1), **figures, "ceiling": ceiling}


def key(run: dict[str, Any]) -> tuple[Any, ...]:
    return run["data"], run["arm"], run["epsilon"], run["seed"]


def median(values: list[float]) -> float:
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def grouped(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The median over seeds of every (data, arm, epsilon)."""
    found = []
    for name in dict.fromkeys(key(run)[:3] for run in sorted(runs, key=key)):
        held = [run for run in runs if key(run)[:3] == name]
        found.append({"data": name[0], "arm": name[1], "epsilon": name[2], "seeds": len(held)} | {
            figure: median([run[figure] for run in held]) for _, figure in (*FIGURES, ("", "train_cpu_s"))})
    return found


def report(out: Path) -> None:
    """OUT.md and OUT.svg from OUT.json."""
    held = json.loads(out.with_suffix(".json").read_text())
    rows = grouped(held["runs"])
    lines = [f"`{held['command']}`", "",
             "Classifiers are trained on 10,000 synthetic images and tested on real ones (percent right); judge_fd is "
             "a Frechet distance in a small network's features (lower is better); medians over the seeds."
             + held.get("note", ""), "",
             "| images | arm | epsilon | seeds | " + " | ".join(name for name, _ in FIGURES) + " | train CPU s |",
             "|---" * (5 + len(FIGURES)) + "|"]
    for row in rows:
        cells = [f"{row[figure]:.1f}" if figure in ("cnn", "mlp", "logreg") else f"{row[figure]:.2f}"
                 for _, figure in FIGURES]
        lines.append(f"| {row['data']} | {row['arm']} | {row['epsilon']:g} | {row['seeds']} | " + " | ".join(cells)
                     + f" | {row['train_cpu_s']:.0f} |")
    for name in dict.fromkeys(run["data"] for run in held["runs"]):
        real = next(run for run in held["runs"] if run["data"] == name)["ceiling"]
        lines.append(f"| {name} | real images | | | {real['cnn']:.1f} | {real['mlp']:.1f} | {real['logreg']:.1f} | "
                     f"{real['judge_fd']:.2f} | | | | |")
    out.with_suffix(".md").write_text("\n".join(lines) + "\n")
    near = [row for row in rows if row["arm"] != "joint"]  # it lies so far off that the others would be one line
    out.with_suffix(".svg").write_text(picture(near, held["command"]))


def picture(rows: list[dict[str, Any]], command: str) -> str:
    """Accuracy and distance by epsilon, a line for each set and arm."""
    panels = [("cnn", "CNN trained on synthetic images, % right"), ("judge_fd", "judge_fd (lower is better)")]
    lines = list(dict.fromkeys((row["data"], row["arm"]) for row in rows))
    body = [piece for panel, (figure, title) in enumerate(panels)
            for piece in drawn(rows, figure, title, 50 + panel * 400, lines)]
    for number, (data, arm) in enumerate(lines):
        left, top = 50 + (number % 3) * 255, 290 + (number // 3) * 20
        body.append(f'<rect x="{left}" y="{top - 9}" width="12" height="10" fill="{COLOURS[number % len(COLOURS)]}"/>'
                    f'<text x="{left + 18}" y="{top}">{data}, {arm}</text>')
    height = 310 + (len(lines) - 1) // 3 * 20
    return (f"<?made-by {command}?>\n"  # a comment may not hold two dashes
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 {height}" font-family="sans-serif" '
            f'font-size="12" role="img" aria-label="Synthetic images by epsilon"><rect width="100%" height="100%" '
            f'fill="#fff"/>{"".join(body)}</svg>\n')


def drawn(rows: list[dict[str, Any]], figure: str, title: str, left: int, lines: list[tuple[str, str]]) -> list[str]:
    """One panel: a line for each (images, arm), epsilons at equal distances."""
    top, width, height = 40, 320, 200
    epsilons = sorted({row["epsilon"] for row in rows})
    values = [row[figure] for row in rows]
    room = (max(values) - min(values)) * 0.1 or 1.0
    low, high = min(values) - room, max(values) + room
    place = {e: left + 10 + i / max(len(epsilons) - 1, 1) * (width - 20) for i, e in enumerate(epsilons)}

    def up(value: float) -> float:
        return top + height - (value - low) / (high - low) * height

    body = [f'<text x="{left}" y="{top - 14}" font-weight="600">{title}</text>',
            f'<path d="M{left} {top}V{top + height}H{left + width}" fill="none" stroke="#999"/>']
    body += [f'<text x="{x:.1f}" y="{top + height + 18}" text-anchor="middle">eps {e:g}</text>'
             for e, x in place.items()]
    body += [f'<text x="{left - 6}" y="{up(v) + 4:.1f}" text-anchor="end">{v:.1f}</text>'
             for v in (low + room, (low + high) / 2, high - room)]
    for number, line in enumerate(lines):
        points = [(place[row["epsilon"]], up(row[figure])) for row in rows if (row["data"], row["arm"]) == line]
        path, colour = " ".join(f"{x:.1f},{y:.1f}" for x, y in points), COLOURS[number % len(COLOURS)]
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points]
    return body


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--data", nargs="+", default=[], metavar="NAME=FILE")
    parser.add_argument("--epsilons", type=float, nargs="+", default=[1.0, 10.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["default"])
    parser.add_argument("--rows", type=int, default=60_000, help="images to release")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only-report", action="store_true")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, on which `spend` ends its command, too
    file = args.out.with_suffix(".json")
    held = json.loads(file.read_text()) if file.is_file() else {"runs": []}
    runs = held["runs"]
    command = "python scripts/bench_images.py --judge JUDGE --data mnist=mnist.npz ... --arms default moments ..."
    for text in args.data if not args.only_report else ():
        name, _, path = text.partition("=")
        for epsilon in args.epsilons:
            for arm in args.arms:
                for seed in args.seeds:
                    if (name, arm, epsilon, seed) in map(key, runs):
                        continue
                    runs.append(one(name, Path(path), epsilon, seed, arm, args.judge, args.rows))
                    print(runs[-1], flush=True)
                    args.out.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(json.dumps({"command": command} | held, indent=1) + "\n")
    report(args.out)


if __name__ == "__main__":
    main()
