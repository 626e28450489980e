"""A step neither waits for its device nor mixes two, held without an accelerator.

Torch's ``meta`` device stands for one: its tensors have shapes and no values, so that asking for a number (which would
make a GPU idle until it is known) raises, and so does an operation on tensors of two devices. A copy from ordinary
memory is queued behind all that the device still has to do, and waits for it: :class:`NeverWaits` refuses that too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_clipping import MODELS, RECORDS
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dpvae.privacy.noise import SecretKey
from dpvae.privacy.plan import SgdPlan
from dpvae.train.clipping import recorder as recorder_module
from dpvae.train.clipping.compiled import kept
from dpvae.train.dpsgd import PrivateSteps

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")


def loss(module: nn.Module, records: Tensor, latents_BZ: Tensor) -> Tensor:
    out = module(records).flatten(1)
    return out.square().sum(1) + latents_BZ.sum(1)


class NeverWaits(TorchDispatchMode):
    """Copies from the CPU go from pinned memory, in the background."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].is_cpu and str(options.get("device")) == "meta":
            assert options.get("non_blocking"), "a copy to the device that waits for it"
        return func(*args, **options)


@pytest.fixture(autouse=True)
def accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch does not have for ``meta``: pinned memory to copy from, and mixed precision."""
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: contextlib.nullcontext())


def steps(name: str, *, microbatch: int) -> None:
    """Two steps of DP-SGD, the second in several parts."""
    build, records = MODELS[name]
    plan = SgdPlan(noise_multiplier=0.5, sampling_rate=0.9, steps=2, clip_norm=0.5, latent_samples=1)
    private = PrivateSteps(build().to("meta"), records().to("meta"), loss, plan=plan, rows=RECORDS,
                           key=SecretKey.from_seed(3), learning_rate=0.1, microbatch=microbatch, clipping="fast",
                           latents=(2,))
    with NeverWaits():
        for number in range(2):
            private.step(number, 1.0)
    private.close()


@pytest.mark.parametrize("name", MODELS)
def test_a_step_neither_reads_its_device_nor_mixes_it_with_the_cpu(name: str) -> None:
    steps(name, microbatch=4)


def reads(patch: pytest.MonkeyPatch) -> None:
    whole = recorder_module._keep
    patch.setattr(recorder_module, "_keep", lambda factors_B: whole(factors_B) if bool(factors_B.any()) else None)


def mixes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PrivateSteps, "_noise", lambda self, number, size: torch.zeros(size, dtype=torch.float64))


def waits(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PrivateSteps, "_there", lambda self, here: here.to(self.device))


@pytest.mark.parametrize("mutate", [reads, mixes, waits])
def test_a_step_that_does_is_seen(mutate: Callable[[pytest.MonkeyPatch], None],
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    with pytest.raises((RuntimeError, AssertionError)):
        steps("table", microbatch=4)


def test_a_result_outlives_the_next_replay_of_a_cuda_graph() -> None:
    flat, finite = torch.zeros(2), torch.ones(1, dtype=torch.bool)

    def replays(records: Tensor, latents: Tensor, weights_N: Tensor) -> tuple[Tensor, Tensor]:
        return flat.add_(1), finite.logical_not_()

    first, second = (kept(replays)(records, records, records) for records in torch.zeros(2, 1))
    assert (first[0].tolist(), second[0].tolist()) == ([1, 1], [2, 2])
    assert (first[1].tolist(), second[1].tolist()) == ([False], [True])
