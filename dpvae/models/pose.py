"""Where a picture lies, how large it is and how it leans: its pose; and pictures redrawn in another pose. (Registration
by image moments: translation, scale, and the shear that deslanting of handwriting takes away.)

Pictures of a class differ most in their pose, and no straight direction of pixels follows a stroke that leans further.
Redrawn in one frame for each class they are alike (42 units of variance become 25 on MNIST), and what is left is nearly
normal; the pose itself becomes five more coordinates, beside the pixels. A pose is a function of one picture alone.

    across, down      middle of its mass; the frame is [-1, 1] in each direction
    width, height     logarithms of its mass's spread; the width is what is left beside the leaning
    slant             how far across for each step down

A pixel of the smoothed picture has mass where it is apart from the median of its border: from none at ``GROUND[0]`` to
all of it at ``GROUND[1]``, so a pose is that of a silhouette, whatever is drawn inside.

Shapes: N pictures, C channels, D pixels of all channels, P = 5 numbers of a pose, E = D + P.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

POSE, SLANT = 5, 4  # numbers of a pose, and which of them is the slant
SMOOTH = 2  # times over 3 x 3 pixels: the noise of single ones has no place and no size
GROUND = (0.05, 0.15)  # of a pixel's range
LEAST = 0.05  # spread, in halves of the frame
MIDDLE, REACH = (0.0, 0.0, -1.5, -1.5, 0.0), (0.6, 0.6, 1.5, 1.5, 1.5)  # poses lie in MIDDLE +- REACH
APART = (0.3, 0.3, 0.5, 0.5, 0.7)  # from the frame of a class: no picture is redrawn over more than that
UNIT = (1 / 14, 1 / 14, 1 / 6, 1 / 6, 1 / 4)  # moves about one unit of pixels: a pose is as loud as its effect


def _of(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)


def poses(x_ND: Tensor, size: tuple[int, int, int]) -> Tensor:
    """The poses of pictures in [0, 1], (N, P) double; each depends on its own picture alone."""
    x_NCHW = x_ND.double().view(len(x_ND), *size)
    for _ in range(SMOOTH):
        x_NCHW = F.avg_pool2d(x_NCHW, 3, 1, 1, count_include_pad=False)
    edges = torch.cat([x_NCHW[..., 0, :], x_NCHW[..., -1, :], x_NCHW[..., 0], x_NCHW[..., -1]], 2)
    ground_NC11 = edges.median(2).values[..., None, None]
    apart_NHW = (x_NCHW - ground_NC11).abs().mean(1)
    mass_NHW = ((apart_NHW - GROUND[0]) / (GROUND[1] - GROUND[0])).clamp(0, 1) + 1e-9
    down_H1, across_1W = _grid(size, x_ND)
    total_N = mass_NHW.sum((1, 2))

    def mean(value_NHW: Tensor) -> Tensor:
        return (mass_NHW * value_NHW).sum((1, 2)) / total_N

    across_N, down_N = mean(across_1W), mean(down_H1)
    right_NHW, below_NHW = across_1W - across_N[:, None, None], down_H1 - down_N[:, None, None]
    tall_N = mean(below_NHW.square()).clamp_min(LEAST**2)
    slant_N = mean(right_NHW * below_NHW) / tall_N
    wide_N = mean((right_NHW - slant_N[:, None, None] * below_NHW).square()).clamp_min(LEAST**2)
    found = torch.stack([across_N, down_N, wide_N.log() / 2, tall_N.log() / 2, slant_N], 1)
    middle, reach = _of(MIDDLE, x_ND), _of(REACH, x_ND)
    return found.clamp(middle - reach, middle + reach)


def redraw(x_NCHW: Tensor, seen_NP: Tensor, wanted_NP: Tensor) -> Tensor:
    """Pictures of pose ``seen``, as they look in pose ``wanted``; what was outside continues the border."""
    _, channels, height, width = x_NCHW.shape
    down_H1, across_1W = _grid((channels, height, width), x_NCHW)
    seen, wanted = ([part[:, None, None] for part in pose.unbind(1)] for pose in (seen_NP, wanted_NP))
    below = down_H1 - wanted[1]
    right = across_1W - wanted[0] - wanted[4] * below
    below = below * (seen[3] - wanted[3]).exp()
    right = right * (seen[2] - wanted[2]).exp() + seen[4] * below
    places = torch.stack([(seen[0] + right), (seen[1] + below).expand_as(right)], 3)
    return F.grid_sample(x_NCHW, places.to(x_NCHW.dtype), mode="bicubic", padding_mode="border", align_corners=False)


def seen_in(x_ND: Tensor, frame_NP: Tensor, size: tuple[int, int, int], told_NP: Tensor | None = None) -> Tensor:
    """Pictures redrawn in the frame of their class, and how far their pose was from it in :data:`UNIT`, (N, D + P);
    ``told``: how far it is, where that is known."""
    limit = _of(APART, x_ND)
    apart_NP = poses(x_ND, size) - frame_NP if told_NP is None else told_NP.double() * _of(UNIT, x_ND)
    apart_NP = apart_NP.clamp(-limit, limit)
    picture_ND = redraw(x_ND.view(len(x_ND), *size), frame_NP + apart_NP, frame_NP.double()).flatten(1)
    return torch.cat([picture_ND.clamp(0, 1), (apart_NP / _of(UNIT, x_ND)).to(x_ND.dtype)], 1)


def drawn_from(x_NE: Tensor, frame_NP: Tensor, size: tuple[int, int, int], *others_ND: Tensor) -> list[Tensor]:
    """Undoes :func:`seen_in`: the pictures (N, D) that ``x`` (N, D + P) describes, and ``others`` in the same poses."""
    limit = _of(APART, x_NE)
    apart_NP = (x_NE[:, -POSE:].double() * _of(UNIT, x_NE)).clamp(-limit, limit)
    together = torch.cat([picture.view(len(picture), *size) for picture in (x_NE[:, :-POSE], *others_ND)], 1)
    redrawn = redraw(together, frame_NP.double(), frame_NP + apart_NP)
    return [part.flatten(1) for part in redrawn.split(size[0], 1)]


def _grid(size: tuple[int, int, int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Middles of pixels down (H, 1) and across (1, W), in [-1, 1]."""
    down, across = ((torch.arange(side, dtype=torch.float64, device=like.device) + 0.5) / side * 2 - 1
                    for side in size[1:])
    return down[:, None], across[None]
