from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpvae.data.declare import declare
from dpvae.data.schema import Column, Schema
from dpvae.errors import SchemaError

YAML = """
target: income
columns:
  age: {kind: integer, min: 17, max: 90}
  vote: {kind: categorical, categories: [yes, no, NO, null_, "?"]}
  gain: {kind: integer, min: 0, max: 99999, heaps: [0]}
  joined: {kind: datetime, min: 2011-01-01, max: 2020-01-01, format: "%Y-%m-%d", missing: true}
  score: {kind: continuous, min: -1.5, max: 1e3, decimals: 2}
  band: {kind: integer, edges: [0, 10, 20, 99]}
  ok: {kind: boolean}
  income: {}
"""
HEADER = (("age", "int64"), ("vote", "string"), ("gain", "int32"), ("joined", "csv"), ("score", "double"),
          ("band", "int64"), ("ok", "bool"), ("income", "string"))


@pytest.fixture
def schema(tmp_path):
    path = tmp_path / "schema.yaml"
    path.write_text(YAML)
    return Schema.from_yaml(path).bind(HEADER)


def test_yaml_is_read_as_it_is_written(schema):
    assert schema.target == "income"
    assert schema.column("vote").categories == ("yes", "no", "NO", "null_", "?")
    assert schema.column("gain").heaps == (0.0,)
    assert schema.column("joined").lower == 1_293_840_000.0
    assert schema.column("joined").unit == "D"
    assert schema.column("joined").nullable is True
    assert schema.column("age").nullable is False
    assert schema.column("score").upper == 1000.0
    assert schema.column("band").edges == (-0.5, 9.5, 19.5, 99.5)
    assert schema.column("ok").categories == (False, True)


def test_what_is_left_out_is_an_open_question(schema):
    assert schema.column("age").open == ("heaps", "edges")
    assert schema.column("income").open == ("kind", "nullable")
    assert schema.column("vote").open == ()
    assert not schema.resolved


def test_a_schema_survives_json_exactly(schema):
    back = Schema.from_dict(json.loads(json.dumps(schema.to_dict())))
    assert back == schema
    assert back.digest() == schema.digest()


@given(lower=st.floats(-1e300, 1e300), heaps=st.lists(st.floats(-1e15, 1e15), max_size=3, unique=True),
       categories=st.lists(st.text() | st.integers() | st.floats(allow_nan=False, allow_infinity=False), max_size=4))
def test_any_column_survives_json_exactly(lower, heaps, categories):
    columns = (Column("n", "continuous", "double", nullable=True, lower=lower, upper=lower, decimals=3, edges=(),
                      heaps=tuple(heaps), within=((0.0, 1.5), (2.0,))),
               Column("c", "categorical", "csv", categories=tuple(categories), other=True, declared=("kind",)))
    schema = Schema(columns)
    assert Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema


def test_the_digest_changes_with_any_answer():
    before = Schema((Column("a", "integer", "int64", lower=0, upper=1),))
    after = Schema((Column("a", "integer", "int64", lower=0, upper=2),))
    assert before.digest() != after.digest()


def test_codes_are_values_then_other_then_missing():
    column = Column("c", "categorical", "string", nullable=True, categories=("a", "b"), other=True)
    assert column.labels == ("a", "b", "(other)", "(missing)")
    assert column.cardinality == len(column.labels) == 4
    number = Column("n", "integer", "int64", nullable=True, lower=0, upper=9, heaps=(3.0,), edges=(-0.5, 4.5, 9.5))
    assert number.labels == ("3", "0..4", "5..9", "(missing)")
    assert number.cardinality == 4


def test_names_and_types_alone_leave_everything_open():
    schema = Schema.undeclared((("t", "csv"), ("n", "int64"), ("d", "date32[day]"), ("c", "dictionary<values=string, "
                                                                                     "indices=int8, ordered=0>")))
    assert [c.kind for c in schema.columns] == [None, "integer", "datetime", "categorical"]
    assert schema.column("d").unit == "D"
    assert all(not c.declared for c in schema.columns)


@pytest.mark.parametrize(("facts", "message"), [
    ({"kid": "integer"}, r"a\.kid: no such key; did you mean 'kind'"),
    ({"kind": "integre"}, "a.kind='integre': expected one of .*did you mean 'integer'"),
    ({"kind": "integer", "min": 9, "max": 1}, "a.min=9: expected at most max=1"),
    ({"kind": "integer", "min": 1.5}, "a.min=1.5: expected a whole number"),
    ({"kind": "continuous", "max": float("inf")}, "a.max=inf: expected a finite number"),
    ({"kind": "continuous", "max": float("nan")}, "a.max=nan: expected a finite number"),
    ({"kind": "integer", "min": 0, "heaps": [-1]}, "a: -1 lies outside"),
    ({"kind": "integer", "edges": [3, 2]}, "increasing"),
    ({"kind": "integer", "categories": [1]}, "a.categories: does not go with kind=integer"),
    ({"kind": "categorical", "categories": []}, "at least one value"),
    ({"kind": "categorical", "categories": ["x", "x"]}, "'x' appears twice"),
    ({"kind": "datetime", "min": "soon"}, "a.min='soon': expected a date"),
    ({"kind": "datetime", "format": "YYYY"}, "strftime"),
    ({"kind": "time", "min": "25:00"}, "a.min='25:00': expected a time of day such as 08:30"),
    ({"kind": "time", "min": "18:00", "max": "08:00"}, "a.min=64800: expected at most max=28800"),
    ({"kind": "time", "unit": "D"}, "a.unit='D': expected one of m, s, us"),
    ({"kind": "boolean", "spelling": ["yes"]}, r"a.spelling=\['yes'\]: expected the words for false and for true"),
    ({"kind": "boolean", "spelling": ["yes", "YES"]}, "expected the words for false and for true"),
    ({"kind": "boolean", "spelling": [False, True]}, "a.spelling: quote the words as the table spells them"),
    ({"kind": "integer", "spelling": ["no", "yes"]}, "a.spelling: does not go with kind=integer"),
    ({"min": 3}, "a.min: needs a kind"),
    ({"kind": "integer", "missing": "maybe"}, "true, false or measure"),
    (3, "a=3: expected a mapping"),
])
def test_a_description_that_makes_no_sense_is_refused_in_one_line(facts, message):
    with pytest.raises(SchemaError, match=message) as caught:
        declare({"columns": {"a": facts}})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "columns: {}", "columns: [a", "a: 1", "columns: {a: {}, a: {}}",
                                  "columns: {a: {}}\ntargets: a"])
def test_a_file_that_is_no_schema_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(SchemaError) as caught:
        Schema.from_yaml(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(SchemaError, match="cannot be read"):
        Schema.from_yaml(tmp_path / "absent.yaml")


def test_a_schema_and_a_table_must_describe_each_other():
    schema = declare({"columns": {"age": {"kind": "integer"}, "sex": {"categories": ["F", "M"]}}})
    with pytest.raises(SchemaError, match="schema column='sex': not in the table; did you mean 'sexe'"):
        schema.bind((("age", "int64"), ("sexe", "string")))
    with pytest.raises(SchemaError, match=r"table column='ag': not in the schema; describe it, .*; did you mean 'age'"):
        schema.bind((("age", "int64"), ("sex", "string"), ("ag", "int64")))
    with pytest.raises(SchemaError, match=r"age\.kind=integer: the table holds bool"):
        schema.bind((("age", "bool"), ("sex", "string")))
    with pytest.raises(SchemaError, match=r"ok\.spelling: the table holds bool; expected none"):
        declare({"columns": {"ok": {"kind": "boolean", "spelling": ["no", "yes"]}}}).bind((("ok", "bool"),))
    with pytest.raises(SchemaError, match="'F' cannot be a value of type int64"):
        schema.bind((("age", "int64"), ("sex", "int64")))
    with pytest.raises(SchemaError, match="target='sexx': no such column; did you mean 'sex'"):
        schema.with_target("sexx")


def test_the_table_decides_the_order_of_the_columns():
    schema = declare({"columns": {"b": {"kind": "integer"}, "a": {"kind": "integer"}}})
    assert schema.bind((("a", "int64"), ("b", "int64"))).names == ("a", "b")
