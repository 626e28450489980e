"""T2: what DP-SGD releases, less its clipped sum, is independent N(0, (sigma C)^2), and only the key moves it.

First the law: every coordinate, step, layer and direction. Then what no law can show on some ten thousand numbers: the
same noise for any data, for none and for everybody, for n and n + 1 rows (so divisor and scale follow nothing private);
another key, another noise; at every step what the secret streams gave (:mod:`dpvae.audit.secrecy`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from dpvae.audit import canaries as planted
from dpvae.audit import secrecy
from dpvae.audit.instruments import NORMALS, Floats, seeded
from dpvae.audit.laws import noise_law
from dpvae.audit.runner import FEW, ROUNDING, SHORT, Claim, Runner, Scene, Seen, throughout, windows
from dpvae.audit.verdict import Finding
from dpvae.privacy.noise import SecretKey

STEPS, NUMBERS = 40, 15_000  # of noise: steps, and numbers in them that are wanted
EVERY = 400  # steps of noise alone that are looked at, one by one


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
    directions = silent.sums if np.isfinite(silent.sums).all() else None
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
    if real.scripted:
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
    found += _keys(runner, claim, scene, drawn, few, empty=real.scripted)
    found += _same_noise(runner, claim, scene, drawn[:steps], real, few)
    return found


def _noise_steps(runner: Runner, claim: Claim, scene: Scene) -> int:
    """Enough steps for some ten thousand numbers, and never more than the claim's where steps are the trainer's."""
    size = runner.run(scene.rows, seeded(scene.key(0)), steps=1).released.shape[1]
    half = 2 if scene.quick else 1
    enough = int(np.clip(NUMBERS / half / max(size, 1), STEPS // half, 3 * STEPS // half))
    return enough if runner.tells else min(claim.steps, enough)


def nobody(step: int, rows: int) -> Any:
    """A script for batches: always empty."""
    return np.zeros(rows, dtype=bool)


def everybody(step: int, rows: int) -> Any:
    """A script for batches: all rows, always."""
    return np.ones(rows, dtype=bool)


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
    if real.scripted:
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
