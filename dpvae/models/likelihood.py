"""p(x | z) for a row: a product of columns, each with its own slice of the decoder's output.

:class:`Columns` holds codes (categorical), :class:`GaussianColumns` real values. Both answer to the same names, so that
a VAE does not ask which it has.

Shapes: B rows, D columns, W = width of the decoder's output (for codes: the sum of the cardinalities, one-hot width).

>>> import torch
>>> columns = Columns((2, 3))
>>> columns.log_prob(torch.zeros(1, 5), torch.tensor([[1, 2]])).exp()   # 1/2 * 1/3
tensor([0.1667])
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from dpvae import checks
from dpvae.models.prior import strata

ROWS_AT_ONCE = 4096  # bounds memory where an output is copied for every row
_SMALLEST = 2.0**-25  # half a step of a single-precision uniform: the normal quantile of zero is not finite


class _Product(ABC):
    """Columns side by side in the decoder's output; ``sizes[j]`` numbers for column ``j``."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = tuple(sizes)
        self.starts = (0, *accumulate(self.sizes))
        self.width = self.starts[-1]

    def slice(self, j: int) -> slice:
        """Where column ``j`` lies in the decoder's output."""
        return slice(self.starts[j], self.starts[j + 1])

    @abstractmethod
    def quantile(self, outputs_BW: Tensor, uniform_BD: Tensor) -> Tensor:
        """Inverse of each column's distribution function, (B, D)."""

    def sample(self, outputs_BW: Tensor, *, generator: torch.Generator) -> Tensor:
        """One row per row of the decoder's output, (B, D)."""
        shape, device = (len(outputs_BW), len(self.sizes)), outputs_BW.device
        return self.quantile(outputs_BW, torch.rand(shape, generator=generator, device=device))

    def stratified(self, outputs_KW: Tensor, index_B: Tensor, *, generator: torch.Generator) -> Tensor:
        """One row for each entry of the sorted ``index_B``, from that one of K outputs, (B, D); rows of the same output
        are drawn by :func:`~dpvae.models.prior.strata`: the same law row by row, with less error together."""
        uniform_BD = strata(index_B, len(self.sizes), generator=generator)
        parts = zip(index_B.split(ROWS_AT_ONCE), uniform_BD.split(ROWS_AT_ONCE), strict=True)
        return torch.cat([self.quantile(outputs_KW[k], u) for k, u in parts])


class Columns(_Product):
    """A product of ``len(cardinalities)`` categorical distributions over a vector of ``width`` logits."""

    def __init__(self, cardinalities: Sequence[int]) -> None:
        for j, size in enumerate(cardinalities):
            checks.whole(1, **{f"cardinalities[{j}]": size})
        super().__init__(cardinalities)

    def flat(self, codes_BD: Tensor) -> Tensor:
        """Codes as positions in the one-hot width, (B, D)."""
        return codes_BD + torch.as_tensor(self.starts[:-1], device=codes_BD.device)

    def one_hot(self, codes_BD: Tensor) -> Tensor:
        """(B, W) float."""
        x_BW = torch.zeros(codes_BD.shape[0], self.width, device=codes_BD.device)
        return x_BW.scatter_(1, self.flat(codes_BD.long()), 1.0)

    def log_probs(self, logits_BW: Tensor) -> Tensor:
        """Log-probabilities, normalised inside each column, (B, W)."""
        return torch.cat([part.log_softmax(-1) for part in logits_BW.split(self.sizes, -1)], -1)

    def log_prob(self, logits_BW: Tensor, codes_BD: Tensor) -> Tensor:
        """log p(x | z), (B,) nats."""
        return self.log_probs(logits_BW).gather(-1, self.flat(codes_BD.long())).sum(-1)

    def quantile(self, logits_BW: Tensor, uniform_BD: Tensor) -> Tensor:
        """The code at which each column's distribution function passes ``uniform_BD`` in [0, 1), (B, D)."""
        parts = zip(logits_BW.split(self.sizes, -1), uniform_BD.unbind(-1), strict=True)
        codes = [(part.softmax(-1).cumsum(-1) <= u_B[:, None]).sum(-1) for part, u_B in parts]
        last_D = torch.as_tensor(self.sizes, device=logits_BW.device) - 1
        return torch.minimum(torch.stack(codes, -1), last_D)  # a sum of probabilities may round to less than one


class GaussianColumns(_Product):
    """A product of ``columns`` normal distributions over real values.

    With a fixed ``scale`` the decoder puts out one number per column, its mean; with ``None`` two, its mean and its
    log standard deviation, clamped like the encoder's so that no column can become infinitely sure of itself.
    """

    def __init__(self, columns: int, *, scale: float | None) -> None:
        checks.whole(1, columns=columns)
        if scale is not None:
            checks.positive(scale=scale)
        super().__init__([1 if scale is not None else 2] * columns)
        self.scale = scale

    def one_hot(self, values_BD: Tensor) -> Tensor:
        """What the encoder sees of a row: the values themselves, (B, D)."""
        return values_BD

    def log_prob(self, outputs_BW: Tensor, values_BD: Tensor) -> Tensor:
        """log density p(x | z), (B,) nats."""
        mean_BD, log_std_BD = self._moments(outputs_BW)
        return -(0.5 * ((values_BD - mean_BD) * (-log_std_BD).exp()) ** 2 + log_std_BD
                 + 0.5 * math.log(2 * math.pi)).sum(-1)

    def quantile(self, outputs_BW: Tensor, uniform_BD: Tensor) -> Tensor:
        """The value at which each column's distribution function reaches ``uniform_BD`` in [0, 1), (B, D)."""
        mean_BD, log_std_BD = self._moments(outputs_BW)
        return mean_BD + log_std_BD.exp() * torch.special.ndtri(uniform_BD.clamp_min(_SMALLEST).to(mean_BD.dtype))

    def _moments(self, outputs_BW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of each column, each (B, D)."""
        if self.scale is not None:
            return outputs_BW, torch.full_like(outputs_BW, math.log(self.scale))
        mean_BD, log_std_BD = outputs_BW.unflatten(-1, (-1, 2)).unbind(-1)
        return mean_BD, log_std_BD.clamp(-6.0, 3.0)
