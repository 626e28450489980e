"""From a released text model to texts: the files of a release, texts under a label, scores. Costs no privacy.

Texts are drawn in blocks of their own seeds: text i is the same however many are asked for, and no more than a block
is in memory. What comes near a public text is drawn again, where that is asked for (:mod:`dpvae.release.unlike`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from dpvae.checks import did_you_mean
from dpvae.config import SampleConfig, ScoreConfig
from dpvae.data import text as reader
from dpvae.data.lake import Cells
from dpvae.data.text import Texts
from dpvae.data.tokens import WORDS, Vocabulary, cut
from dpvae.errors import ConfigError, DataError, RunError
from dpvae.files import DAMAGED, read_json, write_bytes, write_json
from dpvae.models.text import RARE, Known, TextVAE
from dpvae.models.text_draws import Drawer
from dpvae.release import export, threshold
from dpvae.release.sample import parse_given
from dpvae.release.unlike import TRIES, Unlike
from dpvae.rng import seed_of, stream
from dpvae.train.texts import Coded, draw_labels, one_by_one, trimmed

BLOCK = 1024  # texts
SAMPLES = {"iwae": 4, "elbo": 1}  # latents for the score of a text: from one, the bound is the ELBO's own estimate


class TextModel:
    """A released model with its vocabulary: draws, encodes and scores texts."""

    def __init__(self, vae: TextVAE, vocabulary: Vocabulary, active: np.ndarray, rare: np.ndarray,
                 schema: Mapping[str, Any]) -> None:
        self.vae, self.vocabulary, self.active, self.rare, self.schema = vae, vocabulary, active, rare, schema
        self.number = np.full(vocabulary.size, RARE)
        self.number[active] = np.arange(len(active))
        self.number[0] = 0
        self._edges = rare.cumsum(1) / np.maximum(rare.sum(1, keepdims=True), 1e-300)  # (L, words)
        self.text, self.label = schema["columns"][0]["name"], schema.get("target")
        self.cap = int(schema["columns"][0]["cap"])
        self.labels: tuple[str, ...] = tuple(schema["columns"][1]["categories"]) if self.label is not None else ()

    def save(self, public: Path) -> None:
        """``model.safetensors``, ``model.json``, ``tokens.json`` and ``schema.json``."""
        tensors = {name: value.detach().contiguous() for name, value in self.vae.state_dict().items()}
        rare = torch.tensor(self.rare, dtype=torch.float32).sqrt().half()  # the root keeps small ones above zero
        tensors |= {"active": torch.tensor(self.active), "rare": rare}
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
            active, rare = tensors.pop("active").numpy(), tensors.pop("rare").double().square().numpy()
            known = Known(**{name: tensors[name] for name in Known.__dataclass_fields__})
            vae = TextVAE(known, latent_dim=shape["latent_dim"], hidden=shape["hidden"], generator=torch.Generator())
            vae.load_state_dict(tensors)
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise RunError(f"{public}/model.safetensors: does not load ({error.__class__.__name__}); {DAMAGED}"
                           ) from None
        words = tuple(read_json(public / "tokens.json")["words"])
        return cls(vae.eval(), Vocabulary(words), active, rare, read_json(public / "schema.json"))

    def code(self, texts: Sequence[str]) -> torch.Tensor:
        """Texts as active tokens, (texts, T); one above the cap is cut."""
        table = self.vocabulary.table([cut(text, self.cap) for text in texts], self.cap)
        return torch.tensor(self.number[table])

    def label_numbers(self, labels: Sequence[str]) -> torch.Tensor:
        """Numbers of labels, (texts,); :class:`DataError` for one that the model does not know."""
        known = {label: i for i, label in enumerate(self.labels)}
        for label in labels:
            if label not in known:
                raise DataError(f"{self.label}={label!r}: the model knows no such label; there are "
                                f"{', '.join(self.labels[:8]) or 'none'}{did_you_mean(label, known)}")
        return torch.tensor([known[label] for label in labels], dtype=torch.long)

    def blocks(self, rows: int, *, seed: int, given: Sequence[str] = (), unlike: Unlike | None = None, start: int = 0
               ) -> Iterator[tuple[list[str], list[int]]]:
        """(texts, label numbers) from text ``start``, which begins a block, in blocks. ``given`` are the labels that
        they may have, ``unlike`` what none of them comes near; :class:`DataError` where nothing else is drawn."""
        known = self.label_numbers(given) if given else None
        drawer = Drawer(self.vae)
        for number, first in enumerate(range(0, rows, BLOCK), start=start // BLOCK):
            generator = torch.Generator().manual_seed(seed_of(seed, "text", "block", number))
            label_B = draw_labels(self.vae, BLOCK, generator, among=known)
            texts = self._block(partial(drawer.draw, generator=generator), label_B, unlike,
                                stream(seed, "text", "rare", number))
            yield texts[:rows - first], label_B.tolist()[:rows - first]

    def _block(self, draw: Callable[[torch.Tensor], torch.Tensor], label_B: torch.Tensor, unlike: Unlike | None,
               rng: np.random.Generator) -> list[str]:
        """One text for each label; what comes near a public one is drawn again."""
        texts, wanted = [""] * len(label_B), list(range(len(label_B)))
        for _ in range(TRIES):
            again_B = label_B[wanted]
            for place, text in zip(wanted, self.spell(draw(again_B).numpy(), again_B.numpy(), rng), strict=True):
                texts[place] = text
            wanted = [place for place in wanted if unlike is not None and unlike.near(texts[place])]
            if not wanted:
                return texts
        raise DataError(f"unlike: {len(wanted)} of {BLOCK} texts still come near a public line after {TRIES} draws; "
                        "the file holds nearly all that the model says, expected one of longer texts")

    @torch.no_grad()
    def log_prob(self, texts: Sequence[str], label_B: torch.Tensor, *, samples: int, seed: int) -> np.ndarray:
        """log p(text, label), (texts,) nats: importance-weighted over ``samples`` latents, the same for every text; who
        else is scored moves no digit."""
        noise_KZ = torch.randn(samples, self.vae.shape["latent_dim"],
                               generator=torch.Generator().manual_seed(seed_of(seed, "text", "score")))
        return one_by_one(Coded(self.code(texts), label_B), lambda tokens_BT, label_B: self.vae.importance(
            tokens_BT, label_B, noise_KZ))

    @torch.no_grad()
    def between(self, first: str, second: str, steps: int, *, label: str | None = None, seed: int) -> list[str]:
        """Texts along the straight line between the latents of two texts, drawn with the same random numbers."""
        label_B = torch.zeros(2, dtype=torch.long) if label is None else self.label_numbers([label, label])
        mean_BZ, _ = self.vae.encoder(trimmed(self.code([first, second])), label_B)
        z_BZ = torch.lerp(mean_BZ[:1], mean_BZ[1:], torch.linspace(0, 1, steps)[:, None])
        found = []
        for z in z_BZ:
            generator = torch.Generator().manual_seed(seed_of(seed, "text", "between"))
            tokens = self.vae.sample(label_B[:1], generator=generator, z_BZ=z[None])
            found += self.spell(tokens.numpy(), label_B[:1].numpy(), stream(seed, "text", "between"))
        return found

    def spell(self, tokens: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> list[str]:
        """Active tokens as texts; a rare one becomes a public word without a number, by the label's shares."""
        codes = self.active[tokens]
        text, place = np.nonzero(tokens == RARE)
        for label in np.unique(labels[text]) if self.vocabulary.words else ():
            mine = labels[text] == label
            drawn = np.searchsorted(self._edges[label], rng.random(int(mine.sum())))
            codes[text[mine], place[mine]] = WORDS + drawn.clip(0, len(self.vocabulary.words) - 1)
        return [cut(self.vocabulary.decode(row), self.cap) for row in codes.tolist()]

    def cells(self, texts: list[str], labels: list[int]) -> dict[str, Cells]:
        """The columns of a release."""
        present = np.zeros(len(texts), dtype=bool)
        columns = {self.text: Cells(np.array(texts, dtype=object), present, "string")}
        if self.label is not None:
            names = np.array(self.labels, dtype=object)
            columns[self.label] = Cells(names[labels], present, "string")
        return columns


def is_texts(public: Path) -> bool:
    """Whether a run's public folder holds a model of texts."""
    return bool(read_json(public / "schema.json").get("kind") == "text")


def sample(config: SampleConfig, public: Path) -> str:
    """``dpvae sample`` for texts; returns what to tell the user."""
    if config.balance is not None or (config.given is not None and not config.given.lstrip().startswith("{")):
        raise ConfigError("run: is of texts; expected given.LABEL=VALUE, and neither balance= nor partial rows")
    model = TextModel.load(public)
    given = parse_given(config.given) if config.given is not None else {}
    if unknown := [name for name in given if name != model.label]:
        raise DataError(f"given.{unknown[0]}: expected given.{model.label or 'LABEL'}=VALUE"
                        + ("" if model.label else "; these texts have no label"))
    values = given.get(model.label, []) if model.label is not None else []
    values = [values] if isinstance(values, str) else values
    if config.between is not None:
        return _line(config, model, values)
    blocks = model.blocks(config.rows or 1000, seed=config.seed, given=values)
    format = export.format_of(config.to, config.format)
    cells = export.numbered((model.cells(*block) for block in blocks), config.id)
    rows = export.write(cells, config.to, format=format, table=Path(config.to).stem, key=config.id)
    return f"drew {rows:,} synthetic texts: {config.to}; nothing was spent"


def _line(config: SampleConfig, model: TextModel, labels: Sequence[str]) -> str:
    """Texts along the line between the latents of two: ``between="first|second"``."""
    ends = str(config.between).split("|")
    if len(ends) != 2 or len(labels) > 1 or not all(ends):
        raise ConfigError(f"between={config.between!r}: expected two texts, first|second, and at most one label, "
                          f"given.{model.label or 'LABEL'}=VALUE")
    texts = model.between(*ends, config.rows or 8, label=labels[0] if labels else None, seed=config.seed)
    numbers = model.label_numbers(labels or model.labels[:1]).tolist() * len(texts)
    cells = export.numbered(iter([model.cells(texts, numbers)]), config.id)
    rows = export.write(cells, config.to, format=export.format_of(config.to, config.format),
                        table=Path(config.to).stem, key=config.id)
    return (f"drew {rows:,} texts between yours: {config.to}\n"
            "They are about the two texts, and as private as those; nothing was spent.")


def score(config: ScoreConfig, public: Path, to: Path) -> str:
    """``dpvae score`` for texts: nats per text and per byte, higher is stranger; returns what to tell the user."""
    if "," in config.run:
        raise ConfigError("run: is of texts; expected one run")
    if config.score not in SAMPLES or config.id is not None:
        raise ConfigError(f"score={config.score}, id={config.id}: expected score=iwae or score=elbo for texts, and no "
                          "id; the result has the number of each text")
    if config.table is None:
        raise ConfigError("data=null: expected texts, such as data=texts.tsv")
    model = TextModel.load(public)
    names = {name for name, _ in reader.header(config.table)}
    label = model.label if model.label in names else None
    held = reader.read(config.table, model.text if model.text in names else None, label)
    scores = -_log_prob(model, held, SAMPLES[config.score], seed=config.seed)
    size = _sizes(held.texts)
    nothing = np.zeros(len(scores), dtype=bool)
    columns = {"row": Cells(np.arange(len(scores)), nothing, "int64"), "score": Cells(scores, nothing, "double"),
               "per_byte": Cells(scores / size, nothing, "double")}
    line = ""
    if config.threshold is not None:
        limits, line = _limits(model, public, held, scores, config, labelled=label is not None)
        columns["anomaly"] = Cells(scores > limits, nothing, "bool")
    rows = export.write([columns], to, format=export.format_of(str(to), None), table="scores")
    return (f"scored {rows:,} texts in nats (higher is stranger): {to}\n{line}"
            "A score is about its text and as private as that text: the file is for you, not for publication.")


def _limits(model: TextModel, public: Path, scored: Texts, scores: np.ndarray, config: ScoreConfig, *,
            labelled: bool) -> tuple[np.ndarray, str]:
    """For each text the nats above which it is an alarm, and what that rests on. What a text costs grows with its
    length, and how far it strays with the root of that: the line is the model's own, and free; how far from it an alarm
    begins is that of ``false_alarm`` of the model's own texts, or, charged, of these."""
    texts, labels = next(model.blocks(BLOCK, seed=seed_of(config.seed, "calibration")))
    told = tuple(model.labels[label] for label in labels) if labelled else None
    held = Texts(tuple(texts), told, np.arange(len(texts)))
    own = -_log_prob(model, held, SAMPLES[config.score], seed=config.seed)
    size, sizes = _sizes(texts), _sizes(scored.texts)
    slope, start = np.polyfit(size, own, 1) if len(np.unique(size)) > 1 else (0.0, own.mean())
    near, nearer = ((start + slope * s - nats) / np.sqrt(s) for s, nats in ((size, own), (sizes, scores)))
    if config.threshold == "synthetic":
        far, who, cost = float(np.quantile(near, config.false_alarm)), "the model's own texts lie", "nothing was spent"
    else:
        if "unit" in model.schema:
            raise ConfigError(f"threshold=private: a {model.schema['unit']} holds several texts, and their scores are "
                              "counted one by one; expected threshold=synthetic")
        far, cost = threshold.booked_threshold(config, public.parent, near, scored.fingerprint(), lambda: nearer)
        who = "the texts, more or less, lie"
    limits = np.asarray(start + slope * sizes - far * np.sqrt(sizes))
    return limits, (f"threshold {np.median(limits):.3f} at the median length: {config.false_alarm:.2%} of {who} above "
                    f"that of theirs; {cost}\n")


def _sizes(texts: Sequence[str]) -> np.ndarray:
    """Bytes of each text, at least one."""
    return np.array([max(len(text.encode()), 1) for text in texts])


def _log_prob(model: TextModel, held: Texts, samples: int, *, seed: int) -> np.ndarray:
    """log p of each text with its label; of a text without one, summed over all labels."""
    if held.labels is not None and all(value in model.labels for value in held.labels):
        labels = model.label_numbers([str(value) for value in held.labels])
        return model.log_prob(held.texts, labels, samples=samples, seed=seed)
    each = [model.log_prob(held.texts, torch.full((len(held.texts),), number), samples=samples, seed=seed)
            for number in range(max(len(model.labels), 1))]
    return np.asarray(np.logaddexp.reduce(np.array(each), axis=0))
