"""``dpvae init TABLE``: a schema to review, drafted from what is public anyway, and the next command.

Only the header is looked at: the names of the columns and, in a Parquet file, the types that it declares. No row is
read, so the draft says nothing about anybody. What it leaves open is measured with noise when the model is trained, and
charged; what is public should be said, because that costs nothing.

>>> from dpvae.data.schema import Schema
>>> print(lines([("age", "int64"), ("city", "string")], table="t.parquet", target=None)[-3])
  city: {}  # text. If the values are public, say them: {kind: categorical, categories: [...]}
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpvae.checks import did_you_mean
from dpvae.config import InitConfig
from dpvae.data import lake
from dpvae.data.declare import from_yaml
from dpvae.errors import ConfigError, DataError
from dpvae.files import write_bytes

PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_ -]*")
WORDS = {"true", "false", "null", "yes", "no", "on", "off"}
HINTS = {  # kind -> what a person can add to it
    "boolean": "two values; add missing: true if cells may be empty",
    "integer": "whole numbers; add bounds that hold for anybody: min: 0, max: 120",
    "continuous": "numbers; add bounds that hold for anybody: min: 0, max: 1000",
    "datetime": "add bounds that hold for anybody: min: 2020-01-01, max: 2030-01-01",
    "time": "times of day; add the hours that hold for anybody: min: 08:00, max: 18:00",
    "text": "text. If the values are public, say them: {kind: categorical, categories: [...]}",
    "csv": "open",
}
HOW = (  # a column of each kind, described
    "# A CSV file declares no types, and none was guessed: a guess would rest on the rows. What is public of a column",
    "# is said like this:",
    "#   {kind: integer, min: 0, max: 120}",
    "#   {kind: continuous, min: 0, max: 1000}",
    "#   {kind: categorical, categories: [DE, FR, IT]}",
    '#   {kind: datetime, min: 2020-01-01, max: 2030-01-01, format: "%Y-%m-%d"}',
    '#   {kind: time, min: 08:00, max: 18:00, format: "%H:%M"}',
    "#   {kind: boolean, spelling: [no, yes]}",
)


@dataclass(frozen=True)
class Draft:
    """Where the draft is, and what to do with it."""

    schema: str
    columns: int
    next: str
    rows: int | None

    def __str__(self) -> str:
        return (f"wrote {self.schema}: {self.columns} columns, from the header alone; no row was read\n"
                "  1. review it: what you say there must be public knowledge, never copied from the rows\n"
                f"  2. {self.next}"
                + ("" if self.rows else "\n     (add data.rows=ABOUT if the number of rows is public; else it is "
                                        "counted with noise)"))

    def to_dict(self) -> dict[str, Any]:
        """For a program."""
        return asdict(self)


def draft(config: InitConfig) -> Draft:
    """``dpvae init``; reads no row, spends nothing, overwrites nothing."""
    if config.survey:
        raise ConfigError("survey=true: a draft reads no row. dpvae train measures what the schema leaves open, with "
                          "noise and charged to its epsilon; its public/schema.json says what it found")
    if not config.table:
        raise ConfigError("table: expected a CSV or Parquet file; say dpvae init mytable.csv")
    if not Path(config.table).is_file():
        raise DataError(f"table={config.table}: no such file; expected a CSV or Parquet table")
    header = lake.header(config.table)
    names = [name for name, _ in header]
    if config.target is not None and config.target not in names:
        raise ConfigError(f"target={config.target}: no such column{did_you_mean(config.target, names)}")
    to = Path(config.to or Path(config.table).with_suffix(".yaml").name)
    if to.exists():
        raise ConfigError(f"to={to}: is there already; a draft never overwrites, choose another name with to=")
    text = "\n".join(lines(header, table=config.table, target=config.target)) + "\n"
    to.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(to, text.encode())
    from_yaml(to)  # what was written can be read
    rows = [f"data.rows={config.rows}"] if config.rows is not None else []
    return Draft(str(to), len(names), shlex.join(["dpvae", "plan", f"data={config.table}", f"data.schema={to}", *rows,
                                                  "privacy.epsilon=1"]), rows=config.rows)


def lines(header: Sequence[tuple[str, str]], *, table: str, target: str | None) -> list[str]:
    """The lines of the draft for columns of (name, declared type)."""
    opening = [
        f"# What is publicly known about {Path(table).name}, drafted from its header; review every line.",
        "# Say only what anybody may know: a bound or a category that was looked up in the rows is a leak that no",
        "# noise mends. What is left open ({}) is measured with noise and charged to the same epsilon.",
        "# A described column has no empty cells unless it says missing: true (or missing: measure).",
        *(HOW if any(dtype == lake.CSV for _, dtype in header) else ()),
        f"target: {_name(target)}" if target is not None else
        "# target: COLUMN   # a column that the others should predict; its tables get a larger share",
        "columns:"]
    columns = []
    for name, dtype in header:
        kind = kind_of(dtype)
        said = "{}" if kind in ("text", "csv") else f"{{kind: {kind}, missing: measure}}"
        columns.append(f"  {_name(name)}: {said}  # {HINTS[kind]}")
    return [*opening, *columns, "# constraints:    # rules that every released row must keep, if they are public",
            "#   - {order: [ordered, shipped]}"]


def kind_of(dtype: str) -> str:
    """The kind that a declared type speaks of: ``csv`` where a file declares none.

    >>> [kind_of(dtype) for dtype in ("int64", "double", "bool", "timestamp[us]", "string", "csv")]
    ['integer', 'continuous', 'boolean', 'datetime', 'text', 'csv']
    """
    if dtype == lake.CSV:
        return "csv"
    for kind, names in (("boolean", ("bool",)), ("integer", ("int", "uint")), ("datetime", ("timestamp", "date")),
                        ("time", ("time",)), ("continuous", ("float", "double", "half", "decimal"))):
        if dtype.startswith(names):
            return kind
    return "text"


def _name(name: str) -> str:
    """A column's name as YAML reads it back."""
    return name if PLAIN.fullmatch(name) and name.lower() not in WORDS and name == name.strip() else json.dumps(
        name, ensure_ascii=False)
