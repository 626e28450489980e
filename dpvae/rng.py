"""Public randomness: named streams from one public seed.

Initialisation, anchor fitting and decoding may be reproduced by anyone, so their seed is public. What protects
people (noise, sampling masks) never comes from here: see :mod:`dpvae.privacy.noise`.

>>> int(stream(7, "init").integers(1000)) == int(stream(7, "init").integers(1000))
True
>>> int(stream(7, "init").integers(10**9)) == int(stream(7, "decode").integers(10**9))
False
"""

from __future__ import annotations

import hashlib

import numpy as np


def seed_of(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream called ``names``; a function of its arguments alone."""
    text = "/".join(["dpvae", str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """A numpy generator for the stream called ``names`` of the public ``seed``."""
    return np.random.Generator(np.random.Philox(seed_of(seed, *names)))
