"""Replay tests of one DP-SGD trainer: what it releases, against what its claim says it may.

    battery = audit_step(make_trainer, Claim(clip_norm=1.0, noise_multiplier=1.2, sampling_rate=0.1, steps=50,
                                             divisor=20.0), rows)
    battery.passed, battery.caught_by

``make_trainer(rows, key)`` builds anything with :class:`StepTrainer`'s one method. It is run many times: with silent
noise (so that the clipped sum shows), on neighbouring tables with equal secrets, with forced and with empty batches,
under two keys. The tests ask for what the two laws of DP-SGD are, not for known mistakes:

    T1  one record more or less moves the sum by at most C, at every step, whatever that record holds, and by nothing
        where it was not sampled; every record gives what it would give alone, in batches of any size
    T2  released minus sum is independent N(0, (sigma C)^2): every coordinate, step, layer, direction; no repeats; the
        same for any data, for none, for everybody; early and late; another key, another noise; at every step it is what
        the secret streams gave, and in bulk they give normals
    T3  participation is one independent coin of the claimed rate per record and step
    T4, T7  planted records: :mod:`dpvae.audit.canaries`
    T5  as many steps as claimed; no secret stream opened twice
    T6  n and n + 1 rows, and another table: the same steps, shapes, divisor, and whatever else steers the trainer

After dp-recorder (Cebere et al. 2026, arXiv 2602.17454), made native to DP-SGD. Reads no private row of anybody: the
rows are the auditor's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from dpvae.audit import canaries as planted
from dpvae.audit import secrecy
from dpvae.audit.instruments import NORMALS, Floats, seeded
from dpvae.audit.laws import noise_law, sampling_law
from dpvae.audit.runner import Claim, Person, Runner, Scene, Seen, Stage, StepRunner, StepTrainer, throughout, windows
from dpvae.audit.verdict import ALPHA, Battery, Bound, Finding, judge
from dpvae.privacy.noise import SecretKey
from dpvae.rng import stream

__all__ = ["Claim", "Person", "StepRunner", "audit_step"]  # all that an audit of another trainer takes

ROUNDING = 2e-4  # of C: sums of single-precision gradients
T2_STEPS, T3_STEPS, T1_STEPS, T6_STEPS = 40, 150, 4, 40
NUMBERS, SHORT = 15_000, 12  # of noise that T2 wants to see; steps where a few are enough
EVERY = 400  # steps of noise alone that are looked at, one by one
FEW, SIZES = 40, (*range(18), 23, 31, 32, 33)  # rows that are looked at alone; sizes of batches: one to three parts
ADDED = 1e-3  # of C, per square root of a record: sums of single-precision gradients in another order


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
    if scene.canaries is not None and scripted(runner.run(scene.rows, seeded(scene.key(0)), steps=1)):
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


# -- T1 --------------------------------------------------------------------------------------------------------------


def sensitivity(runner: Runner, claim: Claim, scene: Scene) -> list[Finding]:
    """T1: neighbouring tables, equal secrets, every step."""
    found: list[Finding] = []
    size = len(scene.rows)
    places = {"last": size, "first": 0} | ({} if scene.quick else {"middle": size // 2})
    for state in runner.states:
        base = runner.run(scene.rows, seeded(scene.key(0), silent=True), steps=T1_STEPS, state=state)
        people = scene.people if state in runner.states[:2] else scene.people[:2]  # spoiled from any weights
        for number, person in enumerate(people):
            chosen = places if number < 2 and state == runner.states[0] else {"last": size}
            for place, at in chosen.items():
                label = ", ".join(x for x in (scene.where, state, person.label, place) if x)
                found += _moved(runner, claim, scene, base, person, at, state, label)
    if not runner.tells:
        found += _late_comers(runner, claim, scene)
    return found


def _sums(seen: Seen) -> Floats:
    return seen.total if seen.total is not None else seen.released


def _moved(runner: Runner, claim: Claim, scene: Scene, base: Seen, person: Person, at: int, state: str,
           label: str, present: Callable[[int], bool] = lambda step: step != 1) -> Iterator[Finding]:
    """The person is in every batch but the second: there, nothing may move."""
    joined = np.insert(scene.rows, at, np.asarray(person.row).astype(scene.rows.dtype), axis=0)
    secrets = seeded(scene.key(0), silent=True, person=at, present=present)
    try:
        seen = runner.run(joined, secrets, steps=len(base.released), told=base if runner.tells else None,
                          fault=person.fault, state=state)
    except Exception as error:  # a run that ends because of one record tells that the record is there
        yield Finding("T1", "no record ends the run", 0.0, f"{type(error).__name__}: {error}", label)
        return
    if _sums(seen).shape != _sums(base).shape:
        yield Finding("T6", "n and n + 1 rows: the same steps and shapes", 0.0,
                      f"{_sums(base).shape} and {_sums(seen).shape}", label)
        return
    with np.errstate(invalid="ignore", over="ignore"):
        moved = np.linalg.norm(_sums(seen) - _sums(base), axis=1) / claim.clip_norm
    moved = np.where(np.isfinite(moved), moved, np.inf)
    if not runner.tells:  # after the first step that differs, the two pasts are not the same any more
        moved = moved[:int(np.argmax(moved > ROUNDING)) + 1] if (moved > ROUNDING).any() else moved
    worst = int(moved.argmax())
    yield Finding("T1", "one record moves the sum by at most C", float(moved.max() <= 1 + ROUNDING),
                  f"{moved.max():.4g} C at step {worst}", label)
    scripted = any(draw.kind == "mask" for draw in secrets.draws)
    if scripted and len(moved) > 1 and not present(1) and (runner.tells or moved[0] <= ROUNDING):
        yield Finding("T1", "a record that is not sampled moves nothing", float(moved[1] <= ROUNDING),
                      f"{moved[1]:.4g} C", label)


def _late_comers(runner: Runner, claim: Claim, scene: Scene) -> list[Finding]:
    """Where the past cannot be shared: a person who is first sampled late, so that it is the same until then."""
    base = runner.run(scene.rows, seeded(scene.key(0), silent=True), steps=T1_STEPS)
    found = []
    for person in scene.people:
        for late in (1, T1_STEPS - 1):
            label = f"{scene.where} {person.label}, first sampled at step {late}".strip()
            found += list(_moved(runner, claim, scene, base, person, len(scene.rows), runner.states[0], label,
                                 present=lambda step, late=late: step == late))  # type: ignore[misc]
    return found


def additivity(runner: Runner, claim: Claim, scene: Scene) -> list[Finding]:
    """T1 without a neighbour: what a batch sums to is what those whose coins fell give alone, none more than C.

    So one record moves any sum by at most C, for batches of every size, whatever is in them, early and late: a law of
    the sum that leaves no room for a rare case.
    """
    if not (runner.tells and runner.late):
        return []
    rows = scene.rows[:FEW] if scene.odd is None else np.concatenate([scene.rows[:FEW], scene.odd])
    script: dict[str, Any] = {"freeze": True, "state": runner.states[-1]}
    quiet: dict[str, Any] = {"silent": True, "still": True}
    alone = _sums(runner.run(rows, seeded(scene.key(6), batch=planted.one_by_one, **quiet), steps=len(rows), **script))
    sizes = [*SIZES, len(rows)]

    def some(step: int, count: int) -> Any:
        return stream(scene.key(6), "sizes", step).permutation(count) < sizes[step]

    gaps, most = [], 0
    for secrets, start, steps in ((seeded(scene.key(6), batch=some, **quiet), 0, len(sizes)),
                                  (seeded(scene.key(7), **quiet), max(claim.steps - SHORT, 0), SHORT)):
        sums = _sums(runner.run(rows, secrets, steps=steps, start=start, **script))
        if len(secrets.coins) < steps:
            continue  # batches are not drawn from the key: T3 reads them off the sums
        held = np.stack([secrets.coins[start + step] for step in range(steps)]).astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            off = np.linalg.norm(sums - held @ alone, axis=1) / claim.clip_norm / np.sqrt(held.sum(1) + 1)
        gaps += np.where(np.isfinite(off), off, np.inf).tolist()
        most = max(most, int(held.sum(1).max()))
    largest = float(np.nan_to_num(np.linalg.norm(alone, axis=1), nan=np.inf).max()) / claim.clip_norm
    return [Finding("T1", "no record gives more than C alone, whatever it holds", float(largest <= 1 + ROUNDING),
                    f"{largest:.4g} C", scene.where),
            *([Finding("T1", "a batch of any size sums to what its records give alone", float(max(gaps) <= ADDED),
                       f"off by {max(gaps):.2g} C a record, in batches of 0 to {most}", scene.where)] if gaps else [])]


# -- T2 --------------------------------------------------------------------------------------------------------------


def noise(runner: Runner, claim: Claim, scene: Scene) -> Iterator[list[Finding]]:
    """T2, and the part of T6 that noise shows: the divisor. First the law, then that nothing moves it."""
    scale = claim.noise_multiplier * claim.clip_norm
    frozen: dict[str, Any] = {"steps": _noise_steps(runner, claim, scene), "freeze": runner.tells}
    rows = scene.rows[:FEW] if scene.quick else scene.rows
    silent = throughout(runner, claim, rows, seeded(scene.key(0), silent=True), **frozen)
    real = throughout(runner, claim, rows, seeded(scene.key(0)), **frozen)
    drawn, source = _noise_of(real, silent, runner.tells)
    found = [_adds_up(real, scale, scene.where)] if real.total is not None and real.noise is not None else []
    if drawn is None:
        drawn = runner.run(scene.rows[:0], seeded(scene.key(0)), **frozen).released
        source = "no rows"
    places = f"{scene.where} {source}".strip()
    directions = _sums(silent) if np.isfinite(_sums(silent)).all() else None
    found += noise_law(drawn / scale, layers=real.layers, directions_SP=directions, where=places)
    if real.rank_noise is not None:
        found += _ranks(real, scale, scene.where)
    yield found
    yield _unmoved(runner, claim, scene, drawn, real, frozen)
    yield secrecy.source(SecretKey.from_seed(scene.key(8)), {d.kind for d in real.draws if d.kind in NORMALS},
                         scene.where)


def _unmoved(runner: Runner, claim: Claim, scene: Scene, drawn: Floats, real: Seen, frozen: dict[str, Any]
             ) -> list[Finding]:
    """Nothing moves the noise but the key: not who is in the batch, not how many rows there are."""
    found = []
    if scripted(real):
        label = f"{scene.where} empty batches".strip()
        if not runner.tells:
            empty = runner.run(scene.rows, seeded(scene.key(1), batch=nobody), **frozen)
            nothing = _noise_of(empty, None, runner.tells)[0]
            assert nothing is not None
            scale = claim.noise_multiplier * claim.clip_norm
            found += noise_law(nothing / scale, layers=empty.layers, where=label)
        hushed = runner.run(scene.rows, seeded(scene.key(0), silent=True, batch=nobody), steps=3, freeze=runner.tells)
        found.append(Finding("T2", "noise comes from the secret key alone",
                             float(np.abs(hushed.released).max() <= ROUNDING * claim.clip_norm),
                             f"{np.abs(hushed.released).max():.3g} is left where the key is silent", label))
    steps = min(SHORT, len(drawn), windows(runner, claim, frozen["steps"])[0][1])
    few: dict[str, Any] = {"steps": steps, "freeze": runner.tells}
    found += _keys(runner, claim, scene, drawn, few, empty=scripted(real))
    found += _same_noise(runner, claim, scene, drawn[:steps], real, few)
    return found


def _noise_steps(runner: Runner, claim: Claim, scene: Scene) -> int:
    """Enough steps for some ten thousand numbers, and never more than the claim's where steps are the trainer's."""
    size = runner.run(scene.rows, seeded(scene.key(0)), steps=1).released.shape[1]
    half = 2 if scene.quick else 1
    enough = int(np.clip(NUMBERS / half / max(size, 1), T2_STEPS // half, 3 * T2_STEPS // half))
    return enough if runner.tells else min(claim.steps, enough)


def nobody(step: int, rows: int) -> Any:
    """A script for batches: always empty."""
    return np.zeros(rows, dtype=bool)


def everybody(step: int, rows: int) -> Any:
    """A script for batches: all rows, always."""
    return np.ones(rows, dtype=bool)


def scripted(seen: Seen) -> bool:
    """Whether the trainer takes its batches from the key."""
    return any(draw.kind == "mask" for draw in seen.draws)


def _noise_of(real: Seen, silent: Seen | None, shared_past: bool) -> tuple[Floats | None, str]:
    if real.noise is not None:
        return real.noise, ""
    if real.total is not None:
        return real.released - real.total, ""
    if silent is None:
        return real.released, ""
    keyed = any(draw.kind in NORMALS for draw in real.draws)
    return (real.released - silent.released, "") if keyed and shared_past else (None, "")


def _adds_up(seen: Seen, scale: float, where: str) -> Finding:
    """What a trainer says of itself must be what it hands on."""
    assert seen.total is not None
    assert seen.noise is not None
    gap = float(np.abs(seen.released - seen.total - seen.noise).max()) / scale
    return Finding("T2", "the update is the sum plus the noise that is shown", float(gap <= 1e-3), f"off by {gap:.3g}",
                   where)


def _ranks(seen: Seen, scale: float, where: str) -> list[Finding]:
    """Several workers: their noises are independent, none is silent, and together they are what was priced."""
    assert seen.rank_noise is not None
    steps, ranks, size = seen.rank_noise.shape
    total = seen.rank_noise.sum(1)
    parts = seen.rank_noise.transpose(1, 0, 2).reshape(ranks, -1)
    spread = parts.std(1) * np.sqrt(ranks) / scale
    found = [Finding("T2", "every rank adds its part of the noise", float(np.abs(spread - 1).max() < 0.1),
                     f"{spread.min():.3f} to {spread.max():.3f} of its part", where)]
    unit = parts / np.maximum(np.linalg.norm(parts, axis=1, keepdims=True), 1e-300)
    shared = float(np.abs(np.triu(unit @ unit.T, 1)).max()) * np.sqrt(steps * size) if ranks > 1 else 0.0
    found.append(Finding("T2", "ranks draw independent noise", float(shared < 7), f"{shared:.1f} sd", where))
    return found + noise_law(total / scale, where=f"{where} all ranks".strip())


def _keys(runner: Runner, claim: Claim, scene: Scene, drawn: Floats, few: dict[str, Any], *, empty: bool
          ) -> list[Finding]:
    """Another key gives another noise, unrelated to the first."""
    if empty:  # what an empty batch releases is noise
        other = _noise_of(runner.run(scene.rows, seeded(scene.key(2), batch=nobody), **few), None, True)[0]
    else:
        silent = runner.run(scene.rows, seeded(scene.key(2), silent=True), **few)
        other = _noise_of(runner.run(scene.rows, seeded(scene.key(2)), **few), silent, runner.tells)[0]
    if other is None:
        other = runner.run(scene.rows[:0], seeded(scene.key(2)), **few).released
    if other.shape[1:] != drawn.shape[1:]:
        return []
    norms = np.maximum(np.linalg.norm(drawn, axis=1, keepdims=True), 1e-300)
    scale = claim.noise_multiplier * claim.clip_norm
    largest = float(np.abs((drawn / norms) @ other.T).max()) / scale
    p = min(1.0, len(drawn) * len(other) * 2 * float(planted.tail(largest)))
    return [Finding("T2", "noise is unrelated under another key", p, f"{largest:.1f} sd", scene.where)]


def _same_noise(runner: Runner, claim: Claim, scene: Scene, drawn: Floats, real: Seen, few: dict[str, Any]
                ) -> list[Finding]:
    """The same key: the very same noise, for n + 1 rows, in empty batches and in full ones. So neither divisor nor
    scale follow the data. A row that takes part nowhere leaves even what is released as it is."""
    if not runner.tells or not len(scene.people):
        return []
    rows = scene.rows[:FEW] if scene.quick else scene.rows
    joined = np.concatenate([rows, np.asarray(scene.people[0].row).astype(rows.dtype)[None]])
    absent = seeded(scene.key(0), person=len(rows), present=lambda step: False)
    asked = [("T6", "n and n + 1 rows: the same noise, so the same divisor", real.released[:len(drawn)],
              runner.run(joined, absent, **few).released)]
    found: list[Finding] = []
    if scripted(real):
        full, silent = (seeded(scene.key(0), silent=quiet, batch=everybody) for quiet in (False, True))
        short = {**few, "steps": min(4, len(drawn))}
        all_but_sum = runner.run(scene.rows, full, **short).released - runner.run(scene.rows, silent, **short).released
        nothing = runner.run(rows, seeded(scene.key(0), batch=nobody),
                             **{**few, "steps": max(min(claim.steps, EVERY), len(drawn))})
        asked += [("T2", "an empty batch has the noise of any other", drawn, nothing.released[:len(drawn)]),
                  ("T2", "so has a batch with everybody in it", drawn[:4], all_but_sum)]
        loud = runner.run(rows, seeded(scene.key(0), batch=nobody, loud=secrecy.LOUD), **few)
        found += [*secrecy.as_drawn(nothing, loud, claim, scene.where),
                  *secrecy.tossed((real, nothing), claim, scene.where)]
    for test, law, one, other in asked:
        gap = math.inf if one.shape != other.shape else (
            float(np.abs(other - one).max()) / (claim.noise_multiplier * claim.clip_norm))
        found.append(Finding(test, law, float(gap <= 1e-3), f"differs by {gap:.2g} sd", scene.where))
    return found


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
    counts, gap = probe.participation(_sums(silent))
    found = [Finding("T1", "a sum is what its records would give alone", float(gap <= 0.02), f"off by {gap:.2g}",
                     where),
             Finding("T1", "no record gives more than C alone", float(probe.largest <= 1 + ROUNDING),
                     f"{probe.largest:.4g} C", where)]
    found += sampling_law(counts, claim.sampling_rate, where=where)
    found.append(_other_coins(counts[:8], probe.participation(_sums(other))[0], where))
    yield found, [], []
    more, bounds = planted.attack(runner, claim, probe, canaries, steps=min(claim.steps, steps), where=where,
                                  key=scene.key(5))
    offered = len(scene.canaries)
    lost = [f"T4, T7: {offered - len(canaries)} of {offered} planted records, whose gradients follow from the others'"]
    yield more, bounds, lost if offered > len(canaries) else []
