from __future__ import annotations

import datetime as dt
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpvae.data import bins, lake
from dpvae.data.cells import from_axis, to_axis
from dpvae.data.declare import declare
from dpvae.data.schema import OTHER, Column, Schema
from dpvae.data.table import TableCodec, validate
from dpvae.errors import DataError, SchemaError
from dpvae.release import export


def codec_of(**facts) -> TableCodec:
    return TableCodec(Schema((Column("x", **facts),)))


def table_of(values, dtype=None) -> lake.Table:
    return lake.read(pd.DataFrame({"x": pd.Series(values, dtype=dtype)}))


AGE = {"kind": "integer", "dtype": "int64", "nullable": True, "lower": 0, "upper": 99, "heaps": (40.0, 0.0),
           "edges": (-0.5, 9.5, 39.5, 59.5, 99.5)}


def test_heaps_come_first_then_bins_then_missing():
    codes = codec_of(**AGE).encode(table_of([0, 40, 5, 10, 41, 99, None], "Int64"))[:, 0]
    assert codes.tolist() == [1, 0, 2, 3, 4, 5, 6]
    assert codes.dtype == np.int16


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 99) | st.none(), min_size=2, max_size=60), st.integers(0, 2**31))
def test_decoding_lands_in_the_bin_that_was_encoded(values, seed):
    codec = codec_of(**AGE)
    codes = codec.encode(table_of(values, "Int64"))
    back = codec.decode(codes, np.random.default_rng(seed))
    again = codec.encode(lake.Table(("x",), (back["x"],)))
    assert again.tolist() == codes.tolist()
    assert back["x"].values.dtype == np.int64


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6, unique=True), st.integers(0, 8),
       st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=40), st.integers(0, 2**31))
def test_any_bins_and_decimals_give_back_their_own_code(cuts, decimals, values, seed):
    from dpvae.data.schema import with_snapped_edges

    raw = (-1e6, *sorted(cuts), 1e6 + 1)
    column = with_snapped_edges(Column("x", "continuous", "double", nullable=False, lower=-1e6, upper=1e6 + 1,
                                       decimals=decimals, heaps=(), edges=raw))
    if len(set(column.edges)) < len(column.edges):
        return
    codec = TableCodec(Schema((column,)))
    table = table_of(np.round(values, decimals))
    codes = codec.encode(table)
    back = codec.decode(codes, np.random.default_rng(seed))
    assert codec.encode(lake.Table(("x",), (back["x"],))).tolist() == codes.tolist()
    assert np.array_equal(np.round(back["x"].values, decimals), back["x"].values)


def test_a_draw_never_hits_a_heap_and_is_even_in_between():
    codec = codec_of(**AGE)
    drawn = codec.decode(np.full((40_000, 1), 4), np.random.default_rng(0))["x"].values  # 40..59 without 40
    counts = np.bincount(drawn, minlength=100)
    assert counts[40] == 0
    assert counts[:40].sum() == 0
    assert counts[60:].sum() == 0
    assert np.abs(counts[41:60] / 40_000 - 1 / 19).max() < 0.006


def test_draws_follow_the_finer_histogram():
    codec = codec_of(kind="continuous", dtype="double", nullable=False, lower=0, upper=10, decimals=9, heaps=(),
                     edges=(0.0, 4.0, 10.0), within=((0.0, 1.0, 4.0, 9.0, 10.0), (30.0, 10.0, 0.0, 5.0)))
    first, second = (codec.decode(np.full((20_000, 1), c), np.random.default_rng(c))["x"].values for c in (0, 1))
    assert np.mean(first < 1) == pytest.approx(0.75, abs=0.02)
    assert second.min() >= 9
    assert second.max() <= 10


def test_repeated_values_are_the_ends_of_a_bin_and_of_its_heaviest_leaf():
    codec = codec_of(kind="integer", dtype="int64", nullable=False, lower=0, upper=99, heaps=(), repeats=True,
                     edges=(-0.5, 39.5, 99.5),
                     within=((-0.5, 9.5, 19.5, 39.5, 60.5, 99.5), (10.0, 70.0, 20.0, 0.0, 5.0)))
    first, second = (codec.decode(np.full((4_000, 1), c), np.random.default_rng(c))["x"].values for c in (0, 1))
    counts = dict(zip(*np.unique(first, return_counts=True), strict=True))
    assert counts == {0: pytest.approx(200, abs=90), 10: pytest.approx(1600, abs=200),  # 0-9, 10-14 and 15-29, 30-39
                      19: pytest.approx(1800, abs=200), 39: pytest.approx(400, abs=120)}
    assert set(second.tolist()) == {61, 99}
    between = codec.decode(np.zeros((50, 1), dtype=int), np.random.default_rng(0), {"x": (6.0, 8.0)})["x"].values
    assert set(between.tolist()) == {8}  # the nearest that was asked for


def test_repeated_values_stay_in_their_bins():
    codec = codec_of(kind="continuous", dtype="double", nullable=False, lower=0, upper=10, decimals=9, heaps=(),
                     repeats=True, edges=(0.0, 4.0, 10.0), within=((0.0, 1.0, 4.0, 9.0, 10.0), (30.0, 10.0, 0.0, 5.0)))
    codes = np.repeat([[0], [1]], 500, axis=0)
    back = codec.decode(codes, np.random.default_rng(0))["x"]
    assert codec.encode(lake.Table(("x",), (back,))).tolist() == codes.tolist()
    assert len(np.unique(back.values)) <= 8


def test_log_density_integrates_to_one_over_the_grid():
    """Uniform code probabilities, spread over bins by their widths, sum to one over all integer values."""
    codec = codec_of(**{**AGE, "nullable": False})
    codes = codec.encode(table_of(list(range(100))))
    density = np.exp(np.log(1 / 6) + codec.log_density_offset(codes))
    assert density.sum() == pytest.approx(1.0)


def test_offset_adds_over_columns_and_is_zero_for_categories():
    schema = Schema((Column("c", "categorical", "string", nullable=False, categories=("a", "b"), other=False),
                     Column("n", "continuous", "double", nullable=False, lower=0, upper=4, decimals=9, heaps=(),
                            edges=(0.0, 1.0, 4.0))))
    codes = np.array([[0, 0], [1, 1]])
    assert TableCodec(schema).log_density_offset(codes) == pytest.approx([0.0, -np.log(3)])


def test_dates_in_text_come_back_as_valid_dates_in_the_same_format():
    schema = declare({"columns": {"x": {"kind": "datetime", "min": "2011-01-01", "max": "2012-12-31", "missing": True,
                                        "format": "%d/%m/%Y", "edges": ["2011-01-01", "2012-02-01", "2012-12-31"],
                                        "heaps": ["2012-02-29"]}}})
    table = lake.read(pa.table({"x": ["29/02/2012", "01/01/2011", None, "31/12/2012"]}))
    codec = TableCodec(schema.bind(table.header))
    codes = codec.encode(table)
    assert codes[:, 0].tolist() == [0, 1, 3, 2]
    back = codec.decode(np.repeat(codes, 500, axis=0), np.random.default_rng(0))["x"]
    days = pd.to_datetime(pd.Series(back.values[~back.missing]), format="%d/%m/%Y")
    assert days.min() >= pd.Timestamp("2011-01-01")
    assert days.max() <= pd.Timestamp("2012-12-31")
    assert back.dtype == "string"


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_timestamps_keep_their_type_and_their_grain(unit):
    import pyarrow as pa

    column = pa.chunked_array([pa.array(pd.date_range("2020-01-01", periods=48, freq="h")).cast(pa.timestamp(unit))])
    table = lake.read(pa.table({"x": column}))
    start = pd.Timestamp("2020-01-01").timestamp()
    codec = codec_of(kind="datetime", dtype=f"timestamp[{unit}]", nullable=False, unit="m", heaps=(), lower=start,
                     upper=start + 47 * 3600, edges=(start - 30, start + 86_370, start + 47 * 3600 + 30))
    back = lake.to_arrow(codec.decode(codec.encode(table), np.random.default_rng(0)))
    assert back.schema == pa.schema([("x", pa.timestamp(unit))])
    assert all(t.second == 0 and t.microsecond == 0 for t in back["x"].to_pandas())


def test_an_unseen_value_of_a_measured_column_becomes_other():
    codec = codec_of(kind="categorical", dtype="string", nullable=True, categories=("a", "b"), other=True)
    codes = codec.encode(table_of(["a", "b", "zzz", None]))
    assert codes[:, 0].tolist() == [0, 1, 2, 3]
    assert codec.decode(codes, np.random.default_rng(0))["x"].values.tolist()[:3] == ["a", "b", OTHER]


def test_an_unseen_value_of_a_measured_number_is_clipped():
    codec = codec_of(kind="integer", dtype="int64", nullable=False, lower=0, upper=9, heaps=(), edges=(-0.5, 4.5, 9.5))
    assert codec.encode(table_of([-100, 10**12]))[:, 0].tolist() == [0, 1]


DECLARED = {"n": {"kind": "integer", "min": 0, "max": 9, "edges": [0, 5, 9], "heaps": []},
            "c": {"categories": ["a", "b"]}, "f": {"kind": "continuous", "min": 0, "max": 1, "edges": [0, 1],
                                                   "heaps": [], "decimals": 2}}


def declared(n=(1, 2), c=("a", "b"), f=(0.25, 0.5)) -> tuple[lake.Table, Schema]:
    table = lake.read(pa.table({"n": list(n), "c": list(c), "f": list(f)}))
    return table, declare({"columns": DECLARED}).bind(table.header)


@pytest.mark.parametrize(("cells", "message"), [
    ({"n": (1, 10)}, r"column='n': 10 in row 2 .*expected integer in 0 \.\. 9; .*outside=clip or data.outside=missing"),
    ({"n": (None, 1)}, "column='n': 1 cells are missing.*missing: true"),
    ({"c": ("a", "q")}, "column='c': 'q' in row 2 .*expected one of its declared categories.*outside=missing"),
    ({"f": (0.5, float("inf"))}, "column='f': inf in row 2"),
    ({"f": (-0.01, 0.5)}, r"column='f': -0.01 in row 1"),
])
def test_a_cell_outside_its_declared_domain_is_refused_in_one_line(cells, message):
    table, schema = declared(**cells)
    for refuse in (lambda: validate(table, schema), lambda: TableCodec(schema).encode(table)):
        with pytest.raises(DataError, match=message) as caught:
            refuse()
        assert "\n" not in str(caught.value)


def test_outside_values_are_clipped_or_made_missing_on_request():
    table, schema = declared(n=(-5, 12), f=(float("inf"), 0.5))
    codes = TableCodec(schema).encode(table, "clip")
    assert codes[:, 0].tolist() == [0, 1]
    assert codes[:, 2].tolist() == [0, 0]
    with pytest.raises(SchemaError, match="outside=missing needs a code"):
        TableCodec(schema).encode(table, "missing")
    wider = schema.with_missing()
    codes = TableCodec(wider).encode(table, "missing")
    assert codes[:, 0].tolist() == [2, 2]
    assert codes[:, 2].tolist() == [1, 0]


def test_inf_is_refused_in_an_undeclared_column_too():
    table = lake.read(pa.table({"f": [0.5, float("inf")]}))
    with pytest.raises(DataError, match="column='f': inf in row 2"):
        validate(table, Schema.undeclared(table.header))
    for untyped in ({"f": [0.5, float("inf")]}, pd.DataFrame({"f": [0.5, float("-inf")]})):
        with pytest.raises(DataError, match="column='f': inf in row 2"):
            lake.read(untyped)


def test_text_in_a_declared_number_of_a_csv_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("n\n1\nmany\n")
    table = lake.read(path)
    schema = declare({"columns": {"n": {"kind": "integer", "min": 0, "max": 9}}}).bind(table.header)
    with pytest.raises(DataError, match=r"column='n': 'many' in row 2 .*expected integer cells"):
        validate(table, schema)


def test_declared_csv_columns_are_written_in_their_natural_type(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("n,c,k,b\n1,x,0,true\n2,y,1,false\n")
    table = lake.read(path)
    schema = declare({"columns": {"n": {"kind": "integer", "edges": [0, 9], "heaps": []},
                                  "c": {"categories": ["x", "y"]}, "k": {"categories": [0, 1]},
                                  "b": {"kind": "boolean", "spelling": ["false", "true"]}}}).bind(table.header)
    codec = TableCodec(schema)
    back = lake.to_arrow(codec.decode(codec.encode(table), np.random.default_rng(0)))
    assert [str(t) for t in back.schema.types] == ["int64", "string", "int64", "bool"]
    assert back["c"].to_pylist() == ["x", "y"]
    assert back["k"].to_pylist() == [0, 1]
    assert back["b"].to_pylist() == [True, False]


@pytest.mark.parametrize(("words", "natural", "cells"), [
    (("no", "yes"), "string", ["no", "yes", "no"]), (("0", "1"), "int64", [0, 1, 0]),
    (("False", "True"), "bool", [False, True, False]), (("nein", "ja"), "string", ["nein", "ja", "nein"])])
def test_booleans_come_back_in_the_words_of_their_source(words, natural, cells, tmp_path):
    source = "b\n" + "\n".join(words[i] for i in (0, 1, 0)) + "\n"
    (tmp_path / "t.csv").write_text(source)
    table = lake.read(tmp_path / "t.csv")
    schema = declare({"columns": {"b": {"kind": "boolean", "spelling": list(words)}}}).bind(table.header)
    codec = TableCodec(schema)
    codes = codec.encode(table)
    assert codes.ravel().tolist() == [0, 1, 0]
    assert schema.columns[0].labels == words
    back = codec.decode(codes, np.random.default_rng(0))
    assert str(lake.to_arrow(back)["b"].type) == natural
    assert lake.to_arrow(back)["b"].to_pylist() == cells
    export.write([back], tmp_path / "back.csv", format="csv", table="t", schema=schema)
    assert (tmp_path / "back.csv").read_text().replace('"', "") == source


def test_a_declared_spelling_admits_no_other_words(tmp_path):
    (tmp_path / "t.csv").write_text("b\nja\nnein\nyes\n")
    table = lake.read(tmp_path / "t.csv")
    schema = declare({"columns": {"b": {"kind": "boolean", "spelling": ["nein", "ja"]}}}).bind(table.header)
    with pytest.raises(DataError, match="'yes' in row 3"):
        validate(table, schema)


@pytest.mark.parametrize("kind", ["time32[s]", "time32[ms]", "time64[us]", "time64[ns]"])
def test_times_of_day_keep_their_type_and_stay_within_the_day(kind):
    times = [dt.time(0, 0), dt.time(8, 30), dt.time(23, 59)] * 5
    table = lake.read(pa.table({"t": pa.array(times, lake.arrow_type(kind))}))
    column = Schema.undeclared(table.header).columns[0]
    assert (column.kind, column.open) == ("time", ("heaps", "edges", "unit", "nullable"))
    finest = [] if kind == "time32[s]" else [("us", 86400 - 1e-6)]
    for unit, last in (("m", 86340.0), ("s", 86399.0), *finest):
        known = replace(column, unit=unit, heaps=(0.0,), nullable=False)
        assert (known.lower, known.upper) == (0.0, last)
        edges = bins.leaves(known, None, None)[[0, 9, -1]]
        codec = TableCodec(Schema((replace(known, edges=tuple(map(float, edges))),)))
        codes = np.repeat([0, 1, 2], 400)[:, None]
        drawn = lake.to_arrow(codec.decode(codes, np.random.default_rng(0)))["t"]
        assert str(drawn.type) == kind
        back = lake.read(pa.table({"t": drawn}))
        assert (codec.encode(back) == codes).all()
        if unit == "m":
            assert all(t.second == 0 for t in drawn.to_pylist())


def test_times_in_text_are_read_and_written_in_their_format():
    cells = lake.Cells(np.array(["08:30", "23:59", "noon"], dtype=object), np.zeros(3, bool), "csv")
    schema = declare({"columns": {"t": {"kind": "time", "format": "%H:%M", "max": "23:59"}}})
    column = schema.bind([("t", "csv")]).columns[0]
    axis = to_axis(column, cells)
    assert axis[:2].tolist() == [30600.0, 86340.0]
    assert np.isnan(axis[2])
    assert from_axis(column, axis[:2] + 25.0, np.zeros(2, bool)).values.tolist() == ["08:30", "23:59"]
    assert column.text(30600.0) == "08:30"


def test_codes_that_no_column_has_are_refused():
    codec = codec_of(**AGE)
    for codes in (np.array([[7]]), np.array([[-1]]), np.array([[0, 0]])):
        with pytest.raises(DataError, match="codes of shape"):
            codec.decode(codes, np.random.default_rng(0))


def test_a_schema_with_open_questions_has_no_codec():
    with pytest.raises(SchemaError, match="run the survey first"):
        TableCodec(Schema.undeclared((("a", "int64"),)))


TEXTS = st.lists(st.sampled_from(["a", "b", " a", "q", "", "12", "7.0", "many", "true", "1"]), min_size=2, max_size=40)


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.sampled_from(["csv", "string"]), st.sampled_from([
    {"kind": "categorical", "categories": ("a", "b"), "nullable": True, "other": True},
    {"kind": "categorical", "categories": ("a", "b"), "nullable": False, "other": False},
    {"kind": "boolean", "nullable": True, "spelling": ("no", "yes")}, {**AGE, "dtype": ""}]))
def test_the_code_of_a_cell_does_not_depend_on_the_cells_beside_it(values, dtype, facts):
    codec = codec_of(**{**facts, "dtype": dtype})
    cells = lake.Cells(np.array(values, dtype=object), np.array([v == "" for v in values]), dtype)
    table = lake.Table(("x",), (cells,))
    alone = [int(codec.encode(table.take(slice(i, i + 1)))[0, 0]) for i in range(len(values))]
    assert codec.encode(table)[:, 0].tolist() == alone


def test_an_error_names_the_first_such_row_and_how_many_there_are():
    declared = declare({"columns": {"c": {"categories": ["x", "y"], "missing": False}}})
    codec = TableCodec(declared.bind([("c", "string")]))
    cells = lake.Cells(np.array(["x", "y", "q", "x", "q"], dtype=object), np.zeros(5, dtype=bool), "string")
    with pytest.raises(DataError, match=r"'q' in row 3 \(2 such cells\)"):
        codec.encode(lake.Table(("c",), (cells,)))
