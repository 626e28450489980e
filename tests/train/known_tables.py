"""Tables of known structure, from the script that makes them; no test in here."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

_PATH = Path(__file__).parents[2] / "scripts" / "make_tables.py"
_SPEC = importlib.util.spec_from_file_location("make_tables", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
make_tables: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(make_tables)


def coded(kind: str, *, bins: int = 8, **knobs: Any) -> tuple[np.ndarray, list[int], list[np.ndarray | None]]:
    """Codes (rows, columns + 1), cardinalities, and where codes lie on an axis; real columns in ``bins`` parts."""
    table = make_tables.make(kind, **knobs)
    codes = np.empty(table.shape, np.int16)
    orders: list[np.ndarray | None] = []
    for j, name in enumerate(table.columns):
        values = table[name]
        if values.dtype.kind == "f":
            codes[:, j] = values.rank(method="first", pct=True).to_numpy() * (bins - 1e-9)
            orders.append(np.arange(bins, dtype=float))
        else:
            codes[:, j] = values.astype("category").cat.codes
            orders.append(None)
    return codes, [int(size) + 1 for size in codes.max(0)], orders
