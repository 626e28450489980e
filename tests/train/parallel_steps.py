"""A few private steps, by one process or by those that torchrun starts; weights go to OUT.MODE.RANK. No test here."""

from __future__ import annotations

import sys
import warnings

import torch
from torch import Tensor, nn

from dpvae.privacy.noise import SecretKey
from dpvae.privacy.plan import SgdPlan
from dpvae.train.dpsgd import PrivateSteps
from dpvae.train.parallel import Processes, leave, together

STEPS, ROWS, RATE = 8, 12, 0.15  # about two records a step: a share is often empty, and now and then a whole batch


def loss(module: nn.Module, x: Tensor, latents: Tensor) -> Tensor:
    return (module(x + 0.1 * latents) - x).square().sum(1)


def weights(mode: str, processes: Processes | None) -> tuple[Tensor, list[int]]:
    """The weights after all steps, and how many records this process saw in each."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0 if processes is None else processes.rank)  # the first process's weights are everybody's
    module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))
    rows = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(1))
    plan = SgdPlan(noise_multiplier=0.5, sampling_rate=RATE, steps=STEPS, clip_norm=0.5, latent_samples=1)
    private = PrivateSteps(module, rows, loss, plan=plan, rows=ROWS, key=SecretKey.from_seed(3), learning_rate=0.05,
                           microbatch=2, clipping=mode, latents=(3,), processes=processes)
    seen = []
    for number in range(STEPS):
        private.step(number, 1.0)
        seen.append(private.optimizer.records)
    private.close()
    return torch.cat([p.detach().flatten() for p in module.parameters()]), seen


if __name__ == "__main__":
    joined = together()
    assert joined is not None
    for clipping in ("fast", "ghost", "hooks"):
        torch.save(weights(clipping, joined), f"{sys.argv[1]}.{clipping}.{joined.rank}")
    leave()
