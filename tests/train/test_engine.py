"""``grad_sample_mode="fast"`` beside Opacus' own modes: one epoch, equal noise, equal parameters, equal epsilon."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from opacus.utils.batch_memory_manager import BatchMemoryManager
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dpvae.errors import ConfigError
from dpvae.train.clipping.engine import FastEngine

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning",
                                        "ignore:Optimal order is the largest alpha:UserWarning")


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.SiLU(), nn.Flatten(),
                                     nn.Linear(4 * 16, 6))
        self.decoder = nn.Sequential(nn.Linear(6, 64), nn.Unflatten(1, (4, 4, 4)), nn.GroupNorm(2, 4), nn.SiLU(),
                                     nn.ConvTranspose2d(4, 1, 4, stride=2, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def epoch(mode: str, reduction: str, *, parts: int | None = None) -> tuple[Tensor, float]:
    """Parameters and epsilon after one pass of Poisson batches, by Opacus' own loop."""
    torch.manual_seed(0)
    module: Any = Autoencoder()
    rows = torch.rand(60, 1, 8, 8)
    engine = FastEngine(accountant="rdp")
    loader = DataLoader(TensorDataset(rows), batch_size=12, generator=torch.Generator().manual_seed(2))
    module, optimizer, loader = engine.make_private(
        module=module, optimizer=torch.optim.Adam(module.parameters(), lr=0.01), data_loader=loader,
        noise_multiplier=0.8, max_grad_norm=0.05, grad_sample_mode=mode, loss_reduction=reduction,
        noise_generator=torch.Generator().manual_seed(1))

    def run(batches: Any) -> None:
        for (x,) in batches:
            optimizer.zero_grad()
            loss = (module(x) - x).square().flatten(1).sum(1)
            (loss.mean() if reduction == "mean" else loss.sum()).backward()
            optimizer.step()

    if parts is None:
        run(loader)
    else:
        with BatchMemoryManager(data_loader=loader, max_physical_batch_size=parts, optimizer=optimizer) as split:
            run(split)
    flat = torch.cat([p.detach().flatten() for p in module.parameters()])
    return flat, engine.get_epsilon(1e-5)


@pytest.mark.parametrize("parts", [None, 5])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_an_epoch_ends_with_the_parameters_and_the_epsilon_of_opacus_hooks(reduction: str, parts: int | None) -> None:
    fast, epsilon = epoch("fast", reduction, parts=parts)
    hooks, same = epoch("hooks", reduction, parts=parts)
    assert epsilon == same
    torch.testing.assert_close(fast, hooks, atol=1e-5, rtol=0)


def test_what_the_fast_mode_cannot_do_is_refused() -> None:
    module = nn.Linear(2, 1)
    optimizer, rows = torch.optim.SGD(module.parameters(), lr=0.1), DataLoader(TensorDataset(torch.ones(4, 2)))
    with pytest.raises(ConfigError, match="clipping='flat'"):
        FastEngine().make_private(module=module, optimizer=optimizer, data_loader=rows, noise_multiplier=1.0,
                                  max_grad_norm=[1.0, 1.0], clipping="per_layer", grad_sample_mode="fast")
