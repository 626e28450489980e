"""Faults of the sampler: batches that the accountant did not price."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpvae.audit.mutants.base import Mutant, Patch, named
from dpvae.rng import stream
from dpvae.train import dpsgd, sampling
from dpvae.train.dpsgd import PrivateSteps

Take = Callable[[int, Any, float, Any], Any]  # (step, coins, rate, codes) -> indices of the batch


def _batches(patch: Patch, take: Take) -> None:
    """Replaces the batch by ``codes[take(...)]``; the coins are still tossed."""
    def step(real: Callable[..., None], self: Any, number: int, rate_factor: float) -> None:
        codes, key = self.codes, self.key
        coins = key.stream("dpsgd", number, "mask").mask(len(codes), self.plan.sampling_rate)
        index = np.asarray(take(number, coins, self.plan.sampling_rate, codes), dtype=np.int64)
        self.codes = codes[torch.as_tensor(index, device=codes.device)]
        self.key = _All(key, len(index))
        try:
            real(self, number, rate_factor)
        finally:
            self.codes, self.key = codes, key

    patch.wrap(PrivateSteps, "step", step)


class _All:
    """A key whose masks take everybody."""

    def __init__(self, key: Any, rows: int) -> None:
        self.key, self.rows = key, rows

    def stream(self, *names: str | int) -> Any:
        return _Everybody(self.rows) if names[-1] == "mask" else self.key.stream(*names)


class _Everybody:
    def __init__(self, rows: int) -> None:
        self.rows = rows

    def mask(self, n: int, rate: float) -> Any:
        return np.ones(n, dtype=bool)


def _held(coins: Any) -> Any:
    return np.flatnonzero(coins)


def _order(rows: int, *names: int) -> Any:
    return stream(11, "mutant", *names).permutation(rows)


def _simple(name: str, says: str, take: Take) -> Mutant:
    return Mutant(name, says, lambda patch: _batches(patch, take))


def _shuffled(step: int, coins: Any, rate: float, codes: Tensor) -> Any:
    epoch, part = divmod(step, max(round(1 / rate), 1))
    order = _order(len(coins), epoch)
    return np.flatnonzero(order * max(round(1 / rate), 1) // len(coins) == part)


def _in_order(step: int, coins: Any, rate: float, codes: Tensor) -> Any:
    parts = max(round(1 / rate), 1)
    return np.flatnonzero(np.arange(len(coins)) % parts == step % parts)


def _oversampled(step: int, coins: Any, rate: float, codes: Tensor) -> Any:
    often = np.arange(len(coins)) < 0.05 * len(coins)
    return np.flatnonzero(coins | (often & (stream(12, step).random(len(coins)) < 3 * rate)))


def _important(step: int, coins: Any, rate: float, codes: Tensor) -> Any:
    """Records with a high first code are drawn more often: importance sampling that nobody priced."""
    high = codes[:, 0].cpu().numpy() > codes[:, 0].float().median().item()
    return np.flatnonzero(np.where(high, coins | (stream(13, step).random(len(coins)) < 0.3 * rate), coins))


def _padded(step: int, coins: Any, rate: float, codes: Tensor) -> Any:
    held = _held(coins)
    missing = max(int(rate * len(coins)) - len(held), 0)
    return np.concatenate([held, np.zeros(missing, dtype=np.int64)]) if len(held) else held


def _couples(step: int, coins: Any, rate: float, codes: Tensor) -> Any:
    return np.flatnonzero(np.repeat(coins[::2], 2)[:len(coins)])


def _spared(step: int, coins: Any, rate: float, codes: Tensor) -> Any:
    """Whoever could have been in the step before sits this one out, half of the time."""
    again = stream(14, step - 1).random(len(coins)) < 0.3
    return np.flatnonzero(coins & ~(again & (np.arange(len(coins)) % 2 == step % 2)) if step else coins)


@named("the coins' stream lacks the step: the same batch for ever")
def same_batch_every_step(patch: Patch) -> None:
    def step(real: Callable[..., None], self: Any, number: int, rate_factor: float) -> None:
        key = self.key
        self.key = _Renamed(key)
        try:
            real(self, number, rate_factor)
        finally:
            self.key = key

    patch.wrap(PrivateSteps, "step", step)


class _Renamed:
    def __init__(self, key: Any) -> None:
        self.key = key

    def stream(self, *names: str | int) -> Any:
        return self.key.stream(*("dpsgd", 0, "mask") if names[-1] == "mask" else names)


@named("a rate two per cent too high: a rounded number of rows")
def rate_two_per_cent_too_high(patch: Patch) -> None:
    patch.wrap(dpsgd, "draw_batch", lambda real, key, step, rows, rate, **rest: real(
        key, step, rows, min(1.02 * rate, 1.0), **rest))


@named("an empty batch is drawn again")
def empty_batches_are_drawn_again(patch: Patch) -> None:
    def draw(real: Callable[..., Any], key: Any, step: int, *args: Any, **rest: Any) -> Any:
        found = real(key, step, *args, **rest)
        return found if len(found) else real(key, step + 10**6, *args, **rest)

    patch.wrap(dpsgd, "draw_batch", draw)


@named("large tables get batches of a fixed size")
def large_tables_get_a_fixed_size(patch: Patch) -> None:
    patch.set(sampling, "poisson_batch", lambda stream, rows, rate: np.sort(
        stream.permutation(rows)[:max(int(rate * rows), 1)]))


MUTANTS: tuple[Mutant, ...] = (
    _simple("shuffled epochs", "each record once per epoch, priced as Poisson", _shuffled),
    _simple("batches in order", "no randomness at all", _in_order),
    _simple("fixed-size batches", "sampling without replacement, priced as Poisson",
            lambda step, coins, rate, codes: _order(len(coins), step)[:max(round(rate * len(coins)), 1)]),
    _simple("with replacement", "a record may be in a batch twice", lambda step, coins, rate, codes: stream(
        15, step).integers(len(coins), size=len(_held(coins)))),
    _simple("a twentieth oversampled", "some records are drawn four times as often", _oversampled),
    _simple("importance sampling", "records are drawn by what they hold", _important),
    _simple("rate a tenth too high", "the rate of the last epoch's remainder", lambda step, coins, rate, codes:
            np.flatnonzero(coins | (stream(16, step).random(len(coins)) < 0.1 * rate))),
    _simple("capped batches drop rows", "a fixed buffer; who does not fit is dropped",
            lambda step, coins, rate, codes: _held(coins)[:max(int(rate * len(coins)), 1)]),
    _simple("padded rows count", "small batches are filled up with the first record", _padded),
    _simple("couples", "neighbouring rows share a coin", _couples),
    _simple("spared after a turn", "coins that depend on the step before", _spared),
    _simple("coins from the public seed", "masks that anybody can toss again", lambda step, coins, rate, codes:
            np.flatnonzero(stream(17, step).random(len(coins)) < rate)),
    _simple("the last row always", "an index off by one", lambda step, coins, rate, codes: np.flatnonzero(
        np.append(coins[:-1], True)) if len(coins) else _held(coins)),
    same_batch_every_step, rate_two_per_cent_too_high, empty_batches_are_drawn_again, large_tables_get_a_fixed_size,
)
