"""What touched the private data, as frozen facts; epsilon is computed from these and from nothing else.

An event records one access: which mechanism, with which noise. Its meaning never changes, so a ledger written
today prices the same in ten years. All sensitivities are stated for *add/remove* neighbours (one row more or
less); the accountant translates to other relations.

>>> event = Gaussian("anchor", "1-way marginals of 15 columns", noise_multiplier=40.0)
>>> from_dict(to_dict(event)) == event
True
>>> from_dict({**to_dict(event), "noise_multiplier": -1})
Traceback (most recent call last):
    ...
dpvae.errors.ConfigError: noise_multiplier=-1.0: expected a finite number > 0
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from dpvae import checks
from dpvae.errors import ConfigError

MOST_REPEATS = 10**9
LONGEST_TEXT = 1000
MOST_IN_TRIAL = 100


@dataclass(frozen=True)
class _Fact:
    phase: str  # survey | anchor | dpsgd | metric | ...
    what: str  # one sentence for a human: what was released

    def __post_init__(self) -> None:
        for name in ("phase", "what"):
            text = getattr(self, name)
            # Printed by `dpvae verify` from a file somebody else wrote: no line breaks, no terminal codes.
            if not isinstance(text, str) or not text or not text.isprintable() or len(text) > LONGEST_TEXT:
                raise ConfigError(f"{name}={str(text)[:60]!r}: expected one line of 1 to {LONGEST_TEXT} letters")

    def _float(self, *names: str) -> None:
        """Integers become floats, so that equal facts have equal digests."""
        for name in names:
            object.__setattr__(self, name, float(getattr(self, name)))


def _repeats(**values: object) -> None:
    checks.whole(1, **values)
    for name, value in values.items():
        if isinstance(value, int) and value > MOST_REPEATS:
            raise ConfigError(f"{name}={value!r}: expected at most {MOST_REPEATS}")


@dataclass(frozen=True)
class Gaussian(_Fact):
    """``count`` releases of a vector of L2 sensitivity 1, each plus Gaussian noise of sd ``noise_multiplier``."""

    noise_multiplier: float
    count: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(noise_multiplier=self.noise_multiplier)
        _repeats(count=self.count)
        self._float("noise_multiplier")


@dataclass(frozen=True)
class SampledGaussian(_Fact):
    """``steps`` Gaussian releases, each on a fresh Poisson sample.

    In every step each record takes part independently with probability ``sampling_rate``, by secret randomness;
    the sum of the sampled contributions has L2 sensitivity 1, and noise of sd ``noise_multiplier`` is added in
    every step, an empty sample included. Shuffled or fixed-size batches are *not* this event.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(noise_multiplier=self.noise_multiplier, sampling_rate=self.sampling_rate)
        checks.share(sampling_rate=self.sampling_rate)
        _repeats(steps=self.steps)
        self._float("noise_multiplier", "sampling_rate")


@dataclass(frozen=True)
class PureDP(_Fact):
    """``count`` releases, each ``epsilon``-DP with delta 0 (exponential mechanism, Laplace counts, ...)."""

    epsilon: float
    count: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(epsilon=self.epsilon)
        _repeats(count=self.count)
        self._float("epsilon")


@dataclass(frozen=True)
class Threshold(_Fact):
    """A Gaussian histogram over an unknown domain, published above a threshold.

    Costs a Gaussian release of ``noise_multiplier`` plus ``delta``: with probability at most
    ``delta / (1 + delta)`` a value that only one record holds is published
    (:func:`dpvae.privacy.mechanisms.frequent_values` has the proof).
    """

    noise_multiplier: float
    delta: float

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(noise_multiplier=self.noise_multiplier)
        checks.fraction(delta=self.delta)
        self._float("noise_multiplier", "delta")


Leaf: TypeAlias = Gaussian | SampledGaussian | PureDP


@dataclass(frozen=True)
class RepeatAndSelect(_Fact):
    """The best of a random number of runs, each costing ``trial``, chosen by a score that a run itself pays for.

    The number of runs is *drawn* from a truncated negative binomial law of mean ``runs`` and shape ``shape`` (0: the
    logarithmic law, 1: the geometric one), by :func:`dpvae.privacy.mechanisms.number_of_runs`, and only the best run
    is shown (Papernot and Steinke 2022, arXiv 2110.03620). A number of runs that somebody chose is not this event.
    """

    trial: tuple[Leaf, ...]
    runs: float
    shape: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.trial, tuple) or not self.trial or len(self.trial) > MOST_IN_TRIAL or not all(
                isinstance(event, (Gaussian, SampledGaussian, PureDP)) for event in self.trial):
            raise ConfigError(f"trial: expected 1 to {MOST_IN_TRIAL} events, each Gaussian, SampledGaussian or PureDP")
        checks.at_least(1, runs=self.runs)
        checks.at_least(0, shape=self.shape)
        if self.runs > MOST_REPEATS or self.shape > 10:
            raise ConfigError(f"runs={self.runs:g}, shape={self.shape:g}: expected at most {MOST_REPEATS:g} and 10")
        self._float("runs", "shape")


Event: TypeAlias = Gaussian | SampledGaussian | PureDP | Threshold | RepeatAndSelect

_TYPES: dict[str, type[Event]] = {
    kind.__name__: kind for kind in (Gaussian, SampledGaussian, PureDP, Threshold, RepeatAndSelect)}


def to_dict(event: Event) -> dict[str, Any]:
    """The event as a JSON object; ``type`` names its class."""
    fields = {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}
    if isinstance(event, RepeatAndSelect):
        fields["trial"] = [to_dict(part) for part in event.trial]
    return {"type": type(event).__name__, **fields}


def from_dict(mapping: Mapping[str, Any]) -> Event:
    """The event that :func:`to_dict` wrote; anything unknown, missing or out of range is a :class:`ConfigError`."""
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"event={mapping!r}: expected an object with a type")
    fields = dict(mapping)
    name = fields.pop("type", None)
    checks.one_of(_TYPES, type=name if isinstance(name, str) else repr(name))
    kind = _TYPES[str(name)]
    known = {field.name: field for field in dataclasses.fields(kind)}
    for key in fields:
        if key not in known:
            raise ConfigError(f"{name}.{key}: no such key{checks.did_you_mean(str(key), known)}")
    for key, field in known.items():
        if key not in fields and field.default is dataclasses.MISSING:
            raise ConfigError(f"{name}.{key}: missing; expected {field.type}")
        if key in fields and field.type == "float":
            fields[key] = _as_float(key, fields[key])
    if kind is RepeatAndSelect:
        fields["trial"] = tuple(_leaf(part) for part in _as_list("trial", fields["trial"]))
    return kind(**fields)


def _leaf(part: Any) -> Event:
    """An event of one run; what is no plain mechanism is refused before anything nests."""
    if isinstance(part, Mapping) and part.get("type") == RepeatAndSelect.__name__:
        raise ConfigError("trial: a selection inside a selection cannot be priced")
    return from_dict(part)


def _as_list(name: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigError(f"{name}: expected a list of events")
    return value


def _as_float(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{name}={value!r}: expected a number")
    try:
        return float(value)
    except OverflowError:
        raise ConfigError(f"{name}: expected a finite number, got one beyond 1e308") from None


def canonical(value: object) -> bytes:
    """One byte string per JSON value (sorted keys, no spaces, UTF-8): what digests and hash chains are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(event: Event) -> str:
    """SHA-256 of the event's canonical JSON, in hex."""
    return hashlib.sha256(canonical(to_dict(event))).hexdigest()
