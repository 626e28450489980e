"""The laboratory: the real program, with its randomness scripted and every release observed.

Nothing in dpvae knows that it may be watched: there is no hook to leave open. For as long as a :class:`Laboratory`
is open, in a process that holds made-up rows only, it stands between the program and three things:

* ``SecretKey.stream``: every secret draw is logged by name and may be scripted: silent noise, forced batches, and coins
  that stay with their record when another one is added, so that two runs on neighbouring tables share their secrets;
* the one-shot mechanisms (every function of ``privacy/mechanisms.py`` that takes a secret stream, wherever it was
  imported to): what went in, what came out; an earlier run's releases can be put in its place;
* the optimiser's step inside ``PrivateSteps.step``: the gradient it is handed is what DP-SGD releases, whatever the
  code before it says of itself. It too can be replaced by an earlier run's.

With the same releases and the same secrets, everything public must come out the same; what the summed contributions
do meanwhile is what the tests of :mod:`dpvae.audit.replay` look at.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim.optimizer import register_optimizer_step_pre_hook

from dpvae.privacy import mechanisms
from dpvae.privacy.noise import SecretKey
from dpvae.train import dpsgd, sampling
from dpvae.train.sleep import Sleep

Floats = NDArray[np.float64]
Names = tuple[str | int, ...]
NORMALS = ("normal", "bulk_normal")
PRIVATE = ("tables", "values", "blocks", "contributions", "parts", "histograms")  # arguments that are private


@dataclass(frozen=True)
class Draw:
    """One call on one secret stream."""

    names: Names
    kind: str
    size: int
    inside: bool  # of a mechanism or of a step of DP-SGD
    energy: float = 0.0  # of normals: the sum of their squares
    rate: float = 0.0  # of coins


@dataclass
class Secrets:
    """What the secret streams give in one run.

    ``person`` is the place, among the rows, of a record that a neighbouring table does not hold: everybody else's
    coins and latents are those of the run without it. ``batch`` (step, rows) -> mask overrides all coins; ``present``
    says in which steps the person takes part.
    """

    key: SecretKey | None = None  # None: the program's own
    silent: bool = False
    constant: float | None = None  # every normal is this number
    loud: float = 1.0  # every normal is so many times as large
    person: int | None = None
    present: Callable[[int], bool] = lambda step: True
    batch: Callable[[int, int], NDArray[np.bool_]] | None = None
    still: bool = False  # latents are the same in every step and for everybody
    draws: list[Draw] = field(default_factory=list)
    used: list[SecretKey] = field(default_factory=list)
    rank: dict[Any, int] = field(default_factory=dict)  # step -> the person's place in its batch
    sizes: dict[Any, int] = field(default_factory=dict)  # step -> size of the batch
    coins: dict[Any, NDArray[np.bool_]] = field(default_factory=dict)  # step -> who is to be in it
    inside: bool = False
    first: Callable[[], None] | None = None  # called once, before the first draw

    def open(self, real: Callable[..., Any], own: SecretKey, names: Names) -> Any:
        """The stream called ``names``: scripted, logged."""
        first, self.first = self.first, None
        if first is not None:
            first()
        if not any(own is key for key in self.used):
            self.used.append(own)
        return _Stream(self, names, real(self.key or own, *names), real(self.key or own, *names, "person"))


class _Stream:
    """Stands in for a ``SecretStream``."""

    def __init__(self, secrets: Secrets, names: Names, real: Any, person: Any) -> None:
        self.secrets, self.names, self.real, self.person = secrets, names, real, person

    @property
    def step(self) -> int:
        return next((name for name in self.names if isinstance(name, int)), 0)

    def __getattr__(self, kind: str) -> Any:
        drawn = getattr(self.real, kind)
        return functools.partial(self._draw, kind) if callable(drawn) else drawn

    def _draw(self, kind: str, *args: Any, **kwargs: Any) -> Any:
        out: Any
        if kind == "mask":
            return self._mask(*args, **kwargs)
        if kind in NORMALS and (self.secrets.silent or self.secrets.constant is not None):
            shape = args[0] if args else next(iter(kwargs.values()))
            out = np.full(shape, self.secrets.constant or 0.0)
        elif kind in (*NORMALS, "uniform"):
            out = self._rows(kind, *args, **kwargs)
            out = out * self.secrets.loud if kind in NORMALS and self.secrets.loud != 1 else out
        elif kind == "bytes":
            out = self._bytes(*args, **kwargs)
        else:
            out = getattr(self.real, kind)(*args, **kwargs)
        size = len(out) if isinstance(out, bytes) else int(np.size(out))
        energy = float(np.square(out, dtype=np.float64).sum()) if kind in NORMALS else 0.0
        self.secrets.draws.append(Draw(self.names, kind, size, self.secrets.inside, energy))
        return out

    def chosen(self, real: Callable[..., Any], n: int, rate: float) -> Any:
        """Indices of a batch, by the program's own function on the real stream; scripted like coins."""
        def toss(rows: int) -> NDArray[np.bool_]:
            coins = np.zeros(rows, dtype=bool)
            coins[real(self.real, rows, rate)] = True
            return coins

        return np.flatnonzero(self._coins(n, rate, toss))

    def _mask(self, n: int, rate: float) -> NDArray[np.bool_]:
        return self._coins(n, rate, lambda rows: self.real.mask(rows, rate))

    def _coins(self, n: int, rate: float, toss: Callable[[int], NDArray[np.bool_]]) -> NDArray[np.bool_]:
        secrets = self.secrets
        secrets.draws.append(Draw(self.names, "mask", n, secrets.inside, rate=rate))
        rows = n if secrets.person is None else n - 1
        coins = toss(rows) if secrets.batch is None else secrets.batch(self.step, rows)
        if secrets.person is not None:
            held = bool(secrets.present(self.step))
            coins = np.insert(coins, min(secrets.person, rows), held)
            if held:
                secrets.rank[self.step] = int(coins[:secrets.person].sum())
        secrets.sizes[self.step], secrets.coins[self.step] = int(coins.sum()), coins
        return coins

    def _bytes(self, n: int) -> bytes:
        """Latents drawn as bytes, a record's own side by side; see :meth:`_rows`."""
        secrets, size = self.secrets, self.secrets.sizes.get(self.step, 0) if len(self.names) > 1 else 0
        if not size or n % size:
            drawn: bytes = self.real.bytes(n)
            return drawn
        each = n // size
        if secrets.still:
            return bytes((37 * i + 11) % 256 for i in range(each)) * size
        if self.step not in secrets.rank:
            return bytes(self.real.bytes(n))
        others, place = self.real.bytes(n - each), secrets.rank[self.step] * each
        return bytes(others[:place] + self.person.bytes(each) + others[place:])

    def _rows(self, kind: str, shape: Any, **kwargs: Any) -> Any:
        """Draws whose first axis is the batch: the person's row comes from elsewhere, the others keep theirs."""
        if self.secrets.still and kind == "uniform":
            return np.broadcast_to(self.real.uniform((1, *shape[1:])) * 0 + 0.37, shape).copy()
        place = self.secrets.rank.get(self.step) if len(self.names) > 1 else None
        size = self.secrets.sizes.get(self.step, 0)
        if place is None or not isinstance(shape, tuple) or shape[0] != size:
            return getattr(self.real, kind)(shape, **kwargs)
        others = getattr(self.real, kind)((size - 1, *shape[1:]), **kwargs)
        return np.insert(others, place, getattr(self.person, kind)((1, *shape[1:]), **kwargs)[0], axis=0)


@dataclass
class Release:
    """One call of a one-shot mechanism: its arguments are private and stay in this object."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    names: Names
    again: Callable[..., Any] = field(repr=False, default=lambda: None)

    @property
    def phase(self) -> str:
        """The phase that the call named."""
        return str(self.kwargs.get("phase", ""))

    @property
    def what(self) -> str:
        """What the call said it releases."""
        return str(self.kwargs.get("what", ""))

    @property
    def rows(self) -> Any:
        """The argument that is private."""
        return self.args[0] if self.args else self.kwargs[self._private()]

    def on(self, rows: Any) -> Release:
        """The same call on other records."""
        if self.args:
            return replace(self, args=(rows, *self.args[1:]))
        return replace(self, kwargs={**self.kwargs, self._private(): rows})

    def _private(self) -> str:
        return next(name for name in PRIVATE if name in self.kwargs)

    def repeat(self, secrets: Secrets) -> Any:
        """What the same call returns under other secrets."""
        assert secrets.key is not None
        stream = _Stream(secrets, self.names, SecretKey.stream(secrets.key, *self.names), None)
        return self.again(*self.args, **{**self.kwargs, "stream": stream})


@dataclass
class Trace:
    """What one run showed: all of it in memory, none of it on disk."""

    updates: list[Floats] = field(default_factory=list)  # (P,) each: the gradient the private optimiser was handed
    rates: list[float] = field(default_factory=list)  # learning rate at each
    layers: tuple[int, ...] = ()
    sgd: tuple[float, float] | None = None  # noise multiplier and rate of the plan that DP-SGD ran by
    last: Any = None  # the last record, as DP-SGD was given it
    other_steps: list[tuple[str, int]] = field(default_factory=list)  # optimiser steps outside DP-SGD
    releases: list[Release] = field(default_factory=list)
    unheard: list[str] = field(default_factory=list)  # what a script did not foresee


class Laboratory:
    """A context: while it is open the program runs under ``secrets``, and ``trace`` fills up.

    Args:
        secrets: scripted randomness.
        told: the updates and releases of an earlier run, given out instead of this run's own.
        freeze: hand the optimiser zeros, so that the weights stand still and every step asks the same question.
        fault: ``(loss_B, codes_BD) -> loss_B``: what a record does to its own loss.
        stop_at: the update at which the run is interrupted, as by Ctrl-C.
    """

    def __init__(self, secrets: Secrets | None = None, *, told: Trace | None = None, freeze: bool = False,
                 fault: Callable[[Any, Any], Any] | None = None, stop_at: int | None = None) -> None:
        self.secrets = secrets or Secrets()
        self.told, self.freeze, self.fault, self.stop_at = told, freeze, fault, stop_at
        self.trace = Trace()
        self._stack = contextlib.ExitStack()
        self._steps: Any = None

    def __enter__(self) -> Laboratory:
        real, secrets = SecretKey.stream, self.secrets

        def stream(key: SecretKey, *names: str | int) -> Any:
            return secrets.open(real, key, names)

        self._patch(SecretKey, "stream", stream)
        for owner, name, function in list(_mechanisms()):
            self._patch(owner, name, self._tapped(name, function))
        self._patch(sampling, "poisson_batch", functools.partial(_chosen, sampling.poisson_batch))
        self._patch(dpsgd.PrivateSteps, "step", self._watched(dpsgd.PrivateSteps.step))
        if self.freeze:  # nothing would be learned from a gradient of zero
            self._patch(Sleep, "run", lambda sleep, steps, *, generator: 0.0)
        handle = register_optimizer_step_pre_hook(self._before)
        self._stack.callback(handle.remove)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._stack.close()

    def _patch(self, owner: Any, name: str, value: Any) -> None:
        self._stack.callback(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, value)

    # -- DP-SGD ------------------------------------------------------------------------------------------------------

    def _watched(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def watched(steps: Any, *args: Any, **kwargs: Any) -> Any:
            if self.fault is not None and not hasattr(steps, "faulted"):
                loss, steps.faulted = steps.loss, True
                fault = self.fault
                steps.loss = lambda module, codes, *rest: fault(loss(module, codes, *rest), codes)
            before, self._steps, self.secrets.inside = self._steps, steps, True
            self.trace.sgd = steps.plan.noise_multiplier, steps.plan.sampling_rate
            self.trace.last = steps.codes[torch.arange(len(steps.codes))[-1:]].tolist()
            try:
                return step(steps, *args, **kwargs)
            finally:
                self._steps, self.secrets.inside = before, False

        return watched

    def _before(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if self._steps is None:
            self.trace.other_steps.append((type(optimizer).__name__, sum(p.numel() for p in parameters)))
            if self.freeze:
                for p in parameters:
                    p.grad = torch.zeros_like(p)
            return
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        self.trace.layers = tuple(p.numel() for p in parameters)
        self.trace.updates.append(torch.cat([g.detach().flatten() for g in grads]).double().cpu().numpy())
        self.trace.rates.append(float(optimizer.param_groups[0]["lr"]))
        if self.stop_at is not None and len(self.trace.updates) > self.stop_at:
            raise KeyboardInterrupt
        instead = self._instead(len(self.trace.updates) - 1)
        if instead is not None:
            parts = torch.as_tensor(instead, dtype=torch.float32).split(list(self.trace.layers))
            for p, part in zip(parameters, parts, strict=True):
                p.grad = part.view_as(p).to(p.device).clone()

    def _instead(self, number: int) -> Floats | None:
        if self.freeze:
            return np.zeros_like(self.trace.updates[-1])
        if self.told is None or not self.told.updates:
            return None
        if number >= len(self.told.updates) or self.told.updates[number].shape != self.trace.updates[-1].shape:
            self.trace.unheard.append(f"an update that the other run did not make (number {number})")
            return None
        return self.told.updates[number]

    # -- one-shot mechanisms -----------------------------------------------------------------------------------------

    def _tapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def tapped(*args: Any, **kwargs: Any) -> Any:
            args = tuple(list(a) if isinstance(a, Iterator) else a for a in args)  # to be read again
            kwargs = {key: list(a) if isinstance(a, Iterator) else a for key, a in kwargs.items()}
            nested, self.secrets.inside = self.secrets.inside, True
            try:
                result = function(*args, **kwargs)
            finally:
                self.secrets.inside = nested
            stream = kwargs.get("stream")
            if nested or not isinstance(stream, _Stream):
                return result
            number = len(self.trace.releases)
            self.trace.releases.append(Release(name, args, kwargs, result, stream.names, function))
            if self.told is None or not self.told.releases:
                return result
            if number >= len(self.told.releases) or self.told.releases[number].names != stream.names:
                called = "/".join(map(str, stream.names))
                self.trace.unheard.append(f"a release that the other run did not make ({called})")
                return result
            return self.told.releases[number].result

        return tapped


def _chosen(real: Callable[..., Any], stream: Any, rows: int, rate: float) -> Any:
    """The sampler of large tables, which draws whom to take instead of a coin for everybody."""
    return stream.chosen(real, rows, rate) if isinstance(stream, _Stream) else real(stream, rows, rate)


def _mechanisms() -> Iterator[tuple[Any, str, Callable[..., Any]]]:
    """(module, name, function) of every mechanism, in every module of dpvae that holds one."""
    for module, name in _places(tuple(sys.modules)):
        yield module, name, getattr(module, name)


@functools.lru_cache(maxsize=1)
def _places(loaded: tuple[str, ...]) -> list[tuple[Any, str]]:
    """Looked up again whenever other modules are ``loaded``: an audit opens a thousand laboratories."""
    names = [name for name, value in vars(mechanisms).items() if inspect.isfunction(value)
             and not name.startswith("_") and "stream" in inspect.signature(value).parameters]
    return [(sys.modules[title], name) for title in loaded if title == "dpvae" or title.startswith("dpvae.")
            for name in names if callable(vars(sys.modules[title]).get(name))]


def seeded(seed: int, *, silent: bool = False, **scripts: Any) -> Secrets:
    """Secrets of an audit's own key, the same in every audit with this seed."""
    return Secrets(key=SecretKey.from_seed(seed), silent=silent, **scripts)


def stacked(updates: Sequence[Floats]) -> Floats:
    """(T, P)."""
    return np.stack(updates) if updates else np.zeros((0, 0))
