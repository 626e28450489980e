"""The static part of a step as one compiled program: forward, input gradients, norms, factors, clipped sums.

The step is traced once with the recorder as it is (nothing depends on values while it is traced), and the trace is
compiled by torch's inductor. Shapes must stay what they were: batches are padded with rows of weight zero. What comes
back is one flat vector, ready for one draw of noise, and whether every record was finite: where one was not, its
zeroing is left to the same part without compiler. The arithmetic of the noise is the second program.

Shapes: N rows of a chunk, P parameters in all.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from dpvae.errors import DPVAEError
from dpvae.privacy.noise import BoxMuller, box_muller
from dpvae.train.clipping.recorder import Recorder

Part = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
Loss = Callable[[Any, Tensor, Tensor], Tensor]


def part_of(recorder: Recorder, loss: Loss, factors: Callable[[Tensor], Tensor]) -> Part:
    """(records (N, ...), latents (N, ...), weights (N,) zero or one) -> (flat clipped sum (P,), norms (N,))."""

    def part(records: Tensor, latents: Tensor, weights_N: Tensor) -> tuple[Tensor, Tensor]:
        recorder.told = len(records)
        loss(recorder, records, latents).sum().backward()
        norms_N = recorder.squared_norms().sqrt()
        sums = recorder.clipped_sums(factors(norms_N) * weights_N)
        return torch.cat([total.flatten() for total in sums.values()]), norms_N

    return part


def compiled(part: Part, example: tuple[Tensor, Tensor, Tensor]) -> Part:
    """``part`` for tensors like ``example``; ``part`` itself where there is no working compiler."""

    def program() -> Part:
        with torch.enable_grad():
            graph = make_fx(part)(*example)
        fast: Part = torch.compile(graph, mode="reduce-overhead" if example[0].is_cuda else None, dynamic=False)
        fast(*example)
        return fast

    return _made(program) or part


def compiled_box_muller() -> BoxMuller:
    """:func:`~dpvae.privacy.noise.box_muller` as one pass over the random words; itself where nothing compiles."""

    def program() -> Callable[[Tensor, Tensor], Tensor]:
        fast = torch.compile(_box_muller, dynamic=True)
        fast(torch.zeros(8, dtype=torch.int64), torch.zeros(8, dtype=torch.int32))
        return fast

    made = _made(program)
    if made is None:
        return box_muller
    return lambda words, turns: made(torch.from_numpy(words), torch.from_numpy(turns)).numpy()


def _box_muller(words: Tensor, turns: Tensor) -> Tensor:
    def cosine(turn: Tensor) -> Tensor:
        return ((2**30 - turn.abs()).float() * (2 * math.pi * 2.0**-32)).sin()

    uniform = (words & (2**63 - 1)).double() + 0.5
    radius = (2 * (63 * math.log(2) - uniform.log())).clamp_min(0).sqrt()
    return torch.stack([radius * cosine(turns), radius * cosine(turns - 2**30)]).flatten()


def _made(program: Callable[[], Callable[..., Any]]) -> Callable[..., Any] | None:
    """What ``program`` compiles; where there is no working compiler ``None``, and a line on the log.

    By then the budget is booked, and both ways give the same numbers: a slower run is better than none.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's own, about itself
            fast = program()
    except DPVAEError:
        raise
    except Exception as error:  # whatever a compiler, a linker or a driver may raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        logging.getLogger(__name__).warning(
            "performance.compile=true: this machine cannot compile the step (%s); going on without. Install a C++ "
            "compiler (g++) to have it faster", reason[:120])
        return None

    def run(*arguments: Tensor) -> Any:
        with torch.no_grad():
            return fast(*arguments)

    return run
