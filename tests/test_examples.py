"""The examples do what they promise, in their fast mode."""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "scripts" / "examples"


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_the_certified_release_of_adult_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    verdict = example("certified_adult")["main"](tmp_path, fast=True)
    assert verdict.ok
    assert (tmp_path / "release" / "report.html").is_file()


def test_a_trainer_that_clips_the_batch_is_caught_and_the_right_one_is_not() -> None:
    found = example("broken_trainer")["main"](fast=True)
    assert found["Right"] == ()
    assert "T1" in found["ClipsTheBatch"]


@pytest.mark.slow
def test_every_mistake_of_the_example_is_caught_by_the_test_that_is_about_it() -> None:
    found = example("broken_trainer")["main"](fast=False)
    assert found.pop("Right") == ()
    assert "T1" in found["ClipsTheBatch"]
    assert "T2" in found["HalfTheNoise"]
    assert found["DividesByTheBatch"]


def test_strange_payments_are_told_apart_and_their_cell_is_named() -> None:
    pytest.importorskip("pandas")
    found = example("anomaly_detection")["main"](fast=True)
    assert found.auc > 0.6  # 0.88 and 68 % with the whole model
    assert found.named > 0.4


@pytest.mark.slow
def test_a_table_in_a_lake_is_scored_into_one_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("pyiceberg", reason="needs pip install 'dpvae[lake]'")
    assert 0 <= example("lake_scores")["main"](tmp_path, fast=True) < 0.5
    assert (tmp_path / "warehouse").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["images", "text"])
def test_images_and_texts_are_trained_released_and_judged(name: str, tmp_path: Path) -> None:
    found = example(name)["main"](tmp_path, fast=True)
    assert 0 < found < 1
    assert (tmp_path / "release" / "report.html").is_file()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.name)
def test_an_example_says_how_it_is_run_and_has_a_fast_mode(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("#!/usr/bin/env python\n")
    assert f"python scripts/examples/{path.name} --fast" in text
    assert os.access(path, os.X_OK)
