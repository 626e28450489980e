"""Law 6, first half: DP-SGD has the noise that was priced, on every coordinate, at every step, to its last bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from small_runs import ScriptedKey, silent
from torch import Tensor, nn

from dpvae.privacy.plan import SgdPlan
from dpvae.train.clipping.optimizer import on_grid
from dpvae.train.dpsgd import PrivateSteps

SIGMA, CLIP, ROWS = 1.7, 0.3, 40
STEPS = 150
P_VALUE = 1e-4  # of one alarm; the keys are fixed, so a run that passes once passes always
LAYERS = (6, 8, 5)

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(LAYERS[0], LAYERS[1]), nn.SiLU(), nn.Linear(LAYERS[1], LAYERS[2]))


def released(key: ScriptedKey, *, steps: int, microbatch: int = 1000, clipping: str = "auto",
             rows: int = ROWS) -> Tensor:
    """What the optimiser gets, times the divisor, (steps, parameters); the weights stand still."""
    plan = SgdPlan(noise_multiplier=SIGMA, sampling_rate=0.5, steps=steps, clip_norm=CLIP, latent_samples=1)
    private = PrivateSteps(network(), torch.arange(rows)[:, None], loss, plan=plan, rows=rows, key=key,
                           learning_rate=0.0, microbatch=microbatch, clipping=clipping)
    taken = []
    for number in range(steps):
        private.step(number, 1.0)
        taken.append(torch.cat([p.grad.flatten() for p in private.optimizer.params]) * plan.sampling_rate * rows)
    private.close()
    return torch.stack(taken)


def loss(module: nn.Module, codes_BD: Tensor, generator: torch.Generator) -> Tensor:
    """Something with a gradient of its own for each record, and no randomness."""
    inputs_BD = torch.stack([torch.sin(codes_BD[:, 0] * (i + 1.0)) for i in range(LAYERS[0])], 1)
    return module(inputs_BD).square().sum(1)


def nobody(names: Any, real: np.ndarray) -> np.ndarray:
    return np.zeros_like(real)


def alarms(noise_SP: np.ndarray) -> set[str]:
    """Which properties of independent N(0, (sigma C)^2) this noise lacks."""
    z_SP = noise_SP / (SIGMA * CLIP)
    steps, size = z_SP.shape
    found = set()
    if stats.kstest(z_SP.ravel(), "norm").pvalue < P_VALUE:
        found.add("law")
    per_coordinate = two_sided((z_SP**2).sum(0), steps)
    if per_coordinate.min() * size < P_VALUE:
        found.add("sd of a coordinate")
    if float(two_sided((z_SP**2).sum(), z_SP.size)) < P_VALUE:
        found.add("sd")
    if float(two_sided((z_SP.sum(1) ** 2 / size).sum(), steps)) < P_VALUE:
        found.add("coordinates depend on one another")
    if abs((z_SP[1:] * z_SP[:-1]).mean()) * ((steps - 1) * size) ** 0.5 > 4:
        found.add("steps depend on one another")
    return found


def two_sided(statistic: Any, freedom: int) -> Any:
    return 2 * np.minimum(stats.chi2.cdf(statistic, freedom), stats.chi2.sf(statistic, freedom))


def test_noise_is_independent_gaussian_of_sd_sigma_c_on_every_coordinate_at_every_step() -> None:
    noise_SP = released(ScriptedKey(mask=nobody), steps=STEPS).numpy()
    assert alarms(noise_SP) == set()
    assert len(np.unique(noise_SP)) > 0.99 * noise_SP.size


@pytest.mark.parametrize("clipping", ["fast", "hooks"])
@pytest.mark.parametrize("microbatch", [1, 7, 1000])
def test_noise_is_sigma_c_times_the_steps_own_stream_once_whatever_the_batch(clipping: str, microbatch: int) -> None:
    key, quiet = ScriptedKey(), ScriptedKey(normal=silent)
    noisy = released(key, steps=6, microbatch=microbatch, clipping=clipping)
    exact = released(quiet, steps=6, microbatch=microbatch, clipping=clipping)
    for number in range(6):
        normal = key.key.stream("dpsgd", number, "noise").bulk_normal(noisy.shape[1])
        step, deviation = on_grid(SIGMA, CLIP, noisy.shape[1])
        wanted = torch.as_tensor(np.rint(deviation / step * normal) * step, dtype=torch.float32)
        torch.testing.assert_close(noisy[number] - exact[number], wanted, atol=1e-6, rtol=1e-6)
    draws = [draw for draw in key.draws if draw.kind == "normal"]
    assert [(draw.names, draw.size) for draw in draws] == [
        (("dpsgd", number, "noise"), noisy.shape[1]) for number in range(6)]


def test_an_empty_batch_is_noised_like_any_other() -> None:
    key = ScriptedKey(mask=nobody)
    noise_SP = released(key, steps=5)
    assert (noise_SP != 0).all()
    assert [draw.names for draw in key.draws if draw.kind == "normal"] == [("dpsgd", i, "noise") for i in range(5)]


@pytest.mark.parametrize("clipping", ["fast", "hooks"])
@pytest.mark.parametrize("microbatch", [1, 3, 20])
def test_the_size_of_a_microbatch_changes_nothing_but_rounding(clipping: str, microbatch: int) -> None:
    whole = released(ScriptedKey(), steps=5, clipping=clipping)
    parts = released(ScriptedKey(), steps=5, microbatch=microbatch, clipping=clipping)
    torch.testing.assert_close(parts, whole, atol=2e-6, rtol=1e-6)


# -- mutants: the streams a broken trainer would have ----------------------------------------------------------------


def uniform(names: Any, real: np.ndarray) -> np.ndarray:
    return 3**0.5 * (2 * stats.norm.cdf(real) - 1)


def without_biases(names: Any, real: np.ndarray) -> np.ndarray:
    return np.where(np.arange(real.size) < real.size - LAYERS[2], real, 0.0)


def the_same_every_step(names: Any, real: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).normal(size=real.shape)


MUTANTS: dict[str, tuple[Callable[[Any, np.ndarray], np.ndarray], str]] = {
    "no noise": (silent, "sd"),
    "sum and mean mixed up": (lambda names, real: real / (0.5 * ROWS), "sd"),
    "half the noise": (lambda names, real: real / 2, "sd"),
    "two workers' mistake": (lambda names, real: real / 2**0.5, "sd"),
    "five per cent too little": (lambda names, real: 0.95 * real, "sd"),
    "uniform noise of the same variance": (uniform, "law"),
    "one number for all coordinates": (lambda names, real: np.full_like(real, real[0]),
                                       "coordinates depend on one another"),
    "the same noise every step": (the_same_every_step, "steps depend on one another"),
    "no noise on the last bias": (without_biases, "sd of a coordinate"),
}


@pytest.mark.parametrize(("script", "alarm"), MUTANTS.values(), ids=MUTANTS.keys())
def test_broken_noise_is_seen(script: Callable[[Any, np.ndarray], np.ndarray], alarm: str) -> None:
    assert alarm in alarms(released(ScriptedKey(mask=nobody, normal=script), steps=STEPS).numpy())


# -- the last bits: sums and noise are whole steps of one grid --------------------------------------------------------


def steps_of_the_grid(updates: Tensor) -> np.ndarray:
    """Noisy sums in steps of the grid their noise is drawn on."""
    return updates.double().numpy() / on_grid(SIGMA, CLIP, updates.shape[1])[0]


@pytest.mark.parametrize("clipping", ["fast", "hooks", "ghost"])
def test_a_noisy_sum_is_a_whole_number_of_steps_whatever_it_was_added_to(clipping: str) -> None:
    noisy = steps_of_the_grid(released(ScriptedKey(), steps=4, rows=32, clipping=clipping))
    assert np.array_equal(noisy, np.rint(noisy))
    assert len(np.unique(noisy % 8)) == 8  # and of no coarser grid


@pytest.mark.parametrize("broken", ["rounds only its noise", "rounds only its sum"])
def test_a_step_that_leaves_the_grid_is_seen(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = torch.Tensor.round_

    def sometimes(numbers: Tensor) -> Tensor:
        return kept(numbers) if (numbers.dtype == torch.double) == (broken == "rounds only its noise") else numbers

    monkeypatch.setattr(torch.Tensor, "round_", sometimes)
    noisy = steps_of_the_grid(released(ScriptedKey(), steps=1, rows=32))
    assert not np.array_equal(noisy, np.rint(noisy))


@given(sigma=st.floats(0.3, 500), clip=st.floats(1e-3, 30), numbers=st.integers(1, 10**9))
def test_the_grid_is_a_power_of_two_below_a_ten_millionth_of_the_noise(sigma: float, clip: float, numbers: int) -> None:
    step, deviation = on_grid(sigma, clip, numbers)
    assert math.frexp(step)[0] == 0.5  # so that scaling by it is exact
    assert 2.0**-25 < step / (sigma * clip) <= 2.0**-24
    assert deviation == pytest.approx(sigma * (clip + step * math.sqrt(numbers)))


@given(st.lists(st.tuples(st.floats(-50, 50), st.floats(-1, 1)), min_size=1, max_size=30), st.integers(-12, 4))
def test_rounding_moves_two_sums_apart_by_at_most_a_step_for_each_coordinate(
        pairs: list[tuple[float, float]], exponent: int) -> None:
    sums, person = np.array(pairs).T
    step = 2.0**exponent
    apart = step * np.linalg.norm(np.rint((sums + person) / step) - np.rint(sums / step))
    assert apart <= (np.linalg.norm(person) + step * math.sqrt(len(sums))) * (1 + 1e-12)
