"""A few private steps, by one process or by those that torchrun starts; weights go to OUT.MODE.RANK. No test here.

A mode is a way of clipping, or ``sharded``; after a plus sign stands what is wrong with it.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from dpvae.privacy.noise import SecretKey
from dpvae.privacy.plan import SgdPlan
from dpvae.train import dpsgd
from dpvae.train.clipping import optimizer
from dpvae.train.parallel import Processes, leave, together

Half = dict[str, Any]
STEPS, ROWS, RATE = 8, 12, 0.15  # about two records a step: a share is often empty, and now and then a whole batch
BROKEN = {"without": lambda rank: 1 - rank, "twice": lambda rank: 1 + rank}  # noise on the second process's piece
MODES = ("fast", "ghost", "hooks", "sharded", "sharded+infinite", *(f"sharded+{name}" for name in BROKEN))


def loss(module: nn.Module, x: Tensor, latents: Tensor) -> Tensor:
    return (module(x + 0.1 * latents) - x).square().sum(1)


def poisoned(module: nn.Module, x: Tensor, latents: Tensor) -> Tensor:
    """Like :func:`loss`; some records are not finite."""
    return loss(module, x, latents) * torch.where(x[:, 0] > 0.3, float("inf"), 1.0)


def weights(mode: str, processes: Processes | None, start: Half | None = None) -> tuple[Tensor, list[int], Half]:
    """The weights after all steps, how many records this process saw in each, and what half of the steps had made;
    from there on, where that is given as ``start``."""
    warnings.simplefilter("ignore")
    way, _, wrong = mode.partition("+")
    sharded = way == "sharded" and processes is not None
    torch.manual_seed(0 if processes is None else processes.rank)  # the first process's weights are everybody's
    module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))
    rows = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(1))
    plan = SgdPlan(noise_multiplier=0.5, sampling_rate=RATE, steps=STEPS, clip_norm=0.5, latent_samples=1)
    private = dpsgd.PrivateSteps(module, rows, poisoned if wrong == "infinite" else loss, plan=plan, rows=ROWS,
                                 key=SecretKey.from_seed(3), learning_rate=0.05, microbatch=2,
                                 clipping="ghost" if way == "sharded" else way, latents=(3,), processes=processes,
                                 sharded=sharded)
    if start is not None:
        module.load_state_dict(start["module"])
        private.restore(start["state"])
    seen, half, cut = [], start or {}, optimizer.cut
    factor = BROKEN[wrong](processes.rank) if wrong in BROKEN and processes is not None else 1
    with mock.patch.object(optimizer, "cut", lambda value, like: cut(factor * value, like)):
        for number in range(0 if start is None else STEPS // 2, STEPS):
            if number == STEPS // 2:
                half = {"module": {name: p.detach().clone() for name, p in module.named_parameters()},
                        "state": private.state()}
                private.restore(half["state"])
            private.step(number, 1.0)
            seen.append(private.optimizer.records)
    private.close()
    return torch.cat([p.detach().flatten() for p in module.parameters()]), seen, half


if __name__ == "__main__":
    joined = together()
    assert joined is not None
    for each in MODES:
        torch.save(weights(each, joined), f"{sys.argv[1]}.{each}.{joined.rank}")
    leave()
