"""A lake table scored in place: what is new since the last time, once, whenever and wherever the work was stopped.

The result is a lake table too: the rows with their scores, or, with an identifier, a side table keyed by it. Each data
file of the source gives one file of scores, under a name that follows from it; a file appears whole, and readers see
all of them in one commit, which says which snapshot they are the scores of. A command that was killed finds the files
that were finished, and a table that was committed has nothing new. So no row is missing and none is there twice.

    Scorer([Path("runs/first/public")], Settings()).score_batch(batch)      # an Arrow record batch, in and out
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpvae.data import lake
from dpvae.data.dtypes import natural_kind
from dpvae.data.lake import Cells, Table
from dpvae.data.lake.register import Held, Home, alone, home, rows_of
from dpvae.data.schema import Schema
from dpvae.engines import mapped
from dpvae.errors import DataError, ReleaseError
from dpvae.files import read_json
from dpvae.release import marks
from dpvae.release.sample import load_public
from dpvae.release.score import Density, Ensemble

ROWS_AT_ONCE = 65_536
SETTINGS, COLUMNS = "dpvae.score.settings", "dpvae.source.columns"


@dataclass(frozen=True)
class Settings:
    """What a score follows from, besides the row and the model."""

    score: str = "iwae"
    contributions: int = 0  # cells named per row
    id: str | None = None  # the column that a side table is keyed by; None: every column is kept
    limit: float | None = None  # log density below which a row is called an anomaly
    seed: int = 0


class Scorer:
    """Released models (several are one ensemble) as a function of a record batch; needs nothing but their ``public``
    folders."""

    def __init__(self, publics: Sequence[Path], settings: Settings) -> None:
        self.judge = Ensemble([Density(*load_public(public), seed=settings.seed) for public in publics])
        self.settings = settings

    def score_batch(self, batch: Any) -> Any:
        """The batch's rows, or their identifiers, with ``score`` in nats (higher is stranger) and what explains it."""
        table = lake.to_table(batch)
        kept = [self.settings.id] if self.settings.id is not None else list(table.names)
        found = judged(self.judge, table, self.settings)
        for name in found:
            if name in kept:
                raise DataError(f"column={name!r}: the table has a column of that name already; score with id=COLUMN, "
                                "which makes a side table")
        return lake.beside(batch, kept, found)


def judged(judge: Ensemble, table: Table, settings: Settings) -> dict[str, Cells]:
    """The columns that scoring adds to a table."""
    known = select(table, judge.schema)
    values = judge.score(known, settings.score)
    nothing = np.zeros(len(values), dtype=bool)
    rows = {"score": Cells(-values, nothing, "double")}
    if settings.limit is not None:
        rows["anomaly"] = Cells(values < settings.limit, nothing, "bool")
    return rows | (_top(judge.explain(known), judge.schema, settings.contributions) if settings.contributions else {})


def select(table: Table, schema: Schema) -> Table:
    """The model's columns, in its order; what it does not know is left out."""
    return Table(schema.names, tuple(table.column(name) for name in schema.names))


def _top(costs: np.ndarray, schema: Schema, count: int) -> dict[str, Cells]:
    """The ``count`` costliest cells of each row, by name and nats."""
    order = np.argsort(-costs, axis=1)[:, :count]
    names, nothing, rows = np.array(schema.names, dtype=object), np.zeros(len(costs), dtype=bool), {}
    for i in range(order.shape[1]):
        rows[f"top_{i + 1}"] = Cells(names[order[:, i]], nothing, "string")
        rows[f"top_{i + 1}_nats"] = Cells(np.take_along_axis(costs, order[:, i:i + 1], 1)[:, 0], nothing, "double")
    return rows


@dataclass(frozen=True)
class Job:
    """Called, it gives the function that scores one data file of the source into a file of ``folder``."""

    publics: tuple[Path, ...]
    settings: Settings
    reopen: Callable[[], Any]  # the source, in a process that knows no catalog
    folder: Path
    ids: Mapping[str, int]  # of the columns of the table of scores

    def __call__(self) -> Callable[[str], tuple[str, int]]:
        torch.set_num_threads(1)
        scorer, source = Scorer(self.publics, self.settings), self.reopen()
        return lambda part: self.score(scorer, source, part)

    def target(self, part: str) -> Path:
        """Where the scores of the source's file ``part`` are."""
        return self.folder / f"{hashlib.sha256(part.encode()).hexdigest()[:24]}.parquet"

    def score(self, scorer: Scorer, source: Any, part: str) -> tuple[str, int]:
        """Score one data file, unless that was done; (where, rows)."""
        target = self.target(part)
        if not target.is_file():
            with lake.appending(target, "parquet", stored=self.ids) as append:
                for batch in source.of_part(part, ROWS_AT_ONCE):
                    append(scorer.score_batch(batch))
        return str(target), rows_of(target) if target.is_file() else 0


def score_table(publics: Sequence[Path], settings: Settings, table: str, to: str, *, engine: str,
                workers: int | None) -> tuple[int, str]:
    """Bring the scores ``to`` up to the present state of ``table``; the rows scored, and a word on which they were.

    Raises :class:`DataError` where the table's columns are not those that were trained on, or scored before, and
    :class:`ReleaseError` where ``to`` holds other rows; nothing is written then.
    """
    there, source = home(to), lake.versioned(table)
    name = lake.origin(source)
    assert name is not None
    models = "+".join(hashlib.sha256((public / "model.safetensors").read_bytes()).hexdigest() for public in publics)
    digest = hashlib.sha256(json.dumps([models, asdict(settings)]).encode()).hexdigest()
    said = {marks.SOURCE_TABLE: name["table"], marks.SOURCE_SNAPSHOT: str(source.snapshot),
            "dpvae.model.sha256": models, SETTINGS: digest, COLUMNS: json.dumps(name["columns"])}
    held = _ours(there, said)
    check_columns(name, _known(publics, held, name), held, _read(publics, settings, held))
    new, replace = _new(source, held, table)
    if held is not None and held.marks.get(marks.SOURCE_SNAPSHOT) == said[marks.SOURCE_SNAPSHOT]:
        return 0, f"nothing is new since snapshot {source.snapshot}"
    there.create(Scorer(publics, settings).score_batch(lake.empty_batch(source.schema())).schema)
    with alone(there):
        folder = there.folder() / f"scores-{digest[:12]}"
        folder.mkdir(exist_ok=True)
        job = Job(tuple(p.absolute() for p in publics), settings, source.portable(), folder, there.ids())
        done = dict(mapped(job, new, engine=engine, workers=workers))
        now = there.held()
        if held is not None and now is not None and now.version != held.version:
            raise ReleaseError(f"to={to}: somebody else wrote there meanwhile; give the same command again")
        files = [Path(path) for path, rows in done.items() if rows]
        there.write(files, said, replace=replace and bool(now and now.files), expected=now.version if now else None)
    return sum(done.values()), "all rows" if replace else f"what is new since snapshot {_snapshot(held)}"


def _ours(there: Home, said: Mapping[str, str]) -> Held | None:
    """The last scoring, or ``None`` for a table without rows; refuses rows that are not scores of this table by this
    model."""
    held = there.held()
    if held is None or (not held.files and SETTINGS not in held.marks):
        return None
    if SETTINGS not in held.marks:
        raise ReleaseError(f"to={there.text}: holds rows that dpvae score did not write; pick another table")
    for mark, what in ((marks.SOURCE_TABLE, "another table"), ("dpvae.model.sha256", "another model"),
                       (SETTINGS, "the same model with other settings")):
        if held.marks.get(mark) != said[mark]:
            raise ReleaseError(f"to={there.text}: holds scores of {what}; pick another table, or give the "
                               "settings that it was made with")
    return held


def _snapshot(held: Held | None) -> str:
    return held.marks.get(marks.SOURCE_SNAPSHOT, "?") if held is not None else "none"


def _known(publics: Sequence[Path], held: Held | None, name: Mapping[str, Any]) -> list[list[str]] | None:
    """The columns that the table had when it was last looked at: scored, or else trained on."""
    if held is not None:
        found: list[list[str]] = json.loads(held.marks[COLUMNS])
        return found
    path = publics[0] / "source.json"
    origin = read_json(path) if path.is_file() else {}
    columns: list[list[str]] | None = origin["columns"] if origin.get("table") == name["table"] else None
    if columns is None:
        _, schema = load_public(publics[0])
        there = dict(name["columns"])
        for column in schema.columns:
            if column.name not in there:
                raise DataError(f"column={column.name!r}: the model knows it, {name['table']} has none of that name; "
                                "it was renamed or dropped")
            kinds = natural_kind(column.dtype), natural_kind(there[column.name])
            if column.dtype != "csv" and kinds[0] != kinds[1]:
                raise DataError(f"column={column.name!r}: the model knows it as {column.dtype}, {name['table']} has "
                                f"{there[column.name]}; its type was changed")
    return columns


def _read(publics: Sequence[Path], settings: Settings, held: Held | None) -> set[str] | None:
    """The columns that matter where the model was trained on some of them (data.columns); ``None``: all.

    Scores that are there and keep every column have one place for each.
    """
    schema = Schema.from_dict(read_json(publics[0] / "schema.json"))
    if not schema.chosen or (held is not None and settings.id is None):
        return None
    return {*schema.names, *([settings.id] if settings.id is not None else [])}


def check_columns(name: Mapping[str, Any], known: list[list[str]] | None, held: Held | None, read: set[str] | None
                  ) -> None:
    """Raise where a column that is ``read`` was added, dropped, renamed or given another type; the error names it."""
    if known is None:
        return
    since = "since it was scored" if held is not None else "since the model was trained on it"
    before, now = ({column: dtype for column, dtype in columns if read is None or column in read}
                   for columns in (known, name["columns"]))
    where, ways = f"{name['table']} (snapshot {name['snapshot']})", "nothing was written; train on it as it is now"
    for column, dtype in before.items():
        if column not in now:
            new = [other for other in now if other not in before]
            hint = f" (is it {new[0]!r} now?)" if len(new) == 1 else ""
            raise DataError(f"column={column!r}: was renamed or dropped in {where}{hint} {since}; {ways}")
        if now[column] != dtype:
            raise DataError(f"column={column!r}: was {dtype}, is {now[column]} in {where} {since}; {ways}")
    for column in now:
        if column not in before:
            raise DataError(f"column={column!r}: is new in {where} {since}; {ways}")


def _new(source: Any, held: Held | None, table: str) -> tuple[list[str], bool]:
    """The data files to score, and whether their scores take the place of all that are there."""
    now = source.parts()
    if held is None:
        return list(now), True
    before = lake.parts_at(table, _snapshot(held))
    if before is None or any(now.get(part) != changes for part, changes in before.items()):
        return list(now), True  # rows were changed or deleted, or nobody remembers
    return [part for part in now if part not in before], False
