"""What other programs read of a release: Croissant by its own library, the model folder by the hub's conventions."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors import safe_open

from dpvae import cli
from dpvae.audit.verify import verify
from dpvae.release.sample import Sampler, load_public


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release with its model, of a run of two steps on odd columns."""
    home = tmp_path_factory.mktemp("others")
    rng = np.random.default_rng(4)
    rows = [f"{a},{b},2021-0{c}-01" for a, b, c in zip(
        rng.integers(0, 90, 80), rng.choice(["north", "south"], 80), rng.integers(1, 9, 80), strict=True)]
    (home / "t.csv").write_text("\n".join(["age,the city/zip,joined", *rows]) + "\n")
    before = Path.cwd()
    os.chdir(home)
    try:
        assert cli.main(["train", "experiment=smoke", "data=t.csv", "data.rows=80", "run.name=a"]) == 0
        assert cli.main(["release", "run=a", "rows=50", "to=out", "with_model=true"]) == 0
    finally:
        os.chdir(before)
    return home / "out"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the graph library beneath it
def test_croissant_is_read_by_its_own_library_and_gives_the_rows(folder: Path) -> None:
    croissant = pytest.importorskip("mlcroissant", reason="needs pip install 'dpvae[croissant]'")
    data = croissant.Dataset(jsonld=str(folder / "croissant.json"))
    assert data.metadata.ctx.issues.errors == set()
    rows = list(data.records("rows"))
    table = pq.read_table(folder / "data").to_pylist()
    assert len(rows) == len(table) == 50
    assert sorted(str(value) for value in rows[0].values()) == sorted(
        repr(str(value).encode()) if isinstance(value, str) else str(value) for value in table[0].values())


def test_the_model_folder_has_the_files_and_the_metadata_that_the_hub_reads(folder: Path) -> None:
    assert sorted(path.name for path in (folder / "model").iterdir()) == [
        "README.md", "config.json", "model.safetensors", "schema.json"]
    config = json.loads((folder / "model" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("dpvae", ["VAE"])
    assert 0 < config["differential_privacy"]["epsilon"] <= 1
    _, block, body = (folder / "model" / "README.md").read_text().split("---\n", 2)
    metadata = yaml.safe_load(block)
    assert metadata["library_name"] == "dpvae"
    assert metadata["differential_privacy"] == config["differential_privacy"]
    assert json.loads((folder / "certificate.json").read_text())["sentence"] in body
    with safe_open(folder / "model" / "model.safetensors", "pt") as weights:
        assert weights.keys()


def test_the_model_of_the_folder_draws_the_rows_of_the_run(folder: Path) -> None:
    ours = Sampler(*load_public(folder / "model"), seed=0).rows(50)
    theirs = pq.read_table(folder / "data").to_pydict()
    assert {name: [str(v) for v in cells.values] for name, cells in ours.items()} == {
        name: [str(v) for v in values] for name, values in theirs.items()}


def test_a_release_with_its_model_verifies_and_guards_every_file_of_it(folder: Path) -> None:
    assert verify(folder).ok
    path = folder / "model" / "config.json"
    before = path.read_bytes()
    path.write_bytes(before.replace(b"dpvae", b"dpvea"))
    try:
        assert not verify(folder).ok
    finally:
        path.write_bytes(before)
