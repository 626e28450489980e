"""The verbs, as functions of plain configuration: plan, train, release, audit.

    plan     public facts -> a Plan           opens no data, spends nothing
    train    a table -> a Run                 books its events first, then spends them
    release  a Run -> a folder to publish     costs nothing
    audit    a Run -> a verdict on its claim  trains twins on made-up rows; reads no private row
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpvae.config import AuditConfig, ReleaseConfig, TrainConfig
from dpvae.data.place import LAKES, dataset, scheme_of, shown
from dpvae.errors import BudgetError, ConfigError, DPVAEError, RunError
from dpvae.modalities import Result, Task, modality, released
from dpvae.privacy.accountant import Epsilon
from dpvae.privacy.chain import UnknownOutcome
from dpvae.privacy.ledger import Ask, Cap, Ledger, Reservation, content_tag
from dpvae.privacy.plan import Plan
from dpvae.public import write_public
from dpvae.report.progress import Progress, warn
from dpvae.report.run import report_run
from dpvae.report.source import read_run
from dpvae.report.track import ready, track

if TYPE_CHECKING:
    from dpvae.train.parallel import Processes
    from dpvae.train.run import RunFolder

NOT_PRIVATE = "NOT PRIVATE: privacy=off, no noise was added; nothing was booked, and this run cannot be released"


@dataclass(frozen=True)
class Run:
    """A finished run: where it is (``path``, its folder), what was planned, and what it guarantees.

    ``epsilon`` is what the run spent, with its delta, unit and the bracket of the accountants; ``note`` says why
    nothing was trained, or why nothing is guaranteed; ``guessed`` which facts about columns the noise hid.
    """

    path: Path
    plan: Plan
    epsilon: Epsilon
    note: str = ""
    guessed: str = ""

    def __str__(self) -> str:
        done = f"{self.note}\n" if self.note else ""
        guessed = f"\n  {self.guessed}" if self.guessed else ""
        name = self.path.name
        run = name if self.path.parent == Path("runs") else self.path
        return (f"{done}run {name}: {self.epsilon}{guessed}\n  report   {self.path}/public/report.html\n"
                f"  next     dpvae release run={run} rows={self.plan.rows} to=release/{name}")


def plan(config: TrainConfig) -> Plan:
    """What ``config`` would spend, and on what: shares, noise, batches and steps, and the epsilon they come to.

    Reads names, types and declarations; no record; costs no privacy. Raises :class:`ConfigError` or
    :class:`SchemaError` where the public facts make no plan, :class:`DataError` where a header cannot be read.
    The rule is measured: ``docs/reference/rules.md``.
    """
    return modality(config.data.kind).plan(config)


def train(config: TrainConfig, table: Any = None) -> Run:
    """Train as ``config`` says on its file, or on ``table`` (a DataFrame, an Arrow table, an array).

    Everything that can be refused is refused before a key is drawn or a budget is touched; then the whole plan is
    reserved on the ledger in one transaction, and only then is noise drawn.

    Costs what :func:`plan` says, at most ``config.privacy.epsilon``, whether or not it ends well: a crash counts as
    spent, and the same ``config`` with a ``run.name`` goes on where it stopped for nothing more. Raises
    :class:`ConfigError`, :class:`SchemaError` and :class:`DataError` for what is wrong with the input,
    :class:`BudgetError` over the data set's cap, :class:`LedgerError` without a whole ledger, :class:`RunError` where
    the name is taken by other settings: nothing is spent then.
    """
    if config.sweep.private:
        raise ConfigError("sweep.private=true: expected a sweep to choose from; say dpvae train -m model.hidden=64,128")
    task = prepare(config, table)
    from dpvae.train.parallel import announcing, leave, together
    from dpvae.train.run import open_run

    processes = together()
    with ExitStack() as stack:
        stack.callback(leave)
        if processes is not None and not processes.first:
            return _follow(config, task, processes)
        say = stack.enter_context(announcing(processes))
        run = open_run(config)
        stack.enter_context(run.lock())
        if run.finished:
            bind(run, task)
            if not run.complete:
                report_run(run.path)
            return _finished(run, task.plan, NOT_PRIVATE if not config.privacy.noise else
                             "this run is finished already; nothing was spent")
        bind(run, task)
        if not config.privacy.noise:
            fulfil(config, task, run, _unbooked(config, run), processes=processes, say=say)
        else:
            warn(config.report.progress, task.plan.warning)
            ledger, reservation = reserve(config, lambda: ask(config, task, run), run)
            fulfil(config, task, run, ledger, processes=processes, say=say)
            ledger.commit(reservation)
        run.finish()
    report_run(run.path)
    track(config.report, run.path)
    return _finished(run, task.plan, NOT_PRIVATE if not config.privacy.noise else "")


def _follow(config: TrainConfig, task: Task, processes: Processes) -> Run:
    """Train along with the first process, which alone books, writes and reports."""
    from dpvae.train.run import RunFolder

    what, path, content = processes.tell()
    if what == "stop":
        raise RunError(f"process {processes.rank}: the first process has nothing to train; see what it says")
    if content != task.fingerprint():
        raise RunError(f"process {processes.rank}: reads other rows than the first process; expected the same file")
    run = RunFolder(path)
    with Progress("quiet", task.plan) as progress:
        _spend(config, task, run, progress, processes)
    return _finished(run, task.plan, f"process {processes.rank} is done")


def release(config: ReleaseConfig | str | Path, model: Any = None, *, rows: int | None = None, seed: int = 0
            ) -> Path | str:
    """Release from a finished run: ``release(ReleaseConfig(...))`` or ``release(to, model, rows=)``.

    ``to`` is a folder, a lake table (:mod:`dpvae.publish`) or a database; ``model`` a :class:`Run`, or anything fitted
    that holds one as ``run_``. Returns where it is. Raises :class:`ReleaseError` where the run is not private or the
    place is taken. Costs no privacy.
    """
    from dpvae.release.bundle import write_release
    from dpvae.train.run import find_run

    if not isinstance(config, ReleaseConfig):
        config = ReleaseConfig(run=str(_held(model).path), to=str(config), rows=rows, seed=seed)
    run = find_run(config.run, config.root).path
    count = config.rows if config.rows is not None else int(read_run(run).claim.n_ref)
    made, how, scheme = released(run / "public"), _how(config), scheme_of(config.to)
    if (how and not getattr(made, "SHARED", False)) or (scheme and not getattr(made, "IN_PARTS", False)):
        raise ConfigError(f"to={config.to}, engine, workers: expected a run on a table; this one was trained on "
                          "something else, release it to a folder")
    unlike = _unlike(config, run)
    if scheme is not None:
        return _store(config, run, count, how)
    if unlike is not None:
        how["unlike"] = unlike
    folder = write_release(run, made.writer(run / "public", count, seed=config.seed, **how), rows=count,
                           to=Path(config.to), seed=config.seed, model=config.with_model,
                           unlike=unlike.statement if unlike is not None else None)
    _register(config, folder)
    return folder


def _held(model: Any) -> Run:
    """The run of something fitted, or the run itself."""
    run = getattr(model, "run_", model)
    if not isinstance(run, Run):
        raise ConfigError(f"model={type(model).__name__}: expected a fitted DPVAE or a Run to release")
    return run


def _store(config: ReleaseConfig, run: Path, rows: int, how: dict[str, Any]) -> str:
    """Release ``run`` to a table of a lake or a database; returns its name without a password."""
    from dpvae import publish

    if scheme_of(config.to) in LAKES:
        publish.publish(run, config.to, rows=rows, seed=config.seed, audit=lambda: audit(str(run), quick=True), **how)
    else:
        publish.into_database(run, config.to, rows=rows, seed=config.seed, **how)
    return shown(config.to)


def _register(config: ReleaseConfig, folder: Path) -> None:
    """Write what the public registry of deployments asks beside a release, where a curator is named."""
    from dpvae.release import schemas

    about = config.registry
    if about.curator is not None:
        schemas.export(folder, folder.with_name(f"{folder.name}.registry.json"), schemas.Deployment(
            curator=about.curator, curator_kind=about.kind, intended_use=str(about.use), region=str(about.region),
            sector=about.sector))


def _how(config: ReleaseConfig) -> dict[str, Any]:
    """Who draws the rows, where that was asked for; never which rows are drawn."""
    asked = {"engine": config.engine, "workers": config.workers}
    return {} if asked == {"engine": "local", "workers": None} else asked


def _unlike(config: ReleaseConfig, run: Path) -> Any:
    """What drawn texts are kept away from, if anything."""
    from dpvae.release.texts import is_texts
    from dpvae.release.unlike import Unlike

    if config.unlike is None:
        return None
    if not is_texts(run / "public"):
        raise ConfigError(f"unlike={config.unlike}: expected a run on texts; this one was trained on something else")
    return Unlike.of(config.unlike)


def audit(config: AuditConfig | str | Path, *, quick: bool = False) -> Any:
    """A :class:`dpvae.audit.run.AuditReport` on a finished run, written into its ``public`` folder as audit.html/json.

    Everything is asked of twins, trained on rows drawn from the released model: no private row is read, and nothing is
    spent. Raises :class:`RunError` where there is no finished run.
    """
    from dpvae.audit.run import audit_run
    from dpvae.train.run import find_run

    if not isinstance(config, AuditConfig):
        config = AuditConfig(run=str(config), quick=quick)
    run = find_run(config.run, config.root).path
    found = audit_run(run, train, quick=config.quick)
    report_run(run)  # with the audit's verdict under the claim
    return found


def self_test(tell: Callable[[str], Any] = lambda line: None) -> list[Any]:
    """Break dpvae in every way of the audit's catalogue; ``tell`` hears a line per mutant. Returns what was missed."""
    from dpvae.audit.battery import self_test as broken

    return [caught for caught in broken(train, tell=lambda caught: tell(str(caught))) if not caught.by]


def prepare(config: TrainConfig, table: Any = None) -> Task:
    """Everything of :func:`train` that can be refused before a key is drawn or a budget is touched."""
    _limit_threads(config)
    _check_sharding(config)
    ready(config.report)
    task = modality(config.data.kind).prepare(config, table)
    from dpvae.train.device import device_of

    device_of(config.performance.device)
    return task


def bind(run: RunFolder, task: Task) -> None:
    """Refuse records, or a schema, that ``run`` was not begun with: its noise must not be used on others."""
    run.bind_data(task.fingerprint(), task.declared())


def fulfil(config: TrainConfig, task: Task, run: RunFolder, ledger: Ledger, *, processes: Processes | None = None,
           say: Any = None) -> None:
    """Draw what is booked on ``ledger`` for ``run``, and write its ``public/``; with the other ``processes``, which
    hear of it by ``say``."""
    bind(run, task)
    run.begin()
    if say is not None:
        say("train", run.path, task.fingerprint())
    with Progress(config.report.progress, task.plan) as progress:
        result = _spend(config, task, run, progress, processes)
    write_public(run, config, task.plan, ledger, result, dataset=_dataset(config))


def ask(config: TrainConfig, task: Task, run: RunFolder) -> Ask:
    """What ``run`` wants booked, with the cap that ``config`` may set."""
    limit, planned = config.ledger, task.plan
    unit = config.data.protects
    cap = None if limit.cap_epsilon is None else Cap(limit.cap_epsilon, limit.cap_delta or planned.delta, unit)
    return Ask(_dataset(config), run.record["ledger_run"], planned.events(), planned.delta, planned.neighbouring,
               noise=run.key().tag(b"noise"), cap=cap, unit=unit,
               content=content_tag(ledger_place(config), task.fingerprint(), config.run.root))


def ledger_place(config: TrainConfig) -> str:
    """The URL or the file of the ledger that ``config`` names."""
    return config.ledger.url or str(Path(config.run.root) / "ledger.db")


def open_ledger(config: TrainConfig) -> Ledger:
    """The ledger of ``config``."""
    return Ledger.open(ledger_place(config))


def reserve(config: TrainConfig, wanted: Callable[[], Ask], run: RunFolder) -> tuple[Ledger, Reservation]:
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


def _limit_threads(config: TrainConfig) -> None:
    if config.performance.threads is not None:
        import torch

        torch.set_num_threads(config.performance.threads)


def _check_sharding(config: TrainConfig) -> None:
    """Refuse ``performance.sharding=fsdp`` where there is no DP-SGD to share, or nobody to share it with."""
    if config.performance.sharding == "none":
        return
    if config.data.kind != "table" or config.trainer.name == "density":
        raise ConfigError("performance.sharding=fsdp: shards DP-SGD on a table's model; expected data.kind=table and "
                          "trainer=anchored, decoder_only or joint")
    from dpvae.train.parallel import launched

    if not launched():
        raise ConfigError("performance.sharding=fsdp: this is one process, with none to share a model; expected "
                          "torchrun --nproc-per-node 2 -m dpvae train ..., or performance.sharding=none")


def _unbooked(config: TrainConfig, run: RunFolder) -> Ledger:
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
    return config.ledger.dataset or config.data.builtin or (dataset(path) if path else "table")


def _spend(config: TrainConfig, task: Task, run: RunFolder, progress: Progress, processes: Processes | None) -> Result:
    """Everything that touches private records; what it drew must be what was reserved."""
    result = task.spend(run, progress, processes)
    if result.events != task.plan.events():
        raise AssertionError("the events drawn are not the events reserved")
    return result


def _finished(run: RunFolder, planned: Plan, note: str = "") -> Run:
    assert planned.epsilon is not None
    epsilon = planned.epsilon
    if note == NOT_PRIVATE:
        epsilon = replace(epsilon, lower=math.inf, estimate=math.inf, upper=math.inf)
    return Run(run.path, planned, epsilon, note, _guessed(run.path, planned))


def _guessed(path: Path, planned: Plan) -> str:
    """What of the released schema is a guess, in a sentence."""
    from dpvae.data.guess import said
    from dpvae.report.source import schema_columns

    schema = path / "public" / "schema.json"
    found = said(schema_columns(json.loads(schema.read_text()))) if schema.is_file() else ""
    unknown = found and planned.facts.rows is None
    return found + ("; where the number of rows is public, data.rows gives a small table's survey more" if unknown
                    else "")
