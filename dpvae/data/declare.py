"""The schema as a person writes it, in YAML or as a mapping.

    target: income
    columns:
      age: {kind: integer, min: 17, max: 90}
      workclass: {kind: categorical, categories: [Private, State-gov, "?"]}
      capital_gain: {kind: integer, min: 0, max: 99999, heaps: [0]}
      joined: {kind: datetime, min: 2011-01-01, max: 2020-01-01, format: "%Y-%m-%d", missing: true}
      woken: {kind: time, min: 05:00, max: 12:00, format: "%H:%M"}
      smoker: {kind: boolean, spelling: [no, yes]}    # false, then true
      notes_code: {}                     # nothing is public: everything about it is measured

Rules between columns stand under ``constraints``: see :mod:`dpvae.data.constraints`.

A described column has no missing cells unless it says ``missing: true`` (or ``missing: measure``). Whatever else is
left out of a description is measured. YAML is read by the 1.2 rules: ``no`` and ``2011-01-01`` are text, not a
boolean and a date, so that a category list reads as it is written.

>>> declare({"columns": {"vote": {"categories": ["yes", "no"]}}}).column("vote").kind
'categorical'
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import yaml

from dpvae.checks import did_you_mean
from dpvae.data import constraints
from dpvae.data.schema import CLOCK, EPOCH, KINDS, NUMERIC, STEPS, Column, Schema
from dpvae.errors import SchemaError

_KEYS = {  # key -> kinds it may stand with
    "kind": KINDS, "missing": KINDS,
    "categories": ("categorical", "ordinal"), "other": ("categorical", "ordinal"),
    "min": NUMERIC, "max": NUMERIC, "heaps": NUMERIC, "edges": NUMERIC,
    "decimals": ("continuous",), "format": CLOCK, "unit": CLOCK, "spelling": ("boolean",),
}
_PARTS = ("columns", "target", "constraints")
_FIELD = {"min": "lower", "max": "upper", "missing": "nullable"}


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML 1.2 scalars, and a key that appears twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise SchemaError(f"schema line {node.start_mark.line + 1}: key {key!r} appears twice; remove one")
        return super().construct_mapping(node, deep=True)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf)|\.nan", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))


def from_yaml(path: str | os.PathLike[str]) -> Schema:
    """The schema in a YAML file."""
    try:
        mapping = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise SchemaError(f"schema={str(path)!r}: cannot be read ({error.strerror}); give the path of a YAML "
                          "file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        why = getattr(error, "problem", None) or ("not UTF-8" if isinstance(error, ValueError) else "cannot be parsed")
        raise SchemaError(f"schema={str(path)!r}: not valid YAML{where} ({why}); repair it") from error
    try:
        return declare(mapping, Path(path).parent)
    except SchemaError as error:
        raise SchemaError(f"schema={str(path)!r}: {error}") from None


def declare(mapping: Any, folder: Path | None = None) -> Schema:
    """The schema in a mapping of the form above; ``folder`` is where files of its constraints lie."""
    if not isinstance(mapping, Mapping) or not isinstance(mapping.get("columns"), Mapping) or not mapping["columns"]:
        raise SchemaError("schema: expected a mapping with the key 'columns': {name: {kind: ...}, ...}")
    for key in mapping:
        if key not in _PARTS:
            raise SchemaError(f"schema.{key}: no such key{did_you_mean(str(key), _PARTS)}")
    columns = tuple(_column(str(name), facts or {}) for name, facts in mapping["columns"].items())
    target = mapping.get("target")
    if target is not None and (isinstance(target, bool) or not isinstance(target, (str, int, float))):
        raise SchemaError(f"schema.target={target!r}: expected the name of a column")
    names = [column.name for column in columns]
    return Schema(columns, target if target is None else str(target),
                  constraints.parse(mapping.get("constraints") or [], names, folder))


def _column(name: str, facts: Any) -> Column:
    if not isinstance(facts, Mapping):
        raise SchemaError(f"{name}={facts!r}: expected a mapping such as {{kind: integer, min: 0, max: 120}}")
    for key in facts:
        if key not in _KEYS:
            raise SchemaError(f"{name}.{key}: no such key{did_you_mean(str(key), _KEYS)}")
    kind = facts.get("kind", "categorical" if "categories" in facts else None)
    if kind is not None and kind not in KINDS:
        raise SchemaError(f"{name}.kind={kind!r}: expected one of {', '.join(KINDS)}{did_you_mean(str(kind), KINDS)}")
    for key in facts:
        if kind is None and key != "missing":
            raise SchemaError(f"{name}.{key}: needs a kind; add kind: {_KEYS[key][0]}")
        if kind is not None and kind not in _KEYS[key]:
            raise SchemaError(f"{name}.{key}: does not go with kind={kind}; expected kind {' or '.join(_KEYS[key])}")
    known: dict[str, Any] = {str(_FIELD.get(key, key)): _fact(name, key, kind, value)
                             for key, value in facts.items() if key != "kind"}
    if kind is not None:
        known.setdefault("nullable", False)
    _check_range(name, known)
    declared = tuple(key for key, value in ({"kind": kind} | known).items() if value is not None)
    return Column(name, kind, declared=declared, **known)


def _fact(name: str, key: str, kind: str | None, value: Any) -> Any:
    where = f"{name}.{key}"
    if key == "missing":
        if value == "measure":
            return None
        return _expect(where, value, isinstance(value, bool), "true, false or measure")
    if key == "other":
        return _expect(where, value, isinstance(value, bool), "true or false")
    if key == "decimals":
        return _expect(where, value, type(value) is int and 0 <= value <= 17, "a whole number from 0 to 17")
    if key == "unit":
        units = tuple(unit for unit in STEPS if kind == "datetime" or unit != "D")
        return _expect(where, value, value in units, f"one of {', '.join(units)}")
    if key == "spelling":
        return _spelling(where, value)
    if key == "format":
        return _expect(where, value, isinstance(value, str) and "%" in value, "a strftime format such as %Y-%m-%d")
    if key == "categories":
        return _categories(where, value)
    if key in ("heaps", "edges"):
        _expect(where, value, isinstance(value, (list, tuple)), "a list of values")
        return tuple(_point(where, kind, v) for v in value)
    return _point(where, kind, value)


def _expect(where: str, value: Any, holds: bool, wanted: str) -> Any:
    if not holds:
        raise SchemaError(f"{where}={value!r}: expected {wanted}")
    return value


def _categories(where: str, value: Any) -> tuple[Any, ...]:
    _expect(where, value, isinstance(value, (list, tuple)) and len(value) > 0, "a list of at least one value")
    for item in value:
        _expect(where, item, isinstance(item, (str, int, float)), "text or numbers")
    spelled = [str(item) for item in value]
    for item in spelled:
        if spelled.count(item) > 1:
            raise SchemaError(f"{where}: {item!r} appears twice; remove one")
    same = all(isinstance(item, (int, float)) for item in value)
    return tuple(value) if same else tuple(spelled)


def _spelling(where: str, value: Any) -> tuple[str, str]:
    """The words for false and for true."""
    words = value if isinstance(value, (list, tuple)) else ()
    if any(isinstance(word, bool) for word in words):
        raise SchemaError(f'{where}: quote the words as the table spells them, such as ["False", "True"]')
    two = len(words) == 2 and all(isinstance(word, (str, int)) for word in words)
    _expect(where, value, two and str(words[0]).lower() != str(words[1]).lower(),
            "the words for false and for true, such as [no, yes]")
    return str(words[0]).strip(), str(words[1]).strip()


def _point(where: str, kind: str | None, value: Any) -> float:
    """A declared value on the column's axis."""
    if kind == "time":
        return _time(where, value)
    if kind != "datetime":
        ok = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        ok = ok and (kind != "integer" or float(value).is_integer())
        return float(_expect(where, value, ok, "a whole number" if kind == "integer" else "a finite number"))
    try:
        if isinstance(value, date):
            value = value.isoformat()
        when = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise SchemaError(f"{where}={value!r}: expected a date such as 2011-01-31 or 2011-01-31T12:00") from None
    return ((when if when.tzinfo else when.replace(tzinfo=UTC)) - EPOCH).total_seconds()


def _time(where: str, value: Any) -> float:
    try:
        when = value if isinstance(value, time) else time.fromisoformat(value)
    except (TypeError, ValueError):
        raise SchemaError(f"{where}={value!r}: expected a time of day such as 08:30 or 08:30:15") from None
    return when.hour * 3600.0 + when.minute * 60 + when.second + when.microsecond / 1e6


def _check_range(name: str, known: dict[str, Any]) -> None:
    edges = known.get("edges")
    if edges is not None:
        rising = len(edges) > 1 and all(a < b for a, b in itertools.pairwise(edges))
        _expect(f"{name}.edges", list(edges), rising, "at least two increasing values")
        known.setdefault("lower", edges[0])
        known.setdefault("upper", edges[-1])
    lower, upper = known.get("lower"), known.get("upper")
    if lower is not None and upper is not None and lower > upper:
        raise SchemaError(f"{name}.min={lower:g}: expected at most max={upper:g}; swap them")
    for value in (*(known.get("heaps") or ()), *(edges or ())):
        if (lower is not None and value < lower) or (upper is not None and value > upper):
            raise SchemaError(f"{name}: {value:g} lies outside min={lower} .. max={upper}; widen the bounds")
