"""What a backward pass leaves behind for one parameter, and the two questions asked of it: norms and clipped sums.

A term is one call's share of the gradients of all records. Terms of one parameter (a layer called twice, a weight
shared by two layers) are joined before the norm is taken, so that their cross terms count.

Shapes: B records, T positions (or samples, or calls) per record, d inputs, p outputs. Norms and sums are at least
single precision, whatever the precision of the pass.

>>> import torch
>>> a_BTd, g_BTp = torch.ones(1, 2, 3), torch.ones(1, 2, 5)
>>> Outer(a_BTd, g_BTp).squared_norms(), Outer(a_BTd, g_BTp).sampled().squared_norms().round()
(tensor([60.]), tensor([60.]))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

# Gram matrices pay off where they are this much smaller than the gradient itself: they need a second matrix product.
GRAM_GAIN = 2.0


Layout = tuple[int, ...] | None


def laid_out(flat: Tensor, layout: Layout) -> Tensor:
    """A convolution's gradient is kept as it is cheapest to make, (outputs, *kernel, inputs), and turned at the end."""
    return flat if layout is None else flat.view(*flat.shape[:-1], *layout).movedim(-1, -len(layout) + 1)


@dataclass(frozen=True, eq=False)
class Sample:
    """The gradients themselves, (B, *shape of the parameter), or of its ``layout``."""

    value: Tensor
    layout: Layout = None

    def squared_norms(self) -> Tensor:
        """(B,)."""
        return squares(self.value)

    def clipped_sum(self, factors_B: Tensor) -> Tensor:
        """``sum_i c_i g_i``, in the parameter's shape (flat)."""
        value = as_it_lies(self.value)
        total = factors_B.to(value.dtype) @ value.flatten(1)
        return laid_out(total, self.layout) if value is self.value else total.view(value.shape[1:]).mT.flatten()

    def cleaned(self, keep_B: Tensor) -> Sample:
        """With zeros in the place of records that are not kept, whatever they held (NaN too)."""
        return Sample(masked(self.value, keep_B), self.layout)

    def sampled(self) -> Sample:
        """The same gradients written out, one per record."""
        return self


@dataclass(frozen=True, eq=False)
class Outer:
    """Gradients ``G_i^T A_i`` by their two factors: (B, T, d) and (B, T, p)."""

    a: Tensor
    g: Tensor
    layout: Layout = None

    def squared_norms(self) -> Tensor:
        """By rank one where T is 1, else by Gram matrices: cheaper than the gradients, or there would be a Sample."""
        if self.a.shape[1] == 1:
            return squares(self.a) * squares(self.g)
        return gram_norms(self.g, self.a)

    def clipped_sum(self, factors_B: Tensor) -> Tensor:
        a_BTd, g_BTp = self.a.to(factors_B.dtype), self.g.to(factors_B.dtype) * factors_B[:, None, None]
        if not a_BTd.is_contiguous() and a_BTd.transpose(0, 1).is_contiguous():  # a recurrent layer's: time first
            a_BTd, g_BTp = a_BTd.transpose(0, 1), g_BTp.transpose(0, 1)
        total = g_BTp.reshape(-1, g_BTp.shape[-1]).T @ a_BTd.reshape(-1, a_BTd.shape[-1])
        return laid_out(total.flatten(), self.layout)

    def cleaned(self, keep_B: Tensor) -> Outer:
        return Outer(masked(self.a, keep_B), masked(self.g, keep_B), self.layout)

    def sampled(self) -> Sample:
        a_BTd, g_BTp = self.a.to(wide(self.g.dtype)), self.g.to(wide(self.g.dtype))
        if self.layout is None and g_BTp.shape[2] > a_BTd.shape[2]:  # a tenth faster with the longer side last
            return Sample(torch.bmm(a_BTd.mT, g_BTp).mT)
        return Sample(torch.bmm(g_BTp.mT, a_BTd), self.layout)

    def settled(self) -> Outer | Sample:
        """The gradients instead of their factors, where those are the smaller."""
        positions, inputs, outputs = self.a.shape[1], self.a.shape[2], self.g.shape[2]
        small = positions == 1 or GRAM_GAIN * positions * (inputs + outputs) <= inputs * outputs
        return self if small else self.sampled()


@dataclass(frozen=True, eq=False)
class Lookup:
    """Gradients of a table of ``rows`` embeddings: row ``index[i, t]`` gets ``g[i, t]``. (B, T) and (B, T, p)."""

    index: Tensor
    g: Tensor
    rows: int

    def squared_norms(self) -> Tensor:
        """The Gram matrix of one-hot inputs says which positions hold the same token."""
        return gram_norms(self.g, same=self.index[:, :, None] == self.index[:, None, :])

    def clipped_sum(self, factors_B: Tensor) -> Tensor:
        scaled_BTp = self.g.to(factors_B.dtype) * factors_B[:, None, None]
        total = scaled_BTp.new_zeros(self.rows, scaled_BTp.shape[-1])
        return total.index_add_(0, self.index.flatten(), scaled_BTp.flatten(0, 1))

    def cleaned(self, keep_B: Tensor) -> Lookup:
        return Lookup(self.index, masked(self.g, keep_B), self.rows)

    def sampled(self) -> Sample:
        g_BTp = self.g.to(wide(self.g.dtype))
        value = g_BTp.new_zeros(g_BTp.shape[0], self.rows, g_BTp.shape[-1])
        return Sample(value.scatter_add_(1, self.index[:, :, None].expand_as(g_BTp), g_BTp))


Term = Sample | Outer | Lookup


def join(terms: Sequence[Term]) -> Term:
    """One term for all calls that used a parameter: cross terms of its calls are part of its norm."""
    if len(terms) == 1:
        return terms[0]
    outers = [term for term in terms if isinstance(term, Outer)]
    if len(outers) == len(terms) and len({outer.layout for outer in outers}) == 1:
        a, g = torch.cat([t.a for t in outers], 1), torch.cat([t.g for t in outers], 1)
        return Outer(a, g, outers[0].layout).settled()
    lookups = [term for term in terms if isinstance(term, Lookup)]
    if len(lookups) == len(terms):
        indices, grads = [t.index for t in lookups], [t.g for t in lookups]
        return Lookup(torch.cat(indices, 1), torch.cat(grads, 1), lookups[0].rows)
    samples = [term.sampled() for term in terms]
    values = [laid_out(sample.value.flatten(1), sample.layout).flatten(1) for sample in samples]
    return Sample(torch.stack(values).sum(0))


def wide(dtype: torch.dtype) -> torch.dtype:
    """At least single precision."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def as_it_lies(x: Tensor) -> Tensor:
    """(B, p, d) as (B, d, p) where it was made that way: then nothing is copied to be read in a row."""
    return x.mT if x.dim() == 3 and not x.is_contiguous() and x.mT.is_contiguous() else x


def squares(x: Tensor) -> Tensor:
    """Squared norm of each record's part, (B,)."""
    x_BN = as_it_lies(x).flatten(1)
    return torch.linalg.vector_norm(x_BN, dim=1, dtype=wide(x.dtype)).square()


def masked(x: Tensor, keep_B: Tensor) -> Tensor:
    """``x`` with zeros for the records that are not kept: zero times NaN would be NaN."""
    return torch.where(keep_B.view(-1, *[1] * (x.dim() - 1)), x, torch.zeros((), dtype=x.dtype, device=x.device))


def gram_norms(g_BTp: Tensor, a_BTd: Tensor | None = None, *, same: Tensor | None = None) -> Tensor:
    """``sum_st (A A^T)_st (G G^T)_st`` of each record, (B,); ``same`` (B, T, T) stands for A A^T where A is one-hot.

    Positions that cancel leave a small gradient of large terms, and a sum of squares in single precision would lose
    it: those records are worked out in double precision, and their norm is raised by what the rounding of the clipped
    sum can add, so that nobody slips through the clip. On a GPU everything is double: no branch, no waiting.
    """
    branch = g_BTp.is_cpu and not tracing()
    dtype = wide(g_BTp.dtype) if branch else torch.float64
    norms_B, largest_B = _gram(g_BTp.to(dtype), None if a_BTd is None else a_BTd.to(dtype), same)
    cancels_B = norms_B < largest_B * (0.1 / g_BTp.shape[1])
    if branch and not bool(cancels_B.any()):
        return norms_B
    if branch:
        at = cancels_B.nonzero()[:, 0]
        exact, _ = _gram(g_BTp[at].double(), None if a_BTd is None else a_BTd[at].double(),
                         None if same is None else same[at])
        norms_B = norms_B.index_copy(0, at, exact.to(norms_B.dtype))
    raised_B = norms_B.clamp_min(0.0) + guard(wide(g_BTp.dtype)) * largest_B
    return torch.where(cancels_B, raised_B, norms_B).to(wide(g_BTp.dtype))


def guard(dtype: torch.dtype) -> float:
    """The share of the square of all terms' sizes, summed, that keeps a squared norm above what rounding can add."""
    return 4 * torch.finfo(dtype).eps


def _gram(g_BTp: Tensor, a_BTd: Tensor | None, same: Tensor | None) -> tuple[Tensor, Tensor]:
    """The sum over Gram matrices, and what it would be if no two positions pulled in different directions."""
    gram_BTT = torch.bmm(g_BTp, g_BTp.mT)
    sizes_BT = gram_BTT.diagonal(dim1=1, dim2=2).clamp_min(0.0).sqrt()
    if a_BTd is not None:
        inputs_BTT = torch.bmm(a_BTd, a_BTd.mT)
        sizes_BT = sizes_BT * inputs_BTT.diagonal(dim1=1, dim2=2).clamp_min(0.0).sqrt()
        gram_BTT = gram_BTT * inputs_BTT
    if same is not None:
        gram_BTT = gram_BTT * same
    return gram_BTT.sum((1, 2)), sizes_BT.sum(1).square()


def tracing() -> bool:
    """Whether a compiler is looking: then nothing may depend on values."""
    return get_proxy_mode() is not None
