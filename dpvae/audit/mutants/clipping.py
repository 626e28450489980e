"""Faults of what is summed: records that give more than C, or that change what others give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dpvae.audit.mutants.base import Mutant, Patch, named
from dpvae.train.clipping import optimizer
from dpvae.train.clipping.ghost import Ghost
from dpvae.train.clipping.optimizer import SecretOptimizer
from dpvae.train.clipping.recorder import Recorder
from dpvae.train.dpsgd import PrivateSteps

HOOKS = ("hooks",)
FAST = ("fast",)
GHOST = ("ghost",)


def _after_sum(patch: Patch, change: Callable[[Any], None]) -> None:
    """``change(optimizer)`` once the clipped gradients of a part were added to ``p.summed_grad``."""
    def accumulate(real: Callable[..., None], self: Any) -> None:
        real(self)
        change(self)

    patch.wrap(SecretOptimizer, "clip_and_accumulate", accumulate)


def _factors(patch: Patch, change: Callable[[Tensor, float], Tensor]) -> None:
    """Replaces the clipping factors, a function of the records' norms (B,) and C."""
    patch.set(optimizer, "autos", change)


def _norms_of(run: Callable[[], None]) -> list[Tensor]:
    """The norms that are turned into factors while ``run`` runs."""
    norms: list[Tensor] = []
    inner = optimizer.autos

    def listening(norms_B: Tensor, clip_norm: float) -> Tensor:
        norms.append(norms_B)
        return inner(norms_B, clip_norm)

    setattr(optimizer, "autos", listening)  # noqa: B010
    try:
        run()
    finally:
        setattr(optimizer, "autos", inner)  # noqa: B010
    return norms


def _norms(samples: list[Tensor]) -> Tensor:
    return torch.stack([g.flatten(1).norm(dim=1) for g in samples], 1).norm(dim=1)


def _hooks_sums(patch: Patch, weigh: Callable[[Any, list[Tensor]], list[Tensor]]) -> None:
    """Replaces the sum of per-sample gradients by ``weigh(optimizer, samples)``."""
    def sums(self: Any) -> list[tuple[Any, Tensor]]:
        samples = self.grad_samples
        if not len(samples[0]):
            return [(p, torch.zeros_like(p)) for p in self.params]
        return list(zip(self.params, weigh(self, samples), strict=True))

    patch.set(SecretOptimizer, "_hooks_sums", sums)


@named("nothing is clipped")
def no_clipping(patch: Patch) -> None:
    _factors(patch, lambda norms, clip: torch.isfinite(norms).float() * 50)


@named("clipped to 2 C")
def twice_the_clip_norm(patch: Patch) -> None:
    _factors(patch, lambda norms, clip: 2 * clip / (norms + 0.01))


@named("clipped to C (1 + 1/20): a stabiliser of the wrong sign")
def five_per_cent_over(patch: Patch) -> None:
    _factors(patch, lambda norms, clip: torch.where(torch.isfinite(norms), 1.05 * clip / norms.clamp_min(1e-12), 0.0))


@named("small gradients are not scaled, large ones are clipped to the batch's median norm")
def clipped_to_the_median_of_the_batch(patch: Patch) -> None:
    _factors(patch, lambda norms, clip: norms.nanmedian() / (norms + 0.01) if len(norms) else norms)


@named("K samples of the latent are clipped one by one, and summed")
def every_latent_sample_clipped_alone(patch: Patch) -> None:
    def sums(real: Callable[..., Any], self: Any) -> Any:
        self.max_grad_norm, told = self.max_grad_norm * 2, self.max_grad_norm
        try:
            return real(self)
        finally:
            self.max_grad_norm = told

    patch.wrap(SecretOptimizer, "clip_and_accumulate", sums)


@named("a NaN gradient passes the clip and is summed", trainers=("decoder_only", "joint", "anchored"))
def nan_slips_through(patch: Patch) -> None:
    def spoil(optimizer: Any) -> None:
        if getattr(optimizer, "saw_nan", False):
            for p in optimizer.params:
                p.summed_grad = p.summed_grad + float("nan")
            optimizer.saw_nan = False

    def factors(norms: Tensor, clip: float) -> Tensor:
        found = clip / (norms + 0.01)
        return torch.where(torch.isnan(found), torch.full_like(found, 1e4), found)

    def watched(real: Callable[..., None], self: Any) -> None:
        norms = _norms_of(lambda: real(self))
        self.saw_nan = any(bool(torch.isnan(n).any()) for n in norms)
        spoil(self)

    _factors(patch, factors)
    patch.wrap(SecretOptimizer, "clip_and_accumulate", watched)


@named("half precision: one overflow, and the whole batch is skipped")
def overflow_skips_the_batch(patch: Patch) -> None:
    def watched(real: Callable[..., None], self: Any) -> None:
        norms = _norms_of(lambda: real(self))
        if any(bool((~torch.isfinite(n) | (n > 65504)).any()) for n in norms):
            for p in self.params:
                p.summed_grad = torch.zeros_like(p)

    patch.wrap(SecretOptimizer, "clip_and_accumulate", watched)


@named("the batch's sum is clipped, not each record")
def the_batch_is_clipped(patch: Patch) -> None:
    _factors(patch, lambda norms, clip: torch.where(torch.isfinite(norms), 30 * clip / (norms + 0.01), 0.0))

    def clip(optimizer: Any) -> None:
        norm = torch.cat([p.summed_grad.flatten() for p in optimizer.params]).norm()
        for p in optimizer.params:
            p.summed_grad = p.summed_grad * (15 * optimizer.max_grad_norm / (norm + 0.01))

    _after_sum(patch, clip)


@named("records are clipped four at a time", clippings=HOOKS)
def microbatches_of_four_are_clipped(patch: Patch) -> None:
    def weigh(optimizer: Any, samples: list[Tensor]) -> list[Tensor]:
        groups = [[torch.nan_to_num(s)[i:i + 4].sum(0, keepdim=True) for s in samples]
                  for i in range(0, len(samples[0]), 4)]
        total = [torch.zeros_like(s[0]) for s in samples]
        for group in groups:
            factor = 4 * optimizer.max_grad_norm / (_norms(group) + 0.01)
            total = [t + factor[0] * g[0] for t, g in zip(total, group, strict=True)]
        return total

    _hooks_sums(patch, weigh)


@named("every layer is clipped to C, and priced as if all were together", clippings=HOOKS)
def every_layer_clipped_alone(patch: Patch) -> None:
    def weigh(optimizer: Any, samples: list[Tensor]) -> list[Tensor]:
        return [torch.einsum("b,b...->...", torch.nan_to_num(optimizer.max_grad_norm / (_norms([s]) + 0.01)),
                             torch.nan_to_num(s)) for s in samples]

    _hooks_sums(patch, weigh)


@named("the last layer's weights are left out of the norm", clippings=HOOKS)
def a_layer_missing_from_the_norm(patch: Patch) -> None:
    def weigh(optimizer: Any, samples: list[Tensor]) -> list[Tensor]:
        factors = optimizer.max_grad_norm / (_norms(samples[:-2] or samples[-1:]) + 0.01)
        return [torch.einsum("b,b...->...", torch.nan_to_num(factors), torch.nan_to_num(s)) for s in samples]

    _hooks_sums(patch, weigh)


@named("book-keeping forgets the biases in the norm", clippings=HOOKS)
def biases_missing_from_the_norm(patch: Patch) -> None:
    def weigh(optimizer: Any, samples: list[Tensor]) -> list[Tensor]:
        factors = optimizer.max_grad_norm / (_norms([s for s in samples if s.dim() > 2]) + 0.01)
        return [torch.einsum("b,b...->...", torch.nan_to_num(factors), torch.nan_to_num(s)) for s in samples]

    _hooks_sums(patch, weigh)


@named("book-keeping: a layer's part of the squared norm is forgotten", clippings=FAST)
def fast_mode_forgets_a_layer(patch: Patch) -> None:
    def norms(real: Callable[..., Tensor], self: Any) -> Tensor:
        if not self.book:
            return real(self)
        largest = max(self.book, key=lambda parameter: parameter.numel())
        held = self.book.pop(largest)
        found = real(self)
        self.book[largest] = held
        return found

    patch.wrap(Recorder, "squared_norms", norms)


@named("book-keeping: norms of the first latent sample stand for all", clippings=FAST)
def fast_mode_underestimates_the_norm(patch: Patch) -> None:
    patch.wrap(Recorder, "squared_norms", lambda real, self: real(self) / 4)


@named("ghost clipping: norms are those of half of what the second pass sums", clippings=GHOST)
def ghost_mode_underestimates_the_norm(patch: Patch) -> None:
    patch.wrap(Ghost, "get_norm_sample", lambda real, self: real(self) / 2)


@named("latents are scaled by a statistic of the batch, as a batch norm would do")
def batch_statistics(patch: Patch) -> None:
    def latents(real: Callable[..., Tensor], self: Any, number: int, records: int) -> Tensor:
        found = real(self, number, records)
        size = torch.as_tensor(float(records + 1), device=found.device)
        return found * (1 + size.log())

    patch.wrap(PrivateSteps, "_latents", latents)


@named("a missing cell is filled in with the batch's own median, inside the step")
def filled_from_the_batch(patch: Patch) -> None:
    def step(real: Callable[..., None], self: Any, number: int, rate_factor: float) -> None:
        plain = self.loss

        def filled(module: Any, codes: Tensor, latents: Tensor) -> Tensor:
            codes = codes.clone()
            codes[:, -1] = codes[:, -1].float().mean().round().long()
            found: Tensor = plain(module, codes, latents)
            return found

        self.loss = filled
        try:
            real(self, number, rate_factor)
        finally:
            self.loss = plain

    patch.wrap(PrivateSteps, "step", step)


@named("a hundredth of the gradient goes past the clip, to 'unbias' it", clippings=HOOKS)
def a_part_goes_past_the_clip(patch: Patch) -> None:
    def weigh(optimizer: Any, samples: list[Tensor]) -> list[Tensor]:
        factors = torch.nan_to_num(optimizer.max_grad_norm / (_norms(samples) + 0.01))
        return [torch.einsum("b,b...->...", factors + 0.01, torch.nan_to_num(s)) for s in samples]

    _hooks_sums(patch, weigh)


@named("the clip norm grows with the steps, the noise does not")
def the_clip_norm_grows(patch: Patch) -> None:
    def step(real: Callable[..., None], self: Any, number: int, rate_factor: float) -> None:
        self.optimizer.max_grad_norm, told = self.optimizer.max_grad_norm * (1 + 0.1 * number), (
            self.optimizer.max_grad_norm)
        sigma = self.optimizer.noise_multiplier
        self.optimizer.noise_multiplier = sigma / (1 + 0.1 * number)
        try:
            real(self, number, rate_factor)
        finally:
            self.optimizer.max_grad_norm, self.optimizer.noise_multiplier = told, sigma

    patch.wrap(PrivateSteps, "step", step)


@named("the sum is divided by the batch that was drawn")
def divided_by_the_actual_batch(patch: Patch) -> None:
    def scale(real: Callable[..., None], self: Any) -> None:
        told, self.expected_batch_size = self.expected_batch_size, max(getattr(self, "drawn", 1), 1)
        real(self)
        self.expected_batch_size = told

    def accumulate(real: Callable[..., None], self: Any) -> None:
        if all(p.summed_grad is None for p in self.params):
            self.drawn = 0
        self.drawn = getattr(self, "drawn", 0) + self.records
        real(self)

    patch.wrap(SecretOptimizer, "clip_and_accumulate", accumulate)
    patch.wrap(SecretOptimizer, "scale_grad", scale)


@named("the divisor is rate times the private number of rows")
def divided_by_the_private_row_count(patch: Patch) -> None:
    def init(real: Callable[..., None], self: Any, module: Any, codes: Tensor, loss: Any, **rest: Any) -> None:
        real(self, module, codes, loss, **{**rest, "rows": len(codes)})

    patch.wrap(PrivateSteps, "__init__", init)


@named("a part of three records goes past the clip")
def three_at_a_time_are_not_clipped(patch: Patch) -> None:
    real = optimizer.autos
    _factors(patch, lambda norms, clip: torch.isfinite(norms).float() * 50 if len(norms) == 3 else real(norms, clip))


@named("a tenth of the sum of five steps ago is added once more")
def an_old_sum_comes_back(patch: Patch) -> None:
    def add_noise(real: Callable[..., None], self: Any) -> None:
        held = self.__dict__.setdefault("held", [])
        held.append([p.summed_grad.clone() for p in self.params])
        if len(held) > 5:
            for p, old in zip(self.params, held[-6], strict=True):
                p.summed_grad = p.summed_grad + 0.1 * old
        real(self)

    patch.wrap(SecretOptimizer, "add_noise", add_noise)


@named("every twentieth step follows the private loss")
def a_rare_step_looks_at_the_rows(patch: Patch) -> None:
    def step(real: Callable[..., None], self: Any, number: int, rate_factor: float) -> None:
        real(self, number, rate_factor * (1 + float(self.codes.double().mean()) * (number % 20 == 0 and number > 0)))

    patch.wrap(PrivateSteps, "step", step)


MUTANTS: tuple[Mutant, ...] = (
    no_clipping, twice_the_clip_norm, five_per_cent_over, clipped_to_the_median_of_the_batch,
    every_latent_sample_clipped_alone, nan_slips_through, overflow_skips_the_batch, the_batch_is_clipped,
    microbatches_of_four_are_clipped, every_layer_clipped_alone, a_layer_missing_from_the_norm,
    biases_missing_from_the_norm, fast_mode_forgets_a_layer, fast_mode_underestimates_the_norm,
    ghost_mode_underestimates_the_norm, batch_statistics, filled_from_the_batch, a_part_goes_past_the_clip,
    the_clip_norm_grows, divided_by_the_actual_batch, divided_by_the_private_row_count,
    three_at_a_time_are_not_clipped, an_old_sum_comes_back, a_rare_step_looks_at_the_rows,
)
