"""A model whose records do not stand alone is refused before training, by name, on random data."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small_runs import ScriptedKey
from torch import Tensor, nn

from dpvae.errors import ConfigError
from dpvae.models.vae import VAE
from dpvae.privacy.plan import SgdPlan
from dpvae.train import objectives
from dpvae.train.dpsgd import PrivateSteps

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
EVERY_CLIPPING = ("fast", "ghost", "hooks")
PLAN = SgdPlan(noise_multiplier=1.0, sampling_rate=0.5, steps=1, clip_norm=1.0, latent_samples=1)


def normal(count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, 4, generator=generator)


def start(module: nn.Module, loss: Callable[[nn.Module, Tensor, Tensor], Tensor], clipping: str = "fast") -> None:
    PrivateSteps(module, torch.zeros(0, 4), loss, plan=PLAN, rows=10, key=ScriptedKey(), learning_rate=0.1,
                 microbatch=8, clipping=clipping, example=normal).close()


def plain(module: nn.Module, x: Tensor, latents: Tensor) -> Tensor:
    return (module(x) - x).square().sum(1)


def batch_mean(module: nn.Module, x: Tensor, latents: Tensor) -> Tensor:
    out = module(x)
    return (out - out.mean(0)).square().sum(1)


def divided_by_the_batch(module: nn.Module, x: Tensor, latents: Tensor) -> Tensor:
    return plain(module, x, latents) / len(x)


def in_batch_negatives(module: nn.Module, x: Tensor, latents: Tensor) -> Tensor:
    return -(module(x) @ x.T).log_softmax(1).diagonal()


def shares_only_the_value(module: nn.Module, x: Tensor, latents: Tensor) -> Tensor:
    own = plain(module, x, latents)
    return own + 0.1 * (own.detach().mean() - own.detach())


def next_neighbour(module: nn.Module, x: Tensor, latents: Tensor) -> Tensor:
    return (module(x) - x.roll(1, 0)).square().sum(1)


def samples_before_records(module: nn.Module, x: Tensor, latents: Tensor) -> Tensor:
    """Three samples of all records, one set after the other: the rows of a record do not lie side by side."""
    x_KB = torch.stack([x, x + 1, x - 1]).flatten(0, 1)
    return (module(x_KB) - x_KB).square().sum(1).view(3, -1).mean(0)


COUPLED = {"batch mean": batch_mean, "divided by the batch": divided_by_the_batch,
           "in-batch negatives": in_batch_negatives, "value alone": shares_only_the_value,
           "neighbour": next_neighbour}


@pytest.mark.parametrize("clipping", EVERY_CLIPPING)
@pytest.mark.parametrize("loss", COUPLED.values(), ids=COUPLED.keys())
def test_a_loss_that_couples_records_is_refused(loss: Callable[..., Tensor], clipping: str) -> None:
    with pytest.raises(ConfigError, match=r"moved the (loss|gradient|clipped gradient) of others"):
        start(nn.Linear(4, 4), loss, clipping)


def test_rows_that_would_be_booked_for_the_wrong_record_are_refused() -> None:
    with pytest.raises(ConfigError, match="of others"):
        start(nn.Linear(4, 4), samples_before_records)


@pytest.mark.parametrize("clipping", EVERY_CLIPPING)
def test_a_loss_of_each_record_alone_is_accepted(clipping: str) -> None:
    start(nn.Linear(4, 4), plain, clipping)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(4), nn.InstanceNorm1d(4, track_running_stats=True),
                                   nn.Embedding(4, 4, max_norm=1.0)])
@pytest.mark.parametrize("clipping", EVERY_CLIPPING)
def test_a_layer_that_mixes_records_is_refused_by_name(layer: nn.Module, clipping: str) -> None:
    with pytest.raises(ConfigError, match=f"model: 1 is (nn.)?{type(layer).__name__}"):
        start(nn.Sequential(nn.Linear(4, 4), layer), plain, clipping)


def test_a_codebook_that_follows_the_batch_is_refused_by_name() -> None:
    class Codebook(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer("average", torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            self.average.mul_(0.99).add_(x.detach().mean(0), alpha=0.01)
            return self.layer(x)

    with pytest.raises(ConfigError, match="the buffer average changes"):
        start(Codebook(), plain)


def test_dropout_is_refused_since_a_replayed_step_would_draw_it_anew() -> None:
    with pytest.raises(ConfigError, match="dropout"):
        start(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), plain)


def test_one_loss_for_all_records_is_refused() -> None:
    with pytest.raises(ConfigError, match="one loss per record"):
        start(nn.Linear(4, 4), lambda module, x, latents: plain(module, x, latents).mean())


@pytest.mark.parametrize("clipping", EVERY_CLIPPING)
def test_the_default_model_is_checked_in_sixteen_passes_over_at_most_five_records(clipping: str) -> None:
    vae = VAE([2] * 5 + [10] * 10, latent_dim=64, hidden=128, layers=0, components=1000,
              generator=torch.Generator().manual_seed(0))
    looked_at, posterior = [], objectives.posterior(vae)

    def loss(module: nn.Module, codes: Tensor, latents: Tensor) -> Tensor:
        looked_at.append(len(codes))
        return posterior(module, codes, latents)

    PrivateSteps(vae.decoder, torch.zeros(0, 15).long(), loss, plan=PLAN, rows=10, key=ScriptedKey(),
                 learning_rate=0.1, microbatch=8, clipping=clipping, latents=(4, 1),
                 example=objectives.random_codes(vae)).close()
    assert len(looked_at) == 16
    assert max(looked_at) == 5
