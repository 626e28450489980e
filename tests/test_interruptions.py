"""Ctrl-C, a full disk, a folder that cannot be written: one line, nothing half-written, nothing counted twice.

An interruption here is a real SIGINT to the process, sent at a chosen moment; the same command is then typed again.
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpvae import cli
from dpvae.privacy.ledger import Ledger

TRAIN = ["train", "experiment=smoke", "data=people.csv", "data.rows=60", "trainer.steps=3"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}


def people() -> str:
    rng = np.random.default_rng(3)
    lines = [f"{age},{city}" for age, city in zip(rng.integers(18, 80, 60), rng.choice(["n", "s"], 60), strict=True)]
    return "\n".join(["age,city", *lines]) + "\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("people.csv").write_text(people())
    return tmp_path


def booked() -> list[str]:
    """What the ledger says happened, in order."""
    return [row.kind for row in Ledger.open("runs/ledger.db").rows()]


def runs() -> list[Path]:
    return sorted(path for path in Path("runs").iterdir() if path.is_dir())


def is_whole(run: Path) -> bool:
    """Finished, reported, its key destroyed, and nothing half-written left."""
    return (run / "public/report.html").is_file() and not (run / "private/key").exists() and not (
        list(run.rglob("*.partial")))


# -- Ctrl-C ----------------------------------------------------------------------------------------------------------

MOMENTS = [  # what is interrupted, at its which call, before or after it
    ("dpvae.modalities.table.make_plan", 1, "before"),
    ("dpvae.data.lake.read", 1, "after"),
    ("dpvae.modalities.table.validate", 1, "after"),
    ("dpvae.train.run._fill", 1, "before"),
    ("dpvae.train.run._fill", 1, "after"),
    ("dpvae.train.run.open_run", 1, "after"),
    ("dpvae.privacy.ledger.Ledger.open", 1, "after"),
    ("dpvae.privacy.ledger.Ledger.reserve_all", 1, "before"),
    ("dpvae.privacy.ledger.Ledger.reserve_all", 1, "after"),
    ("dpvae.modalities.table.survey", 1, "before"),
    ("dpvae.report.progress.Progress.phase", 1, "after"),
    ("dpvae.report.progress.Progress.listen", 1, "before"),
    ("dpvae.report.progress.Progress.listen", 5, "after"),
    ("dpvae.files.os.replace", 5, "before"),
    ("dpvae.api.write_public", 1, "before"),
    ("dpvae.api.write_public", 1, "after"),
    ("dpvae.privacy.ledger.Ledger.commit", 1, "after"),
    ("dpvae.train.run.RunFolder.forget", 1, "before"),
    ("dpvae.train.run.RunFolder.finish", 1, "after"),
    ("dpvae.api.report_run", 1, "before"),
]


def interrupt(monkeypatch: pytest.MonkeyPatch, name: str, call: int, when: str) -> None:
    """Send SIGINT to this process before or after call number ``call`` of the function called ``name``."""
    path, _, attribute = name.rpartition(".")
    owner = _find(path)
    function: Callable[..., Any] = getattr(owner, attribute) if hasattr(owner, attribute) else _lazy(attribute)
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and when == "before":
            os.kill(os.getpid(), signal.SIGINT)
        result = function(*args, **kwargs)
        if calls == call and when == "after":
            os.kill(os.getpid(), signal.SIGINT)
        return result

    if attribute == "open_run":
        owner = importlib.import_module("dpvae.train.run")
    monkeypatch.setattr(owner, attribute, staticmethod(wrapped) if isinstance(owner, type) and attribute == "open"
                        else wrapped)


def _find(path: str) -> Any:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        above, _, last = path.rpartition(".")
        return getattr(_find(above), last)


def _lazy(attribute: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(importlib.import_module("dpvae.train.run"), attribute)
    return function


@pytest.mark.parametrize(("name", "call", "when", "typed"), [
    *((*moment, []) for moment in MOMENTS), *((*moment, ["run.name=a"]) for moment in MOMENTS[::6])])
def test_ctrl_c_at_any_moment_of_train_is_one_line_and_the_same_command_goes_on(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, call: int, when: str,
    typed: list[str],
) -> None:
    command = [*TRAIN, *typed]
    with monkeypatch.context() as patch:
        interrupt(patch, name, call, when)
        assert cli.main(command) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err == ("dpvae: stopped: run the same command again and it goes on from its last checkpoint; nothing is "
                   "counted twice\n")
    assert not list(Path("runs").glob(".new-*"))
    assert cli.main(command) == 0
    assert booked() == ["reserve", "commit"]
    (run,) = runs()
    assert is_whole(run)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("trained")
    (home / "people.csv").write_text(people())
    done = cli.main([*TRAIN[:2], f"data={home}/people.csv", *TRAIN[3:], f"run.root={home}/runs", "run.name=a"])
    assert done == 0
    return home / "runs"


@pytest.mark.parametrize(("name", "when"), [
    ("dpvae.release.bundle.read_run", "after"),
    ("dpvae.release.bundle.crosscheck", "before"),
    ("dpvae.release.bundle._write_table", "before"),
    ("dpvae.release.shards.Job.write", "after"),
    ("dpvae.release.bundle.render", "after"),
    ("dpvae.release.bundle.seal", "after"),
    ("dpvae.release.bundle.sums", "after"),
])
def test_ctrl_c_at_any_moment_of_release_leaves_nothing_and_the_same_command_works(
    here: Path, trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, when: str
) -> None:
    command = ["release", f"root={trained}", "run=a", "rows=40", "to=deep/er/out"]
    with monkeypatch.context() as patch:
        interrupt(patch, name, 1, when)
        assert cli.main(command) == 130
    assert capsys.readouterr() == ("", "dpvae: stopped: nothing was finished; run the same command again\n")
    assert os.listdir() == ["people.csv"]
    assert cli.main(command) == 0
    assert cli.main(["verify", "deep/er/out"]) == 0


@pytest.mark.parametrize("seconds", [0.8, 1.6, 2.4])
def test_ctrl_c_from_outside_is_one_line(here: Path, seconds: float) -> None:
    process = subprocess.Popen([sys.executable, "-m", "dpvae", *TRAIN, "trainer.steps=100000"], text=True,
                               stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)  # 130 to a shell, both of them
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("dpvae: stopped: run the same command again")
    assert not list(here.rglob(".new-*"))


# -- a disk that is full, a folder that cannot be written ------------------------------------------------------------


def mounted(folder: Path, options: str) -> bool:
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
    return done.returncode == 0


@pytest.fixture
def disk(here: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small disk of its own; needs root."""
    folder = here / "disk"

    def mount(options: str) -> Path:
        if os.geteuid() or not shutil.which("mount") or not mounted(folder, options):
            pytest.skip("a small tmpfs cannot be mounted here (that needs root)")
        return folder

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all that is left."""
    path = folder / "full"
    with path.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(2**12))
            except OSError:
                return path


def refusal(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    assert cli.main(command) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("dpvae: error: ")
    return err


def test_a_disk_too_small_for_a_run_is_refused_before_anything_is_booked(
    disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    small = disk("size=1m")
    err = refusal(capsys, *TRAIN, f"run.root={small}/runs")
    assert "expected at least 16 MB; free some space" in err
    assert os.listdir(small) == []


@pytest.mark.parametrize("moment", ["dpvae.privacy.ledger.Ledger.reserve_all", "dpvae.api._spend",
                                    "dpvae.privacy.ledger.Ledger.commit", "dpvae.api.report_run"])
def test_a_disk_that_fills_up_in_a_run_is_one_line_and_with_space_the_run_goes_on(
    disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    small = disk("size=20m")
    path, _, attribute = moment.rpartition(".")
    owner = _find(path)
    function = getattr(owner, attribute)

    def full(*args: Any, **kwargs: Any) -> Any:
        fill(small)
        return function(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, attribute, full)
        err = refusal(capsys, *TRAIN, f"run.root={small}/runs", "run.name=a")
    assert "space" in err or "full" in err
    assert str(small) in err
    (small / "full").unlink()
    assert cli.main([*TRAIN, f"run.root={small}/runs", "run.name=a"]) == 0
    assert [row.kind for row in Ledger.open(small / "runs/ledger.db").rows()] == ["reserve", "commit"]
    assert is_whole(small / "runs/a")
    assert cli.main(["release", f"root={small}/runs", f"to={small}/out"]) == 0
    assert cli.main(["verify", f"{small}/out"]) == 0


def test_a_release_to_a_full_disk_is_one_line_and_leaves_nothing(
    disk: Callable[[str], Path], trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = disk("size=32k")
    fill(small)
    err = refusal(capsys, "release", f"root={trained}", "run=a", "rows=4000", f"to={small}/out")
    assert "no space left there; nothing was written. Free some, or pick another folder" in err
    assert os.listdir(small) == ["full"]
    (small / "full").unlink()
    err = refusal(capsys, "release", f"root={trained}", "run=a", "rows=4000", f"to={small}/out")
    assert "no space left" in err
    assert os.listdir(small) == []


def test_a_disk_that_cannot_be_written_is_told_by_train_and_release(
    disk: Callable[[str], Path], trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = disk("size=32m,ro")
    assert "cannot be written; choose another run.root" in refusal(capsys, *TRAIN, f"run.root={small}/runs")
    err = refusal(capsys, "release", f"root={trained}", "run=a", f"to={small}/out")
    assert "cannot be written (Read-only file system); nothing was written, pick another folder" in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else_is_told_by_train_and_release(
    here: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    locked = here / "locked"
    locked.mkdir(mode=0o555)
    assert "cannot be written; choose another run.root" in refusal(capsys, *TRAIN, f"run.root={locked}/runs")
    assert "cannot be written" in refusal(capsys, "release", f"root={trained}", "run=a", f"to={locked}/out")
    assert os.listdir(locked) == []
