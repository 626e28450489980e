"""The training loop: phases in order, one state, resumable at every checkpoint.

    anchored       fit the decoder to the anchors (free) -> find interactions of many columns -> DP-SGD on the decoder
                   -> fit again (free) -> sleep (free); a wide table: latent code -> find interactions -> sleep (free)
    decoder_only   sleep phase (free) -> DP-SGD on the decoder, the encoder dreaming along -> sleep phase (free)
    joint          DP-SGD on encoder and decoder: the textbook DP-VAE, kept as the baseline

A :class:`Trainer` is frozen; what changes lives in the VAE, in the optimisers and in :class:`TrainState`. All
randomness is derived from (key or public seed, phase, step), so a run that is killed and started again draws the same
masks and the same noise, and ends with the same weights: nothing is released twice, nothing is forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpvae.config import TrainConfig
from dpvae.models.vae import VAE
from dpvae.privacy.accountant import price
from dpvae.privacy.mechanisms import noisy_mean_clipped
from dpvae.privacy.noise import SecretKey
from dpvae.privacy.plan import LatentPlan, Plan
from dpvae.rng import seed_of
from dpvae.train import anchor, interactions, latent, objectives
from dpvae.train.anchor import Anchors
from dpvae.train.checkpoint import load_state, optimiser_state, restore_optimiser, save_state
from dpvae.train.clipping.ghost import quiet
from dpvae.train.contrasts import Numbers
from dpvae.train.dpsgd import Example, PrivateSteps
from dpvae.train.interactions import Interaction
from dpvae.train.parallel import Processes
from dpvae.train.sleep import Sleep

CHECKPOINT_EVERY = 20  # DP-SGD steps
AVERAGING = 0.95  # decay of the averaged weights that are released
DREAMS_PER_STEP = 3  # sleep steps between two steps of DP-SGD (decoder_only)
SECOND = 0.5  # of the first fit's steps and learning rate, once interactions were found
ALL_BUT = 20  # latent directions that a latent code leaves to interactions
REFIT = 0.25  # of the first fit's steps and learning rate
REFINING = 0.1  # the anchored decoder is near its optimum already: DP-SGD refines it with smaller steps
PHASES = {"anchored": ("fit", "interactions", "dpsgd", "refit", "sleep"), "decoder_only": ("dream", "dpsgd", "sleep"),
          "joint": ("dpsgd",)}


@dataclass(frozen=True)
class Moment:
    """What a listener is told: how far a phase is, and what has been released so far."""

    phase: str
    step: int
    steps: int
    metric: dict[str, Any] | None = None


@dataclass
class TrainState:
    """All that changes besides weights: the phase, the steps done in it, the released metrics."""

    phase: int = 0
    step: int = 0
    metrics: list[dict[str, Any]] = field(default_factory=list)
    found: list[dict[str, Any]] = field(default_factory=list)  # interactions that the decoder was made to follow


Listener = Callable[[Moment], None]


@dataclass(frozen=True)
class Trainer:
    """One run over ``codes`` (rows, D), private; everything else it holds is public or secret randomness."""

    plan: Plan
    config: TrainConfig
    vae: VAE
    codes: Tensor  # or StoredRecords, which answers like one
    anchors: Anchors
    rows: int  # public: the divisor's row count
    key: SecretKey
    checkpoint: Path
    listen: Listener = lambda moment: None
    processes: Processes | None = None  # that train together; the first one writes
    orders: Sequence[Numbers | None] = ()  # by column: where its codes lie on an axis; empty: nowhere
    unit: str = "nats per row"  # of the noisy ELBO

    def fit(self) -> TrainState:
        """Train from the last checkpoint, or from the start; returns the final state."""
        state, saved = self._restore()
        if self.processes is not None:
            self.processes.wait()  # nobody writes before everybody has read
        names = self.phases
        for index in range(state.phase, len(names)):
            moment = getattr(self, f"_{names[index]}")(state, saved)
            saved = {}
            state.phase, state.step = index + 1, 0
            self._save(state)
            if moment is not None:
                self.listen(moment)  # a number is saved before it is shown
        return state

    @property
    def phases(self) -> tuple[str, ...]:
        """Names of the phases, in order."""
        return PHASES[self.config.trainer.name]

    def example(self) -> Example:
        """Random records, made from public facts: for checks that must not look at a private one."""
        return objectives.random_codes(self.vae)

    def _start(self) -> None:
        """What is known before the first phase."""
        anchor.start_bias(self.vae, self.anchors)

    def _restore(self) -> tuple[TrainState, dict[str, Any]]:
        saved = load_state(self.checkpoint)
        if saved is None:
            self._start()
            return TrainState(), {}
        self.vae.load_state_dict(saved["vae"])
        state = TrainState(saved["phase"], saved["step"], saved["metrics"], saved.get("found", []))
        return state, saved.get("extra", {})

    def _save(self, state: TrainState, extra: dict[str, Any] | None = None) -> None:
        if self.processes is not None and not self.processes.first:
            return
        save_state(self.checkpoint, {"vae": self.vae.state_dict(), "phase": state.phase, "step": state.step,
                                     "metrics": state.metrics, "found": state.found, "extra": extra or {}})

    def _generator(self, *names: str | int) -> torch.Generator:
        return torch.Generator(device=self.codes.device).manual_seed(seed_of(self.config.run.seed, *names))

    # -- phases ------------------------------------------------------------------------------------------------------

    def _fit(self, state: TrainState, saved: dict[str, Any]) -> Moment:
        """Decoder and prior fitted to the anchors: post-processing. In a wide table: written down from a latent code,
        whose releases it pays for."""
        steps = self.plan.fit_steps
        if self.plan.latent is None:
            self._anchor("fit", steps, anchor.LEARNING_RATE)
        else:
            self._latent(self.plan.latent)
        return Moment("fit", steps, steps, self._release_metric(state, "fit", steps, 0))

    def _latent(self, plan: LatentPlan) -> None:
        rng = np.random.default_rng(seed_of(self.config.run.seed, "latent"))
        steps = sum(plan.count(name) for name in plan.noise)
        done = iter(range(1, steps + 1))
        released = latent.Latent(
            self.codes.cpu().numpy(), self.anchors, self._orders(), plan=plan, key=self.key, rng=rng,
            progress=lambda step: self.listen(Moment("fit", next(done), steps))).measure()
        latent.write(self.vae, self.anchors, released, directions=self.vae.prior.dim - ALL_BUT)

    def _orders(self) -> Sequence[Numbers | None]:
        return self.orders or [None] * self.codes.shape[1]

    def _interactions(self, state: TrainState, saved: dict[str, Any]) -> None:
        """Interactions of several columns that the decoder lacks: chosen and measured (two releases), then fitted."""
        plan = self.plan.interactions
        if plan is None:
            return
        measured = interactions.measure(self.codes.cpu().numpy(), self.anchors, self._orders(), self.vae, plan=plan,
                                        key=self.key)
        for number, one in enumerate(measured):
            if interactions.stands_out(self.vae, one, self.anchors.rows):
                written = interactions.write(self.vae, one, generator=self._generator("interactions", number))
                state.found.append(written.to_dict())
        if state.found and self.plan.latent is None:
            self._anchor("interactions", math.ceil(self.plan.fit_steps * SECOND), anchor.LEARNING_RATE * SECOND, state)
        self.listen(Moment("interactions", 1, 1))

    def _refit(self, state: TrainState, saved: dict[str, Any]) -> None:
        """Post-processing: back to the anchors after DP-SGD, gently; what they leave open stays as DP-SGD left it."""
        if self.plan.sgd is not None:
            self._anchor("refit", math.ceil(self.plan.fit_steps * REFIT), anchor.LEARNING_RATE * REFIT, state)

    def _anchor(self, name: str, steps: int, learning_rate: float, state: TrainState | None = None) -> None:
        found = [Interaction.of(one) for one in (state.found if state is not None else [])]
        further = interactions.further(self.vae, found) if found else None

        def progress(step: int, residual: float) -> None:
            self.listen(Moment(name, step, steps))

        anchor.fit(self.vae, self.anchors, steps=steps, learning_rate=learning_rate,
                   generator=self._generator(name), progress=progress, further=further,
                   free=[z for one in found for z in one.directions], orders=self.orders)

    def _dream(self, state: TrainState, saved: dict[str, Any]) -> None:
        self._sleep(state, saved, name="dream")

    def _sleep(self, state: TrainState, saved: dict[str, Any], name: str = "sleep") -> None:
        """Post-processing: the encoder learns from the decoder's own rows."""
        sleep, steps = Sleep(self.vae), self.config.trainer.sleep_steps
        for step in range(0, steps, 25):
            sleep.run(min(25, steps - step), generator=self._generator(name, step))
            self.listen(Moment(name, min(step + 25, steps), steps))

    @quiet()
    def _dpsgd(self, state: TrainState, saved: dict[str, Any]) -> None:
        """The private phase. Costs what the plan's SampledGaussian event says, and the noisy ELBOs."""
        if self.plan.sgd is None:
            return
        steps = self.plan.sgd.steps
        private = self._private_steps()
        average = [p.detach().clone() for p in private.weights]
        sleep = Sleep(self.vae) if self.config.trainer.name == "decoder_only" else None
        if saved:
            private.restore(saved["adam"])
            private.optimizer.not_finite = saved.get("not_finite", 0)
            average = [saved["average"][str(i)].to(p) for i, p in enumerate(average)]
            if sleep is not None:
                restore_optimiser(sleep.optimiser, saved["sleep"])
        for step in range(state.step, steps):
            if sleep is not None:
                sleep.run(DREAMS_PER_STEP, generator=self._generator("dpsgd", "sleep", step))
            private.step(step, 0.5 * (1 + math.cos(math.pi * step / steps)))
            _average(average, private.weights, step)
            state.step = step + 1
            metric = self._metric_of(state, steps, average, private)
            if metric is not None or (state.step % CHECKPOINT_EVERY == 0 and state.step < steps):
                extra = {"adam": private.state(),
                         "average": dict(enumerate(average)), "not_finite": int(private.optimizer.not_finite)}
                extra |= {"sleep": optimiser_state(sleep.optimiser)} if sleep is not None else {}
                self._save(state, extra)
            self.listen(Moment("dpsgd", state.step, steps, metric))  # a number is saved before it is shown
        with torch.no_grad():
            for parameter, mean in zip(private.weights, average, strict=True):
                parameter.copy_(mean)
        private.close()

    def _private_steps(self) -> PrivateSteps:
        assert self.plan.sgd is not None
        trainer, samples = self.config.trainer, self.plan.sgd.latent_samples
        module: nn.Module = self.vae.decoder
        loss, latents = objectives.decoder_only(self.vae), (samples, self.vae.prior.dim)
        if self.vae.codebook is not None:
            loss, latents = objectives.posterior(self.vae), (samples, 1)
        rate, performance = trainer.learning_rate, self.config.performance
        if trainer.name == "joint":
            module, loss = objectives.EncoderAndDecoder(self.vae), objectives.joint(self.vae)
        elif trainer.name == "anchored":
            rate *= REFINING
        return PrivateSteps(module, self.codes, loss, plan=self.plan.sgd, rows=self.rows, key=self.key,
                            learning_rate=rate, microbatch=performance.microbatch, clipping=performance.clipping,
                            compile=performance.compile, precision=performance.precision, latents=latents,
                            example=self.example(), processes=self.processes,
                            sharded=performance.sharding == "fsdp")

    # -- the noisy ELBO ----------------------------------------------------------------------------------------------

    def _metric_of(self, state: TrainState, steps: int, average: list[Tensor],
                   private: PrivateSteps) -> dict[str, Any] | None:
        """The noisy ELBO of the averaged weights, if one is due after this step."""
        due = _due(steps, self.plan.metric_releases, fitted=self.config.trainer.name == "anchored")
        if state.step not in due:
            return None
        current = [p.detach().clone() for p in private.weights]
        with torch.no_grad():
            _copy(average, private.weights)
            metric = self._release_metric(state, "dpsgd", state.step, due[state.step])
            _copy(current, private.weights)
        return metric

    def _release_metric(self, state: TrainState, phase: str, step: int, number: int) -> dict[str, Any] | None:
        """Release number ``number`` of the plan's noisy ELBOs: the mean over all records, clipped and noised."""
        if number >= self.plan.metric_releases:
            return None
        value, sd, _ = noisy_mean_clipped(
            self._elbos(number), lower=-self.plan.elbo_range, upper=0.0, divisor=float(self.rows),
            noise_multiplier=self.plan.metric_noise, stream=self.key.stream("metric", number),
            phase="metric", what="noisy ELBO")
        drawn = self.plan.events_until(step if phase == "dpsgd" else 0, number + 1)
        spent = price(drawn, delta=self.plan.delta, neighbouring=self.plan.neighbouring).upper
        metric = {"phase": phase, "step": step, "noisy_elbo": value, "sd": sd, "unit": self.unit, "rate": None,
                  "epsilon_spent": spent}
        state.metrics.append(metric)
        return metric

    def _elbos(self, number: int) -> Any:
        """One ELBO per record, in blocks; private."""
        if self.vae.codebook is not None:  # at the exact posterior the ELBO is log p(x)
            none = torch.Generator()
            yield from (self.vae.log_prob(part, samples=1, generator=none).cpu().double().numpy()
                        for part in self.codes.split(4096))
            return
        # The same latents for every record: were they dealt out by position, one record would move the others'.
        noise_11Z = torch.randn(1, 1, self.vae.prior.dim, generator=self._generator("metric", number),
                                device=self.codes.device)
        with torch.no_grad():
            for part in self.codes.split(4096):
                yield self.vae.elbo(part, noise_11Z.expand(1, len(part), -1)).value.cpu().double().numpy()


def _due(steps: int, releases: int, *, fitted: bool) -> dict[int, int]:
    """DP-SGD step -> number of the noisy ELBO released after it; the first is taken after the fit, if there was one."""
    left = releases - fitted
    return {math.ceil(steps * (i + 1) / left): i + fitted for i in range(left)} if left > 0 else {}


def _average(average: list[Tensor], parameters: list[nn.Parameter], step: int) -> None:
    decay = min(AVERAGING, (1 + step) / (10 + step))
    for mean, parameter in zip(average, parameters, strict=True):
        mean.mul_(decay).add_(parameter.detach(), alpha=1 - decay)


def _copy(source: list[Tensor], into: list[nn.Parameter]) -> None:
    for parameter, value in zip(into, source, strict=True):
        parameter.copy_(value)

