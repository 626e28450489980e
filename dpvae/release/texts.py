"""From a released text model to texts: the files of a release, texts under a label, scores. Costs no privacy.

Texts are drawn in blocks of their own seeds: text i is the same however many are asked for, and no more than a block is in
memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from dpvae.data import lake
from dpvae.data.lake import Cells
from dpvae.data.tokens import WORDS, Vocabulary, cut
from dpvae.errors import DataError, RunError
from dpvae.models.text import RARE, Known, TextVAE
from dpvae.rng import seed_of, stream
from dpvae.train.checkpoint import DAMAGED, read_json, write_bytes, write_json
from dpvae.train.texts import draw_labels

BLOCK = 4096  # texts


class TextModel:
    """A released model with its vocabulary: draws, encodes and scores texts."""

    def __init__(self, vae: TextVAE, vocabulary: Vocabulary, active: np.ndarray, rare: np.ndarray,
                 schema: Mapping[str, Any]) -> None:
        self.vae, self.vocabulary, self.active, self.rare, self.schema = vae, vocabulary, active, rare, schema
        self.number = np.full(vocabulary.size, RARE)
        self.number[active] = np.arange(len(active))
        self.number[0] = 0
        words = np.where(np.arange(len(rare)) >= WORDS, rare, 0.0)
        self._rare_edges = words.cumsum() / words.sum() if words.sum() > 0 else None
        self.text, self.label = schema["columns"][0]["name"], schema.get("target")
        self.cap = int(schema["columns"][0]["cap"])
        self.labels: tuple[str, ...] = tuple(schema["columns"][1]["categories"]) if self.label is not None else ()

    def save(self, public: Path) -> None:
        """``model.safetensors``, ``model.json``, ``tokens.json`` and ``schema.json``."""
        tensors = {name: value.detach().contiguous() for name, value in self.vae.state_dict().items()}
        tensors |= {"active": torch.tensor(self.active), "rare": torch.tensor(self.rare, dtype=torch.float32)}
        write_bytes(public / "model.safetensors", save(tensors))
        write_json(public / "model.json", {"class": "TextVAE", **self.vae.shape})
        write_json(public / "tokens.json", {"words": list(self.vocabulary.words)})
        write_json(public / "schema.json", dict(self.schema))

    @classmethod
    def load(cls, public: Path) -> TextModel:
        """What :meth:`save` wrote."""
        shape = read_json(public / "model.json")
        try:
            tensors = load((public / "model.safetensors").read_bytes())
            active, rare = tensors.pop("active").numpy(), tensors.pop("rare").double().numpy()
            known = Known(**{name: tensors[name] for name in Known.__dataclass_fields__})
            vae = TextVAE(known, latent_dim=shape["latent_dim"], hidden=shape["hidden"], generator=torch.Generator())
            vae.load_state_dict(tensors)
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise RunError(f"{public}/model.safetensors: does not load ({error.__class__.__name__}); {DAMAGED}") from None
        words = tuple(read_json(public / "tokens.json")["words"])
        return cls(vae.eval(), Vocabulary(words), active, rare, read_json(public / "schema.json"))

    def code(self, texts: list[str] | tuple[str, ...]) -> torch.Tensor:
        """Texts as active tokens, (texts, T); a text above the cap is cut."""
        table = self.vocabulary.table([cut(text, self.cap) for text in texts], self.cap)
        return torch.tensor(self.number[table])

    def label_numbers(self, labels: Any) -> torch.Tensor:
        """Numbers of labels, (texts,); :class:`DataError` for one that the model does not know."""
        known = {label: i for i, label in enumerate(self.labels)}
        for label in labels:
            if label not in known:
                raise DataError(f"{self.label}={label!r}: the model knows {', '.join(self.labels[:8])}")
        return torch.tensor([known[label] for label in labels], dtype=torch.long)

    def blocks(self, rows: int, *, seed: int, label: str | None = None) -> Iterator[tuple[list[str], list[int]]]:
        """(texts, label numbers) in blocks; ``label`` fixes what they are about."""
        fixed = None if label is None else self.label_numbers([label])
        for number, first in enumerate(range(0, rows, BLOCK)):
            generator = torch.Generator().manual_seed(seed_of(seed, "text", "block", number))
            label_B = draw_labels(self.vae, BLOCK, generator) if fixed is None else fixed.expand(BLOCK)
            tokens = self.vae.sample(label_B, generator=generator).numpy()
            texts = self.spell(tokens, stream(seed, "text", "rare", number))
            yield texts[:rows - first], label_B.tolist()[:rows - first]

    def spell(self, tokens: np.ndarray, rng: np.random.Generator) -> list[str]:
        """Active tokens as texts; a rare token is any of the public words that have no number of their own."""
        codes = self.active[tokens]
        rare = tokens == RARE
        if rare.any() and self._rare_edges is not None:
            codes[rare] = np.searchsorted(self._rare_edges, rng.random(int(rare.sum())))
        return [cut(self.vocabulary.decode(row), self.cap) for row in codes.tolist()]

    def cells(self, texts: list[str], labels: list[int]) -> dict[str, Cells]:
        """The columns of a release."""
        present = np.zeros(len(texts), dtype=bool)
        columns = {self.text: Cells(np.array(texts, dtype=object), present, "string")}
        if self.label is not None:
            names = np.array(self.labels, dtype=object)
            columns[self.label] = Cells(names[labels], present, "string")
        return columns


def text_writer(public: Path, rows: int, *, seed: int) -> Callable[[Path, Mapping[str, str]], Mapping[str, Any]]:
    """What :func:`dpvae.release.bundle.write_release` calls to fill its data folder."""

    def write(folder: Path, marks: Mapping[str, str]) -> Mapping[str, Any]:
        model = TextModel.load(public)
        reference = read_json(public / "reference.json")
        edges = np.array([int(edge) for edge in reference[model.text]["labels"]])
        lengths, about = np.zeros(len(edges), dtype=np.int64), np.zeros(max(len(model.labels), 1), dtype=np.int64)
        sample: list[dict[str, Any]] = []
        with lake.appending(folder / "part-00000.parquet", "parquet", marks=marks) as append:
            for texts, labels in model.blocks(rows, seed=seed):
                append(model.cells(texts, labels))
                places = (model.code(texts) != 0).sum(1).numpy()
                lengths += np.bincount(np.searchsorted(edges, places, side="right") - 1, minlength=len(edges))
                about += np.bincount(labels, minlength=len(about))
                for text, label in zip(texts[:10 - len(sample)], labels, strict=False):
                    row = {model.text: text} | ({model.label: model.labels[label]} if model.label else {})
                    sample.append(row)
        histograms = {model.text: lengths.tolist()} | ({model.label: about.tolist()} if model.label else {})
        return {"histograms": histograms, "rows": rows, "sample": sample}

    return write
