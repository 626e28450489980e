"""A sweep as one spend: planned whole, refused whole, booked before its first job begins.

    booking = book(configs)        # BudgetError where all jobs together are over the cap; then nothing is booked
    print(booking)                 # what the sweep costs, and on which data set
    ...                            # each job finds its own reservation, as a resumed run does
    booking.give_back()            # jobs that never began cost nothing: their noise keys are destroyed first

Each job gets its run folder and its secret key here. So it is a run like any other: after a crash the same command
goes on with what is booked, and counts nothing twice.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from dpvae import api
from dpvae.config import NEIGHBOURS, TrainConfig
from dpvae.errors import RunError
from dpvae.privacy.accountant import Epsilon, price
from dpvae.privacy.ledger import Ask, Ledger, Reservation
from dpvae.privacy.ledger_view import Account, account
from dpvae.privacy.plan import Plan


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

    booking, plans, made = Booking(""), [], []
    wanted: dict[str, list[_Job]] = {}
    with ExitStack() as held:
        try:
            seen = set()
            for config in configs:
                _, planned, rows = api.prepare(config)
                run = open_run(config)
                if run.fresh:
                    made.append(run)
                if run.path in seen:  # two jobs that are the same run: the second finds it finished
                    continue
                seen.add(run.path)
                held.enter_context(run.lock())
                plans.append(planned)
                if not run.finished:
                    wanted.setdefault(api.ledger_place(config), []).append(
                        _Job(config, planned, run, api.ask(config, planned, rows, run)))
            lines = [_reserve(jobs, booking) for jobs in wanted.values()]
        except BaseException:
            for run in made:
                run.discard()
            for _, ledger, reservation in booking.jobs:
                ledger.abort(reservation, "the sweep was refused as a whole; its noise keys are destroyed")
            raise
    booking.text = "; ".join([f"a sweep of {len(configs)} jobs, together {cost(plans)}", *lines])
    return booking


@dataclass(frozen=True)
class _Job:
    config: TrainConfig
    plan: Plan
    run: Any
    ask: Ask


def _reserve(jobs: Sequence[_Job], booking: Booking) -> str:
    """Book the jobs of one ledger; says what its data sets have spent then."""
    for job in jobs:
        ledger = api.open_ledger(job.config, job.plan)
    reservations = ledger.reserve_all([job.ask for job in jobs], sweep=uuid.uuid4().hex)
    booking.jobs += [(job.run, ledger, reservation)
                     for job, reservation in zip(jobs, reservations, strict=True) if job.run.fresh]
    accounts = [account(ledger, ledger.rows(), name) for name in dict.fromkeys(job.ask.dataset for job in jobs)]
    return "; ".join(map(_state, accounts))


def _state(each: Account) -> str:
    spent = "no bound" if each.spent is None else f"{each.spent:.3f}"
    return f"data set {each.dataset!r} has then spent {spent}{' (no cap)' if each.cap is None else f' of {each.cap:g}'}"
