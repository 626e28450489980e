"""Many processes, one budget, kills at random moments: scripts/bench_ledger.py asserts what must hold afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from servers import Cluster

ROOT = Path(__file__).resolve().parents[2]
RACE = """
import json, sys
import bench_ledger as bench
url, processes, kills, seconds, noise = sys.argv[1], *map(int, sys.argv[2:])
bench.SPEND = bench.Gaussian("anchor", "counts", float(noise))
print(json.dumps(bench.race(url, processes=processes, kills=kills, seconds=seconds)))
"""


def race(url: str, processes: int, kills: int, seconds: int, noise: int) -> dict[str, float]:
    """In a process of its own: forking one that holds torch's threads would be asking for trouble."""
    done = subprocess.run(
        [sys.executable, "-c", RACE, url, *map(str, (processes, kills, seconds, noise))], text=True, timeout=560,
        capture_output=True, env=os.environ | {"PYTHONPATH": f"{ROOT / 'scripts'}:{ROOT}", "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_few_processes_and_kills_never_exceed_the_cap_nor_lose_a_commit(tmp_path: Path) -> None:
    counts = race(str(tmp_path / "ledger.db"), 4, 3, 4, 20)
    assert counts["killed"] == 3
    assert counts["lost_commits"] == counts["lost_bookings"] == counts["hanging"] == 0
    assert counts["spent"] <= counts["cap"] < counts["one_more_would_cost"]


@pytest.mark.slow
def test_32_processes_and_50_kills_on_sqlite(tmp_path: Path) -> None:
    assert race(str(tmp_path / "ledger.db"), 32, 50, 90, 100)["killed"] == 50


@pytest.mark.slow
def test_32_processes_and_50_kills_on_postgresql(cluster: Cluster) -> None:
    assert race(cluster.new_database(), 32, 50, 90, 100)["killed"] == 50
