"""Fidelity: distances with a closed form, the outside judge's own numbers, and what each convention is for."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas
import pytest
import shared_tables
from hypothesis import given, settings
from hypothesis import strategies as st

from dpvae.data import lake
from dpvae.data.lake import Cells
from dpvae.data.schema import Column, Schema
from dpvae.errors import ConfigError, DataError
from dpvae.evaluate.fidelity import (
    Declared,
    Quantiles,
    as_words,
    distances,
    fidelity,
    is_number,
    rank_correlation_errors,
    spearman,
)

FIGURES = ("tvd_1way", "tvd_2way", "tvd_2way_with_target", "tvd_1way_max", "tvd_2way_max", "floor_1way", "floor_2way")


def test_a_table_is_at_distance_zero_from_itself_in_any_row_order() -> None:
    rng = np.random.default_rng(0)
    table = lake.read({"x": rng.normal(size=300), "c": rng.choice(["a", "b"], 300), "k": rng.integers(0, 4, 300)})
    found = fidelity(table, table.take(rng.permutation(300)), binning=Quantiles(table, 20), target="c")
    assert (found.tvd_1way, found.tvd_2way_max, found.rank_correlation_error_max) == (0.0, 0.0, 0.0)


def test_distances_of_known_shares_are_what_they_are_by_hand() -> None:
    real = lake.read({"a": ["x"] * 6 + ["y"] * 4, "b": ["u", "v"] * 5})
    synth = lake.read({"a": ["x"] * 9 + ["y"], "b": ["u"] * 10})
    found = distances(Quantiles(real, 20), real, synth)
    assert found.one_way == pytest.approx({"a": 0.3, "b": 0.5})
    assert found.two_way == pytest.approx({("a", "b"): 0.6})  # real .3 .3 .2 .2, synthetic .9 0 .1 0
    assert found.with_target("b") == pytest.approx(0.6)
    assert math.isnan(found.with_target("neither"))


def test_independent_columns_with_right_shares_are_told_apart_by_pairs_alone() -> None:
    real = lake.read({"a": ["x", "y"] * 50, "b": ["x", "y"] * 50})
    synth = lake.read({"a": ["x", "x", "y", "y"] * 25, "b": ["x", "y"] * 50})
    found = distances(Quantiles(real, 20), real, synth)
    assert found.one_way == {"a": 0.0, "b": 0.0}
    assert found.two_way == {("a", "b"): 0.5}


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=40), st.lists(st.integers(0, 5), min_size=2, max_size=40))
def test_distances_lie_between_zero_and_one_and_do_not_care_who_is_who(a: list[int], b: list[int]) -> None:
    both = lake.read({"k": a + b})
    real, synth = lake.read({"k": a}), lake.read({"k": b})
    there, back = (distances(Quantiles(both, 20), *pair).one_way["k"] for pair in ((real, synth), (synth, real)))
    assert 0 <= there <= 1
    assert there == pytest.approx(back)


def test_a_heap_gets_a_bin_of_its_own_so_a_spread_heap_is_seen() -> None:
    rng = np.random.default_rng(1)
    gain = np.where(rng.random(4000) < 0.9, 0.0, rng.uniform(1, 100, 4000))
    real = lake.read({"gain": gain, "k": np.zeros(4000)})
    spread = lake.read({"gain": np.where(gain == 0, 1e-6, gain), "k": np.zeros(4000)})
    found = distances(Quantiles(real, 20), real, spread).one_way["gain"]
    assert found == pytest.approx(np.mean(gain == 0))


def test_missing_cells_and_unseen_categories_count_as_values() -> None:
    real = lake.read({"c": ["a", "a", None, None], "x": [1, 2, 3, 4]})
    assert distances(Quantiles(real, 20), real, lake.read({"c": ["a"] * 4, "x": [1, 2, 3, 4]})).one_way["c"] == 0.5
    assert distances(Quantiles(real, 20), real, lake.read({"c": ["z"] * 4, "x": [1, 2, 3, 9]})).one_way == {
        "c": 1.0, "x": 0.25}


def test_one_value_has_one_spelling_whatever_file_it_came_from(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("n,f,b,w\n1,0.5,True, a\n2,2.0,false,b\n3,,true,3\n")
    text = lake.read(tmp_path / "t.csv")
    typed = lake.read({"n": [1.0, 2.0, 3.0], "f": [0.5, 2.0, None], "b": [True, False, True], "w": ["a", "b", "3.0"]})
    found = distances(Quantiles(text, 20), text, typed)
    assert set(found.one_way.values()) == {0.0}
    assert [is_number(text.column(name)) for name in "nfbw"] == [True, True, False, False]
    assert as_words(Cells(np.array(["1_0"], object), np.zeros(1, bool), "csv")).tolist() == ["1_0"]


def test_the_sampling_floor_shrinks_with_the_rows_a_generator_made() -> None:
    rng = np.random.default_rng(2)

    def rows(n: int) -> lake.Table:
        return lake.read({"a": rng.integers(0, 8, n), "b": rng.integers(0, 8, n)})

    real, test = rows(4000), rows(1000)
    perfect = [fidelity(real, rows(4000), binning=Quantiles(real, 20), test=test) for _ in range(6)]
    assert perfect[0].floor_2way == pytest.approx(perfect[0].sampling_floor_2way * math.sqrt(5 / 2))
    assert np.mean([found.tvd_2way for found in perfect]) == pytest.approx(perfect[0].sampling_floor_2way, rel=0.15)
    assert math.isnan(fidelity(real, test, binning=Quantiles(real, 20)).floor_1way)


def test_public_bins_of_a_schema_are_the_codes_that_the_model_saw() -> None:
    edges = (-0.5, 49.5, 99.5)
    schema = Schema((Column("age", "integer", "int64", False, lower=0, upper=99, heaps=(40.0,), edges=edges),
                     Column("c", "categorical", "string", False, categories=("a", "b"), other=False)))
    real, synth = (lake.read({"age": ages, "c": ["a", "b"] * 2}) for ages in ([40, 40, 10, 60], [40, 11, 20, 99]))
    found = distances(Declared(schema), real, synth)
    assert found.one_way == {"age": 0.25, "c": 0.0}


def test_rank_correlations_see_what_bins_cannot_and_skip_missing_cells() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=500)
    real = lake.read({"x": x, "y": np.exp(x), "c": ["a"] * 500})
    torn = lake.read({"x": x, "y": np.exp(rng.permutation(x)), "c": ["a"] * 500})
    (error,) = rank_correlation_errors(real, torn).values()
    assert error == pytest.approx(1 - spearman(x, np.exp(torn.column("y").values)), abs=1e-12)
    assert 0.85 < error < 1.15
    gaps = np.where(np.arange(500) % 2, x, np.nan)
    assert spearman(gaps, -x) == pytest.approx(-1)
    assert spearman(np.ones(9), np.arange(9.0)) == 0.0


def test_rank_correlation_is_that_of_pandas() -> None:
    rng = np.random.default_rng(4)
    frame = pandas.DataFrame({"a": rng.integers(0, 9, 200).astype(float), "b": rng.normal(size=200)})
    frame.loc[::7, "a"] = np.nan
    assert spearman(*(frame[name].to_numpy() for name in "ab")) == pytest.approx(frame.corr("spearman").iloc[0, 1])


def test_a_column_that_is_not_there_and_bins_that_are_none_are_refused() -> None:
    real = lake.read({"a": [1, 2], "b": [3, 4]})
    with pytest.raises(DataError, match="column='b'"):
        distances(Quantiles(real, 20), real, lake.read({"a": [1, 2]}))
    with pytest.raises(ConfigError, match="bins=1"):
        Quantiles(real, 1)


@pytest.mark.parametrize(("name", "target"), [("adult", "income"), ("bank_marketing", "y")])
def test_the_outside_judge_says_the_same_of_real_tables(name: str, target: str, tmp_path: Path) -> None:
    judge = shared_tables.judge()
    train, test = (judge.read_table(shared_tables.table(f"{name}/{part}.csv")) for part in ("train", "test"))
    synth = train.iloc[:8000].apply(lambda column: column.sample(frac=1, random_state=5).to_numpy())
    synth.to_parquet(tmp_path / "synth.parquet", index=False)
    disc = judge.Discretiser(train, 20)
    wanted = judge.marginal_distances(disc, train, synth)
    floor = judge.marginal_distances(disc, train, test)
    real, other = (lake.read(shared_tables.table(f"{name}/{part}.csv")) for part in ("train", "test"))
    made = lake.read(tmp_path / "synth.parquet")
    found = fidelity(real, made, binning=Quantiles(real, 20), test=other, target=target)
    expected = {
        "tvd_1way": np.mean(list(wanted[0].values())), "tvd_2way": np.mean(list(wanted[1].values())),
        "tvd_2way_with_target": np.mean([v for k, v in wanted[1].items() if target in k]),
        "tvd_1way_max": max(wanted[0].values()), "tvd_2way_max": max(wanted[1].values()),
        "floor_1way": np.mean(list(floor[0].values())), "floor_2way": np.mean(list(floor[1].values()))}
    assert {figure: getattr(found, figure) for figure in FIGURES} == pytest.approx(expected, abs=1e-6)
    assert found.per_column == pytest.approx(wanted[0], abs=1e-6)
