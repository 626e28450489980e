"""Where tensors live: ``auto`` takes a GPU where there is one."""

from __future__ import annotations

import torch

from dpvae.errors import ConfigError


def device_of(wanted: str) -> torch.device:
    """The device of ``auto``, ``cpu`` or ``cuda``; :class:`ConfigError` where there is none."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("performance.device='cuda': no CUDA device is available here; try performance.device=auto")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")
