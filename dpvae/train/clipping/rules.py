"""What the gradient of each kind of layer is made of.

A rule takes a layer, what went in and the gradient of what came out, and says per trainable parameter which term the
call adds. The first dimension may hold several rows of one record side by side, (B x samples, ...): they are folded
into the record, so that K latent samples or augmentations are averaged before the clip, exactly.

Shapes: B records, T positions, d inputs, p outputs, N = B x samples rows, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpvae.errors import ConfigError
from dpvae.train.clipping.terms import Lookup, Outer, Sample, Term, wide

Terms = Iterator[tuple[nn.Parameter, Term]]
Rule = Callable[[nn.Module, Tensor, Tensor, int], Terms]


def fold(x: Tensor, records: int, tail: int) -> Tensor:
    """(N, ..., tail dimensions) as (B, T, tail dimensions)."""
    if x.dim() <= tail or x.shape[0] == 0 or x.shape[0] % records:
        raise ConfigError(f"model: a layer saw {x.shape[0] if x.dim() > tail else 'no'} rows for {records} records; "
                          "expected the records on the first dimension of every layer's input (expand what all share)")
    return x.reshape(records, -1, *x.shape[x.dim() - tail:])


def trainable(layer: nn.Module, name: str) -> nn.Parameter | None:
    """The parameter of that name, where there is one that learns."""
    parameter = getattr(layer, name, None)
    return parameter if parameter is not None and parameter.requires_grad else None


def linear(layer: nn.Module, x: Tensor, grad: Tensor, records: int) -> Terms:
    """(N, ..., d) -> (N, ..., p)."""
    a_BTd, g_BTp = fold(x, records, 1), fold(grad, records, 1)
    if (weight := trainable(layer, "weight")) is not None:
        yield weight, Outer(a_BTd, g_BTp).settled()
    if (bias := trainable(layer, "bias")) is not None:
        yield bias, summed(g_BTp)


def summed(g_BTp: Tensor) -> Sample:
    """A bias gets the sum over positions."""
    return Sample(g_BTp[:, 0] if g_BTp.shape[1] == 1 else g_BTp.sum(1, dtype=wide(g_BTp.dtype)))


def convolution(layer: nn.Module, x: Tensor, grad: Tensor, records: int) -> Terms:
    """(N, C, *space): a linear map on patches."""
    if (weight := trainable(layer, "weight")) is not None:
        padding = layer._reversed_padding_repeated_twice
        x = F.pad(x, padding, mode=_padding_mode(layer)) if any(padding) else x
        yield weight, _patched(x, grad, layer, records)
    if (bias := trainable(layer, "bias")) is not None:
        yield bias, _channel_sums(grad, records)


def transposed_convolution(layer: nn.Module, x: Tensor, grad: Tensor, records: int) -> Terms:
    """The same with the parts exchanged: the output's gradient is cut into patches, the input is what they meet."""
    if (weight := trainable(layer, "weight")) is not None:
        padding = [n for pad in reversed(layer.padding) for n in (pad, pad)]
        yield weight, _patched(F.pad(grad, padding), x, layer, records)
    if (bias := trainable(layer, "bias")) is not None:
        yield bias, _channel_sums(grad, records)


def _padding_mode(layer: nn.Module) -> str:
    return "constant" if layer.padding_mode == "zeros" else str(layer.padding_mode)


def _channel_sums(grad: Tensor, records: int) -> Sample:
    """(N, C, *space) -> (B, C)."""
    sums_NC = grad.flatten(2).sum(2, dtype=wide(grad.dtype))
    return Sample(fold(sums_NC, records, 1).sum(1))


def _patched(padded: Tensor, met: Tensor, layer: nn.Module, records: int) -> Outer | Sample:
    """Weights whose gradient is ``met^T patches``; ``padded`` (N, C, *space), ``met`` (N, P, *positions).

    In the weight's own order (outputs, inputs, *kernel); groups are worked out one by one in a batched product.
    """
    groups, inputs = layer.groups, padded.shape[1] // layer.groups
    patches = _patches(padded, layer, tuple(met.shape[2:]))  # (N, *positions, *kernel, C)
    kernel = patches.shape[1 + met.dim() - 2:-1]
    positions = met[0, 0].numel()
    g_NTp = met.flatten(2).mT
    if groups == 1:
        a_NTd = patches.reshape(met.shape[0], positions, -1)
        layout = (met.shape[1], *kernel, inputs)
        return Outer(fold(a_NTd, records, 1), fold(g_NTp, records, 1), layout).settled()
    dtype = wide(met.dtype)
    a_BTGd = fold(patches.reshape(met.shape[0], positions, -1, groups, inputs), records, 3)  # kernel, group, channel
    g_BTGp = fold(g_NTp.unflatten(2, (groups, -1)), records, 2)
    value = torch.einsum("btkgc,btgp->bgpck", a_BTGd.to(dtype), g_BTGp.to(dtype))
    return Sample(value.flatten(1, 2).unflatten(3, kernel))


def _patches(padded: Tensor, layer: nn.Module, positions: tuple[int, ...]) -> Tensor:
    """A view of every patch the kernel meets, (N, *positions, *kernel, C): channels last, so that copying is cheap."""
    space = padded.dim() - 2
    x = padded.movedim(1, -1).contiguous()
    step = x.stride()
    strides = [step[1 + i] * layer.stride[i] for i in range(space)]
    taps = [step[1 + i] * layer.dilation[i] for i in range(space)]
    return x.as_strided((x.shape[0], *positions, *layer.kernel_size, x.shape[-1]), (step[0], *strides, *taps, 1))


def embedding(layer: nn.Module, index: Tensor, grad: Tensor, records: int) -> Terms:
    """(N, ...) codes -> (N, ..., p). The row of ``padding_idx`` learns nothing."""
    if (weight := trainable(layer, "weight")) is not None:
        index_BT, g_BTp = fold(index, records, 0), fold(grad, records, 1)
        if layer.padding_idx is not None:
            g_BTp = g_BTp * (index_BT != layer.padding_idx)[:, :, None]
        yield weight, Lookup(index_BT, g_BTp, layer.num_embeddings)


def layer_norm(layer: nn.Module, x: Tensor, grad: Tensor, records: int) -> Terms:
    """(N, ..., *normalized shape)."""
    tail, dtype = len(layer.normalized_shape), wide(grad.dtype)
    g = fold(grad.to(dtype), records, tail)
    if (weight := trainable(layer, "weight")) is not None:
        normal = F.layer_norm(x.to(dtype), layer.normalized_shape, eps=layer.eps)
        yield weight, Sample((g * fold(normal, records, tail)).sum(1))
    if (bias := trainable(layer, "bias")) is not None:
        yield bias, Sample(g.sum(1))


def group_norm(layer: nn.Module, x: Tensor, grad: Tensor, records: int) -> Terms:
    """(N, C, *space)."""
    dtype = wide(grad.dtype)
    if (weight := trainable(layer, "weight")) is not None:
        normal = F.group_norm(x.to(dtype), layer.num_groups, eps=layer.eps)
        yield weight, _channel_sums((grad.to(dtype) * normal).unsqueeze(-1), records)
    if (bias := trainable(layer, "bias")) is not None:
        yield bias, _channel_sums(grad.unsqueeze(-1), records)


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: linear, nn.Conv1d: convolution, nn.Conv2d: convolution, nn.Conv3d: convolution,
    nn.ConvTranspose1d: transposed_convolution, nn.ConvTranspose2d: transposed_convolution,
    nn.ConvTranspose3d: transposed_convolution, nn.Embedding: embedding, nn.LayerNorm: layer_norm,
    nn.GroupNorm: group_norm,
}


def rule_of(layer: nn.Module) -> Rule | None:
    """The rule of a layer that computes what its class computes with its own ``weight`` and ``bias``; else ``None``."""
    names = {name for name, _ in layer.named_parameters()}
    for kind, rule in RULES.items():
        if isinstance(layer, kind) and type(layer).forward is kind.forward and names <= {"weight", "bias"}:
            return rule
    return None
