"""dpvae: variational autoencoders under differential privacy, with a proof of what they spent.

Importing the package is free: each name below is loaded when it is first used, so that ``dpvae verify`` never waits
for torch. Two verbs share their name with a subpackage: ``dpvae.train`` and ``dpvae.release`` are both, whatever has
been imported before.

>>> import dpvae
>>> "verify" in dir(dpvae)
True
>>> import dpvae.release.bundle
>>> callable(dpvae.release)
True
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpvae.api import plan as plan
    from dpvae.api import release as release
    from dpvae.api import train as train
    from dpvae.audit.verify import verify as verify
    from dpvae.estimator import DPVAE as DPVAE

__version__ = "0.1.0"

_HOMES = {"DPVAE": "dpvae.estimator", "plan": "dpvae.api", "train": "dpvae.api", "release": "dpvae.api",
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


class _Verb(ModuleType):
    """A subpackage that can be called like the verb of its name."""

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        name = self.__name__.rpartition(".")[2]
        return getattr(importlib.import_module(_HOMES[name]), name)(*arguments, **keywords)


class _Package(ModuleType):
    """This package: importing a subpackage binds it here, where it must not hide the verb of its name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOMES and isinstance(value, ModuleType):
            value.__class__ = _Verb
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
