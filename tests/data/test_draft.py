"""A draft of a schema says what the header says and nothing that only the rows know."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpvae.config import InitConfig
from dpvae.data.draft import HOW, draft, lines
from dpvae.data.schema import Schema
from dpvae.errors import ConfigError, DataError

TYPED = {"age": [1, 2], "weight": [0.5, 1.5], "smokes": [True, False], "city": ["a", "b"]}


def test_types_that_a_file_declares_are_drafted_and_the_rest_left_open(tmp_path: Path) -> None:
    pq.write_table(pa.table(TYPED), tmp_path / "t.parquet")
    made = draft(InitConfig(table=str(tmp_path / "t.parquet"), to=str(tmp_path / "s.yaml"), target="city", rows=50))
    schema = Schema.from_yaml(made.schema)
    assert [column.kind for column in schema.columns] == ["integer", "continuous", "boolean", None]
    assert schema.target == "city"
    assert made.next == (f"dpvae plan data={tmp_path}/t.parquet data.schema={tmp_path}/s.yaml data.rows=50 "
                         "privacy.epsilon=1")


def test_two_tables_with_one_header_have_one_draft_whatever_is_in_their_rows(tmp_path: Path) -> None:
    texts = []
    for name, rows in (("a", "age,city\n1,x\n"), ("b", "age,city\nsecret,\n9,9\n7,7\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "t.csv").write_text(rows)
        made = draft(InitConfig(table=str(tmp_path / name / "t.csv"), to=str(tmp_path / name / "s.yaml")))
        texts.append(Path(made.schema).read_text())
    assert texts[0] == texts[1]
    assert "secret" not in texts[1]


def test_the_columns_of_a_csv_file_stay_open(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("age,city\n1,x\n")
    made = draft(InitConfig(table=str(tmp_path / "t.csv"), to=str(tmp_path / "s.yaml")))
    schema = Schema.from_yaml(made.schema)
    assert schema.names == ("age", "city")
    assert schema.open_questions
    assert [column.kind for column in schema.columns] == [None, None]


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1),
                min_size=1, max_size=4, unique=True))
@settings(max_examples=60, deadline=None)
def test_a_column_may_be_called_anything(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    text = "\n".join(lines([(name, "csv") for name in names], table="t.csv", target=names[-1]))
    path = tmp_path_factory.mktemp("draft") / "s.yaml"
    path.write_text(text, encoding="utf-8")
    schema = Schema.from_yaml(path)
    assert list(schema.names) == names
    assert schema.target == names[-1]


@pytest.mark.parametrize(("config", "says"), [
    (InitConfig(), "say dpvae init mytable.csv"),
    (InitConfig(table="t.csv", target="ctiy"), "did you mean 'city'?"),
    (InitConfig(table="t.csv", survey=True), "a draft reads no row"),
    (InitConfig(table="t.csv", to="taken.yaml"), "a draft never overwrites"),
])
def test_a_mistake_is_told_and_nothing_is_written(
        config: InitConfig, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("age,city\n1,x\n")
    Path("taken.yaml").write_text("mine")
    with pytest.raises(ConfigError) as told:
        draft(config)
    assert says in str(told.value)
    assert {path.name for path in tmp_path.iterdir()} == {"t.csv", "taken.yaml"}
    assert Path("taken.yaml").read_text() == "mine"


def test_a_table_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        draft(InitConfig(table=str(tmp_path / "none.csv")))


def test_each_way_to_describe_a_column_that_a_draft_shows_can_be_read(tmp_path: Path) -> None:
    shown = [line.removeprefix("#").strip() for line in HOW if line.startswith("#   {")]
    path = tmp_path / "s.yaml"
    path.write_text("columns:\n" + "".join(f"  c{i}: {text}\n" for i, text in enumerate(shown)))
    assert [column.kind for column in Schema.from_yaml(path).columns] == [
        "integer", "continuous", "categorical", "datetime", "time", "boolean"]
