"""What is done outside a run's folder is seen, and chance that others can guess does not differ."""

from __future__ import annotations

import random
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dpvae.audit.elsewhere import elsewhere, standing_still


def test_a_file_that_is_left_outside_the_folder_is_seen_and_one_inside_is_not(tmp_path: Path) -> None:
    root = tmp_path / "run"
    root.mkdir()
    with elsewhere(root) as found:
        (root / "public.txt").write_text("fine")
        (tmp_path / "gone.txt").write_text("fine too")
        (tmp_path / "gone.txt").unlink()
        (tmp_path / "left.txt").write_text("not fine")
        (tmp_path / "left.txt").read_text()
        assert found == []  # filled in at the end
    assert found == [str(tmp_path / "left.txt")]


def test_a_call_to_somebody_is_seen(tmp_path: Path) -> None:
    with elsewhere(tmp_path) as found, pytest.raises(OSError), socket.socket() as caller:
        caller.connect(("127.0.0.1", 9))
    assert found == ["socket.connect ('127.0.0.1', 9)"]


def test_nothing_is_listened_to_afterwards(tmp_path: Path) -> None:
    with elsewhere(tmp_path / "run") as found:
        pass
    (tmp_path / "later.txt").write_text("later")
    assert found == []


def drawn() -> tuple[float, float, float, int]:
    return random.random(), float(np.random.random()), float(torch.rand(1)), time.time_ns()  # noqa: NPY002


def test_global_generators_and_the_clock_start_alike_and_go_on_as_if_nothing_had_been() -> None:
    before = random.getstate()
    with standing_still():
        first = drawn()
    assert random.getstate() == before
    drawn()
    with standing_still():
        assert drawn() == first
    assert time.time() != first[-1] / 1e9
