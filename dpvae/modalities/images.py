"""Labelled images: folders, NPZ, Parquet; see :mod:`dpvae.data.images` for what is read and what is refused."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from dpvae.config import DataConfig, TrainConfig
from dpvae.data import images as reader
from dpvae.data.images import BUILTIN, ImageSet
from dpvae.errors import ConfigError, DataError
from dpvae.files import write_bytes, write_json
from dpvae.modalities import TableWriter
from dpvae.privacy.events import Event
from dpvae.privacy.image_plan import NATS_PER_PIXEL, ImageRule
from dpvae.privacy.mechanisms import frequent_values, noisy_counts
from dpvae.privacy.plan import SURVEY_WHAT, Plan, PublicFacts, check_delta, make_plan
from dpvae.privacy.silence import secrets_of

if TYPE_CHECKING:
    from dpvae.report.progress import Progress
    from dpvae.train.parallel import Processes
    from dpvae.train.run import RunFolder

GRAYS = 4  # steps of gray in which an attacker compares images
SHOWN = 16  # private images in private/reconstructions.png
LEAST_COUNT = 2.0  # a declared class is taken to hold at least this many images, whatever the noise says


def plan(config: TrainConfig) -> Plan:
    """What ``config`` would spend. Reads the size of an image; no image of an NPZ."""
    return Public.of(config.data, reader.size_of(_source(config.data), config.data.label)).plan(config)


def prepare(config: TrainConfig, source: Any = None) -> ImageTask:
    """The images of ``source`` (a path, or a mapping with images and labels) or of the file that ``config`` names."""
    images = reader.read(source if source is not None else _source(config.data), config.data.label)
    public = Public.of(config.data, images.size, named=source is None)
    _check_declared(images, public.classes)
    unknown = sorted(set(images.classes) - set(public.classes)) if public.classes else []
    if unknown and config.data.outside != "missing":
        raise DataError(f"label={unknown[0]!r}: not among data.labels={'|'.join(public.classes)[:80]}; add it, or "
                        "leave such images out with data.outside=missing")
    return ImageTask(config, public.plan(config), public, images)


def _check_declared(images: ImageSet, classes: tuple[str, ...]) -> None:
    """Refuse a declared class of one image; of one that is not declared the threshold decides."""
    held = Counter(images.labels.tolist())
    for name in classes:
        if held[name] == 1:
            raise DataError(f"data.labels: class {name!r} has one image; expected at least 2 of each: join it with "
                            "another class, or remove it")


def writer(public: Path, rows: int, *, seed: int) -> TableWriter:
    """An NPZ file of synthetic images."""
    from dpvae.release.images import image_writer

    return image_writer(public, rows, seed=seed)


def made_up(public: Path, rows: int, *, seed: int) -> dict[str, Any]:
    """Nobody's images, drawn from the released model, as :func:`prepare` takes them."""
    from dpvae.release.images import blocks, load_images

    vae, classes = load_images(public)
    drawn = list(blocks(vae, rows, seed=seed))
    return {"images": np.concatenate([images for images, _ in drawn]),
            "labels": np.array(classes)[np.concatenate([labels for _, labels in drawn])]}


def troublemakers(records: Mapping[str, Any], public: Path | None = None) -> dict[str, dict[str, Any]]:
    """Black, white and noisy images and a duplicate, of classes that there are."""
    images, labels = np.asarray(records["images"]), np.asarray(records["labels"])
    noise = np.random.Generator(np.random.Philox(7)).integers(0, 256, images[0].shape).astype(np.uint8)
    joining = {"a black image": np.zeros_like(images[0]), "a white image": np.full_like(images[0], 255),
               "an image of noise": noise, "a duplicate": images[0]}
    found = {name: {"images": image, "labels": labels[0]} for name, image in joining.items()}
    return found | {f"a white image of class {label}": {"images": joining["a white image"], "labels": label}
                    for label in np.unique(labels)}


def told(public: Path, records: Mapping[str, Any]) -> NDArray[np.int64]:
    """Images as an attacker compares them, (n, cells + 1): the gray of at most 7 x 7 cells in :data:`GRAYS` steps, and
    the class."""
    from dpvae.release.images import load_images

    _, classes = load_images(public)
    images = np.stack([np.asarray(image) for image in records["images"]]).astype(np.float64)
    images = images.mean(-1) if images.ndim == 4 else images
    down, across = (_cells(side) for side in images.shape[1:])
    gray = np.minimum(down @ images @ across.T * GRAYS / 256, GRAYS - 1).astype(np.int64).reshape(len(images), -1)
    number = {name: i for i, name in enumerate(classes)}
    return np.column_stack([gray, [number[str(label)] for label in records["labels"]]])


def _cells(side: int) -> NDArray[np.float64]:
    """At most seven means along a side, (cells, side)."""
    place = np.arange(side) * min(side, 7) // side
    held = (place == np.arange(place.max() + 1)[:, None]).astype(np.float64)
    return held / held.sum(1, keepdims=True)


def log_prob(public: Path, records: Mapping[str, Any]) -> NDArray[np.float64]:
    """The ELBO of images under the released model, (n,) nats."""
    import torch

    from dpvae.models.image_bounds import bounds
    from dpvae.release.images import load_images

    vae, classes = load_images(public)
    number = {name: i for i, name in enumerate(classes)}
    pixels = np.stack([np.asarray(image) for image in records["images"]])
    pixels = pixels.transpose(0, 3, 1, 2) if pixels.ndim == 4 else pixels
    x_ND = torch.as_tensor(pixels.reshape(len(pixels), -1))
    label_N = torch.tensor([number[str(label)] for label in records["labels"]])
    noise_1Z = torch.randn(1, vae.basis.shape[0], generator=torch.Generator().manual_seed(1))
    return np.asarray(bounds(vae, x_ND, label_N, noise_1Z).value[0].numpy())


@dataclass(frozen=True)
class Public:
    """What is publicly known of the images: size, and what was declared."""

    size: tuple[int, int, int]  # (channels, height, width)
    rows: int | None
    classes: tuple[str, ...]  # empty: to be measured

    @classmethod
    def of(cls, data: DataConfig, size: tuple[int, int, int], *, named: bool = True) -> Public:
        """What ``data`` declares of images of this size; ``named``: they are those that it names."""
        rows, classes = BUILTIN.get(data.builtin or "", (None, ())) if named else (None, ())
        declared = tuple(data.labels.split("|")) if data.labels is not None else classes
        if len(declared) > reader.MOST_CLASSES:
            raise ConfigError(f"data.labels: {len(declared)} classes; expected at most {reader.MOST_CLASSES}")
        if data.labels is not None and (len(set(declared)) < len(declared) or not all(n.strip() for n in declared)):
            raise ConfigError(f"data.labels={data.labels!r}: expected different names, such as data.labels=cat|dog")
        return cls(size, data.rows or rows, declared)

    @property
    def facts(self) -> PublicFacts:
        """What the plan may look at."""
        channels, height, width = self.size
        classes = f"{len(self.classes)} classes" if self.classes else "classes that are not declared"
        return PublicFacts(
            columns=1, survey_steps=() if self.classes else ("values",), rows=self.rows, has_target=True,
            what=f"{height} x {width} {reader.CHANNELS[channels]} images of {classes}",
            elbo_range=NATS_PER_PIXEL * channels * height * width)

    def plan(self, config: TrainConfig) -> Plan:
        """The plan that these facts lead to."""
        return make_plan(config, self.facts, ImageRule(min(self.size[1:])))

    def schema(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """``schema.json`` of a run."""
        channels, height, width = self.size
        image = {"name": "image", "kind": "image", "dtype": "uint8", "nullable": False, "height": height,
                 "width": width, "channels": channels, "declared": [f"{height} x {width} {reader.CHANNELS[channels]}"]}
        label = {"name": "label", "kind": "categorical", "dtype": "string", "nullable": False,
                 "categories": list(classes), "declared": ["categories"] if self.classes else []}
        return {"kind": "images", "target": "label", "columns": [image, label]}


@dataclass(frozen=True)
class ImageTask:
    """Images that are ready to be trained on; see :class:`dpvae.modalities.Task`."""

    config: TrainConfig
    plan: Plan
    public: Public
    images: ImageSet

    def planned(self, config: TrainConfig, plan: Plan) -> ImageTask:
        """The same images under other settings."""
        return replace(self, config=config, plan=plan)

    def declared(self) -> str:
        """A digest of what is declared."""
        return hashlib.sha256(json.dumps([self.public.rows, self.public.classes]).encode()).hexdigest()

    def fingerprint(self) -> bytes:
        """A digest of every record; it leaves only under the run's secret key."""
        return self.images.fingerprint()

    def spend(self, run: RunFolder, progress: Progress, processes: Processes | None = None) -> ImageResult:
        """Count, measure, train."""
        from dpvae.rng import seed_of, stream
        from dpvae.train import image_anchors

        config, key = self.config, secrets_of(run, self.config)
        progress.begin("survey" if not self.public.classes else "anchor")
        classes, counts, sd, event = self._count(key)
        rows = float(self.public.rows or max(counts.sum(), 1.0))
        if self.public.rows is None:
            check_delta(self.plan.delta, rows, f" (about {rows:.0f} images were counted; this run stays booked)")
        progress.begin("anchor")
        held = self._held(classes)
        noise = {name: nm for name, nm in self.plan.anchor_noise.items() if name != "labels"}
        released, events = None, tuple[Event, ...]()
        if noise:
            released, events = image_anchors.measure(
                held, np.maximum(counts, LEAST_COUNT), self.public.size, noise=noise, epsilon=self.plan.target_epsilon,
                key=key, rng=stream(config.run.seed, "images", "anchor"), most=self._most(len(classes)))
        progress.phase("anchor", 1)
        vae, metrics = self._train(held, released, counts, rows, key, run, progress, processes,
                                   seed_of(config.run.seed, "init"))
        drawn = (event, *events)
        return ImageResult(vae.cpu(), self.public.schema(classes), rows, (*drawn, *self.plan.events()[len(drawn):]),
                           metrics, classes, counts, sd)

    def _most(self, classes: int) -> tuple[int, int]:
        """Directions, and clusters of a class, that the configuration allows."""
        from dpvae.train.image_anchors import MOST_CLUSTERS, MOST_DIRECTIONS

        model = self.config.model
        clusters = MOST_CLUSTERS if model.components is None else max(model.components // classes, 1)
        return model.latent_dim or MOST_DIRECTIONS, clusters

    def _count(self, key: Any) -> tuple[tuple[str, ...], np.ndarray, float, Event]:
        """The classes, their noisy counts, the noise of one, and what that cost."""
        planned, held = self.plan, Counter(self.images.labels.tolist())
        if self.public.classes:
            table = np.array([held[name] for name in self.public.classes])
            nm = planned.anchor_noise["labels"]
            noisy, event = noisy_counts([table], noise_multiplier=nm, stream=key.stream("anchor", "labels"),
                                        phase="anchor", what="noisy labels tables")
            return self.public.classes, noisy[0].astype(float), nm, event
        nm = planned.survey_noise["values"]
        found, drawn = frequent_values([held], noise_multiplier=nm, delta=planned.survey_delta, phase="survey",
                                       stream=key.stream("survey", "values"), what=SURVEY_WHAT["values"])
        common = sorted(found[0], key=lambda name: -found[0][name])[:reader.MOST_CLASSES]
        names = tuple(sorted(common, key=reader.natural))
        if not names:
            raise DataError("labels: no class holds enough images to be published at this budget (this run stays "
                            "booked); declare the classes with data.labels=a|b|c, or give a larger privacy.epsilon")
        return names, np.array([float(found[0][name]) for name in names]), nm, drawn

    def _held(self, classes: tuple[str, ...]) -> Any:
        """The images of published classes: which those are follows from each image and from what is released."""
        from dpvae.train.image_anchors import Images

        number = {name: i for i, name in enumerate(classes)}
        labels = np.array([number.get(label, -1) for label in self.images.labels.tolist()], dtype=np.int64)
        flat = self.images.pixels.reshape(self.images.rows, -1)
        return Images(flat[labels >= 0], labels[labels >= 0])

    def _train(self, held: Any, released: Any, counts: np.ndarray, rows: float, key: Any, run: RunFolder,
               progress: Progress, processes: Processes | None, seed: int) -> tuple[Any, list[dict[str, Any]]]:
        import torch

        from dpvae.train.device import device_of
        from dpvae.train.images import ImageTrainer

        config, device = self.config, device_of(self.config.performance.device)
        vae = self._model(released, np.maximum(counts, LEAST_COUNT), torch.Generator().manual_seed(seed)).to(device)
        codes = np.concatenate([held.pixels, held.labels[:, None].astype(np.uint8)], 1)
        state = ImageTrainer(plan=self.plan, config=config, vae=vae, codes=torch.as_tensor(codes, device=device),
                             anchors=cast(Any, None), rows=max(round(rows), 1), key=key, checkpoint=run.checkpoint,
                             listen=progress.listen, processes=processes, unit="nats per image").fit()
        if len(codes):
            self._seal(vae.cpu(), codes[:SHOWN], run)
        return vae, state.metrics

    def _model(self, released: Any, counts: np.ndarray, generator: Any) -> Any:
        """The VAE that the noisy moments are, or, where none were measured, one that knows the classes' counts."""
        import torch

        from dpvae.models.joint_images import LATENT, JointImageVAE

        hidden = max(self.config.model.hidden // 4, 4)
        if released is not None:
            return released.model(counts, self.public.size, hidden, generator)
        vae = JointImageVAE(self.public.size, classes=len(counts), directions=self.config.model.latent_dim or LATENT,
                            hidden=hidden, generator=generator)
        vae.log_labels.copy_(torch.as_tensor(np.log(counts / counts.sum())))
        return vae

    def _seal(self, vae: Any, codes: np.ndarray, run: RunFolder) -> None:
        """Some private images beside their reconstructions: sealed in ``private/``, never published."""
        import torch

        from dpvae.report.gallery import reconstructions
        from dpvae.train.images import split

        write_bytes(run.private / "reconstructions.png", reconstructions(vae, *split(torch.as_tensor(codes))))


@dataclass(frozen=True)
class ImageResult:
    """A released image model; see :class:`dpvae.modalities.Result`."""

    vae: Any
    schema: Mapping[str, Any]
    rows: float
    events: tuple[Event, ...]
    metrics: list[dict[str, Any]]
    classes: tuple[str, ...]
    counts: np.ndarray
    sd: float

    def publish(self, public: Path, seed: int) -> None:
        """Model, schema, the noisy counts of the classes, diagnostics, and pictures that the model draws."""
        import torch

        from dpvae.evaluate.collapse import diagnose_images
        from dpvae.release.images import save_images
        from dpvae.report.gallery import gallery
        from dpvae.rng import seed_of

        save_images(self.vae, public)
        write_json(public / "schema.json", dict(self.schema))
        write_json(public / "reference.json", {
            "label": {"labels": list(self.classes), "noisy": self.counts.tolist(), "sd": self.sd}})
        generator = torch.Generator().manual_seed(seed_of(seed, "report"))
        write_json(public / "diagnostics.json", diagnose_images(self.vae, generator=generator))
        write_json(public / "preview.json", {"gallery": gallery(self.vae, self.classes, seed=seed)})


def _source(data: DataConfig) -> Any:
    if data.path is None and data.builtin is None:
        raise ConfigError("data.path=null: expected images; try data=images for the built-in digits, or "
                          "data.path=images.npz")
    if data.path is None and data.builtin not in BUILTIN:
        raise ConfigError(f"data.builtin={data.builtin!r}: no such images; expected {', '.join(BUILTIN)}, or a "
                          "data.path")
    return data.path if data.path is not None else data.builtin
