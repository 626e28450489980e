"""Training on texts: a generator written down from noisy sequences, and DP-SGD on its network where a share is left.

    anchored   calibrate and fit the automaton (free) -> DP-SGD on the network, the automaton and the free encoder
               held fixed -> sleep: the encoder learns from texts that the taught decoder draws (free)

A record is a unit: one text, or all texts of one person side by side, whose gradients are one and are clipped as one.
What a text's loss reads besides that text is released already, so no record sees another.

Shapes: B units, U texts of a unit, K samples, T places, Z latent; N = B x K x U texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpvae.models.text import TextVAE
from dpvae.train import texts
from dpvae.train.dpsgd import Example, PrivateSteps
from dpvae.train.independence import Loss
from dpvae.train.texts import Coded, trimmed
from dpvae.train.trainer import Moment, Trainer, TrainState

PHASES = ("fit", "dpsgd", "sleep")
RATE = 0.2  # of trainer.learning_rate: the automaton is near its optimum, and most of a gradient is noise
TOGETHER = 128  # units of a batch at once: more leave the cache


@dataclass(frozen=True)
class TextTrainer(Trainer):
    """``codes`` (units, U x (T + 1)): see :func:`packed`; ``shares`` (labels, A) are the noisy ones of tokens."""

    shares: Any = None
    per_unit: int = 1

    @property
    def phases(self) -> tuple[str, ...]:
        return PHASES

    def example(self) -> Example:
        return random_texts(self._model, self.codes.shape[1], self.per_unit)

    @property
    def _model(self) -> Any:
        return self.vae

    def _start(self) -> None:
        """The model is written down already."""

    def _restore(self) -> tuple[TrainState, dict[str, Any]]:
        found = super()._restore()
        self._model.prepare()  # a checkpoint holds the calibrated tilt, and not what follows from it
        return found

    def _fit(self, state: TrainState, saved: dict[str, Any]) -> Moment:
        """The automaton is held against what was measured, and the latent gets a meaning: post-processing."""
        steps, seed = self.plan.fit_steps, self.config.run.seed
        texts.calibrate(self._model, self.shares, seed=seed)
        texts.fit(self._model, steps=steps, seed=seed, listen=lambda step, _: self.listen(Moment("fit", step, steps)))
        return Moment("fit", steps, steps, self._release_metric(state, "fit", steps, 0))

    def _sleep(self, state: TrainState, saved: dict[str, Any], name: str = "sleep") -> None:
        """The encoder follows a decoder that DP-SGD has moved: post-processing."""
        if self.plan.sgd is not None:
            texts.sleep(self._model, steps=self.config.trainer.sleep_steps, seed=self.config.run.seed)
            self.listen(Moment(name, 1, 1))

    def _private_steps(self) -> PrivateSteps:
        assert self.plan.sgd is not None
        performance, samples = self.config.performance, self.plan.sgd.latent_samples
        return PrivateSteps(self._model.decoder, self.codes, decoder_only(self._model), plan=self.plan.sgd,
                            rows=self.rows, key=self.key, learning_rate=RATE * self.config.trainer.learning_rate,
                            microbatch=performance.microbatch or TOGETHER, clipping=performance.clipping,
                            precision=performance.precision, example=self.example(),
                            latents=(samples, self.per_unit, self._model.shape["latent_dim"]))

    def _elbos(self, number: int) -> Iterator[np.ndarray]:
        """One ELBO per unit, the mean of its texts'; private."""
        tokens_UNT, label_UN = split(self.codes, self.per_unit)
        there = label_UN > 0
        owner = torch.arange(len(self.codes))[:, None].expand_as(there)[there].numpy()
        values = texts.elbos(self._model, Coded(tokens_UNT[there], label_UN[there] - 1),
                             generator=self._generator("metric", number))
        values = np.clip(values, -self.plan.elbo_range, 0.0)
        yield np.bincount(owner, values, len(self.codes)) / np.bincount(owner, minlength=len(self.codes))


def packed(tokens_NT: Tensor, label_N: Tensor, owners: np.ndarray, per_unit: int) -> Tensor:
    """Texts side by side by owner, (units, per_unit x (T + 1)): tokens, then one more than the label's number; zeros
    where a unit has no more texts. ``owners`` ascend.

    >>> packed(torch.tensor([[5], [6], [7]]), torch.tensor([0, 1, 0]), np.array([0, 0, 1]), 2)
    tensor([[5, 1, 6, 2],
            [7, 1, 0, 0]], dtype=torch.int32)
    """
    place = np.arange(len(owners)) - np.searchsorted(owners, owners)
    codes = torch.zeros(int(owners[-1]) + 1 if len(owners) else 0, per_unit, tokens_NT.shape[1] + 1, dtype=torch.int32)
    codes[torch.as_tensor(owners), torch.as_tensor(place)] = torch.cat([tokens_NT, label_N[:, None] + 1], 1).int()
    return codes.flatten(1)


def split(codes_BC: Tensor, per_unit: int) -> tuple[Tensor, Tensor]:
    """Tokens (B, U, T) and one more than the number of the label (B, U) of packed units; 0: no text."""
    codes_BUT = codes_BC.unflatten(1, (per_unit, -1)).long()
    return codes_BUT[..., :-1], codes_BUT[..., -1]


def decoder_only(vae: TextVAE) -> Loss:
    """-mean_k sum_u log p(text u | length, label, z), z ~ q(z | text, label): of the network alone, in nats."""

    def loss(module: nn.Module, codes_BC: Tensor, noise_BKUZ: Tensor) -> Tensor:
        units, samples, per_unit, _ = noise_BKUZ.shape
        with torch.no_grad():
            tokens_BUT, label_BU = split(codes_BC, per_unit)
            tokens_NT = trimmed(tokens_BUT[:, None].expand(-1, samples, -1, -1).flatten(0, 2))
            label_N = (label_BU - 1).clamp_min(0)[:, None].expand(-1, samples, -1).flatten()
            base_NTA, before_NT, left_NT = vae.base(tokens_NT, label_N)
            mean_NZ, log_std_NZ = vae.encoder(tokens_NT, label_N)
            z_NZ = mean_NZ + log_std_NZ.exp() * noise_BKUZ.flatten(0, 2)
        log_N = vae.log_prob(module, base_NTA, before_NT, left_NT, tokens_NT, z_NZ, label_N)
        return -log_N.view(units, samples, per_unit).mean(1).sum(1)

    return loss


def random_texts(vae: TextVAE, width: int, per_unit: int) -> Example:
    """Units of long texts of random tokens and labels: for checks that must not look at a private one, and that tell
    records apart by what they add."""
    places = width // per_unit - 1
    most = min(places, texts.PLACES)

    def draw(count: int, generator: torch.Generator) -> Tensor:
        shape = (count, per_unit)
        tokens = torch.randint(1, vae.tokens, (*shape, places), generator=generator)
        length = torch.randint(most // 2 + 1, most + 1, (*shape, 1), generator=generator)
        label = torch.randint(0, len(vae.labels), (*shape, 1), generator=generator) + 1
        return torch.cat([tokens * (torch.arange(places) < length), label], -1).flatten(1).int()

    return draw
