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
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from dpvae.errors import ConfigError
from dpvae.privacy.noise import SecretKey
from dpvae.privacy.plan import SgdPlan
from dpvae.rng import seed_of
from dpvae.train.clipping.recorder import Recorder
from dpvae.train.clipping.recurrent import swap_recurrent
from dpvae.train.independence import RECORDS, Loss, check_independence, refuse_mixing_layers

STABILISER = 0.01  # gamma of AUTO-S

Example = Callable[[int, torch.Generator], Tensor]


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
        self.sums: list[tuple[nn.Parameter, Tensor]] | None = None  # of that part, where they are known already
        self.not_finite = 0  # records without a contribution, so far: private, sealed
        self.draw: Callable[[int], Tensor] | None = None

    def clip_and_accumulate(self) -> None:
        """Add every record's clipped gradient to ``p.summed_grad``."""
        sums, self.sums = self.sums, None
        if sums is None:
            sums = list(self.recorder.clip(self.factors).items()) if self.recorder is not None else self._hooks_sums()
        for parameter, total in sums:
            parameter.summed_grad = total if parameter.summed_grad is None else parameter.summed_grad + total
            parameter.grad_sample = None

    def factors(self, norms_B: Tensor) -> Tensor:
        """AUTO-S, (B,); counts the records that are not finite, without waiting for the device."""
        factors_B = autos(norms_B, self.max_grad_norm)
        self.not_finite = self.not_finite + (factors_B == 0).sum()
        return factors_B

    def _hooks_sums(self) -> list[tuple[nn.Parameter, Tensor]]:
        if not self.records:
            return [(parameter, torch.zeros_like(parameter)) for parameter in self.params]
        samples = self.grad_samples
        norms_B = torch.stack([g.flatten(1).norm(dim=1) for g in samples], 1).norm(dim=1)
        factors_B = self.factors(norms_B)
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
        """(B, *shape): one gradient per record, also where a layer saw several rows of each side by side."""
        sample = getattr(p, "grad_sample", None)
        if sample is None:
            return p.new_zeros((self.records, *p.shape))
        if isinstance(sample, list):
            sample = torch.stack(sample).sum(0)
        rows = len(sample)
        return sample if rows == self.records else sample.reshape(self.records, -1, *p.shape).sum(1)


class Ghost(GradSampleModuleFastGradientClipping):
    """Opacus' ghost clipping with AUTO-S: norms by one backward pass, the clipped sum by a second."""

    def clip(self, loss_B: Tensor, factors: Callable[[Tensor], Tensor]) -> list[tuple[nn.Parameter, Tensor]] | None:
        """``sum_i c_i grad_i`` of each parameter; ``None`` where a record is not finite and has to be left out."""
        loss_B.sum().backward(retain_graph=True)
        norms_B = self.get_norm_sample()
        self.finite_B = torch.isfinite(norms_B)
        if not bool(self.finite_B.all()):
            return None
        for parameter in self.trainable_parameters:
            parameter.grad = None
        self.disable_hooks()
        (factors(norms_B) * loss_B).sum().backward()
        self.enable_hooks()
        sums = [(p, torch.zeros_like(p) if p.grad is None else p.grad) for p in self.trainable_parameters]
        for parameter in self.trainable_parameters:
            parameter.grad = None
        return sums


class PrivateSteps:
    """Steps of DP-SGD on the parameters of ``module``; the caller owns the loop.

    Args:
        module: what learns. Every layer must treat rows alone; Opacus' validator refuses the others by name.
        codes: all private rows, (rows, D). Never leaves this object except through clipped, noised sums.
        loss: (wrapped module, codes (B, D), latents (B, *latents)) -> one loss per record, (B,), a function of that
            record, its latents and the module, and of nothing else.
        latents: shape of the standard normal numbers each record of a batch gets for itself.
        plan, rows: the noise, the rate, and the public row count behind the divisor.
        clipping: ``fast`` (book-keeping), ``ghost`` or ``hooks`` (Opacus), or ``auto``: the same numbers.
        example: (count, generator) -> that many random records, made from public facts. With them it is checked, before
            the first step, that no record moves another's loss or gradient.

    Raises :class:`ConfigError` for a model whose records do not stand alone.
    """

    def __init__(self, module: nn.Module, codes: Tensor, loss: Loss, *, plan: SgdPlan, rows: int, key: SecretKey,
                 learning_rate: float, microbatch: int, clipping: str = "auto", latents: tuple[int, ...] = (),
                 example: Example | None = None) -> None:
        refuse_mixing_layers(module)
        self._swapped = swap_recurrent(module) if clipping in ("hooks", "ghost") else []
        self.module = _wrapped(module, clipping, plan)
        self.codes, self.loss, self.plan, self.key = codes, loss, plan, key
        self.microbatch, self.latents = microbatch, latents
        trained = [p for p in self.module.parameters() if p.requires_grad]
        inner = torch.optim.Adam(trained, lr=learning_rate, betas=(0.9, 0.99), fused=True)
        self.optimizer = SecretOptimizer(inner, plan=plan, expected_batch=plan.sampling_rate * rows,
                                         recorder=self.module if isinstance(self.module, Recorder) else None)
        self.device = codes.device
        if example is not None:
            self._check(example)

    def _check(self, example: Example) -> None:
        generator = torch.Generator().manual_seed(seed_of(0, "independence"))
        latents = torch.randn((RECORDS + 1, *self.latents), generator=generator).to(self.device)
        try:
            check_independence(self.module, self.loss, example(RECORDS + 1, generator).to(self.device), latents)
        except ConfigError:
            self.close()
            raise

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
            self._backward(part, latents[index])
            self.optimizer.step()
            if index < len(parts) - 1:
                self.optimizer.zero_grad(set_to_none=True)
        del batch, parts, latents

    def _backward(self, part: Tensor, latents: Tensor) -> None:
        """What the optimiser needs of one part of the batch."""
        self.optimizer.records = len(part)
        if isinstance(self.module, Recorder):
            self.module.told = self.module.records = len(part)
        if not len(part):
            return
        loss_B = self.loss(self.module, part, latents)
        if not isinstance(self.module, Ghost):
            loss_B.sum().backward()
            return
        self.optimizer.sums = self.module.clip(loss_B, self.optimizer.factors)
        if self.optimizer.sums is None:  # without the records that are not finite
            keep = self.module.finite_B
            self.optimizer.not_finite = self.optimizer.not_finite + len(part) - int(keep.sum())
            self._backward(part[keep], latents[keep])

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
        """Give the module back as it was."""
        self.module.remove_hooks()
        for parent, name, original in self._swapped:
            setattr(parent, name, original)


def _wrapped(module: nn.Module, clipping: str, plan: SgdPlan) -> Recorder | GradSampleModule:
    if clipping == "hooks":
        return GradSampleModule(module, batch_first=True, loss_reduction="sum")
    if clipping == "ghost":
        return Ghost(module, batch_first=True, loss_reduction="sum", max_grad_norm=plan.clip_norm)
    return Recorder(module)
