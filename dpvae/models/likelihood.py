"""p(x | z) for a row of codes: a product of categorical columns, each with its own slice of the decoder's output.

Shapes: B rows, D columns, W = sum of the columns' cardinalities (the one-hot width).

>>> import torch
>>> columns = Columns((2, 3))
>>> columns.log_prob(torch.zeros(1, 5), torch.tensor([[1, 2]])).exp()   # 1/2 * 1/3
tensor([0.1667])
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from dpvae import checks


class Columns:
    """A product of ``len(cardinalities)`` categorical distributions over a vector of ``width`` logits."""

    def __init__(self, cardinalities: Sequence[int]) -> None:
        for j, size in enumerate(cardinalities):
            checks.whole(1, **{f"cardinalities[{j}]": size})
        self.sizes = tuple(cardinalities)
        self.starts = (0, *accumulate(self.sizes))
        self.width = self.starts[-1]

    def slice(self, j: int) -> slice:
        """Where column ``j`` lies in the one-hot width."""
        return slice(self.starts[j], self.starts[j + 1])

    def flat(self, codes_BD: Tensor) -> Tensor:
        """Codes as positions in the one-hot width, (B, D)."""
        return codes_BD + torch.as_tensor(self.starts[:-1], device=codes_BD.device)

    def one_hot(self, codes_BD: Tensor) -> Tensor:
        """(B, W) float."""
        x_BW = torch.zeros(len(codes_BD), self.width, device=codes_BD.device)
        return x_BW.scatter_(1, self.flat(codes_BD.long()), 1.0)

    def log_probs(self, logits_BW: Tensor) -> Tensor:
        """Log-probabilities, normalised inside each column, (B, W)."""
        return torch.cat([part.log_softmax(-1) for part in logits_BW.split(self.sizes, -1)], -1)

    def log_prob(self, logits_BW: Tensor, codes_BD: Tensor) -> Tensor:
        """log p(x | z), (B,) nats."""
        return self.log_probs(logits_BW).gather(-1, self.flat(codes_BD.long())).sum(-1)

    def sample(self, logits_BW: Tensor, *, generator: torch.Generator) -> Tensor:
        """One row of codes per row of logits, (B, D): the Gumbel-max trick, column by column."""
        uniform_BW = torch.rand(logits_BW.shape, generator=generator, device=logits_BW.device)
        gumbel_BW = logits_BW - (-uniform_BW.clamp_min(1e-12).log()).log()
        return torch.stack([part.argmax(-1) for part in gumbel_BW.split(self.sizes, -1)], -1)
