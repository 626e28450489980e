"""Kullback-Leibler divergences against closed forms, against torch.distributions, and against their own definition."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical, Normal, kl_divergence

from dpvae.models.elbo import Elbo, kl_categorical, kl_to_standard_normal

numbers = st.floats(-3, 3, width=32)


@given(mean=st.lists(numbers, min_size=1, max_size=5), log_std=st.lists(numbers, min_size=5, max_size=5))
def test_kl_to_the_standard_normal_is_what_torch_distributions_says(mean: list[float], log_std: list[float]) -> None:
    mean_BZ = torch.tensor([mean], dtype=torch.float64)
    log_std_BZ = torch.tensor([log_std[:len(mean)]], dtype=torch.float64)
    wanted = kl_divergence(Normal(mean_BZ, log_std_BZ.exp()), Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(kl_to_standard_normal(mean_BZ, log_std_BZ), wanted)


@pytest.mark.parametrize(("mean", "std", "nats"), [
    (0.0, 1.0, 0.0),
    (3.0, 1.0, 4.5),
    (0.0, math.e, (math.e**2 - 1) / 2 - 1),
    (1.0, 0.5, 0.5 * (1 + 0.25 - 1) + math.log(2)),
])
def test_kl_to_the_standard_normal_has_its_closed_form(mean: float, std: float, nats: float) -> None:
    assert float(kl_to_standard_normal(torch.tensor([[mean]]), torch.tensor([[math.log(std)]]))) == pytest.approx(nats)


def test_kl_to_the_standard_normal_adds_up_over_the_latent_and_keeps_rows_apart() -> None:
    mean_BZ, log_std_BZ = torch.tensor([[3.0, 3.0], [0.0, 0.0]]), torch.zeros(2, 2)
    assert kl_to_standard_normal(mean_BZ, log_std_BZ).tolist() == [9.0, 0.0]


@given(q=st.lists(st.floats(0.01, 1), min_size=2, max_size=6), p=st.lists(st.floats(0.01, 1), min_size=6, max_size=6))
def test_categorical_kl_is_what_torch_distributions_says(q: list[float], p: list[float]) -> None:
    log_q_BK = torch.tensor([q], dtype=torch.float64).log().log_softmax(-1)
    log_p_K = torch.tensor(p[:len(q)], dtype=torch.float64).log().log_softmax(-1)
    wanted = kl_divergence(Categorical(logits=log_q_BK), Categorical(logits=log_p_K))
    torch.testing.assert_close(kl_categorical(log_q_BK, log_p_K), wanted, atol=1e-12, rtol=1e-7)


def test_categorical_kl_of_a_certain_q_is_the_surprise_of_that_point() -> None:
    log_q_BK = torch.tensor([[1.0, 0.0, 0.0]]).log()  # holds -inf twice
    log_p_K = torch.tensor([0.25, 0.5, 0.25]).log()
    assert float(kl_categorical(log_q_BK, log_p_K)) == pytest.approx(math.log(4))


def test_the_bound_is_minus_rate_minus_distortion_row_by_row() -> None:
    elbo = Elbo(rate=torch.tensor([1.0, 2.0]), distortion=torch.tensor([10.0, 20.0]))
    assert elbo.value.tolist() == [-11.0, -22.0]
