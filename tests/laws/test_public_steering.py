"""Laws 1 and 6: private rows steer nothing, and the public seed reaches no noise."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from laboratory import Tape, tapped
from small_runs import TRAINERS, ScriptedKey, people, small_config, small_trainer, some_codes, start_at_dpsgd

from dpvae import api
from dpvae.config import TrainConfig
from dpvae.data import lake
from dpvae.data.lake import held
from dpvae.modalities import table as table_modality
from dpvae.privacy.noise import SecretKey
from dpvae.privacy.plan import Plan
from dpvae.train import trainer as trainer_module
from dpvae.train.dpsgd import PrivateSteps
from dpvae.train.trainer import Moment, Trainer

ROWS = 120


@dataclass
class Control:
    """All that steers a training: what a table with one row more must not change."""

    plan: Plan | None = None
    rates: list[float] = field(default_factory=list)
    divisors: list[float] = field(default_factory=list)
    moments: list[tuple[str, int, int]] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)


def steered(patch: pytest.MonkeyPatch, config: TrainConfig, table: dict[str, list[Any]]) -> Control:
    """Train on ``table`` and write down every step, rate and divisor."""
    control, tape = Control(), Tape(1.0)
    parent = tapped(tape)

    class Noted(parent):  # type: ignore[valid-type, misc]
        def step(self, number: int, rate_factor: float) -> None:
            super().step(number, rate_factor)
            control.rates.append(self.plan.sampling_rate)
            control.divisors.append(float(self.optimizer.expected_batch_size))
            control.learning_rates.append(self.optimizer.param_groups[0]["lr"])

    def fit(self: Trainer) -> Any:
        control.plan = self.plan
        tell = self.listen

        def listen(moment: Moment) -> None:
            control.moments.append((moment.phase, moment.step, moment.steps))
            tell(moment)

        return real_fit(Trainer(**{**vars(self), "listen": listen}))

    real_fit = Trainer.fit
    with patch.context() as inner:
        inner.setattr(trainer_module, "PrivateSteps", Noted)
        inner.setattr(Trainer, "fit", fit)
        api.train(config, table)
    assert len(tape.sums) == len(control.rates)
    return control


def with_one_more(table: dict[str, list[Any]]) -> dict[str, list[Any]]:
    person = {"city": "Ushuaia", "age": 101, "pay": 9876.5, "income": "high"}
    return {name: [*values, person[name]] for name, values in table.items()}


@pytest.mark.parametrize("declared", [True, False], ids=["rows declared", "rows measured"])
@pytest.mark.parametrize("name", TRAINERS)
def test_one_row_more_changes_no_step_no_rate_and_no_divisor(name: str, declared: bool, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    controls = []
    for which, table in (("n", people(ROWS)), ("n+1", with_one_more(people(ROWS)))):
        config = small_config(name, data={"rows": ROWS if declared else None, "target": "income"},
                              privacy={"epsilon": 8.0, "delta": 1e-5, "secret_seed": 5},
                              run={"root": str(tmp_path / which), "name": "same"})
        controls.append(steered(monkeypatch, config, table))
    n, more = controls
    assert n.plan == more.plan
    assert n.moments == more.moments
    assert (n.rates, n.learning_rates) == (more.rates, more.learning_rates)
    assert len(n.rates) == 4
    if declared:
        assert set(n.divisors) == set(more.divisors) == {0.3 * ROWS}
    else:  # a released number: with the same noise it may differ by the one record, and only through what was booked
        assert abs(n.divisors[0] - more.divisors[0]) <= 0.3 * 1.0001


def test_a_divisor_that_follows_the_private_row_count_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = PrivateSteps.__init__

    def counts(self: PrivateSteps, module: Any, codes: torch.Tensor, loss: Any, **rest: Any) -> None:
        real(self, module, codes, loss, **{**rest, "rows": len(codes)})  # what Opacus' engine would do

    monkeypatch.setattr(PrivateSteps, "__init__", counts)
    controls = [steered(monkeypatch, small_config("joint", data={"rows": ROWS}, run={"root": str(tmp_path / which)}), t)
                for which, t in (("n", people(ROWS)), ("n+1", with_one_more(people(ROWS))))]
    assert controls[0].divisors != controls[1].divisors


def test_a_plan_is_made_from_the_header_alone(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("a,b\n1,2\n")
    config = small_config("anchored", data={"path": str(table), "rows": ROWS})
    one = api.plan(config)
    table.write_text("a,b\n" + "900,x\n,y\n" * 500)
    assert api.plan(config) == one


# -- types -----------------------------------------------------------------------------------------------------------

HELD: dict[str, list[Any]] = {"count": [3, 1, 2, 2], "share": [0.5, 1.0, 2.25, 7.0],
                              "member": [True, False, True, True],
                              "pay": [Decimal("10.50"), Decimal("99.25"), Decimal("1.00"), Decimal("2.00")],
                              "city": ["north", "south", "north", "7"]}
NEWCOMERS: dict[str, list[Any]] = {
    "a fraction": [2.5, 1, 1, 1, "north"], "a hole": [None, None, None, None, None], "a long number": [
        1, 0.1, False, Decimal("12345678.125"), "a"], "words": ["n/a", "n/a", "n/a", "n/a", "n/a"],
    "numbers for words": [True, 2**62, 0, 3, 17], "a day": [dt.date(2020, 1, 2)] * 5}


def in_pandas(columns: dict[str, list[Any]]) -> pd.DataFrame:
    return pd.DataFrame(columns)


def of_objects(columns: dict[str, list[Any]]) -> np.ndarray:
    return np.array(list(columns.values()), dtype=object).T


def of_series(columns: dict[str, list[Any]]) -> dict[str, Any]:
    return {name: pd.Series(values) for name, values in columns.items()}


FORMS = (dict, in_pandas, of_objects, of_series)


def types_of(form: Callable[[dict[str, list[Any]]], Any], cells: list[Any] | None,
             others: dict[str, list[Any]] = HELD) -> tuple[Any, ...]:
    """Header, schema and plan of a table, and the cells of those who are in it anyway."""
    joined = others if cells is None else {n: [*v, cell] for (n, v), cell in zip(others.items(), cells, strict=True)}
    source = form(joined)
    header = lake.header(source)
    config = small_config("anchored", data={"rows": ROWS})
    schema = table_modality.schema_of(config.data, header)
    return (header, schema, table_modality._plan(config, schema),
            [column.values[:4].tolist() for column in lake.read(source).cells])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("who", NEWCOMERS)
def test_a_cell_of_another_type_changes_no_type_no_plan_and_nobody_elses_cells(
        who: str, form: Callable[..., Any]) -> None:
    assert types_of(form, NEWCOMERS[who]) == types_of(form, None)


@pytest.mark.parametrize("form", [dict, of_objects])
def test_types_that_are_found_in_the_cells_are_seen(form: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "_column", lambda name, values: (pa.array(values, from_pandas=True), None))
    for name, cell in (("count", 2.5), ("pay", Decimal("12345678.125"))):
        assert types_of(form, [cell], {name: HELD[name]}) != types_of(form, None, {name: HELD[name]})


def test_types_that_somebody_chose_stay() -> None:
    chosen = {"a": np.array([1, 2], np.int64), "b": pd.array([1, None], "Int64"), "c": pa.array([1.5, None]),
              "d": pd.Series(pd.Categorical(["x", "y"])), "e": np.array(["2020-01-01"] * 2, "datetime64[D]")}
    wanted = ["int64", "int64", "double", "dictionary<values=large_string, indices=int32, ordered=0>", "date32[day]"]
    assert [dtype for _, dtype in lake.header(chosen)] == wanted
    assert [dtype for _, dtype in lake.header(pd.DataFrame({"b": chosen["b"], "d": chosen["d"]}))] == wanted[1:4:2]


def test_numbers_of_pandas_are_spelled_alike_whole_or_not_alone_or_not() -> None:
    numbers = [3.0, 2**53, 0.1, -0.0, 1e22, 1.5e-7, float("nan"), -7.25, 1e15]
    fast = lake.read(pd.DataFrame({"x": numbers})).cells[0]
    slow = lake.read({"x": [*numbers[:-1], 10**15]}).cells[0]
    assert fast.values.tolist() == slow.values.tolist()
    assert fast.values[:4].tolist() == ["3", "9007199254740992", "0.1", "0"]
    assert [float(text) for text in fast.values if text] == [x for x in numbers if x == x]


# -- empty batches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAINERS)
def test_an_empty_batch_is_a_step_like_any_other(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tape, heard = Tape(1.0), []
    monkeypatch.setattr(trainer_module, "PrivateSteps", tapped(tape))
    key = ScriptedKey(mask=lambda names, real: np.zeros_like(real))
    trainer = small_trainer(name, some_codes(60), tmp_path, key=key, listen=heard.append)
    start_at_dpsgd(trainer)
    trainer.fit()
    assert len(tape.sums) == 4
    assert all((total != 0).all() for total in tape.sums), "noise on every coordinate"
    assert [m.step for m in heard if m.phase == "dpsgd"] == [1, 2, 3, 4]
    assert sum(draw.kind == "normal" for draw in key.draws) == 4


def test_a_table_that_no_batch_ever_touches_costs_and_counts_the_same(tmp_path: Path) -> None:
    """Sampling so rare that batches are empty: the events are those of the plan, and the run is valid."""
    config = small_config("joint", data={"rows": ROWS}, run={"root": str(tmp_path), "name": "rare"},
                          trainer={"sampling_rate": 1e-6, "steps": 5})
    run = api.train(config, people(ROWS))
    events = [json.loads(line) for line in (run.path / "public" / "events.jsonl").read_text().splitlines()]
    assert next(event for event in events if event["phase"] == "dpsgd")["steps"] == 5


# -- microbatches ----------------------------------------------------------------------------------------------------


def trained_weights(name: str, folder: Path, **changes: Any) -> torch.Tensor:
    trainer = small_trainer(name, some_codes(60), folder, **changes)
    start_at_dpsgd(trainer)
    trainer.fit()
    return torch.cat([p.detach().flatten() for p in trainer.vae.decoder.parameters()])


@pytest.mark.parametrize("microbatch", [1, 7])
@pytest.mark.parametrize("name", TRAINERS)
def test_the_size_of_a_microbatch_does_not_change_the_result(name: str, microbatch: int, tmp_path: Path) -> None:
    whole = trained_weights(name, tmp_path / "whole")
    parts = trained_weights(name, tmp_path / "parts", performance={"microbatch": microbatch})
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize("opacus", ["ghost", "hooks"])
@pytest.mark.parametrize("name", TRAINERS)
def test_fast_clipping_and_opacus_train_the_same_model(name: str, opacus: str, tmp_path: Path) -> None:
    fast = trained_weights(name, tmp_path / "fast", performance={"clipping": "fast"})
    slow = trained_weights(name, tmp_path / opacus, performance={"clipping": opacus})
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-4)


# -- seeds -----------------------------------------------------------------------------------------------------------


def everything_drawn(patch: pytest.MonkeyPatch, config: TrainConfig) -> dict[tuple[str | int, ...], bytes]:
    """What came out of each secret stream in one run, by name."""
    real, seen = SecretKey.stream, {}

    def stream(self: SecretKey, *names: str | int) -> Any:
        def note(given: Any, drawn: np.ndarray) -> np.ndarray:
            seen[given] = seen.get(given, b"") + np.ascontiguousarray(drawn).tobytes()
            return drawn

        return ScriptedKey(key=_Real(lambda *n: real(self, *n)), normal=note, mask=note).stream(*names)

    with patch.context() as inner:
        inner.setattr(SecretKey, "stream", stream)
        api.train(config, people(ROWS))
    return seen


@dataclass
class _Real:
    stream: Callable[..., Any]


def seeded(folder: Path, **run: Any) -> TrainConfig:
    return small_config("decoder_only", run={"root": str(folder), **run})


def test_two_runs_with_the_same_public_seed_share_no_noise_and_no_mask(tmp_path: Path,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    one = everything_drawn(monkeypatch, seeded(tmp_path / "one", seed=7))
    two = everything_drawn(monkeypatch, seeded(tmp_path / "two", seed=7))
    assert len(one) > 10
    asked_if_needed = {("survey", "rare")}  # whether any column has rarer values follows from noisy counts
    assert one.keys() - asked_if_needed == two.keys() - asked_if_needed
    assert not set(one.values()) & set(two.values())
    assert len(set(one.values())) == len(one), "no two streams of a run agree"


def test_the_public_seed_changes_no_draw_of_a_known_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SecretKey, "generate", lambda: SecretKey.from_bytes(bytes(range(32))))
    one = everything_drawn(monkeypatch, seeded(tmp_path / "one", seed=1))
    two = everything_drawn(monkeypatch, seeded(tmp_path / "two", seed=2))
    masks_and_counts = {names for names in one if names[0] != "metric"}
    assert {names: one[names] for names in masks_and_counts} == {names: two[names] for names in masks_and_counts}


def test_the_global_generators_reach_neither_the_model_nor_the_noise(tmp_path: Path) -> None:
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002  (what a user's own script may have done)
        run = api.train(small_config("decoder_only", run={"root": str(tmp_path / str(seed)), "name": "same"},
                                     privacy={"epsilon": 8.0, "delta": 1e-5, "secret_seed": 5}), people(ROWS))
        models.append((run.path / "public" / "model.safetensors").read_bytes())
    assert models[0] == models[1]


def test_a_run_with_a_fixed_secret_is_stamped_and_cannot_be_released(tmp_path: Path) -> None:
    from dpvae.errors import ReleaseError

    config = small_config("joint", run={"root": str(tmp_path), "name": "known"},
                          privacy={"epsilon": 8.0, "delta": 1e-5, "secret_seed": 3})
    run = api.train(config, people(ROWS))
    assert json.loads((run.path / "public" / "claim.json").read_text())["private"] is False
    with pytest.raises(ReleaseError, match="NOT PRIVATE"):
        api.release(tmp_path / "out", run, rows=10)
    assert not (tmp_path / "out").exists()
