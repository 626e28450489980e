"""Labelled images: a folder with a folder per class, an NPZ file, a Parquet table, or arrays; checked, never altered.

    NPZ       images uint8 N x H x W [x C] and labels (or train_images and train_labels, as MNIST files have them)
    folder    FOLDER/<class>/*.png|jpg: the folders are the classes (Pillow: pip install 'dpvae[images]')
    Parquet   a column of encoded images (bytes, or the Hugging Face hub's {bytes, path}) and a label
    Python    {"images": array, "labels": array}

All images of a set have one size, 8 to 64 pixels a side, gray or RGB, 8 bits. What is not so is a :class:`DataError`
that names the file, before anything is spent; nothing is resized, cut or converted in silence.

>>> set_ = read({"images": np.zeros((4, 8, 8), np.uint8), "labels": ["a", "b", "a", "b"]})
>>> set_.pixels.shape, set_.classes
((4, 1, 8, 8), ('a', 'b'))
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvae.errors import ConfigError, DataError

SMALLEST, LARGEST = 8, 64  # pixels a side
CHANNELS = {1: "gray", 3: "RGB"}
MOST_CLASSES = 256
FILES = (".png", ".jpg", ".jpeg")
KEYS = (("images", "labels"), ("train_images", "train_labels"))
BUILTIN = {"digits": (1797, tuple(str(i) for i in range(10)))}  # public facts: how many there are, and their classes


@dataclass(frozen=True)
class ImageSet:
    """``pixels`` uint8 (rows, channels, height, width), and the class of each, as text."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.str_]

    @property
    def rows(self) -> int:
        """How many images; private where the set is."""
        return len(self.pixels)

    @property
    def size(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes there are: private, unless declared."""
        return tuple(sorted(set(self.labels.tolist()), key=natural))

    def fingerprint(self) -> bytes:
        """A digest of every pixel and label."""
        digest = hashlib.sha256(repr(self.pixels.shape).encode())
        digest.update(np.ascontiguousarray(self.pixels).tobytes())
        digest.update("\0".join(self.labels.tolist()).encode("utf-8", "surrogatepass"))
        return digest.digest()


def natural(label: str) -> tuple[int, int, str]:
    """Numbers in their order, then words.

    >>> sorted(["10", "9", "b", "a"], key=natural)
    ['9', '10', 'a', 'b']
    """
    return (0, int(label), label) if label.isdecimal() else (1, 0, label)


def read(source: Any, label: str | None = None, *, least: int = 2) -> ImageSet:
    """All images of ``source``: a path, the name of a built-in set, or a mapping with images and labels.

    ``least`` of them: two to be learned from. One is enough to be looked at, and arrays may then come without labels,
    which are empty words here. What classes there are is private, so none is refused here, however rare or many.
    """
    if isinstance(source, ImageSet):
        return source
    if isinstance(source, Mapping):
        return _checked("images", *_arrays(source, "images", least), least)
    if str(source) in BUILTIN:
        return _digits()
    path = _existing(source)
    if path.is_dir():
        return _folder(path, least)
    if path.suffix.lower() == ".npz":
        with _opened(path) as file:
            return _checked(str(path), *_arrays(file, str(path), least), least)
    return _parquet(path, label, least)


def size_of(source: Any, label: str | None = None) -> tuple[int, int, int]:
    """(channels, height, width) as a file's header has it, without reading its images (of a folder or a Parquet file:
    the first image's)."""
    if isinstance(source, (ImageSet, Mapping)):
        return read(source).size
    if str(source) in BUILTIN:
        return 1, 8, 8
    path = _existing(source)
    if path.is_dir():
        return _decode(_files(path)[0][0]).shape
    if path.suffix.lower() == ".npz":
        return _npz_size(path)
    from dpvae.data import lake

    images, _ = _columns(lake.stored(path, 1), path, label)
    return _decode_bytes(images[0], f"{path} row 1").shape


# -- where they come from --------------------------------------------------------------------------------------------


def _existing(source: Any) -> Path:
    if not isinstance(source, (str, os.PathLike)):
        raise DataError(f"data={type(source).__name__}: expected a path, or a mapping with images and labels")
    path = Path(source)
    if not path.exists():
        raise DataError(f"data={str(source)!r}: no such file or folder; expected images as NPZ, Parquet, or a "
                        "folder with a folder for each class")
    if path.is_file() and path.suffix.lower() not in (".npz", ".parquet", ".pq"):
        raise DataError(f"data={str(source)!r}: unknown ending {path.suffix!r}; expected .npz, .parquet, or a "
                        "folder with a folder for each class")
    return path


def _opened(path: Path) -> Any:
    if not zipfile.is_zipfile(path):  # what numpy would open as something else
        raise DataError(f"{path}: is not an NPZ file, or is damaged; expected what numpy.savez wrote")
    return np.load(path, allow_pickle=False)


def _keys(names: Any, where: str) -> tuple[str, str]:
    for images, labels in KEYS:
        if images in names and labels in names:
            return images, labels
    raise DataError(f"{where}: holds {', '.join(sorted(map(str, names))) or 'nothing'}; expected images and labels, or "
                    "train_images and train_labels")


def _arrays(held: Any, where: str, least: int) -> tuple[Any, Any]:
    """(images, labels); labels are ``None`` where there are none and need be none."""
    names = held.files if hasattr(held, "files") else list(held)
    alone = least == 1 and "images" in names and "labels" not in names
    images, labels = ("images", "") if alone else _keys(names, where)
    try:
        return np.asarray(held[images]), None if alone else np.asarray(held[labels])
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise DataError(f"{where}: {images} or {labels} cannot be read ({type(error).__name__})") from None


def _npz_size(path: Path) -> tuple[int, int, int]:
    with _opened(path) as file:
        key, _ = _keys(file.files, str(path))
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as member:
            version = np.lib.format.read_magic(member)
            read_header = (np.lib.format.read_array_header_1_0 if version == (1, 0)
                           else np.lib.format.read_array_header_2_0)
            shape, _, dtype = read_header(member)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: {key} cannot be read ({type(error).__name__})") from None
    return _size(shape, dtype, f"{path}: {key}")


def _size(shape: Sequence[int], dtype: Any, where: str) -> tuple[int, int, int]:
    """(channels, height, width) of an array of images; what does not fit raises."""
    if np.dtype(dtype) != np.uint8:
        raise DataError(f"{where} is {np.dtype(dtype)}; expected uint8, one byte a pixel (0 black, 255 white): scale "
                        "and convert it first")
    if len(shape) not in (3, 4):
        raise DataError(f"{where} has shape {tuple(shape)}; expected images x height x width, or with channels last")
    channels = shape[3] if len(shape) == 4 else 1
    if channels not in CHANNELS:
        raise DataError(f"{where} has {channels} channels; expected 1 (gray) or 3 (RGB), last; drop an alpha channel")
    if not all(SMALLEST <= side <= LARGEST for side in shape[1:3]):
        raise DataError(f"{where}: images of {shape[1]} x {shape[2]} pixels; expected {SMALLEST} to {LARGEST} a side: "
                        "resize them first")
    return channels, shape[1], shape[2]


def _checked(where: str, images: NDArray[Any], labels: NDArray[Any] | None, least: int) -> ImageSet:
    """Arrays as an :class:`ImageSet`."""
    _size(images.shape, images.dtype, f"{where}: images" if where != "images" else where)
    if images.ndim == 3:
        images = images[..., None]
    if labels is None:
        return ImageSet(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), np.full(len(images), ""))
    flat = labels.reshape(-1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if flat.ndim != 1 or len(flat) != len(images):
        raise DataError(f"{where}: {len(images)} images, but labels of shape {labels.shape}; expected one for each")
    if flat.dtype.kind == "f":
        if not (np.isfinite(flat).all() and (flat == np.rint(flat)).all()):
            raise DataError(f"{where}: labels are fractions or NaN; expected whole numbers or words")
        flat = flat.astype(np.int64)
    if flat.dtype.kind not in "biuUSO":
        raise DataError(f"{where}: labels are {flat.dtype}; expected whole numbers or words")
    words = np.array([_word(value, where) for value in flat.tolist()], dtype=str)
    if len(words) < least:
        raise DataError(f"{where}: {len(words)} images; expected at least {least}")
    return ImageSet(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), words)


def _word(value: Any, where: str) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    if value is None or not text.strip() or not text.isprintable() or "|" in text:
        raise DataError(f"{where}: a label is {text[:40]!r}; expected one printable word without |")
    return text


def _digits() -> ImageSet:
    from sklearn.datasets import load_digits

    found = load_digits()
    return _checked("digits", np.rint(found.images * (255 / 16)).astype(np.uint8), found.target, 2)


# -- encoded images --------------------------------------------------------------------------------------------------


def _files(path: Path) -> list[tuple[Path, str]]:
    """(file, class) of a folder, in the order of their names."""
    classes = sorted((p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")), key=lambda p: p.name)
    found = []
    for folder in classes:
        own = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
        for file in own:
            if file.suffix.lower() not in FILES:
                raise DataError(f"{file}: is no image; expected {', '.join(FILES)}")
        if not own:
            raise DataError(f"{folder}: is empty; expected images, or remove the folder")
        found += [(file, folder.name) for file in own]
    if not found:
        raise DataError(f"{path}: holds no folder with images; expected a folder for each class, such as "
                        f"{path}/cat/1.png")
    return found


def _folder(path: Path, least: int) -> ImageSet:
    files = _files(path)
    labels = np.array([name for _, name in files])
    return _joined([(_decode(file), str(file)) for file, _ in files], labels, str(path), least)


def _joined(images: list[tuple[NDArray[np.uint8], str]], labels: NDArray[Any], where: str, least: int) -> ImageSet:
    first, name = images[0]
    for pixels, other in images:
        if pixels.shape != first.shape:
            raise DataError(f"{other}: {_described(pixels)}, but {name} is {_described(first)}; expected one size for "
                            "all: resize them first")
    stacked = np.stack([pixels for pixels, _ in images]).transpose(0, 2, 3, 1)
    return _checked(where, stacked, labels, least)


def _described(pixels: NDArray[np.uint8]) -> str:
    return described(pixels.shape)


def described(size: Sequence[int]) -> str:
    """(channels, height, width) in words.

    >>> described((3, 32, 32))
    '32 x 32 RGB'
    """
    channels, height, width = size
    return f"{height} x {width} {CHANNELS[channels]}"


def _decode(file: Path) -> NDArray[np.uint8]:
    return _decode_bytes(file.read_bytes(), str(file))


def _decode_bytes(data: Any, where: str) -> NDArray[np.uint8]:
    """One encoded image as (channels, height, width)."""
    try:
        from PIL import Image
    except ImportError:
        raise ConfigError(f"{where}: PNG and JPEG are read with Pillow, which is not installed; pip install "
                          "'dpvae[images]', or give an NPZ file") from None
    if not isinstance(data, bytes):
        raise DataError(f"{where}: holds {type(data).__name__}; expected the bytes of a PNG or JPEG")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            image.load()
            if image.mode not in ("L", "RGB"):
                raise DataError(f"{where}: its mode is {image.mode} (16 bits, a palette or an alpha channel); expected "
                                "8-bit gray (L) or RGB: convert it first")
            pixels = np.asarray(image)
    except DataError:
        raise
    except Exception as error:  # Pillow raises whatever the broken part of a file leads to
        raise DataError(f"{where}: cannot be read as PNG or JPEG ({type(error).__name__}); it is damaged") from None
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    _size((1, *pixels.shape), pixels.dtype, where)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _columns(table: Any, path: Path, label: str | None) -> tuple[list[Any], NDArray[Any]]:
    """(encoded images, labels) of a Parquet table."""
    columns = {name: table.column(name) for name in table.column_names}
    kinds = ("binary", "large_binary", "struct")
    binary = [name for name, column in columns.items() if str(column.type).startswith(kinds)]
    name = label if label is not None else ("label" if "label" in columns else None)
    if len(binary) != 1 or name is None or name not in columns:
        raise DataError(f"{path}: holds {', '.join(columns)}; expected one column of encoded images (bytes), and a "
                        "column called label, or data.label=NAME")
    values = columns[binary[0]].to_pylist()
    if values and isinstance(values[0], Mapping):
        values = [value.get("bytes") if value else None for value in values]
    return values, np.array(columns[name].to_pylist(), dtype=object)


def _parquet(path: Path, label: str | None, least: int) -> ImageSet:
    from dpvae.data import lake

    images, labels = _columns(lake.stored(path), path, label)
    if not images:
        raise DataError(f"{path}: holds no row; expected images")
    return _joined([(_decode_bytes(data, f"{path} row {i + 1}"), f"{path} row {i + 1}") for i, data in
                    enumerate(images)], labels, str(path), least)
