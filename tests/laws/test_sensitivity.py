"""Law 4: adding one record moves what is released by at most its claimed sensitivity, at every step, in every trainer.

The laboratory shows how two runs are compared; the last part breaks the trainer on purpose, and the comparison must
see it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from laboratory import moved
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
from small_runs import TRAINERS, ScriptedKey, silent, small_config, small_plan, small_trainer, small_vae, some_codes
from torch import Tensor, nn

from dpvae.models.vae import VAE
from dpvae.privacy.plan import ELBO_RANGE_PER_COLUMN, SgdPlan
from dpvae.train import sleep
from dpvae.train import trainer as trainer_module
from dpvae.train.clipping import ghost, optimizer
from dpvae.train.clipping.ghost import TwoPasses
from dpvae.train.clipping.optimizer import SecretOptimizer
from dpvae.train.dpsgd import PrivateSteps

ROUNDING = 1e-5  # sums of forty single-precision gradients of norm one
CODES = some_codes(40)
EVERY_CLIPPING = ("fast", "ghost", "hooks")
UNSEEN = np.array([3, 2, 1])  # two codes that nobody else holds

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")


def as_made(vae: VAE) -> None:
    """The weights a run starts with."""


def huge(vae: VAE) -> None:
    """Weights for which every gradient is thousands of times the clip norm."""
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.mul_(1e3)


def overflowing(vae: VAE) -> None:
    """Weights for which the encoder sends the holder of an unseen code, and nobody else, to infinity and NaN."""
    with torch.no_grad():
        vae.encoder[0].weight[:, 3] = 3e38
        vae.decoder[-1].bias[3] = -40  # so that no dream ever holds it


PEOPLE = {"a duplicate": (CODES[0], as_made), "a unique category": (UNSEEN, as_made),
          "huge gradients": (UNSEEN, huge), "huge gradients of a duplicate": (CODES[0], huge)}


@pytest.mark.parametrize("clipping", EVERY_CLIPPING)
@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize(("person", "prepare"), PEOPLE.values(), ids=PEOPLE.keys())
def test_one_record_moves_the_clipped_sum_by_at_most_c_at_every_step(
        name: str, clipping: str, person: np.ndarray, prepare: Callable[[VAE], None], tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    distances = moved(monkeypatch, name, CODES, person, tmp_path, prepare=prepare, performance={"clipping": clipping})
    assert len(distances) == 4
    assert max(distances) <= 1 + ROUNDING
    assert max(distances) > 0.9, "the instrument sees the record at all"


@pytest.mark.parametrize("name", TRAINERS)
def test_one_record_moves_the_clipped_sum_by_at_most_c_when_all_phases_run(
        name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distances = moved(monkeypatch, name, CODES, UNSEEN, tmp_path, from_dpsgd=False)
    assert 0.9 < max(distances) <= 1 + ROUNDING


@pytest.mark.parametrize("clipping", EVERY_CLIPPING)
@pytest.mark.parametrize("name", ["decoder_only", "joint"])
def test_a_record_whose_gradient_is_nan_contributes_nothing(
        name: str, clipping: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distances = moved(monkeypatch, name, CODES, UNSEEN, tmp_path, prepare=overflowing,
                      performance={"clipping": clipping})
    assert max(distances) <= ROUNDING


def test_a_record_that_no_point_of_the_codebook_explains_contributes_nothing(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def impossible(vae: VAE) -> None:
        with torch.no_grad():
            vae.decoder[-1].bias[[3, 6]] = -3e38  # either alone is finite, both together are -inf

    assert max(moved(monkeypatch, "anchored", CODES, UNSEEN, tmp_path, prepare=impossible)) <= 1 + ROUNDING


@pytest.mark.parametrize("clip_norm", [0.01, 3.0])
def test_the_bound_follows_the_clip_norm(clip_norm: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distances = moved(monkeypatch, "joint", CODES, UNSEEN, tmp_path, trainer={"clip_norm": clip_norm})
    assert 0.9 < max(distances) <= 1 + ROUNDING


# -- clipping on its own: gradients that cancel inside a record ------------------------------------------------------


def contribution(clipping: str, inputs_TD: Tensor, coefficients_TP: Tensor, layer: nn.Module | None = None) -> float:
    """Norm of what one record with this gradient, ``coefficients.T @ inputs``, adds to the clipped sum; C is one."""
    layer = nn.Linear(inputs_TD.shape[1], coefficients_TP.shape[1]) if layer is None else layer
    plan = SgdPlan(noise_multiplier=1.0, sampling_rate=0.5, steps=1, clip_norm=1.0, latent_samples=len(inputs_TD))
    private = PrivateSteps(layer, torch.zeros(1, 1).long(),
                           lambda module, codes, generator: (module(inputs_TD[None]) * coefficients_TP).sum((1, 2)),
                           plan=plan, rows=2, key=ScriptedKey(normal=silent, mask=lambda names, real: ~(real & ~real)),
                           learning_rate=0.0, microbatch=8, clipping=clipping)
    private.step(0, 1.0)
    return float(torch.cat([p.grad.flatten() for p in layer.parameters() if p.grad is not None]).norm())


def largest_contribution(clipping: str, layer: Callable[[], nn.Module] | None = None, *,
                         sizes: tuple[float, ...] = (1e-3, 1.0, 10.0, 100.0, 1000.0, 10000.0)) -> float:
    """Two nearly equal inputs with opposite coefficients: the true gradient is small, its terms are not."""
    added = []
    for size in sizes:
        for seed in range(8):
            generator = torch.Generator().manual_seed(seed)
            common_D = size * torch.randn(64, generator=generator)
            inputs_TD = common_D + 0.1 * torch.randn(2, 64, generator=generator)
            half_P = torch.randn(8, generator=generator)
            coefficients_TP = torch.stack([half_P, -half_P])
            added.append(contribution(clipping, inputs_TD, coefficients_TP, None if layer is None else layer()))
    return max(added)


@pytest.mark.parametrize("clipping", EVERY_CLIPPING)
def test_samples_that_cancel_inside_a_record_do_not_slip_through_the_clip(clipping: str) -> None:
    assert largest_contribution(clipping) <= 1 + ROUNDING


def test_norms_in_single_precision_let_through_what_cancels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TwoPasses, "NORM_SAMPLERS", GradSampleModuleFastGradientClipping.NORM_SAMPLERS)
    assert largest_contribution("ghost") > 2


def places() -> nn.Module:
    """A convolution over the positions, which has no norm of ours: Opacus writes its gradients out."""
    return nn.Sequential(Turned(), nn.Conv1d(64, 8, 1), Turned())


class Turned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mT


class Scaled(nn.Module):
    """Normalised inputs, and gradients as large as the inputs were."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(64)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)[..., :8] * x.abs().amax()


@pytest.mark.parametrize("layer", [places, Scaled])
def test_what_cancels_does_not_slip_through_where_opacus_writes_gradients_out(layer: Callable[[], nn.Module]) -> None:
    assert largest_contribution("ghost", layer, sizes=(1.0, 1e3, 1e7)) <= 1 + ROUNDING


@pytest.mark.parametrize("layer", [places, Scaled])
def test_gradients_written_out_whose_rounding_is_forgotten_let_through_what_cancels(
        layer: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ghost, "reach", lambda layer, a, g: torch.zeros(len(a)))
    assert largest_contribution("ghost", layer, sizes=(1e7,)) > 1 + 10 * ROUNDING


# -- the noisy ELBO --------------------------------------------------------------------------------------------------


def released_elbo(name: str, codes: np.ndarray, folder: Path) -> float:
    """The sum of clipped ELBOs behind the released number, without its noise, in units of the sensitivity."""
    config, rows = small_config(name), 1000
    vae = small_vae(name)
    with torch.no_grad():
        for parameter in vae.decoder.parameters():
            parameter.mul_(4)  # a decoder for which the latent matters
    trainer = small_trainer(name, codes, folder, vae=vae, rows=rows, key=ScriptedKey(normal=silent),
                            plan=small_plan(config, rows=rows, metric_releases=1))
    metric = trainer._release_metric(trainer_module.TrainState(), "dpsgd", 0, 0)
    assert metric is not None
    half = ELBO_RANGE_PER_COLUMN * codes.shape[1] / 2
    return float(metric["noisy_elbo"] + half) * rows / half


def dealt_by_position(patch: pytest.MonkeyPatch) -> None:
    """The mutant that was ours: every row's latent from the public seed, by its place in the table."""
    def elbos(self: Any, number: int) -> np.ndarray:
        noise_1BZ = torch.randn(1, len(self.codes), self.vae.prior.dim, generator=self._generator("metric", number))
        return self.vae.elbo(self.codes, noise_1BZ).value.detach().double().numpy()

    patch.setattr(trainer_module.Trainer, "_elbos", elbos)


def test_latents_of_the_noisy_elbo_that_are_dealt_out_by_position_are_seen(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dealt_by_position(monkeypatch)
    codes = some_codes(1000)
    first = np.insert(codes, 0, UNSEEN, axis=0)
    distance = released_elbo("joint", first, tmp_path / "with") - released_elbo("joint", codes, tmp_path / "without")
    assert abs(distance) > 2


@pytest.mark.parametrize("name", TRAINERS)
def test_one_record_moves_the_sum_of_elbos_by_at_most_half_its_range_wherever_it_stands(
        name: str, tmp_path: Path) -> None:
    codes = some_codes(1000)
    without = released_elbo(name, codes, tmp_path / "without")
    for place in (1000, 500, 0):
        with_person = released_elbo(name, np.insert(codes, place, UNSEEN, axis=0), tmp_path / str(place))
        assert abs(with_person - without) <= 1 + 1e-4


# -- mutants: broken on purpose --------------------------------------------------------------------------------------


def no_clip(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(optimizer, "autos", lambda norms_B, clip_norm: torch.ones_like(norms_B))


def no_check_for_nan(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(optimizer, "autos", lambda norms_B, clip_norm: clip_norm / (norms_B + optimizer.STABILISER))
    patch.setattr(torch, "nan_to_num", lambda x, **kwargs: x)


def clips_with(patch: pytest.MonkeyPatch, sums: Callable[[list[Tensor], float], list[Tensor]]) -> None:
    """Replace the clipping by ``sums(per-sample gradients, C)``."""
    def clip_and_accumulate(self: SecretOptimizer) -> None:
        for parameter, total in zip(self.params, sums(self.grad_samples, self.max_grad_norm), strict=True):
            before = parameter.summed_grad
            parameter.summed_grad = total if before is None else before + total
            parameter.grad_sample = None

    patch.setattr(SecretOptimizer, "clip_and_accumulate", clip_and_accumulate)


def per_layer(samples: list[Tensor], clip: float) -> list[Tensor]:
    return [torch.einsum("b,b...->...", optimizer.autos(g.flatten(1).norm(dim=1), clip), g) for g in samples]


def whole_batch(samples: list[Tensor], clip: float) -> list[Tensor]:
    """The mean gradient clipped, then scaled up again: torch's clip_grad_norm_ on a batch."""
    means = [g.mean(0) for g in samples]
    norm = torch.cat([m.flatten() for m in means]).norm()
    return [m / norm.clamp_min(clip) * clip * len(samples[0]) for m in means]


def groups_of_four(samples: list[Tensor], clip: float) -> list[Tensor]:
    """Records clipped four at a time, as a microbatch of a careless implementation would."""
    grouped = [[part.mean(0) * len(part) for part in g.split(4)] for g in samples]
    stacked = [torch.stack(parts) for parts in grouped]
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in stacked], 1).norm(dim=1)
    return [torch.einsum("b,b...->...", 4 * clip / norms.clamp_min(4 * clip), g) for g in stacked]


def divided_by_the_batch(patch: pytest.MonkeyPatch) -> None:
    step = PrivateSteps.step

    def counted(self: PrivateSteps, number: int, rate_factor: float) -> None:
        mask = self.key.stream("dpsgd", number, "mask").mask(len(self.codes), self.plan.sampling_rate)
        self.optimizer.expected_batch_size = int(mask.sum())
        step(self, number, rate_factor)

    patch.setattr(PrivateSteps, "step", counted)


MUTANTS = {
    "no clip": (no_clip, "joint", as_made),
    "clip per layer": (partial(clips_with, sums=per_layer), "joint", as_made),
    "clip of the whole batch": (partial(clips_with, sums=whole_batch), "joint", as_made),
    "clip of four records at once": (partial(clips_with, sums=groups_of_four), "joint", huge),
    "divided by the actual batch": (divided_by_the_batch, "joint", as_made),
    "NaN slips through": (no_check_for_nan, "decoder_only", overflowing),
}


@pytest.mark.parametrize(("mutate", "name", "prepare"), MUTANTS.values(), ids=MUTANTS.keys())
def test_a_broken_clip_is_seen(mutate: Callable[[pytest.MonkeyPatch], None], name: str,
                               prepare: Callable[[VAE], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    distances = moved(monkeypatch, name, CODES, UNSEEN, tmp_path, prepare=prepare, performance={"clipping": "hooks"},
                      trainer={"clip_norm": 0.1})
    assert not max(distances, key=lambda d: (d != d, d)) <= 1.01


def test_an_encoder_trained_on_private_rows_beside_a_noised_decoder_is_seen(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder is not released, only used: yet it moves everybody else's gradient when a record is added."""
    def loud(vae: VAE) -> None:
        with torch.no_grad():
            vae.encoder[0].weight[:, 3] = 30  # the newcomer has much to teach

    def awake(trainer: Any) -> None:
        def run(self: sleep.Sleep, steps: int, *, generator: torch.Generator) -> float:
            z_BZ = torch.full((len(trainer.codes), trainer.vae.prior.dim), 2.0)
            optimiser = torch.optim.SGD(trainer.vae.encoder.parameters(), lr=1e-3)
            for _ in range(steps):
                loss = -sleep.log_q(trainer.vae, trainer.codes, z_BZ).mean()
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
            return float(loss.detach())

        monkeypatch.setattr(sleep.Sleep, "run", run)

    distances = moved(monkeypatch, "decoder_only", CODES, UNSEEN, tmp_path, prepare=loud, before=awake)
    assert max(distances) > 1.01, distances
