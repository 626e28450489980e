"""Tables: rows of typed columns, from a file, a DataFrame or an Arrow table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dpvae.config import DataConfig, TrainConfig
from dpvae.data import builtin, lake
from dpvae.data.grid import equal_bins
from dpvae.data.lake import Table
from dpvae.data.schema import Schema
from dpvae.data.stored import CodeShards, Stored, fingerprint, fits, place_of
from dpvae.data.survey import Survey, survey, survey_steps
from dpvae.data.table import TableCodec, validate
from dpvae.data.where import parse
from dpvae.errors import ConfigError
from dpvae.files import read_json, write_json
from dpvae.modalities import TableWriter
from dpvae.privacy.events import Event
from dpvae.privacy.plan import Plan, PublicFacts, check_delta, make_plan
from dpvae.privacy.silence import secrets_of
from dpvae.privacy.table_plan import TableRule
from dpvae.report.source import ORIGIN

if TYPE_CHECKING:
    from dpvae.report.progress import Progress
    from dpvae.train.parallel import Processes
    from dpvae.train.run import RunFolder

UNIQUE, FAR = "Ushuaia", 987_654_321  # values of an unusual row
SHARED = True  # releases may be drawn by several workers
IN_PARTS = True  # and may be lake tables

PREVIEW = 20_000  # most rows that a run's own page counts


def plan(config: TrainConfig) -> Plan:
    """What ``config`` would spend. Reads the header and the declared schema; no row."""
    return _plan(config, schema_of(config.data, lake.header(source_of(config.data))))


def prepare(config: TrainConfig, source: Any = None) -> TableTask:
    """The rows of ``source`` or of the file that ``config`` names, checked against what is declared of them."""
    source = lake.pinned(source_of(config.data)) if source is None else part_of(source, config.data)
    schema = schema_of(config.data, lake.header(source))
    planned = _plan(config, schema)
    rows = _rows(config, source)
    validate(rows, schema, config.data.outside)
    return TableTask(config, planned, schema, rows)


def writer(public: Path, rows: int, *, seed: int, engine: str = "local", workers: int | None = None
           ) -> TableWriter:
    """Parquet files of synthetic rows, drawn by ``workers`` on an ``engine``: the same bytes for any."""
    from dpvae.release.shards import table_writer

    return table_writer(public, rows, seed=seed, engine=engine, workers=workers)


def made_up(public: Path, rows: int, *, seed: int) -> dict[str, list[Any]]:
    """Nobody's rows, drawn from the released model."""
    from dpvae.release.sample import load_public, sample_cells

    found: dict[str, list[Any]] = lake.to_arrow(sample_cells(*load_public(public), rows, seed=seed)).to_pydict()
    return found


def troublemakers(records: Mapping[str, Sequence[Any]], public: Path | None = None) -> dict[str, dict[str, Any]]:
    """A row of unusual values, a duplicate, and an empty row, each within what is *declared* about the table; where the
    others hold whole numbers, the unusual one is a fraction: a type that is found in the cells would be another."""
    schema = Schema.from_dict(read_json(public / "schema.json")) if public is not None else None
    first = {name: values[0] for name, values in records.items()}
    declared = {c.name: c for c in schema.columns} if schema is not None else {}
    unusual, missing = {}, {}
    for name, values in records.items():
        column = declared.get(name)
        fixed = set(column.declared) if column is not None else set()
        held = [v for v in values if v is not None]
        rare = min(Counter(held).items(), key=lambda item: (item[1], repr(item[0])))[0] if held else None
        number = isinstance(rare, (int, float)) and not isinstance(rare, bool)
        if fixed or (column is not None and name == (schema.target if schema else None)):
            unusual[name] = rare
        elif number:
            unusual[name] = FAR + 0.5
        else:
            unusual[name] = UNIQUE if isinstance(rare, str) else rare
        may = column is None or (bool(column.nullable) if "nullable" in fixed else not fixed)
        missing[name] = None if may else rare
    return {"a unique record": unusual, "a duplicate": dict(first), "an empty record": missing}


def told(public: Path, records: Mapping[str, Any]) -> NDArray[np.int64]:
    """The codes of rows under the released schema, (n, D)."""
    from dpvae.release.sample import load_public

    return TableCodec(load_public(public)[1]).encode(lake.read(records), "clip").astype(np.int64)


def log_prob(public: Path, records: Mapping[str, Any]) -> NDArray[np.float64]:
    """log p(x) of rows under the released model, (n,) nats."""
    import torch

    from dpvae.release.sample import load_public

    vae, _ = load_public(public)
    codes, generator = torch.as_tensor(told(public, records)), torch.Generator().manual_seed(1)
    return np.asarray(vae.log_prob(codes, samples=16, generator=generator).double().numpy())


@dataclass(frozen=True)
class TableTask:
    """A table that is ready to be trained on; see :class:`dpvae.modalities.Task`."""

    config: TrainConfig
    plan: Plan
    schema: Schema
    table: Table | Stored

    def planned(self, config: TrainConfig, plan: Plan) -> TableTask:
        """The same rows under other settings."""
        return replace(self, config=config, plan=plan)

    def declared(self) -> str:
        """The digest of the declared schema."""
        return self.schema.digest()

    def fingerprint(self) -> bytes:
        """A digest of every cell; it leaves only under the run's secret key."""
        if not isinstance(self.table, Stored):
            return fingerprint(self.table)
        if "fingerprint" not in self.table.kept:  # asked several times, and each time the whole disk would be read
            self.table.kept["fingerprint"] = fingerprint(self.table)
        return bytes(self.table.kept["fingerprint"])

    def spend(self, run: RunFolder, progress: Progress, processes: Processes | None = None) -> TableResult:
        """Survey, measure, train."""
        from dpvae.train import anchor

        config, key = self.config, secrets_of(run, self.config)
        progress.begin("survey")
        surveyed = self._survey(key)
        progress.phase("survey", 1)
        progress.begin("anchor")
        dense = config.trainer.name == "density"
        resolved = equal_bins(surveyed.schema) if dense else surveyed.schema
        codes = self._encoded(TableCodec(resolved))
        target = resolved.names.index(resolved.target) if resolved.target is not None else None
        tables = {name: nm for name, nm in self.plan.anchor_noise.items() if name == "one-way" or not dense}
        anchors, events = anchor.measure(codes, resolved.cardinalities, target, noise=tables, key=key,
                                         groups=self.plan.groups)
        anchors = replace(anchors, counted=() if dense else surveyed.counted)
        progress.phase("anchor", 1)
        measured = replace(surveyed, schema=resolved, events=(*surveyed.events, *events))
        result = self._density(codes, measured, anchors, key, progress) if dense else self._train(
            codes, measured, anchors, key, run, progress, processes)
        if isinstance(self.table, Stored) and not config.performance.keep_stored:
            self.table.remove()
        return result

    def _encoded(self, codec: TableCodec) -> Any:
        outside = self.config.data.outside
        if isinstance(self.table, Stored):
            return CodeShards.of(self.table, codec, outside)
        return codec.encode(self.table, outside)

    def _survey(self, key: Any) -> Survey:
        config, planned = self.config, self.plan
        found = survey(self.table, self.schema, noise=planned.survey_noise, delta=planned.survey_delta or 1e-9, key=key,
                       rows=config.data.rows, outside=config.data.outside)
        if config.data.rows is None:  # the count is released: comparing it with delta is post-processing
            check_delta(planned.delta, found.rows,
                        f" (about {found.rows:.0f} rows were counted; this run stays booked)")
        return found

    def _train(self, codes: Any, measured: Survey, anchors: Any, key: Any, run: RunFolder, progress: Progress,
               processes: Processes | None) -> TableResult:
        import torch

        from dpvae.train.contrasts import code_order
        from dpvae.train.device import device_of
        from dpvae.train.linked import find
        from dpvae.train.records import StoredRecords
        from dpvae.train.trainer import Trainer

        config, planned, schema = self.config, self.plan, measured.schema
        device = device_of(config.performance.device)
        vae = _new_model(config, planned, schema).to(device)
        records: Any = StoredRecords(codes, device) if isinstance(codes, CodeShards) else (
            torch.as_tensor(codes, device=device))
        state = Trainer(plan=planned, config=config, vae=vae, codes=records,
                        anchors=anchors, rows=max(round(measured.rows), 1), key=key, checkpoint=run.checkpoint,
                        listen=progress.listen, processes=processes,
                        orders=[code_order(column) for column in schema.columns]).fit()
        vae = vae.cpu()
        if vae.codebook is not None and anchors.pairs:
            vae.link(find(vae, anchors))
        events = (*measured.events, *planned.events()[len(measured.events):])
        return TableResult(vae, schema, measured.rows, events, state.metrics, anchors, self.table.origin)

    def _density(self, codes: Any, measured: Survey, anchors: Any, key: Any, progress: Progress) -> TableResult:
        """The rest of ``trainer=density``; every draw is a function of the key, so a run that stopped starts it
        again."""
        import torch

        from dpvae.rng import seed_of
        from dpvae.train import density
        from dpvae.train.sleep import Sleep

        config, planned = self.config, self.plan
        progress.begin("fit")
        vae, events = density.fit(
            codes, measured.schema, rows=anchors.rows, components=planned.components, seed=config.run.seed,
            noise={name: nm for name, nm in planned.anchor_noise.items() if name != "one-way"}, key=key,
            hidden=config.model.hidden, protected=config.privacy.noise)
        progress.phase("fit", 1)
        progress.begin("sleep")
        Sleep(vae).run(config.trainer.sleep_steps, generator=torch.Generator().manual_seed(
            seed_of(config.run.seed, "sleep", 0)))
        progress.phase("sleep", 1)
        return TableResult(vae, measured.schema, measured.rows, (*measured.events, *events), [], anchors,
                           self.table.origin)


@dataclass(frozen=True)
class TableResult:
    """A released decoder of tables; see :class:`dpvae.modalities.Result`."""

    vae: Any
    schema: Schema
    rows: float
    events: tuple[Event, ...]
    metrics: list[dict[str, Any]]
    anchors: Any
    origin: Mapping[str, Any] | None = None  # of a lake table

    def publish(self, public: Path, seed: int) -> None:
        """Model, schema, the noisy one-way tables, diagnostics, and what a page shows of synthetic rows."""
        import torch

        from dpvae.evaluate.collapse import diagnose
        from dpvae.evaluate.latents import synthetic_map
        from dpvae.release.preview import preview
        from dpvae.rng import seed_of
        from dpvae.train.checkpoint import save_model

        save_model(self.vae, public)
        write_json(public / "schema.json", self.schema.to_dict())
        if self.origin is not None:
            write_json(public / ORIGIN, dict(self.origin))
        write_json(public / "reference.json", {
            column.name: {"labels": list(column.labels), "noisy": table.tolist(), "sd": self.anchors.sd["one-way"]}
            for column, table in zip(self.schema.columns, self.anchors.one_way, strict=True)})
        generator = torch.Generator().manual_seed(seed_of(seed, "report"))
        write_json(public / "diagnostics.json", diagnose(self.vae, self.anchors.one_way, generator=generator))
        generator = torch.Generator().manual_seed(seed_of(seed, "map"))
        target = self.schema.names.index(self.schema.target) if self.schema.target is not None else None
        write_json(public / "map.json", {
            **synthetic_map(self.vae, column=target, generator=generator),
            "labels": list(self.schema.columns[target].labels) if target is not None else []})
        write_json(public / "preview.json", preview(
            self.vae, self.schema, self.anchors, rows=min(max(round(self.rows), 1), PREVIEW), seed=seed))


def _rows(config: TrainConfig, source: Any) -> Table | Stored:
    """The rows, in memory where they fit and on disk where they do not: the same run either way."""
    where = config.performance.stored
    named = isinstance(source, str | Path | lake.Versioned) or (isinstance(source, lake.Selected) and source.place)
    if where == "never" or not named or (where == "auto" and fits(source)):
        if where == "always":
            raise ConfigError("performance.stored=always: expected a file or a lake table; this one is in memory")
        return lake.read(source)
    if config.trainer.name == "density":
        raise ConfigError("trainer=density: holds all rows in memory; expected performance.stored=never, or another "
                          "trainer")
    return Stored.of(source, place_of(source, Path(config.run.root)))


def source_of(data: DataConfig) -> Any:
    """The file that a configuration names, or the part of it that takes part."""
    if data.builtin is not None:
        whole = builtin.path(data.builtin)
        if data.where is not None and data.rows == lake.row_count(whole):
            raise ConfigError(f"data.rows={data.rows}: counts the whole table, and data.where leaves a part of it; say "
                              "how many rows take part, or data.rows=null to have them counted with noise")
        return part_of(whole, data)
    if data.path is None:
        raise ConfigError("data.path=null: expected a table; try data=adult, or data=path/to/table.csv")
    return part_of(data.path, data)


def part_of(source: Any, data: DataConfig) -> Any:
    """The columns and rows of ``source`` that a configuration asks for; of neither, ``source`` itself."""
    if data.columns is None and data.where is None:
        return source
    return lake.selected(source, columns=data.columns, where=data.where)


def schema_of(data: DataConfig, header: tuple[tuple[str, str], ...]) -> Schema:
    """What is publicly known about the table: declared in YAML, or nothing but its header."""
    declared = data.schema or (str(builtin.schema(data.builtin)) if data.builtin else None)
    known = Schema.from_yaml(declared) if declared else None
    if known is not None and data.columns is not None:
        known = known.only([name for name, _ in header])
    schema = known.bind(header) if known is not None else Schema.undeclared(header, data.target)
    schema = schema.with_target(data.target if data.target is not None else schema.target)
    schema = replace(schema, chosen=data.columns is not None, where=str(parse(data.where)) if data.where else None)
    return schema.with_missing() if data.outside == "missing" else schema


def _plan(config: TrainConfig, schema: Schema) -> Plan:
    facts = PublicFacts(columns=len(schema.columns), survey_steps=survey_steps(schema, config.data.rows is not None),
                        rows=config.data.rows, has_target=schema.target is not None)
    if facts.survey_steps and config.trainer.survey_share == 0:
        open_ = schema.open_questions or ("rows",)
        raise ConfigError(f"trainer.survey_share=0: {len(open_)} things are not declared ({', '.join(open_[:3])}); "
                          "declare them, or leave trainer.survey_share to the plan")
    return make_plan(config, facts, TableRule())


def _new_model(config: TrainConfig, planned: Plan, schema: Schema) -> Any:
    import torch

    from dpvae.models.vae import VAE
    from dpvae.rng import seed_of

    model, codebook = config.model, planned.components > 0
    return VAE(schema.cardinalities, latent_dim=model.latent_dim or (64 if codebook else 16), hidden=model.hidden,
               layers=(0 if codebook else 1) if model.layers is None else model.layers,
               components=planned.components or None,
               generator=torch.Generator().manual_seed(seed_of(config.run.seed, "init")))
