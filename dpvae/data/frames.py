"""The forms in which a person holds a table: a pandas or polars frame, an Arrow table, an array, a file; and back.

>>> form("people.csv"), form(np.zeros((2, 2)))
('file', 'array')
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from dpvae.data import builtin, lake
from dpvae.data.lake import Cells


def form(X: Any) -> str:
    """``file``, ``pandas``, ``polars``, ``arrow`` or ``array``."""
    if isinstance(X, str | os.PathLike):
        return "file"
    library = type(X).__module__.split(".")[0]
    if library in ("pandas", "polars") and hasattr(X, "columns"):
        return library
    return "arrow" if hasattr(X, "__arrow_c_stream__") or hasattr(X, "__arrow_c_array__") else "array"


def is_builtin(X: Any) -> bool:
    """Whether ``X`` is the name of a table that ships in the package."""
    return isinstance(X, str) and X in builtin.names()


def file(X: Any) -> Any:
    """The path of a built-in table for its name; anything else as it is."""
    return builtin.path(X) if is_builtin(X) else X


def likeness(X: Any) -> Any:
    """What must be remembered to give rows back as they came. Names of types alone: a pandas ``category`` type also
    lists every category, published or not."""
    kind = form(X)
    if kind == "pandas":
        return X.columns, [str(dtype) for dtype in X.dtypes]
    return np.asarray(X).dtype if kind == "array" else None


def like(cells: Mapping[str, Cells], form: str, likeness: Any) -> Any:
    """Rows in the form that a table had, with its labels and types (:func:`likeness`); an Arrow table for a file."""
    if form == "array":
        return _to_array(cells, likeness)
    table = lake.to_arrow(cells)
    if form == "polars":
        return importlib.import_module("polars").from_arrow(table)
    return _to_pandas(table, *likeness) if form == "pandas" else table


def _to_pandas(table: Any, labels: Any, dtypes: list[str]) -> Any:
    frame = table.to_pandas()
    for name, dtype in zip(frame.columns, dtypes, strict=True):
        if dtype == "bool" and not frame[name].isin([True, False]).all():
            continue  # a word, or no cell at all, would be one of them
        if dtype not in ("category", str(frame[name].dtype)):
            with suppress(ValueError, TypeError):  # integers among which the model knows missing cells stay floats
                frame[name] = frame[name].astype(dtype)
    return frame.set_axis(labels, axis=1)


def _to_array(cells: Mapping[str, Cells], dtype: np.dtype) -> np.ndarray:
    missing = np.column_stack([c.missing for c in cells.values()])
    if missing.any() and dtype.kind not in "fOM":
        dtype = np.dtype(np.float64 if dtype.kind in "iu" else object)
    rows = np.column_stack([c.values.astype(dtype) for c in cells.values()])
    if missing.any():
        rows[missing] = None if dtype.kind == "O" else np.array("NaT" if dtype.kind == "M" else "nan", dtype)
    return rows
