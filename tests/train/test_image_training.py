"""A run on images: killed anywhere it ends with the same bits; one image more changes no step; records stand alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_images import ROWS, pictures, some_model
from small_runs import ScriptedKey, small_config
from test_resume import Killed, book_of, killed_at

from dpvae import api
from dpvae.config import LedgerConfig, TrainConfig
from dpvae.errors import ConfigError, DataError
from dpvae.modalities import images as modality
from dpvae.models.images import ImageVAE
from dpvae.train import trainer as trainer_module
from dpvae.train.dpsgd import PrivateSteps
from dpvae.train.images import pairs, random_images

RELEASED = ("model.safetensors", "model.json", "events.jsonl", "metrics.jsonl", "schema.json", "reference.json",
            "plan.json", "preview.json", "diagnostics.json")


def config_of(folder: Path, **changes: Any) -> TrainConfig:
    data = {"kind": "images", "rows": ROWS, "labels": "across|down"} | changes.pop("data", {})
    trainer = {"steps": 6, "metric_releases": 3, "sampling_rate": 0.3, "fit_steps": 2, "latent_samples": 2,
               "anchor_share": 0.7} | changes.pop("trainer", {})
    privacy = {"epsilon": 8.0, "delta": 1e-5, "secret_seed": 5} | changes.pop("privacy", {})
    return small_config("anchored", run={"root": str(folder), "name": "run"}, ledger=LedgerConfig(dataset="bars"),
                        data=data, trainer=trainer, privacy=privacy, model={"hidden": 16} | changes.pop("model", {}),
                        **changes)


def released(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "run" / "public" / name).read_bytes() for name in RELEASED}


def test_a_run_killed_at_any_moment_ends_with_the_same_bits_and_one_reservation(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "CHECKPOINT_EVERY", 2)
    with killed_at(-1) as moments:
        api.train(config_of(tmp_path / "straight"), pictures())
    wanted = released(tmp_path / "straight")
    assert list(dict.fromkeys(moment[0] for moment in moments)) == ["anchor", "fit", "dpsgd", "sleep"]
    for number in range(1, len(moments) + 1, 2):
        folder = tmp_path / str(number)
        with killed_at(number), pytest.raises(Killed):
            api.train(config_of(folder), pictures())
        assert book_of(folder) == ["reserve"], "a crash counts as spent"
        api.train(config_of(folder), pictures())
        assert released(folder) == wanted, f"killed at {moments[number - 1][:2]}"
        assert book_of(folder) == ["reserve", "commit"]


def steps_of(folder: Path, table: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], list[Any]]:
    """Every draw of a run by stream and kind, and the events it booked."""
    key = ScriptedKey()
    monkeypatch.setattr(modality, "secrets_of", lambda run, config: key)
    run = api.train(config_of(folder, data={"labels": "across|down"}), table)
    fixed = [(draw.names, draw.kind, draw.size) for draw in key.draws if draw.kind == "normal"]
    return fixed, [str(event) for event in run.plan.events()]


def test_one_image_more_changes_no_step_no_size_and_no_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but how many directions and clusters are kept, which follows from what was released."""
    more = pictures()
    more = {"images": np.concatenate([more["images"], np.full((1, 8, 8), 255, np.uint8)]),
            "labels": np.append(more["labels"], "down")}
    one, events = steps_of(tmp_path / "a", pictures(), monkeypatch)
    other, same = steps_of(tmp_path / "b", more, monkeypatch)
    assert events == same
    assert [draw[0] for draw in one] == [draw[0] for draw in other]
    adaptive = ("cluster", "spread", "shape")
    assert [d for d in one if not str(d[0][1]).startswith(adaptive)] == [
        d for d in other if not str(d[0][1]).startswith(adaptive)]


def test_images_of_sixteen_pixels_are_asked_for_poses_and_diagnosed_from_images_of_the_model(tmp_path: Path) -> None:
    table = pictures()
    table["images"] = table["images"].repeat(2, 1).repeat(2, 2)
    run = api.train(config_of(tmp_path), table)
    assert "noisy pose tables" in [event.what for event in run.plan.events() if event.phase == "anchor"]
    public = tmp_path / "run" / "public"
    found = json.loads((public / "diagnostics.json").read_text())
    assert found["unit"] == "nats per image"
    assert 0 < found["active_units"] <= found["latent_dim"]
    assert -256 * np.log(256) - np.log(2) <= found["independent_elbo"] < 0
    drawn = modality.made_up(public, 10, seed=1)
    assert drawn["images"].shape == (10, 16, 16)


def test_an_empty_class_and_a_set_with_nobody_in_it_train_like_any_other(tmp_path: Path) -> None:
    only = pictures()
    kept = only["labels"] == "down"
    config = config_of(tmp_path / "a", data={"labels": "across|down|neither"})
    api.train(config, {name: values[kept] for name, values in only.items()})
    nobody = config_of(tmp_path / "b", data={"labels": "up|left", "outside": "missing"})
    api.train(nobody, only)
    assert (tmp_path / "b" / "run" / "public" / "model.safetensors").is_file()


def test_classes_that_are_not_declared_are_counted_above_a_threshold_and_booked(tmp_path: Path) -> None:
    table = pictures()
    table["labels"][:2] = "rare"
    run = api.train(config_of(tmp_path, data={"labels": None}, trainer={"survey_share": 0.3}), table)
    assert type(run.plan.events()[0]).__name__ == "Threshold"
    schema = (tmp_path / "run" / "public" / "schema.json").read_text()
    assert "down" in schema
    assert "rare" not in schema


def test_an_image_of_a_class_that_nobody_else_has_stops_nothing_and_changes_no_plan(tmp_path: Path) -> None:
    config, held = config_of(tmp_path, data={"labels": None}), pictures()
    joined = {"images": np.concatenate([held["images"], held["images"][:1]]),
              "labels": np.append(held["labels"], "a rare disease")}
    one, two = (modality.prepare(config, records) for records in (held, joined))
    assert one.plan == two.plan
    assert one.declared() == two.declared()
    with pytest.raises(DataError, match="class 'a rare disease' has one image"):
        modality.prepare(config_of(tmp_path, data={"labels": "across|down|a rare disease"}), joined)


def test_of_more_classes_than_there_may_be_the_most_frequent_are_published(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modality.reader, "MOST_CLASSES", 1)
    config = config_of(tmp_path, data={"labels": None}, privacy={"epsilon": 20.0, "delta": 1e-5})
    held = pictures(300)
    keep = np.flatnonzero((held["labels"] == "down") | (np.arange(300) % 3 == 0))
    task = modality.prepare(config, {name: values[keep] for name, values in held.items()})
    assert task._count(ScriptedKey())[0] == ("down",)
    with pytest.raises(ConfigError, match="2 classes; expected at most 1"):
        modality.prepare(config_of(tmp_path, data={"labels": "across|down"}), held)


def test_the_loss_of_an_image_is_its_own_and_mixing_ones_are_refused() -> None:
    vae = some_model((1, 8, 8))
    codes = random_images(vae)(6, torch.Generator().manual_seed(0))
    plan = config_plan()
    private = PrivateSteps(vae.decoder, codes, pairs(vae), plan=plan, rows=6, key=ScriptedKey(), learning_rate=1e-3,
                           microbatch=None, latents=(2, 4), example=random_images(vae))
    private.step(0, 1.0)
    private.close()

    def together(module: Any, records: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return pairs(vae)(module, records, noise) + records.float().mean()

    with pytest.raises(ConfigError, match="moved the"):
        PrivateSteps(vae.decoder, codes, together, plan=plan, rows=6, key=ScriptedKey(), learning_rate=1e-3,
                     microbatch=None, latents=(2, 4), example=random_images(vae))


def config_plan() -> Any:
    from dpvae.privacy.plan import SgdPlan

    return SgdPlan(noise_multiplier=1.0, sampling_rate=0.5, steps=1, clip_norm=1.0, latent_samples=2)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # nothing that enters a decoder needs a gradient
def test_fast_clipping_and_opacus_give_the_same_decoder() -> None:
    found = []
    for mode in ("hooks", "fast"):
        vae = some_model((1, 8, 8))
        codes = random_images(vae)(12, torch.Generator().manual_seed(0))
        private = PrivateSteps(vae.decoder, codes, pairs(vae), plan=config_plan(), rows=12, key=ScriptedKey(),
                               learning_rate=1e-3, microbatch=None, clipping=mode, latents=(2, 4))
        private.step(0, 1.0)
        private.close()
        found.append(torch.cat([p.detach().flatten() for p in vae.decoder.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_the_joint_baseline_trains_and_is_released_with_an_encoder_of_its_own(tmp_path: Path) -> None:
    config = config_of(tmp_path, trainer={"name": "joint", "anchor_share": None})
    run = api.train(config, pictures())
    assert {event.phase for event in run.plan.events()} == {"anchor", "dpsgd", "metric"}
    drawn = modality.made_up(tmp_path / "run" / "public", 10, seed=1)
    assert drawn["images"].shape == (10, 8, 8)


def test_the_shape_of_the_model_is_bounded_by_its_knobs(tmp_path: Path) -> None:
    api.train(config_of(tmp_path, privacy={"epsilon": 20.0}, model={"latent_dim": 3, "components": 5}), pictures())
    shape = json.loads((tmp_path / "run" / "public" / "model.json").read_text())
    assert shape["directions"] == 3
    assert shape["clusters"] <= 2, "five for two classes"


@pytest.mark.parametrize(("knob", "pictures_drawn"), [({"fit_steps": 3}, [48, 32]), ({"sleep_steps": 5}, [4096, 80])])
def test_free_steps_are_pictures_that_the_decoder_draws_for_the_encoder(
        knob: dict[str, int], pictures_drawn: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(ImageVAE, "dream", lambda self, count, *, generator: seen.append(count))
    api.train(config_of(tmp_path, trainer={"fit_steps": None} | knob), pictures())
    assert seen == pictures_drawn


def test_reconstructions_of_private_images_are_sealed(tmp_path: Path) -> None:
    api.train(config_of(tmp_path), pictures())
    assert (tmp_path / "run" / "private" / "reconstructions.png").read_bytes()[:4] == b"\x89PNG"
    assert not list((tmp_path / "run" / "public").glob("*.png"))


def test_what_is_made_up_is_taken_like_real_images(tmp_path: Path) -> None:
    api.train(config_of(tmp_path), pictures())
    drawn = modality.made_up(tmp_path / "run" / "public", 40, seed=1)
    task = modality.prepare(config_of(tmp_path), drawn)
    assert task.images.rows == 40
    joining = modality.troublemakers(drawn)
    assert {"a black image", "a white image", "an image of noise", "a duplicate"} <= set(joining)
    for image in joining.values():
        more = {name: np.concatenate([drawn[name], np.asarray(image[name])[None]]) for name in drawn}
        assert modality.prepare(config_of(tmp_path), more).images.rows == 41
