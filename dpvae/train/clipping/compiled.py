"""The static part of a step as one compiled program: forward, input gradients, norms, factors, clipped sums.

The step is traced once with the recorder as it is (nothing depends on values while it is traced), and the trace is
compiled by torch's inductor. Shapes must stay what they were: batches are padded with rows of weight zero. What comes
back is one flat vector, ready for one draw of noise, and which records were finite: where one was not, its zeroing is
left to the same part without compiler. The arithmetic of the noise is a second program (:mod:`dpvae.privacy.native`).

Shapes: N rows of a chunk, P parameters in all.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from dpvae.errors import DPVAEError
from dpvae.privacy.native import NativeNoise
from dpvae.train.clipping.recorder import Recorder

Part = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
Loss = Callable[[Any, Tensor, Tensor], Tensor]
Made = TypeVar("Made")


def part_of(recorder: Recorder, loss: Loss, factors: Callable[[Tensor], Tensor]) -> Part:
    """(records (N, ...), latents (N, ...), weights (N,) zero or one) -> (flat clipped sum (P,), who is finite (N,))."""

    def part(records: Tensor, latents: Tensor, weights_N: Tensor) -> tuple[Tensor, Tensor]:
        recorder.told = len(records)
        loss(recorder, records, latents).sum().backward()
        norms_N = recorder.squared_norms().sqrt()
        sums = recorder.clipped_sums(factors(norms_N) * weights_N)
        return torch.cat([total.flatten() for total in sums.values()]), norms_N.isfinite()

    return part


def compiled(part: Part, example: tuple[Tensor, Tensor, Tensor]) -> Part:
    """``part`` for tensors like ``example``; ``part`` itself where there is no working compiler."""

    def traced() -> GraphModule:
        with torch.enable_grad():
            graph = make_fx(part)(*example)
        for node in graph.graph.nodes:
            node.meta.pop("val", None)
        return graph

    def built(**options: Any) -> Part:  # shapes cannot change, so without Dynamo's guards
        fast: Part = torch._inductor.compile(traced(), list(example), options=options)
        fast(*example)
        return fast

    def program() -> Part:
        if example[0].is_cuda:
            fast: Part = torch.compile(traced(), mode="reduce-overhead", dynamic=False)
            fast(*example)
            return kept(fast)
        try:
            return built(cpp_wrapper=True)  # nothing between two kernels is Python
        except Exception:  # an operation that inductor calls from Python only
            return built()

    fast = _made(program)
    return part if fast is None else torch.no_grad()(fast)


def kept(program: Part) -> Part:
    """``program`` with results of its own: a CUDA graph writes each over the last, a batch may be several chunks."""

    def copied(*chunk: Tensor) -> tuple[Tensor, Tensor]:
        flat, finite_N = program(*chunk)
        return flat.clone(), finite_N.clone()

    return copied


def native_noise() -> NativeNoise | None:
    """The arithmetic of the noise as one compiled program; ``None`` where nothing compiles."""
    return _made(NativeNoise)


def _made(program: Callable[[], Made]) -> Made | None:
    """What ``program`` compiles; where there is no working compiler ``None``, and a line on the log.

    By then the budget is booked, and both ways give the same numbers: a slower run is better than none.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's own, about itself
            return program()
    except DPVAEError:
        raise
    except Exception as error:  # whatever a compiler, a linker or a driver may raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        logging.getLogger(__name__).warning(
            "performance.compile=true: this machine cannot compile the step (%s); going on without. Install a C++ "
            "compiler (g++) to have it faster", reason[:120])
        return None
