"""Whole tables as users have them: encode, decode, and what the judge says of the columns one by one.

The noise comes from one fixed key, so that a run repeats. The limits under noise were set from 20 to 30 runs with
random keys, not from this key: worst column 0.020 (adult, declared), 0.041 (adult, nothing declared, native_country
0.066), 0.049 (bank_marketing); airbnb cells outside the real range of a column at most 0.75 %, in a third of the runs.
"""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import shared_tables

from dpvae.data import builtin, lake
from dpvae.data.schema import Schema
from dpvae.data.survey import STEPS, survey
from dpvae.data.table import TableCodec, validate
from dpvae.privacy.noise import SecretKey

QUIET = dict.fromkeys(STEPS, 0.01)
USUAL = {"rows": 60.0, "kinds": 47.0, "missing": 33.0, "values": 25.0, "rare": 14.0, "bounds": 30.0,
         "bins": 17.0}  # epsilon near 1

KEY = SecretKey.from_bytes(bytes(32))


def there_and_back(path: Path, noise: dict[str, float], out: Path, schema: Path | None = None) -> tuple[Schema, Path]:
    table = lake.read(path)
    asked = Schema.from_yaml(schema).bind(table.header) if schema else Schema.undeclared(table.header)
    validate(table, asked)
    found = survey(table, asked, noise=noise, delta=1e-6, key=KEY, rows=None).schema
    codec = TableCodec(found)
    lake.write_parquet(codec.decode(codec.encode(table), np.random.default_rng(0)), out / "out.parquet")
    return found, out / "out.parquet"


@functools.cache
def judged(real: Path) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """The judge, its bins for the ``real`` table, and the marginals it finds there."""
    judge = shared_tables.judge()
    frame = judge.read_table(real)
    cut = judge.Discretiser(frame, 20)
    return judge, cut, {n: judge.histogram(cut.codes(frame, n), cut.size(n)) for n in frame.columns}


def one_way(real: Path, synthetic: Path) -> dict[str, float]:
    judge, cut, marginals = judged(real)
    frame = judge.read_table(synthetic)
    return {n: judge.tvd(m, judge.histogram(cut.codes(frame, n), cut.size(n))) for n, m in marginals.items()}


@pytest.mark.parametrize("declared", [True, False])
def test_adult_comes_back_with_its_one_way_marginals(tmp_path, declared):
    path = shared_tables.table("adult/train.csv")
    schema = builtin.schema("adult") if declared else None
    _, out = there_and_back(path, QUIET, tmp_path, schema)
    distances = one_way(path, out)
    assert max(distances.values()) <= 0.01


def test_bank_marketing_comes_back_with_its_one_way_marginals(tmp_path):
    path = shared_tables.table("bank_marketing/train.csv")
    found, out = there_and_back(path, QUIET, tmp_path)
    assert max(one_way(path, out).values()) <= 0.01
    assert -1.0 in found.column("pdays").heaps


def test_with_the_noise_of_epsilon_one_adult_stays_close(tmp_path):
    path = shared_tables.table("adult/train.csv")
    _, out = there_and_back(path, USUAL, tmp_path, builtin.schema("adult"))
    assert max(one_way(path, out).values()) <= 0.04
    _, out = there_and_back(path, USUAL, tmp_path)
    distances = one_way(path, out)
    assert distances.pop("native_country") <= 0.1  # 40 countries hold fewer rows than the threshold
    assert max(distances.values()) <= 0.06


def test_bank_marketing_stays_close_under_noise(tmp_path):
    path = shared_tables.table("bank_marketing/train.csv")
    _, out = there_and_back(path, USUAL, tmp_path)
    assert max(one_way(path, out).values()) <= 0.06


@pytest.mark.parametrize("noise", [QUIET, USUAL], ids=["quiet", "usual"])
def test_airbnb_comes_back_whole(tmp_path, noise):
    path = shared_tables.table("airbnb/airbnb.parquet")
    found, out = there_and_back(path, noise, tmp_path)
    assert lake.header(out) == lake.header(path)
    real, back = pd.read_parquet(path), pd.read_parquet(out)
    assert (real.isna().mean() - back.isna().mean()).abs().max() <= 0.02
    dates = pd.to_datetime(back["last_review"].dropna(), format="%Y-%m-%d")  # raises unless every date is one
    assert found.column("last_review").kind == "datetime"
    assert found.column("neighbourhood").cardinality <= 256
    stray = [~dates.between("2010-01-01", "2020-01-01"), ~back["latitude"].between(40.3, 41.1),
             ~back["longitude"].between(-74.6, -73.4)]
    assert max(s.mean() for s in stray) <= (0.0 if noise is QUIET else 0.02)
    assert np.array_equal(back["latitude"].round(5), back["latitude"])


@pytest.mark.parametrize("name", ["acs_income_2018", "cdnow_purchases"])
def test_other_tables_keep_their_types_and_missing_shares(tmp_path, name):
    path = shared_tables.table(f"{name}/{name}.parquet")
    _, out = there_and_back(path, USUAL, tmp_path)
    assert lake.header(out) == lake.header(path)
    real, back = pd.read_parquet(path), pd.read_parquet(out)
    assert (real.isna().mean() - back.isna().mean()).abs().max() <= 0.02


def test_forty_thousand_rows_are_coded_in_half_a_second():
    table = lake.read(builtin.path("adult"))
    schema = Schema.from_yaml(builtin.schema("adult")).bind(table.header)
    codec = TableCodec(survey(table, schema, noise=QUIET, delta=1e-6, key=KEY, rows=48_842).schema)
    begun = time.process_time()
    codes = codec.encode(table)
    encoded = time.process_time()
    codec.decode(codes, np.random.default_rng(0))
    assert encoded - begun < 0.5
    assert time.process_time() - encoded < 0.5
