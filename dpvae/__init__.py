"""dpvae: variational autoencoders under differential privacy, with a proof of what they spent.

Importing the package is free: each name below is loaded when it is first used, so that ``dpvae verify`` never waits
for torch.

>>> import dpvae
>>> "verify" in dir(dpvae)
True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpvae.api import DPVAE as DPVAE
    from dpvae.api import plan as plan
    from dpvae.api import release as release
    from dpvae.api import train as train
    from dpvae.audit.verify import verify as verify

__version__ = "0.1.0"

_HOMES = {"DPVAE": "dpvae.api", "plan": "dpvae.api", "train": "dpvae.api", "release": "dpvae.api",
          "verify": "dpvae.audit.verify"}

__all__ = ["DPVAE", "__version__", "plan", "release", "train", "verify"]


def __getattr__(name: str) -> Any:
    """The public names, loaded on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'dpvae' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
