"""The free encoder: it learns q(z | x) from dreams, and touches nothing else."""

from __future__ import annotations

import pytest
import torch
from small_runs import TRAINERS, small_vae
from torch.distributions import Normal

from dpvae.models.vae import VAE
from dpvae.train.sleep import Sleep, log_q


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def telling(name: str) -> VAE:
    """A decoder whose rows say something about the latent."""
    vae = small_vae(name)
    with torch.no_grad():
        for parameter in vae.decoder.parameters():
            parameter.mul_(4)
    return vae


def dreams(vae: VAE, rows: int = 2000) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        z_BZ = vae.prior.sample(rows, generator=generator(1))
        return vae.likelihood.sample(vae.decode(z_BZ), generator=generator(2)), z_BZ


def test_log_q_is_what_torch_distributions_says() -> None:
    vae = small_vae("joint")
    codes_BD, z_BZ = dreams(vae, 50)
    mean_BZ, log_std_BZ = vae.encode(codes_BD)
    torch.testing.assert_close(log_q(vae, codes_BD, z_BZ), Normal(mean_BZ, log_std_BZ.exp()).log_prob(z_BZ).sum(-1))


@pytest.mark.parametrize("name", TRAINERS)
def test_sleep_raises_the_expected_log_q_of_rows_it_never_dreamt(name: str) -> None:
    vae = telling(name)
    codes_BD, z_BZ = dreams(vae)
    before = float(log_q(vae, codes_BD, z_BZ).detach().mean())
    Sleep(vae, learning_rate=1e-2).run(150, generator=generator(3))
    after = float(log_q(vae, codes_BD, z_BZ).detach().mean())
    assert after > before + 0.2


def test_sleep_learns_more_than_the_prior_knows() -> None:
    vae = telling("decoder_only")
    codes_BD, z_BZ = dreams(vae)
    Sleep(vae, learning_rate=1e-2).run(200, generator=generator(3))
    learned = float((log_q(vae, codes_BD, z_BZ).detach() - vae.prior.log_prob(z_BZ)).mean())
    assert learned > 0.1, "nats of mutual information between row and latent"


@pytest.mark.parametrize("name", TRAINERS)
def test_sleep_leaves_decoder_and_prior_as_they_were(name: str) -> None:
    vae = small_vae(name)
    before = {key: value.clone() for key, value in vae.state_dict().items()}
    Sleep(vae).run(3, generator=generator(3))
    changed = {key for key, value in vae.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert all(key.startswith("encoder.") for key in changed)
    assert all(p.grad is None for p in vae.decoder.parameters())


def test_sleep_is_a_function_of_the_released_decoder_and_the_public_seed() -> None:
    twins = [small_vae("joint"), small_vae("joint")]
    for vae in twins:
        Sleep(vae).run(5, generator=generator(4))
    assert all(torch.equal(a, b) for a, b in zip(twins[0].parameters(), twins[1].parameters(), strict=True))


def test_sleep_in_two_parts_is_sleep_in_one_where_the_generators_agree() -> None:
    one, two = small_vae("joint"), small_vae("joint")
    shared = generator(5)
    Sleep(one).run(6, generator=generator(5))
    parts = Sleep(two)
    parts.run(2, generator=shared)
    parts.run(4, generator=shared)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
