"""``dpvae evaluate``: says that it is sealed, writes where it is told and nowhere that is published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dpvae import cli
from dpvae.config import EvaluateConfig
from dpvae.data import lake
from dpvae.data.schema import Column, Schema
from dpvae.errors import DataError
from dpvae.evaluate.judge import SEALED, evaluate, read_synthetic

COMMAND = ["evaluate", "real=train.csv", "test=test.csv", "synth=release", "target=rich"]


def csv(rows: int, seed: int) -> str:
    rng = np.random.default_rng(seed)
    age, city = rng.integers(18, 80, rows), rng.choice(["north", "south"], rows)
    return "age,city,rich\n" + "".join(
        f"{a},{c},{'yes' if a + 10 * rng.normal() > 50 else 'no'}\n" for a, c in zip(age, city, strict=True))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Real rows, and a folder that looks like a release of as many rows."""
    monkeypatch.chdir(tmp_path)
    for name, seed in (("train", 0), ("test", 1)):
        Path(f"{name}.csv").write_text(csv(600, seed))
    Path("release/data").mkdir(parents=True)
    Path("s.csv").write_text(csv(600, 2))
    table = lake.read("s.csv")
    typed = lake.read({"age": table.cells[0].values.astype(int), "city": table.cells[1].values,
                       "rich": table.cells[2].values})
    lake.write_parquet(typed.take(np.arange(300)), "release/data/part-00000.parquet")
    lake.write_parquet(typed.take(np.arange(300, 600)), "release/data/part-00001.parquet")
    Path("release/certificate.json").write_text("{}")
    Path("s.csv").unlink()
    return tmp_path


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_the_verb_prints_the_judgement_says_it_is_sealed_and_writes_nothing(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(here)
    assert cli.main(COMMAND) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"SEALED: {SEALED}\n")
    assert "600 train rows, 600 synth rows, 600 test rows" in out
    assert "predicting rich = yes on real test rows" in out
    assert files(here) == before


def test_the_json_has_the_names_that_outside_judges_use_and_no_nan(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*COMMAND, "format=json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=lambda text: pytest.fail(text))
    assert found["sealed"] == SEALED
    assert found["tstr"]["gb"]["roc_auc"] > 0.8
    assert found["trtr"]["lr"]["roc_auc"] > 0.8
    assert 0 < found["fidelity"]["tvd_2way"] < 0.3
    assert found["fidelity"]["rank_correlation_error"] is None  # age is the only number
    assert found["target"]["positive"] == "yes"


def test_all_parts_of_a_release_are_read_and_its_folder_or_a_file_will_do(here: Path) -> None:
    whole = read_synthetic("release")
    assert whole.rows == 600
    assert read_synthetic("release/data").rows == 600
    assert read_synthetic("release/data/part-00000.parquet").rows == 300
    assert pq.read_table("release/data")["city"].to_pylist() == whole.column("city").values.tolist()
    with pytest.raises(DataError, match="no Parquet file there"):
        read_synthetic(here / "release" / "..")


def test_a_sealed_file_is_written_for_its_owner_where_it_was_told(here: Path) -> None:
    found = evaluate(EvaluateConfig(real="train.csv", synth="release", test="test.csv", to="sealed.json"))
    assert json.loads(Path("sealed.json").read_text()) == json.loads(json.dumps(found.to_dict()))
    assert Path("sealed.json").stat().st_mode & 0o077 == 0
    assert found.utility is None


@pytest.mark.parametrize(("to", "says"), [
    ("release/sealed.json", "lies in the release"), ("release/data/x.json", "lies in the release"),
    ("link/x.json", "lies in the release"), ("runs/a/public/x.json", "the public half of a run"),
    ("release/..", "is a folder"), ("nowhere/x.json", "its folder does not exist"), ("''", "expected a name")])
def test_a_place_that_is_published_is_refused_and_nothing_is_computed(
    here: Path, capsys: pytest.CaptureFixture[str], to: str, says: str
) -> None:
    Path("link").symlink_to(here / "release" / "data")
    Path("runs/a/public").mkdir(parents=True)
    Path("runs/a/run.json").write_text("{}")
    before = files(here)
    assert cli.main([*COMMAND, f"to={to}"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert says in err
    assert files(here) == before


@pytest.mark.parametrize(("words", "says"), [
    (["evaluate"], "real: expected a table; try dpvae evaluate real=TRAIN.csv"),
    (["evaluate", "real=train.csv"], "synth: expected a table"),
    (["evaluate", "real=train.csv", "synth=release", "target=rich"], "test=null: a target needs real rows"),
    ([*COMMAND[:-1], "target=rih"], "target='rih': no such column; did you mean 'rich'?"),
    ([*COMMAND[:-1], "target=age"], "has 62 values in the real table; expected two"),
    ([*COMMAND[:1], "real=no.csv", *COMMAND[2:]], "data='no.csv': no such file"),
    ([*COMMAND, "bins=1"], "bins=1: expected a whole number >= 2"),
    ([*COMMAND, "format=xml"], "format='xml': expected one of text, json"),
    ([*COMMAND, "public_bins=true"], "schema.json is absent"),
    (["evaluate", "real=train.csv", "synth=narrow.csv"], "column='city': in the real table, but not in narrow.csv"),
])
def test_a_mistake_is_told_in_one_line(here: Path, capsys: pytest.CaptureFixture[str], words: list[str],
                                       says: str) -> None:
    Path("narrow.csv").write_text("age,rich\n1,no\n2,yes\n")
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith("dpvae: error: ")
    assert err.count("\n") == 1
    assert says in err


def test_public_bins_are_those_of_the_release_s_schema(here: Path) -> None:
    schema = Schema((Column("age", "integer", "csv", False, lower=0, upper=99, heaps=(), edges=(-0.5, 49.5, 99.5)),
                     Column("city", "categorical", "csv", False, categories=("south", "north"), other=False),
                     Column("rich", "categorical", "csv", False, categories=("no", "yes"), other=False)), "rich")
    Path("release/schema.json").write_text(json.dumps(schema.to_dict()))
    found = evaluate(EvaluateConfig(real="train.csv", synth="release", public_bins=True))
    older = [np.mean(table.column("age").values.astype(int) > 49) for table in (lake.read("train.csv"),
                                                                                   read_synthetic("release"))]
    assert found.fidelity.per_column["age"] == pytest.approx(abs(older[0] - older[1]))


def test_columns_that_only_the_synthetic_table_has_are_left_out(here: Path) -> None:
    shutil.rmtree("release")
    Path("wide.csv").write_text("row," + csv(600, 0).replace("\n", "\n1,")[:-3] + "\n")
    found = evaluate(EvaluateConfig(real="train.csv", synth="wide.csv"))
    assert found.fidelity.tvd_2way_max == 0.0


@pytest.mark.parametrize("chosen", [False, True])
def test_a_release_of_a_part_of_a_table_is_judged_by_that_part(here: Path, chosen: bool) -> None:
    columns = (Column("age", "integer", "csv", False), Column("city", "categorical", "csv", False),
               Column("rich", "categorical", "csv", False))
    schema = Schema(columns[:2] if chosen else columns, where="city = 'north'", chosen=chosen)
    Path("release/schema.json").write_text(json.dumps(schema.to_dict()))
    found = evaluate(EvaluateConfig(real="train.csv", test="test.csv", synth="release"))
    north = {name: int((lake.read(f"{name}.csv").column("city").values == "north").sum()) for name in ("train", "test")}
    assert found.rows == north | {"synth": 600}
    assert set(found.fidelity.per_column) == {"age", "city"} | (set() if chosen else {"rich"})
    assert found.to_dict()["where"] == "city = 'north'"
    assert "real ones where city = 'north'" in str(found)
