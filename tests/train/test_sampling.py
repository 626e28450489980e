"""Poisson batches drawn in time that follows the batch: the law of independent coins, exactly."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dpvae.privacy.noise import SecretKey
from dpvae.train import sampling
from dpvae.train.sampling import Padding, draw_batch, poisson_batch

KEY = SecretKey.from_bytes(bytes(range(32)))


@pytest.mark.parametrize(("rows", "rate"), [(1, 0.3), (7, 0.5), (40, 0.01), (300, 0.9), (1000, 2.0**-64), (50, 0.0)])
def test_the_table_of_batch_sizes_is_the_binomial_distribution_to_120_bits(rows: int, rate: float) -> None:
    chance = int(rate * 2.0**64)
    p, first_edges = Fraction(chance, 2**64), sampling._table(rows, chance)
    first, edges = first_edges
    cumulated = Fraction(0)
    for k in range(rows):
        cumulated += math.comb(rows, k) * p**k * (1 - p) ** (rows - k)
        edge = 0 if k < first else edges[k - first] if k - first < len(edges) else 2**128
        assert abs(Fraction(edge, 2**128) - cumulated) < Fraction(1, 2**120)


def test_every_subset_comes_as_often_as_independent_coins_say() -> None:
    """The whole law on a table of five rows: all 32 subsets, 40,000 draws."""
    rows, rate, draws = 5, 0.3, 40_000
    stream = KEY.stream("law")
    seen = Counter(tuple(poisson_batch(stream, rows, rate).tolist()) for _ in range(draws))
    subsets = [s for size in range(rows + 1) for s in combinations(range(rows), size)]
    expected = np.array([rate ** len(s) * (1 - rate) ** (rows - len(s)) for s in subsets]) * draws
    observed = np.array([seen[s] for s in subsets])
    assert observed.sum() == draws
    assert stats.chisquare(observed, expected).pvalue > 1e-4


@pytest.mark.parametrize("rate", [0.02, 0.4, 0.8])
def test_inclusion_pairs_and_sizes_of_large_tables_follow_the_coins(rate: float) -> None:
    rows, draws = 400, 1500
    stream = KEY.stream("large", str(rate))
    taken = np.zeros((draws, rows))
    for row in taken:
        row[poisson_batch(stream, rows, rate)] = 1
    variance = rate * (1 - rate)
    sizes, records = taken.sum(1), taken.sum(0)
    neighbours = ((taken[:, 1:] - rate) * (taken[:, :-1] - rate)).mean() / variance
    for statistic, freedom in ((((sizes - rows * rate) ** 2 / (rows * variance)).sum(), draws),
                               (((records - draws * rate) ** 2 / (draws * variance)).sum(), rows)):
        assert 1e-4 < stats.chi2.cdf(statistic, freedom) < 1 - 1e-4
    assert abs(neighbours) < 4 / math.sqrt(draws * (rows - 1))


@given(rows=st.integers(0, 200), rate=st.floats(0, 1))
def test_a_batch_holds_each_record_at_most_once_and_none_that_is_not_there(rows: int, rate: float) -> None:
    batch = poisson_batch(KEY.stream("any", rows), rows, rate)
    assert (np.diff(batch) > 0).all()
    assert not len(batch) or (batch[0] >= 0 and batch[-1] < rows)
    assert len(batch) == rows or rate < 1
    assert len(batch) == 0 or rate > 0


def test_the_way_of_drawing_follows_from_public_facts_and_a_step_draws_the_same_batch_again() -> None:
    small = draw_batch(KEY, 3, 500, 0.1, public_rows=1000)
    assert np.array_equal(small, KEY.stream("dpsgd", 3, "mask").mask(500, 0.1).nonzero()[0])
    large = draw_batch(KEY, 3, 500, 0.1, public_rows=sampling.COINS_UP_TO + 1)
    assert np.array_equal(large, draw_batch(KEY, 3, 500, 0.1, public_rows=10**9))
    assert not np.array_equal(small, large)


# -- padding -----------------------------------------------------------------------------------------------------------


@given(size=st.integers(0, 500), first=st.integers(1, 100), further=st.integers(1, 50), parts=st.integers(1, 3))
def test_padding_drops_nobody_and_counts_nobody_twice(size: int, first: int, further: int, parts: int) -> None:
    batch = np.arange(1000, 1000 + size)
    chunks = list(Padding(first, further, parts).chunks(batch))
    assert [len(rows) for rows, _ in chunks] == ([first] * parts + [further] * len(chunks))[:len(chunks)]
    counted = np.concatenate([rows[:count] for rows, count in chunks])
    assert np.array_equal(counted, batch)
    assert all((rows[count:] == 0).all() for rows, count in chunks)


def test_padding_follows_from_public_facts_and_from_the_memory_there_is() -> None:
    assert Padding.of(0.25, 4096, at_most=10**6) == Padding(1056, 32)
    assert Padding.of(0.25, 4096, at_most=256) == Padding(216, 32, 5)
    assert Padding.of(0.5, 8192, at_most=4096) == Padding(2072, 48, 2)  # not two of 4096 for a batch a little larger
