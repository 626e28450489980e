"""From a released image model to images: the file of a release, and the pictures of a report. Costs no privacy.

Images are drawn in blocks of their own seeds, straight into ``images.npz``: as many as are asked for, and no more than
a block in memory.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save

from dpvae.errors import RunError
from dpvae.files import DAMAGED, read_json, write_bytes, write_json
from dpvae.models.images import ImageVAE
from dpvae.models.joint_images import JointImageVAE
from dpvae.rng import seed_of

BLOCK = 4096  # images
FILE = "images.npz"

Drawn = tuple[NDArray[np.uint8], NDArray[np.int64]]  # images as files hold them, and their class numbers


def save_images(vae: ImageVAE, public: Path) -> None:
    """``model.safetensors`` and ``model.json``."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in vae.state_dict().items()}
    write_bytes(public / "model.safetensors", save(tensors))
    write_json(public / "model.json", {"class": type(vae).__name__, **vae.shape})


def load_images(public: Path) -> tuple[ImageVAE, tuple[str, ...]]:
    """The released model of a run's ``public/`` folder, and the names of its classes."""
    shape = dict(read_json(public / "model.json"))
    kind: type[ImageVAE] = JointImageVAE if shape.pop("class", "") == "JointImageVAE" else ImageVAE
    try:
        vae = kind(tuple(shape.pop("size")), **shape, generator=torch.Generator())
        vae.load_state_dict(load((public / "model.safetensors").read_bytes()))
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise RunError(f"{public}/model.safetensors: does not load ({error.__class__.__name__}); {DAMAGED}") from None
    columns = {column["name"]: column for column in read_json(public / "schema.json")["columns"]}
    return vae.eval(), tuple(columns["label"]["categories"])


def blocks(vae: ImageVAE, rows: int, *, seed: int) -> Iterator[Drawn]:
    """(images (N, H, W) or (N, H, W, C), class numbers (N,)) in blocks; classes by their noisy shares."""
    labels = vae.draw_labels(rows, generator=torch.Generator().manual_seed(seed_of(seed, "images", "labels")))
    for number, part in enumerate(labels.split(BLOCK)):
        generator = torch.Generator().manual_seed(seed_of(seed, "images", "block", number))
        yield channels_last(vae.sample(part, generator=generator).numpy()), part.numpy()


def channels_last(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, C, H, W) as files hold it: (N, H, W) in gray, (N, H, W, C) in colour."""
    return np.ascontiguousarray(pixels[:, 0] if pixels.shape[1] == 1 else pixels.transpose(0, 2, 3, 1))


def image_writer(public: Path, rows: int, *, seed: int) -> Callable[[Path, Mapping[str, str]], Mapping[str, Any]]:
    """What :func:`dpvae.release.bundle.write_release` calls to fill its data folder."""

    def write(folder: Path, marks: Mapping[str, str]) -> Mapping[str, Any]:
        vae, classes = load_images(public)
        number = write_images(folder / FILE, blocks(vae, rows, seed=seed), rows, vae.size, classes)
        counts = np.bincount(number, minlength=len(classes))
        sample = [{"row": i, "label": classes[k]} for i, k in enumerate(number[:10].tolist())]
        return {"histograms": {"label": counts.tolist()}, "rows": rows, "sample": sample}

    return write


def write_images(path: Path, drawn: Iterable[Drawn], rows: int, size: tuple[int, int, int],
                 classes: tuple[str, ...]) -> NDArray[np.int64]:
    """Write ``rows`` images in blocks, and their labels, into one NPZ file; returns the class numbers, (rows,)."""
    channels, height, width = size
    shape = (rows, height, width) if channels == 1 else (rows, height, width, channels)
    values = np.array([int(name) for name in classes]) if _numbers(classes) else np.array(classes)
    labels: list[NDArray[np.int64]] = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with _member(archive, "images") as member:
            _header(member, shape, np.dtype(np.uint8))
            for images, label_N in drawn:
                member.write(images.tobytes())
                labels.append(label_N)
        number = np.concatenate(labels)
        with _member(archive, "labels") as member:
            np.lib.format.write_array(member, values[number], allow_pickle=False)
    return number


def _numbers(classes: tuple[str, ...]) -> bool:
    """Whether labels are written as whole numbers: every class is called one."""
    return all(name.isdecimal() and str(int(name)) == name and len(name) < 10 for name in classes)


def _member(archive: zipfile.ZipFile, name: str) -> Any:
    """A member with a fixed date, so that equal images make equal bytes."""
    info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
    info.compress_type = zipfile.ZIP_DEFLATED
    return archive.open(info, "w", force_zip64=True)


def _header(member: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    np.lib.format.write_array_header_1_0(member, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False,
                                                  "shape": shape})
