"""A lake table scored in place: every row once, whatever happens between two commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from lakehouse import PEOPLE, SCORED, grow, make, people, typed, values

from dpvae.data import lake
from dpvae.data.lake import iceberg, register
from dpvae.data.lake.iceberg_home import IcebergHome
from dpvae.release.scoring import Job, Scorer, Settings

SCORE = f"score run=one data={PEOPLE} to={SCORED} workers=1 contributions=1"


@pytest.fixture
def here(here: Path) -> Path:
    """The table that was trained on, in the warehouse."""
    make(PEOPLE, people())
    return here


def keys(table: str = SCORED) -> list[int]:
    return sorted(row["key"] for row in values(table))


def refused(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a refused command says, in one line; it wrote nothing."""
    before = values(SCORED) if _there() else None
    capsys.readouterr()
    assert typed(line) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert (values(SCORED) if _there() else None) == before
    return err


def _there() -> bool:
    return register.home(SCORED).held() is not None


def test_every_row_keeps_its_columns_and_gets_its_own_score(here: Path) -> None:
    assert typed(SCORE) == 0
    scored = {row["key"]: row for row in values(SCORED)}
    original = {row["key"]: row for row in values(PEOPLE)}
    assert {key: {name: row[name] for name in original[key]} for key, row in scored.items()} == original
    alone = Scorer([Path("runs/one/public")], Settings(contributions=1))
    for key in (0, 17, 599):
        one = alone.score_batch(pa.RecordBatch.from_pylist([original[key]], lake.source(PEOPLE).schema()))
        # the score to the bit; what explains it comes out of single precision, whose last digit is the batch's
        assert one.to_pylist()[0] == scored[key] | {"top_1_nats": pytest.approx(scored[key]["top_1_nats"], rel=1e-5)}


def test_with_an_identifier_the_scores_are_a_side_table_keyed_by_it(here: Path) -> None:
    assert typed(f"{SCORE} id=key") == 0
    assert lake.source(SCORED).schema().names == ["key", "score", "top_1", "top_1_nats"]
    assert keys() == list(range(600))


def test_a_second_command_scores_what_is_new_and_a_third_nothing(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(SCORE) == 0
    grow(PEOPLE, people(30, seed=1, first=600))
    capsys.readouterr()
    assert typed(SCORE) == 0
    assert "scored 30 rows (what is new since snapshot" in capsys.readouterr().out
    assert keys() == list(range(630))
    assert typed(SCORE) == 0
    assert "scored 0 rows (nothing is new since snapshot" in capsys.readouterr().out
    assert keys() == list(range(630))


def test_where_rows_were_deleted_all_are_scored_again_in_one_commit(here: Path,
                                                                    capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(SCORE) == 0
    iceberg.table_of(PEOPLE).delete("key < 100")
    assert typed(SCORE) == 0
    assert "scored 500 rows (all rows)" in capsys.readouterr().out
    assert keys() == list(range(100, 600))


def test_where_files_were_compacted_no_row_is_there_twice(here: Path) -> None:
    assert typed(SCORE) == 0
    table = iceberg.table_of(PEOPLE)
    table.overwrite(table.scan().to_arrow())
    assert typed(SCORE) == 0
    assert keys() == list(range(600))


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", [(Job, "score"), (IcebergHome, "write"), (IcebergHome, "create")],
                         ids=["score", "write", "create"])
def test_a_killed_command_leaves_no_row_twice_or_missing(here: Path, step: tuple[type, str], after: bool,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    assert typed(SCORE) == 0
    for part in range(3):
        grow(PEOPLE, people(20, seed=part, first=600 + 20 * part))
    owner, name = step
    real, calls = getattr(owner, name), iter(range(10))

    def killed(*args: Any, **named: Any) -> Any:
        if name == "score" and next(calls) < 1:
            return real(*args, **named)
        if after:
            real(*args, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed)
        assert typed(SCORE) == 130
    assert keys() == list(range(660 if after and name == "write" else 600))
    assert typed(SCORE) == 0
    assert keys() == list(range(660))


def drop(table: Any) -> None:
    with table.update_schema() as change:
        change.delete_column("pay")


def rename(table: Any) -> None:
    with table.update_schema() as change:
        change.rename_column("pay", "wage")


def add(table: Any) -> None:
    from pyiceberg.types import LongType

    with table.update_schema() as change:
        change.add_column("height", LongType())


def retype(table: Any) -> None:
    from pyiceberg.types import StringType

    with table.update_schema(allow_incompatible_changes=True) as change:
        change.delete_column("pay")
    with table.update_schema(allow_incompatible_changes=True) as change:
        change.add_column("pay", StringType())


DRIFT = {"dropped": (drop, "column='pay': was renamed or dropped"),
         "renamed": (rename, "column='pay': was renamed or dropped in iceberg:demo.people"),
         "new": (add, "column='height': is new"), "retyped": (retype, "column='pay': was double, is string")}


@pytest.mark.parametrize("scored", [False, True], ids=["since training", "since scoring"])
@pytest.mark.parametrize("drift", DRIFT)
def test_a_column_that_changed_between_snapshots_is_named_and_nothing_is_written(
    here: Path, drift: str, scored: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if scored:
        assert typed(SCORE) == 0
    change, says = DRIFT[drift]
    change(iceberg.table_of(PEOPLE))
    grow(PEOPLE, _fitting(people(5, seed=3, first=600), lake.source(PEOPLE).schema()))
    err = refused(SCORE, capsys)
    assert says in err
    assert "nothing was written" in err
    assert ("is it 'wage' now?" in err) == (drift == "renamed")


def _fitting(table: pa.Table, schema: pa.Schema) -> pa.Table:
    names = {"wage": "pay"}
    return pa.table({f.name: (table[names.get(f.name, f.name)] if names.get(f.name, f.name) in table.column_names
                              else pa.nulls(len(table))).cast(f.type) for f in schema})


def test_columns_that_neither_model_nor_result_holds_may_change(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = SCORE.replace("run=one", "run=part")
    for number, change in enumerate((add, retype)):  # since training, and since scoring
        change(iceberg.table_of(PEOPLE))
        grow(PEOPLE, _fitting(people(5, seed=3, first=600 + 5 * number).drop_columns("pay"),
                              lake.source(PEOPLE).schema()))
        assert typed(f"{part} id=key") == 0
        assert keys() == list(range(605 + 5 * number))
    with iceberg.table_of(PEOPLE).update_schema() as change:
        change.delete_column("city")
    grow(PEOPLE, _fitting(people(5, seed=4, first=610), lake.source(PEOPLE).schema()))
    assert "column='city': was renamed or dropped" in refused(f"{part} id=key", capsys)


def test_scores_that_keep_every_column_have_no_place_for_a_new_one(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = SCORE.replace("run=one", "run=part")
    assert typed(part) == 0
    add(iceberg.table_of(PEOPLE))
    grow(PEOPLE, _fitting(people(5, seed=3, first=600), lake.source(PEOPLE).schema()))
    assert "column='height': is new" in refused(part, capsys)


def test_a_renamed_column_of_old_files_is_read_under_its_new_name(here: Path) -> None:
    before = {row["key"]: row["pay"] for row in values(PEOPLE)}
    rename(iceberg.table_of(PEOPLE))
    assert {row["key"]: row["wage"] for row in values(PEOPLE)} == before


def test_scores_of_other_settings_or_other_rows_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(SCORE) == 0
    assert "the same model with other settings" in refused(f"{SCORE} score=elbo", capsys)
    assert "dpvae score did not write" in refused(SCORE.replace(f"to={SCORED}", f"to={PEOPLE}"), capsys)
    assert "copy it there first" in refused(SCORE.replace(f"data={PEOPLE}", "data=people.parquet"), capsys)
    assert "threshold=synthetic" in refused(f"{SCORE} threshold=private epsilon=0.1", capsys)


def test_a_file_is_read_in_batches_of_the_size_asked_for(here: Path) -> None:
    sizes = [batch.num_rows for batch in lake.source(PEOPLE).batches(250)]
    assert sizes == [250, 250, 100]


def test_a_lake_table_may_be_scored_into_a_file(here: Path) -> None:
    assert typed(f"score run=one data={PEOPLE} to=scores.parquet id=key") == 0
    assert lake.read("scores.parquet").column("key").values.tolist() == list(range(600))


def test_what_was_made_of_a_table_is_told_both_ways(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(SCORE) == 0
    capsys.readouterr()
    assert typed(f"lake show {PEOPLE}") == 0
    assert f"made from it: {SCORED}@" in capsys.readouterr().out
    assert typed(f"lake show {SCORED}") == 0
    assert f"dpvae.source.table {PEOPLE}" in capsys.readouterr().out


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Delete operation did not match any records")
        yield
