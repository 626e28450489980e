"""Ray Data: one actor per worker, which builds its function once; a GPU each where the cluster has them."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any


class Actor:
    """Holds the function; its batches are rows of pickled items with their places."""

    def __init__(self, make: bytes) -> None:
        self.work = pickle.loads(make)()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        done = [pickle.dumps(self.work(pickle.loads(item))) for item in batch["item"]]
        return {"place": batch["place"], "done": done}


def mapped(make: Callable[[], Callable[[Any], Any]], items: Sequence[Any], *, workers: int) -> Iterator[Any]:
    """See :func:`dpvae.engines.mapped`; joins the cluster that ``RAY_ADDRESS`` names, or starts one here."""
    import ray

    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # or Ray leaves a token in the home folder
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False,
                 **({} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers}))
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = [{"place": place, "item": pickle.dumps(item)} for place, item in enumerate(items)]
        gpus = ray.cluster_resources().get("GPU", 0) >= workers
        found = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Actor, fn_constructor_args=(pickle.dumps(make),), batch_size=1, num_gpus=1 if gpus else 0,
            compute=ray.data.ActorPoolStrategy(size=workers))
        waiting, following = {}, 0
        for row in found.iter_rows():
            waiting[row["place"]] = row["done"]
            while following in waiting:
                yield pickle.loads(waiting.pop(following))
                following += 1
    finally:
        if ours:
            ray.shutdown()
