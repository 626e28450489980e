"""Adam for a step that has to be short: torch's own kernel, told what to update instead of finding out.

With a dozen small layers torch's Adam spends more time on collecting states, grouping tensors by device and checking
options than on the update itself. The numbers, the state and its names are torch's.

>>> weight = nn.Parameter(torch.zeros(2))
>>> adam = FusedAdam([weight], lr=0.1, betas=(0.9, 0.99))
>>> weight.grad = torch.tensor([3.0, -0.5])
>>> adam.step()
>>> weight.detach().round(decimals=4)
tensor([-0.1000,  0.1000])
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class FusedAdam(torch.optim.Adam):
    """torch's fused Adam of one group of parameters, each of which has a gradient in every step."""

    def __init__(self, parameters: list[nn.Parameter], *, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(parameters, lr=lr, betas=betas, fused=True)
        for p in parameters:
            self.state[p] = {"step": torch.zeros((), device=p.device), "exp_avg": torch.zeros_like(p),
                             "exp_avg_sq": torch.zeros_like(p)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One update from the gradients of all parameters."""
        group = self.param_groups[0]
        known = [self.state[p] for p in group["params"]]
        means, squares, steps = ([state[name] for state in known] for name in ("exp_avg", "exp_avg_sq", "step"))
        torch._foreach_add_(steps, 1)
        torch._fused_adam_(group["params"], [p.grad for p in group["params"]], means, squares, [], steps,
                           lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1], eps=group["eps"],
                           weight_decay=0.0, amsgrad=False, maximize=False)
