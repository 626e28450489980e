"""Two processes train what one process trains: same batches, same noise, same weights, same epsilon."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
from parallel_steps import BROKEN, MODES, STEPS, loss, weights
from safetensors.torch import load_file
from torch import nn

from dpvae.errors import ConfigError
from dpvae.privacy.noise import SecretKey
from dpvae.privacy.plan import SgdPlan
from dpvae.train.clipping.ghost import TwoPasses, quiet
from dpvae.train.clipping.optimizer import autos
from dpvae.train.clipping.sharded import Sharded, whole
from dpvae.train.dpsgd import PrivateSteps
from dpvae.train.parallel import Processes, announcing

HERE = Path(__file__).resolve()


def torchrun(*command: str, cwd: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[2])}
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                           *command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What :func:`weights` gave two processes: by mode, then by process."""
    place = tmp_path_factory.mktemp("together")
    torchrun(str(HERE.parent / "parallel_steps.py"), str(place / "out"), cwd=place)
    return {mode: [torch.load(f"{place}/out.{mode}.{rank}") for rank in (0, 1)] for mode in MODES}


@pytest.mark.slow
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode.partition("+")[2] not in BROKEN])
def test_two_processes_take_the_steps_of_one_also_where_a_share_is_empty(mode: str, together: Any) -> None:
    alone, _, _ = weights(mode, None)
    both, seen, _ = zip(*together[mode], strict=True)
    assert any(0 in step and sum(step) for step in zip(*seen, strict=True)), "one share empty, the other not"
    assert torch.equal(both[0], both[1])
    torch.testing.assert_close(both[0], alone, atol=1e-5, rtol=0)
    assert len(seen[0]) == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("mode", [f"sharded+{name}" for name in BROKEN])
def test_a_piece_without_noise_or_with_it_twice_is_found_out(mode: str, together: Any) -> None:
    alone, _, _ = weights("ghost", None)
    assert float((together[mode][0][0] - alone).abs().max()) > 0.01


@pytest.mark.slow
def test_what_two_processes_began_with_a_shared_model_one_goes_on_with(together: Any) -> None:
    alone, _, _ = weights("ghost", None)
    torch.testing.assert_close(weights("ghost", None, together["sharded"][1][2])[0], alone, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("clipping", ["fast", "hooks", "ghost"])
def test_the_command_under_torchrun_spends_and_learns_what_it_does_alone(clipping: str, tmp_path: Path) -> None:
    """With ghost clipping the two processes share the model by FSDP2."""
    command = ["-m", "dpvae", "train", "data=adult", "trainer=joint", "trainer.steps=2", "trainer.metric_releases=1",
               "privacy.secret_seed=5", "report=quiet", "performance.device=cpu", f"performance.clipping={clipping}",
               "run.name=x", "trainer.sampling_rate=0.002"]
    sharding = "fsdp" if clipping == "ghost" else "none"
    torchrun(*command, f"performance.sharding={sharding}", "run.root=two", cwd=tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[2])}
    subprocess.run([sys.executable, *command, "run.root=one"], cwd=tmp_path, env=environment, check=True,
                   capture_output=True, timeout=600)
    one, two = (tmp_path / name / "x" / "public" for name in ("one", "two"))
    for name in ("events.jsonl", "plan.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    weights_one, weights_two = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    for name, value in weights_one.items():
        torch.testing.assert_close(weights_two[name], value, atol=1e-5, rtol=0)


def test_shares_are_a_partition() -> None:
    taken = sorted(i for rank in range(3) for i in range(10)[Processes(rank, 3).share(10)])
    assert taken == list(range(10))


def test_others_are_told_to_stop_where_the_first_process_never_comes_to_train() -> None:
    heard = []

    class Told(Processes):
        def tell(self, message: object = None) -> object:
            heard.append(message)
            return message

    with pytest.raises(RuntimeError), announcing(Told(0, 2)):
        raise RuntimeError
    with announcing(Told(0, 2)) as say:
        say("train", Path("x"), b"rows")
    assert heard == [("stop", None, b""), ("train", Path("x"), b"rows")]


def test_a_layer_that_cannot_be_shared_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"performance\.sharding=fsdp: 0 is Conv2d; expected layers of nn\.Linear"):
        Sharded(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Linear(1, 1)), Processes(0, 2), clip_norm=1.0)


@pytest.fixture
def one_process() -> Iterator[Processes]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield Processes(0, 1)
    torch.distributed.destroy_process_group()


def shared_contribution(processes: Processes, size: float) -> float:
    """Norm of what a record adds whose two positions nearly cancel: inputs of that size, opposite gradients."""
    generator = torch.Generator().manual_seed(0)
    inputs_BTD = size * torch.randn(64, generator=generator) + 0.1 * torch.randn(1, 2, 64, generator=generator)
    half_P = torch.randn(8, generator=generator)
    module = Sharded(nn.Linear(64, 8), processes, clip_norm=1.0)
    with quiet():
        loss_B = (module(inputs_BTD) * torch.stack([half_P, -half_P])).sum((1, 2))
        sums = module.clip(loss_B, partial(autos, clip_norm=1.0))
    assert sums is not None
    return float(torch.cat([whole(total).flatten() for _, total in sums]).norm())


def test_samples_that_cancel_do_not_slip_through_the_clip_of_a_shared_model(
        one_process: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(0.9 < shared_contribution(one_process, size) <= 1 + 1e-5 for size in (1e-3, 1.0))
    assert all(shared_contribution(one_process, size) <= 1 + 1e-5 for size in (1e2, 1e3, 1e4))
    monkeypatch.setattr(TwoPasses, "NORM_SAMPLERS", GradSampleModuleFastGradientClipping.NORM_SAMPLERS)
    assert max(shared_contribution(one_process, size) for size in (1e2, 1e3, 1e4)) > 2


@pytest.mark.parametrize("wrong", [{}, {"processes": Processes(0, 2), "clipping": "fast"},
                                   {"processes": Processes(0, 2), "compile": True}])
def test_steps_of_a_shared_model_take_several_processes_and_ghost_clipping(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected several processes"):
        shared_steps(**wrong)


def test_steps_of_a_shared_model_in_half_precision_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"performance\.precision=bfloat16: .* and performance\.sharding=none"):
        shared_steps(processes=Processes(0, 2), precision="bfloat16")


def shared_steps(**options: Any) -> PrivateSteps:
    plan = SgdPlan(noise_multiplier=1.0, sampling_rate=0.5, steps=1, clip_norm=1.0, latent_samples=1)
    return PrivateSteps(nn.Linear(3, 3), torch.zeros(2, 3), loss, plan=plan, rows=2, key=SecretKey.from_seed(0),
                        learning_rate=0.1, microbatch=None, sharded=True, **options)
