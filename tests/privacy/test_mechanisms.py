"""Mechanisms: the noise that was claimed, on the sensitivity that is true, and integers only."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dpvae.errors import ConfigError
from dpvae.privacy import mechanisms
from dpvae.privacy.events import Gaussian, PureDP, Threshold
from dpvae.privacy.mechanisms import (
    cell_sd,
    frequent_values,
    noisy_choice,
    noisy_counts,
    noisy_mean_clipped,
    noisy_products,
    publication_threshold,
)
from dpvae.privacy.noise import SecretKey, SecretStream

KEY = SecretKey.from_seed(7)
NAMES = {"phase": "survey", "what": "a test"}


class Silent(SecretStream):
    """No noise at all: shows what a mechanism computes underneath. Deliberately not private."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(bytes(32))

    def normal(self, shape: object) -> np.ndarray:
        return np.zeros(shape)  # type: ignore[call-overload]


def test_counts_come_back_exact_under_their_noise_with_the_event_that_pays() -> None:
    tables = [np.array([[1, 2], [3, 4]]), np.array([0, 10**12])]
    noisy, event = noisy_counts(tables, noise_multiplier=3.0, stream=Silent(), **NAMES)
    assert event == Gaussian("survey", "a test", 3.0)
    for got, table in zip(noisy, tables, strict=True):
        np.testing.assert_array_equal(got, table)
        assert got.dtype == np.int64


def test_cells_of_joint_tables_get_noise_scaled_by_the_root_of_their_number() -> None:
    """A record is in one cell of each table: releasing T tables at the noise of one is opendp#2789's kind of error."""
    tables = [np.zeros(30_000, dtype=np.int64) for _ in range(4)]
    noisy, _ = noisy_counts(tables, noise_multiplier=5.0, stream=KEY.stream("joint"), **NAMES)
    draws = np.concatenate(noisy)
    assert cell_sd(5.0, 4) == 10.0
    assert draws.std() == pytest.approx(math.sqrt(100 + 1 / 12), rel=0.01)
    assert abs(np.corrcoef(noisy[0], noisy[1])[0, 1]) < 4 / math.sqrt(30_000)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=30), st.integers(0, 29))
def test_removing_a_record_moves_joint_tables_by_at_most_the_sensitivity_paid_for(
    rows: list[list[int]], gone: int
) -> None:
    columns = min(len(row) for row in rows)
    gone %= len(rows)

    def tables(kept: list[list[int]]) -> np.ndarray:
        return np.concatenate([np.bincount([r[c] for r in kept], minlength=3) for c in range(columns)])

    moved = float(np.linalg.norm(tables(rows) - tables(rows[:gone] + rows[gone + 1 :])))
    assert moved <= cell_sd(1.0, columns) + 1e-12


def test_noise_is_a_rounded_normal_and_the_same_whatever_the_count() -> None:
    """Low bits of a floating sum betray the count; integers plus integer noise cannot."""
    sd, size = 2.0, 40_000
    small = noisy_counts([np.zeros(size, dtype=int)], noise_multiplier=sd, stream=KEY.stream("n"), **NAMES)[0][0]
    large = noisy_counts([np.full(size, 10**15)], noise_multiplier=sd, stream=KEY.stream("n"), **NAMES)[0][0]
    np.testing.assert_array_equal(large - 10**15, small)
    edges = np.arange(-6, 8) - 0.5
    expected = np.diff(stats.norm.cdf(edges, scale=sd)) * size
    observed = np.array([(small == k).sum() for k in range(-6, 7)])
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-4


def test_counts_that_are_not_integers_are_refused() -> None:
    with pytest.raises(ConfigError, match="integer counts, got float64"):
        noisy_counts([np.array([0.5])], noise_multiplier=1.0, stream=KEY.stream("a"), **NAMES)
    with pytest.raises(ConfigError, match="tables=0"):
        noisy_counts([], noise_multiplier=1.0, stream=KEY.stream("a"), **NAMES)
    for noise in (0.0, -1.0, math.nan, 1e300):
        with pytest.raises(ConfigError, match="noise_multiplier"):
            noisy_counts([np.array([1])], noise_multiplier=noise, stream=KEY.stream("a"), **NAMES)


def test_a_clipped_mean_is_exact_up_to_its_grid() -> None:
    values = np.array([-1e9, math.inf, -math.inf, math.nan, 0.25, 3.0])
    mean, sd, event = noisy_mean_clipped(
        values, lower=-2.0, upper=4.0, divisor=6.0, noise_multiplier=10.0, stream=Silent(), **NAMES)
    assert mean == pytest.approx(np.mean([-2, 4, -2, -2, 0.25, 3.0]), abs=3e-6)
    assert sd == pytest.approx(10 * 3.0 / 6.0)
    assert event == Gaussian("survey", "a test", 10.0)


def test_the_mean_is_divided_by_the_public_number_not_by_the_private_one() -> None:
    """jax-privacy#383 and Opacus: a divisor of len(data) tells n, and noise for the sum is not noise for the mean."""
    for rows in (0, 99, 101):
        mean, sd, _ = noisy_mean_clipped(
            np.full(rows, 1.0), lower=0.0, upper=1.0, divisor=100, noise_multiplier=2.0, stream=Silent(), **NAMES)
        assert mean == pytest.approx(0.5 + rows * 0.5 / 100)
        assert sd == 2.0 * 0.5 / 100


def test_the_noise_of_a_mean_follows_both_bounds() -> None:
    """diffprivlib#105: the lower bound used twice makes the sensitivity zero."""
    draws = []
    for lower, upper in ((0.0, 2.0), (-6.0, 2.0), (1e6, 1e6 + 2)):
        stream = KEY.stream("mean", str(lower))
        got = [noisy_mean_clipped([], lower=lower, upper=upper, divisor=10, noise_multiplier=5.0, stream=stream,
                                  **NAMES) for _ in range(1500)]
        sd = got[0][1]
        assert sd == pytest.approx(5 * (upper - lower) / 2 / 10)
        draws.append(np.std([mean for mean, *_ in got]) / sd)
    assert draws == pytest.approx([1, 1, 1], abs=0.08)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=20), st.floats(allow_nan=True),
    st.floats(-1e6, 1e6), st.floats(1e-6, 1e6),
)
def test_one_record_moves_the_noisy_sum_by_at_most_half_the_range(
    values: list[float], extra: float, lower: float, width: float
) -> None:
    def run(rows: list[float]) -> float:
        return noisy_mean_clipped(rows, lower=lower, upper=lower + width, divisor=1.0, noise_multiplier=1.0,
                                  stream=Silent(), **NAMES)[0]

    half = (lower + width - lower) / 2
    slack = 1e-9 * (abs(lower) + width) * (len(values) + 2)  # of reading the sum in floats, not of the mechanism
    assert abs(run([*values, extra]) - run(values)) <= half + slack


@pytest.mark.parametrize(("lower", "upper"), [(1.0, 1.0), (2.0, 1.0), (math.nan, 1.0), (0.0, math.inf)])
def test_bounds_that_are_no_interval_are_refused(lower: float, upper: float) -> None:
    with pytest.raises(ConfigError, match="lower < upper"):
        noisy_mean_clipped([1.0], lower=lower, upper=upper, divisor=1, noise_multiplier=1.0, stream=Silent(), **NAMES)


def lonely(threshold: int, noise: float, columns: int) -> float:
    """The exact probability that one record's new values show in at least one of ``columns``, by a union bound."""
    return columns * float(stats.norm.sf((threshold - 1.5) / cell_sd(noise, columns)))


@pytest.mark.parametrize("noise", [0.5, 10.0, 333.0])
@pytest.mark.parametrize("columns", [1, 15])
@pytest.mark.parametrize("delta", [0.3, 1e-6, 1e-12])
def test_the_threshold_is_the_smallest_that_keeps_its_promise(noise: float, columns: int, delta: float) -> None:
    threshold = publication_threshold(noise, columns, delta)
    assert lonely(threshold, noise, columns) <= delta / (1 + delta)
    assert lonely(threshold - 1, noise, columns) > delta / (1 + delta)


@pytest.mark.parametrize(
    "mutant",
    [lambda n, c, d: publication_threshold(n, 1, d),
     lambda n, c, d: math.ceil(1 + cell_sd(n, c) * stats.norm.isf(2 * d / c)),
     lambda n, c, d: math.ceil(cell_sd(n, c) * stats.norm.isf(d / c) - 1)],
    ids=["noise and delta of one column", "two-sided delta", "the record's own count forgotten"],
)
def test_a_wrong_threshold_breaks_the_promise(mutant: object) -> None:
    assert lonely(mutant(10.0, 15, 1e-6), 10.0, 15) > 1e-6  # type: ignore[operator]


def published_alone(trials: int, columns: int, delta: float) -> int:
    stream, shown = KEY.stream("alone"), 0
    for _ in range(trials):
        got, _ = frequent_values([{"rare": 1, "usual": 10_000}] * columns, noise_multiplier=4.0, delta=delta,
                                 stream=stream, **NAMES)
        assert all("usual" in column for column in got)
        shown += any("rare" in column for column in got)
    return shown


def test_a_value_of_one_record_is_published_with_probability_delta_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """np.unique as a domain (diffprivlib, dpmm; measured elsewhere: one-person categories shown with p = 0.39)."""
    trials, columns, delta = 1500, 6, 0.04
    limit = stats.binom(trials, delta).ppf(1 - 1e-4)
    assert published_alone(trials, columns, delta) <= limit
    monkeypatch.setattr(mechanisms, "publication_threshold", lambda noise, columns, delta: publication_threshold(
        noise, columns, min(0.9, delta * columns)))
    assert published_alone(trials, columns, delta) > limit


def test_frequent_values_are_named_with_their_counts_and_paid_for() -> None:
    histograms = [{"a": 500, "b": 900, None: 500, 3: 2}, {1.5: 700}]
    got, event = frequent_values(histograms, noise_multiplier=4.0, delta=1e-6, stream=Silent(), **NAMES)
    assert event == Threshold("survey", "a test", 4.0, 1e-6)
    assert [list(column.items()) for column in got] == [[("b", 900), ("a", 500), (None, 500)], [(1.5, 700)]]


SHARES = [0.64, 0.35, 0.01]


def test_columns_with_shares_of_their_own_move_together_by_what_is_paid_for_and_hide_a_newcomer_as_well() -> None:
    """A record adds one to a count of every column: sum of (1 / sd_j)^2 is the squared signal that the event states."""
    stream = KEY.stream("shares")
    got, event = frequent_values([{f"v{i}": 10**6 for i in range(2000)}] * 3, noise_multiplier=4.0, delta=1e-6,
                                 shares=SHARES, stream=stream, **NAMES)
    sds = np.array([np.std([count - 10**6 for count in column.values()]) for column in got])
    np.testing.assert_allclose(sds, [4.0 / 0.8, 4.0 / math.sqrt(0.35), 40.0], rtol=0.08)
    assert sum((1 / cell_sd(4.0, 1 / share)) ** 2 for share in SHARES) <= (1 / event.noise_multiplier) ** 2 + 1e-12
    least = [publication_threshold(4.0, 1 / share, 1e-6) for share in SHARES]
    chances = [stats.norm.sf((t - 1.5) / cell_sd(4.0, 1 / share)) for t, share in zip(least, SHARES, strict=True)]
    assert sum(chances) <= 1e-6 / (1 + 1e-6)
    edge, _ = frequent_values([{"above": t, "below": t - 1} for t in least], noise_multiplier=4.0, delta=1e-6,
                              shares=SHARES, stream=Silent(), **NAMES)
    assert [list(column) for column in edge] == [["above"]] * 3


@pytest.mark.parametrize("shares", [[0.7, 0.4, 0.1], [0.5, 0.5], [1.0, 0.0, 0.0], [1.5, -0.3, -0.2]])
def test_shares_that_are_none_are_refused(shares: list[float]) -> None:
    with pytest.raises(ConfigError, match="add up to at most 1"):
        frequent_values([{"a": 5}] * 3, noise_multiplier=4.0, delta=1e-6, shares=shares, stream=Silent(), **NAMES)


def test_the_floor_only_ever_raises_the_threshold() -> None:
    least = publication_threshold(4.0, 1, 1e-6)
    at_edge = [{"above": least, "below": least - 1, "many": 800}]
    for floor, names in ((0, ["many", "above"]), (-5, ["many", "above"]), (least + 1, ["many"]), (801, [])):
        got, _ = frequent_values(at_edge, noise_multiplier=4.0, delta=1e-6, stream=Silent(), floor=floor, **NAMES)
        assert list(got[0]) == names


@settings(deadline=None, max_examples=25)
@given(st.permutations(range(12)))
def test_the_order_of_rows_changes_nothing_that_is_published(order: list[int]) -> None:
    histogram = {f"value {i}": 100 + (i % 3) for i in order}
    got, _ = frequent_values([histogram], noise_multiplier=4.0, delta=1e-3, stream=KEY.stream("order"), **NAMES)
    sorted_, _ = frequent_values([{f"value {i}": 100 + (i % 3) for i in range(12)}], noise_multiplier=4.0, delta=1e-3,
                                 stream=KEY.stream("order"), **NAMES)
    assert list(got[0].items()) == list(sorted_[0].items())


def test_a_value_that_nobody_holds_is_refused() -> None:
    with pytest.raises(ConfigError, match="counts >= 1"):
        frequent_values([{"ghost": 0}], noise_multiplier=4.0, delta=1e-6, stream=Silent(), **NAMES)


def test_empty_columns_publish_nothing_and_still_cost() -> None:
    got, event = frequent_values([{}, {}], noise_multiplier=4.0, delta=1e-6, stream=Silent(), **NAMES)
    assert got == [{}, {}]
    assert event.delta == 1e-6


# -- sums of products ------------------------------------------------------------------------------------------------


def products(left: np.ndarray, right: np.ndarray, *, at_once: int = 100, stream: SecretStream | None = None,
             noise: float = 1.0) -> np.ndarray:
    blocks = ((left[i:i + at_once], right[i:i + at_once]) for i in range(0, max(len(left), 1), at_once))
    released, _, event = noisy_products(blocks, left_norm=2.0, right_norm=0.5, noise_multiplier=noise,
                                        stream=stream or Silent(), **NAMES)
    assert event == Gaussian("survey", "a test", noise)
    return released


def moved_by(record: tuple[np.ndarray, np.ndarray]) -> float:
    """By how much one more record moves the sum, in units of the claimed bound."""
    rng = np.random.default_rng(3)
    left, right = rng.normal(size=(50, 4)), rng.normal(size=(50, 3))
    more = products(np.vstack([left, record[0]]), np.vstack([right, record[1]]))
    return float(np.linalg.norm(more - products(left, right)))


@settings(max_examples=60)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=64), min_size=4, max_size=4),
       st.lists(st.floats(-10, 10), min_size=3, max_size=3))
def test_one_record_moves_a_sum_of_products_by_at_most_the_product_of_the_norms(a: list[float],
                                                                               b: list[float]) -> None:
    assert moved_by((np.array(a), np.array(b))) <= 1.0 + 1e-12


def test_products_that_are_not_cut_to_their_norm_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: units without the cut."""
    loud = (np.full(4, 30.0), np.ones(3))
    assert 0.99 < moved_by(loud) <= 1.0
    monkeypatch.setattr(mechanisms, "_units",
                        lambda rows, norm: np.trunc(np.asarray(rows) * (mechanisms._PRODUCT_UNITS / norm)))
    assert moved_by(loud) > 1.01


def test_a_sum_of_products_is_right_and_the_same_in_any_order_and_in_any_parts() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(400, 4)) * 0.3, rng.normal(size=(400, 3)) * 0.1
    whole = products(left, right, at_once=400)
    np.testing.assert_allclose(whole, left.T @ right, atol=400 * 2.0 * 0.5 / 4096)
    order = rng.permutation(400)
    np.testing.assert_array_equal(whole, products(left[order], right[order], at_once=7))


def test_the_noise_of_a_sum_of_products_has_the_sd_that_is_named() -> None:
    zero = np.zeros((1, 200)), np.zeros((1, 50))
    released = products(*zero, stream=KEY.stream("products"), noise=7.0)
    assert released.std() == pytest.approx(7.0 * 2.0 * 0.5, rel=0.03)


def test_no_records_at_all_give_noise_all_the_same() -> None:
    assert products(np.zeros((0, 4)), np.zeros((0, 3)), stream=KEY.stream("none")).shape == (4, 3)
    with pytest.raises(ConfigError, match="blocks"):
        noisy_products([], left_norm=1.0, right_norm=1.0, noise_multiplier=1.0, stream=Silent(), **NAMES)


# -- the exponential mechanism -----------------------------------------------------------------------------------------


def chosen(scores: list[list[float]], *, epsilon: float, choices: int = 1, number: int = 0) -> list[int]:
    found, event = noisy_choice([np.array(block) for block in scores], choices=choices, epsilon=epsilon,
                                stream=KEY.stream("choice", number), **NAMES)
    assert event == PureDP("survey", "a test", epsilon, choices)
    return found


def test_the_choice_is_the_largest_where_noise_is_small_in_whichever_block_it_lies() -> None:
    assert chosen([[1.0, 90.0], [3.0], [70.0, 2.0, 80.0]], epsilon=50.0, choices=3) == [1, 5, 3]


def test_the_choice_follows_the_law_of_the_exponential_mechanism() -> None:
    """P(i) is proportional to exp(epsilon score / 2)."""
    counts = np.bincount([chosen([[0.0, 1.0], [2.0]], epsilon=1.0, number=n)[0] for n in range(4000)], minlength=3)
    odds = np.exp(0.5 * np.arange(3))
    assert stats.chisquare(counts, 4000 * odds / odds.sum()).pvalue > 1e-4


def test_a_choice_with_half_the_noise_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: scores not halved, so that epsilon is spent twice."""
    counts = np.bincount([chosen([[0.0, 1.0], [2.0]], epsilon=2.0, number=n)[0] for n in range(4000)], minlength=3)
    odds = np.exp(0.5 * np.arange(3))
    assert stats.chisquare(counts, 4000 * odds / odds.sum()).pvalue < 1e-4
