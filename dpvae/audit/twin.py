"""The twin (elsewhere a shadow model): the trainer the program itself builds, taken out just before it trains, and run
again under instruments.

Nothing is rebuilt here: the plan, the model, the loss, the clipping are those that ``train(config, table)`` assembled,
so what the replay tests see is the code path of a real run. Only rows, secrets and the number of steps are the
auditor's. The table is made up (:mod:`dpvae.audit.scenes`); no released run and no private row is ever touched.
"""

from __future__ import annotations

import contextlib
import copy
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from dpvae.audit.instruments import Floats, Laboratory, Secrets, Trace, seeded, stacked
from dpvae.audit.runner import Claim, Seen
from dpvae.config import PerformanceConfig, TrainConfig
from dpvae.models.vae import VAE
from dpvae.rng import seed_of
from dpvae.train import dpsgd
from dpvae.train.trainer import Trainer, TrainState

Train = Callable[[TrainConfig, Any], Any]
HUGE = 300.0
CANARIES = 160


class _Captured(BaseException):
    """The trainer, on its way out of the program that built it."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self.trainer = trainer


@contextlib.contextmanager
def scratch(config: TrainConfig, name: str) -> Iterator[TrainConfig]:
    """The same configuration, in a place that vanishes, with a ledger of its own."""
    with _folder() as folder:
        yield replace(config, run=replace(config.run, root=str(folder), name=name),
                      ledger=replace(config.ledger, url=None, cap_epsilon=None, cap_delta=None))


def capture(train: Train, config: TrainConfig, table: Any) -> Trainer | None:
    """The trainer that ``train`` builds for ``config`` on ``table``, at the moment it would begin; ``None`` where it
    builds none: a program of one-shot statistics alone."""
    real = Trainer.fit

    def fit(self: Trainer) -> TrainState:
        raise _Captured(self)

    with scratch(config, "captured") as placed:
        setattr(Trainer, "fit", fit)  # noqa: B010
        try:
            with Laboratory(seeded(0)) as laboratory:  # the same trainer in every audit
                train(placed, table)
        except _Captured as held:
            return held.trainer
        finally:
            setattr(Trainer, "fit", real)  # noqa: B010
    if laboratory.trace.updates:
        raise TypeError("this program runs DP-SGD outside dpvae.train.trainer.Trainer, where it cannot be replayed; "
                        "audit it with dpvae.audit.replay.audit_step")
    return None


def claim_of(trainer: Trainer) -> Claim:
    """What the plan booked for the private phase, and the divisor that its public row count gives."""
    sgd = trainer.plan.sgd
    assert sgd is not None
    return Claim(clip_norm=sgd.clip_norm, noise_multiplier=sgd.noise_multiplier, sampling_rate=sgd.sampling_rate,
                 steps=sgd.steps, divisor=sgd.sampling_rate * trainer.rows, delta=trainer.plan.delta)


@dataclass
class TwinRunner:
    """Runs the private phase of a captured trainer; see :class:`dpvae.audit.replay.Runner`."""

    trainer: Trainer
    claim: Claim
    clipping: str = "auto"
    microbatch: int = 1024
    tells: bool = True
    late: bool = True
    states: tuple[str, ...] = ("", "huge weights", "drawn weights")
    examined: set[int] = field(default_factory=set, repr=False)

    def run(self, rows: Any, secrets: Secrets, *, steps: int, start: int = 0, told: Seen | None = None,
            freeze: bool = False, fault: Callable[[Any, Any], Any] | None = None, state: str = "") -> Seen:
        """The private phase alone, ``steps`` long from ``start`` on, from the weights that training starts with."""
        past = None
        if told is not None:
            past = Trace(updates=[update / self.claim.divisor for update in told.released])
        with (Laboratory(secrets, told=past, freeze=freeze, fault=fault) as laboratory, _folder() as folder,
              self._examined_once(np.ndim(rows))):
            trainer = self._again(np.asarray(rows), start + steps, folder, state)
            getattr(trainer, "_dpsgd")(TrainState(trainer.phases.index("dpsgd"), start), {})  # noqa: B009
        trace = laboratory.trace
        problems = list(trace.unheard)
        if any(key.tag(b"audit") != self.trainer.key.tag(b"audit") for key in secrets.used):
            problems.append("a secret stream of another key than the run's")
        if len(trace.updates) != steps:
            problems.append(f"{len(trace.updates)} updates in {steps} steps")
        size = max((len(u) for u in trace.updates), default=sum(trace.layers))
        updates = [u for u in trace.updates if len(u) == size][:steps]
        updates += [np.full(size, np.nan)] * (steps - len(updates))
        return Seen(stacked(updates) * self.claim.divisor, layers=trace.layers, draws=tuple(secrets.draws),
                    controls={"learning rates": tuple(trace.rates), "other steps": tuple(trace.other_steps)},
                    problems=tuple(problems))

    @contextlib.contextmanager
    def _examined_once(self, dims: int) -> Iterator[None]:
        """What a trainer checks on public records before it trains is the same in every twin of one shape: it is asked
        once, which saves a quarter of a self-test."""
        with contextlib.ExitStack() as stack:
            if dims in self.examined:
                stack.enter_context(mock.patch.object(dpsgd, "check_independence"))
            yield
        self.examined.add(dims)

    def _again(self, rows: Any, steps: int, folder: Path, state: str) -> Trainer:
        old = self.trainer
        assert old.plan.sgd is not None
        plan = replace(old.plan, metric_releases=0, sgd=replace(old.plan.sgd, steps=steps))
        performance = PerformanceConfig(device="cpu", clipping=self.clipping, microbatch=self.microbatch)
        vae = copy.deepcopy(old.vae).cpu()
        if rows.ndim == 1:  # canaries: one column, one value each
            vae = _one_column(vae, CANARIES)
            rows = rows[:, None]
        _set_weights(vae, state)
        return replace(old, plan=plan, config=replace(old.config, performance=performance), vae=vae,
                       codes=torch.as_tensor(rows).to(old.codes.dtype), checkpoint=folder / "state.safetensors",
                       listen=lambda moment: None)


def _set_weights(vae: Any, state: str) -> None:
    """Other weights than training starts with: huge ones; or drawn ones, since what is zero at the start (the last
    layer, often) leaves the layers before it without a gradient, and what is forgotten of them would not show."""
    generator = torch.Generator().manual_seed(seed_of(1, "weights"))
    with torch.no_grad():
        for parameter in vae.parameters():
            if state == "huge weights":
                parameter.mul_(HUGE)
            elif state == "drawn weights":
                inputs = parameter[0].numel() if parameter.dim() > 1 else parameter.numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / max(inputs, 1) ** 0.5)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A place that vanishes: in memory, where there is such a place."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(prefix="dpvae-audit-", dir=memory if os.access(memory, os.W_OK) else None) as path:
        yield Path(path)


def _one_column(vae: VAE, values: int) -> VAE:
    """A model of the same shape over one column: each of its values has a gradient of its own."""
    shape: dict[str, Any] = {k: v for k, v in vae.shape.items() if k != "cardinalities"}
    return VAE([values], **shape, generator=torch.Generator().manual_seed(seed_of(1, "canaries")))


def faults(row: Floats) -> dict[str, Callable[[Any, Any], Any]]:
    """What a record may do to its own loss: make it NaN, infinite, huge, or empty. Others' losses stay theirs."""
    wanted = torch.as_tensor(np.asarray(row)).long()

    def spoiled(factor: float) -> Callable[[Any, Any], Any]:
        def fault(loss_B: Any, codes_BD: Any) -> Any:
            hit_B = (codes_BD == wanted.to(codes_BD.device)).all(1)
            return loss_B * torch.where(hit_B, factor, 1.0)

        return fault

    return {"NaN": spoiled(float("nan")), "infinite": spoiled(float("inf")), "huge": spoiled(1e25),
            "empty": spoiled(0.0)}
