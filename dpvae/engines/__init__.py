"""Where the work is done: in this process, in several, on Ray or on Spark; what is done is one pure function.

A job is a list of small items (the number of a part to draw, a file to score) and a function of one item. ``make``
builds that function once per worker, model and all, and is what travels; results come back in the order of the items.
Since an item carries all that its result depends on, the bytes are the same for any engine and any number of workers.

>>> list(mapped(lambda: abs, [-2, 3], engine="local", workers=1))
[2, 3]
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dpvae.errors import ConfigError

ENGINES = {"local": "local", "ray": "ray_data", "spark": "spark"}
Make = Callable[[], Callable[[Any], Any]]


def mapped(make: Make, items: Sequence[Any], *, engine: str, workers: int | None) -> Iterator[Any]:
    """``make()(item)`` for each item, in order; ``workers``: how many at once, ``None`` for as many as there are CPUs.

    ``make`` and the items must pickle where they leave this process. Raises :class:`ConfigError` where the engine is
    not installed.
    """
    count = max(min(workers or len(os.sched_getaffinity(0)), len(items)), 1)
    module = importlib.import_module(f"dpvae.engines.{ENGINES[engine]}")
    try:
        yield from module.mapped(make, items, workers=count)
    except ModuleNotFoundError as error:
        if error.name not in ("ray", "pyspark"):
            raise
        raise ConfigError(f"engine={engine}: {error.name} is not installed; pip install 'dpvae[{engine}]', or leave "
                          "engine=local") from None
