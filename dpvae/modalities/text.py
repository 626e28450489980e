"""Texts: names, queries, messages; one per record, with a label and a person, if any."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from dpvae.config import DataConfig, TrainConfig
from dpvae.data import text as reader
from dpvae.data.grammar import Grammar
from dpvae.data.language import Language
from dpvae.data.text import Texts
from dpvae.data.tokens import MARKS, Vocabulary
from dpvae.errors import ConfigError, DataError
from dpvae.files import write_json
from dpvae.modalities import TableWriter
from dpvae.privacy.events import Event
from dpvae.privacy.mechanisms import frequent_values, noisy_counts
from dpvae.privacy.plan import SURVEY_WHAT, Plan, PublicFacts, check_delta, make_plan
from dpvae.privacy.silence import secrets_of
from dpvae.privacy.text_plan import NATS_PER_BYTE, TextRule

if TYPE_CHECKING:
    from dpvae.report.progress import Progress
    from dpvae.train.parallel import Processes
    from dpvae.train.run import RunFolder

SHARED = True  # releases may be drawn by several workers
SHOWN = 10  # texts on a run's own page
LINES, STOPS = 2, 6  # of them that are joined through the latent, and the places where a text is drawn
HASHED = 64  # groups of letter triples in which an attacker compares texts
CAP = 256  # bytes
ROOM = 32  # bytes: a text of at most that many is spelled, not told in words
HIDDEN_WORDS, HIDDEN_BYTES = 32, 64  # of the network: many tokens cost time, few may know more of each other


def plan(config: TrainConfig) -> Plan:
    """What ``config`` would spend. Reads names of columns; no text."""
    public = Public.of(config.data)
    public.found_in(reader.header(_source(config.data)))
    return public.plan(config)


def prepare(config: TrainConfig, source: Any = None) -> TextTask:
    """The texts of ``source`` or of the file that ``config`` names, checked against what is declared of them."""
    public = Public.of(config.data)
    source = source if source is not None else _source(config.data)
    public = public.found_in(reader.header(source))
    planned = public.plan(config)
    data = config.data
    texts = reader.read(source, public.text, public.label, data.unit, per_unit=data.per_unit)
    texts = reader.limited(texts, public.cap, data.overlong)
    if public.labels:
        texts = reader.known_labels(texts, public.labels, data.outside)
    return TextTask(config, planned, public, texts)


def writer(public: Path, rows: int, *, seed: int, unlike: Any = None, engine: str = "local",
           workers: int | None = None) -> TableWriter:
    """A Parquet file of synthetic texts; none comes near what ``unlike`` holds, see :mod:`dpvae.release.unlike`."""
    from dpvae.release.text_parts import text_writer

    return text_writer(public, rows, seed=seed, unlike=unlike, engine=engine, workers=workers)


@dataclass(frozen=True)
class Public:
    """What is publicly known of the texts: declared, or that of the built-in ones."""

    text: str | None
    label: str | None
    labels: tuple[str, ...]
    rows: int | None
    cap: int
    words: bool
    unit: str | None
    per_unit: int
    language: str | None

    @classmethod
    def of(cls, data: DataConfig) -> Public:
        """From the knobs, and what is known of the built-in names where they are meant."""
        if data.builtin not in (None, "names"):
            raise ConfigError(f"data.builtin={data.builtin!r}: expected names, or a file: data.path=texts.tsv")
        names: Mapping[str, Any] = reader.NAMES if data.builtin is not None else {}
        labels = tuple(data.labels.split("|")) if data.labels else names.get("labels", ())
        if len(set(labels)) != len(labels) or (data.labels and data.label is None):
            raise ConfigError(f"data.labels={data.labels!r}: expected distinct values of the column data.label, a|b|c")
        cap = data.cap or names.get("cap", CAP)
        if data.unit is not None and data.label is not None and not labels:
            raise ConfigError("data.labels=null: with data.unit the labels must be declared, a|b|c; a person may hold "
                              "several, and finding them is priced for one each")
        return cls(data.text or names.get("text"), data.label or names.get("label"), labels,
                   data.rows or names.get("rows"), cap,
                   data.tokens == "words" or (data.tokens == "auto" and cap > ROOM),
                   data.unit, data.per_unit if data.unit is not None else 1, data.public)

    def found_in(self, header: tuple[tuple[str, str], ...]) -> Public:
        """With the column of texts by its name; refuses columns that are not there."""
        names = tuple(name for name, _ in header)
        text = reader.column_of(names, self.text)
        for key, column in (("data.label", self.label), ("data.unit", self.unit)):
            if column is not None and (column not in names or column == text):
                raise DataError(f"{key}={column!r}: expected another column of the file, one of {', '.join(names[:8])}")
        return replace(self, text=text)

    @property
    def protected(self) -> str:
        """Whose presence is hidden, in one word."""
        return self.unit or "text"

    @property
    def facts(self) -> PublicFacts:
        steps = (*(() if self.rows else ("rows",)), *(("values",) if self.label and not self.labels else ()))
        about = f", {len(self.labels) or 'unknown'} labels" if self.label else ""
        told = "words of a public list" if self.words else "bytes"
        return PublicFacts(columns=1 + (self.label is not None), survey_steps=steps, rows=self.rows,
                           has_target=self.label is not None,
                           what=f"texts of at most {self.cap} bytes as {told}{about}",
                           elbo_range=NATS_PER_BYTE * self.cap)

    def plan(self, config: TrainConfig) -> Plan:
        """The plan that these facts lead to."""
        return make_plan(config, self.facts, TextRule(self.words))

    def schema(self, labels: tuple[str, ...], source: str) -> dict[str, Any]:
        """``schema.json`` of a run."""
        declared = [f"at most {self.cap} bytes", source if self.words else "bytes"]
        columns: list[dict[str, Any]] = [{"name": self.text, "kind": "text", "dtype": "string", "nullable": False,
                                          "cap": self.cap, "declared": declared}]
        if self.label is not None:
            columns.append({"name": self.label, "kind": "categorical", "dtype": "string", "nullable": False,
                            "categories": list(labels), "declared": ["categories"] if self.labels else []})
        bound = {"unit": self.unit, "per_unit": self.per_unit} if self.unit is not None else {}
        return {"kind": "text", "target": self.label, "columns": columns, **bound}


@dataclass(frozen=True)
class TextTask:
    """Texts that are ready to be trained on; see :class:`dpvae.modalities.Task`."""

    config: TrainConfig
    plan: Plan
    public: Public
    texts: Texts

    def planned(self, config: TrainConfig, plan: Plan) -> TextTask:
        """The same texts under other settings."""
        return replace(self, config=config, plan=plan)

    def declared(self) -> str:
        """A digest of what is declared."""
        return hashlib.sha256(json.dumps([str(self.public)]).encode()).hexdigest()

    def fingerprint(self) -> bytes:
        """A digest of every record; it leaves only under the run's secret key."""
        return self.texts.fingerprint()

    def spend(self, run: RunFolder, progress: Progress, processes: Processes | None = None) -> TextResult:
        """Survey, measure, fit. Every draw is a function of the key: a run that stopped starts again and draws the
        same."""
        from dpvae.train import ngrams

        if processes is not None:
            raise ConfigError("data.kind=text: trains in one process; start it without torchrun")
        key = secrets_of(run, self.config)
        if self.public.unit is not None:
            write_json(run.private / "left_out.json", {f"texts without {self.public.unit}": self.texts.nobodys})
        progress.begin("survey")
        rows, labels, events = self._survey(key)
        progress.phase("survey", 1)
        progress.begin("anchor")
        language = Language.of(self.public.language)
        vocabulary = Vocabulary(language.words if self.public.words else ())
        source = self._source(vocabulary, labels)
        released, drawn = ngrams.measure(source, labels, vocabulary, language, noise=self.plan.anchor_noise, key=key,
                                         texts_per_unit=self.public.per_unit, silent=not self.config.privacy.noise)
        progress.phase("anchor", 1)
        return self._train(source, released, vocabulary, language, rows, (*events, *drawn), key, run,
                           progress)

    def _survey(self, key: Any) -> tuple[float, tuple[str, ...], list[Event]]:
        """The public number of units, the labels, and what finding them cost."""
        planned, events = self.plan, list[Event]()
        rows = float(self.public.rows or 0)
        if "rows" in planned.survey_noise:
            counts, event = noisy_counts([np.array([self.texts.units])], noise_multiplier=planned.survey_noise["rows"],
                                         stream=key.stream("survey", "rows"), phase="survey",
                                         what=SURVEY_WHAT["rows"])
            rows = max(float(counts[0][0]), 1.0)
            events.append(event)
            check_delta(planned.delta, rows, f" (about {rows:.0f} were counted; this run stays booked)")
        labels = self.public.labels
        if "values" in planned.survey_noise:
            histogram = Counter(label for label in self.texts.labels or () if label is not None)
            found, drawn = frequent_values([histogram], noise_multiplier=planned.survey_noise["values"],
                                           delta=planned.survey_delta, stream=key.stream("survey", "values"),
                                           phase="survey", what=SURVEY_WHAT["values"])
            labels = tuple(sorted(found[0]))
            events.append(drawn)
        return rows, labels, events

    def _source(self, vocabulary: Vocabulary, labels: tuple[str, ...]) -> Any:
        from dpvae.train.ngrams import Source

        number = {label: i for i, label in enumerate(labels)}
        held = self.texts.labels or (None,) * len(self.texts.texts)
        return Source(vocabulary.table(self.texts.texts, self.public.cap), self.texts.owners,
                      np.array([number.get(label, -1) if label is not None else -1 for label in held]))

    def _train(self, source: Any, released: Any, vocabulary: Vocabulary, language: Language, rows: float,
               events: tuple[Event, ...], key: Any, run: RunFolder, progress: Progress) -> TextResult:
        import torch

        from dpvae.models.text import TextVAE
        from dpvae.release.texts import TextModel
        from dpvae.rng import seed_of
        from dpvae.train.text_trainer import TextTrainer, packed
        from dpvae.train.texts import known_of

        config, model = self.config, self.config.model
        grammar = Grammar.of(released.active, words=self.public.words)
        vae: Any = TextVAE(known_of(released, grammar, np.isin(released.active, MARKS)),
                           latent_dim=model.latent_dim or 16,
                           hidden=min(model.hidden, HIDDEN_WORDS if self.public.words else HIDDEN_BYTES),
                           generator=torch.Generator().manual_seed(seed_of(config.run.seed, "init")))
        held = TextModel(vae, vocabulary, released.active, released.rare,
                         self.public.schema(released.labels, language.source))
        codes = packed(torch.tensor(held.number[source.codes_NT]), torch.tensor(np.maximum(source.labels_N, 0)),
                       source.owners_N, self.public.per_unit)
        state = TextTrainer(plan=self.plan, config=config, vae=vae, codes=codes, anchors=cast(Any, None),
                            rows=max(round(rows), 1), key=key, checkpoint=run.checkpoint, listen=progress.listen,
                            unit="nats per text", shares=released.shares, per_unit=self.public.per_unit).fit()
        return TextResult(held, rows, (*events, *self.plan.events()[len(events):]), state.metrics, released)


@dataclass(frozen=True)
class TextResult:
    """A released text model; see :class:`dpvae.modalities.Result`."""

    model: Any
    rows: float
    events: tuple[Event, ...]
    metrics: list[dict[str, Any]]
    released: Any

    def publish(self, public: Path, seed: int) -> None:
        """Model, vocabulary, schema, noisy lengths and labels, diagnostics."""
        from dpvae.train.texts import diagnose, independent_elbo

        self.model.save(public)
        names = {"length": self.model.text, "label": self.model.label}
        write_json(public / "reference.json", {names[name]: table for name, table in self.released.reference.items()})
        found = diagnose(self.model.vae, seed=seed)
        shown = {name: found[name] for name in ("rate", "active_units", "latent_dim")}
        write_json(public / "diagnostics.json", {
            "independent_elbo": independent_elbo(self.released), **shown, "unit": "nats per text"})
        write_json(public / "latent.json", {**found, "unit": "nats per text, of the model's own texts"})
        drawn = made_up(public, SHOWN, seed=seed)
        rows = [dict(zip(drawn, row, strict=True)) for row in zip(*drawn.values(), strict=True)]
        write_json(public / "preview.json", {"sample": rows, "lines": self._lines(rows, seed)})

    def _lines(self, rows: list[dict[str, str]], seed: int) -> list[dict[str, Any]]:
        """Texts along the line between the latents of two drawn texts, once for each of a few pairs of them."""
        model, found = self.model, []
        for first, second in zip(rows[:2 * LINES:2], rows[1:2 * LINES:2], strict=True):
            label = first[model.label] if model.label else None
            told = f" ({model.label} {label})" if model.label else ""
            found.append({"title": f"from \u201c{first[model.text]}\u201d to \u201c{second[model.text]}\u201d{told}",
                          "texts": model.between(first[model.text], second[model.text], STOPS, label=label, seed=seed)})
        return found


def made_up(public: Path, rows: int, *, seed: int) -> dict[str, list[str]]:
    """Records drawn from the released model of a run, as :func:`prepare` takes them; the column of texts is first."""
    from dpvae.release.texts import TextModel

    model = TextModel.load(public)
    columns: dict[str, list[str]] = {model.text: []} | ({model.label: []} if model.label else {})
    for texts, labels in model.blocks(rows, seed=seed):
        columns[model.text] += texts
        if model.label:
            columns[model.label] += [model.labels[label] for label in labels]
    if unit := model.schema.get("unit"):
        columns[unit] = [f"u{i // 2}" for i in range(rows)]
    return columns


def troublemakers(records: Mapping[str, Any], public: Path | None = None) -> dict[str, dict[str, Any]]:
    """The first record with a text that a careless program trips over; what ``public`` declares allows any text."""
    first = {name: values[0] for name, values in records.items()}
    text = next(iter(records))
    unusual = {"a unique record": "Ushuaia \U0001f9ed", "an empty record": "", "a huge record": "zq " * 5000,
               "a right-to-left record": "\u05e9\u05dc\u05d5\u05dd e\u0301\x00", "a duplicate": first[text]}
    return {name: {**first, text: value} for name, value in unusual.items()}


def told(public: Path, records: Mapping[str, Any]) -> NDArray[np.int64]:
    """Texts as an attacker compares them, (n, HASHED + 2): which of :data:`HASHED` groups of three letters they hold,
    their length in steps of a factor two, and their label."""
    from dpvae.release.texts import TextModel

    model = TextModel.load(public)
    rows = np.zeros((len(records[model.text]), HASHED + 2), dtype=np.int64)
    for row, text in zip(rows, records[model.text], strict=True):
        told = text.encode("utf-8", "replace")
        for start in range(max(len(told) - 2, 0)):
            row[zlib.crc32(told[start:start + 3]) % HASHED] = 1
        row[HASHED] = len(told).bit_length()
    if model.label:
        rows[:, -1] = model.label_numbers(records[model.label]).numpy()
    return rows


def log_prob(public: Path, records: Mapping[str, Any]) -> NDArray[np.float64]:
    """The ELBO of texts under the released model, (n,) nats."""
    import torch

    from dpvae.release.texts import TextModel
    from dpvae.train.texts import Coded, elbos

    model = TextModel.load(public)
    labels = model.label_numbers(records[model.label]) if model.label else torch.zeros(
        len(records[model.text]), dtype=torch.long)
    return elbos(model.vae, Coded(model.code(list(records[model.text])), labels),
                 generator=torch.Generator().manual_seed(1))


def _source(data: DataConfig) -> Any:
    if data.builtin is not None:
        return reader.NAMES["path"]
    if data.path is None:
        raise ConfigError("data.path=null: expected texts; try data=text, or data=text data.path=texts.tsv")
    return data.path
