"""The commands for images, as they are typed: train, release, verify; what does not fit ends in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_images import pictures

from dpvae import cli

QUICK = ["trainer.fit_steps=1", "trainer.steps=2", "trainer.sampling_rate=0.2", "trainer.metric_releases=1",
         "model.hidden=16", "report.progress=quiet"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> int:
    return cli.main(list(arguments))


def test_images_of_a_file_are_trained_released_and_verified(capsys: pytest.CaptureFixture[str]) -> None:
    shown = pictures(400)
    np.savez("bars.npz", train_images=shown["images"], train_labels=(shown["labels"] == "down").astype(np.uint8))
    asked = ["data=images", "data.path=bars.npz", "privacy.epsilon=8", "privacy.delta=1e-5", "run.name=m1"]
    assert run("train", *asked, *QUICK, "trainer.anchor_share=0.8") == 0
    assert run("release", "run=m1", "rows=5000", "to=out") == 0
    with np.load("out/data/images.npz") as file:
        images, labels = file["images"], file["labels"]
    assert (images.shape, images.dtype) == ((5000, 8, 8), np.uint8)
    assert sorted(set(labels.tolist())) == [0, 1]
    assert run("verify", "out") == 0
    said = capsys.readouterr().out
    assert "differentially private" in said
    assert "for one image added or removed" in said
    page = Path("out/report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    schema = json.loads(Path("out/schema.json").read_text())
    assert schema["columns"][0] == {"name": "image", "kind": "image", "dtype": "uint8", "nullable": False, "height": 8,
                                    "width": 8, "channels": 1, "declared": ["8 x 8 gray"]}
    croissant = json.loads(Path("out/croissant.json").read_text())
    assert croissant["distribution"][0]["encodingFormat"] == "application/zip"
    assert "image-classification" in Path("out/card.md").read_text()
    assert run("release", "run=m1", "rows=5000", "to=again") == 0
    assert Path("again/data/images.npz").read_bytes() == Path("out/data/images.npz").read_bytes()


def test_the_built_in_digits_are_planned_with_public_facts_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", "data=images") == 0
    said = capsys.readouterr().out
    assert "8 x 8 gray images of 10 classes, rows 1,797" in said
    assert not Path("runs").exists()


def test_colour_images_keep_their_channels(capsys: pytest.CaptureFixture[str]) -> None:
    shown = pictures(300)
    np.savez("colour.npz", images=np.stack([shown["images"]] * 3, -1), labels=shown["labels"])
    assert run("train", "data=images", "data.path=colour.npz", "data.rows=300", "data.labels=across|down",
               "privacy.epsilon=8", "run.name=c", *QUICK) == 0
    assert run("release", "run=c", "rows=7", "to=out") == 0
    with np.load("out/data/images.npz") as file:
        assert file["images"].shape == (7, 8, 8, 3)
        assert set(file["labels"].tolist()) <= {"across", "down"}


MISTAKES = {
    "no file": (["data.path=nowhere.npz"], "nowhere.npz"),
    "a word": (["data.labels=1|1"], "data.labels='1|1': expected different names"),
    "an unknown class": (["data.labels=0|1"], "not among data.labels"),
    "another trainer": (["trainer=density"], "expected trainer=anchored or trainer=joint"),
    "a table": (["data.path=table.csv"], "unknown ending '.csv'"),
}


@pytest.mark.parametrize(("arguments", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_ends_in_one_line_with_nothing_spent(arguments: list[str], says: str,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    Path("table.csv").write_text("a,b\n1,2\n")
    assert run("train", "data=images", *arguments, *QUICK) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert "Traceback" not in said
    assert not Path("runs").exists()


def test_a_run_of_images_is_scored_and_sampled_and_has_no_cells_to_impute(capsys: pytest.CaptureFixture[str]) -> None:
    shown = pictures(200)
    np.savez("bars.npz", **shown)
    assert run("train", "data=images", "data.path=bars.npz", "data.rows=200", "data.labels=across|down",
               "privacy.epsilon=8", "run.name=m", *QUICK) == 0
    np.savez("one.npz", images=shown["images"][:1])
    assert run("score", "run=m", "data=one.npz", "score=elbo") == 0
    assert Path("runs/m/private/scores.parquet").is_file()
    assert run("sample", "run=m", "rows=5", "given.label=down", "to=down.npz") == 0
    with np.load("down.npz") as file:
        assert file["labels"].tolist() == ["down"] * 5
    capsys.readouterr()
    assert run("impute", "run=m", "data=adult") == 2
    assert "run=m: is of images, which have no cells to impute" in capsys.readouterr().err
