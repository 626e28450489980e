"""What this process may take is what the machine has free, or what a limit leaves, whichever is less."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from dpvae import memory

MB = 2**20


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """8 GB free, this process with 100 MB of writable memory and 700 MB of addresses; no limit."""
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    write(tmp_path / "proc/meminfo", "MemTotal: 9000000 kB\nMemAvailable: 8388608 kB\n")
    write(tmp_path / "proc/self/status", "Name:\tpython\nVmSize:\t716800 kB\nVmData:\t102400 kB\n")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_a_limit_all_that_the_machine_has_free_may_be_taken(machine: Path) -> None:
    assert memory.free() == 8192 * MB
    assert not memory.short()


@pytest.mark.parametrize(("limit", "left"), [(resource.RLIMIT_DATA, 500), (resource.RLIMIT_AS, 0)])
def test_ulimit_leaves_what_is_not_taken_yet(machine: Path, monkeypatch: pytest.MonkeyPatch, limit: int, left: int
                                             ) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (600 * MB if which == limit else resource.RLIM_INFINITY,
                                                              resource.RLIM_INFINITY))
    assert memory.free() == left * MB
    assert memory.short()


@pytest.mark.parametrize(("line", "folder", "limit", "counted"), [
    ("0::/pod/one", "", "memory.max", "anon"),
    ("9:pids:/\n4:memory:/pod/one", "memory", "memory.limit_in_bytes", "total_rss"),
])
@pytest.mark.parametrize("inside", ["pod/one", "pod", "."])
def test_a_container_leaves_what_its_limit_says_without_the_pages_of_files(
        machine: Path, line: str, folder: str, limit: str, counted: str, inside: str) -> None:
    write(machine / "proc/self/cgroup", line + "\n")
    place = machine / "cgroup" / folder / inside
    write(place / limit, f"{1000 * MB}\n")
    write(place / "memory.stat", f"{counted} {300 * MB}\nfile {690 * MB}\n")
    assert memory.free() == 700 * MB


@pytest.mark.parametrize("said", ["max", str(2**63 - 4096)])
def test_a_container_without_a_limit_leaves_all(machine: Path, said: str) -> None:
    write(machine / "proc/self/cgroup", "0::/\n")
    write(machine / "cgroup/memory.max", said)
    assert memory.free() == 8192 * MB


def test_pages_are_kept_only_where_there_is_room(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[tuple[int, int], ...]] = []
    monkeypatch.setattr(memory, "_tell", lambda options, *, trim=False: told.append(options))
    memory.keep_pages(True)
    write(machine / "proc/meminfo", "MemAvailable: 1048576 kB\n")
    memory.keep_pages(True)
    memory.keep_pages(False)
    assert told == [memory._KEPT, memory._USUAL]


def test_where_memory_is_short_arrow_takes_none_in_advance(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_tell", lambda options: None)
    monkeypatch.setattr(os, "environ", {})
    memory.spare()
    assert os.environ == {}
    write(machine / "proc/meminfo", "MemAvailable: 1048576 kB\n")
    memory.spare()
    assert os.environ == {"ARROW_DEFAULT_MEMORY_POOL": "system"}


def test_what_reads_a_lake_loads_no_pandas() -> None:
    code = "import sys, dpvae.data.lake; print('pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
