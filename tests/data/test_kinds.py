from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dpvae.data import kinds, lake
from dpvae.data.schema import Column, Schema
from dpvae.errors import DataError


@pytest.mark.parametrize(("text", "expected"), [
    ("0", "integer"), ("-12", "integer"), ("+3", "integer"), ("0123", "text"), ("1_000", "text"), ("", "text"),
    ("5.", "decimals 0"), ("5.0", "decimals 0"), ("5.10", "decimals 1"), (".25", "decimals 2"),
    ("-0.123456", "decimals 6"), ("0.12345678", "decimals 9"), ("1e5", "decimals 9"), ("nan", "text"), ("inf", "text"),
    ("2020-02-29", "%Y-%m-%d"), ("2021-02-29", "text"), ("2020-02-29 10:30", "%Y-%m-%d %H:%M"),
    ("2020-02-29T10:30:59", "%Y-%m-%dT%H:%M:%S"), ("31/01/2020", "%d/%m/%Y"), ("01/31/2020", "%m/%d/%Y"),
    ("01/02/2020", "slashes"), ("13/13/2020", "text"), ("31.01.2020", "%d.%m.%Y"), ("yes", "text"),
    ("TRUE", "FALSE or TRUE"), ("True", "False or True"), ("tRUE", "text"),
    ("23:59", "%H:%M"), ("24:00", "text"), ("9:30", "text"), ("09:30:00", "%H:%M:%S"), ("09:30:00.25", "%H:%M:%S.%f"),
])
def test_every_cell_has_one_class(text, expected):
    assert kinds.classify(text) == expected


def decide(texts: list[str], dtype: str = "csv") -> dict[str, object]:
    column = Column("x", dtype=dtype)
    cells = lake.Cells(np.array(texts, dtype=object), np.zeros(len(texts), bool), dtype)
    counts = dict(zip(kinds.classes(column), kinds.count(column, cells).tolist(), strict=True))
    return kinds.decide(column, counts, sd=0.01, rows=len(texts))


@pytest.mark.parametrize(("texts", "expected"), [
    (["1", "22", "-3"], {"kind": "integer"}),
    (["1", "2.50", "3.125"], {"kind": "continuous", "decimals": 3}),
    (["1.0", "2.0"], {"kind": "continuous", "decimals": 0}),
    (["true", "false"], {"kind": "boolean", "spelling": ("false", "true")}),
    (["False", "True", "True"], {"kind": "boolean", "spelling": ("False", "True")}),
    (["08:30", "17:05"], {"kind": "time", "format": "%H:%M", "unit": "m"}),
    (["08:30:00", "17:05:59"], {"kind": "time", "format": "%H:%M:%S", "unit": "s"}),
    (["a", "1"], {"kind": "categorical"}),
    (["2020-01-01", "2019-12-31"], {"kind": "datetime", "format": "%Y-%m-%d", "unit": "D"}),
    (["01/02/2020"] * 5 + ["13/02/2020"], {"kind": "datetime", "format": "%d/%m/%Y", "unit": "D"}),
    (["01/02/2020"] * 5 + ["02/13/2020"], {"kind": "datetime", "format": "%m/%d/%Y", "unit": "D"}),
    (["1"] * 19 + ["?"], {"kind": "integer"}),
])
def test_the_kind_of_a_csv_column_follows_from_its_counts(texts, expected):
    assert decide(texts) == expected


@pytest.mark.parametrize(("texts", "expected"), [
    (["Yes", "No", "No"], ("No", "Yes")), (["Y"], ("N", "Y")), (["0", "1"], ("0", "1")), (["f"], ("f", "t")),
    (["NO", "NO", "yes"], ("NO", "YES")), (["True"] * 3 + ["oui"], ("False", "True")),
])
def test_the_spelling_of_a_declared_boolean_is_one_of_a_public_list_by_its_counts(texts, expected):
    column = Column("x", "boolean", "csv", declared=("kind",))
    assert column.open == ("spelling", "nullable")
    assert kinds.asks(column)
    cells = lake.Cells(np.array(texts, dtype=object), np.zeros(len(texts), bool), "csv")
    counts = dict(zip(kinds.classes(column), kinds.count(column, cells).tolist(), strict=True))
    assert sum(counts.values()) <= len(texts), "each cell is of one class at most"
    assert kinds.decide(column, counts, sd=0.01, rows=len(texts)) == {"spelling": expected}


def test_a_spelling_that_the_noise_hides_is_named_as_guessed():
    column = Column("x", "boolean", "csv")
    found = kinds.decide(column, dict.fromkeys(kinds.classes(column), 1.0), sd=50.0, rows=300)
    assert found == {"spelling": ("false", "true"), "guessed": ("spelling",)}


def test_noise_in_200_columns_does_not_make_a_number_a_text():
    rng, columns, sd, wrong = np.random.default_rng(0), 200, 800.0, 0
    for _ in range(columns):
        exact = {name: 10_000.0 * (name == "integer") for name in kinds.TEXT}
        noisy = {name: count + rng.normal(0, sd) for name, count in exact.items()}
        found = kinds.decide(Column("x", dtype="csv"), noisy, sd, columns * len(kinds.TEXT), rows=10_000)
        wrong += found["kind"] != "integer"
    assert wrong == 0, "three sd alone would take some of them for something else"


def test_digits_in_a_text_column_are_categories_but_dates_are_dates():
    assert decide(["10001", "94110"], "string") == {"kind": "categorical"}
    assert decide(["2020-01-01"], "large_string")["kind"] == "datetime"


def test_decimals_are_counted_in_the_precision_of_the_type():
    for kind, dtype in ((np.float32, "float"), (np.float64, "double")):
        values = np.array([0.1, 2.25, 3.0, 1 / 3], dtype=kind).astype(np.float64)
        cells = lake.Cells(values, np.zeros(4, bool), dtype)
        counts = kinds.count(Column("x", "continuous", dtype), cells)
        assert counts.tolist() == [1, 1, 1, 0, 0, 0, 0, 1]


def test_free_text_is_refused_with_advice_and_codes_are_not():
    rng = np.random.default_rng(0)
    letters = lambda n: "".join(rng.choice(list("abcdefgh "), n))  # noqa: E731
    frame = pd.DataFrame({"review": [letters(80) for _ in range(400)], "city": rng.choice(["Ulm", "Rom"], 400)})
    table = lake.read(frame)
    with pytest.raises(DataError, match=r"column='review': looks like free text.*drop it, or declare"):
        kinds.refuse_free_text(table, Schema.undeclared(table.header))
    table = lake.read(frame.drop(columns="review").assign(when=pd.date_range("1990-01-01", periods=400).astype(str)))
    kinds.refuse_free_text(table, Schema.undeclared(table.header))
