"""score, sample and impute as they are typed: files, refusals, and what is spent."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from servers import Cluster

from dpvae import cli
from dpvae.privacy.ledger import Ledger

TINY = ["trainer.fit_steps=200", "trainer.steps=2", "trainer.sleep_steps=20", "model=small", "report.progress=quiet",
        "privacy.epsilon=20"]
ROWS = 600


def people() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    age = rng.integers(18, 80, ROWS)
    return pd.DataFrame({"age": age, "city": rng.choice(["north", "south", "east"], ROWS),
                         "pay": rng.gamma(2.0, 10.0, ROWS).round(1), "income": np.where(age > 50, "high", "low")})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uses")
    people().to_csv(folder / "people.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["train", "data=people.csv", f"data.rows={ROWS}", "data.target=income", "run.name=one",
                         *TINY]) == 0
    return folder


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    return home


def typed(line: str) -> int:
    return cli.main(line.split())


@pytest.mark.parametrize("score", ["iwae", "elbo", "reconstruction", "regret"])
def test_scores_are_written_with_row_nats_and_what_explains_them(score: str, here: Path) -> None:
    assert typed(f"score run=one data=people.csv to=scores.parquet score={score}") == 0
    found = pd.read_parquet("scores.parquet")
    assert list(found.columns) == ["row", "score", "top_1", "top_1_nats", "top_2", "top_2_nats", "top_3", "top_3_nats"]
    assert found["row"].tolist() == list(range(ROWS))
    assert np.isfinite(found["score"]).all()
    assert set(found["top_1"]) <= {"age", "city", "pay", "income"}
    assert (found["top_1_nats"] >= found["top_2_nats"]).all()


def test_scores_go_to_the_private_folder_unless_told_otherwise(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed("score run=one data=people.csv threshold=synthetic false_alarm=0.05 id=city contributions=0") == 0
    found = pd.read_parquet("runs/one/private/scores.parquet")
    assert list(found.columns) == ["row", "city", "score", "anomaly"]
    said = capsys.readouterr().out
    assert "nothing was spent" in said
    assert "not for publication" in said
    assert not list(Path("runs/one/public").glob("*score*"))


def test_a_threshold_from_private_rows_is_booked(here: Path) -> None:
    ledger = Ledger.open("runs/ledger.db")
    before = len(ledger.rows())
    assert typed("score run=one data=people.csv to=s.csv threshold=private epsilon=0.5 contributions=0") == 0
    added = ledger.rows()[before:]
    assert [row.kind for row in added] == ["reserve", "commit"]
    assert added[0].dataset == "people"
    assert added[0].content["events"][0]["phase"] == "threshold"
    assert pd.read_csv("s.csv")["anomaly"].mean() < 0.2


def test_a_threshold_is_paid_by_the_rows_that_it_is_learnt_from(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    people = pd.read_csv("people.csv")
    people.iloc[:-1].to_csv("others.csv", index=False)
    asked = "score run=one data=others.csv to=o.csv threshold=private epsilon=0.5 contributions=0"
    before = len(Ledger.open("runs/ledger.db").rows())
    assert typed(asked) == 2
    assert "booked as 'others', and the run was trained on 'people'; say delta" in capsys.readouterr().err
    assert len(Ledger.open("runs/ledger.db").rows()) == before
    Ledger.open("runs/ledger.db").cap("others", 0.6, 1e-5)
    assert typed(f"{asked} delta=1e-6") == 0
    assert [row.dataset for row in Ledger.open("runs/ledger.db").rows()[before:]] == ["others"] * 3
    assert typed(f"{asked} delta=1e-6") == 2  # their cap, and not that of the run's rows
    assert "cap 0.6" in capsys.readouterr().err


def test_rows_pay_under_the_name_they_are_known_by(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("copy.csv").write_bytes(Path("people.csv").read_bytes())
    asked = "score run=one data=copy.csv to=c.csv threshold=private epsilon=0.5 contributions=0"
    before = len(Ledger.open("runs/ledger.db").rows())
    assert typed(asked) == 0
    assert {row.dataset for row in Ledger.open("runs/ledger.db").rows()[before:]} == {"people"}
    assert typed(f"{asked} ledger_dataset=fresh delta=1e-6") == 2
    assert "booked as 'people' already" in capsys.readouterr().err


def test_a_threshold_from_private_rows_without_a_budget_is_refused(here: Path) -> None:
    before = len(Ledger.open("runs/ledger.db").rows())
    assert typed("score run=one data=people.csv to=none.csv threshold=private") == 2
    assert len(Ledger.open("runs/ledger.db").rows()) == before
    assert not Path("none.csv").exists()


def test_several_runs_are_one_ensemble(here: Path) -> None:
    assert cli.main(["score", "run=one,one", "data=people.csv", "to=two.parquet"]) == 0
    assert typed("score run=one data=people.csv to=one.parquet") == 0
    one, two = pd.read_parquet("one.parquet"), pd.read_parquet("two.parquet")
    assert two["score"].to_numpy() == pytest.approx(one["score"].to_numpy())


def test_conditions_are_kept_in_every_format(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed("sample run=one rows=200 given.city=north given.age=30..40 to=rows.csv") == 0
    assert "points carry it" in capsys.readouterr().out
    rows = pd.read_csv("rows.csv")
    assert len(rows) == 200
    assert (rows["city"] == "north").all()
    assert rows["age"].between(30, 40).all()
    assert rows["age"].nunique() > 3
    assert typed("sample run=one rows=50 given.city=north|south to=rows.parquet") == 0
    assert set(pd.read_parquet("rows.parquet")["city"]) == {"north", "south"}


def test_rows_of_a_seed_are_the_same_however_many_are_drawn(here: Path) -> None:
    assert typed("sample run=one rows=20 to=few.csv id=person seed=4") == 0
    assert typed("sample run=one rows=9000 to=many.csv id=person seed=4") == 0
    few, many = pd.read_csv("few.csv"), pd.read_csv("many.csv")
    pd.testing.assert_frame_equal(few, many.head(20))
    assert many["person"].tolist() == list(range(1, 9001))


def test_a_test_database_loads(here: Path) -> None:
    assert typed("sample run=one rows=450 to=people.sql id=person") == 0
    base = sqlite3.connect(":memory:")
    base.executescript(Path("people.sql").read_text())
    found = base.execute('SELECT count(*), count(DISTINCT person), count(age) FROM "people"').fetchone()
    assert found == (450, 450, 450)
    assert base.execute('SELECT DISTINCT typeof(age) FROM "people"').fetchall() == [("integer",)]


CLINIC = r"""columns:
  seen: {kind: datetime, min: 2020-01-01, max: 2020-12-31, format: "%d.%m.%Y"}
  left: {kind: datetime, min: 2020-01-01, max: 2021-01-01, format: "%Y-%m-%d %H:%M"}
  opens: {kind: time, min: 07:00, max: 12:00, format: "%H:%M"}
  paid: {kind: boolean, spelling: [no, yes]}
  new: {kind: boolean, spelling: ["False", "True"]}
  price: {kind: continuous, min: 0, max: 999.99, decimals: 2}
  visits: {kind: integer, min: 0, max: 9}
  note: {kind: categorical, categories: ["it's", "a \"b\"", "c\nd"], missing: true}
"""


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("clinic"), np.random.default_rng(3)
    day = pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 366, ROWS), "D")
    pd.DataFrame({"seen": day.strftime("%d.%m.%Y"), "left": day.strftime("%Y-%m-%d 17:30"),
                  "opens": [f"{7 + i % 6:02}:00" for i in range(ROWS)], "paid": np.where(day.month < 6, "yes", "no"),
                  "new": day.month > 9, "price": rng.uniform(0, 900, ROWS).round(2), "visits": rng.integers(0, 9, ROWS),
                  "note": rng.choice(["it's", 'a "b"', "c\nd", ""], ROWS)}).to_csv(folder / "clinic.csv", index=False)
    (folder / "clinic.yaml").write_text(CLINIC)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["train", "data=clinic.csv", "data.schema=clinic.yaml", f"data.rows={ROWS}", "run.name=c",
                         *TINY]) == 0
        assert typed("sample run=c rows=300 to=clinic.sql id=row") == 0
    return folder


def test_released_rows_are_spelled_as_the_source_is(clinic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clinic)
    assert typed("sample run=c rows=300 to=rows.csv given.paid=yes") == 0
    rows = pd.read_csv("rows.csv", dtype=str)
    assert set(rows["paid"]) == {"yes"}
    assert set(rows["new"]) == {"True", "False"}
    assert rows["seen"].str.fullmatch(r"\d\d\.\d\d\.2020").all()
    assert rows["opens"].between("07:00", "12:00").all()
    pd.read_csv("clinic.csv", dtype=str).assign(paid=None, new=None, opens=None).to_csv("holes.csv", index=False)
    assert typed("impute run=c data=holes.csv draws=1 to=filled") == 0
    filled = pd.read_csv("filled/draw-1.csv", dtype=str)
    assert [set(filled[name]) for name in ("paid", "new")] == [{"no", "yes"}, {"False", "True"}]


@pytest.mark.parametrize("given", ["seen=2020-03-01..2020-03-31", "left=2020-03-01..2020-03-31T23:00",
                                   "seen=01.03.2020..31.03.2020", "opens=08:00..09:00:00", "new=true", "paid=Yes"])
def test_a_condition_is_written_as_its_column_is_or_as_iso_has_it(
    given: str, clinic: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clinic)
    assert typed(f"sample run=c rows=50 given.{given} to=given.csv") == 0
    rows = pd.read_csv("given.csv", dtype=str)
    held = {"seen": lambda x: x.endswith(".03.2020"), "left": lambda x: x.startswith("2020-03"),
            "opens": lambda x: "08:00" <= x <= "09:00", "new": "True".__eq__, "paid": "yes".__eq__}
    name = given.partition("=")[0]
    assert rows[name].map(held[name]).all()


SQL_TYPES = {"row": "BIGINT", "seen": "DATE", "left": "TIMESTAMP WITHOUT TIME ZONE", "opens": "TIME WITHOUT TIME ZONE",
             "paid": "BOOLEAN", "new": "BOOLEAN", "price": "NUMERIC(5, 2)", "visits": "BIGINT", "note": "TEXT"}


def test_a_test_database_has_the_types_that_kinds_stand_for(clinic: Path) -> None:
    base = sqlite3.connect(":memory:")
    base.executescript((clinic / "clinic.sql").read_text())
    assert {name: kind for _, name, kind, *_ in base.execute("PRAGMA table_info(clinic)")} == SQL_TYPES
    assert base.execute("SELECT count(*), count(DISTINCT paid), max(paid) FROM clinic").fetchone() == (300, 2, 1)
    assert base.execute("SELECT count(*) FROM clinic WHERE seen BETWEEN '2020-01-01' AND '2020-12-31'").fetchone() == (
        300,)


def test_a_test_database_loads_into_postgresql(clinic: Path, cluster: Cluster) -> None:
    psycopg = pytest.importorskip("psycopg")
    with psycopg.connect(cluster.new_database()) as base:
        base.execute((clinic / "clinic.sql").read_text().replace("BEGIN;", "").replace("COMMIT;", ""))
        found = base.execute("SELECT pg_typeof(min(seen))::text, pg_typeof(min(opens))::text, pg_typeof(sum(price))::"
                             "text, bool_or(paid), min(seen) >= '2020-01-01' FROM clinic").fetchall()
    assert found == [("date", "time without time zone", "numeric", True, True)]


def test_another_balance_is_what_was_asked_for(here: Path) -> None:
    assert typed("sample run=one rows=2000 balance=even to=even.csv") == 0
    assert pd.read_csv("even.csv")["income"].value_counts(normalize=True)["high"] == pytest.approx(0.5, abs=0.03)
    assert cli.main(["sample", "run=one", "rows=500", 'balance={"high": 1, "low": 0}', "to=high.csv"]) == 0
    assert (pd.read_csv("high.csv")["income"] == "high").all()


def test_partial_rows_are_completed_in_their_order(here: Path) -> None:
    pd.DataFrame({"city": ["north", None, "east"], "age": [20, 70, None]}).to_csv("partial.csv", index=False)
    assert typed("sample run=one given=partial.csv to=full.csv") == 0
    full = pd.read_csv("full.csv")
    assert list(full.columns) == ["age", "city", "pay", "income"]
    assert full["city"].tolist()[::2] == ["north", "east"]
    assert full["age"].tolist()[:2] == [20, 70]
    assert not full.isna().any().any()
    pd.DataFrame({"city": ["south"]}).to_csv("one.csv", index=False)
    assert typed("sample run=one given=one.csv rows=3 to=three.csv") == 0
    assert pd.read_csv("three.csv")["city"].tolist() == ["south"] * 3


def test_holes_are_filled_and_nothing_else_is_touched(here: Path) -> None:
    frame = people()
    rng = np.random.default_rng(1)
    holed = frame.astype(object).mask(rng.random(frame.shape) < 0.2)
    holed.to_csv("holes.csv", index=False)
    assert typed("impute run=one data=holes.csv draws=3 to=filled") == 0
    drawn = [pd.read_csv(f"filled/draw-{i}.csv") for i in (1, 2, 3)]
    seen = pd.read_csv("holes.csv").notna().to_numpy()
    for full in drawn:
        assert not full.isna().any().any()
        assert (full.to_numpy()[seen] == frame.to_numpy()[seen]).all()
    assert not drawn[0].equals(drawn[1])
    known = seen[:, 0] & ~seen[:, 3]  # the age is seen, the income that follows from it is not
    right = (drawn[0]["income"] == frame["income"])[known].mean()
    assert right > 0.65
    assert typed("impute run=one data=holes.csv to=filled") == 2


def test_a_parquet_table_keeps_its_types(here: Path) -> None:
    frame = people().astype({"age": "Int64"})
    frame.loc[:50, "age"] = pd.NA
    frame.to_parquet("holes.parquet")
    assert typed("impute run=one data=holes.parquet draws=1 to=typed") == 0
    full = pd.read_parquet("typed/draw-1.parquet")
    assert str(full["age"].dtype) in ("int64", "Int64")
    columns = json.loads(Path("runs/one/public/schema.json").read_text())["columns"]
    age = next(column for column in columns if column["name"] == "age")  # bounds were measured with noise
    assert full["age"].between(min(17, age["lower"]), max(81, age["upper"])).all()


@pytest.mark.parametrize(("line", "message"), [
    ("sample run=one given.city=nort to=x.csv", "did you mean 'north'"),
    ("sample run=one given.town=north to=x.csv", "not in the schema; expected one of age, city, pay, income"),
    ("sample run=one given.age=300..400 to=x.csv", "expected a low and a high end"),
    ("sample run=one to=x.txt", "unknown ending"), ("sample run=one balance=odd to=x.csv", "given="),
    ("sample run=one id=age to=x.csv", "has a column of that name"),
    ("score run=one to=x.csv", "data=null"), ("score run=one data=none.csv to=x.csv", "no such file"),
    ("score run=one data=people.csv score=iwa", "did you mean 'iwae'"),
    ("score run=none data=people.csv", "not a run folder"), ("impute run=one data=people.csv draws=0", "draws=0")])
def test_a_mistake_is_told_in_one_line_and_leaves_no_file(line: str, message: str, here: Path,
                                                         capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(line) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not Path("x.csv").exists()
