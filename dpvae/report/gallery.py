"""What a model of images draws: rows of pictures per class, walks between latents, how sharp they are.

Everything is drawn from the released model, so it costs no privacy and may be published. Figures are PNG files inside
the page, written here: gray or RGB, no library needed.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpvae.rng import seed_of

PER_CLASS, MOST_CLASSES = 12, 20
STEPS = 9
TRAVERSED = 6  # directions that are walked along
SCALE = 2  # screen pixels of a pixel, at least; small images are drawn larger
SHARPNESS = 2000  # images behind the numbers


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file of gray (H, W) or RGB (H, W, 3) bytes.

    >>> png(np.zeros((2, 3), np.uint8))[:4]
    b'\\x89PNG'
    """
    height, width = pixels.shape[:2]
    flat = pixels.reshape(height, -1)
    lines = np.concatenate([np.zeros((height, 1), np.uint8), flat], 1).tobytes()  # a zero: no filter

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0 if pixels.ndim == 2 else 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")


def sheet(pictures: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Pictures (N, C, H, W) side by side in rows of ``columns``, with a gray line between, as (height, width [, 3])."""
    count, channels, height, width = pictures.shape
    rows = -(-count // columns)
    out = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, channels), 128, np.uint8)
    for i, picture in enumerate(pictures):
        top, left = (i // columns) * (height + 1) + 1, (i % columns) * (width + 1) + 1
        out[top:top + height, left:left + width] = picture.transpose(1, 2, 0)
    scale = max(SCALE, 48 // height)
    out = out.repeat(scale, 0).repeat(scale, 1)
    return out[..., 0] if channels == 1 else out


def figure(title: str, caption: str, alt: str, pixels: NDArray[np.uint8]) -> dict[str, str]:
    """One entry of ``gallery.json``."""
    return {"title": title, "caption": caption, "alt": alt,
            "png": "data:image/png;base64," + base64.b64encode(png(pixels)).decode()}


def laplacian_variance(pictures: NDArray[np.uint8]) -> float:
    """The mean variance of the Laplacian of pictures (N, C, H, W) with values in [0, 1]: how sharp they are."""
    x = pictures.astype(np.float64) / 255
    inner = (x[..., :-2, 1:-1] + x[..., 2:, 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:] - 4 * x[..., 1:-1, 1:-1])
    return float(inner.reshape(len(x), -1).var(1).mean())


def gallery(vae: Any, classes: Sequence[str], *, seed: int) -> list[dict[str, str]]:
    """The figures of a released :class:`~dpvae.models.images.ImageVAE`."""
    generator = torch.Generator().manual_seed(seed_of(seed, "gallery"))
    shown = torch.arange(min(len(classes), MOST_CLASSES))
    sample = vae.sample(shown.repeat_interleave(PER_CLASS), generator=generator).numpy()
    drawn = vae.sample(vae.draw_labels(SHARPNESS, generator=generator), generator=generator).numpy()
    names = ", ".join(classes[:MOST_CLASSES])
    few = f" (the first {MOST_CLASSES} of {len(classes)} classes)" if len(classes) > MOST_CLASSES else ""
    return [
        figure("Drawn from the model", f"{PER_CLASS} synthetic images of each class{few}: {names}. Mean variance of "
               f"their Laplacian (sharpness; it is 0 for a flat image): {laplacian_variance(drawn):.4f}.",
               f"A sheet of synthetic images, a row for each class: {names}", sheet(sample, PER_CLASS)),
        figure("From one image to another", "Each row walks in a straight line between two latents of a class.",
               "Rows of images that change step by step", sheet(_walks(vae, shown[:10], generator), STEPS)),
        figure("What the strongest directions mean", "Each row moves the middle of the first class along one "
               "direction, from -2 to 2 standard deviations.", "Rows of images along one latent direction each",
               sheet(_traversals(vae), STEPS)),
    ]


@torch.no_grad()
def reconstructions(vae: Any, x_ND: torch.Tensor, label_N: torch.Tensor) -> bytes:
    """A PNG of pictures, each above what the model makes of it. **It shows the pictures themselves**: of private ones
    it belongs into a run's ``private/`` folder."""
    mean_NZ, _ = vae.encode(x_ND, label_N)
    both = np.concatenate([(x_ND * 255).round().to(torch.uint8).view(-1, *vae.size).numpy(),
                           _pictures(vae, mean_NZ, label_N)])
    return png(sheet(both, len(x_ND)))


@torch.no_grad()
def _walks(vae: Any, labels: torch.Tensor, generator: torch.Generator) -> NDArray[np.uint8]:
    start, end = (vae.draw_latents(labels, generator=generator) for _ in range(2))
    along = torch.linspace(0, 1, STEPS)[None, :, None]
    z = (start[:, None] * (1 - along) + end[:, None] * along).flatten(0, 1)
    return _pictures(vae, z, labels.repeat_interleave(STEPS))


@torch.no_grad()
def _traversals(vae: Any) -> NDArray[np.uint8]:
    count = min(TRAVERSED, vae.basis.shape[0])
    middle = (vae.log_weights[0].exp()[:, None] * vae.centres[0]).sum(0)
    stretch = (vae.log_shares[0].exp() @ vae.stretches.square()).sqrt()
    spread = stretch * (vae.factors[0] @ vae.factors[0].T).diagonal().sqrt() + vae.centres[0].std(0, unbiased=False)
    z = middle.repeat(count * STEPS, 1)
    for i in range(count):
        z[i * STEPS:(i + 1) * STEPS, i] += torch.linspace(-2, 2, STEPS) * spread[i]
    return _pictures(vae, z, torch.zeros(len(z), dtype=torch.long))


def _pictures(vae: Any, z: torch.Tensor, labels: torch.Tensor) -> NDArray[np.uint8]:
    middle, _ = vae.decode(z, labels)
    pixels = (middle.clamp(0, 1) * 255).round().to(torch.uint8)
    return np.asarray(pixels.view(-1, *vae.size).numpy())
