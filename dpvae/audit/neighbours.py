"""T1: one record more or less moves the clipped sum of DP-SGD by at most C, whatever that record holds.

Asked in two ways. Of neighbours: two tables that differ in one record, under the same secrets and with silent noise, so
that whatever moves is that record. And without one: what a batch sums to is what those in it give alone, none of them
more than C; a law of the sum that leaves no room for a rare case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dpvae.audit import canaries as planted
from dpvae.audit.instruments import seeded
from dpvae.audit.runner import FEW, ROUNDING, SHORT, Claim, Person, Runner, Scene, Seen
from dpvae.audit.verdict import Finding
from dpvae.rng import stream

STEPS = 4
SIZES = (*range(18), 23, 31, 32, 33)  # of batches: one to three parts
ADDED = 1e-3  # of C, per square root of a record: sums of single-precision gradients in another order


def sensitivity(runner: Runner, claim: Claim, scene: Scene) -> list[Finding]:
    """T1: neighbouring tables, equal secrets, every step."""
    found: list[Finding] = []
    size = len(scene.rows)
    places = {"last": size, "first": 0} | ({} if scene.quick else {"middle": size // 2})
    for state in runner.states:
        base = runner.run(scene.rows, seeded(scene.key(0), silent=True), steps=STEPS, state=state)
        people = scene.people if state in runner.states[:2] else scene.people[:2]  # spoiled from any weights
        for number, person in enumerate(people):
            chosen = places if number < 2 and state == runner.states[0] else {"last": size}
            for place, at in chosen.items():
                label = ", ".join(x for x in (scene.where, state, person.label, place) if x)
                found += _moved(runner, claim, scene, base, person, at, state, label)
    if not runner.tells:
        found += _late_comers(runner, claim, scene)
    return found


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
    if seen.sums.shape != base.sums.shape:
        yield Finding("T6", "n and n + 1 rows: the same steps and shapes", 0.0,
                      f"{base.sums.shape} and {seen.sums.shape}", label)
        return
    with np.errstate(invalid="ignore", over="ignore"):
        moved = np.linalg.norm(seen.sums - base.sums, axis=1) / claim.clip_norm
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
    base = runner.run(scene.rows, seeded(scene.key(0), silent=True), steps=STEPS)
    found = []
    for person in scene.people:
        for late in (1, STEPS - 1):
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
    alone = runner.run(rows, seeded(scene.key(6), batch=planted.one_by_one, **quiet), steps=len(rows), **script).sums
    sizes = [*SIZES, len(rows)]

    def some(step: int, count: int) -> Any:
        return stream(scene.key(6), "sizes", step).permutation(count) < sizes[step]

    gaps, most = [], 0
    for secrets, start, steps in ((seeded(scene.key(6), batch=some, **quiet), 0, len(sizes)),
                                  (seeded(scene.key(7), **quiet), max(claim.steps - SHORT, 0), SHORT)):
        sums = runner.run(rows, secrets, steps=steps, start=start, **script).sums
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
