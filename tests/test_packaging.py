"""What is installed is whole: the wheel carries the configuration, the data, the types and the licence."""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

import dpvae

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    return Path(next(WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])))


def test_the_wheel_carries_every_file_of_conf_and_every_built_in_table(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    conf = {f"dpvae/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "dpvae").rglob("*")
               if path.is_file() and "__pycache__" not in path.parts}
    assert conf | package <= names
    assert {"dpvae/py.typed", "dpvae/conf/train.yaml", "dpvae/data/tables/adult.parquet",
            "dpvae/data/texts/names.parquet", "dpvae/data/texts/english_words.txt.gz"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_carries_nothing_else(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"dpvae", f"dpvae-{dpvae.__version__}.dist-info"}


def test_an_unpacked_wheel_finds_its_own_configuration(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = "from dpvae import cli; print(cli.conf_dir()); raise SystemExit(cli.main(['train', '--cfg', 'job']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path,
                          env=os.environ | {"PYTHONPATH": str(site)})
    where, _, config = done.stdout.partition("\n")
    assert Path(where) == site / "dpvae" / "conf"
    assert "builtin: adult" in config


def test_what_is_built_from_the_source_archive_installs_and_answers(tmp_path: Path) -> None:
    archive = Path(next(SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])))
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    assert {"tests", "docs", "conf", "mkdocs.yml", "LICENSE", "SECURITY.md", "CITATION.cff"} <= {
        path.name for path in source.iterdir()}
    built = next(WheelBuilder(str(source)).build(directory=str(tmp_path / "dist"), versions=["standard"]))
    site = tmp_path / "site"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site),
                    built], check=True, capture_output=True)
    done = subprocess.run([sys.executable, "-m", "dpvae", "plan", "output=json"], capture_output=True, text=True,
                          cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(site)})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["facts"]["columns"] == 15
    where = subprocess.run([sys.executable, "-c", "import dpvae; print(dpvae.__file__)"], capture_output=True,
                           text=True, check=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(site)}).stdout
    assert Path(where.strip()).is_relative_to(site)


def test_the_version_is_written_once() -> None:
    assert f'__version__ = "{dpvae.__version__}"' in (ROOT / "dpvae" / "__init__.py").read_text()
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dynamic"] == ["version"]


def test_importing_the_package_loads_neither_torch_nor_numpy_nor_hydra() -> None:
    code = "import sys, dpvae, dpvae.cli; print(*sorted({'torch', 'numpy', 'hydra', 'pyarrow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


def test_the_public_names_are_pinned() -> None:
    assert dpvae.__all__ == ["DPVAE", "__version__", "plan", "release", "train", "verify"]
    assert set(dpvae.__all__) <= set(dir(dpvae))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        dpvae.nothing  # noqa: B018


@pytest.mark.parametrize("name", ["api.plan", "api.train", "api.release", "audit.verify.verify", "estimator.DPVAE.fit"])
def test_a_promised_name_says_what_it_costs_and_what_it_raises(name: str) -> None:
    said = (pkgutil.resolve_name(f"dpvae.{name}").__doc__ or "").lower()
    assert "raises" in said
    assert "cost" in said or "spends" in said
