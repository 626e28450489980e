#!/usr/bin/env python3
"""Make tables whose structure is known, for tests and benchmarks: every row is drawn from a written-down law.

    python scripts/make_tables.py clusters --rows 50000 --columns 200 --strength 0.3 --seed 0 --to lab/clusters
    python scripts/make_tables.py parity --rows 50000 --columns 20 --order 5 --to lab/parity

    clusters   a hidden cluster moves every column a little; the label is a function of the cluster alone
    crossed    two hidden factors, each moving half of the columns; the label is their exclusive or
    parity     the label is the exclusive or of ``order - 1`` of the other columns; every smaller marginal is uniform
    scm        a random acyclic graph of structural equations; the label is one of its last nodes
    copula     normal copula of ``clusters`` factors under skewed margins; the label is one factor above its median

Writes TO-train.csv and TO-test.csv (or .parquet), the test rows from the same law; columns ``c000`` ... and ``label``
(``no`` or ``yes``). The same arguments give the same tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

Frame = pd.DataFrame
LABELS = np.array(["no", "yes"])


def clusters(rng: np.random.Generator, rows: int, columns: int, *, clusters: int = 20, strength: float = 0.3,
             numeric: float = 0.3, **_: float) -> Frame:
    """Cluster ``k`` shifts each log-odds, or each mean in units of its sd, by ``strength`` times a normal number."""
    label_of = _halves(rng, clusters)
    hidden = rng.integers(0, clusters, rows)
    return _driven(rng, [hidden] * columns, [clusters] * columns, strength, numeric).assign(
        label=LABELS[label_of[hidden]])


def crossed(rng: np.random.Generator, rows: int, columns: int, *, strength: float = 0.3, numeric: float = 0.3,
            **_: float) -> Frame:
    """No column alone tells anything of the label: it is the exclusive or of two hidden coins."""
    first, second = rng.integers(0, 2, (2, rows))
    hidden = [first if j % 2 else second for j in range(columns)]
    return _driven(rng, hidden, [2] * columns, strength, numeric).assign(label=LABELS[first ^ second])


def parity(rng: np.random.Generator, rows: int, columns: int, *, order: int = 5, flips: float = 0.0,
           numeric: float = 0.0, **_: float) -> Frame:
    """``columns`` fair coins; the label is the parity of ``order - 1`` of them, flipped with chance ``flips``.

    A numeric column is a normal number whose sign is the coin.
    """
    coins = rng.integers(0, 2, (rows, columns))
    chosen = rng.choice(columns, order - 1, replace=False)
    label = coins[:, chosen].sum(1) % 2 ^ (rng.random(rows) < flips)
    sizes = np.abs(rng.standard_normal((rows, columns)))
    table = {_name(j): np.round((2 * coins[:, j] - 1) * sizes[:, j], 4) if j < numeric * columns else coins[:, j]
             for j in rng.permutation(columns).tolist()}
    return pd.DataFrame(dict(sorted(table.items()))).assign(label=LABELS[label])


def scm(rng: np.random.Generator, rows: int, columns: int, *, strength: float = 1.0, numeric: float = 0.5,
        **_: float) -> Frame:
    """Each node is a random nonlinear function of up to three earlier ones, plus noise; some are then cut into four."""
    nodes = np.empty((rows, columns + 1))
    for j in range(columns + 1):
        parents = rng.choice(j, min(j, int(rng.integers(1, 4))), replace=False) if j else np.zeros(0, int)
        signal = np.zeros(rows)
        if len(parents):
            signal = np.tanh(nodes[:, parents] @ rng.normal(0, 1.5, len(parents)))
            signal += nodes[:, parents].prod(1).clip(-2, 2) * (rng.random() < 0.3)
        nodes[:, j] = _standard(strength * signal + rng.normal(0, 0.7, rows))
    table = {_name(j): np.round(nodes[:, j], 3) if j < numeric * columns else _quarters(nodes[:, j])
             for j in range(columns)}
    return pd.DataFrame(table).assign(label=LABELS[(nodes[:, -1] > 0).astype(int)])


def copula(rng: np.random.Generator, rows: int, columns: int, *, clusters: int = 8, strength: float = 1.0,
           numeric: float = 0.7, **_: float) -> Frame:
    """Factors with normal loadings, margins from normal to log-normal; discrete columns are cut into four."""
    factors = rng.standard_normal((rows, clusters))
    latent = factors @ rng.normal(0, strength / np.sqrt(clusters), (clusters, columns))
    latent = (latent + rng.standard_normal((rows, columns))) / np.sqrt(1 + strength**2)
    skew = rng.uniform(0, 1, columns)
    table = {_name(j): np.round(np.expm1(skew[j] * latent[:, j]) / max(skew[j], 1e-3), 3) if j < numeric * columns
             else _quarters(latent[:, j]) for j in range(columns)}
    return pd.DataFrame(table).assign(label=LABELS[(factors[:, 0] > 0).astype(int)])


KINDS: dict[str, Callable[..., Frame]] = {f.__name__: f for f in (clusters, crossed, parity, scm, copula)}


def make(kind: str, *, rows: int, columns: int, seed: int, **knobs: float) -> Frame:
    """``rows`` rows of ``columns`` columns and a label, from the law ``kind`` with parameters drawn from ``seed``."""
    return KINDS[kind](np.random.default_rng(seed), rows, columns, **knobs)


def _driven(rng: np.random.Generator, hidden: list[np.ndarray], levels: list[int], strength: float,
            numeric: float) -> Frame:
    """Columns that each see one hidden value; a share ``numeric`` of them real, the others of 2 to 6 categories."""
    table: dict[str, np.ndarray] = {}
    for j, (values, count) in enumerate(zip(hidden, levels, strict=True)):
        if rng.random() < numeric:
            shift = rng.normal(0, strength, count)
            table[_name(j)] = np.round(10 + 3 * (shift[values] + rng.standard_normal(len(values))), 2)
        else:
            size = int(rng.integers(2, 7))
            logits = rng.normal(0, 0.5, size) + strength * rng.normal(0, 1, (count, size))
            noise = rng.gumbel(size=(len(values), size))
            table[_name(j)] = np.array([f"v{i}" for i in range(size)])[(logits[values] + noise).argmax(1)]
    return pd.DataFrame(table)


def _halves(rng: np.random.Generator, count: int) -> np.ndarray:
    """A label for each of ``count`` clusters, half of them one."""
    return rng.permutation(np.arange(count) % 2)


def _quarters(values: np.ndarray) -> np.ndarray:
    cuts = np.quantile(values, [0.25, 0.5, 0.75])
    return np.array([f"q{i}" for i in range(4)])[np.searchsorted(cuts, values)]


def _standard(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.std()


def _name(j: int) -> str:
    return f"c{j:03d}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--rows", type=int, default=50_000, help="of the train table")
    parser.add_argument("--test-rows", type=int, default=10_000)
    parser.add_argument("--columns", type=int, default=200, help="besides the label")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parquet", action="store_true")
    parser.add_argument("--to", type=Path, required=True, help="stem of the files")
    for name, kind in (("clusters", int), ("order", int), ("strength", float), ("flips", float), ("numeric", float)):
        parser.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS)
    args = vars(parser.parse_args())
    kind, rows, to, parquet = (args.pop(name) for name in ("kind", "rows", "to", "parquet"))
    table = make(kind, rows=rows + args.pop("test_rows"), **args)
    to.parent.mkdir(parents=True, exist_ok=True)
    for part, frame in (("train", table[:rows]), ("test", table[rows:])):
        path = to.parent / f"{to.name}-{part}{'.parquet' if parquet else '.csv'}"
        frame.to_parquet(path, index=False) if parquet else frame.to_csv(path, index=False)
        print(path)


if __name__ == "__main__":
    main()
