"""DP-SGD, and the one door to Opacus.

Opacus computes per-sample gradients (:class:`GradSampleModule`) and keeps the order sample -> clip -> noise -> scale ->
step (:class:`DPOptimizer`). Three things are ours, because the laws of the claim demand them:

* sampling: true Poisson masks from secret randomness, at the plan's rate. ``PrivacyEngine`` would derive the rate, the
  number of steps and the divisor from the private number of rows (opacus #571, #819);
* clipping: each record's gradient is scaled to ``C g / (|g| + 0.01)`` (AUTO-S, Bu et al. 2022, arXiv 2206.07136), so
  its norm stays below C and there is no C to tune; a record with a NaN or infinite gradient contributes zero;
* noise: from AES-256-CTR under a secret key, one stream per step. A step replayed after a crash draws the same mask
  and the same noise, so it is the same release and not a second one. Sums and noise are whole steps of one grid, so
  that the lowest bits of a noisy sum tell nothing (Mironov 2012; :func:`on_grid`).

>>> import torch
>>> bool(autos(torch.tensor([0.0, 1.0, float("inf")]), 1.0)[2] == 0)
True
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.distributed.tensor import DTensor

from dpvae.errors import ConfigError
from dpvae.memory import keep_pages
from dpvae.privacy.native import NativeNoise
from dpvae.privacy.noise import SecretKey, box_muller
from dpvae.privacy.plan import SgdPlan
from dpvae.rng import seed_of
from dpvae.train.adam import FusedAdam
from dpvae.train.checkpoint import optimiser_state, restore_optimiser
from dpvae.train.clipping.compiled import Part, compiled, native_noise, part_of
from dpvae.train.clipping.ghost import Ghost
from dpvae.train.clipping.memory import Footprint, records_at_once
from dpvae.train.clipping.recorder import Recorder
from dpvae.train.clipping.recurrent import swap_recurrent
from dpvae.train.clipping.sharded import Sharded, cut, whole
from dpvae.train.independence import RECORDS, Loss, check_independence, refuse_mixing_layers
from dpvae.train.parallel import Processes
from dpvae.train.sampling import Indices, Padding, draw_batch

STABILISER = 0.01  # gamma of AUTO-S

Example = Callable[[int, torch.Generator], Tensor]


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


class PrivateSteps:
    """Steps of DP-SGD on the parameters of ``module``; the caller owns the loop.

    Args:
        module: what learns. Every layer must treat rows alone; Opacus' validator refuses the others by name.
        codes: all private rows, (rows, D). Never leaves this object except through clipped, noised sums.
        loss: (wrapped module, codes (B, D), latents (B, *latents)) -> one loss per record, (B,), a function of that
            record, its latents and the module, and of nothing else.
        latents: shape of the standard normal numbers each record of a batch gets for itself.
        plan, rows: the noise, the rate, and the public row count behind the divisor.
        microbatch: records at once; ``None``: as many as a quarter of the free memory holds.
        clipping: ``fast`` (book-keeping), ``ghost`` or ``hooks`` (Opacus), or ``auto``: the same numbers.
        compile: the static part of a fast step as one compiled program, on padded batches.
        precision: of forward and backward pass; norms, sums and weights are always single.
        example: (count, generator) -> that many random records, made from public facts. With them it is checked, before
            the first step, that no record moves another's loss or gradient.
        processes: those that train together, each with its share of every batch; ``None``: this one alone.
        sharded: by ghost clipping, and each of them holds its piece of gradients and optimiser state (FSDP2).

    Raises :class:`ConfigError` for a model whose records do not stand alone.
    """

    def __init__(self, module: nn.Module, codes: Tensor, loss: Loss, *, plan: SgdPlan, rows: int, key: SecretKey,
                 learning_rate: float, microbatch: int | None, clipping: str = "auto", latents: tuple[int, ...] = (),
                 compile: bool = False, precision: str = "float32", example: Example | None = None,
                 processes: Processes | None = None, sharded: bool = False) -> None:
        refuse_mixing_layers(module)
        if sharded and (processes is None or compile or clipping not in ("auto", "ghost")):
            raise ConfigError("performance.sharding=fsdp: expected several processes (torchrun), "
                              "performance.clipping=ghost and performance.compile=false")
        clipping = "ghost" if sharded else clipping
        if compile and clipping in ("hooks", "ghost"):
            raise ConfigError(f"performance.compile=true: Opacus' {clipping} mode cannot be compiled; "
                              "expected performance.clipping=fast")
        self._swapped = swap_recurrent(module) if clipping in ("hooks", "ghost") else []
        self.module = _wrapped(module, clipping, plan)
        self.codes, self.plan, self.key, self.rows, self.latents = codes, plan, key, rows, latents
        self.loss = loss if precision == "float32" else _in_bfloat16(loss)
        self.weights = [p for p in self.module.parameters() if p.requires_grad]  # whole, whatever the optimiser holds
        self.device, self.processes = codes.device, processes
        if processes is not None:
            processes.same(module)
        self.microbatch = microbatch or 1024
        if example is not None:
            self._check(example, measure=microbatch is None)
        if sharded and processes is not None:
            self.module.remove_hooks()
            self.module = Sharded(module, processes, clip_norm=plan.clip_norm)
            self.microbatch = processes.tell(self.microbatch)  # equally many parts everywhere
        self.sharded = isinstance(self.module, Sharded)
        held = [p for p in self.module.parameters() if p.requires_grad]
        adam = partial(torch.optim.Adam, fused=True) if self.sharded else FusedAdam
        inner = adam(held, lr=learning_rate, betas=(0.9, 0.99))
        self.optimizer = SecretOptimizer(inner, plan=plan, expected_batch=plan.sampling_rate * rows,
                                         recorder=self.module if isinstance(self.module, Recorder) else None)
        self.optimizer.processes = None if self.sharded else processes  # FSDP2 adds up by itself
        if self.device.type == "cpu":
            keep_pages(True)
        self.padding: Padding | None = None
        if compile:
            own = rows if processes is None else math.ceil(rows / processes.size)
            self.padding = Padding.of(plan.sampling_rate, own, at_most=self.microbatch)
        self._programs: dict[int, Part] = {}
        native = native_noise() if compile else None
        self._box_muller = box_muller if native is None else native.box_muller
        self.optimizer.native = native if self.device.type == "cpu" else None

    def _check(self, example: Example, *, measure: bool) -> None:
        generator = torch.Generator().manual_seed(seed_of(0, "independence"))
        latents = torch.randn((RECORDS + 1, *self.latents), generator=generator).to(self.device)
        records = example(RECORDS + 1, generator).to(self.device)
        try:
            check_independence(self.module, self.loss, records, latents)
            if measure:
                self.microbatch = records_at_once(self._bytes_per_record(records, latents), self.device)
        except ConfigError:
            self.close()
            raise

    def _bytes_per_record(self, records: Tensor, latents: Tensor) -> float:
        """Memory that one record takes, with room for what comes and goes: measured, on random records."""
        recorder = self.module if isinstance(self.module, Recorder) else None
        if recorder is None:
            self.module.disable_hooks()
        else:
            recorder.told = len(records)
        with Footprint() as kept:
            losses_B = self.loss(self.module, records, latents)
        if recorder is None:
            self.module.enable_hooks()
            return 3 * kept.bytes / len(records) + 12 * sum(p.numel() for p in self.weights)
        losses_B.sum().backward()
        held = recorder.bytes_held()
        recorder.clip(torch.zeros_like)
        return (2 * kept.bytes + 2 * held) / len(records)

    def step(self, number: int, rate_factor: float) -> None:
        """Step ``number``: sample -> clip -> noise -> update. Costs one step of the plan's event."""
        for group, base in zip(self.optimizer.param_groups, self._base_rates(), strict=True):
            group["lr"] = base * rate_factor
        self.optimizer.zero_grad(set_to_none=True)
        batch = draw_batch(self.key, number, len(self.codes), self.plan.sampling_rate, public_rows=self.rows)
        latents, largest = self._latents(number, len(batch)), len(batch)
        if self.processes is not None:
            largest = math.ceil(len(batch) / self.processes.size)
            own = self.processes.share(len(batch))
            batch, latents = batch[own], latents[own]
        self.optimizer.draw = lambda size: self._noise(number, size)
        parts = list(self._parts(batch, latents, largest))
        for index, (rows, drawn, count) in enumerate(parts):
            self.optimizer.signal_skip_step(do_skip=index < len(parts) - 1)
            records = self.codes[self._there(torch.as_tensor(rows))]
            if self.padding is not None and len(self.codes):
                self._static(records, drawn, count)
            else:
                self._backward(records, drawn)
            self.optimizer.step()
            if index < len(parts) - 1:
                self.optimizer.zero_grad(set_to_none=True)
        del batch, latents, parts
        if isinstance(self.module, Sharded):
            self.module.gather(self.weights)

    def state(self) -> dict[str, Any]:
        """What the optimiser knows of every weight, whole; all processes have to ask at once."""
        state = optimiser_state(self.optimizer.original_optimizer)["state"]
        return {"state": {i: {name: whole(value) for name, value in known.items()} for i, known in state.items()}}

    def restore(self, saved: dict[str, Any]) -> None:
        """Put :meth:`state` back, whoever had asked for it."""
        pieces = {index: {name: cut(value, self.optimizer.params[int(index)]) for name, value in known.items()}
                  for index, known in saved["state"].items()}
        restore_optimiser(self.optimizer.original_optimizer, {"state": pieces})

    def _parts(self, batch: Indices, latents: Tensor, largest: int) -> Iterator[tuple[Indices, Tensor, int]]:
        """(rows, latents, how many of them count) of each part; as many parts as the ``largest`` share has, and an
        empty batch is one empty part."""
        if self.padding is None or not len(self.codes):
            for start in range(0, max(largest, 1), self.microbatch):
                part = slice(start, start + self.microbatch)
                yield batch[part], latents[part], len(batch[part])
            return
        start = 0
        for rows, count in self.padding.chunks(batch):
            own = torch.zeros(len(rows), *self.latents, device=self.device)
            own[:count] = latents[start:start + count]
            start += count
            yield rows, own, count

    def _there(self, here: Tensor) -> Tensor:
        """``here`` on the device of the data, without waiting for what that still has to do."""
        return here if self.device.type == "cpu" else here.pin_memory().to(self.device, non_blocking=True)

    def _static(self, records: Tensor, latents: Tensor, count: int) -> None:
        """One padded chunk through the compiled program; a record that is not finite sends it through the plain one."""
        weights_N = (torch.arange(len(records), device=self.device) < count).float()
        chunk = (records, latents, weights_N)
        assert isinstance(self.module, Recorder)
        part = part_of(self.module, self.loss, lambda norms_N: autos(norms_N, self.optimizer.max_grad_norm))
        program = self._programs.get(len(records))
        if program is None:
            program = self._programs[len(records)] = compiled(part, chunk)
        flat, finite_N = program(*chunk)
        if self.device.type != "cpu" or not bool(finite_N.all()):
            if self.device.type == "cpu":
                flat, finite_N = part(*chunk)
            self.optimizer.not_finite = self.optimizer.not_finite + (~finite_N * weights_N).sum()
        weights = self.optimizer.params
        self.optimizer.sums = list(zip(weights, _unflatten_dense_tensors(flat, weights), strict=True))

    def _backward(self, part: Tensor, latents: Tensor) -> None:
        """What the optimiser needs of one part of the batch."""
        self.optimizer.records = len(part)
        if isinstance(self.module, Recorder):
            self.module.told = self.module.records = len(part)
        if not len(part) and not self.sharded:
            return
        loss_B = self.loss(self.module, part, latents)
        if not isinstance(self.module, Ghost | Sharded):
            loss_B.sum().backward()
            return
        self.optimizer.sums = self.module.clip(loss_B, self.optimizer.factors)
        if self.optimizer.sums is None:  # without the records that are not finite
            keep = self.module.finite_B
            self.optimizer.not_finite = self.optimizer.not_finite + len(part) - int(keep.sum())
            self._backward(part[keep], latents[keep])

    def _base_rates(self) -> list[float]:
        return [group.setdefault("initial_lr", group["lr"]) for group in self.optimizer.param_groups]

    def _noise(self, number: int, size: int) -> Tensor:
        normal = self.key.stream("dpsgd", number, "noise").bulk_normal(size, by=self._box_muller)
        return self._there(torch.as_tensor(normal))

    def _latents(self, number: int, records: int) -> Tensor:
        """Fresh standard normal numbers for every record, (B, *latents): independent, secret, and drawn on the CPU for
        the whole batch, so that neither the device nor the size of its parts changes a result."""
        size = records * math.prod(self.latents)
        words = np.frombuffer(self.key.stream("dpsgd", number, "latent").bytes(4 * size), dtype="<i4")
        inside = torch.from_numpy(words.astype(np.float32)).add_(0.5).mul_(2.0**-31)
        inside.clamp_(-1 + 2.0**-24, 1 - 2.0**-24)  # up to 5.3 standard deviations
        return self._there(inside.erfinv_().mul_(math.sqrt(2)).view(records, *self.latents))

    def close(self) -> None:
        """Give the module back as it was, and the memory that was held."""
        keep_pages(False)
        self.module.remove_hooks()
        for parent, name, original in self._swapped:
            setattr(parent, name, original)


def _in_bfloat16(loss: Loss) -> Loss:
    """``loss`` with its matrix products in bfloat16."""

    def mixed(module: nn.Module, records: Tensor, latents: Tensor) -> Tensor:
        with torch.autocast(records.device.type, torch.bfloat16):
            return loss(module, records, latents).float()

    return mixed


def _wrapped(module: nn.Module, clipping: str, plan: SgdPlan) -> Recorder | GradSampleModule:
    if clipping == "hooks":
        return GradSampleModule(module, batch_first=True, loss_reduction="sum")
    if clipping == "ghost":
        return Ghost(module, batch_first=True, loss_reduction="sum", max_grad_norm=plan.clip_norm)
    return Recorder(module)
