"""Write, audit, publish: readers of a lake table see the whole release, or what they saw before."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from lakehouse import PEOPLE, SYNTH, grow, make, passed, people, typed, values

from dpvae import publish as module
from dpvae.audit.published import verify_table
from dpvae.data.lake import iceberg, register
from dpvae.data.lake.iceberg_home import IcebergHome
from dpvae.errors import DataError, ReleaseError
from dpvae.publish import publish
from dpvae.release.certificate import Certificate


def release(rows: int = 50, seed: int = 0) -> str:
    run = Path("runs/one").absolute()
    return publish(run, SYNTH, rows=rows, seed=seed, audit=passed(run))


def refs(table: str = SYNTH) -> set[str]:
    return set(iceberg.table_of(table).metadata.refs)


def test_a_release_is_the_table_and_the_table_alone_verifies(here: Path) -> None:
    tag = release()
    assert len(values(SYNTH)) == 50
    verdict = verify_table(SYNTH)
    assert verdict.ok, str(verdict)
    assert verdict.sentence.endswith(f"The rows of {SYNTH} are those files.")
    assert refs() == {"main", tag}
    shutil.rmtree("runs")
    assert verify_table(SYNTH).ok
    assert typed(f"verify {SYNTH}") == 0


def test_the_snapshot_names_certificate_price_and_source(here: Path) -> None:
    release()
    home = register.home(SYNTH)
    held = home.held()
    assert held is not None
    marks = held.marks
    certificate = Certificate.from_bytes((home.folder() / marks["dpvae.release"] / "certificate.json").read_bytes())
    assert float(marks["dpvae.epsilon"]) == certificate.claim.epsilon.upper
    assert float(marks["dpvae.delta"]) == certificate.claim.delta
    assert marks["dpvae.ledger.head"] == certificate.evidence.ledger_head
    assert marks["dpvae.source.table"] == PEOPLE
    assert marks["dpvae.source.snapshot-id"].isdigit()
    footer = pq.read_metadata(held.files[0]).metadata
    assert footer[b"dpvae.certificate.sha256"].decode() == marks["dpvae.certificate.sha256"]


def test_a_release_takes_the_place_of_the_one_before_which_its_tag_keeps(here: Path) -> None:
    first = release(rows=50)
    second = release(rows=70)
    assert (len(values(SYNTH)), len(values(f"{SYNTH}@{first}"))) == (70, 50)
    assert verify_table(SYNTH).ok
    assert verify_table(f"{SYNTH}@{first}").ok
    assert refs() == {"main", first, second}


def test_the_same_release_twice_is_one(here: Path) -> None:
    before = release(), register.home(SYNTH).held()
    assert (release(), register.home(SYNTH).held()) == before


STEPS = [(module, "write_release"), (IcebergHome, "create"), (IcebergHome, "stage"), (module, "verify_table"),
         (IcebergHome, "publish")]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS, ids=[name for _, name in STEPS])
def test_a_command_that_is_killed_at_any_step_publishes_nothing_or_all_and_the_same_one_finishes(
    here: Path, step: tuple[object, str], after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, (owner, name) = release(rows=50), step
    real = getattr(owner, name)

    def killed(*args: object, **named: object) -> None:
        if after:
            real(*args, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed)
        with pytest.raises(KeyboardInterrupt):
            release(rows=70)
    seen = len(values(SYNTH))
    assert seen == (70 if after and name == "publish" else 50)
    assert verify_table(SYNTH).ok
    second = release(rows=70)
    assert len(values(SYNTH)) == 70
    assert verify_table(SYNTH).ok
    assert refs() == {"main", first, second}
    assert not list(register.home(SYNTH).folder().glob("*.partial"))


def test_what_a_killed_command_left_half_written_is_removed(here: Path) -> None:
    tag = release(rows=50)
    folder = register.home(SYNTH).folder()
    left = folder / f".{tag.removeprefix('dpvae-')}.xyz.partial"
    left.mkdir()
    release(rows=50)
    assert not left.exists()


def test_rows_that_nobody_signed_do_not_verify(here: Path) -> None:
    release()
    extra = people(3)
    home = register.home(SYNTH)
    pq.write_table(extra, home.folder() / "extra.parquet")
    held = home.held()
    assert held is not None
    home.write([home.folder() / "extra.parquet"], dict(held.marks), replace=False, expected=held.version)
    verdict = verify_table(SYNTH)
    assert not verdict.ok
    assert any("extra.parquet" in line and "signed" in line for line in verdict.problems)
    assert typed(f"verify {SYNTH}") == 1


def test_a_commit_of_somebody_else_does_not_verify_and_says_where_the_releases_are(here: Path) -> None:
    release()
    grow(SYNTH, people(3))
    verdict = verify_table(SYNTH)
    assert not verdict.ok
    assert "nobody signed" in verdict.problems[0]
    assert "tags" in verdict.problems[0]


@pytest.mark.parametrize("mark", ["dpvae.epsilon", "dpvae.certificate.sha256", "dpvae.rows"])
def test_a_mark_that_differs_from_the_certificate_is_named(here: Path, mark: str) -> None:
    release()
    home = register.home(SYNTH)
    held = home.held()
    assert held is not None
    home.write([Path(file) for file in held.files], {**held.marks, mark: "0.5"}, replace=True, expected=held.version)
    assert [line for line in verify_table(SYNTH).problems if line.startswith(f"{mark}: the table says")]


def test_a_changed_file_is_never_published(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = IcebergHome.stage

    def tampered(home: IcebergHome, name: str, files: list[Path], marks: dict[str, str]) -> None:
        stage(home, name, files, marks)
        table = pq.read_table(files[0])
        pq.write_table(table.slice(1), files[0])

    monkeypatch.setattr(IcebergHome, "stage", tampered)
    with pytest.raises(ReleaseError, match="is not published; data/part-00000"):
        release()
    assert values(SYNTH) == []


def test_a_failed_audit_writes_nothing(here: Path) -> None:
    run = Path("runs/one").absolute()
    (run / "public" / "audit.json").unlink()

    def failed() -> None:
        passed(run)()
        path = run / "public" / "audit.json"
        path.write_text(path.read_text().replace('"passed": true, "sentence"', '"passed": false, "sentence"'))

    with pytest.raises(ReleaseError, match="the audit of this run failed"):
        publish(run, SYNTH, rows=50, seed=0, audit=failed)
    held = register.home(SYNTH).held()
    assert held is None or not held.files


def test_a_table_with_rows_of_somebody_else_is_left_alone(here: Path) -> None:
    make(SYNTH, people(5))
    with pytest.raises(ReleaseError, match="holds rows that no release wrote"):
        release()
    assert len(values(SYNTH)) == 5


def test_a_table_with_other_columns_is_refused_by_the_column_s_name(here: Path) -> None:
    register.home(SYNTH).create(people(1).drop_columns(["pay"]).schema)
    with pytest.raises(DataError, match=r"column='pay' is not in the table that is there; it is new"):
        release()


def test_somebody_who_writes_between_staging_and_publishing_is_not_overwritten(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release(rows=50)
    publishing = IcebergHome.publish

    def late(home: IcebergHome, name: str, tag: str) -> None:
        monkeypatch.setattr(IcebergHome, "publish", publishing)
        grow(SYNTH, people(3))
        publishing(home, name, tag)

    monkeypatch.setattr(IcebergHome, "publish", late)
    with pytest.raises(ReleaseError, match="somebody else wrote there meanwhile"):
        release(rows=70)
    assert len(values(SYNTH)) == 53


def test_a_second_command_at_the_same_time_is_told_to_wait(here: Path) -> None:
    release()
    with register.alone(register.home(SYNTH)), pytest.raises(ReleaseError, match="another process is writing there"):
        release(rows=70)


def test_a_table_without_a_release_has_nothing_to_verify(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(SYNTH, people(5))
    for table in (SYNTH, "iceberg:demo.nowhere"):
        assert typed(f"verify {table}") == 2
        assert "no release was ever published to it" in capsys.readouterr().err


def test_without_a_catalog_the_way_to_one_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for line in ("train data=iceberg:demo.people", "verify iceberg:demo.synth", "lake show iceberg:demo.people"):
        assert typed(line) == 2
        err = capsys.readouterr().err
        assert "no Iceberg catalog is configured here" in err
        assert "dpvae lake init" in err
        assert err.count("\n") == 1
    assert os.listdir() == []


@pytest.mark.parametrize("kind", ["duckdb", "sqlite", "postgresql"])
def test_a_test_database_has_the_types_of_the_table_and_what_vouches_for_it(
        here: Path, kind: str, request: pytest.FixtureRequest) -> None:
    import sqlalchemy as sa

    to = request.getfixturevalue("cluster").new_database() if kind == "postgresql" else f"{kind}:dev.db"
    assert typed(f"release run=one rows=50 to={to}") == 0
    if kind == "duckdb":
        with duckdb.connect("dev.db") as held:
            types = {row[0]: row[1] for row in held.execute("DESCRIBE people").fetchall()}
            rows = held.execute("SELECT count(*), min(age) FROM people").fetchall()[0]
            notes = dict(held.execute("SELECT name, content FROM dpvae_release").fetchall())
    else:
        engine = sa.create_engine("sqlite:///dev.db" if kind == "sqlite" else to.replace("://", "+psycopg://", 1))
        with engine.connect() as held:
            types = {column["name"]: str(column["type"]) for column in sa.inspect(held).get_columns("people")}
            rows = held.execute(sa.text("SELECT count(*), min(age) FROM people")).one()
            notes = dict(map(tuple, held.execute(sa.text("SELECT name, content FROM dpvae_release"))))
        engine.dispose()
    assert (types["age"], types["city"]) == ("BIGINT", "VARCHAR" if kind == "duckdb" else "TEXT")
    assert types["pay"].startswith("DOUBLE")
    assert rows[0] == 50
    assert rows[1] >= 0
    certificate = Certificate.from_bytes(notes["certificate.json"].encode())
    assert certificate.scope.rows_released == 50
    assert {"events.jsonl", "schema.json"} <= set(notes)
