"""Recurrent layers. ``nn.GRU`` is run by hand, so that every time step's share of the gradient can be booked.

The gradient of W_ih is the sum over time of (gradient of the input gates)^T x_t, that of W_hh of (gradient of the
hidden gates)^T h_{t-1}: with the gates of all times kept, both are one :class:`Outer` term. The backward pass through
time needs no weight gradient at each step, which is why it is faster than autograd's.

Other recurrent layers, and every one of them in the hooks and ghost modes, are run by Opacus' DPRNN, DPLSTM and DPGRU
on the same parameters: these are made of linear layers.

Shapes: T steps, B records, d inputs, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from opacus.layers import DPGRU, DPLSTM, DPRNN
from torch import Tensor, nn

from dpvae.errors import ConfigError
from dpvae.train.clipping.rules import summed
from dpvae.train.clipping.terms import Outer, Term

if TYPE_CHECKING:
    from dpvae.train.clipping.recorder import Recorder

Swap = tuple[nn.Module, str, nn.Module]


def gru_forward(recorder: Recorder, gru: nn.GRU) -> Callable[..., Any]:
    """A forward pass of ``gru`` that books both weight matrices and both biases of every layer and direction."""
    plain = gru.forward

    def forward(x: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if not torch.is_grad_enabled():
            return plain(x, hx)  # type: ignore[no-any-return]
        if not isinstance(x, Tensor) or x.dim() != 3 or gru.proj_size:
            raise ConfigError("model: nn.GRU got a packed or unbatched sequence; expected (records, steps, inputs) "
                              "with batch_first=True")
        if not gru.batch_first:
            raise ConfigError("model: nn.GRU with batch_first=False; expected batch_first=True")
        return _layers(recorder, gru, x.transpose(0, 1), hx)

    return forward


def _layers(recorder: Recorder, gru: nn.GRU, x_TBd: Tensor, hx: Tensor | None) -> tuple[Tensor, Tensor]:
    directions = 2 if gru.bidirectional else 1
    if hx is None:
        hx = x_TBd.new_zeros(gru.num_layers * directions, x_TBd.shape[1], gru.hidden_size)
    last = []
    for layer in range(gru.num_layers):
        outs = []
        for direction in range(directions):
            suffix = f"l{layer}{'_reverse' if direction else ''}"
            turned = x_TBd.flip(0) if direction else x_TBd
            out = _one(recorder, gru, suffix, turned, hx[layer * directions + direction])
            last.append(out[-1])
            outs.append(out.flip(0) if direction else out)
        x_TBd = torch.cat(outs, -1) if len(outs) > 1 else outs[0]
        if layer < gru.num_layers - 1:
            x_TBd = F.dropout(x_TBd, gru.dropout, gru.training)
    return x_TBd.transpose(0, 1), torch.stack(last)


def _one(recorder: Recorder, gru: nn.GRU, suffix: str, x_TBd: Tensor, h_BH: Tensor) -> Tensor:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    held = [getattr(gru, f"{name}_{suffix}", None) for name in names]
    given = [None if p is None else p.detach() for p in held]

    def write(x: Tensor, gates_x: Tensor, before: Tensor, gates_h: Tensor) -> None:
        recorder.write(iter(_terms(held, x, gates_x, before, gates_h, recorder.records)))

    out: Tensor = _Steps.apply(x_TBd, h_BH, *given, write, recorder._tick)
    return out


def _terms(held: list[nn.Parameter | None], x: Tensor, gates_x: Tensor, before: Tensor, gates_h: Tensor,
           records: int) -> list[tuple[nn.Parameter, Term]]:
    if x.shape[1] % records:
        raise ConfigError(f"model: nn.GRU saw {x.shape[1]} rows for {records} records")

    def rows(value: Tensor) -> Tensor:
        value = value.transpose(0, 1)
        return value if len(value) == records else value.reshape(records, -1, value.shape[-1])

    made: list[Term] = [Outer(rows(x), rows(gates_x)).settled(), Outer(rows(before), rows(gates_h)).settled(),
                        summed(rows(gates_x)), summed(rows(gates_h))]
    return [(p, term) for p, term in zip(held, made, strict=True) if p is not None and p.requires_grad]


class _Steps(torch.autograd.Function):
    """One direction of one GRU layer (Cho et al. 2014, in the form of ``nn.GRU``); returns h of all steps (T, B, H)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None,
                write: Callable[..., None], tick: Tensor) -> Tensor:
        steps, hidden = x.shape[0], h.shape[-1]
        gates_x = F.linear(x, w_ih, b_ih).contiguous()
        w_hh, h = w_hh.to(gates_x.dtype), h.to(gates_x.dtype)
        b_hh = None if b_hh is None else b_hh.to(gates_x.dtype)
        out = gates_x.new_empty(steps, *h.shape)
        kept_n = torch.empty_like(out)  # W_hn h + b_hn
        first = h
        for t in range(steps):
            gates_h = F.linear(h, w_hh, b_hh)
            gates_x[t, :, :2 * hidden].add_(gates_h[:, :2 * hidden]).sigmoid_()
            r, z = gates_x[t, :, :hidden], gates_x[t, :, hidden:2 * hidden]
            kept_n[t] = gates_h[:, 2 * hidden:]
            n = gates_x[t, :, 2 * hidden:].addcmul_(r, kept_n[t]).tanh_()
            h = torch.lerp(n, h, z, out=out[t])
        ctx.save_for_backward(x, gates_x, kept_n, out, first, w_ih, w_hh)
        ctx.write, ctx.biased = write, b_ih is not None
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gates, kept_n, out, first, w_ih, w_hh = ctx.saved_tensors
        hidden = first.shape[-1]
        r, z, n = gates.split(hidden, -1)
        before = torch.cat([first[None], out[:-1]])
        gates_x, gates_h = torch.empty_like(gates), torch.empty_like(gates)
        to_n = (1 - z).mul_(1 - n * n)
        to_r, to_z = r * (1 - r) * kept_n, (before - n).mul_(z * (1 - z))
        grad_h = torch.zeros_like(first)
        for t in range(len(out) - 1, -1, -1):
            grad_h = grad_h + grads[0][t]
            dr, dz, dn = gates_h[t].split(hidden, -1)
            inner = gates_x[t, :, 2 * hidden:]
            torch.mul(grad_h, to_n[t], out=inner)
            torch.mul(inner, to_r[t], out=dr)
            torch.mul(grad_h, to_z[t], out=dz)
            torch.mul(inner, r[t], out=dn)
            grad_h = torch.addmm(grad_h.mul_(z[t]), gates_h[t], w_hh)
        gates_x[..., :2 * hidden] = gates_h[..., :2 * hidden]
        with torch.autocast(x.device.type, enabled=False):
            ctx.write(x.detach(), gates_x, before, gates_h)
        grad_x = (gates_x @ w_ih.to(gates_x.dtype)) if ctx.needs_input_grad[0] else None
        return grad_x, (grad_h if ctx.needs_input_grad[1] else None), *[None] * 6


def swap_recurrent(module: nn.Module, keep: tuple[type[nn.Module], ...] = ()) -> list[Swap]:
    """Put Opacus' recurrent layers, on the same parameters, in the place of torch's; returns what was replaced.

    A recurrent layer that is the whole module cannot be replaced from outside and is left where it is.
    """
    swaps = []
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            twin = {nn.GRU: DPGRU, nn.LSTM: DPLSTM, nn.RNN: DPRNN}.get(type(child))
            if twin is None or isinstance(child, keep):
                continue
            swaps.append((parent, name, child))
            setattr(parent, name, _twin(child, twin))
    return swaps


def _twin(layer: nn.RNNBase, kind: type[nn.Module]) -> nn.Module:
    options = {"nonlinearity": layer.nonlinearity} if kind is DPRNN else {}
    twin = kind(layer.input_size, layer.hidden_size, num_layers=layer.num_layers, bias=layer.bias,
                batch_first=layer.batch_first, dropout=layer.dropout, bidirectional=layer.bidirectional, **options)
    twin.train(layer.training)
    for name, cell in list(twin.named_children()):
        for side in ("ih", "hh") if hasattr(cell, "ih") else ():
            for part in ("weight", "bias") if layer.bias else ("weight",):
                shared = getattr(layer, f"{part}_{side}_{name}")
                setattr(getattr(cell, side), part, shared)
                twin._parameters[f"{part}_{side}_{name}"] = shared  # Opacus keeps a second name for each
    return twin
