"""Law 6, second half: who is in a batch is decided by independent coins of the planned rate, and by nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from small_runs import ScriptedKey
from torch import Tensor, nn

from dpvae.privacy.plan import SgdPlan
from dpvae.train.dpsgd import PrivateSteps

RATE, ROWS, STEPS = 0.1, 300, 400
P_VALUE = 1e-4  # of one alarm; the keys are fixed, so a run that passes once passes always


def batches(key: ScriptedKey, *, rows: int = ROWS, steps: int = STEPS, microbatch: int = 1000) -> np.ndarray:
    """How often each record took part in each step, (steps, rows): read off the loss, not off the mask."""
    seen: list[list[int]] = []

    def loss(module: nn.Module, codes_BD: Tensor, generator: torch.Generator) -> Tensor:
        seen[-1].extend(codes_BD[:, 0].tolist())
        return module(codes_BD.float())[:, 0]

    plan = SgdPlan(noise_multiplier=1.0, sampling_rate=RATE, steps=steps, clip_norm=1.0, latent_samples=1)
    private = PrivateSteps(nn.Linear(1, 1), torch.arange(rows)[:, None], loss, plan=plan, rows=ROWS, key=key,
                           learning_rate=0.0, microbatch=microbatch)
    for number in range(steps):
        seen.append([])
        private.step(number, 1.0)
    private.close()
    return np.stack([np.bincount(np.array(ids, dtype=int), minlength=rows) for ids in seen])


def alarms(taken_SR: np.ndarray) -> set[str]:
    """Which properties of independent coins of chance RATE these batches lack."""
    steps, rows = taken_SR.shape
    found = set()
    if taken_SR.max() > 1:
        found.add("a record twice")
    variance = RATE * (1 - RATE)
    mean = taken_SR.mean() - RATE
    if abs(mean) / (variance / taken_SR.size) ** 0.5 > 4:
        found.add("rate")
    if outside(((taken_SR.sum(1) - rows * RATE) ** 2 / (rows * variance)).sum(), steps):
        found.add("batch size")
    if outside(((taken_SR.sum(0) - steps * RATE) ** 2 / (steps * variance)).sum(), rows):
        found.add("records differ")
    together = ((taken_SR[1:] - RATE) * (taken_SR[:-1] - RATE)).mean() / variance
    if abs(together) * ((steps - 1) * rows) ** 0.5 > 4:
        found.add("steps depend on one another")
    return found


def outside(statistic: float, freedom: int) -> bool:
    return bool(2 * min(stats.chi2.cdf(statistic, freedom), stats.chi2.sf(statistic, freedom)) < P_VALUE)


def test_batches_are_independent_coins_of_the_planned_rate() -> None:
    assert alarms(batches(ScriptedKey())) == set()


def test_every_step_tosses_one_coin_per_record_on_its_own_stream() -> None:
    key = ScriptedKey()
    taken_SR = batches(key, steps=5)
    masks = [draw for draw in key.draws if draw.kind == "mask"]
    assert [(draw.names, draw.size) for draw in masks] == [(("dpsgd", i, "mask"), ROWS) for i in range(5)]
    for number in range(5):
        coins = key.key.stream("dpsgd", number, "mask").mask(ROWS, RATE)
        assert np.array_equal(taken_SR[number], coins.astype(int))


def test_a_batch_in_parts_holds_the_same_records() -> None:
    assert np.array_equal(batches(ScriptedKey(), steps=5), batches(ScriptedKey(), steps=5, microbatch=3))


def test_a_further_record_leaves_the_coins_of_the_others_alone() -> None:
    one_more = batches(ScriptedKey(), rows=ROWS + 1, steps=5)
    assert np.array_equal(one_more[:, :ROWS], batches(ScriptedKey(), steps=5))


# -- mutants: samplers that do not match the accountant --------------------------------------------------------------


def fixed_size(names: Any, real: np.ndarray) -> np.ndarray:
    order = np.random.default_rng(names[1]).permutation(len(real))
    return order < round(RATE * len(real))


def shuffled_epochs(names: Any, real: np.ndarray) -> np.ndarray:
    epoch, part = divmod(names[1], round(1 / RATE))
    order = np.random.default_rng(epoch).permutation(len(real))
    return order * round(1 / RATE) // len(real) == part


def in_order(names: Any, real: np.ndarray) -> np.ndarray:
    return np.arange(len(real)) % round(1 / RATE) == names[1] % round(1 / RATE)


def some_oversampled(names: Any, real: np.ndarray) -> np.ndarray:
    often = np.arange(len(real)) < 0.05 * len(real)
    return real | (often & (np.random.default_rng(names[1]).random(len(real)) < 3 * RATE))


def a_tenth_too_many(names: Any, real: np.ndarray) -> np.ndarray:
    return real | (np.random.default_rng(names[1]).random(len(real)) < 0.1 * RATE)


def never_leaves(names: Any, real: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).random(len(real)) < RATE


MUTANTS: dict[str, tuple[Callable[[Any, np.ndarray], np.ndarray], str]] = {
    "batches of a fixed size": (fixed_size, "batch size"),
    "shuffled epochs": (shuffled_epochs, "records differ"),
    "batches in order": (in_order, "steps depend on one another"),
    "one record in twenty drawn four times as often": (some_oversampled, "records differ"),
    "a rate a tenth too high": (a_tenth_too_many, "rate"),
    "the same batch every step": (never_leaves, "steps depend on one another"),
}


@pytest.mark.parametrize(("script", "alarm"), MUTANTS.values(), ids=MUTANTS.keys())
def test_a_sampler_that_the_accountant_does_not_price_is_seen(
        script: Callable[[Any, np.ndarray], np.ndarray], alarm: str) -> None:
    assert alarm in alarms(batches(ScriptedKey(mask=script)))
