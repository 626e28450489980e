"""Rows made to fulfil what their schema declares (see :mod:`dpvae.data.constraints`). Post-processing of public facts
and synthetic rows: nothing private is read, so it costs nothing.

A formula is computed and an id is dealt out. A row that breaks another rule is drawn again, so that the rows follow the
model given the rules; only where the model can hardly fulfil them is a row repaired: bounds are clipped to, ordered
columns are raised to the one before, the nearest public combination is taken. A row that still breaks a rule is
refused, never released.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from dpvae.data.cells import from_axis, from_categories, to_axis, to_keys
from dpvae.data.constraints import Constraint, evaluate
from dpvae.data.lake import Cells
from dpvae.data.schema import Column, Schema
from dpvae.errors import DataError
from dpvae.rng import seed_of

Rows = dict[str, Cells]
Given = Mapping[str, np.ndarray]
ROUNDS = 20  # of drawing broken rows again
MOST_IDS = 2**52  # that float64 keeps apart


def enforce(schema: Schema, rows: Rows, *, first: int, seed: int, redraw: Callable[[np.ndarray], Rows],
            given: Given | None = None) -> Rows:
    """``rows`` (numbered from ``first``), all of which fulfil the schema's constraints.

    ``redraw(index)`` gives a fresh row in the place of each of these; ``given`` says by column in which rows its cell
    is what somebody asked for, (rows,) bool: those stay. Raises :class:`DataError` where the constraints cannot be
    fulfilled.
    """
    if not schema.constraints:
        return rows
    given, total = given or {}, len(next(iter(rows.values())).values)
    rows = _redrawn(schema, computed(schema, rows, given), redraw, given)
    bad = np.flatnonzero(broken(schema, rows))
    if len(bad):
        rows = _put(rows, bad, repaired(schema, _take(rows, bad), _at(given, bad)), None)
        _check(schema, rows)
    for rule in schema.constraints:
        if rule.kind == "unique":
            column = schema.column(rule.columns[0])
            if column.name in given and given[column.name].any():
                raise DataError(f"given {column.name}: unique values are dealt out by the row's number; expected other "
                                "columns")
            rows[column.name] = ids(column, first, total, seed=seed)
    return rows


def _redrawn(schema: Schema, rows: Rows, redraw: Callable[[np.ndarray], Rows], given: Given) -> Rows:
    """``rows`` with those that break a constraint drawn again, two for each, some rounds long."""
    for _ in range(ROUNDS):
        bad = np.flatnonzero(broken(schema, rows))
        if not len(bad):
            break
        twice = np.tile(bad, 2)
        fresh = computed(schema, redraw(twice), _at(given, twice))
        good = np.flatnonzero(~broken(schema, fresh))
        places, firsts = np.unique(twice[good], return_index=True)
        rows = _put(rows, places, fresh, good[firsts])
    return rows


def _check(schema: Schema, rows: Rows) -> None:
    """Refuse a constraint that rows break still, though they were repaired."""
    total = len(next(iter(rows.values())).values)
    for rule in schema.constraints:
        if left := int(_breaks(schema, rule, rows).sum()):
            raise DataError(f"constraint {rule.kind} of {', '.join(rule.columns)}: {left} of {total} rows cannot "
                            "fulfil it with the schema's bounds, the other rules and what was given; relax one of them")


def _at(given: Given, index: np.ndarray) -> Given:
    return {name: held[index] for name, held in given.items()}


def broken(schema: Schema, rows: Rows) -> np.ndarray:
    """Which rows break a constraint (uniqueness aside, which is no property of a row), (rows,)."""
    bad = np.zeros(len(next(iter(rows.values())).values), dtype=bool)
    for rule in schema.constraints:
        bad |= _breaks(schema, rule, rows)
    return bad


def ids(column: Column, first: int, rows: int, *, seed: int) -> Cells:
    """Distinct cells for rows ``first``, ``first + 1``, ...: a permutation of the column's values, fixed by the seed,
    so that row i has the same id however many rows are drawn."""
    discrete = list(column.categories or ())
    step = column.step or 1.0
    low, high = column.lower or 0.0, column.upper or 0.0
    count = min(round((high - low) / step) + 1, MOST_IDS) if column.is_numeric else len(discrete)
    if first + rows > count:
        raise DataError(f"constraint unique of {column.name}: its schema allows {count:,} values, and {first + rows:,} "
                        "rows were asked for; widen its bounds, or draw fewer rows")
    stride = round(count * 0.6180339887) | 1
    while math.gcd(stride, count) != 1:
        stride += 1
    start = seed_of(seed, "ids", column.name) % count
    index = [(start + stride * (first + i)) % count for i in range(rows)]
    nothing = np.zeros(rows, dtype=bool)
    if not column.is_numeric:
        return from_categories(column, [discrete[i] for i in index], nothing)
    return from_axis(column, low + step * np.array(index, dtype=np.float64), nothing)


def _breaks(schema: Schema, rule: Constraint, rows: Rows) -> np.ndarray:
    columns = [schema.column(name) for name in rule.columns]
    if rule.kind == "unique":
        return np.zeros(len(rows[rule.columns[0]].values), dtype=bool)
    if rule.kind == "combinations":
        allowed = {tuple(row) for row in rule.facts["rows"]}
        return np.array([row not in allowed for row in _spelled(columns, rows)], dtype=bool)
    axes = [to_axis(column, rows[column.name]) for column in columns]
    with np.errstate(invalid="ignore", divide="ignore"):
        if rule.kind == "range":
            low, high = _limits(rule)
            return np.asarray((axes[0] < low) | (axes[0] > high))
        if rule.kind == "order":
            return np.any([np.fmax.reduce(axes[:i]) > axis for i, axis in enumerate(axes) if i], axis=0)
        column, total = columns[0], evaluate(rule.facts["text"], dict(zip(rule.columns[1:], axes[1:], strict=True)))
        low, high = column.lower or -np.inf, column.upper or np.inf
        slack = column.step / 2 + 1e-9 * np.abs(total)
        off = (np.abs(axes[0] - total) > slack) | (total < low - slack) | (total > high + slack) | np.isinf(total)
        return np.asarray(off & ~np.isnan(total))


def _limits(rule: Constraint) -> tuple[float, float]:
    return float(rule.facts.get("min", -np.inf)), float(rule.facts.get("max", np.inf))


def _spelled(columns: list[Column], rows: Rows) -> list[tuple[str | None, ...]]:
    """The cells as a public table spells them."""
    spelled = []
    for column in columns:
        cells = rows[column.name]
        names: dict[object, str] = dict(zip(column.categories or (), column.labels, strict=False))
        keys = cells.values.tolist() if column.is_numeric else [names.get(key, key) for key in to_keys(column, cells)]
        spelled.append([None if gone or key is None else str(key)
                        for key, gone in zip(keys, cells.missing.tolist(), strict=True)])
    return list(zip(*spelled, strict=True))


def computed(schema: Schema, rows: Rows, given: Given) -> Rows:
    """Rows with their formulas worked out; a missing operand leaves the result as it was drawn, and so does a given
    result."""
    rows = dict(rows)
    for rule in schema.constraints:
        if rule.kind == "formula":
            column = schema.column(rule.columns[0])
            axes = {name: to_axis(schema.column(name), rows[name]) for name in rule.columns[1:]}
            with np.errstate(invalid="ignore", divide="ignore"):
                total = np.asarray(evaluate(rule.facts["text"], axes), dtype=np.float64)
            old = rows[column.name]
            kept = ~np.isfinite(total) | given.get(column.name, False)
            total = np.where(kept, to_axis(column, old), total)
            rows[column.name] = from_axis(column, np.nan_to_num(total), old.missing & kept)
    return rows


def repaired(schema: Schema, rows: Rows, given: Given) -> Rows:
    """Rows changed as little as the constraints ask for, and nothing in them that is given."""
    rows = dict(rows)
    for rule in schema.constraints:
        columns = [schema.column(name) for name in rule.columns]
        if rule.kind == "range":
            old = to_axis(columns[0], rows[columns[0].name])
            axis = np.where(given.get(rule.columns[0], False), old, np.clip(old, *_limits(rule)))
            rows[columns[0].name] = from_axis(columns[0], np.nan_to_num(axis), np.isnan(axis))
        elif rule.kind == "order":
            rows |= _ordered(schema, columns, rows, given)
        elif rule.kind == "combinations":
            rows |= _nearest(columns, rule.facts["rows"], rows, given)
    return computed(schema, rows, given)


def _ordered(schema: Schema, columns: list[Column], rows: Rows, given: Given) -> Rows:
    """Each cell raised to the largest before it, within what all columns after it can still reach and what was given
    there."""
    bounds = [(column.lower or 0.0, column.upper or 0.0) for column in columns]
    for rule in schema.constraints:
        if rule.kind == "range" and rule.columns[0] in (column.name for column in columns):
            j = [column.name for column in columns].index(rule.columns[0])
            low, high = _limits(rule)
            bounds[j] = max(bounds[j][0], low), min(bounds[j][1], high)
    axes = [to_axis(column, rows[column.name]) for column in columns]
    held = [given.get(column.name, np.zeros(len(axis), dtype=bool)) for column, axis in zip(columns, axes, strict=True)]
    out, before = {}, np.full(len(axes[0]), -np.inf)
    for j, column in enumerate(columns):
        later = [np.where(is_held, axis, np.nan) for axis, is_held in zip(axes[j + 1:], held[j + 1:], strict=True)]
        reach = np.fmin.reduce([np.full(len(before), min(high for _, high in bounds[j:])), *later])
        axis = np.clip(np.fmax(axes[j], np.where(np.isnan(axes[j]), np.nan, before)), np.minimum(bounds[j][0], reach),
                       reach)
        axis = np.where(held[j], axes[j], axis)
        before = np.fmax(before, axis)
        out[column.name] = from_axis(column, np.nan_to_num(axis), np.isnan(axis))
    return out


def _nearest(columns: list[Column], allowed: list[list[str | None]], rows: Rows, given: Given) -> Rows:
    """For each row the allowed combination that agrees with it in what was given, and else in most columns."""
    table = np.array(allowed, dtype=object)
    spelled = _spelled(columns, rows)
    weights = np.ones((len(spelled), len(columns)))
    for j, column in enumerate(columns):
        weights[:, j] += len(columns) * given.get(column.name, np.zeros(len(spelled), dtype=bool))
    picked = [allowed[int(((table == np.array(row, dtype=object)) * weight).sum(1).argmax())]
              for row, weight in zip(spelled, weights, strict=True)]
    out = {}
    for j, column in enumerate(columns):
        kept = given.get(column.name, np.zeros(len(spelled), dtype=bool))
        texts = [own[j] if is_kept else row[j] for own, row, is_kept in zip(spelled, picked, kept, strict=True)]
        missing = np.array([text is None for text in texts], dtype=bool)
        if column.is_numeric:
            cells = Cells(np.array([text or "0" for text in texts], dtype=object), missing, "csv")
            axis = to_axis(column, cells)
            out[column.name] = from_axis(column, np.nan_to_num(axis), missing)
        else:
            known = dict(zip(column.labels, column.categories or (), strict=False))
            out[column.name] = from_categories(column, [known.get(str(text), str(text)) for text in texts], missing)
    return out


def _take(rows: Rows, index: np.ndarray) -> Rows:
    return {name: Cells(c.values[index], c.missing[index], c.dtype) for name, c in rows.items()}


def _put(rows: Rows, where: np.ndarray, source: Rows, index: np.ndarray | None) -> Rows:
    """``rows`` with those at ``where`` replaced by the rows ``index`` (all) of ``source``."""
    out = {}
    for name, cells in rows.items():
        new = source[name] if index is None else _take({name: source[name]}, index)[name]
        kind = object if cells.values.dtype == object else np.result_type(cells.values, new.values)
        values = cells.values.astype(kind)
        missing = cells.missing.copy()
        values[where], missing[where] = new.values, new.missing
        out[name] = Cells(values, missing, cells.dtype)
    return out
