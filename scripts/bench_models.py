#!/usr/bin/env python3
"""The models that the benchmarks time: a table MLP, an image VAE with transposed convolutions, two text VAEs.

Each is what its kind of user trains: (module, loss per record, records, latents per record). Random records: time does
not depend on values.

Shapes: B records, D columns, Z latent, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpvae.models.elbo import kl_to_standard_normal
from dpvae.models.vae import VAE
from dpvae.train import objectives

LATENT, STEPS, VOCABULARY, WIDTH = 32, 64, 256, 128
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Model:
    """What is trained, on what; ``latents`` is the shape of each record's random numbers."""

    module: nn.Module
    loss: Loss
    records: Callable[[int], Tensor]
    latents: tuple[int, ...]


def table(columns: int = 12, values: int = 10, hidden: int = 256) -> Model:
    """120-256-256-(2 x 32)-256-256-120, 218 thousand parameters; one latent sample."""
    vae = VAE([values] * columns, latent_dim=LATENT, hidden=hidden, layers=2, components=None,
              generator=torch.Generator().manual_seed(0))
    return Model(objectives.EncoderAndDecoder(vae), objectives.joint(vae),
                 lambda rows: torch.randint(0, values, (rows, columns)), (1, LATENT))


class _Vae(nn.Module):
    """Encoder -> (mean, log standard deviation) -> latent -> decoder, for one latent sample."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, x: Tensor, noise_B1Z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean_BZ, log_std_BZ = self.encoder(x).chunk(2, -1)
        log_std_BZ = log_std_BZ.clamp(-6.0, 3.0)
        return self.decode(mean_BZ + log_std_BZ.exp() * noise_B1Z[:, 0], x), mean_BZ, log_std_BZ

    def decode(self, z_BZ: Tensor, x: Tensor) -> Tensor:
        return self.decoder(z_BZ)


def conv() -> Model:
    """28 x 28: convolutions 1-32-64 of stride two, a dense latent, transposed convolutions back; 371 thousand."""
    encoder = nn.Sequential(nn.Conv2d(1, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 4, 2, 1), nn.ReLU(), nn.Flatten(),
                            nn.Linear(64 * 49, 2 * LATENT))
    decoder = nn.Sequential(nn.Linear(LATENT, 64 * 49), nn.ReLU(), nn.Unflatten(1, (64, 7, 7)),
                            nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(32, 1, 4, 2, 1))

    def loss(module: nn.Module, x: Tensor, noise_B1Z: Tensor) -> Tensor:
        logits, mean_BZ, log_std_BZ = module(x, noise_B1Z)
        distortion_B = F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)
        return distortion_B + kl_to_standard_normal(mean_BZ, log_std_BZ)

    return Model(_Vae(encoder, decoder), loss, lambda rows: torch.rand(rows, 1, 28, 28), (1, LATENT))


class _Block(nn.Module):
    """Pre-normalised attention and MLP, by linear layers."""

    def __init__(self, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in self.qkv(self.first(x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).flatten(2))
        return x + self.mlp(self.second(x))


class _Text(_Vae):
    """Tokens in, the next token out: the decoder sees the latent and the tokens before."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__(encoder, decoder)
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(STEPS, WIDTH)
        self.to_latent, self.from_latent = nn.Linear(WIDTH, 2 * LATENT), nn.Linear(LATENT, WIDTH)
        self.out = nn.Linear(WIDTH, VOCABULARY)

    def embed(self, x_BT: Tensor) -> Tensor:
        places_BT = torch.arange(STEPS, device=x_BT.device).expand_as(x_BT)
        return self.tokens(x_BT) + self.places(places_BT.contiguous())  # as Opacus' ghost clipping wants it

    def forward(self, x_BT: Tensor, noise_B1Z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_BTd = self.embed(x_BT)
        mean_BZ, log_std_BZ = self.to_latent(_hidden(self.encoder(x_BTd)).mean(1)).chunk(2, -1)
        log_std_BZ = log_std_BZ.clamp(-6.0, 3.0)
        z_BZ = mean_BZ + log_std_BZ.exp() * noise_B1Z[:, 0]
        h_BTd = F.pad(x_BTd[:, :-1], (0, 0, 1, 0)) + self.from_latent(z_BZ)[:, None]
        return self.out(_hidden(self.decoder(h_BTd))), mean_BZ, log_std_BZ


def _hidden(out: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]


def _text(encoder: nn.Module, decoder: nn.Module) -> Model:
    def loss(module: nn.Module, x_BT: Tensor, noise_B1Z: Tensor) -> Tensor:
        logits_BTV, mean_BZ, log_std_BZ = module(x_BT, noise_B1Z)
        distortion_B = F.cross_entropy(logits_BTV.mT, x_BT, reduction="none").sum(1)
        return distortion_B + kl_to_standard_normal(mean_BZ, log_std_BZ)

    return Model(_Text(encoder, decoder), loss, lambda rows: torch.randint(0, VOCABULARY, (rows, STEPS)), (1, LATENT))


def transformer() -> Model:
    """Two blocks each way, 64 positions of 256 tokens, width 128; 880 thousand parameters."""
    return _text(nn.Sequential(*(_Block(causal=False) for _ in range(2))),
                 nn.Sequential(*(_Block(causal=True) for _ in range(2))))


def gru() -> Model:
    """A GRU each way, the same sizes; 280 thousand parameters."""
    return _text(nn.GRU(WIDTH, WIDTH, batch_first=True), nn.GRU(WIDTH, WIDTH, batch_first=True))


MODELS: dict[str, tuple[Callable[[], Model], tuple[int, ...]]] = {
    "table": (table, (256, 1024, 4096, 16384)), "conv": (conv, (256, 4096)), "transformer": (transformer, (128, 1024)),
    "gru": (gru, (128, 1024)),
}
