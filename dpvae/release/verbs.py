"""What one released model is used for: score, sample, impute. Plain configuration in, a file and a line of text out.

All of it is post-processing of a released model: free, but for a threshold that is learnt from private rows, which is
charged. What is computed *about* rows that you hold is as private as they are, and goes to ``private/`` unless you say
otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dpvae.config import ImputeConfig, SampleConfig, ScoreConfig
from dpvae.data import builtin, lake, place
from dpvae.data.lake import Cells, Table
from dpvae.data.schema import Schema
from dpvae.data.stored import fingerprint, held
from dpvae.errors import ConfigError, DataError, ReleaseError
from dpvae.files import read_json
from dpvae.release import export, image_uses, texts, threshold
from dpvae.release.impute import Imputer, complete
from dpvae.release.sample import Sampler, load_public, parse_given, readable, sample_cells
from dpvae.release.score import Density, Ensemble
from dpvae.release.scoring import Settings, judged, score_table, select
from dpvae.rng import seed_of
from dpvae.train.run import RunFolder, find_run

ROWS_AT_ONCE = 65_536
_KINDS = {"text": "texts", "images": "images"}
_KEEP = "A score is about its row and as private as that row: the file is for you, not for publication."


def score(config: ScoreConfig) -> str:
    """Write one score per row of a table, with the cells that explain it; returns what to tell the user."""
    runs = [find_run(name.strip(), config.root) for name in config.run.split(",")]
    if (other := _other(runs[0])) is not None:
        return str(other.score(config, runs[0].public, Path(config.to) if config.to is not None else
                               runs[0].private / "scores.parquet"))
    judge = Ensemble([Density(*_released(run), seed=config.seed) for run in runs])
    if len({member.schema.names for member in judge.members}) > 1:
        raise ConfigError(f"run={config.run}: expected runs on the same columns, to be one ensemble")
    source = _source(config.table)
    if config.to is not None and place.scheme_of(config.to) in place.LAKES:
        return _score_table(config, judge, runs, str(source), config.to)
    if config.to is None:
        runs[0].private.mkdir(exist_ok=True)
    to = Path(config.to) if config.to is not None else runs[0].private / "scores.parquet"
    format = export.format_of(str(to), None)
    if format == "sql":
        raise ConfigError(f"to={to}: expected a .parquet or .csv file")
    line, limit = _limit(config, judge, runs[0], source)
    rows = export.write(_scored(config, judge, source, limit), to, format=format, table="scores")
    return f"scored {rows:,} rows in nats (higher is stranger): {to}\n{line}{_KEEP}"


def _score_table(config: ScoreConfig, judge: Ensemble, runs: list[RunFolder], table: str, to: str) -> str:
    """Scores of a lake table as a lake table: what is new since the last time."""
    if place.scheme_of(table) not in place.LAKES:
        raise ConfigError(f"data={table}: expected a lake table for to={to}; copy it there first with dpvae lake copy")
    if config.threshold == "private":
        raise ConfigError("threshold=private: expected threshold=synthetic for a lake table, since every scoring of "
                          "what is new would spend again")
    line, limit = _limit(config, judge, runs[0], table)
    settings = Settings(config.score, config.contributions, config.id, limit, config.seed)
    rows, which = score_table([run.public for run in runs], settings, table, to, engine=config.engine,
                              workers=config.workers)
    return f"scored {rows:,} rows ({which}) in nats (higher is stranger): {to}\n{line}{_KEEP}"


def _scored(config: ScoreConfig, judge: Ensemble, source: Any, limit: float | None) -> Iterator[dict[str, Cells]]:
    first, settings = 0, Settings(config.score, config.contributions, config.id, limit, config.seed)
    for table in lake.batches(source, ROWS_AT_ONCE):
        numbers = Cells(np.arange(first, first + table.rows), np.zeros(table.rows, dtype=bool), "int64")
        first += table.rows
        key = {config.id: table.column(config.id)} if config.id is not None else {}
        yield {"row": numbers, **key, **judged(judge, table, settings)}


def _limit(config: ScoreConfig, judge: Ensemble, run: RunFolder, source: Any) -> tuple[str, float | None]:
    """The threshold, and the line that says what it rests on."""
    if config.threshold is None:
        return "", None
    if config.threshold == "synthetic":
        limit = judge.threshold(config.false_alarm, config.score)
        return (f"threshold {-limit:.3f}: {config.false_alarm:.2%} of the model's own rows lie above it; nothing was "
                "spent\n"), limit
    member = judge.members[0]
    own = readable(member.schema, sample_cells(member.vae, member.schema, 20_000, seed=seed_of(config.seed, "grid")))
    with held(source, Path(config.root)) as rows:
        tag = fingerprint(rows)
    limit, booked = threshold.booked_threshold(
        config, run.path, judge.score(own, config.score), tag, lambda: np.concatenate([
            judge.score(select(table, judge.schema), config.score) for table in lake.batches(source, ROWS_AT_ONCE)]))
    return f"threshold {-limit:.3f}: about {config.false_alarm:.2%} of the table's rows lie above it, {booked}\n", limit


def sample(config: SampleConfig) -> str:
    """Write synthetic rows; returns what to tell the user."""
    run = find_run(config.run, config.root)
    if config.between is not None and _kind(run) != "text":
        raise ConfigError(f"between={config.between!r}: expected a run on texts; {run.path.name} is none")
    if (other := _other(run)) is not None:
        return str(other.sample(config, run.public))
    vae, schema = _released(run)
    format = export.format_of(config.to, config.format)
    name = Path(config.to).stem
    if config.given is not None and not config.given.lstrip().startswith("{"):
        partial = _partial(lake.read(_source(config.given), least=1), schema)
        rows = config.rows if config.rows is not None else partial.rows
        if rows % partial.rows:
            raise ConfigError(f"rows={rows}: expected a multiple of the {partial.rows} partial rows of {config.given}")
        blocks: Any = iter([complete(vae, schema, partial, rows // partial.rows, seed=config.seed)])
        line = ""
    else:
        given = parse_given(config.given) if config.given is not None else None
        sampler = Sampler(vae, schema, seed=config.seed, given=given, balance=_balance(config.balance),
                          label=config.label)
        blocks = sampler.blocks(config.rows if config.rows is not None else 1000)
        line = f"; {sampler.evidence}" if sampler.evidence is not None else ""
    rows = export.write(export.numbered(blocks, config.id), config.to, format=format, table=name, key=config.id,
                        schema=schema)
    return f"drew {rows:,} synthetic rows: {config.to}{line}; nothing was spent"


def _balance(text: str | None) -> Any:
    if text is None or text == "even":
        return text
    return parse_given(text)


def _partial(table: Table, schema: Schema) -> Table:
    """Partial rows: columns that are not there are holes."""
    for name in table.names:
        schema.column(name)
    holes = np.ones(table.rows, dtype=bool)
    nothing = np.full(table.rows, "", dtype=object)
    return Table(schema.names, tuple(table.column(name) if name in table.names else Cells(nothing, holes, "string")
                                     for name in schema.names))


def impute(config: ImputeConfig) -> str:
    """Write ``draws`` completed copies of a table; returns what to tell the user."""
    run = find_run(config.run, config.root)
    if _other(run) is not None:
        raise ConfigError(f"run={run.path.name}: is of {_KINDS[_kind(run)]}, which have no cells to impute; expected a "
                          "run of a table")
    vae, schema = _released(run)
    source = _source(config.table)
    to = Path(config.to) if config.to is not None else run.private / "imputed"
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ReleaseError(f"to={to}: is there already; pick another folder")
    lake.header(source)  # what cannot be read is refused before a folder is made
    ending = ".csv" if str(source).lower().endswith(".csv") else ".parquet"
    imputer = Imputer(vae, schema, seed=config.seed, outside=config.outside)
    holes = 0
    for draw in range(config.draws):
        holes = 0

        def completed(draw: int = draw) -> Iterator[dict[str, Cells]]:
            nonlocal holes
            for number, table in enumerate(lake.batches(source, ROWS_AT_ONCE)):
                known = select(table, schema)
                holes += sum(int(cells.missing.sum()) for cells in known.cells)
                full = imputer.draw(known, draw, number)
                filled = dict(zip(full.names, full.cells, strict=True))
                yield {name: filled.get(name, cells) for name, cells in zip(table.names, table.cells, strict=True)}

        rows = export.write(completed(), to / f"draw-{draw + 1}{ending}", format=ending[1:], table="rows",
                            schema=schema)
    times = "once" if config.draws == 1 else f"{config.draws} times"
    return (f"filled {holes:,} missing cells of {rows:,} rows, {times}: {to}/draw-*{ending}\n"
            "Each copy is one draw of what the missing cells may have been: use all of them. The observed cells are "
            "yours, unchanged, and as private as before.")


def _kind(run: RunFolder) -> str:
    if not run.finished:
        raise DataError(f"run={run.path.name}: is not finished; give its train command again")
    return str(read_json(run.public / "schema.json").get("kind", "table"))


def _other(run: RunFolder) -> Any:
    """The module that answers for a kind of data that is no table; ``None`` for a table."""
    return {"text": texts, "images": image_uses}.get(_kind(run))


def _released(run: RunFolder) -> tuple[Any, Schema]:
    if (kind := _kind(run)) != "table":
        raise DataError(f"run={run.path.name}: is of {_KINDS[kind]}; expected runs of tables, to be one ensemble")
    return load_public(run.public)


def _source(place: str | None) -> Any:
    if place is None:
        raise ConfigError("data=null: expected a table, such as data=orders.csv")
    return builtin.path(place) if place in builtin.names() else place
