"""Opacus' ghost clipping with our clip factors: norms by one backward pass, the clipped sum by a second."""

from __future__ import annotations

from collections.abc import Callable

import torch
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
from torch import Tensor, nn


class Ghost(GradSampleModuleFastGradientClipping):
    """Opacus' module; ``finite_B`` says which records of the last pass had a finite norm, (B,)."""

    finite_B: Tensor

    def clip(self, loss_B: Tensor, factors: Callable[[Tensor], Tensor]) -> list[tuple[nn.Parameter, Tensor]] | None:
        """``sum_i c_i grad_i`` of each parameter; ``None`` where a record is not finite and has to be left out."""
        loss_B.sum().backward(retain_graph=True)
        norms_B = self.get_norm_sample()
        self.finite_B = torch.isfinite(norms_B)
        self._forget()
        if not bool(self.finite_B.all()):
            return None
        self.disable_hooks()
        (factors(norms_B) * loss_B).sum().backward()
        self.enable_hooks()
        sums = [(p, torch.zeros_like(p) if p.grad is None else p.grad) for p in self.trainable_parameters]
        self._forget()
        return sums

    def _forget(self) -> None:
        for parameter in self.trainable_parameters:
            parameter.grad = None
