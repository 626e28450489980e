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
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np

from dpvae.data.dtypes import TICKS, float_range, int_range, is_text
from dpvae.data.lake import CSV, Cells
from dpvae.data.schema import CLOCK, EPOCH, FULL, SPELLINGS, Category, Column

USUAL = {word.lower(): value for words in SPELLINGS for value, word in enumerate(words)}


def ticks_per_second(dtype: str) -> float:
    """Of a timestamp, time or date column; dates tick once a day."""
    found = re.search(r"(?:timestamp|time32|time64)\[(\w+)", dtype)
    return TICKS[found[1]] if found else 1 / 86400


# ---- in ---------------------------------------------------------------------------------------------------------


def to_axis(column: Column, cells: Cells) -> np.ndarray:
    """float64, shape (rows,): nan where a cell is missing or unreadable, inf where it holds inf."""
    values = cells.values
    if column.kind in CLOCK:
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
    format, iso = format_of(column), column.kind == "datetime" and not is_text(column.dtype)

    def seconds(text: str) -> float:
        try:
            when = datetime.fromisoformat(text) if iso else datetime.strptime(text, format)
        except ValueError:
            return np.nan
        if column.kind == "time":
            return (when - when.replace(hour=0, minute=0, second=0, microsecond=0)).total_seconds()
        return ((when if when.tzinfo else when.replace(tzinfo=UTC)) - EPOCH).total_seconds()

    return _look_up(cells.values, seconds)


def format_of(column: Column) -> str:
    """How a date or a time is written in text."""
    return column.format or ("%H:%M:%S" if column.kind == "time" else "%Y-%m-%d")


def _look_up(values: np.ndarray, function: object) -> np.ndarray:
    """``function`` of each text, called once per distinct text."""
    texts = values.tolist()
    known = {text: function(text) for text in set(texts)}  # type: ignore[operator]
    return np.fromiter((known[text] for text in texts), np.float64, len(texts))


def to_keys(column: Column, cells: Cells) -> list[Category | None]:
    """One category per row; ``None`` where a cell is missing, or no value of the column's kind."""
    values: list[Category | None] = cells.values.tolist()
    if column.kind == "boolean" and cells.dtype != "bool":
        declared = column.spelling if "spelling" in column.declared else None
        words = {word.lower(): value for value, word in enumerate(declared)} if declared else USUAL
        known = {v: words.get(str(v).lower()) for v in set(values)}
        values = [None if known[v] is None else bool(known[v]) for v in values]
    elif cells.dtype == CSV and column.categories and not isinstance(column.categories[0], str):
        numbers = {v: _number(str(v)) for v in set(values)}
        values = [numbers[v] if numbers[v] == numbers[v] else v for v in values]
    if cells.missing.any():
        values = [None if gone else v for v, gone in zip(values, cells.missing.tolist(), strict=True)]
    return values


# ---- out --------------------------------------------------------------------------------------------------------


def from_axis(column: Column, axis: np.ndarray, missing: np.ndarray) -> Cells:
    """Cells of the column's own type; ``axis`` (rows,) is rounded to the column's grid."""
    axis = np.where(missing, 0.0, axis)
    if column.step:
        axis = np.floor(axis / column.step + 0.5) * column.step
    if column.kind in CLOCK:
        axis = np.clip(axis, 0.0, column.midnight) if column.kind == "time" else axis
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
        if column.kind == "time":
            micro = np.minimum(micro, 86400 * int(min(ticks, 10**6)) - 1)
        return micro * (int(ticks) // min(int(ticks), 10**6))
    format = format_of(column)
    known = {s: (EPOCH + timedelta(seconds=s)).strftime(format) for s in set(seconds.tolist())}
    return np.array([known[s] for s in seconds.tolist()], dtype=object)


def from_categories(column: Column, values: list[Category], missing: np.ndarray) -> Cells:
    """Cells of the column's own type from one category per row (anything where ``missing``)."""
    dtype = column.dtype
    if column.kind == "boolean":
        return _booleans(column, np.array([bool(v) for v in values], dtype=bool), missing)
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


def _booleans(column: Column, values: np.ndarray, missing: np.ndarray) -> Cells:
    """As whoever reads the source's text would have them: true and false are booleans, 0 and 1 numbers, yes a word."""
    spelling, dtype = column.spelling or SPELLINGS[0], column.dtype
    if "int" in dtype or (dtype == CSV and spelling == ("0", "1")):
        return Cells(values.astype(np.int64), missing, dtype)
    plain = Cells(values, missing, dtype)
    return plain if not is_text(dtype) or (dtype == CSV and _is_bool(spelling)) else spelled(column, plain)


def _is_bool(spelling: tuple[str, str]) -> bool:
    return tuple(word.lower() for word in spelling) == SPELLINGS[0]


def spelled(column: Column, cells: Cells) -> Cells:
    """Booleans of a text column as the words that they are in its source; any other cells as they are.

    >>> paid = Column("paid", "boolean", "csv", spelling=("False", "True"))
    >>> spelled(paid, Cells(np.array([True, False]), np.zeros(2, dtype=bool), "csv")).values.tolist()
    ['True', 'False']
    """
    if column.kind != "boolean" or cells.values.dtype != bool or not is_text(column.dtype):
        return cells
    words = np.array(column.spelling or SPELLINGS[0], dtype=object)
    return cells._replace(values=words[cells.values.astype(int)])


def typed(column: Column, cells: Cells) -> Cells:
    """What a column keeps as text in the type that its kind stands for, as a database has it; others as they are.

    >>> day = Column("day", "datetime", "csv", unit="D", format="%d/%m/%Y")
    >>> typed(day, Cells(np.array(["02/01/1970"], dtype=object), np.zeros(1, dtype=bool), "csv"))
    Cells(values=array([1]), missing=array([False]), dtype='date32[day]')
    """
    if not is_text(column.dtype) or column.kind in (None, "categorical", "ordinal"):
        return cells
    if column.kind == "boolean":
        keys = to_keys(column, cells)
        return Cells(np.array([bool(key) for key in keys], dtype=bool), cells.missing, "bool")
    axis = to_axis(column, cells)
    return from_axis(replace(column, dtype=_stands_for(column)), np.nan_to_num(axis), np.isnan(axis))


def plain(column: Column, cells: Cells) -> Cells:
    """Numbers and booleans that were read as text cells as themselves, each as it was; other cells as they are.

    >>> plain(Column("n", "integer"), Cells(np.array(["7", "12"], object), np.zeros(2, bool), "csv")).values.tolist()
    [7, 12]
    """
    if cells.dtype != CSV or cells.values.dtype != object:
        return cells
    if column.kind == "boolean" and {*cells.values[~cells.missing]} <= {"True", "False"}:
        return cells._replace(values=cells.values == "True")
    if column.kind not in ("integer", "continuous"):
        return cells
    axis = to_axis(column, cells)
    if not np.isfinite(axis[~cells.missing]).all():
        return cells
    axis = np.where(cells.missing, 0.0, axis)
    whole = bool((axis == np.rint(axis)).all() and (np.abs(axis) < 2.0**53).all())
    return cells._replace(values=axis.astype(np.int64) if whole else axis)


def _stands_for(column: Column) -> str:
    """The Arrow type of a numeric column that is kept as text."""
    if column.kind in CLOCK:
        zone = ", tz=UTC" if "%z" in format_of(column) else ""
        finer = "time64[us]" if column.kind == "time" else f"timestamp[us{zone}]"
        return "date32[day]" if column.unit == "D" else finer
    if column.kind == "integer":
        return "int64"
    decimals = FULL if column.decimals is None else column.decimals
    largest = max(abs(column.on_grid(end or 0.0)) for end in (column.lower, column.upper))
    digits = len(str(int(largest))) + decimals
    return f"decimal128({digits}, {decimals})" if decimals < FULL and digits <= 38 else "double"
