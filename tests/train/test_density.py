"""The density trainer: its linear decoder is the mixture it stands for, its noise is booked, clusters are found."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dpvae import DPVAE
from dpvae.data import lake
from dpvae.data.declare import declare
from dpvae.data.grid import REACH, equal_bins, spread
from dpvae.data.schema import Column, Schema
from dpvae.data.table import TableCodec
from dpvae.errors import BudgetError, ReleaseError
from dpvae.evaluate.anomaly import auroc
from dpvae.models.mixture import Mixture
from dpvae.privacy.ledger import Ledger
from dpvae.privacy.noise import SecretKey
from dpvae.privacy.silence import Silence
from dpvae.train import density
from dpvae.train.density import Features, Points

NOISE = {"second-moment": 2.0, "cluster-1": 2.0, "cluster-2": 2.0}
COLUMNS: dict[str, Any] = {"x": {"kind": "continuous", "min": -5, "max": 5, "heaps": [], "decimals": 9},
                           "y": {"kind": "continuous", "min": -5, "max": 5, "heaps": [], "decimals": 9},
                           "kind": {"categories": ["a", "b", "c"]}}


def rings(rows: int, seed: int = 0) -> pd.DataFrame:
    """Three tight clusters, each with a category of its own: the middle of the plane is empty."""
    rng = np.random.default_rng(seed)
    which = rng.integers(0, 3, rows)
    centres = np.array([[-3.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
    points = centres[which] + rng.normal(0, 0.3, (rows, 2))
    return pd.DataFrame({"x": points[:, 0], "y": points[:, 1], "kind": np.array(["a", "b", "c"])[which]})


def bound() -> Schema:
    schema = declare({"columns": COLUMNS}).bind([("x", "double"), ("y", "double"), ("kind", "string")])
    even = tuple(float(e) for e in np.linspace(-5, 5, 65))
    columns = []
    for c in schema.columns:
        if c.is_numeric:
            counts = np.histogram(rings(5000, 9)[c.name], even)[0].astype(float)
            c = dataclasses.replace(c, edges=even, declared=(), within=(even, tuple(counts.tolist())))
        columns.append(c)
    return equal_bins(Schema(tuple(columns)))


def codes_of(frame: pd.DataFrame, schema: Schema) -> np.ndarray:
    return TableCodec(schema).encode(lake.read(frame))


def test_bins_are_equal_around_the_middle_and_reach_beyond() -> None:
    schema = bound()
    column = schema.columns[0]
    mean, scale = spread(column)
    inner = np.diff(np.array(column.edges)[1:-1])
    assert inner == pytest.approx(np.full(len(inner), 2 * REACH * scale / 40))
    assert column.edges[0] < -5 < 5 < column.edges[-1]
    assert mean == pytest.approx(0.0, abs=0.2)
    assert scale == pytest.approx(2.45, abs=0.2)


def test_noise_far_out_does_not_set_a_columns_scale() -> None:
    within = ((-1e30, -1.0, 0.0, 1.0), (1.0, 50.0, 50.0))
    column = Column("x", "continuous", "double", nullable=False, lower=-1e30, upper=1.0, heaps=(), decimals=9,
                    edges=within[0], within=within)
    mean, scale = spread(column)
    assert abs(mean) < 0.1
    assert 0.3 < scale < 1.0


def test_the_linear_decoder_is_the_mixture_of_normals_and_frequencies() -> None:
    schema = bound()
    features = Features.of(schema)
    points = Points(np.array([0.3, 0.7]), np.array([[1.0, -1.0, 0.2, 0.3, 0.5], [0.0, 0.5, 0.8, 0.1, 0.1]]),
                    np.full((2, 5), 0.4))
    vae = density._model(points, features, schema, 0, 8)
    mixture = Mixture.of(vae, generator=torch.Generator(), double=True)
    assert mixture.log_weights.exp().numpy() == pytest.approx([0.3, 0.7], rel=1e-6)
    probs = mixture.log_probs.exp().numpy()
    assert probs[:, vae.likelihood.slice(2)] == pytest.approx(np.array([[0.2, 0.3, 0.5], [0.8, 0.1, 0.1]]), rel=1e-4)
    values = features.values[vae.likelihood.slice(0)]
    inner = slice(1, -1)
    for k, mean in enumerate((1.0, 0.0)):
        wanted = np.exp(-((values - mean) ** 2) / 0.8)
        found = probs[k, vae.likelihood.slice(0)]
        assert found[inner] / found[inner].sum() == pytest.approx(wanted[inner] / wanted[inner].sum(), rel=1e-3)


def fitted(frame: pd.DataFrame, key: Any, *, rows: int = 3000) -> tuple[Any, Any, Schema]:
    """``rows`` is the public row count, whatever the private one is."""
    schema = bound()
    vae, events = density.fit(codes_of(frame, schema), schema, rows=rows, components=12, noise=NOISE, key=key,
                              seed=0, hidden=8, protected=True)
    return vae, events, schema


def test_clusters_are_found_and_the_empty_middle_is_strange() -> None:
    from dpvae.release.score import Density

    vae, events, schema = fitted(rings(3000), SecretKey.from_seed(1))
    assert [event.noise_multiplier for event in events] == [2.0, 2.0, 2.0]
    test = pd.concat([rings(300, 5), pd.DataFrame({"x": np.linspace(-0.7, 0.7, 50), "y": -0.2, "kind": "c"})])
    scores = Density(vae, schema).score(lake.read(test))
    assert auroc(np.repeat([0, 1], [300, 50]), -scores) > 0.97


def test_one_row_more_moves_each_release_by_at_most_its_sensitivity(monkeypatch: pytest.MonkeyPatch) -> None:
    sums: list[list[np.ndarray]] = []
    real = density.noisy_sums

    def noted(*args: Any, **knobs: Any) -> Any:
        total, event = real(*args, **knobs)
        sums[-1].append(total)
        return total if not sums[0] else sums[0][len(sums[-1]) - 1], event  # both runs go on from the same release

    monkeypatch.setattr(density, "noisy_sums", noted)
    frame = rings(80)
    for table in (frame, pd.concat([frame, pd.DataFrame({"x": [4.9], "y": [-4.9], "kind": ["a"]})])):
        sums.append([])
        fitted(table.reset_index(drop=True), Silence(SecretKey.from_seed(1)), rows=80)
    moved = [float(np.linalg.norm(a - b)) for a, b in zip(*sums, strict=True)]
    assert len(moved) == 3
    assert all(0.01 < distance <= 1.0 for distance in moved)


def test_a_row_that_is_not_clipped_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Features.rows
    monkeypatch.setattr(Features, "rows", lambda self, flat, limit: limits(self, flat, np.inf))
    schema = bound()
    codes = codes_of(pd.DataFrame({"x": [4.9, 4.9], "y": [-4.9, -4.9], "kind": ["a", "a"]}), schema)
    flat = codes.astype(np.int64) + np.array([0, schema.cardinalities[0], sum(schema.cardinalities[:2])])
    assert np.linalg.norm(Features.of(schema).rows(flat, np.sqrt(3)), axis=1).max() > np.sqrt(3)


def test_the_trainer_spends_what_was_planned_and_its_model_is_released(tmp_path: Any) -> None:
    import dpvae

    model = DPVAE(3.0, delta=1e-5, rows=2000, trainer="density", runs=tmp_path / "runs", run_name="d",
                  options={"trainer.sleep_steps": 5}).fit(rings(2000), schema={"columns": COLUMNS})
    assert Ledger.open(tmp_path / "runs" / "ledger.db").events("table") == list(model.plan_.events())
    assert 2.5 < model.epsilon_.upper <= 3.0
    rows = model.sample(1000)
    middles = {kind: float(rows["x"][rows["kind"] == kind].mean()) for kind in "ab"}
    assert middles["a"] < -1.5 < 1.5 < middles["b"]  # -3 and 3, up to noise that differs from run to run
    assert dpvae.verify(dpvae.release(tmp_path / "out", model, rows=50)).ok


def test_without_noise_nothing_is_booked_and_nothing_can_be_released(tmp_path: Any) -> None:
    import dpvae

    model = DPVAE(20.0, rows=500, trainer="density", runs=tmp_path / "runs", run_name="off",
                  options={"trainer.sleep_steps": 5, "privacy.noise": False}).fit(rings(500),
                                                                                 schema={"columns": COLUMNS})
    assert model.epsilon_.upper == np.inf
    assert len(Ledger.open(tmp_path / "runs" / "ledger.db").rows()) == 0
    assert "NOT PRIVATE" in (tmp_path / "runs/off/public/report.html").read_text()
    assert "NOT PRIVATE" in str(model.run_)
    with pytest.raises(ReleaseError, match="NOT PRIVATE"):
        dpvae.release(tmp_path / "out", model)


def test_a_data_set_with_a_cap_is_not_opened_without_protection(tmp_path: Any) -> None:
    Ledger.open(tmp_path / "ledger.db").cap("table", 1.0, 1e-5)
    model = DPVAE(20.0, rows=500, trainer="density", runs=tmp_path, options={"privacy.noise": False})
    with pytest.raises(BudgetError, match="privacy=off"):
        model.fit(rings(500), schema={"columns": COLUMNS})
