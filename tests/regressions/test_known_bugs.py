"""A catalogue: every bug that some library for differential privacy had, and a system like this one could have.

One test per bug, named after it, with its place in the heading. Each holds one short fact; the laws in tests/laws go
deeper. Numbers behind the names are GitHub issues.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import ScriptedKey, silent, small_config, small_trainer, some_codes
from torch import nn

import dpvae
from dpvae.command.arguments import rewrite
from dpvae.config import TrainConfig, build
from dpvae.errors import AccountingError, BudgetError, ConfigError, DPVAEError, LedgerError
from dpvae.privacy import pld, prv, rdp
from dpvae.privacy.accountant import calibrate, crosscheck, price
from dpvae.privacy.composition import merge
from dpvae.privacy.events import Event, Gaussian, PureDP, SampledGaussian, Threshold
from dpvae.privacy.ledger import Ledger
from dpvae.privacy.mechanisms import frequent_values, noisy_counts, noisy_mean_clipped
from dpvae.privacy.noise import SecretKey
from dpvae.privacy.plan import PublicFacts, SgdPlan, make_plan
from dpvae.privacy.table_plan import TableRule
from dpvae.train.dpsgd import PrivateSteps

PACKAGE = Path(dpvae.__file__).parent
EVERY_CLIPPING = pytest.mark.parametrize("clipping", ["fast", "hooks"])
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")


def gaussian(noise: float, count: int = 1) -> Gaussian:
    return Gaussian("anchor", "counts", noise, count)


def sampled(noise: float, rate: float = 256 / 32561, steps: int = 500) -> SampledGaussian:
    return SampledGaussian("dpsgd", "gradients", noise, rate, steps)


def released(rows: np.ndarray, *, key: Any = None, clip: float = 1.0, noise: float = 1.0, rate: float = 0.5,
             public_rows: int = 20, microbatch: int = 100, clipping: str = "fast", step: int = 0) -> np.ndarray:
    """The noisy mean gradient that one step releases; each record's own gradient has a norm of some hundreds."""
    module = nn.Linear(3, 1)
    with torch.no_grad():
        module.weight.fill_(0.1)
        module.bias.fill_(0.0)
    steps = PrivateSteps(module, torch.as_tensor(rows, dtype=torch.float32), lambda m, x, z: 100 * m(x).squeeze(-1),
                         plan=SgdPlan(noise_multiplier=noise, sampling_rate=rate, steps=1, clip_norm=clip,
                                      latent_samples=1),
                         rows=public_rows, key=key or ScriptedKey(normal=silent), learning_rate=0.1,
                         microbatch=microbatch, clipping=clipping)
    steps.step(step, 1.0)
    return torch.cat([p.grad.flatten() for p in steps.optimizer.params]).numpy()  # type: ignore[union-attr]


def everyone(names: Any, real: np.ndarray) -> np.ndarray:
    return np.ones_like(real)


def nobody(names: Any, real: np.ndarray) -> np.ndarray:
    return np.zeros_like(real)


ROWS = np.random.default_rng(0).normal(size=(20, 3))

# -- who is in a batch, and what the private number of rows decides ---------------------------------------------------


def test_opacus_571_and_819_steps_rate_and_divisor_follow_the_private_number_of_rows(tmp_path: Path) -> None:
    draws = []
    for rows in (40, 41):
        key = ScriptedKey()
        small_trainer("decoder_only", some_codes(rows), tmp_path / str(rows), key=key).fit()
        draws.append([(draw.names, draw.kind) for draw in key.draws])
    assert draws[0] == draws[1]
    all_of_them, one_more = (released(rows, key=ScriptedKey(normal=silent, mask=everyone), clip=1.0)
                             for rows in (ROWS, np.concatenate([ROWS, ROWS[:1]])))
    assert np.linalg.norm(one_more - all_of_them) <= 1 / (0.5 * 20) + 1e-6  # the divisor stayed


def test_opacus_813_and_600_another_sampler_is_taken_without_a_word() -> None:
    """There is no sampler to replace: asking for one is an error."""
    for typed in ("trainer.sampler=weighted", "data.sampler=shuffle", "data.shuffle=true", "trainer.batch_size=64"):
        with pytest.raises(ConfigError, match="no such key"):
            rewrite([typed], TrainConfig, groups=set())
    assert {field for field in inspect.signature(PrivateSteps).parameters if "sampler" in field or "loader" in field} \
        == set()


def test_opacus_80_and_335_private_transformers_7_jax_272_fixed_batches_are_accounted_as_poisson() -> None:
    key, rate, rows = SecretKey.from_seed(5), 0.3, 400
    sizes = np.array([key.stream("dpsgd", step, "mask").mask(rows, rate).sum() for step in range(4000)])
    assert len(set(sizes.tolist())) > 20
    assert sizes.var() == pytest.approx(rows * rate * (1 - rate), rel=0.12)


@EVERY_CLIPPING
def test_opacus_161_an_empty_batch_skips_its_noise(clipping: str) -> None:
    key = ScriptedKey(mask=nobody)
    gradient = released(ROWS, key=key, clipping=clipping)
    noise = key.key.stream("dpsgd", 0, "noise").bulk_normal(4)
    assert gradient * (0.5 * 20) == pytest.approx(noise, rel=1e-5)


# -- the clip ---------------------------------------------------------------------------------------------------------


@EVERY_CLIPPING
@pytest.mark.parametrize("clip", [0.01, 1.0, 30.0])
def test_opacus_664_the_fast_mode_ignores_the_clip_norm(clipping: str, clip: float) -> None:
    alone = released(ROWS[:1], key=ScriptedKey(normal=silent, mask=everyone), clip=clip, clipping=clipping)
    assert 0.9 * clip <= np.linalg.norm(alone) * (0.5 * 20) <= clip * (1 + 1e-6)


@EVERY_CLIPPING
def test_opacus_683_and_jax_271_accumulation_is_left_out_of_the_clip_or_of_the_noise(clipping: str) -> None:
    whole, parts = (released(ROWS, key=ScriptedKey(mask=everyone), microbatch=size, clipping=clipping)
                    for size in (100, 3))
    assert parts == pytest.approx(whole, abs=1e-6)


def test_microbatch_clipping_doubles_the_sensitivity() -> None:
    """DP-fy ML 5.6: the mean of a part, clipped once, moves by up to 2 C."""
    for size in (1, 4, 100):
        one, two = (released(rows, key=ScriptedKey(normal=silent, mask=everyone), microbatch=size)
                    for rows in (ROWS, np.concatenate([ROWS, -50 * ROWS[:1]])))
        assert np.linalg.norm(two - one) * (0.5 * 20) <= 1 + 1e-5


@EVERY_CLIPPING
def test_a_nan_slips_through_the_clip(clipping: str) -> None:
    broken = ROWS.copy()
    broken[3, 0] = np.nan
    key = {"normal": silent, "mask": everyone}
    with_it = released(broken, key=ScriptedKey(**key), clipping=clipping)
    without = released(np.delete(ROWS, 3, axis=0), key=ScriptedKey(**key), clipping=clipping)
    assert with_it == pytest.approx(without, abs=1e-6)


# -- the noise --------------------------------------------------------------------------------------------------------


def test_jax_383_and_395_noise_for_the_sum_is_added_to_the_mean() -> None:
    key = ScriptedKey(mask=nobody)
    draws = np.array([released(ROWS, key=key, noise=3.0, clip=2.0, step=step) for step in range(200)])
    assert draws.std() == pytest.approx(3.0 * 2.0 / (0.5 * 20), rel=0.1)


def test_jax_3646_one_key_makes_the_noise_of_two_steps(tmp_path: Path) -> None:
    key = ScriptedKey()
    small_trainer("joint", some_codes(40), tmp_path, key=key).fit()
    names = [draw.names for draw in key.draws if draw.kind == "normal"]
    assert len(set(names)) == len(names) == 4


def test_a_public_seed_makes_the_noise() -> None:
    """Opacus with torch.manual_seed(42): membership guessed ten times of ten."""
    torch.manual_seed(42)
    first = released(ROWS, key=SecretKey.generate())
    torch.manual_seed(42)
    assert not np.allclose(first, released(ROWS, key=SecretKey.generate()))


def test_opacus_secure_mode_has_no_generator_that_works() -> None:
    stream = SecretKey.generate().stream("x")
    assert abs(float(stream.normal(20_000).mean())) < 0.05


# -- accounting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [0.05, 0.5, 1.0, 3.0, 8.0])
def test_opacus_346_a_bisection_returns_noise_that_costs_more_than_the_target(target: float) -> None:
    def build_(scale: float) -> list[Event]:
        return [gaussian(4 / scale), sampled(0.5 + 1 / scale, 0.05, 60)]

    found = calibrate(build_, epsilon=target, delta=1e-6)
    assert price(build_(found), delta=1e-6).upper <= target


def test_opacus_467_calibration_prices_another_sampler_than_the_one_that_runs() -> None:
    plan = make_plan(small_config("decoder_only"), PublicFacts(columns=3, rows=500), TableRule())
    assert plan.sgd is not None
    (event,) = [event for event in plan.events() if isinstance(event, SampledGaussian)]
    assert (event.noise_multiplier, event.sampling_rate, event.steps) == (
        plan.sgd.noise_multiplier, plan.sgd.sampling_rate, plan.sgd.steps)


def test_opacus_535_asking_for_epsilon_changes_it(tmp_path: Path) -> None:
    events = [sampled(1.0), gaussian(9.0)]
    assert price(events, delta=1e-5) == price(events, delta=1e-5)
    ledger = Ledger.open(tmp_path / "ledger.db")
    ledger.reserve("census", "one", events, delta=1e-5)
    assert ledger.spent("census", 1e-5) == ledger.spent("census", 1e-5)


@pytest.mark.parametrize("event", [
    sampled(0.3, 0.3, 10), sampled(50.0, 1e-5, 10**4), sampled(8.0, 0.99, 1), gaussian(1e5), gaussian(0.2),
    PureDP("a", "x", 1e-6), PureDP("a", "x", 30.0), sampled(0.31, 1e-4, 20_000)])
def test_opacus_601_604_606_591_the_accountant_crashes_on_odd_inputs(event: Event) -> None:
    with contextlib.suppress(AccountingError):  # refused in one line is an answer too
        assert price([event], delta=1e-9).upper >= 0


@pytest.mark.parametrize("events", [[], [gaussian(1e6)], [sampled(100.0, 1e-5, 1)], [PureDP("a", "x", 1e-9)]])
def test_opacus_585_and_844_a_tiny_spend_has_a_negative_epsilon_or_crashes(events: list[Event]) -> None:
    assert 0 <= price(events, delta=1e-5).upper < 1e-3


@pytest.mark.parametrize(("noise", "wrong", "right"), [(0.6, 2.829, 4.850), (0.8, 1.305, 1.923), (1.0, 0.847, 1.027)])
def test_opacus_gdp_accountant_reports_up_to_42_per_cent_too_little(noise: float, wrong: float, right: float) -> None:
    found = price([sampled(noise)], delta=1e-5)
    assert found.upper == pytest.approx(right, rel=0.005)
    assert found.lower > wrong


def test_nemo_391_a_slow_accountant_is_silently_replaced_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: Any, **__: Any) -> Any:
        raise MemoryError("too many points")

    for module in (prv, pld, rdp):
        with monkeypatch.context() as patch:
            patch.setattr(module, "bounds" if module is prv else "epsilon", hang)
            with pytest.raises(AccountingError, match="cannot be priced"):
                price([sampled(1.0)], delta=1e-5)


def test_dp_accounting_378_replace_one_is_priced_with_half_its_sensitivity() -> None:
    for events in ([gaussian(6.0)], [sampled(1.2, 256 / 32561, 2500)]):
        check = crosscheck(events, 1e-5, "replace_one")
        assert check.rdp >= check.pld > 1.7 * price(events, delta=1e-5).upper
    assert crosscheck([sampled(1.2, 256 / 32561, 2500)], 1e-5, "replace_one").pld == pytest.approx(2.813, rel=0.005)


def test_a_coarse_mesh_multiplies_small_epsilons() -> None:
    """dp_accounting at its default mesh says 0.0767 where 0.0365 is true."""
    events = [sampled(20.0, 256 / 32561, 500)]
    check = crosscheck(events, 1e-5)
    assert check.pld <= check.prv_lower * 1.01 + 1e-6


def test_smartnoise_621_and_622_the_odometer_leaves_a_logarithm_out(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "ledger.db")
    for run in range(4):
        ledger.reserve("census", str(run), [gaussian(20.0)], delta=1e-5)
    assert ledger.spent("census", 1e-5).upper == pytest.approx(price([gaussian(10.0)], delta=1e-5).upper, rel=1e-6)


def test_smartnoise_472_and_opendp_2789_the_split_of_a_budget_does_not_add_up_to_it() -> None:
    for name in ("anchored", "decoder_only", "joint"):
        config = replace(small_config(name), privacy=build(TrainConfig, {"privacy": {"epsilon": 1.0}}).privacy)
        facts = PublicFacts(columns=6, rows=5000, survey_steps=("values", "bins"), has_target=True)
        plan = make_plan(config, facts, TableRule())
        assert plan.epsilon is not None
        assert math.fsum(plan.shares.values()) == pytest.approx(1.0)
        assert 0.99 <= plan.epsilon.upper <= 1.0
        assert price(plan.events(), delta=plan.delta).upper == plan.epsilon.upper


def test_smartnoise_569_the_budget_that_is_returned_is_not_the_one_spent() -> None:
    events = [sampled(1.1), Threshold("survey", "values", 30.0, 1e-7)]
    assert price(events, delta=1e-5).upper > price(events[:1], delta=1e-5).upper


def test_mostly_ai_and_smartnoise_add_epsilons_up() -> None:
    """One list, one price: 1.83 where the sum says 2.91."""
    events = [*(PureDP("survey", "bounds", 0.02) for _ in range(6)), gaussian(20.0, 8),
              *(PureDP("metric", "x", 0.05) for _ in range(10)), sampled(1.2, 256 / 32561, 2500)]
    together = price(events, delta=1e-5).upper
    assert together < 2.0 < sum(price([event], delta=1e-5).upper for event in events)


# -- what is read off the data ----------------------------------------------------------------------------------------


def test_diffprivlib_104_105_and_110_the_lower_bound_is_used_twice_and_the_sensitivity_is_zero() -> None:
    for lower, upper in ((0.0, 10.0), (10.0, 20.0), (-30.0, 0.0)):
        _, sd, event = noisy_mean_clipped(np.array([lower] * 50), lower=lower, upper=upper, divisor=50,
                                          noise_multiplier=2.0, stream=SecretKey.from_seed(1).stream("x"),
                                          phase="metric", what="x")
        assert sd == pytest.approx(2.0 * (upper - lower) / 2 / 50, rel=1e-6)
        assert event.noise_multiplier == 2.0


def test_diffprivlib_np_unique_synthcity_278_and_dpart_6_categories_are_read_off_the_data() -> None:
    published = 0
    for seed in range(200):
        stream = SecretKey.from_seed(seed).stream("values")
        values, event = frequent_values([{"common": 5000, "a person": 1}], noise_multiplier=20.0, delta=1e-6,
                                        stream=stream, phase="survey", what="x")
        published += "a person" in values[0]
        assert "common" in values[0]
    assert published == 0
    assert event.delta == 1e-6


def test_synthcity_zero_sensitivity_more_tables_get_no_more_noise() -> None:
    tables = [np.zeros(5000, dtype=np.int64)] * 9
    noisy, event = noisy_counts(tables, noise_multiplier=4.0, stream=SecretKey.from_seed(2).stream("x"),
                                phase="anchor", what="x")
    assert np.std(noisy[0]) == pytest.approx(4.0 * 3, rel=0.05)
    assert event.noise_multiplier == 4.0


def test_floating_point_attack_the_low_bits_of_a_noisy_count_betray_it() -> None:
    noisy, _ = noisy_counts([np.array([3, 7])], noise_multiplier=1.5, stream=SecretKey.from_seed(2).stream("x"),
                            phase="anchor", what="x")
    assert noisy[0].dtype == np.int64


# -- books and files --------------------------------------------------------------------------------------------------


def test_mostly_ai_a_resume_forgets_the_steps_after_the_best_checkpoint(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "ledger.db")
    first = ledger.reserve("census", "run", [sampled(1.0)], delta=1e-5, noise="key")
    crashed = Ledger.open(tmp_path / "ledger.db")
    assert crashed.spent("census", 1e-5).upper == pytest.approx(price([sampled(1.0)], delta=1e-5).upper)
    assert crashed.reserve("census", "run", [sampled(1.0)], delta=1e-5, noise="key") == first
    with pytest.raises(LedgerError, match="different noise"):
        crashed.reserve("census", "run", [sampled(1.0)], delta=1e-5, noise="another key")


def test_mostly_ai_the_best_checkpoint_is_chosen_by_a_private_loss() -> None:
    """Nothing in training may look at a validation loss: there is none to look at."""
    names = {node.id for path in (PACKAGE / "train").glob("*.py") for node in ast.walk(ast.parse(path.read_text()))
             if isinstance(node, ast.Name)}
    assert not {name for name in names if "val_loss" in name or "best_" in name or "early_stop" in name}


def test_a_budget_per_engine_lets_two_processes_spend_one_budget_twice(tmp_path: Path) -> None:
    one, two = Ledger.open(tmp_path / "ledger.db"), Ledger.open(tmp_path / "ledger.db")
    one.cap("census", 0.6, 1e-5)
    one.reserve("census", "one", [gaussian(7.0)], delta=1e-5)
    with pytest.raises(BudgetError):
        two.reserve("census", "two", [gaussian(7.0)], delta=1e-5)


def test_opacus_670_a_checkpoint_is_a_pickle() -> None:
    for path in PACKAGE.rglob("*.py"):
        between = path.parent.name == "engines"  # a process and its own workers: bytes in memory, never a file
        if path.parent.name == "mutants":  # broken on purpose: an audit has to see the file
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert called not in {"torch.load", "torch.save", "pickle.load", "pickle.dump"}, path
            assert between or called != "pickle.loads", path
            assert called != "np.load" or "allow_pickle=False" in ast.unparse(node), path
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert between or "pickle" not in ast.unparse(node), path


@pytest.mark.parametrize("make", [
    lambda: Gaussian("a", "x", 0.0), lambda: Gaussian("a", "x", float("nan")), lambda: Gaussian("a", "x", -1.0),
    lambda: SampledGaussian("a", "x", 1.0, 1.5, 10), lambda: SampledGaussian("a", "x", 1.0, 0.1, 0),
    lambda: PureDP("a", "x", float("inf")), lambda: Threshold("a", "x", 1.0, 0.0),
    lambda: price([gaussian(1.0)], delta=0.0), lambda: price([gaussian(1.0)], delta=1.5),
    lambda: merge([gaussian(1.0)], "zero_out")])
def test_a_parameter_that_makes_no_sense_is_clamped_or_only_warned_of(make: Callable[[], object]) -> None:
    with pytest.raises(DPVAEError):
        make()
