from __future__ import annotations

import hashlib

import pandas as pd
import pytest
import shared_tables

from dpvae.data import builtin, lake
from dpvae.data.schema import Schema
from dpvae.data.table import validate
from dpvae.errors import DataError


def test_files_match_their_checksums():
    lines = (builtin.FOLDER / "SHA256SUMS").read_text().splitlines()
    assert {line.split()[1] for line in lines} == {"adult.parquet", "adult.yaml"}
    for line in lines:
        digest, name = line.split()
        assert hashlib.sha256((builtin.FOLDER / name).read_bytes()).hexdigest() == digest


def test_the_licence_names_its_source_and_terms():
    text = (builtin.FOLDER / "LICENSE").read_text()
    assert "CC BY 4.0" in text
    assert "archive.ics.uci.edu" in text


@pytest.mark.parametrize("name", builtin.names())
def test_a_builtin_table_fits_its_public_schema(name):
    table = lake.read(builtin.path(name))
    schema = Schema.from_yaml(builtin.schema(name)).bind(table.header)
    validate(table, schema)
    assert schema.target in schema.names


def test_adult_has_the_rows_that_uci_publishes():
    table = lake.read(builtin.path("adult"))
    assert (table.rows, len(table.names)) == (48_842, 15)
    assert {dtype for _, dtype in table.header} == {"int64", "string"}
    assert (table.column("income").values == ">50K").sum() == 11_687


def test_adult_is_the_table_of_the_bars():
    parts = [shared_tables.table(f"adult/{part}.csv") for part in ("train", "test")]
    expected = pd.concat(pd.read_csv(part, keep_default_na=False) for part in parts)
    ours = lake.to_pandas(lake.read(builtin.path("adult")))
    assert list(ours.columns) == list(expected.columns)
    rows = [sorted(map(tuple, frame.astype(str).to_numpy().tolist())) for frame in (ours, expected)]
    assert rows[0] == rows[1]


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(DataError, match="did you mean 'adult'"):
        builtin.path("adlut")
