"""A resolved schema as the mapping a person could have written: every answer of it, measured or not, becomes public.

>>> from dpvae.data.declare import declare
>>> vote = {"kind": "categorical", "missing": False, "categories": ["yes", "no"], "other": False}
>>> mapping = {"columns": {"vote": vote}}
>>> declaration(declare(mapping)) == {"target": None} | mapping
True
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

from dpvae.data.schema import CLOCK, EPOCH, Column, Schema


def declaration(schema: Schema) -> dict[str, Any]:
    """The mapping that declares every answer of ``schema``; JSON is YAML."""
    held = {"constraints": [rule.declared() for rule in schema.constraints]} if schema.constraints else {}
    return {"target": schema.target, "columns": {column.name: _facts(column) for column in schema.columns}, **held}


def _facts(column: Column) -> dict[str, Any]:
    missing = "measure" if column.nullable is None else column.nullable
    if column.kind is None:
        return {"missing": missing}
    facts: dict[str, Any] = {"kind": column.kind, "missing": missing}
    if column.kind in ("categorical", "ordinal") and column.categories:
        facts |= {"categories": list(column.categories), "other": column.other}
    if column.is_numeric:
        edges, step = list(column.edges or ()), column.step
        if edges and step:  # between grid points, as a bound schema has them; a person writes grid points
            edges = [*(math.ceil(e / step - 1e-9) * step for e in edges[:-1]),
                     math.floor(edges[-1] / step + 1e-9) * step]
        low, high = column.lower, column.upper
        if edges and low is not None and high is not None:  # whatever the rounding
            low, high = min(low, edges[0]), max(high, edges[-1])
        facts |= {"min": low, "max": high, "heaps": column.heaps, "edges": edges or None,
                  "format": column.format, "unit": column.unit if column.kind in CLOCK else None,
                  "decimals": column.decimals if column.kind == "continuous" else None}
    if column.kind in CLOCK:
        facts |= {key: _dates(facts[key], column.kind == "time") for key in ("min", "max", "heaps", "edges")}
    if column.kind == "boolean" and column.spelling is not None:
        facts["spelling"] = list(column.spelling)
    return {key: value for key, value in facts.items() if value is not None}


def _dates(value: Any, of_day: bool) -> Any:
    if isinstance(value, list | tuple):
        return [_dates(v, of_day) for v in value]
    if value is None:
        return None
    when = EPOCH + timedelta(seconds=value)
    return when.time().isoformat() if of_day else when.isoformat()
