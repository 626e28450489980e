"""DP-SGD, and the one door to Opacus.

Opacus computes per-sample gradients (:class:`GradSampleModule`) and keeps the order sample -> clip -> noise -> scale ->
step. Sampling and noise are ours, because the laws of the claim demand it (clipping too:
:mod:`dpvae.train.clipping.optimizer`):

* sampling: true Poisson masks from secret randomness, at the plan's rate. ``PrivacyEngine`` would derive the rate, the
  number of steps and the divisor from the private number of rows (opacus #571, #819);
* noise: from AES-256-CTR under a secret key, one stream per step. A step replayed after a crash draws the same mask
  and the same noise, so it is the same release and not a second one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from opacus import GradSampleModule
from torch import Tensor, nn
from torch._utils import _unflatten_dense_tensors

from dpvae.errors import ConfigError
from dpvae.memory import keep_pages
from dpvae.privacy.noise import SecretKey, box_muller
from dpvae.privacy.plan import SgdPlan
from dpvae.rng import seed_of
from dpvae.train.adam import FusedAdam
from dpvae.train.checkpoint import optimiser_state, restore_optimiser
from dpvae.train.clipping.compiled import SMALLEST, Compiled, native_noise, part_of
from dpvae.train.clipping.ghost import Ghost
from dpvae.train.clipping.memory import Footprint, records_at_once
from dpvae.train.clipping.optimizer import SecretOptimizer
from dpvae.train.clipping.recorder import Recorder
from dpvae.train.clipping.recurrent import swap_recurrent
from dpvae.train.clipping.sharded import Sharded, cut, whole
from dpvae.train.independence import RECORDS, Loss, check_independence, refuse_mixing_layers
from dpvae.train.parallel import Processes
from dpvae.train.sampling import Indices, Padding, draw_batch

WORTH_COMPILING = 50_000_000  # numbers of noise in a run: the program costs 0.4 CPU-seconds and saves 20 ns of each

Example = Callable[[int, torch.Generator], Tensor]


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
        compile: a fast step up to its clipped sum as one compiled program; on a GPU, of padded batches.
        precision: of forward and backward pass; norms, sums and weights are always single. ``bfloat16``: only ``fast``,
            since Opacus' modes leave the sum over a batch to the backward pass.
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
        if precision != "float32" and clipping in ("hooks", "ghost"):
            raise ConfigError(f"performance.precision={precision}: Opacus' {clipping} mode sums a batch as coarsely; "
                              "expected performance.clipping=fast and performance.sharding=none")
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
        self._compiled = self._program() if compile and len(codes) else None
        drawn = plan.steps * sum(p.numel() for p in self.weights)
        worth_it = drawn >= WORTH_COMPILING and processes is None  # a machine without a compiler would drift away
        native = native_noise(asked=compile) if compile or worth_it else None
        self._box_muller = box_muller if native is None else native.box_muller
        self.optimizer.native = native if self.device.type == "cpu" else None

    def _program(self) -> Compiled:
        assert isinstance(self.module, Recorder)
        own = self.rows if self.processes is None else math.ceil(self.rows / self.processes.size)
        padding = Padding.of(self.plan.sampling_rate, own, at_most=self.microbatch)
        rows = max(padding.first, SMALLEST)
        records = self.codes.new_zeros(rows, *self.codes.shape[1:])
        like = (records, torch.zeros(rows, *self.latents, device=self.device), torch.zeros(rows, device=self.device))
        return Compiled(part_of(self.module, self.loss, self.optimizer.autos), like, padding)

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
            if self._compiled is not None:
                self._sums(self._compiled, records, drawn, count)
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
        copies = {i: {name: whole(value).clone() for name, value in known.items()} for i, known in state.items()}
        return {"state": copies}

    def restore(self, saved: dict[str, Any]) -> None:
        """Put :meth:`state` back, whoever had asked for it."""
        pieces = {index: {name: cut(value.clone(), self.optimizer.params[int(index)]) for name, value in known.items()}
                  for index, known in saved["state"].items()}
        restore_optimiser(self.optimizer.original_optimizer, {"state": pieces})

    def _parts(self, batch: Indices, latents: Tensor, largest: int) -> Iterator[tuple[Indices, Tensor, int]]:
        """(rows, latents, how many of them count) of each part; as many parts as the ``largest`` share has, and an
        empty batch is one empty part."""
        if self._compiled is None or not self._compiled.padded:
            parts = max(math.ceil(largest / self.microbatch), 1)
            for rows, drawn in zip(np.array_split(batch, parts), latents.tensor_split(parts), strict=True):
                yield rows, drawn, len(rows)
            return
        start = 0
        for rows, count in self._compiled.padding.chunks(batch):
            own = torch.zeros(len(rows), *self.latents, device=self.device)
            own[:count] = latents[start:start + count]
            start += count
            yield rows, own, count

    def _there(self, here: Tensor) -> Tensor:
        """``here`` on the device of the data, without waiting for what that still has to do."""
        return here if self.device.type == "cpu" else here.pin_memory().to(self.device, non_blocking=True)

    def _sums(self, program: Compiled, records: Tensor, latents: Tensor, count: int) -> None:
        """What the optimiser needs of one part, by the compiled program; a record that is not finite sends the part
        through the plain one."""
        chunk = (records, latents, (torch.arange(len(records), device=self.device) < count).float())
        flat, finite_N = program(*chunk)
        if self.device.type != "cpu" or not bool(finite_N.all()):
            if self.device.type == "cpu":
                flat, finite_N = program.part(*chunk)
            self.optimizer.not_finite = self.optimizer.not_finite + (~finite_N * chunk[2]).sum()
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
