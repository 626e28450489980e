"""What is printed while a run works: a line per phase, one per five seconds, and no number that was not released."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import dpvae
from dpvae.config import PROGRESS, TrainConfig
from dpvae.privacy.accountant import price
from dpvae.privacy.plan import Plan, PublicFacts, make_plan
from dpvae.privacy.table_plan import TableRule
from dpvae.report import progress
from dpvae.report.progress import Progress, clock


@dataclass(frozen=True)
class Moment:
    phase: str
    step: int
    steps: int
    metric: dict[str, Any] | None = None


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(TrainConfig(), PublicFacts(columns=4, rows=1000, survey_steps=("values",)), TableRule())


@pytest.fixture
def tick(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A clock that only moves when it is told to."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


def metric(step: int, spent: float, elbo: float = -20.0) -> dict[str, Any]:
    return {"phase": "dpsgd", "step": step, "noisy_elbo": elbo, "sd": 0.1, "epsilon_spent": spent}


def story(shown: Progress, tick: Callable[[float], None], steps: int = 100, seconds: float = 0.5) -> None:
    """A run as the trainer tells it, with its repetitions: a metric is told twice, once without the phase's length."""
    shown.begin("survey")
    tick(1)
    shown.phase("survey", 1)
    shown.begin("anchor")
    tick(1)
    shown.phase("anchor", 1)
    for step in range(1, steps + 1):
        tick(seconds)
        shown.listen(Moment("fit", step, steps))
    shown.listen(Moment("fit", steps, steps, metric(0, 0.9)))
    assert shown.plan.sgd is not None
    length = shown.plan.sgd.steps
    for step in range(1, length + 1):
        tick(seconds)
        found = metric(step, 0.95, -19.0) if step in (1, length) else None
        if found:
            shown.listen(Moment("dpsgd", step, step, found))
        shown.listen(Moment("dpsgd", step, length, found))


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_a_quick_run_in_plain_lines_is_one_line_per_phase(
    plan: Plan, tick: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("plain", plan) as shown:
        story(shown, tick, seconds=0.001)
    found = lines(capsys)
    assert [line.split()[0] for line in found] == ["survey", "anchor", "fit", "dpsgd"]
    assert found[0].split(None, 1)[1].endswith("took 1 s")
    assert "100/100  noisy ELBO -20.00 +-0.10 nats per row, epsilon 0." in found[2]
    assert f"{plan.sgd.steps}/{plan.sgd.steps}  noisy ELBO -19.00" in found[3]  # type: ignore[union-attr]


def test_a_long_run_in_plain_lines_is_about_one_line_in_five_seconds_and_never_the_same_twice(
    plan: Plan, tick: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("plain", plan) as shown:
        story(shown, tick, seconds=0.5)
    found = lines(capsys)
    assert plan.sgd is not None
    seconds = 2 + 0.5 * (100 + plan.sgd.steps)
    assert seconds / 5 * 0.8 <= len(found) <= seconds / 5 + 4
    counts = [line[:18] for line in found]
    assert len(set(counts)) == len(counts)
    assert any(re.fullmatch(r"fit +41/100  epsilon .* spent, .* left, 29 s to go", line) for line in found)
    assert not [line for line in found if "dpsgd" in line and f"/{plan.sgd.steps}" not in line]


def test_epsilon_spent_is_the_price_of_what_was_drawn_and_never_falls(
    plan: Plan, tick: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("plain", plan) as shown:
        story(shown, tick)
    spent = [float(re.search(r"epsilon ([0-9.]+) spent", line)[1]) for line in lines(capsys)]  # type: ignore[index]
    assert spent == sorted(spent)
    survey = [event for event in plan.events() if event.phase == "survey"]
    assert spent[0] == pytest.approx(price(survey, delta=plan.delta).upper, abs=6e-4)
    assert spent[1] == pytest.approx(price(plan.events_until(0, 0), delta=plan.delta).upper, abs=6e-4)
    assert spent[-1] <= plan.target_epsilon


def test_a_run_that_was_resumed_does_not_understate_what_it_spent(
    plan: Plan, tick: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan.sgd is not None
    assert plan.epsilon is not None
    with Progress("plain", plan) as shown:
        shown.phase("survey", 1)
        shown.phase("anchor", 1)
        shown.listen(Moment("dpsgd", plan.sgd.steps, plan.sgd.steps))
    last = float(re.search(r"epsilon ([0-9.]+) spent", lines(capsys)[-1])[1])  # type: ignore[index]
    assert last == pytest.approx(plan.epsilon.upper, abs=6e-4)
    with Progress("plain", plan) as shown:
        shown.listen(Moment("sleep", 400, 400))
    last = float(re.search(r"epsilon ([0-9.]+) spent", lines(capsys)[-1])[1])  # type: ignore[index]
    assert last == pytest.approx(plan.epsilon.upper, abs=6e-4)


def test_json_is_one_object_per_line_and_each_metric_appears_once(
    plan: Plan, tick: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("json", plan) as shown:
        story(shown, tick, seconds=0.001)
    found = [json.loads(line) for line in lines(capsys)]
    assert {key for item in found for key in item} == {
        "phase", "step", "steps", "metric", "epsilon_spent", "epsilon_target", "seconds"}
    assert [item["phase"] for item in found if item["metric"]] == ["fit", "dpsgd", "dpsgd"]
    ended = [item["phase"] for item in found if item["step"] == item["steps"]]
    assert ended == ["survey", "anchor", "fit", "dpsgd"]


def test_quiet_prints_nothing_and_prices_nothing(
    plan: Plan, tick: Callable[[float], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "price", lambda *a, **k: pytest.fail("priced"))
    with Progress("quiet", plan) as shown:
        story(shown, tick)
    assert lines(capsys) == []


def test_a_phase_that_was_broken_off_is_not_said_to_have_ended(
    plan: Plan, tick: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def broken_off() -> None:
        with Progress("plain", plan) as shown:
            shown.phase("survey", 1)
            shown.listen(Moment("fit", 100, 100))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert [line.split()[0] for line in lines(capsys)] == ["survey"]


@pytest.mark.parametrize("style", PROGRESS)
def test_every_style_can_be_shown(
    plan: Plan, tick: Callable[[float], None], capsys: pytest.CaptureFixture[str], style: str
) -> None:
    with Progress(style, plan) as shown:
        story(shown, tick, steps=3)
    assert shown.style != "auto"


def test_durations_are_short() -> None:
    assert [clock(s) for s in (0, 59.4, 60, 3599, 3600, 90061)] == ["0 s", "59 s", "1:00 min", "59:59 min", "1:00 h",
                                                                  "25:01 h"]


SHOW = """
import sys
from dpvae.config import TrainConfig
from dpvae.privacy.plan import PublicFacts, make_plan
from dpvae.privacy.table_plan import TableRule
from dpvae.report.progress import Progress
sys.path.insert(0, sys.argv[1])
from test_progress import story
facts = PublicFacts(columns=4, rows=1000, survey_steps=("values",))
with Progress("auto", make_plan(TrainConfig(), facts, TableRule())) as shown:
    assert shown.style == "rich"
    story(shown, lambda seconds: None)
"""


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_shows_one_line_per_phase_that_fits_its_width(columns: int) -> None:
    ours, theirs = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(Path(dpvae.__file__).parents[1]), "COLUMNS": str(columns),
                                "LINES": "40", "TERM": "xterm"}
    process = subprocess.Popen([sys.executable, "-c", SHOW, str(Path(__file__).parent)], stdout=theirs, stderr=theirs,
                               env=environment)
    os.close(theirs)
    raw = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        raw += part
    os.close(ours)
    assert process.wait(timeout=30) == 0, raw.decode()
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", raw.decode().rpartition("survey")[2])
    shown = ["survey" + last.splitlines()[0], *last.splitlines()[1:]]
    rows = [row.rstrip() for row in shown if row.strip()]
    assert [row.split()[0] for row in rows] == ["survey", "anchor", "fit", "dpsgd"]
    assert all(len(row) <= columns for row in rows)
    assert "100/100" in rows[2]
    assert "ELBO -20.00 +-0.10" in rows[2]
    assert re.search(r"eps(ilon)? [0-9.]+( spent)?, [0-9.]+ left", rows[3])
    assert ("nats per row" in rows[3]) == (columns == 120)
