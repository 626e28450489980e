"""Anchors: what is measured, what the residual is, and that a decoder reaches tables without noise."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from small_runs import SIZES, ScriptedKey, silent, some_codes

from dpvae.audit.secrecy import apart
from dpvae.models.vae import VAE
from dpvae.privacy.events import Gaussian
from dpvae.privacy.mechanisms import cell_sd
from dpvae.privacy.noise import SecretKey
from dpvae.train import anchor
from dpvae.train.anchor import Anchors

NOISE = {"one-way": 3.0, "with-target": 4.0, "pairs": 5.0, "whole-pairs": 6.0}
KEY = SecretKey.from_bytes(bytes(range(32)))
TARGETS = [None, 2, 0]


def crosstab(codes: np.ndarray, columns: tuple[int, ...], sizes: tuple[int, ...]) -> np.ndarray:
    """Counted row by row, the slow way."""
    table = np.zeros([sizes[j] for j in columns], dtype=np.int64)
    for row in codes:
        table[tuple(row[j] for j in columns)] += 1
    return table


def measured(codes: np.ndarray, target: int | None, key: object = KEY, *, sizes: tuple[int, ...] = SIZES,
             noise: dict[str, float] = NOISE) -> Anchors:
    asked = noise if target is not None else {name: noise[name] for name in noise if name in ("one-way", "pairs")}
    return anchor.measure(codes, sizes, target, noise=asked, key=key)[0]  # type: ignore[arg-type]


def made(sizes: tuple[int, ...] = SIZES, components: int = 6, seed: int = 0) -> VAE:
    vae = VAE(sizes, latent_dim=3, hidden=8, layers=0, components=components,
              generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        vae.codebook.weights.copy_(torch.linspace(-1, 1, components))  # type: ignore[union-attr]
    return vae


# -- what is measured ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_without_noise_the_measured_tables_are_the_crosstabs(target: int | None) -> None:
    codes = some_codes(200)
    anchors = measured(codes, target, ScriptedKey(normal=silent))
    for j in range(3):
        assert np.array_equal(anchors.one_way[j], crosstab(codes, (j,), SIZES))
    features = [j for j in range(3) if j != target]
    assert set(anchors.pairs) == set(combinations(features, 2))
    assert set(anchors.with_target) == (set(features) if target is not None else set())
    for j, table in anchors.with_target.items():
        assert np.array_equal(table, crosstab(codes, (j, target), SIZES))
    for (i, j), table in anchors.pairs.items():
        wanted = crosstab(codes, (i, j), SIZES)[None] if target is None else crosstab(codes, (target, i, j), SIZES)
        assert np.array_equal(table, wanted)
    assert set(anchors.whole) == (set(anchors.pairs) if target is not None else set())
    for pair in anchors.pairs:
        assert np.array_equal(anchors.pair(*pair)[0], crosstab(codes, pair, SIZES))
        assert np.array_equal(anchors.whole.get(pair, anchors.pair(*pair)[0]), crosstab(codes, pair, SIZES))
    assert anchors.rows == 200


def test_a_target_with_many_values_does_not_split_the_pairs() -> None:
    sizes = (anchor.TARGET_VALUES + 1, 3, 3)
    codes = np.stack([np.arange(90) % 5, np.arange(90) % 3, np.arange(90) // 30], 1)
    anchors = measured(codes, 0, ScriptedKey(normal=silent), sizes=sizes)
    assert np.array_equal(anchors.pairs[1, 2], crosstab(codes, (1, 2), sizes)[None])
    assert np.array_equal(anchors.whole[1, 2], crosstab(codes, (1, 2), sizes))
    assert np.array_equal(anchors.with_target[1], crosstab(codes, (1, 0), sizes))


@pytest.mark.parametrize("target", TARGETS)
def test_the_noise_of_a_cell_has_the_stated_sd(target: int | None) -> None:
    codes = some_codes(50)
    exact, found = measured(codes, target, ScriptedKey(normal=silent)), {name: [] for name in NOISE}
    for i in range(150):
        noisy = measured(codes, target, SecretKey.from_seed(i))
        found["one-way"] += [np.ravel(a - b) for a, b in zip(noisy.one_way, exact.one_way, strict=True)]
        found["with-target"] += [np.ravel(noisy.with_target[j] - exact.with_target[j]) for j in exact.with_target]
        found["pairs"] += [np.ravel(noisy.pairs[key] - exact.pairs[key]) for key in exact.pairs]
        found["whole-pairs"] += [np.ravel(noisy.whole[key] - exact.whole[key]) for key in exact.whole]
    for name, parts in found.items():
        if not parts:
            continue
        noise, sd = np.concatenate(parts), noisy.sd[name]
        assert sd == cell_sd(NOISE[name], len(parts) // 150)
        rounded = math.sqrt(sd**2 + 1 / 12)  # rounding to whole counts adds a twelfth
        assert noise.std() == pytest.approx(rounded, rel=5 / math.sqrt(2 * len(noise)))
        assert abs(noise.mean()) < 5 * rounded / math.sqrt(len(noise))
        shaken = noise + np.random.default_rng(0).uniform(-0.5, 0.5, len(noise))
        assert stats.kstest(shaken / sd, "norm").pvalue > 1e-4


def test_the_events_are_one_gaussian_per_release_with_the_multiplier_asked_for() -> None:
    _, events = anchor.measure(some_codes(50), SIZES, 2, noise=NOISE, key=KEY)
    assert events == tuple(Gaussian("anchor", f"noisy {name} tables", nm) for name, nm in NOISE.items())


def test_one_record_changes_one_cell_of_each_table_by_one() -> None:
    codes = some_codes(60)
    with_one = measured(np.concatenate([codes, [[3, 2, 1]]]), 2, ScriptedKey(normal=silent))
    without = measured(codes, 2, ScriptedKey(normal=silent))
    for kind in ("one_way", "with_target", "pairs", "whole"):
        a, b = getattr(with_one, kind), getattr(without, kind)
        for key in (range(3) if kind == "one_way" else a):
            difference = a[key] - b[key]
            assert (np.abs(difference).sum(), difference.max()) == (1, 1)


def test_what_is_said_of_a_pair_weighs_its_releases_by_their_noise() -> None:
    split, whole = np.array([[[10, 0]], [[20, 30]]]), np.array([[36, 24]])
    anchors = Anchors((), {}, {(0, 1): split}, {"pairs": 3.0, "whole-pairs": 6.0}, 2, whole={(0, 1): whole})
    table, sd = anchors.pair(0, 1)  # variances 2 * 9 and 36: weights 2/3 and 1/3
    assert table.ravel().tolist() == pytest.approx([(2 * 30 + 36) / 3, (2 * 30 + 24) / 3])
    assert sd == pytest.approx(math.sqrt(1 / (1 / 18 + 1 / 36)))
    alone = replace(anchors, whole={})
    assert alone.pair(0, 1)[0].tolist() == [[30, 30]]
    assert alone.pair(0, 1)[1] == pytest.approx(math.sqrt(18))


@given(st.floats(1e-3, 0.999), st.floats(0.1, 1e3), st.integers(1, anchor.TARGET_VALUES))
def test_no_share_for_whole_tables_leaves_a_pair_noisier_than_none(share: float, noise: float, levels: int) -> None:
    """Two releases of a pair at the price of one: 1/sd^2 is as before for a table that is not split."""
    sd = {"pairs": noise / math.sqrt(1 - share), "whole-pairs": noise / math.sqrt(share)}
    split, whole = np.zeros((levels, 2, 3), dtype=np.int64), np.zeros((2, 3), dtype=np.int64)
    found = Anchors((), {}, {(0, 1): split}, sd, None, whole={(0, 1): whole}).pair(0, 1)[1]
    before = noise * math.sqrt(levels)
    assert found <= before * (1 + 1e-9)
    assert found == pytest.approx(before / math.sqrt(1 + share * (levels - 1)))
    assert (levels > 1) == (found < before * (1 - 1e-9)) or share < 1e-6


def test_every_release_draws_from_a_stream_of_its_own() -> None:
    key = ScriptedKey()
    measured(some_codes(50), 2, key)
    cells = Counter[tuple[str | int, ...]]()
    for draw in key.draws:
        cells[draw.names] += draw.size
    assert cells == {("anchor", "one-way"): 10, ("anchor", "with-target"): 21, ("anchor", "pairs"): 36,
                     ("anchor", "whole-pairs"): 12}


def test_releases_that_draw_from_one_stream_are_found() -> None:
    names, key = [("anchor", name) for name in NOISE], SecretKey.from_seed(1)
    assert apart(key, names).p == 1
    assert apart(Forgetful(key), names).seen == "anchor/pairs and anchor/whole-pairs"  # type: ignore[arg-type]


class Forgetful:
    """The mutant: a key for which both counts of a pair are one."""

    def __init__(self, key: SecretKey) -> None:
        self.key = key

    def stream(self, *names: str | int) -> Any:
        return self.key.stream(*("pairs" if name == "whole-pairs" else name for name in names))


# -- the residual ----------------------------------------------------------------------------------------------------


def by_hand(vae: VAE, anchors: Anchors) -> float:
    """Mean squared distance of the mixture's tables from the anchors, in units of their noise; loops only."""
    codebook = vae.codebook
    assert codebook is not None
    weights = codebook.log_weights.detach().double().exp().tolist()
    logits = vae.decode(codebook.points).detach().double()
    chance = [[torch.softmax(part, 0).tolist() for part in row.split(vae.likelihood.sizes)] for row in logits]
    rows, sizes, target = anchors.rows, vae.likelihood.sizes, anchors.target

    def expected(*cell: tuple[int, int]) -> float:
        """Rows expected in the cell where each (column, code) holds."""
        return rows * sum(w * math.prod(p[j][code] for j, code in cell) for w, p in zip(weights, chance, strict=True))

    squares = []
    for j, table in enumerate(anchors.one_way):
        squares += [(expected((j, c)) - table[c]) / anchors.sd["one-way"] for c in range(sizes[j])]
    squares += [(expected((j, c)) - count) / sd
                for j, codes in enumerate(anchors.counted) for c, (count, sd) in codes.items()]
    for j, table in anchors.with_target.items():
        squares += [(expected((j, c), (target, y)) - table[c, y]) / anchors.sd["with-target"]
                    for c in range(sizes[j]) for y in range(sizes[target])]
    for (i, j), table in anchors.pairs.items():
        for level, part in enumerate(table):
            given = () if len(table) == 1 else ((target, level),)
            squares += [(expected((i, a), (j, b), *given) - part[a, b]) / anchors.sd["pairs"]
                        for a in range(sizes[i]) for b in range(sizes[j])]
    for (i, j), table in anchors.whole.items():
        squares += [(expected((i, a), (j, b)) - table[a, b]) / anchors.sd["whole-pairs"]
                    for a in range(sizes[i]) for b in range(sizes[j])]
    return float(np.mean(np.square(squares)))


@pytest.mark.parametrize("target", TARGETS)
def test_the_residual_is_the_mean_squared_distance_in_units_of_the_noise(target: int | None) -> None:
    anchors, vae = measured(some_codes(80), target), made()
    anchor.start_bias(vae, anchors)
    wanted = by_hand(vae, anchors)
    first = anchor.fit(vae, anchors, steps=1, learning_rate=0.0, generator=torch.Generator())
    assert first == pytest.approx(wanted, rel=1e-4)


def test_counts_that_were_released_before_join_the_residual_with_their_own_noise() -> None:
    anchors, vae = replace(measured(some_codes(80), 2), counted=({}, {1: (30.0, 0.5), 0: (44.0, 9.0)}, {})), made()
    anchor.start_bias(vae, anchors)
    wanted = by_hand(vae, anchors)
    assert wanted != pytest.approx(by_hand(vae, replace(anchors, counted=())), rel=1e-2)
    assert anchor.fit(vae, anchors, steps=1, learning_rate=0.0, generator=torch.Generator()) == pytest.approx(
        wanted, rel=1e-4)


def test_the_residual_of_a_target_with_many_values_is_the_same_formula() -> None:
    sizes = (anchor.TARGET_VALUES + 1, 3, 3)
    codes = np.stack([np.arange(90) % 5, np.arange(90) % 3, np.arange(90) // 30], 1)
    anchors, vae = measured(codes, 0, sizes=sizes), made(sizes)
    anchor.start_bias(vae, anchors)
    wanted = by_hand(vae, anchors)
    assert anchor.fit(vae, anchors, steps=1, learning_rate=0.0, generator=torch.Generator()) == pytest.approx(
        wanted, rel=1e-4)


def test_a_column_with_one_code_and_no_pairs_at_all_are_no_special_case() -> None:
    codes, sizes = np.stack([np.zeros(40, int), np.arange(40) % 3], 1), (1, 3)
    anchors, vae = measured(codes, None, sizes=sizes, noise={"one-way": 1.0}), made(sizes)
    anchor.start_bias(vae, anchors)
    wanted = by_hand(vae, anchors)
    assert anchor.fit(vae, anchors, steps=1, learning_rate=0.0, generator=torch.Generator()) == pytest.approx(
        wanted, rel=1e-4)


def test_the_bias_starts_at_the_noisy_one_way_frequencies() -> None:
    anchors, vae = measured(some_codes(80), None), made()
    anchor.start_bias(vae, anchors)
    with torch.no_grad():
        p_W = vae.likelihood.log_probs(vae.decode(torch.zeros(1, 3))).exp()[0]
    for j, table in enumerate(anchors.one_way):
        positive = np.maximum(table, 0.5)
        np.testing.assert_allclose(p_W[vae.likelihood.slice(j)].numpy(), positive / positive.sum(), rtol=1e-4)


# -- the fit ---------------------------------------------------------------------------------------------------------


def noiseless(codes: np.ndarray, target: int | None) -> Anchors:
    """Exact tables that claim a noise of a tenth of a count."""
    exact = measured(codes, target, ScriptedKey(normal=silent))
    return replace(exact, sd=dict.fromkeys(exact.sd, 0.1))


@pytest.mark.parametrize("target", TARGETS)
def test_a_decoder_reaches_tables_that_were_measured_without_noise(target: int | None) -> None:
    anchors, vae = noiseless(some_codes(300), target), made(components=40)
    anchor.start_bias(vae, anchors)
    residuals: list[float] = []
    final = anchor.fit(vae, anchors, steps=600, learning_rate=0.05, generator=torch.Generator(),
                       progress=lambda step, residual: residuals.append(residual))
    assert len(residuals) == 600
    assert residuals[-1] == final
    assert final < 0.01 * residuals[0]
    assert math.sqrt(final) * 0.1 < 1.0, "within a count of 300 rows, cell by cell, on average"


def test_the_same_anchors_and_seed_give_the_same_fit_and_nothing_private_is_read() -> None:
    weights = []
    for _ in range(2):
        vae = made()
        anchors = measured(some_codes(80), 2)
        anchor.start_bias(vae, anchors)
        anchor.fit(vae, anchors, steps=5, learning_rate=0.03, generator=torch.Generator().manual_seed(1))
        weights.append(torch.cat([p.detach().flatten() for p in vae.parameters()]))
    assert torch.equal(*weights)


@pytest.mark.parametrize("target", [None, 0])
def test_wide_tables_are_fitted_on_random_subsets_of_columns(target: int | None, monkeypatch: pytest.MonkeyPatch
                                                             ) -> None:
    monkeypatch.setattr(anchor, "WIDTH_AT_ONCE", 7)
    anchors, vae = noiseless(some_codes(300), target), made(components=40)
    anchor.start_bias(vae, anchors)
    first = by_hand(vae, anchors)
    anchor.fit(vae, anchors, steps=400, learning_rate=0.05, generator=torch.Generator().manual_seed(1))
    assert by_hand(vae, anchors) < 0.05 * first
