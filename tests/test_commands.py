"""The commands of the README as they are typed, from a table to a verified release; and how odd tables come back."""

from __future__ import annotations

import csv
import datetime
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpvae import cli
from dpvae.config import RunConfig, TrainConfig
from dpvae.privacy.ledger import Ledger

TINY = ["trainer.fit_steps=5", "trainer.steps=2", "trainer.sleep_steps=5", "model=small", "report.progress=quiet"]
SMOKE = ["train", "experiment=smoke"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def typed(line: str) -> int:
    return cli.main(line.split())


def some_of_adult(rows: int = 100, columns: int = 3) -> None:
    """TABLE.csv and SCHEMA.yaml: rows of the built-in table as a person has them."""
    from dpvae.data import builtin

    table = pq.read_table(builtin.path("adult")).slice(0, rows)
    table = table.select(table.column_names[-columns:])
    with Path("TABLE.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table.column_names)
        writer.writerows(row.values() for row in table.to_pylist())
    Path("SCHEMA.yaml").write_bytes(builtin.schema("adult").read_bytes())


def test_the_commands_of_the_readme_work_as_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some_of_adult(400, columns=15)
    assert typed("plan data=adult privacy.epsilon=1") == 0
    assert {path.name for path in here.iterdir()} == {"TABLE.csv", "SCHEMA.yaml"}
    train = "train data=TABLE.csv data.target=income data.rows=400 privacy.epsilon=1 privacy.delta=1e-5 run.name=adult1"
    assert cli.main([*train.split(), *TINY]) == 0
    assert "next     dpvae release run=adult1 rows=400 to=release/adult1" in capsys.readouterr().out
    assert typed(f"train data=TABLE.csv data.schema=SCHEMA.yaml data.rows=400 {' '.join(TINY)}") == 0
    assert typed("release run=adult1 rows=300 to=FOLDER") == 0
    assert Path("FOLDER/certificate.json").is_file()
    table = pq.read_table("FOLDER/data")
    assert table.num_rows == 300
    assert ",".join(table.column_names) == Path("TABLE.csv").read_text().splitlines()[0]
    capsys.readouterr()
    assert cli.main(["verify", "FOLDER"]) == 0
    assert capsys.readouterr().out.startswith("This release is differentially private with epsilon <= ")


def test_a_run_is_named_by_its_name_its_folder_or_as_the_latest(here: Path) -> None:
    some_of_adult()
    for name in ("old", "new"):
        assert cli.main([*SMOKE, "data=TABLE.csv", "data.rows=100", f"run.name={name}"]) == 0
    for number, run in enumerate(("latest", "new", "runs/new", "./runs/new/", str(here / "runs/new"))):
        assert cli.main(["release", f"run={run}", "rows=20", f"to=out{number}"]) == 0
        first, this = (pq.read_table(f"out{n}/data/part-00000.parquet") for n in (0, number))
        assert this.equals(first)
        assert json.loads(Path(f"out{number}/certificate.json").read_text())["lineage"]["run"] == "new"


def test_what_train_says_is_next_works_as_it_stands_wherever_the_runs_are(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some_of_adult()
    assert cli.main([*SMOKE, "data=TABLE.csv", "data.rows=100", "run.root=else/where", "run.name=a"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("  next"))
    assert cli.main(line.split()[2:]) == 0
    assert cli.main(["verify", "release/a"]) == 0


def test_a_sweep_books_every_job_on_one_ledger(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some_of_adult()
    command = ["train", "-m", "privacy.epsilon=1,3,10", "experiment=smoke", "data=TABLE.csv", "data.rows=100"]
    assert cli.main([*command, "run.name=sweep"]) == 0
    ledger = Ledger.open("runs/ledger.db")
    assert sorted(row.kind for row in ledger.rows()) == ["commit"] * 3 + ["reserve"] * 3
    assert {row.dataset for row in ledger.rows()} == {"TABLE"}
    runs = sorted(path.name for path in Path("runs").iterdir() if path.is_dir())
    assert runs == ["sweep-privacy.epsilon=1", "sweep-privacy.epsilon=10", "sweep-privacy.epsilon=3"]
    assert ledger.spent("TABLE", 1e-5).upper > 10
    assert cli.main([*command, "run.name=sweep"]) == 0  # the same sweep again is finished, and spends nothing
    assert len(ledger.rows()) == 6
    assert all((path.parent / "public/claim.json").is_file() for path in Path("runs").glob("*/run.json"))


def test_runs_that_begin_in_the_same_second_do_not_meet(here: Path) -> None:
    from dpvae.train.run import open_run

    configs = [TrainConfig(run=RunConfig(seed=seed)) for seed in range(16)]
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(open_run, configs))
    assert len({run.path for run in runs}) == 16
    assert len({(run.private / "key").read_bytes() for run in runs}) == 16
    assert [open_run(config).path for config in configs] == [run.path for run in runs]  # each is resumed by its own
    assert {path.name for path in Path("runs").iterdir()} == {run.path.name for run in runs}


# -- tables that look wrong, and are not -----------------------------------------------------------------------------


def round_trip(table: pa.Table | str, *knobs: str, rows: int = 200) -> pa.Table:
    """The table trained, released and verified."""
    name = "t.csv" if isinstance(table, str) else "t.parquet"
    if isinstance(table, str):
        Path(name).write_text(table)
    else:
        pq.write_table(table, name)
    assert cli.main([*SMOKE, f"data={name}", "run.name=a", *knobs]) == 0
    assert cli.main(["release", "run=a", f"rows={rows}", "to=out"]) == 0
    assert cli.main(["verify", "out"]) == 0
    return pq.read_table("out/data/part-00000.parquet")


def test_constant_and_all_missing_columns_come_back(here: Path) -> None:
    n = 2000
    rng = np.random.default_rng(0)
    table = pa.table({
        "one": [1] * n, "word": ["same"] * n, "yes": [True] * n, "pi": [3.25] * n, "age": rng.integers(18, 80, n),
        "no_number": pa.nulls(n, pa.float64()), "no_whole": pa.nulls(n, pa.int32()),
        "no_word": pa.nulls(n, pa.string()),
        "no_date": pa.nulls(n, pa.timestamp("us")), "no_flag": pa.nulls(n, pa.bool_()), "nothing": pa.nulls(n),
        "day": pa.array([datetime.date(2020, 2, 29)] * n)})
    found = round_trip(table, f"data.rows={n}", "privacy.epsilon=10")
    assert found.schema.equals(table.schema)
    share = {name: sum(value == expected for value in found[name].to_pylist()) / len(found) for name, expected in
             {"one": 1, "word": "same", "yes": True, "pi": 3.25, "day": datetime.date(2020, 2, 29)}.items()}
    assert all(value > 0.9 for value in share.values()), share
    missing = {name: found[name].null_count / len(found) for name in table.column_names}
    assert all(value > 0.9 for name, value in missing.items() if name.startswith("no")), missing
    assert all(value < 0.1 for name, value in missing.items() if not name.startswith("no")), missing


def test_a_table_of_two_rows_trains(here: Path) -> None:
    found = round_trip(pa.table({"a": [1, 2], "b": ["x", "y"]}), rows=20)
    assert found.num_rows == 20


def test_a_csv_of_one_column_trains(here: Path) -> None:
    found = round_trip("a\n" + "".join(f"{i % 7}\n" for i in range(300)), "data.rows=300", "privacy.epsilon=10")
    assert found.column_names == ["a"]
    assert set(map(int, found["a"].to_pylist())) <= set(range(7))


NAMES = ["naïve ☃ 列", "a.b", "c=d, e", "  sp ", "'q\"", "{x}[1]", "${oc.env:HOME}", "-x", "null", "new\nline",
         "x" * 500]


@pytest.mark.parametrize("target", ["c=d, e", "${oc.env:HOME}", "naïve ☃ 列"])
def test_a_column_may_be_called_anything(here: Path, target: str) -> None:
    values: dict[str, Any] = {name: [1, 2] * 200 if i % 2 else ["x", "y"] * 200 for i, name in enumerate(NAMES)}
    said = target.replace("${", "\\${")  # ${...} is Hydra's own unless it is escaped
    found = round_trip(pa.table(values), "data.rows=400", f"data.target={said}", "privacy.epsilon=10")
    assert found.column_names == NAMES
    assert set(found["a.b"].to_pylist()) <= {1, 2}


def test_very_wide_text_is_a_category_like_any_other(here: Path) -> None:
    wide = ["x" * 100_000, "y" * 100_000]
    found = round_trip(pa.table({"w": wide * 200, "v": [1, 2] * 200}), "data.rows=400", "privacy.epsilon=10")
    assert set(found["w"].to_pylist()) <= {*wide, "(other)"}


def test_the_largest_numbers_and_the_odd_types_come_back_finite_and_typed(here: Path) -> None:
    table = pa.table({
        "huge": [1e308, -1e308] * 50, "tiny": [5e-324, 1e-300] * 50, "whole": [2**63 - 1, -2**63] * 50,
        "half": pa.array(np.array([60000, 2] * 50, np.float16)), "cents": pa.array([1, 2] * 50, pa.decimal128(6, 2)),
        "ages": pa.array([2**62, -2**62] * 50, pa.timestamp("ns")), "byte": pa.array([1, 255] * 50, pa.uint8()),
        "code": pa.array(["a", "b"] * 50).dictionary_encode(), "long": pa.array(["a", "b"] * 50, pa.large_string())})
    found = round_trip(table, "data.rows=100")
    assert found.schema.equals(table.schema)
    for name in ("huge", "tiny", "half"):
        assert np.isfinite(found[name].to_numpy().astype(np.float64)).all()
