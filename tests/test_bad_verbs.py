"""Every verb but train and release (see tests/test_bad_input.py): a mistake is one line, exit code 2, no trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from test_bad_input import Content, finished, lay, no_debugging, refusal, spoil, trained, tree  # noqa: F401

from dpvae import cli


class Slip(NamedTuple):
    """What is typed, what its line must say, and what was done to the folder before."""

    line: str
    says: tuple[str, ...]
    before: Callable[[], object] = lambda: None


def there(**files: Content) -> Callable[[], None]:
    return lambda: lay({name.replace("_", "."): content for name, content in files.items()})


RUN = "run=a root=runs"
SLIPS = {
    "plan": [
        Slip("plan privacy.epsilom=1", ("did you mean 'privacy.epsilon'?",)),
        Slip("plan data=none.csv", ("none.csv", "no such file")),
        Slip("plan privacy=strickt", ("did you mean 'strict'?",)),
        Slip("plan --swep", ("--swep: no such flag", "did you mean '--sweep'?")),
        Slip("plan privacy.epsilon=1,3", ("expected one value", "add -m")),
        Slip("plan output=xml", ("output='xml'", "expected one of text, json, quiet")),
    ],
    "verify": [
        Slip("verify nothing", ("folder=nothing: no such folder",)),
        Slip("verify out out", ("expected one folder, after out", "one by one")),
        Slip("verify out key=none.pem", ("key=none.pem: no such file", "PEM")),
        Slip("verify out format=jsn", ("did you mean 'json'?",)),
        Slip("verify out kye=x", ("did you mean 'key'?",)),
    ],
    "audit": [
        Slip("audit run=none", ("run=none: not a run folder", "there are a")),
        Slip("audit root=nowhere", ("run=latest: no finished run", "dpvae train")),
        Slip("audit run=a quik=true", ("did you mean 'quick'?",)),
        Slip("audit run=a quick=maybe", ("quick='maybe'", "expected true or false")),
        Slip("audit run=a", ("public/config.json", "train it again"), spoil("public/config.json", None)),
        Slip("audit run=out", ("run=out: not a run folder",)),
    ],
    "report": [
        Slip("report run=none", ("run=none: not a run folder",)),
        Slip("report rnu=a", ("did you mean 'run'?",)),
        Slip("report run=out", ("is a release", "sealed by its signature")),
        Slip("report run=a to=", ("to=''", "expected a new folder")),
        Slip("report run=a to=out", ("to=out: is there already", "pick another folder")),
        Slip("report run=a", ("public/claim.json", "missing"), spoil("public/claim.json", None)),
        Slip("report run=a", ("public/events.jsonl", "was cut"), spoil("public/events.jsonl", b'{"type":')),
        Slip("report run=a", ("audit.json",), spoil("public/audit.json", b"[]")),
    ],
    "compare": [
        Slip("compare", ("a: expected two runs", "dpvae compare first second")),
        Slip("compare a", ("b: expected two runs",)),
        Slip("compare a b c", ("c: expected two names, after b",)),
        Slip("compare a none", ("run=none: not a run folder",)),
        Slip("compare a runs", ("runs: neither a finished run nor a release folder",)),
        Slip("compare a out to=page.pdf", ("to=page.pdf", "expected the name of a page")),
        Slip("compare a out to=taken.html", ("to=taken.html: is there already",), there(taken_html="mine")),
        Slip("compare a out fromat=json", ("did you mean 'format'?",)),
    ],
    "init": [
        Slip("init", ("table: expected", "dpvae init mytable.csv")),
        Slip("init none.csv", ("table=none.csv: no such file",)),
        Slip("init people.csv people.csv", ("expected one table", "one by one")),
        Slip("init people.csv target=incme", ("target=incme", "did you mean 'income'?")),
        Slip("init people.csv survey=true", ("survey=true", "a draft reads no row")),
        Slip("init people.csv to=people.csv", ("to=people.csv: is there already",)),
        Slip("init people.csv rows=1", ("rows=1: expected a whole number >= 2",)),
        Slip("init t.xlsx", ("t.xlsx", "expected .csv, .parquet"), there(t_xlsx="x")),
    ],
    "evaluate": [
        Slip("evaluate", ("real: expected a table",)),
        Slip("evaluate real=people.csv", ("synth: expected a table",)),
        Slip("evaluate real=none.csv synth=out", ("none.csv", "no such file")),
        Slip("evaluate real=people.csv synth=nowhere", ("nowhere",)),
        Slip("evaluate real=people.csv test=people.csv synth=out target=incom", ("incom",)),
        Slip("evaluate real=people.csv synth=out bins=1", ("bins=1: expected a whole number >= 2",)),
    ],
    "score": [
        Slip(f"score {RUN} data=none.csv", ("none.csv", "no such file")),
        Slip(f"score {RUN} data=people.csv score=iwea", ("did you mean 'iwae'?",)),
        Slip(f"score {RUN} data=people.csv threshold=private", ("costs budget", "epsilon=0.1")),
        Slip(f"score {RUN} data=people.csv threshold=none", ("expected one of synthetic, private",)),
        Slip(f"score {RUN} data=people.csv id=none", ("none", "not in the table")),
        Slip(f"score {RUN} data=people.csv to=x.xlsx", ("x.xlsx",)),
        Slip(f"score {RUN} data=people.csv false_alarm=2", ("false_alarm=2", "between 0 and 1")),
    ],
    "sample": [
        Slip(f"sample {RUN} rows=0", ("rows=0: expected a whole number >= 1",)),
        Slip(f"sample {RUN} given.cty=north", ("cty", "did you mean 'city'?")),
        Slip(f"sample {RUN} given.city=west", ("west",)),
        Slip(f"sample {RUN} to=rows.xlsx", ("rows.xlsx",)),
        Slip(f"sample {RUN} format=xml", ("format='xml'", "expected one of parquet, csv, sql")),
        Slip(f"sample {RUN} balance=even", ("balance", "label=")),
        Slip(f"sample {RUN} given.city=north given=rows.csv", ("not both",)),
    ],
    "impute": [
        Slip(f"impute {RUN} data=none.csv", ("none.csv", "no such file")),
        Slip(f"impute {RUN} data=people.csv draws=0", ("draws=0: expected a whole number >= 1",)),
        Slip(f"impute {RUN} data=people.csv outside=clp", ("did you mean 'clip'?",)),
        Slip(f"impute {RUN} data=people.csv to=out", ("out",)),
    ],
    "lake": [
        Slip("lake", ("lake show: expected one word more",)),
        Slip("lake shw people.csv", ("did you mean 'show'?",)),
        Slip("lake show people.csv", ("expected one of iceberg:, delta:",)),
        Slip("lake copy people.csv", ("lake copy: expected to=TABLE",)),
        Slip("lake init", ("lake init: expected one word more",)),
        Slip("lake show t wher=1", ("wher=1: expected an action and one place",)),
    ],
    "ledger": [
        Slip("ledger shw", ("did you mean 'show'?",)),
        Slip("ledger show census", ("ledger.dataset=census", "nothing is booked")),
        Slip("ledger cap people", ("expected a data set, epsilon and delta",)),
        Slip("ledger cap people epsilon=-1 delta=1e-5", ("epsilon=-1", "finite number > 0")),
        Slip("ledger check head=0000", ("head=0000: no such row",)),
        Slip("ledger show root=nowhere", ("no ledger there",)),
        Slip("ledger export people.csv", ("people.csv", "never overwrites")),
        Slip("ledger export", ("file=null", "dpvae ledger export book.jsonl")),
        Slip("ledger check people.csv", ("people.csv",)),
    ],
    "doctor": [
        Slip("doctor rot=x", ("did you mean 'root'?",)),
        Slip("doctor format=jsn", ("did you mean 'json'?",)),
        Slip("doctor well", ("well: expected key=value",)),
    ],
}
CASES = [pytest.param(slip, id=f"{slip.line}, {', '.join(slip.says)}") for slips in SLIPS.values() for slip in slips]


@pytest.mark.parametrize("slip", CASES)
def test_a_mistake_in_any_verb_is_told_in_one_line_and_leaves_no_trace(
        finished: Path, capsys: pytest.CaptureFixture[str], slip: Slip) -> None:  # noqa: F811
    slip.before()
    before = tree(finished)
    err = refusal(capsys, slip.line)
    missing = [part for part in slip.says if part not in err]
    assert not missing, err
    assert tree(finished) == before


def test_no_verb_is_left_out_and_there_are_sixty_mistakes() -> None:
    assert set(SLIPS) | {"train", "release"} == set(cli.VERBS)
    assert all(len(slips) >= 3 for slips in SLIPS.values())
    assert len(CASES) >= 60
