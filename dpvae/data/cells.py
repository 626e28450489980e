"""Cells as points of an axis or as category keys, and back: one column at a time, one cell at a time.

Nothing here looks at two cells together, so what becomes of a record depends on that record and on released facts.

>>> from dpvae.data.schema import Column
>>> day = Column("day", "datetime", "csv", unit="D", format="%d/%m/%Y")
>>> cells = Cells(np.array(["02/01/1970", "soon"], dtype=object), np.zeros(2, dtype=bool), "csv")
>>> to_axis(day, cells)
array([86400.,    nan])
>>> from_axis(day, np.array([86400.0]), np.zeros(1, dtype=bool)).values.tolist()
['02/01/1970']
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import numpy as np

from dpvae.data.dtypes import TICKS, float_range, int_range, is_text
from dpvae.data.lake import CSV, Cells
from dpvae.data.schema import EPOCH, FULL, Category, Column

TRUE = ("true", "t", "yes", "y", "1")
FALSE = ("false", "f", "no", "n", "0")


def ticks_per_second(dtype: str) -> float:
    """Of a timestamp or date column; dates tick once a day."""
    found = re.search(r"timestamp\[(\w+)", dtype)
    return TICKS[found[1]] if found else 1 / 86400


# ---- in ---------------------------------------------------------------------------------------------------------


def to_axis(column: Column, cells: Cells) -> np.ndarray:
    """float64, shape (rows,): nan where a cell is missing or unreadable, inf where it holds inf."""
    values = cells.values
    if column.kind == "datetime":
        axis = _times(column, cells) if is_text(cells.dtype) else values / ticks_per_second(cells.dtype)
    else:
        axis = _numbers(values, cells.missing) if is_text(cells.dtype) else values.astype(np.float64)
    return np.where(cells.missing, np.nan, axis)


def _numbers(values: np.ndarray, missing: np.ndarray) -> np.ndarray:
    try:
        return np.where(missing, "nan", values).astype(np.float64)
    except ValueError:
        return _look_up(values, _number)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


def _times(column: Column, cells: Cells) -> np.ndarray:
    format = column.format or "%Y-%m-%d"

    def seconds(text: str) -> float:
        try:
            when = datetime.strptime(text, format)
        except ValueError:
            return np.nan
        return ((when if when.tzinfo else when.replace(tzinfo=UTC)) - EPOCH).total_seconds()

    return _look_up(cells.values, seconds)


def _look_up(values: np.ndarray, function: object) -> np.ndarray:
    """``function`` of each text, called once per distinct text."""
    texts = values.tolist()
    known = {text: function(text) for text in set(texts)}  # type: ignore[operator]
    return np.fromiter((known[text] for text in texts), np.float64, len(texts))


def to_keys(column: Column, cells: Cells) -> list[Category | None]:
    """One category per row; ``None`` where a cell is missing, or no value of the column's kind."""
    values: list[Category | None] = cells.values.tolist()
    if column.kind == "boolean" and cells.dtype != "bool":
        spelled = dict.fromkeys(TRUE, True) | dict.fromkeys(FALSE, False)
        values = [spelled.get(str(v).lower()) for v in values]
    elif cells.dtype == CSV and column.categories and not isinstance(column.categories[0], str):
        known: dict[Category | None, Category] = {v: _number(str(v)) for v in set(values)}
        values = [known[v] if known[v] == known[v] else v for v in values]
    if cells.missing.any():
        values = [None if gone else v for v, gone in zip(values, cells.missing.tolist(), strict=True)]
    return values


# ---- out --------------------------------------------------------------------------------------------------------


def from_axis(column: Column, axis: np.ndarray, missing: np.ndarray) -> Cells:
    """Cells of the column's own type; ``axis`` (rows,) is rounded to the column's grid."""
    axis = np.where(missing, 0.0, axis)
    if column.step:
        axis = np.floor(axis / column.step + 0.5) * column.step
    if column.kind == "datetime":
        return Cells(_from_seconds(column, axis), missing, column.dtype)
    if column.kind == "integer":
        whole = np.clip(axis, *int_range(column.dtype)).astype(np.int64)
        values = whole if column.dtype == CSV or "int" in column.dtype else whole.astype(np.float64)
        return Cells(_as_text(whole, 0) if _plain_text(column) else values, missing, column.dtype)
    decimals = min(column.decimals if column.decimals is not None else FULL, 17)
    axis = np.clip(axis, *float_range(column.dtype))
    fine = np.abs(axis) < 2.0**53 / 10.0**decimals  # a larger float64 has no such decimals to round
    values = axis if decimals >= FULL else np.where(fine, np.round(np.where(fine, axis, 0.0), decimals), axis) + 0.0
    return Cells(_as_text(values, decimals) if _plain_text(column) else values, missing, column.dtype)


def _plain_text(column: Column) -> bool:
    return is_text(column.dtype) and column.dtype != CSV


def _as_text(values: np.ndarray, decimals: int) -> np.ndarray:
    return np.array([f"{v:.{decimals}f}" for v in values.tolist()], dtype=object)


def _from_seconds(column: Column, seconds: np.ndarray) -> np.ndarray:
    if not is_text(column.dtype):
        ticks = ticks_per_second(column.dtype)
        if ticks < 1:
            return np.floor(seconds / 86400 + 1e-9).astype(np.int64)
        seconds = np.clip(seconds, -9.2e18 // ticks, 9.2e18 // ticks)  # nanoseconds end in 2262
        if column.step >= 1:
            return seconds.astype(np.int64) * int(ticks)
        micro = np.rint(seconds * min(ticks, 10**6)).astype(np.int64)  # as fine as float64 seconds are
        return micro * (int(ticks) // min(int(ticks), 10**6))
    format = column.format or "%Y-%m-%d"
    known = {s: (EPOCH + timedelta(seconds=s)).strftime(format) for s in set(seconds.tolist())}
    return np.array([known[s] for s in seconds.tolist()], dtype=object)


def from_categories(column: Column, values: list[Category], missing: np.ndarray) -> Cells:
    """Cells of the column's own type from one category per row (anything where ``missing``)."""
    dtype = column.dtype
    if column.kind == "boolean" and (dtype in (CSV, "bool") or not is_text(dtype)):
        kind: type = np.int64 if "int" in dtype else bool
        return Cells(np.array([bool(v) for v in values], dtype=bool).astype(kind), missing, dtype)
    if column.kind == "boolean":
        return Cells(np.array([str(v).lower() for v in values], dtype=object), missing, dtype)
    if is_text(dtype):
        whole = dtype == CSV and bool(column.categories) and not column.other
        if whole and all(isinstance(c, int) for c in column.categories or ()):
            return Cells(np.array([v or 0 for v in values], dtype=np.int64), missing, dtype)
        if whole and not any(isinstance(c, str) for c in column.categories or ()):
            return Cells(np.array([v or 0.0 for v in values], dtype=np.float64), missing, dtype)
        return Cells(np.array([str(v) for v in values] or [], dtype=object), missing, dtype)
    if dtype == "bool":
        return Cells(np.array([bool(v) for v in values], dtype=bool), missing, dtype)
    kind = np.int64 if "int" in dtype and not dtype.startswith("dictionary<values=double") else np.float64
    return Cells(np.array([v or 0 for v in values], dtype=kind), missing, dtype)
