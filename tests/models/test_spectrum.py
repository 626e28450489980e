"""Pictures are raised to the power that was released: rings, gains and filters in closed form, and in a model."""

from __future__ import annotations

import math

import pytest
import torch
from small_images import some_model

from dpvae.models.spectrum import by_ring, gains, power, raised, rings, waves


def test_the_waves_of_a_side_are_orthonormal_and_the_first_is_flat() -> None:
    for side in (8, 9):
        torch.testing.assert_close(waves(side) @ waves(side).T, torch.eye(side, dtype=torch.float64))
        torch.testing.assert_close(waves(side)[0], torch.full((side,), side**-0.5, dtype=torch.float64))


def test_every_frequency_is_in_one_ring_and_a_ring_is_as_fine_in_both_directions() -> None:
    assert rings(2, 4).tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert torch.bincount(rings(5, 5).flatten()).tolist() == [1, 3, 5, 7, 9]
    assert by_ring(torch.tensor([[1.0, 3.0], [5.0, 7.0]]), rings(2, 2)).tolist() == [1.0, 5.0]


@pytest.mark.parametrize("size", [(1, 6, 6), (3, 5, 8)])
def test_a_gain_multiplies_the_power_of_its_frequency_by_its_square_and_no_other(size: tuple[int, int, int]) -> None:
    x = torch.randn(7, math.prod(size), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gain = torch.ones(size[1:], dtype=torch.float64)
    torch.testing.assert_close(raised(x, gain, size), x)
    gain[2, 1] = 1.5
    torch.testing.assert_close(power(raised(x, gain, size), size), power(x, size) * gain**2)
    torch.testing.assert_close(power(x, size).sum() * size[0], x.square().sum(1).mean())  # Parseval


def test_no_frequency_is_weakened_or_raised_without_bound_or_by_a_power_that_nobody_knows() -> None:
    wanted, found = torch.tensor([[0.0, 4.0, 0.0], [1.0, 100.0, 0.0], [0.0, 0.0, 0.0]]), torch.ones(3, 3)
    found[1, 0] = 4.0
    assert gains(wanted, found).tolist() == [[1.0, 2.0, 2.0], [1.0, 3.0, 2.0], [2.0, 2.0, 2.0]]


@torch.no_grad()
@pytest.mark.parametrize("posed", [False, True])
def test_pictures_of_a_model_reach_the_power_that_was_released(posed: bool) -> None:
    """Both decoders draw half of the deviation that images have, so all gains are two, and a mean stays as it is."""
    vae, generator = some_model((1, 12, 12), posed=posed), torch.Generator()
    vae.means[:, :144], vae.centres[:] = 0.5, 0.0
    vae.basis[:, :144] *= 0.4
    vae.basis[:, 144:] = 0.0
    torch.nn.init.zeros_(vae.decoder.outside.weight)  # the network draws the linear picture, too
    label = vae.draw_labels(4000, generator=generator.manual_seed(1))
    z = vae.draw_latents(label, generator=generator)
    linear = vae.linear(z, label)[0]
    vae.power.copy_(4 * power(linear - 0.5, vae.size))
    vae.dream(4000, generator=generator.manual_seed(2))
    torch.testing.assert_close(vae.gains, torch.full((2, 12, 12), 2.0), rtol=0.1, atol=0)
    drawn = vae.sample(label, generator=generator.manual_seed(3)).flatten(1) / 255
    torch.testing.assert_close(drawn.std(0).mean(), 2 * linear.std(0).mean(), rtol=0.1, atol=0)
    torch.testing.assert_close(drawn.mean(), torch.tensor(0.5), rtol=0.02, atol=0)
