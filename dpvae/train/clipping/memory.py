"""How many records fit in memory at once.

Counted on random records, before any private one is touched: what a forward pass leaves behind for each, with room for
the backward pass. The number is a power of two, so that a run that is resumed on the same machine cuts its batches the
same way; the numbers that come out do not depend on it beyond rounding.
"""

from __future__ import annotations

import ctypes
import os

import torch
from torch import Tensor

SHARE = 0.25  # of the memory that is free
MOST = 4096  # more at once is no faster on a CPU: what a layer puts out leaves the cache
MOST_CUDA = 65536
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # malloc.h


def free_bytes(device: torch.device) -> int:
    """Memory that can be had now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as file:
            line = next(line for line in file if line.startswith("MemAvailable"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


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


def keep_pages(keep: bool) -> None:
    """Tell glibc to hold on to freed memory between steps, or to behave as usual again and give it back.

    By default every large tensor is mapped and unmapped by the kernel, and clearing its pages costs two to four times
    the arithmetic on it. No environment variable, no effect after training; where there is no glibc, nothing happens.
    """
    try:
        glibc = ctypes.CDLL(None)
        options = (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 << 20)
        usual = (_MMAP_MAX, 65536), (_TRIM_THRESHOLD, 128 << 10), (_TOP_PAD, 0)
        for option, value in options if keep else usual:
            glibc.mallopt(option, value)
        if not keep:
            glibc.malloc_trim(0)
    except (OSError, AttributeError):
        return
