"""What every row must fulfil, as a person declares it beside the columns of a schema: public, as all of it is.

    constraints:
      - {range: age, min: 18}                      # narrower than what the column may hold
      - {order: [ordered, shipped, delivered]}     # each at most the next; missing cells are skipped
      - {formula: "total = price + 2 * shipping"}  # columns and numbers, + - * /
      - {combinations: zip_codes.csv}              # a public table: its columns only in combinations that stand there
      - {combinations: {city: [A, B], state: [X, Y]}}   # the same, written out: rows of equal length
      - {unique: order_id}                         # each value at most once

>>> parse([{"order": ["start", "end"]}], ("start", "end"))
(Constraint(kind='order', columns=('start', 'end'), facts={}),)
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpvae.checks import did_you_mean
from dpvae.errors import SchemaError

KINDS = ("range", "order", "formula", "combinations", "unique")
_FACTS = {"range": ("min", "max")}
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.USub)


@dataclass(frozen=True)
class Constraint:
    """One rule: its ``columns``, and ``facts`` that are JSON-able and differ by ``kind``."""

    kind: str
    columns: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON knows it."""
        return {"kind": self.kind, "columns": list(self.columns), "facts": dict(self.facts)}

    def declared(self) -> dict[str, Any]:
        """The rule as a person writes it."""
        first = self.columns[0]
        value: Any = {"range": first, "unique": first, "order": list(self.columns)}.get(self.kind)
        if self.kind == "formula":
            value = f"{first} = {self.facts['text']}"
        elif self.kind == "combinations":
            value = {name: list(column) for name, column in
                     zip(self.columns, zip(*self.facts["rows"], strict=True), strict=True)}
        return {self.kind: value, **(self.facts if self.kind == "range" else {})}

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Constraint:
        """The inverse of :meth:`to_dict`."""
        return cls(mapping["kind"], tuple(mapping["columns"]), dict(mapping["facts"]))


def parse(declared: Any, names: Sequence[str], folder: Path | None = None) -> tuple[Constraint, ...]:
    """The constraints of a declaration; ``folder`` is where the files it names lie."""
    if not isinstance(declared, list | tuple):
        raise SchemaError("constraints: expected a list such as [{order: [start, end]}]")
    found = tuple(_one(i, rule, folder) for i, rule in enumerate(declared, 1))
    for i, rule in enumerate(found, 1):
        for name in rule.columns:
            if name not in names:
                raise SchemaError(f"constraint {i}: column {name!r} is not in the schema{did_you_mean(name, names)}")
    return found


def _one(i: int, rule: Any, folder: Path | None) -> Constraint:
    kinds = [key for key in rule if key in KINDS] if isinstance(rule, Mapping) else []
    if len(kinds) != 1:
        raise SchemaError(f"constraint {i}={rule!r}: expected one of {', '.join(KINDS)}, such as {{unique: order_id}}")
    kind, value = kinds[0], rule[kinds[0]]
    for key in rule:
        if key != kind and key not in _FACTS.get(kind, ()):
            raise SchemaError(f"constraint {i}.{key}: no such key beside {kind}")
    if kind == "range":
        bounds = {key: rule[key] for key in ("min", "max") if rule.get(key) is not None}
        if not bounds:
            raise SchemaError(f"constraint {i}: a range needs min or max")
        return Constraint(kind, (str(value),), bounds)
    if kind == "order":
        if not isinstance(value, list | tuple) or len(value) < 2:
            raise SchemaError(f"constraint {i}.order={value!r}: expected at least two columns, such as [start, end]")
        return Constraint(kind, tuple(map(str, value)))
    if kind == "formula":
        return _formula(i, value)
    return Constraint(kind, (str(value),)) if kind == "unique" else _combinations(i, value, folder)


def _formula(i: int, text: Any) -> Constraint:
    left, equals, right = str(text).partition("=")
    try:
        tree = ast.parse(right.strip(), mode="eval")
        names = tuple(dict.fromkeys(_names(tree.body)))
    except (SyntaxError, ValueError):
        names = ()
    if not equals or not left.strip().isidentifier() or not names or left.strip() in names:
        raise SchemaError(f"constraint {i}.formula={text!r}: expected one column, =, and other columns and numbers "
                          "with + - * /, such as total = price + shipping")
    return Constraint("formula", (left.strip(), *names), {"text": right.strip()})


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, _OPERATORS):
        return [*_names(node.left), *_names(node.right)]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, _OPERATORS):
        return _names(node.operand)
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return []
    raise ValueError


def evaluate(text: str, values: Mapping[str, Any]) -> Any:
    """A parsed formula over ``values`` (numbers or arrays by column)."""
    def value(node: ast.AST) -> Any:
        if isinstance(node, ast.BinOp):
            left, right = value(node.left), value(node.right)
            if isinstance(node.op, ast.Add | ast.Sub):
                return left + right if isinstance(node.op, ast.Add) else left - right
            return left * right if isinstance(node.op, ast.Mult) else left / right
        if isinstance(node, ast.UnaryOp):
            return -value(node.operand)
        return values[node.id] if isinstance(node, ast.Name) else node.value  # type: ignore[attr-defined]

    return value(ast.parse(text, mode="eval").body)


def _combinations(i: int, value: Any, folder: Path | None) -> Constraint:
    if isinstance(value, str):
        from dpvae.data import lake

        path = Path(value) if folder is None or Path(value).is_absolute() else folder / value
        table = lake.read(path)
        value = {name: [None if gone else v for v, gone in zip(cells.values.tolist(), cells.missing.tolist(),
                                                               strict=True)]
                 for name, cells in zip(table.names, table.cells, strict=True)}
    if not isinstance(value, Mapping) or not value or len({len(v) for v in value.values()}) != 1:
        raise SchemaError(f"constraint {i}.combinations: expected a table's file, or columns of equal length")
    rows = list(dict.fromkeys(zip(*(map(_spelled, column) for column in value.values()), strict=True)))
    if not rows:
        raise SchemaError(f"constraint {i}.combinations: the table has no rows")
    return Constraint("combinations", tuple(map(str, value)), {"rows": [list(row) for row in rows]})


def _spelled(value: Any) -> str | None:
    return None if value is None else str(value)
