"""The verbs as functions: what they read, what they spend, what they refuse, and what comes back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dpvae
from dpvae import api
from dpvae.config import ReleaseConfig, TrainConfig, build
from dpvae.errors import BudgetError, ConfigError, DataError, ReleaseError, RunError
from dpvae.privacy.ledger import Ledger
from dpvae.train.dpsgd import PrivateSteps

TINY = {"trainer": {"fit_steps": 5, "steps": 2, "sleep_steps": 5},
        "model": {"components": 16, "latent_dim": 4, "hidden": 8},
        "performance": {"threads": 1}, "report": {"progress": "quiet"}}
ROWS = 300


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(**groups: dict[str, Any]) -> TrainConfig:
    merged = {group: {**TINY.get(group, {}), **groups.get(group, {})} for group in {*TINY, *groups}}
    return build(TrainConfig, merged)


def frame(rows: int = ROWS) -> pd.DataFrame:
    rng = np.random.default_rng(rows)
    return pd.DataFrame({
        "age": rng.integers(17, 90, rows), "sex": rng.choice(["Female", "Male"], rows),
        "pay": np.where(rng.random(rows) < 0.2, np.nan, np.round(rng.gamma(2.0, 100.0, rows), 2)),
        "joined": pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 700, rows), unit="D"),
        "retired": rng.random(rows) < 0.3, "grade": pd.Categorical(rng.choice(["a", "b", "c"], rows))})


def arrow(rows: int = ROWS) -> pa.Table:
    return pa.Table.from_pandas(frame(rows), preserve_index=False)


def as_csv(folder: Path) -> Path:
    frame().to_csv(folder / "people.csv", index=False)
    return folder / "people.csv"


def as_parquet(folder: Path) -> Path:
    pq.write_table(arrow(), folder / "people.parquet")
    return folder / "people.parquet"


def as_polars(folder: Path) -> Any:
    return pytest.importorskip("polars").from_arrow(arrow().drop_columns(["grade"]))


SOURCES: dict[str, Callable[[Path], Any]] = {
    "csv": as_csv, "parquet": as_parquet, "pandas": lambda folder: frame(), "arrow": lambda folder: arrow(),
    "polars": as_polars}


def train(source: Any, **groups: dict[str, Any]) -> api.Run:
    if isinstance(source, Path):
        return api.train(config(**{**groups, "data": {"path": str(source), **groups.get("data", {})}}))
    return api.train(config(**groups), source)


def public(run: api.Run, name: str) -> Any:
    return json.loads((run.path / "public" / name).read_text())


def ledger(home: Path) -> Ledger:
    return Ledger.open(home / "runs" / "ledger.db")


def reservations(home: Path) -> int:
    return sum(row.kind == "reserve" for row in ledger(home).rows())


class Killed(BaseException):
    """Stands in for a signal: no handler of errors sees it."""


@pytest.fixture
def killed_in_dpsgd(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """The second step of DP-SGD dies, until the fixture is called."""
    with monkeypatch.context() as patched:
        step = PrivateSteps.step

        def dying(self: PrivateSteps, number: int, *rest: Any) -> Any:
            if number == 1:
                raise Killed
            return step(self, number, *rest)

        patched.setattr(PrivateSteps, "step", dying)
        yield lambda: patched.setattr(PrivateSteps, "step", step)


# -- plan --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [
    pytest.param(b'1,2,3,4,5\n"never closed' + b"\0" * 2**16, id="ragged rows"),
    pytest.param(b"", id="bytes that are no text"),
])
def test_plan_reads_the_header_of_a_csv_whose_rows_are_garbage(start: bytes, home: Path) -> None:
    path = home / "broken.csv"
    path.write_bytes(b"age,sex,pay\n" + start + bytes(range(128, 256)) * 40)
    planned = api.plan(config(data={"path": str(path), "target": "sex"}))
    assert planned.facts.columns == 3
    assert planned.epsilon is not None
    assert 0.99 < planned.epsilon.upper <= 1.0
    with pytest.raises(DataError, match=r"UTF-8|has 5 cells"):
        train(path)
    assert not (home / "runs").exists()


def test_plan_reads_the_footer_of_a_parquet_file_whose_pages_are_corrupt(home: Path) -> None:
    whole = as_parquet(home)
    planned = api.plan(config(data={"path": str(whole)}))
    data = bytearray(whole.read_bytes())
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    data[4:footer] = b"\xff" * (footer - 4)
    whole.write_bytes(bytes(data))
    assert api.plan(config(data={"path": str(whole)})) == planned
    with pytest.raises(DataError, match="not a readable Parquet file"):
        train(whole)
    assert not (home / "runs").exists()


def test_plan_writes_nothing(home: Path) -> None:
    path = as_csv(home)
    before = sorted(home.rglob("*"))
    assert "nothing was spent" in str(api.plan(config(data={"path": str(path)})))
    assert sorted(home.rglob("*")) == before


# -- train -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES)
def test_a_run_spends_what_was_planned_and_books_it_once(source: str, home: Path) -> None:
    table = SOURCES[source](home)
    run = train(table, data={"target": "sex"})
    assert run.epsilon.upper <= 1.0
    assert json.loads((run.path / "run.json").read_text())["status"] == "finished"
    drawn = [json.loads(line) for line in (run.path / "public" / "events.jsonl").read_text().splitlines()]
    assert len(drawn) == len(run.plan.events())
    assert reservations(home) == 1
    dataset = "people" if isinstance(table, Path) else "table"
    assert ledger(home).events(dataset) == list(run.plan.events())
    assert [row.kind for row in ledger(home).rows()] == ["reserve", "commit"]
    assert not (run.path / "private" / "key").exists()


@pytest.mark.parametrize("source", ["parquet", "arrow"])  # of a pandas frame: what the survey says, as of a CSV
def test_types_come_back_as_they_were(source: str, home: Path) -> None:
    run = train(SOURCES[source](home))
    api.release(home / "out", run, rows=50)
    released, original = pq.read_table(home / "out" / "data"), pq.read_table(as_parquet(home))
    assert released.num_rows == 50
    assert {f.name: str(f.type) for f in released.schema} == {f.name: str(f.type) for f in original.schema}


def test_a_declared_csv_comes_back_in_the_declared_kinds(home: Path) -> None:
    (home / "schema.yaml").write_text("""
columns:
  age: {kind: integer, min: 0, max: 120}
  sex: {kind: categorical, categories: [Female, Male]}
  pay: {kind: continuous, min: 0, max: 5000, decimals: 2, missing: true}
  joined: {kind: datetime, min: 2020-01-01, max: 2022-01-01, format: "%Y-%m-%d"}
  retired: {kind: boolean}
  grade: {kind: categorical, categories: [a, b, c]}
""")
    run = train(as_csv(home), data={"schema": "schema.yaml", "rows": ROWS})
    api.release(home / "out", run)
    released = pq.read_table(home / "out" / "data").to_pandas()
    assert len(released) == ROWS  # the declared number, where none is asked for
    assert [str(dtype) for dtype in released.dtypes] == ["int64", "str", "float64", "str", "bool", "str"]
    assert released["age"].between(0, 120).all()
    assert set(released["sex"]) <= {"Female", "Male"}
    days = pd.to_datetime(released["joined"], format="%Y-%m-%d")
    assert days.between("2020-01-01", "2022-01-01").all()


def test_declared_bins_leave_nothing_to_survey(home: Path) -> None:
    (home / "schema.yaml").write_text("columns: {age: {kind: integer, min: 0, max: 120, edges: [0, 30, 120]}}")
    run = train(frame()[["age"]], data={"schema": "schema.yaml", "rows": ROWS})
    assert run.plan.facts.survey_steps == ()
    assert public(run, "schema.json")["columns"][0]["edges"] == [-0.5, 29.5, 120.5]


@pytest.mark.parametrize("declared", [ROWS, None], ids=["rows declared", "rows measured"])
def test_one_row_more_changes_neither_plan_nor_steps_nor_rate_nor_divisor(
    declared: int | None, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[int, float]] = []
    step = PrivateSteps.step

    def watched(self: PrivateSteps, number: int, *rest: Any) -> Any:
        steps.append((number, float(self.optimizer.expected_batch_size)))
        return step(self, number, *rest)

    monkeypatch.setattr(PrivateSteps, "step", watched)
    more = pd.concat([frame(), frame(7)[:1]], ignore_index=True)
    runs = [train(table, data={"rows": declared}, run={"name": f"rows-{len(table)}"}) for table in (frame(), more)]
    for name in ("plan.json", "events.jsonl", "config.json"):
        one, two = ((run.path / "public" / name).read_text() for run in runs)
        assert one.replace(runs[0].path.name, "") == two.replace(runs[1].path.name, ""), name
    assert runs[0].plan == runs[1].plan
    assert [number for number, _ in steps] == [0, 1, 0, 1]
    assert runs[0].plan.sgd is not None
    rate = runs[0].plan.sgd.sampling_rate
    for run, (_, divisor) in zip(runs, steps[::2], strict=True):
        # the number of rows declared, or the noisy one released: a function of what is public, never of the rows
        released = declared or public(run, "claim.json")["n_ref"]
        assert divisor == public(run, "claim.json")["divisor"] == rate * released


def test_a_finished_run_is_not_spent_twice(home: Path) -> None:
    first = train(frame(), run={"name": "one"})
    model = (first.path / "public" / "model.safetensors").read_bytes()
    head = ledger(home).head()
    again = train(frame(), run={"name": "one"})
    assert "nothing was spent" in again.note
    assert (again.path, again.plan, again.epsilon) == (first.path, first.plan, first.epsilon)
    assert (first.path / "public" / "model.safetensors").read_bytes() == model
    assert ledger(home).head() == head


def test_two_unnamed_runs_are_two_spends(home: Path) -> None:
    assert train(frame()).path != train(frame()).path
    assert reservations(home) == 2


def test_an_interrupted_unnamed_run_is_resumed_and_counted_once(
    home: Path, killed_in_dpsgd: Callable[[], None]
) -> None:
    with pytest.raises(Killed):
        train(frame())
    assert reservations(home) == 1  # a crash counts as spent
    (started,) = [path.parent for path in (home / "runs").glob("*/run.json")]
    killed_in_dpsgd()
    run = train(frame())
    assert run.path.resolve() == started.resolve()
    assert [row.kind for row in ledger(home).rows()] == ["reserve", "commit"]
    api.release(home / "out", run, rows=10)
    assert dpvae.verify(home / "out").ok


def test_other_rows_may_not_finish_an_interrupted_run(home: Path, killed_in_dpsgd: Callable[[], None]) -> None:
    with pytest.raises(Killed):
        train(frame(), run={"name": "one"})
    killed_in_dpsgd()
    other = frame()
    other.loc[0, "age"] += 1
    with pytest.raises(RunError, match="changed since"):
        train(other, run={"name": "one"})
    assert reservations(home) == 1
    assert train(frame(), run={"name": "one"}).epsilon.upper <= 1.0  # the right rows still can


def test_other_settings_under_the_same_name_are_refused(home: Path) -> None:
    train(frame(), run={"name": "one"})
    head = ledger(home).head()
    with pytest.raises(RunError, match="other settings"):
        train(frame(), run={"name": "one"}, privacy={"epsilon": 2.0})
    assert ledger(home).head() == head


def test_a_cap_refuses_a_run_and_nothing_is_spent_or_left_behind(home: Path) -> None:
    with pytest.raises(BudgetError, match=r"cap 0\.5"):
        train(frame(), ledger={"cap_epsilon": 0.5}, run={"name": "one"})
    assert ledger(home).events("table") == []
    assert not (home / "runs" / "one").exists()


def test_a_cap_refuses_the_second_run_on_the_same_data(home: Path) -> None:
    train(frame(), ledger={"cap_epsilon": 1.1})
    with pytest.raises(BudgetError, match="left of dataset 'table'"):
        train(frame(), run={"name": "two"})
    assert reservations(home) == 1
    assert ledger(home).spent("table", 1e-6).upper <= 1.1


# -- release -----------------------------------------------------------------------------------------------------------


def test_a_release_verifies_and_says_what_the_run_says(home: Path) -> None:
    run = train(frame(), data={"target": "sex"}, run={"name": "one"})
    to = api.release(ReleaseConfig(run="one", rows=123, to=str(home / "out")))
    assert pq.read_table(to / "data").num_rows == 123
    verdict = dpvae.verify(to)
    assert verdict.ok
    assert verdict.epsilon.upper == pytest.approx(run.epsilon.upper, rel=1e-3)
    assert (verdict.epsilon.delta, verdict.epsilon.unit) == (run.epsilon.delta, "row")


def test_a_release_is_a_function_of_run_seed_and_rows(home: Path) -> None:
    run = train(frame())
    tables = [pq.read_table(api.release(home / f"out{i}", run, rows=80, seed=seed) / "data")
              for i, seed in enumerate((0, 0, 1))]
    assert tables[0].equals(tables[1])
    assert not tables[0].equals(tables[2])


def test_a_run_with_a_fixed_secret_seed_is_refused_a_release(home: Path) -> None:
    run = train(frame(), privacy={"secret_seed": 1})
    assert public(run, "claim.json")["private"] is False
    with pytest.raises(ReleaseError, match="NOT PRIVATE"):
        api.release(home / "out", run, rows=10)
    assert not (home / "out").exists()


def test_only_what_holds_a_run_can_be_released(home: Path) -> None:
    for model in (None, 3, frame(10), dpvae.DPVAE()):
        with pytest.raises(ConfigError, match="expected a fitted DPVAE or a Run"):
            api.release(home / "out", model, rows=10)


def test_verbs_that_share_a_subpackages_name_stay_callable(home: Path) -> None:
    run = dpvae.train(config(), frame())  # has imported dpvae.train.run and others by now
    assert dpvae.train(config(run={"name": "again"}), frame()).path != run.path
    for name in ("out", "again"):
        dpvae.release(home / name, run, rows=10)
    import dpvae.release.sample as sample
    import dpvae.train.run as folder

    assert callable(sample.sample_codes)
    assert callable(folder.find_run)


def test_a_delta_too_large_for_the_counted_rows_is_refused_once_they_are_counted(home: Path) -> None:
    """Declared, 600 rows would be refused before anything is spent; counted, only after the count was released."""
    with pytest.raises(ConfigError, match=r"privacy\.delta=0\.01: .* rows were counted; this run stays booked\)"):
        api.train(config(privacy={"delta": 0.01, "epsilon": 5.0}, run={"name": "a"}), arrow(600))
    assert [row.kind for row in Ledger.open("runs/ledger.db").rows()] == ["reserve"]
    api.train(config(privacy={"delta": 1e-4, "epsilon": 5.0}, run={"name": "b"}), arrow(600))


def test_a_person_is_warned_of_columns_that_the_noise_will_hide_before_anything_is_booked(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*given: Any) -> None:
        raise BudgetError("nothing is booked")

    monkeypatch.setattr(api, "reserve", refuse)
    wide = pd.concat([frame(150)] * 4, axis=1).set_axis([f"c{i}" for i in range(24)], axis=1)
    for style, told in (("plain", "Few rows for so much noise: the kind and the range of many columns"),
                        ("json", '{"warning": "Few rows'), ("quiet", "")):
        with pytest.raises(BudgetError):
            api.train(config(data={"rows": 150}, privacy={"epsilon": 0.5}, report={"progress": style}), wide)
        assert capsys.readouterr().err.startswith(told)
        assert told or not capsys.readouterr().err
