"""How many records fit in memory at once.

Counted on random records, before any private one is touched: what a forward pass leaves behind for each, with room for
the backward pass. The number is a power of two, so that a run that is resumed on the same machine cuts its batches the
same way; the numbers that come out do not depend on it beyond rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpvae import memory

SHARE = 0.25  # of the memory that is free
MOST = 4096  # more at once is no faster on a CPU: what a layer puts out leaves the cache
MOST_CUDA = 65536


def free_bytes(device: torch.device) -> int:
    """Memory that can be had now."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else memory.free()


def records_at_once(bytes_per_record: float, device: torch.device) -> int:
    """The largest power of two whose records take at most a quarter of the free memory, at least 8."""
    most = MOST_CUDA if device.type == "cuda" else MOST
    size = 8
    while 2 * size <= most and 2 * size * bytes_per_record <= SHARE * free_bytes(device):
        size *= 2
    return size


class Footprint(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that a forward pass keeps for its backward pass."""

    def __init__(self) -> None:
        self.bytes = 0
        super().__init__(self._count, lambda x: x)

    def __enter__(self) -> Footprint:
        super().__enter__()
        return self

    def _count(self, x: Tensor) -> Tensor:
        self.bytes += x.numel() * x.element_size()
        return x
