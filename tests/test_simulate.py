"""Budgets are tried on made-up rows: the private table is not opened, and a larger budget is seen to buy more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpvae import simulate
from dpvae.config import DataConfig, ModelConfig, SweepConfig, TrainConfig
from dpvae.data import lake
from dpvae.data.schema import Schema
from dpvae.data.standin import made_up
from dpvae.errors import ConfigError, DataError
from dpvae.evaluate.fidelity import Quantiles, distances, mean

SCHEMA = """target: returned
columns:
  country: {kind: categorical, categories: [DE, FR, IT]}
  price: {kind: continuous, min: 0, max: 500}
  items: {kind: integer, min: 1, max: 9}
  ordered: {kind: datetime, min: 2020-01-01, max: 2024-12-31, format: "%Y-%m-%d"}
  returned: {kind: categorical, categories: ["no", "yes"]}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    monkeypatch.chdir(tmp_path)
    Path("orders.yaml").write_text(SCHEMA)
    Path("orders.csv").write_text("country,price,items,ordered,returned\nsecret row that would not even parse\n")
    return TrainConfig(data=DataConfig(path="orders.csv", schema="orders.yaml", rows=400),
                       model=ModelConfig(components=32, latent_dim=8))


def test_budgets_are_tried_without_opening_the_table_or_spending_anything(
        config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate, "EPSILONS", (0.1, 10.0))
    found = simulate.sweep(config)
    assert {path.name for path in Path.cwd().iterdir()} == {"orders.csv", "orders.yaml"}
    assert (found.rows, found.columns, found.source) == (400, 5, "made-up rows")
    small, large = found.budgets
    assert large.one_way < small.one_way
    assert large.pairs < small.pairs
    assert found.real_auc is not None
    assert 0.5 < found.real_auc <= 1
    assert "nothing of yours was opened" in str(found)
    assert [each["epsilon"] for each in found.to_dict()["budgets"]] == [0.1, 10.0]


def test_a_public_table_takes_the_place_of_made_up_rows_where_it_has_the_columns(
        config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate, "EPSILONS", ())
    rng = np.random.default_rng(0)
    rows = [f"{a},{b:.2f},{c},2021-03-04,{'yes' if b > 250 else 'no'}" for a, b, c in zip(
        rng.choice(["DE", "FR"], 600), rng.uniform(0, 500, 600), rng.integers(1, 9, 600), strict=True)]
    Path("public.csv").write_text("\n".join(["country,price,items,ordered,returned", *rows]) + "\n")
    found = simulate.sweep(TrainConfig(data=config.data, sweep=SweepConfig(public="public.csv")))
    assert (found.rows, found.source) == (400, "public rows")
    assert found.real_auc is not None
    assert found.real_auc > 0.9
    Path("public.csv").write_text("country,price\nDE,1\nDE,2\n")
    with pytest.raises(DataError, match=r"sweep\.public=public\.csv: column 'items' is missing"):
        simulate.sweep(TrainConfig(data=config.data, sweep=SweepConfig(public="public.csv")))


def test_made_up_rows_depend_on_one_another_and_on_the_seed_alone(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SCHEMA)
    schema = Schema.from_yaml(tmp_path / "s.yaml").bind(tuple((name, "csv") for name in (
        "country", "price", "items", "ordered", "returned")))
    table, again = made_up(schema, 3000, seed=1), made_up(schema, 3000, seed=1)
    assert all((a.values == b.values).all() for a, b in zip(table.cells, again.cells, strict=True))
    assert set(table.column("country").values) <= {"DE", "FR", "IT"}
    bins = Quantiles(table, 20)
    apart = mean(list(distances(bins, table, simulate._shuffled(table)).two_way.values()))
    half = table.take(np.random.default_rng(0).permutation(3000)[:1500])
    other = mean(list(distances(bins, table, half).two_way.values()))
    assert apart > 1.5 * other


@pytest.mark.parametrize("dtype", ["int64", "double", "bool", "string", "timestamp[us]", "date32[day]", "float"])
def test_a_column_of_any_declared_type_is_made_up_in_that_type(dtype: str, tmp_path: Path) -> None:
    table = made_up(Schema.undeclared((("x", dtype), ("y", "string"))), 50, seed=0)
    assert table.column("x").dtype == dtype
    pq.write_table(lake.to_arrow(table), tmp_path / "t.parquet")
    assert str(pa.parquet.read_schema(tmp_path / "t.parquet").field("x").type) == dtype


def test_what_is_no_table_is_refused(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    other = DataConfig(path="orders.csv")
    object.__setattr__(other, "kind", "image")
    with pytest.raises(ConfigError, match=r"data\.kind=image"):
        simulate.sweep(TrainConfig(data=other))
