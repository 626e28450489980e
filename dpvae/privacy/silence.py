"""A key whose noise is nothing: for runs with ``privacy=off``, which are stamped NOT PRIVATE and never released.

Masks and the order of the streams stay what they are, so that such a run shows what the noise alone costs.

>>> Silence(SecretKey.from_seed(0)).stream("anchor").normal(3).tolist()
[0.0, 0.0, 0.0]
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from dpvae.config import TrainConfig
from dpvae.privacy.noise import SecretKey, SecretStream


class Silence:
    """Stands in for a :class:`SecretKey`; every normal that it draws is zero."""

    def __init__(self, key: SecretKey) -> None:
        self._key = key

    def stream(self, *names: str | int) -> SecretStream:
        """The stream called ``names``, without its noise."""
        return cast(SecretStream, _Silent(self._key.stream(*names)))

    def tag(self, data: bytes) -> str:
        """As :meth:`SecretKey.tag`."""
        return self._key.tag(data)


class _Silent:
    def __init__(self, stream: SecretStream) -> None:
        self._stream = stream

    def normal(self, *shape: Any) -> np.ndarray[Any, Any]:
        return self._stream.normal(*shape) * 0.0 + 0.0  # no negative zeros

    def bulk_normal(self, size: int, **by: Any) -> Any:
        return self._stream.bulk_normal(size, **by) * 0.0 + 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def secrets_of(run: Any, config: TrainConfig) -> Any:
    """The key of ``run``, or a silent one where ``privacy=off``."""
    return run.key() if config.privacy.noise else Silence(run.key())
