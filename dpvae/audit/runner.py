"""Who is audited, and how a run of it is watched: a claim, a trainer of any make, what is seen of its steps.

:mod:`dpvae.audit.replay` asks; a :class:`Runner` runs. :class:`StepRunner` runs anything with the one method of
:class:`StepTrainer`, :class:`dpvae.audit.twin.TwinRunner` our own trainers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from dpvae import checks
from dpvae.audit.instruments import Draw, Floats, Secrets
from dpvae.audit.verdict import Bound, Finding
from dpvae.privacy.noise import SecretKey

KEY = 20261122  # the auditor's own secrets: every audit is reproducible
ROUNDING = 2e-4  # of C: sums of single-precision gradients
FEW, SHORT = 40, 12  # rows, and steps, where a few are enough
Stage = tuple[list[Finding], list[Bound], list[str]]  # findings, lower bounds, what was left out


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the accountant was told about DP-SGD: (C, sigma, rate, steps), and the public ``divisor`` of the sum."""

    clip_norm: float
    noise_multiplier: float
    sampling_rate: float
    steps: int
    divisor: float = 1.0
    delta: float = 1e-5

    def __post_init__(self) -> None:
        checks.positive(clip_norm=self.clip_norm, noise_multiplier=self.noise_multiplier, divisor=self.divisor)
        checks.share(sampling_rate=self.sampling_rate)
        checks.whole(1, steps=self.steps)


class StepTrainer(Protocol):
    """What an audited trainer has to do.

    Built as ``make_trainer(rows, key)``: ``rows`` is an array of records along its first axis, ``key`` has
    ``stream(*names)`` like :class:`dpvae.privacy.noise.SecretKey`, whose streams draw ``normal``, ``bulk_normal``,
    ``uniform`` and ``mask``. A trainer that takes its noise and its coins from there is tested most sharply.
    """

    def step(self) -> Any:
        """One step; returns an object, a mapping or ``None`` (then the trainer itself is looked at) with any of

        * ``update`` (P,): the noisy sum divided by the divisor, as the optimiser gets it; without it
          ``parameters`` (P,) after the step, whose change then counts as minus the update;
        * ``total`` (P,), ``noise`` (P,): the clipped sum before noise, and the noise (of the sum);
        * ``batch`` (rows,): how often each record took part (or a boolean mask);
        * ``rank_noise`` (ranks, P): what each rank added.

        ``step(released=...)`` is optional: the update is then to use this noisy sum (P,) in place of its own, so that
        two runs on neighbouring tables share their past. ``controls()`` is optional: a mapping of what steers it.
        """


@dataclass
class Seen:
    """One run as the auditor sees it; sums are in the units of C."""

    released: Floats  # (T, P)
    total: Floats | None = None
    noise: Floats | None = None
    batch: Floats | None = None  # (T, n)
    rank_noise: Floats | None = None  # (T, ranks, P)
    layers: tuple[int, ...] = ()
    controls: Mapping[str, Any] = field(default_factory=dict)
    draws: Sequence[Draw] = ()
    problems: tuple[str, ...] = ()

    @property
    def sums(self) -> Floats:
        """The clipped sums (T, P); where they are not shown, what was released."""
        return self.total if self.total is not None else self.released

    @property
    def scripted(self) -> bool:
        """Whether the trainer takes its batches from the key."""
        return any(draw.kind == "mask" for draw in self.draws)


class Runner(Protocol):
    """How a battery runs a trainer; see :class:`StepRunner` and :class:`dpvae.audit.twin.TwinRunner`."""

    tells: bool  # whether ``told`` and ``freeze`` are honoured
    late: bool  # whether ``start`` is
    states: tuple[str, ...]  # weights from which the sensitivity is looked at

    def run(self, rows: Any, secrets: Secrets, *, steps: int, start: int = 0, told: Seen | None = None,
            freeze: bool = False, fault: Callable[[Any, Any], Any] | None = None, state: str = "") -> Seen:
        """One run of ``steps`` steps on ``rows``, from step ``start`` on."""


def windows(runner: Runner, claim: Claim, steps: int) -> list[tuple[int, int]]:
    """(start, length) of ``steps`` steps in all: the first of a run, an eighth in its middle, an eighth at its end. A
    fault that comes late is as bad as any."""
    few = steps // 8
    if not (runner.late and runner.tells) or claim.steps <= steps or not few:
        return [(0, steps)]
    first = steps - 2 * few
    return [(0, first), (first + (claim.steps - steps) // 2, few), (claim.steps - few, few)]


def throughout(runner: Runner, claim: Claim, rows: Any, secrets: Secrets, *, steps: int, **script: Any) -> Seen:
    """One after the other, the :func:`windows` of a run."""
    parts = [runner.run(rows, secrets, steps=length, start=start, **script)
             for start, length in windows(runner, claim, steps)]
    if len(parts) == 1:
        return parts[0]
    controls = {name: tuple(part.controls.get(name) for part in parts) for name in parts[0].controls}
    return Seen(np.concatenate([part.released for part in parts]), layers=parts[0].layers, controls=controls,
                draws=parts[-1].draws, problems=tuple(text for part in parts for text in part.problems))


@dataclass(frozen=True)
class Person:
    """An adversarial record: a row, and what it does to its own loss (None: nothing beyond what the row says)."""

    label: str
    row: Any
    fault: Callable[[Any, Any], Any] | None = None


@dataclass(frozen=True)
class Scene:
    """The auditor's rows: a table, the people who join it, and records with gradients of their own (canaries)."""

    rows: Any
    people: tuple[Person, ...]
    canaries: Any = None
    where: str = ""
    quick: bool = False
    seed: int = 0  # of the auditor's secrets
    odd: Any = None  # further rows of the same kind, as unusual as can be

    def key(self, number: int) -> int:
        """The seed of the auditor's key ``number``."""
        return KEY + number + 1000 * self.seed


class KeyOf:
    """The key a trainer is given: scripted secrets behind the face of a ``SecretKey``."""

    def __init__(self, secrets: Secrets) -> None:
        assert secrets.key is not None
        self.secrets, self.own = secrets, secrets.key

    def stream(self, *names: str | int) -> Any:
        """A scripted, logged stream."""
        return self.secrets.open(SecretKey.stream, self.own, names)

    def tag(self, data: bytes) -> str:
        """As ``SecretKey.tag``."""
        return self.own.tag(data)


class StepRunner:
    """Runs whatever ``make_trainer`` builds, step by step."""

    states: tuple[str, ...] = ("",)
    late = False

    def __init__(self, make_trainer: Callable[[Any, Any], StepTrainer], claim: Claim) -> None:
        self.make, self.claim = make_trainer, claim
        self.tells = False

    def run(self, rows: Any, secrets: Secrets, *, steps: int, start: int = 0, told: Seen | None = None,
            freeze: bool = False, fault: Callable[[Any, Any], Any] | None = None, state: str = "") -> Seen:
        """Train ``steps`` steps on ``rows`` and note everything that was summed, drawn and released."""
        trainer = self.make(rows, KeyOf(secrets))
        self.tells = "released" in inspect.signature(trainer.step).parameters
        before = _array(_get(trainer, None, "parameters"))
        held: dict[str, list[Floats]] = {}
        for number in range(steps):
            kept: dict[str, Any] = {}
            if self.tells and (freeze or told is not None):
                past = told.released[number] if told is not None else np.zeros(1)
                kept = {"released": past}
            seen = trainer.step(**kept)
            after = _array(_get(trainer, seen, "parameters"))
            update = _array(_get(trainer, seen, "update"))
            if update is None and before is not None and after is not None:
                update = before - after
            if update is None:
                raise TypeError("step(): shows neither update nor parameters; see dpvae.audit.replay.StepTrainer")
            held.setdefault("released", []).append(update * self.claim.divisor)
            for name in ("total", "noise", "batch", "rank_noise"):
                if (value := _array(_get(trainer, seen, name))) is not None:
                    held.setdefault(name, []).append(value)
            before = after.copy() if after is not None else None
        controls = trainer.controls() if hasattr(trainer, "controls") else {}
        whole = {name: np.stack(values) for name, values in held.items() if len(values) == steps}
        return Seen(whole["released"], total=whole.get("total"), noise=whole.get("noise"), batch=whole.get("batch"),
                    rank_noise=whole.get("rank_noise"), controls=dict(controls), draws=tuple(secrets.draws))


def _get(trainer: Any, seen: Any, name: str) -> Any:
    if isinstance(seen, Mapping) and name in seen:
        return seen[name]
    if seen is not None and hasattr(seen, name):
        return getattr(seen, name)
    value = getattr(trainer, name, None)
    return None if callable(value) else value


def _array(value: Any) -> Floats | None:
    if value is None:
        return None
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return np.array(value, dtype=np.float64)
