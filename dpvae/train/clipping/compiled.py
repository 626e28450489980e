"""The static part of a step as one compiled program: forward, input gradients, norms, factors, clipped sums.

The step is traced once with the recorder as it is (nothing depends on values while it is traced), and the trace is
compiled by torch's inductor. On a CPU the number of rows is a symbol while it is traced, so that one program takes
batches of any size. On a GPU, where graphs are replayed, and for a model that asks Python how many rows it has, shapes
must stay what they were: batches are padded with rows of weight zero. What comes back is one flat vector, ready for one
draw of noise, and which records were finite: where one was not, its zeroing is left to the same part without compiler.
The arithmetic of the noise is a second program (:mod:`dpvae.privacy.native`).

Shapes: N rows of a chunk, P parameters in all.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from dpvae.errors import DPVAEError
from dpvae.privacy.native import NativeNoise
from dpvae.train.clipping.recorder import Recorder
from dpvae.train.independence import Loss
from dpvae.train.sampling import Padding

Chunk = tuple[Tensor, Tensor, Tensor]
Part = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
Made = TypeVar("Made")
PROGRAMS = 4  # at most, for sizes that one cannot all take; what is left goes without
SMALLEST = 2  # rows that a symbol stands for


def part_of(recorder: Recorder, loss: Loss, factors: Callable[[Tensor], Tensor]) -> Part:
    """(records (N, ...), latents (N, ...), weights (N,) zero or one) -> (flat clipped sum (P,), who is finite (N,))."""

    def part(records: Tensor, latents: Tensor, weights_N: Tensor) -> tuple[Tensor, Tensor]:
        recorder.told = recorder.records = records.shape[0]
        if recorder.told:
            loss(recorder, records, latents).sum().backward()
        norms_N = recorder.squared_norms().sqrt()
        sums = recorder.clipped_sums(factors(norms_N) * weights_N)
        return torch.cat([total.flatten() for total in sums.values()]), norms_N.isfinite()

    return part


class Compiled:
    """``part``, compiled for tensors like ``like``: for any number of rows, or (``padded``) for those of ``padding``.

    ``part`` itself takes over where nothing compiles, and for what a program would not be right for.
    """

    def __init__(self, part: Part, like: Chunk, padding: Padding) -> None:
        self.part, self.padding = part, padding
        self.padded = like[0].is_cuda
        self._programs: list[tuple[Callable[[int], bool], Part]] = []
        self._add(like)
        self.padded = self.padded or not any(self._for(like[0].shape[0] + more) for more in (-1, 1))

    def __call__(self, records: Tensor, latents: Tensor, weights_N: Tensor) -> tuple[Tensor, Tensor]:
        """As :func:`part_of` says."""
        rows = records.shape[0]
        program = self._for(rows)
        if program is None and len(self._programs) < PROGRAMS and rows >= SMALLEST:
            self._add((records, latents, weights_N))
            program = self._for(rows)
        return (program or self.part)(records, latents, weights_N)

    def _for(self, rows: int) -> Part | None:
        return next((program for takes, program in self._programs if takes(rows)), None)

    def _add(self, like: Chunk) -> None:
        make = _cuda_program if like[0].is_cuda else _cpu_program
        self._programs.append(_made(lambda: make(self.part, like)) or (lambda rows: True, self.part))


def _cuda_program(part: Part, like: Chunk) -> tuple[Callable[[int], bool], Part]:
    """For as many rows as ``like`` has."""
    with torch.enable_grad():
        graph = make_fx(part)(*like)
    for node in graph.graph.nodes:
        node.meta.pop("val", None)
    fast: Part = torch.compile(graph, mode="reduce-overhead", dynamic=False)
    fast(*like)
    return like[0].shape[0].__eq__, kept(torch.no_grad()(fast))


def kept(program: Part) -> Part:
    """``program`` with results of its own: a CUDA graph writes each over the last, a batch may be several chunks."""

    def copied(*chunk: Tensor) -> tuple[Tensor, Tensor]:
        flat, finite_N = program(*chunk)
        return flat.clone(), finite_N.clone()

    return copied


def _cpu_program(part: Part, like: Chunk) -> tuple[Callable[[int], bool], Part]:
    """(which numbers of rows it takes, the program): all that the trace and the compiler did not depend on."""
    from torch._dynamo.source import ConstantSource  # seconds of import, for who compiles

    shapes = ShapeEnv()
    fakes = FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True)
    symbolic = tuple(fakes.from_tensor(tensor, symbolic_context=_rows_are_a_symbol(tensor), source=ConstantSource(name))
                     for name, tensor in zip(("records", "latents", "weights"), like, strict=True))
    rows = symbolic[0].shape[0].node.expr

    def built(**options: Any) -> Part:  # without Dynamo's guards: whom a program takes is asked below
        with torch.enable_grad(), fakes, enable_python_dispatcher():
            graph = make_fx(part)(*symbolic)
        with torch._functorch.config.patch(enable_autograd_cache=False):  # it cannot name such a graph, and says so
            fast: Part = torch.no_grad()(torch._inductor.compile(graph, list(symbolic), options=options))
        fast(*like)
        return fast

    try:
        program = built(cpp_wrapper=True)  # nothing between two kernels is Python
    except Exception:  # an operation that inductor calls from Python only
        program = built()
    guards = [guard.expr for guard in shapes.guards]
    # sympy's truth, and not what it leaves open
    return lambda n: n >= SMALLEST and all(guard.subs(rows, n) == True for guard in guards), program  # noqa: E712


def _rows_are_a_symbol(tensor: Tensor) -> StatelessSymbolicContext[Any, Any]:
    return StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DUCK] + [DimDynamic.STATIC] * (tensor.dim() - 1))


def native_noise(*, asked: bool) -> NativeNoise | None:
    """The arithmetic of the noise as one compiled program; ``None`` where nothing compiles, which is told who asked."""
    return _made(NativeNoise, asked=asked)


def _made(program: Callable[[], Made], *, asked: bool = True) -> Made | None:
    """What ``program`` compiles; where there is no working compiler ``None``, and a line on the log for who ``asked``.

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
        level = logging.WARNING if asked else logging.DEBUG
        logging.getLogger(__name__).log(
            level, "performance.compile=true: this machine cannot compile the step (%s); going on without. Install a "
            "C++ compiler (g++) to have it faster", reason[:120])
        return None
