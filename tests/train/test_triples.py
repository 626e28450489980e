"""Tables of three columns by the target: which groups, what is counted, what the residual is, and what they are for."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from small_runs import ScriptedKey, silent

from dpvae.models.mixture import Mixture
from dpvae.models.vae import VAE
from dpvae.privacy.events import Gaussian
from dpvae.privacy.mechanisms import cell_sd
from dpvae.privacy.noise import SecretKey
from dpvae.train import anchor
from dpvae.train.anchor import Anchors
from dpvae.train.triples import Residual, grouped, of_features

SIZES = (5, 4, 2, 2, 6)
NOISE = {"one-way": 1.0, "with-target": 2.0, "pairs": 3.0, "triples": 4.0}


def codes(rows: int = 300, sizes: tuple[int, ...] = SIZES) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([rng.integers(0, size, rows) for size in sizes], 1)


def measured(rows: np.ndarray, target: int, key: object, *, sizes: tuple[int, ...] = SIZES, groups: int = 3) -> Anchors:
    return anchor.measure(rows, sizes, target, noise=NOISE, key=key, groups=groups)[0]  # type: ignore[arg-type]


# -- the groups ------------------------------------------------------------------------------------------------------


def kept(table: np.ndarray, groups: np.ndarray) -> float:
    """What groups tell of a target of two values: the variance of its share between them."""
    shares = [(table[groups == g].sum(0)) for g in np.unique(groups)]
    return sum(s.sum() * (s[1] / s.sum() - table[:, 1].sum() / table.sum()) ** 2 for s in shares)


@pytest.mark.parametrize("most", [2, 3, 4])
def test_no_other_groups_of_a_column_tell_more_of_the_target(most: int) -> None:
    table = np.random.default_rng(3).integers(50, 1000, (7, 2))
    found = grouped(table, 1e-9, most)
    assert set(found) == set(range(most))
    others = np.indices((most,) * 7).reshape(7, -1).T
    assert kept(table, found) == pytest.approx(max(kept(table, other) for other in others), rel=1e-6)


def test_a_column_of_few_codes_keeps_them() -> None:
    assert grouped(np.array([[5, 5], [9, 1], [1, 9]]), 1.0, 3).tolist() == [0, 1, 2]


def test_codes_are_grouped_by_a_target_of_many_values_too() -> None:
    low, high = [40, 30, 20, 10, 0], [0, 10, 20, 30, 40]
    found = grouped(np.array([low, high, low, high, low]), 0.1, 2)
    assert found[0] == found[2] == found[4] != found[1] == found[3]


def test_groups_follow_from_released_tables_whatever_the_records_say() -> None:
    anchors = measured(codes(), 3, SecretKey.from_seed(5))
    assert anchors.triples is not None
    wanted = of_features(anchors.with_target, anchors.sd["with-target"], 3)
    exact = of_features(measured(codes(), 3, ScriptedKey(normal=silent)).with_target, anchors.sd["with-target"], 3)
    assert [anchors.triples.groups[j].tolist() for j in wanted] == [table.tolist() for table in wanted.values()]
    assert any(exact[j].tolist() != wanted[j].tolist() for j in wanted), "the noise was to move a group"


# -- what is counted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "sizes"), [(3, SIZES), (0, (anchor.TARGET_VALUES + 1, 3, 3, 4, 2))])
def test_without_noise_the_tables_are_the_crosstabs_of_groups(target: int, sizes: tuple[int, ...]) -> None:
    rows = codes(sizes=sizes)
    triples = measured(rows, target, ScriptedKey(normal=silent), sizes=sizes).triples
    assert triples is not None
    features = [j for j in range(5) if j != target]
    assert list(triples.tables) == list(combinations(features, 3))
    split = sizes[target] <= anchor.TARGET_VALUES
    for columns, table in triples.tables.items():
        wanted = np.zeros_like(table)
        for row in rows:
            wanted[(row[target] if split else 0, *(triples.groups[j][row[j]] for j in columns))] += 1
        assert np.array_equal(table, wanted)
        assert table.shape == (sizes[target] if split else 1, *(min(sizes[j], 3) for j in columns))


def test_one_record_moves_one_cell_of_each_table_by_one_given_the_groups() -> None:
    rows = codes()
    def quiet(names: object, real: np.ndarray) -> np.ndarray:
        return real if names == ("anchor", "with-target") else np.zeros_like(real)

    without = measured(rows, 3, ScriptedKey(normal=quiet)).triples
    groups = dict(without.groups)  # type: ignore[union-attr]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(anchor, "of_features", lambda *args: groups)
        with_one = measured(np.vstack([rows, [[4, 3, 1, 1, 5]]]), 3, ScriptedKey(normal=quiet)).triples
    for columns, table in with_one.tables.items():  # type: ignore[union-attr]
        difference = table - without.tables[columns]  # type: ignore[union-attr]
        assert (np.abs(difference).sum(), difference.max()) == (1, 1)


def test_the_release_is_one_gaussian_event_after_the_tables_it_depends_on() -> None:
    anchors, events = anchor.measure(codes(), SIZES, 3, noise=NOISE, key=SecretKey.from_seed(0), groups=2)
    assert events[-1] == Gaussian("anchor", "noisy triples tables", 4.0)
    assert anchors.sd["triples"] == cell_sd(4.0, 4)


# -- the residual ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [3, 0])
def test_the_residual_is_the_squared_distance_of_the_mixtures_tables_in_units_of_the_noise(target: int) -> None:
    sizes = SIZES if target == 3 else (anchor.TARGET_VALUES + 1, 3, 3, 4, 2)
    anchors = measured(codes(sizes=sizes), target, SecretKey.from_seed(2), sizes=sizes)
    vae = VAE(sizes, latent_dim=3, hidden=8, layers=0, components=6, generator=torch.Generator().manual_seed(0))
    mixture, triples = Mixture.of(vae, generator=torch.Generator(), double=True), anchors.triples
    assert triples is not None
    p_KW, w_K = mixture.log_probs.exp(), 300 * mixture.log_weights.exp()
    wanted = 0.0
    for columns, table in triples.tables.items():
        for cell in np.ndindex(*table.shape):
            chance = w_K.clone() if len(table) == 1 else w_K * p_KW[:, vae.likelihood.slice(target)][:, cell[0]]
            for j, group in zip(columns, cell[1:], strict=True):
                chance *= p_KW[:, vae.likelihood.slice(j)][:, torch.as_tensor(triples.groups[j] == group)].sum(1)
            wanted += float((chance.sum() - table[cell]) / anchors.sd["triples"]) ** 2
    found = Residual(triples, vae.likelihood, anchors.sd["triples"], torch.device("cpu"))
    given_KL = p_KW[:, vae.likelihood.slice(target)].float()
    assert float(found(p_KW.float(), w_K.float(), given_KL)) == pytest.approx(wanted, rel=1e-4)
    assert found.cells == sum(table.size for table in triples.tables.values())


def test_a_target_that_no_pair_tells_is_learnt_from_triples() -> None:
    """The exclusive or of three columns: 0.5 without tables of three columns."""
    rng = np.random.default_rng(1)
    features = rng.integers(0, 2, (4000, 4))
    rows = np.column_stack([features, features[:, :3].sum(1) % 2])
    exact = anchor.measure(rows, [2] * 5, 4, noise=dict.fromkeys(NOISE, 1.0), key=ScriptedKey(normal=silent),  # type: ignore[arg-type]
                           groups=2)[0]
    vae = VAE([2] * 5, latent_dim=6, hidden=8, layers=0, components=60, generator=torch.Generator().manual_seed(0))
    anchor.start_bias(vae, exact)
    anchor.fit(vae, exact, steps=400, learning_rate=0.05, generator=torch.Generator())
    logs = Mixture.of(vae, generator=torch.Generator()).leave_one_out(torch.as_tensor(rows[:200]))
    assert (logs[:, 4].exp() > 0.5).float().mean() > 0.95
    assert math.isfinite(float(logs.sum()))
