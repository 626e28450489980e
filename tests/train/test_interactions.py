"""Interactions that no pair shows: found, bounded in what one record can do, and followed by the decoder."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from known_tables import coded
from small_runs import ScriptedKey, silent

from dpvae.models.vae import VAE
from dpvae.privacy.noise import SecretKey
from dpvae.privacy.plan import InteractionPlan
from dpvae.train import anchor, interactions
from dpvae.train.interactions import Interaction

PLAN = InteractionPlan(epsilon=0.2, choices=2, noise=20.0)


def start(codes: np.ndarray, sizes: list[int], *, target: bool = True) -> tuple[Any, VAE]:
    """One-way anchors, and a decoder that knows nothing else."""
    noise = {"one-way": 1.0} | ({"with-target": 1.0} if target else {})
    anchors, _ = anchor.measure(codes, sizes, len(sizes) - 1 if target else None, noise=noise, key=ScriptedKey())
    vae = VAE(sizes, latent_dim=16, hidden=8, layers=0, components=200, generator=torch.Generator().manual_seed(0))
    anchor.start_bias(vae, anchors)
    with torch.no_grad():
        vae.decoder[-1].weight.mul_(0.1)
    return anchors, vae


@pytest.mark.parametrize("target", [True, False])
@pytest.mark.parametrize(("order", "numeric"), [(3, 0.0), (4, 0.0), (5, 0.0), (5, 1.0)])
def test_the_columns_of_a_parity_are_found_and_the_decoder_follows_it(order: int, numeric: float, target: bool) -> None:
    codes, sizes, orders = coded("parity", rows=4000, columns=9, seed=order, order=order, numeric=numeric, flips=0.1)
    anchors, vae = start(codes, sizes, target=target)
    measured = interactions.measure(codes, anchors, orders, vae, plan=PLAN, key=ScriptedKey())
    first = measured[0]
    signs = np.stack([np.where(side[codes[:, j]], 1, -1) for j, side in zip(first.columns, first.sides, strict=True)])
    assert abs(signs.prod(0).mean()) > 0.7
    assert len(first.columns) == order
    assert interactions.stands_out(vae, first, anchors.rows)
    first = interactions.write(vae, first, generator=torch.Generator().manual_seed(0))
    anchor.fit(vae, anchors, steps=250, learning_rate=0.03, generator=torch.Generator().manual_seed(0),
               further=interactions.further(vae, [first]), free=first.directions)
    drawn = vae.sample(4000, generator=torch.Generator().manual_seed(1)).numpy()
    signs = np.stack([np.where(side[drawn[:, j]], 1, -1) for j, side in zip(first.columns, first.sides, strict=True)])
    assert abs(signs.prod(0).mean()) > 0.7
    assert not interactions.stands_out(vae, first, anchors.rows)


def test_nothing_stands_out_where_columns_are_independent() -> None:
    codes = np.random.default_rng(0).integers(0, 2, (4000, 9)).astype(np.int16)
    anchors, vae = start(codes, [2] * 9)
    measured = interactions.measure(codes, anchors, [None] * 9, vae, plan=PLAN, key=ScriptedKey())
    assert len(measured) == PLAN.choices
    assert not any(interactions.stands_out(vae, one, anchors.rows) for one in measured)


def all_scores(codes: np.ndarray, anchors: Any, vae: VAE, signs: list[np.ndarray]) -> tuple[np.ndarray, Any]:
    search = interactions._Search(codes.shape[1], anchors, signs, vae, ScriptedKey())
    return np.concatenate(list(search.scores(codes))), search


def test_every_set_is_asked_about_once_and_its_score_is_the_sum_of_products() -> None:
    codes, sizes, orders = coded("parity", rows=300, columns=6, seed=0)
    anchors, vae = start(codes, sizes)
    signs = interactions.signs(anchors, interactions.splits(anchors, orders))
    scores, search = all_scores(codes, anchors, vae, signs)
    named = search.named(list(range(len(scores))))
    wanted = [s for order in (3, 4, 5) for s in combinations(range(7), order)]
    assert sorted(tuple(sorted(s)) for s in named) == sorted(wanted)
    values = np.column_stack([table[codes[:, j]] for j, table in enumerate(signs)])
    points, weights = interactions._expected(vae, signs)
    for place in (0, 17, len(scores) - 1):
        columns = list(named[place])
        exact = abs(values[:, columns].prod(1).sum() - anchors.rows * weights @ points[:, columns].prod(1))
        assert scores[place] == pytest.approx(exact * (1 - interactions.ROUNDING), abs=1e-6)


def most_moved(signs: Any = None) -> float:
    """The most that any one record moves any score, given the same anchors and decoder."""
    rng = np.random.default_rng(1)
    codes = np.column_stack([rng.random(200) < share for share in (0.5, 0.9, 0.02, 0.3, 0.7, 0.5)]).astype(np.int16)
    anchors, vae = start(codes, [2] * 6)
    given = (signs or interactions.signs)(anchors, interactions.splits(anchors, [None] * 6))
    without, _ = all_scores(codes, anchors, vae, given)
    people = [np.array(list(np.binary_repr(n, 6)), dtype=np.int16) for n in range(64)]
    return max(float(np.abs(all_scores(np.vstack([codes, one]), anchors, vae, given)[0] - without).max())
               for one in people)


def test_one_record_moves_every_score_by_at_most_one() -> None:
    assert 0.5 < most_moved() <= 1.0


def test_signs_that_are_standardised_instead_of_bounded_are_seen() -> None:
    def standardised(anchors: Any, sides: Any) -> list[np.ndarray]:
        bounded = interactions.signs(anchors, sides)
        return [s / np.sqrt(anchor_share @ s**2) for s, anchor_share in
                zip(bounded, [interactions.shares(table) for table in anchors.one_way], strict=True)]

    assert most_moved(standardised) > 1.5


def test_the_tables_are_exact_under_their_noise_and_survive_the_checkpoint() -> None:
    codes, sizes, orders = coded("parity", rows=500, columns=6, seed=0)
    anchors, vae = start(codes, sizes)
    key = ScriptedKey(normal=silent)
    for one in interactions.measure(codes, anchors, orders, vae, plan=PLAN, key=key):
        assert one.table.sum() == 500
        assert one.table.shape == (2,) * len(one.columns)
        assert one.sd == pytest.approx(20.0 * np.sqrt(2))
        again = Interaction.of(one.to_dict())
        assert again.columns == one.columns
        np.testing.assert_array_equal(again.table, one.table)


def test_coins_and_sums_are_the_same_however_many_records_are_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = SecretKey.from_seed(1).stream("coins").mask(1000, 0.3)
    rng, family = np.random.default_rng(0), interactions._Family.of(range(6), 5, None)
    codes, signs = rng.integers(4, size=(500, 6)), list(rng.uniform(-1, 1, (6, 4)))
    signed = np.column_stack([table[codes[:, j]] for j, table in enumerate(signs)])
    expected = [[signed[:, [*left, *right]].prod(1).sum() for right in family.right] for left in family.left]
    for at_once in (64, 10**6):
        monkeypatch.setattr(interactions, "RECORDS_AT_ONCE", at_once)
        monkeypatch.setattr(interactions, "SEARCHED_AT_ONCE", at_once)
        coins = interactions._heads(SecretKey.from_seed(1).stream("coins"), 1000, 0.3)
        assert np.array_equal(coins, np.flatnonzero(mask))
        assert not len(interactions._heads(SecretKey.from_seed(1).stream("coins"), 0, 0.3))  # nobody is there
        found = interactions._sums(family, family.left, codes, signs, len(family.right))
        assert np.allclose(found, expected, atol=1e-9)
        assert interactions._sums(family, family.left[:2], codes, signs, 0).shape == (2, 0)
