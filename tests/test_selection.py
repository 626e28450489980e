"""Only the best of a secret number of runs leaves, and it is paid for as Papernot and Steinke say, and beforehand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.rdp import rdp_privacy_accountant

from dpvae import api, cli, selection
from dpvae.audit.verify import verify
from dpvae.config import (
    DataConfig,
    LedgerConfig,
    ModelConfig,
    PrivacyConfig,
    ReportConfig,
    RunConfig,
    SweepConfig,
    TrainConfig,
    TrainerConfig,
)
from dpvae.errors import BudgetError, ConfigError, RunError
from dpvae.privacy.accountant import price
from dpvae.privacy.events import Event, Gaussian, RepeatAndSelect, SampledGaussian
from dpvae.privacy.ledger import Ledger
from dpvae.report.source import read_run

SCHEMA = """columns:
  age: {kind: integer, min: 18, max: 80}
  city: {kind: categorical, categories: [n, s]}
"""


@pytest.fixture
def people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small CSV with a declared schema; the working directory is an empty folder."""
    rng = np.random.default_rng(3)
    rows = [f"{age},{city}" for age, city in zip(rng.integers(18, 80, 300), rng.choice(["n", "s"], 300), strict=True)]
    (tmp_path / "people.csv").write_text("\n".join(["age,city", *rows]) + "\n")
    (tmp_path / "people.yaml").write_text(SCHEMA)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "people.csv"


def grid(people: Path, *hidden: int, runs: float | None = 3.0, shape: float = 0.0, **changes: Any) -> list[TrainConfig]:
    first = TrainConfig(
        data=DataConfig(path=str(people), rows=300, schema="people.yaml"),
        model=ModelConfig(latent_dim=4, components=16),
        trainer=TrainerConfig(fit_steps=2, steps=2, sampling_rate=0.05, sleep_steps=2, metric_releases=1,
                              latent_samples=1, anchor_share=0.98),
        privacy=PrivacyConfig(epsilon=0.5, delta=1e-5), ledger=LedgerConfig(dataset="census"),
        run=RunConfig(name="best"), sweep=SweepConfig(private=True, runs=runs, shape=shape),
        report=ReportConfig(progress="quiet"))
    return [replace(first, model=replace(first.model, hidden=h), **changes) for h in hidden or (8, 16)]


def booked() -> list[Event]:
    return Ledger.open("runs/ledger.db").events("census")


def oracle(trial: tuple[Event, ...], runs: float, shape: float, delta: float = 1e-5) -> float:
    """dp_accounting's price of the same selection, by its Renyi accountant."""
    parts: list[dp_event.DpEvent] = []
    for event in trial:
        if isinstance(event, Gaussian):
            parts.append(dp_event.SelfComposedDpEvent(dp_event.GaussianDpEvent(event.noise_multiplier), event.count))
        if isinstance(event, SampledGaussian):
            step = dp_event.PoissonSampledDpEvent(event.sampling_rate, dp_event.GaussianDpEvent(event.noise_multiplier))
            parts.append(dp_event.SelfComposedDpEvent(step, event.steps))
    assert len(parts) == len(trial)
    accountant = rdp_privacy_accountant.RdpAccountant(
        orders=np.concatenate([1 + np.geomspace(0.02, 1000, 400)]).tolist())
    accountant.compose(dp_event.RepeatAndSelectDpEvent(dp_event.ComposedDpEvent(parts), runs, shape))
    return float(accountant.get_epsilon(delta))


@pytest.mark.parametrize(("runs", "shape"), [(2.0, 0.0), (10.0, 0.0), (10.0, 1.0), (30.0, 0.5)])
def test_the_price_is_that_of_dp_accountings_private_selection(people: Path, runs: float, shape: float) -> None:
    chosen = selection.plan(grid(people, runs=runs, shape=shape))
    assert chosen.event.trial == api.plan(grid(people)[0]).events()
    assert chosen.epsilon.upper == pytest.approx(oracle(chosen.event.trial, runs, shape), rel=0.005)
    assert chosen.epsilon.upper > price(chosen.event.trial, delta=1e-5).upper


def paid_for() -> None:
    """The law: what is booked costs what a private selection of these runs costs."""
    (event,) = booked()
    assert isinstance(event, RepeatAndSelect)
    assert price([event], delta=1e-5).upper == pytest.approx(oracle(event.trial, 3.0, 0.0), rel=0.005)


def test_only_the_best_run_leaves_and_the_book_and_the_certificate_say_so(people: Path, capsys: Any) -> None:
    run = selection.select(grid(people))
    paid_for()
    assert [row.kind for row in Ledger.open("runs/ledger.db").rows()] == ["reserve", "commit"]
    assert [path.name for path in Path("runs").iterdir() if path.is_dir()] == ["best"]
    assert not list((run.path / "private").rglob("key")), "keys of trials outlive them"
    source = read_run(run.path)
    assert source.events == tuple(booked())
    assert source.config["model"]["hidden"] in (8, 16)
    folder = api.release("release", run, rows=50)
    verdict = verify(folder)
    assert verdict.ok, str(verdict)
    assert "the one access to the data was priced again by RDP, which alone prices a selection" in verdict.sentence
    certificate = json.loads((folder / "certificate.json").read_text())
    assert certificate["claim"]["epsilon"]["upper"] == pytest.approx(oracle(booked()[0].trial, 3.0, 0.0), rel=0.005)
    assert "Papernot and Steinke" in certificate["mechanism"]["adaptive_decisions"]
    assert certificate["mechanism"]["training"][0]["steps"] == 2
    assert [group["epsilon"] for group in certificate["claim"]["groups"]] == ["none"] * 3
    for path in [*run.path.glob("public/*"), *folder.rglob("*.json*"), *folder.glob("*.md"), *folder.glob("*.html")]:
        assert b"trial-" not in path.read_bytes(), f"{path} tells which run was the best, so how many there were"
    assert capsys.readouterr() == ("", "")


def test_a_selection_booked_as_one_run_breaks_the_law(people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: it books the base run once."""
    real = Ledger.reserve_all

    def once(self: Ledger, asks: Any, **kwargs: Any) -> Any:
        return real(self, [replace(ask, events=ask.events[0].trial) for ask in asks], **kwargs)

    monkeypatch.setattr(Ledger, "reserve_all", once)
    with pytest.raises(AssertionError, match="not the events reserved"):
        selection.select(grid(people))
    with pytest.raises(ValueError, match="too many values"):
        paid_for()


def test_without_a_private_selection_the_same_sweep_costs_the_sum(people: Path) -> None:
    from dpvae import sweep

    jobs = [replace(config, sweep=SweepConfig(), run=RunConfig(name=f"j{i}")) for i, config in enumerate(grid(people))]
    sweep.book(jobs).give_back()
    trial = api.plan(jobs[0]).events()
    assert sweep.cost([api.plan(config) for config in jobs]).upper == price(trial * 2, delta=1e-5).upper


def test_the_best_noisy_score_wins(people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores: dict[str, float] = {}
    real = api.fulfil

    def noted(config: TrainConfig, task: Any, run: Any, ledger: Any) -> None:
        real(config, task, run, ledger)
        path = run.public / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines[-1]["noisy_elbo"] = scores[run.path.name] = -10.0 + (7 * len(scores)) % 5
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    monkeypatch.setattr(api, "fulfil", noted)
    monkeypatch.setattr(selection, "number_of_runs", lambda *_: 4)
    run = selection.select(grid(people))
    assert len(scores) == 4
    assert read_run(run.path).metrics[-1].noisy_elbo == max(scores.values())


def test_a_selection_that_was_stopped_goes_on_with_the_same_draws_and_is_counted_once(
    people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = api.fulfil, []

    def stopped(*args: Any) -> None:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(args[0])
        real(*args)

    monkeypatch.setattr(selection, "number_of_runs", lambda *_: 3)
    monkeypatch.setattr(api, "fulfil", stopped)
    with pytest.raises(KeyboardInterrupt):
        selection.select(grid(people))
    with pytest.raises(RunError, match="begun among other settings"):
        selection.select(grid(people, 8, 32))
    monkeypatch.setattr(api, "fulfil", lambda *args: (made.append(args[0]), real(*args)))
    selection.select(grid(people))
    assert [config.run.name for config in made] == ["trial-0", "trial-1", "trial-2"]
    paid_for()


def test_over_the_cap_it_is_refused_before_anything_is_made(people: Path) -> None:
    Ledger.open("runs/ledger.db").cap("census", 0.6, 1e-5)  # enough for one run, not for the choice
    with pytest.raises(BudgetError):
        selection.select(grid(people))
    assert [path for path in Path("runs").iterdir() if path.is_dir()] == []


@pytest.mark.parametrize(("changes", "told"), [
    ({"data": {"schema": None}}, "declared categories"), ({"privacy": {"max_epsilon": 0.6}}, "max_epsilon")])
def test_a_selection_that_no_theorem_or_no_budget_covers_is_refused(
    people: Path, changes: dict[str, Any], told: str
) -> None:
    configs = [replace(config, **{group: replace(getattr(config, group), **knobs) for group, knobs in changes.items()})
               for config in grid(people)]
    with pytest.raises(ConfigError, match=told):
        selection.plan(configs)


def test_settings_that_cost_differently_are_refused(people: Path) -> None:
    first, second = grid(people)
    with pytest.raises(ConfigError, match="books other events"):
        selection.plan([first, replace(second, trainer=replace(second.trainer, steps=3))])
    with pytest.raises(ConfigError, match="differ in model, trainer"):
        selection.plan([first, replace(second, privacy=replace(second.privacy, epsilon=1.0))])


def test_it_is_typed_as_a_sweep_and_says_its_price_first(people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model.latent_dim=4", "model.components=16", "trainer.fit_steps=2", "trainer.steps=2", "data=people.csv",
             "trainer.sampling_rate=0.05", "trainer.sleep_steps=2", "trainer.metric_releases=1", "data.rows=300",
             "privacy.delta=1e-5", "data.schema=people.yaml", "ledger.dataset=census", "sweep.private=true",
             "sweep.runs=2"]
    assert cli.main(["plan", "-m", "model.hidden=8,16", *words]) == 0
    assert "a private selection from 2 settings, 2 runs in the mean, together epsilon <= 1." in capsys.readouterr().err
    assert cli.main(["train", *words]) == 2
    assert "sweep.private=true: expected a sweep" in capsys.readouterr().err
    assert cli.main(["train", "-m", "model.hidden=8,16", "run.name=best", *words]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "job" not in captured.err
    assert captured.out.startswith("run best: epsilon <= 1.")
    (event,) = booked()
    assert isinstance(event, RepeatAndSelect)

