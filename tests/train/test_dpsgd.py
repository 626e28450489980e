"""The clipped, noised step against sums worked out record by record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import SIZES, TRAINERS, ScriptedKey, silent, small_trainer, small_vae, some_codes
from torch import Tensor, nn

from dpvae.errors import ConfigError
from dpvae.privacy import native
from dpvae.privacy.native import NativeNoise
from dpvae.privacy.noise import SecretKey, box_muller
from dpvae.privacy.plan import SgdPlan
from dpvae.train import dpsgd
from dpvae.train.clipping import compiled
from dpvae.train.clipping.optimizer import STABILISER, autos, noisy, on_grid
from dpvae.train.dpsgd import PrivateSteps

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")

CODES = some_codes(20)
KEY = ScriptedKey(normal=silent, mask=lambda names, real: np.ones_like(real))


@given(norm=st.floats(0, 2.0**100, width=32), clip=st.floats(2.0**-10, 1024, width=32))
def test_a_clipped_gradient_never_exceeds_the_bound(norm: float, clip: float) -> None:
    factor = float(autos(torch.tensor([norm]), clip)[0])
    assert 0 <= norm * factor <= clip * (1 + 1e-6)


def test_the_factor_is_that_of_auto_s_and_zero_where_the_norm_is_not_finite() -> None:
    factors = autos(torch.tensor([0.0, 0.99, torch.inf, torch.nan]), 2.0)
    assert factors.tolist() == pytest.approx([2 / STABILISER, 2.0, 0.0, 0.0])


def loss(module: nn.Module, codes_BD: Tensor, generator: torch.Generator) -> Tensor:
    z_BKZ = torch.stack([torch.sin(codes_BD.float() @ torch.tensor([[1.0], [2.0], [0.5]]) * k) for k in (1, 2)], 1)
    z_BKZ = z_BKZ.expand(-1, -1, 4)
    likelihood = small_vae("joint").likelihood
    return -likelihood.log_prob(module(z_BKZ), codes_BD[:, None].expand(-1, 2, -1)).mean(1)


def one_step(clipping: str, clip_norm: float, *, microbatch: int = 100) -> tuple[nn.Module, Tensor]:
    """The decoder before the step, and the gradient that the optimiser gets; no noise, everybody in the batch."""
    plan = SgdPlan(noise_multiplier=1.0, sampling_rate=0.5, steps=1, clip_norm=clip_norm, latent_samples=2)
    decoder = small_vae("decoder_only").decoder
    private = PrivateSteps(decoder, torch.as_tensor(CODES).long(), loss, plan=plan, rows=30, key=KEY,
                           learning_rate=0.0, microbatch=microbatch, clipping=clipping)
    private.step(0, 1.0)
    released = torch.cat([p.grad.flatten() for p in decoder.parameters() if p.grad is not None])
    private.close()
    return decoder, released


@pytest.mark.parametrize("microbatch", [1, 6, 100])
@pytest.mark.parametrize("clip_norm", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("clipping", ["fast", "ghost", "hooks"])
def test_what_is_released_is_the_sum_of_clipped_records_over_the_public_divisor(
        clipping: str, clip_norm: float, microbatch: int) -> None:
    decoder, released = one_step(clipping, clip_norm, microbatch=microbatch)
    total = torch.zeros(sum(p.numel() for p in decoder.parameters()))
    for row in torch.as_tensor(CODES).long():
        own = loss(decoder, row[None], torch.Generator())
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(own.sum(), list(decoder.parameters()))])
        total += gradient * clip_norm / (gradient.norm() + STABILISER)
    torch.testing.assert_close(released, total / (0.5 * 30), atol=1e-5 * clip_norm, rtol=1e-4)


@pytest.mark.parametrize("clipping", ["fast", "ghost", "hooks"])
def test_closing_gives_the_module_back_as_it_was(clipping: str) -> None:
    decoder, _ = one_step(clipping, 1.0)
    z_BZ = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    fresh = small_vae("decoder_only").decoder
    torch.testing.assert_close(decoder(z_BZ), fresh(z_BZ))
    decoder(z_BZ).sum().backward()
    assert all("forward" not in vars(layer) for layer in decoder)


def test_a_layer_that_mixes_records_is_refused() -> None:
    plan = SgdPlan(noise_multiplier=1.0, sampling_rate=0.5, steps=1, clip_norm=1.0, latent_samples=1)
    mixing = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, sum(SIZES)))
    for clipping in ("auto", "hooks", "ghost", "fast"):
        with pytest.raises((ConfigError, NotImplementedError, ValueError)):
            PrivateSteps(mixing, torch.as_tensor(CODES).long(), loss, plan=plan, rows=20, key=KEY, learning_rate=0.1,
                         microbatch=10, clipping=clipping)


@pytest.mark.parametrize("clipping", ["ghost", "hooks"])
def test_half_precision_is_refused_where_the_backward_pass_sums_over_the_batch(clipping: str) -> None:
    plan = SgdPlan(noise_multiplier=1.0, sampling_rate=0.5, steps=1, clip_norm=1.0, latent_samples=1)
    layer = nn.Linear(4, sum(SIZES))
    with pytest.raises(ConfigError, match=r"performance\.precision=bfloat16: .* expected performance\.clipping=fast"):
        PrivateSteps(layer, torch.as_tensor(CODES).long(), loss, plan=plan, rows=20, key=KEY, learning_rate=0.1,
                     microbatch=10, clipping=clipping, precision="bfloat16")
    assert not layer._forward_hooks


def test_rows_that_ghost_clipping_would_take_for_records_are_refused() -> None:
    def doubled(module: nn.Module, codes_BD: Tensor, latents: Tensor) -> Tensor:
        return module(codes_BD.float().repeat_interleave(2, 0)).sum(1).view(-1, 2).mean(1)

    plan = SgdPlan(noise_multiplier=1.0, sampling_rate=0.5, steps=1, clip_norm=1.0, latent_samples=2)
    private = PrivateSteps(nn.Linear(3, 4), torch.as_tensor(CODES).long(), doubled, plan=plan, rows=20, key=KEY,
                           learning_rate=0.1, microbatch=1, clipping="ghost")
    with pytest.raises(ConfigError, match="saw 2 rows for 1 records"):
        private.step(0, 1.0)


@pytest.mark.parametrize("name", TRAINERS)
def test_training_changes_the_decoder_and_leaves_the_rows_alone(name: str, tmp_path: Path) -> None:
    trainer = small_trainer(name, CODES, tmp_path)
    before, rows = small_vae(name).decoder[-1].weight.clone(), trainer.codes.clone()
    trainer.fit()
    assert not torch.equal(trainer.vae.decoder[-1].weight, before)
    assert torch.equal(trainer.codes, rows)


# -- the compiled step -------------------------------------------------------------------------------------------------


def released(*, compile: bool, bad: bool = False) -> Tensor:
    """The weights after four steps."""
    plan = SgdPlan(noise_multiplier=1.0, sampling_rate=0.5, steps=4, clip_norm=0.1, latent_samples=2)
    decoder = small_vae("decoder_only").decoder

    def poisoned(module: nn.Module, codes_BD: Tensor, latents: Tensor) -> Tensor:
        losses = loss(module, codes_BD, latents)
        return torch.where(codes_BD[:, 0] == 1, losses * float("inf"), losses) if bad else losses

    private = PrivateSteps(decoder, torch.as_tensor(CODES).long(), poisoned, plan=plan, rows=8, key=ScriptedKey(),
                           learning_rate=0.01, microbatch=None, compile=compile, latents=(2,))
    for number in range(plan.steps):
        private.step(number, 1.0)
    assert (int(private.optimizer.not_finite) > 0) == bad
    private.close()
    return torch.cat([p.detach().flatten() for p in decoder.parameters()])


@pytest.mark.slow
@pytest.mark.parametrize("bad", [False, True])
def test_the_compiled_step_on_padded_batches_releases_what_the_plain_step_does(
        bad: bool, caplog: pytest.LogCaptureFixture) -> None:
    torch.testing.assert_close(released(compile=True, bad=bad), released(compile=False, bad=bad), atol=1e-5, rtol=0)
    assert "cannot compile" not in caplog.text


def counting(module: nn.Module, codes_BD: Tensor, latents: Tensor) -> Tensor:
    """A loss that asks Python for the number of records, so that its trace knows only one."""
    return loss(module, codes_BD, latents) * torch.ones(len(codes_BD))


@pytest.mark.slow
@pytest.mark.parametrize(("asks", "padded"), [(loss, False), (counting, True)])
def test_a_program_takes_any_number_of_rows_unless_the_model_asks_python_how_many_it_has(
        asks: Callable[..., Tensor], padded: bool) -> None:
    plan = SgdPlan(noise_multiplier=1.0, sampling_rate=0.5, steps=1, clip_norm=0.1, latent_samples=2)
    private = PrivateSteps(small_vae("decoder_only").decoder, torch.as_tensor(CODES).long(), asks, plan=plan, rows=20,
                           key=KEY, learning_rate=0.01, microbatch=None, compile=True, latents=(2,))
    program = private._compiled
    assert program is not None
    assert (program.padded, len(program._programs)) == (padded, 1)
    for rows in (0, 1, 2, 7, 20):
        chunk = (private.codes[:rows], torch.zeros(rows, 2), torch.ones(rows))
        plain, finite = program.part(*chunk)
        quick, _ = program(*chunk)
        assert (finite.shape, quick.shape) == ((rows,), plain.shape)
        torch.testing.assert_close(quick, plain, atol=1e-6, rtol=0)
    assert (len(program._programs) > 1) == padded
    private.close()


def test_the_noise_of_a_long_run_is_compiled_unasked_and_quietly(caplog: pytest.LogCaptureFixture) -> None:
    def by(steps: int) -> bool:
        plan = SgdPlan(noise_multiplier=1.0, sampling_rate=0.5, steps=steps, clip_norm=0.1, latent_samples=2)
        private = PrivateSteps(nn.Linear(10, 10), torch.ones(4, 10), squared, plan=plan, rows=4, key=KEY,
                               learning_rate=0.01, microbatch=None)
        private.close()
        return private.optimizer.native is not None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "NativeNoise", lambda: 1 / 0)
        assert not by(1_000_000)
    assert (by(1_000_000), by(100), caplog.text) == (True, False, "")


SOURCE, NATIVE = SecretKey.from_seed(5), NativeNoise()
WORDS = SOURCE.stream("words").integers(2**63, 6000)
WORDS[:3] = 0, -2**63, 2**63 - 1  # the largest radius twice (the top bit is not used), and the smallest
TURNS = SOURCE.stream("turns").integers(2**32, 6000).astype(np.uint32).view(np.int32)
TURNS[10:16] = 0, 2**30, -2**30, -2**31, 2**30 + 1, -2**31 + 1


def same_normals(program: NativeNoise) -> None:
    """The draws are numpy's, from the same words."""
    np.testing.assert_allclose(program.box_muller(WORDS, TURNS), box_muller(WORDS, TURNS), rtol=5e-7, atol=0)
    for size in (1, 2, 7, 700_001):
        plain, quick = (SOURCE.stream("noise", size).bulk_normal(size, by=by)
                        for by in (box_muller, program.box_muller))
        np.testing.assert_allclose(quick, plain, rtol=5e-7, atol=0)


def same_noisy_sums(program: NativeNoise, multiplier: float, scale: float) -> None:
    """Noise is added to sums on the grid, to the bit."""
    normals = SOURCE.stream("normals").bulk_normal(10_001)
    sums = scale * SOURCE.stream("sums").normal(10_001).astype(np.float32)
    sums[:4] = 0, np.nan, np.inf, -np.inf
    grid, deviation = on_grid(multiplier, 1.0, 10_001)
    plain = noisy(torch.from_numpy(sums), torch.from_numpy(normals), deviation, grid).numpy()
    np.testing.assert_array_equal(program.noisy(sums, normals, deviation, grid), plain)
    np.testing.assert_allclose(plain, sums + deviation * normals, rtol=2e-7, atol=1.01 * grid)
    steps = plain.astype(np.float64)[4:] / grid
    np.testing.assert_array_equal(steps, np.rint(steps))


def test_noise_is_worked_out_by_the_compiled_program_as_by_numpy_from_the_same_words() -> None:
    same_normals(NATIVE)


@pytest.mark.parametrize(("multiplier", "scale"), [(1.0, 1.0), (0.3, 1e-7), (37.0, 1e5)])
def test_the_compiled_program_adds_noise_to_sums_on_the_grid_to_the_bit(multiplier: float, scale: float) -> None:
    same_noisy_sums(NATIVE, multiplier, scale)


FAULTS: dict[str, tuple[str, str, Callable[[NativeNoise], None]]] = {
    "sums are not rounded": ("std::nearbyint(sums[i] * steps)", "sums[i] * steps",
                             lambda program: same_noisy_sums(program, 1.0, 1.0)),
    "noise is not rounded": ("std::nearbyint(normals[i] * scale)", "normals[i] * scale",
                             lambda program: same_noisy_sums(program, 1.0, 1.0)),
    "the noise is half as wide": ("scale = deviation / grid", "scale = 0.5 * deviation / grid",
                                  lambda program: same_noisy_sums(program, 1.0, 1.0)),
    "both halves of a pair are equal": ("cosine(turns[i] - (1u << 30))", "cosine(turns[i])", same_normals),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_compiled_program_is_seen(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong, check = FAULTS[fault]
    source = native._SOURCE.read_text()
    assert source.count(right) == 1
    (tmp_path / "native.cpp").write_text(source.replace(right, wrong))
    monkeypatch.setattr(native, "_SOURCE", tmp_path / "native.cpp")
    broken = NativeNoise()
    broken._library = native._library.__wrapped__()
    with pytest.raises(AssertionError, match=r"Not equal|Mismatched"):
        check(broken)


def test_a_long_run_that_is_not_compiled_draws_its_noise_by_the_compiled_program(
        monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls, real = released(compile=False), [], NativeNoise.noisy
    monkeypatch.setattr(dpsgd, "WORTH_COMPILING", 1)
    monkeypatch.setattr(NativeNoise, "noisy", lambda self, *given: calls.append(len(given[0])) or real(self, *given))
    torch.testing.assert_close(released(compile=False), plain, atol=1e-6, rtol=0)
    assert len(calls) == 4, "one draw a step, by the program"


def test_without_a_working_compiler_a_booked_run_goes_on_and_releases_the_same(
        monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuses(*args: object, **kwargs: object) -> None:
        raise RuntimeError("g++: not found")

    monkeypatch.setattr(torch._inductor, "compile", refuses)
    monkeypatch.setattr(compiled, "NativeNoise", refuses)
    torch.testing.assert_close(released(compile=True), released(compile=False), atol=1e-5, rtol=0)
    assert "g++: not found" in caplog.text


# -- convolutions ------------------------------------------------------------------------------------------------------


def squared(module: nn.Module, pixels_BD: Tensor, latents: Tensor) -> Tensor:
    return module(pixels_BD.view(-1, 1, 4, 5)).flatten(1).square().sum(1)


def small_convolution() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.SiLU(), nn.ConvTranspose2d(3, 2, (2, 3)))


@pytest.mark.parametrize("clipping", ["fast", "hooks", "ghost"])
def test_a_convolution_moves_as_adam_written_out_record_by_record_says(clipping: str) -> None:
    pixels = torch.arange(6 * 20.0).view(6, 20).sin()
    plan = SgdPlan(noise_multiplier=1.0, sampling_rate=1.0, steps=2, clip_norm=1.0, latent_samples=1)
    module, expected = small_convolution(), small_convolution()
    private = PrivateSteps(module, pixels, squared, plan=plan, rows=6, key=KEY, learning_rate=0.1, microbatch=4,
                           clipping=clipping)
    adam = torch.optim.Adam(expected.parameters(), lr=0.1, betas=(0.9, 0.99))
    for number in range(plan.steps):
        private.step(number, 1.0)
        sums = [torch.zeros_like(p) for p in expected.parameters()]
        for record in pixels:
            gradient = torch.autograd.grad(squared(expected, record[None], record).sum(), list(expected.parameters()))
            factor = autos(torch.cat([g.flatten() for g in gradient]).norm()[None], plan.clip_norm)
            sums = [total + factor * g for total, g in zip(sums, gradient, strict=True)]
        for parameter, total in zip(expected.parameters(), sums, strict=True):
            parameter.grad = total / 6
        adam.step()
    private.close()
    for one, two in zip(module.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=0)
