"""DP-SGD, and the one door to Opacus.

Opacus computes per-sample gradients (:class:`GradSampleModule`) and keeps the order sample -> clip -> noise -> scale ->
step (:class:`DPOptimizer`). Three things are ours, because the laws of the claim demand them:

* sampling: true Poisson masks from secret randomness, at the plan's rate. ``PrivacyEngine`` would derive the rate, the
  number of steps and the divisor from the private number of rows (opacus #571, #819);
* clipping: each record's gradient is scaled to ``C g / (|g| + 0.01)`` (AUTO-S, Bu et al. 2022, arXiv 2206.07136), so
  its norm stays below C and there is no C to tune; a record with a NaN or infinite gradient contributes zero;
* noise: from AES-256-CTR under a secret key, one stream per step. A step replayed after a crash draws the same mask
  and the same noise, so it is the same release and not a second one.

>>> import torch
>>> bool(autos(torch.tensor([0.0, 1.0, float("inf")]), 1.0)[2] == 0)
True
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from dpvae.errors import ConfigError
from dpvae.privacy.noise import SecretKey
from dpvae.privacy.plan import SgdPlan
from dpvae.train.clipping import Recorder, supports

STABILISER = 0.01  # gamma of AUTO-S

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def autos(norms_B: Tensor, clip_norm: float) -> Tensor:
    """The factor each record's gradient is multiplied with, (B,); zero where the norm is not finite."""
    factors_B = clip_norm / (norms_B + STABILISER)
    return torch.where(torch.isfinite(norms_B), factors_B, torch.zeros_like(factors_B))


class SecretOptimizer(DPOptimizer):
    """Opacus' ``DPOptimizer`` with AUTO-S clipping and secret, per-step noise."""

    def __init__(self, optimizer: torch.optim.Optimizer, *, plan: SgdPlan, expected_batch: float,
                 recorder: Recorder | None) -> None:
        # Opacus only uses the expected batch as the divisor of the noisy sum; it is public: rate x public rows.
        super().__init__(optimizer, noise_multiplier=plan.noise_multiplier, max_grad_norm=plan.clip_norm,
                         expected_batch_size=expected_batch)  # type: ignore[arg-type]
        self.recorder = recorder
        self.records = 0  # in the part whose backward pass is done
        self.draw: Callable[[int], Tensor] | None = None

    def clip_and_accumulate(self) -> None:
        """Add every record's clipped gradient to ``p.summed_grad``."""
        sums = self._hooks_sums() if self.recorder is None else self._recorded_sums(self.recorder)
        for parameter, total in sums:
            parameter.summed_grad = total if parameter.summed_grad is None else parameter.summed_grad + total
            parameter.grad_sample = None

    def _recorded_sums(self, recorder: Recorder) -> list[tuple[nn.Parameter, Tensor]]:
        norms_B = recorder.squared_norms(self.records).sqrt()
        return recorder.clipped_sums(autos(norms_B, self.max_grad_norm))

    def _hooks_sums(self) -> list[tuple[nn.Parameter, Tensor]]:
        samples = self.grad_samples
        if not len(samples[0]):
            return [(parameter, torch.zeros_like(parameter)) for parameter in self.params]
        norms_B = torch.stack([g.flatten(1).norm(dim=1) for g in samples], 1).norm(dim=1)
        factors_B = autos(norms_B, self.max_grad_norm)
        clean = [torch.nan_to_num(sample, nan=0.0, posinf=0.0, neginf=0.0) for sample in samples]
        return [(parameter, torch.einsum("b,b...->...", factors_B, sample))
                for parameter, sample in zip(self.params, clean, strict=True)]

    def add_noise(self) -> None:
        """One draw of ``sigma C`` times standard normal for all parameters together."""
        assert self.draw is not None, "no noise stream for this step"
        noise = self.draw(sum(p.numel() for p in self.params)) * (self.noise_multiplier * self.max_grad_norm)
        self.draw = None  # a stream serves one step
        for parameter, part in zip(self.params, noise.split([p.numel() for p in self.params]), strict=True):
            parameter.grad = (parameter.summed_grad + part.view_as(parameter)).view_as(parameter)

    def scale_grad(self) -> None:
        """Divide by the public expected batch, whatever the batch and however many parts it came in."""
        for parameter in self.params:
            parameter.grad /= self.expected_batch_size

    def _get_flat_grad_sample(self, p: Any) -> Tensor:
        sample = getattr(p, "grad_sample", None)
        if isinstance(sample, list):
            return torch.cat(sample)
        return p.new_zeros((0, *p.shape)) if sample is None else sample


class PrivateSteps:
    """Steps of DP-SGD on the parameters of ``module``; the caller owns the loop.

    Args:
        module: what learns. Every layer must treat rows alone; Opacus' validator refuses the others by name.
        codes: all private rows, (rows, D). Never leaves this object except through clipped, noised sums.
        loss: (wrapped module, codes (B, D), latents (B, *latents)) -> one loss per record, (B,), a function of that
            record, its latents and the module, and of nothing else.
        latents: shape of the standard normal numbers each record of a batch gets for itself.
        plan, rows: the noise, the rate, and the public row count behind the divisor.
        clipping: ``fast`` (book-keeping), ``hooks`` (Opacus, the reference), or ``auto``: the same numbers.
    """

    def __init__(self, module: nn.Module, codes: Tensor, loss: Loss, *, plan: SgdPlan, rows: int, key: SecretKey,
                 learning_rate: float, microbatch: int, clipping: str = "auto", latents: tuple[int, ...] = ()) -> None:
        if clipping == "auto":
            clipping = "fast" if supports(module) else "hooks"
        elif clipping == "fast" and not supports(module):
            raise ConfigError("performance.clipping='fast': this model has layers other than linear ones; "
                              "expected performance.clipping=auto or hooks")
        recorder = Recorder(module) if clipping == "fast" else None
        self.module = recorder or GradSampleModule(module, batch_first=True, loss_reduction="sum")
        self.codes, self.loss, self.plan, self.key = codes, loss, plan, key
        self.microbatch, self.latents = microbatch, latents
        inner = torch.optim.Adam(list(self.module.parameters()), lr=learning_rate, betas=(0.9, 0.99))
        self.optimizer = SecretOptimizer(inner, plan=plan, expected_batch=plan.sampling_rate * rows, recorder=recorder)
        self.device = codes.device

    def step(self, number: int, rate_factor: float) -> None:
        """Step ``number``: sample -> clip -> noise -> update. Costs one step of the plan's event."""
        for group, base in zip(self.optimizer.param_groups, self._base_rates(), strict=True):
            group["lr"] = base * rate_factor
        self.optimizer.zero_grad(set_to_none=True)
        mask = self.key.stream("dpsgd", number, "mask").mask(len(self.codes), self.plan.sampling_rate)
        batch = self.codes[torch.as_tensor(mask.nonzero()[0], device=self.device)]
        self.optimizer.draw = lambda size: self._noise(number, size)
        parts = list(self._parts(batch))
        latents = self._latents(number, len(batch)).split(self.microbatch)
        for index, part in enumerate(parts):
            self.optimizer.signal_skip_step(do_skip=index < len(parts) - 1)
            self.optimizer.records = len(part)
            if len(part):
                self.loss(self.module, part, latents[index]).sum().backward()
            self.optimizer.step()
            if index < len(parts) - 1:
                self.optimizer.zero_grad(set_to_none=True)
        del batch, parts, latents

    def _parts(self, batch: Tensor) -> Iterator[Tensor]:
        yield from batch.split(self.microbatch) if len(batch) else [batch]

    def _base_rates(self) -> list[float]:
        return [group.setdefault("initial_lr", group["lr"]) for group in self.optimizer.param_groups]

    def _noise(self, number: int, size: int) -> Tensor:
        normal = self.key.stream("dpsgd", number, "noise").summed_normal(size)
        return torch.as_tensor(normal, dtype=torch.float32, device=self.device)

    def _latents(self, number: int, records: int) -> Tensor:
        """Fresh standard normal numbers for every record, (B, *latents): independent, secret, and drawn on the CPU for
        the whole batch, so that neither the device nor the size of its parts changes a result."""
        uniform = self.key.stream("dpsgd", number, "latent").uniform((records, *self.latents))
        return torch.special.ndtri(torch.as_tensor(uniform)).float().to(self.device)

    def close(self) -> None:
        """Remove Opacus' hooks from the module."""
        self.module.remove_hooks()
