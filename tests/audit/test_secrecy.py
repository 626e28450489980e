"""Keys, streams and draws: what no ten thousand numbers of noise would show is asked of where they come from."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dpvae.audit.instruments import NORMALS, Draw
from dpvae.audit.runner import Claim, Seen
from dpvae.audit.secrecy import LOUD, apart, as_drawn, keys, of_large_tables, source, tossed
from dpvae.privacy.noise import SecretKey, SecretStream
from dpvae.train import sampling

CLAIM = Claim(clip_norm=0.5, noise_multiplier=1.3, sampling_rate=0.25, steps=20, divisor=10.0)
STEPS, SIZE = 20, 500


def failed(findings: Any) -> set[str]:
    return {finding.law for finding in findings if finding.p < 1e-6}


def test_keys_of_the_operating_system_pass() -> None:
    assert failed(keys()) == set()


@pytest.mark.parametrize("generate", [
    lambda: SecretKey.from_seed(int.from_bytes(os.urandom(4), "big") >> 1),
    lambda: SecretKey.from_seed(int.from_bytes(os.urandom(32), "big") % 10**4),
    lambda: SecretKey.from_bytes(os.urandom(31) + b"\0"),
    lambda: SecretKey.from_seed(7)])
def test_a_key_that_leaves_some_of_its_chance_out_is_found(generate: Callable[[], SecretKey],
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SecretKey, "generate", staticmethod(generate))
    assert failed(keys()) != set()


class Forgetful:
    """A key whose streams are named by their first two names."""

    def __init__(self, key: SecretKey) -> None:
        self.key = key

    def stream(self, *names: str | int) -> SecretStream:
        return self.key.stream(*names[:2])


def test_streams_of_different_names_share_nothing_and_those_of_one_name_are_found() -> None:
    key = SecretKey.from_seed(1)
    names = [("dpsgd", 3, "mask"), ("dpsgd", 3, "noise"), ("dpsgd", 3, "noise"), ("anchor", "pairs")]
    assert apart(key, names).p == 1
    found = apart(Forgetful(key), names)  # type: ignore[arg-type]
    assert (found.p, found.seen) == (0, "dpsgd/3/mask and dpsgd/3/noise")


def test_the_streams_follow_the_normal_law_in_bulk() -> None:
    assert failed(source(SecretKey.from_seed(1), NORMALS)) == set()


@pytest.mark.parametrize(("broken", "law"), [
    (lambda z: np.clip(z, -4, 4), "tails"), (lambda z: z * 0.995, "scale"),
    (lambda z: np.where(np.abs(z) < 0.02, 0.02, z), "shape")])
def test_a_source_of_another_law_is_found(broken: Callable[[Any], Any], law: str,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    real = SecretStream.normal
    monkeypatch.setattr(SecretStream, "normal", lambda self, shape: broken(real(self, shape)))
    assert any(law in each for each in failed(source(SecretKey.from_seed(1), ["normal"])))


def seen(change: Callable[[Any], Any] = lambda z: z) -> tuple[Seen, Seen]:
    """Steps of noise alone, and their first ones with louder draws, where ``change`` happens to the draws."""
    z = np.random.default_rng(2).normal(size=(STEPS, SIZE))
    scale = CLAIM.noise_multiplier * CLAIM.clip_norm
    draws = [Draw(("dpsgd", step, "noise"), "normal", SIZE, True, float(row @ row)) for step, row in enumerate(z)]
    return Seen(change(z) * scale, draws=draws), Seen(change(z[:4] * LOUD) * scale)


def one_direction_less(z: Any) -> Any:
    unit = np.ones(SIZE) / SIZE**0.5
    return z - np.outer(z @ unit, unit)


def a_step_at_half(z: Any) -> Any:
    return z * np.where(np.arange(len(z)) == 13, 0.5, 1)[:, None]


def test_noise_that_is_what_was_drawn_passes() -> None:
    assert failed(as_drawn(*seen(), CLAIM)) == set()
    assert failed(as_drawn(*seen(lambda z: z[:, ::-1]), CLAIM)) == set()  # in whatever order


@pytest.mark.parametrize(("change", "law"), [
    (one_direction_less, "length"), (a_step_at_half, "length"), (lambda z: z * 0.9999, "length"),
    (lambda z: np.clip(z, -8, 8), "any size")])
def test_noise_that_lost_some_of_what_was_drawn_is_found(change: Callable[[Any], Any], law: str) -> None:
    assert any(law in each for each in failed(as_drawn(*seen(change), CLAIM)))


def tosses(rate: float, steps: int) -> Seen:
    return Seen(np.zeros((STEPS, SIZE)), draws=[Draw(("dpsgd", step, "mask"), "mask", 40, True, rate=rate)
                                                for step in range(steps)])


def test_coins_of_another_rate_and_second_tosses_are_found() -> None:
    right = tosses(0.25, STEPS)
    assert failed(tossed((right, right), CLAIM)) == set()
    assert failed(tossed((tosses(0.2525, STEPS), right), CLAIM)) == {"coins are tossed at the booked rate"}
    assert failed(tossed((right, tosses(0.25, STEPS + 1)), CLAIM)) == {"once a step, whoever is in the batch"}


def test_batches_of_large_tables_are_coins_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert failed(of_large_tables(SecretKey.from_seed(3), 0.2)) == set()
    monkeypatch.setattr(sampling, "poisson_batch",
                        lambda stream, rows, rate: stream.permutation(rows)[:int(rate * rows)])
    assert "batch sizes vary as independent coins make them" in failed(of_large_tables(SecretKey.from_seed(3), 0.2))
