"""What becomes of a batch once its backward pass is done: clip -> noise -> scale -> step, the order that Opacus'
:class:`DPOptimizer` keeps.

Two things are ours, because the laws of the claim demand them:

* clipping: each record's gradient is scaled to ``C g / (|g| + 0.01)`` (AUTO-S, Bu et al. 2022, arXiv 2206.07136), so
  its norm stays below C and there is no C to tune; a record with a NaN or infinite gradient contributes zero;
* noise: secret, and drawn by whoever owns the step (:mod:`dpvae.train.dpsgd`). Sums and noise are whole steps of one
  grid, so that the lowest bits of a noisy sum tell nothing (Mironov 2012; :func:`on_grid`).

>>> bool(autos(torch.tensor([0.0, 1.0, float("inf")]), 1.0)[2] == 0)
True
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.distributed.tensor import DTensor

from dpvae.privacy.native import NativeNoise
from dpvae.privacy.plan import SgdPlan
from dpvae.train.clipping.recorder import Recorder
from dpvae.train.clipping.sharded import cut
from dpvae.train.parallel import Processes

STABILISER = 0.01  # gamma of AUTO-S


def autos(norms_B: Tensor, clip_norm: float) -> Tensor:
    """The factor each record's gradient is multiplied with, (B,); zero where the norm is not finite."""
    factors_B = clip_norm / (norms_B + STABILISER)
    return torch.where(torch.isfinite(norms_B), factors_B, torch.zeros_like(factors_B))


def on_grid(noise_multiplier: float, clip_norm: float, numbers: int) -> tuple[float, float]:
    """(step of the grid, deviation of the noise before it is rounded to it), for a sum of ``numbers`` coordinates.

    The step is a power of two, 2**-25 to 2**-24 of the noise. Rounding moves a coordinate by up to half a step, so a
    record that moves a sum by C moves the rounded one by up to C + step sqrt(numbers): noise in proportion pays for it.
    With rounded sums, sum + round(noise) is round(sum + noise), which costs what the Gaussian mechanism does.

    >>> on_grid(2.0, 1.0, 10_000)
    (1.1920928955078125e-07, 2.00002384185791)
    """
    step = 2.0 ** (math.floor(math.log2(noise_multiplier * clip_norm)) - 24)
    return step, noise_multiplier * (clip_norm + step * math.sqrt(numbers))


def noisy(sums: Tensor, normals: Tensor, deviation: float, grid: float) -> Tensor:
    """``sums`` and ``deviation * normals``, each rounded to whole steps of ``grid``, added; all of one shape."""
    noise = (normals.double() * (deviation / grid)).round_()
    return noise.add_((sums / grid).round_()).to(sums.dtype).mul_(grid)


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
        self.native: NativeNoise | None = None
        self.processes: Processes | None = None

    @cached_property
    def params(self) -> list[Any]:
        """The parameters, in order; Opacus collects them anew several times a step."""
        return list(super().params)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, and the sums of a batch once they were used."""
        for parameter in self.params:
            parameter.grad = parameter.grad_sample = None
            if not self._is_last_step_skipped:
                parameter.summed_grad = None

    def clip_and_accumulate(self) -> None:
        """Add every record's clipped gradient to ``p.summed_grad``."""
        sums, self.sums = self.sums, None
        if sums is None:
            sums = list(self.recorder.clip(self.factors).items()) if self.recorder is not None else self._hooks_sums()
        for parameter, total in sums:
            parameter.summed_grad = total if parameter.summed_grad is None else parameter.summed_grad + total
            parameter.grad_sample = None

    def autos(self, norms_B: Tensor) -> Tensor:
        """:func:`autos` with this optimiser's bound."""
        return autos(norms_B, self.max_grad_norm)

    def factors(self, norms_B: Tensor) -> Tensor:
        """The same, (B,); counts the records that are not finite, without waiting for the device."""
        factors_B = self.autos(norms_B)
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
        """One draw of Gaussian noise for all parameters together, in whole steps of a grid, as the sums are: the result
        is the rounded Gaussian mechanism on numbers of that grid, a post-processing of the Gaussian one."""
        assert self.draw is not None, "no noise stream for this step"
        if self.processes is not None:  # all add up, then all add the same noise
            sums = self.processes.sum([p.summed_grad for p in self.params])
            for parameter, total in zip(self.params, sums, strict=True):
                parameter.summed_grad = total
        sizes = [p.numel() for p in self.params]
        grid, deviation = on_grid(self.noise_multiplier, self.max_grad_norm, sum(sizes))
        normals = self.draw(sum(sizes))
        self.draw = None  # a stream serves one step
        if isinstance(self.params[0], DTensor):  # in pieces
            for parameter, part in zip(self.params, normals.split(sizes), strict=True):
                piece = cut(part.view(parameter.shape), parameter)
                parameter.grad = self.noisy(parameter.summed_grad, piece, deviation, grid)
            return
        flat = _flatten_dense_tensors([parameter.summed_grad for parameter in self.params])
        released = self.noisy(flat, normals, deviation, grid)
        for parameter, part in zip(self.params, _unflatten_dense_tensors(released, self.params), strict=True):
            parameter.grad = part

    def noisy(self, sums: Tensor, normals: Tensor, deviation: float, grid: float) -> Tensor:
        """:func:`noisy`, by the compiled program where there is one for such numbers."""
        if self.native is None or (sums.dtype, normals.dtype) != (torch.float32, torch.float64):
            return noisy(sums, normals, deviation, grid)
        return torch.from_numpy(self.native.noisy(sums.numpy(), normals.numpy(), deviation, grid))

    def scale_grad(self) -> None:
        """Divide by the public expected batch, whatever the batch and however many parts it came in."""
        torch._foreach_div_([parameter.grad for parameter in self.params], self.expected_batch_size)

    @property
    def grad_samples(self) -> list[Tensor]:
        """One tensor (B, *shape) for each parameter; where there are none, Opacus only asks whether there is work."""
        if self.recorder is not None or self.sums is not None:
            return list(self.params)
        return [self._get_flat_grad_sample(p) for p in self.params]

    def _get_flat_grad_sample(self, p: Any) -> Tensor:
        """(B, *shape): one gradient per record, also where a layer saw several rows of each side by side."""
        sample = getattr(p, "grad_sample", None)
        if sample is None:
            return p.new_zeros((self.records, *p.shape))
        if isinstance(sample, list):
            sample = torch.stack(sample).sum(0)
        rows = len(sample)
        return sample if rows == self.records else sample.reshape(self.records, -1, *p.shape).sum(1)
