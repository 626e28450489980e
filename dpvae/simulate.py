"""``dpvae plan --sweep``: what utility to expect of a budget, tried where it costs nothing.

The table of the command is never opened. Rows of the same shape are made up from its header and its declared schema
(or taken from a public table, ``sweep.public=PUBLIC.csv``, or from the built-in one); models are trained on them at
several epsilons, with the plan that the rule gives each, and what they draw is judged against held-out rows.

    sweep(TrainConfig(data=DataConfig(path="orders.csv", rows=50_000)))

Utility depends on the data: read the trend and the distance to the two ends (independent columns, and the sampling
error that no model can beat), not the third digit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dpvae import api
from dpvae.config import TrainConfig
from dpvae.data import lake
from dpvae.data.lake import Table
from dpvae.data.standin import made_up
from dpvae.errors import ConfigError, DataError
from dpvae.evaluate.fidelity import Quantiles, distances, mean, select
from dpvae.evaluate.utility import utility
from dpvae.modalities.table import schema_of, source_of
from dpvae.privacy.plan import route
from dpvae.release.sample import load_public, readable, sample_cells
from dpvae.rng import stream

EPSILONS = (0.1, 0.3, 1.0, 3.0, 10.0)
MOST_ROWS = 20_000  # that are made up; with more rows noise weighs less
FEWER = {"fit_steps": 200, "steps": 20, "sleep_steps": 10, "metric_releases": 1}  # so that a budget takes seconds
BINS = 20


@dataclass(frozen=True)
class Tried:
    """One budget: the rule's route, and what a model of the stand-in reached (lower ``pairs``, higher ``auc``)."""

    epsilon: float
    route: str
    one_way: float
    pairs: float
    auc: float | None


@dataclass(frozen=True)
class Outlook:
    """Every budget that was tried, between the floor and the ceiling of the same rows."""

    rows: int
    columns: int
    source: str
    budgets: tuple[Tried, ...]
    independent_pairs: float
    floor_pairs: float
    real_auc: float | None

    def __str__(self) -> str:
        auc = self.real_auc is not None
        head = f"  {'epsilon':>9}  {'columns':>8}  {'pairs':>8}" + (f"  {'target':>7}" if auc else "") + "   route"
        lines = [f"  {b.epsilon:>9g}  {b.one_way:>8.3f}  {b.pairs:>8.3f}" + (f"  {b.auc:>7.3f}" if auc else "")
                 + f"   {b.route}" for b in self.budgets]
        ends = [f"  {'columns drawn independently':27}  {self.independent_pairs:.3f}",
                f"  {'other rows of the same law':27}  {self.floor_pairs:.3f}"
                + (f"  {self.real_auc:>7.3f}" if auc else "")]
        return "\n".join([
            f"what to expect, tried on {self.rows:,} {self.source} with {self.columns} columns; nothing of yours was "
            "opened, nothing was spent", "", head, *lines, "", *ends, "",
            "  columns, pairs: mean total variation distance, lower is better"
            + ("; target: AUC of boosting on held-out rows, higher is better" if auc else ""),
            "  runs were shortened, and your rows will decide: read the trend, not the third digit"])

    def to_dict(self) -> dict[str, Any]:
        """For a program."""
        return asdict(self)


def sweep(config: TrainConfig) -> Outlook:
    """Try the budgets of :data:`EPSILONS`; reads the header of the table and no row, spends nothing."""
    if config.data.kind != "table":
        raise ConfigError(f"data.kind={config.data.kind}: expected a table; other kinds are not made up yet")
    train, test, source = _rows(config)
    quantiles = Quantiles(train, BINS)
    judged = _target(config, train)
    best = _auc(train, train, test, judged) if judged else None
    apart = distances(quantiles, train, _shuffled(train))
    floor = distances(quantiles, train, test)
    fewer = np.sqrt(2 / train.rows / (1 / train.rows + 1 / test.rows))
    found = [_try(config, epsilon, train, test, quantiles, judged)
             for epsilon in EPSILONS if epsilon <= config.privacy.max_epsilon]
    return Outlook(train.rows, len(train.names), source, tuple(found), mean(list(apart.two_way.values())),
                   float(mean(list(floor.two_way.values())) * fewer), best)


def _rows(config: TrainConfig) -> tuple[Table, Table, str]:
    """A table to train on, one to judge by, and what they are; none of it private."""
    rows = min(config.data.rows or api.plan(config).rows, MOST_ROWS)
    if config.sweep.public is None and config.data.builtin is None:
        schema = schema_of(config.data, lake.header(source_of(config.data)))
        table, name = made_up(schema, rows + max(rows // 4, 100), seed=config.run.seed), "made-up rows"
    else:
        table = lake.read(config.sweep.public or source_of(config.data))
        names = [name for name, _ in lake.header(source_of(config.data))]
        if missing := [name for name in names if name not in table.names]:
            raise DataError(f"sweep.public={config.sweep.public}: column {missing[0]!r} is missing; expected a public "
                            "table with the columns of yours")
        table, name = select(table, names), "public rows"
    order = stream(config.run.seed, "stand-in", "split").permutation(table.rows)
    kept = min(rows, table.rows * 4 // 5)
    return table.take(order[:kept]), table.take(order[kept:kept + max(kept // 4, 100)]), name


def _try(config: TrainConfig, epsilon: float, train: Table, test: Table, quantiles: Quantiles,
         target: str | None) -> Tried:
    spent = replace(config, privacy=replace(config.privacy, epsilon=epsilon))
    shorter: dict[str, Any] = {name: value for name, value in FEWER.items()
                               if (getattr(config.trainer, name) or value + 1) > value}
    trainer = replace(config.trainer, **shorter)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / f"stand_in{'.csv' if train.cells[0].dtype == lake.CSV else '.parquet'}"
        with lake.appending(place, place.suffix[1:]) as append:
            append(train)
        made = api.train(replace(
            spent, trainer=trainer, report=replace(config.report, progress="quiet"),
            data=replace(config.data, builtin=None, path=str(place), rows=train.rows, outside="clip",
                         where=None,  # which the made-up rows fulfil
                         schema=config.data.schema or _builtin_schema(config)),
            run=replace(config.run, root=folder, name="stand-in"), sweep=replace(config.sweep, public=None),
            ledger=replace(config.ledger, url=None, cap_epsilon=None, cap_delta=None)))
        vae, schema = load_public(made.path / "public")
        synth = readable(schema, sample_cells(vae, schema, train.rows, seed=config.run.seed))
    apart = distances(quantiles, train, synth)
    return Tried(epsilon, route(api.plan(spent)).partition(":")[0], mean(list(apart.one_way.values())),
                 mean(list(apart.two_way.values())), _auc(train, synth, test, target) if target else None)


def _builtin_schema(config: TrainConfig) -> str | None:
    from dpvae.data import builtin

    return str(builtin.schema(config.data.builtin)) if config.data.builtin else None


def _target(config: TrainConfig, train: Table) -> str | None:
    """The column to be predicted, where it has two values."""
    schema = schema_of(config.data, lake.header(source_of(config.data)))
    if schema.target is None or len(set(map(str, train.column(schema.target).values))) != 2:
        return None
    return schema.target


def _auc(real: Table, synth: Table, test: Table, target: str | None) -> float | None:
    assert target is not None
    found = utility(real, synth, test, target, ceiling=False).tstr
    return max(scores.roc_auc for scores in found.values())


def _shuffled(table: Table) -> Table:
    """The same columns, independent of one another."""
    def columns() -> Iterator[lake.Cells]:
        for i, cells in enumerate(table.cells):
            order = stream(0, "stand-in", "independent", i).permutation(table.rows)
            yield cells._replace(values=cells.values[order], missing=cells.missing[order])

    return Table(table.names, tuple(columns()))
