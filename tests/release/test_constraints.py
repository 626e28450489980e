"""No released row breaks what its schema declares, whatever the model would draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpvae.data.declaration import declaration
from dpvae.data.declare import declare
from dpvae.data.lake import Cells, Table
from dpvae.data.schema import Schema
from dpvae.errors import DataError, SchemaError
from dpvae.files import write_json
from dpvae.models.vae import VAE
from dpvae.release.constraints import broken, ids
from dpvae.release.impute import Imputer, complete
from dpvae.release.sample import Sampler
from dpvae.release.shards import table_writer
from dpvae.train.checkpoint import save_model

COLUMNS: dict[str, Any] = {
    "start": {"kind": "integer", "min": 0, "max": 50, "heaps": [], "edges": [0, 10, 20, 50]},
    "end": {"kind": "integer", "min": 0, "max": 60, "heaps": [], "edges": [0, 20, 40, 60], "missing": True},
    "price": {"kind": "continuous", "min": 0, "max": 9, "decimals": 2, "heaps": [], "edges": [0, 3, 9]},
    "fee": {"kind": "continuous", "min": 0, "max": 2, "decimals": 2, "heaps": [0], "edges": [0, 1, 2]},
    "total": {"kind": "continuous", "min": 0, "max": 13, "decimals": 2, "heaps": [], "edges": [0, 5, 13]},
    "city": {"categories": ["Rome", "Oslo", "Bergen"]}, "land": {"categories": ["Italy", "Norway"]},
    "key": {"kind": "integer", "min": 1, "max": 100_000, "heaps": [], "edges": [1, 500, 100_000]}}
RULES: list[dict[str, Any]] = [
    {"range": "start", "min": 5, "max": 45}, {"order": ["start", "end"]}, {"formula": "total = price + 2 * fee"},
    {"combinations": {"city": ["Rome", "Oslo", "Bergen"], "land": ["Italy", "Norway", "Norway"]}}, {"unique": "key"}]


def bound(rules: list[dict[str, Any]], columns: dict[str, Any] = COLUMNS) -> Schema:
    schema = declare({"columns": columns, "constraints": rules})
    types = {"integer": "int64", "continuous": "double", "categorical": "string"}
    return schema.bind([(c.name, types[c.kind or ""]) for c in schema.columns])


def model(schema: Schema, seed: int) -> VAE:
    """A model with a wild law of its own."""
    vae = VAE(schema.cardinalities, latent_dim=3, hidden=4, layers=0, components=5,
              generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        vae.decoder[-1].weight.mul_(4)
    return vae


def numbers(cells: Cells) -> np.ndarray:
    return np.where(cells.missing, np.nan, cells.values.astype(float))


def assert_whole(rows: dict[str, Cells]) -> None:
    """Checked from the cells alone, not by the code under test."""
    start, end, price, fee, total = (numbers(rows[name]) for name in ("start", "end", "price", "fee", "total"))
    assert ((start >= 5) & (start <= 45)).all()
    assert not (start > end).any()
    assert np.abs(total - (price + 2 * fee)).max() < 1e-9
    assert (total <= 13).all()
    pairs = set(zip(rows["city"].values, rows["land"].values, strict=True))
    assert pairs <= {("Rome", "Italy"), ("Oslo", "Norway"), ("Bergen", "Norway")}
    assert len(set(rows["key"].values.tolist())) == len(start)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 300))
def test_no_sampled_row_breaks_a_constraint(seed: int, rows: int) -> None:
    schema = bound(RULES)
    assert_whole(Sampler(model(schema, seed), schema, seed=seed).rows(rows))


def test_without_enforcement_rows_would_break_them() -> None:
    schema = bound(RULES)
    free = bound([])
    rows = Sampler(model(schema, 0), free, seed=0).rows(300)
    assert broken(schema, rows).mean() > 0.3
    with pytest.raises(AssertionError):
        assert_whole(rows)


def test_no_row_of_any_block_breaks_a_constraint_and_ids_differ_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpvae.release.sample.BLOCK", 64)
    schema = bound(RULES)
    blocks = list(Sampler(model(schema, 1), schema, seed=1).blocks(200))
    whole = {name: Cells(*(np.concatenate([getattr(b[name], part) for b in blocks]) for part in ("values", "missing")),
                         blocks[0][name].dtype) for name in blocks[0]}
    assert_whole(whole)
    longer = next(Sampler(model(schema, 1), schema, seed=1).blocks(5000))
    assert all((longer[name].values == blocks[0][name].values).all() for name in longer)


def test_a_release_holds_its_constraints(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    schema = bound(RULES)
    save_model(model(schema, 2), tmp_path)
    write_json(tmp_path / "schema.json", schema.to_dict())
    told = table_writer(tmp_path, 150, seed=0)(tmp_path, {})
    table = pq.read_table(tmp_path / "part-00000.parquet")
    rows = {name: Cells(table[name].fill_null(0).to_numpy() if name == "end" else table[name].to_numpy(),
                        table[name].is_null().to_numpy(), "") for name in table.column_names}
    assert_whole(rows)
    assert sum(told["histograms"]["city"]) == 150


def test_a_schema_with_constraints_survives_its_json_and_its_declaration() -> None:
    schema = bound(RULES)
    assert Schema.from_dict(schema.to_dict()) == schema
    assert declare(declaration(schema)).constraints == schema.constraints
    assert bound(RULES).digest() != bound(RULES[:1]).digest()
    assert "constraints" not in bound([]).to_dict()


def test_combinations_may_stand_in_a_public_table_beside_the_schema(tmp_path: Path) -> None:
    (tmp_path / "places.csv").write_text("city,land\nRome,Italy\nOslo,Norway\n")
    (tmp_path / "schema.yaml").write_text("columns:\n  city: {categories: [Rome, Oslo, Bergen]}\n"
                                          "  land: {categories: [Italy, Norway]}\nconstraints:\n"
                                          "  - {combinations: places.csv}\n")
    (rule,) = Schema.from_yaml(tmp_path / "schema.yaml").constraints
    assert rule.facts["rows"] == [["Rome", "Italy"], ["Oslo", "Norway"]]


def test_ids_are_a_permutation_of_what_the_column_allows() -> None:
    column = bound([], {"key": {"kind": "integer", "min": 10, "max": 19, "heaps": [], "edges": [10, 19]}}).columns[0]
    assert sorted(ids(column, 0, 10, seed=3).values.tolist()) == list(range(10, 20))
    assert (ids(column, 4, 3, seed=3).values == ids(column, 0, 10, seed=3).values[4:7]).all()
    with pytest.raises(DataError, match="allows 10 values"):
        ids(column, 5, 6, seed=3)


def test_constraints_that_contradict_each_other_are_refused_not_released() -> None:
    schema = bound([{"range": "start", "min": 30}, {"range": "end", "max": 10}, {"order": ["start", "end"]}],
                   {"start": COLUMNS["start"], "end": COLUMNS["end"] | {"missing": False}})
    with pytest.raises(DataError, match="cannot fulfil it"):
        Sampler(model(schema, 0), schema, seed=0).rows(20)


def test_what_is_given_stays_and_the_rest_is_made_to_fit_it() -> None:
    """An end that leaves little room for its start: a late column is not raised, the early one is lowered."""
    schema = bound(RULES)
    for seed in range(4):
        rows = Sampler(model(schema, seed), schema, seed=seed, given={"end": (6, 8), "land": "Norway"}).rows(200)
        assert_whole(rows)
        assert ((numbers(rows["end"]) >= 6) & (numbers(rows["end"]) <= 8)).all()
        assert set(rows["land"].values) == {"Norway"}


def test_partial_rows_are_completed_within_the_constraints() -> None:
    schema, holes = bound(RULES), np.ones(3, dtype=bool)
    known = {"end": Cells(np.array([6, 30, 0]), np.array([False, False, True]), "int64"),
             "city": Cells(np.array(["Oslo", "", "Rome"], dtype=object), np.array([False, True, False]), "string"),
             "price": Cells(np.array([8.5, 0.25, 3.0]), ~holes, "double")}
    table = Table(schema.names, tuple(known.get(name, Cells(np.full(3, "", object), holes, "string"))
                                      for name in schema.names))
    rows = complete(model(schema, 3), schema, table, 40, seed=0)
    assert_whole(rows)
    assert (numbers(rows["end"])[:80] == np.repeat([6, 30], 40)).all()
    assert (rows["city"].values[:40] == "Oslo").all()
    assert (rows["city"].values[80:] == "Rome").all()
    assert rows["price"].values.tolist() == np.repeat([8.5, 0.25, 3.0], 40).tolist()


@pytest.mark.parametrize("given", [{"start": 48}, {"city": "Rome", "land": "Norway"}, {"start": 40, "end": 6}])
def test_a_condition_that_no_row_within_the_constraints_holds_is_refused(given: dict[str, Any]) -> None:
    schema = bound(RULES)
    with pytest.raises(DataError, match="cannot fulfil it"):
        Sampler(model(schema, 0), schema, seed=0, given=given).rows(20)


def test_an_id_that_is_dealt_out_cannot_be_asked_for() -> None:
    schema = bound(RULES)
    with pytest.raises(DataError, match="given key: unique values"):
        Sampler(model(schema, 0), schema, seed=0, given={"key": 7}).rows(20)


def test_missing_cells_are_filled_within_the_constraints_where_what_is_seen_allows_it() -> None:
    schema, rows = bound([{"order": ["start", "end"]}]), 300
    whole = Sampler(model(schema, 4), schema, seed=0).rows(rows)
    holed = dict(whole)
    holed["start"] = holed["start"]._replace(missing=np.arange(rows) % 2 == 0)
    holed["end"] = holed["end"]._replace(values=np.where(np.arange(rows) < 9, 1, holed["end"].values),
                                         missing=np.arange(rows) % 3 == 1)
    table = Table(schema.names, tuple(holed.values()))
    assert broken(schema, holed).any()  # rows whose start and end are both seen, and wrong
    full = Imputer(model(schema, 4), schema, seed=0).draw(table, 0)
    start, end = full.column("start").values, full.column("end").values
    seen = ~table.column("start").missing & ~table.column("end").missing
    assert (start <= end)[~seen][9:].all()
    assert (start[seen] == holed["start"].values[seen]).all()


@pytest.mark.parametrize(("rule", "message"), [
    ({"order": ["start", "stop"]}, "'stop' is not in the schema"),
    ({"orde": ["start", "end"]}, "expected one of range"),
    ({"order": ["start"]}, "at least two columns"), ({"range": "start"}, "needs min or max"),
    ({"formula": "total = price ** 2"}, "expected one column"),
    ({"formula": "total = total + 1"}, "expected one column"),
    ({"formula": "total = __import__('os')"}, "expected one column"), ({"unique": "key", "min": 1}, "no such key"),
    ({"combinations": {"city": ["Rome"], "land": []}}, "equal length")])
def test_a_constraint_that_cannot_be_meant_is_named(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        bound([rule])
