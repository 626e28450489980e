"""A pose is one picture's own, and a picture redrawn in another pose has that pose and comes back as it was."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dpvae.models.images import ImageVAE
from dpvae.models.pose import APART, MIDDLE, POSE, REACH, drawn_from, poses, redraw, seen_in

SIZE = (1, 28, 28)


def bump(across: float, down: float, wide: float, tall: float, slant: float) -> Tensor:
    """A smooth spot of this middle, spread and slant, (1, D)."""
    at = (torch.arange(28, dtype=torch.float64) + 0.5) / 14 - 1
    below = at[:, None] - down
    right = (at[None] - across) - slant * below
    return torch.exp(-0.5 * ((right / wide) ** 2 + (below / tall) ** 2)).view(1, -1)


SPOTS = [(0.0, 0.0, 0.2, 0.2, 0.0), (0.1, -0.15, 0.15, 0.25, 0.0), (-0.1, 0.05, 0.2, 0.15, 0.5)]


@pytest.mark.parametrize("pose", SPOTS)
def test_the_pose_of_a_spot_is_its_middle_its_spread_and_its_slant(pose: tuple[float, ...]) -> None:
    found = poses(bump(*pose), SIZE)[0]
    assert found[:2].tolist() == pytest.approx(pose[:2], abs=0.01)
    assert found[4].item() == pytest.approx(pose[4], abs=0.13), "smoothing makes it rounder"
    assert found[2:4].exp().tolist() == pytest.approx(pose[2:4], rel=0.25), "a little smaller: faint rims are no mass"


def test_a_picture_redrawn_in_another_pose_is_the_picture_of_that_pose() -> None:
    """Closed form: a spot of one pose, redrawn in another one, is the spot of the other one."""
    seen, wanted = (torch.tensor([[a, d, math.log(w), math.log(h), s]], dtype=torch.float64)
                    for a, d, w, h, s in SPOTS[1:])
    redrawn = redraw(bump(*SPOTS[1]).view(1, *SIZE), seen, wanted).view(1, -1)
    torch.testing.assert_close(redrawn, bump(*SPOTS[2]), atol=0.02, rtol=0)


def test_no_picture_moves_the_pose_of_another_and_every_pose_is_in_reach() -> None:
    x_ND = torch.rand(9, 3 * 20 * 17, generator=torch.Generator().manual_seed(0))
    x_ND[0], x_ND[1], x_ND[2] = 0.0, 1.0, torch.eye(1, 3 * 20 * 17)
    together = poses(x_ND, (3, 20, 17))
    alone = torch.cat([poses(x_ND[i:i + 1], (3, 20, 17)) for i in range(9)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    assert (np.abs(together.numpy() - MIDDLE) <= np.array(REACH) + 1e-12).all()


def test_what_is_seen_in_a_frame_is_bounded_and_is_drawn_from_it_again() -> None:
    x_ND = torch.cat([bump(*pose) for pose in SPOTS]).float()
    frame = poses(x_ND, SIZE).mean(0, keepdim=True).expand(3, -1)
    seen = seen_in(x_ND, frame, SIZE)
    assert seen.shape == (3, 784 + POSE)
    assert 0 <= float(seen[:, :784].min()) <= float(seen[:, :784].max()) <= 1
    again, same = drawn_from(seen, frame, SIZE, seen[:, :784])
    torch.testing.assert_close(again, x_ND, atol=0.03, rtol=0)
    torch.testing.assert_close(again, same)
    before = x_ND.var(0).sum()
    assert float(seen[:, :784].var(0).sum()) < 0.05 * float(before), "in one frame the spots are one spot"


def test_a_picture_without_mass_stays_where_it_is_as_far_as_its_class_allows() -> None:
    frame = torch.tensor([[0.0, 0.0, -1.0, -1.0, 0.0]], dtype=torch.float64)
    seen = seen_in(torch.full((1, 784), 0.5), frame, SIZE)
    torch.testing.assert_close(seen[:, :784], torch.full((1, 784), 0.5))
    apart = seen[0, 784:] * torch.tensor((1 / 14, 1 / 14, 1 / 6, 1 / 6, 1 / 4))
    assert (apart.abs() <= torch.tensor(APART) + 1e-6).all()


def test_a_posed_model_projects_what_it_drew() -> None:
    """Latents of the pose alone: a spot, moved, scaled and slanted by the model, is found again."""
    vae = ImageVAE(SIZE, classes=1, clusters=1, directions=POSE, hidden=4, posed=True,
                   generator=torch.Generator().manual_seed(0))
    frame = poses(bump(*SPOTS[0]), SIZE)
    vae.frames.copy_(frame)
    vae.means[:, :784].copy_(bump(*SPOTS[0]))
    vae.basis[:, 784:].copy_(torch.eye(POSE))
    z_NZ = torch.tensor([[1.0, -1.0, 0.5, 0.5, 1.0], [-2.0, 0.0, -1.0, 1.0, -1.0]])
    label = torch.zeros(2, dtype=torch.long)
    middle, _ = vae.decode(z_NZ, label)
    torch.testing.assert_close(vae.project(middle, label), z_NZ, atol=0.25, rtol=0)
