"""A run that is killed and started again is the same run: the same weights, events and metrics, booked once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import TRAINERS, people, small_config

from dpvae import api
from dpvae.config import LedgerConfig, TrainConfig
from dpvae.errors import LedgerError, RunError
from dpvae.privacy.ledger import Ledger
from dpvae.report.progress import Progress
from dpvae.train import trainer as trainer_module
from dpvae.train.run import RunFolder

ROWS, STEPS = 120, 8
RELEASED = ("model.safetensors", "model.json", "events.jsonl", "metrics.jsonl", "schema.json", "reference.json",
            "plan.json")
ROOT = Path(__file__).resolve().parents[2]


class Killed(BaseException):
    """No handler of the program knows it, as none can know SIGKILL."""


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "CHECKPOINT_EVERY", 3)


def config_of(name: str, folder: Path, **changes: Any) -> TrainConfig:
    return small_config(
        name, run={"root": str(folder), "name": "run"}, ledger=LedgerConfig(dataset="people"),
        data={"target": "income", "rows": ROWS}, privacy={"epsilon": 8.0, "delta": 1e-5, "secret_seed": 5},
        trainer={"steps": STEPS, "metric_releases": 3}, **changes)


def released(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "run" / "public" / name).read_bytes() for name in RELEASED}


@contextlib.contextmanager
def killed_at(moment: int) -> Iterator[list[Any]]:
    """Everything shown up to moment number ``moment``, at which the run dies; never, where there is no such moment."""
    shown: list[Any] = []
    real = Progress._show

    def show(self: Progress, name: str, step: int, steps: int, metric: dict[str, Any] | None) -> None:
        shown.append((name, step, steps, metric))
        if len(shown) == moment:
            raise Killed
        real(self, name, step, steps, metric)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "_show", show)
        yield shown


def book_of(folder: Path) -> list[str]:
    return [row.kind for row in Ledger.open(folder / "ledger.db").rows()]


@pytest.mark.parametrize("name", TRAINERS)
def test_a_run_killed_at_any_moment_ends_with_the_same_bits_and_one_reservation(name: str, tmp_path: Path) -> None:
    with killed_at(-1) as moments:
        api.train(config_of(name, tmp_path / "straight"), people(ROWS))
    wanted = released(tmp_path / "straight")
    assert {moment[0] for moment in moments} >= {"survey", "anchor", "dpsgd"}
    for number in range(1, len(moments) + 1):
        folder = tmp_path / str(number)
        with killed_at(number), pytest.raises(Killed):
            api.train(config_of(name, folder), people(ROWS))
        assert book_of(folder) == ["reserve"], "a crash counts as spent"
        api.train(config_of(name, folder), people(ROWS))
        assert released(folder) == wanted, f"killed at {moments[number - 1][:2]}"
        assert book_of(folder) == ["reserve", "commit"]


@pytest.mark.parametrize("name", TRAINERS)
def test_a_run_killed_again_and_again_still_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    api.train(config_of(name, tmp_path / "straight"), people(ROWS))
    config, deaths = config_of(name, tmp_path / "tried"), 0
    for patience in range(4, 40, 2):  # each life is a little longer than the last
        with killed_at(patience), contextlib.suppress(Killed):
            api.train(config, people(ROWS))
            break
        deaths += 1
    assert deaths > 2
    assert released(tmp_path / "tried") == released(tmp_path / "straight")
    assert book_of(tmp_path / "tried") == ["reserve", "commit"]


def test_every_number_shown_before_a_crash_is_shown_again_and_no_other(tmp_path: Path) -> None:
    """The same noise must never be added to two different numbers: their difference would have none."""
    for number in (8, 10, 12):
        config = config_of("joint", tmp_path / str(number))
        with killed_at(number) as before, pytest.raises(Killed):
            api.train(config, people(ROWS))
        with killed_at(-1) as after:
            api.train(config, people(ROWS))
        seen = {moment[1]: moment[3] for moment in after if moment[3] is not None}
        kept = {metric["step"]: metric for metric in metrics_of(tmp_path / str(number))}
        for _, step, _, metric in before:
            assert metric is None or kept[step] == metric
        assert all(kept[step] == metric for step, metric in seen.items())


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    import json

    return [json.loads(line) for line in (folder / "run" / "public" / "metrics.jsonl").read_text().splitlines()]


def test_a_run_resumed_with_another_microbatch_shows_no_other_number(tmp_path: Path) -> None:
    with killed_at(12) as before, pytest.raises(Killed):  # after the last checkpoint, with a noisy ELBO behind it
        api.train(config_of("joint", tmp_path), people(ROWS))
    shown = [moment[3] for moment in before if moment[3] is not None]
    with contextlib.suppress(RunError):  # to refuse would be an answer, too
        api.train(config_of("joint", tmp_path, performance={"device": "cpu", "microbatch": 5}), people(ROWS))
        kept = metrics_of(tmp_path)
        for metric in shown:
            assert metric["noisy_elbo"] == pytest.approx(kept[shown.index(metric)]["noisy_elbo"], abs=1e-6)


SEAMS = {"before the survey": (api, "_spend"), "before publishing": (api, "write_public"),
         "before the commit": (Ledger, "commit"), "before the run is marked": (RunFolder, "finish"),
         "before the report": (api, "report_run")}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("owner", "step"), SEAMS.values(), ids=SEAMS.keys())
def test_a_run_killed_between_two_steps_of_the_verb_goes_on(owner: Any, step: str, after: bool, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    api.train(config_of("joint", tmp_path / "straight"), people(ROWS))
    real = getattr(owner, step)

    def dies(*args: Any, **kwargs: Any) -> None:
        if after:
            real(*args, **kwargs)
        raise Killed

    config = config_of("joint", tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, dies)
        with pytest.raises(Killed):
            api.train(config, people(ROWS))
    api.train(config, people(ROWS))
    assert released(tmp_path / "killed") == released(tmp_path / "straight")
    assert book_of(tmp_path / "killed") == ["reserve", "commit"]
    assert not (tmp_path / "killed" / "run" / "private" / "key").exists(), "the key is destroyed when the run ends"
    assert (tmp_path / "killed" / "run" / "public" / "report.html").is_file()


def test_a_finished_run_is_not_trained_again_and_nothing_is_spent(tmp_path: Path) -> None:
    config = config_of("joint", tmp_path)
    api.train(config, people(ROWS))
    before = released(tmp_path)
    with killed_at(-1) as shown:
        run = api.train(config, people(ROWS))
    assert shown == []
    assert "nothing was spent" in run.note
    assert released(tmp_path) == before
    assert book_of(tmp_path) == ["reserve", "commit"]


def test_an_interrupted_run_refuses_other_data_and_spends_nothing_more(tmp_path: Path) -> None:
    config = config_of("joint", tmp_path)
    with killed_at(5), pytest.raises(Killed):
        api.train(config, people(ROWS))
    other = people(ROWS)
    other["age"][0] += 1
    with pytest.raises(RunError, match="changed since"):
        api.train(config, other)
    assert book_of(tmp_path) == ["reserve"]


def test_an_interrupted_run_refuses_other_settings(tmp_path: Path) -> None:
    with killed_at(5), pytest.raises(Killed):
        api.train(config_of("joint", tmp_path), people(ROWS))
    for changes in ({"name": "decoder_only"}, {"steps": STEPS + 1}, {"clip_norm": 2.0}):
        config = small_config("joint", run={"root": str(tmp_path), "name": "run"},
                              ledger=LedgerConfig(dataset="people"), data={"target": "income", "rows": ROWS},
                              privacy={"epsilon": 8.0, "delta": 1e-5, "secret_seed": 5},
                              trainer={"name": "joint", "steps": STEPS, "metric_releases": 3} | changes)
        with pytest.raises(RunError, match="other settings"):
            api.train(config, people(ROWS))


def test_an_interrupted_run_whose_key_is_lost_cannot_go_on_with_a_new_one(tmp_path: Path) -> None:
    """Fresh noise for events that are booked already would be a second release for the price of one."""
    config = config_of("joint", tmp_path)
    with killed_at(5), pytest.raises(Killed):
        api.train(config, people(ROWS))
    key = tmp_path / "run" / "private" / "key"
    key.unlink()
    with pytest.raises(RunError, match="key"):
        api.train(config, people(ROWS))
    key.write_bytes(bytes(32))
    with pytest.raises((LedgerError, RunError)):
        api.train(config, people(ROWS))
    assert book_of(tmp_path) == ["reserve"]


def test_a_damaged_checkpoint_stops_the_run_with_one_line(tmp_path: Path) -> None:
    config = config_of("joint", tmp_path)
    with killed_at(9), pytest.raises(Killed):
        api.train(config, people(ROWS))
    state = tmp_path / "run" / "private" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-40])
    with pytest.raises(RunError, match="damaged"):
        api.train(config, people(ROWS))


# -- a real SIGKILL --------------------------------------------------------------------------------------------------


def command(table: Path, folder: Path) -> list[str]:
    settings = {"data": table, "data.target": "income", "data.rows": ROWS, "privacy.epsilon": 8, "privacy.delta": 1e-5,
                "privacy.secret_seed": 5, "trainer": "joint", "trainer.steps": 120, "trainer.sampling_rate": 0.3,
                "trainer.metric_releases": 2, "trainer.sleep_steps": 2, "model.latent_dim": 4, "model.hidden": 8,
                "performance.device": "cpu", "performance.threads": 1, "report.progress": "json", "run.root": folder,
                "run.name": "run", "ledger.dataset": "people"}
    return [sys.executable, "-m", "dpvae", "train", *(f"{key}={value}" for key, value in settings.items())]


def run_command(line: list[str], *, until: Callable[[str], bool] = lambda said: False) -> int:
    """The exit code; the process gets SIGKILL as soon as it says a line that ``until`` waits for."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=ROOT,
                          env=environment) as process:
        assert process.stderr is not None
        for said in process.stderr:
            if until(said):
                process.send_signal(signal.SIGKILL)
        return process.wait(timeout=120)


def test_a_process_killed_with_sigkill_in_the_middle_of_dpsgd_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    table = tmp_path / "people.csv"
    made = people(ROWS)
    rows = [",".join(map(str, row)) for row in zip(*made.values(), strict=True)]
    table.write_text("\n".join([",".join(made), *rows]))
    assert run_command(command(table, tmp_path / "straight")) == 0
    killed = command(table, tmp_path / "killed")
    assert run_command(killed, until=lambda said: '"step": 60,' in said) == -signal.SIGKILL
    state = tmp_path / "killed" / "run" / "private" / "state.safetensors"
    assert state.is_file(), "there was a checkpoint to go on from"
    assert book_of(tmp_path / "killed") == ["reserve"]
    assert run_command(killed) == 0
    assert released(tmp_path / "killed") == released(tmp_path / "straight")
    assert book_of(tmp_path / "killed") == ["reserve", "commit"]


def test_resuming_needs_no_global_state_of_torch(tmp_path: Path) -> None:
    api.train(config_of("decoder_only", tmp_path / "straight"), people(ROWS))
    config = config_of("decoder_only", tmp_path / "killed")
    torch.manual_seed(1)
    with killed_at(9), pytest.raises(Killed):
        api.train(config, people(ROWS))
    torch.manual_seed(2)
    api.train(config, people(ROWS))
    assert released(tmp_path / "killed") == released(tmp_path / "straight")
