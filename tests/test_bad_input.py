"""Whatever is wrong with the input is told in one line that names it and the remedy; nothing is spent or half-written.

Each row of a table is one mistake: what is typed, the files that lie there, what the line must say. The whole path
runs, with nothing replaced: the same commands succeed on good input in tests/test_commands.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpvae import cli
from dpvae.privacy.ledger import Ledger

Content = str | bytes | pa.Table | None  # None: a folder
Tree = dict[str, bytes | None]

TRAIN = "train experiment=smoke data="
PEOPLE = TRAIN + "people.csv data.rows=60 "
SCHEMA = """columns:
  age: {kind: integer, min: 17, max: 90}
  city: {kind: categorical, categories: [north, south]}
  hours: {kind: continuous, min: 0, max: 99}
  income: {kind: categorical, categories: [high, low]}
"""
WITH_SCHEMA = PEOPLE + "data.schema=s.yaml"


class Bad(NamedTuple):
    """One mistake."""

    line: str
    says: tuple[str, ...]
    files: Mapping[str, Content] = {}


def people(rows: int = 60) -> str:
    """A small table of made-up people."""
    rng = np.random.default_rng(3)
    lines = ["age,city,hours,income"]
    for age, city, hours in zip(rng.integers(18, 80, rows), rng.choice(["north", "south"], rows),
                                rng.normal(38, 6, rows), strict=True):
        lines.append(f"{age},{city},{hours:.1f},{'high' if age > 50 else 'low'}")
    return "\n".join(lines) + "\n"


def lay(files: Mapping[str, Content]) -> None:
    for name, content in files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        elif isinstance(content, pa.Table):
            pq.write_table(content, path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)


def tree(root: Path) -> Tree:
    """Every path below ``root`` with its bytes; ``None`` for a folder."""
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def refusal(capsys: pytest.CaptureFixture[str], line: str | list[str]) -> str:
    """The one line a refused command prints."""
    code = cli.main(line.split() if isinstance(line, str) else line)
    out, err = capsys.readouterr()
    assert (code, out) == (2, ""), err
    assert err.startswith("dpvae: error: ")
    assert err.count("\n") == 1 == len(err.splitlines())
    assert "Traceback" not in err
    return err


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    lay({"people.csv": people()})
    return tmp_path


def parquet(**columns: object) -> pa.Table:
    return pa.table({name: pa.array(values) for name, values in columns.items()})


def in_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


WHOLE = in_parquet(parquet(a=[f"cell {i}" for i in range(1000)]))
LATIN = pa.array([b"caf\xe9", b"ok", b"ok"]).view(pa.string())
INF = parquet(age=[1, 2, 3], x=[0.5, float("inf"), 2.0])
X_DECLARED = "columns:\n  age: {kind: integer, min: 0, max: 9}\n  x: {kind: continuous, min: 0, max: 5}\n"


def csv(content: str | bytes) -> dict[str, Content]:
    return {"t.csv": content}


def schema(old: str = "", new: str = "", *, more: str = "") -> dict[str, Content]:
    assert old in SCHEMA
    return {"s.yaml": SCHEMA.replace(old, new) + more}


TABLES = {
    "an empty file": Bad(TRAIN + "t.csv", ("data='t.csv'", "the file is empty", "expected a header"), csv("")),
    "a header without rows": Bad(TRAIN + "t.csv", ("rows=0", "expected at least 2"), csv("a,b\n")),
    "one row": Bad(TRAIN + "t.csv", ("rows=1", "expected at least 2"), csv("a,b\n1,2\n")),
    "no columns": Bad(TRAIN + "t.csv", ("columns=0", "expected at least one"), csv("\n")),
    "no columns in Parquet": Bad(TRAIN + "t.parquet", ("columns=0",), {"t.parquet": pa.table({})}),
    "no rows in Parquet": Bad(TRAIN + "t.parquet", ("rows=0",), {"t.parquet": parquet(a=pa.array([], pa.int64()))}),
    "one row in Parquet": Bad(TRAIN + "t.parquet", ("rows=1",), {"t.parquet": parquet(a=[1])}),
    "a column name twice": Bad(TRAIN + "t.csv", ("column='a'", "appears twice", "rename"), csv("a,a\n1,2\n1,2\n")),
    "a column name twice in Parquet": Bad(
        TRAIN + "t.parquet", ("column='a'", "rename"), {"t.parquet": pa.table([[1, 2], [1, 2]], names=["a", "a"])}),
    "a column without a name": Bad(TRAIN + "t.csv", ("column 2", "name it"), csv("a,,b\n1,2,3\n1,2,3\n")),
    "a line break in a header": Bad(TRAIN + "t.csv", ("line break", "rename"), csv('"a\nx",b\n1,2\n1,2\n')),
    "a target that is not there": Bad(PEOPLE + "data.target=incme", ("target='incme'", "did you mean 'income'?")),
    "plan with a target that is not there": Bad(
        "plan data=people.csv data.target=incme", ("target='incme'", "did you mean 'income'?")),
    "a ragged row": Bad(TRAIN + "t.csv", ("data='t.csv'", "line 5 has 3 cells", "expected 2", "repair"),
                        csv("a,b\n1,2\n\n1,2\n1,2,3\n")),
    "a ragged row after a cell of two lines": Bad(TRAIN + "t.csv", ("line 4 has 1 cells",), csv('a,b\n"1\n3",2\n1\n')),
    "a quote that never closes": Bad(TRAIN + "t.csv", ("data='t.csv'", "never closed"),
                                     csv('a,b\n1,2\n1,2\n1,"2\n1,2\n1,2\n')),
    "a header that is not UTF-8": Bad(TRAIN + "t.csv", ("data='t.csv'", "save the file as UTF-8"),
                                      csv(b"a,b\xff\n1,2\n1,2\n")),
    "a cell that is not UTF-8": Bad(TRAIN + "t.csv", ("data='t.csv'", "as UTF-8"), csv(b"a,b\n1,\xff\n1,2\n")),
    "UTF-16": Bad(TRAIN + "t.csv", ("save the file as UTF-8",), csv("a,b\n1,2\n1,2\n".encode("utf-16"))),
    "text in Parquet that is not UTF-8": Bad(TRAIN + "t.parquet", ("column='a'", "as UTF-8"),
                                             {"t.parquet": pa.table({"a": LATIN})}),
    "a Parquet file that is none": Bad(TRAIN + "t.parquet", ("data='t.parquet'", "not a readable Parquet file"),
                                       {"t.parquet": b"PAR1 rubbish"}),
    "a truncated Parquet file": Bad(TRAIN + "t.parquet", ("data='t.parquet'", "truncated: write it again"),
                                    {"t.parquet": WHOLE[:len(WHOLE) // 2]}),
    "a corrupt Parquet file": Bad(TRAIN + "t.parquet", ("data='t.parquet'", "not a readable Parquet file"),
                                  {"t.parquet": WHOLE[:40] + b"\xff" * 40 + WHOLE[80:]}),
    "a column of lists": Bad(TRAIN + "t.parquet", ("column='a'", "list", "unnest it, or leave it out"),
                             {"t.parquet": parquet(a=[[1], [2]])}),
    "an integer beyond 63 bits": Bad(TRAIN + "t.parquet", ("column='a'", "expected integers below 2**63"),
                                     {"t.parquet": parquet(a=pa.array([1, 2**64 - 1], pa.uint64()))}),
    "inf": Bad(TRAIN + "t.parquet", ("column='x': inf in row 2", "expected continuous, finite", "data.outside=clip"),
               {"t.parquet": INF}),
    "free text": Bad(TRAIN + "t.csv", ("column='note'", "free text", "drop it"),
                     csv("note\n" + "\n".join(f"a long sentence, number {i}".replace(",", "") for i in range(300)))),
    "no such file": Bad(TRAIN + "nowhere.csv", ("data='nowhere.csv'", "no such file", "give the path")),
    "a folder": Bad(TRAIN + "t.csv", ("data='t.csv'", "is a folder", "expected one"), {"t.csv": None}),
    "another kind of file": Bad(TRAIN + "t.xlsx", ("'.xlsx'", "expected .csv, .parquet"), {"t.xlsx": "x"}),
}

SCHEMAS = {
    "no schema": Bad(WITH_SCHEMA, ("schema='s.yaml'", "No such file", "give the path")),
    "a folder as schema": Bad(WITH_SCHEMA, ("schema='s.yaml'", "Is a directory"), {"s.yaml": None}),
    "an empty schema": Bad(WITH_SCHEMA, ("schema='s.yaml'", "expected a mapping"), {"s.yaml": ""}),
    "a schema that is a list": Bad(WITH_SCHEMA, ("schema='s.yaml'", "expected a mapping"), {"s.yaml": "- age\n"}),
    "a schema that is a text": Bad(WITH_SCHEMA, ("schema='s.yaml'", "expected a mapping"), {"s.yaml": "age"}),
    "a YAML syntax error": Bad(WITH_SCHEMA, ("schema='s.yaml'", "not valid YAML at line 2", "repair it"),
                               {"s.yaml": "columns:\n\t- a"}),
    "a schema that is not UTF-8": Bad(WITH_SCHEMA, ("schema='s.yaml'", "not UTF-8"), {"s.yaml": b"\xff\xfe\x00"}),
    "a Python object in YAML": Bad(WITH_SCHEMA, ("schema='s.yaml'", "not valid YAML"),
                                   {"s.yaml": "columns: !!python/object:os.system {}\n"}),
    "a column that the table lacks": Bad(WITH_SCHEMA, ("column='agee'", "not in the table", "remove it"),
                                         schema("  age:", "  agee: {}\n  age:")),
    "a column that the schema lacks": Bad(WITH_SCHEMA, ("column='age'", "not in the schema", "describe it"),
                                          schema("  age: {kind: integer, min: 17, max: 90}\n")),
    "a column twice": Bad(WITH_SCHEMA, ("'age' appears twice", "remove one"), schema(more="  age: {}\n")),
    "an unknown key": Bad(WITH_SCHEMA, ("age.mni", "did you mean 'min'?"), schema("min: 17", "mni: 17")),
    "an unknown key on top": Bad(WITH_SCHEMA, ("tarjet", "did you mean 'target'?"), schema(more="tarjet: income\n")),
    "an unknown kind": Bad(WITH_SCHEMA, ("age.kind='intger'", "did you mean 'integer'?"), schema("integer", "intger")),
    "a wrong kind": Bad(WITH_SCHEMA, ("column='city'", "'south' in row 1", "expected integer cells"),
                        schema("{kind: categorical, categories: [north, south]}", "{kind: integer}")),
    "a kind that the type forbids": Bad(
        TRAIN + "t.parquet data.schema=s.yaml", ("age.kind=datetime", "int64", "expected"),
        {"t.parquet": INF, "s.yaml": "columns: {age: {kind: datetime}, x: {}}"}),
    "a column that is no mapping": Bad(WITH_SCHEMA, ("age='integer'", "expected a mapping"),
                                       schema("{kind: integer, min: 17, max: 90}", "integer")),
    "a bound that is no number": Bad(WITH_SCHEMA, ("age.min='young'", "expected a whole number"),
                                     schema("min: 17", "min: young")),
    "an infinite bound": Bad(WITH_SCHEMA, ("hours.max=inf", "expected a finite number"), schema("99", ".inf")),
    "bounds the wrong way round": Bad(WITH_SCHEMA, ("age.min=117", "swap them"), schema("min: 17", "min: 117")),
    "no categories": Bad(WITH_SCHEMA, ("city.categories=[]", "at least one"), schema("[north, south]", "[]")),
    "a category twice": Bad(WITH_SCHEMA, ("'north' appears twice",), schema("[north, south]", "[north, north]")),
    "a schema's target that is not there": Bad(WITH_SCHEMA, ("target='incom'", "did you mean 'income'?"),
                                               schema(more="target: incom\n")),
    "a schema's target that is a number": Bad(WITH_SCHEMA, ("target='5'", "no such column"), schema(more="target: 5")),
    "a schema's target that is a list": Bad(WITH_SCHEMA, ("target=['age']", "expected the name of a column"),
                                            schema(more="target: [age]")),
    "a value outside its bounds": Bad(
        WITH_SCHEMA, ("column='age'", "expected integer in 17 .. 50", "correct the schema",
                      "data.outside=clip or data.outside=missing"), schema("90", "50")),
    "a value outside its categories": Bad(WITH_SCHEMA, ("column='city'", "'south'", "declared categories",
                                                        "data.outside=missing"), schema("[north, south]", "[north]")),
    "a category cannot be clipped": Bad(WITH_SCHEMA + " data.outside=clip", ("column='city'", "data.outside=missing"),
                                        schema("[north, south]", "[north]")),
    "a fraction in an integer column": Bad(WITH_SCHEMA, ("column='hours'", "expected integer"),
                                           schema("continuous", "integer")),
    "an undeclared missing cell": Bad(TRAIN + "t.csv data.schema=s.yaml", ("column='a'", "1 cells are missing",
                                                                           "missing: true"),
                                      {"t.csv": "a,b\n1,2\n,2\n", "s.yaml": "columns: {a: {kind: integer}, b: {}}"}),
    "inf in a column declared finite": Bad(
        TRAIN + "t.parquet data.schema=s.yaml", ("column='x': inf in row 2", "expected continuous in 0 .. 5"),
        {"t.parquet": INF, "s.yaml": X_DECLARED}),
    "a date in another format": Bad(TRAIN + "t.csv data.schema=s.yaml", ("column='d'", "like %Y-%m-%d"), {
        "t.csv": "d\n2020-01-31\n31.1.2020\n", "s.yaml": 'columns: {d: {kind: datetime, format: "%Y-%m-%d"}}'}),
}

KNOBS = {
    "epsilon zero": Bad(PEOPLE + "privacy.epsilon=0", ("privacy.epsilon=0", "expected a finite number > 0")),
    "epsilon negative": Bad(PEOPLE + "privacy.epsilon=-1", ("privacy.epsilon=-1", "expected a finite number > 0")),
    "epsilon nan": Bad(PEOPLE + "privacy.epsilon=nan", ("privacy.epsilon=nan", "expected a finite number > 0")),
    "epsilon infinite": Bad(PEOPLE + "privacy.epsilon=inf", ("privacy.epsilon=inf", "expected a finite number > 0")),
    "epsilon over what may be": Bad(PEOPLE + "privacy.epsilon=21",
                                    ("privacy.epsilon=21", "at most privacy.max_epsilon")),
    "epsilon too small to price": Bad(PEOPLE + "privacy.epsilon=1e-9", ("privacy.epsilon=1e-09", ">= 0.001")),
    "epsilon too large to price": Bad(PEOPLE + "privacy.epsilon=500 privacy.max_epsilon=1000",
                                      ("privacy.max_epsilon=1000", "expected at most 100")),
    "delta of one over rows": Bad(PEOPLE + "privacy.delta=0.0167", ("privacy.delta=0.0167", "1/rows", "Try")),
    "delta zero": Bad(PEOPLE + "privacy.delta=0", ("privacy.delta=0", "between 0 and 1")),
    "delta nan": Bad(PEOPLE + "privacy.delta=nan", ("privacy.delta=nan", "between 0 and 1")),
    "delta too small to price": Bad(PEOPLE + "privacy.delta=1e-300", ("delta=1e-300", "raise privacy.delta")),
    "no rows": Bad(TRAIN + "people.csv data.rows=0", ("data.rows=0", "expected a whole number >= 2")),
    "negative rows": Bad(TRAIN + "people.csv data.rows=-3", ("data.rows=-3", "expected a whole number >= 2")),
    "a public row count of one": Bad(TRAIN + "people.csv data.rows=1", ("data.rows=1", "expected a whole number >= 2")),
    "half a row": Bad(TRAIN + "people.csv data.rows=2.5", ("data.rows=2.5", "expected a whole number")),
    "rows beyond any table": Bad(TRAIN + "people.csv data.rows=99999999999999", ("data.rows=", "expected at most")),
    "a secret seed below zero": Bad(PEOPLE + "privacy.secret_seed=-1", ("privacy.secret_seed=-1", "whole number >= 0")),
    "no anchors at all": Bad(PEOPLE + "trainer.anchor_share=0", ("trainer.anchor_share=0", "try")),
    "no survey where one is needed": Bad(PEOPLE + "trainer.survey_share=0", ("trainer.survey_share=0", "declare them")),
    "shares over one": Bad(PEOPLE + "trainer.survey_share=0.995", ("trainer.survey_share=0.995", "sum below 1")),
    "a clip norm that overflows": Bad(PEOPLE + "trainer.clip_norm=1e300", ("trainer.clip_norm", "at most")),
    "a learning rate that overflows": Bad(PEOPLE + "trainer.learning_rate=1e300", ("learning_rate", "at most")),
    "an unknown override": Bad(PEOPLE + "privacy.epsilom=1", ("privacy.epsilom=1", "did you mean 'privacy.epsilon'?")),
    "an unknown group": Bad(PEOPLE + "modell=small", ("modell=small", "did you mean 'model'?")),
    "an unknown choice": Bad(PEOPLE + "trainer=ankored", ("trainer=ankored", "did you mean 'anchored'?")),
    "an unknown verb": Bad("trian data=people.csv", ("trian", "did you mean 'train'?")),
    "a run name with a slash": Bad(PEOPLE + "run.name=a/b", ("run.name='a/b'", "plain folder name")),
    "a hidden run name": Bad(PEOPLE + "run.name=.a", ("run.name='.a'", "plain folder name")),
    "a run name too long": Bad(PEOPLE + "run.name=" + "x" * 300, ("run.name='xxx", "choose a shorter one")),
    "a file as root": Bad(PEOPLE + "run.root=people.csv", ("run.root=people.csv", "choose another")),
    "a root in a file": Bad(PEOPLE + "run.root=people.csv/x", ("run.root=people.csv/x", "choose another")),
    "a root that cannot be": Bad(PEOPLE + "run.root=/proc/nope", ("run.root=/proc/nope", "choose another run.root")),
    "a folder that is no run": Bad(PEOPLE + "run.name=a", ("run.name=a", "is no run folder", "choose another"),
                                   {"runs/a/private/mine.txt": "keep me"}),
    "a file where the run should be": Bad(PEOPLE + "run.name=a", ("run.name=a", "choose another"), {"runs/a": "mine"}),
    "a run with a damaged record": Bad(PEOPLE + "run.name=a", ("runs/a/run.json", "damaged"), {"runs/a/run.json": "]"}),
    "a run with another record": Bad(PEOPLE + "run.name=a", ("runs/a/run.json", "damaged"), {"runs/a/run.json": "[]"}),
    "a run with other settings": Bad(PEOPLE + "run.name=a", ("run.name=a", "other settings", "another run.name"),
                                     {"runs/a/run.json": '{"status": "running", "settings": "0"}'}),
    "a ledger that is no database": Bad(PEOPLE + "ledger.url=books.db", ("ledger='books.db'", "check ledger.url"),
                                        {"books.db": "not a database but a text\n" * 10}),
    "a ledger that is a folder": Bad(PEOPLE + "ledger.url=books.db", ("ledger='books.db'", "check ledger.url"),
                                     {"books.db": None}),
    "a ledger of an unknown scheme": Bad(PEOPLE + "ledger.url=foo://bar", ("ledger='foo://bar'", "check ledger.url")),
    "a ledger without its driver": Bad(PEOPLE + "ledger.url=firebird://a/b", ("firebird://a/b", "check ledger.url")),
    "a ledger url that is none": Bad(PEOPLE + "ledger.url=://", ("ledger='://'", "check ledger.url")),
    "a ledger below a file": Bad(PEOPLE + "ledger.url=people.csv/books.db",
                                 ("people.csv/books.db", "check ledger.url")),
    "a full device as ledger": Bad(PEOPLE + "ledger.url=/dev/full", ("ledger='/dev/full'", "nothing was booked")),
    "a model shared by one process": Bad(PEOPLE + "performance.sharding=fsdp",
                                         ("performance.sharding=fsdp", "one process", "torchrun --nproc-per-node 2")),
    "a model shared in another mode": Bad(PEOPLE + "performance.sharding=fsdp performance.clipping=fast",
                                          ("performance.sharding=fsdp", "expected performance.clipping=ghost")),
    "a shared model that is compiled": Bad(PEOPLE + "performance.sharding=fsdp performance.compile=true",
                                           ("performance.sharding=fsdp", "performance.compile=false")),
    "a shared model without DP-SGD": Bad(PEOPLE + "performance.sharding=fsdp trainer=density",
                                         ("performance.sharding=fsdp", "expected data.kind=table and trainer=")),
    "a shared model of images": Bad("train data=images performance.sharding=fsdp",
                                    ("performance.sharding=fsdp", "expected data.kind=table")),
    **{f"half precision with {name}": Bad(PEOPLE + f"performance.precision=bfloat16 performance.{name}",
                                          ("performance.precision=bfloat16", "expected performance.clipping=fast"))
       for name in ("clipping=ghost", "clipping=hooks", "sharding=fsdp")},
    "rows that ghost clipping takes for records": Bad(
        "train data=images performance.clipping=ghost trainer.latent_samples=2",
        ("performance.clipping=ghost", "2 rows", "expected performance.clipping=fast")),
    "another kind of sharding": Bad(PEOPLE + "performance.sharding=ddp", ("performance.sharding='ddp'", "fsdp")),
    "a cap of zero": Bad(PEOPLE + "ledger.cap_epsilon=0", ("ledger.cap_epsilon=0", "expected a finite number > 0")),
}


@pytest.mark.parametrize("bad", [pytest.param(bad, id=name) for name, bad in (TABLES | SCHEMAS | KNOBS).items()])
def test_a_bad_input_is_told_in_one_line_and_leaves_no_trace(
    here: Path, capsys: pytest.CaptureFixture[str], bad: Bad
) -> None:
    lay(bad.files)
    before = tree(here)
    err = refusal(capsys, bad.line)
    missing = [part for part in bad.says if part not in err]
    assert not missing, err
    assert tree(here) == before


def test_a_graphics_card_that_is_not_there_is_told_before_anything_is_spent(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "performance.device='cuda'" in refusal(capsys, PEOPLE + "performance.device=cuda")
    assert not Path("runs").exists()


# -- values outside the declared domain, on request ------------------------------------------------------------------


@pytest.mark.parametrize(("line", "files"), [
    (WITH_SCHEMA + " data.outside=clip", schema("90", "50")),
    (WITH_SCHEMA + " data.outside=missing", schema("90", "50")),
    (WITH_SCHEMA + " data.outside=missing", schema("[north, south]", "[north]")),
    (TRAIN + "t.parquet data.schema=s.yaml data.outside=clip", {"t.parquet": INF, "s.yaml": X_DECLARED}),
    (TRAIN + "t.parquet data.schema=s.yaml data.outside=missing", {"t.parquet": INF, "s.yaml": X_DECLARED}),
    (TRAIN + "t.parquet data.outside=clip", {"t.parquet": INF}),
])
def test_values_outside_are_clipped_or_missing_on_request(here: Path, line: str, files: dict[str, Content]) -> None:
    lay(files)
    assert cli.main([*line.split(), "run.name=a"]) == 0
    assert cli.main(["release", "run=a", "rows=300", "to=out"]) == 0
    released = pq.read_table("out/data").to_pydict()
    if "age" in released and "s.yaml" in files and "t.parquet" not in files and "max: 50" in files["s.yaml"]:
        assert all(age is None or 17 <= age <= 50 for age in released["age"])
    for column in released.values():
        assert not any(isinstance(cell, float) and np.isinf(cell) for cell in column)


# -- the ledger ------------------------------------------------------------------------------------------------------


def booked() -> list[tuple[str, str]]:
    return [(row.kind, row.run) for row in Ledger.open("runs/ledger.db").rows() if row.kind != "cap"]


def test_a_spend_over_the_cap_is_refused_and_nothing_is_booked(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    err = refusal(capsys, PEOPLE + "ledger.cap_epsilon=0.5")
    assert "expected at most 0.5" in err
    assert "lower privacy.epsilon" in err
    assert booked() == []
    assert not any(path.is_dir() for path in Path("runs").iterdir())


def test_the_second_run_may_spend_only_what_the_first_left(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*PEOPLE.split(), "run.name=one", "ledger.cap_epsilon=1.2"]) == 0
    before = booked()
    capsys.readouterr()
    err = refusal(capsys, PEOPLE + "run.name=two")
    assert "dataset 'people'" in err
    assert "cap 1.2" in err
    assert booked() == before
    assert not Path("runs/two").exists()
    assert "raising a cap needs a reason" in refusal(capsys, PEOPLE + "run.name=two ledger.cap_epsilon=3")


def test_a_ledger_that_was_edited_is_not_written_to(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*PEOPLE.split(), "run.name=one"]) == 0
    with contextlib.closing(sqlite3.connect("runs/ledger.db")) as connection, connection:
        connection.execute("update entries set payload = replace(payload, '0.', '1.') where seq = 1")
    capsys.readouterr()
    assert "row 1 does not continue the chain" in refusal(capsys, PEOPLE + "run.name=two")
    assert not Path("runs/two").exists()


@pytest.mark.parametrize("root", ["a?b=c", "a#b", "a%20b", "a b"])
def test_the_ledger_lies_in_the_runs_folder_whatever_that_is_called(here: Path, root: str) -> None:
    assert cli.main([*PEOPLE.split(), f"run.root={root}"]) == 0
    assert {path.name for path in here.iterdir()} == {"people.csv", root}
    assert Ledger.open(Path(root) / "ledger.db").check() == 2


# -- release and verify ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run, ``a``, and one release of it."""
    home = tmp_path_factory.mktemp("trained")
    with contextlib.chdir(home):
        lay({"people.csv": people()})
        assert cli.main([*PEOPLE.split(), "run.name=a"]) == 0
        assert cli.main(["release", "run=a", "to=out"]) == 0
    return home


@pytest.fixture
def finished(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "copy"
    shutil.copytree(trained, home)
    monkeypatch.chdir(home)
    return home


def status(text: str) -> Callable[[], None]:
    def change() -> None:
        path = Path("runs/a/run.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"status": text}))

    return change


def spoil(name: str, content: bytes | None) -> Callable[[], object]:
    path = Path("runs/a") / name
    return path.unlink if content is None else lambda: path.write_bytes(content)


RELEASES: dict[str, tuple[str, tuple[str, ...], Callable[[], object]]] = {
    "no such run": ("run=b", ("run=b", "not a run folder", "there are a"), lambda: None),
    "a file as run": ("run=people.csv", ("run=people.csv", "not a run folder"), lambda: None),
    "a folder that is no run": ("run=runs", ("run=runs", "not a run folder"), lambda: None),
    "latest without any run": ("run=latest root=nowhere", ("run=latest", "dpvae train"), lambda: None),
    "latest without a finished run": ("run=latest", ("run=latest", "dpvae train"), status("running")),
    "an unfinished run": ("run=a", ("status is 'running'", "the same dpvae train command"), status("running")),
    "no rows": ("rows=0", ("rows=0", "expected a whole number >= 1"), lambda: None),
    "negative rows": ("rows=-1", ("rows=-1", "expected a whole number >= 1"), lambda: None),
    "half a row": ("rows=2.5", ("rows=2.5", "expected a whole number"), lambda: None),
    "more rows than fit": ("rows=999999999999", ("rows=1e+12", "at most 1e+10"), lambda: None),
    "a seed below zero": ("seed=-1", ("seed=-1", "whole number >= 0"), lambda: None),
    "a folder that is not empty": ("to=full", ("to=full", "not empty", "pick another"), lambda: lay({"full/x": "1"})),
    "a folder that holds this release": ("to=out", ("to=out", "already holds", "pick another"), lambda: None),
    "a file as target": ("to=people.csv", ("to=people.csv", "is a file"), lambda: None),
    "a target in a file": ("to=people.csv/x", ("to=people.csv/x", "is a file; pick another"), lambda: None),
    "no target": ("to=", ("to=''", "expected a new folder"), lambda: None),
    "a target that cannot be": ("to=/proc/nope/x", ("to=/proc/nope/x", "pick another"), lambda: None),
    "a target with a long name": ("to=" + "x" * 300, ("xxx", "shorter name"), lambda: None),
    "no record": ("run=runs/a", ("run=runs/a", "not a run folder"), spoil("run.json", None)),
    "a damaged record": ("run=a", ("run.json",), spoil("run.json", b"[]")),
    "no model": ("run=a", ("model.safetensors", "damaged"), spoil("public/model.safetensors", None)),
    "a damaged model": ("run=a", ("model.safetensors", "damaged"), spoil("public/model.safetensors", b"rubbish")),
    "an empty model": ("run=a", ("model.safetensors", "damaged"), spoil("public/model.safetensors", b"")),
    "a model without its shape": ("run=a", ("model.json", "damaged"), spoil("public/model.json", None)),
    "a model of no shape": ("run=a", ("damaged",), spoil("public/model.json", b"{}")),
    "no claim": ("run=a", ("claim.json",), spoil("public/claim.json", None)),
    "an empty claim": ("run=a", ("claim",), spoil("public/claim.json", b"{}")),
    "no events": ("run=a", ("events.jsonl", "incomplete"), spoil("public/events.jsonl", None)),
    "cut events": ("run=a", ("events.jsonl", "was cut"), spoil("public/events.jsonl", b'{"type":')),
    "no schema": ("run=a", ("schema.json",), spoil("public/schema.json", None)),
    "an empty schema": ("run=a", ("schema",), spoil("public/schema.json", b"{}")),
    "a damaged plan": ("run=a", ("plan.json",), spoil("public/plan.json", b"rubbish")),
}


@pytest.mark.parametrize("name", RELEASES)
def test_a_release_that_cannot_be_is_told_in_one_line_and_leaves_no_trace(
    finished: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    typed, says, spoiled = RELEASES[name]
    spoiled()
    before = tree(finished)
    line = ["release", *typed.split()]
    line += [] if "to=" in typed else ["to=new"]
    err = refusal(capsys, line)
    missing = [part for part in says if part not in err]
    assert not missing, err
    assert tree(finished) == before


def test_a_release_edited_by_one_byte_does_not_hold(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in sorted(Path("out").rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            path.write_bytes(data[:len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1:])
            assert cli.main(["verify", "out"]) == 1, path
            captured = capsys.readouterr()
            assert captured.err == ""
            assert "does not hold" in captured.out
            path.write_bytes(data)
    assert cli.main(["verify", "out"]) == 0


@pytest.mark.parametrize("folder", ["runs/a", "runs", "empty"])
def test_a_folder_that_is_no_release_does_not_hold(
    finished: Path, capsys: pytest.CaptureFixture[str], folder: str
) -> None:
    Path("empty").mkdir()
    assert cli.main(["verify", folder]) == 1
    assert "does not hold" in capsys.readouterr().out


def test_verify_of_nothing_is_a_mistake_and_no_verdict(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such folder" in refusal(capsys, "verify nowhere")
    assert "no such folder" in refusal(capsys, "verify people.csv")
    assert "folder=''" in refusal(capsys, ["verify", "folder="])


# -- from the shell --------------------------------------------------------------------------------------------------


def test_a_private_cell_in_an_error_is_for_the_operator_alone(here: Path) -> None:
    """The value is on stderr, and in no file."""
    lay(schema("90", "50"))
    oldest = max(int(age) for age in re.findall(r"^(\d+),", people(), re.MULTILINE))
    done = subprocess.run([sys.executable, "-m", "dpvae", *WITH_SCHEMA.split()], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert oldest > 50
    assert {path.name for path in here.iterdir()} == {"people.csv", "s.yaml"}


@pytest.fixture(autouse=True)
def no_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DPVAE_DEBUG", raising=False)
