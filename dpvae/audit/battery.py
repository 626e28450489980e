"""The audit of a program: replay tests of its trainer, tests of it as a whole, and the proof that both have power.

    battery = gather(all_stages(Program(train, config, table, people)))
    caught = self_test(train)          # every mutant of the catalogue, and the test that caught it
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from dpvae.audit import pipeline, replay, scenes
from dpvae.audit.mutants.base import CLIPPINGS, TRAINED, Mutant
from dpvae.audit.mutants.catalogue import CATALOGUE
from dpvae.audit.pipeline import Program
from dpvae.audit.runner import Claim, Stage
from dpvae.audit.secrecy import of_large_tables
from dpvae.audit.twin import Train, TwinRunner, capture, claim_of
from dpvae.audit.verdict import Battery, Finding, judge
from dpvae.config import DATA_KINDS, DataConfig, PrivacyConfig, TrainConfig, TrainerConfig
from dpvae.modalities import modality
from dpvae.privacy.noise import SecretKey
from dpvae.privacy.plan import SgdPlan

SURE = 1e-6  # a p-value that no family of less than a thousand tests forgives
MICROBATCH = 16  # so that a batch comes in parts
STEPS = 64  # of DP-SGD at least: what comes late in a run must be seen in a short one
ROWS, POSED = 90, 48
LEANS = PrivacyConfig(epsilon=40.0, max_epsilon=40.0, delta=1e-5)  # at 8, noise hides how so few images lean
ANCHORS = {"images": 0.7, "text": 0.7, "posed": 1.0}  # share; by themselves so few records would have no DP-SGD


def step_stages(train: Train, config: TrainConfig, table: Any, *, claim: Claim | None = None, clipping: str = "auto",
                where: str = "", quick: bool = False) -> Iterator[Stage]:
    """Replay tests of the trainer that ``train`` builds; ``claim``: what was booked, where that is another plan."""
    trainer = capture(train, config, table)
    if trainer is None or trainer.plan.sgd is None:
        yield [], [], ["T1, T2, T3, T4, T7: this plan has no DP-SGD"]
        return
    if claim is None:
        claim = replace(claim_of(trainer), steps=max(trainer.plan.sgd.steps, STEPS))
    else:
        sgd = SgdPlan(noise_multiplier=claim.noise_multiplier, sampling_rate=claim.sampling_rate, steps=claim.steps,
                      clip_norm=claim.clip_norm, latent_samples=trainer.plan.sgd.latent_samples)
        trainer = replace(trainer, plan=replace(trainer.plan, sgd=sgd))
    claim = replace(claim, divisor=claim.sampling_rate * (config.data.rows or trainer.rows))
    runner = TwinRunner(trainer, claim, clipping, MICROBATCH)
    scene = scenes.scene(trainer, where=where, quick=quick)
    yield of_large_tables(SecretKey.from_seed(scene.key(9)), claim.sampling_rate, where), [], []
    yield from replay.stages(runner, claim, scene)


def program_stages(program: Program) -> Iterator[Stage]:
    """Tests of the program as a whole."""
    for findings, left_out in pipeline.stages(program):
        yield findings, [], left_out


def all_stages(program: Program, *, claim: Claim | None = None) -> Iterator[Stage]:
    """Everything this audit knows to ask about ``program``; ``claim``: what a released run booked for DP-SGD."""
    yield from survived(step_stages(program.train, program.config, program.table, claim=claim, quick=program.quick,
                                    clipping=program.config.performance.clipping, where=program.where), program.where)
    yield from survived(program_stages(program), program.where)


def survived(several: Iterator[Stage], where: str = "") -> Iterator[Stage]:
    """The stages until one raises: a program that ends on made-up rows is a finding, not an end of the audit."""
    try:
        yield from several
    except Exception as error:
        yield [Finding("P1", "the program runs", 0.0, f"{type(error).__name__}: {error}", where)], [], []


def gather(several: Iterable[Stage], *, until: Callable[[Finding], bool] | None = None) -> Battery:
    """All stages judged as one family; stops after the first stage in which ``until`` holds."""
    findings, bounds, left_out = [], [], []
    for found, proved, missing in several:
        findings += found
        bounds += proved
        left_out += missing
        if until is not None and any(until(f) for f in found):
            break
    return judge(findings, bounds=bounds, left_out=list(dict.fromkeys(left_out)))


# -- the proof of power ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Caught:
    """What became of one mutant."""

    mutant: str
    says: str
    trainer: str
    clipping: str
    by: tuple[str, ...]
    seen: str

    def __str__(self) -> str:
        verdict = f"caught by {' '.join(self.by)}: {self.seen}" if self.by else "MISSED"
        return f"{self.trainer:12} {self.clipping:5} {self.mutant}: {verdict}"


def self_test(train: Train, *, trainers: Sequence[str] = TRAINED, clippings: Sequence[str] = CLIPPINGS,
              mutants: Sequence[Mutant] = CATALOGUE, tell: Callable[[Caught], None] = lambda caught: None,
              kinds: Sequence[str] = DATA_KINDS) -> list[Caught]:
    """Break the program in every way of the catalogue, and see which test notices; in memory, on made-up records.

    Images and texts have a trainer of their own, ``anchored``.
    """
    program = inspect.getmodule(train)
    assert program is not None
    done = []
    for kind, name, clipping in _settings(kinds, trainers, clippings):
        for mutant in mutants:
            if kind not in mutant.kinds or name not in mutant.trainers or clipping not in mutant.clippings:
                continue
            if clipping != clippings[0] and (mutant.whole or (clipping == "ghost" and mutant.clippings == CLIPPINGS)):
                continue  # nothing of it depends on how gradients are clipped, or two ways show enough
            done.append(_try(train, program, mutant, kind, name, clipping))
            tell(done[-1])
    return done


def _settings(kinds: Sequence[str], trainers: Sequence[str], clippings: Sequence[str]
              ) -> Iterator[tuple[str, str, str]]:
    for kind in (*kinds, *(("posed",) if "images" in kinds else ())):
        for name in trainers if kind == "table" else ("anchored",):
            several = kind not in ("text", "posed")
            yield from ((kind, name, clipping) for clipping in (clippings if several else clippings[:1]))


def _try(train: Train, program: ModuleType, mutant: Mutant, kind: str, name: str, clipping: str) -> Caught:
    config, records = specimen(name, clipping, kind=kind)
    with mutant.living(program):
        steps = survived(step_stages(train, config, records, clipping=clipping, quick=True))
        people = modality(config.data.kind).troublemakers(records)
        whole = survived(program_stages(Program(train, config, records, people)))
        several = [whole, steps] if mutant.whole else [steps, whole]  # first what is more likely to see it
        battery = gather(itertools.chain(*several), until=lambda finding: not finding.p > SURE)
    seen = next((f"{f.law}: {f.seen}" for f in battery.failed), "")
    return Caught(mutant.name, mutant.says, name if kind == "table" else kind, clipping, battery.caught_by, seen)


def specimen(name: str, clipping: str = "auto", *, kind: str = "table") -> tuple[TrainConfig, scenes.Rows]:
    """A few records and settings for them: what mutants are tried on, and false alarms are counted on. Images of kind
    ``posed`` are redrawn in the frames of their classes, and have no DP-SGD: that of ``images`` is the same."""
    records, data = {
        "table": lambda: (scenes.people(ROWS), DataConfig(target="income", rows=ROWS)),
        "images": lambda: (scenes.images(ROWS), DataConfig(kind="images", labels="0|1|2", rows=ROWS)),
        "text": lambda: (scenes.texts(ROWS), DataConfig(kind="text", text="text", label="label", labels="fun|money",
                                                        cap=32, rows=ROWS)),
        "posed": lambda: (scenes.leaning(POSED), DataConfig(kind="images", labels="0|1", rows=POSED)),
    }[kind]()
    config = TrainConfig(
        data=data, trainer=TrainerConfig(name=name, sampling_rate=0.2, steps=60, metric_releases=2,
                                         anchor_share=ANCHORS.get(kind)),
        privacy=LEANS if kind == "posed" else PrivacyConfig(epsilon=8.0, delta=1e-5))
    config = scenes.small(config)
    if clipping == "ghost" and kind != "table":  # takes one row a record
        config = replace(config, trainer=replace(config.trainer, latent_samples=1))
    return replace(config, performance=replace(config.performance, clipping=clipping)), records
