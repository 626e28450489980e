"""What a released model of images is used for: ``dpvae score`` and ``dpvae sample``. Post-processing: costs no privacy.

A score is a bound on log p(image, class) in nats, a sum over all classes where an image comes without one. The latents
that it is taken over are the same for every image, so a score does not depend on the images beside it. **A score of a
private image is about that image**: it is as private as the image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpvae import checks
from dpvae.config import SampleConfig, ScoreConfig
from dpvae.data import images as reader
from dpvae.data.lake import Cells
from dpvae.errors import ConfigError, DataError
from dpvae.files import whole
from dpvae.models.image_bounds import bounds
from dpvae.models.images import AT_ONCE, ImageVAE
from dpvae.models.prior import systematic
from dpvae.release import export
from dpvae.release.images import FILE, Drawn, channels_last, load_images, write_images
from dpvae.release.sample import parse_given
from dpvae.release.score import IMPORTANCE_SAMPLES, UNKNOWN
from dpvae.rng import seed_of

SAMPLES = {"iwae": IMPORTANCE_SAMPLES, "elbo": 4, "reconstruction": 4}  # latents per image and class


def score(config: ScoreConfig, public: Path, to: Path) -> str:
    """``dpvae score`` for images: nats per image and per pixel, higher is stranger; returns what to tell the user."""
    if config.threshold is not None or config.id is not None or "," in config.run:
        raise ConfigError(f"run={config.run}: is of images; expected one run, and neither threshold= nor id=")
    if config.score not in SAMPLES:
        raise ConfigError(f"score={config.score}: is for tables; expected one of {', '.join(SAMPLES)} for images")
    if config.table is None:
        raise ConfigError("data=null: expected images, such as data=images.npz")
    vae, classes = load_images(public)
    held = reader.read(config.table, least=1)
    if held.size != vae.size:
        raise DataError(f"{config.table}: images of {reader.described(held.size)}; the model knows "
                        f"{reader.described(vae.size)}")
    scores = -log_prob(vae, classes, held, config.score, seed=config.seed)
    nothing = np.zeros(len(scores), dtype=bool)
    cells = {"row": Cells(np.arange(len(scores)), nothing, "int64"),
             "label": Cells(held.labels.astype(object), held.labels == "", "string"),
             "score": Cells(scores, nothing, "double"),
             "per_pixel": Cells(scores / math.prod(vae.size), nothing, "double")}
    rows = export.write([cells], to, format=export.format_of(str(to), None), table="scores")
    return (f"scored {rows:,} images in nats (higher is stranger): {to}\n"
            "A score is about its image and as private as that image: the file is for you, not for publication.")


@torch.no_grad()
def log_prob(vae: ImageVAE, classes: tuple[str, ...], held: reader.ImageSet, score: str, *,
             seed: int) -> NDArray[np.float64]:
    """The ``score`` of each image, (images,) nats; lower is stranger.

    ``iwae`` and ``elbo`` bound log p(image, class), ``reconstruction`` is E_q log p(image | z, class). Without a class,
    or with one that the model never heard of (which costs as much as in a table), they are summed over all classes;
    a reconstruction is then that of the likeliest one.
    """
    generator = torch.Generator().manual_seed(seed_of(seed, "images", "score"))
    noise_KZ = torch.randn(SAMPLES[score], vae.basis.shape[0], generator=generator)
    number = {name: i for i, name in enumerate(classes)}
    known = np.array([number.get(label, -1) for label in held.labels.tolist()], dtype=np.int64)
    pixels = held.pixels.reshape(held.rows, -1)
    found = np.full(held.rows, -np.inf)
    for c in np.unique(known[known >= 0]).tolist():
        mine = np.flatnonzero(known == c)
        found[mine] = _of_class(vae, pixels[mine], c, score, noise_KZ)
    if (strangers := np.flatnonzero(known < 0)).size:
        among = "elbo" if score == "reconstruction" else score
        each = np.stack([_of_class(vae, pixels[strangers], c, among, noise_KZ) for c in range(len(classes))])
        if score == "reconstruction":
            best = each.argmax(0)
            for c in np.unique(best).tolist():
                found[strangers[best == c]] = _of_class(vae, pixels[strangers[best == c]], c, score, noise_KZ)
        else:
            found[strangers] = np.logaddexp.reduce(each, 0)
        found[strangers] += np.where(held.labels[strangers] == "", 0.0, UNKNOWN)
    return found


def _of_class(vae: ImageVAE, pixels: NDArray[np.uint8], c: int, score: str,
              noise_KZ: Tensor) -> NDArray[np.float64]:
    """The score of images (N, D) as pictures of class ``c``, (N,) nats."""
    bound = bounds(vae, torch.as_tensor(pixels), torch.full((len(pixels),), c), noise_KZ)
    value_KN = -bound.distortion if score == "reconstruction" else bound.value
    value_N = value_KN.logsumexp(0) - math.log(len(value_KN)) if score == "iwae" else value_KN.mean(0)
    return np.asarray(value_N.numpy())


def sample(config: SampleConfig, public: Path) -> str:
    """``dpvae sample`` for images: an NPZ file like a release's; returns what to tell the user."""
    if config.format is not None or Path(config.to).suffix.lower() != ".npz":
        raise ConfigError(f"to={config.to!r}: the run is of images; expected an .npz file, such as to={FILE}")
    if config.id is not None or (config.given is not None and not config.given.lstrip().startswith("{")):
        raise ConfigError(f"run={config.run}: is of images; expected given.label=CLASS, and neither id= nor partial "
                          "rows")
    vae, classes = load_images(public)
    shares_C = _shares(config, classes, vae.log_labels.double().exp())
    rows, to = config.rows if config.rows is not None else 1000, Path(config.to)
    to.absolute().parent.mkdir(parents=True, exist_ok=True)
    with whole(to) as part:
        write_images(part, _blocks(vae, shares_C.log(), rows, seed=config.seed), rows, vae.size, classes)
    return f"drew {rows:,} synthetic images: {to}; nothing was spent"


def _shares(config: SampleConfig, classes: tuple[str, ...], shares_C: Tensor) -> Tensor:
    """How often each class is to be drawn: as the model knows them, under a condition, in another balance."""
    given = parse_given(config.given) if config.given is not None else {}
    if unknown := [name for name in given if name != "label"]:
        raise DataError(f"given.{unknown[0]}: expected given.label=CLASS; a run of images has no other column")
    if config.balance is not None:
        asked = dict.fromkeys(classes, 1.0) if config.balance == "even" else parse_given(config.balance)
        shares_C = _of_names(asked, classes, "balance")
    if "label" in given:
        wanted = given["label"] if isinstance(given["label"], list) else [given["label"]]
        shares_C = shares_C * _of_names(dict.fromkeys(wanted, 1.0), classes, "given.label")
    if not float(shares_C.sum()) > 0:
        raise DataError("balance: gives every class that is asked for a share of 0; expected one above 0")
    return shares_C / shares_C.sum()


def _of_names(asked: Mapping[str, Any], classes: tuple[str, ...], knob: str) -> Tensor:
    """(C,) shares by name; 0 for the classes that are not named."""
    shares_C = torch.zeros(len(classes), dtype=torch.float64)
    for name, share in asked.items():
        if str(name) not in classes:
            raise DataError(f"{knob}={name!r}: the model knows no such class; there are "
                            f"{', '.join(classes[:12])}{checks.did_you_mean(str(name), classes)}")
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < math.inf:
            raise DataError(f"{knob}: a share of {share!r} for {name}; expected numbers that are not negative")
        shares_C[classes.index(str(name))] = float(share)
    return shares_C


def _blocks(vae: ImageVAE, log_shares_C: Tensor, rows: int, *, seed: int) -> Iterator[Drawn]:
    """Whole blocks of their own seeds, the last one cut: image i is the same however many are asked for."""
    for number, first in enumerate(range(0, rows, AT_ONCE)):
        generator = torch.Generator().manual_seed(seed_of(seed, "images", "sample", number))
        label_N = systematic(log_shares_C, AT_ONCE, generator=generator)
        images = channels_last(vae.sample(label_N, generator=generator).numpy())
        yield images[:rows - first], label_N.numpy()[:rows - first]
