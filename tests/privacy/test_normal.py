"""The normal distribution in numpy alone is scipy's, to the last digits that matter."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import fft, special

from dpvae.privacy import normal

Z = np.concatenate([np.linspace(-37, 37, 20_001), [-np.sqrt(2), np.sqrt(2), 0.0, 1e-300, -1e-9]])


def test_the_lower_tail_has_thirteen_digits_everywhere() -> None:
    np.testing.assert_allclose(normal.ndtr(Z), special.ndtr(Z), rtol=5e-13)
    np.testing.assert_allclose(normal.log_ndtr(Z[Z < 36]), special.log_ndtr(Z[Z < 36]), rtol=5e-13)


def test_where_the_tail_itself_underflows_its_logarithm_does_not() -> None:
    far = -np.geomspace(40, 1e6, 100)
    np.testing.assert_allclose(normal.log_ndtr(far), special.log_ndtr(far), rtol=1e-14)
    assert not normal.ndtr(far).any()


@pytest.mark.parametrize("probability", [1e-300, 1e-18, 1e-6, 0.3, 0.5, 0.999])
def test_the_quantile_is_the_inverse(probability: float) -> None:
    assert normal.ndtri(probability) == pytest.approx(float(special.ndtri(probability)), rel=1e-14, abs=1e-15)


def test_lengths_are_the_next_that_a_transform_is_quick_with() -> None:
    assert all(normal.fast_length(n) == fft.next_fast_len(n, real=True) for n in range(1, 5000))
