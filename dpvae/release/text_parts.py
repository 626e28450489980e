"""The data file of a release of texts, drawn in parts by any number of workers, on any engine: the same bytes.

A part is some blocks of texts, each with a seed of its own (:mod:`dpvae.release.texts`), so it can be drawn alone,
anywhere; the parts are written in their order. Post-processing: costs no privacy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpvae.data import lake
from dpvae.engines import mapped
from dpvae.files import read_json
from dpvae.release.marks import CERTIFICATE
from dpvae.release.texts import BLOCK, TextModel
from dpvae.release.unlike import Unlike

PART = 16 * BLOCK  # texts
SHOWN = 10

Drawn = tuple[list[str], list[int], np.ndarray]  # texts, numbers of labels, token places


@dataclass(frozen=True)
class Job:
    """Called, it gives the function that draws the part (start, rows)."""

    public: Path
    seed: int
    unlike: Unlike | None

    def __call__(self) -> Callable[[tuple[int, int]], Drawn]:
        torch.set_num_threads(1)
        model = TextModel.load(self.public)
        return lambda part: self.draw(model, *part)

    def draw(self, model: TextModel, start: int, rows: int) -> Drawn:
        """Texts ``start`` .. ``start + rows``."""
        texts: list[str] = []
        labels: list[int] = []
        for some, about in model.blocks(rows, seed=self.seed, unlike=self.unlike, start=start):
            texts += some
            labels += about
        return texts, labels, (model.code(texts) != 0).sum(1).numpy()


def text_writer(public: Path, rows: int, *, seed: int, unlike: Unlike | None = None, engine: str = "local",
                workers: int | None = None) -> Callable[[Path, Mapping[str, str]], Mapping[str, Any]]:
    """What :func:`dpvae.release.bundle.write_release` calls to fill its data folder."""

    def write(folder: Path, marks: Mapping[str, str]) -> Mapping[str, Any]:
        model = TextModel.load(public)
        edges = np.array([int(edge) for edge in read_json(public / "reference.json")[model.text]["labels"]])
        lengths, about = np.zeros(len(edges), dtype=np.int64), np.zeros(max(len(model.labels), 1), dtype=np.int64)
        sample: list[dict[str, Any]] = []
        # beside its certificate a file is the same whenever it is drawn
        said = {name: value for name, value in marks.items() if name != CERTIFICATE}
        parts = [(start, min(PART, rows - start)) for start in range(0, rows, PART)]
        drawn = mapped(Job(public.absolute(), seed, unlike), parts, engine=engine, workers=workers)
        with lake.appending(folder / "part-00000.parquet", "parquet", marks=said) as append:
            for texts, labels, places in drawn:
                append(model.cells(texts, labels))
                lengths += np.bincount(np.searchsorted(edges, places, side="right") - 1, minlength=len(edges))
                about += np.bincount(labels, minlength=len(about))
                for text, label in zip(texts[:SHOWN - len(sample)], labels, strict=False):
                    sample.append({model.text: text} | ({model.label: model.labels[label]} if model.label else {}))
        histograms = {model.text: lengths.tolist()} | ({model.label: about.tolist()} if model.label else {})
        return {"histograms": histograms, "rows": rows, "sample": sample}

    return write
