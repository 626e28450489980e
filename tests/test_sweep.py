"""A sweep is one spend: priced before it starts, refused whole, booked whole, and what never began is given back."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dpvae import api, cli, sweep
from dpvae.config import (
    DataConfig,
    LedgerConfig,
    ModelConfig,
    PrivacyConfig,
    ReportConfig,
    RunConfig,
    TrainConfig,
    TrainerConfig,
)
from dpvae.errors import BudgetError, ConfigError, LedgerError, RunError
from dpvae.privacy.accountant import price
from dpvae.privacy.ledger import Ledger


@pytest.fixture
def people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small CSV; the working directory is an empty folder."""
    rng = np.random.default_rng(3)
    rows = [f"{age},{city}" for age, city in zip(rng.integers(18, 80, 300), rng.choice(["n", "s"], 300), strict=True)]
    table = tmp_path / "people.csv"
    table.write_text("\n".join(["age,city", *rows]) + "\n")
    monkeypatch.chdir(tmp_path)
    return table


def job(people: Path, epsilon: float, name: str | None = None) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(path=str(people), rows=300), model=ModelConfig(latent_dim=4, hidden=8, components=16),
        trainer=TrainerConfig(fit_steps=2, steps=2, sampling_rate=0.05, sleep_steps=2, metric_releases=1,
                              latent_samples=1, anchor_share=0.98),
        privacy=PrivacyConfig(epsilon=epsilon, delta=1e-5), ledger=LedgerConfig(dataset="census"),
        run=RunConfig(name=name), report=ReportConfig(progress="quiet"))


def ledger() -> Ledger:
    return Ledger.open("runs/ledger.db")


def runs() -> list[Path]:
    return sorted(path for path in Path("runs").iterdir() if path.is_dir())


def test_every_job_is_booked_before_the_first_begins_and_finds_its_own_reservation(people: Path) -> None:
    jobs = [job(people, 0.5, "a"), job(people, 1.0, "b")]
    booking = sweep.book(jobs)
    rows = ledger().rows()
    assert [row.kind for row in rows] == ["reserve", "reserve"]
    assert len({row.content["sweep"] for row in rows}) == 1
    for config in jobs:
        api.train(config)
    booking.give_back()
    assert [row.kind for row in ledger().rows()] == ["reserve", "reserve", "commit", "commit"]
    events = [event for config in jobs for event in api.plan(config).events()]
    assert ledger().spent("census", 1e-5).upper == pytest.approx(price(events, delta=1e-5).upper)
    assert f"together {price(events, delta=1e-5)}" in str(booking)


def test_a_sweep_over_the_cap_is_refused_whole_and_leaves_nothing(people: Path) -> None:
    Ledger.open("runs/ledger.db").cap("census", 1.05, 1e-5)
    with pytest.raises(BudgetError, match="asked by a sweep of 2 runs"):
        sweep.book([job(people, 0.5), job(people, 1.0)])
    assert [row.kind for row in ledger().rows()] == ["cap"]
    assert runs() == []
    sweep.book([job(people, 1.0)])  # one alone would fit


def test_jobs_that_never_began_are_given_back_with_their_keys_destroyed(people: Path) -> None:
    jobs = [job(people, 0.5), job(people, 1.0)]
    booking = sweep.book(jobs)
    assert len(runs()) == 2
    api.train(jobs[0])
    booking.give_back()
    assert [row.kind for row in ledger().rows()] == ["reserve", "reserve", "commit", "abort"]
    assert len(runs()) == 1
    assert ledger().events("census") == list(api.plan(jobs[0]).events())


def test_a_job_that_began_and_failed_stays_booked(people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    booking = sweep.book([job(people, 0.5)])

    def fail(*_: object) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(api, "_spend", fail)
    with pytest.raises(RuntimeError):
        api.train(job(people, 0.5))
    booking.give_back()
    assert [row.kind for row in ledger().rows()] == ["reserve"]


def test_the_same_sweep_again_books_nothing_new(people: Path) -> None:
    jobs = [job(people, 0.5, "a"), job(people, 1.0, "b"), job(people, 0.5, "a")]
    sweep.book(jobs)  # killed before its first job
    assert len(ledger().rows()) == 2
    again = sweep.book(jobs)
    assert len(ledger().rows()) == 2
    again.give_back()  # these were not made by this one: they stay
    assert len(ledger().rows()) == 2


def test_a_failure_in_the_middle_of_booking_leaves_no_run(people: Path) -> None:
    broken = replace(job(people, 1.0), data=DataConfig(path="nowhere.csv", rows=300))
    with pytest.raises(Exception, match="nowhere"):
        sweep.book([job(people, 0.5), broken])
    assert not Path("runs").exists() or runs() == []


SMALL = ["model.latent_dim=4", "model.hidden=8", "model.components=16", "trainer.fit_steps=2", "trainer.steps=2",
         "trainer.sampling_rate=0.05", "trainer.sleep_steps=2", "trainer.metric_releases=1", "report.progress=quiet",
         "privacy.delta=1e-5", "data=people.csv", "data.rows=300", "ledger.dataset=census"]


def test_a_sweep_typed_at_the_shell_is_told_its_cost_first_and_refused_whole(
    people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", "-m", "privacy.epsilon=0.5,1", *SMALL]) == 0
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("dpvae: a sweep of 2 jobs, together epsilon <= 1.")
    assert cli.main(["ledger", "cap", "census", "epsilon=1.05", "delta=1e-5"]) == 0
    capsys.readouterr()
    assert cli.main(["train", "-m", "privacy.epsilon=0.5,1", *SMALL]) == 2
    error = capsys.readouterr().err
    assert "asked by a sweep of 2 runs" in error
    assert "job 0" not in error
    assert runs() == []


def test_a_run_that_is_refused_leaves_no_cap_either(people: Path) -> None:
    config = job(people, 1.0)
    tight = replace(config, ledger=replace(config.ledger, cap_epsilon=0.5))
    for attempt in (lambda: api.train(tight), lambda: sweep.book([tight])):
        with pytest.raises(BudgetError, match=r"expected at most 0\.5"):
            attempt()
        assert ledger().rows() == []
    booking = sweep.book([replace(config, ledger=replace(config.ledger, cap_epsilon=1.5))])
    assert [row.kind for row in ledger().rows()] == ["cap", "reserve"]
    booking.give_back()


OPTUNA = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.direction=maximize",
          "hydra.sweeper.sampler.seed=1", "model.hidden=choice(8,16)", "trainer.learning_rate=interval(0.001,0.01)"]


@pytest.fixture
def optuna(recwarn: pytest.WarningsRecorder) -> None:
    """The sweeper, which is an extra; Optuna 2 is old enough to warn of itself."""
    warnings.simplefilter("ignore")
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="pip install 'dpvae[sweeps]'")


@pytest.mark.usefixtures("optuna")
def test_an_optuna_sweep_is_booked_whole_before_its_first_job_and_learns_from_noisy_elbos(
    people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "-m", *OPTUNA, *SMALL]) == 0
    rows = ledger().rows()
    assert [row.kind for row in rows] == ["reserve"] * 3 + ["commit"] * 3
    assert len({row.content["sweep"] for row in rows[:3]}) == 1
    one = ledger().events("census")[: len(rows[0].content["events"])]
    assert ledger().spent("census", 1e-5).upper == pytest.approx(price(one * 3, delta=1e-5).upper)
    configs = [json.loads((run / "public" / "config.json").read_text()) for run in runs()]
    assert {config["model"]["hidden"] for config in configs} <= {8, 16}
    assert len({config["trainer"]["learning_rate"] for config in configs}) == 3
    told = capsys.readouterr().err
    assert told.index("a sweep of 3 jobs, together epsilon <= 1.") < told.index("job 0")


@pytest.mark.usefixtures("optuna")
@pytest.mark.parametrize(("words", "told"), [
    ([], "asked by a sweep of 3 runs"), (["privacy.epsilon=choice(0.5,1)"], "privacy.epsilon: this sweeper chooses"),
    (["hydra.sweeper.direction=minimize"], "expected maximize"), (["sweep.private=true"], "expected no hydra/sweeper")])
def test_an_optuna_sweep_that_cannot_be_booked_whole_is_refused_whole(
    people: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Ledger.open("runs/ledger.db").cap("census", 1.3, 1e-5)
    assert cli.main(["train", "-m", *OPTUNA, *words, *SMALL]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "job 0" not in error
    assert [row.kind for row in ledger().rows()] == ["cap"]
    assert runs() == []


def test_trials_that_were_never_chosen_are_given_back_and_a_job_takes_what_was_booked_for_it(people: Path) -> None:
    base = job(people, 0.5)
    booking, names = sweep.book_trials(base, 3)
    chosen = replace(base, model=replace(base.model, hidden=16), run=RunConfig(name=names[1]))
    with pytest.raises(RunError, match="with other settings"):
        api.train(chosen)  # nobody has taken it yet
    sweep.take(chosen)
    api.train(chosen)
    released = (Path("runs") / names[1] / "public" / "metrics.jsonl").read_text().splitlines()
    assert sweep.score(chosen) == json.loads(released[-1])["noisy_elbo"]  # of either sign: 60 rows, much noise
    with pytest.raises(RunError, match="with other settings"):
        api.train(replace(chosen, model=replace(base.model, hidden=32)))
    booking.give_back()
    assert [row.kind for row in ledger().rows()] == ["reserve"] * 3 + ["commit", "abort", "abort"]
    assert ledger().events("census") == list(api.plan(base).events())


def test_a_job_that_would_cost_something_else_finds_nothing_booked(people: Path) -> None:
    base = job(people, 0.5)
    _, names = sweep.book_trials(base, 1)
    dearer = replace(base, privacy=replace(base.privacy, epsilon=1.0), run=RunConfig(name=names[0]))
    sweep.take(dearer)
    with pytest.raises(LedgerError, match="already booked on 'census' with different events"):
        api.train(dearer)


@pytest.mark.parametrize("key", ["model.components=32", "model.hidden=16", "run.seed=3", "trainer.clip_norm=0.5",
                                 "trainer.fit_steps=9", "trainer.latent_samples=2", "trainer.learning_rate=0.1",
                                 "trainer.sleep_steps=7", "performance.microbatch=10", "report.progress=plain"])
def test_what_a_choosing_sweeper_may_choose_leaves_every_event_as_it_is(people: Path, key: str) -> None:
    name, _, value = key.partition("=")
    group, _, knob = name.partition(".")
    base = job(people, 0.5)
    typed = type(getattr(getattr(base, group), knob) or 1)(value)
    changed = replace(base, **{group: replace(getattr(base, group), **{knob: typed})})
    sweep.check_free([name, group] if group in sweep.FREE else [name])
    assert api.plan(changed).events() == api.plan(base).events()


@pytest.mark.parametrize("key", ["privacy.epsilon", "privacy", "trainer", "trainer.steps", "data.rows", "modeling"])
def test_what_it_may_not_choose_is_refused_by_name(key: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: this sweeper chooses"):
        sweep.check_free(["model.hidden", key])


def test_a_sweep_typed_at_the_shell_is_booked_as_two_jobs(people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "-m", "privacy.epsilon=0.5,1", *SMALL]) == 0
    assert [row.kind for row in ledger().rows()] == ["reserve", "reserve", "commit", "commit"]
    assert capsys.readouterr().err.splitlines()[0].startswith("dpvae: a sweep of 2 jobs")
    assert len(runs()) == 2
    assert json.loads((runs()[0] / "public" / "config.json").read_text())["ledger"]["url"] is None
