"""Scores are the densities they claim to be; what explains them is the cell that is wrong."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dpvae.data import lake
from dpvae.data.declare import declare
from dpvae.data.lake import Table
from dpvae.data.schema import Schema
from dpvae.data.table import TableCodec
from dpvae.errors import ConfigError
from dpvae.models.vae import VAE
from dpvae.privacy.noise import SecretKey
from dpvae.privacy.silence import Silence
from dpvae.release.score import CERTAIN, HELD, LEAST_SINGLE, SCORES, Density, Ensemble, beyond
from dpvae.release.threshold import events, grid, noisy_threshold

COLUMNS: dict[str, Any] = {"a": {"categories": ["x", "y", "z"]}, "b": {"categories": ["p", "q"]},
                           "n": {"kind": "integer", "min": 0, "max": 9, "heaps": [5], "edges": [0, 2, 9]}}


@pytest.fixture(scope="module")
def schema() -> Schema:
    return declare({"columns": COLUMNS}).bind([("a", "string"), ("b", "string"), ("n", "int64")])


def model(schema: Schema, components: int | None, seed: int = 0) -> VAE:
    vae = VAE(schema.cardinalities, latent_dim=3, hidden=6, layers=1, components=components,
              generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        vae.decoder[-1].weight.mul_(3)
    return vae


@pytest.fixture(scope="module")
def everything() -> Table:
    rows = list(itertools.product("xyz", "pq", range(10)))
    return lake.read({name: [row[i] for row in rows] for i, name in enumerate("abn")})


def test_exact_scores_are_a_law_and_the_fast_ones_agree(schema: Schema, everything: Table) -> None:
    density = Density(model(schema, 8), schema)
    exact = density.score(everything, "iwae")
    assert np.exp(exact).sum() == pytest.approx(1.0, abs=1e-9)
    assert density.score(everything, "elbo") == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("components", [8, None], ids=["codebook", "normal prior"])
def test_every_bound_is_a_bound_and_regret_is_never_positive(components: int | None, schema: Schema,
                                                            everything: Table) -> None:
    density = Density(model(schema, components), schema)
    scores = {score: density.score(everything, score) for score in SCORES}
    assert all(np.isfinite(values).all() for values in scores.values())
    assert (scores["regret"] <= 1e-5).all()
    assert (scores["reconstruction"] >= scores["elbo"] - 1e-4).all()  # the elbo pays the rate on top
    assert scores["iwae"].mean() >= scores["elbo"].mean() - 1e-3


def test_a_score_does_not_depend_on_the_rows_beside_it(schema: Schema, everything: Table) -> None:
    density = Density(model(schema, 8), schema)
    for score in SCORES:
        whole = density.score(everything, score)
        alone = density.score(everything.take(np.array([7])), score)
        assert alone == pytest.approx(whole[7:8], rel=1e-5)


def test_an_ensemble_of_densities_is_a_density(schema: Schema, everything: Table) -> None:
    judge = Ensemble([Density(model(schema, 8, seed), schema) for seed in range(3)])
    assert np.exp(judge.score(everything)).sum() == pytest.approx(1.0, abs=1e-9)
    assert judge.explain(everything).shape == (60, 3)


@pytest.mark.parametrize("sharpness", [1.0, 60.0], ids=["in single precision", "where that would lose what counts"])
def test_an_explanation_is_how_much_likelier_the_row_is_with_that_cell_put_in_place_of_another(
        sharpness: float, schema: Schema, everything: Table) -> None:
    vae = model(schema, 8)
    with torch.no_grad():
        vae.decoder[-1].weight.mul_(sharpness)
    density = Density(vae, schema)
    assert (float(density._mixture(double=False).log_probs.min()) < LEAST_SINGLE) is (sharpness > 1)
    log_law = density.score(everything).reshape(3, 2, 10)
    found = density.explain(everything).reshape(3, 2, 10, 3)
    for axis, others in enumerate((2, 1, 9)):  # of a, b and n
        held = np.exp(log_law).sum(tuple({0, 1, 2} - {axis}), keepdims=True)
        log_p = log_law - np.logaddexp.reduce(log_law, axis, keepdims=True)
        another = np.maximum(-np.expm1(log_p), CERTAIN)
        wrong = (1 - HELD) / others + HELD * held
        assert found[..., axis] == pytest.approx(np.log(another * wrong) - log_p, abs=1e-3)


def test_numbers_are_explained_more_finely_than_a_bin() -> None:
    fine = {**COLUMNS, "n": {**COLUMNS["n"], "heaps": [], "edges": [0, 99], "max": 99}}
    schema = declare({"columns": fine}).bind([("a", "string"), ("b", "string"), ("n", "int64")])
    (*rest, n) = schema.columns
    inside = replace(n, edges=(-0.5, 99.5), within=((-0.5, 9.5, 99.5), (90.0, 0.0)))
    schema = replace(schema, columns=(*rest, inside))
    rows = lake.read({"a": ["x"] * 100, "b": ["p"] * 100, "n": list(range(100))})
    found = Density(model(schema, 8), schema).explain(rows)[:, 2]
    share = np.where(np.arange(100) < 10, 0.5 / 100 + 0.5 / 10, 0.5 / 100)  # half flat, half the released histogram
    assert found == pytest.approx(np.log((1 - share) * ((1 - HELD) / 99 + HELD * share) / share), abs=1e-3)


def test_the_wrong_cell_is_named_first(schema: Schema) -> None:
    vae = model(schema, 2)
    with torch.no_grad():  # two kinds of rows: (x, p, low) and (z, q, high), with hardly an exception
        vae.decoder[-1].weight.zero_()
        vae.decoder[-1].bias.zero_()
    logits = torch.full((2, vae.width), -7.0)
    for k, places in enumerate(((0, 3, 6), (2, 4, 7))):
        logits[k, list(places)] = 0.0
    vae.decode = lambda z: logits[: len(z)]  # type: ignore[method-assign]
    rows = lake.read({"a": ["x", "x", "z", "y"], "b": ["p", "q", "q", "q"], "n": [1, 1, 1, 8]})
    assert Density(vae, schema).explain(rows).argmax(1)[1:].tolist() == [1, 2, 0]


def test_what_lies_outside_costs_more_the_farther_and_inside_nothing(schema: Schema) -> None:
    rows = lake.read({"a": ["x", "w", "x", "x"], "b": ["p"] * 4, "n": [0, 0, 30, 3000]})
    costs = beyond(schema, TableCodec(schema).distinct(rows))
    assert costs[0].tolist() == [0, 0, 0]
    assert costs[1, 0] == pytest.approx(-np.log(1e-5))
    assert 0 < costs[2, 2] < costs[3, 2]
    scores = Density(model(schema, 4), schema).score(rows)
    assert scores[1] < scores[0]
    assert scores[3] < scores[2]


def test_the_free_threshold_flags_the_stated_share_of_the_models_rows(schema: Schema) -> None:
    from dpvae.release.sample import readable, sample_cells

    judge = Ensemble([Density(model(schema, 8), schema)])
    limit = judge.threshold(0.1)
    fresh = readable(schema, sample_cells(judge.members[0].vae, schema, 20_000, seed=99))
    assert (judge.score(fresh) < limit).mean() <= 0.1 + 0.015  # scores are discrete here: never more, but for chance
    with pytest.raises(ConfigError, match="false_alarm=2"):
        judge.threshold(2)


def test_the_private_threshold_is_the_quantile_up_to_its_noise() -> None:
    rng = np.random.default_rng(0)
    scores, edges = rng.normal(size=20_000), grid(rng.normal(size=20_000))
    booked = events(1.0, 1e-5, "add_remove")
    key = SecretKey.from_seed(1)
    exact = noisy_threshold(scores, edges, 0.05, booked=booked, stream=Silence(key).stream("t"))
    noisy = noisy_threshold(scores, edges, 0.05, booked=booked, stream=key.stream("t"))
    assert 0.03 < (scores < exact).mean() <= 0.05
    assert 0.02 < (scores < noisy).mean() < 0.08
    other = noisy_threshold(scores, edges, 0.05, booked=booked, stream=SecretKey.from_seed(2).stream("t"))
    assert booked[0].noise_multiplier > 1  # type: ignore[union-attr]
    assert np.isfinite(other)
