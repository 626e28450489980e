"""Faults of the noise of DP-SGD: too little, too regular, not everywhere, not secret."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpvae.audit.instruments import NORMALS
from dpvae.audit.mutants.base import Mutant, Patch, named
from dpvae.privacy.noise import SecretKey, SecretStream
from dpvae.train.clipping.optimizer import SecretOptimizer
from dpvae.train.dpsgd import PrivateSteps

Change = Callable[[Any, Tensor], Tensor]  # (optimizer, noise (P,)) -> what is added instead


def _instead(patch: Patch, change: Change) -> None:
    """Replaces the noise by ``change(optimizer, noise)``, after it was drawn and scaled."""
    def add_noise(real: Callable[..., None], self: Any) -> None:
        real(self)
        parts = [(p.grad - p.summed_grad).flatten() for p in self.params]
        noise = change(self, torch.cat(parts)).split([len(part) for part in parts])
        for p, part in zip(self.params, noise, strict=True):
            p.grad = (p.summed_grad + part.view_as(p)).clone()

    patch.wrap(SecretOptimizer, "add_noise", add_noise)


def _simple(name: str, says: str, change: Change, **where: Any) -> Mutant:
    return Mutant(name, says, lambda patch: _instead(patch, change), **where)


def _counter() -> Callable[[Any], int]:
    """How many updates an optimiser has made."""
    def count(optimizer: Any) -> int:
        optimizer.made = getattr(optimizer, "made", -1) + 1
        return int(optimizer.made)

    return count


def _remembered(change: Callable[[int, Tensor, Tensor], Tensor]) -> Change:
    """``change(step, noise of the first step, noise)``."""
    count = _counter()

    def remember(optimizer: Any, noise: Tensor) -> Tensor:
        step = count(optimizer)
        if step == 0:
            optimizer.first = noise.clone()
        return change(step, optimizer.first, noise)

    return remember


def _uniform(optimizer: Any, noise: Tensor) -> Tensor:
    scale = optimizer.noise_multiplier * optimizer.max_grad_norm
    return (2 * torch.special.ndtr(noise / scale) - 1) * scale * 3**0.5


def _laplace(optimizer: Any, noise: Tensor) -> Tensor:
    scale = optimizer.noise_multiplier * optimizer.max_grad_norm
    u = torch.special.ndtr(noise.double() / scale).clamp(1e-9, 1 - 1e-9) - 0.5
    return (-u.sign() * torch.log1p(-2 * u.abs()) * scale / 2**0.5).to(noise.dtype)


def _no_biases(optimizer: Any, noise: Tensor) -> Tensor:
    parts = noise.split([p.numel() for p in optimizer.params])
    return torch.cat([part * (p.dim() > 1) for p, part in zip(optimizer.params, parts, strict=True)])


def _along_gradient(optimizer: Any, noise: Tensor) -> Tensor:
    """Noise that leaves the direction of the gradient alone, "so that it hurts less"."""
    direction = torch.cat([p.summed_grad.flatten() for p in optimizer.params])
    return noise - direction * (noise @ direction) / direction.square().sum().clamp_min(1e-12)


def _first_layer_only(optimizer: Any, noise: Tensor) -> Tensor:
    kept = torch.zeros_like(noise)
    kept[:-optimizer.params[-2].numel()] = 1
    return noise * kept


def _empty_batches(optimizer: Any, noise: Tensor) -> Tensor:
    silent = all(not p.summed_grad.any() for p in optimizer.params)
    return torch.zeros_like(noise) if silent else noise


def _follows_gradient(optimizer: Any, noise: Tensor) -> Tensor:
    """Noise relative to the gradient's own size: louder where there is more to hide, and so a message."""
    size = torch.cat([p.summed_grad.flatten() for p in optimizer.params]).norm()
    return noise * (0.9 + 0.2 * size / (1 + size))


def _subspace(optimizer: Any, noise: Tensor) -> Tensor:
    """Noise in a random half of the space, twice the variance: each coordinate looks right."""
    half = noise.view(-1)[: noise.numel() // 2 * 2].view(2, -1)
    mixed = torch.cat([half[0], half[0]]) if half.numel() else noise
    return torch.cat([mixed, noise[mixed.numel():]])


@named("ranks: each of four adds sigma / 4 where sigma / 2 was due")
def four_ranks_each_a_quarter(patch: Patch) -> None:
    def change(optimizer: Any, noise: Tensor) -> Tensor:
        ranks = torch.stack([noise, noise.roll(1), noise.roll(2), noise.roll(3)])
        return ranks.sum(0) / 4

    _instead(patch, change)


@named("noise from the global generator: whoever seeds it knows it")
def noise_from_the_global_generator(patch: Patch) -> None:
    patch.set(PrivateSteps, "_noise", lambda self, number, size: torch.randn(size))


@named("the noise stream's name lacks the step")
def same_noise_stream_every_step(patch: Patch) -> None:
    patch.wrap(PrivateSteps, "_noise", lambda real, self, number, size: real(self, 0, size))


@named("the noise of the step before is used up first: each serves two steps")
def every_noise_twice(patch: Patch) -> None:
    patch.wrap(PrivateSteps, "_noise", lambda real, self, number, size: real(self, number // 2, size))


@named("noise is seeded by the public seed")
def noise_from_a_public_seed(patch: Patch) -> None:
    def drawn(self: Any, number: int, size: int) -> Tensor:
        return torch.randn(size, generator=torch.Generator().manual_seed(number))

    patch.set(PrivateSteps, "_noise", drawn)


def _divided(patch: Patch, by: Callable[[Any, int], float]) -> None:
    """Each step has its noise divided by ``by(steps, number)``."""
    def step(real: Callable[..., None], self: Any, number: int, rate_factor: float) -> None:
        sigma = self.optimizer.noise_multiplier
        self.optimizer.noise_multiplier = sigma / by(self, number)
        try:
            real(self, number, rate_factor)
        finally:
            self.optimizer.noise_multiplier = sigma

    patch.wrap(PrivateSteps, "step", step)


@named("noise for every part of an accumulated batch is averaged over the parts")
def accumulation_divides_the_noise(patch: Patch) -> None:
    def parts(steps: Any) -> int:
        return max(1, int(len(steps.codes) * steps.plan.sampling_rate / steps.microbatch + 0.5))

    _divided(patch, lambda steps, number: parts(steps) + 1)


@named("batches larger than most get half of the noise: they hide better")
def large_batches_are_quieter(patch: Patch) -> None:
    def accumulate(real: Callable[..., None], self: Any) -> None:
        if all(p.summed_grad is None for p in self.params):
            self.drawn = 0
        self.drawn += self.records
        real(self)

    patch.wrap(SecretOptimizer, "clip_and_accumulate", accumulate)
    _instead(patch, lambda o, z: z * (0.5 if o.drawn > 1.6 * o.expected_batch_size else 1.0))


@named("from the fiftieth step on, half of the noise")
def quiet_when_it_is_late(patch: Patch) -> None:
    _divided(patch, lambda steps, number: 1 + (number >= 50))


@named("tails beyond four standard deviations are cut, where chance comes from")
def source_cut_at_four_sd(patch: Patch) -> None:
    for kind in NORMALS:
        patch.wrap(SecretStream, kind, lambda real, *args, **rest: np.clip(real(*args, **rest), -4, 4))


@named("each step's key is its number")
def noise_of_a_key_of_the_step(patch: Patch) -> None:
    def drawn(real: Callable[..., Tensor], self: PrivateSteps, number: int, size: int) -> Tensor:
        told, self.key = self.key, SecretKey.from_seed(number)
        try:
            return real(self, number, size)
        finally:
            self.key = told

    patch.wrap(PrivateSteps, "_noise", drawn)


def _but_one_direction(optimizer: Any, noise: Tensor) -> Tensor:
    """A direction of thousands that anybody can name gets none."""
    named_ = torch.randn(len(noise), generator=torch.Generator().manual_seed(3)).to(noise)
    return noise - named_ * (noise @ named_) / named_.square().sum()


def _partly_the_last(optimizer: Any, noise: Tensor) -> Tensor:
    last, optimizer.last = getattr(optimizer, "last", noise), noise.clone()
    return 0.9997**0.5 * noise + 0.0003**0.5 * last


MUTANTS: tuple[Mutant, ...] = (
    _simple("no noise", "noise is forgotten", lambda o, z: z * 0),
    _simple("noise halved", "a claimed epsilon of 1 is one of about 3", lambda o, z: z / 2),
    _simple("noise of two workers", "each of two workers adds its own, then they average", lambda o, z: z / 2**0.5),
    _simple("noise 5 % too small", "a rounding of sigma", lambda o, z: z * 0.95),
    _simple("noise of the mean", "sigma C / B is added to the sum", lambda o, z: z / o.expected_batch_size),
    _simple("uniform noise", "the variance is right, the law is not", _uniform),
    _simple("Laplace noise", "the variance is right, the law is not", _laplace),
    _simple("noise cut at two sd", "outliers of the noise are clipped", lambda o, z: z.clamp(
        -2 * o.noise_multiplier * o.max_grad_norm, 2 * o.noise_multiplier * o.max_grad_norm)),
    _simple("one number for all", "one draw is broadcast", lambda o, z: z[:1].expand_as(z)),
    _simple("coarse noise", "noise in eight bits", lambda o, z: (z / o.noise_multiplier * 8).round()
            / 8 * o.noise_multiplier),
    _simple("no noise on biases", "only matrices get noise", _no_biases),
    _simple("last matrix silent", "a layer is missing from the loop over parameters", _first_layer_only),
    _simple("noise spares the gradient", "noise is projected off the gradient's direction", _along_gradient),
    _simple("noise in half the space", "the second half of the vector repeats the first", _subspace),
    _simple("noise follows the gradient", "its scale depends on the private sum", _follows_gradient),
    _simple("empty batches are silent", "'if not len(batch): continue'", _empty_batches),
    _simple("same noise every step", "drawn once, kept", _remembered(lambda step, first, z: first)),
    _simple("noise with alternating sign", "drawn once, its sign flipped every step",
            _remembered(lambda step, first, z: first * (-1) ** step)),
    _simple("same values shuffled", "drawn once, permuted every step",
            _remembered(lambda step, first, z: first[torch.randperm(len(z), generator=torch.Generator(
            ).manual_seed(step))])),
    _simple("no noise in the first step", "a warm-up", _remembered(lambda step, first, z: z * (step > 0))),
    _simple("every tenth step silent", "a fast path", _remembered(lambda step, first, z: z * (step % 10 != 9))),
    _simple("noise fades", "a schedule that nobody booked", _remembered(lambda step, first, z: z * 0.99**step)),
    _simple("one rank is silent", "two ranks, the second forgets its noise", lambda o, z: torch.cat(
        [z[:1], z[1:]]) * 0.5**0.5),
    four_ranks_each_a_quarter, noise_from_the_global_generator, same_noise_stream_every_step, every_noise_twice,
    noise_from_a_public_seed, accumulation_divides_the_noise, large_batches_are_quieter, quiet_when_it_is_late,
    source_cut_at_four_sd, noise_of_a_key_of_the_step,
    _simple("noise cut at 3.5 sd", "tails that no ten thousand numbers show", lambda o, z: z.clamp(
        -3.5 * o.noise_multiplier * o.max_grad_norm, 3.5 * o.noise_multiplier * o.max_grad_norm)),
    _simple("noise in all directions but one", "a projection", _but_one_direction),
    _simple("noise remembers", "a trace of the last step's noise is in this one's", _partly_the_last),
    _simple("noise 1 % too small", "a rounding of sigma", lambda o, z: z * 0.99),
    _simple("noise in half precision", "its last digits tell what it was added to", lambda o, z: z.half().float()),
)
