"""The verbs: what each is for, which of the three people asks it, which knobs it has, and what it answers.

    data scientist    learn privately, and see what came of it
    privacy officer   is the epsilon on this true, and who spent what?
    data owner        publish, and use what was learned

Nothing heavy is imported before a verb needs it. A verb returns an :class:`Answer`; :mod:`dpvae.cli` prints it as
``output=`` says: ``text``, ``json`` (one line), or ``quiet``.

>>> VERBS["verify"].person
'a privacy officer'
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpvae.command.arguments import keys_of
from dpvae.config import (
    AuditConfig,
    CompareConfig,
    DoctorConfig,
    EvaluateConfig,
    ImputeConfig,
    InitConfig,
    LakeConfig,
    LedgerVerbConfig,
    PageConfig,
    ReleaseConfig,
    SampleConfig,
    ScoreConfig,
    TrainConfig,
    VerbConfig,
    VerifyConfig,
)
from dpvae.errors import ConfigError, ReleaseError

DOES_NOT_HOLD = 1
SCIENTIST, OFFICER, OWNER, ANYBODY = "a data scientist", "a privacy officer", "a data owner", "anybody"
PEOPLE = {  # who, and what they ask
    SCIENTIST: "learn privately from my table",
    OFFICER: "is the epsilon on this true?",
    OWNER: "publish a synthetic table, use what was learned",
    ANYBODY: "is everything in its place?",
}


@dataclass(frozen=True)
class Answer:
    """What a verb found: ``result`` prints as text and turns into JSON, ``code`` is the exit code."""

    result: Any
    code: int = 0

    def text(self) -> str:
        """For a person."""
        return str(self.result)

    def line(self) -> str:
        """For a program: one JSON object on one line."""
        return json.dumps(plain(self.result), default=str)


def plain(value: Any) -> Any:
    """Any result as JSON knows it: what has ``to_dict`` says it, a number that is not finite is null.

    >>> plain({"epsilon": math.inf, "path": Path("runs/first")})
    {'epsilon': None, 'path': 'runs/first'}
    """
    if hasattr(value, "to_dict"):
        return plain(value.to_dict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _call(module: str, name: str) -> Callable[[Any], Answer]:
    """The verb whose answer is what ``dpvae.MODULE.NAME(config)`` returns."""
    def run(config: Any) -> Answer:
        return Answer(getattr(importlib.import_module(f"dpvae.{module}"), name)(config))

    return run


@dataclass(frozen=True)
class _Said:
    """A sentence with its facts."""

    says: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.says

    def to_dict(self) -> dict[str, Any]:
        return dict(self.facts)


def _release(config: ReleaseConfig) -> Answer:
    place = importlib.import_module("dpvae.api").release(config)
    from dpvae.data.place import DATABASES, scheme_of

    checked = scheme_of(str(place)) not in DATABASES
    return Answer(_Said(f"released {place}" + (f"; check it with: dpvae verify {place}" if checked else ""),
                        {"folder": str(place)}))


def _verify(config: VerifyConfig) -> Answer:
    from dpvae.data.place import LAKES, scheme_of

    table = scheme_of(config.folder) in LAKES
    if not table and not Path(config.folder).is_dir():  # a slip of the fingers is no verdict on a release
        raise ReleaseError(f"folder={config.folder}: no such folder; expected one that dpvae release wrote")
    key = {} if config.key is None else {"key": Path(config.key)}
    if config.key is not None and not Path(config.key).is_file():
        raise ReleaseError(f"key={config.key}: no such file; expected the issuer's public key in PEM")
    module, name = ("published", "verify_table") if table else ("verify", "verify")
    verdict = getattr(importlib.import_module(f"dpvae.audit.{module}"), name)(config.folder, **key)
    return Answer(_formatted(verdict, config.format), 0 if verdict.ok else DOES_NOT_HOLD)


def _evaluate(config: EvaluateConfig) -> Answer:
    for name in ("real", "synth"):
        if not getattr(config, name):
            raise ConfigError(f"{name}: expected a table; try dpvae evaluate real=TRAIN.csv test=TEST.csv "
                              "synth=release/first target=COLUMN")
    found = importlib.import_module("dpvae.evaluate.judge").evaluate(config)
    return Answer(_formatted(found, config.format))


def _formatted(found: Any, format: str) -> Any:
    return _Said(json.dumps(found.to_dict(), indent=2), found.to_dict()) if format == "json" else found


def _audit(config: AuditConfig) -> Answer:
    api = importlib.import_module("dpvae.api")
    if config.self_test:
        missed = api.self_test(print)
        return Answer(_Said(f"{len(missed)} broken programs were missed", {"missed": [str(each) for each in missed]}),
                      DOES_NOT_HOLD if missed else 0)
    report = api.audit(config)
    return Answer(report, 0 if report.passed else DOES_NOT_HOLD)


def _doctor(config: DoctorConfig) -> Answer:
    found = importlib.import_module("dpvae.doctor").examine(config)
    return Answer(_formatted(found, config.format), 0 if found.well else DOES_NOT_HOLD)


@dataclass(frozen=True)
class Verb:
    """One word of the command line; its knobs are ``conf/<word>.yaml``."""

    says: str
    config: type[VerbConfig]
    run: Callable[[Any], Answer]
    person: str
    stopped: str = "nothing was finished; run the same command again"
    memory: str = "close other programs, or take a larger machine"
    examples: tuple[str, ...] = ()  # what comes after the verb, as somebody would type it first
    positional: tuple[str, ...] = ()  # keys that may be typed without their name, in this order
    flags: Mapping[str, Callable[[Any], Answer]] = field(default_factory=dict)  # --FLAG: what is run in its place


VERBS = {
    "plan": Verb("what a budget buys; opens no data, spends nothing (--sweep: try budgets on made-up rows)",
                 TrainConfig, _call("api", "plan"), SCIENTIST, flags={"--sweep": _call("simulate", "sweep")},
                 examples=("", "data=orders.csv data.rows=50000 privacy.epsilon=3", "--sweep")),
    "train": Verb("train a private model on a table, images or texts", TrainConfig, _call("api", "train"), SCIENTIST,
                  "run the same command again and it goes on from its last checkpoint; nothing is counted twice",
                  "try a smaller performance.microbatch",
                  ("", "data=orders.csv data.rows=50000 privacy.epsilon=3 run.name=orders",
                   "data=images data.path=photos", "data=text data.path=notes.tsv data.text=note",
                   "-m privacy.epsilon=1,3 run.name=two")),
    "release": Verb("write a synthetic table with its certificate", ReleaseConfig, _release, OWNER,
                    memory="release fewer rows at a time",
                    examples=("to=release/first", "run=orders rows=50000 to=release/orders")),
    "verify": Verb("check a release folder: digests, events, epsilon", VerifyConfig, _verify, OFFICER,
                   examples=("release/first", "release/orders key=issuer.pem format=json"), positional=("folder",)),
    "audit": Verb("is the claim of a run true? twins, planted records, attacks", AuditConfig, _audit, OFFICER,
                  examples=("quick=true", "run=orders", "self_test=true")),
    "report": Verb("the page of a run, made anew (after an audit: with its bounds)", PageConfig,
                   _call("report.run", "report"), SCIENTIST, examples=("", "run=orders to=for_the_board")),
    "compare": Verb("two runs or two releases side by side", CompareConfig, _call("report.compare", "compare"),
                    SCIENTIST, examples=("first second", "release/march release/april to=compare.html"),
                    positional=("a", "b")),
    "init": Verb("TABLE.csv: a schema to review, from its header alone, and the next command", InitConfig,
                 _call("data.draft", "draft"), SCIENTIST, examples=("orders.csv target=returned rows=50000",),
                 positional=("table",)),
    "evaluate": Verb("judge a synthetic table by the real rows; the result is sealed", EvaluateConfig, _evaluate,
                     SCIENTIST,
                     examples=("real=train.csv test=test.csv synth=release/orders target=returned",)),
    "score": Verb("how strange each row of a table is, and which cells make it so", ScoreConfig,
                  _call("release.verbs", "score"), OWNER,
                  examples=("run=orders data=orders.csv to=scores.parquet threshold=synthetic",)),
    "sample": Verb("synthetic rows: any number, given.COLUMN=VALUE, another balance, SQL", SampleConfig,
                   _call("release.verbs", "sample"), OWNER, memory="draw fewer rows at a time",
                   examples=("rows=100 to=rows.csv", "run=orders rows=100 given.country=DE given.price=10..50")),
    "impute": Verb("fill a table's missing cells, several times", ImputeConfig, _call("release.verbs", "impute"),
                   OWNER, examples=("run=orders data=holes.csv draws=5 to=filled",)),
    "lake": Verb("init WAREHOUSE | copy TABLE to=TABLE | show TABLE: tables in a lakehouse", LakeConfig,
                 _call("data.lake.verb", "act"), OWNER,
                 examples=("init warehouse", "copy orders.csv to=iceberg:shop.orders",
                           "show iceberg:demo.census")),
    "ledger": Verb("show | check | cap DATASET | export FILE: the book of what was spent", LedgerVerbConfig,
                   _call("privacy.ledger_view", "act"), OFFICER,
                   examples=("show", "check", "cap census epsilon=3 delta=1e-5", "export book.jsonl")),
    "doctor": Verb("check the installation, and say what to do", DoctorConfig, _doctor, ANYBODY, examples=("",)),
}


def groups_of(verb: Verb, conf: Path) -> set[str]:
    """The groups of the folder ``conf`` that a verb composes."""
    groups = {path.name for path in conf.iterdir() if path.is_dir()} & set(keys_of(verb.config))
    return groups | {"experiment"} if "data" in groups else groups


def usage() -> str:
    """The text of ``dpvae --help``: the verbs by the people who ask for them."""
    lines: list[str] = []
    for person, asks in PEOPLE.items():
        verbs = [f"  {word:9}{verb.says}" for word, verb in VERBS.items() if verb.person == person]
        lines += [f"{person}: {asks}", *verbs, ""]
    return "\n".join([
        "dpvae: variational autoencoders under differential privacy, with a proof of what they spent", "",
        "usage: dpvae VERB [key=value ...]", "", *lines,
        "dpvae VERB --help      every knob of a verb, with its default",
        "dpvae VERB --cfg job   the configuration a command would run with",
        "dpvae VERB output=json the answer for a program, on one line; output=quiet: the exit code alone",
        "dpvae train -m privacy.epsilon=1,3,10   one run for each value, all booked on one ledger",
        'eval "$(dpvae -sc install=bash)"        completion of verbs and knobs', "",
        "first steps: dpvae plan; dpvae train; dpvae release run=latest to=release/first; dpvae verify release/first",
    ])
