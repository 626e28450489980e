"""A sweep as one spend: planned whole, refused whole, booked before its first job begins.

    booking = book(configs)        # BudgetError where all jobs together are over the cap; then nothing is booked
    print(booking)                 # what the sweep costs, and on which data set
    ...                            # each job finds its own reservation, as a resumed run does
    booking.give_back()            # jobs that never began cost nothing: their noise keys are destroyed first

Each job gets its run folder and its secret key here. So it is a run like any other: after a crash the same command
goes on with what is booked, and counts nothing twice.

A sweeper that chooses its jobs as it goes (Optuna) is booked by :func:`book_trials`: as many equal spends as it may
start, each a run folder whose settings are still open, and which a job takes with :func:`take`. So it may only choose
what leaves the plan's events as they are (:data:`FREE`); a job with other events finds nothing booked and is refused.
"""

from __future__ import annotations

import contextlib
import datetime
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpvae import api
from dpvae.config import NEIGHBOURS, RunConfig, TrainConfig
from dpvae.errors import ConfigError, RunError
from dpvae.files import write_json
from dpvae.modalities import Task
from dpvae.privacy.accountant import Epsilon, price, rounded_up
from dpvae.privacy.chain import UnknownOutcome
from dpvae.privacy.ledger import Ask, Ledger, Reservation
from dpvae.privacy.ledger_view import Account, account
from dpvae.privacy.plan import Plan

if TYPE_CHECKING:
    from dpvae.train.run import RunFolder

FREE = (  # knobs, and groups of them, that no event depends on
    "model", "performance", "report", "run.seed", "trainer.clip_norm", "trainer.fit_steps", "trainer.latent_samples",
    "trainer.learning_rate", "trainer.sleep_steps")


@dataclass
class Booking:
    """What is booked for a sweep; ``jobs`` holds those that were made here."""

    text: str
    jobs: list[tuple[Any, Ledger, Reservation]] = field(default_factory=list)

    def __str__(self) -> str:
        return self.text

    def give_back(self) -> None:
        """Abort the reservations of jobs that never began. A key that no longer exists draws no noise."""
        for run, ledger, reservation in self.jobs:
            with contextlib.suppress(RunError):  # another process is at work on it, or it is gone
                with run.lock():
                    unused = not run.begun
                    if unused:
                        run.discard()
                if unused:
                    ledger.abort(reservation, "the sweep ended before this job began; its noise key is destroyed")
        self.jobs.clear()


def cost(plans: Sequence[Plan]) -> Epsilon:
    """All jobs together, at the smallest delta that any of them has, under the strictest relation."""
    relation = max((plan.neighbouring for plan in plans), key=NEIGHBOURS.index)
    return price([event for plan in plans for event in plan.events()], delta=min(plan.delta for plan in plans),
                 neighbouring=relation)


def preview(configs: Sequence[TrainConfig]) -> str:
    """What ``dpvae plan -m`` says first; opens no data."""
    return f"a sweep of {len(configs)} jobs, together {cost([api.plan(config) for config in configs])}"


def book(configs: Sequence[TrainConfig]) -> Booking:
    """Reserve every job of a sweep, in one transaction per ledger; all or nothing."""
    from dpvae.train.run import open_run

    return _book(configs, open_run)


def preview_trials(config: TrainConfig, count: int) -> str:
    """What ``dpvae plan -m`` says first of a sweeper that chooses as it goes."""
    return f"a sweep of up to {count} jobs, together {cost([api.plan(config)] * count)}"


def book_trials(config: TrainConfig, count: int) -> tuple[Booking, list[str]]:
    """Reserve ``count`` equal jobs whose free settings are still open, and the names of their runs; all or nothing."""
    base = config.run.name or datetime.datetime.now().strftime("%Y%m%d-%H%M%S-") + uuid.uuid4().hex[:6]
    names = [f"{base}-trial{i}" for i in range(count)]
    return _book([replace(config, run=replace(config.run, name=name)) for name in names], _open_trial), names


def check_free(keys: Collection[str]) -> None:
    """:class:`ConfigError` where a sweeper that chooses as it goes would choose what a job costs."""
    for key in keys:
        if not any(key == free or key.startswith(f"{free}.") for free in FREE):
            raise ConfigError(f"{key}: this sweeper chooses its jobs as it goes, so what they cost must be known "
                              f"before; expected only {', '.join(FREE)} to be swept. Sweep {key} without hydra/sweeper")


def take(config: TrainConfig) -> None:
    """Give the run that was booked for this job the settings that the sweeper chose."""
    from dpvae.train.run import find_run, settings_digest

    run = find_run(str(config.run.name), config.run.root)
    with run.lock():
        if run.record["settings"] is None:
            write_json(run.path / "run.json", {**run.record, "settings": settings_digest(config)})


def score(config: TrainConfig) -> float:
    """A finished run's last noisy ELBO, in nats per row: released and paid for, so a sweeper may look at it."""
    from dpvae.report.source import read_run

    return read_run(Path(config.run.root) / str(config.run.name)).metrics[-1].noisy_elbo


def _open_trial(config: TrainConfig) -> Any:
    """The run of this name if it is there (from a sweep that was stopped), else a new one with open settings."""
    from dpvae.train.run import RunFolder, open_run

    path = Path(config.run.root) / str(config.run.name)
    if (path / "run.json").is_file():
        return RunFolder(path)
    run = open_run(config)
    write_json(run.path / "run.json", {**run.record, "settings": None})
    return run


def _book(configs: Sequence[TrainConfig], open_: Callable[[TrainConfig], Any]) -> Booking:
    """Give every job its run folder and key, and book them all; on all ledgers or on none."""
    booking, made = Booking(""), list[Any]()
    with ExitStack() as held:
        try:
            jobs = list(_jobs(configs, open_, made, held))
            by_ledger: dict[str, list[_Job]] = {}
            for job in jobs:
                if not job.run.finished:
                    by_ledger.setdefault(api.ledger_place(job.config), []).append(job)
            lines = [_reserve(several, booking) for several in by_ledger.values()]
        except UnknownOutcome:
            raise  # perhaps it is booked: the same command finds it by these runs
        except BaseException:
            for run in made:
                run.discard()
            for _, ledger, reservation in booking.jobs:
                ledger.abort(reservation, "the sweep was refused as a whole; its noise keys are destroyed")
            raise
    booking.text = "; ".join([f"a sweep of {len(configs)} jobs, together {cost([job.task.plan for job in jobs])}",
                              *lines])
    return booking


@dataclass(frozen=True)
class _Job:
    config: TrainConfig
    task: Task
    run: RunFolder

    @property
    def ask(self) -> Ask:
        """What it wants booked."""
        return api.ask(self.config, self.task, self.run)


def _jobs(configs: Sequence[TrainConfig], open_: Callable[[TrainConfig], Any], made: list[Any], held: ExitStack
          ) -> Iterator[_Job]:
    """The jobs with their run folders, locked while ``held``; ``made`` gathers the new ones."""
    prepared: dict[TrainConfig, Task] = {}  # jobs that differ in their run alone are planned once
    seen = set()
    for config in configs:
        same = replace(config, run=RunConfig())
        if same not in prepared:
            prepared[same] = api.prepare(config)
        run = open_(config)
        if run.fresh:
            made.append(run)
        if run.path in seen:  # two jobs that are the same run: the second finds it finished
            continue
        seen.add(run.path)
        held.enter_context(run.lock())
        yield _Job(config, prepared[same], run)


def _reserve(jobs: Sequence[_Job], booking: Booking) -> str:
    """Book the jobs of one ledger; says what its data sets have spent then."""
    ledger = api.open_ledger(jobs[0].config)
    asks = [job.ask for job in jobs]
    reservations = ledger.reserve_all(asks, sweep=uuid.uuid4().hex)
    booking.jobs += [(job.run, ledger, reservation)
                     for job, reservation in zip(jobs, reservations, strict=True) if job.run.fresh]
    accounts = [account(ledger, ledger.rows(), name) for name in dict.fromkeys(ask.dataset for ask in asks)]
    return "; ".join(map(_state, accounts))


def _state(each: Account) -> str:
    spent = "no bound" if each.spent is None else rounded_up(each.spent)
    return f"data set {each.dataset!r} has then spent {spent}{' (no cap)' if each.cap is None else f' of {each.cap:g}'}"
