"""``nn.MultiheadAttention``, whose projections are not layers: its parameters are used inside a function.

The same mathematics (Vaswani et al. 2017, eq. 1, as torch lays it out) with every projection recorded. Where query,
key and value are one tensor, their projections are one.

Shapes: B records, T positions, E embedding, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpvae.errors import ConfigError
from dpvae.train.clipping.rules import fold, summed
from dpvae.train.clipping.terms import Outer, Term

if TYPE_CHECKING:
    from dpvae.train.clipping.recorder import Recorder


def attention_forward(recorder: Recorder, layer: nn.MultiheadAttention) -> Callable[..., Any]:
    """A forward pass of ``layer`` that books its projections; ``out_proj`` is recorded like any linear layer."""
    if layer.bias_k is not None or layer.add_zero_attn or not layer._qkv_same_embed_dim or not layer.batch_first:
        raise ConfigError("model: nn.MultiheadAttention with bias_k, zero attention, other widths of key and value, or "
                          "batch_first=False; expected none of them, and batch_first=True")
    plain = layer.forward
    def forward(query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
                need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
                is_causal: bool = False) -> tuple[Tensor, Tensor | None]:
        if not torch.is_grad_enabled():
            return plain(query, key, value, key_padding_mask, need_weights, attn_mask,  # type: ignore[no-any-return]
                         average_attn_weights, is_causal)
        q, k, v = _projected(recorder, layer, query, key, value)
        q, k, v = (x.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        mask = _mask(q, attn_mask, key_padding_mask, layer.num_heads)
        weights = None
        if need_weights:
            scores = q @ k.mT / math.sqrt(q.shape[-1])
            weights = (scores if mask is None else scores + mask).softmax(-1)
            out = F.dropout(weights, layer.dropout, layer.training) @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            out = F.scaled_dot_product_attention(q, k, v, mask, layer.dropout if layer.training else 0.0)
        return layer.out_proj(out.transpose(1, 2).flatten(2)), weights

    return forward


def _mask(q_BHTE: Tensor, attn_mask: Tensor | None, padding_BT: Tensor | None, heads: int) -> Tensor | None:
    """Both masks as one that is added to the scores; ``attn_mask`` is (T, T) or (B H, T, T)."""
    if attn_mask is not None and attn_mask.dim() == 3:
        attn_mask = attn_mask.unflatten(0, (-1, heads))
    masks = [attn_mask, None if padding_BT is None else padding_BT[:, None, None, :]]
    added = [torch.zeros_like(m, dtype=q_BHTE.dtype).masked_fill(m, -math.inf) if m.dtype == torch.bool else m
             for m in masks if m is not None]
    return None if not added else added[0] if len(added) == 1 else added[0] + added[1]


def _projected(recorder: Recorder, layer: nn.MultiheadAttention, query: Tensor, key: Tensor,
               value: Tensor) -> tuple[Tensor, ...]:
    """Query, key and value projections, each (B, T, E)."""
    if query is key and key is value:
        return _linear(recorder, layer, query, (0, 3)).chunk(3, -1)
    if key is value:
        return (_linear(recorder, layer, query, (0, 1)), *_linear(recorder, layer, key, (1, 3)).chunk(2, -1))
    return tuple(_linear(recorder, layer, x, (i, i + 1)) for i, x in enumerate((query, key, value)))


def _linear(recorder: Recorder, layer: nn.MultiheadAttention, x: Tensor, part: tuple[int, int]) -> Tensor:
    """The rows ``part`` (in units of E) of ``in_proj_weight``, applied and booked."""
    rows = slice(part[0] * layer.embed_dim, part[1] * layer.embed_dim)
    weight, bias = layer.in_proj_weight, layer.in_proj_bias
    out = F.linear(x, weight.detach()[rows], None if bias is None else bias.detach()[rows])
    held, version = x.detach(), x._version

    def rule(_: nn.Module, x: Tensor, grad: Tensor, records: int) -> Iterator[tuple[nn.Parameter, Term]]:
        around = (rows.start, 3 * layer.embed_dim - rows.stop)
        g_BTp = fold(F.pad(grad, around) if any(around) else grad, records, 1)
        if weight.requires_grad:
            yield weight, Outer(fold(x, records, 1), g_BTp).settled()
        if bias is not None and bias.requires_grad:
            yield bias, summed(g_BTp)

    return recorder.watch(out, lambda grad: recorder.record(layer, rule, held, version, grad))
