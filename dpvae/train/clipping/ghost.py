"""Opacus' ghost clipping with our clip factors: norms by one backward pass, the clipped sum by a second.

The second pass works every gradient out anew, and rounds it anew. Where the positions of a record cancel, its gradient
is smaller than what rounding leaves of its terms, and a norm that was lucky would let the sum's rounding through the
clip. So norms are those of book-keeping instead of Opacus' single-precision Gram matrices, and no norm is below what
the rounding of a sum of such terms can reach. No other user of Opacus is given them.

Shapes: B records, T positions, d inputs, p outputs.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
from torch import Tensor, nn

from dpvae.errors import ConfigError
from dpvae.train.clipping.terms import Lookup, Outer, gram_norms, guard

Norms = dict[nn.Parameter, Tensor]


def linear_norms(layer: nn.Linear, activations: list[Tensor], backprops: Tensor) -> Norms:
    """Norm of each record's gradient, (B,), of weight and bias: (B, ..., d) -> (B, ..., p)."""
    a_BTd, g_BTp = (x.unsqueeze(1).flatten(1, -2) for x in (activations[0], backprops))
    norms = {layer.weight: Outer(a_BTd, g_BTp).squared_norms().sqrt()}
    return norms if layer.bias is None else norms | {layer.bias: gram_norms(g_BTp).sqrt()}


def embedding_norms(layer: nn.Embedding, activations: list[Tensor], backprops: Tensor) -> Norms:
    """The same of a table of embeddings: (B, ...) codes -> (B, ..., p)."""
    codes_BT, g_BTp = activations[0].unsqueeze(1).flatten(1), backprops.unsqueeze(1).flatten(1, -2)
    lookup = Lookup(codes_BT, g_BTp, layer.num_embeddings)
    return {layer.weight: lookup.squared_norms().sqrt()}


class TwoPasses:
    """What turns a ghost module of Opacus into clipped sums; ``finite_B`` says which records of the last pass had a
    finite norm, (B,)."""

    NORM_SAMPLERS: ClassVar[dict[type[nn.Module], Callable[..., Norms]]] = {
        nn.Linear: linear_norms, nn.Embedding: embedding_norms}
    finite_B: Tensor
    sharers = 1  # processes over whose losses a gradient is the mean

    def clip(self: Any, loss_B: Tensor, factors: Callable[[Tensor], Tensor]
             ) -> list[tuple[nn.Parameter, Tensor]] | None:
        """``sum_i c_i grad_i`` of each parameter; ``None`` where a record is not finite and has to be left out."""
        loss_B.sum().backward(retain_graph=True)
        norms_B = self.get_norm_sample()
        if norms_B.shape != loss_B.shape:
            raise ConfigError(f"model: ghost clipping saw {len(norms_B)} rows for {len(loss_B)} records; expected the "
                              "records alone on the first dimension, or performance.clipping=fast")
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
    """Opacus' module of one process. Layers without norms of ours are measured by gradients that Opacus writes out."""

    def __init__(self, module: nn.Module, **options: Any) -> None:
        for name, layer in module.named_modules():
            if (mode := getattr(layer, "padding_mode", "zeros")) != "zeros":
                raise ConfigError(f"model: layer {name or type(layer).__name__} pads by {mode!r}, which Opacus' norms "
                                  "do not know and its second pass does; expected performance.clipping=fast")
        super().__init__(module, **options)
        self._reach: dict[nn.Module, Any] = defaultdict(float)  # of the terms that a layer's calls summed, (B,)

    def capture_backprops_hook(self, module: nn.Module, inputs: Any, outputs: Any, *how: Any, **options: Any) -> None:
        """Opacus' hook; notes how large the terms are where it will write gradients out."""
        if self.hooks_enabled and type(module) not in self.NORM_SAMPLERS:
            self._reach[module] += reach(module, module.activations[-1][0], outputs[0].detach())
        super().capture_backprops_hook(module, inputs, outputs, *how, **options)

    def get_norm_sample(self) -> Tensor:
        """(B,)."""
        norms_B, reaches, self._reach = super().get_norm_sample(), self._reach.values(), defaultdict(float)
        squares = [reach_B.square() for reach_B in reaches]
        return (norms_B.square() + guard(norms_B.dtype) * sum(squares)).sqrt() if squares else norms_B


def reach(layer: nn.Module, a: Tensor, g: Tensor) -> Tensor:
    """What the positions of each record would add up to at most if all pulled in one direction, (B,): by Cauchy-Schwarz
    from what went in, (B, ...), and the gradient of what came out, (B, ...)."""
    inputs_B = a.new_full((len(a),), a[0].numel()) if _normalises(layer) else a.flatten(1).square().sum(1)
    inputs_B = inputs_B * math.prod(getattr(layer, "kernel_size", ()))  # an input is part of so many patches
    bias = getattr(layer, "bias", None)
    positions = 0 if bias is None else g[0].numel() / bias.numel()
    return ((inputs_B + positions) * g.flatten(1).square().sum(1)).sqrt()


def _normalises(layer: nn.Module) -> bool:
    """What its weight meets is of size one then, whatever went in."""
    return isinstance(layer, nn.LayerNorm | nn.GroupNorm | nn.modules.instancenorm._InstanceNorm)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch says of every layer whose input needs no gradient, or whose output is a view (which only
    matters to operations that write into their input: models have none)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
        yield
