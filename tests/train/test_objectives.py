"""What each trainer minimises: the bound it names, record by record, and no record looks at another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import TRAINERS, small_trainer, small_vae, some_codes
from torch import Tensor, nn

from dpvae.models.vae import VAE
from dpvae.train import objectives
from dpvae.train.independence import Loss
from dpvae.train.sleep import log_q

CODES = torch.as_tensor(some_codes(12)).long()
MAKE: dict[str, Callable[[VAE], Loss]] = {
    "anchored": objectives.posterior, "decoder_only": objectives.decoder_only, "joint": objectives.joint}


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def learner(name: str, vae: VAE) -> nn.Module:
    return objectives.EncoderAndDecoder(vae) if name == "joint" else vae.decoder


def losses(name: str, vae: VAE, codes_BD: Tensor, samples: int = 4) -> Tensor:
    width = 1 if name == "anchored" else vae.prior.dim
    latents = torch.randn(len(codes_BD), samples, width, generator=generator())
    return MAKE[name](vae)(learner(name, vae), codes_BD, latents)


@pytest.mark.parametrize("name", TRAINERS)
def test_a_records_loss_does_not_change_when_every_other_record_does(name: str) -> None:
    vae = small_vae(name)
    others = torch.as_tensor(some_codes(12, seed=9)).long()
    for i in range(12):
        mixed = others.clone()
        mixed[i] = CODES[i]
        torch.testing.assert_close(losses(name, vae, mixed)[i], losses(name, vae, CODES)[i], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TRAINERS)
def test_there_is_one_finite_loss_per_record(name: str) -> None:
    vae = small_vae(name)
    loss_B = losses(name, vae, CODES)
    assert loss_B.shape == (12,)
    assert torch.isfinite(loss_B).all()


def test_joint_training_minimises_minus_the_elbo_of_each_record() -> None:
    vae = small_vae("joint")
    noise_BKZ = torch.randn(12, 4, 4, generator=generator())  # as the loss draws it
    elbo = vae.elbo(CODES, noise_BKZ.transpose(0, 1))
    torch.testing.assert_close(losses("joint", vae, CODES), -elbo.value)


def test_the_gradient_of_decoder_only_is_that_of_the_importance_weighted_bound() -> None:
    """Reweighted wake-sleep: sum_k w_k grad log p(x | z_k) is the gradient of log mean_k p(x, z_k) / q(z_k | x)."""
    vae = small_vae("decoder_only")
    mean_BZ, log_std_BZ = (part.detach() for part in vae.encode(CODES))
    z_BKZ = mean_BZ[:, None] + log_std_BZ.exp()[:, None] * torch.randn(12, 4, 4, generator=generator())
    log_w = [vae.likelihood.log_prob(vae.decode(z_BKZ[:, k]), CODES) + vae.prior.log_prob(z_BKZ[:, k])
             - log_q(vae, CODES, z_BKZ[:, k]).detach() for k in range(4)]
    wanted = torch.autograd.grad(-torch.stack(log_w).logsumexp(0).sum(), list(vae.decoder.parameters()))
    found = torch.autograd.grad(losses("decoder_only", vae, CODES).sum(), list(vae.decoder.parameters()))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_the_gradient_of_anchored_is_on_average_that_of_the_exact_log_probability() -> None:
    """Fisher's identity: the expectation under the exact posterior of grad log p(x | z) is grad log p(x)."""
    vae = small_vae("anchored")
    parameters = list(vae.decoder.parameters())
    exact = torch.autograd.grad(-vae.elbo(CODES, torch.zeros(0)).value.sum(), parameters)
    found = torch.autograd.grad(losses("anchored", vae, CODES, samples=20_000).sum(), parameters)
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b, atol=0.1, rtol=0.02)


@pytest.mark.parametrize("name", ["anchored", "decoder_only"])
def test_only_the_decoder_learns_from_private_rows(name: str) -> None:
    vae = small_vae(name)
    losses(name, vae, CODES).sum().backward()
    touched = {key for key, parameter in vae.named_parameters() if parameter.grad is not None}
    assert touched == {key for key, _ in vae.named_parameters() if key.startswith("decoder.")}


def test_what_a_codebooks_records_are_worth_is_log_p_and_their_own_to_the_last_bit(tmp_path: Path) -> None:
    trainer = small_trainer("anchored", CODES.numpy(), tmp_path)
    worth = np.concatenate(list(trainer._elbos(0)))
    bound = trainer.vae.elbo(CODES, torch.zeros(0)).value.detach().double().numpy()
    np.testing.assert_allclose(worth, bound, rtol=1e-5)
    alone = [small_trainer("anchored", CODES[i:i + 1].numpy(), tmp_path, vae=trainer.vae)._elbos(0) for i in range(12)]
    assert [float(next(one)[0]) for one in alone] == worth.tolist()
