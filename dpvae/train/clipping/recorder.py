"""A module whose layers record: what went in, and the gradient of what came out; no weight gradient is computed.

Every layer with trainable parameters is known by its rule, or taken over by Opacus' own sampler, or refused: no
parameter is ever forgotten. The layers run on detached parameters, so autograd works out input gradients only, and a
parameter that is used outside its layer betrays itself by a gradient and is refused.

>>> layer = nn.Linear(2, 1, bias=False)
>>> recorder = Recorder(layer)
>>> recorder(torch.tensor([[3.0, 4.0], [0.0, 1.0]])).sum().backward()
>>> recorder.squared_norms(), recorder.clipped_sums(torch.tensor([0.2, 1.0]))[layer.weight]
(tensor([25.,  1.]), tensor([[0.6000, 1.8000]]))
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from opacus.grad_sample import AbstractGradSampleModule
from opacus.layers.dp_rnn import DPRNNBase
from torch import Tensor, nn

from dpvae.errors import ConfigError
from dpvae.train.clipping.attention import attention_forward
from dpvae.train.clipping.fallback import fallback_forward
from dpvae.train.clipping.recurrent import gru_forward, swap_recurrent
from dpvae.train.clipping.rules import Rule, rule_of
from dpvae.train.clipping.terms import Term, join, tracing, wide

Forward = Callable[..., Any]


class Recorder(AbstractGradSampleModule):
    """``module`` with its layers recording; its own ``state_dict`` is untouched, that of the recorder carries Opacus'
    prefix ``_module.``.

    Args:
        module: every trainable parameter of it must be used through the layer that owns it.
        loss_reduction: ``sum``, or ``mean`` where the loss is divided by the number of records before ``backward``.
        batch_first: records lie on the first dimension; nothing else is supported.

    Raises :class:`ConfigError` for a layer that cannot be recorded.
    """

    def __init__(self, module: nn.Module, *, batch_first: bool = True, loss_reduction: str = "sum") -> None:
        if not batch_first:
            raise ConfigError("batch_first=False: expected records on the first dimension")
        super().__init__(module, batch_first=True, loss_reduction=loss_reduction)
        self.records = 0  # of the last forward pass
        self.told: int | None = None  # the number of records, where the first argument's length is not it
        self.book: dict[nn.Parameter, list[Term]] = defaultdict(list)
        self.parameters_ = [p for p in module.parameters() if p.requires_grad]
        self._tick = torch.zeros((), requires_grad=True)  # makes autograd visit the first layer too
        self._patched: list[nn.Module] = []
        self._swapped = swap_recurrent(module, keep=(nn.GRU,))
        self._take_over(module)
        self._outside = ""  # the name of a parameter that got a gradient of its own
        self._guards = [p.register_post_accumulate_grad_hook(partial(self._used_outside, name))
                        for name, p in module.named_parameters() if p.requires_grad]

    # -- recording ---------------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own forward pass; notes how many records there are."""
        first = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
        self.records = self.told if self.told is not None else len(first) if first is not None else 0
        return self._module(*args, **kwargs)

    def _take_over(self, module: nn.Module) -> None:
        taken: set[nn.Parameter] = set()
        for layer, forward in _layers(self, module):
            layer.forward = forward  # type: ignore[method-assign]
            self._patched.append(layer)
            taken |= set(layer.parameters())
        forgotten = [name for name, p in module.named_parameters() if p.requires_grad and p not in taken]
        if forgotten:
            raise ConfigError(f"model: no layer was found for the parameter {forgotten[0]}; "
                              "try performance.clipping=hooks")

    def watch(self, out: Tensor, write: Callable[[Tensor], None]) -> Tensor:
        """``out`` as part of the graph; ``write`` gets its gradient."""
        if not out.requires_grad:
            out = _Start.apply(out, self._tick)

        def hook(grad: Tensor) -> None:
            with torch.autocast(grad.device.type, enabled=False):
                write(grad.detach())

        out.register_hook(hook)
        return out

    def record(self, layer: nn.Module, rule: Rule, x: Tensor, version: int, grad: Tensor) -> None:
        """Book one call of ``layer``: what it was given, ``x``, and the gradient of what it gave back."""
        if x._version != version:
            raise ConfigError(f"model: {type(layer).__name__} was given a tensor that was changed in place afterwards; "
                              "its gradient would be wrong. Use an operation that makes a new tensor")
        self.write(rule(layer, x, grad, self.records))

    def write(self, terms: Iterator[tuple[nn.Parameter, Term]]) -> None:
        """Add what one layer says of its parameters."""
        if not self.records:
            return
        for parameter, term in terms:
            self.book[parameter].append(term)

    # -- what the book says ------------------------------------------------------------------------------------------

    def clip(self, factors: Callable[[Tensor], Tensor]) -> dict[nn.Parameter, Tensor]:
        """``sum_i c_i grad_i`` for each parameter, c = ``factors(norms)``; empties the book."""
        times = self.records if self.loss_reduction == "mean" else 1
        norms_B = self.squared_norms().sqrt() * times
        return self.clipped_sums(factors(norms_B) * times)

    def squared_norms(self) -> Tensor:
        """Squared norm of each record's gradient over all parameters, (B,)."""
        first = self.parameters_[0]
        total_B = torch.zeros(self.records, device=first.device, dtype=wide(first.dtype))
        for parameter, terms in self.book.items():
            self.book[parameter] = [term] = [join(terms)]
            total_B = total_B + term.squared_norms()
        return total_B

    def clipped_sums(self, factors_B: Tensor) -> dict[nn.Parameter, Tensor]:
        """``sum_i c_i grad_i`` for each parameter, zeros where none was recorded; empties the book.

        A factor of zero means: whatever the record's gradient is, NaN included, it adds nothing.
        """
        book, self.book = self.book, defaultdict(list)
        self._check_used_inside()
        keep_B = _keep(factors_B)
        sums = {}
        for parameter in self.parameters_:
            if parameter not in book:
                sums[parameter] = torch.zeros_like(parameter)
                continue
            term = join(book.pop(parameter))
            term = term if keep_B is None else term.cleaned(keep_B)
            sums[parameter] = term.clipped_sum(factors_B).reshape(parameter.shape).to(parameter.dtype)
        return sums

    def _used_outside(self, name: str, parameter: nn.Parameter) -> None:
        self._outside = name

    def _check_used_inside(self) -> None:
        if self._outside:
            raise ConfigError(f"model: the parameter {self._outside} was used outside the layer that owns it, where "
                              "its gradient per record cannot be seen; call the layer, or performance.clipping=hooks")

    def bytes_held(self) -> int:
        """What the book holds now."""
        parts = [part for terms in self.book.values() for term in terms for part in vars(term).values()]
        return sum(part.numel() * part.element_size() for part in parts if isinstance(part, Tensor))

    def remove_hooks(self) -> None:
        """Give the layers their own forward back."""
        for layer in self._patched:
            del layer.forward
        for guard in self._guards:
            guard.remove()
        for parent, name, original in self._swapped:
            setattr(parent, name, original)
        self._patched, self._swapped = [], []
        self.book.clear()


def _keep(factors_B: Tensor) -> Tensor | None:
    """Which records have a factor; ``None`` where all do and asking costs nothing, or where the caller asks later."""
    keep_B = factors_B > 0
    if factors_B.is_cpu and (tracing() or bool(keep_B.all())):
        return None
    return keep_B


def _layers(recorder: Recorder, module: nn.Module, seen: set[nn.Module] | None = None
            ) -> Iterator[tuple[nn.Module, Forward]]:
    """Every layer with trainable parameters, once, and the forward pass that records it."""
    seen = set() if seen is None else seen
    if module in seen or not any(p.requires_grad for p in module.parameters()):
        return
    seen.add(module)
    rule, own = rule_of(module), any(p.requires_grad for p in module.parameters(recurse=False))
    if rule is not None:
        yield module, partial(_recorded, recorder, module, rule, module.forward)
    elif isinstance(module, nn.GRU):
        yield module, gru_forward(recorder, module)
    elif isinstance(module, nn.MultiheadAttention):
        yield module, attention_forward(recorder, module)
        yield from _layers(recorder, module.out_proj, seen)
    elif own and not isinstance(module, DPRNNBase):  # which names the parameters of its cells a second time
        yield module, fallback_forward(recorder, module)
    else:
        for child in module.children():
            yield from _layers(recorder, child, seen)


def _recorded(recorder: Recorder, layer: nn.Module, rule: Rule, plain: Forward, x: Tensor, *args: Any) -> Tensor:
    """``layer``'s own forward pass on detached parameters."""
    if not torch.is_grad_enabled():
        return plain(x, *args)
    held = layer._parameters
    layer._parameters = {name: p if p is None else p.detach() for name, p in held.items()}
    try:
        out = plain(x, *args)
    finally:
        layer._parameters = held
    return recorder.watch(out, partial(recorder.record, layer, rule, x.detach(), x._version))


class _Start(torch.autograd.Function):
    """The same tensor, now with a gradient that is asked for."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, tick: Tensor) -> Tensor:
        ctx.mark_dirty(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        return None, None
