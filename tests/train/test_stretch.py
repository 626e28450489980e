"""What lengths say of stretches: a law that is known comes back, and noise alone says nothing."""

from __future__ import annotations

import numpy as np
import pytest

from dpvae.train.stretch import EDGES, SQUARES, length_of, lengths, stretches


def test_lengths_of_normal_vectors_follow_the_chi_squared_law() -> None:
    """Closed form: the mean square of two normal numbers of variance v is exponential of mean v."""
    squares = np.array([0.25, 1.0, 4.0])
    above = np.vstack([np.ones(3), np.exp(-EDGES[:, None] / squares), np.zeros(3)])
    np.testing.assert_allclose(lengths(2, squares), above[:-1] - above[1:], atol=1e-12)


def test_the_length_of_a_vector_is_that_of_its_mean_square() -> None:
    vectors = np.sqrt(SQUARES)[:, None] * np.where(np.arange(6) % 2, 1.0, -1.0)
    np.testing.assert_array_equal(length_of(vectors), np.arange(len(SQUARES)))


@pytest.mark.parametrize("size", [4, 100])
def test_stretches_that_lengths_were_made_of_come_back_to_their_second_and_fourth_power(size: int) -> None:
    true = np.zeros((2, len(SQUARES)))
    true[0, [4, 9]] = 0.7, 0.3
    true[1, 6] = 1.0
    factors, shares = stretches(true @ lengths(size, SQUARES).T, 1e-9, size)
    np.testing.assert_allclose(shares.sum(1), 1.0)
    for power, near in ((2, 0.05), (4, 0.2)):
        np.testing.assert_allclose(shares @ factors**power, true @ factors**power, rtol=near)


def test_lengths_that_noise_does_not_tell_from_normal_ones_are_normal() -> None:
    normal, noise = lengths(20, np.ones(1)).T, np.random.default_rng(3).normal(0, 1, (500, 1, len(SQUARES)))
    for doubt in (0.01, 1.0, 100.0):
        found = [stretches(normal + doubt * drawn, doubt, 20) for drawn in noise]
        assert np.mean([len(factors) == 1 for factors, _ in found]) > 0.95
