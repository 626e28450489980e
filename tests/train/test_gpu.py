"""What has to hold on a CUDA device as it does on the CPU; run with -m gpu."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dpvae.privacy.noise import SecretKey
from dpvae.privacy.plan import SgdPlan
from dpvae.train.dpsgd import PrivateSteps

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def loss(module: nn.Module, x: Tensor, latents: Tensor) -> Tensor:
    return (module(x + 0.1 * latents) - x).square().sum(1)


def weights(device: str, **options: object) -> Tensor:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)).to(device)
    rows = torch.randn(64, 4, generator=torch.Generator().manual_seed(1)).to(device)
    plan = SgdPlan(noise_multiplier=0.5, sampling_rate=0.25, steps=5, clip_norm=0.5, latent_samples=1)
    private = PrivateSteps(module, rows, loss, plan=plan, rows=64, key=SecretKey.from_seed(3), learning_rate=0.05,
                           microbatch=None, latents=(4,), **options)  # type: ignore[arg-type]
    for number in range(5):
        private.step(number, 1.0)
    private.close()
    return torch.cat([p.detach().flatten() for p in module.parameters()]).cpu()


@pytest.mark.parametrize("options", [{"clipping": "fast"}, {"clipping": "ghost"}, {"clipping": "hooks"},
                                     {"compile": True}], ids=str)
@pytest.mark.filterwarnings("ignore")
def test_a_gpu_trains_what_the_cpu_trains(options: dict[str, object]) -> None:
    torch.testing.assert_close(weights("cuda", **options), weights("cpu"), atol=1e-4, rtol=0)
