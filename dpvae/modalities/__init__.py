"""Kinds of data: what the verbs need to know of each, and nowhere else is it asked which one it is.

A modality is a module here with these functions; ``data.kind`` names it, and a run's ``schema.json`` remembers it.

    plan(config) -> Plan                      public facts only; opens no record
    prepare(config, source) -> Task           reads the records, refuses what it can; spends nothing
    writer(public, rows, seed=) -> TableWriter    from a run's public/ folder to the data files of a release
    made_up, troublemakers, told, log_prob    what an audit needs: nobody's records, and records as plain numbers

>>> modality("table").__name__
'dpvae.modalities.table'
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from dpvae import checks
from dpvae.config import DATA_KINDS, TrainConfig
from dpvae.privacy.events import Event
from dpvae.privacy.plan import Plan

if TYPE_CHECKING:
    from dpvae.report.progress import Progress
    from dpvae.train.parallel import Processes
    from dpvae.train.run import RunFolder

TableWriter = Callable[[Path, Mapping[str, str]], Mapping[str, Any]]  # (folder, marks): see release/bundle.py


class Result(Protocol):
    """What training left: a released model, the numbers that were paid for, and how to write them down."""

    @property
    def rows(self) -> float:
        """The public number of records: declared, or measured with noise."""

    @property
    def events(self) -> tuple[Event, ...]:
        """What was drawn; equal to what was planned."""

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The released noisy ELBOs."""

    def publish(self, public: Path, seed: int) -> None:
        """Write model, schema and whatever else was released or follows from it."""


class Task(Protocol):
    """Records and a plan for them, ready to be trained on."""

    @property
    def plan(self) -> Plan:
        """What will be spent."""

    def planned(self, config: TrainConfig, plan: Plan) -> Task:
        """The same records under other settings."""

    def fingerprint(self) -> bytes:
        """A digest of every record; it leaves only under a secret key."""

    def declared(self) -> str:
        """A digest of what is publicly known of the records."""

    def spend(self, run: RunFolder, progress: Progress, processes: Processes | None = None) -> Result:
        """Everything that touches private records: survey, measure, train; draws what the plan's events say."""


class Modality(Protocol):
    """The functions of a module of this package."""

    def plan(self, config: TrainConfig) -> Plan: ...

    def prepare(self, config: TrainConfig, source: Any = None) -> Task: ...

    def writer(self, public: Path, rows: int, *, seed: int, **how: Any) -> TableWriter: ...

    def made_up(self, public: Path, rows: int, *, seed: int) -> dict[str, Any]:
        """Nobody's records, drawn from a released model, by column, as :meth:`prepare` takes them."""

    def troublemakers(self, records: Mapping[str, Any], public: Path | None = None) -> dict[str, dict[str, Any]]:
        """Records that a careless program trips over, by what is strange about them; within what is declared."""

    def told(self, public: Path, records: Mapping[str, Any]) -> NDArray[np.int64]:
        """Records as rows of codes (n, D), the last one what an attacker would like to know: for attacks."""

    def log_prob(self, public: Path, records: Mapping[str, Any]) -> NDArray[np.float64]:
        """What the released model gives each record, (n,) nats: log p(x), or a bound on it."""


def modality(kind: str) -> Modality:
    """The module of a kind of data; :class:`ConfigError` where there is none of that name."""
    checks.one_of(DATA_KINDS, **{"data.kind": kind})
    return cast(Modality, importlib.import_module(f"dpvae.modalities.{kind}"))


def released(public: Path) -> Modality:
    """The modality of a finished run, from the ``schema.json`` in its public folder."""
    return modality(str(json.loads((public / "schema.json").read_bytes()).get("kind", "table")))
