"""What a fit to noisy tables expects before it has seen one: small weights, and like ones for neighbours on an axis.

A table of an ordered column (age, hours, a date) by another holds mostly noise in any one cell, and its neighbours lie
on the same curve. A decoder whose weights were expected independently of one another would follow the noise of each or
forget what they tell together: 2,500 widows are too few to move 31 ages, and enough to say that they are old.

Shapes: C codes of a column, Z latent directions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpvae.models.likelihood import Columns
from dpvae.models.vae import VAE

WEIGHT_SD = 0.15  # prior scale of a decoder weight: of what one latent direction does to a logit
ALONE = 0.1  # of its variance, that a code of an ordered column does not share with its neighbours
REACH = 0.5  # of a column's codes, over which what they share falls to 1/e
LEAST_SPREAD = 1e-12  # of points along a direction: a root of nothing, as where there is one point, has no slope
Places = NDArray[np.float64]  # of a column's codes on its axis, (C,); NaN: nowhere


class Prior:
    """What a latent direction does to the logits of a column is N(0, WEIGHT_SD^2), and along an ordered column has the
    correlations of :func:`covariance`. ``orders``: by column, where its codes lie on an axis, or none.

    A direction's weights count times how far the points are spread along it, so that it is the spread of the logits
    that is judged and not what carries it. (Were points and weights expected to be small each, a thousand points would
    pay for what a single column says, and the decoder forget what stands out of the noise sixteen times.) Points keep a
    spread of one, which leaves everything else about them open.

    The chi-square is -2 log likelihood of the released noise, so this makes the fit a maximum a posteriori: where the
    noise drowns a table, the decoder stays near what it would say without it. At high epsilon it hardly counts.
    """

    def __init__(self, columns: Columns, orders: Sequence[Places | None], device: torch.device) -> None:
        self._whiteners: list[tuple[slice, Tensor]] = []
        self._alone = torch.ones(columns.width, dtype=torch.bool, device=device)
        for j, places in enumerate(orders):
            if places is not None and np.isfinite(places).sum() > 2:
                root = np.linalg.inv(np.linalg.cholesky(covariance(places)))
                self._whiteners.append((columns.slice(j), torch.as_tensor(root, dtype=torch.float32, device=device)))
                self._alone[columns.slice(j)] = False

    def __call__(self, vae: VAE, free: Sequence[int] = ()) -> Tensor:
        """-2 log density, up to a constant; latent directions in ``free`` are left out."""
        assert vae.codebook is not None
        points_KZ, weight_K1 = vae.codebook.points, vae.codebook.log_weights.exp()[:, None]
        spread_Z = (weight_K1 * (points_KZ - (weight_K1 * points_KZ).sum(0)).square()).sum(0)
        weights = [layer.weight for layer in vae.decoder if isinstance(layer, nn.Linear)]
        if free:  # no prior talks away what was found
            bound = [z for z in range(len(spread_Z)) if z not in free]
            spread_Z, weights[0] = spread_Z[bound], weights[0][:, bound]
        weights[0] = weights[0] * spread_Z.clamp_min(LEAST_SPREAD).sqrt()
        last = weights.pop()
        squares = [weight.square().sum() for weight in weights] + [last[self._alone].square().sum()]
        squares += [(root @ last[codes]).square().sum() for codes, root in self._whiteners]
        return torch.stack(squares).sum() / WEIGHT_SD**2 + (spread_Z - 1).square().sum()


def covariance(places: Places) -> NDArray[np.float64]:
    """Of the weights that codes at these ``places`` of an axis have, in units of WEIGHT_SD^2, (C, C): all but ALONE of
    it falls with the ranks between two codes (an Ornstein-Uhlenbeck process); a code at NaN stands for itself.

    >>> covariance(np.array([30.0, 10.0, 20.0, np.nan])).round(2).tolist()   # 30 is two ranks from 10
    [[1.0, 0.24, 0.46, 0.0], [0.24, 1.0, 0.46, 0.0], [0.46, 0.46, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    """
    known = np.isfinite(places)
    rank = np.argsort(np.argsort(places, kind="stable"))
    shared = np.exp(-np.abs(np.subtract.outer(rank, rank)) / (REACH * known.sum()))
    return np.where(np.outer(known, known), (1 - ALONE) * shared, 0.0) + np.diag(np.where(known, ALONE, 1.0))
