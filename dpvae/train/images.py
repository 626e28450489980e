"""Training on images: DP-SGD on the small decoder that stands on the moments, and a free encoder.

    anchored   the moments as they are (fit) -> DP-SGD on pairs (z(x), x) -> sleep (free)
    joint      DP-SGD on a convolutional encoder and decoder: the textbook DP-VAE, a baseline

z(x) is the projection on released directions: a function of one image and of what is released, so the encoder of
``anchored`` costs nothing, and everything that DP-SGD has to learn is what a picture looks like around its linear part.
The logistic law with a width for every pixel is what makes that worth while: the middle of the law is a median, so
backgrounds come out black and edges hard, where a mean is gray.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpvae.models.elbo import kl_to_standard_normal
from dpvae.models.image_bounds import bounds
from dpvae.models.images import ImageVAE, Pixels
from dpvae.models.joint_images import Both, JointImageVAE
from dpvae.train.dpsgd import Example, PrivateSteps
from dpvae.train.independence import Loss
from dpvae.train.trainer import Moment, Trainer, TrainState

PHASES = {"anchored": ("fit", "dpsgd", "sleep"), "joint": ("dpsgd",)}
RATE = 0.15  # of trainer.learning_rate: with larger steps Adam walks at random, since most of a gradient is noise
PICTURES, FIT_STEPS = 16, 256  # of a free step: what the decoder draws for the encoder; steps where none are asked for


@dataclass(frozen=True)
class ImageTrainer(Trainer):
    """``codes`` (rows, D + 1) uint8: pixels, then the class."""

    @property
    def phases(self) -> tuple[str, ...]:
        return PHASES[self.config.trainer.name]

    def example(self) -> Example:
        return random_images(self._model)

    def _start(self) -> None:
        """The model is made of what is known already."""

    @property
    def _model(self) -> Any:
        return self.vae

    def _fit(self, state: TrainState, saved: dict[str, Any]) -> Moment:
        """The moments are a model already; the encoder learns from its pictures: post-processing."""
        steps = self.config.trainer.fit_steps or FIT_STEPS
        self._model.dream(PICTURES * steps, generator=self._generator("dream"))
        return Moment("fit", 1, 1, self._release_metric(state, "fit", 0, 0))

    def _sleep(self, state: TrainState, saved: dict[str, Any], name: str = "sleep") -> None:
        """The encoder learns from the decoder's own pictures: post-processing."""
        self._model.dream(PICTURES * self.config.trainer.sleep_steps, generator=self._generator(name))
        self.listen(Moment(name, 1, 1))

    def _private_steps(self) -> PrivateSteps:
        assert self.plan.sgd is not None
        performance, samples = self.config.performance, self.plan.sgd.latent_samples
        module, loss = self._model.decoder, pairs(self._model)
        if isinstance(self._model, JointImageVAE):
            module, loss = Both(self._model.encoder, module), both(self._model)
        return PrivateSteps(module, self.codes, loss, plan=self.plan.sgd, rows=self.rows,
                            key=self.key, learning_rate=RATE * self.config.trainer.learning_rate,
                            microbatch=performance.microbatch, clipping=performance.clipping,
                            compile=performance.compile, precision=performance.precision,
                            latents=(samples, self._model.basis.shape[0]), example=self.example(),
                            processes=self.processes)

    def _elbos(self, number: int) -> Iterator[np.ndarray]:
        """One ELBO per image, (images,), in one block; private."""
        noise_1Z = torch.randn(1, self._model.basis.shape[0], generator=self._generator("metric", number),
                               device=self.codes.device)
        if len(self.codes):
            yield bounds(self._model, self.codes[:, :-1], self.codes[:, -1].long(), noise_1Z).value[0].cpu().numpy()


def split(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels in [0, 1] and class numbers of records."""
    return codes[:, :-1].float() / 255, codes[:, -1].long()


def pairs(vae: ImageVAE) -> Loss:
    """-mean_k log p(x | z_k, y) per pixel, z_k ~ q(z | x, y): of the decoder alone."""

    def loss(module: nn.Module, codes: Tensor, noise_BKZ: Tensor) -> Tensor:
        samples = noise_BKZ.shape[1]
        with torch.no_grad():
            x_BD, label_B = split(codes)
            mean_BZ, log_std_BZ = vae.encode(x_BD, label_B)
            z_NZ = (mean_BZ[:, None] + log_std_BZ.exp()[:, None] * noise_BKZ).flatten(0, 1)
            label_N = label_B.repeat_interleave(samples)
            linear_ND, mean_ND = vae.linear(z_NZ, label_N)
            x_ND = x_BD.repeat_interleave(samples, 0)
        log_N = Pixels.log_prob(x_ND, *module(linear_ND, mean_ND))
        return -log_N.view(len(x_BD), samples).mean(1) / x_BD.shape[1]

    return loss


def both(vae: JointImageVAE) -> Loss:
    """-ELBO of each image per pixel: of encoder and decoder together."""

    def loss(module: nn.Module, codes: Tensor, noise_BKZ: Tensor) -> Tensor:
        x_BD, label_B = split(codes)
        middle_ND, log_scale_ND, mean_BZ, log_std_BZ = module(x_BD, vae.one_hot(label_B), noise_BKZ)
        log_N = Pixels.log_prob(x_BD.repeat_interleave(noise_BKZ.shape[1], 0), middle_ND, log_scale_ND)
        distortion_B = -log_N.view(len(x_BD), -1).mean(1)
        return (distortion_B + kl_to_standard_normal(mean_BZ, log_std_BZ)) / x_BD.shape[1]

    return loss


def random_images(vae: ImageVAE) -> Example:
    """Images of random pixels and classes: for checks that must not look at a private one."""

    def draw(count: int, generator: torch.Generator) -> Tensor:
        pixels = torch.randint(0, 256, (count, vae.pixels), generator=generator)
        labels = torch.randint(0, len(vae.means), (count, 1), generator=generator)
        return torch.cat([pixels, labels], 1).to(torch.uint8)

    return draw
