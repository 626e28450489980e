"""One training by several processes: ``torchrun --nproc-per-node N -m dpvae train ...``.

Every process does the same, but of each batch it takes its own share of the records; once a step the clipped sums are
added up over all processes. Masks, latents and noise come from one key, so the batch is the Poisson batch of one
process, the divisor is the public one, and the noise is the one draw that was priced: plan, epsilon and parameters (up
to the order of sums) are those of a single process. Every process takes part in every step's sum, whether its share of
the batch is empty or not. The first process alone writes: run folder, ledger, report.

>>> together() is None  # not under torchrun
True
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Processes:
    """This process among those that train together."""

    rank: int
    size: int

    @property
    def first(self) -> bool:
        """Whether this one books, writes and reports."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Which of ``count`` records are this process's."""
        return slice(self.rank, count, self.size)

    def sum(self, values: list[Tensor]) -> list[Tensor]:
        """The element-wise sum over all processes, in one exchange."""
        flat = torch.cat([value.flatten() for value in values])
        torch.distributed.all_reduce(flat, op=torch.distributed.ReduceOp.SUM)
        parts = flat.split([value.numel() for value in values])
        return [part.view_as(value) for part, value in zip(parts, values, strict=True)]

    def same(self, module: nn.Module) -> None:
        """Everybody's parameters become the first process's."""
        with torch.no_grad():
            for value in (*module.parameters(), *module.buffers()):
                torch.distributed.broadcast(value.data, 0)

    def tell(self, message: Any = None) -> Any:
        """What the first process says, to all."""
        box = [message]
        torch.distributed.broadcast_object_list(box, 0)
        return box[0]

    def wait(self) -> None:
        """Until everybody is here."""
        torch.distributed.barrier()


@contextmanager
def announcing(processes: Processes | None) -> Iterator[Callable[..., None]]:
    """How the first process tells the others what to do: ``say(what, path, content)``, once; ``stop`` where it never
    comes to that. Alone, saying does nothing."""
    said: list[str] = []

    def say(what: str, path: Any = None, content: bytes = b"") -> None:
        said.append(what)
        if processes is not None:
            processes.tell((what, path, content))

    try:
        yield say
    finally:
        if not said:
            say("stop")


def launched() -> bool:
    """Whether ``torchrun`` started this process beside others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def together() -> Processes | None:
    """The processes that ``torchrun`` started, joined; ``None`` for one alone."""
    if not launched():
        return None
    if not torch.distributed.is_initialized():
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    return Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())


def leave() -> None:
    """End the exchange, where there was one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
