from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpvae.data import lake
from dpvae.errors import DataError

EVERY_TYPE = pa.table({
    "int8": pa.array([1, None, -3], pa.int8()),
    "int64": pa.array([2**53 + 1, 2, None], pa.int64()),
    "uint16": pa.array([1, 2, 65535], pa.uint16()),
    "float": pa.array([0.5, None, 1.5], pa.float32()),
    "double": pa.array([0.1, float("nan"), None], pa.float64()),
    "decimal": pa.array([Decimal("1.25"), None, Decimal("-3.50")], pa.decimal128(10, 2)),
    "string": pa.array(["a", None, ""], pa.string()),
    "large": pa.array(["a", "b", None], pa.large_string()),
    "dictionary": pa.DictionaryArray.from_arrays(pa.array([0, None, 1], pa.int8()), pa.array(["x", "y"])),
    "bool": pa.array([True, None, False]),
    "date32": pa.array([dt.date(2020, 1, 2), None, dt.date(1960, 1, 1)], pa.date32()),
    "date64": pa.array([dt.date(2020, 1, 2), None, dt.date(1960, 1, 1)], pa.date64()),
    "us": pa.array([dt.datetime(2020, 1, 2, 3, 4, 5, 6), None, dt.datetime(1960, 1, 1)], pa.timestamp("us")),
    "ns_utc": pa.array([1, None, -1], pa.timestamp("ns", tz="UTC")),
    "null": pa.nulls(3),
})


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "table.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_every_supported_type_comes_back_as_it_went_in():
    back = lake.to_arrow(lake.read(EVERY_TYPE))
    for name in EVERY_TYPE.column_names:
        before, after = EVERY_TYPE[name], back[name]
        assert before.type == after.type, name
        expected = [None if v != v else v for v in before.to_pylist()]
        assert after.to_pylist() == expected, name


def test_a_parquet_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    lake.write_parquet(lake.read(EVERY_TYPE), path)
    assert pq.read_table(path).num_rows == 3
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]

    def full(table, where, **_):
        Path(where).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lake.pq, "write_table", full)
    with pytest.raises(OSError, match="No space"):
        lake.write_parquet(lake.read(EVERY_TYPE), tmp_path / "u.parquet")
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]


def test_csv_cells_stay_text_and_only_empty_ones_are_missing(tmp_path):
    table = lake.read(write(tmp_path, 'age, job ,note\n39,?,"a, b"\n,NA,""\n007, x,"line\nbreak"\n'))
    assert table.header == (("age", "csv"), ("job", "csv"), ("note", "csv"))
    assert table.column("age").values.tolist() == ["39", "", "007"]
    assert table.column("age").missing.tolist() == [False, True, False]
    assert table.column("job").values.tolist() == ["?", "NA", "x"]
    assert table.column("note").values.tolist() == ["a, b", "", "line\nbreak"]
    assert table.column("note").missing.tolist() == [False, True, False]


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_the_separator_is_read_from_the_header_line(tmp_path, separator):
    table = lake.read(write(tmp_path, "a,b\n1,2\n3,4\n".replace(",", separator)))
    assert table.names == ("a", "b")
    assert table.column("b").values.tolist() == ["2", "4"]


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    assert lake.read(write(tmp_path, b"\xef\xbb\xbfa,b\n1,2\n3,4\n")).names == ("a", "b")


def test_header_agrees_with_the_table_for_every_source(tmp_path):
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    frame.to_parquet(tmp_path / "t.parquet")
    for source in (frame, EVERY_TYPE, tmp_path / "t.parquet", write(tmp_path, "a,b\n1,2\n3,4\n")):
        assert lake.header(source) == lake.read(source).header


def test_dataframes_records_and_arrays_are_tables():
    frame = pd.DataFrame({"a": [1, 2], "c": pd.Categorical(["u", None])})
    assert lake.header(frame) == (("a", "csv"), ("c", "dictionary<values=large_string, indices=int32, ordered=0>"))
    assert lake.to_pandas(lake.read(frame)).dtypes.astype(str).tolist() == ["str", "category"]
    assert lake.read(pa.RecordBatch.from_pydict({"a": [1, 2]})).names == ("a",)
    assert lake.read(np.array([[1.0, np.nan], [2.0, 3.0]])).column("x1").missing.tolist() == [True, False]

    class Stream:
        def __arrow_c_stream__(self, requested_schema=None):
            return EVERY_TYPE.select(["int8", "string"]).__arrow_c_stream__(requested_schema)

    assert lake.read(Stream()).names == ("int8", "string")


@pytest.mark.parametrize(("text", "message"), [
    ("", "file is empty"),
    ("a,b\n", "rows=0: the table has no row"),
    ("a,b\n1,2\n", "rows=1: the table has one row"),
    ("a,a\n1,2\n3,4\n", "column='a': appears twice"),
    (",a\n1,2\n3,4\n", r"column 1: has no name.*index=False"),
    ("a,b\n1,2\n3\n4,5\n", r"line 3 has 1 cells; expected 2"),
    ("a,b\n1,2\n3,4,5\n4,5\n", r"line 3 has 3 cells; expected 2"),
    (b"a,b\n1,2\n\xff\xfe,4\n", "not UTF-8"),
])
def test_a_bad_csv_is_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message) as caught:
        lake.read(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_broken_parquet_is_refused_in_one_line(tmp_path):
    path = tmp_path / "t.parquet"
    lake.write_parquet({"a": lake.Cells(np.arange(10_000), np.zeros(10_000, bool), "int64")}, path)
    whole = path.read_bytes()
    spoilt = bytearray(whole)
    spoilt[20:400] = bytes(380)
    for content in (b"PAR1nonsense", whole[:len(whole) // 2], whole[:-1], bytes(spoilt)):
        path.write_bytes(content)
        with pytest.raises(DataError, match="not a readable Parquet file") as caught:
            lake.read(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("source", "message"), [
    ("nowhere.csv", "no such file"),
    (".", "is a folder"),
    (__file__, "unknown ending '.py'"),
    (pa.table({"a": [[1], [2]]}), "column='a': type list<item: int64>.* not supported"),
    (pa.table({}), "columns=0"),
    (pd.DataFrame(), "columns=0"),
    (pd.DataFrame([[1, 2], [3, 4]], columns=["a", "a"]), "twice|distinct|Duplicate"),
    ({"a": [1, [2]]}, "column='a': holds list; expected numbers, text"),
    (pd.DataFrame({"a": [1.0, np.inf]}), "column='a': inf in row 2"),
    (7, "table=int: expected a path"),
])
def test_what_is_no_table_is_refused_in_one_line(source, message):
    with pytest.raises(DataError, match=message) as caught:
        lake.read(source)
    assert "\n" not in str(caught.value)


def test_an_unknown_column_is_answered_with_the_nearest_name():
    with pytest.raises(DataError, match="did you mean 'int64'"):
        lake.read(EVERY_TYPE).column("int46")


def test_equal_texts_are_one_string_and_missing_cells_are_told(tmp_path):
    for cells in (lake.read({"x": ["long text", None, "long text", ""]}).cells[0],
                  lake.read(write(tmp_path, "x,y\nlong text,1\n,2\nlong text,3\n ,4\n")).cells[0]):
        assert cells.values[0] is cells.values[2]
        assert cells.values.tolist() == ["long text", "", "long text", ""]
    assert lake.read({"x": pa.array(["a", None, ""])}).cells[0].missing.tolist() == [False, True, False]
    assert lake.read({"x": ["a", None, ""]}).cells[0].missing.tolist() == [False, True, True]  # as in a file of text
    assert cells.missing.tolist() == [False, True, False, True]
    assert lake.read({"x": pa.array([None, None], pa.string())}).cells[0].missing.all()


@pytest.mark.parametrize("name", EVERY_TYPE.column_names)
def test_distinct_cells_by_their_places_are_the_column(name):
    cells = lake.read(EVERY_TYPE.select([name])).cells[0]
    few, index = lake.distinct(cells)
    assert few.missing[index].tolist() == cells.missing.tolist()
    assert few.values[index][~cells.missing].tolist() == cells.values[~cells.missing].tolist()
    assert (few.values.dtype, few.dtype) == (cells.values.dtype, cells.dtype)
