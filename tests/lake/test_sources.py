"""One form of names for every table: what is read from it, what is written to it, and how a slip is told."""

from __future__ import annotations

import datetime as dt
import json
import sqlite3
from decimal import Decimal
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lakehouse import people, typed
from pyiceberg.types import StringType
from servers import Cluster

from dpvae.data import lake
from dpvae.data.lake import iceberg, register
from dpvae.data.lake.write import storable
from dpvae.errors import ConfigError, DataError

TYPES = pa.table({
    "small": pa.array([1, None, -3], pa.int16()), "big": pa.array([2**40, 2, None], pa.int64()),
    "price": pa.array([Decimal("1.25"), None, Decimal("-3.50")], pa.decimal128(10, 2)),
    "share": pa.array([0.5, None, 1.5], pa.float64()), "name": pa.array(["a", None, "it's"], pa.string()),
    "kind": pa.array(["x", "y", None]).dictionary_encode(), "seen": pa.array([True, None, False]),
    "day": pa.array([dt.date(2020, 1, 2), None, dt.date(1960, 1, 1)], pa.date32()),
    "at": pa.array([dt.datetime(2020, 1, 2, 3, 4, 5, 6), None, dt.datetime(1960, 1, 1)], pa.timestamp("us")),
})


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    iceberg.init("warehouse")
    pq.write_table(TYPES, "types.parquet")
    return tmp_path


@pytest.mark.parametrize("place", ["iceberg:demo.types", "iceberg:default.demo.types", "delta:lake/types",
                                   "duckdb:dev.db?table=types", "duckdb:dev.db"])
def test_a_table_comes_back_from_every_place_as_it_went_there(here: Path, place: str) -> None:
    assert typed(f"lake copy types.parquet to={place}") == 0
    back = lake.to_arrow(lake.read(place))
    assert back.to_pylist() == TYPES.to_pylist()
    for name, kind in zip(TYPES.column_names, storable(TYPES.schema).types, strict=True):
        assert back.schema.field(name).type in (kind, TYPES.schema.field(name).type), name


@pytest.mark.parametrize("place", ["iceberg:demo.types", "delta:lake/types", "duckdb:dev.db?table=types",
                                   "sqlite:dev.sqlite?table=types"])
def test_what_holds_rows_already_is_left_alone(here: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(f"lake copy types.parquet to={place}") == 0
    assert typed(f"lake copy types.parquet to={place}") == 2
    assert "already" in capsys.readouterr().err


def test_a_database_gets_the_types_of_the_columns(here: Path) -> None:
    assert typed("lake copy types.parquet to=sqlite:dev.sqlite?table=types") == 0
    with sqlite3.connect("dev.sqlite") as connection:
        ddl = dict(row[1:3] for row in connection.execute("PRAGMA table_info(types)"))
        rows = connection.execute("SELECT small, name, day FROM types").fetchall()
    connection.close()
    assert ddl == {"small": "SMALLINT", "big": "BIGINT", "price": "NUMERIC(10, 2)", "share": "DOUBLE", "name": "TEXT",
                   "kind": "TEXT", "seen": "BOOLEAN", "day": "DATE", "at": "DATETIME"}
    assert rows == [(1, "a", "2020-01-02"), (None, None, None), (-3, "it's", "1960-01-01")]
    assert typed("lake copy types.parquet to=duckdb:dev.db?table=types") == 0
    with duckdb.connect("dev.db") as connection:
        found = dict(row[:2] for row in connection.execute("DESCRIBE types").fetchall())
    assert (found["small"], found["price"], found["kind"]) == ("SMALLINT", "DECIMAL(10,2)", "VARCHAR")


def test_a_postgresql_server_gets_the_types_and_the_rows(here: Path, cluster: Cluster) -> None:
    import psycopg

    url = cluster.new_database()
    assert typed(f"lake copy types.parquet to={url}?table=types") == 0
    assert typed(f"lake copy types.parquet to={url}?table=types") == 2
    with psycopg.connect(url) as connection:
        found = dict(connection.execute("SELECT column_name, data_type FROM information_schema.columns "
                                        "WHERE table_name = 'types'").fetchall())
        rows = connection.execute("SELECT * FROM types").fetchall()
    assert found == {"small": "smallint", "big": "bigint", "price": "numeric", "share": "double precision",
                     "name": "text", "kind": "text", "seen": "boolean", "day": "date",
                     "at": "timestamp without time zone"}
    assert sorted(rows, key=repr) == sorted((tuple(row.values()) for row in TYPES.to_pylist()), key=repr)
    assert typed(f"lake copy types.parquet to={url.replace('/t', '/nosuch')}?table=types") == 2


def test_a_column_made_anew_under_its_old_name_is_another_column(here: Path) -> None:
    pq.write_table(people(50), "people.parquet")
    assert typed("lake copy people.parquet to=iceberg:demo.people") == 0
    table = iceberg.table_of("iceberg:demo.people")
    with table.update_schema(allow_incompatible_changes=True) as change:
        change.delete_column("pay")
    with table.update_schema() as change:
        change.add_column("pay", StringType())
    found = lake.read("iceberg:demo.people")
    assert found.header[-1] == ("pay", "string")
    assert found.column("pay").missing.all()
    assert iceberg.table_of("iceberg:demo.people").scan().to_arrow()["pay"].null_count == 50


@pytest.mark.parametrize("version", ["1", "dpvae"])
def test_an_older_version_is_read_by_its_number(here: Path, version: str) -> None:
    for table in ("iceberg:demo.t", "delta:lake/t"):
        home = register.home(table)
        home.create(people(1).schema)
        for count in (3, 4):
            held = home.held()
            path = home.folder() / f"{count}.parquet"
            pq.write_table(people(count), path)
            home.write([path], {}, replace=True, expected=held.version if held else None)
        first = [state.version for state in home.history()][1]
        assert lake.read(f"{table}@{first}").rows == 3
        assert lake.read(table).rows == 4
        assert lake.origin(f"{table}@{first}") == {"table": table, "snapshot": first,
                                                   "columns": [list(c) for c in lake.header(table)]}


def test_a_folder_of_files_is_one_table(tmp_path: Path) -> None:
    for number in (1, 0):
        pq.write_table(people(3, first=3 * number), tmp_path / f"part-{number}.parquet")
    assert lake.read(tmp_path).column("key").values.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_folder_whose_files_differ_names_the_column(tmp_path: Path) -> None:
    pq.write_table(people(3), tmp_path / "a.parquet")
    pq.write_table(people(3).drop_columns(["pay"]), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"has no column 'pay', which a\.parquet has"):
        lake.read(tmp_path)


def test_json_lines_are_text_whose_kind_nobody_guesses(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [{"a": 1, "b": "x"}, {"b": True}, {"a": None, "b": 0.10}]))
    table = lake.read(path)
    assert table.header == (("a", "csv"), ("b", "csv"))
    assert table.column("a").missing.tolist() == [False, True, True]
    assert table.column("b").values.tolist() == ["x", "true", "0.1"]


@pytest.mark.parametrize(("text", "says"), [
    ('{"a": 1}\n{"a": ', "line 2 is no JSON object"), ("[1]\n", "line 1 is no JSON object"),
    ('{"a": 1}\n{"c": 1}\n', "line 2, 'c': expected the names of the first line"),
    ('{"a": {"b": 1}}\n', "line 1, 'a': expected")])
def test_a_broken_json_line_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=says):
        lake.read(path)


@pytest.mark.parametrize(("line", "says"), [
    ("lake copy types.parquet to=rows.csv", "expected iceberg:, delta:, duckdb:, sqlite:, postgresql:"),
    ("lake copy types.parquet", "lake copy: expected to=TABLE"), ("lake init", "expected one word more"),
    ("lake shred x", "action='shred': expected one of"), ("lake show iceberg:demo.nothing", "no such table"),
    ("train data=iceberg:nothing", "expected iceberg:[catalog.]namespace.table"),
    ("train data=iceberg:demo.nothing", "no such table; there are none"),
    ("train data=delta:nowhere", "no Delta table there"), ("train data=duckdb:nowhere.db", "no such file"),
    ("train data=sqlite:x.db", "can be written to, not read from"),
    ("train data=iceberg:demo.x@", "expected a snapshot, a branch or a version after @"),
    ("lake init types.parquet", "names the catalog 'default' already")])
def test_a_slip_is_told_in_one_line(here: Path, line: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in here.iterdir())
    assert typed(line) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in here.iterdir()) == before


def test_a_warehouse_is_made_once_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".pyiceberg.yaml").write_text("catalog:\n  other:\n    type: rest\n    uri: http://localhost:1\n")
    assert typed("lake init wh") == 0
    assert "dpvae train data=iceberg:demo.census" in capsys.readouterr().out
    assert lake.read("iceberg:demo.census").rows == 48_842
    assert "other" in Path(".pyiceberg.yaml").read_text()
    assert typed("lake init wh") == 0
    assert "nothing changed" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="names the catalog 'default' already"):
        iceberg.init("elsewhere")
