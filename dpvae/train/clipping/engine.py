"""The book-keeping sampler for users of Opacus: ``grad_sample_mode="fast"``.

Opacus keeps its contract: ``make_private`` returns module, optimizer and loader, the optimizer adds the noise, the
accountant counts by the step hook. Opacus' own loader takes the sampling rate and the divisor from the private number
of rows; where that matters, :class:`dpvae.train.dpsgd.PrivateSteps` takes them from the plan.

>>> module = nn.Linear(3, 1)
>>> engine = FastEngine(accountant="rdp")
>>> rows = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 3)), batch_size=2)
>>> module, optimizer, rows = engine.make_private(
...     module=module, optimizer=torch.optim.SGD(module.parameters(), lr=0.1), data_loader=rows, noise_multiplier=1.0,
...     max_grad_norm=1.0, grad_sample_mode="fast")
>>> type(module).__name__, type(optimizer).__name__
('Recorder', 'RecordedOptimizer')
"""

from __future__ import annotations

from typing import Any

import torch
from opacus import PrivacyEngine
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from dpvae.errors import ConfigError
from dpvae.train.clipping.recorder import Recorder


class RecordedOptimizer(DPOptimizer):
    """Opacus' ``DPOptimizer`` over a :class:`Recorder`: flat clipping of what was recorded, then Opacus' own noise."""

    recorder: Recorder

    def factors(self, norms_B: Tensor) -> Tensor:
        """min(1, C / norm), (B,); zero where the norm is not finite."""
        factors_B = (self.max_grad_norm / (norms_B + 1e-6)).clamp(max=1.0)
        return torch.where(torch.isfinite(norms_B), factors_B, torch.zeros_like(factors_B))

    def clip_and_accumulate(self) -> None:
        """Add every record's clipped gradient to ``p.summed_grad``."""
        for parameter, total in self.recorder.clip(self.factors).items():
            parameter.summed_grad = total if parameter.summed_grad is None else parameter.summed_grad + total

    @property
    def grad_samples(self) -> list[Tensor]:
        """Opacus only asks whether there are any: there are none, and there is something to do."""
        return list(self.params)

    @property
    def accumulated_iterations(self) -> int:
        """One: parts of a batch are summed in the book, not by the optimiser."""
        return 1


class FastEngine(PrivacyEngine):
    """Opacus' engine with one more ``grad_sample_mode``, ``fast``; the others are Opacus' own."""

    def _prepare_model(self, module: nn.Module, *, grad_sample_mode: str = "hooks", **options: Any) -> nn.Module:
        if grad_sample_mode != "fast":
            return super()._prepare_model(module, grad_sample_mode=grad_sample_mode, **options)
        if not options.pop("wrap_model", True):
            raise ConfigError("wrap_model=False: grad_sample_mode='fast' needs the wrapped module")
        options.pop("max_grad_norm", None)
        self._recorder = module if isinstance(module, Recorder) else Recorder(module, **options)
        return self._recorder

    def _prepare_optimizer(self, *, optimizer: Any, grad_sample_mode: str = "hooks", **options: Any) -> DPOptimizer:
        if grad_sample_mode != "fast":
            return super()._prepare_optimizer(optimizer=optimizer, grad_sample_mode=grad_sample_mode, **options)
        if options.get("clipping", "flat") != "flat" or options.get("distributed"):
            raise ConfigError("grad_sample_mode='fast': expected clipping='flat' in one process; "
                              "for several processes: torchrun -m dpvae train")
        generator = self.secure_rng if self.secure_mode else options.pop("noise_generator", None)
        kept = ("noise_multiplier", "max_grad_norm", "expected_batch_size", "loss_reduction")
        inner = optimizer.original_optimizer if isinstance(optimizer, DPOptimizer) else optimizer
        private = RecordedOptimizer(inner, generator=generator, secure_mode=self.secure_mode,
                                    **{name: options[name] for name in kept})
        private.recorder = self._recorder
        return private
