"""A finished run in TensorBoard or MLflow, beside others: released numbers only, after they were released.

    dpvae train report=tensorboard            # runs/.tensorboard; pip install 'dpvae[tensorboard]'
    dpvae train report=mlflow                 # runs/mlflow.db; pip install 'dpvae[mlflow]'

What is written is what ``public/`` holds: the noisy ELBOs with their noise, epsilon spent, the public settings, the
sentence of the guarantee. Without either, the same numbers are in ``public/metrics.jsonl``, one JSON object a line.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dpvae.config import ReportConfig
from dpvae.errors import ConfigError

MODULES = {"tensorboard": "torch.utils.tensorboard", "mlflow": "mlflow"}


def ready(config: ReportConfig) -> None:
    """Refuse, before anything is spent, a tracker that is not installed."""
    if config.tracker is not None:
        _module(config.tracker)


def track(config: ReportConfig, run: Path) -> None:
    """Hand a finished run (with its ``public/report.json``) to the tracker of ``config``, where there is one."""
    if config.tracker is None:
        return
    numbers = json.loads((run / "public" / "report.json").read_text())
    settings = json.loads((run / "public" / "config.json").read_text())
    known = {"tensorboard": _tensorboard, "mlflow": _mlflow}
    known[config.tracker](config, run, numbers, dict(_flat(settings)))


def _tensorboard(config: ReportConfig, run: Path, numbers: Mapping[str, Any], settings: Mapping[str, str]) -> None:
    place = Path(config.place) if config.place is not None else run.parent / ".tensorboard"  # no run is called so
    writer = _module("tensorboard").SummaryWriter(str(place / run.name))
    for number, name, value in _metrics(numbers):
        writer.add_scalar(name, value, number)
    writer.add_text("guarantee", numbers["sentence"])
    writer.add_text("settings", "\n".join(f"    {key}={value}" for key, value in settings.items()))
    writer.close()


def _mlflow(config: ReportConfig, run: Path, numbers: Mapping[str, Any], settings: Mapping[str, str]) -> None:
    mlflow = _module("mlflow")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    mlflow.set_tracking_uri(config.place or f"sqlite:///{(run.parent / 'mlflow.db').resolve()}")
    if config.place is None and mlflow.get_experiment_by_name("dpvae") is None:  # else it keeps files where one stands
        mlflow.create_experiment("dpvae", artifact_location=(run.parent / ".mlflow").resolve().as_uri())
    mlflow.set_experiment("dpvae")
    with mlflow.start_run(run_name=run.name):
        mlflow.log_params(dict(settings))
        mlflow.set_tag("guarantee", numbers["sentence"])
        mlflow.log_metric("epsilon", numbers["claim"]["upper"])
        for number, name, value in _metrics(numbers):
            mlflow.log_metric(name, value, step=number)
        mlflow.log_artifact(str(run / "public" / "report.html"))


def _metrics(numbers: Mapping[str, Any]) -> Iterator[tuple[int, str, float]]:
    """(number of the release, name, value) of everything that was released while training."""
    for number, metric in enumerate(numbers["metrics"]):
        for name in ("noisy_elbo", "sd", "epsilon_spent", "rate"):
            if metric.get(name) is not None:
                yield number, name if name != "sd" else "noisy_elbo_sd", metric[name]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", str(value)


def _module(tracker: str) -> Any:
    try:
        return importlib.import_module(MODULES[tracker])
    except ImportError:
        raise ConfigError(f"report={tracker}: {tracker} is not installed; pip install 'dpvae[{tracker}]', or leave "
                          "report out: the same numbers are in public/metrics.jsonl") from None
