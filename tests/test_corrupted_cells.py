"""The benchmark's corrupted rows have one wrong cell each, by the law that they name."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpvae.data import lake
from dpvae.data.declare import declare

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
SCHEMA = declare({"columns": {"a": {"categories": ["x", "y", "z"]}, "n": {"kind": "integer", "min": 0, "max": 9}}}
                 ).bind([("a", "string"), ("n", "int64")])
ROWS = 4000


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("corrupted_cells")


@pytest.mark.parametrize("law", ["entry", "domain", "marginal"])
def test_each_row_has_one_wrong_cell_where_it_is_said_to_be(law: str, script: Any) -> None:
    whole = lake.read({"a": ["x", "y"] * (ROWS // 2), "n": [3, 4] * (ROWS // 2)})
    wrong, where = script.corrupted(whole, SCHEMA, law, np.random.default_rng(0))
    differs = np.stack([c.values.astype(str) != w.values.astype(str) for c, w in
                        zip(whole.cells, wrong.cells, strict=True)], 1)
    assert (differs.sum(1) == 1).all()
    assert (differs.argmax(1) == where).all()
    found = set(wrong.column("n").values[where == 1].tolist())
    if law == "domain":
        assert found == {str(n) for n in range(10)}
    elif law == "marginal":
        assert found == {"3", "4"}
    else:
        assert found == {"30", "300", "-3", "40", "400", "-4"}
