"""A part of a table: the same rows from every kind of table, and said on the certificate."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lakehouse import TINY, people, typed

from dpvae import api, cli
from dpvae.audit.verify import verify
from dpvae.config import DataConfig, TrainConfig
from dpvae.data import lake
from dpvae.data.lake import duck, files, iceberg
from dpvae.data.where import parse
from dpvae.errors import ConfigError, DataError
from dpvae.estimator import DPVAE
from dpvae.privacy.ledger import Ledger
from dpvae.report import records

Row = dict[str, Any]
DAY, NOON = dt.date(2020, 1, 1), dt.datetime(2020, 1, 1, 12)
PLACES = ("rows.parquet", "parts", "frame", "iceberg:demo.rows", "delta:lake/rows", "duckdb:dev.db")
TEXTS = ("rows.csv", "rows.jsonl")
CONDITIONS: dict[str, Callable[[Row], bool]] = {
    "i >= 18": lambda r: r["i"] is not None and r["i"] >= 18,
    "i != 8 AND s in ('a', 'it''s')": lambda r: r["i"] not in (None, 8) and r["s"] in ("a", "it's"),
    "i not in (1, 2, 3) and (s = 'c' or i < 9)":
        lambda r: r["i"] not in (None, 1, 2, 3) and (r["s"] == "c" or r["i"] < 9),
    '"net, pay" between -0.5 and 0.5': lambda r: -0.5 <= r["net, pay"] <= 0.5,
    "s is null or i is null": lambda r: r["s"] is None or r["i"] is None,
    "f > 0.5": lambda r: r["f"] is not None and r["f"] > 0.5,
    "f = 0.7": lambda r: r["f"] == float(np.float32(0.7)),
    "f is null or b = true": lambda r: r["f"] is None or r["f"] != r["f"] or r["b"] is True,
    "f is not null": lambda r: r["f"] is not None and r["f"] == r["f"],
    "d >= 1.25 and d <> 2.5": lambda r: r["d"] >= Decimal("1.25") and r["d"] != Decimal("2.5"),
    "day < '2020-01-10' and at >= '2020-01-02 00:00:00'":
        lambda r: r["day"] < dt.date(2020, 1, 10) and r["at"] >= dt.datetime(2020, 1, 2),
    "z = '2020-01-02T04:00:00+04:00'": lambda r: r["z"] == dt.datetime(2020, 1, 2, tzinfo=dt.UTC),
}
ON_TEXT = [text for text in CONDITIONS if text[0] in 'is"']


def rows(count: int = 300) -> pa.Table:
    rng = np.random.default_rng(0)

    def holed(values: Any) -> list[Any]:
        return [None if hole < 0.2 else value for hole, value in zip(rng.random(count), values, strict=True)]

    hours = [dt.timedelta(hours=int(h)) for h in rng.integers(0, 48, count)]
    return pa.table({
        "i": pa.array(holed(rng.integers(0, 50, count).tolist()), pa.int32()),
        "f": pa.array([x if x is None or x > 0.1 else float("nan") for x in holed(rng.random(count).round(1))],
                      pa.float32()),
        "net, pay": rng.normal(size=count).round(1), "s": holed(rng.choice(["a", "it's", "c"], count).tolist()),
        "d": pa.array([Decimal(int(x)) / 4 for x in rng.integers(0, 20, count)], pa.decimal128(10, 2)),
        "b": pa.array(holed(rng.random(count) < 0.5), pa.bool_()),
        "day": [DAY + dt.timedelta(days=int(x)) for x in rng.integers(0, 30, count)],
        "at": pa.array([NOON + h for h in hours], pa.timestamp("us")),
        "z": pa.array([NOON.replace(tzinfo=dt.UTC) + h for h in hours], pa.timestamp("us", "UTC"))})


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows in every kind of place."""
    folder, table = tmp_path_factory.mktemp("select"), rows()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        pq.write_table(table, "rows.parquet", row_group_size=30)
        Path("parts").mkdir()
        for part in range(3):
            pq.write_table(table.slice(100 * part, 100), f"parts/{part}.parquet")
        pacsv.write_csv(table, "rows.csv")
        Path("rows.jsonl").write_text("".join(
            json.dumps({name: None if value is None else str(value) for name, value in row.items()}) + "\n"
            for row in table.to_pylist()))
        iceberg.init("warehouse")
        for place in ("iceberg:demo.rows", "delta:lake/rows", "duckdb:dev.db?table=rows"):
            assert typed(f"lake copy parts to={place}") == 0
    return folder


def found(place: Any, where: str | None, columns: str | None = "i,s") -> list[tuple[Any, ...]]:
    part = lake.selected(rows() if place == "frame" else place, columns=columns, where=where)
    return sorted((tuple(row.values()) for batch in part.batches(64) for row in batch.to_pylist()), key=repr)


def by_hand(keeps: Callable[[Row], bool], kind: Callable[[int], Any] = int) -> list[tuple[Any, ...]]:
    return sorted(((None if row["i"] is None else kind(row["i"]), row["s"]) for row in rows().to_pylist()
                   if keeps(row)), key=repr)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("where", CONDITIONS)
def test_a_condition_finds_the_rows_that_a_person_would(
        there: Path, monkeypatch: pytest.MonkeyPatch, place: str, where: str) -> None:
    monkeypatch.chdir(there)
    expected = by_hand(CONDITIONS[where])
    assert 0 < len(expected) < 300
    assert found(place, where) == expected


@pytest.mark.parametrize("place", TEXTS)
@pytest.mark.parametrize("where", ON_TEXT)
def test_numbers_of_a_text_file_are_compared_as_numbers(
        there: Path, monkeypatch: pytest.MonkeyPatch, place: str, where: str) -> None:
    monkeypatch.chdir(there)
    assert found(place, where) == by_hand(CONDITIONS[where], str)


def test_a_quote_that_never_closes_is_found_in_a_part_of_a_table_too(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('a,b\n1,x\n2,"y\n3,z\n4,z\n')
    for columns in ("a", "b"):
        with pytest.raises(DataError, match="a quoted cell is never closed"):
            found(tmp_path / "t.csv", None, columns)


@pytest.mark.parametrize("place", [*PLACES, *TEXTS])
def test_columns_come_in_the_order_that_was_asked_for(there: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(there)
    part = lake.selected(rows() if place == "frame" else place, columns='["net, pay", day, s]', where="s = 'c'")
    assert lake.read(part).names == ("net, pay", "day", "s") == tuple(name for name, _ in lake.header(part))


def test_files_and_row_groups_where_nothing_can_be_are_not_read(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(there)
    pq.write_table(pa.table({"n": range(1000), "m": range(1000)}), "sorted.parquet", row_group_size=100)
    assert typed("lake copy sorted.parquet to=iceberg:demo.sorted") == 0
    where = parse("n between 210 and 340").bound((("n", "int64"),))
    narrow = files.Parquet(Path("sorted.parquet")).narrowed(["n"], where)
    assert sum(batch.num_rows for batch in narrow.batches(1000)) == 200
    assert narrow.schema().names == ["n"]
    table = iceberg.opened("iceberg:demo.sorted")
    assert [len(table.narrowed(["n"], parse(f"n > {n}").bound((("n", "int64"),))).tasks()) for n in (5, 1000)] == [1, 0]
    held = duck.opened("duckdb:dev.db").narrowed(["i"], parse("i >= 49").bound((("i", "int32"),)))
    assert {batch.num_columns for batch in held.batches(10)} == {1}
    assert sum(batch.num_rows for batch in held.batches(10)) == sum(r["i"] == 49 for r in rows().to_pylist())


@settings(max_examples=60, deadline=None)
@given(st.recursive(
    st.builds("{} {} {}".format, st.sampled_from("ab"), st.sampled_from(["=", "!=", "<", "<=", ">", ">="]),
              st.integers(-2, 2)) | st.sampled_from(["a is null", "b is not null", "a in (0, 1)", "b not in (0, 1)"]),
    lambda part: st.builds("({} {} {})".format, part, st.sampled_from(["and", "or"]), part), max_leaves=6))
def test_a_condition_means_what_it_means_to_duckdb_and_reads_back_as_it_is_written(text: str) -> None:
    where, values = parse(text), [None, -1, 0, 1]
    table = pa.table({"a": pa.array([a for a in values for _ in values], pa.int64()),
                      "b": pa.array(values * len(values), pa.int64())})
    assert parse(str(where)) == where
    part = [row for batch in lake.selected(table, columns=None, where=text).batches(9) for row in batch.to_pylist()]
    with duckdb.connect() as connection:
        connection.register("held", table)
        assert part == connection.sql(f"SELECT * FROM held WHERE {text}").to_arrow_table().to_pylist()


@pytest.mark.parametrize(("where", "said"), [
    ("age >=", "expected a number, a text in single quotes, true or false, found the end"),
    ("age 18", "expected =.*, found '18'"),
    ("age > 18 and", "expected a column, found the end"),
    ("(age > 18", r"expected \), found the end"),
    ("age > 18 city = 'x'", "expected and, or, or the end, found 'city'"),
    ("not (age > 18)", "expected a column, found 'not'"),
    ("age > 1e999", "expected a number"),
    ("age; drop table x", "cannot be read from ';"),
    ("", "expected a column, found the end"),
])
def test_a_condition_that_cannot_be_read_says_where(where: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"data.where={where!r}.*".replace("(", r"\(").replace(")", r"\)") + said):
        parse(where)


@pytest.mark.parametrize(("where", "said"), [
    ("agee > 18", "column='agee': not in the table; did you mean 'age'"),
    ("city = north", "expected a number, a text in single quotes"),
    ("city = 5", "column='city' is string, which 5 cannot be; expected a text in single quotes"),
    ("age > 17.5", "column='age' is int64, which 17.5 cannot be; expected a whole number"),
    ("age in (1, 'x')", "expected numbers or texts, not both"),
])
def test_a_condition_that_does_not_fit_the_table_is_refused_before_anything_is_spent(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str, said: str
        ) -> None:
    monkeypatch.chdir(tmp_path)
    pq.write_table(people(), "people.parquet")
    for verb in ("plan", "train"):
        assert cli.main([verb, "data=people.parquet", f"data.where={where}"]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert len(error.splitlines()) == 1
    assert not Path("runs").exists()


def test_a_date_that_is_none_and_a_column_that_is_not_there_are_named() -> None:
    with pytest.raises(DataError, match=r"'day' is date32\[day\], which '2020' cannot be; expected '2020-12-31'"):
        lake.selected(rows(5), columns=None, where="day > '2020'")
    with pytest.raises(DataError, match=r"data\.columns: column='dya': not in the table; did you mean 'day'"):
        lake.selected(rows(5), columns="dya", where=None)
    with pytest.raises(ConfigError, match=r"data\.columns='a,,b': expected names"):
        lake.selected(rows(5), columns="a,,b", where=None)
    with pytest.raises(ConfigError, match=r"data\.where: expected data\.kind=table"):
        DataConfig(kind="text", where="x = 1")


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and a release on a part of a lake table, after a run on the whole of it."""
    home = tmp_path_factory.mktemp("part")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        iceberg.init("warehouse")
        pq.write_table(people(), "people.parquet")
        assert typed("lake copy people.parquet to=iceberg:demo.people") == 0
        assert typed(f"train data=iceberg:demo.people run.name=whole {TINY}") == 0
        assert cli.main(["train", "data=iceberg:demo.people", "run.name=part", "data.columns=age,city,income",
                         "data.where=pay > 10 AND city in ('north','south')", *TINY.split()]) == 0
        assert typed("release run=part rows=50 to=out") == 0
    return home


def test_the_certificate_says_which_rows_and_columns_took_part(released: Path) -> None:
    scope = json.loads((released / "out" / "certificate.json").read_text())["scope"]
    said = "pay > 10 and city in ('north', 'south')"
    assert scope["records_per_unit"].startswith(f"1: one row is one record of those where {said}, and any other takes "
                                                "no part")
    assert f"the condition on rows: {said}" in scope["public_inputs"]
    assert any(line.startswith("the choice of columns") for line in scope["public_inputs"])
    assert f"Only rows where {said} took part." in (released / "out" / "card.md").read_text()
    for page in ("out/report.html", "runs/part/public/report.html"):
        assert "pay &gt; 10 and city in (" in (released / page).read_text()
    assert verify(released / "out").ok


def test_a_certificate_that_hides_its_condition_does_not_verify(released: Path, tmp_path: Path) -> None:
    for name, edit in (("schema.json", lambda found: found.pop("where")),
                       ("certificate.json", lambda found: found["scope"].update(records_per_unit="1: one row"))):
        folder = tmp_path / name
        shutil.copytree(released / "out", folder)
        text = json.loads((folder / name).read_text())
        edit(text)
        (folder / name).write_bytes(records.canonical(text) + b"\n")
        problems = " ".join(verify(folder).problems)
        assert "scope.records_per_unit" in problems, problems


def test_a_part_of_a_table_spends_from_the_budget_of_the_whole(released: Path) -> None:
    ledger = Ledger.open(str(released / "runs" / "ledger.db"))
    claims = [json.loads((released / "runs" / name / "public" / "claim.json").read_text())
              for name in ("whole", "part")]
    assert [claim["dataset"] for claim in claims] == ["demo.people"] * 2
    assert claims[1]["cumulative_epsilon"] > 1.2 * claims[0]["cumulative_epsilon"]
    assert {row.dataset for row in ledger.rows() if row.dataset} == {"demo.people"}


def test_a_run_is_not_resumed_on_other_rows_or_columns(
        released: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(released)
    assert cli.main(["train", "data=iceberg:demo.people", "run.name=part", "data.columns=age,city,income",
                     "data.where=pay > 11", *TINY.split()]) == 2
    assert "run" in capsys.readouterr().err


def test_a_part_is_the_same_run_from_disk_and_from_a_frame(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pq.write_table(people(), "people.parquet")
    part = ["data.columns=age,city,income", "data.where=pay > 10", "privacy.secret_seed=3", *TINY.split()]
    assert cli.main(["train", "data=people.parquet", "run.name=memory", *part]) == 0
    assert cli.main(["train", "data=people.parquet", "run.name=disk", "performance.stored=always", *part]) == 0
    chosen = people().filter(pc.greater(people()["pay"], 10)).select(["age", "city", "income"])
    pq.write_table(chosen, "chosen.parquet")
    assert cli.main(["train", "data=chosen.parquet", "run.name=hand", "run.root=hand", *part[2:]]) == 0
    models = [(tmp_path / folder / "public" / "model.safetensors").read_bytes()
              for folder in ("runs/memory", "runs/disk", "hand/hand")]
    assert models[0] == models[1] == models[2]
    assert not list(Path("runs").glob(".stored-*"))


def test_an_estimator_lets_only_rows_of_a_condition_take_part(tmp_path: Path) -> None:
    table = people().select(["age", "city", "pay"])
    small = {"model.components": 8, "model.latent_dim": 2, "trainer.fit_steps": 2, "trainer.steps": 2,
             "trainer.sleep_steps": 2, "privacy.secret_seed": 3}
    by_hand = table.filter(pc.greater(table["pay"], 10))
    models = [DPVAE(epsilon=20, rows=300, runs=tmp_path / name, progress="quiet", options=small | more).fit(rows)
              for name, rows, more in (("where", table, {"data.where": "pay > 10"}), ("hand", by_hand, {}))]
    assert json.loads((models[0].run_.path / "public" / "schema.json").read_text())["where"] == "pay > 10"
    first, second = ((m.run_.path / "public" / "model.safetensors").read_bytes() for m in models)
    assert first == second
    with pytest.raises(ConfigError, match=r"data\.columns.*argument of fit"):
        DPVAE(options={"data.columns": "age"}).fit(table)


def test_the_number_of_a_whole_built_in_table_is_not_taken_for_that_of_a_part() -> None:
    config = TrainConfig(data=DataConfig(builtin="adult", rows=48_842, where="age >= 60"))
    with pytest.raises(ConfigError, match=r"data\.rows=48842: counts the whole table.*data\.rows=null"):
        api.plan(config)
    counted = api.plan(replace(config, data=replace(config.data, rows=None)))
    assert "survey/rows" in counted.shares  # and paid for
