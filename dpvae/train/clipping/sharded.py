"""Ghost clipping over torch's FSDP2: gradients and optimiser state of a model lie in pieces over several processes.

``module`` itself stays whole in every process, since the rest of a run reads whole weights (averages, noisy ELBO, the
encoder's sleep, checkpoints). Training works on a copy cut layer by layer by ``fully_shard``: a pass collects a layer's
weights while it needs them, and each process gets its piece of the sum of all clipped gradients. The pieces are put
together again after every update.

Whatever is exchanged, all processes exchange it together: equally many passes over equally many parts, empty ones too,
and a record that is not finite in one process sends all of them through the pass again.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping_fsdp import GradSampleModuleFastGradientClippingFSDP
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from dpvae.errors import ConfigError
from dpvae.train.clipping.ghost import TwoPasses
from dpvae.train.parallel import Processes


class Sharded(TwoPasses, GradSampleModuleFastGradientClippingFSDP):
    """A copy of ``module``, cut; its ``trainable_parameters`` are the pieces, in the order of ``module``'s own.

    Raises :class:`ConfigError` for a layer that Opacus' sharded mode does not know.
    """

    def __init__(self, module: nn.Module, processes: Processes, *, clip_norm: float) -> None:
        _refuse_unknown(module)
        pieces = copy.deepcopy(module)
        mesh = init_device_mesh(next(module.parameters()).device.type, (processes.size,))
        for layer in pieces.modules():
            if any(True for _ in layer.parameters(recurse=False)):
                fully_shard(layer, mesh=mesh)
        if not isinstance(pieces, FSDPModule):
            fully_shard(pieces, mesh=mesh)
        super().__init__(pieces, batch_first=True, loss_reduction="sum", max_grad_norm=clip_norm)
        self.processes, self.sharers = processes, processes.size

    def all_finite(self) -> bool:
        """Whether every record of the pass is, in all processes."""
        return not self.processes.sum([(~self.finite_B).sum()])[0]

    @torch.no_grad()
    def gather(self, into: Sequence[Tensor]) -> None:
        """Copy the pieces, put together, into whole tensors."""
        for tensor, piece in zip(into, self.trainable_parameters, strict=True):
            tensor.copy_(whole(piece))


def whole(value: Any) -> Any:
    """A tensor in pieces put together, in all processes at once; anything else as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def cut(value: Tensor, like: Tensor) -> Tensor:
    """This process's piece of ``value``, which all processes hold, where ``like`` lies in pieces; else ``value``."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _refuse_unknown(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if any(True for _ in layer.parameters(recurse=False)) and not isinstance(layer, nn.Linear):
            raise ConfigError(f"performance.sharding=fsdp: {name or 'the model'} is {type(layer).__name__}; expected "
                              "layers of nn.Linear, each called once in a pass; try performance.sharding=none")
