"""The textbook DP-VAE of images: a convolutional encoder and decoder under one clip, a standard normal prior.

Kept as a baseline (``trainer=joint``): no moments are measured, and every parameter, the encoder's too, is noised.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpvae.models.images import LOG_SCALE, START, ImageVAE, initialise

LATENT = 16


class Encoder(nn.Module):
    """Picture and class to mean and log standard deviation of z, (N, 2 Z)."""

    def __init__(self, size: tuple[int, int, int], classes: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.size = size
        self.first = nn.Conv2d(4 * size[0], hidden, 3, padding=1)
        self.second = nn.Conv2d(hidden, hidden, 3, padding=1, stride=2)
        height, width = (-(-side // 4) for side in size[1:])
        self.out = nn.Linear(hidden * height * width + classes, 2 * latent)

    def forward(self, x_ND: Tensor, label_NC: Tensor) -> Tensor:
        _, height, width = self.size
        picture = F.pad(x_ND.view(-1, *self.size) * 2 - 1, (0, width % 2, 0, height % 2))
        hidden = F.silu(self.second(F.silu(self.first(F.pixel_unshuffle(picture, 2)))))
        return self.out(torch.cat([hidden.flatten(1), label_NC], 1))


class Decoder(nn.Module):
    """Latent and class to middle and log scale of every pixel's law."""

    def __init__(self, size: tuple[int, int, int], classes: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.size, self.hidden = size, hidden
        self.small = [-(-side // 4) for side in size[1:]]
        self.inside = nn.Linear(latent + classes, hidden * self.small[0] * self.small[1])
        self.first = nn.Conv2d(hidden, 4 * hidden, 3, padding=1)
        self.outside = nn.Conv2d(hidden, 8 * size[0], 3, padding=1)

    def forward(self, z_NZ: Tensor, label_NC: Tensor) -> tuple[Tensor, Tensor]:
        channels, height, width = self.size
        hidden = F.silu(self.inside(torch.cat([z_NZ, label_NC], 1))).view(-1, self.hidden, *self.small)
        hidden = F.pixel_shuffle(F.silu(self.first(hidden)), 2)
        out = F.pixel_shuffle(self.outside(hidden), 2)[:, :, :height, :width]
        return out[:, :channels].flatten(1) + 0.5, (out[:, channels:].flatten(1) + START).clamp(*LOG_SCALE)


class Both(nn.Module):
    """Encoder and decoder with one forward pass, for joint training: ((N x K) laws, means, log deviations)."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, x_ND: Tensor, label_NC: Tensor, noise_NKZ: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean_NZ, log_std_NZ = self.encoder(x_ND, label_NC).chunk(2, 1)
        log_std_NZ = log_std_NZ.clamp(-6.0, 3.0)
        z_MZ = (mean_NZ[:, None] + log_std_NZ.exp()[:, None] * noise_NKZ).flatten(0, 1)
        middle_MD, log_scale_MD = self.decoder(z_MZ, label_NC.repeat_interleave(noise_NKZ.shape[1], 0))
        return middle_MD, log_scale_MD, mean_NZ, log_std_NZ


class JointImageVAE(ImageVAE):
    """An :class:`ImageVAE` whose prior is the standard normal and whose halves are both learned."""

    def __init__(self, size: tuple[int, int, int], *, classes: int, clusters: int = 1, directions: int = LATENT,
                 axes: int = 1, stretches: int = 1, posed: bool = False, hidden: int,
                 generator: torch.Generator) -> None:
        super().__init__(size, classes=classes, clusters=clusters, directions=directions, axes=axes,
                         stretches=stretches, posed=posed, hidden=hidden, generator=generator)
        self.encoder = Encoder(self.size, classes, hidden, directions)
        decoder = Decoder(self.size, classes, hidden, directions)
        initialise(self.encoder, generator)
        initialise(decoder, generator)
        self.decoder = decoder  # type: ignore[assignment]

    def one_hot(self, label_N: Tensor) -> Tensor:
        return F.one_hot(label_N, len(self.log_labels)).float()

    def decode(self, z_NZ: Tensor, label_N: Tensor) -> tuple[Tensor, Tensor]:
        middle_ND, log_scale_ND = self.decoder(z_NZ, self.one_hot(label_N))
        return middle_ND, log_scale_ND

    def laws(self, z_NZ: Tensor, label_N: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [self.decode(z_NZ, label_N)]

    def encode(self, x_ND: Tensor, label_N: Tensor) -> tuple[Tensor, Tensor]:
        mean_NZ, log_std_NZ = self.encoder(x_ND, self.one_hot(label_N)).chunk(2, 1)
        return mean_NZ, log_std_NZ.clamp(-6.0, 3.0)

    def dream(self, count: int, *, generator: torch.Generator) -> None:
        """Nothing: the encoder is learned with the decoder."""
