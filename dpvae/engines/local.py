"""This machine: this process is one of the workers, the others are processes of their own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from dpvae import memory
from dpvae.errors import RunError

_work: list[Callable[[Any], Any]] = []  # of a worker process: the function it was born with


def mapped(make: Callable[[], Callable[[Any], Any]], items: Sequence[Any], *, workers: int) -> Iterator[Any]:
    """See :func:`dpvae.engines.mapped`."""
    work = make()
    if workers == 1:
        yield from map(work, items)
        return
    fresh = multiprocessing.get_context("spawn")  # a fork of a process with torch's threads may hang
    pool = ProcessPoolExecutor(workers - 1, mp_context=fresh, initializer=_begin, initargs=(make,))
    try:
        away = {place: pool.submit(_do, item) for place, item in enumerate(items) if place % workers}
        for place, item in enumerate(items):
            yield away.pop(place).result() if place in away else work(item)
    except BrokenProcessPool:
        raise RunError(f"workers={workers}: a worker process was killed, perhaps for its memory; the same command goes "
                       "on where this one stopped, try workers=1") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(make: Callable[[], Callable[[Any], Any]]) -> None:
    memory.spare()
    _work.append(make())


def _do(item: Any) -> Any:
    return _work[0](item)
