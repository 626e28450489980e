"""The two laws, as tests: silent on what follows them, loud on whatever does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dpvae.audit.laws import noise_law, sampling_law
from dpvae.audit.verdict import Finding, judge

STEPS, SIZE, RECORDS, RATE = 60, 300, 200, 0.15


def failed(findings: list[Finding]) -> set[str]:
    return {finding.law for finding in judge(findings).failed}


def gaussian(seed: int, shape: tuple[int, int] = (STEPS, SIZE)) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def coins(seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random((STEPS, RECORDS)) < RATE).astype(float)


def test_independent_gaussian_noise_passes_forty_times_out_of_forty() -> None:
    layers, directions = (100, 150, 50), gaussian(999)
    assert [failed(noise_law(gaussian(seed), layers=layers, directions_SP=directions)) for seed in range(40)] == [
        set()] * 40


def test_independent_coins_pass_forty_times_out_of_forty() -> None:
    assert [failed(sampling_law(coins(seed), RATE)) for seed in range(40)] == [set()] * 40


def rotated(z: np.ndarray) -> np.ndarray:
    """In a random subspace of a third of the dimensions, with the right variance on every coordinate on average."""
    basis, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(SIZE, SIZE // 3)))
    return z[:, :SIZE // 3] @ basis.T * 3**0.5


def permuted(z: np.ndarray) -> np.ndarray:
    return np.stack([np.random.default_rng(step).permutation(z[0]) for step in range(len(z))])


NOISES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "nothing": lambda z: z * 0, "three per cent too little": lambda z: z * 0.96, "too much": lambda z: z * 1.05,
    "one silent coordinate": lambda z: z * (np.arange(SIZE) != 7), "one silent step": lambda z: z * (
        np.arange(STEPS) != 9)[:, None], "a quiet layer": lambda z: np.where(np.arange(SIZE) < 60, z * 0.8, z),
    "steps that repeat": lambda z: z[np.arange(STEPS) // 2], "a step that comes back negated": lambda z: np.where(
        (np.arange(STEPS) == 50)[:, None], -z[3], z),
    "shuffled repeats": permuted, "one number for all": lambda z: np.repeat(z[:, :1], SIZE, axis=1),
    "a common part": lambda z: 0.97 * z + 0.243 * z[:, :1], "a repeated half": lambda z: np.concatenate(
        [z[:, :SIZE // 2]] * 2, axis=1), "a subspace": rotated,
    "a moving average": lambda z: (z + 0.3 * np.roll(z, 1, axis=0)) / 1.09**0.5,
    "uniform": lambda z: np.sign(z) * np.abs(z) % 1.7320508, "rounded": lambda z: np.rint(z * 4) / 4,
    "cut at two and a half": lambda z: np.clip(z, -2.5, 2.5), "two coordinates that are one": lambda z: np.where(
        np.arange(SIZE) == 200, z[:, 3:4], z), "heavy tails": lambda z: z * np.exp(0.3 * gaussian(5)) / 1.094,
    "drifting": lambda z: z * np.linspace(1.3, 0.6, STEPS)[:, None], "NaN": lambda z: np.where(z > 3, np.nan, z),
}


@pytest.mark.parametrize("broken", NOISES.values(), ids=NOISES.keys())
def test_noise_of_another_law_is_seen(broken: Callable[[np.ndarray], np.ndarray]) -> None:
    assert failed(noise_law(broken(gaussian(1)), layers=(60, 240)))


def test_noise_that_avoids_a_direction_is_seen() -> None:
    direction = np.tile(np.random.default_rng(2).normal(size=SIZE), (STEPS, 1))
    unit = direction / np.linalg.norm(direction, axis=1, keepdims=True)
    z = gaussian(1)
    spared = z - (z * unit).sum(1, keepdims=True) * unit
    assert failed(noise_law(spared, directions_SP=direction)) == {"it covers the direction of what it hides"}


def shuffled(taken: np.ndarray) -> np.ndarray:
    parts = round(1 / RATE)
    out = np.zeros_like(taken)
    for step in range(STEPS):
        order = np.random.default_rng(step // parts).permutation(RECORDS)
        out[step] = order * parts // RECORDS == step % parts
    return out


def fixed(taken: np.ndarray) -> np.ndarray:
    return np.stack([np.random.default_rng(step).permutation(RECORDS) < RATE * RECORDS
                     for step in range(STEPS)]).astype(float)


COINS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "shuffled epochs": shuffled, "a fixed size": fixed, "a tenth too many": lambda t: np.maximum(
        t, np.random.default_rng(2).random(t.shape) < 0.03),
    "a record twice": lambda t: t + (np.arange(RECORDS) == 3) * t,
    "always the same": lambda t: np.repeat(t[:1], STEPS, axis=0), "couples": lambda t: np.repeat(t[:, ::2], 2, axis=1),
    "a favourite": lambda t: np.where(np.arange(RECORDS) == 5, 1.0, t), "an outcast": lambda t: np.where(
        np.arange(RECORDS) < 25, 0.0, t), "in turns": lambda t: np.tile(
        (np.arange(RECORDS) % 7 == np.arange(STEPS)[:, None] % 7), 1).astype(float),
    "a part of a record": lambda t: t * 0.5, "NaN": lambda t: t * np.nan, "one empty batch": lambda t: np.where(
        (np.arange(STEPS) == 4)[:, None], 0.0, t), "every second step again": lambda t: t[np.arange(STEPS) // 2],
}


@pytest.mark.parametrize("broken", COINS.values(), ids=COINS.keys())
def test_batches_that_are_not_independent_coins_are_seen(broken: Callable[[Any], np.ndarray]) -> None:
    assert failed(sampling_law(broken(coins(1)), RATE))


def test_a_family_of_findings_keeps_its_level() -> None:
    rng = np.random.default_rng(0)
    families = [judge([Finding("T2", "x", float(p)) for p in rng.random(50)], alpha=0.05) for _ in range(2000)]
    assert 0.03 < np.mean([not family.passed for family in families]) < 0.065


def test_a_p_value_that_is_not_a_number_fails() -> None:
    assert not judge([Finding("T2", "x", float("nan"))]).passed


@pytest.mark.parametrize(("digits", "p"), [("float16", 0.0), ("float32", 1.0)])
def test_noise_is_as_fine_as_single_precision_also_where_it_is_seen_as_a_difference_of_sums(digits: str, p: float
                                                                                          ) -> None:
    hidden = 5 * gaussian(1)
    seen = (hidden + gaussian(0).astype(digits)).astype("float32") - hidden.astype("float32")
    found = {finding.law: finding for finding in noise_law(seen.astype(float))}
    assert found["it is as fine as single precision, and no short list"].p == p


def test_at_a_rate_of_one_everybody_takes_part_in_every_step() -> None:
    assert failed(sampling_law(np.ones((STEPS, RECORDS)), 1.0)) == set()
    assert failed(sampling_law(coins(1), 1.0)) == {"everybody takes part in every step"}
