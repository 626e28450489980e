"""Opacus' ghost clipping with our clip factors: norms by one backward pass, the clipped sum by a second."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
from torch import Tensor, nn


class TwoPasses:
    """What turns a ghost module of Opacus into clipped sums; ``finite_B`` says which records of the last pass had a
    finite norm, (B,)."""

    finite_B: Tensor
    sharers = 1  # processes over whose losses a gradient is the mean

    def clip(self: Any, loss_B: Tensor, factors: Callable[[Tensor], Tensor]
             ) -> list[tuple[nn.Parameter, Tensor]] | None:
        """``sum_i c_i grad_i`` of each parameter; ``None`` where a record is not finite and has to be left out."""
        loss_B.sum().backward(retain_graph=True)
        norms_B = self.get_norm_sample()
        self.finite_B = torch.isfinite(norms_B)
        self._forget()
        if not self.all_finite():
            return None
        self.disable_hooks()
        (self.sharers * factors(norms_B) * loss_B).sum().backward()
        self.enable_hooks()
        sums = [(p, torch.zeros_like(p) if p.grad is None else p.grad) for p in self.trainable_parameters]
        self._forget()
        return sums

    def all_finite(self) -> bool:
        """Whether every record of the pass is, in all processes that share it."""
        return bool(self.finite_B.all())

    def _forget(self: Any) -> None:
        for parameter in self.trainable_parameters:
            parameter.grad = None


class Ghost(TwoPasses, GradSampleModuleFastGradientClipping):
    """Opacus' module of one process."""


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch says of every layer whose input needs no gradient, or whose output is a view (which only
    matters to operations that write into their input: models have none)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
        yield
