"""The same promises on Delta, which has neither branches nor tags."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from lakehouse import grow, make, passed, people, typed, values

from dpvae.audit.published import verify_table
from dpvae.data.lake import register
from dpvae.data.lake.delta_home import DeltaHome
from dpvae.errors import DataError, ReleaseError
from dpvae.publish import publish

PEOPLE, SYNTH, SCORED = "delta:lake/people", "delta:lake/synth", "delta:lake/scored"
TINY = "experiment=smoke privacy.epsilon=20 data.rows=600 data.target=income"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("delta")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make(PEOPLE, people())
        assert typed(f"train data={PEOPLE} run.name=one {TINY}") == 0
        passed(Path("runs/one").absolute())()
    return folder


@pytest.fixture
def here(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return trained


def release(table: str, rows: int) -> str:
    run = Path("runs/one").absolute()
    return publish(run, table, rows=rows, seed=0, audit=passed(run))


def test_a_release_is_one_commit_that_verifies_and_the_one_before_is_kept(here: Path) -> None:
    first = release(f"{SYNTH}1", 50)
    release(f"{SYNTH}1", 70)
    assert len(values(f"{SYNTH}1")) == 70
    assert typed(f"verify {SYNTH}1") == 0
    assert verify_table(f"{SYNTH}1@{first}").ok
    newest = DeltaTable("lake/synth1").history(1)[0]
    assert json.loads(newest["userMetadata"])["dpvae.epsilon"] == newest["dpvae.epsilon"]
    assert newest["dpvae.source.table"] == PEOPLE
    DeltaTable("lake/synth1").vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    assert verify_table(f"{SYNTH}1@{first}").ok


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", ["create", "stage", "write"])
def test_a_killed_release_is_seen_whole_or_not_at_all_and_finishes(
    here: Path, step: str, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, real = f"{SYNTH}-{step}-{after}", getattr(DeltaHome, step)

    def killed(*args: object, **named: object) -> None:
        if after:
            real(*args, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DeltaHome, step, killed)
        with pytest.raises(KeyboardInterrupt):
            release(table, 50)
    seen = register.home(table).held()
    assert len(seen.files if seen else ()) == (1 if after and step == "write" else 0)
    release(table, 50)
    assert len(values(table)) == 50
    assert verify_table(table).ok


def test_somebody_who_writes_meanwhile_is_not_overwritten(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, writing = f"{SYNTH}2", DeltaHome.write
    release(table, 50)

    def late(home: DeltaHome, *args: object, **named: object) -> None:
        monkeypatch.setattr(DeltaHome, "write", writing)
        grow(table, people(3))
        writing(home, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(DeltaHome, "write", late)
    with pytest.raises(ReleaseError, match="somebody else wrote there meanwhile"):
        release(table, 70)
    assert len(values(table)) == 53
    assert not verify_table(table).ok


def test_scores_grow_with_the_table_and_a_new_column_is_refused(here: Path,
                                                                capsys: pytest.CaptureFixture[str]) -> None:
    line = f"score run=one data={PEOPLE} to={SCORED} workers=1 contributions=0"
    assert typed(line) == 0
    grow(PEOPLE, people(30, seed=1, first=600))
    assert typed(line) == 0
    assert "scored 30 rows" in capsys.readouterr().out
    assert sorted(row["key"] for row in values(SCORED)) == list(range(630))
    DeltaTable("lake/people").alter.add_columns([_field()])
    grow(PEOPLE, people(5, first=630).append_column("height", [[None] * 5]).cast(_with_height()))
    assert typed(line) == 2
    assert "column='height': is new" in capsys.readouterr().err
    assert len(values(SCORED)) == 630


def _field() -> object:
    from deltalake import Field
    from deltalake.schema import PrimitiveType

    return Field("height", PrimitiveType("long"))


def _with_height() -> object:
    import pyarrow as pa

    return people(1).schema.append(pa.field("height", pa.int64()))


def test_times_of_day_are_refused_in_one_line_before_a_table_is_made(tmp_path: Path) -> None:
    schema = pa.schema({"age": pa.int64(), "at": pa.time64("us")})
    with pytest.raises(DataError, match=r"column='at': time64\[us\], and Delta Lake has no times of day"):
        DeltaHome("delta:d", tmp_path / "d").create(schema)
    assert not (tmp_path / "d").exists()
