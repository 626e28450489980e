"""The target drawn last: every row keeps its law, and the cells of tables come out nearly as expected."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from dpvae.models.mixture import Mixture
from dpvae.models.vae import VAE
from dpvae.release import evened as module
from dpvae.release.evened import cells, evened, posterior, redrawn
from dpvae.release.sample import SHARD, sample_codes

SIZES = (3, 2, 4, 2)
TARGET = 1


def made(seed: int = 0) -> VAE:
    vae = VAE(SIZES, latent_dim=3, hidden=8, layers=0, components=6, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        vae.decoder[-1].weight.mul_(2)  # type: ignore[operator, union-attr]
    return vae


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.asarray(made().sample(count, generator=torch.Generator().manual_seed(seed)).numpy())


def excess(codes: np.ndarray, law: np.ndarray, drawn: np.ndarray) -> float:
    """Root mean square, over cells of tables, of (drawn - expected) / sqrt(rows of the cell)."""
    held = cells(codes, SIZES, TARGET)
    count = np.bincount(held.ravel())
    total = np.bincount(held.ravel(), np.repeat(drawn - law[:, 1], held.shape[1]))
    kept = count > 50
    return float(np.sqrt(np.mean(total[kept] ** 2 / count[kept])))


def test_the_posterior_of_the_target_is_bayes_rule() -> None:
    vae = made()
    mixture = Mixture.of(vae, generator=torch.Generator())
    every = np.array(list(product(*map(range, SIZES))))
    joint = mixture.log_prob(torch.as_tensor(every)).exp().numpy().reshape(SIZES)
    expected = joint / joint.sum(TARGET, keepdims=True)
    for row, law in zip(every, posterior(mixture, every, TARGET), strict=True):
        assert law == pytest.approx(expected[row[0], :, row[2], row[3]], abs=1e-5)


def test_every_row_keeps_its_law() -> None:
    rng = np.random.default_rng(1)
    codes, trials = rows(150), 4000
    law = np.column_stack([1 - (p := rng.random(150)), p])
    held = cells(codes, SIZES, TARGET)
    drawn = np.mean([evened(law, held, rng) for _ in range(trials)], axis=0)
    z = (drawn - p) / np.sqrt(p * (1 - p) / trials)
    assert np.abs(z).max() < 6.0  # 150 rows: a chance of 3e-7
    assert np.abs(z.mean()) < 0.5


def test_three_values_keep_their_law_too() -> None:
    rng = np.random.default_rng(2)
    law = np.tile([0.6, 0.3, 0.1], (200, 1))
    held = cells(rows(200), SIZES, TARGET)
    drawn = np.stack([evened(law, held, rng) for _ in range(300)])
    share = np.bincount(drawn.ravel(), minlength=3) / drawn.size
    assert share == pytest.approx([0.6, 0.3, 0.1], abs=0.01)


def test_cells_come_out_nearer_to_what_they_expect_than_independent_coins_leave_them() -> None:
    codes = rows(20_000)
    mixture = Mixture.of(made(), generator=torch.Generator())
    law, held = posterior(mixture, codes, TARGET), cells(codes, SIZES, TARGET)
    coins = evened(law, held, np.random.default_rng(3), gain=0.0)
    assert excess(codes, law, evened(law, held, np.random.default_rng(3))) < 0.6 * excess(codes, law, coins)


def test_no_other_column_is_touched_and_the_same_seed_gives_the_same_rows() -> None:
    codes = rows(500)
    first, again = (redrawn(made(), codes, TARGET, np.random.default_rng(4)) for _ in range(2))
    others = [j for j in range(len(SIZES)) if j != TARGET]
    assert np.array_equal(first[:, others], codes[:, others])
    assert np.array_equal(first, again)
    assert not np.array_equal(first, codes)


def test_cells_of_different_tables_never_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = np.array(list(product(*map(range, SIZES))))
    seen = [set(table.tolist()) for table in cells(codes, SIZES, TARGET).T]
    assert len(set.union(*seen)) == sum(map(len, seen)) == (3 + 4 + 2) + (12 + 6 + 8)
    monkeypatch.setattr(module, "MOST_TABLES", 2)
    assert cells(codes, SIZES, TARGET).shape == (len(codes), 3)


def test_no_rows_are_no_rows() -> None:
    assert redrawn(made(), rows(10)[:0], TARGET, np.random.default_rng(0)).shape == (0, len(SIZES))


def test_rows_without_a_target_are_the_models_own() -> None:
    vae = made()
    plain = sample_codes(vae, 300, 5)
    assert not np.array_equal(sample_codes(vae, 300, 5, target=TARGET), plain)
    assert SHARD == 65_536
