"""The doctor finds what is missing, says what to do, and calls nobody ill who is well."""

from __future__ import annotations

import importlib.metadata
import json
import sqlite3
from pathlib import Path

import pytest

from dpvae import cli, doctor
from dpvae.config import DoctorConfig
from dpvae.privacy.ledger import Ledger


def named(config: DoctorConfig) -> dict[str, doctor.Finding]:
    return {each.name: each for each in doctor.examine(config).findings}


def test_a_machine_that_runs_these_tests_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", f"root={tmp_path}/runs"]) == 0
    out = capsys.readouterr().out
    assert "everything a run needs is here" in out
    assert list(tmp_path.iterdir()) == []  # looking leaves nothing behind
    assert cli.main(["doctor", f"root={tmp_path}/runs", "output=json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["well"] is True
    names = {each["name"] for each in found["findings"]}
    assert {"torch", "opacus", "device", "randomness", "ledger", "run folders"} <= names


def test_a_ledger_that_was_edited_is_bad_and_ends_with_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book = tmp_path / "ledger.db"
    Ledger.open(book).cap("census", 1.0, 1e-5, "row")
    assert named(DoctorConfig(root=str(tmp_path)))["ledger"].state == "good"
    base = sqlite3.connect(book)
    base.execute("UPDATE entries SET dataset = 'censor'")
    base.commit()
    base.close()
    assert named(DoctorConfig(root=str(tmp_path)))["ledger"].state == "bad"
    assert cli.main(["doctor", f"root={tmp_path}"]) == 1
    assert "something is missing" in capsys.readouterr().out


@pytest.mark.parametrize(("requirement", "here", "holds"), [
    ("torch<3,>=2.11", "2.13.0+cpu", True), ("torch<3,>=2.11", "2.10.0", False), ("torch<3,>=2.11", "3.0", False),
    ("rich>=13", "13", True), ("psycopg[binary]>=3.2", "3.1.9", False), ("numpy", "0.1", True),
])
def test_a_requirement_is_held_against_what_is_installed(
        monkeypatch: pytest.MonkeyPatch, requirement: str, here: str, holds: bool) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: here)
    assert doctor._satisfied(requirement) is holds


def test_a_missing_package_is_named_with_the_command_that_brings_it(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["torch>=99", "numpy>=1", "x>=1; extra == 'y'"])
    found = named(DoctorConfig(root=str(tmp_path)))["packages"]
    assert (found.state, found.found) == ("bad", "1 of 2 as required; not torch>=99")
    assert found.do.endswith("-m pip install 'torch>=99'")


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(config: DoctorConfig) -> None:
        raise ImportError("libtorch.so")

    monkeypatch.setattr(doctor, "CHECKS", (("torch", broken),))
    (found,) = doctor.examine(DoctorConfig(root=str(tmp_path))).findings
    assert (found.state, found.found) == ("bad", "ImportError: libtorch.so")


def test_a_cipher_that_answers_wrongly_is_never_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "AES_CIPHER", "00" * 16)
    assert named(DoctorConfig(root=str(tmp_path)))["randomness"].state == "bad"
