"""Utility: the outside judge's own numbers, and what a table without information is worth."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest
import shared_tables

from dpvae.data import lake
from dpvae.data.lake import Table
from dpvae.errors import ConfigError, DataError
from dpvae.evaluate.utility import utility


def people(rows: int, seed: int) -> Table:
    """A target that a number decides, blurred; a word that says nothing; a gap here and there."""
    rng = np.random.default_rng(seed)
    age = rng.normal(size=rows)
    rich = np.where(age + 0.3 * rng.normal(size=rows) > 0, "yes", "no")
    return lake.read({"age": np.where(rng.random(rows) < 0.05, np.nan, age), "city": rng.choice(["n", "s"], rows),
                      "rich": rich})


def test_the_real_rows_reach_their_own_ceiling_and_shuffled_labels_nothing() -> None:
    real, test = people(2000, 0), people(1000, 1)
    found = utility(real, real, test, "rich")
    assert found.tstr == found.trtr
    assert found.tstr["lr"].roc_auc > 0.9
    mixed = lake.read({"age": real.cells[0].values, "city": real.cells[1].values,
                       "rich": np.random.default_rng(2).permutation(real.cells[2].values)})
    shuffled = utility(real, mixed, test, "rich", ceiling=False)
    assert shuffled.tstr["gb"].roc_auc == pytest.approx(0.5, abs=0.12)
    assert shuffled.trtr == {}
    assert (found.positive, found.rate_real) == ("yes", pytest.approx(np.mean(real.cells[2].values == "yes")))


def test_a_synthetic_target_of_one_class_knows_nothing_and_is_said_to() -> None:
    real, test = people(300, 0), people(200, 1)
    one = lake.read({"age": [0.0] * 50, "city": ["n"] * 50, "rich": ["no"] * 50})
    score = utility(real, one, test, "rich").tstr["gb"]
    rate = float(np.mean(test.cells[2].values == "yes"))
    assert (score.roc_auc, score.degenerate) == (0.5, True)
    assert score.accuracy == pytest.approx(max(rate, 1 - rate))


def test_words_alone_and_numbers_alone_can_be_learned_from() -> None:
    rng = np.random.default_rng(3)
    for values in (rng.choice(["a", "b", "c"], 600), rng.normal(size=600)):
        label = np.where(values > ("a" if values.dtype.kind == "U" else 0), 1, 0)
        table = lake.read({"x": values, "y": label})
        assert utility(table, table, table, "y").tstr["gb"].roc_auc > 0.99


def test_a_target_of_three_values_or_without_company_is_refused_in_one_line() -> None:
    table = lake.read({"y": ["a", "b", "c"], "x": [1, 2, 3]})
    with pytest.raises(DataError, match=r"target='y': has 3 values .*; expected two"):
        utility(table, table, table, "y")
    alone = lake.read({"y": ["a", "b", "b"]})
    with pytest.raises(DataError, match="is the only column"):
        utility(alone, alone, alone, "y")


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == "sklearn":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr("importlib.import_module", lambda name: refuse(name))
    table = people(20, 0)
    with pytest.raises(ConfigError, match=r"pip install 'dpvae\[evaluate\]'"):
        utility(table, table, table, "rich")


@pytest.mark.parametrize(("name", "target"), [("adult", "income"), ("bank_marketing", "y")])
def test_the_outside_judge_says_the_same_of_real_rows(name: str, target: str) -> None:
    judge = shared_tables.judge()
    train, test = (judge.read_table(shared_tables.table(f"{name}/{part}.csv")) for part in ("train", "test"))
    train, synth, test = train.iloc[:4000], train.iloc[4000:10_000], test.iloc[:3000]
    wanted = judge.evaluate(train, test, synth, target, upper_bound=True, dcr=False)
    found = utility(*(lake.read(frame) for frame in (train, synth, test)), target)
    for which, ours in (("tstr", found.tstr), ("trtr", found.trtr)):
        for model in ("gb", "lr"):
            for figure, value in wanted[which][model].items():
                assert getattr(ours[model], figure) == pytest.approx(value, abs=1e-6), (which, model, figure)
