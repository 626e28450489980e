"""Per-record clipping without per-record gradients: the book-keeping trick (Bu et al. 2023, arXiv 2210.00038).

A linear layer's gradient for record i is ``G_i^T A_i`` with A_i (T x d) what went in and G_i (T x p) the gradient of
what came out, T latent samples or positions per record. Its squared norm needs no d x p matrix,

    |G_i^T A_i|^2 = sum_{s,t} (A_i A_i^T)_{st} (G_i G_i^T)_{st},

and the clipped sum ``sum_i c_i G_i^T A_i`` is the one matrix product that training without privacy does anyway. So one
backward pass that only records (A, G) is enough. Opacus' hooks compute the same numbers the long way; they stay as
``performance.clipping=hooks``, and the tests hold the two together to 1e-5.

Shapes: B records, T samples per record, d inputs, p outputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Samples that cancel inside a record leave a small gradient of large terms. The clipped sum is taken in single
# precision, so its rounding follows the terms and would be scaled up with the small gradient: the norm is never taken
# for less than 0.14 % of its terms. A record then adds at most C (1 + 1e-4); elsewhere norms change by about 1e-6.
CANCELLATION = 16 * torch.finfo(torch.float32).eps


class Recorder(nn.Module):
    """``module`` with its linear layers recording; calls and ``state_dict`` of the inner module are untouched.

    Only modules whose trainable parameters all belong to ``nn.Linear`` layers used once per pass are supported
    (:func:`supports`); others take the Opacus hooks.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner = module
        self.layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
        self.book: dict[int, tuple[Tensor, Tensor]] = {}
        self._tick = torch.zeros((), requires_grad=True)  # makes autograd visit the first layer too
        for number, layer in enumerate(self.layers):
            layer.forward = self._forward(number, layer)  # type: ignore[method-assign]

    def _forward(self, number: int, layer: nn.Linear) -> Any:
        def forward(x: Tensor) -> Tensor:
            out: Tensor = _Recorded.apply(x, layer.weight, layer.bias, self._tick, self.book, number)
            return out

        return forward

    def forward(self, *args: Tensor) -> Any:
        return self.inner(*args)

    def squared_norms(self, records: int) -> Tensor:
        """Squared norm of each record's gradient over all layers, (B,)."""
        total_B = torch.zeros(records, device=self.layers[0].weight.device)
        for number, layer in enumerate(self.layers):
            if number in self.book:
                a_BTd, g_BTp = self.book[number]
                total_B += _weight_norms(a_BTd, g_BTp)
                if layer.bias is not None:
                    total_B += g_BTp.sum(1).square().sum(-1)
        return total_B

    def clipped_sums(self, factors_B: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
        """``sum_i c_i grad_i`` for each parameter, in the order weight, bias of each layer; empties the book."""
        sums: list[tuple[nn.Parameter, Tensor]] = []
        for number, layer in enumerate(self.layers):
            a_BTd, g_BTp = self.book.pop(number, (None, None))
            if a_BTd is None or g_BTp is None:
                sums.append((layer.weight, torch.zeros_like(layer.weight)))
                sums += [(layer.bias, torch.zeros_like(layer.bias))] if layer.bias is not None else []
                continue
            keep_B11 = (factors_B > 0)[:, None, None]  # zero times NaN would be NaN
            scaled_BTp = torch.where(keep_B11, g_BTp * factors_B[:, None, None], 0.0)
            inputs_BTd = torch.where(keep_B11, a_BTd, 0.0)
            sums.append((layer.weight, scaled_BTp.flatten(0, 1).T @ inputs_BTd.flatten(0, 1)))
            sums += [(layer.bias, scaled_BTp.sum((0, 1)))] if layer.bias is not None else []
        return sums

    def remove_hooks(self) -> None:
        """Give the layers their own forward back."""
        for layer in self.layers:
            del layer.forward


def supports(module: nn.Module) -> bool:
    """Whether every trainable parameter of ``module`` belongs to exactly one linear layer."""
    owned = [id(p) for layer in module.modules() if isinstance(layer, nn.Linear) for p in layer.parameters()]
    trained = [id(p) for p in module.parameters() if p.requires_grad]
    return sorted(owned) == sorted(trained)


def _weight_norms(a_BTd: Tensor, g_BTp: Tensor) -> Tensor:
    """Squared norms of ``G_i^T A_i``, (B,), by whichever of Gram matrices and the gradient itself is smaller."""
    samples, inputs, outputs = a_BTd.shape[1], a_BTd.shape[2], g_BTp.shape[2]
    if samples == 1:
        return a_BTd.square().sum((1, 2)) * g_BTp.square().sum((1, 2))
    if samples * (inputs + outputs) <= inputs * outputs:
        a_BTd, g_BTp = a_BTd.double(), g_BTp.double()
        gram_BTT = torch.bmm(a_BTd, a_BTd.mT) * torch.bmm(g_BTp, g_BTp.mT)
        largest_B = (a_BTd.norm(dim=2) * g_BTp.norm(dim=2)).sum(1).square()
        return (gram_BTT.sum((1, 2)).clamp_min(0.0) + CANCELLATION * largest_B).float()
    return torch.bmm(g_BTp.mT, a_BTd).square().sum((1, 2))


class _Recorded(torch.autograd.Function):
    """``F.linear`` whose backward pass writes (input, output gradient) into a book and computes no weight gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, tick: Tensor, book: dict[int, Any],
                number: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.book, ctx.number = book, number
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grads[0]
        if ctx.number in ctx.book:
            raise RuntimeError("a linear layer was used twice in one pass; use performance.clipping=hooks")
        ctx.book[ctx.number] = (_three(x.detach()), _three(grad.detach()))
        return (grad @ weight if ctx.needs_input_grad[0] else None), None, None, None, None, None


def _three(x: Tensor) -> Tensor:
    """(B, ..., d) as (B, T, d)."""
    return x.reshape(x.shape[0], -1, x.shape[-1])

