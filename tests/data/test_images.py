"""Images are read as they are, or refused in one line that names the file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dpvae.data import images
from dpvae.data.images import ImageSet
from dpvae.errors import DataError

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (6, 9, 12)).astype(np.uint8)
RGB = RNG.integers(0, 256, (6, 9, 12, 3)).astype(np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def encoded(pixels: np.ndarray, form: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form)
    return out.getvalue()


def folder(root: Path, pictures: np.ndarray = GRAY) -> Path:
    for i, (picture, label) in enumerate(zip(pictures, "aabbcc", strict=True)):
        (root / "set" / label).mkdir(parents=True, exist_ok=True)
        (root / "set" / label / f"{i}.png").write_bytes(encoded(picture))
    return root / "set"


def npz(root: Path, **arrays: Any) -> Path:
    np.savez(root / "set.npz", **arrays)
    return root / "set.npz"


@pytest.mark.parametrize("pictures", [GRAY, RGB], ids=["gray", "RGB"])
def test_every_way_in_gives_the_same_pixels(pictures: np.ndarray, tmp_path: Path) -> None:
    wanted = (pictures[..., None] if pictures.ndim == 3 else pictures).transpose(0, 3, 1, 2)
    parquet = tmp_path / "set.parquet"
    pq.write_table(pa.table({"image": [encoded(p) for p in pictures], "label": LABELS}), parquet)
    hub = tmp_path / "hub.parquet"
    pq.write_table(pa.table({"image": [{"bytes": encoded(p), "path": None} for p in pictures], "label": LABELS}), hub)
    for source in (folder(tmp_path, pictures), npz(tmp_path, images=pictures, labels=LABELS), parquet, hub,
                   {"images": pictures, "labels": LABELS.tolist()}):
        found = images.read(source)
        assert (found.pixels == wanted).all()
        assert found.size == images.size_of(source) == wanted.shape[1:]
    assert images.read(folder(tmp_path, pictures)).classes == ("a", "b", "c")
    assert images.read(parquet).classes == ("0", "1", "2")


def test_mnist_files_and_labels_of_shape_n_by_1_are_read(tmp_path: Path) -> None:
    found = images.read(npz(tmp_path, train_images=GRAY, train_labels=LABELS[:, None], test_images=GRAY))
    assert (found.rows, found.classes) == (6, ("0", "1", "2"))


def test_the_built_in_digits_are_1797_images_of_8_by_8() -> None:
    found = images.read("digits")
    assert (found.rows, found.size, found.classes) == (*[images.BUILTIN["digits"][0], (1, 8, 8)],
                                                       images.BUILTIN["digits"][1])
    assert (found.pixels.min(), found.pixels.max()) == (0, 255)


def test_the_fingerprint_tells_one_pixel_and_one_label_apart() -> None:
    one = images.read({"images": GRAY, "labels": LABELS})
    other = GRAY.copy()
    other[3, 4, 5] ^= 1
    moved = LABELS.copy()
    moved[[0, 1]] = moved[[1, 0]]
    prints = {one.fingerprint(), images.read({"images": other, "labels": LABELS}).fingerprint(),
              images.read({"images": GRAY, "labels": moved}).fingerprint()}
    assert len(prints) == 3
    assert one.fingerprint() == ImageSet(one.pixels.copy(), one.labels.copy()).fingerprint()


BAD_ARRAYS = {
    "float": ({"images": GRAY / 255, "labels": LABELS}, "float64; expected uint8"),
    "16 bits": ({"images": GRAY.astype(np.uint16), "labels": LABELS}, "uint16; expected uint8"),
    "NaN": ({"images": np.full((6, 9, 9), np.nan), "labels": LABELS}, "expected uint8"),
    "alpha": ({"images": RNG.integers(0, 256, (6, 9, 9, 4)).astype(np.uint8), "labels": LABELS}, "alpha"),
    "flat": ({"images": GRAY.reshape(6, -1), "labels": LABELS}, "images x height x width"),
    "too small": ({"images": GRAY[:, :7], "labels": LABELS}, "8 to 64 a side"),
    "too large": ({"images": np.zeros((6, 65, 20), np.uint8), "labels": LABELS}, "8 to 64 a side"),
    "labels short": ({"images": GRAY, "labels": LABELS[:5]}, "6 images, but labels of shape"),
    "labels NaN": ({"images": GRAY, "labels": [0, 1, 2, 0, 1, float("nan")]}, "fractions or NaN"),
    "no labels": ({"images": GRAY}, "expected images and labels"),
    "one image": ({"images": GRAY[:1], "labels": LABELS[:1]}, "expected at least 2"),
    "a bar": ({"images": GRAY, "labels": [*"aabbc", "d|e"]}, "without |"),
}


@pytest.mark.parametrize(("source", "says"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_arrays_that_do_not_fit_are_refused(source: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        images.read(source)
    assert says in str(error.value)
    path = npz(tmp_path, **source)
    with pytest.raises(DataError) as error:
        images.read(path)
    assert says in str(error.value)
    assert str(path) in str(error.value)


def spoiled(root: Path, name: str, data: bytes) -> Path:
    path = folder(root)
    (path / "b" / name).write_bytes(data)
    return path


def test_a_corrupt_jpeg_is_named(tmp_path: Path) -> None:
    path = spoiled(tmp_path, "9.jpg", encoded(GRAY[0], "JPEG")[:60])
    with pytest.raises(DataError, match=r"b/9\.jpg: cannot be read as PNG or JPEG"):
        images.read(path)


@pytest.mark.parametrize(("picture", "says"), [
    (GRAY[0].astype(np.uint16) * 257, "16 bits"),
    (np.dstack([RGB[0], GRAY[0]]), "alpha"),
    (GRAY[0][:8], "8 x 12 gray, but"),
    (RGB[0], "9 x 12 RGB, but"),
], ids=["16 bits", "alpha", "another size", "RGB among gray"])
def test_a_file_unlike_the_others_is_named(picture: np.ndarray, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"b/9\.png") as error:
        images.read(spoiled(tmp_path, "9.png", encoded(picture)))
    assert says in str(error.value)


def test_folders_without_images_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        images.read(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no folder with images"):
        images.read(tmp_path)
    path = folder(tmp_path)
    (path / "d").mkdir()
    with pytest.raises(DataError, match="set/d: is empty"):
        images.read(path)
    (path / "d" / "1.png").write_bytes(encoded(GRAY[0]))
    assert images.read(path).labels.tolist().count("d") == 1  # what classes there are stops nothing
    (path / "d" / "notes.txt").write_text("no")
    with pytest.raises(DataError, match=r"notes\.txt: is no image"):
        images.read(path)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 half"], ids=["empty", "half"])
def test_a_damaged_npz_is_named(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    path.write_bytes(data)
    for ask in (images.read, images.size_of):
        with pytest.raises(DataError, match=r"set\.npz"):
            ask(path)


def test_objects_in_an_npz_are_not_unpickled(tmp_path: Path) -> None:
    path = npz(tmp_path, images=GRAY, labels=np.array([{}, 1, 2, 3, 4, 5], dtype=object))
    with pytest.raises(DataError, match="cannot be read"):
        images.read(path)
