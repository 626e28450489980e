"""A noisy sum of long vectors that are mostly zero: exact without noise, bounded by one record."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpvae.errors import ConfigError
from dpvae.privacy import mechanisms
from dpvae.privacy.mechanisms import noisy_sparse_sums
from dpvae.privacy.noise import SecretKey
from dpvae.privacy.silence import Silence

SIZE = 6
Entries = list[tuple[int, float]]


def summed(records: list[Entries], *, silent: bool = True, multiplier: float = 1.0, size: int = SIZE) -> np.ndarray:
    flat = [(i, cell, weight) for i, entries in enumerate(records) for cell, weight in entries]
    owner, cell, weight = (np.array([row[j] for row in flat]) for j in range(3))
    key = SecretKey.from_seed(3)
    stream = (Silence(key) if silent else key).stream("test")
    part = (owner.astype(np.int64), cell.astype(np.int64), weight.astype(float))
    return noisy_sparse_sums([part], size, noise_multiplier=multiplier, stream=stream, phase="anchor", what="test")[0]


def test_without_noise_it_is_the_sum_of_what_each_record_holds() -> None:
    assert summed([[(0, 0.25), (3, 0.5), (0, 0.25)], [(3, 0.5)]]) == pytest.approx([0.5, 0, 0, 1.0, 0, 0], abs=1e-5)


def test_a_record_that_is_too_long_is_scaled_down_as_a_whole() -> None:
    assert summed([[(0, 3.0), (1, 4.0)]]) == pytest.approx([0.6, 0.8, 0, 0, 0, 0], abs=1e-5)


ENTRIES = st.lists(st.tuples(st.integers(0, SIZE - 1), st.floats(allow_nan=True, allow_infinity=True)), max_size=8)


@settings(deadline=None, max_examples=100)
@given(ENTRIES)
def test_one_record_moves_the_sum_by_at_most_one(entries: Entries) -> None:
    others: list[Entries] = [[(0, 0.5)], [(1, 7.0), (2, 1.0)]]
    assert np.linalg.norm(summed([*others, entries]) - summed(others)) <= 1.0


@pytest.mark.parametrize("break_it", [
    lambda values, owner: values,  # no clip
    lambda values, owner: np.clip(values, -1, 1),  # each cell alone
], ids=["no clip", "a clip by cell"])
def test_a_sum_whose_records_are_not_clipped_is_caught(break_it: Callable[..., np.ndarray]) -> None:
    record = np.ones(4) * 0.9
    assert np.linalg.norm(break_it(record, None)) > 1.0
    assert np.linalg.norm(summed([[(i, 0.9) for i in range(4)]])) <= 1.0


def test_every_cell_gets_the_noise_that_is_booked() -> None:
    noise = summed([[(0, 0.0)]], silent=False, multiplier=2.5, size=20_000)
    assert noise.std() == pytest.approx(2.5, rel=0.03)
    assert (noise != 0).mean() > 0.99


def test_sums_are_whole_numbers_of_steps() -> None:
    found = summed([[(0, 1 / 3)]], silent=False) * mechanisms._UNITS
    assert (found == np.rint(found)).all()


def test_records_that_hold_nothing_add_nothing() -> None:
    assert summed([[], [(2, 0.5)]]).tolist() == [0, 0, 0.5, 0, 0, 0]
    empty = np.zeros(0, dtype=np.int64)
    stream = Silence(SecretKey.from_seed(0)).stream("test")
    found, _ = noisy_sparse_sums([(empty, empty, np.zeros(0))], 2, noise_multiplier=1.0, stream=stream, phase="anchor",
                                 what="test")
    assert found.tolist() == [0, 0]


def test_a_cell_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"expected numbers in \[0, 6\)"):
        summed([[(6, 1.0)]])
