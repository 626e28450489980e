"""A catalog that is only an entry of pyiceberg's configuration: reading, writing and publishing through HTTP."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from lakehouse import people, typed
from rest_catalog import served

from dpvae.data import lake
from dpvae.data.lake import register


def test_a_rest_catalog_is_read_written_and_published_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pq.write_table(people(200), "people.parquet")
    with served(tmp_path) as (url, asked):
        Path(".pyiceberg.yaml").write_text(yaml.safe_dump({"catalog": {"prod": {"type": "rest", "uri": url}}}))
        assert typed("lake copy people.parquet to=iceberg:prod.sales.people") == 0
        assert lake.read(lake.selected("iceberg:prod.sales.people", columns="age,pay", where="age >= 70")).rows == sum(
            age >= 70 for age in people(200)["age"].to_pylist())
        assert typed("train data=iceberg:prod.sales.people data.where=pay>5 data.rows=150 run.name=rest "
                     "experiment=smoke") == 0
        home = register.home("iceberg:prod.sales.people")
        files = [Path(file) for held in [home.held()] if held for file in held.files]
        home.stage("dpvae-audit-x", files, {"dpvae.release": "x"})
        held = home.held("dpvae-audit-x")
        assert held is not None
        assert held.marks["dpvae.release"] == "x"
        assert "dpvae.release" not in home.history()[0].marks
        home.publish("dpvae-audit-x", "dpvae-x")
        assert home.history()[0].marks["dpvae.release"] == "x"
        assert typed("lake show iceberg:prod.sales.people") == 0
    assert asked.count("POST namespaces/sales/tables/people") >= 5
    assert typed("train data=iceberg:prod.sales.people run.name=gone") == 2
