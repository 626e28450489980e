"""This machine: one process for one worker, else a pool of them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from dpvae.errors import RunError

_work: list[Callable[[Any], Any]] = []  # of a worker process: the function it was born with


def mapped(make: Callable[[], Callable[[Any], Any]], items: Sequence[Any], *, workers: int) -> Iterator[Any]:
    """See :func:`dpvae.engines.mapped`."""
    if workers == 1:
        work = make()
        yield from map(work, items)
        return
    fresh = multiprocessing.get_context("spawn")  # a fork of a process with torch's threads may hang
    pool = ProcessPoolExecutor(workers, mp_context=fresh, initializer=_begin, initargs=(make,))
    try:
        yield from pool.map(_do, items)
    except BrokenProcessPool:
        raise RunError(f"workers={workers}: a worker process was killed, perhaps for its memory; the same command goes "
                       "on where this one stopped, try workers=1") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(make: Callable[[], Callable[[Any], Any]]) -> None:
    _work.append(make())


def _do(item: Any) -> Any:
    return _work[0](item)
