"""``torchrun`` on a lake table: two processes learn from its snapshot what one process learns."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lakehouse import PEOPLE, TINY, grow, make, people
from safetensors.torch import load_file

from dpvae.data.lake import iceberg

ROOT = Path(__file__).resolve().parents[2]
WHERE = "pay > 10 and city in ('north', 'south')"


def started(*command: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("stored", ["never", "always"])
def test_two_processes_train_on_a_lake_table_what_one_does(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str) -> None:
    monkeypatch.chdir(tmp_path)
    iceberg.init("warehouse")
    make(PEOPLE, people(400))
    grow(PEOPLE, people(300, seed=1, first=400))
    command = ["-m", "dpvae", "train", f"data={PEOPLE}", f"data.where={WHERE}", "privacy.secret_seed=5", *TINY.split(),
               "run.name=lake2", "performance.device=cpu", "trainer.steps=4", "trainer.sampling_rate=0.2"]
    started("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command, "run.root=two",
            f"performance.stored={stored}")
    started(*command, "run.root=one")
    one, two = (tmp_path / root / "lake2" / "public" for root in ("one", "two"))
    for name in ("events.jsonl", "plan.json", "schema.json", "source.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    weights = load_file(two / "model.safetensors")
    for name, value in load_file(one / "model.safetensors").items():
        torch.testing.assert_close(weights[name], value, atol=1e-5, rtol=0)
    assert not list((tmp_path / "two").glob(".stored-*"))
