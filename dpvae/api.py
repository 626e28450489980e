"""The verbs, as functions of plain configuration: plan, train, release, audit.

    plan     public facts -> a Plan           opens no data, spends nothing
    train    a table -> a Run                 books its events first, then spends them
    release  a Run -> a folder to publish     costs nothing
    audit    a Run -> a verdict on its claim  trains twins on made-up rows; reads no private row
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dpvae.config import AuditConfig, DataConfig, ReleaseConfig, TrainConfig
from dpvae.data import builtin, lake
from dpvae.data.grid import equal_bins
from dpvae.data.lake import Table
from dpvae.data.schema import Schema
from dpvae.data.survey import Survey, survey, survey_steps
from dpvae.data.table import TableCodec, validate
from dpvae.errors import BudgetError, ConfigError, DPVAEError, RunError
from dpvae.privacy.accountant import Epsilon
from dpvae.privacy.chain import UnknownOutcome
from dpvae.privacy.events import Event
from dpvae.privacy.ledger import Ask, Cap, Ledger, Reservation, content_tag
from dpvae.privacy.plan import Plan, PublicFacts, check_delta, make_plan
from dpvae.privacy.silence import Silence
from dpvae.report.progress import Progress
from dpvae.report.run import report_run
from dpvae.report.source import ORIGIN, read_run, write_events

NOISE = {
    "one-shot": "rounded Gaussian added to integers; AES-256-CTR keystream, key from the operating system",
    "dpsgd": "half the sum of four Gaussians (radius in double precision, angle in single), rounded to single; "
             "AES-256-CTR, one stream per step",
}
PADDING = ("batches are filled up to a public size with rows of weight zero; what does not fit goes into further "
           "parts, and no record is dropped")
REPLAY = ("a step replayed after a crash draws the identical mask and noise from a key sealed in private/, which is "
          "destroyed when the run ends: the same release, not a second one")


NOT_PRIVATE = "NOT PRIVATE: privacy=off, no noise was added; nothing was booked, and this run cannot be released"


@dataclass(frozen=True)
class Run:
    """A finished run: where it is, what was planned, and what it guarantees."""

    path: Path
    plan: Plan
    epsilon: Epsilon
    note: str = ""

    def __str__(self) -> str:
        done = f"{self.note}\n" if self.note else ""
        name = self.path.name
        run = name if self.path.parent == Path("runs") else self.path
        return (f"{done}run {name}: {self.epsilon}\n  report   {self.path}/public/report.html\n"
                f"  next     dpvae release run={run} rows={self.plan.rows} to=release/{name}")


def plan(config: TrainConfig) -> Plan:
    """What ``config`` would spend, and on what. Reads the header and the declared schema; no row; spends nothing."""
    return _plan(config, _schema(config.data, lake.header(_source(config.data))))


def train(config: TrainConfig, table: Any = None) -> Run:
    """Train as ``config`` says on its file, or on ``table`` (a DataFrame, an Arrow table, an array).

    Everything that can be refused is refused before a key is drawn or a budget is touched; then the whole plan is
    reserved on the ledger in one transaction, and only then is noise drawn.
    """
    if config.sweep.private:
        raise ConfigError("sweep.private=true: expected a sweep to choose from; say dpvae train -m model.hidden=64,128")
    schema, planned, rows = prepare(config, table)
    from dpvae.train.parallel import announcing, leave, together
    from dpvae.train.run import open_run

    processes = together()
    with ExitStack() as stack:
        stack.callback(leave)
        if processes is not None and not processes.first:
            return _follow(config, planned, rows, schema, processes)
        say = stack.enter_context(announcing(processes))
        run = open_run(config)
        stack.enter_context(run.lock())
        if run.finished:
            bind(run, rows, schema)
            if not run.complete:
                report_run(run.path)
            return _finished(run, planned, NOT_PRIVATE if not config.privacy.noise else
                             "this run is finished already; nothing was spent")
        bind(run, rows, schema)
        if not config.privacy.noise:
            fulfil(config, schema, planned, rows, run, _unbooked(config, run), processes=processes, say=say)
        else:
            ledger, reservation = reserve(config, lambda: ask(config, planned, rows, run), run)
            fulfil(config, schema, planned, rows, run, ledger, processes=processes, say=say)
            ledger.commit(reservation)
        run.finish()
    report_run(run.path)
    return _finished(run, planned, NOT_PRIVATE if not config.privacy.noise else "")


def _follow(config: TrainConfig, planned: Plan, rows: Table, schema: Schema, processes: Any) -> Run:
    """Train along with the first process, which alone books, writes and reports."""
    from dpvae.train.run import RunFolder

    what, path, content = processes.tell()
    if what == "stop":
        raise RunError(f"process {processes.rank}: the first process has nothing to train; see what it says")
    if content != _fingerprint(rows):
        raise RunError(f"process {processes.rank}: reads other rows than the first process; expected the same file")
    run = RunFolder(path)
    with Progress("quiet", planned) as progress:
        _spend(config, planned, rows, schema, run, progress, processes)
    return _finished(run, planned, f"process {processes.rank} is done")


def release(config: ReleaseConfig | str | Path, model: Any = None, *, rows: int | None = None, seed: int = 0
            ) -> Path | str:
    """Release from a finished run: ``release(ReleaseConfig(...))`` or ``release(to, model, rows=)``.

    ``to`` is a folder, a lake table (:mod:`dpvae.publish`) or a database; ``model`` a :class:`Run`, or anything fitted
    that holds one as ``run_``. Returns where it is. Raises :class:`ReleaseError` where the run is not private or the
    place is taken. Costs no privacy.
    """
    from dpvae.release import schemas
    from dpvae.release.bundle import write_release
    from dpvae.release.shards import table_writer
    from dpvae.train.run import find_run

    if isinstance(config, ReleaseConfig):
        run, to, count, seed = find_run(config.run, config.root).path, config.to, config.rows, config.seed
    else:
        held = getattr(model, "run_", model)
        if not isinstance(held, Run):
            raise ConfigError(f"model={type(model).__name__}: expected a fitted DPVAE or a Run to release")
        run, to, count = held.path, str(config), rows
    if count is None:
        count = _public_rows(run)
    how = {"engine": config.engine, "workers": config.workers} if isinstance(config, ReleaseConfig) else {
        "engine": "local", "workers": 1}
    if lake.place.scheme_of(to) in lake.place.LAKES:
        from dpvae.publish import publish

        publish(run, to, rows=count, seed=seed, audit=lambda: audit(str(run), quick=True), **how)
        return to
    writer = table_writer(run / "public", count, seed=seed, **how)
    folder = write_release(run, writer, rows=count, to=Path(to), seed=seed)
    if isinstance(config, ReleaseConfig) and config.registry.curator is not None:
        about = config.registry
        schemas.export(folder, folder.with_name(f"{folder.name}.registry.json"), schemas.Deployment(
            curator=str(about.curator), curator_kind=about.kind, intended_use=str(about.use), region=str(about.region),
            sector=about.sector))
    return folder


def audit(config: AuditConfig | str | Path, *, quick: bool = False) -> Any:
    """A :class:`dpvae.audit.run.AuditReport` on a finished run, written into its ``public`` folder as audit.html/json.

    Everything is asked of twins, trained on rows drawn from the released model: no private row is read, and nothing is
    spent. Raises :class:`RunError` where there is no finished run.
    """
    from dpvae.audit.run import audit_run
    from dpvae.train.run import find_run

    if not isinstance(config, AuditConfig):
        config = AuditConfig(run=str(config), quick=quick)
    return audit_run(find_run(config.run, config.root).path, train, quick=config.quick)


def self_test(tell: Callable[[str], Any] = lambda line: None) -> list[Any]:
    """Break dpvae in every way of the audit's catalogue; ``tell`` hears a line per mutant. Returns what was missed."""
    from dpvae.audit.battery import self_test as broken

    return [caught for caught in broken(train, tell=lambda caught: tell(str(caught))) if not caught.by]


def prepare(config: TrainConfig, table: Any = None) -> tuple[Schema, Plan, Table]:
    """Everything of :func:`train` that can be refused before a key is drawn or a budget is touched."""
    _limit_threads(config)
    source = table if table is not None else lake.pinned(_source(config.data))
    schema = _schema(config.data, lake.header(source))
    planned = _plan(config, schema)
    rows = lake.read(source)
    validate(rows, schema, config.data.outside)
    _device(config.performance.device)
    return schema, planned, rows


def bind(run: Any, rows: Table, schema: Schema) -> None:
    """Refuse rows, or a schema, that ``run`` was not begun with: its noise must not be used on others."""
    run.bind_data(_fingerprint(rows), schema.digest())


def fulfil(config: TrainConfig, schema: Schema, planned: Plan, rows: Table, run: Any, ledger: Ledger, *,
           processes: Any = None, say: Any = None) -> None:
    """Draw what is booked on ``ledger`` for ``run``, and write its ``public/``; with the other ``processes``, which
    hear of it by ``say``."""
    from dpvae.train.checkpoint import write_json

    bind(run, rows, schema)
    run.begin()
    if say is not None:
        say("train", run.path, _fingerprint(rows))
    with Progress(config.report.progress, planned) as progress:
        result = _spend(config, planned, rows, schema, run, progress, processes)
    _publish(config, planned, run, ledger, result)
    if rows.origin is not None:
        write_json(run.public / ORIGIN, rows.origin)


def ask(config: TrainConfig, planned: Plan, rows: Table, run: Any) -> Ask:
    """What ``run`` wants booked, with the cap that ``config`` may set."""
    limit = config.ledger
    cap = None if limit.cap_epsilon is None else Cap(limit.cap_epsilon, limit.cap_delta or planned.delta)
    return Ask(_dataset(config), run.record["ledger_run"], planned.events(), planned.delta, planned.neighbouring,
               noise=run.key().tag(b"noise"), cap=cap,
               content=content_tag(ledger_place(config), _fingerprint(rows), config.run.root))


def ledger_place(config: TrainConfig) -> str:
    """The URL or the file of the ledger that ``config`` names."""
    return config.ledger.url or str(Path(config.run.root) / "ledger.db")


def open_ledger(config: TrainConfig) -> Ledger:
    """The ledger of ``config``."""
    return Ledger.open(ledger_place(config))


def reserve(config: TrainConfig, wanted: Callable[[], Ask], run: Any) -> tuple[Ledger, Reservation]:
    """Book what ``run`` wants, before any noise is drawn; a run that was booked already gets its reservation back.

    It is asked only once the ledger is open: asking leaves a key beside it. Where the ledger refuses, a run that was
    made a moment ago is removed again: nothing is booked for it. Where its answer was lost, the run stays, and the same
    command finds what is booked.
    """
    try:
        ledger = open_ledger(config)
        return ledger, ledger.reserve_all([wanted()])[0]
    except UnknownOutcome:
        raise
    except (DPVAEError, OSError):
        if run.fresh:
            run.discard()
        raise


# -- the steps of train ----------------------------------------------------------------------------------------------


def _source(data: DataConfig) -> Any:
    if data.builtin is not None:
        return builtin.path(data.builtin)
    if data.path is None:
        raise ConfigError("data.path=null: expected a table; try data=adult, or data=path/to/table.csv")
    return data.path


def _schema(data: DataConfig, header: tuple[tuple[str, str], ...]) -> Schema:
    """What is publicly known about the table: declared in YAML, or nothing but its header."""
    declared = data.schema or (str(builtin.schema(data.builtin)) if data.builtin else None)
    schema = Schema.from_yaml(declared).bind(header) if declared else Schema.undeclared(header, data.target)
    schema = schema.with_target(data.target if data.target is not None else schema.target)
    return schema.with_missing() if data.outside == "missing" else schema


def _plan(config: TrainConfig, schema: Schema) -> Plan:
    facts = PublicFacts(columns=len(schema.columns), survey_steps=survey_steps(schema, config.data.rows is not None),
                        rows=config.data.rows, has_target=schema.target is not None)
    if facts.survey_steps and config.trainer.survey_share == 0:
        open_ = schema.open_questions or ("rows",)
        raise ConfigError(f"trainer.survey_share=0: {len(open_)} things are not declared ({', '.join(open_[:3])}); "
                          "declare them, or leave trainer.survey_share to the plan")
    return make_plan(config, facts)


def _limit_threads(config: TrainConfig) -> None:
    if config.performance.threads is not None:
        import torch

        torch.set_num_threads(config.performance.threads)


def _fingerprint(table: Table) -> bytes:
    """A digest of every cell; it leaves this function only under the run's secret key."""
    digest = hashlib.sha256()
    for name, cells in zip(table.names, table.cells, strict=True):
        digest.update(f"{name}\0{cells.dtype}\0{len(cells.values)}\0".encode())
        digest.update(np.packbits(cells.missing).tobytes())
        if cells.values.dtype == object:
            digest.update("\0".join(map(str, cells.values)).encode("utf-8", "surrogatepass"))
        else:
            digest.update(np.ascontiguousarray(cells.values).tobytes())
    return digest.digest()


def _unbooked(config: TrainConfig, run: Any) -> Ledger:
    """The ledger, on which a run without protection books nothing, as no price would do; it must have no cap."""
    ledger = open_ledger(config)
    if any(row.kind == "cap" and row.dataset == _dataset(config) for row in ledger.rows()):
        if run.fresh:
            run.discard()
        raise BudgetError(f"privacy=off: dataset {_dataset(config)!r} has a cap, which a run without protection would "
                          "break; train with a budget")
    return ledger


def _dataset(config: TrainConfig) -> str:
    path = config.data.path
    return config.ledger.dataset or config.data.builtin or (lake.place.dataset(path) if path else "table")


@dataclass(frozen=True)
class _Result:
    vae: Any
    schema: Schema
    rows: float
    events: tuple[Event, ...]
    metrics: list[dict[str, Any]]
    anchors: Any


def _spend(config: TrainConfig, planned: Plan, table: Table, schema: Schema, run: Any, progress: Progress,
           processes: Any = None) -> _Result:
    """Survey, measure, train: everything that touches private rows."""
    import torch

    from dpvae.train import anchor
    from dpvae.train.contrasts import code_order
    from dpvae.train.trainer import Trainer

    key: Any = Silence(run.key()) if not config.privacy.noise else run.key()
    progress.begin("survey")
    surveyed = survey(table, schema, noise=planned.survey_noise, delta=planned.survey_delta or 1e-9, key=key,
                      rows=config.data.rows, outside=config.data.outside)
    if config.data.rows is None:  # the count is released: comparing it with delta is post-processing
        check_delta(planned.delta, surveyed.rows,
                    f" (about {surveyed.rows:.0f} rows were counted; this run stays booked)")
    progress.phase("survey", 1)
    progress.begin("anchor")
    dense = config.trainer.name == "density"
    resolved = equal_bins(surveyed.schema) if dense else surveyed.schema
    codes = TableCodec(resolved).encode(table, config.data.outside)
    target = resolved.names.index(resolved.target) if resolved.target is not None else None
    tables = {name: nm for name, nm in planned.anchor_noise.items() if name == "one-way" or not dense}
    anchors, anchor_events = anchor.measure(codes, resolved.cardinalities, target, noise=tables, key=key)
    progress.phase("anchor", 1)
    if dense:
        return _density(config, planned, codes, replace(surveyed, schema=resolved), anchors, anchor_events, key,
                        progress)
    device = _device(config.performance.device)
    public_rows = max(round(surveyed.rows), 1)
    vae = _new_model(config, planned, resolved, device)
    state = Trainer(plan=planned, config=config, vae=vae, codes=torch.as_tensor(codes, device=device).long(),
                    anchors=anchors, rows=public_rows, key=key, checkpoint=run.checkpoint,
                    listen=progress.listen, processes=processes,
                    orders=[code_order(column) for column in resolved.columns]).fit()
    events = (*surveyed.events, *anchor_events, *planned.events()[len(surveyed.events) + len(anchor_events):])
    if events != planned.events():
        raise AssertionError("the events drawn are not the events reserved")
    return _Result(vae.cpu(), resolved, surveyed.rows, events, state.metrics, anchors)


def _density(config: TrainConfig, planned: Plan, codes: Any, surveyed: Survey, anchors: Any,
             anchor_events: tuple[Event, ...], key: Any, progress: Progress) -> _Result:
    """The rest of ``trainer=density``; every draw is a function of the key, so a run that stopped starts it again."""
    import torch

    from dpvae.rng import seed_of
    from dpvae.train import density
    from dpvae.train.sleep import Sleep

    progress.begin("fit")
    vae, events = density.fit(
        codes, surveyed.schema, rows=anchors.rows, components=planned.components, seed=config.run.seed,
        noise={name: nm for name, nm in planned.anchor_noise.items() if name != "one-way"}, key=key,
        hidden=config.model.hidden, protected=config.privacy.noise)
    progress.phase("fit", 1)
    progress.begin("sleep")
    Sleep(vae).run(config.trainer.sleep_steps, generator=torch.Generator().manual_seed(
        seed_of(config.run.seed, "sleep", 0)))
    progress.phase("sleep", 1)
    drawn = (*surveyed.events, *anchor_events, *events)
    if drawn != planned.events():
        raise AssertionError("the events drawn are not the events reserved")
    return _Result(vae, surveyed.schema, surveyed.rows, drawn, [], anchors)


def _new_model(config: TrainConfig, planned: Plan, schema: Schema, device: Any) -> Any:
    import torch

    from dpvae.models.vae import VAE
    from dpvae.rng import seed_of

    model, codebook = config.model, planned.components > 0
    vae = VAE(schema.cardinalities, latent_dim=model.latent_dim or (64 if codebook else 16), hidden=model.hidden,
              layers=(0 if codebook else 1) if model.layers is None else model.layers,
              components=planned.components or None,
              generator=torch.Generator().manual_seed(seed_of(config.run.seed, "init")))
    return vae.to(device)


def _device(wanted: str) -> Any:
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("performance.device='cuda': no CUDA device is available here; try performance.device=auto")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def _publish(config: TrainConfig, planned: Plan, run: Any, ledger: Ledger, result: _Result) -> None:
    """Write ``public/``; nothing here was computed from private rows except through ``result.events``."""
    import torch

    from dpvae.evaluate.collapse import diagnose
    from dpvae.evaluate.latents import synthetic_map
    from dpvae.rng import seed_of
    from dpvae.train.checkpoint import save_model, write_bytes, write_json

    save_model(result.vae, run.public)
    write_json(run.public / "schema.json", result.schema.to_dict())
    write_json(run.public / "plan.json", planned.to_dict())
    shown = replace(config, ledger=replace(config.ledger, url=None), run=replace(config.run, root=""),  # no places
                    data=replace(config.data, path=None, schema=config.data.schema and Path(config.data.schema).name))
    write_json(run.public / "config.json", asdict(shown))
    write_bytes(run.public / "events.jsonl", write_events(result.events))
    lines = [json.dumps(metric, sort_keys=True) for metric in result.metrics]
    write_bytes(run.public / "metrics.jsonl", "".join(f"{line}\n" for line in lines).encode())
    write_json(run.public / "reference.json", {
        column.name: {"labels": list(column.labels), "noisy": table.tolist(), "sd": result.anchors.sd["one-way"]}
        for column, table in zip(result.schema.columns, result.anchors.one_way, strict=True)})
    generator = torch.Generator().manual_seed(seed_of(config.run.seed, "report"))
    write_json(run.public / "diagnostics.json", diagnose(result.vae, result.anchors.one_way, generator=generator))
    generator = torch.Generator().manual_seed(seed_of(config.run.seed, "map"))
    target = result.schema.names.index(result.schema.target) if result.schema.target is not None else None
    write_json(run.public / "map.json", {
        **synthetic_map(result.vae, column=target, generator=generator),
        "labels": list(result.schema.columns[target].labels) if target is not None else []})
    dataset = _dataset(config)
    drawn = NOISE | ({"padding": PADDING} if config.performance.compile and planned.sgd else {})
    rows = max(round(result.rows), 1)
    write_json(run.public / "claim.json", {
        "epsilon_target": config.privacy.epsilon, "delta": planned.delta, "neighbouring": planned.neighbouring,
        "unit": "row", "n_ref": rows, "n_ref_source": "declared" if config.data.rows else "measured",
        "private": config.privacy.secret_seed is None and config.privacy.noise,
        "divisor": planned.sgd.sampling_rate * rows if planned.sgd else None,
        "noise": "; ".join(f"{name}: {text}" for name, text in drawn.items()), "replay": REPLAY, "dataset": dataset,
        "ledger_head": ledger.head(), "ledger_rows": len(ledger.rows()),
        "cumulative_epsilon": _finite(ledger.spent(dataset, planned.delta).upper)})


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _finished(run: Any, planned: Plan, note: str = "") -> Run:
    assert planned.epsilon is not None
    epsilon = planned.epsilon
    if note == NOT_PRIVATE:
        epsilon = replace(epsilon, lower=math.inf, estimate=math.inf, upper=math.inf)
    return Run(run.path, planned, epsilon, note)


def _public_rows(run: Path) -> int:
    return int(read_run(run).claim.n_ref)
