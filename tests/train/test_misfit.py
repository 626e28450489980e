"""The distance of a mixture's tables from released ones: what it is, and that its slope is its slope."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dpvae.train import misfit

K, SIZES, LEVELS = 5, (2, 3, 1, 4), 3
W = sum(SIZES)
STARTS = [0, 2, 5, 6, 10]
GENERATOR = torch.Generator().manual_seed(0)


def drawn(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=GENERATOR, dtype=torch.float64)


P_KW, GOALS_LWW = drawn(K, W).requires_grad_(), drawn(LEVELS, W, W)
BLOCK_W = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))
KEPT_WW = (BLOCK_W[:, None] < BLOCK_W).double()
MIDDLE_GOALS = [drawn(3 * 2, 5 * LEVELS), drawn(1 * 5, 4 * LEVELS)]


def by_pairs(p_KW: Tensor, rows_KL: Tensor, whole: tuple[Tensor, float] | None) -> Tensor:
    models = [(p_KW.T * rows_KL[:, level]) @ p_KW for level in range(rows_KL.shape[1])]
    goals = list(GOALS_LWW[:len(models)])
    if whole is not None:
        goals.append(whole[0])
        models.append(whole[1] * torch.stack(models).sum(0))
    return sum(((model - goal).square() * KEPT_WW).sum() for model, goal in zip(models, goals, strict=True))


def by_triples(q_GK: Tensor, rows_LK: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for middle, goal in enumerate(MIDDLE_GOALS, 1):
        own = q_GK[STARTS[middle]:STARTS[middle + 1]]
        model = torch.einsum("ok,ak,rk,lk->oarl", own, q_GK[:STARTS[middle]], q_GK[STARTS[middle + 1]:], rows_LK)
        total = total + (model - goal[:, :model.shape[2] * len(rows_LK)].reshape(model.shape)).square().sum()
    return total


@pytest.mark.parametrize("whole", [None, (drawn(W, W), 0.7)], ids=["split alone", "and whole"])
@pytest.mark.parametrize("levels", [1, LEVELS])
def test_distance_and_slope_over_pairs_are_those_of_the_plain_formula(
        levels: int, whole: tuple[Tensor, float] | None) -> None:
    rows_KL = drawn(K, levels).requires_grad_()
    same(misfit.pairs(P_KW, rows_KL, GOALS_LWW[:levels], KEPT_WW, whole), by_pairs(P_KW, rows_KL, whole), P_KW, rows_KL)


@pytest.mark.parametrize("levels", [1, LEVELS])
def test_distance_and_slope_over_triples_are_those_of_the_plain_formula(levels: int) -> None:
    q_GK, rows_LK = drawn(W, K).requires_grad_(), drawn(levels, K).requires_grad_()
    goals = [goal[:, :goal.shape[1] // LEVELS * levels] for goal in MIDDLE_GOALS]
    same(misfit.triples(q_GK, rows_LK, goals, STARTS), by_triples(q_GK, rows_LK), q_GK, rows_LK)


def same(found: Tensor, wanted: Tensor, *inputs: Tensor) -> None:
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)
    slopes, expected = (torch.autograd.grad(value / 7, inputs) for value in (found, wanted))
    for one, other in zip(slopes, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_a_slope_is_not_used_up_by_being_asked_for() -> None:
    p_KW = P_KW.detach().clone().requires_grad_()
    chi2 = misfit.pairs(p_KW, torch.ones(K, 1, dtype=torch.float64), GOALS_LWW[:1], KEPT_WW)
    first, second = (torch.autograd.grad(chi2, p_KW, retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(2 * first, 2 * second)
