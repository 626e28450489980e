"""A run folder, read: only ``run.json`` and ``public/``, so nothing sealed in ``private/`` can reach a page.

    source = read_run(Path("runs/adult1"))
    source.claim.delta, source.events, source.metrics

Events, claim and metrics are checked on the way in: what does not parse is a :class:`RunError` that names the
file, before anything is written.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dpvae import checks
from dpvae.errors import ConfigError, ReleaseError, RunError
from dpvae.privacy import events as facts
from dpvae.report import records

NONE: Literal["none"] = "none"
Absent = Literal["none"]
ORIGIN = "source.json"
REQUIRED = ("claim.json", "events.jsonl", "plan.json", "schema.json")


@dataclass(frozen=True, kw_only=True)
class RunClaim:
    """``public/claim.json``: what the run was set to guarantee, and the public facts behind it."""

    epsilon_target: float
    delta: float
    neighbouring: str
    unit: str
    n_ref: float
    n_ref_source: Literal["declared", "measured"]
    private: bool
    divisor: float | Absent
    noise: str
    replay: str
    dataset: str = NONE
    ledger_head: str = NONE
    ledger_rows: float | Absent = NONE
    cumulative_epsilon: float | Absent = NONE

    def __post_init__(self) -> None:
        checks.positive(epsilon_target=self.epsilon_target, n_ref=self.n_ref)
        checks.fraction(delta=self.delta)
        checks.one_of(("add_remove", "replace_one"), neighbouring=self.neighbouring)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One line of ``public/metrics.jsonl``: a number that was released with noise and paid for."""

    phase: str
    step: int
    noisy_elbo: float
    sd: float
    unit: str
    rate: float | None
    epsilon_spent: float


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """``public/diagnostics.json``: did the latent learn anything? See :mod:`dpvae.evaluate.collapse`."""

    independent_elbo: float
    rate: float
    active_units: float
    latent_dim: float
    unit: str


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """A released noisy 1-way marginal: counts per label, each with noise of standard deviation ``sd``."""

    labels: tuple[str, ...]
    noisy: tuple[float, ...]
    sd: float


@dataclass(frozen=True, kw_only=True)
class Source:
    """Everything public about a run."""

    name: str
    created: str
    claim: RunClaim
    events: tuple[facts.Event, ...]
    schema: dict[str, Any]
    config: dict[str, Any]
    schema_bytes: bytes
    plan_bytes: bytes
    metrics: tuple[Metric, ...]
    diagnostics: Diagnostics | None
    anchors: dict[str, Anchor]
    model_sha256: str
    map: dict[str, Any] = field(default_factory=dict)  # synthetic rows on two axes of the latent
    preview: dict[str, Any] = field(default_factory=dict)  # what the model draws: see dpvae.release.preview
    audit: dict[str, Any] = field(default_factory=dict)  # what dpvae audit found of this very model
    origin: dict[str, Any] = field(default_factory=dict)  # the lake table it was trained on, and which snapshot


def read_run(run: Path) -> Source:
    """The public part of a finished run; :class:`RunError` where ``run`` is not one."""
    if not (run / "run.json").is_file():
        raise RunError(f"run={records.clip(run, quote=False)}: not a run folder (no run.json); "
                       "name one below runs/, or run=latest")
    try:
        return _read(run)
    except (ReleaseError, ConfigError) as error:
        raise RunError(f"run={records.clip(run.name, quote=False)}: {error}") from None


def _read(run: Path) -> Source:
    public = run / "public"
    state = _mapping(run / "run.json", "run.json")
    if state.get("status") != "finished":
        raise RunError(f"run={run.name}: status is {records.clip(state.get('status'))}; "
                       "finish it first by giving the same dpvae train command again")
    for name in REQUIRED:
        if not (public / name).is_file():
            raise ReleaseError(f"public/{name}: missing; the run is incomplete, train it again")
    _mapping(public / "plan.json", "public/plan.json")
    model = _digest(public / "model.safetensors")
    return Source(
        name=str(state.get("name", run.name)), created=str(state.get("created", NONE)),
        claim=read_claim(_mapping(public / "claim.json", "public/claim.json")),
        events=read_events(records.read_bytes(public / "events.jsonl", "public/events.jsonl"), "public/events.jsonl"),
        schema=_mapping(public / "schema.json", "public/schema.json"),
        config=_optional(public / "config.json", "public/config.json"),
        schema_bytes=(public / "schema.json").read_bytes(), plan_bytes=(public / "plan.json").read_bytes(),
        metrics=_metrics(public / "metrics.jsonl"), diagnostics=_diagnostics(public / "diagnostics.json"),
        anchors=_anchors(_optional(public / "reference.json", "public/reference.json")),
        model_sha256=model, map=_optional(public / "map.json", "public/map.json"),
        preview=_optional(public / "preview.json", "public/preview.json"), audit=_audit(public / "audit.json", model),
        origin=_optional(public / ORIGIN, f"public/{ORIGIN}"),
    )


def read_events(data: bytes, name: str) -> tuple[facts.Event, ...]:
    """The events of a JSON-lines file, in order; a bad one is a :class:`ReleaseError` that names its line."""
    found = []
    for number, line in enumerate(records.parse_lines(data, name), start=1):
        try:
            found.append(facts.from_dict(line))
        except ConfigError as error:
            raise ReleaseError(f"{name} line {number}: {records.clip(error)}") from None
    if not found:
        raise ReleaseError(f"{name}: holds no event; a run that touched nothing has nothing to release")
    return tuple(found)


def write_events(events: tuple[facts.Event, ...]) -> bytes:
    """The events as JSON lines, each in its one canonical form."""
    return b"".join(records.canonical(facts.to_dict(event)) + b"\n" for event in events)


def read_claim(value: dict[str, Any]) -> RunClaim:
    """The claim, strictly; what this version does not need may be absent, what it does not know is refused."""
    optional = {"dataset": NONE, "ledger_head": NONE, "ledger_rows": NONE, "cumulative_epsilon": NONE}
    given = {key: NONE if key in (*optional, "divisor") and item is None else item for key, item in value.items()}
    return records.read(RunClaim, {**optional, **given}, "claim")


def schema_columns(schema: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(name, column) of a schema in JSON, whose columns are a list of objects or a mapping by name."""
    columns = schema.get("columns")
    if isinstance(columns, Mapping):
        return [(str(name), column) for name, column in columns.items() if isinstance(column, Mapping)]
    if isinstance(columns, list):
        return [(str(column.get("name")), column) for column in columns if isinstance(column, Mapping)]
    return []


def _metrics(path: Path) -> tuple[Metric, ...]:
    """Only lines with a noisy ELBO are drawn; other released metrics are left to later versions."""
    if not path.is_file():
        return ()
    lines = records.parse_lines(records.read_bytes(path, "public/metrics.jsonl"), "public/metrics.jsonl")
    wanted = [line for line in lines if isinstance(line, dict) and line.get("noisy_elbo") is not None]
    names = [field.name for field in dataclasses.fields(Metric)]
    return tuple(records.read(Metric, {name: line.get(name) for name in names}, f"public/metrics.jsonl[{i}]")
                 for i, line in enumerate(wanted))


def _diagnostics(path: Path) -> Diagnostics | None:
    if not path.is_file():
        return None
    return records.read(Diagnostics, _mapping(path, "public/diagnostics.json"), "diagnostics")


def _audit(path: Path, model_sha256: str) -> dict[str, Any]:
    """What an audit wrote; nothing where it was of another model."""
    found = _optional(path, "public/audit.json")
    return found if found.get("model_sha256") == model_sha256 else {}


def _anchors(value: dict[str, Any]) -> dict[str, Anchor]:
    found = {}
    for column, item in value.items():
        anchor = records.read(Anchor, _texts(item), f"public/reference.json.{column}")
        if len(anchor.labels) != len(anchor.noisy) or not anchor.labels or anchor.sd < 0:
            raise ReleaseError(f"public/reference.json.{column}: expected as many noisy counts as labels, and sd >= 0")
        found[column] = anchor
    return found


def _texts(item: Any) -> Any:
    """Labels may be written as numbers; they are shown as text."""
    if isinstance(item, dict) and isinstance(item.get("labels"), list):
        return {**item, "labels": ["missing" if x is None else str(x) for x in item["labels"]]}
    return item


def _mapping(path: Path, name: str) -> dict[str, Any]:
    value = records.parse_file(path, name)
    if not isinstance(value, dict):
        raise ReleaseError(f"{name}: expected an object")
    return value


def _optional(path: Path, name: str) -> dict[str, Any]:
    return _mapping(path, name) if path.is_file() else {}


def _digest(path: Path) -> str:
    """SHA-256 of a file of any size, or ``none``."""
    if not path.is_file():
        return NONE
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
