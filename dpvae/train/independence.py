"""Does every record stand alone? Asked of a model and its loss before training, on random data.

DP-SGD bounds what one record adds to the sum of clipped gradients; that is only true where no record reaches into the
gradient of another. A layer that mixes the batch (BatchNorm) or a loss that does (contrastive, total correlation, a
batch mean) breaks the bound, and nothing in a training run would show it. So: draw random records, change one, and
see that no other record's loss and no other record's clipped gradient moves. No private row is looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dpvae.errors import ConfigError
from dpvae.train.clipping.recorder import Recorder

RECORDS = 5  # a prime: a tensor that all records share is unlikely to have a multiple of it as its length
TOLERANCE = 1e-3  # of a loss or of a clipped gradient: far above single-precision rounding, far below any coupling

Loss = Callable[[Any, Tensor, Tensor], Tensor]

MIXING = (nn.modules.batchnorm._BatchNorm,)


def refuse_mixing_layers(module: nn.Module) -> None:
    """Raise :class:`ConfigError` for a layer that computes statistics over the batch, by name."""
    for name, layer in module.named_modules():
        tracks = isinstance(layer, nn.modules.instancenorm._InstanceNorm) and layer.track_running_stats
        if isinstance(layer, MIXING) or tracks:
            raise ConfigError(f"model: {name or 'the model'} is {type(layer).__name__}, which mixes the records of "
                              "a batch; expected layers that treat each record alone, such as nn.GroupNorm")
        if isinstance(layer, nn.Embedding) and (layer.scale_grad_by_freq or layer.max_norm is not None):
            raise ConfigError(f"model: {name} is nn.Embedding with scale_grad_by_freq or max_norm, which depend on the "
                              "whole batch; expected neither")


@dataclass(frozen=True)
class _Pass:
    """What every record has for itself after one pass: loss (B,), norm (B,), and a sum of clipped gradients."""

    losses_B: Tensor
    norms_B: Tensor
    others: Tensor


def check_independence(module: nn.Module, loss: Loss, records: Tensor, latents: Tensor) -> None:
    """Raise :class:`ConfigError` where one record moves another's loss or clipped gradient.

    Args:
        module: as training will use it: a :class:`Recorder`, or a sampler of Opacus.
        loss: (module, records, latents) -> one loss per record, (B,).
        records: random ones (at least three; the last replaces one), public: never rows of the data.
        latents: the random numbers each record gets, (B, ...).
    """
    inner = module._module if hasattr(module, "_module") else module
    versions = {name: (buffer, buffer._version) for name, buffer in inner.named_buffers()}
    newcomer = len(records) - 1
    for j in range(newcomer):
        everybody = torch.arange(newcomer)
        replaced, rest = everybody.clone(), everybody[everybody != j]
        replaced[j] = newcomer
        full = _one_pass(module, loss, records[:newcomer], latents[:newcomer], j)
        changes = [(replaced, "changing one record"), (rest, "leaving one record out")]
        for rows, what in [(everybody, "asking a second time"), *changes] if j == 0 else changes:
            again = _one_pass(module, loss, records[rows], latents[rows], j if len(rows) == newcomer else None)
            _check_same(full, again, rest, what)
    for name, (buffer, version) in versions.items():
        if buffer._version != version:
            raise ConfigError(f"model: the buffer {name} changes with the records it sees; what it learns from them "
                              "is not clipped, noised or charged")


def _one_pass(module: nn.Module, loss: Loss, records: Tensor, latents: Tensor, left_out: int | None) -> _Pass:
    """One pass; the clipped gradients of all records but ``left_out`` are summed."""
    weights_B = torch.ones(len(records), device=records.device)
    if left_out is not None:
        weights_B[left_out] = 0
    if isinstance(module, Recorder):
        module.told = len(records)
        losses_B = _per_record(loss(module, records, latents), len(records))
        losses_B.sum().backward()
        norms_B = module.squared_norms().sqrt()
        sums = module.clipped_sums(torch.where(torch.isfinite(norms_B), weights_B / (norms_B + 0.01), 0.0))
        return _Pass(losses_B.detach(), norms_B, torch.cat([total.flatten() for total in sums.values()]))
    module.disable_hooks()
    losses_B = _per_record(loss(module, records, latents), len(records))
    trained = [p for p in module.parameters() if p.requires_grad]
    grads = torch.autograd.grad(weights_B @ losses_B, trained, allow_unused=True)
    module.enable_hooks()
    flat = torch.cat([g.flatten() for g in grads if g is not None])
    norm = flat.norm()  # of all others together: Opacus has its own way of telling them apart
    return _Pass(losses_B.detach(), norm.expand(len(records)), flat / (norm + 0.01))


def _per_record(losses: Tensor, records: int) -> Tensor:
    if losses.shape != (records,):
        raise ConfigError(f"loss: got shape {tuple(losses.shape)} for {records} records; expected one loss per record, "
                          f"({records},)")
    return losses


def _check_same(full: _Pass, again: _Pass, rest: Tensor, what: str) -> None:
    """Raise where something of the records ``rest`` is not what it was."""
    rows = rest if len(again.losses_B) == len(full.losses_B) else slice(None)
    moved = [name for name, one, other in (("loss", full.losses_B[rest], again.losses_B[rows]),
                                           ("gradient", full.norms_B[rest], again.norms_B[rows]))
             if not torch.allclose(one, other, rtol=TOLERANCE, atol=1e-6, equal_nan=True)]
    if not moved and float((full.others - again.others).norm()) > TOLERANCE * len(rest):
        moved = ["clipped gradient"]
    if moved and what == "asking a second time":
        raise ConfigError("model: the same records gave another loss the second time; expected randomness from the "
                          "latents that every record is given (dropout draws its own: leave it out)")
    if moved:
        raise ConfigError(f"model: {what} moved the {moved[0]} of others, so no clip bounds what a record adds; "
                          "expected a loss of each record alone and layers that do not mix the records of a batch")
