"""The latent code of wide tables: what it releases is bounded, what it writes down is what was there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from known_tables import coded
from small_runs import ScriptedKey, silent

from dpvae.models.vae import VAE
from dpvae.privacy import mechanisms
from dpvae.privacy.plan import LATENT_WHAT, LatentPlan
from dpvae.train import anchor, latent
from dpvae.train.contrasts import contrasts, shares

COLUMNS = 40


def plan(noise: float, **changes: Any) -> LatentPlan:
    return LatentPlan(noise=dict.fromkeys(LATENT_WHAT, noise), directions=8, codes=16, **changes)


def fitted(codes: np.ndarray, sizes: list[int], orders: list[Any], *, noise: float, key: Any = None) -> VAE:
    key = key or ScriptedKey()
    anchors, _ = anchor.measure(codes, sizes, len(sizes) - 1, noise={"one-way": noise}, key=key)
    vae = VAE(sizes, latent_dim=64, hidden=8, layers=0, components=64, generator=torch.Generator().manual_seed(0))
    released = latent.Latent(codes, anchors, orders, plan=plan(noise), key=key, rng=np.random.default_rng(0)).measure()
    latent.write(vae, anchors, released, directions=44)
    return vae


def auc_of(vae: VAE, codes: np.ndarray) -> float:
    """How well the decoder, asked for p(label | all other columns), ranks the rows."""
    both = []
    for value in (0, 1):
        asked = codes.copy()
        asked[:, -1] = value
        both.append(vae.log_prob(torch.as_tensor(asked).long(), samples=1, generator=torch.Generator()).numpy())
    score, label = both[1] - both[0], codes[:, -1]
    ranks = score.argsort().argsort() + 1
    ones = int(label.sum())
    return float((ranks[label == 1].sum() - ones * (ones + 1) / 2) / (ones * (len(label) - ones)))


@pytest.mark.parametrize(("kind", "knobs"), [
    ("clusters", {"clusters": 6, "strength": 1.0}),
    ("crossed", {"strength": 0.8})])
def test_the_label_of_hidden_clusters_is_found_through_the_noise(kind: str, knobs: dict[str, Any]) -> None:
    codes, sizes, orders = coded(kind, rows=8000, columns=COLUMNS, seed=1, **knobs)
    vae = fitted(codes[:6000], sizes, orders, noise=3.0)
    assert auc_of(vae, codes[6000:]) > 0.9


def test_the_decoder_has_the_released_one_way_tables() -> None:
    codes, sizes, orders = coded("clusters", rows=4000, columns=COLUMNS, seed=2, strength=0.6)
    vae = fitted(codes, sizes, orders, noise=0.5)
    assert vae.codebook is not None
    with torch.no_grad():
        model_W = vae.codebook.log_weights.exp() @ vae.likelihood.log_probs(vae.decode(vae.codebook.points)).exp()
    for j in range(len(sizes)):
        exact = np.bincount(codes[:, j], minlength=sizes[j]) / len(codes)
        assert 0.5 * np.abs(model_W[vae.likelihood.slice(j)].numpy() - exact).sum() < 0.02


def test_the_same_key_releases_the_same_numbers_again() -> None:
    codes, sizes, orders = coded("clusters", rows=1000, columns=10, seed=3)
    first, second = (fitted(codes, sizes, orders, noise=5.0).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)





def releases(codes: np.ndarray, sizes: list[int], orders: list[Any], anchors: Any, told: list[np.ndarray] | None,
             patch: pytest.MonkeyPatch) -> list[tuple[float, np.ndarray]]:
    """(bound, exact sum) of every sum of products; with ``told``, the code goes on from those instead of its own."""
    found: list[tuple[float, np.ndarray]] = []
    real = mechanisms.noisy_products

    def products(blocks: Any, *, left_norm: float, right_norm: float, **rest: Any) -> Any:
        released, sd, event = real(blocks, left_norm=left_norm, right_norm=right_norm, **rest)
        found.append((left_norm * right_norm, released))
        return (told[len(found) - 1] if told is not None else released), sd, event

    with patch.context() as inner:
        inner.setattr(latent, "noisy_products", products)
        latent.Latent(codes, anchors, orders, plan=plan(1.0), key=ScriptedKey(normal=silent),
                      rng=np.random.default_rng(0)).measure()
    return found


def moved(patch: pytest.MonkeyPatch) -> list[float]:
    """By how much one more record moves each release, in units of its bound, given the same released past."""
    codes, sizes, orders = coded("clusters", rows=600, columns=12, seed=4)
    anchors, _ = anchor.measure(codes, sizes, len(sizes) - 1, noise={"one-way": 1.0}, key=ScriptedKey())
    rare = np.array([int(np.argmin(table)) for table in anchors.one_way])  # the longest record there can be
    without = releases(codes, sizes, orders, anchors, None, patch)
    more = releases(np.vstack([codes, rare]).astype(np.int16), sizes, orders, anchors, [s for _, s in without], patch)
    return [float(np.linalg.norm(b - a)) / bound for (bound, a), (_, b) in zip(without, more, strict=True)]


def test_one_record_moves_every_release_by_at_most_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    distances = moved(monkeypatch)
    assert len(distances) == 1 + 5 + 1 + 5
    assert 0.5 < max(distances) <= 1 + 1e-9


def test_contrasts_centred_on_the_records_themselves_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: centring by the exact mean makes every record's part depend on all the others."""
    def centred(self: latent.Latent) -> Any:
        rows = latent.rows_of(self.codes[:, self.features], self.maps)
        yield self.codes, 300 * (rows - rows.mean(0))  # beyond the norm: directions count, and they move for all

    monkeypatch.setattr(latent.Latent, "_blocks", centred)
    assert max(moved(monkeypatch)) > 1.01


def test_contrasts_that_are_not_cut_to_their_norm_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: the bound of a release is taken for granted, and nothing is scaled down to it."""
    def uncut(blocks: Any, *, left_norm: float, right_norm: float, **rest: Any) -> Any:
        total = sum(left.T @ right for left, right in blocks)
        return total, 1e-9, mechanisms.Gaussian("anchor", "uncut", 1.0)

    def uncut_rows(self: latent.Latent) -> Any:
        yield self.codes, 3 * latent.rows_of(self.codes[:, self.features], self.maps)

    monkeypatch.setattr(mechanisms, "noisy_products", uncut)
    monkeypatch.setattr(latent.Latent, "_blocks", uncut_rows)
    assert max(moved(monkeypatch)) > 1.5


def test_contrasts_are_centred_and_few_where_there_is_an_order() -> None:
    tables = [np.array([10, 20, 70]), np.arange(1, 33), np.arange(1, 40)]
    maps = contrasts(tables, [None, np.arange(32.0), None])
    assert [table.shape for table in maps] == [(3, 2), (32, 2), (39, 12)]
    for table, functions in zip(tables, maps, strict=True):
        np.testing.assert_allclose(shares(table) @ functions, 0, atol=1e-9)


def test_a_tilt_has_the_mean_it_was_asked_for_and_is_finite_where_there_is_none() -> None:
    p = np.array([0.2, 0.3, 0.5])
    (table,) = contrasts([p * 1000], [None])
    wanted = np.array([[0.1, -0.2], [50.0, 50.0]])
    t = latent.tilt(p, table, wanted)
    q = p * np.exp(t @ table.T)
    q /= q.sum(1, keepdims=True)
    np.testing.assert_allclose(q[0] @ table, wanted[0], atol=0.08)
    assert np.isfinite(q).all()
