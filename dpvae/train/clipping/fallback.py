"""Layers without a rule: the gradient of every record is worked out, by Opacus' sampler or one record at a time.

Exact and slow. The whole subtree below such a layer is treated as one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn

from dpvae.errors import ConfigError
from dpvae.train.clipping.terms import Sample, Term, wide

if TYPE_CHECKING:
    from dpvae.train.clipping.recorder import Recorder


def fallback_forward(recorder: Recorder, layer: nn.Module) -> Callable[..., Any]:
    """A forward pass of ``layer`` after which Opacus' sampler books the gradient of every record."""
    plain = layer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return plain(*args, **kwargs)
        with parameters_as(layer, lambda p: p.detach()):
            out = plain(*args, **kwargs)
        if not isinstance(out, Tensor) or not any(isinstance(x, Tensor) for x in args):
            raise ConfigError(f"model: {type(layer).__name__} has no rule and does not map tensors to one tensor; "
                              "build it from layers that do, or performance.clipping=hooks")
        held = [x.detach() if isinstance(x, Tensor) else x for x in args]
        return recorder.watch(out, lambda grad: recorder.write(iter(
            _samples(layer, plain, held, kwargs, grad, recorder.records))))

    return forward


@contextmanager
def parameters_as(layer: nn.Module, change: Callable[[nn.Parameter], Any]) -> Iterator[None]:
    """``layer`` and all below it on changed parameters."""
    held = [(module, module._parameters) for module in layer.modules()]
    for module, parameters in held:
        module._parameters = {name: p if p is None else change(p) for name, p in parameters.items()}
    try:
        yield
    finally:
        for module, parameters in held:
            module._parameters = parameters


def _samples(layer: nn.Module, plain: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], grad: Tensor,
             records: int) -> list[tuple[nn.Parameter, Term]]:
    sampler = GradSampleModule.GRAD_SAMPLERS.get(type(layer))
    if sampler is not None and not kwargs and len(args) == 1:
        samples = {p: s for p, s in sampler(layer, args, grad).items() if p.requires_grad}
    else:
        samples = _one_by_one(layer, plain, args, kwargs, grad)
    return [(p, Sample(s.reshape(records, -1, *p.shape).sum(1, dtype=wide(p.dtype)))) for p, s in samples.items()]


def _one_by_one(layer: nn.Module, plain: Callable[..., Any], args: list[Any], kwargs: dict[str, Any],
                grad: Tensor) -> dict[nn.Parameter, Tensor]:
    """Gradients per row by ``vmap`` over every tensor argument: each must hold the records on its first dimension."""
    trained = [p for p in dict.fromkeys(layer.parameters()) if p.requires_grad]

    def inner(values: list[Tensor], rows: list[Any], grad_row: Tensor) -> Tensor:
        given = dict(zip(trained, values, strict=True))
        with parameters_as(layer, lambda p: given.get(p, p.detach())):
            out = plain(*[x[None] if isinstance(x, Tensor) else x for x in rows], **kwargs)
        return (out[0] * grad_row).sum()

    axes = [0 if isinstance(x, Tensor) else None for x in args]
    per_row = torch.func.vmap(torch.func.grad(inner), in_dims=(None, axes, 0))
    try:
        samples = per_row([p.detach() for p in trained], args, grad)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"model: {type(layer).__name__} has no rule and its gradient per record cannot be worked out "
                          f"({str(error).splitlines()[0]}); build it from nn.Linear, nn.Conv2d and the like") from None
    return dict(zip(trained, samples, strict=True))
