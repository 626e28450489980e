"""One run for all tests of the lake, and for each of them a folder and a warehouse of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from lakehouse import PEOPLE, TINY, make, passed, people, train, typed

from dpvae.data.lake import iceberg


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run ``one`` on a lake table, audited, and ``part`` on three of its five columns."""
    folder = tmp_path_factory.mktemp("lake")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        iceberg.init("warehouse")
        make(PEOPLE, people())
        passed(train())()
        assert typed(f"train data={PEOPLE} data.columns=age,city,income run.name=part {TINY}") == 0
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The trained runs, and an empty warehouse."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    iceberg.init("warehouse")
    return tmp_path
