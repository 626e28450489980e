"""A noisy sum of vectors: exact without noise, bounded by one record, with the noise that is booked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpvae.privacy.mechanisms import noisy_sums
from dpvae.privacy.noise import SecretKey
from dpvae.privacy.silence import Silence


def summed(rows: np.ndarray, *, silent: bool = True, multiplier: float = 1.0) -> np.ndarray:
    key = SecretKey.from_seed(3)
    stream = (Silence(key) if silent else key).stream("test")
    return noisy_sums([rows[:2], rows[2:]], rows.shape[1], noise_multiplier=multiplier, stream=stream, phase="anchor",
                      what="test")[0]


def test_without_noise_it_is_the_sum() -> None:
    rows = np.random.default_rng(0).normal(size=(7, 4)) / 10
    assert summed(rows) == pytest.approx(rows.sum(0), abs=7 / 2**20)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=3, max_size=3), st.integers(0, 5))
def test_one_record_moves_the_sum_by_at_most_one(record: list[float], at: int) -> None:
    rows = np.random.default_rng(1).normal(size=(5, 3))
    more = np.insert(rows, min(at, 5), record, axis=0)
    assert np.linalg.norm(summed(more) - summed(rows)) <= 1.0


def test_a_sum_that_is_not_clipped_would_be_caught() -> None:
    rows = np.full((5, 3), 9.0)
    assert np.linalg.norm(rows.sum(0) - rows[1:].sum(0)) > 1.0
    assert np.linalg.norm(summed(rows) - summed(rows[1:])) <= 1.0


def test_the_noise_has_the_sd_that_is_booked() -> None:
    noise = summed(np.zeros((3, 20_000)), silent=False, multiplier=2.5)
    assert noise.std() == pytest.approx(2.5, rel=0.03)
    assert abs(noise.mean()) < 0.1
