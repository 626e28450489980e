"""Links are found where released tables stand out of a decoder, and nowhere else; they say what was released."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

from dpvae.models.mixture import Mixture
from dpvae.models.vae import VAE
from dpvae.train import linked
from dpvae.train.anchor import Anchors, start_bias
from dpvae.train.linked import find

ROWS, SD = 20_000, 20.0
SIZES = (5, 4, 3, 2)


def rows_of(kind: str, seed: int) -> np.ndarray:
    """Independent columns; in ``function`` column 1 follows column 0, in ``cell`` one pair of codes is avoided."""
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.choice(n, ROWS, p=np.arange(n, 0, -1) / (n * (n + 1) / 2)) for n in SIZES], 1)
    if kind == "function":
        codes[:, 1] = np.array([0, 1, 2, 3, 1])[codes[:, 0]]
    if kind == "cell":
        never = (codes[:, 0] == 0) & (codes[:, 2] == 1)
        codes[never, 2] = rng.choice([0, 2], never.sum())
    return codes


def anchors_of(codes: np.ndarray, seed: int) -> Anchors:
    """Noisy one-way and pair tables, no target."""
    rng = np.random.default_rng(seed)

    def noisy(columns: tuple[int, ...]) -> np.ndarray:
        shape = tuple(SIZES[j] for j in columns)
        flat = np.ravel_multi_index(tuple(codes[:, j] for j in columns), shape)
        return np.round(np.bincount(flat, minlength=np.prod(shape)) + SD * rng.normal(size=np.prod(shape))
                        ).astype(np.int64).reshape(shape)

    return Anchors(tuple(noisy((j,)) for j in range(4)), {}, {p: noisy(p)[None] for p in combinations(range(4), 2)},
                   {"one-way": SD, "pairs": SD}, None)


def independent(anchors: Anchors) -> VAE:
    """A decoder that says nothing but the one-way tables."""
    vae = VAE(SIZES, latent_dim=2, hidden=4, layers=0, components=5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        vae.decoder[-1].weight.zero_()
    start_bias(vae, anchors)
    return vae


@pytest.mark.parametrize("seed", range(5))
def test_nothing_follows_anything_where_the_decoder_is_right(seed: int) -> None:
    anchors = anchors_of(rows_of("nothing", seed), seed)
    assert find(independent(anchors), anchors) == []


@pytest.mark.parametrize("seed", range(5))
def test_a_column_that_is_a_function_of_another_is_found_and_drawn_so(seed: int) -> None:
    anchors = anchors_of(rows_of("function", seed), seed)
    vae = independent(anchors)
    vae.link(find(vae, anchors))
    assert [(link.source, link.target) for link in vae.links] == [(0, 1)]
    rows = vae.sample(2000, generator=torch.Generator().manual_seed(0)).numpy()
    assert (rows[:, 1] == np.array([0, 1, 2, 3, 1])[rows[:, 0]]).all()


def test_a_cell_that_stands_out_gets_the_share_that_was_released_and_the_target_keeps_its_own() -> None:
    anchors = anchors_of(rows_of("cell", 1), 1)
    vae = independent(anchors)
    (link,) = find(vae, anchors)
    assert (link.source, link.target) == (0, 2)
    mixture = Mixture.of(vae, generator=torch.Generator(), double=True)
    p_KW, weight_K1 = mixture.log_probs.exp(), mixture.log_weights.exp()[:, None] * anchors.rows
    found = replace(link, ratio_ST=link.ratio_ST.double()).table(mixture.columns, p_KW, weight_K1 * p_KW[:, :5])
    assert float(found[0, 1]) == pytest.approx(max(float(anchors.pairs[0, 2][0, 0, 1]), 0.5), abs=3.0)
    assert found.sum(0).numpy() == pytest.approx((weight_K1 * p_KW[:, 9:12]).sum(0).numpy(), rel=1e-3)
    assert found.sum(1).numpy() == pytest.approx((weight_K1 * p_KW[:, :5]).sum(0).numpy(), rel=1e-6)


def test_no_column_follows_two_and_none_follows_itself_however_many_tables_stand_out(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linked, "STANDS_OUT", 0.5)  # nearly every table has such a cell
    monkeypatch.setattr(linked, "SEEN", 0.0)
    for seed in range(20):
        anchors = anchors_of(rows_of("cell", seed), seed)
        links = find(independent(anchors), anchors)
        assert len({link.target for link in links}) == len(links)
        drawn: set[int] = set()
        for link in links:
            assert link.source not in {other.target for other in links} - drawn, "its source is drawn later"
            drawn.add(link.target)


def test_what_a_rare_code_goes_with_stays_open_where_its_noise_says_nothing() -> None:
    codes = rows_of("function", 0)
    codes[codes[:, 0] == 4] = codes[codes[:, 0] == 0][:(codes[:, 0] == 4).sum()]
    codes[:10] = [4, 1, 0, 0]  # ten rows in noise of twenty
    anchors = anchors_of(codes, 0)
    vae = independent(anchors)
    (link,) = find(vae, anchors)
    assert (link.ratio_ST[:4].max(1).values > 0.999).all()
    assert link.ratio_ST[4].max() < 0.6
    told = anchors.pairs[0, 1][0, 4] * max(float(anchors.one_way[0][4]), 0.5) / SD**2
    assert link.ratio_ST[4].log().diff().numpy() == pytest.approx(np.diff(told), rel=0.2)


@pytest.mark.parametrize(("kind", "pairs", "label", "kept"), [
    ("cell", 1.0, 10.0, True), ("cell", 1.0, 17.0, False), ("cell", 3.0, 0.0, False), ("function", 1.0, 40.0, True),
    ("function", 3.0, 0.0, False)])
def test_a_link_that_takes_its_column_from_the_label_or_from_other_tables_is_left_out(
        kind: str, pairs: float, label: float, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    anchors = anchors_of(rows_of(kind, 1), 1)
    monkeypatch.setattr(linked, "_misfit", lambda *rest: (pairs, label) if rest[-1] else (2.0, 0.0))
    assert bool(find(independent(anchors), anchors)) is kept
