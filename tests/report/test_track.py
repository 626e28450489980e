"""A tracker hears what was released and nothing else; one that is not installed is refused, with the remedy."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_run import make_run

from dpvae.config import ReportConfig
from dpvae.errors import ConfigError
from dpvae.report import track
from dpvae.report.run import report_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    made = make_run(tmp_path / "runs")
    report_run(made)
    return made


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_the_noisy_elbo_with_its_noise_and_epsilon(run: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs pip install 'dpvae[tensorboard]'")
    track.track(ReportConfig(tracker="tensorboard"), run)
    reader = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    found = reader.EventAccumulator(str(run.parent / ".tensorboard" / run.name))
    found.Reload()
    metrics = [json.loads(line) for line in (run / "public" / "metrics.jsonl").read_text().splitlines()]
    assert [event.value for event in found.Scalars("noisy_elbo")] == pytest.approx([m["noisy_elbo"] for m in metrics])
    assert [event.value for event in found.Scalars("epsilon_spent")] == pytest.approx(
        [m["epsilon_spent"] for m in metrics])


class Recorder:
    """Stands in for mlflow: notes every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self.calls.append((name, args)) or self

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *error: object) -> None:
        return None


def test_mlflow_gets_settings_metrics_and_the_page_and_no_place(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Recorder()
    monkeypatch.setitem(sys.modules, "mlflow", fake)  # type: ignore[arg-type]
    track.track(ReportConfig(tracker="mlflow", place="http://tracker"), run)
    names = [name for name, _ in fake.calls]
    assert names[:3] == ["set_tracking_uri", "set_experiment", "start_run"]
    values = [args for name, args in fake.calls if name == "log_metric"]
    assert ("noisy_elbo", -18.2) in [(name, round(value, 2)) for name, value in values]
    assert ("log_artifact", (str(run / "public" / "report.html"),)) in fake.calls
    assert "SECRET" not in str(fake.calls)


@pytest.mark.parametrize("tracker", ["tensorboard", "mlflow"])
def test_a_tracker_that_is_not_installed_is_refused_with_the_remedy(
        tracker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, track.MODULES[tracker], None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=rf"pip install 'dpvae\[{tracker}\]'"):
        track.ready(ReportConfig(tracker=tracker))


def test_without_a_tracker_nothing_is_written_and_a_place_alone_is_a_mistake(run: Path) -> None:
    before = sorted(run.parent.rglob("*"))
    track.track(ReportConfig(), run)
    assert sorted(run.parent.rglob("*")) == before
    with pytest.raises(ConfigError, match="expected a tracker"):
        ReportConfig(place="somewhere")
    with pytest.raises(ConfigError, match="did you mean 'tensorboard'"):
        ReportConfig(tracker="tensorbord")
