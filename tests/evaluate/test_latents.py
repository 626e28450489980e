"""Rows as d numbers: more numbers never lose more, and all of them lose nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dpvae.evaluate.latents import MAPPED, Axes, synthetic_map
from dpvae.models.vae import VAE


def test_more_numbers_bring_back_more_and_all_of_them_everything() -> None:
    latents = np.random.default_rng(0).normal(size=(200, 5)) @ np.diag([5.0, 3, 2, 1, 0.5])
    axes = Axes.of(latents)
    lost = [float(np.square(latents - axes.restore(axes.compress(latents, d))).mean()) for d in range(6)]
    assert lost == sorted(lost, reverse=True)
    assert lost[5] == pytest.approx(0.0, abs=1e-20)


def test_a_map_holds_synthetic_rows_and_the_seed_fixes_it() -> None:
    vae = VAE((3, 2), latent_dim=3, hidden=4, layers=1, components=6, generator=torch.Generator().manual_seed(0))
    one, two = (synthetic_map(vae, column=1, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert one == two
    assert len(one["x"]) == len(one["y"]) == len(one["label"]) == MAPPED
    assert set(one["label"]) <= {0, 1}
