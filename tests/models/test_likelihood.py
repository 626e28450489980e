"""One contract for every likelihood: normalised, sampled from, one value per row, one gradient per record."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from opacus import GradSampleModule
from scipy import stats
from torch import Tensor, nn
from torch.distributions import Categorical, Normal

from dpvae.errors import ConfigError
from dpvae.models.likelihood import Columns, GaussianColumns

SIZES = (2, 3, 4)


@dataclass(frozen=True)
class Case:
    """A likelihood over D columns, a reference for it, and its domain with the volume of each point."""

    make: Callable[[], Any]
    reference: Callable[[Tensor, Tensor], Tensor]  # outputs (B, W), rows (B, D) -> (B,)
    rows: Tensor  # all of a discrete domain; a grid of a continuous one
    volume: float


def categorical(logits_BW: Tensor, codes_BD: Tensor) -> Tensor:
    parts = logits_BW.split(SIZES, -1)
    return torch.stack([Categorical(logits=part).log_prob(codes_BD[..., j]) for j, part in enumerate(parts)]).sum(0)


def normal(scale: float | None) -> Callable[[Tensor, Tensor], Tensor]:
    def reference(outputs_BW: Tensor, values_BD: Tensor) -> Tensor:
        if scale is not None:
            return Normal(outputs_BW, scale).log_prob(values_BD).sum(-1)
        return Normal(outputs_BW[..., 0::2], outputs_BW[..., 1::2].exp()).log_prob(values_BD).sum(-1)

    return reference


GRID = torch.linspace(-12, 12, 241)
CASES = {
    "codes": Case(lambda: Columns(SIZES), categorical, torch.tensor(list(product(*map(range, SIZES)))), 1.0),
    "normal, fixed scale": Case(lambda: GaussianColumns(2, scale=0.7), normal(0.7), torch.cartesian_prod(GRID, GRID),
                                0.1**2),
    "normal, learned scale": Case(lambda: GaussianColumns(2, scale=None), normal(None),
                                  torch.cartesian_prod(GRID, GRID), 0.1**2),
}
every_likelihood = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def outputs(case: Case, rows: int, seed: int = 0) -> Tensor:
    return 0.6 * torch.randn(rows, case.make().width, generator=torch.Generator().manual_seed(seed))


def some_rows(case: Case, rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return case.make().sample(outputs(case, rows, seed=6), generator=generator)


@every_likelihood
def test_a_likelihood_integrates_to_one(case: Case) -> None:
    for seed in range(3):
        logits_BW = outputs(case, 1, seed).expand(len(case.rows), -1)
        total = case.make().log_prob(logits_BW, case.rows).double().exp().sum() * case.volume
        assert float(total) == pytest.approx(1, abs=1e-5)


@every_likelihood
def test_a_likelihood_is_what_torch_distributions_says(case: Case) -> None:
    logits_BW, rows_BD = outputs(case, 50), some_rows(case, 50)
    torch.testing.assert_close(case.make().log_prob(logits_BW, rows_BD), case.reference(logits_BW, rows_BD))


@every_likelihood
def test_a_likelihood_takes_samples_on_leading_axes(case: Case) -> None:
    likelihood, logits_BW, rows_BD = case.make(), outputs(case, 6), some_rows(case, 3)
    logits_KBW = logits_BW.view(2, 3, -1)
    both = likelihood.log_prob(logits_KBW, rows_BD.expand(2, -1, -1))
    assert both.shape == (2, 3)
    for k in range(2):
        torch.testing.assert_close(both[k], likelihood.log_prob(logits_KBW[k], rows_BD))


@every_likelihood
def test_a_row_is_as_likely_whatever_rows_stand_beside_it(case: Case) -> None:
    likelihood, logits_BW, rows_BD = case.make(), outputs(case, 8), some_rows(case, 8)
    together = likelihood.log_prob(logits_BW, rows_BD)
    alone = torch.cat([likelihood.log_prob(logits_BW[i:i + 1], rows_BD[i:i + 1]) for i in range(8)])
    torch.testing.assert_close(together, alone)


@every_likelihood
def test_samples_follow_the_likelihood(case: Case) -> None:
    likelihood, one_W = case.make(), outputs(case, 1, seed=3)
    drawn = likelihood.sample(one_W.expand(20_000, -1), generator=torch.Generator().manual_seed(11))
    again = likelihood.sample(one_W.expand(20_000, -1), generator=torch.Generator().manual_seed(11))
    assert torch.equal(drawn, again), "a sample is a function of its generator"
    if drawn.dtype == torch.int64:
        exact = likelihood.log_prob(one_W.expand(len(case.rows), -1), case.rows).double().exp().numpy()
        seen = [int((drawn == row).all(-1).sum()) for row in case.rows]
        assert stats.chisquare(seen, exact / exact.sum() * 20_000).pvalue > 1e-4
    else:
        mean_D, std_D = moments(likelihood, one_W)
        for j in range(drawn.shape[1]):
            assert stats.kstest(drawn[:, j].numpy(), stats.norm(mean_D[j], std_D[j]).cdf).pvalue > 1e-4


def moments(likelihood: GaussianColumns, one_W: Tensor) -> tuple[list[float], list[float]]:
    flat = one_W[0].tolist()
    if likelihood.scale is not None:
        return flat, [likelihood.scale] * len(flat)
    return flat[0::2], [math.exp(v) for v in flat[1::2]]


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")  # opacus' hooks, on purpose
@every_likelihood
@pytest.mark.parametrize("samples", [1, 3])
def test_a_gradient_per_record_is_the_gradient_of_a_batch_of_that_record(case: Case, samples: int) -> None:
    """Opacus' hooks against the micro-batch oracle, with ``samples`` latents on the second axis of each record."""
    likelihood, rows_BD = case.make(), some_rows(case, 5)
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(3, 6), nn.SiLU(), nn.Linear(6, likelihood.width))
    z_BKZ = torch.randn(5, samples, 3)

    def loss(module: nn.Module, z: Tensor, rows: Tensor) -> Tensor:
        return -likelihood.log_prob(module(z), rows[:, None].expand(-1, samples, -1)).mean(1)

    hooked = GradSampleModule(decoder, batch_first=True, loss_reduction="sum")
    loss(hooked, z_BKZ, rows_BD).sum().backward()
    per_record = [p.grad_sample.clone() for p in hooked.parameters()]
    hooked.remove_hooks()
    for i in range(5):
        oracle = torch.autograd.grad(loss(decoder, z_BKZ[i:i + 1], rows_BD[i:i + 1]).sum(), list(decoder.parameters()))
        for sample, wanted in zip(per_record, oracle, strict=True):
            torch.testing.assert_close(sample[i], wanted, atol=1e-6, rtol=1e-5)


@every_likelihood
def test_every_column_has_a_slice_of_its_own_in_the_outputs(case: Case) -> None:
    likelihood = case.make()
    slices = [likelihood.slice(j) for j in range(len(likelihood.sizes))]
    assert [i for s in slices for i in range(s.start, s.stop)] == list(range(likelihood.width))


def test_one_hot_rows_times_log_probabilities_is_the_log_likelihood() -> None:
    columns, logits_BW, codes_BD = Columns(SIZES), outputs(CASES["codes"], 20), some_rows(CASES["codes"], 20)
    one_hot_BW = columns.one_hot(codes_BD)
    assert one_hot_BW.sum(1).tolist() == [3.0] * 20
    torch.testing.assert_close((one_hot_BW * columns.log_probs(logits_BW)).sum(1),
                               columns.log_prob(logits_BW, codes_BD))


def test_a_column_with_one_code_costs_nothing() -> None:
    columns = Columns((1, 2))
    assert float(columns.log_prob(torch.zeros(1, 3), torch.tensor([[0, 1]]))) == pytest.approx(math.log(0.5))


def test_small_integer_codes_are_as_good_as_long_ones() -> None:
    columns, logits_BW = Columns(SIZES), outputs(CASES["codes"], 4)
    codes = np.array([[1, 2, 3], [0, 0, 0], [1, 1, 1], [0, 2, 3]])
    short, long = torch.as_tensor(codes.astype(np.int16)), torch.as_tensor(codes)
    assert torch.equal(columns.log_prob(logits_BW, short), columns.log_prob(logits_BW, long))
    assert torch.equal(columns.one_hot(short), columns.one_hot(long))


@pytest.mark.parametrize("wrong", [
    lambda: Columns((3, 0)), lambda: GaussianColumns(0, scale=1.0), lambda: GaussianColumns(2, scale=-1.0)])
def test_a_likelihood_refuses_what_it_cannot_be(wrong: Callable[[], Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        wrong()
