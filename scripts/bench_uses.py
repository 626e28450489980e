#!/usr/bin/env python3
"""What one model of a table is good for besides rows: scores, explanations, missing cells, conditions, latents.

    python scripts/bench_uses.py --train TRAIN.csv --test TEST.csv --schema dpvae/data/tables/adult.yaml \
        --target income --epsilon 1 --out reports/bench/uses

Trains one private model on TRAIN (or takes the finished run of --run; of several, the conditions of each) and
measures, on TEST rows it never saw: scoring speed per core (CPU seconds of this process, one thread) and memory; how
often the cell that was corrupted is the first explanation, beside the best detector that the real rows could train;
imputation of 20 % of the cells, missing at random, against the mode and the marginal; ten conditions, and as many as
RANDOM that nobody chose, against the real subgroups of TRAIN, whose own sampling noise is the floor; the error of rows
compressed to d numbers.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corrupted_cells import LAWS, ceiling, corrupted

from dpvae import api
from dpvae.config import DataConfig, PrivacyConfig, ReportConfig, RunConfig, TrainConfig
from dpvae.data import lake
from dpvae.data.cells import to_axis
from dpvae.data.lake import Cells, Table
from dpvae.data.schema import Schema
from dpvae.data.table import TableCodec
from dpvae.evaluate.latents import own_axes
from dpvae.models.vae import VAE
from dpvae.release.impute import Imputer
from dpvae.release.sample import Sampler, likeliest, load_public, readable
from dpvae.release.score import Density, Ensemble
from dpvae.train.run import find_run

CONDITIONS: list[dict[str, Any]] = [
    {"education": "Doctorate"}, {"race": "Asian-Pac-Islander"}, {"native_country": "Mexico"},
    {"workclass": "Federal-gov"}, {"sex": "Female", "income": ">50K"}, {"age": (18, 19)},
    {"marital_status": "Widowed", "sex": "Female"}, {"occupation": "Farming-fishing", "hours_per_week": (50, 99)},
    {"relationship": "Unmarried", "race": "Black"}, {"education": "Prof-school", "income": ">50K"}]
RANDOM, SHARES = 30, (0.001, 0.1)  # conditions drawn at random, and how much of the rows they hold
HOLES = 0.2
CEILING_SECONDS = 60  # of training: from 36 to 60 seconds it gained less than a point
DRAWS = 20
OTHER_LAWS = {"domain": "any other value of the domain", "marginal": "another value, as often as the column holds it"}


def speed(vae: VAE, schema: Schema, test: Table, root: Path, run: str) -> dict[str, float]:
    density = Density(vae, schema)
    codes = np.tile(density.encode(test), (200_000 // test.rows + 1, 1))[:200_000]
    found: dict[str, float] = {}
    for score in ("elbo", "iwae"):
        density._score(codes[:1000], score)
        start = time.process_time()
        density._score(codes, score)
        found[f"{score}_rows_per_s"] = len(codes) / (time.process_time() - start)
    big = Table(test.names, tuple(Cells(np.tile(c.values, 10), np.tile(c.missing, 10), c.dtype) for c in test.cells))
    start = time.process_time()
    density.score(big, "elbo")
    found["elbo_from_cells_rows_per_s"] = big.rows / (time.process_time() - start)
    start = time.process_time()
    density.explain(test)
    found["explained_rows_per_s"] = test.rows / (time.process_time() - start)
    for rows in (100_000, 1_000_000):
        place = root / f"big-{rows}.parquet"
        with lake.appending(place, "parquet") as append:
            for _ in range(rows // big.rows + 1):
                append(big)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        # VmHWM, not ru_maxrss: a child's begins with what its parent held when it was forked
        code = ("import sys; from dpvae.cli import main; main(sys.argv[1:]); "
                "print([int(s.split()[1]) // 1024 for s in open('/proc/self/status') if s.startswith('VmHWM')][0])")
        said = subprocess.run([sys.executable, "-c", code, "score", f"run={run}", f"data={place}", "score=elbo",
                               "contributions=0", f"to={root / 'scores.parquet'}"], capture_output=True, text=True,
                              check=True).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found[f"verb_{rows}_peak_mb"] = float(said.split()[-1])
        found[f"verb_{rows}_cpu_s"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        place.unlink()
    return found


def explanations(density: Density, train: Table, test: Table) -> dict[str, Any]:
    """One cell of every row of ``test`` corrupted: how often it is the first explanation, by law; and how often a
    detector that learned it from the real rows would name it."""
    found: dict[str, Any] = {"rows": test.rows}
    alarm = Ensemble([density]).threshold(0.01)
    for law in LAWS:
        table, where = corrupted(test, density.schema, law, np.random.default_rng(0))
        hit = density.explain(table).argmax(1) == where
        found[law] = {"top1": float(hit.mean()), "flagged": float((density.score(table) < alarm).mean()),
                      "columns": {name: float(hit[where == j].mean()) for j, name in enumerate(density.schema.names)}}
        if law != "entry":
            found[law]["ceiling"] = ceiling(train, test, density.schema, law, seconds=CEILING_SECONDS)
    return found


def imputation(vae: VAE, schema: Schema, test: Table) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    holes = [rng.random(test.rows) < HOLES for _ in test.names]
    holed = Table(test.names, tuple(Cells(np.where(h, "", c.values), h, c.dtype)
                                    for c, h in zip(test.cells, holes, strict=True)))
    imputer = Imputer(vae, schema, seed=0)
    start = time.process_time()
    draws = [imputer.draw(holed, draw, 0) for draw in range(DRAWS)]
    found: dict[str, Any] = {"cpu_s_per_draw": (time.process_time() - start) / DRAWS, "columns": {}}
    gains, points, ratios = [], [], []
    for j, (column, hole) in enumerate(zip(schema.columns, holes, strict=True)):
        true, seen = test.cells[j].values[hole], test.cells[j].values[~hole]
        drawn = [d.cells[j].values[hole] for d in draws]
        if column.is_numeric:
            plain = [to_axis(column, Cells(v, np.zeros(len(v), bool), "csv")) for v in (true, seen, *drawn)]
            marginal = rng.choice(plain[1], (DRAWS, hole.sum()))
            ours, theirs = (crps(np.stack(ensemble), plain[0]) for ensemble in (plain[2:], marginal))
            ratios.append(1 - ours / theirs)
            found["columns"][column.name] = {"crps": ours, "crps_marginal": theirs}
            continue
        values, counts = np.unique(seen, return_counts=True)
        shares = counts / counts.sum()
        mode = float((true == values[counts.argmax()]).mean())
        single = float(np.mean([(d == true).mean() for d in drawn]))
        most = float((majority(drawn) == true).mean())
        entropy = float(-(shares * np.log2(shares)).sum())
        found["columns"][column.name] = {"entropy_bit": entropy, "mode": mode, "one_draw": single, "most_drawn": most}
        if entropy > 0.5:
            gains.append(most - mode)
            points.append(single - mode)
    return found | {"accuracy_above_mode": float(np.mean(gains)), "one_draw_above_mode": float(np.mean(points)),
                    "crps_below_marginal": float(np.mean(ratios))}


def majority(drawn: list[np.ndarray]) -> np.ndarray:
    columns = np.stack(drawn, 1)
    best = []
    for row in columns:
        values, counts = np.unique(row.astype(str), return_counts=True)
        best.append(values[counts.argmax()])
    return np.array(best, dtype=object)


def crps(ensemble: np.ndarray, true: np.ndarray) -> float:
    """Mean continuous ranked probability score of draws (draws, cells), unbiased in their number (Ferro 2014)."""
    draws = len(ensemble)
    ordered = np.sort(ensemble, 0)
    weights = 2 * np.arange(1, draws + 1) - draws - 1
    between = (weights[:, None] * ordered).sum(0) * 2 / (draws * (draws - 1))
    return float((np.abs(ensemble - true).mean(0) - between / 2).mean())


def subgroup(train: Table, schema: Schema, given: dict[str, Any]) -> np.ndarray:
    """Which rows of ``train`` hold a condition, (rows,)."""
    held = np.ones(train.rows, dtype=bool)
    for name, value in given.items():
        cells = train.column(name)
        if isinstance(value, tuple):
            axis = to_axis(schema.column(name), cells)
            held &= (axis >= value[0]) & (axis <= value[1])
        else:
            held &= cells.values == value
    return held


def at_random(train: Table, schema: Schema) -> list[dict[str, Any]]:
    """Conditions on one column or on two: any category, or the numbers between those of two rows."""
    rng, found = np.random.default_rng(0), list[dict[str, Any]]()
    while len(found) < RANDOM:
        given: dict[str, Any] = {}
        for j in sorted(rng.choice(len(schema.columns), size=rng.integers(1, 3), replace=False)):
            column = schema.columns[j]
            if column.is_numeric:
                axis = to_axis(column, train.take(rng.integers(train.rows, size=2)).cells[j])
                given[column.name] = (int(axis.min()), int(axis.max()))
            else:
                given[column.name] = str((column.categories or ())[rng.integers(len(column.categories or ()))])
        if SHARES[0] <= subgroup(train, schema, given).mean() <= SHARES[1] and given not in found:
            found.append(given)
    return found


def conditions(vae: VAE, schema: Schema, train: Table, wanted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    codec, rng = TableCodec(schema), np.random.default_rng(2)
    codes = codec.encode(train)
    found = []
    for given in wanted:
        held = subgroup(train, schema, given)
        real = codes[held]
        sampler = Sampler(vae, schema, seed=3, given=given)
        ours = codec.encode(readable(schema, sampler.rows(10_000)), "clip")
        free = [j for j, name in enumerate(schema.names) if name not in given]
        again = [real[rng.integers(len(real), size=len(real))] for _ in range(20)]
        floor = float(np.mean([distance(real, other, schema, free) for other in again]))
        tvd = distance(real, ours, schema, free)
        assert sampler.evidence is not None
        found.append({"given": {k: list(v) if isinstance(v, tuple) else v for k, v in given.items()},
                      "real_share": float(held.mean()), "model_share": sampler.evidence.probability,
                      "effective_points": sampler.evidence.effective, "tvd": tvd, "floor": floor,
                      "above_floor": tvd - floor})
    return found


def distance(one: np.ndarray, two: np.ndarray, schema: Schema, columns: list[int]) -> float:
    """Mean total variation distance of the one-way marginals."""
    found = []
    for j in columns:
        a, b = (np.bincount(codes[:, j], minlength=schema.cardinalities[j]) / len(codes) for codes in (one, two))
        found.append(0.5 * np.abs(a - b).sum())
    return float(np.mean(found))


def compression(vae: VAE, schema: Schema, test: Table) -> list[dict[str, float]]:
    density = Density(vae, schema)
    codes = density.encode(test)
    with torch.no_grad():
        latents = vae.latent(torch.as_tensor(codes).long()).double().numpy()
    axes = own_axes(vae, generator=torch.Generator().manual_seed(0))
    found = []
    for d in (0, 1, 2, 4, 8, 16, 32, 64):
        if d > latents.shape[1]:
            continue
        back = axes.restore(axes.compress(latents, d)).astype(np.float32)
        rows = density.encode(readable(schema, likeliest(vae, schema, back)))
        wrong = [float((rows[:, j] != codes[:, j]).mean()) for j, c in enumerate(schema.columns) if not c.is_numeric]
        off = []
        for j, column in enumerate(schema.columns):
            if column.is_numeric:
                real = to_axis(column, test.cells[j])
                guess = to_axis(column, readable(schema, likeliest(vae, schema, back)).cells[j])
                off.append(float(np.abs(real - guess).mean() / np.abs(real - np.median(real)).mean()))
        found.append({"d": d, "categorical_error": float(np.mean(wrong)), "numeric_error": float(np.mean(off))})
    return found


def trained(args: argparse.Namespace, root: Path) -> str:
    rows = sum(1 for _ in args.train.open()) - 1
    run = api.train(TrainConfig(
        data=DataConfig(path=str(args.train), target=args.target, schema=str(args.schema), rows=rows),
        privacy=PrivacyConfig(epsilon=args.epsilon, delta=1e-5), report=ReportConfig(progress="quiet"),
        run=RunConfig(name="uses", root=str(root / "runs"))))
    return str(run.path)


def lines(results: dict[str, Any], command: str) -> list[str]:
    speeds, told, filled = results["speed"], results["explanations"], results["imputation"]
    worst = [f"{max(c['above_floor'] for c in found):.3f}" for found in results["conditions"]]
    drawn = [np.array([c["above_floor"] for c in found]) for found in results["random_conditions"]]
    out = [f"`{command}`", "",
           f"One model of the table at epsilon {results['epsilon']:g}; everything else is free.", "",
           "| bar | wanted | measured |", "|---|---|---|",
           f"| ELBO, rows/s per core (from codes / from cells) | 100,000 | {speeds['elbo_rows_per_s']:,.0f} / "
           f"{speeds['elbo_from_cells_rows_per_s']:,.0f} |",
           f"| IWAE (exact here), rows/s per core | 5,000 | {speeds['iwae_rows_per_s']:,.0f} |",
           f"| explanations, rows/s per core | | {speeds['explained_rows_per_s']:,.0f} |",
           f"| `dpvae score`, peak memory at 100,000 and 1,000,000 rows | constant | "
           f"{speeds['verb_100000_peak_mb']:.0f} MB, {speeds['verb_1000000_peak_mb']:.0f} MB |",
           f"| corrupted cell is the first explanation ({told['rows']:,} rows): an error of entry | 85 % | "
           f"{told['entry']['top1']:.1%} |",
           *(f"| the same: {what} (the best detector that real rows could train: "
             f"{told[law]['ceiling']['top1']:.1%}) | 85 % | {told[law]['top1']:.1%} |"
             for law, what in OTHER_LAWS.items()),
           f"| imputed categories above the mode (most drawn of {DRAWS} / one draw) | 8 points | "
           f"{100 * filled['accuracy_above_mode']:.1f} / {100 * filled['one_draw_above_mode']:.1f} |",
           f"| imputed numbers, CRPS below the marginal's | 10 % | {filled['crps_below_marginal']:.1%} |",
           "| ten conditions, 1-way TVD above the subgroup's sampling floor, worst (of each model) | 0.08 | "
           f"{', '.join(worst)} |",
           f"| {RANDOM} conditions drawn at random, the same: mean / nine in ten / worst / within 0.08 | | "
           f"{'; '.join(map(spread, drawn))} |", "",
           "| condition | real share | model's share | effective points | TVD | floor | above |", "|---" * 7 + "|"]
    out += [f"| {json.dumps(c['given'])} | {c['real_share']:.2%} | {c['model_share']:.2%} | "
            f"{c['effective_points']:.0f} | {c['tvd']:.3f} | {c['floor']:.3f} | {c['above_floor']:.3f} |"
            for c in results["conditions"][0]]
    out += ["", "Rows as d numbers (latents on their principal axes) and back: share of wrong categories; mean "
            "absolute error of numbers in units of the median's.", "",
            "| d | categories wrong | numbers off |", "|---" * 3 + "|"]
    out += [f"| {c['d']} | {c['categorical_error']:.1%} | {c['numeric_error']:.2f} |" for c in results["compression"]]
    return out


def spread(above: np.ndarray) -> str:
    return f"{above.mean():.3f} / {np.quantile(above, 0.9):.3f} / {above.max():.3f} / {(above <= 0.08).mean():.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("train", "test", "schema"):
        parser.add_argument(f"--{name}", type=lambda p: Path(p).resolve(), required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--run", help="finished runs on TRAIN, separated by commas, instead of training one")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = (args.run or trained(args, Path(folder))).split(",")
        models = [load_public(find_run(path).public) for path in paths]
        vae, schema = models[0]
        train, test = lake.read(args.train), lake.read(args.test)
        density = Density(vae, schema)
        results = {"epsilon": args.epsilon, "explanations": explanations(density, train, test),
                   "imputation": imputation(vae, schema, test),
                   "conditions": [conditions(*model, train, CONDITIONS) for model in models],
                   "random_conditions": [conditions(*model, train, at_random(train, schema)) for model in models],
                   "compression": compression(vae, schema, test),
                   "speed": speed(vae, schema, test, Path(folder), paths[0])}
    command = (f"python scripts/bench_uses.py --train {args.train.name} --test {args.test.name} --schema "
               f"{args.schema.name} --target {args.target} --epsilon {args.epsilon:g}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps({"command": command, **results}, indent=1) + "\n")
    args.out.with_suffix(".md").write_text("\n".join(lines(results, command)) + "\n")
    print("\n".join(lines(results, command)))


if __name__ == "__main__":
    main()
