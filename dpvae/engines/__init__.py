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
from dataclasses import dataclass
from typing import Any

from dpvae.errors import ConfigError, DPVAEError, RunError

ENGINES = {"local": "local", "ray": "ray_data", "spark": "spark"}
FOREIGN = ("ray", "pyspark", "py4j")  # whose errors are no fault of the work
Make = Callable[[], Callable[[Any], Any]]


def mapped(make: Make, items: Sequence[Any], *, engine: str, workers: int | None) -> Iterator[Any]:
    """``make()(item)`` for each item, in order; ``workers``: how many at once, ``None`` for as many as there are CPUs.

    ``make`` and the items must pickle where they leave this process. Raises :class:`ConfigError` where the engine is
    not installed, :class:`RunError` where it fails, and what the work raises.
    """
    count = max(min(workers or len(os.sched_getaffinity(0)), len(items)), 1)
    module = importlib.import_module(f"dpvae.engines.{ENGINES[engine]}")
    try:
        for done in module.mapped(_Told(make), items, workers=count) if items else ():
            if isinstance(done, DPVAEError):
                raise done
            yield done
    except ModuleNotFoundError as error:
        if error.name not in FOREIGN:
            raise
        raise ConfigError(f"engine={engine}: {error.name} is not installed; pip install 'dpvae[{engine}]', or leave "
                          "engine=local") from None
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in FOREIGN:
            raise
        lines = [line for line in str(error).splitlines() if "Error" in line] or [type(error).__name__]
        raise RunError(f"engine={engine}: {lines[-1].strip()[:300]}; nothing was published, the same command goes on "
                       "with what was finished") from error


@dataclass(frozen=True)
class _Told:
    """The work, with what it raises on purpose as a result: an engine would bury it in its own words."""

    make: Make

    def __call__(self) -> Callable[[Any], Any]:
        work = self.make()

        def told(item: Any) -> Any:
            try:
                return work(item)
            except DPVAEError as error:
                return error

        return told
