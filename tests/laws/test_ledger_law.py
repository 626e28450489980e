"""Law 2 and 3: what was drawn is what was booked, one by one, noise multipliers included; and it was booked first."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from laboratory import Tape, tapped
from small_runs import TRAINERS, Draw, ScriptedKey, people, small_config

from dpvae import api
from dpvae.config import LedgerConfig, TrainConfig
from dpvae.privacy import mechanisms, plan, table_plan
from dpvae.privacy.events import Event, Gaussian, PureDP, SampledGaussian, Threshold
from dpvae.privacy.ledger import Ledger
from dpvae.privacy.noise import SecretKey
from dpvae.privacy.plan import CHOSEN_WHAT, LATENT_WHAT, SURVEY_WHAT, TABLES_WHAT, THRESHOLDED
from dpvae.train import anchor, interactions
from dpvae.train import trainer as trainer_module

ROWS = 120
TABLE = people(ROWS)
LOUD = 1e6  # DP-SGD noise is multiplied by this, so that what is released is noise to six digits
Booked = tuple[str, str, str, float, int]  # type, phase, what, noise multiplier, count or steps


@dataclass
class Book:
    """Everything a run drew from secret randomness, in order, and the scale it was given."""

    draws: list[Draw] = field(default_factory=list)
    streams: list[tuple[str | int, ...]] = field(default_factory=list)
    integers: list[tuple[tuple[str | int, ...], float, int]] = field(default_factory=list)  # names, sd, cells
    normals: dict[tuple[str | int, ...], np.ndarray] = field(default_factory=dict)
    choices: list[tuple[float, int]] = field(default_factory=list)  # epsilon and number of every private choice
    rows_on_the_ledger: list[int] = field(default_factory=list)  # at each draw
    tape: Tape = field(default_factory=lambda: Tape(1.0))


def watched(patch: pytest.MonkeyPatch, config: TrainConfig) -> Book:
    """Open a book in which every draw of the next training is written."""
    book, real_stream, real_noise = Book(), SecretKey.stream, mechanisms._integer_noise

    def normal(names: Any, real: np.ndarray) -> np.ndarray:
        if names[0] != "dpsgd":
            return real
        book.normals[names] = real
        return real * LOUD

    def stream(self: SecretKey, *names: str | int) -> Any:
        script = ScriptedKey(key=_Real(lambda *n: real_stream(self, *n)), normal=normal, draws=book.draws)
        book.streams.append(names)
        book.rows_on_the_ledger.append(len(Ledger.open(Path(config.run.root) / "ledger.db").rows()))
        opened = script.stream(*names)
        opened.names_for_test = names
        return opened

    def integer_noise(opened: Any, sd: float, size: int) -> np.ndarray:
        book.integers.append((opened.names_for_test, sd, size))
        return real_noise(opened, sd, size)

    real_choice = mechanisms.noisy_choice

    def choice(blocks: Any, *, choices: int, epsilon: float, **rest: Any) -> Any:
        book.choices.append((epsilon, choices))
        return real_choice(blocks, choices=choices, epsilon=epsilon, **rest)

    patch.setattr(interactions, "noisy_choice", choice)
    patch.setattr(SecretKey, "stream", stream)
    patch.setattr(mechanisms, "_integer_noise", integer_noise)
    patch.setattr(trainer_module, "PrivateSteps", tapped(book.tape))
    return book


@dataclass
class _Real:
    stream: Callable[..., Any]


def drawn(book: Book, config: TrainConfig) -> Counter[Booked]:
    """The events that the draws amount to, worked out from the noise itself."""
    found: Counter[Booked] = Counter()
    cells: dict[tuple[str | int, ...], list[float]] = {}
    for names, sd, _ in book.integers:
        cells.setdefault(names, []).append(sd)
    metrics = []
    rounds: Counter[tuple[str, float]] = Counter()
    for epsilon, count in book.choices:
        found["PureDP", "interactions", CHOSEN_WHAT, round(epsilon, 9), count] += 1
    for names, sds in cells.items():
        if names != ("survey", "rare"):
            assert len(set(sds)) == 1, "tables that are released together share their noise"
        multiplier = 1 / math.sqrt(math.fsum(1 / sd**2 for sd in sds))  # a record is in one cell of each table
        if names[0] == "metric":
            metrics.append(round(multiplier / mechanisms._UNITS, 9))
        elif names[0] == "latent" and names[1] != "table":
            rounds[str(names[1]), round(multiplier / mechanisms._PRODUCT_UNITS**2, 9)] += 1
        elif names == ("latent", "table"):
            rounds["table", round(multiplier, 9)] += 1
        elif names == ("interactions", "tables"):
            found["Gaussian", "interactions", TABLES_WHAT, round(multiplier, 9), 1] += 1
        elif names[0] == "survey" and names[1] in THRESHOLDED:
            found["Threshold", "survey", SURVEY_WHAT[str(names[1])], round(multiplier, 9), 1] += 1
        else:
            what = SURVEY_WHAT[str(names[1])] if names[0] == "survey" else f"noisy {names[1]} tables"
            found["Gaussian", str(names[0]), what, round(multiplier, 9), 1] += 1
    for (name, multiplier), count in rounds.items():
        found["Gaussian", "latent", LATENT_WHAT[name], multiplier, count] += 1
    for multiplier, count in Counter(metrics).items():
        found["Gaussian", "metric", "noisy ELBO", multiplier, count] += 1
    steps, multiplier = steps_drawn(book, config)
    if steps:
        found["SampledGaussian", "dpsgd", "clipped gradients, Poisson sampling", multiplier, steps] += 1
    return found


def steps_drawn(book: Book, config: TrainConfig) -> tuple[int, float]:
    """How many steps of DP-SGD were released, and the noise multiplier that their gradients show."""
    assert len(book.tape.sums) == len(book.normals)
    if not book.normals:
        return 0, 0.0
    claim = json.loads((Path(config.run.root) / "watched" / "public" / "claim.json").read_text())
    scale = claim["divisor"] / config.trainer.clip_norm / LOUD
    seen = [float(np.median(released.numpy() / normal)) * scale
            for released, normal in zip(book.tape.sums, book.normals.values(), strict=True)]
    assert max(seen) - min(seen) < 1e-4, "every step has the same noise"
    planned = json.loads((Path(config.run.root) / "watched" / "public" / "plan.json").read_text())["sgd"]
    drawn, told = float(np.mean(seen)), float(planned["noise_multiplier"])
    return len(book.normals), round(told if abs(drawn - told) < 1e-4 else drawn, 4)  # no edge of rounding between them


def booked(events: list[Event], book: Book) -> Counter[Booked]:
    """The same, from the ledger's events. One of them is asked for in vain where the noisy counts leave nothing to ask:

    whether any column has rarer values follows from what the step before released, and the price was paid before.
    """
    found: Counter[Booked] = Counter()
    in_vain = {"rare"} - {names[1] for names in book.streams if names[0] == "survey"}
    for event in events:
        kind = type(event).__name__
        if isinstance(event, Threshold) and event.what in {SURVEY_WHAT[step] for step in in_vain}:
            continue
        if isinstance(event, SampledGaussian):
            found[kind, event.phase, event.what, round(event.noise_multiplier, 4), event.steps] += 1
        elif isinstance(event, Threshold):
            found[kind, event.phase, event.what, round(event.noise_multiplier, 9), 1] += 1
        elif isinstance(event, PureDP):
            found[kind, event.phase, event.what, round(event.epsilon, 9), event.count] += 1
        else:
            assert isinstance(event, Gaussian)
            found[kind, event.phase, event.what, round(event.noise_multiplier, 9), event.count] += 1
    return found


def config_of(name: str, folder: Path, **changes: Any) -> TrainConfig:
    data = {"target": "income", "rows": ROWS} | changes.pop("data", {})
    return small_config(name, run={"root": str(folder), "name": "watched"}, data=data,
                        ledger=LedgerConfig(dataset="people"), **changes)


def train_watched(patch: pytest.MonkeyPatch, config: TrainConfig) -> tuple[Book, list[Event]]:
    Path(config.run.root).mkdir(parents=True, exist_ok=True)
    book = watched(patch, config)
    api.train(config, TABLE)
    return book, Ledger.open(Path(config.run.root) / "ledger.db").events("people")


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {"trainer": {"steps": 7, "metric_releases": 3}}) for name in TRAINERS},
    "rows measured": ("decoder_only", {"data": {"rows": None}}),
    "no target": ("anchored", {"data": {"target": None}}),
    "anchors alone": ("anchored", {"trainer": {"anchor_share": 1.0}}),
    "gradients alone": ("joint", {"trainer": {"anchor_share": 0.01, "clip_norm": 0.3}}),
    "more ELBOs than steps": ("joint", {"trainer": {"steps": 3, "metric_releases": 9}}),
}


@pytest.mark.parametrize(("name", "changes"), CASES.values(), ids=CASES.keys())
def test_every_draw_is_booked_and_every_booking_is_drawn_with_its_noise_multiplier(
        name: str, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(name, tmp_path, **changes)
    book, events = train_watched(monkeypatch, config)
    assert drawn(book, config) == booked(events, book)
    assert len(events) >= 5


@pytest.mark.parametrize("target", ["income", None])
@pytest.mark.parametrize("wide", [3, 60])
def test_a_latent_code_and_interactions_are_booked_as_they_are_drawn(
        wide: int, target: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_plan, "WIDE", wide)
    monkeypatch.setattr(table_plan, "FEW", 4)
    config = config_of("anchored", tmp_path, data={"target": target}, model={"components": 300, "latent_dim": 30})
    book, events = train_watched(monkeypatch, config)
    assert drawn(book, config) == booked(events, book)
    assert {"interactions", *(["latent"] if wide == 3 else ["dpsgd"])} < {event.phase for event in events}
    assert max(Counter(book.streams).values()) == 1


@pytest.mark.parametrize("name", TRAINERS)
def test_nothing_else_is_drawn_from_secret_randomness(name: str, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    book, _ = train_watched(monkeypatch, config_of(name, tmp_path))
    normals = [draw for draw in book.draws if draw.kind == "normal"]
    one_shot = [draw for draw in normals if draw.names[0] != "dpsgd"]
    assert [(draw.names, draw.size) for draw in one_shot] == [(names, size) for names, _, size in book.integers]
    assert {draw.kind for draw in book.draws} == {"normal", "mask", "bytes"}
    assert {draw.names[0] for draw in book.draws} == {"survey", "anchor", "dpsgd", "metric"}
    assert all(draw.names[2] in ("latent", "mask") for draw in book.draws if draw.kind != "normal")


@pytest.mark.parametrize("name", TRAINERS)
def test_no_stream_is_opened_twice(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book, _ = train_watched(monkeypatch, config_of(name, tmp_path))
    assert max(Counter(book.streams).values()) == 1
    by_name = {names: {draw.kind for draw in book.draws if draw.names == names} for names in book.streams}
    assert all(len(kinds) <= 1 for kinds in by_name.values()), "noise and masks never share a stream"


def test_the_ledger_is_written_before_the_first_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book, _ = train_watched(monkeypatch, config_of("anchored", tmp_path))
    assert min(book.rows_on_the_ledger) >= 1
    rows = Ledger.open(tmp_path / "ledger.db").rows()
    assert [row.kind for row in rows] == ["reserve", "commit"]


def test_the_events_of_the_run_are_the_events_of_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dpvae.report.source import read_run

    _, events = train_watched(monkeypatch, config_of("joint", tmp_path))
    assert list(read_run(tmp_path / "watched").events) == events


# -- mutants ---------------------------------------------------------------------------------------------------------


def books_every_second_step(patch: pytest.MonkeyPatch) -> None:
    real = plan._events

    def fewer(planned: Any) -> tuple[Event, ...]:
        return tuple(SampledGaussian(e.phase, e.what, e.noise_multiplier, e.sampling_rate, e.steps // 2)
                     if isinstance(e, SampledGaussian) else e for e in real(planned))

    patch.setattr(plan, "_events", fewer)


def books_more_noise_than_it_adds(patch: pytest.MonkeyPatch) -> None:
    real = anchor.noisy_counts

    def quieter(tables: Any, *, noise_multiplier: float, phase: str, what: str, **rest: Any) -> Any:
        noisy, _ = real(tables, noise_multiplier=noise_multiplier / 2, phase=phase, what=what, **rest)
        return noisy, Gaussian(phase, what, noise_multiplier)

    patch.setattr(anchor, "noisy_counts", quieter)


def measures_once_more(patch: pytest.MonkeyPatch) -> None:
    real = anchor.measure

    def twice(*args: Any, key: Any, **kwargs: Any) -> Any:
        mechanisms.noisy_counts([np.array([ROWS])], noise_multiplier=1.0, stream=key.stream("anchor", "peek"),
                                phase="anchor", what="peek")
        return real(*args, key=key, **kwargs)

    patch.setattr(anchor, "measure", twice)


def forgets_an_elbo(patch: pytest.MonkeyPatch) -> None:
    real = plan._events

    def fewer(planned: Any) -> tuple[Event, ...]:
        return tuple(Gaussian(e.phase, e.what, e.noise_multiplier, e.count - 1)
                     if e.phase == "metric" and isinstance(e, Gaussian) and e.count > 1 else e for e in real(planned))

    patch.setattr(plan, "_events", fewer)


def quieter_gradients(patch: pytest.MonkeyPatch) -> None:
    from dpvae.train.clipping.optimizer import SecretOptimizer

    real = SecretOptimizer.add_noise

    def quieter(self: Any) -> None:
        self.noise_multiplier, told = self.noise_multiplier * 0.9, self.noise_multiplier
        real(self)
        self.noise_multiplier = told

    patch.setattr(SecretOptimizer, "add_noise", quieter)


MUTANTS = (books_every_second_step, books_more_noise_than_it_adds, measures_once_more, forgets_an_elbo,
           quieter_gradients)


@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda mutate: mutate.__name__)
def test_a_ledger_that_differs_from_what_was_drawn_is_seen(
        mutate: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    config = config_of("joint", tmp_path)
    book, events = train_watched(monkeypatch, config)
    assert drawn(book, config) != booked(events, book)
