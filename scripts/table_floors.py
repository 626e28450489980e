#!/usr/bin/env python3
r"""Floors: private generators so simple that anything worth its name must beat them. No network, a few CPU seconds.

    python scripts/table_floors.py tan --train TRAIN.csv --target income --schema SCHEMA.yaml --epsilon 1 \
        --out OUT.parquet

    independent    noisy one-way tables; every column is drawn by itself
    naive_bayes    noisy tables of each column with the target; columns independent given the target
    tan            tree-augmented naive Bayes (Friedman et al. 1997): each column may have one more parent, chosen by
                   noisy scores, and its noisy table with parent and target

They are as private as dpvae's own runs: the same survey closes what the schema leaves open, all releases together are
calibrated to (epsilon, delta) and priced by the same accountant, noise is secret. They know what dpvae knows: the
schema, the number of rows, which column is the target.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpvae.config import TrainerConfig
from dpvae.data import lake
from dpvae.data.lake import Cells, Table
from dpvae.data.schema import Schema
from dpvae.data.survey import survey, survey_events, survey_steps
from dpvae.data.table import TableCodec, validate
from dpvae.errors import ConfigError
from dpvae.evaluate.fidelity import contingency
from dpvae.privacy.accountant import Epsilon, calibrate, price
from dpvae.privacy.events import Event, Gaussian
from dpvae.privacy.mechanisms import cell_sd, noisy_counts
from dpvae.privacy.noise import SecretKey
from dpvae.privacy.plan import THRESHOLD_SHARE, PublicFacts
from dpvae.privacy.table_plan import split
from dpvae.rng import stream

Reals = NDArray[np.float64]
Counts = NDArray[np.int64]

PHASE = "floor"
SHARES = {  # of what the survey leaves, in squared signal
    "independent": {"one-way": 1.0},
    "naive_bayes": {"with-target": 1.0},
    "tan": {"with-target": 0.25, "scores": 0.15, "edges": 0.60},
}
WHAT = {"one-way": "noisy one-way tables", "with-target": "noisy tables of each column with the target",
        "scores": "noisy dependence of each pair of columns given the target",
        "edges": "noisy tables of each column with its parent and the target"}
MEAN_OF_ABSOLUTE = math.sqrt(2 / math.pi)  # mean of |z|: what noise of sd 1 adds to an L1 distance, per cell


@dataclass(frozen=True)
class Bill:
    """What a floor will spend, fixed before a row is read: noise multipliers, and their price."""

    steps: tuple[str, ...]
    survey_noise: Mapping[str, float]
    survey_delta: float
    noise: Mapping[str, float]
    epsilon: Epsilon

    def events(self) -> tuple[Event, ...]:
        return _events(self.steps, self.survey_noise, self.survey_delta, self.noise)


def _events(steps: tuple[str, ...], survey_noise: Mapping[str, float], survey_delta: float,
            noise: Mapping[str, float]) -> tuple[Event, ...]:
    surveyed = survey_events(steps, noise=survey_noise, delta=survey_delta)
    return (*surveyed, *(Gaussian(PHASE, WHAT[name], multiplier) for name, multiplier in noise.items()))


def make_bill(floor: str, schema: Schema, *, rows: int, epsilon: float, delta: float) -> Bill:
    """The largest signal whose events cost at most ``epsilon``; a function of public facts alone."""
    steps = survey_steps(schema, rows_known=True)
    facts = PublicFacts(columns=len(schema.columns), survey_steps=steps, rows=rows, has_target=bool(schema.target))
    shares = {name: share for name, share in split(TrainerConfig(), facts, epsilon).items()
              if name.startswith("survey/")}
    left = 1.0 - sum(shares.values())
    shares |= {name: left * share for name, share in SHARES[floor].items()}
    survey_delta = THRESHOLD_SHARE * delta

    def noise(signal: float) -> tuple[dict[str, float], dict[str, float]]:
        every = {name: 1 / (signal * math.sqrt(share)) for name, share in shares.items()}
        surveyed = {name.removeprefix("survey/"): nm for name, nm in every.items() if name.startswith("survey/")}
        return surveyed, {name: nm for name, nm in every.items() if not name.startswith("survey/")}

    def build(signal: float) -> tuple[Event, ...]:
        surveyed, own = noise(signal)
        return _events(steps, surveyed, survey_delta, own)

    surveyed, own = noise(calibrate(build, epsilon=epsilon, delta=delta))
    events = _events(steps, surveyed, survey_delta, own)
    return Bill(steps, surveyed, survey_delta, own, price(events, delta=delta))


def synthesise(floor: str, table: Table, schema: Schema, bill: Bill, *, rows: int, seed: int,
               key: SecretKey) -> tuple[dict[str, Cells], tuple[Event, ...]]:
    """As many synthetic rows as there are publicly known to be, and the events that were drawn. ``seed`` is public."""
    validate(table, schema)
    surveyed = survey(table, schema, noise=bill.survey_noise, delta=bill.survey_delta, key=key, rows=rows)
    codes = TableCodec(surveyed.schema).encode(table)
    measured = Measured(codes, surveyed.schema, bill.noise, key)
    rng = stream(seed, PHASE, floor)
    made = {"independent": _independent, "naive_bayes": _naive_bayes, "tan": _tan}[floor](measured, rows, rng)
    return TableCodec(surveyed.schema).decode(made, rng), (*surveyed.events, *measured.events)


# ---- private rows are touched in this class and nowhere else -------------------------------------------------------


class Measured:
    """The noisy tables of one floor; each release is one Gaussian event."""

    def __init__(self, codes: NDArray[np.integer], schema: Schema, noise: Mapping[str, float], key: SecretKey) -> None:
        self._codes, self._key, self.noise = codes, key, noise
        self.sizes = schema.cardinalities
        self.target = schema.names.index(schema.target) if schema.target is not None else None
        self.features = [j for j in range(len(self.sizes)) if j != self.target]
        self.events: list[Gaussian] = []

    def tables(self, release: str, columns: Sequence[tuple[int, ...]]) -> list[Counts]:
        """A record is in one cell of each table, so T tables together have L2 sensitivity sqrt(T)."""
        return self._release(release, [self._count(each) for each in columns])

    def scores(self, expected: Mapping[tuple[int, int], Counts]) -> dict[tuple[int, int], int]:
        """Noisy L1 distance of the table (i, j, target) from whole numbers that are public already, for each pair.

        Adding a record moves one cell of each table by one, and so each score by at most one: the joint L2
        sensitivity is the root of the number of pairs, as for as many one-cell tables.
        """
        assert self.target is not None
        exact = [np.array([np.abs(self._count((i, j, self.target)) - goal).sum()]) for (i, j), goal in expected.items()]
        return {pair: int(noisy[0]) for pair, noisy in zip(expected, self._release("scores", exact), strict=True)}

    def sd(self, release: str, tables: int) -> float:
        return cell_sd(self.noise[release], max(tables, 1))

    def _release(self, release: str, exact: list[Counts]) -> list[Counts]:
        self.events.append(Gaussian(PHASE, WHAT[release], self.noise[release]))  # planned, so paid for, tables or none
        if not exact:
            return []
        return noisy_counts(exact, noise_multiplier=self.noise[release], stream=self._key.stream(PHASE, release),
                            phase=PHASE, what=WHAT[release])[0]

    def _count(self, columns: Sequence[int]) -> Counts:
        return contingency([self._codes[:, j] for j in columns], [self.sizes[j] for j in columns])


# ---- everything below is post-processing ---------------------------------------------------------------------------


def _independent(measured: Measured, rows: int, rng: np.random.Generator) -> Counts:
    noisy = measured.tables("one-way", [(j,) for j in range(len(measured.sizes))])
    made = np.empty((rows, len(noisy)), dtype=np.int64)
    for j, table in enumerate(noisy):
        made[:, j] = _draw(project(table, rows)[None], np.zeros(rows, dtype=np.int64), rng)
    return made


@dataclass(frozen=True)
class Bayes:
    """Estimated counts: ``labels`` (L,), and ``given[j]`` (codes of j, L), whose columns sum to the labels'."""

    labels: Reals
    given: Mapping[int, Reals]


def _bayes(measured: Measured, rows: int) -> Bayes:
    if measured.target is None:
        raise ConfigError("target=null: this floor predicts a column; name one, or run the independent floor")
    noisy = measured.tables("with-target", [(j, measured.target) for j in measured.features])
    labels = project(np.mean([table.sum(0) for table in noisy], axis=0), rows)
    given = {j: np.stack([project(column, total) for column, total in zip(table.T, labels, strict=True)], axis=1)
             for j, table in zip(measured.features, noisy, strict=True)}
    return Bayes(labels, given)


def _naive_bayes(measured: Measured, rows: int, rng: np.random.Generator) -> Counts:
    return _sample(measured, _bayes(measured, rows), {}, {}, rows, rng)


def _tan(measured: Measured, rows: int, rng: np.random.Generator) -> Counts:
    bayes = _bayes(measured, rows)
    assert measured.target is not None
    pairs = list(combinations(measured.features, 2))
    expected = {(i, j): _expected(bayes, i, j) for i, j in pairs}
    scores = measured.scores(expected)
    sd = measured.sd("edges", len(measured.features) - 1)
    gains = {pair: scores[pair] - _by_chance(table) - MEAN_OF_ABSOLUTE * sd * table.size
             for pair, table in expected.items()}
    parents = forest(gains)
    noisy = measured.tables("edges", [(parent, child, measured.target) for child, parent in parents.items()])
    tables = dict(zip(parents, noisy, strict=True))
    return _sample(measured, bayes, parents, tables, rows, rng)


def _expected(bayes: Bayes, i: int, j: int) -> Counts:
    """The table (i, j, target) if i and j were independent given the target, in whole numbers."""
    labels = np.maximum(bayes.labels, 1e-9)
    return np.rint(bayes.given[i][:, None, :] * bayes.given[j][None, :, :] / labels).astype(np.int64)


def _by_chance(expected: Counts) -> float:
    """The L1 distance from ``expected`` that sampling alone brings."""
    return float(np.minimum(MEAN_OF_ABSOLUTE * np.sqrt(expected), 2.0 * expected).sum())


def forest(gains: Mapping[tuple[int, int], float]) -> dict[int, int]:
    """Child -> parent of the heaviest forest with positive gains (Kruskal), each tree hung up at its least column;
    parents come before their children.

    >>> forest({(0, 1): 5.0, (1, 2): 4.0, (0, 2): 3.0, (3, 4): -1.0})
    {1: 0, 2: 1}
    """
    component: dict[int, int] = {node: node for pair in gains for node in pair}
    edges: dict[int, list[int]] = {node: [] for node in component}
    for (i, j), gain in sorted(gains.items(), key=lambda item: -item[1]):
        if gain > 0 and component[i] != component[j]:
            edges[i].append(j)
            edges[j].append(i)
            merged = component[j]
            component = {node: component[i] if c == merged else c for node, c in component.items()}
    parents: dict[int, int] = {}
    seen: set[int] = set()
    for root in sorted(edges):
        waiting = [root] if root not in seen else []
        seen.add(root)
        while waiting:
            node = waiting.pop(0)
            for child in edges[node]:
                if child not in seen:
                    seen.add(child)
                    parents[child] = node
                    waiting.append(child)
    return parents


def _sample(measured: Measured, bayes: Bayes, parents: Mapping[int, int], tables: Mapping[int, Counts], rows: int,
            rng: np.random.Generator) -> Counts:
    assert measured.target is not None
    made = np.empty((rows, len(measured.sizes)), dtype=np.int64)
    labels = _draw(bayes.labels[None], np.zeros(rows, dtype=np.int64), rng)
    made[:, measured.target] = labels
    for j in [j for j in measured.features if j not in parents]:
        made[:, j] = _draw(bayes.given[j].T, labels, rng)
    for child, parent in parents.items():
        law = _conditional(tables[child], bayes.given[parent], bayes.given[child], measured.sd("edges", len(parents)))
        made[:, child] = _draw(law.reshape(-1, law.shape[-1]), made[:, parent] * len(bayes.labels) + labels, rng)
    return made


def _conditional(noisy: Counts, above: Reals, below: Reals, sd: float) -> Reals:
    """(codes of the parent, L, codes of the child): estimated counts, leaning on the law given the target alone where
    a slice holds no more than noise."""
    law = np.empty((*above.shape, noisy.shape[1]))
    plain = below.T / np.maximum(below.sum(0), 1e-9)[:, None]
    for a, label in np.ndindex(above.shape):
        law[a, label] = project(noisy[a, :, label], above[a, label]) + sd * plain[label]
    return law


def project(noisy: NDArray[np.generic], total: float) -> Reals:
    """The non-negative vector of this sum that is nearest in L2: what noise alone put into empty cells goes.

    >>> project(np.array([5, 3, -4]), 6.0).tolist()
    [4.0, 2.0, 0.0]
    """
    values = np.asarray(noisy, dtype=np.float64)
    ordered = np.sort(values)[::-1]
    excess = (np.cumsum(ordered) - total) / np.arange(1, len(values) + 1)
    held = int(np.flatnonzero(ordered > excess)[-1]) if total > 0 else 0
    return np.maximum(values - excess[held], 0.0) if total > 0 else np.zeros_like(values)


def _draw(weights: Reals, row: Counts, rng: np.random.Generator) -> Counts:
    """One code per entry of ``row``, from that row of ``weights`` (laws, codes); a row without weight is uniform."""
    weights = np.where(weights.sum(1, keepdims=True) > 0, weights, 1.0)
    steps = np.cumsum(weights, axis=1) / weights.sum(1, keepdims=True)
    steps[:, -1] = 1.0
    line = (steps + np.arange(len(steps))[:, None]).ravel()
    place = np.searchsorted(line, row + rng.random(len(row)), side="right") - row * weights.shape[1]
    return np.clip(place, 0, weights.shape[1] - 1).astype(np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("floor", choices=SHARES)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--target", help="the column that the others should predict")
    parser.add_argument("--schema", type=Path, help="public schema; without it all is surveyed")
    parser.add_argument("--epsilon", type=float, required=True)
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--seed", type=int, default=0, help="public: of the drawing of rows, never of the noise")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    header = lake.header(args.train)
    schema = Schema.from_yaml(args.schema).bind(header) if args.schema else Schema.undeclared(header)
    schema = schema.with_target(args.target or schema.target)
    table = lake.read(args.train)  # its number of rows is taken as public, as everywhere in this benchmark
    bill = make_bill(args.floor, schema, rows=table.rows, epsilon=args.epsilon, delta=args.delta)
    cells, events = synthesise(args.floor, table, schema, bill, rows=table.rows, seed=args.seed,
                               key=SecretKey.generate())
    if events != bill.events():
        raise AssertionError("the events drawn are not the events priced")
    lake.write_parquet(cells, args.out)
    print(json.dumps({"epsilon": bill.epsilon.upper, "delta": args.delta, "rows": table.rows}))


if __name__ == "__main__":
    main()
