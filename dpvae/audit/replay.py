"""Replay tests of one DP-SGD trainer: what it releases, against what its claim says it may.

    battery = audit_step(make_trainer, Claim(clip_norm=1.0, noise_multiplier=1.2, sampling_rate=0.1, steps=50,
                                             divisor=20.0), rows)
    battery.passed, battery.caught_by

``make_trainer(rows, key)`` builds anything with :class:`StepTrainer`'s one method. It is run many times: with silent
noise (so that the clipped sum shows), on neighbouring tables with equal secrets, with forced and with empty batches,
under two keys. The tests ask for what the two laws of DP-SGD are, not for known mistakes:

    T1  one record more or less moves the sum by at most C, at every step, whatever that record holds, and by nothing
        where it was not sampled; every record gives what it would give alone: :mod:`dpvae.audit.neighbours`
    T2  released minus sum is independent N(0, (sigma C)^2), the same for any data, early and late; another key,
        another noise; it is what the secret streams gave: :mod:`dpvae.audit.step_noise`
    T3  participation is one independent coin of the claimed rate per record and step
    T4, T7  planted records: :mod:`dpvae.audit.canaries`
    T5  as many steps as claimed; no secret stream opened twice
    T6  n and n + 1 rows, and another table: the same steps, shapes, divisor, and whatever else steers the trainer

After dp-recorder (Cebere et al. 2026, arXiv 2602.17454), made native to DP-SGD. Reads no private row of anybody: the
rows are the auditor's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from dpvae.audit import canaries as planted
from dpvae.audit.instruments import NORMALS, Floats, seeded
from dpvae.audit.laws import sampling_law
from dpvae.audit.neighbours import additivity, sensitivity
from dpvae.audit.runner import FEW, ROUNDING, Claim, Person, Runner, Scene, Stage, StepRunner, StepTrainer, throughout
from dpvae.audit.step_noise import noise
from dpvae.audit.verdict import ALPHA, Battery, Bound, Finding, judge

__all__ = ["Claim", "Person", "StepRunner", "audit_step"]  # all that an audit of another trainer takes

T3_STEPS, T6_STEPS = 150, 40


def audit_step(make_trainer: Callable[[Any, Any], StepTrainer], claim: Claim, rows: Any, *,
               people: Sequence[Person] | None = None, canaries: Any = None, quick: bool = False, where: str = "",
               alpha: float = ALPHA) -> Battery:
    """Audit a trainer nobody has seen; the auditor's ``rows`` are any array of records along the first axis.

    Args:
        make_trainer: ``(rows, key) -> StepTrainer``; called some forty times.
        claim: what the accountant was told.
        people: adversarial records; by default, for a numeric matrix, NaN, infinite, huge, empty, duplicate and
            unusual rows.
        canaries: (m, ...) rows whose gradients differ (ideally orthogonal); without them, T4 and T7 are left out.
        quick: fewer people and shorter runs.
        alpha: chance that a correct trainer fails anything.
    """
    rows = np.asarray(rows)
    scene = Scene(rows, tuple(people) if people is not None else default_people(rows), canaries, where, quick)
    findings, bounds, left_out = examine(StepRunner(make_trainer, claim), claim, scene)
    return judge(findings, alpha=alpha, bounds=bounds, left_out=left_out)


def default_people(rows: Any) -> tuple[Person, ...]:
    """Adversarial records for a numeric matrix (n, D)."""
    first = np.asarray(rows)[0]
    if not np.issubdtype(first.dtype, np.floating):
        return (Person("a duplicate", first.copy()),)
    return (Person("a duplicate", first.copy()), Person("an empty record", np.zeros_like(first)),
            Person("NaN", np.full_like(first, np.nan)), Person("infinite", np.full_like(first, np.inf)),
            Person("huge", np.full_like(first, 1e30)), Person("opposite", -100 * first),
            Person("unique", np.where(np.arange(first.size).reshape(first.shape) == 0, 1e3, 0.0).astype(first.dtype)))


def stages(runner: Runner, claim: Claim, scene: Scene) -> Iterator[Stage]:
    """The replay tests, a group at a time: findings, lower bounds, and what could not be asked."""
    yield from ((found, [], []) for found in noise(runner, claim, scene))
    for ask in (additivity, counted, sensitivity):
        yield ask(runner, claim, scene), [], []
    if scene.canaries is not None and runner.run(scene.rows, seeded(scene.key(0)), steps=1).scripted:
        yield from planted_records(runner, claim, scene)
        return
    left_out: list[str] = []
    findings = _exposed_batches(runner, claim, scene, left_out)
    yield findings, [], [*left_out, "T4, T7: " + ("no canaries were given" if scene.canaries is None else
                                                  "batches are not drawn from the key")]


def examine(runner: Runner, claim: Claim, scene: Scene) -> Stage:
    """All :func:`stages` together."""
    findings: list[Finding] = []
    bounds: list[Bound] = []
    left_out: list[str] = []
    for found, proved, missing in stages(runner, claim, scene):
        findings += found
        bounds += proved
        left_out += missing
    return findings, bounds, left_out


# -- T5, T6 ----------------------------------------------------------------------------------------------------------


def counted(runner: Runner, claim: Claim, scene: Scene) -> list[Finding]:
    """T5: no stream twice. T6: what steers the trainer is the same for n + 1 rows."""
    steps, rows = min(claim.steps, T6_STEPS), scene.rows[:FEW]
    tables = [rows, np.concatenate([rows, rows[:1]]), np.repeat(rows[-1:], max(len(rows) // 3, 1), axis=0)]
    one, *others = [throughout(runner, claim, rows, seeded(scene.key(0)), steps=steps) for rows in tables]
    found = []
    normals = [draw.names for draw in one.draws if draw.kind in NORMALS]
    if normals:
        found.append(Finding("T5", "no noise stream is opened twice", float(len(set(normals)) == len(normals)),
                             f"{len(normals)} draws from {len(set(normals))} streams", scene.where))
    masks = {draw.names for draw in one.draws if draw.kind == "mask"}
    found.append(Finding("T5", "noise and coins never share a stream", float(not masks & set(normals)), "",
                         scene.where))
    drawn = [(d.names, d.kind) for d in one.draws if d.kind != "uniform"]
    for two, who in zip(others, ("n and n + 1 rows", "another table altogether"), strict=True):
        same = drawn == [(d.names, d.kind) for d in two.draws if d.kind != "uniform"]
        found.append(Finding("T6", f"{who}: the same draws in the same order", float(same), "", scene.where))
        differs = sorted(name for name in {*one.controls, *two.controls}
                         if not _equal(one.controls.get(name), two.controls.get(name)))
        found.append(Finding("T6", f"{who}: nothing that steers the run differs", float(not differs),
                             ", ".join(differs), scene.where))
    problems = [text for seen in (one, *others) for text in seen.problems]
    found.append(Finding("T5", "the run makes the steps it claims", float(not problems), "; ".join(problems),
                         scene.where))
    return found


def _equal(a: Any, b: Any) -> bool:
    return bool(np.array_equal(np.asarray(a, dtype=object), np.asarray(b, dtype=object)))


# -- T3, T4, T7 ------------------------------------------------------------------------------------------------------


def _exposed_batches(runner: Runner, claim: Claim, scene: Scene, left_out: list[str]) -> list[Finding]:
    """T3 from what the trainer shows of its batches."""
    seen = runner.run(scene.rows, seeded(scene.key(3), silent=True), steps=T3_STEPS)
    if seen.batch is None:
        left_out.append("T3: the trainer shows no batches and no canaries were given")
        return []
    other = runner.run(scene.rows, seeded(scene.key(4), silent=True), steps=T3_STEPS)
    return [*sampling_law(seen.batch, claim.sampling_rate, where=scene.where), _other_coins(seen.batch, other.batch,
                                                                                          scene.where)]


def _other_coins(one: Floats | None, two: Floats | None, where: str) -> Finding:
    same = one is not None and two is not None and one.shape == two.shape and bool((np.rint(one) == np.rint(two)).all())
    return Finding("T3", "another key tosses other coins", float(not same), "", where)


def planted_records(runner: Runner, claim: Claim, scene: Scene) -> Iterator[Stage]:
    """T3 read off the sums themselves, then T4 and T7: one gradient per record, decoded by least squares."""
    probe, where = planted.probe(runner, scene.canaries, claim), scene.where
    canaries = np.asarray(scene.canaries)[probe.kept]
    steps = T3_STEPS // 2 if scene.quick else T3_STEPS
    still: dict[str, Any] = {"steps": steps, "freeze": True}
    silent = throughout(runner, claim, canaries, seeded(scene.key(3), silent=True, still=True), **still)
    other = runner.run(canaries, seeded(scene.key(4), silent=True, still=True), steps=8, freeze=True)
    counts, gap = probe.participation(silent.sums)
    found = [Finding("T1", "a sum is what its records would give alone", float(gap <= 0.02), f"off by {gap:.2g}",
                     where),
             Finding("T1", "no record gives more than C alone", float(probe.largest <= 1 + ROUNDING),
                     f"{probe.largest:.4g} C", where)]
    found += sampling_law(counts, claim.sampling_rate, where=where)
    found.append(_other_coins(counts[:8], probe.participation(other.sums)[0], where))
    yield found, [], []
    more, bounds = planted.attack(runner, claim, probe, canaries, steps=min(claim.steps, steps), where=where,
                                  key=scene.key(5))
    offered = len(scene.canaries)
    lost = [f"T4, T7: {offered - len(canaries)} of {offered} planted records, whose gradients follow from the others'"]
    yield more, bounds, lost if offered > len(canaries) else []
