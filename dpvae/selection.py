"""The best of a secret number of runs, released alone: tuning on private data at less than the price of all of them.

    run = select(configs)          # dpvae train -m model.hidden=64,128,256 sweep.private=true

After Papernot and Steinke, "Hyperparameter tuning with Renyi differential privacy" (2022, arXiv 2110.03620). One run of
the base mechanism picks one of the settings at random, trains, and scores itself by its last noisy ELBO, which it pays
for. It is repeated K times, where K is drawn from a truncated negative binomial law by secret randomness, and only the
best run is released (theorem 2 prices that: :class:`~dpvae.privacy.events.RepeatAndSelect`). So nothing else may leave:
the other runs, their number and which settings they had are in ``private/`` until the end, and then destroyed. How long
it took tells something of their number; the certificate lists timing among what it does not cover.

All settings must cost the same events: then the base mechanism costs them too, whichever setting it picks.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dpvae import api
from dpvae.config import ReportConfig, RunConfig, TrainConfig
from dpvae.errors import ConfigError, RunError
from dpvae.files import read_json, write_bytes, write_json
from dpvae.modalities import Task
from dpvae.privacy.accountant import Epsilon, price
from dpvae.privacy.events import RepeatAndSelect, Threshold
from dpvae.privacy.ledger import Ledger
from dpvae.privacy.mechanisms import number_of_runs
from dpvae.privacy.noise import SecretKey
from dpvae.privacy.plan import Plan
from dpvae.report.run import report_run
from dpvae.report.source import read_events, read_run, write_events

if TYPE_CHECKING:
    from dpvae.train.run import RunFolder


@dataclass(frozen=True)
class Selection:
    """What is chosen from, and the one event that pays for it."""

    configs: tuple[TrainConfig, ...]
    plans: tuple[Plan, ...]
    event: RepeatAndSelect
    epsilon: Epsilon

    def __str__(self) -> str:
        return (f"a private selection from {len(self.configs)} settings, {self.event.runs:g} runs in the mean, "
                f"together {self.epsilon}")


def plan(configs: Sequence[TrainConfig]) -> Selection:
    """The price of choosing among ``configs``; opens no data. :class:`ConfigError` where no theorem prices it."""
    first = configs[0]
    for config in configs:
        if replace(config, model=first.model, trainer=first.trainer, run=first.run) != first:
            raise ConfigError("sweep.private=true: expected jobs that differ in model, trainer or run.seed alone")
    plans = tuple(api.plan(config) for config in configs)
    trial = plans[0].events()
    for config, each in zip(configs, plans, strict=True):
        if each.events() != trial:
            raise ConfigError(f"sweep.private=true: trainer={config.trainer.name} with these knobs books other events "
                              "than the first job; expected settings that cost the same, such as model.hidden=64,128")
    if any(isinstance(event, Threshold) for event in trial):
        raise ConfigError("sweep.private=true: expected declared categories (data.schema); no theorem prices a "
                          "selection among runs that each publish values above a threshold")
    leaves = tuple(part for part in trial if not isinstance(part, (Threshold, RepeatAndSelect)))
    what = f"the best by noisy ELBO of a secret number of runs, among {len(configs)} settings"
    event = RepeatAndSelect("selection", what, leaves, first.sweep.runs or float(len(configs)), first.sweep.shape)
    paid = price([event], delta=plans[0].delta, neighbouring=plans[0].neighbouring)
    if paid.upper > first.privacy.max_epsilon:
        raise ConfigError(f"sweep.private=true: the selection costs {paid}; expected at most privacy.max_epsilon="
                          f"{first.privacy.max_epsilon:g}. Lower privacy.epsilon, which is what one run may spend")
    return Selection(tuple(configs), plans, event, paid)


def select(configs: Sequence[TrainConfig]) -> api.Run:
    """Book the selection, make its runs, release the best one as the run of ``configs[0]``'s name."""
    from dpvae.train.run import open_run

    chosen = plan(configs)
    task = api.prepare(configs[0])
    run = open_run(configs[0])
    with ExitStack() as stack:
        stack.enter_context(run.lock())
        trials = run.private / "trials"
        api.bind(run, task)
        if not run.finished:
            ledger, reservation = api.reserve(
                configs[0], lambda: replace(api.ask(configs[0], task, run), events=(chosen.event,)), run)
            _same_grid(run, configs)
            run.begin()
            best = _best(chosen, task, trials, run.key(), ledger)
            _publish(run, best, chosen, ledger)
            if read_events((run.public / "events.jsonl").read_bytes(), "events.jsonl") != reservation.events:
                raise AssertionError("the events published are not the events reserved")
            ledger.commit(reservation)
            run.finish()
        shutil.rmtree(trials, ignore_errors=True)  # after the run is marked: else a crash here would spend anew
    report_run(run.path)
    return api.Run(run.path, chosen.plans[0], chosen.epsilon)


def _same_grid(run: RunFolder, configs: Sequence[TrainConfig]) -> None:
    """After a crash the same settings must be chosen from, in the same order: the draws are numbers of settings."""
    from dpvae.train.run import settings_digest

    found, path = "\n".join(map(settings_digest, configs)).encode(), run.private / "settings"
    if not path.is_file():
        write_bytes(path, found)
    if path.read_bytes() != found:
        raise RunError(f"run={run.path.name}: this selection was begun among other settings; give the same command to "
                       "resume it, or choose another run.name")


def _best(chosen: Selection, task: Task, trials: Path, key: SecretKey, ledger: Ledger) -> Path:
    """The run with the largest last noisy ELBO of K, each with a setting drawn at random; K is never shown."""
    from dpvae.train.run import open_run

    stream = key.stream("selection")
    count = number_of_runs(chosen.event.runs, chosen.event.shape, stream)
    picks = [int(u * len(chosen.configs)) for u in stream.uniform(count)]
    found = []
    for i, pick in enumerate(picks):
        config = replace(chosen.configs[pick], report=ReportConfig(progress="quiet"),
                         run=RunConfig(root=str(trials), name=f"trial-{i}", seed=chosen.configs[pick].run.seed))
        trial = open_run(config)
        with trial.lock():
            if not trial.finished:
                api.fulfil(config, task.planned(config, chosen.plans[pick]), trial, ledger)
                trial.finish()
        found.append((read_run(trial.path).metrics[-1].noisy_elbo, trial.path))
    return max(found, key=lambda scored: scored[0])[1]


def _publish(run: RunFolder, best: Path, chosen: Selection, ledger: Ledger) -> None:
    """The best run's ``public/``, with the selection as its one event and its price in every place that names one."""
    upper = math.ceil(chosen.epsilon.upper * 1000) / 1000
    shutil.copytree(best / "public", run.public, copy_function=shutil.copyfile, dirs_exist_ok=True)
    config = read_json(run.public / "config.json")  # the number of the best run would tell of K
    write_json(run.public / "config.json", {**config, "run": {**config["run"], "name": run.path.name}})
    write_bytes(run.public / "events.jsonl", write_events((chosen.event,)))
    claim = read_json(run.public / "claim.json")
    spent = ledger.spent(claim["dataset"], chosen.epsilon.delta).upper
    write_json(run.public / "claim.json", {
        **claim, "epsilon_target": upper, "ledger_head": ledger.head(), "ledger_rows": len(ledger.rows()),
        "cumulative_epsilon": spent if math.isfinite(spent) else None})
    write_json(run.public / "plan.json", {
        **read_json(run.public / "plan.json"),
        "selection": {"runs": chosen.event.runs, "shape": chosen.event.shape, "epsilon": asdict(chosen.epsilon)}})
    metrics = [json.loads(line) for line in (run.public / "metrics.jsonl").read_text().splitlines()]
    lines = [json.dumps({**metric, "epsilon_spent": upper}, sort_keys=True) + "\n" for metric in metrics]
    write_bytes(run.public / "metrics.jsonl", "".join(lines).encode())
