"""A model of images scores pictures, with their class or without, and draws the classes that are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from small_images import some_model

from dpvae.config import SampleConfig, ScoreConfig
from dpvae.data import images as reader
from dpvae.errors import ConfigError, DataError
from dpvae.files import write_json
from dpvae.release import image_uses
from dpvae.release.images import save_images
from dpvae.release.score import UNKNOWN

CLASSES = ("3", "5", "8")


@pytest.fixture
def public(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_images(some_model(), tmp_path)
    write_json(tmp_path / "schema.json", {"kind": "images", "columns": [{"name": "label", "categories": CLASSES}]})
    return tmp_path


def drawn(public: Path, **knobs: Any) -> tuple[np.ndarray, np.ndarray]:
    config = SampleConfig(**{"to": "drawn.npz", "rows": 300, **knobs})
    assert "nothing was spent" in image_uses.sample(config, public)
    with np.load(config.to) as file:
        return file["images"], file["labels"]


def scored(public: Path, score: str = "iwae", **arrays: Any) -> np.ndarray:
    np.savez("asked.npz", **arrays)
    image_uses.score(ScoreConfig(table="asked.npz", score=score), public, Path("scores.parquet"))
    return pd.read_parquet("scores.parquet")["score"].to_numpy()


@pytest.mark.parametrize("score", ["iwae", "elbo", "reconstruction"])
def test_a_strange_picture_scores_above_the_models_own(score: str, public: Path) -> None:
    images, labels = drawn(public, rows=20)
    noise = np.random.default_rng(0).integers(0, 256, images.shape).astype(np.uint8)
    found = scored(public, score, images=np.concatenate([images, noise]), labels=np.concatenate([labels, labels]))
    assert found[:20].max() < found[20:].min()
    table = pd.read_parquet("scores.parquet")
    assert list(table.columns) == ["row", "label", "score", "per_pixel"]
    assert table["per_pixel"].to_numpy() == pytest.approx(found / 72)


def test_a_score_is_a_bound_and_the_tighter_one_is_the_default(public: Path) -> None:
    images, labels = drawn(public, rows=30)
    tight, loose = (-scored(public, score, images=images, labels=labels) for score in ("iwae", "elbo"))
    assert tight.mean() > loose.mean()


def test_a_picture_without_a_class_is_summed_over_all_and_an_unknown_class_costs_more(public: Path) -> None:
    images, _ = drawn(public, rows=5)
    each = np.stack([-scored(public, images=images, labels=np.full(5, int(name))) for name in CLASSES])
    alone = -scored(public, images=images)
    assert alone == pytest.approx(np.logaddexp.reduce(each, 0), rel=1e-6)
    assert pd.read_parquet("scores.parquet")["label"].isna().all()
    assert -scored(public, images=images, labels=np.full(5, 7)) == pytest.approx(alone + UNKNOWN, rel=1e-6)
    recalled = np.stack([-scored(public, "reconstruction", images=images, labels=np.full(5, int(n))) for n in CLASSES])
    likeliest = -scored(public, "reconstruction", images=images)
    assert np.abs(recalled - likeliest).min(0) == pytest.approx(0, abs=1e-3)


def test_a_score_does_not_depend_on_the_pictures_beside_it(public: Path) -> None:
    images, labels = drawn(public, rows=6)
    assert scored(public, images=images[2:3], labels=labels[2:3]) == pytest.approx(
        scored(public, images=images, labels=labels)[2:3], rel=1e-5)


def test_classes_are_drawn_as_asked_for_and_image_i_stays_image_i(public: Path) -> None:
    few, many = drawn(public, rows=10, seed=3), drawn(public, rows=1500, seed=3)
    assert (few[0] == many[0][:10]).all()
    assert (few[1] == many[1][:10]).all()
    assert np.bincount(many[1], minlength=9)[[3, 5, 8]] / 1500 == pytest.approx([0.5, 0.3, 0.2], abs=0.06)
    assert set(drawn(public, given='{"label": 5}')[1]) == {5}
    assert set(drawn(public, given='{"label": "3|8"}')[1]) == {3, 8}
    even = np.bincount(drawn(public, balance="even", rows=1024)[1], minlength=9)[[3, 5, 8]]
    assert even.max() - even.min() <= 1
    assert set(drawn(public, balance='{"8": 2, "5": 0}')[1]) == {8}
    assert few[0].shape == (10, 9, 8)


@pytest.mark.parametrize(("knobs", "message"), [
    ({"to": "rows.csv"}, "expected an .npz file"), ({"format": "csv"}, "expected an .npz file"),
    ({"id": "row"}, "neither id= nor partial rows"), ({"given": "partial.csv"}, "neither id= nor partial rows"),
    ({"given": '{"label": 4}'}, "there are 3, 5, 8"), ({"given": '{"color": "red"}'}, "expected given.label=CLASS"),
    ({"balance": '{"3": -1}'}, "not negative"), ({"balance": '{"3": 0}'}, "expected one above 0")])
def test_what_cannot_be_drawn_is_told_and_leaves_no_file(knobs: dict[str, Any], message: str, public: Path) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        drawn(public, **knobs)
    assert not list(Path().glob("drawn*"))


@pytest.mark.parametrize(("knobs", "message"), [
    ({"threshold": "synthetic"}, "neither threshold= nor id="), ({"run": "a,b"}, "expected one run"),
    ({"score": "regret"}, "expected one of iwae, elbo, reconstruction"), ({}, "data=null"),
    ({"table": "small.npz"}, "images of 8 x 8 gray; the model knows 9 x 8 gray")])
def test_what_cannot_be_scored_is_told(knobs: dict[str, Any], message: str, public: Path) -> None:
    np.savez("small.npz", images=np.zeros((1, 8, 8), np.uint8), labels=[3])
    with pytest.raises((ConfigError, DataError), match=message):
        image_uses.score(ScoreConfig(**knobs), public, Path("scores.parquet"))
    assert not Path("scores.parquet").exists()


def test_one_picture_may_be_looked_at_but_not_learned_from() -> None:
    one = {"images": np.zeros((1, 8, 8), np.uint8), "labels": ["a"]}
    assert reader.read(one, least=1).labels.tolist() == ["a"]
    assert reader.read({"images": one["images"]}, least=1).labels.tolist() == [""]
    with pytest.raises(DataError, match="expected at least 2"):
        reader.read(one)
