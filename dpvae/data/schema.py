"""What is publicly known about each column, and what was measured about it: never anything else.

A :class:`Column` is a list of answers: its kind, its categories or bounds, its bins. An answer of ``None`` is an open
question, which :mod:`dpvae.data.survey` closes with noise and charges for. What a person wrote into the schema is
named in ``declared`` and counts as public; it is never compared with private cells except to refuse them.

Every cell becomes one *code*. A categorical column has a code per category; a numeric one a code per heap (a single
value that many rows share: 0 capital gain, 40 hours), then one per bin. After these come ``other``, the code of rare
values (``rare`` holds those that were published all the same) and of what the survey's threshold hid, and last the
code of a missing cell.

Datetimes are measured in seconds since 1970 on the same axis as numbers, times of day in seconds since midnight.

>>> column = Column("hours", kind="integer", dtype="int64", nullable=False, lower=1, upper=99, heaps=(40.0,),
...                 edges=(0.5, 34.5, 99.5))
>>> column.labels, column.cardinality, column.open
(('40', '1..34', '35..99'), 3, ())
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Self

from dpvae.checks import did_you_mean, one_of
from dpvae.data.constraints import Constraint
from dpvae.data.dtypes import is_text, natural_kind, unit_of
from dpvae.errors import ConfigError, SchemaError

DISCRETE = ("categorical", "ordinal", "boolean")
CLOCK = ("datetime", "time")  # measured in seconds
NUMERIC = ("integer", "continuous", *CLOCK)
KINDS = (*DISCRETE, *NUMERIC)
OTHER = "(other)"  # how a folded rare value is written out
MOST_NAMED = 12  # columns, in a message
DAY = 86400.0  # seconds
STEPS = {"D": DAY, "m": 60.0, "s": 1.0, "us": 0.0}  # a datetime's unit -> seconds; 0: too fine for a grid
FULL = 9  # decimals from here on mean: not rounded at all
Category = str | int | float | bool
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SPELLINGS = (("false", "true"), ("False", "True"), ("FALSE", "TRUE"), ("no", "yes"), ("No", "Yes"), ("NO", "YES"),
             ("n", "y"), ("N", "Y"), ("f", "t"), ("F", "T"), ("0", "1"))  # usual ones of a boolean in text


@dataclass(frozen=True)
class Column:
    """One column; ``None`` marks what is still open."""

    name: str
    kind: str | None = None
    dtype: str = ""  # Arrow's name of the original type, or "csv"
    nullable: bool | None = None
    categories: tuple[Category, ...] | None = None
    lower: float | None = None
    upper: float | None = None
    decimals: int | None = None  # of a continuous column; FULL or more: never rounded
    spelling: tuple[str, str] | None = None  # of a boolean kept as text: the words for false and for true
    unit: str | None = None  # of a datetime: D, m, s or us; of a time: m, s or us
    format: str | None = None  # of a datetime or a time kept as text
    edges: tuple[float, ...] | None = None  # m + 1 edges of m bins; between grid points where there is a grid
    heaps: tuple[float, ...] | None = None
    other: bool | None = None
    within: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # a finer histogram: its edges, its weights
    repeats: bool | None = None  # few values make up its bins: each bin is written as at most four
    rare: tuple[tuple[Category, ...], tuple[float, ...]] | None = None  # values behind ``other``; weights, of what is
    # unknown last
    guessed: tuple[str, ...] | None = None  # of kind, range, values, spelling: what the noise hid
    declared: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind is not None:
            _one_of(KINDS, **{f"{self.name}.kind": self.kind})
        if self.kind == "boolean":
            object.__setattr__(self, "categories", (False, True))
        if self.kind == "boolean" or (self.kind in DISCRETE and "categories" in self.declared and self.other is None):
            object.__setattr__(self, "other", False)
        if self.kind == "time" and self.unit is not None:  # a day is as long as any other, and that is public
            object.__setattr__(self, "lower", 0.0 if self.lower is None else self.lower)
            object.__setattr__(self, "upper", self.midnight if self.upper is None else self.upper)
        if self.lower is not None and self.upper is not None and not self.lower <= self.upper:
            raise SchemaError(f"{self.name}.min={self.lower:g}: expected at most max={self.upper:g}; swap them")

    @property
    def is_numeric(self) -> bool:
        """Whether its values are points on an axis: integers, numbers, dates."""
        return self.kind in NUMERIC

    @property
    def step(self) -> float:
        """Distance of neighbouring values on the column's grid; 0 where there is none."""
        if self.kind in CLOCK:
            return STEPS[self.unit or "us"]
        if self.kind == "continuous":
            return 0.0 if self.decimals is None or self.decimals >= FULL else 10.0**-self.decimals
        return 1.0

    @property
    def midnight(self) -> float:
        """The last time of a day that a column of times can hold, in seconds."""
        return DAY - (self.step or 1e-6)

    def on_grid(self, value: float) -> float:
        """The nearest value that the column can hold, spelled the one way it is spelled.

        >>> Column("x", "continuous", decimals=1).on_grid(1.5000000000000002)
        1.5
        """
        if not self.step:
            return float(value)
        nearest = math.floor(value / self.step + 0.5) * self.step
        return float(round(nearest, self.decimals or 0) if self.kind == "continuous" else nearest)

    @property
    def open(self) -> tuple[str, ...]:
        """Names of the questions that are not answered yet."""
        if self.kind is None:
            return ("kind", *(("nullable",) if self.nullable is None else ()))
        asked = ["categories", "other"]
        if self.is_numeric:
            asked = ["lower", "upper", "heaps", "edges"]
            asked += ["decimals"] if self.kind == "continuous" else []
            asked = ["heaps", "edges"] if self.kind == "time" else asked
            asked += ["unit"] if self.kind in CLOCK else []
            asked += ["format"] if self.kind in CLOCK and is_text(self.dtype) else []
        elif self.kind == "boolean" and is_text(self.dtype):
            asked += ["spelling"]
        return tuple(name for name in (*asked, "nullable") if getattr(self, name) is None)

    @property
    def bins(self) -> int:
        """How many bins the edges make."""
        return max(len(self.edges or ()) - 1, 0)

    @property
    def values(self) -> int:
        """Codes of known values: categories, or heaps and bins; ``other`` and missing come after them."""
        return len(self.heaps or ()) + self.bins if self.is_numeric else len(self.categories or ())

    @property
    def cardinality(self) -> int:
        """How many codes a cell can have: known values, other, missing."""
        return self.values + bool(self.other) + bool(self.nullable)

    @property
    def labels(self) -> tuple[str, ...]:
        """One short text per code, for reports."""
        names = list(self.spelling or map(str, self.categories or ()))
        if self.is_numeric:
            edges = self.edges or ()
            names = [self.text(h) for h in self.heaps or ()]
            names += [self._range(a, b) for a, b in itertools.pairwise(edges)]
        return (*names, *([OTHER] if self.other else []), *(["(missing)"] if self.nullable else []))

    def text(self, value: float) -> str:
        """A point of the numeric axis as a person writes it."""
        if self.kind == "datetime":
            when = EPOCH + timedelta(seconds=value)
            return when.strftime("%Y-%m-%d" if self.unit == "D" else "%Y-%m-%d %H:%M:%S")
        if self.kind == "time":
            return (EPOCH + timedelta(seconds=value)).strftime("%H:%M" if self.unit == "m" else "%H:%M:%S")
        return f"{value:.0f}" if self.step >= 1 else f"{value:.{min(self.decimals or 0, 6)}f}"

    def _range(self, low: float, high: float) -> str:
        half = self.step / 2
        first, last = self.text(low + half), self.text(high - half)
        return first if self.step and first == last else f"{first}..{last}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; what is open is left out."""
        return {f.name: _jsonable(getattr(self, f.name)) for f in dataclasses.fields(self)
                if getattr(self, f.name) is not None}

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`."""
        fields = [f.name for f in dataclasses.fields(cls)]
        for key in mapping:
            if key not in fields:
                raise SchemaError(f"column.{key}: no such key{did_you_mean(str(key), fields)}")
        return cls(**{key: _tuples(value) for key, value in mapping.items()})


@dataclass(frozen=True)
class Schema:
    """All columns in table order, the column to be predicted, if any, and what holds between columns."""

    columns: tuple[Column, ...]
    target: str | None = None
    constraints: tuple[Constraint, ...] = ()  # what every released row fulfils; declared, so public
    where: str | None = None  # the condition under which a row of the table took part; declared too
    chosen: bool = False  # whether the table has columns besides these, which were not read

    def __post_init__(self) -> None:
        if self.target is not None and self.target not in self.names:
            raise SchemaError(f"target={self.target!r}: no such column{did_you_mean(self.target, self.names)}")

    @classmethod
    def undeclared(cls, header: Sequence[tuple[str, str]], target: str | None = None) -> Self:
        """Nothing is public but names and types: everything else is measured."""
        return cls(tuple(_settle(Column(name), dtype) for name, dtype in header), target)

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> Schema:
        """A schema written by a person; see :mod:`dpvae.data.declare` for its form."""
        from dpvae.data import declare

        return declare.from_yaml(path)

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`."""
        if set(mapping) - {f.name for f in dataclasses.fields(cls)} or "columns" not in mapping:
            raise SchemaError(f"schema keys={sorted(mapping)}: expected columns, target, constraints, where and chosen")
        return cls(tuple(Column.from_dict(c) for c in mapping["columns"]), mapping.get("target"),
                   tuple(Constraint.from_dict(c) for c in mapping.get("constraints", ())),
                   mapping.get("where"), bool(mapping.get("chosen", False)))

    def to_dict(self) -> dict[str, Any]:
        """As JSON knows it: what a run's ``schema.json`` holds."""
        held: dict[str, Any] = {"constraints": [rule.to_dict() for rule in self.constraints], "where": self.where,
                                "chosen": self.chosen}
        return {"target": self.target, "columns": [column.to_dict() for column in self.columns],
                **{key: value for key, value in held.items() if value}}

    def digest(self) -> str:
        """SHA-256 of the canonical JSON."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return tuple(column.name for column in self.columns)

    def column(self, name: str) -> Column:
        """One column by name; :class:`SchemaError` with the nearest name where there is none."""
        if name not in self.names:
            known = did_you_mean(name, self.names) or f"; expected one of {', '.join(self.names[:MOST_NAMED])}"
            raise SchemaError(f"column={name!r}: not in the schema{known}")
        return self.columns[self.names.index(name)]

    @property
    def open_questions(self) -> tuple[str, ...]:
        """``name.question`` for everything the survey has to measure."""
        return tuple(f"{column.name}.{question}" for column in self.columns for question in column.open)

    @property
    def resolved(self) -> bool:
        """Whether no question is open."""
        return not self.open_questions

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Codes of each column, in order."""
        return tuple(column.cardinality for column in self.columns)

    def with_target(self, target: str | None) -> Schema:
        """The same columns with another one to be predicted; it must be one of them."""
        return dataclasses.replace(self, target=target)

    def only(self, names: Sequence[str]) -> Schema:
        """The columns among ``names``, and what is said of these alone: a target or a constraint goes with its columns.
        """
        target = self.target if self.target in names else None
        rules = tuple(rule for rule in self.constraints if set(rule.columns) <= set(names))
        columns = tuple(column for column in self.columns if column.name in names)
        return dataclasses.replace(self, columns=columns, target=target, constraints=rules)

    def with_missing(self) -> Schema:
        """Every declared column gets a code for missing cells: what ``outside=missing`` needs."""
        return dataclasses.replace(self, columns=tuple(
            dataclasses.replace(c, nullable=True) if c.declared else c for c in self.columns))

    def bind(self, header: Sequence[tuple[str, str]]) -> Schema:
        """The schema in the order of the table, with its types; raises where the two do not describe each other."""
        names = [name for name, _ in header]
        for column in self.columns:
            if column.name not in names:
                raise SchemaError(f"schema column={column.name!r}: not in the table"
                                  f"{did_you_mean(column.name, names)}; remove it from the schema")
        for name in names:
            if name not in self.names:
                raise SchemaError(f"table column={name!r}: not in the schema; describe it, write '{name}: {{}}' to "
                                  "have it measured, or leave it out with data.columns="
                                  f"{did_you_mean(name, self.names)}")
        return dataclasses.replace(self, columns=tuple(_settle(self.column(name), dtype) for name, dtype in header))


def _one_of(choices: Sequence[str], **values: object) -> None:
    try:
        one_of(choices, **values)
    except ConfigError as error:
        raise SchemaError(str(error)) from None


def _jsonable(value: Any) -> Any:
    return [_jsonable(v) for v in value] if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


# ---- a column meets the type of its table -----------------------------------------------------------------------


_ALLOWED = {  # kind of the type -> kinds a person may declare
    "integer": ("integer", "categorical", "ordinal", "boolean"),
    "continuous": ("continuous", "integer", "categorical", "ordinal"),
    "boolean": ("boolean",),
    "datetime": ("datetime",),
    "time": ("time",),
    "categorical": ("categorical", "ordinal", "boolean"),
}


def _settle(column: Column, dtype: str) -> Column:
    """``column`` with the table's ``dtype`` and the answers that follow from it."""
    natural = natural_kind(dtype)
    kind = column.kind or natural
    if natural is not None and kind not in _ALLOWED[natural]:
        raise SchemaError(f"{column.name}.kind={kind}: the table holds {dtype}; expected one of "
                          f"{', '.join(_ALLOWED[natural])}")
    known: dict[str, Any] = {"dtype": dtype, "kind": kind}
    if dtype == "null" and column.categories is None:
        known |= {"categories": (), "other": False, "nullable": True}
    if kind in CLOCK and column.unit is None:
        known["unit"] = unit_of(column.format) if column.format else "D" if dtype.startswith("date") else None
    if column.spelling and not is_text(dtype):
        raise SchemaError(f"{column.name}.spelling: the table holds {dtype}; expected none, since only text is spelled")
    if dtype.startswith("decimal") and kind == "continuous" and column.decimals is None:
        known["decimals"] = min(int(dtype.rstrip(")").split(", ")[1]), FULL)
    if kind in ("categorical", "ordinal") and column.categories:
        known["categories"] = tuple(_as_type(column.name, c, dtype, natural) for c in column.categories)
    return with_snapped_edges(dataclasses.replace(column, **known))


def with_snapped_edges(column: Column) -> Column:
    """Edges moved between the points of the column's grid, each bin holding its lower edge (the last one both).

    >>> with_snapped_edges(Column("age", "integer", edges=(17, 30, 90))).edges
    (16.5, 29.5, 90.5)
    """
    step = column.step
    if not column.edges or not step:
        return column
    inner = [(math.ceil(edge / step - 1e-9) - 0.5) * step for edge in column.edges[:-1]]
    last = (math.floor(column.edges[-1] / step + 1e-9) + 0.5) * step
    return dataclasses.replace(column, edges=(*inner, last))


def _as_type(name: str, category: Category, dtype: str, natural: str | None) -> Category:
    """A declared category as the table spells it."""
    try:
        if dtype == "csv":
            if isinstance(category, bool):
                raise ValueError
            return category
        if is_text(dtype):
            if isinstance(category, bool):
                raise ValueError
            return str(category)
        if natural == "boolean" or isinstance(category, bool):
            raise ValueError
        value = float(category)
        return int(value) if value.is_integer() and natural != "continuous" else value
    except ValueError:
        raise SchemaError(f"{name}.categories: {category!r} cannot be a value of type {dtype}; quote it if it is "
                          "text, or declare kind: boolean") from None
